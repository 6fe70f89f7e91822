"""Which translator wins, and how few sampling steps are enough?

    python benchmarks/bench_rst.py --run RUN_FOLDER [--seeds 3] [--quick]

RUN_FOLDER is a run in which `rosetta train-translator` was done for seed 0: its f_phi gives the features of the synchronized
training pairs and of the test pairs. Inner validation never splits a room. The test pairs are used once per method and
seed, for the score alone. Writes bench_rst.parquet and bench_rst_steps.parquet into RUN_FOLDER.

Record of 2026-11-25, full world with 24 synchronized rooms, `--methods RST --seeds 3`, one sample, 600 test pairs: DDPM 1,000 steps R@1 2.4, R@5 8.7,
33 s; DDIM 1 step 2.4, 9.2, 0.04 s (905 times faster); 10 steps 2.3, 8.4. One step is enough, which means that the answer is a mean: what this
translator knows is the regression in it, not the spread.
"""
import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from viewpoint_rosetta.artifacts import atomic
from viewpoint_rosetta.chain import Line
from viewpoint_rosetta.methods import full_settings, paired_features, rooms_of
from viewpoint_rosetta.translator import (MLP, PAPER, RST, Identity, Nearest, Ridge, RSTSettings, compare_translators,
                                          fewest_steps, quality_against_steps)

BEST = full_settings().rst
GRID = tuple(replace(BEST, prediction=p, cond_noise=c, dropout=d)  # 8 settings, as many as the MLP's grid
             for p, c, d in product(("sample", "v_prediction"), (0.5, 1.0), (0.1, 0.3)))
METHODS = {"identity": Identity, "nearest": Nearest, "ridge": Ridge, "MLP": MLP,
           "RST, paper's form": lambda: RST(PAPER),
           "RST, on a ridge": lambda: RST(replace(BEST, anchor=True)),
           "RST": lambda: RST(BEST), "RST, tuned": lambda: RST(*GRID)}


def read_run(folder: Path) -> tuple:
    "(z_ego, z_exo) of the training and of the test pairs under the run's f_phi, and the rooms of the training pairs."
    line = Line(folder)
    clips, bank, phi = line.blind, line.bank, line.phi(0)
    *train, pairs = paired_features(phi, bank, clips)
    *held, _ = paired_features(phi, bank, clips, "test")
    tensors = [[torch.from_numpy(z) for z in side] for side in (train, held)]
    return *tensors, rooms_of(clips, pairs)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run with f_phi of seed 0")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training and sampling")
    parser.add_argument("--samples", type=int, default=1, help="samples averaged in the comparison of samplers")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: a check that it runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try: train, held, groups = read_run(args.run)
    except (ValueError, OSError) as error: print(error, file=sys.stderr); return 2
    base = RSTSettings(steps=50) if args.quick else BEST
    methods = {k: METHODS[k] for k in args.methods}
    if args.quick: methods = {k: v for k, v in methods.items() if k in ("identity", "nearest", "ridge")}
    tables = []
    for name, make in methods.items():  # one by one, so that an interrupted run has shown something
        tables.append(compare_translators(train, held, {name: make}, range(1 if args.quick else args.seeds), groups))
        print(tables[-1].mean(numeric_only=True).round(3).to_frame(name).T.drop(columns="seed").to_string(), flush=True)
    table = pd.concat(tables, ignore_index=True).assign(chance_r1=100 / len(held[0]), chance_r5=500 / len(held[0]))
    numbers = ["R@1", "R@5", "median_rank", "cosine", "nce", "fit_s"]
    summary = table.groupby("method", sort=False)[numbers].agg(["mean", "std"]).round(2)
    print(f"\n{len(train[0])} training pairs, {len(held[0])} held-out, {table.seed.nunique()} seeds (mean, std over seeds)")
    print(summary.to_string(), f"\nwins on R@5: {summary['R@5']['mean'].idxmax()}; on R@1: {summary['R@1']['mean'].idxmax()}\n")
    pipe = RST(base).fit(*train, groups=groups).pipe
    steps = quality_against_steps(pipe, *held, steps=(1, 2, 3, 5, 10, 20, 50), ddpm_steps=(100 if args.quick else 1000,),
                                  num_samples=args.samples, seeds=range(1 if args.quick else args.seeds))
    print(steps.round(3).to_string())
    for name, result in (("bench_rst", table), ("bench_rst_steps", steps)):
        with atomic(args.run / f"{name}.parquet") as part: result.to_parquet(part)
    try: best = fewest_steps(steps)
    except ValueError as error: print(error); return 0
    print(f"fewest DDIM steps within 1 point of DDPM: {int(best.steps)}, {best.speed_up:.0f} times faster")
    return 0


if __name__ == "__main__":
    sys.exit(main())
