"""Linear attention with a rotary position code: the self-attention of SANA-Video.

    out_n = sum_m (q'_n . k'_m) v_m / (sum_m q_n . k_m + eps)

q', k' carry the position and may be negative; q and k, which the normaliser takes, are what they were made from after the ReLU
and do not. The sums over m do not depend on n: they are one small state a head, and those of parts of the tokens add up. So a
network that goes on from earlier frames needs nothing of them but their state.
Source: arXiv 2509.24695 (SANA-Video), section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class State(NamedTuple):
    """What queries need of keys and values, in fp32."""

    values: torch.Tensor  # (B, H, Dh, Dv), sum of k' v
    keys: torch.Tensor    # (B, H, Dh), sum of k

    def __add__(self, other: State) -> State:
        return State(self.values + other.values, self.keys + other.keys)


def state_of(k_turned, k, v) -> State:
    """k_turned, k and v (B, M, H, D), any float dtype."""
    k_turned, v = k_turned.float().transpose(1, 2), v.float().transpose(1, 2)
    # Summed in fp32: the normaliser adds up tens of thousands of terms.
    return State(k_turned.transpose(-1, -2) @ v, k.sum(dim=1, dtype=torch.float32))


def read_state(q_turned, q, state: State, eps: float) -> torch.Tensor:
    """q_turned and q (B, N, H, Dh) -> (B, N, H, Dv) in q's dtype."""
    above = q_turned.float().transpose(1, 2) @ state.values
    below = q.float().transpose(1, 2) @ state.keys[..., None]
    return (above / (below + eps)).transpose(1, 2).to(q.dtype)
