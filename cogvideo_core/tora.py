"""Tora: two parts that let a CogVideoX model of its own follow trajectories, drawn as a video of colours.

The extractor makes of the colours' latent a picture of features for every block of the transformer, the fusers scale and
shift by it what the block's attention is about to see. Module names are those of the files. Source: arXiv 2407.21705,
github.com/alibaba/Tora.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

FEATURES = 128  # channels of a block's picture


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3 x 3, twice, and the input added."""

    def __init__(self, channels, **kw):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels, **kw), nn.BatchNorm2d(channels, **kw)
        self.block1, self.block2 = nn.Conv2d(channels, channels, 3, padding=1, **kw), nn.Conv2d(channels, channels, 3, padding=1, **kw)

    def forward(self, x):
        return x + self.block2(F.relu(self.bn2(self.block1(F.relu(self.bn1(x))))))


class TrajectoryExtractor(nn.Module):
    """latent (T, 16, h, w) of the colours, scaled as the transformer's -> (blocks, T, FEATURES, h / 2, w / 2), sides rounded up."""

    def __init__(self, blocks: int, channels: int = 16, *, device=None, dtype=None):
        super().__init__()
        kw = dict(device=device, dtype=dtype)
        self.conv_in = nn.Conv2d(4 * channels, FEATURES, 3, padding=1, **kw)
        self.body = nn.ModuleList([ResidualBlock(FEATURES, **kw) for _ in range(2 * blocks)])

    def forward(self, latent):
        x = F.pad(latent, (0, latent.shape[3] % 2, 0, latent.shape[2] % 2))
        x, features = self.conv_in(F.pixel_unshuffle(x, 2)), []
        for first, second in zip(self.body[0::2], self.body[1::2]):
            x = second(first(x))
            features.append(x)
        return torch.stack(features)


class MotionFuser(nn.Module):
    """One block's. width: the transformer's. operations: as for CogVideoTransformer."""

    def __init__(self, width: int, *, device=None, dtype=None, operations=torch.nn):
        super().__init__()
        kw = dict(device=device, dtype=dtype)
        for name in ("gamma", "beta"):
            setattr(self, f"flow_{name}_spatial", operations.Conv2d(FEATURES, width // 4, 3, padding=1, **kw))
            setattr(self, f"flow_{name}_temporal", operations.Conv1d(width // 4, width, 3, **kw))
        self.flow_cond_norm = operations.GroupNorm(32, width, **kw)

    def forward(self, tokens, features):
        """tokens (B, T * h * w, D), features (T, FEATURES, h, w), the same for the whole batch -> tokens."""
        B, T, area = len(tokens), len(features), features[0, 0].numel()
        frames = tokens.reshape(B * T, area, -1).transpose(1, 2)
        normed = self.flow_cond_norm(frames).transpose(1, 2).reshape(B, T, area, -1)
        gamma, beta = (self.along_time(name, features) for name in ("gamma", "beta"))
        return tokens + torch.addcmul(beta, normed, gamma).reshape(tokens.shape)

    def along_time(self, name, features):
        """A 3 x 3 in each frame, then one of three frames in each place, the ends held -> (T, h * w, D)."""
        x = getattr(self, f"flow_{name}_spatial")(features).flatten(2).permute(2, 1, 0)  # (h * w, D / 4, T)
        x = getattr(self, f"flow_{name}_temporal")(F.pad(x, (1, 1), mode="replicate"))
        return x.permute(2, 0, 1)
