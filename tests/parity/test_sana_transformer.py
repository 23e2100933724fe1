"""The Sana transformer against diffusers' with the same random weights."""

from dataclasses import replace

import pytest
import torch
from diffusers import SanaTransformer2DModel

from sanacog.sana_core.checkpoint import to_canonical
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer

SMALL = SanaParams(3, 4, 2, 64, caption_channels=48, sample_size=16)
FLAVOURS = {
    "plain": SMALL,
    "qk-norm": replace(SMALL, qk_norm=True),
    "sprint": replace(SMALL, qk_norm=True, guidance_embeds=True),
    "2K": replace(SMALL, interpolation_scale=1.0),
    "4K": replace(SMALL, interpolation_scale=2.0),
    "patch 2": replace(SMALL, patch_size=2, interpolation_scale=1.0),
}


def relative(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def pair(p):
    """Both models with the same weights, chosen so that every part shows in the output."""
    # Without a computed position code nothing but weights is in it: then not initialised, which takes longest at 0.6B.
    with torch.device("meta" if p.interpolation_scale is None else "cpu"):
        theirs = SanaTransformer2DModel(
            in_channels=p.in_channels, out_channels=p.out_channels, num_attention_heads=p.num_attention_heads,
            attention_head_dim=p.attention_head_dim, num_layers=p.num_layers, patch_size=p.patch_size,
            num_cross_attention_heads=p.num_cross_attention_heads, cross_attention_head_dim=p.cross_attention_head_dim,
            cross_attention_dim=p.width, caption_channels=p.caption_channels, mlp_ratio=p.mlp_ratio,
            sample_size=p.sample_size, interpolation_scale=p.interpolation_scale, guidance_embeds=p.guidance_embeds,
            qk_norm="rms_norm_across_heads" if p.qk_norm else None).eval()
    if p.interpolation_scale is None:
        theirs.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 4
            if p.qk_norm and (".to_q." in name or ".to_k." in name):
                fan_in *= 1e4  # small enough before the norm for its eps to matter
            weight.normal_(std=fan_in**-0.5, generator=generator)
    for block in theirs.transformer_blocks if p.qk_norm else ():  # the authors' epsilon, tests/unit/test_sana_equations.py
        block.attn2.norm_q.eps = block.attn2.norm_k.eps = 1e-6
    ours = SanaTransformer(p, device="meta")
    ours.load_state_dict(to_canonical(theirs.state_dict(), "diffusers"), assign=True)
    return ours.eval(), theirs


def inputs(p, height, width, batch=2, tokens=20, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens)
    for i in range(batch):  # each sample keeps fewer tokens than the one before, none keeps all
        mask[i, tokens - 3 - 5 * i:] = 0
    x = torch.randn(batch, p.in_channels, height, width, generator=generator).to(dtype)
    context = torch.randn(batch, tokens, p.caption_channels, generator=generator).to(dtype)
    timestep = torch.tensor([999.0, 3.0])[:batch] / (1000 if p.guidance_embeds else 1)
    guidance = torch.tensor([4.5, 3.0])[:batch] if p.guidance_embeds else None
    return x, timestep, context, mask, guidance


@torch.no_grad()
def difference(ours, theirs, x, timestep, context, mask, guidance):
    expected = theirs(x, context, timestep, encoder_attention_mask=mask, return_dict=False,
                      guidance=None if guidance is None else guidance * 0.1)[0]
    found = ours(x, timestep, context, mask, guidance)
    assert found.shape == expected.shape and found.dtype == x.dtype
    return relative(found, expected)


@pytest.mark.parametrize("size", [(16, 16), (12, 18), (18, 12)], ids=["square", "3:2", "2:3"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_fp32(flavour, size):
    p = FLAVOURS[flavour]
    assert difference(*pair(p), *inputs(p, *size)) < 1e-5


def test_without_a_mask():
    ours, theirs = pair(SMALL)
    x, timestep, context, _, _ = inputs(SMALL, 8, 8)
    assert difference(ours, theirs, x, timestep, context, None, None) < 1e-5


@pytest.mark.parametrize("flavour", ["plain", "sprint", "2K"])
def test_bf16(flavour):
    p = FLAVOURS[flavour]
    ours, theirs = pair(p)
    assert difference(ours.bfloat16(), theirs.bfloat16(), *inputs(p, 12, 18, dtype=torch.bfloat16)) < 2e-2


@torch.no_grad()
def test_clip_in_fp16():
    """diffusers clips whatever runs in fp16: there the two agree where the clip acts, and do not without it."""
    ours, theirs = pair(replace(SMALL, clamp_fp16=True))
    unclipped = SanaTransformer(SMALL, device="meta")
    unclipped.load_state_dict(ours.state_dict(), assign=True)
    attention = theirs.transformer_blocks[0].attn1
    attention.to_out[0].weight.mul_(300.0)
    attention.to_out[0].bias.fill_(65000.0)
    for net in (ours, theirs, unclipped):
        net.half()
    outputs = [[], [], []]
    for net, seen in zip((ours, theirs, unclipped), outputs):
        net.transformer_blocks[0].attn1.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
    x, timestep, context, mask, _ = inputs(SMALL, 12, 18, dtype=torch.float16)
    ours(x, timestep, context, mask)
    theirs(x, context, timestep, encoder_attention_mask=mask)
    unclipped(x, timestep, context, mask)
    (mine,), (reference,), (raw,) = outputs
    assert raw.isinf().any() and mine.isfinite().all() and (mine.abs() == 65504).any()
    assert relative(mine, reference) < 1e-3


def test_full_size():
    """Sana 0.6B once, as large as it is, in 3 GB: the two models share their weights."""
    p = SanaParams(28, 36, 16, 72)
    assert difference(*pair(p), *inputs(p, 16, 16, batch=1, tokens=64)) < 1e-5
