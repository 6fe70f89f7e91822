"""Before a run: sick films are found and healthy ones left in peace, nothing is written beside data or results, what was found is remembered."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from test_cli import some_clips
from viewpoint_rosetta import cli, clips, doctor, encoders, estimate, methods, world
from viewpoint_rosetta.doctor import DoctorSettings, Notes, examine

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = clips.read_clips(world.shipped()) if world.shipped().exists() else None
pytestmark = pytest.mark.skipif(SHIPPED is None, reason="the shipped world is not here")


def faststart(source, target):
    "The pictures of a film with the index in front, as downloads have it: cut short, it still states its full length."
    with av.open(str(source)) as box, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(box.streams.video[0])
        for packet in box.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)


def films(folder, n=None) -> pd.DataFrame:
    "The first n films of the shipped world and a clip table over them; None: some of every pool but val, with nothing to mend."
    df = some_clips() if n is None else SHIPPED[SHIPPED.video.isin(SHIPPED.video.unique()[:n])].groupby("video", sort=False).head(4).reset_index(drop=True)
    (folder / "videos").mkdir(parents=True)
    for video in df.video.unique():
        (folder / video).write_bytes((world.shipped().parent / video).read_bytes())
    df.attrs["root"] = str(folder)
    return df


def contents(folder) -> dict:
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in sorted(Path(folder).rglob("*"))}


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "home" / "notes.jsonl")


@pytest.fixture
def inline(monkeypatch):
    "Films are opened in this process, which saves starting others; gives the list of what was opened."
    opened = []
    class Here:
        def __init__(self, timeout_s): pass
        def ask(self, path, times): return opened.append(Path(path).name) or doctor.look(path, times)
        def close(self): pass
    monkeypatch.setattr(doctor, "Worker", Here)
    return opened


SPY = """
import os, time
from viewpoint_rosetta import doctor
real = doctor.look
def look(path, times):
    with open({log!r}, "a") as f: f.write(f"{{os.getpid()}} {{path}}\\n")
    if path.endswith({name!r}): {does}
    return real(path, times)
doctor.look = look
doctor.serve()
"""


def spied(monkeypatch, log, name="", does="pass"):
    "Workers that write down what they open, and do something else with the film of this name."
    monkeypatch.setattr(doctor, "SERVE", SPY.format(log=str(log), name=name or "\0", does=does))
    return lambda: [line.split(" ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def gone(pid: int, seconds: float = 10) -> bool:
    "Has this process ended?"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(.05)
    return False


# ---- what is sick, and what is not

def test_each_kind_of_sick_film_is_found_and_no_other_accused(tmp_path, notes):
    df = films(tmp_path / "data", 8)
    one, two, three, four, five, six = df.video.unique()[:6]
    data = tmp_path / "data"
    (data / one).unlink()
    (data / two).write_bytes(b"")
    (data / three).write_text("<html>404</html>")
    (data / four).unlink(), os.mkfifo(data / four)
    (data / five).unlink(), (data / five).symlink_to("/etc/hostname")
    df.loc[df.video == six, "end_s"] += 1000
    start = time.monotonic()
    found = examine(df, notes).set_index("video")
    assert time.monotonic() - start < 60, "a pipe holds nobody up"
    assert found.kind.to_dict() == dict.fromkeys(df.video.unique(), "") | {one: "missing", two: "empty", three: "unreadable", four: "no file",
                                                                          five: "outside", six: "too short"}
    told = "\n".join(map(str, doctor.video_findings(df, found.reset_index(), 8)))
    assert f"{six} (row {df.index[df.video == six][0] + 1})" in told and "clips lost: 4" in told
    assert doctor.lost_clips(df, found[found.kind != ""].reset_index(), 8) == (df.video.isin([one, two, three, four, five, six])).sum()


def test_an_end_behind_the_last_frame_is_no_fault_while_the_frames_are_there(tmp_path, notes, inline):
    df = films(tmp_path / "data", 1)
    length = doctor.header(tmp_path / "data" / df.video[0])["stated_s"]
    df = df.head(1).assign(start_s=length - 1, end_s=length + .05)
    df.attrs["root"] = str(tmp_path / "data")
    assert examine(df, notes).kind[0] == ""
    assert examine(df.assign(end_s=length + 2), notes).kind[0] == "too short"


def test_no_real_film_is_accused(real_data, notes):
    root = real_data / "clips"
    found = [p for p in sorted(root.rglob("*")) if p.suffix in (".mp4", ".avi")]
    rows = []
    for path in found:
        length = max(doctor.header(path)["stated_s"], .5)
        rows += [dict(clip_id=f"{path.name}{i}", video=str(path.relative_to(root)), start_s=a, end_s=a + length / 4, view="ego")
                 for i, a in enumerate(np.arange(4) * length / 4)]
    df = pd.DataFrame(rows)
    df.attrs["root"] = str(root)
    videos = examine(df, notes)
    assert len(videos) == len(found) >= 10 and videos.looked.all() and not (videos.kind != "").any(), videos[videos.kind != ""].T
    assert (videos.height > 0).all() and (videos.fps > 0).all() and (videos.holds_s > 0).all()


def test_a_truncated_real_film_and_one_cut_behind_its_last_clip(real_data, tmp_path, notes):
    source = real_data / "clips" / "egoexo4d" / "cooking" / "cam01.mp4"
    if not source.exists():
        pytest.skip("no real takes here: VR_REAL_DATA holds no clips/egoexo4d")
    faststart(source, tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    for name in ("cut.mp4", "enough.mp4"):
        (tmp_path / name).write_bytes(data[:len(data) * 6 // 10])
    rows = [dict(clip_id=f"{name}{i}", video=name, start_s=i, end_s=i + 1, view="exo") for name, n in (("whole.mp4", 30), ("cut.mp4", 30), ("enough.mp4", 12))
            for i in range(n)]
    df = pd.DataFrame(rows)
    df.attrs["root"] = str(tmp_path)
    videos = examine(df, notes)
    found = videos.set_index("video")
    assert found.kind.to_dict() == {"whole.mp4": "", "cut.mp4": "truncated", "enough.mp4": ""}
    assert found.stated_s["cut.mp4"] == pytest.approx(30) and 15 < found.holds_s["cut.mp4"] < 22
    with av.open(str(tmp_path / "cut.mp4")) as box:
        last = max(float(p.pts * p.time_base) for p in box.demux(video=0) if p.size and p.pts is not None)
    assert found.holds_s["cut.mp4"] == pytest.approx(last, abs=.2), "found by seeking, the same as by reading all"
    assert abs(doctor.lost_clips(df, videos[videos.kind != ""], 8) - (30 - last)) <= 1


# ---- nothing holds it up

def test_a_film_that_never_answers_is_given_up_and_its_process_killed(tmp_path, notes, monkeypatch):
    df, log = films(tmp_path / "data", 4), tmp_path / "log"
    slow = df.video.unique()[1]
    spied(monkeypatch, log, slow, "time.sleep(1000)")
    found = examine(df, notes, DoctorSettings(timeout_s=1.5)).set_index("video")
    assert found.kind.to_dict() == dict.fromkeys(df.video.unique(), "") | {slow: "no answer"} and "1.5 s" in found.said[slow]
    pids = {int(line.split()[0]) for line in log.read_text().splitlines()}
    assert len(pids) >= 2 and all(map(gone, pids)), "no worker outlives the examination"
    spied(monkeypatch, log)
    again = examine(df, notes, DoctorSettings(timeout_s=1.5)).set_index("video")
    assert again.kind[slow] == "no answer", "remembered"
    assert examine(df, notes, DoctorSettings(timeout_s=20)).set_index("video").kind[slow] == "", "given more time, asked again"


def test_a_film_that_kills_the_decoder(tmp_path, notes, monkeypatch):
    df = films(tmp_path / "data", 4)
    spied(monkeypatch, tmp_path / "log", df.video.unique()[0], "os._exit(11)")
    found = examine(df, notes, DoctorSettings(workers=1))
    assert found.kind.tolist() == ["crash", "", "", ""]


def test_no_workers_no_silence(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(doctor, "SERVE", "raise SystemExit")
    with pytest.raises(RuntimeError, match="no worker process"):
        examine(films(tmp_path / "data", 2), notes)


# ---- it goes on where it stopped

def test_killed_and_run_again_it_goes_on(tmp_path, inline):
    df, log, home = films(tmp_path / "data", 6), tmp_path / "log", tmp_path / "notes.jsonl"
    df.to_csv(tmp_path / "films.csv", index=False)
    slow = SPY.format(log=str(log), name=".mp4", does="time.sleep(.4)")
    code = (f"from viewpoint_rosetta import doctor\ndoctor.SERVE = {slow!r}\n"
            f"df, _ = doctor.read_all({str(tmp_path / 'films.csv')!r}, {str(tmp_path / 'data')!r})\n"
            f"doctor.examine(df, doctor.Notes({str(home)!r}), doctor.DoctorSettings(workers=1))")
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    child = subprocess.Popen([sys.executable, "-c", code], env=env)
    end = time.monotonic() + 60
    while (not home.exists() or len(home.read_text().split()) < 2) and time.monotonic() < end and child.poll() is None:
        time.sleep(.05)
    os.kill(child.pid, signal.SIGKILL), child.wait()
    worker = int(log.read_text().split()[0])
    assert gone(worker), "a worker ends when its parent is killed"
    kept = set(Notes(home).known)
    assert 1 <= len(kept) < 6
    with open(home, "a") as f:
        f.write('["videos/torn.mp4", [1, 2')
    df, _ = doctor.read_all(tmp_path / "films.csv", tmp_path / "data")
    assert (examine(df, Notes(home)).kind == "").all()
    names = {v: Path(v).name for v in df.video}
    assert set(inline) == {names[v] for v in names.keys() - kept}
    inline.clear()
    examine(df, Notes(home))
    assert not inline, "all known, also what came after the torn line"
    os.utime(tmp_path / "data" / df.video[0], ns=(1, 1))
    examine(df, Notes(home))
    assert inline == [names[df.video[0]]], "a file with another date is opened again"
    examine(df, Notes(home), DoctorSettings(frames=4))
    assert len(inline) == 7, "another question, all opened again"


def test_a_sample_grows_and_says_what_it_rules_out(tmp_path, notes, inline):
    df = films(tmp_path / "data", 8)
    three = examine(df, notes, DoctorSettings(sample=3))
    assert three.looked.sum() == 3 == len(inline)
    told = [str(f) for f in doctor.video_findings(df, three, 8) if "rules out" in f.what]
    assert len(told) == 1 and "5 of 8 videos" in told[0] and f"{doctor.ruled_out(0, 3, 8):.1%}" in told[0]
    five = examine(df, notes, DoctorSettings(sample=5))
    assert set(three.video[three.looked]) < set(five.video[five.looked]) and len(inline) == 5
    assert examine(df, notes, DoctorSettings(full=True)).looked.all() and len(inline) == 8
    (tmp_path / "data" / df.video.unique()[-1]).unlink()
    assert examine(df, notes, DoctorSettings(sample=1)).kind.tolist()[-1] == "missing", "looked up whether or not it is in the sample"


def test_a_minute_ends(tmp_path, notes, inline, monkeypatch):
    df, look = films(tmp_path / "data", 6), doctor.look
    monkeypatch.setattr(doctor, "look", lambda *args: time.sleep(.3) or look(*args))
    found = examine(df, notes, DoctorSettings(seconds=.5, workers=1))
    assert 1 <= found.looked.sum() <= 3 and (found.kind == "").all()


# ---- the table

def paired_table(n=1200) -> pd.DataFrame:
    "Clips of which nothing is to be said but that there are enough."
    rows = [dict(clip_id=f"{i}{view}", video=f"{view}{i // 10}.mp4", start_s=i % 10, end_s=i % 10 + 1, view=view, narration=f"sentence {i}", label=f"{i % 5}",
                 skill="good", participant=f"p{i // 10}", scene=f"r{i // 10}", take=f"t{i // 10}", sync_id=f"m{i}" if i % 2 or part != "train" else None, split=part)
            for i in range(n) for part in ["train" if i < n * .8 else "val" if i < n * .9 else "test"] for view in ("ego", "exo")]
    return pd.DataFrame(rows)


def test_a_sound_table_has_nothing_to_mend():
    told = doctor.table_findings(paired_table(2600), 8)
    assert {f.level for f in told} == {"note"} and "1040 synchronized training pairs" in str(told[0]), told


@pytest.mark.parametrize("change, level, said", [
    (lambda t: t[t["view"] == "ego"], "mend", "all clips are ego"),
    (lambda t: t.assign(scene="kitchen"), "mend", "1 scenes are in more than one split"),
    (lambda t: t.assign(participant=t.participant.where(~t.participant.isin(["p0", "p119"]), "ann")), "mend", "1 participants are in more than one split"),
    (lambda t: t.assign(split=None), "mind", "no clip has a split"),
    (lambda t: t[t.split != "test"], "mend", "no clip is in test"),
    (lambda t: t[t.split != "val"], "mind", "no clip is in val"),
    (lambda t: t.assign(sync_id=None), "mind", "0 synchronized training pairs"),
    (lambda t: t, "mind", "480 synchronized training pairs are few"),
    (lambda t: t.assign(sync_id=t.sync_id.where(t.split != "test")), "mend", "no test clip is seen from both views"),
    (lambda t: t.assign(sync_id=t.clip_id.str[:-3]), "mend", "no unpaired ego and no unpaired exo"),
    (lambda t: t.assign(narration=None), "mind", "no clip has a narration"),
    (lambda t: t.assign(narration=t.narration.where(t.index > 3)), "mind", "4 of 2400 clips have no narration"),
    (lambda t: t.assign(narration="cuts"), "note", "100% of the narrations are said more than once"),
    (lambda t: t.assign(label=None), "note", "no label"),
    (lambda t: pd.concat([t, t.head(1).assign(clip_id="twin")]), "mind", "2 clips show the same seconds"),
])
def test_what_a_table_lacks(change, level, said):
    table = change(paired_table()).reset_index(drop=True)
    assert any(f.level == level and f.what.startswith(said) for f in doctor.table_findings(table, 8)), doctor.table_findings(table, 8)


def test_fewer_frames_than_are_taken():
    table = paired_table()
    videos = pd.DataFrame(dict(video=table.video.unique(), fps=5.))
    told = [f.what for f in doctor.table_findings(table, 8, videos)]
    assert any(t.startswith("2400 clips hold fewer than the 8 frames") for t in told)
    assert not any("hold fewer" in f.what for f in doctor.table_findings(table, 4, videos))


# ---- what it will cost

def some_rates(**changes) -> estimate.Rates:
    R = estimate.Rate
    return replace(estimate.Rates(R(.01, .02, .03), R(.04, .05, .06), dict.fromkeys(("text", "pair", "linked", "synthetic"), R(.1, .1, .1)),
                                  dict(rst=R(.02, .02, .02), mlp=R(.001, .001, .001), score=R(1e-8, 1e-8, 1e-8)), R(1, 1, 1), 400, 1280, 1e9, (128, 128)), **changes)


HERE = estimate.Machine(cores=8, threads=8, memory=32e9, disk=1e12)


def forecast(n=1200, rates=None, **kw):
    return estimate.forecast(paired_table(n), kw.pop("settings", methods.demo_settings()), rates or some_rates(), HERE, **kw).set_index("step")


def test_forecasts_are_positive_and_grow_as_they_should():
    small, large = forecast(1000), forecast(4000)
    assert (small.high_s > 0).all() and (small.low_s >= 0).all() and (small.low_s <= small.high_s).all() and (small.memory >= 1e9).all()
    assert list(small.index[:6]) == ["index", "extract", "whiten", "phi/0", "translator/0", "pairs/0"] and len(small) == 6 + len(methods.METHODS)
    extra = 384 * 2 + 8 * 9 * 1280 * 2
    assert large.disk["extract"] == 8000 * extra and small.disk["extract"] == 2000 * extra, "half floats, eight frames of nine cells, and the sentence"
    assert large.low_s["extract"] == pytest.approx(4 * small.low_s["extract"], rel=.01)
    search = [forecast(n, some_rates(rest=some_rates().rest | dict(rst=estimate.Rate(0, 0, 0)))).low_s["pairs/0"] for n in (1000, 4000)]
    assert search[1] == pytest.approx(16 * search[0], rel=.01), "every ego with every exo clip"
    assert large.low_s["phi/0"] == small.low_s["phi/0"], "as many steps of the same batch"
    assert (large.memory["phi/0"] - 1e9) > 4 * (small.memory["phi/0"] - 1e9), "a store of more than 1 GiB is copied, too"


def test_settings_and_what_is_there_change_the_forecast():
    usual, more = forecast(), forecast(settings=replace(methods.demo_settings(), train=replace(methods.demo_settings().train, steps=1500)))
    assert more.low_s["encoder/ours/0"] == pytest.approx(usual.low_s["encoder/ours/0"] + 1350 * .1 * estimate.SLACK[0]) and more.low_s["phi/0"] == usual.low_s["phi/0"]
    assert forecast(stored=1200).disk["extract"] == usual.disk["extract"] / 2 and forecast(stored=2400).low_s["extract"] < .1 * usual.low_s["extract"]
    assert forecast(rates=some_rates(biggest=(2160, 3840))).memory["extract"] > 10e9, "4K films wait in memory in full size"


def test_what_cannot_be_trained_is_not_forecast():
    table = paired_table()
    def steps(df): return list(estimate.forecast(df.reset_index(drop=True), methods.demo_settings(), some_rates(), HERE).step)
    assert steps(table.assign(sync_id=None))[-1] == "phi/0" and steps(table.assign(narration=None))[-1] == "whiten"
    assert steps(table.assign(split=None))[-1].startswith("encoder/"), "with splits as they would be dealt"
    assert steps(table.assign(split=None, scene="one"))[-1] == "extract"


def test_a_machine_that_is_too_small():
    table = forecast(3000).reset_index()
    levels = [[f.level for f in estimate.machine_findings(table, m)] for m in (HERE, replace(HERE, disk=1e8), replace(HERE, memory=1e9))]
    assert levels == [[], ["mend"], ["mend"]]


# ---- the command

@pytest.fixture
def quick(monkeypatch, inline):
    "The command without its measuring."
    asked = []
    monkeypatch.setattr(estimate, "measure", lambda *args: asked.append(args) or some_rates())
    return asked


def run(*words) -> int:
    return cli.main(["doctor", *map(str, words)])


def test_plan_and_exit_codes(tmp_path, quick, capsys):
    df, data = films(tmp_path / "data"), tmp_path / "data"
    lost = (df.video == df.video[0]).sum()
    clips.write_clips(df, tmp_path / "films.parquet")
    words = [tmp_path / "films.parquet", "--root", data, "--run", tmp_path / "run", "--full"]
    assert run(*words) == 0
    out = capsys.readouterr().out
    assert "nothing to mend" in out and "28 videos that were opened are well" in out and f"rosetta index {tmp_path / 'films.parquet'}" in out
    (data / df.video[0]).unlink()
    assert run(*words) == 2
    out = capsys.readouterr().out
    assert out.startswith(f"mend: 1 of 28 videos: missing; clips lost: {lost}") and f"{df.video[0]} (row 1)" in out and "1 to mend" in out
    assert run(tmp_path / "nothing.csv") == 2 and "no such file" in capsys.readouterr().err
    (tmp_path / "x.pth").write_text("half a download")
    (data / df.video[0]).write_bytes((world.shipped().parent / df.video[0]).read_bytes())
    assert run(*words, "--weights", tmp_path / "x.pth") == 2 and "mend: weights" in capsys.readouterr().out


def test_json_for_machines(tmp_path, quick, capsys):
    df = films(tmp_path / "data", 4)
    df.assign(end_s=df.end_s.where(df.index != 2, -1), video=df.video.where(df.index < 12, "gone.mp4")).to_csv(tmp_path / "films.csv", index=False)
    assert run(tmp_path / "films.csv", "--root", tmp_path / "data", "--run", tmp_path / "run", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False and told["clips"] == 15 and told["videos"] == 4 and told["opened"] == 3
    assert told["sick"] == [dict(video="gone.mp4", row=13, clips=4, kind="missing", said=f"no file {tmp_path / 'data' / 'gone.mp4'}")]
    assert any("row 3, clip_id" in e for f in told["findings"] for e in f["examples"]), "the row that cannot be used"
    assert "--skip-bad" in told["commands"][0] and {s["step"] for s in told["steps"]} > {"index", "extract"}


def test_all_rows_bad(tmp_path, quick, capsys):
    films(tmp_path / "data", 1).assign(view="drone").to_csv(tmp_path / "films.csv", index=False)
    assert run(tmp_path / "films.csv", "--root", tmp_path / "data", "--run", tmp_path / "run") == 2
    assert "4 of 4 rows" in capsys.readouterr().out and not quick


def test_nothing_is_written_beside_data_or_results(tmp_path, monkeypatch, capsys, inline):
    "With a run folder in use, and everything measured; settings small enough for a test."
    df, data, home = films(tmp_path / "data"), tmp_path / "data", tmp_path / "home"
    monkeypatch.setenv("VR_HOME", str(home))
    clips.write_clips(df, data / "films.parquet")
    few = ["--set", "size=64", "--set", "encoder.frames=2", "--set", "encoder.cells=1", "--set", "encoder.tube=2", "--set", "encoder.width=32",
           "--set", "phi.batch=8", "--set", "train.batch=8", "--set", "rst.width=32"]
    words = ["--run", str(tmp_path / "run"), *few]
    assert cli.main(["index", str(data / "films.parquet"), *words]) == 0 and cli.main(["extract", *words]) == 0
    before = contents(data) | contents(tmp_path / "run")
    capsys.readouterr()
    assert run(data / "films.parquet", *words) == 0
    out = capsys.readouterr().out
    assert contents(data) | contents(tmp_path / "run") == before
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert rows["index"].split()[1] == rows["extract"].split()[1] == "done" and rows["whiten"].split()[1] != "done"
    assert "rosetta bench" in out and "rosetta index" not in out.split("Next:")[1]
    assert [p.parent.name for p in home.rglob("*.jsonl")] == ["doctor"]
    monkeypatch.setattr(estimate, "measure", lambda *args: some_rates())
    assert run(data / "films.parquet", *words, "--set", "encoder.frames=4", "--sample", 1) == 2
    assert "made with other settings" in (out := capsys.readouterr().out) and "frames was 2, now 4" in out
    assert contents(data) | contents(tmp_path / "run") == before


def test_a_backbone_that_is_not_there_is_said_and_not_fetched(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("the network was asked")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    told = estimate.weights_findings(backbone="vit_tiny_patch16_224")
    assert [f.level for f in told] in ([], ["mind"])
    assert estimate.weights_findings() == []


def test_weights_that_load(tmp_path):
    encoders.DualEncoder(encoders.EncoderSettings(width=16, depth=1, heads=2)).save_pretrained(tmp_path / "phi")
    told = estimate.weights_findings(tmp_path / "phi")
    assert [f.level for f in told] == ["note"] and "DualEncoder" in told[0].what
