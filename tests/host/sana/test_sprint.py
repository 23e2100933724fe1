"""Sana Sprint inside the real host, on random tiny weights: the same numbers as the bare core."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sanacog.sana_core.sampling import sample_scm, sprint_sigmas

from .. import tiny

SPRINT = replace(tiny.SANA, guidance_embeds=True, qk_norm=True)
SCALE = 0.41407


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.sample
    import comfy.samplers

    from sanacog.host.sana import model as sana, sprint

    with torch.inference_mode():
        yield SimpleNamespace(comfy=comfy, sana=sana, sprint=sprint)


@pytest.fixture(scope="module")
def model(host, tmp_path_factory):
    return host.sana.load_sana(tiny.save_sana(tmp_path_factory.mktemp("weights") / "sprint.safetensors", SPRINT))


@pytest.fixture(scope="module")
def text():
    states = torch.zeros(1, 300, tiny.CAPTION)
    states[:, :9] = torch.randn(1, 9, tiny.CAPTION, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 300, dtype=torch.long)
    mask[:, :9] = 1
    return [[states, {"attention_mask": mask, "pooled_output": None}]]


def by_hand(text, noise, latent, levels, guidance, seed):
    """The core alone, from the same first noise and the same noise of the steps."""
    core, drawn = tiny.sana(SPRINT), torch.Generator().manual_seed(seed + 1)
    states, mask = text[0][0].expand(len(noise), -1, -1), text[0][1]["attention_mask"].expand(len(noise), -1)

    def denoised(x, sigma):
        v = core(x, sigma, states, mask, torch.full((len(x),), guidance))
        return x - sigma[:, None, None, None] * v

    x = (1 - levels[0]) * latent * SCALE + levels[0] * noise
    return sample_scm(denoised, x, levels, noise_sampler=lambda *_: torch.randn(x.shape, generator=drawn)) / SCALE


def apart(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("steps, guidance", [(1, 4.5), (2, 4.5), (2, 1.0), (4, 5.0)])
def test_text_to_image(host, model, text, steps, guidance):
    latent = {"samples": torch.zeros(2, 32, 4, 6)}
    got = host.sprint.sample_sprint(model, text, latent, steps, guidance, seed=3)["samples"]
    noise = host.comfy.sample.prepare_noise(latent["samples"], 3)
    assert apart(got, by_hand(text, noise, latent["samples"], sprint_sigmas(steps), guidance, 3)) < 1e-5


def test_image_to_image(host, model, text):
    latent = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    got = host.sprint.sample_sprint(model, text, {"samples": latent}, 2, 4.5, seed=3, denoise=0.6)["samples"]
    levels = sprint_sigmas(3)[-3:]
    assert 0.6 < levels[0] < 0.7
    assert apart(got, by_hand(text, host.comfy.sample.prepare_noise(latent, 3), latent, levels, 4.5, 3)) < 1e-5


def test_inpainting_keeps_the_rest(host, model, text):
    latent, mask = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(2)), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    out = host.sprint.sample_sprint(model, text, {"samples": latent, "noise_mask": mask}, 2, 4.5, seed=3)["samples"]
    assert apart(out[..., 2:], latent[..., 2:]) < 1e-5 and apart(out[..., :2], latent[..., :2]) > 0.1


def test_stock_lcm_is_the_same(host, model, text):
    noise = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    steps_noise = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(4))

    def run(function):
        sampler = host.comfy.samplers.KSAMPLER(function, extra_options={"noise_sampler": lambda *_: steps_noise})
        return host.comfy.sample.sample_custom(model, noise, 1.0, sampler, host.sprint.sigmas(2), text, text,
                                               torch.zeros_like(noise))

    assert apart(run(host.comfy.samplers.k_diffusion_sampling.sample_lcm), run(sample_scm)) < 1e-6


def test_seed_decides(host, model, text):
    latent = {"samples": torch.zeros(1, 32, 4, 4)}
    first, again, other = (host.sprint.sample_sprint(model, text, latent, 2, 4.5, seed)["samples"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and apart(other, first) > 0.1


def test_no_denoise_changes_nothing(host, model, text):
    latent = {"samples": torch.ones(1, 32, 4, 4)}
    assert torch.equal(host.sprint.sample_sprint(model, text, latent, 2, 4.5, 1, denoise=0.0)["samples"], latent["samples"])


def test_another_model_is_refused(host, text, tmp_path):
    plain = host.sana.load_sana(tiny.save_sana(tmp_path / "sana.safetensors"))
    with pytest.raises(ValueError, match="no Sana Sprint model"):
        host.sprint.sample_sprint(plain, text, {"samples": torch.zeros(1, 32, 4, 4)}, 2, 4.5, 1)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(host, steps):
    with pytest.raises(ValueError, match="at least 1"):
        host.sprint.sigmas(steps)
