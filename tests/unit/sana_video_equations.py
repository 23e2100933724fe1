"""SANA-Video's networks as equations in float64 on NVlabs' tensors, by their names: what the tests hold ours against.

Written from the papers and from what NVlabs' code computes, token by token where it may be slow. x (B, C, F, H, W), t (B, F),
y (B, L, C), mask (B, L). `starts`: first frames of the blocks that LongSANA draws one after the other, [0] for all at once.
"""

import math

import torch
from torch.nn.functional import conv2d, conv3d, gelu, layer_norm, relu, silu, softmax


def linear(w, name, x):
    out = x @ w[name + ".weight"].T
    return out + w[name + ".bias"] if name + ".bias" in w else out


def rms(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def turned(x, positions):
    """x (B, N, heads, d) by complex numbers: position (f, h, w) of each token, (N, 3)."""
    d = x.shape[-1]
    side = 2 * (d // 6)
    rates = []
    for axis, channels in enumerate((d - 2 * side, side, side)):
        theta = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        rates.append(positions[:, axis, None] * theta)
    turns = torch.polar(torch.tensor(1.0, dtype=torch.float64), torch.cat(rates, -1))
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2)


def cross(w, name, x, y, mask, heads):
    q = rms(linear(w, name + ".q_linear", x), w[name + ".q_norm.weight"], 1e-6).unflatten(-1, (heads, -1))
    k, v = linear(w, name + ".kv_linear", y).chunk(2, -1)
    k = rms(k, w[name + ".k_norm.weight"], 1e-6).unflatten(-1, (heads, -1))
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
    logits = logits.masked_fill(mask[:, None, None] == 0, -10000.0 - 1e4)
    out = torch.einsum("bhnm,bmhd->bnhd", softmax(logits, -1), v.unflatten(-1, (heads, -1)))
    return linear(w, name + ".proj", out.flatten(2))


def clip(w, x, t, y, patch):
    """Tokens, their positions, time modulations (B, N, 6, D) and embeddings (B, N, D), the text as the blocks read it."""
    w = {key: value.double() for key, value in w.items()}
    x = conv3d(x.double(), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=(1, patch, patch))
    F, H, W = x.shape[2:]
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (F, H, W)), indexing="ij")
    positions = torch.stack([axis.flatten() for axis in grid], -1)
    rates = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float64) / 128)
    arguments = t.double().floor()[..., None] * rates
    code = torch.cat([arguments.cos(), arguments.sin()], -1)
    times = linear(w, "t_embedder.mlp.2", silu(linear(w, "t_embedder.mlp.0", code)))  # (B, F, D)
    modulation = linear(w, "t_block.1", silu(times)).unflatten(-1, (6, -1))
    each = H * W
    text = linear(w, "y_embedder.y_proj.fc2", gelu(linear(w, "y_embedder.y_proj.fc1", y.double()), approximate="tanh"))
    text = rms(text, w["attention_y_norm.weight"], 1e-5)
    return (w, x.flatten(2).transpose(1, 2), positions, (F, H, W), modulation.repeat_interleave(each, 1),
            times.repeat_interleave(each, 1), text)


def picture(w, x, times, size, patch):
    shift, scale = (w["final_layer.scale_shift_table"] + times[:, :, None]).unbind(2)
    x = linear(w, "final_layer.linear", layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    F, H, W = size
    x = x.reshape(x.shape[0], F, H, W, patch, patch, -1)
    return torch.einsum("bfhwpqc->bcfhpwq", x).flatten(5, 6).flatten(3, 4)


def first_generation(w, x, t, y, mask, *, patch, layers, heads, cross_heads, starts=(0,)):
    w, x, positions, size, modulation, times, y = clip(w, x, t, y, patch)
    F, H, W = size
    block_of = torch.bucketize(torch.arange(F), torch.tensor(starts), right=True)  # of each frame
    token_block = block_of.repeat_interleave(H * W)
    seen = token_block[None, :] <= token_block[:, None]  # (query, key)
    for i in range(layers):
        name = f"blocks.{i}."
        s1, c1, g1, s2, c2, g2 = (w[name + "scale_shift_table"] + modulation).unbind(2)
        h = layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + c1) + s1
        q, k, v = linear(w, name + "attn.qkv", h).chunk(3, -1)
        q = relu(rms(q, w[name + "attn.q_norm.weight"], 1e-5)).unflatten(-1, (heads, -1))
        k = relu(rms(k, w[name + "attn.k_norm.weight"], 1e-5)).unflatten(-1, (heads, -1))
        above = torch.einsum("bnhd,bmhd->bhnm", turned(q, positions), turned(k, positions)) * seen
        below = (torch.einsum("bnhd,bmhd->bhnm", q, k) * seen).sum(-1, keepdim=True) + 1e-8
        out = torch.einsum("bhnm,bmhd->bnhd", above / below, v.unflatten(-1, (heads, -1)))
        x = x + g1 * linear(w, name + "attn.proj", out.flatten(2))
        x = x + cross(w, name + "cross_attn", x, y, mask, cross_heads)
        h = layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + c2) + s2
        B, N, D = h.shape
        h = h.reshape(B * F, H, W, D).permute(0, 3, 1, 2)
        h = silu(conv2d(h, w[name + "mlp.inverted_conv.conv.weight"], w[name + "mlp.inverted_conv.conv.bias"]))
        depth = w[name + "mlp.depth_conv.conv.weight"]
        value, gate = conv2d(h, depth, w[name + "mlp.depth_conv.conv.bias"], padding=1, groups=len(depth)).chunk(2, 1)
        h = conv2d(value * silu(gate), w[name + "mlp.point_conv.conv.weight"]).reshape(B, F, D, H * W)
        kernel = w[name + "mlp.t_conv.weight"][..., 0]  # (out, in, 3)
        parts = []
        for f in range(F):
            around = h[:, f] + torch.einsum("oi,bin->bon", kernel[..., 1], h[:, f])
            if f > 0:
                around = around + torch.einsum("oi,bin->bon", kernel[..., 0], h[:, f - 1])
            if f + 1 < F and block_of[f + 1] == block_of[f]:
                around = around + torch.einsum("oi,bin->bon", kernel[..., 2], h[:, f + 1])
            parts.append(around)
        x = x + g2 * torch.stack(parts, 1).transpose(2, 3).reshape(B, N, D)
    return picture(w, x, times, size, patch)


def second_generation(w, x, t, y, mask, *, layers, softmax_layers, linear_dim, softmax_dim, cross_heads, group):
    w, x, positions, size, modulation, times, y = clip(w, x, t, y, 1)

    def mixed(name, sources):
        stack = torch.stack(sources)
        keys = stack / torch.sqrt((stack * stack).mean(-1, keepdim=True) + 1e-6)
        weights = softmax(torch.einsum("d,sbnd->sbn", w[f"attn_res.{name}.weight"][0], keys), 0)
        return torch.einsum("sbn,sbnd->bnd", weights, stack)

    finished, running = [x], None
    for i in range(layers):
        name = f"blocks.{i}."
        s1, c1, g1, s2, c2, g2 = (w[name + "scale_shift_table"] + modulation).unbind(2)
        x = mixed("attn_proj", finished + ([] if running is None else [running]))
        h = layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + c1) + s1
        dim = softmax_dim if i in softmax_layers else linear_dim
        q, k, v = linear(w, name + "attn.qkv", h).chunk(3, -1)
        q = rms(q, w[name + "attn.q_norm.weight"], 1e-5).unflatten(-1, (-1, dim))
        k = rms(k, w[name + "attn.k_norm.weight"], 1e-5).unflatten(-1, (-1, dim))
        v = v.unflatten(-1, (-1, dim))
        scores = torch.einsum("bnhd,bmhd->bhnm", turned(q, positions), turned(k, positions))
        if i in softmax_layers:
            out = torch.einsum("bhnm,bmhd->bnhd", softmax(scores / math.sqrt(dim), -1), v)
        else:
            beta = torch.sigmoid(linear(w, name + "attn.beta_proj", h)).transpose(1, 2)[:, :, None]
            below = torch.einsum("bnhd,bmhd->bhnm", relu(q), relu(k)).sum(-1, keepdim=True) + 1e-8
            out = torch.einsum("bhnm,bmhd->bnhd", scores * beta / below, v)
            out = rms(out, w[name + "attn.o_norm.weight"], 1e-5)
        out = out.flatten(2) * torch.sigmoid(linear(w, name + "attn.output_gate", h))
        change = g1 * linear(w, name + "attn.proj", out)
        change = change + cross(w, name + "cross_attn", x + change, y, mask, cross_heads)
        running = change if running is None else running + change
        x = mixed("mlp_proj", finished + [running])
        h = layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + c2) + s2
        h = silu(linear(w, name + "mlp.gate_proj", h)) * linear(w, name + "mlp.up_proj", h)
        running = running + g2 * linear(w, name + "mlp.down_proj", h)
        if (i + 1) % group == 0 or i + 1 == layers:
            finished, running = finished + [running], None
    return picture(w, mixed("final_proj", finished), times, size, 1)
