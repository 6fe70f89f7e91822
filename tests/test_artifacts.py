"Results appear whole or not at all; steps run once per recipe; bad clips are on record."
import errno
import json
import os
import resource
import signal
import sys
import time

import pandas as pd
import pytest

from viewpoint_rosetta.artifacts import Run, atomic, code_version, fingerprint, home


def names(folder): return sorted(p.name for p in folder.iterdir())


class Child:
    "A forked process that does `work(say)`, for signals and limits; `say` and its last error are read by `hear`."

    def __init__(self, work):
        self.ear, mouth = os.pipe()
        def say(text): os.write(mouth, f"{text}\n".encode())
        self.pid = os.fork()
        if self.pid: return os.close(mouth)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work(say)
        except BaseException as error: say(f"{type(error).__name__}: {error}")
        finally: os._exit(0)

    def hear(self): return os.read(self.ear, 10_000).decode()

    def end(self):
        "The signal that ended it, or 0."
        return os.WTERMSIG(os.waitpid(self.pid, 0)[1])


def test_atomic_replaces_a_file_and_a_folder(tmp_path):
    for text in ("old", "new"):
        with atomic(tmp_path / "deep" / "a.txt") as tmp:
            assert tmp.suffix == ".txt" and tmp.parent == tmp_path / "deep"
            tmp.write_text(text)
        with atomic(tmp_path / "model") as tmp:
            tmp.mkdir()
            (tmp / text).write_text(text)
    assert (tmp_path / "deep/a.txt").read_text() == "new"
    assert names(tmp_path) == ["deep", "model"]
    assert names(tmp_path / "model") == ["new"] and names(tmp_path / "deep") == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_the_old_result_and_no_litter(tmp_path, error):
    for kind in ("file", "folder"):
        path = tmp_path / kind
        path.write_text("old") if kind == "file" else path.mkdir()
        with pytest.raises(error), atomic(path) as tmp:
            tmp.write_text("half") if kind == "file" else tmp.mkdir()
            raise error
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "old"


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing was written for .*a.txt"), atomic(tmp_path / "a.txt"): pass


def test_a_folder_that_cannot_be_swapped_in_comes_back(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    def refuse(*_): raise OSError(errno.EIO, "input/output error")
    monkeypatch.setattr("viewpoint_rosetta.artifacts.os.replace", refuse)
    with pytest.raises(OSError), atomic(tmp_path / "model") as tmp: tmp.mkdir()
    assert (tmp_path / "model/weights").read_text() == "old" and names(tmp_path) == ["model"]


def test_ctrl_c_in_the_middle(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    def work(say):
        with atomic(path) as tmp:
            tmp.write_text("half")
            say("writing")
            time.sleep(60)
    child = Child(work)
    assert child.hear() == "writing\n" and len(names(tmp_path)) == 2
    os.kill(child.pid, signal.SIGINT)
    assert child.hear().startswith("KeyboardInterrupt") and child.end() == 0
    assert names(tmp_path) == ["result.json"] and path.read_text() == "old"


def test_kill_leaves_the_old_result_and_the_leftover_is_swept_later(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    def work(say):
        with atomic(path) as tmp:
            tmp.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert Child(work).end() == signal.SIGKILL and path.read_text() == "old" and len(names(tmp_path)) == 2
    left = next(p for p in tmp_path.iterdir() if p != path)
    with atomic(path) as tmp: tmp.write_text("new")
    assert left.exists()  # it may belong to a process that still writes
    os.utime(left, (time.time() - 90000,) * 2)
    with atomic(path) as tmp: tmp.write_text("newer")
    assert names(tmp_path) == ["result.json"] and path.read_text() == "newer"


def test_full_disk_by_a_file_size_limit(tmp_path):
    "The kernel refuses to write past a limit; the message names the file and the old result stays."
    path = tmp_path / "features.bin"
    path.write_text("old")
    def work(say):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with atomic(path) as tmp: tmp.write_bytes(bytes(200_000))
    child = Child(work)
    message = child.hear()
    assert f"cannot write {path}: File too large; free some space" in message and "finished results are kept" in message
    assert child.end() == 0 and names(tmp_path) == ["features.bin"] and path.read_text() == "old"


def test_full_disk_keeps_its_number(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError, match="free some space and run the same command again") as caught:
            with atomic(tmp_path / "a") as tmp:
                tmp.write_text("half")
                raise OSError(number, os.strerror(number))
        assert caught.value.errno == number and names(tmp_path) == []


def test_an_error_about_another_file_is_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic(tmp_path / "a"): open(tmp_path / "elsewhere")


def test_an_unwritable_place_is_reported_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "a.txt"]
    if os.geteuid():  # the super-user may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked" / "a.txt")
    if os.path.isdir("/proc/self"): places.append("/proc/self/a.txt")
    for path in places:
        with pytest.raises(OSError) as caught:
            with atomic(path): pytest.fail("the work was begun")
        assert f"cannot write {path}" in str(caught.value) and "VR_HOME" in str(caught.value) and caught.value.errno


def test_fingerprint(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(str(tmp_path / "a"))
    assert fingerprint({"x": 1, "y": (2, 3)}) == fingerprint({"y": [2, 3], "x": 1})
    assert fingerprint({"x": 1, "y": [2, 3]}) != fingerprint({"x": 1, "y": [3, 2]})
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    whole = fingerprint(tmp_path)
    (tmp_path / ".hidden").write_text("")
    assert fingerprint(tmp_path) == whole
    (tmp_path / "b").rename(tmp_path / "c")
    assert fingerprint(tmp_path) != whole
    with pytest.raises(TypeError, match="cannot fingerprint a function"): fingerprint(fingerprint)


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("VR_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("VR_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux": assert home() == tmp_path / "viewpoint_rosetta"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "in.txt").write_text("1")
    return Run(tmp_path / "run")


def ask(run, said=None, settings=None, fn=None, **kwargs):
    def work():
        with atomic(run.folder / "out.txt") as tmp: tmp.write_text("result")
    return run.step("work", fn or work, ["out.txt"], inputs=[run.folder.parent / "in.txt"],
                    settings={"seed": 0} if settings is None else settings,
                    log=(said if said is not None else []).append, **kwargs)


def test_step_runs_once_per_recipe_and_says_why(run):
    said = []
    assert ask(run, said) and not ask(run, said)
    assert ask(run, said, {"seed": 1}) and ask(run, said)
    (run.folder.parent / "in.txt").write_text("2")
    assert ask(run, said)
    (run.folder / "out.txt").unlink()
    assert ask(run, said)
    assert [line.split(": ", 1)[1] for line in said] == [
        "run (not finished before)", "reuse out.txt", "run (settings changed: seed)", "run (settings changed: seed)",
        f"run (inputs changed: {run.folder.parent / 'in.txt'})", f"run (no out.txt in {run.folder})"]
    recipe = json.loads((run.folder / "work.recipe.json").read_text())
    assert recipe["settings"] == {"seed": 0} and recipe["code"] == code_version() and recipe["took_s"] >= 0


def test_step_reuses_after_the_folder_moved(run):
    inside = run.folder / "in.txt"
    run.folder.mkdir()
    inside.write_text("1")
    def step(run):
        return run.step("copy", lambda: (run.folder / "out").write_text("x"), ["out"], [run.folder / "in.txt"], log=print)
    assert step(run)
    moved = run.folder.rename(run.folder.with_name("moved"))
    assert not step(Run(moved))


def test_step_counts_the_code_it_is_told_of(run, tmp_path):
    source = tmp_path / "part.py"
    source.write_text("x = 1")
    module = type(sys)("part")
    module.__file__ = str(source)
    assert ask(run, code=[module]) and not ask(run, code=[module])
    source.write_text("x = 2")
    assert ask(run, code=[module])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_step_is_run_again_even_under_the_old_settings(run, error):
    def stop(): raise error
    assert ask(run)
    with pytest.raises(error): ask(run, settings={"seed": 1}, fn=stop)
    assert (run.folder / "out.txt").read_text() == "result"  # nothing finished is lost
    assert ask(run) and not ask(run)


def test_a_step_that_leaves_no_output_is_an_error(run):
    with pytest.raises(FileNotFoundError, match="step work ended but left no out.txt"): ask(run, fn=lambda: None)
    assert ask(run)


def test_an_unreadable_recipe_runs_again(run):
    ask(run)
    (run.folder / "work.recipe.json").write_text("{")
    assert ask(run)


def test_problems_are_kept_once(run):
    assert run.problems().empty
    run.problem("a", "a.mp4", "bad")
    run.problem(["a", "b"], "a.mp4", "bad", [4, 5])  # the same problem of "a", now with its row
    run.problem(["c"], ["c.mp4"], ["worse"])
    problems = Run(run.folder).problems()
    assert problems.astype(object).where(problems.notna(), None).to_dict("split")["data"] == [
        ["a", "a.mp4", 4, "bad"], ["b", "a.mp4", 5, "bad"], ["c", "c.mp4", None, "worse"]]
    assert problems.columns.tolist() == ["clip_id", "file", "row", "reason"]


def test_problems_of_an_older_run_are_read(run):
    run.folder.mkdir(exist_ok=True)
    pd.DataFrame(dict(clip_id=["a"], file=["a.mp4"], reason=["bad"])).to_parquet(run.folder / "problems.parquet")
    assert run.problems().row.isna().all()
    run.problem("a", "a.mp4", "bad", 3)
    assert run.problems().row.tolist() == [3]


def test_problems_survive_a_full_disk(run, monkeypatch):
    run.problem("a", "a.mp4", "bad")
    def full(*_, **__): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="problems.parquet"): run.problem("b", "b.mp4", "bad")
    assert run.problems().clip_id.tolist() == ["a"]
