"""What all tests share: the settings of a quiet run on a few cores, a home of their own, the optional parts of a machine."""
import signal
import os
import shutil
import sys
from pathlib import Path

for name, value in {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "egl", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                    "MPLBACKEND": "agg"}.items():
    os.environ.setdefault(name, value)  # before anything imports torch or MuJoCo

import pytest

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
