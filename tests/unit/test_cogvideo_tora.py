"""Tora's parts and its way from points to a field of motion, against the equations in float64, written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from sanacog.cogvideo_core import trajectories
from sanacog.cogvideo_core.tora import FEATURES, MotionFuser, TrajectoryExtractor


def filled(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, t in module.state_dict().items():
        if t.is_floating_point():
            spread = t[0].numel() ** -0.5 if t.ndim > 1 else 0.3
            t.copy_(torch.randn(t.shape, generator=generator) * spread + (1.0 if "running_var" in name or "norm.weight" in name else 0.0))
            if "running_var" in name:
                t.abs_().add_(0.5)
    return module.eval()


def apart(a, b):
    return float((a.double() - b).norm() / b.norm())


@torch.no_grad()
def test_extractor():
    net = filled(TrajectoryExtractor(3), 0)
    weights = {key: t.double() for key, t in net.state_dict().items() if t.is_floating_point()}
    latent = torch.randn(2, 16, 5, 8, generator=torch.Generator().manual_seed(1))
    found = net(latent)
    assert found.shape == (3, 2, FEATURES, 3, 4)

    def conv(x, name):
        return F.conv2d(x[None], weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)[0]

    def norm(x, name):
        mean, var, gain, shift = (weights[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * gain + shift

    for frame in range(2):
        x = torch.zeros(16, 6, 8, dtype=torch.float64)
        x[:, :5] = latent[frame].double()
        squares = torch.stack([x[c, i::2, j::2] for c in range(16) for i in range(2) for j in range(2)])
        x = conv(squares, "conv_in")
        for block in range(6):
            h = conv(norm(x, f"body.{block}.bn1").clamp(min=0), f"body.{block}.block1")
            x = x + conv(norm(h, f"body.{block}.bn2").clamp(min=0), f"body.{block}.block2")
            if block % 2:
                assert apart(found[block // 2, frame], x) < 1e-5


@torch.no_grad()
def test_fuser():
    D, T, h, w = 64, 3, 2, 4
    net = filled(MotionFuser(D), 2)
    weights = {key: t.double() for key, t in net.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    tokens, features = torch.randn(2, T * h * w, D, generator=generator), torch.randn(T, FEATURES, h, w, generator=generator)
    found = net(tokens, features)

    def along(name):
        frames = F.conv2d(features.double(), weights[f"flow_{name}_spatial.weight"], weights[f"flow_{name}_spatial.bias"], padding=1)
        kernel, bias = weights[f"flow_{name}_temporal.weight"], weights[f"flow_{name}_temporal.bias"]
        near = [[frames[min(max(t + step, 0), T - 1)] for step in (-1, 0, 1)] for t in range(T)]
        return torch.stack([sum(torch.einsum("oc,chw->ohw", kernel[:, :, k], near[t][k]) for k in range(3)) + bias[:, None, None]
                            for t in range(T)])  # (T, D, h, w)

    gamma, beta = along("gamma"), along("beta")
    for sample in range(2):
        for t in range(T):
            x = tokens[sample].double().reshape(T, h, w, D)[t].movedim(-1, 0)
            groups = x.reshape(32, -1)
            normed = ((groups - groups.mean(1, keepdim=True)) / (groups.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()).reshape(D, h, w)
            normed = normed * weights["flow_cond_norm.weight"][:, None, None] + weights["flow_cond_norm.bias"][:, None, None]
            wanted = x + normed * gamma[t] + beta[t]
            assert apart(found[sample].reshape(T, h, w, D)[t].movedim(-1, 0), wanted) < 1e-5


def test_points():
    read = trajectories.parse
    assert read("[[1, 2], [3.5, 4]]") == [[(1.0, 2.0), (3.5, 4.0)]]
    assert read('[{"x": 1, "y": 2}, {"x": 3, "y": 4}]') == read("[{'x': 1, 'y': 2}, {'x': 3, 'y': 4}]") == [[(1.0, 2.0), (3.0, 4.0)]]
    assert read("[[[1, 2], [3, 4]], [[5, 6]]]") == [[(1.0, 2.0), (3.0, 4.0)], [(5.0, 6.0)]]
    for text in ("", "[]", "[[]]", "[1, 2]", '[{"x": 1}]', "[[1, 2, 3]]", "[[true, 1]]", "nonsense", "{}", "[[[1, 2]], 3]"):
        with pytest.raises(ValueError, match="trajectories cannot be read.*expected JSON"):
            read(text)


def test_resampled():
    """Of the source: the first gaps get one more, what is between is cut to whole numbers."""
    assert trajectories.resampled([(0, 0), (10, 20)], 5) == [(0, 0), (2, 5), (5, 10), (7, 15), (10, 20)]
    assert trajectories.resampled([(0, 0), (9, 9), (12, 9)], 6) == [(0, 0), (3, 3), (6, 6), (9, 9), (10, 9), (12, 9)]
    assert trajectories.resampled([(0, 0), (-5, 0)], 3) == [(0, 0), (-2, 0), (-5, 0)]
    many = [(i, i) for i in range(23)]
    assert trajectories.resampled(many, 9) == [(0, 0), (2, 2), (4, 4), (6, 6), (8, 8), (10, 10), (12, 12), (14, 14), (16, 16)]
    assert trajectories.resampled([(7, 7)], 4) == [(128, 128)] * 4


def test_field():
    """Two trajectories: the sum of bells, mirrored at the edges without the edge twice, as OpenCV's filter does."""
    width, height, frames = 80, 64, 3
    lines = [[(10, 20), (30, 20), (50, 40)], [(79, 63), (60, 63)]]
    found = trajectories.field(lines, frames, width, height)
    assert found.shape == (frames, 2, height, width) and not found[0].any()
    steps = []  # (frame, place, motion)
    for points in lines:
        canvas = [(int(x * (256 / width)), int(y * (256 / height))) for x, y in points]
        if len(canvas) == 2:
            (x0, y0), (x1, y1) = canvas
            canvas = [(x0, y0), (int(x0 + 0.5 * (x1 - x0)), int(y0 + 0.5 * (y1 - y0))), (x1, y1)]
        places = [(int(width * x / 256), int(height * y / 256)) for x, y in canvas]
        steps += [(t + 1, places[t], (places[t + 1][0] - places[t][0], places[t + 1][1] - places[t][1])) for t in range(2)]

    def mirrored(i, size):
        i = abs(i)
        return 2 * (size - 1) - i if i >= size else i

    for frame in (1, 2):
        wanted = torch.zeros(2, height, width, dtype=torch.float64)
        for t, (px, py), motion in steps:
            if t != frame:
                continue
            for y in range(height):
                for x in range(width):
                    total = sum(math.exp(-(dx * dx + dy * dy) / 200)
                                for dy in range(-49, 50) if mirrored(y + dy, height) == py
                                for dx in range(-49, 50) if mirrored(x + dx, width) == px)
                    wanted[:, y, x] += total * torch.tensor(motion, dtype=torch.float64)
        assert apart(found[frame], wanted) < 1e-5
    with pytest.raises(ValueError, match="48 x 64 px: trajectories need at least 50 px"):
        trajectories.field(lines, frames, 48, 64)
