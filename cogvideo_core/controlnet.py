"""TheDenk's ControlNet for CogVideoX: some blocks of its own, which read the noisy latent beside a control video.

Module names are those of its files. Shapes as in transformer.py. Source: github.com/TheDenk/cogvideox-controlnet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.products import fastest
from .config import CogVideoParams
from .transformer import CogVideoBlock, PatchEmbed, TimestepEmbedding, joint_rope, sdpa, sinusoid

PIXELS, FRAMES = 8, 4  # px a side and frames of one latent pixel
COLOURS = 3 * PIXELS**2  # of a latent pixel's square, side by side
HINT_CHANNELS = COLOURS // 4


class CogVideoControlNet(nn.Module):
    """What is added to the video tokens behind the base's first blocks.

    params: of the network; its in_channels are the latent's 16 and the HINT_CHANNELS of the control video,
    use_rotary_positional_embeddings False where a sine-cosine code is added. out_width: the base's width, for files with
    `out_projectors`; None for those whose tokens are added as they are. device, dtype, operations: as for
    CogVideoTransformer.
    """

    def __init__(self, params: CogVideoParams, out_width: int | None = None, *, device=None, dtype=None,
                 operations=torch.nn):
        super().__init__()
        self.params = params
        operations = fastest(operations)
        kw = dict(device=device, dtype=dtype)

        def smaller(channels):
            return nn.Sequential(operations.Conv2d(channels, channels // 2, 1, **kw),
                                 operations.GroupNorm(2, channels // 2, **kw), nn.ReLU())

        self.controlnet_encode_first = smaller(COLOURS)
        self.controlnet_encode_second = smaller(COLOURS // 2)
        kw["operations"] = operations
        self.patch_embed = PatchEmbed(params, **kw)
        self.time_embedding = TimestepEmbedding(params.width, params.time_embed_dim, **kw)
        self.transformer_blocks = nn.ModuleList([CogVideoBlock(params, **kw) for _ in range(params.num_layers)])
        if out_width:
            self.out_projectors = nn.ModuleList([
                operations.Linear(params.width, out_width, device=device, dtype=dtype) for _ in range(params.num_layers)])

    def encode(self, frames):
        """Control video (B, 3, 4 n + 1, H, W) in [-1, 1], H and W multiples of 8 -> (B, HINT_CHANNELS, n + 1, H / 8, W / 8).

        Each frame by itself, then twice pairs of frames are averaged, the first one left alone. Raises ValueError for
        another number of frames.
        """
        B, _, count = frames.shape[:3]
        if count % FRAMES != 1:
            raise ValueError(f"the control video has {count} frames, expected 4 n + 1")
        x = F.pixel_unshuffle(frames.transpose(1, 2).flatten(0, 1), PIXELS)
        for convolution in (self.controlnet_encode_first, self.controlnet_encode_second):
            x = convolution(x).unflatten(0, (B, -1))
            x = torch.cat([x[:, :1], x[:, 1:].unflatten(1, (-1, 2)).mean(2)], dim=1).flatten(0, 1)
        return x.unflatten(0, (B, -1)).transpose(1, 2)

    def forward(self, x, timestep, context, hint, rotary: bool, attention=sdpa) -> list[torch.Tensor]:
        """Residuals [(B, N, out_width or D)], one for each of the base's first blocks, all of them tensors of their own.

        x (B, 16, T, H, W): the noisy latent as the base sees it, without what that is conditioned on. timestep (B,): 0..999.
        context (B, L, text_embed_dim). hint (B, HINT_CHANNELS, T, H, W): of `encode`. rotary: whether the base has rotary
        positions, which then hold here too. attention: as for CogVideoTransformer.
        """
        p, dtype = self.params, x.dtype
        x = torch.cat([x, hint.to(dtype)], dim=1)
        if x.shape[3] % p.patch_size or x.shape[4] % p.patch_size:
            x = F.pad(x, (0, -x.shape[4] % p.patch_size, 0, -x.shape[3] % p.patch_size, 0, 0), mode="replicate")
        grid = p.grid(x.shape)
        embedding = self.time_embedding(sinusoid(timestep, p.width).to(dtype))
        x, context = self.patch_embed(x, context.to(dtype))
        rope = joint_rope(p, grid, context.shape[1], x.device) if rotary else None
        out, residuals = getattr(self, "out_projectors", None), []
        for number, block in enumerate(self.transformer_blocks):
            x, context = block(x, context, embedding, rope, attention)
            residuals.append(x if out is None else out[number](x))
        return residuals
