"""CogVideoX's models, ours beside diffusers', with random weights that both sides share.

Block and layer sizes are the released models'; where a whole model would not fit a case's time, it has fewer blocks,
which are all alike. Without diffusers the baseline is our own model, never compiled.
"""

from __future__ import annotations

from functools import partial

import torch

from ..cogvideo_core import checkpoint
from ..cogvideo_core.autoencoder import CogVideoVAE
from ..cogvideo_core.config import CogVideoParams, CogVideoVAEParams
from ..cogvideo_core.transformer import CogVideoTransformer
from . import sides
from .harness import Case

VARIANTS = {
    "2B": CogVideoParams(num_layers=30, num_attention_heads=30, use_rotary_positional_embeddings=False),
    "5B": CogVideoParams(num_layers=42, num_attention_heads=48),
    "1.5-5B": CogVideoParams(num_layers=42, num_attention_heads=48, patch_size_t=2),
}
VAE = CogVideoVAEParams()


def diffusers_transformer(params, device):
    """diffusers' CogVideoXTransformer3DModel of these parameters, weights at random."""
    from diffusers import CogVideoXTransformer3DModel

    names = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size",
             "patch_size_t", "time_embed_dim", "ofs_embed_dim", "text_embed_dim", "max_text_seq_length", "sample_height",
             "sample_width", "use_rotary_positional_embeddings", "use_learned_positional_embeddings")
    with torch.device(device):
        return CogVideoXTransformer3DModel(**{name: getattr(params, name) for name in names}, sample_frames=49)


def transformers(params, device, dtype):
    """(ours, the baseline) on the same tensors."""
    torch.manual_seed(0)
    baseline = (diffusers_transformer if sides.DIFFUSERS else CogVideoTransformer)(params, device=device).to(dtype)
    return sides.sharing(CogVideoTransformer(params, device="meta"), baseline,
                         partial(checkpoint.to_canonical, layout="diffusers"))


def rotary(params, shape, device):
    """What diffusers' pipeline computes once a run and hands to the transformer: (cos, sin), None for the 2B."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    if not params.use_rotary_positional_embeddings:
        return None
    frames, height, width = params.grid(shape)
    if params.patch_size_t:
        return get_3d_rotary_pos_embed(params.attention_head_dim, None, (height, width), frames, grid_type="slice",
                                       max_size=(height, width), device=device)
    crop = get_resize_crop_region_for_grid((height, width), params.base_grid[1], params.base_grid[0])
    return get_3d_rotary_pos_embed(params.attention_head_dim, crop, (height, width), frames, device=device)


def step(variant, frames, height, width, device="cpu", dtype=torch.float32, sets=1, layers=None, batch=1, compiled=False):
    """One evaluation of a transformer on a clip of so many latent frames and pixels -> Case.

    layers: so many blocks instead of all. batch: 2 is a step with guidance. compiled: each block, on both sides.
    """
    params = VARIANTS[variant]
    if layers:
        params = CogVideoParams(**{**vars(params), "num_layers": layers})
    ours, baseline = transformers(params, device, dtype)
    if compiled:
        sides.compile_blocks([ours.transformer_blocks] + [baseline.transformer_blocks] * sides.DIFFUSERS)
    shape = (batch, params.in_channels, frames, height // 8, width // 8)
    rope = rotary(params, shape, device) if sides.DIFFUSERS else None

    def call_diffusers(x, timestep, context):
        return baseline(x.transpose(1, 2), context, timestep, image_rotary_emb=rope, return_dict=False)[0].transpose(1, 2)

    def one():  # drawn in fp32, so that all dtypes get the same
        x = torch.randn(shape, device=device).to(dtype)
        context = torch.randn(batch, params.max_text_seq_length, params.text_embed_dim, device=device).to(dtype)
        return x, torch.full((batch,), 699.0, device=device), context

    grid = params.grid(shape)
    tokens = params.max_text_seq_length + grid[0] * grid[1] * grid[2]
    return Case(f"CogVideoX {variant} step, " + f"{layers} layers, " * bool(layers) + f"{tokens} tokens, batch {batch}"
                + ", compiled" * compiled, ours, call_diffusers if sides.DIFFUSERS else baseline,
                [one() for _ in range(sets)], sides.LIMITS[dtype], stacks=[baseline.transformer_blocks] * sides.DIFFUSERS)


def diffusers_autoencoder(device):
    """diffusers' AutoencoderKLCogVideoX, weights at random."""
    from diffusers import AutoencoderKLCogVideoX

    names = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    with torch.device(device):
        return AutoencoderKLCogVideoX(**{name: getattr(VAE, name) for name in names})


def autoencoders(device, dtype):
    """(ours, the baseline) of the VAE on the same tensors."""
    torch.manual_seed(0)
    baseline = (diffusers_autoencoder(device) if sides.DIFFUSERS else CogVideoVAE(VAE, device=device)).to(dtype)
    return sides.sharing(CogVideoVAE(VAE, device="meta"), baseline,
                         partial(checkpoint.autoencoder_to_canonical, layout="diffusers"))


def decode(frames, height, width, device="cpu", dtype=torch.float32, compiled=False):
    """VAE decode of one clip of 4n + 1 frames, untiled -> Case."""
    ours, baseline = autoencoders(device, dtype)
    if compiled:
        sides.compile_blocks([[ours.decoder]] + [[baseline.decoder]] * sides.DIFFUSERS)
    z = torch.randn(1, VAE.latent_channels, (frames + 3) // 4, height // 8, width // 8, device=device).to(dtype)
    return Case(f"CogVideoX VAE decode, {frames} frames, {height} x {width} px" + ", compiled" * compiled, ours.decode,
                sides.first(baseline.decode) if sides.DIFFUSERS else baseline.decode, [(z,)], sides.LIMITS[dtype],
                stacks=[[baseline.decoder]] * sides.DIFFUSERS)


def encode(frames, height, width, device="cpu", dtype=torch.float32):
    """VAE encode of one clip, untiled, to the mean -> Case."""
    ours, baseline = autoencoders(device, dtype)
    x = (torch.rand(1, 3, frames, height, width, device=device) * 2 - 1).to(dtype)

    def call_diffusers(x):
        return baseline.encode(x, return_dict=False)[0].mean

    return Case(f"CogVideoX VAE encode, {frames} frames, {height} x {width} px", ours.encode,
                call_diffusers if sides.DIFFUSERS else baseline.encode, [(x,)], sides.LIMITS[dtype],
                stacks=[[baseline.encoder]] * sides.DIFFUSERS)
