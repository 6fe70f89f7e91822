"""What all tests share: the settings of a quiet run on a few cores, a home of their own, the optional parts of a machine."""
import signal
import os
import shutil
import subprocess
import sys
from pathlib import Path

for name, value in {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "egl", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                    "MPLBACKEND": "agg"}.items():
    os.environ.setdefault(name, value)  # before anything imports torch or MuJoCo

import pytest
from filelock import FileLock

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs us in the background has it ignored

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "parity")]


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    "Runs and caches of the tests go to a folder of their own, never to the user's."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VR_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def root():
    "The top folder of the project."
    return ROOT


@pytest.fixture(scope="session")
def real_data():
    "The folder of real takes; tests that need it are skipped where it is not."
    folder = Path(os.environ.get("VR_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip("no real videos here: set VR_REAL_DATA to their folder")
    return folder


SMALL_RUN = """
import sys
import pandas as pd
from viewpoint_rosetta.boards import spaces, walks
from viewpoint_rosetta.chain import Line, gather, index, maps, match, train
from viewpoint_rosetta.clips import read_clips, write_clips
from viewpoint_rosetta.world import shipped
world, parts, folder = read_clips(shipped()), [], sys.argv[1]
for pool, takes, each in (("paired", 6, 2), ("ego", 3, 3), ("exo", 3, 3), ("test", 2, 6)):
    names = [name for name in sorted(world["take"].unique()) if name.startswith(pool) and name.endswith("_0")][:takes]
    parts.append(world[world["take"].isin(names)].groupby("video", sort=False).head(each))
write_clips(pd.concat(parts, ignore_index=True), f"{folder}.parquet")
line = Line(folder, root=str(shipped().parent), dataset="a few clips", changes=dict(
    size=128, whiten=32, encoder=dict(frames=4, cells=1, tube=2, width=64, depth=1), rst=dict(steps=20, width=32, depth=1),
    phi=dict(steps=10, batch=32, warmup=2), train=dict(steps=10, batch=32, warmup=2)))
index(line, f"{folder}.parquet")
match(line, 0)
for name in ("frozen", "ours"): train(line, name, 0)
gather(line, [0], ["frozen", "ours"])
maps(line, 0), walks(line), spaces(line)
"""


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    "A run folder of a few clips with everything in it, whose numbers mean nothing; made once for all processes of a test run."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small_run"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            made = subprocess.run([sys.executable, "-c", SMALL_RUN, str(folder)], capture_output=True, text=True, timeout=300)
            assert made.returncode == 0, made.stderr[-2000:]
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def chromium():
    "Path of a browser; tests that open a page are skipped where there is none."
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium here: apt-get install chromium")


def pytest_terminal_summary(terminalreporter):
    "The seconds each notebook took, beside the minute it may take."
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    took = sorted((props["notebook"], props["seconds"]) for props in (dict(r.user_properties) for r in reports) if "seconds" in props)
    if took:
        terminalreporter.section("seconds a notebook")
        for name, seconds in took:
            terminalreporter.write_line(f"{seconds:7.1f}  {name}{'   more than a minute' if seconds > 60 else ''}")
