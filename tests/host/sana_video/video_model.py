"""SANA-Video in the real host on random tiny weights: fixtures and runs that several test files share."""

from types import SimpleNamespace

import pytest
import torch


from .. import tiny
from ..sana.sana_model import apart, conditioning  # noqa: F401
from ..tiny_sana_video import EMBEDDED, FIRST, KINDS, SECOND, WIDE, core, save  # noqa: F401


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.sd

    from sanacog.host import loading
    from sanacog.host.sana_video import blockwise, conditioning, latents, model

    with torch.inference_mode():  # as the host runs its nodes
        yield SimpleNamespace(comfy=comfy, loading=loading, blockwise=blockwise, conditioning=conditioning, latents=latents,
                              video=model)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """params -> a file of that model."""
    folder, files = tmp_path_factory.mktemp("weights"), {}

    def file(params=FIRST):
        if params not in files:
            files[params] = save(folder / f"{len(files)}.safetensors", params)
        return files[params]
    return file


def noise(params=FIRST, batch=1, frames=3, height=4, width=6):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, params.in_channels, frames, height, width, generator=generator)


def sample(host, model, start, latent=None, cfg=4.5, sampler="euler", steps=3, positive=None, negative=None, **kw):
    latent = torch.zeros_like(start) if latent is None else latent
    return host.comfy.sample.sample(model, start, steps, cfg, sampler, "simple",
                                    conditioning(9) if positive is None else positive,
                                    conditioning(1, seed=1) if negative is None else negative, latent, seed=0, disable_pbar=True,
                                    **kw)


def in_latent(host, params, x):
    """What the network sees of a latent."""
    return host.latents.FORMATS[params.latents]().process_in(x)


def out_latent(host, params, x):
    return host.latents.FORMATS[params.latents]().process_out(x)


def velocity(net, x, t, text):
    states, values = text[0]
    return net(x, t, states.expand(len(x), -1, -1), values["attention_mask"].expand(len(x), -1))
