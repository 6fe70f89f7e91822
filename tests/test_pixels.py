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
from test_cli import small_world
from viewpoint_rosetta import cli, pixels, weights, world
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


def test_two_processes_train_to_what_one_trains_to(two):
    one = fit(encoder(), objective_of(batches_of()), TrainSettings(steps=4, warmup=1), progress=False)
    for found in two: assert np.allclose(found["history"], one[["loss", "grad_norm"]], rtol=1e-3)
    assert two[0]["history"] == two[1]["history"] and two[0]["weights"] == two[1]["weights"] and two[0]["order"] == [0, 0, 1, 1]


def test_ctrl_c_in_one_process_stops_both_which_resume_bit_for_bit(two):
    for found in two: assert "stopped after step 3 of 4" in found["pressed"] and found["resumed"] == [3, True]


def test_an_error_in_one_process_ends_the_other_at_once(two):
    assert two[1]["died"][:2] == ["OSError", "the disk went away"]
    assert two[0]["died"][0] == "TrainError" and "another process of this training stopped" in two[0]["died"][1] and two[0]["died"][2] < 60


def test_processes_that_see_other_folders_are_refused(two):
    for found in two: assert "different steps ([4, 0])" in found["elsewhere"]


# ---- GradCache, switches, precision

class Dropped(torch.nn.Module):
    "An encoder with dropout."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Dropout(.5), torch.nn.GELU(), torch.nn.Linear(32, 4))
    def forward(self, x): return self.net(x)


def test_gradcache_has_the_gradients_of_the_whole_batch():
    grads = []
    for micro in (None, 3):
        model = encoder()
        loss, terms = objective_of(batches_of(), micro=micro)(model, 0, generator_for(0))
        assert set(terms) == {"vv", "vt", "vs"}
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(grads[0]) == len(grads[1]) > 50 and max_gap(*grads) < 1e-5


def test_gradcache_draws_the_same_dropout_twice():
    x, model, grads = torch.randn(10, 6), Dropped(), []
    def contrast(z): return (z @ z.T).logsumexp(1).mean()
    for encode in (lambda: torch.cat([model(part) for part in x.split(3)]), lambda: pixels.in_parts(model, x, 3)):
        torch.manual_seed(1)
        model.zero_grad()
        contrast(encode()).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert max_gap(*grads) < 1e-6
    torch.manual_seed(2)
    model.zero_grad()
    contrast(pixels.in_parts(model, x, 3)).backward()
    assert max_gap(grads[0], [p.grad for p in model.parameters()]) > .01, "dropout matters here"


def test_gradcache_keeps_inputs_and_embeddings_only():
    x, model = torch.randn(64, 6), Dropped()
    def kept(encode):
        rows = []
        def pack(t):
            rows.append(t.numel())
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): encode()
        return sum(rows)
    assert kept(lambda: pixels.in_parts(model, x, 4)) < .1 * kept(lambda: model(x))


@pytest.mark.parametrize("switch", [dict(checkpointed=True), dict(compiled="eager"), dict(compiled="aot_eager", checkpointed=True)], ids=str)
def test_switched_blocks_compute_the_same(switch):
    x, ids, out = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(32).view(2, 16), []
    for on in ({}, switch):
        model = pixels.switch_blocks(encoder(), **on)
        z = torch.cat([model.encode_video(x), model.encode_text(ids)])
        z.square().mul(torch.arange(16.)).sum().backward()
        out.append([z.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert list(model.state_dict()) == list(encoder().state_dict())
    assert max_gap(*out) < 1e-5
    assert all("forward" not in vars(m) for m in pixels.switch_blocks(model).modules())


def test_checkpointed_blocks_keep_less():
    def kept(model):
        n = 0
        def pack(t):
            nonlocal n
            n += t.numel()
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): model.encode_video(torch.randn(2, 3, 4, 32, 32))
        return n
    deep = lambda: VideoTextEncoder(DualSettings(TimeSformerSettings(32, 16, 32, 8, 2), 16, 32, 2, 2, 16, 97))  # the last block is for CLS alone
    assert kept(pixels.switch_blocks(deep(), True)) < .5 * kept(deep())


def test_bf16_trains_with_all_switches():
    model = pixels.switch_blocks(encoder(), True)
    rows = fit(model, objective_of(batches_of(), micro=4), TrainSettings(steps=2, warmup=1, mixed_precision="bf16"), progress=False)
    plain = fit(encoder(), objective_of(batches_of()), TrainSettings(steps=2, warmup=1), progress=False)
    assert np.allclose(rows.loss, plain.loss, rtol=.05) and not np.array_equal(rows.loss, plain.loss)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


# ---- frames by step

def test_frames_are_a_function_of_seed_step_and_clip():
    a, b = batches_of(workers=1, ahead=0), batches_of(workers=3, ahead=2)
    for step in (0, 1, 5, 2):  # in any order
        (pa, xa), (pb, xb) = a(step), b(step)
        assert all(torch.equal(x, y) for x, y in zip(pa, pb)) and torch.equal(xa, xb) and xa.shape == (16, 4, 32, 32, 3)
    assert len(b.waiting) <= 2, "memory is bounded"
    assert not torch.equal(batches_of(seed=1)(2)[1], xa)


def test_one_crop_for_all_frames_and_one_moment_in_each_segment():
    frames = np.broadcast_to(np.arange(64 * 48, dtype=np.uint8).reshape(1, 48, 64, 1), (4, 48, 64, 3))
    class Still:
        ids, asked = ["a"], []
        def __call__(self, row, at): self.asked.append(at); return frames
    read = Still()
    shots = [pixels.Shots(read, size=32)(0, step) for step in range(20)]
    assert all((s == s[:1]).all() for s in shots) and len({s.numpy().tobytes() for s in shots}) == 20
    at = np.stack(read.asked)
    assert (np.floor(at * 4) == np.arange(4)).all() and at.std(0).min() > .03
    plain = pixels.Shots(read, size=32, augment=None)(0, 7)
    assert torch.equal(plain, pixels.cut(frames, (0, 8, 48, 48), 32)) and np.allclose(read.asked[-1], [.125, .375, .625, .875])
    mirrored = pixels.Shots(read, size=48, augment=pixels.Augment(area=(1., 1.), flip=1., any_frame=False))(0, 0)
    assert torch.equal(mirrored.flip(2), pixels.cut(frames, (0, 8, 48, 48), 48))


def test_kept_frames_are_those_of_the_videos():
    df = some_clips()
    df = df[df.video == df.video[0]].reset_index(drop=True)
    df.attrs = some_clips().attrs
    kept, read = pixels.Kept(df, per_clip=4, side=128, progress=False), pixels.Videos(df)
    for row in (0, len(df) - 1): assert np.array_equal(kept(row, [.1, .9]), read(row, [.125, .875]))


@pytest.fixture
def damaged(tmp_path):
    "A copy of some videos, one of them empty."
    df = some_clips()
    (tmp_path / "videos").mkdir()
    for video in df.video.unique(): shutil.copy(Path(df.attrs["root"]) / video, tmp_path / video)
    bad = df.video[df["view"] == "exo"].iloc[0]
    (tmp_path / bad).write_bytes(b"")
    df = df.copy()
    df.attrs = dict(root=str(tmp_path))
    return df, bad


@pytest.mark.parametrize("kind", [pixels.Videos, pixels.Kept])
def test_bad_clips_are_recorded_and_their_pairs_replaced(damaged, kind):
    (df, bad), told = damaged, []
    read = kind(df) if kind is pixels.Videos else kind(df, per_clip=4, progress=False, on_problem=lambda *a: None)
    batches = batches_of(batch=24, read=read, on_problem=lambda *problem: told.append(problem))
    good = batches_of(batch=24)
    for step in range(3):
        (ego, exo, weight, pseudo), frames = batches(step)
        assert not (df.video[exo.numpy()] == bad).any() and len(frames) == 48
        (ego_, exo_, weight_, pseudo_), frames_ = good(step)
        same = exo == exo_
        assert torch.equal(weight, weight_) and torch.equal(pseudo, pseudo_), "replaced by pairs of the same kind"
        assert torch.equal(frames[:24][same], frames_[:24][same]) or kind is pixels.Kept
        assert (df.video[exo_[~same].numpy()] == bad).all() and df.sync_id[ego.numpy()].tolist() == df.sync_id[exo.numpy()].tolist()
    assert told and all(file == bad and "empty" in reason and df.clip_id[row - 1] == clip for clip, file, reason, row in told)
    assert len({t[0] for t in told}) == len(told), "each once"


def test_nothing_readable_is_an_error(tmp_path):
    df = some_clips().copy()
    df.attrs = dict(root=str(tmp_path))
    with pytest.raises(VideoError, match="no readable pair in 100 draws.*no such file"): batches_of(read=pixels.Videos(df), on_problem=lambda *a: None)(0)


# ---- refusals

def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="4 frames a clip, but the encoder has 2 rows in its time table.*frames=4"):
        pixels.pixel_objective(batches_of(), Preprocessing(size=32, frames=2), torch.zeros(1, 1), torch.zeros(1, 1))
    df = some_clips()
    with pytest.raises(ValueError, match="mine.parquet: 1 clips of these 2 pairs.*first is 'nobody'"):
        pixels.pair_draw(df, pd.DataFrame(dict(ego=["nobody", df.clip_id[0]], exo=df.clip_id[:2])), source="mine.parquet")
    with pytest.raises(ValueError, match="no synchronized training pairs"): pixels.pair_draw(df.assign(sync_id=None))
    from viewpoint_rosetta.training import share
    assert share(7) == slice(0, 7)


# ---- killed and resumed, tracked

RUN = """
import os, signal, sys
sys.path[:0] = {path!r}
from test_pixels import *
objective = objective_of(batches_of(), micro=4)
def killed(model, step, generator):
    if step == 3: os.kill(os.getpid(), signal.SIGKILL)
    return objective(model, step, generator)
fit(encoder(), killed, TrainSettings(steps=5, warmup=1, checkpoint_every=2), folder={folder!r}, progress=False)
"""


def test_killed_and_resumed_bit_for_bit(tmp_path):
    settings = TrainSettings(steps=5, warmup=1, checkpoint_every=2)
    straight, resumed = encoder(), encoder()
    whole = fit(straight, objective_of(batches_of(), micro=4), settings, progress=False)
    run = RUN.format(path=[str(HERE), str(HERE.parent)], folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", run], env=os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads()))).returncode == -9
    rest = fit(resumed, objective_of(batches_of(), micro=4), settings, folder=tmp_path, progress=False)
    assert rest.attrs["resumed_at"] == 2 and rest.equals(whole)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters()))


# ---- the command

TINY = ["--steps", "4", "--batch", "8", "--micro-batch", "4", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    "A run folder with some clips of the shipped world, one video of which is damaged."
    folder = tmp_path_factory.mktemp("few")
    manifest = small_world(folder)
    df = pd.read_parquet(manifest)
    (folder / df.video[(df.split == "train") & (df["view"] == "exo")].iloc[-1]).write_bytes(b"")
    assert cli.main(["index", str(manifest), "--run", str(folder / "run")]) == 0
    return folder / "run"


def test_the_command_trains_tests_keeps_and_reuses(few, capsys, monkeypatch):
    pairs = few / "given.parquet"
    df = pd.read_parquet(few / "clips.parquet")
    ego, exo = (c.pool(df, v).clip_id for v in ("ego", "exo"))
    pd.DataFrame(dict(ego=ego[:4].to_numpy(), exo=exo[:4].to_numpy(), text=.5)).to_parquet(pairs)
    words = ["train-pixels", "--run", str(few), "--pairs", str(pairs), "--track", "tensorboard", "--checkpoint-activations", *TINY]
    assert cli.main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "pixels/0: run" in out and "chance" in out
    kept = weights.from_pretrained(few / "encoder/pixels/0")
    assert kept.notes["trained"] == "from pixels" and kept.preprocessing.size == 64
    start = pixels.small_encoder().model
    assert not torch.equal(kept.model.image_projection, start.image_projection)
    bench = pd.read_parquet(few / "encoder/pixels/0.parquet")
    assert set(bench.method) == {"pixels"} and bench.value.notna().all()
    problems = pd.read_parquet(few / "problems.parquet")
    assert problems.reason.str.contains("empty").all() and len(problems)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(few / "logs/viewpoint_rosetta")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [0, 1, 2, 3] and all(np.isfinite(e.value) for e in events.Scalars("grad_norm"))
    assert cli.main(words) == 0 and "pixels/0: reuse" in capsys.readouterr().out
    assert cli.main([*words, "--batch", "6"]) == 0 and "pixels/0: run (settings changed: how" in capsys.readouterr().out


def test_the_command_in_two_processes(few):
    code = "import sys; from viewpoint_rosetta.cli import main; sys.exit(main(sys.argv[1:]))"
    (few.parent / "rosetta.py").write_text(code)
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(HERE.parent), CUDA_VISIBLE_DEVICES="")
    words = ["train-pixels", "--run", few, "--seed", "1", *TINY]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", few.parent / "rosetta.py", *words]
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pixels/1: run") == 1 and done.stdout.count("chance") == 1, "the first process speaks"
    assert (few / "encoder/pixels/1/model.safetensors").exists() and not (few / ".work/pixels-1").exists()


def test_the_command_refuses(few, capsys, tmp_path):
    pd.DataFrame(dict(ego=["nobody"], exo=["nothing"])).to_parquet(tmp_path / "pairs.parquet")
    weights.save_pretrained(tmp_path / "tower", weights.Pretrained(encoder().visual, PRE, None, "timm", ""))
    for words, expected in ((["--pairs", str(tmp_path / "pairs.parquet")], "the first is 'nobody'"), (["--frames", "8", "--weights", str(few / "encoder/pixels/0")], "8 frames a clip, but the encoder has 4"),
                            (["--weights", str(tmp_path / "tower")], "TimeSformer: training from pixels takes"), (["--weights", "gone.pth"], "gone.pth"),
                            (["--track", "nothing"], "no tracker 'nothing'")):
        assert cli.main(["train-pixels", "--run", str(few), "--seed", "2", *TINY, *words]) == 2
        assert expected in (err := capsys.readouterr().err) and "Traceback" not in err, err
