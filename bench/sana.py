"""Sana's models, ours beside diffusers', at their real sizes with random weights that both sides share.

On a machine without diffusers the baseline is our own model, never compiled: what compiling gains can still be seen.
"""

from __future__ import annotations

from functools import partial

import torch

from ..sana_core import autoencoder_checkpoint, checkpoint
from ..sana_core.autoencoder import AutoencoderDC, DCAEParams
from ..sana_core.config import SanaParams
from ..sana_core.transformer import SanaTransformer
from . import sides
from .harness import Case

SIZES = {
    "0.6B": SanaParams(num_layers=28, num_attention_heads=36, num_cross_attention_heads=16, cross_attention_head_dim=72),
    "1.6B": SanaParams(num_layers=20, num_attention_heads=70, num_cross_attention_heads=20, cross_attention_head_dim=112),
}
LATENT_SCALE = DCAEParams().scaling_factor
TOKENS = 300   # what Sana pads a prompt to
PROMPT = 120   # tokens of the prompt in these cases; the empty prompt beside it has one


def diffusers_transformer(params, device):
    """diffusers' SanaTransformer2DModel of these parameters, weights at random."""
    from diffusers import SanaTransformer2DModel

    with torch.device(device):
        return SanaTransformer2DModel(
            num_layers=params.num_layers, num_attention_heads=params.num_attention_heads,
            attention_head_dim=params.attention_head_dim, num_cross_attention_heads=params.num_cross_attention_heads,
            cross_attention_head_dim=params.cross_attention_head_dim, cross_attention_dim=params.width,
            caption_channels=params.caption_channels, mlp_ratio=params.mlp_ratio, sample_size=params.sample_size,
            guidance_embeds=params.guidance_embeds, qk_norm="rms_norm_across_heads" if params.qk_norm else None)


def random_transformer(params, device):
    """Ours, weights at random."""
    model = SanaTransformer(params, device=device)
    for module in model.modules():
        if hasattr(module, "scale_shift_table"):
            torch.nn.init.normal_(module.scale_shift_table, std=params.width**-0.5)
    return model


def transformers(params, device, dtype):
    """(ours, the baseline) on the same tensors."""
    torch.manual_seed(0)
    baseline = (diffusers_transformer if sides.DIFFUSERS else random_transformer)(params, device).to(dtype)
    return sides.sharing(SanaTransformer(params, device="meta"), baseline,
                         partial(checkpoint.to_canonical, layout="diffusers"))


def step_inputs(params, pixels, device, dtype, sets=1, prompt=PROMPT):
    """Arguments of SanaTransformer.forward for one step with guidance: a batch of two, a prompt and an empty one."""
    side = pixels // 32
    mask = torch.zeros(2, TOKENS, device=device)
    mask[0, :prompt], mask[1, :1] = 1, 1

    def one():  # drawn in fp32, so that all dtypes get the same
        x = torch.randn(2, params.in_channels, side, side, device=device).to(dtype)
        context = torch.randn(2, TOKENS, params.caption_channels, device=device).to(dtype)
        return x, torch.full((2,), 714.0, device=device), context, mask
    return [one() for _ in range(sets)]


def step(size, pixels, device="cpu", dtype=torch.float32, sets=1, prompt=PROMPT, compiled=False):
    """One denoising step with guidance, on a prompt of that many tokens -> Case. compiled: each block, on both sides."""
    params = SIZES[size]
    ours, baseline = transformers(params, device, dtype)
    if compiled:
        sides.compile_blocks([ours.transformer_blocks] + [baseline.transformer_blocks] * sides.DIFFUSERS)

    def call_diffusers(x, timestep, context, mask):
        return baseline(x, encoder_hidden_states=context, timestep=timestep, encoder_attention_mask=mask,
                        return_dict=False)[0]

    return Case(f"Sana {size} step, {pixels} px, batch 2, {prompt} tokens" + ", compiled" * compiled,
                ours, call_diffusers if sides.DIFFUSERS else baseline,
                step_inputs(params, pixels, device, dtype, sets, prompt), sides.LIMITS[dtype],
                stacks=[baseline.transformer_blocks] * sides.DIFFUSERS)


def diffusers_autoencoder(params, device):
    """diffusers' AutoencoderDC of these parameters, weights at random."""
    from diffusers import AutoencoderDC as Theirs

    names = ("encoder_block_types", "decoder_block_types", "encoder_block_out_channels", "decoder_block_out_channels",
             "encoder_layers_per_block", "decoder_layers_per_block", "encoder_qkv_multiscales", "decoder_qkv_multiscales",
             "upsample_block_type", "downsample_block_type", "decoder_act_fns", "scaling_factor")
    with torch.device(device):
        return Theirs(**{name: getattr(params, name) for name in names})


def autoencoders(device, dtype):
    """(ours, the baseline) of DC-AE on the same tensors."""
    torch.manual_seed(0)
    params = DCAEParams()
    baseline = (diffusers_autoencoder(params, device) if sides.DIFFUSERS else AutoencoderDC(params, device=device)).to(dtype)
    return sides.sharing(AutoencoderDC(params, device="meta"), baseline,
                         partial(autoencoder_checkpoint.to_canonical, layout="diffusers"))


def decode(pixels, device="cpu", dtype=torch.float32, compiled=False):
    """DC-AE decode of one picture -> Case."""
    ours, baseline = autoencoders(device, dtype)
    if compiled:
        sides.compile_blocks([[ours.decoder]] + [[baseline.decoder]] * sides.DIFFUSERS)
    z = torch.randn(1, 32, pixels // 32, pixels // 32, device=device).to(dtype)
    return Case(f"DC-AE decode, {pixels} px" + ", compiled" * compiled, ours.decode,
                sides.first(baseline.decode) if sides.DIFFUSERS else baseline.decode, [(z,)], sides.LIMITS[dtype],
                stacks=[[baseline.decoder]] * sides.DIFFUSERS)


def encode(pixels, device="cpu", dtype=torch.float32, compiled=False):
    """DC-AE encode of one picture -> Case."""
    ours, baseline = autoencoders(device, dtype)
    if compiled:
        sides.compile_blocks([[ours.encoder]] + [[baseline.encoder]] * sides.DIFFUSERS)
    x = (torch.rand(1, 3, pixels, pixels, device=device) * 2 - 1).to(dtype)
    return Case(f"DC-AE encode, {pixels} px" + ", compiled" * compiled, ours.encode,
                sides.first(baseline.encode) if sides.DIFFUSERS else baseline.encode, [(x,)], sides.LIMITS[dtype],
                stacks=[[baseline.encoder]] * sides.DIFFUSERS)


def decode_exactly(pixels, tile, device="cpu", dtype=torch.float32):
    """DC-AE decode of one picture in pieces that equal the whole -> Case, whose baseline is our own decode at once."""
    torch.manual_seed(0)
    model = AutoencoderDC(DCAEParams(), device=device, dtype=dtype).eval().requires_grad_(False)
    z = torch.randn(1, 32, pixels // 32, pixels // 32, device=device).to(dtype)

    def pieces(z):
        return model.decode_exactly(z, z.new_empty(1, 3, pixels, pixels), tile)
    return Case(f"DC-AE decode, {pixels} px, in pieces of {tile} px beside the whole", pieces, model.decode, [(z,)],
                sides.LIMITS[dtype])
