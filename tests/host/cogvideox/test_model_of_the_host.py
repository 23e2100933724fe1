"""Our samplers, sigmas and guider on ComfyUI's own CogVideoX MODEL (0.21 and newer), which is fed x at variance 1."""

from dataclasses import replace

import pytest
import torch

from sanacog.cogvideo_core import schedule
from sanacog.cogvideo_core.checkpoint import from_canonical

from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import PARAMS, TEXT_WIDTH, TOKENS
from .video_model import apart, host, noise, random, sample, text, velocity_of, weights  # noqa: F401

# Of the 1.5 family, the one that the host computes right; its scale is that of a narrow model there.
OF_THE_HOST = replace(PARAMS, attention_head_dim=64, patch_size_t=2, scaling_factor=1.15258426)


@pytest.fixture(scope="module")
def theirs(host):  # noqa: F811
    """The host's MODEL, loaded by the host."""
    import comfy.model_base

    if not hasattr(comfy.model_base, "CogVideoX"):
        pytest.skip("this ComfyUI has no CogVideoX of its own: it came with 0.21")
    weights = from_canonical(tinycog.transformer(OF_THE_HOST).state_dict(), "comfy")
    model = host.comfy.sd.load_diffusion_model_state_dict({key: t.clone() for key, t in weights.items()})
    assert type(model.model) is comfy.model_base.CogVideoX
    return model


def wanted(loop, *arguments, start=None):
    return loop(velocity_of(OF_THE_HOST), noise(4) if start is None else start, *arguments) / OF_THE_HOST.scaling_factor


@pytest.mark.parametrize("steps", [50, 30, 20])
def test_ddim(host, theirs, steps):  # noqa: F811
    assert apart(sample(host, theirs, noise(4), steps=steps), wanted(schedule.ddim, steps)) < 1e-5


def test_dpm(host, theirs):  # noqa: F811
    generator = host.samplers.step_generator(5)
    draws = [torch.randn(noise(4).shape, generator=generator) for _ in range(20)]
    ours = sample(host, theirs, noise(4), steps=20, sampler=host.samplers.cogvideox_dpm())
    assert apart(ours, wanted(schedule.dpm, 20, lambda i: draws[i])) < 1e-5


def test_the_stock_sampler_is_what_fails(host, theirs):  # noqa: F811
    """The reason for these samplers; when this fails, ComfyUI has been mended."""
    euler = host.comfy.samplers.sampler_object("euler")
    assert apart(sample(host, theirs, noise(4), steps=20, sampler=euler), wanted(schedule.ddim, 20)) > 0.1


def test_partial_denoise_and_mask(host, theirs):  # noqa: F811
    """Video to video and inpainting, which the host's own sampler for it leaves out."""
    latent, mask = random(1, 16, 4, 4, 6, seed=3), torch.zeros(1, 1, 4, 4, 6)
    mask[..., :3] = 1.0
    sigmas = host.samplers.cogvideox_sigmas(theirs, 10, 0.5)
    alphas, velocity = schedule.alphas_cumprod(), velocity_of(OF_THE_HOST)
    timesteps, scaled = schedule.trailing_timesteps(20)[-10:], latent * OF_THE_HOST.scaling_factor
    for m in (None, mask):
        first = float(alphas[timesteps[0]])
        x = first**0.5 * scaled + (1 - first) ** 0.5 * noise(4)
        for t in timesteps:
            alpha = float(alphas[t])
            if m is not None:
                x = x * m + (alpha**0.5 * scaled + (1 - alpha) ** 0.5 * noise(4)) * (1 - m)
            x0 = schedule.denoised(x, velocity(x, t), alpha)
            x0 = x0 if m is None else x0 * m + scaled * (1 - m)
            x = schedule.ddim_step(x, x0, alpha, schedule.target_alpha(alphas, t, 20))
        ours = sample(host, theirs, noise(4), latent, sigmas=sigmas, mask=m)
        assert apart(ours, x / OF_THE_HOST.scaling_factor) < 1e-5


def test_two_stages(host, theirs):  # noqa: F811
    sigmas = host.samplers.cogvideox_sigmas(theirs, 20)
    half = sample(host, theirs, noise(4), sigmas=sigmas[:11])
    both = sample(host, theirs, torch.zeros_like(noise(4)), half, sigmas=sigmas[10:])
    assert apart(both, wanted(schedule.ddim, 20)) < 1e-4


def test_dynamic_guidance(host, theirs):  # noqa: F811
    guider = host.samplers.cogvideox_guidance(theirs, text(), text(1), 6.0, "wave")
    ours = guider.sample(noise(4), torch.zeros_like(noise(4)), host.samplers.cogvideox_ddim(),
                         host.samplers.cogvideox_sigmas(theirs, 20), disable_pbar=True, seed=5)
    core = tinycog.transformer(OF_THE_HOST)

    def velocity(x, t):
        c, u = (core(x, torch.tensor([float(t)]), random(1, TOKENS, TEXT_WIDTH, seed=seed)) for seed in (100, 101))
        return u + schedule.guidance_wave(t, 20, 6.0) * (c - u)
    assert apart(ours, schedule.ddim(velocity, noise(4), 20) / OF_THE_HOST.scaling_factor) < 1e-5


def test_flow_edit(host, theirs, weights):  # noqa: F811
    """As on the pack's own MODEL of the same weights."""
    from sanacog.host.editing.flow_edit import FlowEdit

    latent, found = 0.3 * random(1, 16, 4, 4, 6, seed=3), []
    for model in (theirs, host.cogvideox.load_cogvideox(weights(OF_THE_HOST))):
        guider = FlowEdit(model, (text(), text(1)), (text(2), text(1)), source_cfg=2.0, target_cfg=3.0, skip=1)
        scale = model.model.latent_format.scale_factor
        out = guider.sample(torch.zeros_like(latent), latent / scale, host.comfy.samplers.ksampler("euler"),
                            host.samplers.cogvideox_sigmas(model, 6), disable_pbar=True, seed=5)
        found.append(out * scale)
    assert apart(found[0], found[1]) < 1e-4 < 1e-2 < apart(found[0], latent)
