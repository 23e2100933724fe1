"""Latents that belong to another latent, kept from one sampling run to the next: nodes pass on nothing but the numbers, so a
companion is found again by these, a row of the batch at a time.

CogVideoX 1.5's extra latent in front of a clip whose sampling is not finished is one, the second latent of EDICT another.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch


class Kept:
    """Companions of latents, the last `limit` of them (a clip of 1360 x 768 px has one of 1 MiB a frame in latents)."""

    def __init__(self, limit: int):
        self.limit, self.kept = limit, OrderedDict()

    def keep(self, latents, companions) -> None:
        """latents (B, ...) as a run gives them, companions (B, ...)."""
        for latent, companion in zip(latents, companions):
            self.kept[_name(latent)] = companion.detach().cpu().clone()
        while len(self.kept) > self.limit:
            self.kept.popitem(last=False)

    def of(self, latents):
        """The companions (B, ...) of latents (B, ...), in their type; None unless all are known."""
        names = [_name(latent) for latent in latents]
        if not all(name in self.kept for name in names):
            return None
        return torch.stack([self.kept[name] for name in names]).to(latents)


def _name(latent) -> bytes:
    """Of the numbers in 16 bits, which is the least that the host passes latents on in."""
    numbers = latent.detach().cpu().half().contiguous().numpy().tobytes()
    return hashlib.blake2b(numbers + repr(tuple(latent.shape)).encode(), digest_size=16).digest()
