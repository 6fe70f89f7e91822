"""The translator: known truths, seeds, files, refusals; diffusers' recorded numbers are in tests/parity."""
import importlib.util
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from viewpoint_rosetta.translator import (MLP, RST, DiT, Identity, Nearest, Ridge, RosettaPipeline, RSTSettings,
                                          compare_translators, diffusion_target, fewest_steps, fit_scale, folds,
                                          groups_of, mix_pairs, new_translator, noise_schedule, quality_against_steps,
                                          ridge_path, rst_loss, seeded, train_translator, translation_scores)

ROOT = Path(__file__).parents[1]
SMALL = RSTSettings(width=32, heads=2, tokens=2, steps=60, eval_every=20, batch=64, dropout=0.0, inference_steps=5)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear_pairs(n=120, seed=0, d=16):
    "Exo is a fixed rotation of ego plus a little noise, so a translator can be right and identity cannot."
    g, w = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    turn = torch.linalg.qr(torch.randn(d, d, generator=w))[0]
    z = torch.randn(n, d, generator=g)
    exo = z @ turn + 0.1 * torch.randn(n, d, generator=g)
    return F.normalize(z, dim=1), F.normalize(exo, dim=1)


@pytest.fixture(scope="module")
def pairs(): return linear_pairs()


@pytest.fixture(scope="module")
def held(): return linear_pairs(60, seed=1)


@pytest.fixture(scope="module")
def pipe(pairs): return train_translator(*pairs, SMALL, progress=False)


def generator(seed=0): return torch.Generator().manual_seed(seed)


# ---- the ruler and the baselines, against answers known by hand

def test_scores_by_hand():
    truth = torch.eye(3)
    guess = torch.tensor([[1., 0, 0], [1, .5, 0], [0, 0, 1]])  # the second prefers the first truth: rank 2
    scores = translation_scores(guess, truth)
    assert scores["R@1"] == pytest.approx(200 / 3) and scores["R@5"] == 100 and scores["median_rank"] == 1
    assert scores["cosine"] == pytest.approx((1 + .5 / 1.25**.5 + 1) / 3)
    assert translation_scores(torch.ones(3, 3), truth)["R@1"] == 0  # ties count against
    with pytest.raises(ValueError, match="3 translations, 2"): translation_scores(guess, truth[:2])


def test_ridge_path_is_ridge(pairs):
    from sklearn.linear_model import Ridge as Reference
    x, y = pairs
    for alpha, (w, b) in zip((.1, 10.), ridge_path(x, y, (.1, 10.))):
        penalty = alpha * (x - x.mean(0)).square().sum().item() / len(x)
        assert np.allclose(Reference(penalty).fit(x, y).predict(x), x @ w + b, atol=1e-4)


def test_ridge_chooses_its_prior(pairs):
    x, y = pairs
    assert Ridge().fit(x[:14], (x + 0.01 * y)[:14]).prior == 1  # fewer pairs than numbers, nearly the identity
    assert Ridge().fit(x, torch.randn(120, 16, generator=generator(3))).prior == 0  # nothing of the ego feature helps
    assert Ridge().fit(x, y[:, :8])(x).shape == (120, 8)  # other sizes: only the mean is left to shrink to


def test_unseen_guesses_do_not_see_their_own_pair():
    x, y = torch.randn(60, 16, generator=generator()), torch.randn(60, 16, generator=generator(1))  # nothing to learn
    ridge = Ridge().fit(x, y)
    assert F.cosine_similarity(ridge.unseen, y - y.mean(0)).mean() < 0.1


def test_anchor_is_the_ridge_at_its_honest_size(pairs):
    x, y = pairs
    scale, left = fit_scale(x, 3 * y, anchor=True)
    ridge = Ridge().fit(x, 3 * y)
    moves = (a - a.mean(0) for a in (scale.centre(x), ridge(x)))
    assert F.cosine_similarity(*moves).min() > .999 and left.std() == pytest.approx(1, abs=.02)
    assert (3 * y - scale.centre(x)).square().mean() < .3 * (3 * y).var()


def test_nearest_and_identity(pairs):
    nearest = Nearest().fit(*pairs)
    assert torch.equal(nearest(2 * pairs[0][:5]), pairs[1][:5]) and torch.equal(Identity().fit(*pairs)(pairs[0]), pairs[0])


def test_groups_stay_together():
    x = torch.randn(20, 4).repeat_interleave(3, 0)  # one ego clip, three exo views
    fold = folds(groups_of(x), 5, 0)
    assert all(len(set(fold[i:i + 3])) == 1 for i in range(0, 60, 3)) and set(fold) == set(range(5))
    assert len(set(folds(groups_of(x, ["a"] * 30 + ["b"] * 30), 2, 0)[:30])) == 1


def test_all_learn_the_rotation_and_none_learns_shuffled_pairs(pairs, held):
    methods = {"identity": Identity, "ridge": Ridge, "MLP": lambda: MLP(grid=((64, .1, False),), epochs=40, dropout=0.),
               "RST": lambda: RST(SMALL)}
    table = compare_translators(pairs, held, methods).set_index("method")
    assert (table.loc[["ridge", "MLP", "RST"], "R@5"] > 90).all(), table
    assert table.loc["identity", "R@5"] < 40
    order = torch.randperm(120, generator=generator())
    wrong = compare_translators((pairs[0], pairs[1][order]), held, methods).set_index("method")
    assert (wrong.loc[["ridge", "MLP", "RST"], "R@5"] < 40).all(), wrong


# ---- the denoiser and its training

def test_zero_at_birth_then_reads_all_inputs():
    net = DiT((8,), (12,), tokens=3, width=16, depth=1, heads=2).eval()
    x, t, ego = torch.randn(2, 12), torch.tensor([3, 900]), torch.randn(2, 8)
    assert net(x, t, net.condition(ego)).abs().max() == 0
    for layer in (net.out, net.norm.linear, net.blocks[0].norm1.linear): torch.nn.init.normal_(layer.weight, std=.2)
    out = net(x, t, net.condition(ego))
    for other in (net(x + 1, t, net.condition(ego)), net(x, t + 50, net.condition(ego)), net(x, t, net.condition(ego + 1))):
        assert not torch.allclose(out, other, atol=1e-4)
    hidden = net.condition(ego, torch.tensor([True, False]))
    assert torch.equal(hidden[0], net.null) and torch.equal(hidden[1], net.condition(ego)[1])


def test_epsilon_sample_and_velocity_agree():
    x0, eps, t = torch.randn(4, 8), torch.randn(4, 8), torch.tensor([0, 10, 500, 900])
    for kind in ("epsilon", "sample", "v_prediction"):  # the right answer gives the clean feature back, whatever is asked
        schedule = noise_schedule(replace(SMALL, prediction=kind))
        noisy, answer = schedule.add_noise(x0, eps, t), diffusion_target(schedule, x0, eps, t)
        back = torch.stack([schedule.step(a[None], k, n[None]).pred_original_sample[0] for a, k, n in zip(answer, t, noisy)])
        assert torch.allclose(back, x0, atol=1e-3), kind


def test_mixup_mixes_both_sides_alike():
    x = torch.randn(50, 4)
    with seeded(0): ego, exo = mix_pairs(x, 2 * x, 1.0)
    assert torch.allclose(2 * ego, exo, atol=1e-5) and not torch.allclose(ego, x)


def test_loss_is_finite_with_every_regulariser(pairs):
    settings = replace(SMALL, mixup=.5, cond_drop=.5, cond_noise=1., prediction="epsilon")
    pipe, x_exo = new_translator(*pairs, settings)
    assert rst_loss(pipe.denoiser, noise_schedule(settings), pipe.scale.ego(pairs[0]), x_exo, settings) == pytest.approx(1, abs=.2)


def test_same_seed_same_bits_and_the_callers_numbers_untouched(pairs, pipe):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = train_translator(*pairs, SMALL, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(pipe.denoiser.parameters(), again.denoiser.parameters()))
    other = train_translator(*pairs, replace(SMALL, refit=False), seed=1, progress=False)
    assert not torch.equal(pipe.denoiser.out.weight, other.denoiser.out.weight)
    assert list(pipe.history.step) == [20, 40, 60]


def test_early_stopping_stops(pairs):
    noise = torch.randn(120, 16, generator=generator())  # nothing to learn: waiting is useless
    stopped = train_translator(pairs[0], noise, replace(SMALL, steps=400, eval_every=10, patience=2, refit=False), progress=False)
    history = stopped.history
    assert history.step.iloc[-1] < 400 and history.step.iloc[-1] - history.step[history.nce.idxmin()] == 20


def test_samples_follow_both_modes_where_regression_sits_between():
    g = generator()
    side = 2. * torch.randint(2, (400,), generator=g) - 1
    ego = torch.randn(400, 2, generator=g)
    exo = torch.stack([side, ego[:, 0]], 1) + .05 * torch.randn(400, 2, generator=g)
    settings = replace(SMALL, val_fraction=0, steps=150, anchor=False, cond_noise=0., lr=3e-3)
    z = train_translator(ego, exo, settings, progress=False)(ego[:200], 20, generator=generator())
    (w, b), = ridge_path(ego, exo, (1e-3,))
    assert (ego @ w + b)[:, 0].abs().mean() < .2 and z[:, 0].abs().mean() > .6
    assert .25 < (z[:, 0] > 0).float().mean() < .75


# ---- the pipeline

def test_shapes_samples_and_chunks(pipe, held):
    z = held[0]
    assert pipe(z, generator=generator()).shape == (60, 16) and pipe(z[:3], num_samples=4).shape == (3, 4, 16)
    assert torch.allclose(pipe(z, generator=generator()), pipe(z, generator=generator(), batch_size=7), atol=1e-5)
    assert not torch.equal(pipe(z, generator=generator(0)), pipe(z, generator=generator(1)))
    many = pipe(z, num_samples=4, generator=generator())
    assert torch.allclose(pipe.translate(z, 4, generator=generator()), many.mean(1))
    assert pipe(z.numpy()).shape == (60, 16)  # arrays are welcome


def test_trajectory_ends_in_the_answer(pipe, held):
    out, path = pipe(held[0][:5], 5, generator=generator(), num_samples=2, return_trajectory=True)
    assert path.z_t.shape == path.z_0.shape == (5, 5, 2, 16) and path.t.tolist() == sorted(path.t.tolist(), reverse=True)
    assert torch.allclose(path.z_0[-1], out, atol=1e-5)


def test_gradient_only_when_asked(pipe, held):
    z = held[0][:2].clone().requires_grad_(True)
    assert not pipe(z).requires_grad
    pipe(z, 3, generator=generator(), grad=True).sum().backward()
    assert z.grad.abs().sum() > 0 and all(p.grad is None for p in pipe.denoiser.parameters())


def test_guidance_of_one_is_no_guidance(pairs, held):
    guided = train_translator(*pairs, replace(SMALL, cond_drop=.3, val_fraction=0, anchor=False), progress=False)
    plain, one, none = (guided(held[0], generator=generator(), guidance_scale=s) for s in (1, 1.0001, 0))
    assert torch.allclose(plain, one, atol=1e-2) and not torch.allclose(plain, none, atol=1e-2)
    assert translation_scores(plain, held[1])["nce"] < translation_scores(none, held[1])["nce"]


@pytest.mark.parametrize("shapes", [((16,), (16,)), ((3, 8), (4, 6))])
def test_files_bring_back_the_same_bits(tmp_path, shapes):
    g = generator()
    ego, exo = (torch.randn(40, *s, generator=g) for s in shapes)  # vectors, or tokens
    pipe = train_translator(ego, exo, replace(SMALL, steps=5, val_fraction=0), progress=False)
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and len(list(tmp_path.rglob("*.safetensors"))) == 2
    loaded = RosettaPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded(ego, generator=generator()), pipe(ego, generator=generator()))
    assert loaded.config.inference_steps == 5 and loaded(ego).shape == exo.shape
    assert not loaded.denoiser.training


def test_ddpm_by_swapping_the_scheduler(pipe, held):
    steps = quality_against_steps(pipe, *held, steps=(1, 5), ddpm_steps=(50,), num_samples=2)
    assert list(steps.sampler) == ["DDPM", "DDIM", "DDIM"] and (steps["R@5"] > 80).all()
    assert isinstance(pipe.scheduler, DDIMScheduler)  # the caller's pipeline is as it was


def test_fewest_steps():
    table = pd.DataFrame({"sampler": ["DDPM", "DDIM", "DDIM"], "steps": [1000, 1, 5], "R@1": [50., 48, 49.5], "R@5": [80., 80, 79.5]})
    assert fewest_steps(table).steps == 5 and fewest_steps(table, within=3).steps == 1
    with pytest.raises(ValueError, match="no DDIM row"): fewest_steps(table, within=.1)


@pytest.mark.parametrize("call, message", [
    (lambda p, e, x: p(e[:, :3]), r"expected features of shape \(16,\), got \(3,\)"),
    (lambda p, e, x: p(torch.where(torch.arange(60)[:, None] == 7, torch.nan, e)), "row 7 holds NaN"),
    (lambda p, e, x: p(e[0]), r"expected \(B, D\)"),
    (lambda p, e, x: train_translator(e, x[:-1]), "60 ego rows, 59 exo rows"),
    (lambda p, e, x: train_translator(e[:3], x[:3]), "3 pairs are too few"),
    (lambda p, e, x: DiT(exo_shape=(10,), tokens=4), "4 equal tokens")])
def test_refusals_say_what_to_do(pipe, held, call, message):
    with pytest.raises(ValueError, match=message): call(pipe, *held)


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError): RSTSettings().width = 3


# ---- the benchmark script

def bench():
    spec = importlib.util.spec_from_file_location("bench_rst", ROOT / "benchmarks" / "bench_rst.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bench_reads_a_run_folder(tmp_path, pairs, held, capsys, monkeypatch):
    script = bench()
    assert script.main(["--run", str(tmp_path)]) == 2 and "holds no clip table" in capsys.readouterr().err
    monkeypatch.setattr(script, "read_run", lambda folder: (pairs, held, None))
    assert script.main(["--run", str(tmp_path), "--quick"]) == 0
    table, steps = (pd.read_parquet(tmp_path / f"{n}.parquet") for n in ("bench_rst", "bench_rst_steps"))
    assert {"ridge", "identity"} <= set(table.method) and set(steps.sampler) == {"DDPM", "DDIM"}
