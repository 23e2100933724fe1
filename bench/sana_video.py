"""SANA-Video's transformers, ours beside diffusers', with random weights that both sides share; and LongSANA's memory.

Widths are the released models'; where a whole model would not fit a case's time, it has fewer blocks, which are all alike.
"""

from __future__ import annotations

from functools import partial

import torch

from ..sana_core.video_checkpoint import network, to_canonical
from ..sana_core.video_config import SanaVideo2Params, SanaVideoParams
from . import sana, sides
from .harness import Case

VARIANTS = {
    "2B 480p": SanaVideoParams(num_layers=20, num_attention_heads=20, num_cross_attention_heads=20, cross_attention_head_dim=112),
    "2B 720p": SanaVideoParams(num_layers=20, num_attention_heads=20, num_cross_attention_heads=20, cross_attention_head_dim=112,
                               in_channels=128, out_channels=128, patch_size=1, latents="ltx2"),
    "2.0 5B": SanaVideo2Params(num_layers=32, width=2560, num_cross_attention_heads=20, softmax_layers=tuple(range(3, 32, 4))),
}
SMALL = SanaVideoParams(num_layers=6, num_attention_heads=8, num_cross_attention_heads=8, cross_attention_head_dim=56, attention_head_dim=56)


def diffusers_transformer(params, device):
    """diffusers' SanaVideoTransformer3DModel of these parameters, weights at random."""
    from diffusers import SanaVideoTransformer3DModel

    with torch.device(device):
        return SanaVideoTransformer3DModel(
            in_channels=params.in_channels, out_channels=params.out_channels, num_attention_heads=params.num_attention_heads,
            attention_head_dim=params.attention_head_dim, num_layers=params.num_layers,
            num_cross_attention_heads=params.num_cross_attention_heads, cross_attention_head_dim=params.cross_attention_head_dim,
            cross_attention_dim=params.width, caption_channels=params.caption_channels, mlp_ratio=params.mlp_ratio,
            patch_size=(1, params.patch_size, params.patch_size))


def random_transformer(params, device="cpu", dtype=None):
    """Ours, weights at random."""
    model = network(params, device=device, dtype=dtype)
    for module in model.modules():
        if hasattr(module, "scale_shift_table"):
            torch.nn.init.normal_(module.scale_shift_table, std=params.width**-0.5)
    return model.eval().requires_grad_(False)


def transformers(params, device, dtype):
    """(ours, the baseline) on the same tensors."""
    torch.manual_seed(0)
    baseline = (diffusers_transformer if sides.DIFFUSERS else random_transformer)(params, device).to(dtype)
    return sides.sharing(network(params, device="meta"), baseline, partial(to_canonical, layout="diffusers"))


def inputs(params, size, device, dtype, batch=2, prompt=sana.PROMPT):
    """Latent, text and mask of a step with guidance: a prompt and an empty one. size: latent frames, height, width."""
    mask = torch.zeros(batch, sana.TOKENS, device=device)
    mask[0, :prompt], mask[1:, :1] = 1, 1
    x = torch.randn(batch, params.in_channels, *size, device=device).to(dtype)
    return x, torch.randn(batch, sana.TOKENS, params.caption_channels, device=device).to(dtype), mask


def step(variant, size, device="cpu", dtype=torch.float32, layers=None, compiled=False):
    """One evaluation with guidance of a clip of so many latent frames, rows and columns -> Case."""
    params = VARIANTS[variant]
    if layers:
        params = type(params)(**{**vars(params), "num_layers": layers})
    ours, baseline = transformers(params, device, dtype)
    if compiled:
        sides.compile_blocks([ours.transformer_blocks] + [baseline.transformer_blocks] * sides.DIFFUSERS)

    def call_diffusers(x, timestep, context, mask):
        return baseline(x, context, timestep, encoder_attention_mask=mask, return_dict=False)[0]

    x, context, mask = inputs(params, size, device, dtype)
    p, (frames, height, width) = params.patch_size, size
    return Case(f"SANA-Video {variant} step, " + f"{layers} layers, " * bool(layers)
                + f"{frames * height * width // p**2} tokens, batch 2" + ", compiled" * compiled, ours,
                call_diffusers if sides.DIFFUSERS else baseline, [(x, torch.full((2,), 714.0, device=device), context, mask)],
                sides.LIMITS[dtype], stacks=[baseline.transformer_blocks] * sides.DIFFUSERS)


def clip(size, steps=8, device="cpu", dtype=torch.float32):
    """A whole clip of a small model by Euler steps with guidance, no text encoder and no decoding -> Case."""
    ours, baseline = transformers(SMALL, device, dtype)
    start, context, mask = inputs(SMALL, size, device, dtype)
    levels = torch.linspace(1, 0, steps + 1)

    def draw(velocity):
        def run(x):
            for level, target in zip(levels, levels[1:]):
                said, null = velocity(x, torch.full((2,), float(1000 * level), device=device)).chunk(2)
                x = x + (target - level) * (null + 6.0 * (said - null)).repeat(2, 1, 1, 1, 1)
            return x
        return run

    text = ours.with_pairs(ours.embed_text(context, mask, trim=device == "cpu"))  # as a run in the host keeps it
    return Case(f"SANA-Video clip, {SMALL.num_layers} layers of {SMALL.width}, {size[0]} x {size[1]} x {size[2]} latents, {steps} steps",
                draw(lambda x, t: ours(x, t, context, mask, text=text)),
                draw(lambda x, t: baseline(x, context, t, encoder_attention_mask=mask, return_dict=False)[0]) if sides.DIFFUSERS
                else draw(lambda x, t: baseline(x, t, context, mask)),
                [(start[:1].repeat(2, 1, 1, 1, 1),)], sides.LIMITS[dtype], stacks=[baseline.transformer_blocks] * sides.DIFFUSERS)


def long_clip(blocks, dtype=torch.float32, frames=10, side=(16, 26)):
    """What LongSANA's network does for a clip of so many blocks of latent frames, one after the other; what is drawn leaves at once.
    -> a call, to measure the memory of."""
    model = random_transformer(SMALL, dtype=dtype)
    x, context, mask = inputs(SMALL, (frames, *side), "cpu", dtype, batch=1)
    text, times = model.embed_text(context, mask), torch.full((1,), 727.0)

    def run():
        past = None
        for block in range(blocks):
            model(x, times, context, mask, text=text, past=past, first_frame=block * frames)
            own = []
            model(x, 0 * times, context, mask, text=text, past=past, keep=own, first_frame=block * frames)
            past = own if past is None else [before.then(later) for before, later in zip(past, own)]
    return run
