"""DC-AE, the deep compression autoencoder of Sana: 32 x 32 pixels become one latent pixel of 32 channels.

Module names are those of diffusers' AutoencoderDC. Pictures and features are (B, C, H, W), kept channels-last in
memory: every norm and every 1x1 layer works along C, so tokens are a view and nothing is transposed on the way.
Source: "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models" (arXiv 2410.10733); the
EfficientViT block is that of arXiv 2205.14756.
"""

from __future__ import annotations

import functools
from functools import partial
from dataclasses import dataclass, fields
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.dcae import add_channels_to_space, add_space_to_channels, upsample_conv
from ..kernels.glumbconv import gated_depthwise, gating
from ..kernels.large_conv import conv2d as large_conv2d
from ..kernels.linear_attention import relu_linear_attention
from ..kernels.rms_norm import rms_norm
from .exact_tiles import TILE, Step, run
from .tiles import Tiles, blend

ACTIVATIONS = {"silu": F.silu, "relu": F.relu}


def activate(name, x):
    """SiLU or ReLU of a tensor that nothing else reads; in place without gradients."""
    return ACTIVATIONS[name](x, inplace=not torch.is_grad_enabled())


@functools.cache
def unbounded(conv2d):
    """A namespace's Conv2d for pictures of any size. Overridden where the layer computes, after it has cast, moved or
    patched its weights as it likes."""

    class UnboundedConv2d(conv2d):
        def _conv_forward(self, x, weight, bias):
            return large_conv2d(x, weight, bias, self.stride, self.padding, self.groups)

    return UnboundedConv2d


@functools.cache
def upsampling(conv2d):
    """A namespace's Conv2d that first doubles the picture."""

    class UpsamplingConv2d(conv2d):
        def _conv_forward(self, x, weight, bias):
            return upsample_conv(x, weight, bias)

    return UpsamplingConv2d


@functools.cache
def headwise(conv2d):
    """A namespace's Conv2d for grouped 1x1 convolutions: one batched matrix product over the groups."""

    class HeadwiseConv2d(conv2d):
        def _conv_forward(self, x, weight, bias):
            batch, _, height, width = x.shape
            x = x.permute(0, 2, 3, 1).reshape(batch * height * width, self.groups, -1).transpose(0, 1)
            x = x @ weight.reshape(self.groups, -1, weight.shape[1]).transpose(1, 2)
            return x.transpose(0, 1).reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    return HeadwiseConv2d


@dataclass(frozen=True)
class DCAEParams:
    """Everything that tells one DC-AE from another; field names and meanings are diffusers' config.json.

    Stages are listed from the picture inwards, for the decoder too. The defaults are Sana's DC-AE 1.0 and 1.1. A
    field with one entry a stage may be given as a list or, for names, as one string for all stages.
    A first stage of no layers is left out: the picture then enters and leaves at half size.
    """

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: tuple[str, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    decoder_block_types: tuple[str, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    encoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    downsample_block_type: str = "conv"        # or "pixel_unshuffle"
    upsample_block_type: str = "interpolate"   # or "pixel_shuffle"
    decoder_act_fns: tuple[str, ...] = ("silu",) * 6
    decoder_conv_act_fn: str = "relu"          # before the decoder's last convolution
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    scaling_factor: float = 0.41407            # latents times this have unit variance; not applied in here

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("block_types", "act_fns")) and isinstance(value, str):
                side = field.name.split("_")[0]
                value = (value,) * len(getattr(self, f"{side}_block_out_channels"))
            if isinstance(value, list):
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
            object.__setattr__(self, field.name, value)

    @property
    def compression(self) -> int:
        """Pixels a side for one latent pixel: 32."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)


class RMSNorm2d(nn.Module):
    """x / rms over channels * weight + bias, then + residual, then the activation. (B, C, H, W) in and out.

    Without gradients x is overwritten. The host's RMSNorm has no bias, so these are plain parameters, cast at use.
    """

    def __init__(self, channels, *, device, dtype, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x, residual=None, activation=None):
        return rms_norm(x, self.weight.to(x), self.bias.to(x), self.eps, residual, activation)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with an activation between, norm, residual."""

    def __init__(self, channels, activation, *, device, dtype, operations):
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.activation = activation
        self.conv1 = operations.Conv2d(channels, channels, 3, padding=1, **factory)
        self.conv2 = operations.Conv2d(channels, channels, 3, padding=1, bias=False, **factory)
        self.norm = RMSNorm2d(channels, **factory)

    def forward(self, x):
        return self.norm(self.conv2(activate(self.activation, self.conv1(x))), residual=x)


class MultiscaleProjection(nn.Module):
    """Gathers q, k and v from a k x k neighbourhood: depthwise, then 1x1 within each head's q, k or v."""

    def __init__(self, channels, head_dim, kernel_size, *, device, dtype, operations):
        super().__init__()
        factory = dict(bias=False, device=device, dtype=dtype)
        self.proj_in = operations.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, **factory)
        self.proj_out = headwise(operations.Conv2d)(channels, channels, 1, groups=channels // head_dim, **factory)

    def forward(self, x):
        return self.proj_out(self.proj_in(x))


class LinearAttention(nn.Module):
    """ReLU linear attention over the picture, once a scale.

    The rows of to_q, to_k and to_v are thirds of one matrix whose output is [q k v] of head 0, [q k v] of head 1, ...:
    the names are historical and to_q does not make queries alone.
    """

    def __init__(self, channels, head_dim, kernel_sizes, *, device, dtype, operations):
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        if channels % head_dim:
            raise ValueError(f"an EfficientViT stage of {channels} channels cannot be split into heads of {head_dim}; "
                             f"use a multiple of {head_dim} or another attention_head_dim.")
        self.head_dim = head_dim
        self.to_q = operations.Linear(channels, channels, bias=False, **factory)
        self.to_k = operations.Linear(channels, channels, bias=False, **factory)
        self.to_v = operations.Linear(channels, channels, bias=False, **factory)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(3 * channels, head_dim, size, operations=operations, **factory)
            for size in kernel_sizes)
        self.to_out = operations.Linear(channels * (1 + len(kernel_sizes)), channels, bias=False, **factory)
        self.norm_out = RMSNorm2d(channels, **factory)

    def forward(self, x):
        # References turn to the quadratic form for few tokens: the same sums in another order.
        return self.leave([relu_linear_attention(*self.split(scale)).flatten(2).unflatten(1, x.shape[2:])
                           for scale in self.scales(x)], x)

    def scales(self, x):
        """(B, C, H, W) -> [q, k and v (B, 3*C, H, W)], one a scale."""
        tokens = x.permute(0, 2, 3, 1)
        qkv = torch.cat([self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)], dim=-1).permute(0, 3, 1, 2)
        return [qkv] + [project(qkv) for project in self.to_qkv_multiscale]

    def split(self, qkv):
        """(B, 3*C, H, W) -> q, k and v (B, H*W, heads, head_dim) each."""
        return qkv.permute(0, 2, 3, 1).flatten(1, 2).unflatten(-1, (-1, 3 * self.head_dim)).chunk(3, dim=-1)

    def leave(self, seen, x):
        """[what a scale's queries saw, (B, H, W, C)], and the input -> the output."""
        return self.norm_out(self.to_out(torch.cat(seen, dim=-1)).permute(0, 3, 1, 2), residual=x)


class GLUMBConv(nn.Module):
    """Feed-forward network with a depthwise convolution and a gate, four times as wide inside; norm, residual."""

    def __init__(self, channels, *, device, dtype, operations):
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        hidden = 4 * channels
        self.conv_inverted = operations.Conv2d(channels, 2 * hidden, 1, **factory)
        self.conv_depth = gating(operations.Conv2d)(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, **factory)
        self.conv_point = operations.Conv2d(hidden, channels, 1, bias=False, **factory)
        self.norm = RMSNorm2d(channels, **factory)

    def forward(self, x):
        size = x.shape[-2:]
        tokens = self.conv_inverted(x).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = gated_depthwise(tokens, self.conv_depth, *size)
        return self.norm(self.conv_point(tokens.unflatten(1, size).permute(0, 3, 1, 2)), residual=x)


class EfficientViTBlock(nn.Module):
    def __init__(self, channels, head_dim, kernel_sizes, *, device, dtype, operations):
        super().__init__()
        factory = dict(device=device, dtype=dtype, operations=operations)
        self.attn = LinearAttention(channels, head_dim, kernel_sizes, **factory)
        self.conv_out = GLUMBConv(channels, **factory)

    def forward(self, x):
        return self.conv_out(self.attn(x))


class DownBlock(nn.Module):
    """Half the size. The shortcut has no weights: space to channels, then the mean of neighbouring channels."""

    def __init__(self, channels, out_channels, unshuffle, shortcut=True, *, device, dtype, operations):
        super().__init__()
        self.unshuffle = unshuffle
        self.shortcut = shortcut
        self.conv = operations.Conv2d(channels, out_channels // 4 if unshuffle else out_channels, 3,
                                      stride=1 if unshuffle else 2, padding=1, device=device, dtype=dtype)

    def forward(self, x):
        out = self.conv(x)
        if self.unshuffle:
            out = F.pixel_unshuffle(out, 2)
        return add_space_to_channels(out, x) if self.shortcut else out


class UpBlock(nn.Module):
    """Twice the size. The shortcut has no weights: channels repeated, then channels to space."""

    def __init__(self, channels, out_channels, shuffle, shortcut=True, *, device, dtype, operations):
        super().__init__()
        self.shuffle = shuffle
        self.shortcut = shortcut
        conv2d = operations.Conv2d if shuffle else upsampling(operations.Conv2d)
        self.conv = conv2d(channels, 4 * out_channels if shuffle else out_channels, 3, padding=1, device=device, dtype=dtype)

    def forward(self, x):
        out = self.conv(x)
        if self.shuffle:
            out = F.pixel_shuffle(out, 2)
        return add_channels_to_space(out, x) if self.shortcut else out


def stage_blocks(params, side, stage, activation, factory):
    """The blocks of one stage of the encoder or the decoder."""
    channels = getattr(params, f"{side}_block_out_channels")[stage]
    kind = getattr(params, f"{side}_block_types")[stage]
    layers = range(getattr(params, f"{side}_layers_per_block")[stage])
    if kind == "ResBlock":
        return [ResBlock(channels, activation, **factory) for _ in layers]
    if kind == "EfficientViTBlock":
        sizes = getattr(params, f"{side}_qkv_multiscales")[stage]
        return [EfficientViTBlock(channels, params.attention_head_dim, sizes, **factory) for _ in layers]
    raise ValueError(f"{side}_block_types names '{kind}'; known are ResBlock and EfficientViTBlock.")


def step_of(block):
    """A block as a Step, or itself where it has attention."""
    if isinstance(block, EfficientViTBlock):
        return block
    return Step(block, {ResBlock: 2}.get(type(block), 1), {UpBlock: 2, DownBlock: -2}.get(type(block), 1))


class Network(nn.Module):
    """A list of parts, one after the other."""

    def forward(self, x):
        for part in self.parts():  # no name keeps a part's input in memory
            x = part(x) if isinstance(part, nn.Module) else part.call(x)
        return x


class Encoder(Network):
    """(B, 3, H, W) -> (B, latent_channels, H / 32, W / 32)."""

    def __init__(self, params, factory):
        super().__init__()
        widths, depths = params.encoder_block_out_channels, params.encoder_layers_per_block
        unshuffle = params.downsample_block_type == "pixel_unshuffle"
        plain = {key: factory[key] for key in ("device", "dtype")}
        conv2d = factory["operations"].Conv2d

        if depths[0]:
            self.conv_in = conv2d(params.in_channels, widths[0], 3, padding=1, **plain)
        else:
            self.conv_in = DownBlock(params.in_channels, widths[1], unshuffle, shortcut=False, **factory)
        self.down_blocks = nn.ModuleList()
        for i, depth in enumerate(depths):
            blocks = stage_blocks(params, "encoder", i, "silu", factory)
            if depth and i + 1 < len(depths):
                blocks.append(DownBlock(widths[i], widths[i + 1], unshuffle, **factory))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = conv2d(widths[-1], params.latent_channels, 3, padding=1, **plain)
        self.latent_channels = params.latent_channels if params.encoder_out_shortcut else 0

    def parts(self):
        """The network as a list: a Step, or a block with attention, each."""
        return [step_of(self.conv_in), *(step_of(block) for stage in self.down_blocks for block in stage), Step(self.leave, 1)]

    def leave(self, x):
        out = self.conv_out(x)
        if self.latent_channels:
            out = out + x.unflatten(1, (self.latent_channels, -1)).mean(dim=2)
        return out


class Decoder(Network):
    """(B, latent_channels, h, w) -> (B, 3, 32 * h, 32 * w)."""

    def __init__(self, params, factory):
        super().__init__()
        widths, depths = params.decoder_block_out_channels, params.decoder_layers_per_block
        shuffle = params.upsample_block_type == "pixel_shuffle"
        plain = {key: factory[key] for key in ("device", "dtype")}
        conv2d = factory["operations"].Conv2d

        self.conv_in = conv2d(params.latent_channels, widths[-1], 3, padding=1, **plain)
        self.repeats = widths[-1] // params.latent_channels if params.decoder_in_shortcut else 0
        self.up_blocks = nn.ModuleList()
        for i, depth in enumerate(depths):
            blocks = stage_blocks(params, "decoder", i, params.decoder_act_fns[i], factory)
            if depth and i + 1 < len(depths):
                blocks.insert(0, UpBlock(widths[i + 1], widths[i], shuffle, **factory))
            self.up_blocks.append(nn.Sequential(*blocks))
        width = widths[0] if depths[0] else widths[1]
        self.norm_out = RMSNorm2d(width, **plain)
        self.activation = params.decoder_conv_act_fn
        if depths[0]:
            self.conv_out = conv2d(width, params.in_channels, 3, padding=1, **plain)
        else:
            self.conv_out = UpBlock(width, params.in_channels, shuffle, shortcut=False, **factory)

    def parts(self):
        """As the encoder's."""
        blocks = [step_of(block) for stage in reversed(self.up_blocks) for block in stage]
        # What comes out of a block is read by nothing but the norm, which may overwrite it.
        return [Step(self.enter, 1), *blocks, Step(partial(self.norm_out, activation=self.activation), 0), step_of(self.conv_out)]

    def enter(self, z):
        x = self.conv_in(z)
        return x + z.repeat_interleave(self.repeats, dim=1) if self.repeats else x


class AutoencoderDC(nn.Module):
    """DC-AE. Deterministic: encode gives the latent itself, not a distribution.

    operations: the namespace of Linear and Conv2d, torch.nn or a host's own.
    """

    def __init__(self, params: DCAEParams, *, device=None, dtype=None, operations=nn):
        super().__init__()
        self.params = params
        layers = SimpleNamespace(Linear=operations.Linear, Conv2d=unbounded(operations.Conv2d))
        factory = dict(device=device, dtype=dtype, operations=layers)
        self.encoder = Encoder(params, factory)
        self.decoder = Decoder(params, factory)

    def encode(self, x, tiles: Tiles | None = None):
        """x (B, 3, H, W) in [-1, 1], H and W multiples of params.compression -> latent (B, 32, H/32, W/32), unscaled.
        With tiles, in pieces of that size and in fp32; None: at once, as in training."""
        if tiles is not None:
            size = (side // self.params.compression for side in x.shape[2:])
            return blend(self.encode, x, x.new_empty(len(x), self.params.latent_channels, *size, dtype=torch.float32), tiles)
        return self.encoder(x.contiguous(memory_format=torch.channels_last))

    def decode(self, z, tiles: Tiles | None = None):
        """Latent z (B, 32, h, w), unscaled -> picture (B, 3, 32*h, 32*w), about [-1, 1], not clamped. tiles: as `encode`."""
        if tiles is not None:
            size = (side * self.params.compression for side in z.shape[2:])
            return blend(self.decode, z, z.new_empty(len(z), self.params.in_channels, *size, dtype=torch.float32), tiles)
        return self.decoder(z.contiguous(memory_format=torch.channels_last))

    def encode_exactly(self, x, out, tile: int = TILE, done=lambda: None):
        """As `encode`, in pieces that give the same but for rounding, into out (B, 32, H/32, W/32), which is returned and may
        be on another device. tile: pixels a side. done: as for exact_tiles.run. Without gradients."""
        return run(self.encoder.parts(), x, out, tile, done)

    def decode_exactly(self, z, out, tile: int = TILE, done=lambda: None):
        """As `decode`, in pieces that give the same but for rounding, into out (B, 3, 32*h, 32*w)."""
        return run(self.decoder.parts(), z, out, tile, done)

    def forward(self, x):
        """Reconstruct x."""
        return self.decode(self.encode(x))
