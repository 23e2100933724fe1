"""Sana's ControlNet: the diffusers wiring against diffusers, the native one against its equations on diffusers' blocks."""

from dataclasses import replace

import pytest
import torch
from diffusers import SanaControlNetModel

from sanacog.sana_core.checkpoint import to_canonical
from sanacog.sana_core.controlnet import SanaControlNet

from .test_sana_transformer import SMALL, inputs, pair, relative

LAYERS = 2  # of SMALL's 3


def diffusers_net(layers=LAYERS, p=SMALL):
    net = SanaControlNetModel(
        in_channels=p.in_channels, num_attention_heads=p.num_attention_heads, attention_head_dim=p.attention_head_dim,
        num_layers=layers, num_cross_attention_heads=p.num_cross_attention_heads,
        cross_attention_head_dim=p.cross_attention_head_dim, cross_attention_dim=p.width,
        caption_channels=p.caption_channels, mlp_ratio=p.mlp_ratio, sample_size=p.sample_size,
        interpolation_scale=p.interpolation_scale).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=(weight[0].numel() if weight.ndim > 1 else 4) ** -0.5, generator=generator)
    return net


def ours_of(net, wiring, p=SMALL):
    ours = SanaControlNet(p, len(net.transformer_blocks), wiring, device="meta")
    ours.load_state_dict(to_canonical(net.state_dict(), "diffusers"), assign=True)
    return ours.eval()


def with_residuals(residuals):
    def run_block(i, call, x, context, modulation):
        x, context = call(x, context, modulation)
        if i < len(residuals) and residuals[i] is not None:
            x = x + residuals[i]
        return x, context
    return {"run_block": run_block}


@pytest.fixture(scope="module")
def case():
    ours, theirs = pair(SMALL)
    x, timestep, context, mask, _ = inputs(SMALL, 12, 18)
    control = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    return ours, theirs, x, timestep, context, mask, control


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_diffusers_wiring(case, layers):
    base, theirs, x, timestep, context, mask, control = case
    net = diffusers_net(layers)
    samples = net(x, context, timestep, control, encoder_attention_mask=mask, return_dict=False)[0]
    residuals = ours_of(net, "diffusers")(x, timestep, context, mask, control=control)
    assert residuals[0] is None and len(residuals) == layers + 1
    for mine, reference in zip(residuals[1:], samples):
        assert relative(mine, reference) < 1e-5
    expected = theirs(x, context, timestep, encoder_attention_mask=mask, controlnet_block_samples=samples,
                      return_dict=False)[0]
    plain = theirs(x, context, timestep, encoder_attention_mask=mask, return_dict=False)[0]
    found = base(x, timestep, context, mask, **with_residuals(residuals))
    assert relative(found, expected) < 1e-5 < relative(plain, expected)


@torch.no_grad()
def test_native_wiring(case):
    base, theirs, x, timestep, context, mask, control = case
    net = diffusers_net()
    additive = ((1 - mask) * -10000.0)[:, None]

    modulation, embedded = theirs.time_embed(timestep, batch_size=2, hidden_dtype=x.dtype)
    text = theirs.caption_norm(theirs.caption_projection(context))

    def run(block, x, text=text, modulation=modulation):
        return block(x, None, text, additive, modulation, 12, 18)

    # The net's own embeddings, which in a released file are the base's.
    own_modulation, _ = net.time_embed(timestep, batch_size=2, hidden_dtype=x.dtype)
    own = dict(text=net.caption_norm(net.caption_projection(context)), modulation=own_modulation)
    c = run(theirs.transformer_blocks[0], net.patch_embed(x), **own) + net.input_block(net.patch_embed(control))
    skips = []
    for block, after in zip(net.transformer_blocks, net.controlnet_blocks):
        c = run(block, c, **own)
        skips.append(after(c))
    h = run(theirs.transformer_blocks[0], theirs.patch_embed(x))
    for i, block in enumerate(theirs.transformer_blocks[1:]):
        h = run(block, h + skips[i] if i < len(skips) else h)
    shift, scale = (theirs.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
    h = theirs.proj_out(torch.nn.functional.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    expected = h.unflatten(1, (12, 18)).permute(0, 3, 1, 2)

    ours = ours_of(net, "native")
    residuals = ours(x, timestep, context, mask, control=control, base_block=base.transformer_blocks[0])
    assert len(residuals) == LAYERS
    assert relative(base(x, timestep, context, mask, **with_residuals(residuals)), expected) < 1e-5
    swapped = ours_of(net, "diffusers")(x, timestep, context, mask, control=control)
    assert relative(base(x, timestep, context, mask, **with_residuals(swapped)), expected) > 1e-2


@torch.no_grad()
def test_position_code_of_the_large_models(case):
    """diffusers gives it to the control picture, too; NVlabs does not."""
    base, _, x, timestep, context, mask, control = case
    large = replace(SMALL, interpolation_scale=1.0)
    net = diffusers_net(p=large)
    samples = net(x, context, timestep, control, encoder_attention_mask=mask, return_dict=False)[0]
    inputs = dict(attention_mask=mask, control=control, base_block=base.transformer_blocks[0])
    found = ours_of(net, "diffusers", large)(x, timestep, context, **inputs)
    for mine, reference in zip(found[1:], samples):
        assert relative(mine, reference) < 1e-5

    seen = []
    native = ours_of(net, "native", large)
    native.input_block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    native(x, timestep, context, **inputs)
    assert relative(seen[0], net.patch_embed.proj(control).flatten(2).transpose(1, 2)) < 1e-6


@pytest.mark.parametrize("wiring", ["native", "diffusers"])
@torch.no_grad()
def test_training_starts_without_an_effect(case, wiring):
    base, _, x, timestep, context, mask, control = case
    net = SanaControlNet(SMALL, LAYERS, wiring)
    net.start_from(base)
    residuals = net(x, timestep, context, mask, control=control, base_block=base.transformer_blocks[0])
    assert all(r is None or not r.any() for r in residuals)
    assert torch.equal(net.transformer_blocks[1].attn1.to_q.weight, base.transformer_blocks[1].attn1.to_q.weight)
    net.controlnet_blocks[0].weight.add_(torch.eye(SMALL.width))
    assert net(x, timestep, context, mask, control=control, base_block=base.transformer_blocks[0])[wiring == "diffusers"].any()


def test_what_is_missing_is_named(case):
    _, _, x, timestep, context, mask, control = case
    with pytest.raises(ValueError, match="native, diffusers"):
        SanaControlNet(SMALL, 1, "hed")
    with pytest.raises(ValueError, match="needs `base_block`"):
        SanaControlNet(SMALL, 1)(x, timestep, context, mask, control=control)
