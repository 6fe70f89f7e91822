"""docs/results/table.md from the tables of a finished run: `python scripts/results_table.py RUN`.

Reads RUN/{bench,translator,precision}.parquet and RUN/clips.parquet; nothing in the page is typed by hand.
"""
import sys
from pathlib import Path

import pandas as pd

from viewpoint_rosetta.benchmark import PAPER, PAPER_NAMES, paired_difference, read_bench, seed_interval, t_interval
from viewpoint_rosetta.clips import pool, read_clips

HEAD = ("class_across_scenes", "avg", "HR@5")
COLUMNS = {"e→x": ("class_across_scenes", "ego->exo", "HR@5"), "x→e": ("class_across_scenes", "exo->ego", "HR@5"), "**avg**": HEAD,
           "class avg": ("class", "avg", "HR@5"), "instance avg": ("instance", "avg", "HR@5"),
           "top-1": ("linear_probe", "exo->ego", "top-1"), "top-5": ("linear_probe", "exo->ego", "top-5"),
           "skill AUC": ("linear_probe", "exo->ego", "auc")}
TRANSLATORS = {"R@1": 1, "R@5": 1, "median_rank": 0, "cosine": 2}


def markdown(header, rows) -> str:
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in [header, ["---"] * len(header), *rows])


def spread(values, digits=1, factor=1.) -> str:
    "Mean ± half of the 95% t-interval over seeds."
    mean, low, _ = t_interval([factor * v for v in values])
    return f"{mean:.{digits}f}" + (f" ± {mean - low:.{digits}f}" if len(values) > 1 else "")


def methods_table(bench) -> str:
    s = seed_interval(bench).set_index(["method", "protocol", "direction", "metric"])
    def cell(method, key):
        row = s.loc[(method, *key)]
        return f"{100 * row.value:.1f} ± {50 * (row.hi - row.lo):.1f}"
    rows = []
    for method in bench.method.unique():
        theirs = PAPER["HR@5 avg"].get({"ours": PAPER_NAMES["ours"]}.get(method, method), "")
        rows.append([method, *(f"**{cell(method, k)}**" if k == HEAD else cell(method, k) for k in COLUMNS.values()), theirs])
    chance = [f"{100 * s.xs(k, level=(1, 2, 3)).chance.mean():.1f}" for k in COLUMNS.values()]
    return markdown(["method", *COLUMNS, "paper avg HR@5 (theirs, Ego-Exo4D)"], [*rows, ["chance", *chance, ""]])


def differences_table(bench, method: str) -> str:
    "`method` minus every other row, seed by seed."
    rows = []
    for other in bench.method.unique():
        if other == method: continue
        d = paired_difference(bench, method, other).set_index(["protocol", "direction", "metric"]).loc[HEAD]
        rows.append([other, f"{100 * d.difference:+.1f}", f"{100 * d.lo:+.1f} to {100 * d.hi:+.1f}", "yes" if d.clear else "no"])
    return markdown([f"{method} minus", "points", "95% interval", "excludes 0"], rows)


def page(run: Path) -> str:
    bench, translator, precision = read_bench(run / "bench.parquet"), *(pd.read_parquet(run / f"{n}.parquet") for n in ("translator", "precision"))
    clips = read_clips(run / "clips.parquet")
    n = {name: len(pool(clips, name)) for name in ("ego", "exo", "paired", "test")}
    rooms = {name: pool(clips, name).scene.nunique() for name in n}
    test, seeds = pool(clips, "test"), sorted(bench.seed.unique())
    views = test["view"].value_counts()
    how = f"mean ± half of the 95% t-interval over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    head = bench[(bench.protocol == HEAD[0]) & (bench.direction == HEAD[1]) & (bench.metric == HEAD[2])]
    p = precision.pivot_table("value", "method", "metric", aggfunc=list, sort=False)
    t = translator.groupby("method", sort=False)
    return f"""**{bench.dataset.iloc[0]}, simulated video: {len(clips):,} clips.** Training: {rooms['ego']} ego rooms ({n['ego']:,} clips), \
{rooms['exo']} exo rooms ({n['exo']:,}), {rooms['paired']} synchronized rooms ({n['paired']:,}). Test: {rooms['test']} rooms on which no
choice was made, {views['ego']} ego and {views['exo']} exo clips. Per cent, {how}. e→x, x→e and avg: HR@5 under \
`class_across_scenes`, the headline; chance {100 * head.chance.mean():.1f}.

{methods_table(bench)}

Average `class_across_scenes` HR@5 of two rows against every other, seed by seed:

{differences_table(bench, "ours")}

{differences_table(bench, "RST links")}

Precision@1 of pseudo-pairs ({precision.n.max():,} unpaired ego clips, {n['exo']:,} candidates; per cent, {how}):

{markdown(['chosen by', 'same action', 'same action and object'],
          [[m, *(spread(p.loc[m, k], factor=100) for k in ('action', 'action_object'))] for m in p.index])}

Translators on {translator.n_held.max()} held-out test pairs of other people and rooms ({translator.n_train.max():,} training pairs; the true exo
among {translator.n_held.max()}; {how}):

{markdown(['translator', 'R@1', 'R@5', 'median rank', 'cosine'],
          [[m, *(spread(g[k], d) for k, d in TRANSLATORS.items())] for m, g in t])}
"""


if __name__ == "__main__":
    out = Path(__file__).parent.parent / "docs" / "results" / "table.md"
    out.write_text(page(Path(sys.argv[1])), encoding="utf-8")
    print(out)
