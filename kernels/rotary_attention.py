"""Linear attention with a rotary position code: the self-attention of SANA-Video.

    out_n = sum_m (q'_n . k'_m) v_m / (sum_m relu(q_n) . relu(k_m) + eps)

q', k' carry the position: SANA-Video turns what ReLU has left, SANA-Video 2.0 what it was given; so they may be negative, and the
normaliser takes what is not turned. The sums over m do not depend on n: they are one small state a head, and those of parts of the
tokens add up. So a network that goes on from earlier frames needs nothing of them but their state.
Source: arXiv 2509.24695 (SANA-Video), section 3.2; for 2.0 arXiv 2607.21553.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import dispatch, register
from .rope import rotate_pairs

WIDEST = 128  # head dimension of the fused kernels


class State(NamedTuple):
    """What queries need of keys and values, in fp32."""

    values: torch.Tensor  # (B, H, Dh, Dv), sum of k' v
    keys: torch.Tensor    # (B, H, Dh), sum of relu(k)

    def __add__(self, other: State) -> State:
        return State(self.values + other.values, self.keys + other.keys)


def state_of(k, v, cos, sin, relu_first: bool = True) -> State:
    """k and v (B, M, H, D), any float dtype, before the ReLU; cos and sin (M, D / 2) in fp32, of rotate_pairs. relu_first: whether
    the keys are turned after the ReLU, or without it."""
    if _fusible(k, v, cos, sin):
        return State(*dispatch.run("rotary_state", k, v, cos, sin, relu_first))
    return State(*eager_state(k, v, cos, sin, relu_first))


def read_state(q, state: State, cos, sin, eps: float, relu_first: bool = True) -> torch.Tensor:
    """q (B, N, H, Dh) before the ReLU, cos and sin (N, Dh / 2) -> (B, N, H, Dv) in q's dtype. relu_first: as for state_of."""
    if _fusible(q, *state, cos, sin):
        return dispatch.run("rotary_read", q, *state, cos, sin, eps, relu_first)
    return eager_read(q, *state, cos, sin, eps, relu_first)


def _fusible(x, *others):
    return x.shape[-1] <= WIDEST and x.shape[-1] % 2 == 0 and dispatch.fusible(x, *others)


def eager_state(k, v, cos, sin, relu_first):
    positive = F.relu(k)
    turned = rotate_pairs(positive.clone() if relu_first else k.clone(), cos, sin)  # may overwrite what it is given
    # Summed in fp32: the normaliser adds up tens of thousands of terms.
    return turned.float().permute(0, 2, 3, 1) @ v.float().transpose(1, 2), positive.sum(dim=1, dtype=torch.float32)


def eager_read(q, values, keys, cos, sin, eps, relu_first):
    positive = F.relu(q)
    turned = rotate_pairs(positive.clone() if relu_first else q.clone(), cos, sin)
    above = turned.float().transpose(1, 2) @ values
    below = positive.float().transpose(1, 2) @ keys[..., None]
    return (above / (below + eps)).transpose(1, 2).to(q.dtype).contiguous()


register.add_eager("rotary_state", eager_state)
register.add_eager("rotary_read", eager_read)
