"""Sana's own noise levels and sampler in the real host, held against whole runs by the equations in float64."""

import pytest
import torch

from sanacog.sana_core.checkpoint import to_canonical
from sanacog.storage.checkpoints import open_checkpoint

from .. import tiny
from ...unit.sana_equations import velocity
from .sana_model import apart, conditioning, host, model, noise, sample, weights  # noqa: F401

STEPS, SHIFT, CFG = 20, 3.0, 4.5


def reference(path, start):
    """NVlabs' run: whole timesteps, its levels, the negative prompt with its own mask, diffusers' DPM-Solver++ steps."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT,
        solver_order=2, solver_type="midpoint", final_sigmas_type="zero", lower_order_final=True)
    scheduler.set_timesteps(STEPS)
    tensors = to_canonical(open_checkpoint(path).load(), "diffusers")
    x = start.double()
    for i, timestep in enumerate(scheduler.timesteps):
        found = []
        for [[states, values]] in (conditioning(9), conditioning(1, seed=1)):
            found.append(velocity(tiny.SANA, tensors, x, timestep.repeat(len(x)), states.expand(len(x), -1, -1),
                                  values["attention_mask"].expand(len(x), -1)))
        x = scheduler.step(found[1] + CFG * (found[0] - found[1]), timestep, x, return_dict=False)[0]
    return x


def run(host, model, sigmas, sampler=None, latent=None):
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(9), conditioning(1, seed=1))
    guider.set_cfg(CFG)
    start = noise()
    return guider.sample(start, torch.zeros_like(start) if latent is None else latent,
                         sampler or host.sampling.flow_dpm_solver(), sigmas, disable_pbar=True, seed=0)


@torch.no_grad()
def test_a_whole_run_is_the_references(host, model, weights):
    wanted = reference(weights.sana, noise()) / host.sana.SanaLatent.scale_factor
    found = run(host, model, host.sampling.sana_sigmas(model, STEPS))
    assert apart(found.double(), wanted) < 2e-5
    simple = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    assert apart(run(host, model, simple).double(), wanted) > 1e-3


def test_levels(host, model):
    sigmas = host.sampling.sana_sigmas(model, 20)
    torch.testing.assert_close(sigmas[[0, 1, 2, 19, 20]], torch.tensor([0.99967, 0.98242, 0.96394, 0.13624, 0.0]), atol=5e-6, rtol=0)
    half = host.sampling.sana_sigmas(model, 10, 0.5)
    assert torch.equal(half, sigmas[-11:])
    assert len(host.sampling.sana_sigmas(model, 20, 0.0)) == 0


def test_the_shift_is_the_models(host, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    other, = ModelSamplingSD3().patch(model, 6.0)
    assert float(host.sampling.sana_sigmas(other, 20)[1]) == pytest.approx(6 * 0.94905 / (1 + 5 * 0.94905), abs=1e-5)


@torch.no_grad()
def test_from_a_picture_the_noise_is_scaled_as_usual(host, model):
    latent = noise() * 0.5
    sigmas = host.sampling.sana_sigmas(model, 4)
    ours = run(host, model, sigmas, latent=latent)
    plain = run(host, model, sigmas, host.comfy.samplers.KSAMPLER(host.sampling.sample_flow_dpm_solver), latent)
    assert torch.equal(ours, plain)


def test_another_model_is_refused(host):
    class Other:
        def get_model_object(self, name):
            return object()

    with pytest.raises(ValueError, match="not sampled as Sana"):
        host.sampling.sana_sigmas(Other(), 20)
    with pytest.raises(ValueError, match="steps is 0"):
        host.sampling.flow_sigmas(0)
