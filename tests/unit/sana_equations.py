"""Sana's transformer by its equations, in float64 and from a state dict of ours: what the network is held against where
diffusers deviates from the code that the models were trained with. No network class, no kernel of the pack.

Source: arXiv 2410.10629 and, for the epsilons, the clip and the whole timestep, NVlabs/Sana at 5498e5b.
"""

import math

import torch
import torch.nn.functional as F


def velocity(p, weights, x, timestep, context, mask, guidance=None):
    """SanaTransformer.forward for params p without a position code. mask (B, T) of 1 and 0."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    batch, _, height, width = x.shape

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def rms(name, x, eps):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"]

    def modulated(x, shift, scale):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift

    def time(name, t):
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        code = torch.cat([(t[:, None] * frequencies).cos(), (t[:, None] * frequencies).sin()], -1)
        return linear(f"{name}.linear_2", F.silu(linear(f"{name}.linear_1", code)))

    def attend(name, x, context, eps):
        q, k, v = linear(f"{name}.to_q", x), linear(f"{name}.to_k", context), linear(f"{name}.to_v", context)
        return (rms(f"{name}.norm_q", q, eps), rms(f"{name}.norm_k", k, eps), v) if p.qk_norm else (q, k, v)

    def split(x, heads):
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    def joined(x):
        return x.transpose(1, 2).flatten(2)

    if p.guidance_embeds:
        emb = time("time_embed.timestep_embedder", timestep.double())
        emb = emb + time("time_embed.guidance_embedder", guidance.double() * p.guidance_embeds_scale)
    else:
        # Training draws whole timesteps; a teacher of Sprint is given them divided by 1000.
        emb = time("time_embed.emb.timestep_embedder", (timestep.long() if p.timestep_scale == 1 else timestep).double())
    modulation = linear("time_embed.linear", F.silu(emb)).unflatten(-1, (6, -1))

    kernel = w["patch_embed.proj.weight"]
    x = F.conv2d(x.double(), kernel, w["patch_embed.proj.bias"], stride=p.patch_size).flatten(2).transpose(1, 2)
    context = linear("caption_projection.linear_2", F.gelu(linear("caption_projection.linear_1", context.double()), approximate="tanh"))
    context = rms("caption_norm", context, 1e-5)
    for i in range(p.num_layers):
        name = f"transformer_blocks.{i}"
        part = (w[f"{name}.scale_shift_table"] + modulation).unsqueeze(2).unbind(1)
        q, k, v = (split(t, p.num_attention_heads) for t in attend(f"{name}.attn1", *2 * [modulated(x, part[0], part[1])], 1e-5))
        scores = q.relu() @ k.relu().transpose(-1, -2)  # the quadratic form
        out = linear(f"{name}.attn1.to_out.0", joined(scores @ v / (scores.sum(-1, keepdim=True) + 1e-8)))
        x = x + part[2] * (out.clamp(-65504, 65504) if p.clamp_fp16 else out)
        q, k, v = (split(t, p.num_cross_attention_heads) for t in attend(f"{name}.attn2", x, context, 1e-6))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + (1 - mask.double())[:, None, None] * -10000
        x = x + linear(f"{name}.attn2.to_out.0", joined(scores.softmax(-1) @ v))
        h = F.silu(linear(f"{name}.ff.conv_inverted", modulated(x, part[3], part[4])))
        h = h.transpose(1, 2).unflatten(2, (height // p.patch_size, -1))
        depth = w[f"{name}.ff.conv_depth.weight"]
        h = F.conv2d(h, depth, w[f"{name}.ff.conv_depth.bias"], padding=1, groups=len(depth)).flatten(2).transpose(1, 2)
        value, gate = h.chunk(2, -1)
        x = x + part[5] * linear(f"{name}.ff.conv_point", value * F.silu(gate))
    shift, scale = (w["scale_shift_table"] + emb[:, None]).chunk(2, 1)
    x = linear("proj_out", modulated(x, shift, scale))
    x = x.reshape(batch, height // p.patch_size, width // p.patch_size, p.patch_size, p.patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)
