"""A stand-in for viewpoint_rosetta.methods with the same calls: models are drawn, not trained, so that tests of the command line take seconds."""
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from viewpoint_rosetta.clips import pool, sync_pairs
from viewpoint_rosetta.encoders import DualEncoder, EncoderSettings
from viewpoint_rosetta.matching import MatchSettings, match
from viewpoint_rosetta.training import TrainSettings
from viewpoint_rosetta.translator import RSTSettings, new_translator

METHODS = dict.fromkeys(("frozen", "ours w/o RST", "ours", "oracle pairs"))
KINDS = ("random", "language", "rst+language")
calls = []  # what was asked for, in order: (name, seed)


@dataclass(frozen=True)
class LossSettings:
    tau: float = 0.07


@dataclass(frozen=True)
class LineSettings:
    size: int = 128
    precision: str = "float32"
    whiten: int = 16
    encoder: EncoderSettings = EncoderSettings(dim_in=16, frames=2, cells=1, width=16, depth=1, heads=2)
    phi: TrainSettings = TrainSettings(steps=2)
    train: TrainSettings = TrainSettings(steps=2)
    loss: LossSettings = field(default_factory=LossSettings)
    rst: RSTSettings = RSTSettings(width=16, depth=1, heads=2, anchor=False)
    match: MatchSettings = MatchSettings()


def demo_settings(): return LineSettings()
def full_settings(): return LineSettings(phi=TrainSettings(steps=3))


def drawn(settings, seed):
    "An encoder with weights from the seed."
    torch.manual_seed(seed)
    return DualEncoder(settings.encoder).eval()


def blind(clips):
    assert not {"label", "object", "skill"} & set(clips), "training was shown the truth"


def train_phi(bank, clips, settings, seed, folder=None, progress=True):
    blind(clips)
    calls.append(("phi", seed))
    return drawn(settings, seed)


def embed(model, bank, ids):
    tokens = torch.from_numpy(np.asarray(bank.tokens[bank.rows(ids)], np.float32))
    if model == "frozen":
        return torch.nn.functional.normalize(tokens.mean((1, 2)), dim=1).numpy()
    with torch.no_grad():
        return model.encode_video(tokens).numpy()


def paired_features(phi, bank, clips, which="paired"):
    rows = pool(clips, which)
    pairs = sync_pairs(rows)
    return embed(phi, bank, pairs.ego), embed(phi, bank, pairs.exo), pairs


def rooms_of(clips, pairs): return None


def train_rst(phi, bank, clips, settings, seed, progress=True):
    blind(clips)
    calls.append(("rst", seed))
    torch.manual_seed(seed)
    z_ego, z_exo, _ = paired_features(phi, bank, clips, "paired")
    return new_translator(torch.from_numpy(z_ego), torch.from_numpy(z_exo), settings.rst)[0]


def pseudo_pairs(kind, phi, rst, bank, clips, settings, seed):
    blind(clips)
    ego, exo = pool(clips, "ego").clip_id, pool(clips, "exo").clip_id
    e_ego, e_exo = bank.text[bank.rows(ego)], bank.text[bank.rows(exo)]
    if kind == "random":
        return pd.DataFrame(dict(ego=ego, exo=np.random.default_rng(seed).choice(exo, len(ego)), rank=1))
    return match(ego, embed(phi, bank, ego), e_ego, exo, embed(phi, bank, exo), e_exo, settings.match)


def train_method(name, bank, clips, phi, rst, settings, seed, folder=None, progress=True):
    name == "oracle pairs" or blind(clips)
    calls.append((name, seed))
    return "frozen" if name == "frozen" else drawn(settings, seed + 1)
