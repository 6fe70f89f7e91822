"""How many synchronized rooms does a translator need? Measured on validation rooms.

    python benchmarks/bench_pairs.py --run RUN [--rooms 8 24] [--seed 0]

RUN is a folder in which a full world was extracted. For each number of synchronized training rooms: f_phi and all translators are
trained anew; the true exo clip is searched among all validation exo clips; and every validation ego clip is matched with the
exo clips of the *other* validation rooms, as unpaired clips are, by what is seen and said. Nothing here reads a test room.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from viewpoint_rosetta import methods, translator as t
from viewpoint_rosetta.chain import Line, whiten
from viewpoint_rosetta.clips import hide_truth, pool
from viewpoint_rosetta.matching import MatchSettings, match

TRANSLATORS = {"identity": t.Identity, "nearest": t.Nearest, "ridge": t.Ridge, "MLP": t.MLP,
               "RST, paper's form": lambda: t.RST(t.PAPER), "RST, on a ridge": lambda: t.RST(t.RSTSettings(anchor=True)),
               "RST": lambda: t.RST(methods.full_settings().rst)}


def fewer_rooms(clips, rooms: int):
    "Without the test rooms, and with the first `rooms` of the synchronized training rooms."
    scenes = sorted(pool(clips, "paired").scene.unique())
    return clips[(clips.split != "test") & ~clips.scene.isin(scenes[rooms:])].reset_index(drop=True)


def precision(clips, bank, phi, model, settings) -> float:
    "Per cent of validation ego clips whose best exo clip of another room shows the same action; without a model: by language."
    val = clips[clips.split == "val"]
    ego, exo = (val[val["view"] == view] for view in ("ego", "exo"))
    z_ego, z_exo = (methods.embed(phi, bank, rows.clip_id) for rows in (ego, exo))
    zhat = F.normalize(torch.as_tensor(model(torch.from_numpy(z_ego))), dim=1).numpy()
    e_ego, e_exo = (bank.text[bank.rows(rows.clip_id)] for rows in (ego, exo))
    right, label = [], val.set_index("clip_id").label
    for room in val.scene.unique():
        i, j = (ego.scene == room).to_numpy(), (exo.scene != room).to_numpy()
        pairs = match(ego.clip_id[i], zhat[i], e_ego[i], exo.clip_id[j], z_exo[j], e_exo[j], settings)
        right += (label[pairs.ego].to_numpy() == label[pairs.exo].to_numpy()).tolist()
    return 100 * np.mean(right)


def study(line, rooms: int, seed: int) -> pd.DataFrame:
    clips, bank, s = fewer_rooms(line.clips, rooms), line.bank, line.settings
    blind = hide_truth(clips)
    phi = methods.train_phi(bank, blind, s, seed, None, False)
    *train, pairs = methods.paired_features(phi, bank, blind)
    held = methods.paired_features(phi, bank, blind, "val")[:2]
    groups = methods.rooms_of(blind, pairs)
    rows = []
    for name, make in TRANSLATORS.items():
        model = make().fit(*train, seed=seed, groups=groups)
        scores = t.translation_scores(model(torch.from_numpy(held[0])), held[1])
        right = {f"seen + said, {how}": precision(clips, bank, phi, model, MatchSettings(text_weight=w, calibrate=how))
                 for how in ("none", "csls") for w in (s.match.text_weight,)}
        seen = precision(clips, bank, phi, model, MatchSettings(text_weight=0., calibrate="csls"))
        rows.append(dict(rooms=rooms, pairs=len(pairs), translator=name, **scores, seen=seen, **right))
    said = precision(clips, bank, phi, t.Identity(), MatchSettings(text_weight=1., calibrate="csls"))
    return pd.DataFrame(rows).assign(said=said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rooms", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    line = Line(args.run, preset="full")
    whiten(line)
    for rooms in args.rooms: print(study(line, rooms, args.seed).round(2).to_string(index=False), flush=True)
