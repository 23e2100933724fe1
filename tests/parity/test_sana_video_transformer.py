"""The SANA-Video transformer against diffusers' with the same random weights."""

from dataclasses import replace

import pytest
import torch
from diffusers import SanaVideoTransformer3DModel

from sanacog.sana_core.video_checkpoint import to_canonical
from sanacog.sana_core.video_config import SanaVideoParams
from sanacog.sana_core.video_transformer import SanaVideoTransformer

SMALL = SanaVideoParams(3, 3, 2, 48, attention_head_dim=32, caption_channels=48)
FLAVOURS = {"480p": SMALL, "720p": replace(SMALL, in_channels=128, out_channels=128, patch_size=1, latents="ltx2")}


def relative(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def pair(p):
    """Both models with the same weights, chosen so that every part shows in the output."""
    theirs = SanaVideoTransformer3DModel(
        in_channels=p.in_channels, out_channels=p.out_channels, num_attention_heads=p.num_attention_heads,
        attention_head_dim=p.attention_head_dim, num_layers=p.num_layers, patch_size=(1, p.patch_size, p.patch_size),
        num_cross_attention_heads=p.num_cross_attention_heads, cross_attention_head_dim=p.cross_attention_head_dim,
        cross_attention_dim=p.width, caption_channels=p.caption_channels, mlp_ratio=p.mlp_ratio).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(std=(weight[0].numel() if weight.ndim > 1 else 4) ** -0.5, generator=generator)
    for block in theirs.transformer_blocks:  # the authors' epsilon
        block.attn2.norm_q.eps = block.attn2.norm_k.eps = 1e-6
    ours = SanaVideoTransformer(p, device="meta")
    ours.load_state_dict(to_canonical(theirs.state_dict(), "diffusers"), assign=True)
    return ours.eval(), theirs


def inputs(p, frames, height, width, batch=2, tokens=20, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens)
    for i in range(batch):  # each sample keeps fewer tokens than the one before, none keeps all
        mask[i, tokens - 3 - 5 * i:] = 0
    x = torch.randn(batch, p.in_channels, frames, height, width, generator=generator).to(dtype)
    context = torch.randn(batch, tokens, p.caption_channels, generator=generator).to(dtype)
    return x, context, mask


@torch.no_grad()
def difference(ours, theirs, x, timestep, context, mask, theirs_timestep=None):
    theirs_timestep = timestep if theirs_timestep is None else theirs_timestep
    expected = theirs(x, context, theirs_timestep, encoder_attention_mask=mask, return_dict=False)[0]
    found = ours(x, timestep, context, mask)
    assert found.shape == expected.shape and found.dtype == x.dtype
    return relative(found, expected)


@pytest.mark.parametrize("size", [(3, 8, 8), (1, 4, 6), (5, 6, 10)], ids=["square", "one frame", "odd"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_fp32(flavour, size):
    p = FLAVOURS[flavour]
    x, context, mask = inputs(p, *size)
    assert difference(*pair(p), x, torch.tensor([999.0, 3.0]), context, mask) < 1e-5


def test_without_a_mask():
    x, context, _ = inputs(SMALL, 2, 4, 4)
    assert difference(*pair(SMALL), x, torch.tensor([500.0, 20.0]), context, None) < 1e-5


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_image_to_video(flavour):
    """The first frame at time 0: diffusers gives a time for each token, here one for each frame is enough."""
    p = FLAVOURS[flavour]
    x, context, mask = inputs(p, 3, 6, 8)
    frames = torch.tensor([[0.0, 700.0, 700.0], [0.0, 40.0, 40.0]])
    tokens = frames[:, :, None].expand(-1, -1, 48 // p.patch_size**2).flatten(1)
    nets = pair(p)
    # Their last modulation takes times as (B, ..., D) with one for each token.
    assert difference(*nets, x, frames, context, mask, tokens) < 1e-5
    assert difference(*nets, x, tokens, context, mask, tokens) < 1e-5


def test_bf16():
    ours, theirs = pair(SMALL)
    x, context, mask = inputs(SMALL, 3, 6, 8, dtype=torch.bfloat16)
    assert difference(ours.bfloat16(), theirs.bfloat16(), x, torch.tensor([999.0, 3.0]), context, mask) < 2e-2


def test_times_that_do_not_fit():
    ours, _ = pair(SMALL)
    x, context, mask = inputs(SMALL, 3, 6, 8)
    with pytest.raises(ValueError, match="7 times for 36 tokens"):
        ours(x, torch.zeros(2, 7), context, mask)
    with pytest.raises(ValueError, match="multiples of 2"):
        ours(x[..., :5, :], torch.zeros(2), context, mask)
