"""What a world costs here: seconds per episode by part, the full world projected, memory of a process that knows all 50 tasks.

Episodes are drawn from the full world's plan and rendered in this process, each pool with its own cameras; building a task (once
per process) is counted apart. Memory is measured in processes of their own that film one frame of each of the 50 tasks,
once with one GL context whose textures are freed after each film (as the library does), once with a kept `mujoco.Renderer` per task.
Seconds are of processor time: on a loaded machine the clock says more.

usage: python benchmarks/bench_world.py [--episodes 24] [--seed 0] [--workers CORES] [--no-memory]
"""
import argparse
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd

from viewpoint_rosetta.actions import ACTIONS, graphics, load_task
from viewpoint_rosetta.person import Person
from viewpoint_rosetta.stage import HUES, StageSettings, exo_cameras, film, furnish, perform, screen, take_cameras
from viewpoint_rosetta.world import WorldSettings, plan, small_world, write_video


def timed(times, name, fn, *args):
    "Call, and add the processor seconds to a part."
    t = time.process_time()
    result = fn(*args)
    times[name] = times.get(name, 0) + time.process_time() - t
    return result


def one(e, s, times):
    "One episode as `stage.episode` makes it, part by part."
    timed(times, "build task (once)", load_task, e.action)
    person = Person(f"{s.seed}/{e.participant}")
    performance = timed(times, "physics and body", perform, e.action, e.seed, person, e.skill, s)
    rig = dict(zip((c for c in take_cameras(s, e.pool) if c != "ego"), exo_cameras(s, e.pool, e.take, e.scene)))
    cameras = {c: rig.get(c) for c in take_cameras(s, e.pool)}
    shapes = timed(times, "room", furnish, e.action, e.scene, list(HUES.values())[e.hue], s)
    films = timed(times, "film", film, performance, person, cameras, shapes, s)
    for f in films.values(): timed(times, "h264", write_video, os.devnull, f.rgb, s.fps, s.crf, s.frames)


def cost(s, n, seed):
    "Seconds per episode (rows: kind of take; columns: parts)."
    episodes, rows = plan(s), {}
    one(next(episodes.itertuples()), s, {})                      # imports, the GL context
    for kind, pools in {"one camera": ["ego", "exo"], f"{s.cameras + 1} cameras": ["paired", "val", "test"]}.items():
        times = {}
        for e in episodes[episodes.pool.isin(pools)].sample(n // 2, random_state=seed).itertuples(): one(e, s, times)
        rows[kind] = {k: v / (n // 2) for k, v in times.items()}
    return pd.DataFrame(rows).T


def projected(table, s):
    "Processor hours of a world: each episode by its kind, each task built once."
    per = table.drop(columns="build task (once)").sum(axis=1)
    counts = plan(s).pool.value_counts()
    single = counts.get("ego", 0) + counts.get("exo", 0)
    return counts.sum(), (single * per["one camera"] + (counts.sum() - single) * per.drop("one camera").iloc[0]) / 3600


def rss():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def remember(how):
    "Film a frame of every task and print resident GB before and after."
    graphics()
    import mujoco
    s, kept, before = StageSettings(), [], rss()
    for action in ACTIONS.index:
        furnish(action, "r000", 0., s)
        env = load_task(action).env
        if how == "kept":
            kept.append(mujoco.Renderer(env.model, 256, 256, max_geom=1200))
            kept[-1].update_scene(env.data, 0); kept[-1].render()
        else:
            with screen(env.model, 256) as shoot: shoot(env.data, 0, [])
    print(f"{before:.2f} {rss():.2f}")
    sys.stdout.flush()
    os._exit(0)                                                  # the kept renderers would complain at the exit


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--remember", choices=("kept", "freed"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.remember: return remember(args.remember)
    s, t = WorldSettings(), time.perf_counter()
    table = cost(s, args.episodes, args.seed)
    wall = time.perf_counter() - t
    print(f"processor seconds per episode ({s.size} px, {s.frames} frames, n = {args.episodes // 2} a row, seed {args.seed})\n")
    print(table.assign(total=table.drop(columns="build task (once)").sum(axis=1)).round(3).to_string())
    print(f"\n{args.episodes / wall:.2f} episodes per second of the clock in this process, tasks built on the way")
    for name, world in (("shipped", small_world()), ("full", s)):
        n, hours = projected(table, world)
        print(f"{name} world: {n} episodes, {hours * 60:.0f} processor minutes, {hours * 60 / args.workers:.0f} minutes with {args.workers} idle cores")
    if args.no_memory: return
    print("\nresident memory of a process after filming all 50 tasks (GB)")
    for how, label in (("freed", "one GL context, freed after each film"), ("kept", "a mujoco.Renderer kept per task")):
        done = subprocess.run([sys.executable, __file__, "--remember", how], capture_output=True, text=True)
        before, after = done.stdout.split() if done.returncode == 0 else ("?", "?")
        print(f"  {label}: {after} (imports alone: {before})")


if __name__ == "__main__": main()
