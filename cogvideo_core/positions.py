"""Where a token of a video is: the position codes of the CogVideoX family.

A video of T latent frames and a grid of H x W patches has N = T*H*W tokens in the order frame, row, column.

| models                    | code                                                                      |
|---------------------------|---------------------------------------------------------------------------|
| 2B                        | sine-cosine, added to the tokens                                          |
| 5B and other 1.0          | rotary, positions cropped from the grid that the model was trained on     |
| 5B-I2V                    | the same rotary code and a learned table, added, text rows included       |
| 1.5                       | rotary, positions are plain indices                                       |

Source: SAT's dit_video_concat.py and diffusers' embeddings.py, as summed up in arXiv 2408.06072.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

ROPE_THETA = 10000.0


def sincos_code(frames, height, width, channels, spatial_scale=1.875, temporal_scale=1.0, device=None):
    """Sine-cosine code of the 2B -> (frames, height, width, channels) in fp32; channels a multiple of 16.

    The first quarter of the channels tells the frame; the rest is two halves, the column first, then the row. Each
    part is sines, then cosines. Positions are indices divided by the two scales.
    """
    spatial = channels * 3 // 8

    def axis(length, part, scale):
        # float64 as in the reference, which rounds only the finished code; on the CPU, as not every device has it.
        omega = ROPE_THETA ** (-torch.arange(part // 2, dtype=torch.float64) / (part // 2))
        angles = (torch.arange(length, dtype=torch.float64) / scale)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float().to(device)

    code = torch.empty(frames, height, width, channels, device=device)
    code[..., : channels // 4] = axis(frames, channels // 4, temporal_scale)[:, None, None]
    code[..., channels // 4 : channels // 4 + spatial] = axis(width, spatial, spatial_scale)
    code[..., channels // 4 + spatial :] = axis(height, spatial, spatial_scale)[:, None]
    return code


def resize_code(code, height, width):
    """Stretch a code (frames, h, w, channels) to another grid -> (frames, height, width, channels), bilinear."""
    if code.shape[1:3] == (height, width):
        return code
    return F.interpolate(code.permute(0, 3, 1, 2), size=(height, width), mode="bilinear").permute(0, 2, 3, 1)


def cropped_positions(height, width, base_height, base_width, device=None):
    """Positions of the 1.0 models: rows (height,) and columns (width,) in fp32, in units of the base grid's patches.

    The grid is scaled to fit in the base grid (30 x 45 for the released models) and laid over its middle, so that a
    portrait video uses the rows 0..30 and only the columns in the middle.
    """
    if height / width > base_height / base_width:
        fit_height, fit_width = base_height, round(base_height / height * width)
    else:
        fit_height, fit_width = round(base_width / width * height), base_width

    def axis(base, fit, length):
        start = round((base - fit) / 2)
        # The end is scaled about zero, not about the start: the released models were trained with that.
        return torch.linspace(start, (start + fit) * (length - 1) / length, length, device=device)

    return axis(base_height, fit_height, height), axis(base_width, fit_width, width)


def rope_table(frames, rows, columns, head_dim):
    """Rotary table of a video -> (cos, sin), each (N, head_dim / 2) in fp32; head_dim a multiple of 16.

    frames, rows, columns: positions along each axis, 1-D, fp32. Of the channel pairs the first quarter turns with
    the frame, three eighths with the row, three eighths with the column.
    """
    shape = (len(frames), len(rows), len(columns))
    parts = []
    for i, (positions, part) in enumerate(
        ((frames, head_dim // 4), (rows, head_dim * 3 // 8), (columns, head_dim * 3 // 8))
    ):
        frequencies = 1.0 / ROPE_THETA ** (torch.arange(0, part, 2, dtype=torch.float32, device=positions.device) / part)
        angles = positions[:, None] * frequencies
        parts.append(angles.view([-1 if axis == i else 1 for axis in range(3)] + [part // 2]).expand(*shape, -1))
    angles = torch.cat(parts, dim=-1).flatten(0, 2)
    return angles.cos(), angles.sin()
