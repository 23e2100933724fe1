"""ReLU linear attention: Sana's self-attention, linear in the number of tokens.

    out_n = sum_m relu(q_n).relu(k_m) v_m / (sum_m relu(q_n).relu(k_m) + eps)

The sum over m does not depend on n, so keys and values first shrink to one small state per head.
Source: "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers"
(arXiv 2410.10629), section 2.2.
"""

import torch
import torch.nn.functional as F

from . import dispatch, register

HEAD_DIMS = (16, 32)  # of the fused kernel; all released models have 32


def relu_linear_attention(q, k, v, eps=1e-15):
    """Attend with ReLU feature maps instead of a softmax; no scale, no mask.

    q (B, N, H, Dh), k and v (B, M, H, Dh): any float dtype, any strides, after the query-key norm if there is one,
    before the ReLU. Returns (B, N, H, Dh) in q's dtype.
    The state and both sums are fp32 whatever comes in: the normaliser adds up thousands of terms, and
    eps does not exist in fp16. A query that ReLU turns to zero everywhere gives zeros.
    """
    if q.shape[-1] in HEAD_DIMS and q.dtype == k.dtype == v.dtype and dispatch.fusible(q, k, v, compiled=True):
        return dispatch.run("relu_linear_attention", q, k, v, eps)
    return eager(q, k, v, eps)


def eager(q, k, v, eps):
    return read_state(q, state_of(k, v), eps)


def state_of(k, v):
    """What queries need of keys and values (B, M, H, Dh) -> (B, H, Dh, Dh + 1) in fp32. Those of parts of the tokens add up."""
    # (B, H, M, Dh): matmul runs one small GEMM per head.
    k = F.relu(k).float().transpose(1, 2)
    v = v.float().transpose(1, 2)
    # The normaliser rides along as one more column of the state: one product with q gives both sums.
    return torch.cat([k.transpose(-1, -2) @ v, k.sum(dim=-2).unsqueeze(-1)], dim=-1)


def read_state(q, state, eps=1e-15):
    """q (B, N, H, Dh) before the ReLU, state as of `state_of` -> (B, N, H, Dh) in q's dtype."""
    out = F.relu(q).float().transpose(1, 2) @ state
    return (out[..., :-1] / (out[..., -1:] + eps)).transpose(1, 2).to(q.dtype)


def contiguous_eager(q, k, v, eps):
    return eager(q, k, v, eps).contiguous()


register.add_eager("relu_linear_attention", contiguous_eager)
