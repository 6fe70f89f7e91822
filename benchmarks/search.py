"""The search for settings, on validation rooms only; the test rooms are dropped from the table before anything else.

    python benchmarks/search.py --run RUN             every trial that is not done yet; start it twice to use two cores
    python benchmarks/search.py --run RUN --table     what the finished trials say, as Markdown

RUN is a folder in which a full world was extracted (`rosetta world --full --extract --run RUN`). A trial is a row of the
table with some settings changed, trained with one seed; it is scored by the average `class_across_scenes` HR@5. Shared
settings are tried on three rows at once; every row may choose its lambda_1; the two rows with choices of their own, ours
and SUM-L, get the same number of trials.
"""
import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from viewpoint_rosetta import methods
from viewpoint_rosetta.artifacts import atomic
from viewpoint_rosetta.benchmark import evaluate
from viewpoint_rosetta.chain import Line, whiten, with_changes
from viewpoint_rosetta.clips import hide_truth, pool
from viewpoint_rosetta.encoders import DualEncoder
from viewpoint_rosetta.translator import RosettaPipeline

START = dict(match=dict(calibrate="none", text_weight=.5, k=5), in_view=1., link=.4, loss=dict(lambda_1=.5, tau=.07))  # where it began
THREE = ("paired + text", "SUM-L", "ours")
PAIRED = [row for row, m in methods.METHODS.items() if m.text and row not in ("frozen", "LaViLa*")]
MATCH = {"CSLS": dict(calibrate="csls"), "CSLS, k 1": dict(calibrate="csls", k=1), "CSLS, k 3": dict(calibrate="csls", k=3),
         "CSLS, k 10": dict(calibrate="csls", k=10), "text .3": dict(text_weight=.3),
         "CSLS, text .3": dict(calibrate="csls", text_weight=.3), "CSLS, text .3, k 10": dict(calibrate="csls", text_weight=.3, k=10)}
IN_VIEW = ((.2, 1.), (.3, 1.), (.5, 1.), (.4, 0.), (.4, .5), (.4, 2.), (.3, .5))  # SUM-L: link, in_view
BEST = dict(ours=dict(match=MATCH["CSLS, text .3"]), **{"SUM-L": dict(in_view=0.)})

TRIALS = [("as it began", row, {}) for row in methods.METHODS if row != "frozen"]
TRIALS += [(f"lambda_1 {v}", row, dict(loss=dict(lambda_1=v))) for row in PAIRED for v in (.3, .7)]
TRIALS += [(what, row, change) for what, change in {
    "token_drop .6, noise .6": dict(encoder=dict(token_drop=.6, noise=.6)), "tau .05": dict(loss=dict(tau=.05)),
    "tau .1": dict(loss=dict(tau=.1)), "600 steps": dict(train=dict(steps=600))}.items() for row in THREE]
TRIALS += [(f"tau {v}", "VI Encoder", dict(loss=dict(tau=v))) for v in (.05, .1)]
TRIALS += [(what, "ours", dict(match=change)) for what, change in MATCH.items()]
TRIALS += [(f"link {link}, in view {inside}", "SUM-L", dict(link=link, in_view=inside)) for link, inside in IN_VIEW]
TRIALS += [(f"its best{more}", row, change | dict(loss=dict(lambda_1=.3) | loss)) for row, change in BEST.items() for more, loss in (
    (", lambda_1 .3", {}), (", lambda_1 .3, same_narration .8", dict(same_narration=.8)), (", lambda_1 .3, same_narration .6", dict(same_narration=.6)))]
TRIALS += [(f"lambda_1 .7, same_narration {v}", "paired + text", dict(loss=dict(lambda_1=.7, same_narration=v))) for v in (.8, .6)]
TRIALS += [("its best, lambda_1 .3, lambda_2 .5", "ours", BEST["ours"] | dict(loss=dict(lambda_1=.3, lambda_2=.5))),
           ("its best, lambda_1 .3, link .5", "SUM-L", BEST["SUM-L"] | dict(link=.5, loss=dict(lambda_1=.3)))]
TRIALS += [(f"lambda_1 .3, in view 0, text {text}, links {links}", "RST links",
            dict(match=dict(text_weight=text), links=links, in_view=0., loss=dict(lambda_1=.3)))
           for text, links in ((.3, .02), (.5, .02), (.7, .02), (.3, .01), (.3, .04))]


def key(*what) -> str: return hashlib.sha1(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


class Search:
    "A run without its test rooms, and the parts that trials share."

    def __init__(self, run: Path):
        methods.METHODS.update({name: replace(m, lambda_1=None) for name, m in methods.METHODS.items()})  # the setting decides
        self.line, self.folder = Line(run, preset="full"), run / "search"
        whiten(self.line)
        clips = self.line.clips
        self.clips = clips[clips.split != "test"].reset_index(drop=True)
        self.blind, self.bank = hide_truth(self.clips), self.line.bank

    def parts(self, s, change: dict, seed: int) -> tuple:
        "f_phi and translator of these settings, trained once."
        change = {k: v for k, v in change.items() if k in ("encoder", "phi", "rst")}
        folder = self.folder / f"parts-{key(change, seed)}"
        if not folder.exists():
            phi = methods.train_phi(self.bank, self.blind, s, seed, None, False)
            rst = methods.train_rst(phi, self.bank, self.blind, s, seed, False)
            with atomic(folder) as tmp: phi.save_pretrained(tmp / "phi"), rst.save_pretrained(tmp / "rst")
        return DualEncoder.from_pretrained(folder / "phi"), RosettaPipeline.from_pretrained(folder / "rst")

    def trial(self, what: str, row: str, change: dict, seed: int) -> dict:
        s = with_changes(with_changes(self.line.settings, START), change)
        seen = self.clips if row.startswith("oracle") else self.blind
        encoder = methods.train_method(row, self.bank, seen, *self.parts(s, change, seed), s, seed, None, False)
        found = evaluate(lambda df: methods.embed(encoder, self.bank, df.clip_id), self.clips, row, seed, "validation rooms",
                         split="val", head=None)
        found = found[(found.metric == "HR@5") & (found.direction == "avg")].set_index("protocol").value
        return dict(what=what, row=row, change=change, seed=seed, **{k: round(100 * v, 1) for k, v in found.items()})

    def walk(self, seed: int):
        "Every trial nobody has claimed."
        self.folder.mkdir(exist_ok=True)
        for what, row, change in TRIALS:
            path = self.folder / f"{key(row, change, seed)}.json"
            try: path.with_suffix(".claimed").touch(exist_ok=False)
            except FileExistsError: continue
            try: result = self.trial(what, row, change, seed)
            except BaseException: path.with_suffix(".claimed").unlink(); raise
            with atomic(path) as tmp: tmp.write_text(json.dumps(result))
            print(f"{row}, {what}: {result['class_across_scenes']}", flush=True)


def table(folder: Path) -> str:
    done = {}
    for path in sorted(folder.glob("*.json")):
        r = json.loads(path.read_text())
        done[key(r["row"], r["change"])] = r
    lines = ["| row | settings | HR@5 across scenes | class | instance |", "|---|---|---|---|---|"]
    seen = set()
    for what, row, change in TRIALS:
        r = done.get(key(row, change))
        if r is None or (row, what) in seen: continue
        seen.add((row, what))
        lines.append(f"| {row} | {what} | {r['class_across_scenes']:.1f} | {r['class']:.1f} | {r['instance']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table: print(table(args.run / "search"))
    else: Search(args.run).walk(args.seed)
