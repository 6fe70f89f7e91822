"""Which translator wins, and how few sampling steps are enough?

    python benchmarks/bench_rst.py --run RUN_FOLDER [--seeds 3] [--quick]

RUN_FOLDER/phi.safetensors holds float32 (N, D) tensors train_ego, train_exo, held_ego, held_exo (row i is a pair) and
may hold integer train_group (N,): rows of a group (a take) are never split by inner validation. The held-out pairs are
used once per method and seed, for the score alone. Writes bench_rst.parquet and bench_rst_steps.parquet into RUN_FOLDER.
"""
import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from viewpoint_rosetta.artifacts import atomic
from viewpoint_rosetta.translator import (MLP, PAPER, RST, Identity, Nearest, Ridge, RSTSettings, compare_translators,
                                          fewest_steps, quality_against_steps)

TENSORS = ("train_ego", "train_exo", "held_ego", "held_exo")
GRID = tuple(replace(RSTSettings(), prediction=p, cond_noise=c, dropout=d)  # 8 settings, as many as the MLP's grid
             for p, c, d in product(("sample", "v_prediction"), (0.5, 1.0), (0.1, 0.3)))
METHODS = {"identity": Identity, "nearest": Nearest, "ridge": Ridge, "MLP": MLP,
           "RST, paper's form": lambda: RST(PAPER),
           "RST, no anchor": lambda: RST(replace(RSTSettings(), anchor=False)),
           "RST": RST, "RST, tuned": lambda: RST(*GRID)}


def read_run(folder: Path) -> dict:
    "The tensors of phi.safetensors; a ValueError says what is missing."
    path = folder / "phi.safetensors"
    if not path.exists(): raise ValueError(f"{path}: no such file; expected the features {', '.join(TENSORS)}")
    data = load_file(path)
    missing = [k for k in TENSORS if k not in data]
    if missing: raise ValueError(f"{path}: lacks {', '.join(missing)}; expected {', '.join(TENSORS)}")
    for side in ("train", "held"):
        n, m = len(data[f"{side}_ego"]), len(data[f"{side}_exo"])
        if n != m: raise ValueError(f"{path}: {side}_ego has {n} rows but {side}_exo has {m}; row i must be a pair")
    return data


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder with phi.safetensors")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training and sampling")
    parser.add_argument("--samples", type=int, default=1, help="samples averaged in the comparison of samplers")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: a check that it runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try: data = read_run(args.run)
    except ValueError as error: print(error, file=sys.stderr); return 2
    train, held, groups = (data["train_ego"], data["train_exo"]), (data["held_ego"], data["held_exo"]), data.get("train_group")
    base = RSTSettings(steps=50) if args.quick else RSTSettings()
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
