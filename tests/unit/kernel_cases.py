"""Inputs of the fused operations and what they give in float64, written out from their definitions."""

import torch
import torch.nn.functional as F


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(shape, generator=generator(seed)).to(device, dtype)


# --- ReLU linear attention ---


def attention_inputs(batch, queries, keys, heads, dim, dtype=torch.float32, device="cpu"):
    """q, k and v as slices of wider tensors, k and v interleaved a head as in DC-AE: strides of every kind."""
    q = random(batch, queries, 2, heads, dim, dtype=dtype, device=device)[:, :, 1]
    k, v = random(batch, keys, heads, 2 * dim, dtype=dtype, device=device, seed=1).chunk(2, dim=-1)
    return q, k, v


def attention(q, k, v):
    """The quadratic form: every pair's weight, then the weighted mean."""
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    weights = q.relu() @ k.relu().transpose(-1, -2)
    return (weights / (weights.sum(-1, keepdim=True) + 1e-15) @ v).transpose(1, 2)


# --- SiLU, depthwise 3x3, gate ---


def gate_inputs(batch, height, width, hidden, dtype=torch.float32, device="cpu"):
    """x (B, 2, hidden, H, W) as tokens lie in memory, weight (2 * hidden, 1, 3, 3), bias (2 * hidden,)."""
    x = random(batch, height, width, 2, hidden, dtype=dtype, device=device).permute(0, 3, 4, 1, 2)
    weight = random(2 * hidden, 1, 3, 3, dtype=dtype, device=device, seed=1) / 3
    return x, weight, random(2 * hidden, dtype=dtype, device=device, seed=2)


def gate(x, weight, bias):
    """A sum over the nine shifts of the padded picture."""
    batch, _, hidden, height, width = x.shape
    padded = F.pad(F.silu(x.double()).flatten(1, 2), (1, 1, 1, 1))
    out = bias.double()[:, None, None].expand(batch, -1, height, width).clone()
    for i in range(3):
        for j in range(3):
            out += padded[:, :, i : i + height, j : j + width] * weight.double()[:, :, i, j, None]
    value, gate = out.unflatten(1, (2, hidden)).unbind(1)
    return value * F.silu(gate)


# --- RMS norm over channels ---


def norm_inputs(batch, channels, height, width, dtype=torch.float32, device="cpu"):
    """x and residual (B, C, H, W), channels-last, weight and bias (C,)."""
    x, residual = (random(batch, height, width, channels, dtype=dtype, device=device, seed=seed).permute(0, 3, 1, 2)
                   for seed in (0, 1))
    return x, residual, *(random(channels, dtype=dtype, device=device, seed=seed) for seed in (2, 3))


ACTIVATIONS = {None: lambda x: x, "relu": torch.relu, "silu": lambda x: x * torch.sigmoid(x)}


def norm(x, weight, bias, eps, residual=None, activation=None):
    x = x.double()
    x = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
    x = x * weight.double()[:, None, None] + bias.double()[:, None, None]
    return ACTIVATIONS[activation](x if residual is None else x + residual.double())


# --- rotary position code ---


def rope_inputs(batch, tokens, heads, dim, dtype=torch.float32, device="cpu"):
    angles = random(tokens, dim // 2, seed=1).to(device) * 10
    return random(batch, tokens, heads, dim, dtype=dtype, device=device), angles.cos(), angles.sin()


def rope(x, cos, sin):
    even, odd = x.double()[..., ::2], x.double()[..., 1::2]
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    out = torch.empty_like(x, dtype=torch.float64)
    out[..., ::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out


# --- linear attention with a rotary position code ---


def rotary_inputs(batch, tokens, heads, dim, dtype=torch.float32, device="cpu"):
    q, k, v = (t[..., :dim] for t in attention_inputs(batch, tokens, tokens, heads, dim, dtype, device))
    return q + 0.3, k + 0.3, v, *rope_inputs(1, tokens, 1, dim, device=device)[1:]


def rotary_state(k, v, cos, sin, relu_first):
    """A token at a time."""
    positive = k.double().relu()
    turned = rope(positive if relu_first else k, cos, sin)
    values = sum(turned[:, n, :, :, None] * v.double()[:, n, :, None] for n in range(k.shape[1]))
    return values, positive.sum(1)


def rotary_read(q, values, keys, cos, sin, relu_first):
    positive = q.double().relu()
    turned = rope(positive if relu_first else q, cos, sin)
    above = torch.einsum("bnhd,bhdv->bnhv", turned, values)
    return above / (torch.einsum("bnhd,bhd->bnh", positive, keys)[..., None] + 1e-8)


# --- scale and shift from the latent, SiLU ---


def spatial_inputs(frames, latents, rows, columns, times, batch=2, channels=3, dtype=torch.float32, device="cpu"):
    x = random(batch, channels, frames, rows * times, columns * times, dtype=dtype, device=device)
    scale, shift = (random(batch, channels, latents, rows, columns, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    return x, scale, shift


def spatial(x, scale, shift):
    """Frame by frame, with an interpolation that repeats pixels."""
    T, t = x.shape[2], scale.shape[2]
    odd = T % 2 if T > 1 else 0
    out = []
    for frame in range(T):
        latent = 0 if frame < odd else odd + (frame - odd) * (t - odd) // (T - odd)
        a, b = (F.interpolate(y[:, :, latent].double(), x.shape[3:]) for y in (scale, shift))
        out.append(F.silu(x[:, :, frame].double() * a + b))
    return torch.stack(out, dim=2)
