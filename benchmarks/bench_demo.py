"""Wall time and peak memory of `rosetta demo`: in a fresh home, and again with nothing changed.

    .venv/bin/python benchmarks/bench_demo.py [--manifest clips.csv ...]     further words go to `rosetta demo`

Targets on 2 cores without a GPU: first run under 10 minutes and 6 GB, second run under 30 s. Prints one JSON object; ends with
code 1 if a target is missed or the second run says something else than the first.

Record of 2026-11-25, an otherwise idle machine of 2 cores, from a clean clone: installation 6 s with a warm package cache, first
run 397 s and 2.4 GB, second run 2.0 s."""
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

TARGETS = dict(first_s=600, second_s=30, peak_gb=6)
ROSETTA = [sys.executable, "-c", "import sys; from viewpoint_rosetta.cli import main; sys.exit(main())"]


def tree_bytes(process: psutil.Process) -> int:
    "Memory of a process and all its children: proportional shares where the system tells them, so that shared pages count once."
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try:
            total += getattr(p.memory_full_info(), "pss", None) or p.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return total


def measured(words: list, env: dict) -> dict:
    "Run a command; wall seconds, CPU seconds of the tree, peak memory in GB, and what it printed."
    peak, start = 0, time.perf_counter()
    before = os.times()
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    while process.poll() is None:
        try:
            peak = max(peak, tree_bytes(psutil.Process(process.pid)))
        except psutil.NoSuchProcess:
            pass
        time.sleep(1)
    reader.join()
    wall, after = time.perf_counter() - start, os.times()
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with code {process.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return dict(wall_s=round(wall, 1), cpu_s=round(cpu, 1), peak_gb=round(peak / 2**30, 2), printed="".join(lines))


def main(more: list) -> int:
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "VR_HOME": home}
        first, second = (measured([*ROSETTA, "demo", *more], env) for _ in range(2))
        recipes = sorted(Path(home).rglob("*.recipe.json"), key=lambda path: path.stat().st_mtime_ns)
        timings = {path.name if path.parent.name == "demo" else f"{path.parent.name}/{path.name}": json.loads(path.read_text()).get("took_s") for path in recipes}
    said = [run.pop("printed") for run in (first, second)]
    print(said[0], file=sys.stderr)
    same = said[0].split("\n\n", 1)[-1] == said[1].split("\n\n", 1)[-1]
    met = dict(first_s=first["wall_s"] <= TARGETS["first_s"], second_s=second["wall_s"] <= TARGETS["second_s"],
               peak_gb=max(first["peak_gb"], second["peak_gb"]) <= TARGETS["peak_gb"])
    print(json.dumps(dict(first=first, second=second, targets=TARGETS, met=met, second_says_the_same=same, seconds_a_step=timings,
                          cores=os.cpu_count(), load_1min=round(os.getloadavg()[0], 1), python=platform.python_version()), indent=1))
    return 0 if same and all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
