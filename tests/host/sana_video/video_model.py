"""SANA-Video in the real host on random tiny weights: fixtures and runs that several test files share."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from sanacog.sana_core.video_checkpoint import from_canonical, network
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams

from .. import tiny
from ..sana.sana_model import apart, conditioning  # noqa: F401

FIRST = SanaVideoParams(3, 2, 2, 32, attention_head_dim=32, caption_channels=tiny.CAPTION)
WIDE = SanaVideoParams(2, 2, 2, 32, attention_head_dim=32, in_channels=128, out_channels=128, patch_size=1,
                       caption_channels=tiny.CAPTION, latents="ltx2")
SECOND = SanaVideo2Params(4, 96, 3, (1, 3), linear_head_dim=24, softmax_head_dim=48, caption_channels=tiny.CAPTION,
                          mlp_ratio=2.0, depth_group=2)
EMBEDDED = SanaVideoParams(2, 2, 2, 32, attention_head_dim=32, patch_size=1, caption_channels=tiny.CAPTION, latents="cogvideox")
KINDS = {"480p": FIRST, "720p": WIDE, "2.0": SECOND, "embedded": EMBEDDED}


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


def core(params=FIRST):
    return tiny.randomise(network(params)).eval()


def save(path, params=FIRST, layout="diffusers", **changes):
    """A file of such a model. changes: key -> tensor, or None to leave it out."""
    state_dict = from_canonical(core(params).state_dict(), layout) | changes
    save_file({key: t.contiguous() for key, t in state_dict.items() if t is not None}, path,
              metadata={"config": json.dumps(asdict(params))})
    return path


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
