"""Flow-DPM-Solver++ against diffusers' scheduler as Sana uses it, and against what it must do in the limit."""

import pytest
import torch

from sanacog.sana_core.sampling import flow_sigmas, sample_flow_dpm_solver

TARGET = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(1, 3, 4, 4)


def velocity(x, sigma):
    """A smooth field that bends, so that solvers of different order differ. x (B, 3, 4, 4), sigma (B,)."""
    sigma = sigma.reshape(-1, 1, 1, 1).to(x)
    return torch.tanh(2 * x) - TARGET.to(x) * (1 - sigma) + 0.5 * torch.sin(3 * sigma)


def denoiser(x, sigma, **kw):
    return x - sigma.reshape(-1, 1, 1, 1).to(x) * velocity(x, sigma)


def noise(batch=2):
    return torch.randn(batch, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps, shift", [(20, 3.0), (14, 3.0), (5, 4.0), (20, 6.0), (1, 3.0)])
def test_whole_loop_equals_diffusers(steps, shift):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift,
        solver_order=2, solver_type="midpoint", final_sigmas_type="zero", lower_order_final=True)
    scheduler.set_timesteps(steps)
    theirs = noise().float()
    for i, timestep in enumerate(scheduler.timesteps):
        v = velocity(theirs, scheduler.sigmas[i].expand(2))
        theirs = scheduler.step(v, timestep, theirs, return_dict=False)[0]

    assert torch.allclose(flow_sigmas(steps, shift), scheduler.sigmas.float(), atol=1e-6)
    ours = sample_flow_dpm_solver(denoiser, noise().float(), flow_sigmas(steps, shift))
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_second_order_converges_faster_than_euler():
    def euler(sigmas):
        x = noise()
        for s, t in zip(sigmas, sigmas[1:]):
            x = x + (t - s) * velocity(x, s.expand(2))
        return x

    # From 0.9 to 0.1: without the ends, which are first order.
    def path(n):
        return torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)

    exact = sample_flow_dpm_solver(denoiser, noise(), path(2_000))
    coarse, fine = (float((sample_flow_dpm_solver(denoiser, noise(), path(n)) - exact).norm()) for n in (20, 40))
    assert fine < 0.1 * float((euler(path(40)) - exact).norm())
    assert 3.0 < coarse / fine < 6.0


def test_starts_at_pure_noise_and_reports_steps():
    seen = []
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    out = sample_flow_dpm_solver(denoiser, noise(), sigmas, callback=seen.append)
    assert out.isfinite().all()
    assert [step["i"] for step in seen] == [0, 1, 2, 3]
    assert [float(step["sigma"]) for step in seen] == pytest.approx([1.0, 0.8, 0.5, 0.2])
    # A step to sigma 0 is first order: what the model believed in last.
    assert torch.equal(out, seen[-1]["denoised"])


def test_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps"):
        flow_sigmas(0)
