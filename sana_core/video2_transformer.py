"""The transformer of SANA-Video 2.0: three blocks of gated linear attention to one of gated softmax attention, and residuals over
depth that are attended to instead of summed up.

No public library has it: module names follow video_transformer.py's, and stand for what NVlabs' files call otherwise
(video_checkpoint.py). Shapes as in video_layers.py. Source: arXiv 2607.21553 and the code released with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.products import fastest
from ..kernels.rope import rotate_pairs
from ..kernels.rotary_attention import read_state, state_of
from .transformer import LINEAR_EPS, SELF_NORM_EPS, Attention, CrossAttention, sdpa
from .video_config import SanaVideo2Params
from .video_layers import VideoNetwork, angles, grouped, modulated

DEPTH_EPS = 1e-6


class GatedAttention(Attention):
    """The projections of both kinds: q, k and v with a norm, and an output gate that is made of the input."""

    def __init__(self, params, heads, *, device, dtype, operations):
        kw = dict(device=device, dtype=dtype)
        super().__init__(params, heads, params.width // heads, False, SELF_NORM_EPS, **kw, operations=operations)
        self.output_gate = operations.Linear(params.width, params.width, **kw)

    def split(self, x):
        return (t.unflatten(-1, (self.heads, -1)) for t in (self.queries(x), *self.keys_values(x)))

    def out(self, x, attended):
        return self.to_out[0](attended * torch.sigmoid(self.output_gate(x)))


class GatedLinearAttention(GatedAttention):
    """Here the position is put on before the ReLU, which is the normaliser's alone; keys are weighed by beta, results normed."""

    def __init__(self, params, *, device, dtype, operations):
        heads, kw = params.width // params.linear_head_dim, dict(device=device, dtype=dtype)
        super().__init__(params, heads, **kw, operations=operations)
        self.beta_proj = operations.Linear(params.width, heads, **kw)
        self.norm_out = operations.RMSNorm(params.linear_head_dim, eps=SELF_NORM_EPS, **kw)

    def forward(self, x, cos, sin, attention):
        q, k, v = self.split(x)
        beta = torch.sigmoid(self.beta_proj(x))[..., None]
        state = state_of(k, v * beta, cos, sin, relu_first=False)  # beta weighs a key in the sum of values alone
        out = self.norm_out(read_state(q, state, cos, sin, LINEAR_EPS, relu_first=False))
        return self.out(x, out.flatten(2))


class GatedSoftmaxAttention(GatedAttention):
    def __init__(self, params, **kw):
        super().__init__(params, params.width // params.softmax_head_dim, **kw)

    def forward(self, x, cos, sin, attention):
        q, k, v = self.split(x)
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        return self.out(x, attention(q.flatten(2), k.flatten(2), v.flatten(2), self.heads, None))


class SwiGLU(nn.Module):
    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        D, hidden, kw = params.width, params.hidden, dict(device=device, dtype=dtype)
        self.gate_proj = operations.Linear(D, hidden, **kw)
        self.up_proj = operations.Linear(D, hidden, **kw)
        self.down_proj = operations.Linear(hidden, D, **kw)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SanaVideo2Block(nn.Module):
    """Its two halves give what they would add, and not the sum: DepthAttention decides what they see."""

    def __init__(self, params, index, *, device, dtype, operations):
        super().__init__()
        kw = dict(device=device, dtype=dtype, operations=operations)
        self.softmax = index in params.softmax_layers
        self.attn1 = (GatedSoftmaxAttention if self.softmax else GatedLinearAttention)(params, **kw)
        self.attn2 = CrossAttention(params, **kw)
        self.ff = SwiGLU(params, **kw)
        self.scale_shift_table = nn.Parameter(torch.empty(6, params.width, device=device, dtype=dtype))

    def _modulation(self, modulation, half):
        table = self.scale_shift_table.to(device=modulation.device, dtype=modulation.dtype)
        return (table + modulation).unsqueeze(-2).unbind(2)[3 * half: 3 * half + 3]

    def attend(self, x, context, modulation, mask, turns, attention=sdpa, pair=None):
        """x (B, N, D), modulation (B, G, 6, D), the rest as for SanaVideoBlock -> (B, N, D), without x."""
        shift, scale, gate = self._modulation(modulation, 0)
        change = self.attn1(modulated(x, shift, scale), *turns, attention)
        change = (grouped(change, gate.shape[1]) * gate).flatten(1, 2)
        return change + self.attn2(x + change, context, mask, attention, pair)

    def feed(self, x, modulation):
        shift, scale, gate = self._modulation(modulation, 1)
        change = self.ff(modulated(x, shift, scale))
        return (grouped(change, gate.shape[1]) * gate).flatten(1, 2)


class DepthAttention(nn.Module):
    """Each token's own softmax over what lies below in depth: the sums of finished groups of blocks, and of the running one.

    One learned query for the attentions, one for the feed-forward networks and one for the end, shared by all blocks.
    """

    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        for name in ("attn_proj", "mlp_proj", "final_proj"):
            setattr(self, name, operations.Linear(params.width, 1, bias=False, device=device, dtype=dtype))

    def forward(self, proj, sources):
        """sources: tensors (B, N, D) -> (B, N, D)."""
        if len(sources) == 1:
            return sources[0]
        # proj is linear: the norm of a key is a factor on its logit.
        logits = torch.cat([proj(x) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + DEPTH_EPS) for x in sources], dim=-1)
        out = None
        for x, weight in zip(sources, logits.softmax(-1).unbind(-1)):
            out = x * weight[..., None] if out is None else torch.addcmul(out, x, weight[..., None])
        return out


class SanaVideo2Transformer(VideoNetwork):
    """Predicts the flow velocity (noise minus clean latent) of a noisy clip. Arguments as for SanaVideoTransformer."""

    def __init__(self, params: SanaVideo2Params, *, device=None, dtype=None, operations=torch.nn):
        super().__init__(params, device=device, dtype=dtype, operations=operations)
        kw = dict(device=device, dtype=dtype, operations=fastest(operations))
        self.transformer_blocks = nn.ModuleList([SanaVideo2Block(params, i, **kw) for i in range(params.num_layers)])
        self.attn_res = DepthAttention(params, device=device, dtype=dtype, operations=operations)

    def forward(self, x, timestep, context, attention_mask=None, *, text=None, attention=sdpa, run_block=None):
        """As SanaVideoTransformer.forward, without frames before these. run_block stands around both halves of a block, and its
        x is the sum of the block's group."""
        params, p = self.params, self.params.patch_size
        size = (x.shape[2], x.shape[3] // p, x.shape[4] // p)
        x, modulation, times = self.embed(x, timestep)
        turns = {softmax: angles(*size, dim, device=x.device)
                 for softmax, dim in ((False, params.linear_head_dim), (True, params.softmax_head_dim))}
        text = self.embed_text(context.to(x.dtype), attention_mask) if text is None else text
        context, finished = text.context, [x]

        for i, block in enumerate(self.transformer_blocks):
            first = i % params.depth_group == 0

            def call(x, context, modulation, i=i, block=block, first=first):
                pair = text.pairs[i] if text.pairs and context is text.context else None  # run_block may change the text
                seen = self.attn_res(self.attn_res.attn_proj, finished if first else [*finished, x])
                x = x + block.attend(seen, context, modulation, text.mask, turns[block.softmax], attention, pair)
                seen = self.attn_res(self.attn_res.mlp_proj, [*finished, x])
                return x + block.feed(seen, modulation), context

            x = torch.zeros_like(x) if first else x
            x, context = call(x, context, modulation) if run_block is None else run_block(i, call, x, context, modulation)
            if (i + 1) % params.depth_group == 0 or i + 1 == params.num_layers:
                finished.append(x)
        return self.unpatched(self.attn_res(self.attn_res.final_proj, finished), times, *size)
