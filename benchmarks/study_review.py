"""What are 200 verdicts worth? Reviewed in the order the inspector proposes, at random, or not at all; then trained again.

    python benchmarks/study_review.py --run RUN [--seeds 5] [--budget 200] [--out docs/results/review.md]

RUN is a run folder with features (`rosetta demo` makes one). For each seed the pairs of *ours* are made anew, the world's truth
judges the budget with 5% errors, rejected pairs go, and *ours* is trained on what is left with the same settings. HR@5 is
`class_across_scenes`, both directions, on the test rooms; nothing is chosen by it.
"""
import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

from viewpoint_rosetta import methods
from viewpoint_rosetta.artifacts import atomic
from viewpoint_rosetta.benchmark import evaluate, t_interval
from viewpoint_rosetta.chain import Line, train_translator
from viewpoint_rosetta.inspector import ego_order
from viewpoint_rosetta.verdicts import reviewed

ROWS = ("no review", "at random", "as proposed", "all pairs")


def judged(pairs, rows, label, errors: float, rng) -> pd.DataFrame:
    "The truth as a reviewer who errs: a log of verdicts on these rows."
    p = pairs.iloc[rows]
    right = (label.reindex(p.ego).to_numpy() == label.reindex(p.exo).to_numpy()) ^ (rng.random(len(p)) < errors)
    return pd.DataFrame(dict(ego=p.ego.to_numpy(), exo=p.exo.to_numpy(), verdict=np.where(right, "accept", "reject"), reviewer="the truth",
                             at="", note=""))


def rows_to_judge(kind: str, pairs, budget: int, rng):
    "Positions of the pairs that are reviewed."
    if kind == "no review": return np.array([], int)
    if kind == "all pairs": return np.arange(len(pairs))
    if kind.endswith("random"): return rng.permutation(len(pairs))[:budget]
    return ego_order(pairs, "most doubtful")[:budget]


def one(line: Line, kind: str, pairs, seed: int, budget: int, errors: float) -> dict:
    "Review, train, test."
    rng, label = np.random.default_rng([seed, 7]), line.clips.set_index("clip_id").label
    log = judged(pairs, rows_to_judge(kind, pairs, budget, rng), label, errors, rng)
    left = reviewed(pairs, log) if len(log) else pairs
    encoder = methods.train_method("ours", line.bank, line.blind, line.phi(seed), line.rst(seed), line.settings, seed, progress=False, pairs=left)
    rows = evaluate(lambda df: methods.embed(encoder, line.bank, df.clip_id), line.clips, kind, seed, line.choice["dataset"])
    hit = rows.query("protocol == 'class_across_scenes' and direction == 'avg' and metric == 'HR@5'").value.item()
    right = (label.reindex(left.ego).to_numpy() == label.reindex(left.exo).to_numpy()).mean()
    found = (log.verdict == "reject").mean() if len(log) else np.nan
    return dict(review=kind, seed=seed, hr5=100 * hit, pairs=len(left), right=100 * right, rejected=100 * found)


def page(table: pd.DataFrame, line: Line, args, pool: str) -> str:
    "The results as Markdown."
    def cell(x):
        mean, lo, hi = t_interval(x)
        return f"{mean:.1f} ± {(hi - lo) / 2:.1f}"
    none = table[table.review == "no review"].set_index("seed").hr5
    out = ["# What 200 verdicts are worth", "",
           f"Data: {line.choice['dataset']}; {pool}. Embedded world, simulated video. Per cent, mean ± half of the 95% t-interval over",
           f"{args.seeds} seeds; HR@5 `class_across_scenes`, average of both directions, test rooms. The world's truth is the reviewer and errs in "
           f"{args.errors:.0%} of the verdicts.", f"Made by `python benchmarks/study_review.py --seeds {args.seeds} --budget {args.budget}`.", "",
           "| review | HR@5 | minus no review | rejected of the reviewed | pairs left | right among them |", "|---|---|---|---|---|---|"]
    for kind, g in table.groupby("review", sort=False):
        more = cell((g.set_index("seed").hr5 - none).to_numpy()) if kind != "no review" else ""
        out.append(f"| {kind} | {cell(g.hr5.to_numpy())} | {more} | {'' if g.rejected.isna().all() else f'{g.rejected.mean():.0f}'} | "
                   f"{g.pairs.mean():.0f} | {g.right.mean():.1f} |")
    hits = table.pivot(index="seed", columns="review", values="hr5")
    out += ["", f"HR@5 of the review as proposed minus that at random: {cell((hits['as proposed'] - hits['at random']).to_numpy())}, seed by seed. "
            f"A review of {args.budget} verdicts", f"takes {len_of(table, 'no review') - len_of(table, 'as proposed'):.0f} of "
            f"{len_of(table, 'no review'):.0f} pairs away as proposed and {len_of(table, 'no review') - len_of(table, 'at random'):.0f} at random; "
            "`all pairs` shows what the most patient reviewer could gain."]
    return "\n".join(out) + "\n"


def len_of(table: pd.DataFrame, kind: str) -> float:
    "Pairs left after a review, mean over seeds."
    return table.pairs[table.review == kind].mean()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--run", required=True)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--budget", type=int, default=200)
    p.add_argument("--errors", type=float, default=.05)
    p.add_argument("--out", default="docs/results/review.md")
    args = p.parse_args()
    line, found = Line(Path(args.run)), []
    for seed in range(args.seeds):
        train_translator(line, seed)
        pairs = methods.pseudo_pairs("rst+language", line.phi(seed), line.rst(seed), line.bank, line.blind, line.settings, seed)
        for kind in ROWS:
            found.append(one(line, kind, pairs, seed, args.budget, args.errors))
            print(found[-1], flush=True)
    pool = f"{pairs.ego.nunique()} unpaired ego clips, {len(pairs)} pairs, {os.cpu_count()} CPU cores"
    pd.DataFrame(found).to_csv(Path(args.out).with_suffix(".csv"), index=False)
    with atomic(Path(args.out)) as tmp: tmp.write_text(page(pd.DataFrame(found), line, args, pool), encoding="utf-8")
    print(Path(args.out).read_text())


if __name__ == "__main__": main()
