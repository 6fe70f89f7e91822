"The Ray engine: the same store as the local one, whoever dies. One small local cluster, a stand-in backbone that takes no time."
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from test_features import Fake, Words, table, write_video
from viewpoint_rosetta import cluster
from viewpoint_rosetta.cluster import Tally, Worker, as_row, blocks_of, connected, extract_ray, imported, on_ray, passes_of, settled
from viewpoint_rosetta.features import FeatureStore, computed, extract, plan


class Watched(Fake):
    "Leaves a file per forward pass that names its process, and takes a moment for each."
    def __init__(self, folder, pause=0.):
        super().__init__()
        self.folder, self.pause = folder, pause

    def __call__(self, x):
        time.sleep(self.pause)
        y = super().__call__(x)
        Path(self.folder, f"{os.getpid()}-{time.time_ns()}").touch()
        return y

    def workers(self): return {int(p.name.split("-")[0]) for p in Path(self.folder).iterdir()}


@pytest.fixture(scope="module")
def ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))  # workers need `Fake`
        with connected("local", cpus=2, store_bytes=200 * 2**20) as ray: yield ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, size in (("a.mp4", 64), ("b.mp4", 64), ("c.mp4", 96)): write_video(folder / name, 6, size)
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture
def clips(folder):
    "120 clips in five blocks, some of them bad."
    rows = [(v, s / 8, s / 8 + .5) for v in ("a.mp4", "b.mp4", "c.mp4") for s in range(38)]
    return table(folder, *rows, ("empty.mp4", 0., 1.), ("gone.mp4", 0., 1.), ("a.mp4", 5.75, 9.), ("b.mp4", 4.01, 4.), ("../x.mp4", 0., 1.), ("c.mp4", 5., 6.))


def contents(store): return {p.name: p.read_bytes() for p in sorted(store.path.iterdir()) if p.name != ".lock"}


def local(clips, path, **more):
    "What the local engine makes of them: the store's files, and the problems."
    problems, store = [], FeatureStore(path)
    extract(clips, Fake(), store, 4, progress=False, on_problem=lambda *p: problems.append(p), **more)
    return contents(store), problems


# --- without Ray

def test_without_ray_the_command_is_told(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'viewpoint_rosetta\[ray\]'"): imported()


def in_process(folder, tries=lambda n: 1, backbone=Fake):
    "A stand-in for `streamed`: one worker, this process."
    worker = Worker(backbone, str(folder), 4, None, 1, "float16", tries=tries)
    return lambda blocks: (worker(as_row(n, block)) for n, block in enumerate(blocks))


def test_blocks_do_not_depend_on_what_is_done(clips, tmp_path):
    store = FeatureStore(tmp_path / "s")
    before = pd.concat(plan(clips, store, 8)).set_index("clip_id").block
    assert before.nunique() == 5 and before.value_counts().max() <= 32 and before.is_monotonic_increasing
    store.append(before.index[5:50], np.zeros((45, 1)))
    jobs = plan(clips, store, 8)
    after = pd.concat(jobs).set_index("clip_id").block
    assert len(after) == 75 and (after == before[after.index]).all()
    assert all(job.video.nunique() == 1 for job in jobs)


def test_a_worker_finds_what_the_local_engine_finds(clips, folder, tmp_path):
    jobs = plan(clips, FeatureStore(tmp_path / "s"), 8)
    there = list(settled(in_process(folder), blocks_of(jobs), np.dtype("float16")))
    here = list(computed(jobs, clips, Fake(), 4, None, 2, np.dtype("float16")))
    assert len(there) == len(here) and sum(map(len, here)) == len(clips)
    for one, other in zip(there, here):
        assert [clip for clip, _ in one] == [clip for clip, _ in other]
        assert all(a == b if isinstance(b, str) else (a == b).all() for (_, a), (_, b) in zip(one, other))


def test_a_defect_of_the_backbone_is_raised_and_not_put_on_the_clips(clips, folder, tmp_path):
    class Broken(Fake):
        def __call__(self, x): raise KeyError("layer")
    with pytest.raises(RuntimeError, match="a worker failed on ../x.mp4, block 0: KeyError: 'layer'"):
        list(settled(in_process(folder, backbone=Broken), blocks_of(plan(clips, FeatureStore(tmp_path / "s"), 8)), np.float16))


def test_a_clip_that_kills_its_workers_costs_only_itself(clips, folder, tmp_path):
    "Deaths are played: a row that holds the deadly clip is begun a third time, as after two deaths."
    jobs, deadly, rounds = plan(clips, FeatureStore(tmp_path / "s"), 8), "b.mp4:2", []
    def run(blocks):
        rounds.append(len(blocks))
        held = [any((job.clip_id == deadly).any() for job in block) for block in blocks]
        return in_process(folder, lambda n: 3 if held[n] else 2)(blocks)
    found = {clip.clip_id: v for one in settled(run, blocks_of(jobs), np.float16) for clip, v in one}
    reasons = {i: v for i, v in found.items() if isinstance(v, str)}
    assert set(found) == set(clips.clip_id) and reasons.pop(deadly) == "each worker that tried it died"
    assert len(reasons) == 5 and rounds[0] == 5 and 1 < rounds[1] <= 32


def test_the_tally_counts_each_row():
    tally = Tally()
    assert [tally.begin(n) for n in (7, 7, 2, 7)] == [1, 2, 1, 3]


# --- with Ray

def test_same_bytes_same_problems(ray, clips, tmp_path):
    files, told = local(clips, tmp_path / "local", every=20)
    problems, store = [], FeatureStore(tmp_path / "ray")
    added = extract_ray(clips, Fake(), store, 4, workers=2, every=20, progress=False, on_problem=lambda *p: problems.append(p))
    assert added == 115 and len(files) > 4 and contents(store) == files
    assert problems == told and len(told) == 5 and {p[3] for p in told} == {115, 116, 117, 118, 119}
    assert extract_ray(clips[:114], Fake(), store, 4, progress=False) == 0, "nothing to do, no worker started"


def test_a_killed_worker_costs_nothing(ray, clips, tmp_path):
    (tmp_path / "log").mkdir()
    watched, killed = Watched(tmp_path / "log", .05), []
    def kill():
        while len(list((tmp_path / "log").iterdir())) < 5: time.sleep(.01)
        killed.append(watched.workers().pop())
        os.kill(killed[0], signal.SIGKILL)
    thread = threading.Thread(target=kill)
    thread.start()
    store = FeatureStore(tmp_path / "ray")
    extract_ray(clips, watched, store, 4, workers=1, every=20, progress=False, on_problem=lambda *p: None)
    thread.join()
    assert len(watched.workers()) == 2 and killed[0] in watched.workers(), "another worker took over"
    assert contents(store) == local(clips, tmp_path / "local", every=20)[0]


def test_ctrl_c_keeps_what_is_done_and_either_engine_goes_on(ray, clips, tmp_path):
    (tmp_path / "log").mkdir()
    store, main = FeatureStore(tmp_path / "ray"), threading.main_thread().ident
    def interrupt():
        while not len(FeatureStore(store.path)): time.sleep(.01)
        signal.pthread_kill(main, signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    slow = dict(every=20, progress=False, on_problem=lambda *p: None)
    with pytest.raises(KeyboardInterrupt): extract_ray(clips, Watched(tmp_path / "log", .1), store, 4, workers=1, **slow)
    thread.join()
    store.refresh()
    assert 0 < len(store) < 115 and ray.is_initialized()
    extract(clips, Fake(), store, 4, **slow)
    store.compact()
    whole = FeatureStore(tmp_path / "local")
    local(clips, whole.path)
    whole.refresh()
    assert store.ids == whole.ids and (store.array() == whole.array()).all()


DRIVER = """
import sys
sys.path[:0] = {path!r}
from test_cluster import *
from viewpoint_rosetta.clips import read_clips
clips = pd.read_parquet({clips!r})
clips.attrs["root"] = {root!r}
extract_ray(clips, Watched({log!r}, .1), FeatureStore({store!r}), 4, address={address!r}, workers=1, every=20, progress=False, on_problem=lambda *p: None)
"""


def test_kill_9_of_the_driver_then_resume(ray, clips, folder, tmp_path):
    "The driver is another process, on the cluster that runs already; this one goes on where it died."
    (tmp_path / "log").mkdir()
    pd.DataFrame(dict(clips)).to_parquet(tmp_path / "clips.parquet")
    code = DRIVER.format(path=sys.path, clips=str(tmp_path / "clips.parquet"), root=str(folder), log=str(tmp_path / "log"),
                         store=str(tmp_path / "ray"), address=ray.get_runtime_context().gcs_address)
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while driver.poll() is None and not len(FeatureStore(tmp_path / "ray")): time.sleep(.02)
    driver.kill()
    said = driver.communicate()[1]
    store = FeatureStore(tmp_path / "ray")
    assert 0 < len(store) < 115, said
    extract_ray(clips, Fake(), store, 4, workers=1, every=20, progress=False, on_problem=lambda *p: None)
    assert contents(store) == local(clips, tmp_path / "local", every=20)[0]


def test_an_address_where_nobody_answers(monkeypatch):
    "Told at once; Ray alone waits for ever."
    monkeypatch.setattr(imported(), "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(OSError, match="no Ray cluster at '127.0.0.1:.*refused.*`ray status`"):
            with connected(): pass
    assert time.monotonic() - start < 15


def test_a_machine_too_busy_to_start_at_once_is_tried_again(monkeypatch):
    ray, tried = imported(), []
    def init(**given):
        tried.append(given["address"])
        if len(tried) < 3: raise Exception("The current node timed out during startup.")
    for name, fn in dict(is_initialized=lambda: False, init=init, shutdown=lambda: None).items(): monkeypatch.setattr(ray, name, fn)
    with connected("local"): pass
    assert tried == ["local"] * 3
    tried.clear()
    monkeypatch.setattr(ray, "init", lambda **given: tried.append(1) or (_ for _ in ()).throw(Exception("no")))
    with pytest.raises(OSError, match="no Ray cluster at 'local'"): connected("local").__enter__()
    assert len(tried) == 3


# --- the command

class Still(Fake):
    def to(self, device): return self


@pytest.fixture
def command(monkeypatch, folder, clips, tmp_path):
    "`rosetta` over stand-ins for the models, and a folder that holds a manifest."
    from viewpoint_rosetta import cli, encoders
    monkeypatch.setattr(encoders, "load_backbone", lambda *args, **kwargs: Still())
    monkeypatch.setattr(encoders, "SentenceEncoder", Words)
    ego = clips[:114].assign(view="ego", narration="C opens it")
    ego.to_csv(tmp_path / "clips.csv", index=False)
    return cli.main, tmp_path


def test_the_command_with_either_engine(ray, command, folder, capsys):
    main, tmp = command
    for engine in ("local", "ray"):
        run = ["--run", str(tmp / engine)]
        assert main(["index", str(tmp / "clips.csv"), "--root", str(folder), *run]) == 0
        assert main(["extract", "--engine", engine, *run]) == 0, capsys.readouterr().err
    stores = [FeatureStore(tmp / engine / "features") for engine in ("local", "ray")]
    assert contents(stores[0]) == contents(stores[1]) and len(stores[0]) == 114
    capsys.readouterr()
    assert main(["extract", "--engine", "local", "--run", str(tmp / "ray")]) == 0
    assert "extract: reuse" in capsys.readouterr().out, "the engine is no part of the recipe"


def test_the_command_without_ray_or_with_options_that_do_not_fit(command, folder, capsys, monkeypatch):
    main, tmp = command
    run = ["--run", str(tmp / "run")]
    main(["index", str(tmp / "clips.csv"), "--root", str(folder), *run])
    capsys.readouterr()
    assert main(["extract", "--workers", "2", *run]) == 2 and "--workers and --ray-address are for --engine ray" in capsys.readouterr().err
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["extract", "--engine", "ray", *run]) == 2 and "pip install 'viewpoint_rosetta[ray]'" in capsys.readouterr().err
