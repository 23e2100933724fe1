"""The noise schedule, its samplers and its guidance, against figures of the facts and diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from sanacog.cogvideo_core import schedule

REFERENCE = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction",
    rescale_betas_zero_snr=True, set_alpha_to_one=True, timestep_spacing="trailing",
)


def model(x, timestep):
    """A stand-in for the network: not linear, and different at every timestep."""
    return torch.tanh(x * (1 + timestep / 500)) + 0.3 * torch.sin(3 * x + timestep)


def start():
    return torch.randn(1, 4, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_alphas(shift):
    expected = CogVideoXDDIMScheduler(**REFERENCE, snr_shift_scale=shift).alphas_cumprod
    alphas = schedule.alphas_cumprod(shift)
    assert alphas.dtype == torch.float64 and alphas[-1] == 0
    torch.testing.assert_close(alphas, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift, values", [
    (1.0, {0: 0.02917, 500: 1.7746, 979: 107.96, 998: 2254.2, 999: 4518.76}),
    (3.0, {0: 0.05052, 500: 3.0806, 979: 191.76, 998: 4006.0, 999: 4518.76}),
])
def test_sigmas(shift, values):
    sigmas = schedule.sigmas(shift)
    for timestep, sigma in values.items():
        assert float(sigmas[timestep]) == pytest.approx(sigma, rel=3e-4)


def test_trailing_timesteps():
    for steps in range(1, 1001):
        expected = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
        assert schedule.trailing_timesteps(steps) == expected[:steps].tolist()
    with pytest.raises(ValueError, match="1 to 1000"):
        schedule.trailing_timesteps(0)
    sigmas = schedule.trailing_sigmas(50)
    assert sigmas.shape == (51,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps, shift", [(50, 1.0), (30, 1.0), (30, 3.0), (60, 3.0)])
def test_ddim_loop(steps, shift):
    scheduler = CogVideoXDDIMScheduler(**REFERENCE, snr_shift_scale=shift)
    scheduler.set_timesteps(steps)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, int(t)), t, x).prev_sample
    assert relative(schedule.ddim(model, start(), steps, shift), x) < 1e-5


@pytest.mark.parametrize("steps, shift", [(20, 1.0), (20, 3.0), (30, 1.0)])
def test_dpm_loop(steps, shift):
    scheduler = CogVideoXDPMScheduler(**REFERENCE, snr_shift_scale=shift)
    scheduler.set_timesteps(steps)
    generator, drawn = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    last = steps - 1

    def noise(i):
        draws = [torch.randn(start().shape, generator=drawn) for _ in range(1 if i in (0, last) else 2)]
        return draws[-1]  # the reference throws the first of two away

    x, old = start(), None
    for i, t in enumerate(scheduler.timesteps):
        before = scheduler.timesteps[i - 1] if i else None
        x, old = scheduler.step(model(x, int(t)), old, t, before, x, generator=generator, return_dict=False)
    assert relative(schedule.dpm(model, start(), steps, noise, shift), x) < 1e-5


def test_one_step():
    x = start()
    assert torch.equal(schedule.ddim(model, x, 1), -model(x, 999))  # pure noise: x0 = -v
    assert torch.allclose(schedule.dpm(model, x, 1, lambda i: x), -model(x, 999))


def test_guidance_wave():
    waves = [schedule.guidance_wave(t, 50, 6.0) for t in schedule.trailing_timesteps(50)]
    expected = [2.29, 2.54, 6.97, 6.42, 2.79, 4.27, 1.04, 4.17, 1.62, 6.98, 1.00, 2.87]
    assert [round(wave, 2) for wave in waves[:12]] == expected
    assert [round(wave, 2) for wave in waves[-5:]] == [6.86, 1.06, 1.00, 1.00, 1.12]


def test_guidance_ramp():
    ramp = [schedule.guidance_ramp(t, 6.0) for t in range(999, -1, -1)]
    assert ramp == sorted(ramp) and ramp[0] == pytest.approx(1.0) and ramp[-1] == pytest.approx(7.0, abs=0.01)
    assert schedule.guidance_ramp(500, 6.0) < 1.02
