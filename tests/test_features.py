"The store under kills, full disks and bad clips; extraction with a stand-in backbone that takes no time."
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import time

import av
import numpy as np
import pandas as pd
import pytest
import torch

from viewpoint_rosetta import features
from viewpoint_rosetta.features import FeatureStore, StoreError, extract, extract_text, load_bank, shard_files

fork = multiprocessing.get_context("fork")
SHAPE = (4, 2, 64)


def rows(start, stop, shape=SHAPE):
    "Row i is filled with i."
    return np.broadcast_to(np.arange(start, stop).reshape(-1, *[1] * len(shape)), (stop - start, *shape)) % 2048


def names(start, stop): return [f"clip{i}" for i in range(start, stop)]


def assert_whole(store):
    "Every row is there once, in order, with its own numbers."
    n = len(store)
    assert store.ids == names(0, n)
    if n: assert (store.array() == rows(0, n, store.shape)).all()


@pytest.fixture
def store(tmp_path):
    store = FeatureStore(tmp_path / "store", meta={"backbone": {"grid": 3}, "frames": 8})
    for start, stop in ((0, 3), (3, 4), (4, 7)): store.append(names(start, stop), rows(start, stop))
    return store


# --- the store

def test_rows_come_back_in_any_order(store):
    assert len(store) == 7 and store.shape == SHAPE
    got = store.read(["clip6", "clip0", "clip3", "clip0"])
    assert got.dtype == np.float16 and (got[:, 0, 0, 0] == [6, 0, 3, 0]).all()
    assert store.read([]).shape == (0, *SHAPE)
    assert_whole(FeatureStore(store.path))


def test_another_process_sees_appended_rows(store):
    reader = FeatureStore(store.path)
    store.append(["new"], rows(9, 10))
    assert "new" not in reader
    reader.refresh()
    assert reader.read(["new"])[0, 0, 0, 0] == 9


def test_reading_maps_and_copies_nothing(store):
    store.compact()
    view = store.array()
    assert not view.flags.owndata and not view.flags.writeable
    assert list(shard_files(store.path)) == [(0, 2)]
    assert_whole(store)


def test_compact_respects_its_limit(store):
    store.compact(max_bytes=store.array()[:4].nbytes)
    assert list(shard_files(store.path)) == [(0, 1), (2, 2)]
    assert_whole(store)
    store.append(names(7, 8), rows(7, 8))
    assert (3, 3) in shard_files(store.path)
    assert_whole(FeatureStore(store.path))


@pytest.mark.parametrize("ids", [["clip1"], ["x", "x"], ["x", "clip6"]])
def test_duplicates_are_impossible(store, ids):
    with pytest.raises(StoreError, match=ids[-1] + "' twice"): store.append(ids, rows(0, len(ids)))
    assert_whole(FeatureStore(store.path))


def test_two_writers_cannot_add_the_same_row(store):
    other = FeatureStore(store.path)
    store.append(["x"], rows(7, 8))
    with pytest.raises(StoreError, match="'x' twice"): other.append(["x"], rows(7, 8))  # though it has not looked since
    other.append(["x", "y"], rows(8, 10), skip=True)
    assert other.read(["x", "y"])[:, 0, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize("values, says", [(np.full((1, *SHAPE), np.nan), "not finite"), (np.full((1, *SHAPE), 1e5), "not finite"),
                                          (np.zeros((1, 3)), "shape"), (np.zeros((2, *SHAPE)), "1 ids for 2 rows")])
def test_values_that_do_not_belong_are_refused(store, values, says):
    with pytest.raises(StoreError, match=says): store.append(["x"], values)
    assert_whole(FeatureStore(store.path))


def test_other_settings_are_refused_in_words(store):
    with pytest.raises(StoreError, match=r"backbone.grid was 3, now 7; frames was 8, now 4.*another folder"):
        FeatureStore(store.path, meta={"backbone": {"grid": 7}, "frames": 4})
    FeatureStore(store.path, meta={"frames": 8, "backbone": {"grid": 3}})  # the order does not matter


def test_missing_row_is_named(store):
    with pytest.raises(StoreError, match="no row 'nobody'"): store.read(["clip0", "nobody"])


@pytest.mark.parametrize("cut", [0, 7, .5, -1])
def test_damaged_shard_is_named(store, cut):
    path = shard_files(store.path)[1, 1]
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(StoreError, match=f"{path.name} is not a whole shard.*Delete this one file"): FeatureStore(store.path)
    path.unlink()
    assert len(FeatureStore(store.path)) == 6


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a feature store is a folder"): FeatureStore(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write .*meta.json.*choose a folder"): FeatureStore(tmp_path / "file" / "below", meta={})


# --- crashes

def append_forever(path, report, n):
    store = FeatureStore(path)
    while True:
        start = len(store)
        store.append(names(start, start + n), rows(start, start + n, (8, 9, 1280)))
        if start % (4 * n) == 0: store.compact()
        os.write(report, b"%d " % (start + n))


def test_kill_9_at_random_moments_loses_nothing_that_was_reported(tmp_path):
    for moment in np.random.default_rng(0).uniform(0, .12, 8):
        listen, report = os.pipe()
        process = fork.Process(target=append_forever, args=(tmp_path / "s", report, 8))
        process.start()
        os.close(report)
        said = os.read(listen, 99)
        time.sleep(moment)
        process.kill()
        process.join()
        said += os.read(listen, 10**6)
        os.close(listen)
        store = FeatureStore(tmp_path / "s")
        assert int(said.split()[-1]) <= len(store) <= int(said.split()[-1]) + 8
        assert_whole(store)
    store.append(names(len(store), len(store) + 1), rows(len(store), len(store) + 1, (8, 9, 1280)))
    assert not any(p.name.startswith(".shard") for p in store.path.iterdir()), "remains of dead writers should be swept"
    assert_whole(FeatureStore(store.path))


def die_at(monkeypatch, path, name, nth, action):
    "In a child: the nth call of os.<name> is the last thing that happens."
    calls, real = [], getattr(os, name)
    def dying(*args, **kw):
        calls.append(1)
        if len(calls) == nth: os._exit(9)
        return real(*args, **kw)
    setattr(os, name, dying)
    action(FeatureStore(path))
    os._exit(0)


@pytest.mark.parametrize("action", ["append", "compact"])
@pytest.mark.parametrize("name", ["fsync", "replace", "unlink"])
def test_death_at_each_step(store, action, name):
    def act(s): return s.append(["clip7", "clip8"], rows(7, 9)) if action == "append" else s.compact()
    for nth in range(1, 12):
        copy = store.path.with_name(f"{name}{nth}")
        shutil.copytree(store.path, copy)
        process = fork.Process(target=die_at, args=(None, copy, name, nth, act))
        process.start()
        process.join()
        assert_whole(FeatureStore(copy))                      # before anyone has tidied up
        assert len(FeatureStore(copy)) in ((7, 9) if action == "append" else (7,))
        FeatureStore(copy).compact()
        assert_whole(FeatureStore(copy))
        assert sum(p.name.endswith(".arrow") for p in copy.iterdir()) == 1
        if process.exitcode == 0: return                      # it never came to an nth call: all steps were tried
    raise AssertionError("more steps than expected")


def test_full_disk_keeps_what_is_there(store, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="shard-00000003.*No space left.*free some space") as e: store.append(["x"], rows(0, 1))
    assert e.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert_whole(FeatureStore(store.path))
    store.append(names(7, 8), rows(7, 8))
    assert_whole(store)


def test_real_write_error_is_told(store):
    "The operating system refuses to let the file grow: what a quota does."
    def limited(report):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        FeatureStore(store.path).append(["x"], np.zeros((1, *SHAPE)))
        try: FeatureStore(store.path).append([f"y{i}" for i in range(500)], np.zeros((500, *SHAPE)))
        except OSError as e: os.write(report, f"{e.errno} {e}".encode())
        os._exit(0)

    listen, report = os.pipe()
    process = fork.Process(target=limited, args=(report,))
    process.start()
    os.close(report)
    process.join()
    said = os.read(listen, 10_000).decode()
    assert said.startswith(str(errno.EFBIG)) and "cannot write" in said and "shard-00000004" in said, said
    assert FeatureStore(store.path).ids == names(0, 7) + ["x"]


# --- extraction

class Fake:
    "Cells are the frame's mean brightness in its four quarters: known without a network."
    spec = {"name": "quarters"}

    def __init__(self, before=lambda n: None): self.batches, self.before = [], before
    def preprocess(self, frames): return torch.as_tensor(frames).permute(0, 3, 1, 2).float()

    def __call__(self, x):
        self.before(len(self.batches))
        self.batches.append(len(x))
        return torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(2).mT


def write_video(path, seconds, size=64, fps=8):
    "Brightness tells the frame: frame i is 4*i."
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=fps, options={"crf": "1", "preset": "ultrafast"})
        stream.width = stream.height = size
        for i in range(seconds * fps):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((size, size, 3), 4 * i, np.uint8), format="rgb24")))
        box.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, size in (("b.mp4", 64), ("a.mp4", 64), ("big.mp4", 96)): write_video(folder / name, 6, size)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a film")
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:len(whole) // 2])
    return folder


def table(folder, *rows):
    clips = pd.DataFrame([dict(clip_id=f"{v}:{a:g}", video=v, start_s=a, end_s=b) for v, a, b in rows])
    clips.attrs["root"] = folder
    return clips


@pytest.fixture
def clips(folder): return table(folder, *[(v, float(s), s + 1.) for s in (3, 0, 4, 1, 2, 5) for v in ("b.mp4", "a.mp4")])


def brightness(clips, store): return store.read(clips.clip_id).astype(float).mean((2, 3))  # (N,T)


def expected(clips, frames=4):
    "Brightness of the frames in the middles of four quarters of a second at 8 frames a second."
    at = clips.start_s.to_numpy()[:, None] + (np.arange(frames) + .5) / frames
    return 4 * np.floor(at * 8 + 1e-6)


def test_every_clip_gets_its_own_frames(clips, tmp_path):
    store, fake = FeatureStore(tmp_path / "s"), Fake()
    assert extract(clips, fake, store, frames=4, batch=12, every=5, progress=False) == 12
    assert np.abs(brightness(clips, store) - expected(clips)).max() < 3  # h264 is not exact; neighbours differ by 4
    assert np.abs(brightness(clips, store) - expected(clips)[::-1]).max() > 20
    assert fake.batches == [12] * 4 and store.shape == (4, 4, 1)
    assert store.ids == sorted(store.ids) and len(shard_files(store.path)) == 2


def test_resume_does_only_the_rest(clips, tmp_path):
    store, fake = FeatureStore(tmp_path / "s"), Fake()
    extract(clips[:5], fake, store, frames=4, progress=False)
    assert fake.batches == [16] * 2                             # five clips in passes of four: the second is filled up
    assert extract(clips, fake, store, frames=4, progress=False) == 7 and fake.batches == [16] * 4
    assert extract(clips, fake, FeatureStore(store.path), frames=4, progress=False) == 0
    assert np.abs(brightness(clips, store) - expected(clips)).max() < 3


def test_other_settings_or_other_clips_are_refused(clips, tmp_path):
    store, fake = FeatureStore(tmp_path / "s"), Fake()
    extract(clips, fake, store, frames=4, progress=False)
    with pytest.raises(StoreError, match="frames was 4, now 8"): extract(clips, fake, store, frames=8, progress=False)
    other = Fake()
    other.spec = {"name": "halves"}
    with pytest.raises(StoreError, match="backbone.name was quarters, now halves"): extract(clips, other, store, frames=4, progress=False)
    moved = clips.assign(end_s=clips.end_s - .5)
    moved.attrs = clips.attrs
    with pytest.raises(StoreError, match="'b.mp4:3' was made from 'b.mp4 3.000-4.000 s'"): extract(moved, fake, store, frames=4, progress=False)
    with pytest.raises(StoreError, match="'b.mp4:3' twice"): extract(pd.concat([clips, clips]), fake, FeatureStore(tmp_path / "t"), progress=False)


def test_bad_clips_are_reported_and_cost_only_themselves(folder, tmp_path):
    clips = table(folder, ("a.mp4", 0., 1.), ("a.mp4", 2., 2.), ("a.mp4", 5.5, 9.), ("a.mp4", 3., 4.), ("empty.mp4", 0., 1.),
                  ("text.mp4", 0., 1.), ("cut.mp4", 4., 5.), ("gone.mp4", 0., 1.), ("../x.mp4", 0., 1.), ("big.mp4", 1., 2.))
    problems, store = [], FeatureStore(tmp_path / "s")
    added = extract(clips, Fake(), store, frames=4, progress=False, on_problem=lambda *p: problems.append(p))
    good = clips[clips.clip_id.isin(["a.mp4:0", "a.mp4:3", "big.mp4:1"])]
    assert added == 3 and set(store.ids) == set(good.clip_id)
    assert np.abs(brightness(good, store) - expected(good)).max() < 3
    told = {"a.mp4:2": "from 2.0 s to 2.0 s: a clip", "a.mp4:5.5": "the video ends at 6.000 s", "empty.mp4:0": "empty.mp4: the file is empty",
            "text.mp4:0": "text.mp4: not a video", "cut.mp4:4": "cut.mp4: an MP4 without its index", "gone.mp4:0": "gone.mp4: no such file",
            "../x.mp4:0": "leads out of"}
    assert {p[0] for p in problems} == set(told) == set(clips.clip_id) - set(good.clip_id)
    for clip_id, file, reason, row in problems:
        assert told[clip_id] in reason and clips.video[row - 1] == file and clips.clip_id[row - 1] == clip_id, (clip_id, row, reason)


def test_rows_are_those_of_the_manifest_where_the_table_knows_them(folder, tmp_path):
    clips, rows = table(folder, ("gone.mp4", 0., 1.), ("empty.mp4", 0., 1.)), []
    extract(clips.assign(manifest_row=[7, 9]), Fake(), FeatureStore(tmp_path / "s"), progress=False, on_problem=lambda *p: rows.append(p[3]))
    assert sorted(rows) == [7, 9]


def test_default_is_a_warning(folder, tmp_path):
    with pytest.warns(UserWarning, match="skipped row 1, gone.mp4:0 of gone.mp4"):
        extract(table(folder, ("gone.mp4", 0., 1.)), Fake(), FeatureStore(tmp_path / "s"), progress=False)


def test_features_that_are_not_finite_are_a_problem(clips, tmp_path):
    class Broken(Fake):
        def __call__(self, x):
            y = super().__call__(x)
            y[0] = torch.nan if len(self.batches) == 1 else 1e6 if len(self.batches) == 2 else y[0]
            return y

    problems, store = [], FeatureStore(tmp_path / "s")
    assert extract(clips, Broken(), store, frames=4, batch=8, progress=False, on_problem=lambda *p: problems.append(p)) == 10
    assert [p[2] for p in problems] == ["its features are not finite"] * 2


def test_ctrl_c_keeps_what_is_done(clips, tmp_path):
    store = FeatureStore(tmp_path / "s")
    fake = Fake(lambda n: signal.raise_signal(signal.SIGINT) if n == 2 else None)
    with pytest.raises(KeyboardInterrupt): extract(clips, fake, store, frames=4, batch=8, progress=False)
    assert len(FeatureStore(store.path)) == 4
    assert extract(clips, Fake(), store, frames=4, progress=False) == 8


def test_ctrl_c_just_after_a_write_does_not_write_twice(clips, tmp_path, monkeypatch):
    store, real = FeatureStore(tmp_path / "s"), features.put
    def put(*args):
        real(*args)
        monkeypatch.setattr(features, "put", real)
        raise KeyboardInterrupt
    monkeypatch.setattr(features, "put", put)
    with pytest.raises(KeyboardInterrupt): extract(clips, Fake(), store, frames=4, batch=8, every=4, progress=False)
    assert len(FeatureStore(store.path)) == 4
    assert extract(clips, Fake(), store, frames=4, progress=False) == 8


def extract_slowly(clips, path): extract(clips, Fake(lambda n: time.sleep(.01)), FeatureStore(path), frames=4, batch=4, every=1, progress=False)


def test_kill_9_during_extraction_then_resume(clips, tmp_path):
    torch.set_num_threads(1)
    moments, counts = np.random.default_rng(1).uniform(.02, .2, 5), []
    for moment in moments:
        process = fork.Process(target=extract_slowly, args=(clips, tmp_path / "s"))
        process.start()
        time.sleep(moment)
        process.kill()
        process.join()
        store = FeatureStore(tmp_path / "s")
        counts.append(len(store))
        done = clips[clips.clip_id.isin(store.ids)]
        assert len(done) == len(store) and (not len(done) or np.abs(brightness(done, store) - expected(done)).max() < 3)
    assert counts == sorted(counts)                             # nothing that was there has gone
    fake = Fake()
    assert extract(clips, fake, store, frames=4, progress=False) == 12 - counts[-1]
    assert len(fake.batches) == -(-(12 - counts[-1]) // 4)      # only the rest was computed
    assert np.abs(brightness(clips, store) - expected(clips)).max() < 3


def test_two_extractions_at_once_make_no_duplicates(clips, tmp_path):
    both = [fork.Process(target=extract_slowly, args=(clips, tmp_path / "s")) for _ in range(2)]
    for p in both: p.start()
    for p in both: p.join()
    assert [p.exitcode for p in both] == [0, 0]
    store = FeatureStore(tmp_path / "s")
    assert sorted(store.ids) == sorted(clips.clip_id)


# --- sentences and the bank

class Words:
    spec = {"name": "lengths"}
    def encode(self, sentences): return np.array([[len(s)] * 384 for s in sentences], np.float32)


def test_text_and_bank(clips, tmp_path):
    said = clips.assign(narration=["C opens it", None] + ["so"] * 10)
    said.attrs = clips.attrs
    frames, text = FeatureStore(tmp_path / "f"), FeatureStore(tmp_path / "t")
    extract(clips[1:], Fake(), frames, frames=4, progress=False)
    assert extract_text(said, Words(), text) == 12 and extract_text(said, Words(), text) == 0
    bank = load_bank(said, frames, text)
    assert list(bank.ids) == list(clips.clip_id[1:]) and bank.tokens.dtype == np.float16 and bank.text.dtype == np.float32
    assert bank.text[bank.rows([clips.clip_id[1], clips.clip_id[2]]), 0].tolist() == [0, 2]
    assert (bank.tokens[bank.rows([clips.clip_id[5]])] == frames.read([clips.clip_id[5]])).all()
    with pytest.raises(StoreError, match="no clip 'b.mp4:3'"): bank.rows(clips.clip_id)
    frames.compact()
    mapped = load_bank(said, frames, text, in_place=True)
    assert not mapped.tokens.flags.owndata and (mapped.tokens[mapped.rows(bank.ids)] == bank.tokens).all()
    assert (mapped.text[mapped.rows(bank.ids)] == bank.text).all()
    with pytest.raises(StoreError, match="was made from 'C opens it'"): extract_text(said.assign(narration="now"), Words(), text)
