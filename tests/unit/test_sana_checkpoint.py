"""Layouts of the Sana transformer: exact there and back, for every key."""

import pytest
import torch

from sanacog.sana_core.checkpoint import from_canonical, to_canonical
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer

from .sana_releases import Architecture, nvlabs_shapes

FLAVOURS = {"plain": (False, False), "qk-norm": (True, False), "sprint": (True, True)}
each_flavour = pytest.mark.parametrize("qk_norm, sprint", FLAVOURS.values(), ids=FLAVOURS)


def params(qk_norm, sprint):
    return SanaParams(2, 2, 2, 32, qk_norm=qk_norm, guidance_embeds=sprint)


def canonical_shapes(*flavour):
    return {key: t.shape for key, t in SanaTransformer(params(*flavour), device="meta").state_dict().items()}


def filled(shapes):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype, key


@each_flavour
def test_nvlabs_there_and_back(qk_norm, sprint):
    file = filled(nvlabs_shapes(Architecture(2, 64, qk_norm, sprint)))
    canonical = to_canonical(file, "nvlabs")
    model = SanaTransformer(params(qk_norm, sprint))
    model.load_state_dict(canonical)
    same(from_canonical(model.state_dict(), "nvlabs"), file)


@each_flavour
def test_canonical_there_and_back(qk_norm, sprint):
    canonical = filled(canonical_shapes(qk_norm, sprint))
    for layout in ("diffusers", "nvlabs"):
        same(to_canonical(from_canonical(canonical, layout), layout), canonical)


def test_rows_of_the_fused_projections():
    """q, k, v from top to bottom; key, then value in cross-attention."""
    D = 64
    file = {"blocks.1.attn.qkv.weight": torch.arange(3.0 * D)[:, None].expand(-1, D),
            "blocks.1.cross_attn.kv_linear.bias": torch.arange(2.0 * D)}
    canonical = to_canonical(file, "nvlabs")
    firsts = {key.removeprefix("transformer_blocks.1."): t.flatten()[0].item() for key, t in canonical.items()}
    assert firsts == {"attn1.to_q.weight": 0, "attn1.to_k.weight": D, "attn1.to_v.weight": 2 * D,
                      "attn2.to_k.bias": 0, "attn2.to_v.bias": D}


def test_left_overs_of_training_are_dropped():
    a = Architecture(2, 64, True, True)
    left_over = {"y_embedder.y_embedding": (300, 2304), "pos_embed": (1, 16, 64), "logvar_linear.weight": (1, 256),
                 "logvar_linear.bias": (1,)}
    same(to_canonical(filled(nvlabs_shapes(a) | left_over), "nvlabs"), to_canonical(filled(nvlabs_shapes(a)), "nvlabs"))


def test_matrices_and_prefixes_of_other_savers():
    canonical = filled(canonical_shapes(False, False))
    same(to_canonical({"model.diffusion_model." + key: t for key, t in canonical.items()}, "diffusers"), canonical)


def test_dtype_and_device_stay():
    file = {"blocks.0.attn.qkv.weight": torch.empty(192, 64, dtype=torch.float8_e4m3fn, device="meta")}
    for t in to_canonical(file, "nvlabs").values():
        assert t.dtype == torch.float8_e4m3fn and t.device.type == "meta" and t.shape == (64, 64)


def test_unknown_keys_and_layouts_are_named():
    with pytest.raises(ValueError, match="blocks.0.attn.gate.weight, head.weight"):
        to_canonical(filled({"blocks.0.attn.gate.weight": (2, 2), "head.weight": (2, 2)}), "nvlabs")
    with pytest.raises(ValueError, match="blocks.0.attn.qkv.weight"):  # a third of the stack is missing
        from_canonical(filled({"transformer_blocks.0.attn1.to_q.weight": (2, 2)}), "nvlabs")
    with pytest.raises(ValueError, match='unknown layout "sat"'):
        to_canonical({}, "sat")
