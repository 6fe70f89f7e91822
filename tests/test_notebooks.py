"""Every notebook runs from top to bottom, in a kernel of its own, and leaves nothing behind."""
import os
import re
import resource
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("[!.]*.ipynb") if ".ipynb_checkpoints" not in p.parts)
SECONDS = 300  # a notebook that needs longer by the clock hangs
BUDGET = 90  # seconds of one processor: a minute, and half as much again for a slow machine
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def project_copy(to: Path) -> Path:
    "The notebooks copied, all beside them linked: a notebook may read the project and writes into the copy only."
    nbs = shutil.copytree(ROOT / "nbs", to / "nbs", ignore=shutil.ignore_patterns(".*"))
    for path in ROOT.iterdir():
        if path.name != "nbs" and not path.name.startswith("."):
            (to / path.name).symlink_to(path)
    return nbs


def contents(folder: Path) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def execute(path: Path, home: Path, seconds: float = SECONDS) -> nbformat.NotebookNode:
    "Run the notebook beside which it lies; AssertionError shows the cell that failed and its traceback."
    notebook, end = nbformat.read(path, as_version=4), time.monotonic() + seconds
    client = NotebookClient(notebook, kernel_name="python3", timeout_func=lambda cell: max(1, int(end - time.monotonic())),
                            resources={"metadata": {"path": str(path.parent)}})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "VR_HOME": str(home / "home"), "IPYTHONDIR": str(home / "ipython")}
    try:
        return client.execute(env=env)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
        cell = next((c for c in notebook.cells if has_error(c)), None) or unfinished(notebook)
        told = [line for o in cell.outputs if o.output_type == "error" for line in o.traceback]
        if not isinstance(problem, CellExecutionError):
            told.append(f"timed out: {seconds} s for the whole notebook" if isinstance(problem, CellTimeoutError) else str(problem))
        raise AssertionError(f"{path.name} failed in this cell:\n\n{cell.source}\n\n" + COLOUR.sub("", "\n".join(told))) from None


def processor_seconds() -> float:
    "Of all processes that this one has started and seen end."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def has_error(cell) -> bool:
    return any(o.output_type == "error" for o in cell.get("outputs", []))


def unfinished(notebook):
    "The first code cell that did not end: a timeout or a dead kernel writes no error into it."
    code = [c for c in notebook.cells if c.cell_type == "code"]
    return next((c for c in code if "shell.execute_reply" not in c.metadata.get("execution", {})), code[-1])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name, tmp_path, record_property, request, monkeypatch):
    nbs = project_copy(tmp_path / "project")
    if name.startswith("dashboards/"): monkeypatch.setenv("VR_RUN", str(shutil.copytree(request.getfixturevalue("small_run"), tmp_path / "run")))
    before, start, worked = contents(nbs), time.monotonic(), processor_seconds()
    record_property("notebook", name)
    try:
        execute(nbs / name, tmp_path)
    except AssertionError as problem:
        pytest.fail(str(problem), pytrace=False)
    finally:
        record_property("seconds", time.monotonic() - start)
    worked = processor_seconds() - worked
    assert worked < BUDGET, f"{name} kept a processor busy for {worked:.0f} s; a page should run in a minute: take less data or fewer steps"
    after = contents(nbs)
    left = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    assert not left, f"{name} writes beside itself: {left}; use a temporary folder"


@pytest.mark.parametrize("source, told, seconds", [("1 / 0", "ZeroDivisionError", 120), ("import os; os._exit(1)", "died", 120),
                                                   ("import time; time.sleep(60)", "timed out", 10)])
def test_a_broken_notebook_is_told(tmp_path, source, told, seconds):
    "Not vacuous: an error, an endless cell and a dead kernel each fail and name their cell."
    cells = [nbformat.v4.new_code_cell(s) for s in ("fine = 1", source, "never = 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "broken.ipynb")
    with pytest.raises(AssertionError, match=told) as caught:
        execute(tmp_path / "broken.ipynb", tmp_path, seconds)
    assert f"in this cell:\n\n{source}\n" in str(caught.value)
