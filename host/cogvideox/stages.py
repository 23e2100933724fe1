"""The latent in front of an odd clip of a 1.5 model, kept from one stage of a run to the next.

A run that ends with noise left over (KSamplerAdvanced, SplitSigmas) gives a LATENT of the clip alone, from which the next
stage goes on. What stood in front of the clip, and was sampled with it, is found again here by the clip itself, a row of
the batch at a time: nodes pass on nothing but the numbers.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch

LIMIT = 64  # clips. What is kept of one of 1360 x 768 px is 1 MiB


class Fronts:
    """Latents in front of the clips that stages have left unfinished, the last LIMIT of them."""

    def __init__(self):
        self.kept = OrderedDict()

    def keep(self, clips, fronts) -> None:
        """clips (B, 16, T, h, w) as a sampler gives them, fronts (B, 16, 1, h, w)."""
        for clip, front in zip(clips, fronts):
            self.kept[_name(clip)] = front.detach().cpu().clone()
        while len(self.kept) > LIMIT:
            self.kept.popitem(last=False)

    def of(self, clips):
        """The fronts (B, 16, 1, h, w) of clips (B, 16, T, h, w), in their type; None unless all are known."""
        names = [_name(clip) for clip in clips]
        if not all(name in self.kept for name in names):
            return None
        return torch.stack([self.kept[name] for name in names]).to(clips)


def _name(clip) -> bytes:
    """Of the numbers in 16 bits, which is the least that the host passes latents on in."""
    numbers = clip.detach().cpu().half().contiguous().numpy().tobytes()
    return hashlib.blake2b(numbers + repr(tuple(clip.shape)).encode(), digest_size=16).digest()
