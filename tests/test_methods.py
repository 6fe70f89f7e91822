"""The recipes: what may be a negative in a batch, which settings reach the training, which rows are one encoder."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from test_truth import SEED, small_world, tiny_settings, weights
from viewpoint_rosetta import methods
from viewpoint_rosetta.clips import hide_truth
from viewpoint_rosetta.features import Bank


@pytest.fixture(scope="module")
def line():
    clips, bank = small_world()
    clips, s = hide_truth(clips), tiny_settings()
    phi = methods.train_phi(bank, clips, s, SEED, None, False)
    return clips, bank, s, phi, methods.train_rst(phi, bank, clips, s, SEED, False)


def trained(line, name="ours", bank=None, **changes):
    clips, known, s, phi, rst = line
    return weights(methods.train_method(name, bank or known, clips, phi, rst, replace(s, **changes), SEED, None, False))


def differ(a, b): return any(not np.array_equal(a[k], b[k]) for k in a)


def test_a_moment_is_never_its_own_negative(line):
    "Two exo cameras of one moment make two pairs with one ego clip; a batch holds only one of them."
    clips, bank, s, *_ = line
    real = methods.training_pairs(clips, bank)
    twice = pd.concat([real, real.assign(exo=np.roll(real.exo, 1))], ignore_index=True)
    pseudo = pd.concat([twice.assign(text=1.)] * 2, ignore_index=True)
    for table, method in ((None, "VI Encoder"), (pseudo, "ours w/o RST")):
        draw = methods._pair_batches(bank, twice, table, methods.METHODS[method], s, SEED)
        for step in range(20):
            ego, _, _, is_pseudo = draw(step)
            for part in (ego[is_pseudo], ego[~is_pseudo]): assert len(part.unique()) == len(part)


@pytest.mark.parametrize("change", [dict(gradient="through"), dict(same_narration=.2), dict(lambda_2=1.), dict(batch="all"), dict(text_views="ego")])
def test_an_open_choice_of_the_loss_reaches_the_training(line, change):
    loss = line[2].loss
    assert differ(trained(line), trained(line, loss=replace(loss, **change)))


def test_an_unnarrated_clip_has_no_sentence_to_learn(line):
    "What the text encoder says of zeros must not matter: with every narration gone, L_vt is gone."
    clips, bank, s, *_ = line
    mute = Bank(bank.ids, bank.tokens, np.zeros_like(bank.text))
    start = weights(methods._fresh(s, bank, SEED))
    after = trained(line, "paired + text", mute)
    text = [k for k in start if k.startswith("text") and start[k].ndim < 2]  # biases and norms: no weight decay
    assert text and not any(np.any(start[k] != after[k]) for k in text) and differ(start, after)


def test_lavila_is_f_phi(line):
    clips, bank, s, phi, rst = line
    assert methods.train_method("LaViLa*", bank, clips, phi, rst, s, SEED, None, False) is phi
    assert methods.LineSettings().phi == methods.LineSettings().train, "the same budget as every other row"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the features must follow the model there")
def test_on_a_gpu(line):
    trained(line, train=replace(line[2].train, device="auto"))


@pytest.mark.parametrize("kind", ["vision+language", "rst+language"])
def test_links_are_the_wanted_share_of_all_pairs(line, kind):
    clips, bank, s, phi, rst = line
    by, above = methods.joint_links(kind, phi, rst, bank, clips, replace(s, links=.1), SEED)
    ego, exo = (bank.rows(methods.pool(clips, view).clip_id) for view in ("ego", "exo"))
    assert (by[ego] @ by[exo].T > above).mean() == pytest.approx(.1, abs=.01)
    assert np.allclose(np.linalg.norm(by[[*ego, *exo]], axis=1), 1, atol=1e-5)
