"""Latent previews: colours of a latent pixel as a linear map of its channels, after the model's scaling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# Sana. The released DC-AE f32c32. Figures as measured by the authors of ComfyUI_ExtraModels for pictures in [0, 1]; the host
# shows [-1, 1], hence the 2 in rgb_factors. Columns: red, green, blue.
RELEASED_BIAS = (0.4358, 0.3814, 0.3388)
RELEASED = (
    (-0.0020, -0.0061, -0.0017), (0.0014, 0.0037, 0.0041), (0.0101, 0.0003, -0.0143), (-0.0024, 0.0031, -0.0010),
    (0.0022, 0.0077, -0.0132), (0.0112, 0.0058, 0.0036), (-0.0729, 0.0111, 0.0361), (0.0323, 0.0287, 0.0250),
    (0.0016, -0.0011, 0.0028), (-0.0356, -0.0234, -0.0031), (-0.0002, -0.0021, -0.0127), (0.0002, 0.0012, -0.0008),
    (0.0138, 0.0028, 0.0074), (0.0130, 0.0026, 0.0030), (0.0153, 0.0095, 0.0067), (0.0052, -0.0095, 0.0085),
    (0.0144, -0.0033, 0.0095), (-0.0041, -0.0019, -0.0034), (-0.0025, 0.0005, 0.0020), (-0.0036, 0.0011, 0.0053),
    (-0.0052, 0.0081, -0.0376), (-0.0039, -0.0016, -0.0036), (-0.0066, -0.0068, -0.0100), (-0.0022, 0.0001, 0.0015),
    (-0.0929, -0.1138, -0.1092), (0.0008, 0.0056, 0.0348), (0.0127, 0.0297, 0.0032), (-0.0012, 0.0091, -0.0004),
    (0.0008, 0.0050, 0.0023), (0.0078, 0.0040, 0.0036), (-0.0018, 0.0049, 0.0142), (-0.0015, 0.0029, -0.0046),
)

# The embedded tiny DC-AE: ridge regression of 32 x 32 px means in [-1, 1] on latents of 384 drawn pictures, R2 0.94.
TINY_BIAS = (0.1741, -0.1085, -0.2144)
TINY = (
    (0.1419, 0.1677, 0.1063), (-0.0372, 0.0260, 0.1001), (-0.0041, 0.0342, -0.0642), (-0.0530, -0.0633, 0.0341),
    (-0.0238, -0.0277, 0.0669), (0.0103, 0.0257, 0.0312), (-0.0316, 0.0070, -0.0118), (-0.0125, -0.0148, 0.0622),
    (0.0099, -0.0181, -0.2962), (0.0246, -0.0161, 0.0549), (-0.0296, -0.0434, -0.0218), (0.0272, -0.0044, -0.0616),
    (0.4297, 0.1574, 0.1336), (-0.0298, -0.0253, 0.0887), (0.0281, -0.1377, -0.1129), (-0.1055, -0.0453, 0.1228),
    (0.0281, 0.0133, -0.0238), (0.0077, 0.1614, 0.1104), (-0.0042, 0.0046, -0.0861), (-0.0247, -0.0111, 0.0380),
    (-0.1129, -0.1453, 0.0121), (0.0138, -0.0056, -0.0237), (-0.0129, 0.0300, -0.1201), (0.0039, -0.0047, -0.0225),
    (-0.2247, -0.0447, 0.0912), (0.0055, -0.0432, 0.0489), (0.0256, -0.0121, 0.0159), (0.0050, -0.0493, -0.0007),
    (0.0907, 0.0334, 0.1209), (-0.0104, 0.0026, 0.0556), (0.0001, -0.0041, 0.0822), (0.0471, 0.0366, 0.0282),
)


def rgb_factors(caption_channels: int) -> tuple[list[list[float]], list[float]]:
    """(32 rows of red, green, blue; bias) for a Sana transformer, giving colours in [-1, 1].

    caption_channels: all released ones read Gemma-2-2B, 2304 wide; another width is the embedded model's.
    """
    if caption_channels != 2304:
        return [list(row) for row in TINY], list(TINY_BIAS)
    return [[2 * value for value in row] for row in RELEASED], [2 * value - 1 for value in RELEASED_BIAS]


# CogVideoX's released VAE at scale 0.7. Figures as published in the previews of ComfyUI-CogVideoXWrapper, whose author
# chose them by eye, without a bias; for pictures in [-1, 1].
VIDEO_SCALE = 0.7
VIDEO = (
    (0.1195, 0.0992, -0.0048), (-0.0012, 0.0550, 0.0213), (-0.0141, -0.0087, -0.0210), (0.0306, 0.1219, 0.0140),
    (0.0927, 0.0303, 0.0508), (0.0379, 0.0494, 0.0586), (0.0177, 0.0088, 0.0360), (0.1061, 0.0234, 0.0572),
    (0.1274, -0.0110, 0.0433), (-0.0187, 0.0822, 0.1061), (0.0084, 0.0762, 0.0930), (0.1294, 0.1236, 0.0448),
    (0.0457, 0.0411, -0.0177), (0.0002, -0.0140, 0.0533), (0.0808, 0.1155, -0.0215), (-0.0152, -0.0058, 0.0722),
)


# The embedded tiny VAE at scale 0.7: ridge regression of 8 x 8 px means over a latent's frames, in [-1, 1], on latents of
# 144 drawn clips, R2 0.90.
TINY_VIDEO_BIAS = (-0.0720, -0.0585, -0.3744)
TINY_VIDEO = (
    (0.1545, -0.0066, -0.0125), (-0.1906, -0.0330, -0.2187), (-0.1576, -0.1907, -0.1156), (0.1036, -0.1294, -0.0892),
    (0.0784, -0.2109, -0.2905), (0.2003, -0.3389, -0.1426), (0.2283, -0.0806, -0.2485), (0.1032, -0.2973, -0.1736),
    (0.1004, -0.0514, -0.1556), (0.2125, -0.2741, 0.3010), (0.0512, 0.2363, 0.0810), (0.0209, 0.2133, 0.1548),
    (-0.0268, -0.1600, -0.0979), (-0.0097, -0.1079, 0.2163), (-0.0074, -0.2701, -0.1773), (0.0453, 0.0814, 0.0228),
)


def video_rgb_factors(params) -> tuple[list[list[float]], list[float]]:
    """(16 rows of red, green, blue; bias) for a CogVideoX transformer (CogVideoParams), giving colours in [-1, 1].

    All released ones read T5-XXL, 4096 wide; another width is the embedded model's.
    """
    rows, bias = (VIDEO, (0.0, 0.0, 0.0)) if params.text_embed_dim == 4096 else (TINY_VIDEO, TINY_VIDEO_BIAS)
    return [[value * VIDEO_SCALE / params.scaling_factor for value in row] for row in rows], list(bias)


def contact_sheet(x0, most: int = 9):
    """Latent (B, C, T, h, w) -> (B, C, rows * h, columns * w): up to `most` frames, evenly spaced and in reading order.

    The host shows the first frame of a video alone, and whatever picture it is made into.
    """
    count = min(x0.shape[2], most)
    columns = math.ceil(count**0.5)
    frames = x0[:, :, torch.linspace(0, x0.shape[2] - 1, count).round().long()]
    frames = F.pad(frames, (0, 0, 0, 0, 0, -count % columns))
    return frames.unflatten(2, (-1, columns)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
