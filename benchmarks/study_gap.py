"""Where does the line lose what right pairs would give? Trials on validation rooms: features, translator, pairs, loss.

    python benchmarks/study_gap.py --run RUN [--seeds 2]

RUN is a folder in which a full world was extracted. Each trial changes one thing and trains one encoder with the settings of the
full preset: how many pseudo-pairs are right (`truth P`: partners of the same action with probability P, else any), who translates
for the match (`pairs by ...`), and how partners are used (`links by ...`: all clips of the batch above a threshold, as SUM-L
does). The truth chooses where the name says so; nothing reads a test room.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from search import Search

from viewpoint_rosetta import methods, translator as t
from viewpoint_rosetta.benchmark import evaluate, pair_precision
from viewpoint_rosetta.clips import pool
from viewpoint_rosetta.matching import match
from viewpoint_rosetta.training import fit

TRIALS = ["ours", "SUM-L", "RST links", "links w/o RST", "oracle pairs", "pairs by identity", "pairs by MLP", "pairs by RST",
          "truth 0.2", "truth 0.4", "truth 0.7", "truth 1.0", "links by truth"]


class Study(Search):
    def __init__(self, run):
        rows = dict(methods.METHODS)
        super().__init__(run)
        methods.METHODS.update(rows)  # every row with its own lambda_1: the search is over
        self.s = self.line.settings

    def mixed(self, share: float, seed: int) -> pd.DataFrame:
        "The oracle's pairs, of which a share keeps its partner and the rest gets any."
        pairs, rng = methods.true_pairs(self.clips, self.bank, self.s.match.k, seed), np.random.default_rng(seed)
        wrong = rng.random(len(pairs)) > share
        pairs.loc[wrong, "exo"] = rng.choice(pool(self.clips, "exo").clip_id, wrong.sum())
        return pairs

    def matched(self, kind: str, phi, rst, seed: int) -> pd.DataFrame:
        "The match of ours with another translator."
        ego, z, e_ego, *exo = methods._sides(False, phi, rst, self.bank, self.blind, seed)
        *train, pairs = methods.paired_features(phi, self.bank, self.blind)
        make = {"identity": t.Identity, "MLP": t.MLP, "RST": lambda: t.RST(self.s.rst)}[kind]
        model = make().fit(*train, seed=seed, groups=methods.rooms_of(self.blind, pairs))
        return match(ego, np.asarray(model(torch.from_numpy(z))), e_ego, *exo, self.s.match)

    def linked_by_truth(self, seed: int):
        codes = pd.get_dummies(self.clips.set_index("clip_id").label).astype(np.float32).reindex(self.bank.ids).fillna(0).to_numpy()
        unpaired = (methods.present(pool(self.blind, view), self.bank) for view in ("ego", "exo"))
        objective = methods.sum_l_objective(self.bank, methods.training_pairs(self.blind, self.bank), *unpaired, self.s, seed, codes, .5)
        model = methods._fresh(self.s, self.bank, seed)
        fit(model, objective, self.s.train, seed, None, False)
        return model

    def encoder(self, trial: str, seed: int):
        "(trained encoder, pseudo-pairs or None)."
        phi, rst = self.parts(self.s, {}, seed)
        what, _, how = trial.partition(" ")
        if trial == "links by truth": return self.linked_by_truth(seed), None
        pairs = self.mixed(float(how), seed) if what == "truth" else self.matched(how[3:], phi, rst, seed) if what == "pairs" else None
        row = trial if pairs is None else "oracle pairs" if what == "truth" else "ours w/o RST"
        seen = self.clips if row == "oracle pairs" else self.blind
        return methods.train_method(row, self.bank, seen, phi, rst, self.s, seed, None, False, pairs), pairs

    def row(self, trial: str, seed: int) -> dict:
        encoder, pairs = self.encoder(trial, seed)
        found = evaluate(lambda df: methods.embed(encoder, self.bank, df.clip_id), self.clips, trial, seed, "validation rooms",
                         ("class_across_scenes",), "val", None)
        right = np.nan if pairs is None else 100 * pair_precision(pairs, self.clips)["action"]["value"]
        return dict(trial=trial, seed=seed, precision=right, hr5=100 * found[(found.metric == "HR@5") & (found.direction == "avg")].value.item())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(args.run)
    rows = []
    for trial in TRIALS:
        rows += [study.row(trial, seed) for seed in range(args.seeds)]
        print(pd.DataFrame(rows[-args.seeds:]).round(1).to_string(index=False, header=trial == TRIALS[0]), flush=True)
    print(pd.DataFrame(rows).groupby("trial", sort=False)[["precision", "hr5"]].agg(["mean", "min", "max"]).round(1).to_string())
