"""Training from pixels: frames by step, bad clips, GradCache, several processes, switches, resume, and the command."""
import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from viewpoint_rosetta import clips as c
from viewpoint_rosetta import pixels, world
from viewpoint_rosetta.losses import LossSettings
from viewpoint_rosetta.timesformer import DualSettings, TimeSformerSettings, VideoTextEncoder
from viewpoint_rosetta.training import Mix, Shuffle, TrainError, TrainSettings, fit, generator_for
from viewpoint_rosetta.video import VideoError
from viewpoint_rosetta.weights import Preprocessing

HERE = Path(__file__).resolve().parent
PRE = Preprocessing(size=32)
pytestmark = pytest.mark.skipif(not world.shipped().exists(), reason="the shipped world is not here")


@lru_cache
def some_clips():
    "The clips of six synchronized training takes."
    df = c.hide_truth(c.read_clips(world.shipped()))
    return df[df["take"].isin(sorted(c.pool(df, "paired")["take"].unique())[:6])].reset_index(drop=True)


def encoder(seed=0, **video):
    torch.manual_seed(seed)
    return VideoTextEncoder(DualSettings(TimeSformerSettings(32, 16, 32, 2, 2, **video), 16, 32, 2, 2, 16, 97))


def batches_of(batch=8, seed=0, augment=pixels.Augment(), read=None, **kw):
    read = read or pixels.Videos(some_clips())
    pairs = c.sync_pairs(some_clips())
    draw = [Shuffle(pairs.ego_row.to_numpy().copy(), pairs.exo_row.to_numpy().copy(), np.full(len(pairs), w), batch=batch // 2,
                    seed=seed + i, group=pairs.ego) for i, w in enumerate((1., .5))]
    return pixels.Batches(Mix(*draw), pixels.Shots(read, size=32, augment=augment, seed=seed), **kw)


class Translator:
    "Stands in for the frozen translator: noise by the generator, a gradient if asked for."
    def __call__(self, z, num_inference_steps, generator, grad):
        return (z if grad else z.detach()) + .1 * torch.randn(z.shape, generator=generator)


def objective_of(batches, **kw):
    n = len(some_clips())
    ids = torch.randint(1, 96, (n, 16), generator=torch.Generator().manual_seed(0))
    told = torch.rand(n, 5, generator=torch.Generator().manual_seed(1)) * (torch.arange(n) % 5 > 0)[:, None]
    return pixels.pixel_objective(batches, PRE, ids, told, **dict(rst=Translator(), loss=LossSettings(gradient="through")) | kw)


def max_gap(a, b):
    "Largest difference of tensors, relative to the largest number of each."
    return max(((x - y).abs().max() / x.abs().max().clamp(min=1e-3)).item() for x, y in zip(a, b))


# ---- two processes

@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What two processes found, each in its own words."
    out = tmp_path_factory.mktemp("two")
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(HERE.parent), str(HERE)]), CUDA_VISIBLE_DEVICES="")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", HERE / "two_processes.py", out],
                          env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case, within", [("rosetta", 1e-5), ("GradCache", 1e-5), ("learned", 1e-5), ("bf16", .1)])
def test_two_halves_make_the_gradients_of_one_whole(two, case, within):
    for found in two: assert found["many"][case] and found["gap"][case] < within
