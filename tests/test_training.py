"""The loop: resume bit for bit after a raised error, Ctrl-C and SIGKILL; refusals; batches."""
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from accelerate.tracking import GeneralTracker

from viewpoint_rosetta import training
from viewpoint_rosetta.training import Mix, Shuffle, TrainError, TrainSettings, ctrl_c_between_steps, fit, learning_rate, take

SETTINGS = TrainSettings(steps=60, warmup=5, lr=.01, checkpoint_every=10)

TOY = textwrap.dedent("""
    import torch
    from viewpoint_rosetta.training import Shuffle, TrainSettings, fit, take
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)).half()
    draw = Shuffle(range(500), batch=64)
    def new_model():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.BatchNorm1d(32), torch.nn.GELU(), torch.nn.Dropout(.2), torch.nn.Linear(32, 12))
        model.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
        return model
    def objective(model, step, generator):
        b = take(x, draw(step)[0])
        noise = torch.randn(b.shape, generator=generator)
        loss = (model(b + .1 * noise) - b.flip(1)).square().mean() - .01 * model.logit_scale
        return loss, dict(mse=loss)
""")
toy = {}
exec(TOY, toy)
new_model, objective = toy["new_model"], toy["objective"]


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.fixture(scope="module", params=[0., .9], ids=["plain", "ema"])
def straight(request):
    settings = dataclasses.replace(SETTINGS, ema=request.param)
    model = new_model()
    return settings, model, fit(model, objective, settings, seed=3, progress=False)


def test_it_learns(straight):
    settings, model, history = straight
    assert history.mse.iloc[-5:].mean() < .7 * history.mse.iloc[:5].mean() and list(history.step) == list(range(60))
    assert not model.training and set(history) == {"step", "loss", "lr", "mse", "grad_norm"}


@pytest.mark.parametrize("step", [0, 9, 37, 59])
def test_resume_after_an_error_is_bit_equal(straight, step, tmp_path):
    settings, model, history = straight
    def dies(m, s, g):
        if s == step: raise OSError("gone")
        return objective(m, s, g)
    with pytest.raises(OSError): fit(new_model(), dies, settings, 3, tmp_path, progress=False)
    resumed = new_model()
    torch.manual_seed(99)  # the caller's random state must not matter, nor be touched
    state = torch.get_rng_state()
    rest = fit(resumed, objective, settings, 3, tmp_path, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert same(model, resumed) and rest.equals(history) and rest.attrs["resumed_at"] == step // 10 * 10


def test_the_callers_random_state_is_left_alone():
    model = new_model()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fit(model, objective, dataclasses.replace(SETTINGS, steps=3), progress=False)  # dropout draws from it
    assert torch.equal(state, torch.get_rng_state())


def test_sigkill_in_another_process_is_resumed_here(tmp_path):
    settings, model = dataclasses.replace(SETTINGS, ema=.9), new_model()
    history = fit(model, objective, settings, 3, progress=False)
    run = TOY + textwrap.dedent(f"""
        import os, signal
        def killed(m, s, g):
            if s == 37: os.kill(os.getpid(), signal.SIGKILL)
            return objective(m, s, g)
        fit(new_model(), killed, TrainSettings(**{dataclasses.asdict(settings)!r}), 3, {str(tmp_path)!r}, progress=False)
    """)
    env = os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert subprocess.run([sys.executable, "-c", run], env=env).returncode == -signal.SIGKILL
    resumed = new_model()
    rest = fit(resumed, objective, settings, 3, tmp_path, progress=False)
    assert rest.attrs["resumed_at"] == 30 and same(model, resumed) and rest.equals(history)


def test_ctrl_c_saves_between_steps_and_says_how_to_resume(straight, tmp_path):
    settings, model, history = straight
    before = signal.getsignal(signal.SIGINT)
    def pressed(m, s, g):
        if s == 23: os.kill(os.getpid(), signal.SIGINT)
        return objective(m, s, g)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 24 of 60; .*run the same call again"):
        fit(new_model(), pressed, settings, 3, tmp_path, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = new_model()
    assert fit(resumed, objective, settings, 3, tmp_path, progress=False).attrs["resumed_at"] == 24 and same(model, resumed)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept"): fit(new_model(), pressed, settings, 3, progress=False)


def test_a_finished_run_is_not_trained_again(straight, tmp_path):
    settings, model, history = straight
    fit(new_model(), objective, settings, 3, tmp_path, progress=False)
    def never(*_): raise AssertionError("trained again")
    again = new_model()
    assert fit(again, never, settings, 3, tmp_path, progress=False).equals(history) and same(again, model)


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    s = dataclasses.replace(SETTINGS, steps=5)
    fit(new_model(), objective, s, 3, tmp_path, progress=False, about=dict(pairs="ours"))
    def again(model=None, settings=s, seed=3, about=dict(pairs="ours")):
        return fit(model or new_model(), objective, settings, seed, tmp_path, progress=False, about=about)
    for kw, what in ((dict(settings=dataclasses.replace(s, lr=.5)), "lr: 0.01 there, 0.5 here"), (dict(seed=4), "seed: 3 there, 4 here"),
                     (dict(about=dict(pairs="random")), "about.pairs: ours there, random here"),
                     (dict(model=torch.nn.Linear(12, 12)), "belongs to another run")):
        with pytest.raises(TrainError, match=what) as error: again(**kw)
        assert str(tmp_path) in str(error.value) and "choose another folder" in str(error.value)
    again(settings=dataclasses.replace(s, checkpoint_every=1))  # does not touch the numbers
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainError, match="not a readable checkpoint"): again()


def test_nan_names_step_and_term_and_spares_the_weights():
    def breaks(m, s, g):
        loss, terms = objective(m, s, g)
        return (loss * float("nan"), dict(mse=loss, vt=loss * float("nan"))) if s == 7 else (loss, terms)
    model = new_model()
    with pytest.raises(TrainError, match=r"loss is nan at step 7 \(vt = nan\)"): fit(model, breaks, SETTINGS, progress=False)
    assert all(p.isfinite().all() for p in model.parameters())
    def root(m, s, g):  # finite loss, infinite gradient
        loss = objective(m, s, g)[0] + (m[0].weight * 0).abs().sum().sqrt()
        return loss, {}
    with pytest.raises(TrainError, match="gradient is nan at step 0"): fit(new_model(), root, SETTINGS, progress=False)


def test_logit_scale_is_clamped_clipped_and_undecayed():
    settings = dataclasses.replace(SETTINGS, steps=40, lr=.05, weight_decay=10.)
    model = new_model()
    fit(model, objective, settings, progress=False)
    assert model.logit_scale.item() == pytest.approx(4.6052, abs=1e-6)  # pushed up by the objective, held at ln 100
    model = torch.nn.Linear(3, 3)
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(())))
    def idle(m, s, g): return 0 * (m.weight.sum() + m.bias.sum() + m.scale), {}
    bias, weight = model.bias.clone(), model.weight.clone()
    fit(model, idle, settings, progress=False)
    assert torch.equal(model.bias, bias) and model.scale == 1 and model.weight.norm() < .5 * weight.norm()


def test_clipping_bounds_the_step():
    model = torch.nn.Linear(1, 1, bias=False)
    seen = []
    def steep(m, s, g):
        seen.append(m.weight.grad.clone() if m.weight.grad is not None else None)
        return 1e6 * m.weight.sum(), {}
    assert fit(model, steep, dataclasses.replace(SETTINGS, steps=2), progress=False).grad_norm.iloc[0] == pytest.approx(1e6)
    assert model.weight.grad.norm() == pytest.approx(1., rel=1e-3)


def test_ema_is_the_average_by_hand():
    path = []
    def walk(m, s, g):
        path.append(m.weight.item())
        return m.weight.sum(), {}
    model = torch.nn.Linear(1, 1, bias=False)
    plain = torch.nn.Linear(1, 1, bias=False)
    plain.load_state_dict(model.state_dict())
    fit(model, walk, dataclasses.replace(SETTINGS, steps=4, ema=.5), progress=False)
    visited = path[1:]
    fit(plain, lambda m, s, g: (m.weight.sum(), {}), dataclasses.replace(SETTINGS, steps=4), progress=False)
    mean = path[0]
    for w in visited + [plain.weight.item()]: mean = .5 * mean + .5 * w
    assert model.weight.item() == pytest.approx(mean, abs=1e-6)


def test_learning_rate_rises_and_falls():
    s = TrainSettings(steps=100, warmup=10, lr=1., final_lr=.1)
    rates = [learning_rate(i, s) for i in range(101)]
    assert rates[0] == .1 and rates[9] == rates[10] == 1 and rates[55] == pytest.approx(.55) and rates[100] == pytest.approx(.1)
    assert all(a > b for a, b in zip(rates[10:], rates[11:])) and learning_rate(0, TrainSettings(warmup=0)) == TrainSettings().lr


def test_generator_depends_on_seed_and_step_only():
    def noise(seed):
        out = []
        def watch(m, s, g):
            out.append(torch.rand(2, generator=g))
            return m.weight.sum(), {}
        fit(torch.nn.Linear(1, 1), watch, dataclasses.replace(SETTINGS, steps=3), seed, progress=False)
        return torch.stack(out)
    assert torch.equal(noise(1), noise(1)) and not torch.equal(noise(1), noise(2)) and len(noise(1).unique()) == 6


def test_shuffle_visits_every_row_once_an_epoch_and_needs_no_past():
    draw = Shuffle(np.arange(100), np.arange(100) * 2., batch=30, seed=1)
    epoch = torch.cat([draw(s)[0] for s in range(3)])
    assert draw.per_epoch == 3 and len(epoch.unique()) == 90
    late = Shuffle(np.arange(100), np.arange(100) * 2., batch=30, seed=1)(1000)
    assert torch.equal(late[0], draw(1000)[0]) and torch.equal(late[1], 2. * late[0])
    assert not torch.equal(draw(0)[0], draw(3)[0])
    assert len(Shuffle([1, 2, 3], batch=128)(5)[0]) == 3  # a batch is at most an epoch
    with pytest.raises(ValueError, match="pool is empty"): Shuffle([], batch=3)
    with pytest.raises(ValueError, match=r"\[3, 2\]"): Shuffle([1, 2, 3], [1, 2])


def test_groups_come_once_an_epoch_with_members_drawn_evenly():
    ego, exo = np.repeat(np.arange(20), 4), np.arange(80)
    draw = Shuffle(ego, exo, batch=20, seed=0, group=ego)
    counts = torch.zeros(80)
    for s in range(300):
        e, x = draw(s)
        assert sorted(e.tolist()) == list(range(20)) and torch.equal(x // 4, e)
        counts[x] += 1
    assert 45 < counts.min() and counts.max() < 110  # 75 expected


def test_mix_keeps_its_share_and_weights_real_pairs_by_one():
    mix = Mix(Shuffle(range(10), range(10), batch=4), Shuffle(range(100, 150), range(100, 150), np.full(50, .3), batch=12))
    for step in range(5):
        ego, exo, weight, pseudo = mix(step)
        assert len(ego) == 16 and pseudo.sum() == 12 and torch.equal(ego >= 100, pseudo) and torch.equal(ego, exo)
        assert torch.equal(weight, torch.where(pseudo, .3, 1.).float())


def test_take_converts_the_batch_only(tmp_path):
    table = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", "f2", (50, 2, 3))
    table[:] = np.arange(300).reshape(50, 2, 3)
    batch = take(np.load(tmp_path / "t.npy", mmap_mode="r"), torch.tensor([4, 4, 49]))
    assert batch.dtype == torch.float32 and batch.tolist() == table[[4, 4, 49]].tolist()


def test_a_model_without_parameters_to_train_is_an_error():
    with pytest.raises(ValueError, match="no trainable parameter"): fit(torch.nn.Linear(2, 2).requires_grad_(False), objective, progress=False)


def test_the_loop_adds_little_to_a_step():
    def idle(m, s, g): return m.weight.sum(), {}
    settings = TrainSettings(steps=300)
    fit(torch.nn.Linear(2, 2), idle, dataclasses.replace(settings, steps=5), progress=False)
    def once():
        t = time.process_time()
        fit(torch.nn.Linear(2, 2), idle, settings, progress=False)
        return (time.process_time() - t) / 300
    assert min(once() for _ in range(3)) < 5e-3  # seconds of CPU a step, the update itself included


def test_two_precisions_in_one_process():
    "Accelerate's one state a process must not tie a later training to the precision of an earlier one."
    first, second = (fit(new_model(), objective, dataclasses.replace(SETTINGS, steps=3, mixed_precision=p), progress=False)
                     for p in ("no", "bf16"))
    assert len(first) == len(second) == 3 and not np.array_equal(first.mse, second.mse)


def test_sigterm_saves_between_steps_too(straight, tmp_path):
    settings, model, history = straight
    def ended(m, s, g):
        if s == 23: os.kill(os.getpid(), signal.SIGTERM)
        return objective(m, s, g)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 24 of 60"): fit(new_model(), ended, settings, 3, tmp_path, progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = new_model()
    assert fit(resumed, objective, settings, 3, tmp_path, progress=False).attrs["resumed_at"] == 24 and same(model, resumed)


def test_an_echo_of_ctrl_c_does_not_break_the_step_but_a_later_one_does(monkeypatch):
    clock = [0.]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    with pytest.raises(KeyboardInterrupt), ctrl_c_between_steps() as pressed:
        os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT)
        assert pressed
        clock[0] = 2.
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")


class Notes(GeneralTracker):
    "A tracker of one's own."
    name, requires_logging_directory = "notes", False
    def __init__(self): super().__init__(); self.rows, self.config = [], None
    @property
    def tracker(self): return self.rows
    def store_init_configuration(self, values): self.config = values
    def log(self, values, step=None, **kw): self.rows.append((step, values["loss"]))


def test_trackers_get_every_step(tmp_path):
    settings, notes = dataclasses.replace(SETTINGS, steps=4), Notes()
    table = fit(new_model(), objective, dataclasses.replace(settings, track=(notes, "tensorboard")), 3, tmp_path / "run", progress=False, logs=tmp_path / "logs")
    assert notes.rows == list(zip(table.step, table.loss)) and notes.config["lr"] == "0.01"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tmp_path / "logs/viewpoint_rosetta")).Reload().Scalars("loss")
    assert np.allclose([e.value for e in events], table.loss) and [e.step for e in events] == [0, 1, 2, 3]
    again = fit(new_model(), objective, settings, 3, tmp_path / "run", progress=False)  # whether it was tracked is no part of the recipe
    assert again.attrs["resumed_at"] == 4


def test_trackers_that_cannot_work_are_refused(tmp_path):
    for track, folder, expected in ((("wander",), tmp_path, "no tracker 'wander'.*tensorboard"), (("tensorboard",), None, "needs a folder")):
        with pytest.raises(TrainError, match=expected): fit(new_model(), objective, dataclasses.replace(SETTINGS, track=track), folder=folder, progress=False)
