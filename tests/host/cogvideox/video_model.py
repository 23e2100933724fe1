"""CogVideoX's MODEL on random tiny weights: fixtures and runs that several test files share."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sanacog.cogvideo_core import schedule

from .. import tiny
from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import PARAMS, TEXT_WIDTH, TOKENS, params_of

SINCOS = dict(use_rotary_positional_embeddings=False, snr_shift_scale=3.0, scaling_factor=1.15258426)
VARIANTS = {
    "2B": replace(PARAMS, **SINCOS),
    "2B img2vid": replace(params_of("repeated_image"), **SINCOS),
    "5B": PARAMS,
    "5B I2V": replace(params_of("image"), use_learned_positional_embeddings=True),
    "1.5": params_of(version="1.5"),
    "1.5 I2V": params_of("image", "1.5"),
    "Fun 2B InP": replace(params_of("inpaint"), **SINCOS, resize_positions=True),
    "Fun 5B InP": params_of("inpaint"),
    "Fun 5B Control": params_of("control"),
    "Fun 1.5 InP": params_of("inpaint", "1.5"),
    "VOID": params_of("void", "1.5"),
}


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.sample
    import comfy.samplers
    import comfy.sd

    from sanacog.host.cogvideox import model as cogvideox, sampling as cogvideox_sampling
    from sanacog.host import loading, memory, previews, samplers

    with torch.inference_mode():  # as the host runs its nodes
        yield SimpleNamespace(comfy=comfy, cogvideox=cogvideox, sampling=cogvideox_sampling, loading=loading,
                              memory=memory, previews=previews, samplers=samplers)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """params -> a file of that model."""
    folder, files = tmp_path_factory.mktemp("weights"), {}

    def file(params=PARAMS):
        if params not in files:
            files[params] = tinycog.save_transformer(folder / f"{len(files)}.safetensors", params)
        return files[params]
    return file


@pytest.fixture
def model(host, weights):
    return host.cogvideox.load_cogvideox(weights())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(seed=0, width=TEXT_WIDTH, **values):
    """CONDITIONING."""
    return [[random(1, TOKENS, width, seed=100 + seed), values]]


def noise(frames=3, batch=1, height=4, width=6):
    return random(batch, 16, frames, height, width, seed=7)


def sample(host, model, start=None, latent=None, steps=3, cfg=3.0, sampler=None, sigmas=None, mask=None, values=None,
           positive=None, negative=None, seed=5, callback=None):
    """SamplerCustomAdvanced's way, with CogVideoX DDIM unless told."""
    start, values = noise() if start is None else start, values or {}
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or text(**values), negative or text(1, **values))
    guider.set_cfg(cfg)
    sigmas = host.samplers.cogvideox_sigmas(model, steps) if sigmas is None else sigmas
    return guider.sample(start, torch.zeros_like(start) if latent is None else latent,
                         sampler or host.samplers.cogvideox_ddim(), sigmas, mask, callback, True, seed)


def velocity_of(params, cfg=3.0, channels=None):
    """v(x, timestep: int) of the bare transformer, guided, with `channels` behind the latent."""
    core = tinycog.transformer(params)

    def velocity(x, timestep):
        x = x if channels is None else torch.cat([x, channels.expand(len(x), -1, -1, -1, -1)], dim=1)
        t = torch.full((len(x),), float(timestep))
        c, u = (core(x, t, random(1, TOKENS, TEXT_WIDTH, seed=100 + i).expand(len(x), -1, -1)) for i in (0, 1))
        return u + cfg * (c - u)
    return velocity


def reference(params, start, steps=3, cfg=3.0, channels=None):
    """The core alone with the reference's DDIM; in the VAE's scale."""
    return schedule.ddim(velocity_of(params, cfg, channels), start, steps, params.snr_shift_scale) / params.scaling_factor


def apart(a, b):
    """Relative L2 distance."""
    return float((a - b).norm() / b.norm())
