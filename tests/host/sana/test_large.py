"""2K and 4K in the real host, at their real sizes with a tiny width: position code and shift are those of the file."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import SanaTransformer2DModel
from safetensors.torch import save_file

from sanacog.host.sana.resolution import resolution
from sanacog.sana_core.checkpoint import from_canonical

from .. import tiny
from .sana_model import apart, conditioning, host, noise, sample  # noqa: F401

TINY = replace(tiny.SANA, num_layers=1)
VARIANTS = {"2K": replace(TINY, sample_size=64, interpolation_scale=1.0, flow_shift=3.0),
            "4K": replace(TINY, sample_size=128, interpolation_scale=2.0, flow_shift=6.0)}


def save(path, params, layout):
    """A file as it was released: diffusers' says its size in config.json, NVlabs' by the position code left in it."""
    tensors = {key: t.contiguous() for key, t in from_canonical(tiny.sana(params).state_dict(), layout).items()}
    config = asdict(params)
    if layout == "nvlabs":
        tensors["pos_embed"] = torch.zeros(1, params.sample_size**2, params.width)
        config = {key: value for key, value in config.items() if key not in ("sample_size", "interpolation_scale")}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    return path


def theirs(params, start, text):
    """Two Euler steps of diffusers' transformer, on the schedule of the paper: s t / (1 + (s - 1) t) of t = 1 and 1/2."""
    model = SanaTransformer2DModel(
        in_channels=32, out_channels=32, num_attention_heads=params.num_attention_heads, attention_head_dim=32,
        num_layers=params.num_layers, num_cross_attention_heads=params.num_cross_attention_heads,
        cross_attention_head_dim=params.cross_attention_head_dim, cross_attention_dim=params.width,
        caption_channels=params.caption_channels, sample_size=params.sample_size, patch_size=1,
        interpolation_scale=params.interpolation_scale).eval()
    model.load_state_dict(from_canonical(tiny.sana(params).state_dict(), "diffusers"))
    states, mask = text[0][0], text[0][1]["attention_mask"]
    s, x = params.flow_shift, start
    for now, then in ((1.0, 0.5 * s / (1 + 0.5 * (s - 1))), (0.5 * s / (1 + 0.5 * (s - 1)), 0.0)):
        x = x + (then - now) * model(x, states, torch.tensor([1000 * now]).floor(), encoder_attention_mask=mask.float(),
                                     return_dict=False)[0]
    return x / 0.41407


@pytest.mark.parametrize("ratio", ["16:9", "1:2"])
@pytest.mark.parametrize("layout", ["diffusers", "nvlabs"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sampling_equals_diffusers(host, tmp_path, variant, layout, ratio):
    params = VARIANTS[variant]
    width, height = resolution(variant, ratio)
    assert width != height and width * height > 0.9 * (32 * params.sample_size) ** 2
    start, text = noise(1, height // 32, width // 32), conditioning(9)
    model = host.sana.load_sana(save(tmp_path / "large.safetensors", params, layout))
    assert model.get_model_object("model_sampling").shift == params.flow_shift
    ours = sample(host, model, start=start, positive=text, cfg=1.0, steps=2)
    assert apart(ours, theirs(params, start, text)) < 1e-5


def test_another_variant_is_another_picture(host, tmp_path):
    """The code and the shift do matter: what the comparison above would see."""
    start = noise(1, 48, 84)
    pictures = [sample(host, host.sana.load_sana(save(tmp_path / f"{i}.safetensors", params, "diffusers")), start=start,
                       cfg=1.0, steps=2)
                for i, params in enumerate((VARIANTS["2K"], replace(VARIANTS["2K"], interpolation_scale=2.0),
                                            replace(VARIANTS["2K"], sample_size=128), replace(VARIANTS["2K"], flow_shift=6.0),
                                            replace(VARIANTS["2K"], interpolation_scale=None)))]
    assert all(apart(other, pictures[0]) > 1e-3 for other in pictures[1:])
