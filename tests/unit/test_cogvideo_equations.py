"""CogVideoX's transformer against the equations of its authors' code, in float64, where diffusers deviates from them."""

import torch
import torch.nn.functional as F

from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.transformer import CogVideoTransformer


@torch.no_grad()
def test_last_norm():
    """Shown on numbers small enough for the epsilon to matter. Source: SAT's final layer, LayerNorm with 1e-6."""
    torch.manual_seed(0)
    net = CogVideoTransformer(CogVideoParams(num_layers=1, num_attention_heads=2, time_embed_dim=16, text_embed_dim=8))
    norm, x, embedding = net.norm_out.double(), 1e-3 * torch.randn(2, 5, 128, dtype=torch.float64), torch.randn(2, 16).double()
    for weight in norm.parameters():
        weight.normal_(std=0.5)
    shift, scale = (F.silu(embedding) @ norm.linear.weight.T + norm.linear.bias)[:, None].chunk(2, -1)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.norm.weight + norm.norm.bias
    torch.testing.assert_close(norm(x, embedding), normed * (1 + scale) + shift, rtol=1e-9, atol=1e-12)
