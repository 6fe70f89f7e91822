"""The command line: what it does once, what it does again, and what it says when something is wrong. Models are stand-ins; steps, files and messages are real."""
import errno
import importlib.util
import inspect
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import stub_methods
import viewpoint_rosetta
from viewpoint_rosetta import (artifacts, benchmark, chain, cli, clips, encoders, features, matching, report, training, translator,
                               world)

SHIPPED = clips.read_clips(world.shipped()) if world.shipped().exists() else None
pytestmark = pytest.mark.skipif(SHIPPED is None, reason="the shipped world is not here")


class Thumbs(torch.nn.Module):
    "A backbone that sees 4×4 thumbnails: 48 numbers a frame."
    spec, dim = dict(name="thumbs"), 48
    def preprocess(self, frames): return torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255
    def forward(self, x): return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)[:, None]


class Letters:
    "A sentence encoder that counts letters."
    spec = dict(name="letters")
    def encode(self, said): return np.array([np.bincount([ord(c) % 384 for c in s], minlength=384) for s in said], np.float32)


def some_clips():
    "A few clips of every pool of the shipped world but val, those that need two views from several rooms: 66 clips in 28 videos."
    parts = []
    for pool, takes, clips_each in (("paired", 6, 2), ("ego", 2, 3), ("exo", 2, 3), ("test", 2, 3)):
        names = [name for name in sorted(SHIPPED["take"].unique()) if name.startswith(pool) and name.endswith("_0")][:takes]
        parts.append(SHIPPED[SHIPPED["take"].isin(names)].groupby("video", sort=False).head(clips_each))
    return pd.concat(parts, ignore_index=True)


def small_world(folder):
    "The few clips as a world of their own, videos beside the table; made once."
    path, df = folder / "clips.parquet", some_clips()
    if not path.exists():
        (folder / "videos").mkdir(parents=True)
        for video in df.video.unique():
            shutil.copy(Path(SHIPPED.attrs["root"]) / video, folder / video)
        clips.write_clips(df, path)
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    "A small manifest in the shipped world's folder terms (videos relative to --root)."
    path = tmp_path_factory.mktemp("manifest") / "few.parquet"
    clips.write_clips(some_clips(), path)
    return path


@pytest.fixture
def line(monkeypatch):
    "The command line over stand-ins; calls to them are in stub_methods.calls."
    monkeypatch.setitem(sys.modules, "viewpoint_rosetta.methods", stub_methods)
    monkeypatch.setattr(viewpoint_rosetta, "methods", stub_methods, raising=False)
    monkeypatch.setattr(encoders, "load_backbone", lambda *args, **kwargs: Thumbs())
    monkeypatch.setattr(encoders, "SentenceEncoder", Letters)
    monkeypatch.setattr(translator, "MLP", translator.Identity)  # half a minute of tuning that is tested elsewhere
    monkeypatch.setattr(cli, "for_boards", lambda line, seed: None)  # tests of the boards have a real run
    monkeypatch.setattr(report, "write_report", lambda run, out: out.write_text("page") and out)
    monkeypatch.setattr(artifacts, "code_version", lambda *modules: "the code under test")
    found = chain.sources
    monkeypatch.setattr(chain, "sources", lambda *names: found(*(n for n in names if n != "methods")))
    stub_methods.calls.clear()


def index(manifest, run, *more):
    return cli.main(["index", str(manifest), "--root", str(world.shipped().parent), "--run", str(run), *more])


# ---- once, and not again

def test_bench_makes_all_that_is_missing_and_then_reuses_it(line, manifest, tmp_path, capsys):
    run = tmp_path / "run"
    assert index(manifest, run) == 0
    assert cli.main(["bench", "--seeds", "2", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "oracle pairs" in out and "chance" in out and "95% interval over 2 seeds" in out and "rst+language" in out
    bench = pd.read_parquet(run / "bench.parquet")
    assert set(bench.method) == set(stub_methods.METHODS) and set(bench.seed) == {0, 1}
    assert (pd.read_parquet(run / "translator.parquet").method == "RST").sum() == 2
    assert [c for c in stub_methods.calls if c[0] == "rst"] == [("rst", 0), ("rst", 1)], "each seed has a translator, trained once"
    stub_methods.calls.clear()
    before = (run / "bench.parquet").read_bytes()
    assert cli.main(["bench", "--seeds", "2", "--run", str(run)]) == 0
    assert not stub_methods.calls and ": run (" not in (out := capsys.readouterr().out) and "encoder/ours/1: reuse" in out
    assert (run / "bench.parquet").read_bytes() == before


def test_only_what_depends_on_a_change_is_done_again(line, manifest, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    index(manifest, run)
    assert cli.main(["train", "--method", "ours", "--run", str(run)]) == 0
    capsys.readouterr()
    assert cli.main(["match", "--run", str(run), "--set", "match.text_weight=0.9"]) == 0
    out = capsys.readouterr().out
    assert "translator/0: reuse" in out and "pairs/0: run" in out
    assert cli.main(["match", "--run", str(run)]) == 0, "the run remembers the change"
    assert "pairs/0: reuse" in (out := capsys.readouterr().out) and "search: exact, " in out and "seconds, nothing is missed" in out
    monkeypatch.setattr(matching, "SMALL", 1)
    assert cli.main(["match", "--run", str(run), "--index", "flat"]) == 0
    out = capsys.readouterr().out
    assert "pairs/0: run (settings changed: match)" in out and "search: flat, as asked for; recall@1 1.000 of exact search" in out
    changes = json.loads((run / "line.json").read_text())["changes"]
    assert changes == {"match": {"text_weight": .9, "index": "flat"}}, "what was changed before stays"
    assert pd.read_parquet(run / "pairs.parquet").attrs["search"]["index"] == "flat"
    assert cli.main(["train", "--method", "ours", "--run", str(run)]) == 0, "pseudo-pairs weigh text anew: the method is trained again"
    out = capsys.readouterr().out
    assert "phi/0: reuse" in out and "encoder/ours/0: run (settings changed" in out


def test_steps_look_at_what_they_read_from_earlier_steps(line, manifest, tmp_path, capsys):
    run = tmp_path / "run"
    index(manifest, run)
    cli.main(["train-translator", "--run", str(run)])
    df = clips.read_clips(manifest).iloc[:-1]
    clips.write_clips(df, tmp_path / "fewer.parquet")
    stub_methods.calls.clear()
    index(tmp_path / "fewer.parquet", run)
    assert cli.main(["train-translator", "--run", str(run)]) == 0
    assert [name for name, _ in stub_methods.calls] == ["phi", "rst"], "other clips, other encoder, other translator"


def test_demo_says_all_and_its_second_run_says_it_again_at_once(line, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(world, "shipped", lambda: small_world(tmp_path / "world"))
    assert cli.main(["demo", "--run", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out
    assert "Benchmark on embedded world" in first and "Translators on" in first and "precision@1" in first
    assert f"\nreport: {tmp_path / 'run' / 'report.html'}\n" in first and "\nlook at it: rosetta dash pairs --run" in first
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["seeds"] == [0] and facts["seconds"]["extract"] > 0 and facts["settings"]["train"]["steps"] and facts["cores"]
    z, ids = features.FeatureStore(tmp_path / "run" / "features"), json.loads((tmp_path / "run" / "embeddings.json").read_text())["ids"]
    assert len(ids) == (SHIPPED.clip_id.isin(z.ids) & (SHIPPED.split == "test")).sum()
    stub_methods.calls.clear()
    start = time.perf_counter()
    assert cli.main(["demo", "--run", str(tmp_path / "run")]) == 0
    again = capsys.readouterr().out
    assert not stub_methods.calls and time.perf_counter() - start < 5 and again.startswith("demo: reuse ")
    assert first[first.index("Benchmark on"):] == again[again.index("Benchmark on"):]


def test_help_is_quick_and_teaches():
    script = "import sys; from viewpoint_rosetta.cli import main; main(['--help']); print(sorted({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    took = []
    for _ in range(3):
        start = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        took.append(time.perf_counter() - start)
    assert out.rstrip().endswith("[]"), "help must load nothing heavy"
    assert all(name in out for name in cli.COMMANDS) and min(took) < 2, took


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_says_what_it_reads_and_writes(command, capsys):
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Reads " in out and "Writes " in out and f"\nrosetta {command}" in out


# ---- bad input: one message that names what and says what to do, code 2, no traceback

def refused(capsys, words, *told, code=2):
    "Run a command that must be refused; its message holds these words and no traceback."
    assert cli.main([str(w) for w in words]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err and all(t in err for t in told), err
    return err


def test_unknown_command_option_and_method(line, manifest, tmp_path, capsys):
    refused(capsys, ["translate"], "invalid choice", "train-translator")
    refused(capsys, ["world"], "--episodes")
    index(manifest, tmp_path / "run")
    refused(capsys, ["train", "--method", "mine", "--run", tmp_path / "run"], "no method 'mine'", "ours-w-o-rst (ours w/o RST)")
    refused(capsys, ["match", "--run", tmp_path / "run", "--set", "match.weight=1"], "no setting 'weight'", "text_weight")
    refused(capsys, ["match", "--run", tmp_path / "run", "--set", "steps"], "expected NAME=VALUE")
    refused(capsys, ["match", "--run", tmp_path / "run", "--set", "match.text_weight=2"], "expected 0..1")


def test_a_run_without_clips(line, tmp_path, capsys):
    refused(capsys, ["extract", "--run", tmp_path / "new"], "holds no clip table", "rosetta index MANIFEST")
    assert not (tmp_path / "new").exists(), "a refused command leaves nothing behind"


ROW = dict(clip_id="a", video="a.mp4", start_s=0.0, end_s=1.0, view="ego")
BAD = {
    "clip times": (dict(ROW, end_s=0.0), "row 1", "'a'", "positive length"),
    "view": (dict(ROW, view="drone"), "row 1", "drone", "ego, exo"),
    "escape": (dict(ROW, video="../a.mp4"), "row 1", "../a.mp4"),
    "no column": (dict(clip_id="a", video="a.mp4"), "no column", "start_s"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["index", "demo"])
def test_bad_rows_are_named(name, command, line, tmp_path, capsys):
    row, *words = BAD[name]
    path = tmp_path / "clips.csv"
    pd.DataFrame([row]).to_csv(path, index=False)
    refused(capsys, [command, *(["--manifest"] if command == "demo" else []), path, "--run", tmp_path / "run"], "clips.csv", *words)


@pytest.mark.parametrize("content, words", [(None, ["no such file"]), (b"", ["clips.csv"]), (b"clip_id,video,start_s,end_s,view\n", ["holds no clips"]),
                                            (b"clip_id,video,start_s,end_s,view,narration\na,a.mp4,0,1,ego,caf\xe9\n", ["row 1", "UTF-8"]),
                                            (b"clip_id,video,start_s,end_s,view\na,a.mp4,0,1,ego\na,a.mp4,1,2,ego\n", ["row 2", "more than one row"])])
def test_bad_manifests(content, words, line, tmp_path, capsys):
    path = tmp_path / "clips.csv"
    if content is not None:
        path.write_bytes(content)
    refused(capsys, ["index", path, "--run", tmp_path / "run"], "clips.csv", *words)


def test_bad_rows_may_be_left_out_and_are_on_record(line, tmp_path, capsys):
    path = tmp_path / "clips.csv"
    pd.DataFrame([ROW, dict(ROW, clip_id="b", view="drone")]).to_csv(path, index=False)
    assert cli.main(["index", str(path), "--run", str(tmp_path / "run"), "--skip-bad"]) == 0
    assert artifacts.Run(tmp_path / "run").problems().clip_id.tolist() == ["b"]
    assert len(pd.read_parquet(tmp_path / "run" / "clips.parquet")) == 1


def test_bad_videos_are_left_out_and_named_and_a_mended_one_comes_back(line, manifest, tmp_path, capsys):
    root, run = tmp_path / "videos", tmp_path / "run"
    df = clips.read_clips(manifest, world.shipped().parent).query("split == 'train'").drop_duplicates("video").head(6).reset_index(drop=True)
    for video in df.video:
        (root / video).parent.mkdir(parents=True, exist_ok=True)
        (root / video).write_bytes((world.shipped().parent / video).read_bytes())
    good = (root / df.video[0]).read_bytes()
    (root / df.video[0]).unlink()                             # missing
    (root / df.video[1]).write_bytes(b"")                     # empty
    (root / df.video[2]).write_text("not a video " * 50)      # text named .mp4
    (root / df.video[3]).write_bytes(good[:1000])             # truncated, before its index ends
    df.loc[4, ["start_s", "end_s"]] = [900.0, 901.0]          # beyond the video
    clips.write_clips(df, root / "clips.parquet")
    assert cli.main(["index", str(root / "clips.parquet"), "--run", str(run)]) == 0
    assert cli.main(["extract", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "5 clips cannot be used" in out and "problems.parquet" in out
    problems = artifacts.Run(run).problems().set_index("clip_id")
    assert set(problems.index) == set(df.clip_id[:5])
    for i, word in enumerate(["no such file", "the file is empty", "not a video", "an MP4 without its index", "the video ends at"]):
        clip = problems.loc[df.clip_id[i]]
        assert word in clip.reason and clip.file == df.video[i] and clip.row == i + 1, clip
    (root / df.video[0]).write_bytes(good)
    assert cli.main(["extract", "--run", str(run)]) == 0
    assert "4 clips cannot be used" in capsys.readouterr().out and df.clip_id[0] not in set(artifacts.Run(run).problems().clip_id)
    (root / df.video[5]).write_bytes(good)                    # another video under the same name
    refused(capsys, ["extract", "--run", run], df.video[5], "changed since its features were taken", "delete")


def test_no_usable_clip_at_all(line, tmp_path, capsys):
    pd.DataFrame([ROW]).to_csv(tmp_path / "clips.csv", index=False)
    cli.main(["index", str(tmp_path / "clips.csv"), "--run", str(tmp_path / "run")])
    refused(capsys, ["extract", "--run", tmp_path / "run"], "none of the 1 clips", "a.mp4, row 1 of the manifest (clip_id 'a')", "no such file")


BAD_VIDEOS = {  # what is wrong, how it is made of a good video, when the clip is, what is said
    "missing": (lambda good: None, 0, "no such file"),
    "empty": (lambda good: b"", 0, "the file is empty"),
    "text": (lambda good: b"not a video " * 50, 0, "not a video"),
    "no index": (lambda good: good[:1000], 0, "an MP4 without its index, so the copy or recording broke off"),
    "truncated": (lambda good: good[:len(good) // 2], 22, "so it is truncated or damaged"),
    "times": (lambda good: good, 900, "the video ends at 25.000 s; correct start_s and end_s"),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
@pytest.mark.parametrize("command", ["extract", "demo"])
def test_a_bad_video_is_told_with_file_row_and_reason(name, command, line, tmp_path, capsys):
    "The manifest's third row, though a row before it was already left out."
    spoil, start, reason = BAD_VIDEOS[name]
    good, run, path = (world.shipped().parent / SHIPPED.video[0]).read_bytes(), tmp_path / "run", tmp_path / "clips.csv"
    (tmp_path / "good.mp4").write_bytes(good)
    if (content := spoil(good)) is not None: (tmp_path / "bad.mp4").write_bytes(content)
    pd.DataFrame([dict(ROW, clip_id="x", view="drone"), dict(ROW, clip_id="good", video="good.mp4"),
                  dict(ROW, clip_id="b", video="bad.mp4", start_s=start, end_s=start + 1)]).to_csv(path, index=False)
    if command == "extract":
        assert cli.main(["index", str(path), "--run", str(run), "--skip-bad"]) == 0 == cli.main(["extract", "--run", str(run)])
    else: assert cli.main(["demo", "--manifest", str(path), "--run", str(run), "--world-run", str(tmp_path / "w"), "--skip-bad"]) == 2
    problems, out = artifacts.Run(run).problems().set_index("clip_id"), capsys.readouterr().out
    assert problems.row.to_dict() == {"x": 1, "b": 3} and problems.file["b"] == "bad.mp4" and reason in problems.reason["b"]
    assert f"{path}, row 1 of the manifest (clip_id 'x'): view 'drone'" in out, "the first is told in words"
    pd.DataFrame([dict(ROW, clip_id="b", video="bad.mp4", start_s=start, end_s=start + 1)]).to_csv(path, index=False)
    words = ["extract"] if command == "extract" else ["demo", "--manifest", path, "--world-run", tmp_path / "w"]
    command == "demo" or cli.main(["index", str(path), "--run", str(tmp_path / "none")])
    refused(capsys, [*words, "--run", tmp_path / "none"], "none of the 1 clips", "bad.mp4, row 1 of the manifest (clip_id 'b')", reason)


def test_a_changed_narration_is_read_again(line, manifest, tmp_path):
    run, df = tmp_path / "run", clips.read_clips(manifest)
    index(manifest, run)
    cli.main(["extract", "--run", str(run)])
    df.loc[0, "narration"] = "something else altogether"
    clips.write_clips(df, tmp_path / "other.parquet")
    index(tmp_path / "other.parquet", run)
    assert cli.main(["extract", "--run", str(run)]) == 0
    said = features.FeatureStore(run / "text").read([df.clip_id[0]])[0]
    assert (said == Letters().encode(["something else altogether"])[0]).all()


def test_own_clips_of_one_view(line, tmp_path, manifest, capsys):
    df = clips.read_clips(manifest).query("view == 'ego'").head(2)
    clips.write_clips(df, tmp_path / "own.parquet")
    words = ["--root", world.shipped().parent, "--run", tmp_path / "own", "--world-run", tmp_path / "world"]
    index(manifest, tmp_path / "world")
    refused(capsys, ["demo", "--manifest", tmp_path / "own.parquet", *words], "2 ego and 0 exo", "both views")


# ---- Ctrl-C, full disks and places one may not write to, at every stage

STAGES = {  # where it happens, which command gets there, what is said
    "index": (clips, "write_clips", ["index"], "stopped in step index"),
    "extract": (features, "extract", ["extract"], "features of finished clips are kept"),
    "whiten": (features.Whitening, "fit", ["train-translator"], "stopped in step whiten"),
    "phi": (stub_methods, "train_phi", ["train-translator"], "training goes on from its last checkpoint"),
    "translator": (stub_methods, "train_rst", ["train-translator"], "stopped in step translator/0"),
    "match": (stub_methods, "pseudo_pairs", ["match"], "stopped in step pairs/0"),
    "train": (stub_methods, "train_method", ["train", "--method", "ours"], "stopped in step encoder/ours/0"),
    "bench": (benchmark, "evaluate", ["bench", "--methods", "frozen"], "stopped in step encoder/frozen/0"),
    "gather": (cli, "gather", ["match"], "stopped between two steps; what is finished is kept"),
    "maps": (chain, "write_vectors", ["report"], "stopped in step maps"),
    "report": (report, "write_report", ["report"], "stopped"),
}


def words_of(stage, manifest, run):
    command = STAGES[stage][2]
    more = [str(manifest), "--root", str(world.shipped().parent)] if command == ["index"] else []
    return [*command, *more, "--run", str(run)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_stopped_and_then_finds_the_disk_full_is_finished_in_the_end(stage, line, manifest, tmp_path, capsys, monkeypatch):
    run, (module, name, _, told) = tmp_path / "run", STAGES[stage]
    def stop(*args, **kwargs): signal.raise_signal(signal.SIGINT), time.sleep(1)
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, "No space left on device", str(run / "some.file"))
    stage == "index" or index(manifest, run)
    stage in ("maps", "report") and cli.main(["train", "--method", "ours", "--run", str(run)])
    words = words_of(stage, manifest, run)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        refused(capsys, words, told, "Run the same command again to go on", code=130)
        done = {p: p.stat().st_mtime_ns for p in run.rglob("*.recipe.json")}
        patch.setattr(module, name, full)
        refused(capsys, words, "No space left", "some.file", "free some space", "same command")
    assert cli.main(words) == 0
    assert {p: p.stat().st_mtime_ns for p in done} == done, "what was finished is not done again"


def test_own_clips_are_stopped_find_the_disk_full_and_are_finished(line, tmp_path, capsys, monkeypatch):
    few = small_world(tmp_path / "world")
    monkeypatch.setattr(world, "shipped", lambda: few)
    run, match = tmp_path / "run", matching.match
    words = ["demo", "--manifest", few, "--run", run, "--world-run", tmp_path / "trained"]
    def stop(*args, **kwargs): signal.raise_signal(signal.SIGINT), time.sleep(1)
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, "No space left on device", str(run / "some.file"))
    monkeypatch.setattr(matching, "match", stop)
    refused(capsys, words, "stopped in step own", "Run the same command again to go on", code=130)
    monkeypatch.setattr(matching, "match", full)
    refused(capsys, words, "No space left", "some.file", "free some space")
    monkeypatch.setattr(matching, "match", match)
    stub_methods.calls.clear()
    assert cli.main([str(w) for w in words]) == 0 and (run / "pairs.parquet").exists()
    assert not stub_methods.calls, "what was trained is not trained again"


@pytest.fixture
def fitted(monkeypatch):
    "train_phi that really trains, eight steps, and is stopped by Ctrl-C at `fitted.stop`; `fitted.resumed` tells where it went on."
    state = SimpleNamespace(stop=None, resumed=[])
    def train_phi(bank, clips, settings, seed, folder=None, progress=True):
        model, draw = stub_methods.drawn(settings, seed), training.Shuffle(range(len(bank)), batch=8, seed=seed)
        def objective(model, step, generator):
            if step == state.stop: signal.raise_signal(signal.SIGINT)
            return model.encode_video(training.take(bank.tokens, draw(step)[0])).square().mean() * (1 + step), {}
        table = training.fit(model, objective, training.TrainSettings(steps=8, warmup=1), seed, folder, False)
        state.resumed.append(table.attrs["resumed_at"])
        return model
    monkeypatch.setattr(stub_methods, "train_phi", train_phi)
    return state


def weights_of(run): return {p.name: p.read_bytes() for p in (run / "phi" / "0").glob("*.safetensors")}


def test_a_training_stopped_by_ctrl_c_goes_on_to_the_same_weights(line, fitted, manifest, tmp_path, capsys):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for run in (straight, stopped): index(manifest, run)
    assert cli.main(["train-translator", "--run", str(straight)]) == 0
    fitted.stop = 4
    refused(capsys, ["train-translator", "--run", stopped], "stopped in step phi/0", "last checkpoint", code=130)
    fitted.stop = None
    assert cli.main(["train-translator", "--run", str(stopped)]) == 0 and fitted.resumed == [0, 5]
    assert weights_of(straight) == weights_of(stopped) != {}


def test_a_stopped_training_does_not_go_on_with_other_clips(line, fitted, manifest, tmp_path, capsys):
    "The same manifest, edited: neither its name nor any choice tells that the clips are others."
    run, mine, fitted.stop = tmp_path / "run", tmp_path / "mine.parquet", 4
    clips.write_clips(clips.read_clips(manifest), mine)
    index(mine, run)
    refused(capsys, ["train-translator", "--run", run], "stopped in step phi/0", code=130)
    clips.write_clips(clips.read_clips(mine).iloc[:-1], mine)
    index(mine, run)
    fitted.stop = None
    assert cli.main(["train-translator", "--run", str(run)]) == 0 and fitted.resumed == [0]


def test_a_world_that_fills_the_disk_is_finished_when_there_is_space(tmp_path, capsys, monkeypatch):
    tiny = world.WorldSettings(paired=0, ego=1, exo=1, val=0, test=0, train_actions=1, take_actions=1, size=32, supersample=1, frames=2)
    monkeypatch.setattr(world, "sized_world", lambda *args, **kwargs: tiny)
    words, write = ["world", "--episodes", "2", "--out", tmp_path / "w", "--run", tmp_path / "r", "--workers", "1"], world.write_video
    def full(path, *args): raise OSError(errno.ENOSPC, "No space left on device", str(path))
    monkeypatch.setattr(world, "write_video", full)
    refused(capsys, words, "No space left", "ego_000_0_ego.mp4", "free some space")
    assert not list((tmp_path / "w").rglob("*.mp4")), "nothing half-written"
    monkeypatch.setattr(world, "write_video", write)
    assert cli.main([str(w) for w in words]) == 0 and len(pd.read_parquet(tmp_path / "w" / "clips.parquet")) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_folder_one_may_not_write_to(number):
    assert "choose a folder you may write to" in (text := cli.told(OSError(number, "not permitted", "/place/file"))) and "/place/file" in text


def test_a_really_limited_disk(line, manifest, tmp_path, capsys):
    "The operating system itself refuses to write more than 30 kB a file."
    index(manifest, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
    try:
        refused(capsys, ["extract", "--run", tmp_path / "run"], "shard-", "free some space", "same command")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert cli.main(["extract", "--run", str(tmp_path / "run")]) == 0
    assert len(features.FeatureStore(tmp_path / "run" / "features")) == len(clips.read_clips(manifest))


def test_libraries_that_say_it_in_words_only():
    class SafetensorError(Exception): pass
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert cli.is_full(error) and "free some space" in cli.told(error)
    assert not cli.is_full(ValueError("something else"))


@pytest.mark.parametrize("command", ["index", "demo", "world"])
def test_unwritable_output(command, line, manifest, tmp_path, capsys):
    (tmp_path / "file").write_text("a file, not a folder")
    place = tmp_path / "file" / "run"
    words = dict(index=words_of("index", manifest, place), demo=["demo", "--run", place],
                 world=["world", "--episodes", "50", "--out", place])[command]
    refused(capsys, words, str(tmp_path / "file"))


def test_a_defect_is_called_one_and_debug_shows_it(line, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clips, "write_clips", lambda *args: {}["gone"])
    refused(capsys, words_of("index", manifest, tmp_path / "run"), "KeyError", "--debug", code=1)
    with pytest.raises(KeyError):
        cli.main([*words_of("index", manifest, tmp_path / "run"), "--debug"])


def test_verify_reads_a_checkpoint_and_refuses_a_file_that_is_none(tmp_path, capsys):
    (tmp_path / "bad.pth").write_text("not a checkpoint")
    refused(capsys, ["verify", tmp_path / "bad.pth"], "bad.pth", "neither a zip")
    encoders.DualEncoder(stub_methods.LineSettings().encoder).save_pretrained(tmp_path / "phi")
    assert cli.main(["verify", str(tmp_path / "phi")]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("DualEncoder", "parameters", "video fingerprint"))


# ---- the world

def test_world_features_while_it_renders(line, tmp_path, monkeypatch, capsys):
    "A finished take's features are in the store before the next one is rendered."
    done, out, run, seen = [], tmp_path / "world", tmp_path / "run", []
    def render(s, to, workers, depth, progress):
        for take, rows in list(SHIPPED[SHIPPED["take"].str.startswith("ego")].groupby("take", sort=False))[:2]:
            (to / "takes").mkdir(parents=True, exist_ok=True)
            (to / "videos").mkdir(exist_ok=True)
            rows = rows.head(2)
            for video in rows.video.unique():
                (to / video).write_bytes((world.shipped().parent / video).read_bytes())
            (to / "takes" / f"{take}.json").write_text(json.dumps(rows.to_dict("records")))
            done.append(rows)
            yield take
            seen.append(len(features.FeatureStore(run / "features")))
        clips.write_clips(pd.concat(done), to / "clips.parquet")
    monkeypatch.setattr(world, "render_world", render)
    assert cli.main(["world", "--episodes", "50", "--out", str(out), "--extract", "--run", str(run)]) == 0
    assert seen == [2, 4] and len(pd.read_parquet(run / "clips.parquet")) == 4


@pytest.mark.parametrize("words, s", [(["--small"], world.small_world()), (["--full", "--seed", "7"], world.WorldSettings(seed=7)),
                                      (["--episodes", "500", "--size", "96"], world.sized_world(500, size=96))])
def test_world_settings(words, s, line, tmp_path, monkeypatch):
    asked = []
    def render(settings, out, workers, depth, progress):
        asked.append(settings)
        (out / "takes").mkdir(parents=True)
        return iter(())
    monkeypatch.setattr(world, "render_world", render)
    assert cli.main(["world", *words, "--out", str(tmp_path / "w")]) == 0 and asked == [s]


# ---- the stand-ins are like the real thing

@pytest.mark.skipif(importlib.util.find_spec("viewpoint_rosetta.methods") is None, reason="methods is not built here")
@pytest.mark.parametrize("name", ["train_phi", "embed", "paired_features", "train_rst", "pseudo_pairs", "train_method"])
def test_the_stand_in_takes_what_methods_takes(name):
    from viewpoint_rosetta import methods
    real, stub = (list(inspect.signature(getattr(m, name)).parameters) for m in (methods, stub_methods))
    assert len(real) >= len(stub) and set(real) >= set(stub) - {"settings", "name", "which"}, f"{name} takes {real}, the stand-in {stub}"
    assert set(stub_methods.METHODS) <= set(methods.METHODS)
    assert set(stub_methods.LineSettings.__dataclass_fields__) <= set(methods.LineSettings.__dataclass_fields__)
