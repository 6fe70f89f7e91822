"""Run by tests/test_pixels.py in two processes: python -m torch.distributed.run --standalone --nproc-per-node 2 tests/two_processes.py OUT"""
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState

from test_pixels import batches_of, encoder, max_gap, objective_of
from viewpoint_rosetta import training
from viewpoint_rosetta.losses import clip_loss
from viewpoint_rosetta.training import TrainError, TrainSettings, fit, gather, share, world

out, found = Path(sys.argv[1]), {}
rank = int(os.environ["RANK"])


def gradients(objective, precision="no"):
    "Loss and gradients of one step of a fresh encoder."
    model = encoder()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = objective(model, 0, training.generator_for(0, 1))[0]
    loss.backward()
    training._average_gradients(model)
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


x, ids = torch.randn(8, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8 * 16).view(8, 16) % 97
def learned(model, step, generator):  # the temperature is a parameter of the loss
    part = share(8)
    return clip_loss(gather(model.encode_video(x[part])), gather(model.encode_text(ids[part])), model.scale()), {}


cases = {"rosetta": lambda: objective_of(batches_of()), "GradCache": lambda: objective_of(batches_of(), micro=2), "learned": lambda: learned}
assert world() == (0, 1)
alone = {name: gradients(make()) for name, make in cases.items()}
alone["bf16"] = gradients(cases["rosetta"](), "bf16")
PartialState(cpu=True)
assert world() == (rank, 2)
together = {name: gradients(make()) for name, make in cases.items()}
together["bf16"] = gradients(cases["GradCache"](), "bf16")
found["gap"] = {name: max_gap(alone[name], together[name]) for name in alone}
found["many"] = {name: len(alone[name]) == len(together[name]) for name in alone}
with torch.no_grad(): (z := torch.ones(2, 3)).mul_(rank)
found["order"] = gather(z)[:, 0].tolist()

settings = TrainSettings(steps=4, warmup=1, checkpoint_every=2)
both = encoder(seed=rank)  # other weights in each process: the first one's count
table = fit(both, objective_of(batches_of()), settings, folder=out / "straight", progress=False)
found["history"] = table[["loss", "grad_norm"]].to_numpy().tolist()
found["weights"] = [p.sum().item() for p in both.parameters()]

objective = objective_of(batches_of())
def pressed(model, step, generator):
    if step == 2 and rank == 1: os.kill(os.getpid(), signal.SIGINT)
    return objective(model, step, generator)
try: fit(encoder(), pressed, settings, folder=out / "pressed", progress=False)
except KeyboardInterrupt as stop: found["pressed"] = str(stop)
again = encoder()
rest = fit(again, objective_of(batches_of()), settings, folder=out / "pressed", progress=False)
found["resumed"] = [rest.attrs["resumed_at"], all(torch.equal(a, b) for a, b in zip(again.parameters(), both.parameters()))]

try: fit(encoder(), objective_of(batches_of()), settings, folder=out / ("straight", "elsewhere")[rank], progress=False)
except TrainError as error: found["elsewhere"] = str(error)

def dies(model, step, generator):
    if step == 2 and rank == 1: raise OSError("the disk went away")
    return objective(model, step, generator)
start = time.perf_counter()
try: fit(encoder(), dies, settings, folder=out / "died", progress=False)
except (OSError, TrainError) as error: found["died"] = [type(error).__name__, str(error), time.perf_counter() - start]
(out / f"{rank}.json").write_text(json.dumps(found))
