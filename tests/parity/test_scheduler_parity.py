"""Noise schedules and trajectories of diffusers, through our pipeline."""
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from cases import Case
from viewpoint_rosetta.translator import PAPER, RosettaPipeline, Scale, diffusion_target, noise_schedule


class Affine(torch.nn.Module):
    "eps = x W^T + b t / 1000, the stand-in network of the recorded case."
    def __init__(self, w, b):
        super().__init__()
        self.w, self.b, self.null, self.dtype, self.device = w, b, torch.zeros(1), w.dtype, w.device

    def condition(self, x_ego, hide=None): return x_ego[:, :1]
    def forward(self, x, t, c): return x @ self.w.T + self.b * t / 1000


def run_recorded(data, kind, clip, eta, monkeypatch):
    "The recorded case through RosettaPipeline itself: same start, same noise, every step kept."
    rows, dim, steps = 3, 8, len(data["in.noise"])
    scheduler = kind(num_train_timesteps=1000, beta_schedule="linear", clip_sample=clip, timestep_spacing="leading")
    pipe = RosettaPipeline(Affine(data["in.W"], data["in.b"]), Scale((dim,), (dim,)), scheduler)
    draws = iter(data["in.noise"])
    for module in ("scheduling_ddpm", "scheduling_ddim"):
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *a, **k: next(draws))
    monkeypatch.setattr("viewpoint_rosetta.translator.torch.randn", lambda *a, **k: data["in.x_T"][:, None])
    out, path = pipe(torch.zeros(rows, dim), steps, eta=eta, return_trajectory=True)
    return path.t, torch.cat([path.z_t[:, :, 0], out[None]]), path.z_0[:, :, 0]


@pytest.mark.parametrize("name, kind, clip, eta", [
    ("ddpm_clip", DDPMScheduler, True, 0), ("ddpm_noclip", DDPMScheduler, False, 0),
    ("ddim_clip", DDIMScheduler, True, 0), ("ddim_noclip", DDIMScheduler, False, 0), ("ddim_eta", DDIMScheduler, False, .7)])
def test_parity_of_whole_trajectories(name, kind, clip, eta, monkeypatch):
    case = Case("diffusers_ddpm_ddim_a")
    data, manifest = case.tensors, case.manifest
    t, traj, x0 = run_recorded(data, kind, clip, eta, monkeypatch)
    assert torch.equal(t, data[f"out.timesteps_{name[:4]}"])
    for got, key in ((traj, f"out.{name}_traj"), (x0, f"out.{name}_x0")):
        assert (got - data[key]).abs().max() <= manifest["tensors"][key]["atol"], key


def test_parity_of_forward_noise_and_velocity():
    case = Case("diffusers_ddpm_ddim_a")
    data, manifest = case.tensors, case.manifest
    schedule, (x0, eps, t) = noise_schedule(PAPER), (data[f"in.{k}"] for k in ("x0", "eps0", "t0"))
    velocity = diffusion_target(noise_schedule(replace(PAPER, prediction="v_prediction")), x0, eps, t)
    got = {"add_noise": schedule.add_noise(x0, eps, t), "velocity": velocity, "alphas_cumprod": schedule.alphas_cumprod}
    for key, value in got.items(): assert (value - data[f"out.{key}"]).abs().max() <= manifest["tensors"][f"out.{key}"]["atol"], key
