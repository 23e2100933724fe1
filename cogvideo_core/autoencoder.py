"""The CogVideoX autoencoder: a causal 3D VAE, 8 x 8 pixels and 4 frames to one latent.

Every convolution over time looks back only: two frames of history stand before a chunk, those of the chunk before or
copies of its own first frame. A clip can therefore be done in chunks. The norms take their statistics over a chunk, so the
chunks are part of the result, and the two references part there: diffusers does 8 frames (2 latents) at a time; the authors'
code (SAT), and so the training, encodes a clip whole, and decodes it in 10 pieces at most. Up to 13 frames and 21 latents that
is the same.
Module names are those of diffusers' AutoencoderKLCogVideoX. Shapes: B batch, T frames, t latents, h = H/8, w = W/8.

Source: arXiv 2408.06072 §2.1; zai-org/CogVideo's SAT code (decode_first_stage for the pieces); the rules for tiles are those
of diffusers, whose numbers they give.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.convolution import quick
from ..kernels.spatial_norm import scale_shift_silu
from .config import CogVideoVAEParams

FRAMES_A_CHUNK = 8
LATENTS_A_CHUNK = 2
MOST_PIECES = 10  # that the authors' code decodes a clip in
SPATIAL = 8  # pixels a latent, each way


@dataclass(frozen=True)
class Tiles:
    """Spatial tiles, in latents, so that they always lie on the latent grid. The defaults are diffusers' (240 x 360
    pixels, overlapping by 40 and 72). Raises ValueError for an overlap that is not smaller than its tile."""

    height: int = 30
    width: int = 45
    overlap_height: int = 5
    overlap_width: int = 9

    def __post_init__(self):
        if not (0 <= self.overlap_height < self.height and 0 <= self.overlap_width < self.width):
            raise ValueError(f"{self}: a tile's overlap must be at least 0 and smaller than the tile.")


def chunks(length, size):
    """(start, end) of the pieces that a clip of `length` frames (or latents) is done in; the first is the longest."""
    first = size + length % size if length > size else length
    return [(0, first)] + [(start, start + size) for start in range(first, length, size)]


def encode_chunks(frames, whole=False):
    """The pieces that a clip is encoded in. whole: as the authors do, at once; else as diffusers does."""
    return [(0, frames)] if whole else chunks(frames, FRAMES_A_CHUNK)


def decode_chunks(latents, whole=False):
    """The pieces that latents are decoded in. whole: as the authors do, in MOST_PIECES of two or more, the first ones longer by
    one where it does not come out even; else as diffusers does."""
    count = min(MOST_PIECES, latents // LATENTS_A_CHUNK)
    if not whole or count < 2:
        return chunks(latents, LATENTS_A_CHUNK)
    ends = [(i + 1) * (latents // count) + min(i + 1, latents % count) for i in range(count)]
    return list(zip([0, *ends], ends))


def encoded_length(frames):
    """Latents that `frames` frames become: 1 + (frames - 1) / 4 for 4n + 1 frames, frames / 4 for 8n frames."""
    return sum(_halved(_halved(end - start)) for start, end in chunks(frames, FRAMES_A_CHUNK))


def decoded_length(latents):
    """Frames that `latents` latents become: 4n - 3 for an odd number, 4n for an even one."""
    return 4 * latents - 3 if latents % 2 else 4 * latents


def _halved(frames):
    return frames // 2 + frames % 2


@functools.cache
def starting(conv3d):
    """A namespace's 3 x 3 x 3 Conv3d that also does the start of a clip, before which only copies of its first frame stand.
    Overridden where the layer computes, after it has cast, moved or patched its weights as it likes."""

    class StartingConv3d(quick(conv3d)):
        at_start = False  # set before a call: the layer's own forward takes nothing but the frames

        def _conv_forward(self, x, weight, bias):
            if not self.at_start:
                return super()._conv_forward(x, weight, bias)
            # Taps that meet the same frame are added up: one convolution for the first frame, two for the second.
            past, before, now = weight.unbind(2)
            first = self._frame(x, 0, past + before + now, bias).unsqueeze(2)
            if x.shape[2] == 1:
                return first
            second = self._frame(x, 0, past + before, bias).add_(self._frame(x, 1, now)).unsqueeze(2)
            others = [super()._conv_forward(x, weight, bias)] if x.shape[2] > 2 else []
            return torch.cat([first, second, *others], dim=2)

        def _frame(self, x, i, weight, bias=None):
            return F.conv2d(x[:, :, i], weight, bias, padding=self.padding[1:])

    return StartingConv3d


class CausalConv3d(nn.Module):
    """3 x 3 x 3 convolution whose time padding is the past. `history` is where each such layer leaves its last two
    frames for the next chunk: a dict, empty before the first chunk of a clip."""

    def __init__(self, in_channels, out_channels, *, device, dtype, operations):
        super().__init__()
        self.conv = starting(operations.Conv3d)(in_channels, out_channels, 3, padding=(0, 1, 1), device=device, dtype=dtype)

    def forward(self, x, history):
        return self.conv(self.after_past(x, history))

    def after_past(self, x, history):
        """What self.conv takes next: x with the two frames before it in front, or a clip's first x as it is. The last two
        frames of x go to the history, but for a clip that is a single frame here: no chunk follows it."""
        past = history.get(self)
        self.conv.at_start = past is None
        if past is not None:
            x = torch.cat([past, x], dim=2)
        if x.shape[2] > 1:
            history[self] = x[:, :, -2:].clone()  # a copy: a view would keep the whole of x
        return x


class Pointwise(nn.Module):
    """1 x 1 x 1 convolution, one level down as in the released files."""

    def __init__(self, in_channels, out_channels, *, device, dtype, operations):
        super().__init__()
        self.conv = quick(operations.Conv3d)(in_channels, out_channels, 1, device=device, dtype=dtype)

    def forward(self, x):
        return self.conv(x)


class SpatialNorm3D(nn.Module):
    """GroupNorm, then the scale and shift that the latent asks for at each place (arXiv 2209.09002), then SiLU."""

    def __init__(self, params, channels, *, device, dtype, operations):
        super().__init__()
        kw = dict(device=device, dtype=dtype)
        self.norm_layer = operations.GroupNorm(params.norm_num_groups, channels, eps=1e-6, **kw)
        self.conv_y = Pointwise(params.latent_channels, channels, operations=operations, **kw)
        self.conv_b = Pointwise(params.latent_channels, channels, operations=operations, **kw)

    def forward(self, x, z):
        """x (B, C, T, H, W), z (B, 16, t, h, w) of the same chunk, T, H and W multiples of t, h and w; an odd T of
        more than one frame has a first frame that belongs to the first latent alone. -> as x."""
        # A pointwise convolution and a nearest-neighbour enlargement commute: the convolutions are done at z's size.
        return scale_shift_silu(self.norm_layer(x), self.conv_y(z), self.conv_b(z))


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut; in the decoder the norms see the latent z."""

    def __init__(self, params, in_channels, out_channels, spatial, *, device, dtype, operations):
        super().__init__()
        kw = dict(device=device, dtype=dtype)

        def norm(channels):
            if spatial:
                return SpatialNorm3D(params, channels, operations=operations, **kw)
            return operations.GroupNorm(params.norm_num_groups, channels, eps=params.norm_eps, **kw)

        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, operations=operations, **kw)
        self.norm2 = norm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, operations=operations, **kw)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = quick(operations.Conv3d)(in_channels, out_channels, 1, **kw)

    def forward(self, x, history, *z):
        h = x
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            # One step a line, so that each result goes as soon as the next is there: memory peaks here.
            h = norm(h, *z)
            h = h if z else F.silu(h, inplace=True)  # a spatial norm has done it
            h = conv.after_past(h, history)
            h = conv.conv(h)
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halves height and width, and with `time` the frames too: the first of an odd number stays by itself."""

    def __init__(self, channels, time, *, device, dtype, operations):
        super().__init__()
        self.time = time
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, device=device, dtype=dtype)

    def forward(self, x, start):
        if self.time and x.shape[2] > 1:
            first = x.shape[2] % 2
            # The mean of two frames; avg_pool3d is not there for bf16 on a CPU, and slower in fp32.
            pairs = (x[:, :, first::2] * 0.5).add_(x[:, :, first + 1 :: 2], alpha=0.5)
            x = torch.cat([x[:, :, :1], pairs], dim=2) if first else pairs
        # Frame by frame, so that no second copy of the clip is made for the padding.
        return torch.stack([self.conv(F.pad(frame, (0, 1, 0, 1))) for frame in x.unbind(2)], dim=2)


class Upsample(nn.Module):
    """Doubles height and width, and with `time` the frames too: at the start of a clip the first of an odd number stays by
    itself."""

    def __init__(self, channels, time, *, device, dtype, operations):
        super().__init__()
        self.time = time
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)

    def forward(self, x, start):
        # Repeated frames come out of the convolution alike: it runs once a frame and its result is stored twice.
        T = x.shape[2]
        twice = (T - T % 2 * start if T > 1 or not start else 0) if self.time else 0
        out, end = None, 0
        for i, frame in enumerate(x.unbind(2)):
            frame = self.conv(F.interpolate(frame, scale_factor=2.0)).unsqueeze(2)
            if out is None:
                out = frame.new_empty(*frame.shape[:2], T + twice, *frame.shape[3:])
            start, end = end, end + (2 if i >= T - twice else 1)
            out[:, :, start:end] = frame
        return out


class Level(nn.Module):
    """Residual blocks and a change of size: diffusers' down block, up block and mid block. start: whether x is the start of its
    clip."""

    def __init__(self, resnets, downsampler=None, upsampler=None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.resize = "downsamplers" if downsampler else "upsamplers" if upsampler else None
        if self.resize:
            setattr(self, self.resize, nn.ModuleList([downsampler or upsampler]))

    def forward(self, x, history, *z, start=True):
        for resnet in self.resnets:
            x = resnet(x, history, *z)
        return getattr(self, self.resize)[0](x, start) if self.resize else x


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) -> mean and log variance (B, 2 * 16, t, h, w)."""

    def __init__(self, params, **kw):
        super().__init__()
        widths = params.block_out_channels
        self.conv_in = CausalConv3d(params.in_channels, widths[0], **kw)
        levels = []
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            resnets = [ResnetBlock(params, width if j else before, width, False, **kw)
                       for j in range(params.layers_per_block)]
            time = 2**i < params.temporal_compression_ratio
            levels.append(Level(resnets, downsampler=Downsample(width, time, **kw) if i < len(widths) - 1 else None))
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = Level([ResnetBlock(params, widths[-1], widths[-1], False, **kw) for _ in range(2)])
        operations, kw2 = kw["operations"], dict(device=kw["device"], dtype=kw["dtype"])
        self.norm_out = operations.GroupNorm(params.norm_num_groups, widths[-1], eps=1e-6, **kw2)
        self.conv_out = CausalConv3d(widths[-1], 2 * params.latent_channels, **kw)

    def forward(self, x, history):
        x = self.conv_in(x, history)
        for level in self.down_blocks:
            x = level(x, history)
        x = self.mid_block(x, history)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True), history)


class Decoder(nn.Module):
    """Latent (B, 16, t, h, w) -> pixels (B, 3, T, H, W)."""

    def __init__(self, params, **kw):
        super().__init__()
        widths = params.block_out_channels[::-1]
        self.conv_in = CausalConv3d(params.latent_channels, widths[0], **kw)
        self.mid_block = Level([ResnetBlock(params, widths[0], widths[0], True, **kw) for _ in range(2)])
        levels = []
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            resnets = [ResnetBlock(params, width if j else before, width, True, **kw)
                       for j in range(params.layers_per_block + 1)]
            time = 2**i < params.temporal_compression_ratio
            levels.append(Level(resnets, upsampler=Upsample(width, time, **kw) if i < len(widths) - 1 else None))
        self.up_blocks = nn.ModuleList(levels)
        self.norm_out = SpatialNorm3D(params, widths[-1], **kw)
        self.conv_out = CausalConv3d(widths[-1], params.out_channels, **kw)

    def forward(self, z, history):
        start = not history
        x = self.mid_block(self.conv_in(z, history), history, z)
        for level in self.up_blocks:
            x = level(x, history, z, start=start)
        return self.conv_out(self.norm_out(x, z), history)


class CogVideoVAE(nn.Module):
    """Pixels in [-1, 1] <-> unscaled latents (CogVideoParams.scaling_factor turns them into the transformer's).

    device, dtype: where and as what the weights are made. operations: namespace of Conv2d, Conv3d and GroupNorm,
    torch.nn or a host's. Nothing here reads or initialises a weight.
    """

    def __init__(self, params: CogVideoVAEParams = CogVideoVAEParams(), *, device=None, dtype=None, operations=torch.nn):
        super().__init__()
        self.params = params
        self.encoder = Encoder(params, device=device, dtype=dtype, operations=operations)
        self.decoder = Decoder(params, device=device, dtype=dtype, operations=operations)

    def encode(self, x, tiles: Tiles | None = None, whole: bool = False):
        """The mean of the latent's distribution.

        x (B, 3, T, H, W) in [-1, 1]; T of 4n + 1 or 8n frames (others are taken as they come, see encoded_length), H
        and W multiples of 8 (what is over at the right and the bottom is not seen). tiles: work in pieces of that size
        where the clip is larger; whole: all frames at once, as in training, instead of eight at a time; memory as
        memory.encode_bytes says.
        Returns (B, 16, encoded_length(T), H/8, W/8).
        """
        return self.moments(x, tiles, whole)[0]

    def moments(self, x, tiles: Tiles | None = None, whole: bool = False):
        """Mean and log variance (clamped to [-30, 20]) of the latent's distribution; arguments as for `encode`.
        A sample is mean + exp(logvar / 2) * noise."""
        mean, logvar = self._run(self.encoder, x, encode_chunks(x.shape[2], whole), tiles, SPATIAL, 1).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z, tiles: Tiles | None = None, whole: bool = False):
        """Pixels of a latent.

        z (B, 16, t, h, w), unscaled; t odd for a clip that starts with a single frame, as the encoder makes it.
        tiles: as for `encode`; whole: in the pieces of the authors' code, see decode_chunks; memory as memory.decode_bytes says.
        Returns (B, 3, decoded_length(t), 8 h, 8 w), about [-1, 1], not clipped.
        """
        return self._run(self.decoder, z, decode_chunks(z.shape[2], whole), tiles, 1, SPATIAL)

    def _run(self, network, x, pieces, tiles, unit_in, unit_out):
        """The network over all pieces of time, and over tiles where there are any; units are pixels a latent (8 or 1)."""
        height, width = x.shape[3] // unit_in, x.shape[4] // unit_in
        if tiles is None or (height <= tiles.height and width <= tiles.width):
            history = {}
            return torch.cat([network(x[:, :, start:end], history) for start, end in pieces], dim=2)

        step_y, step_x = tiles.height - tiles.overlap_height, tiles.width - tiles.overlap_width
        out, above = None, {}
        for top in range(0, height, step_y):
            left_edge = None
            for left in range(0, width, step_x):
                tile = self._run(network, x[:, :, :, top * unit_in : (top + tiles.height) * unit_in,
                                            left * unit_in : (left + tiles.width) * unit_in], pieces, None, unit_in, unit_out)
                if out is None:
                    out = tile.new_empty(*tile.shape[:3], height * unit_out, width * unit_out)
                # Of the finished tiles above and to the left only the edges are kept.
                if top:
                    _blend(above[left], tile, 3)
                if left:
                    _blend(left_edge, tile, 4)
                above[left] = _edge(tile, 3, tiles.overlap_height * unit_out)
                left_edge = _edge(tile, 4, tiles.overlap_width * unit_out)
                part = tile[:, :, :, : step_y * unit_out, : step_x * unit_out]
                y, x0 = top * unit_out, left * unit_out
                out[:, :, :, y : y + part.shape[3], x0 : x0 + part.shape[4]] = part
        return out


def _edge(tile, dim, length):
    """A copy of the last `length` rows (dim 3) or columns (dim 4), or of all when there are fewer."""
    length = min(length, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - length, length).clone()


def _blend(before, tile, dim):
    """Fade, in place, from the edge of the tile before to this one."""
    length = min(before.shape[dim], tile.shape[dim])
    if length:
        weight = torch.arange(length, device=tile.device, dtype=tile.dtype) / length
        weight = weight.view([-1 if axis == dim else 1 for axis in range(5)])
        head = tile.narrow(dim, 0, length)
        head.copy_(torch.lerp(before.narrow(dim, before.shape[dim] - length, length), head, weight))
