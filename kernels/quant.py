"""Quantised weights of Linear layers: the numbers in ComfyUI's mixed-precision checkpoints, made and turned back.

    int8    int8_tensorwise   W (N, K) ~ weight * weight_scale, one scale a row; on request in a rotated basis (ConvRot)
    fp8     float8_e4m3fn     W ~ weight * weight_scale, one scale; activations by a calibrated input_scale
    nvfp4   nvfp4             W ~ weight * weight_scale * weight_scale_2: e2m1 numbers, a scale for 16 of them, one for all

Read alone, and turned back in any case, as no ComfyUI computes with them: fp8 numbers with a scale a row ("rowwise_float8"),
and the blocks of ggml_blocks.py.

Everything here also runs on the meta device, which gives shapes and types alone.
Source: ComfyUI's comfy/ops.py and comfy-kitchen, whose bytes these are; ConvRot: arXiv 2512.03673; NVFP4: NVIDIA's
cuBLAS documentation, "1D block scaling factors layout".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import ggml_blocks

FORMATS = {"int8": "int8_tensorwise", "fp8": "float8_e4m3fn", "nvfp4": "nvfp4"}  # our names -> ComfyUI's
ROWWISE = "rowwise_float8"
READ_ONLY = (ROWWISE, *ggml_blocks.FORMATS)  # formats that no ComfyUI keeps
READABLE = (*FORMATS.values(), "float8_e5m2", *READ_ONLY)  # what dequantise reads

INT8_MAX, FP8_MAX, FP4_MAX, FP4_BLOCK = 127.0, 448.0, 6.0, 16
GROUPS = (256, 64, 16)  # sizes of a rotation: powers of 4; one of 4 would hardly mix anything
# e4m3 keeps its relative error over five decades, so leaving a factor of two above what calibration saw costs nothing,
# and a prompt that goes beyond it is not clipped.
HEADROOM = 2.0
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes of e2m1 in the order of their codes


def fits(shape, kind: str) -> bool:
    """Whether a weight of this shape can be kept as `kind`: a matrix and, for the float formats, of sides that are
    multiples of 16, which their matrix products ask for."""
    return len(shape) == 2 and (kind == "int8" or all(side and side % 16 == 0 for side in shape))


def quantise(weight: torch.Tensor, kind: str, largest_input: float | None = None) -> tuple[dict, dict]:
    """Quantise the weight (N, K) of a Linear layer, of any float type.

    kind: a name of FORMATS. largest_input: the largest magnitude that the layer's inputs had in calibration; fp8 alone
    uses it, and without it marks the layer to be multiplied in full precision, as a guessed scale errs by half and more.
    Returns ({"weight": ..., "weight_scale": ..., ...}, the layer's entry in the checkpoint, {"format": ..., ...}).
    Raises ValueError for an unknown kind and for a shape that does not fit it.
    """
    if kind not in FORMATS:
        raise ValueError(f"unknown format {kind!r}: choose one of {', '.join(FORMATS)}")
    if not fits(weight.shape, kind):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} cannot be kept as {kind}")
    entry, weight = {"format": FORMATS[kind]}, weight.float()
    if kind == "int8":
        if group := rotation_group(weight.shape[1]):
            weight = rotate(weight, group)
            entry |= {"convrot": True, "convrot_groupsize": group}
        scale = (weight.abs().amax(1, keepdim=True) / INT8_MAX).clamp(min=1e-30)
        return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}, entry
    if kind == "nvfp4":
        return _to_nvfp4(weight), entry
    scale = (weight.abs().amax() / FP8_MAX).clamp(min=1e-30)
    tensors = {"weight": (weight / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), "weight_scale": scale}
    if largest_input is None:
        return tensors, entry | {"full_precision_matrix_mult": True}
    return tensors | {"input_scale": torch.full_like(scale, max(HEADROOM * largest_input / FP8_MAX, 1e-30))}, entry


def dequantise(tensors: dict, entry: dict) -> torch.Tensor:
    """The opposite of `quantise`: the weight (N, K) in fp32. Raises ValueError for a format that is not in READABLE."""
    name, weight, scale = entry.get("format"), tensors["weight"], tensors.get("weight_scale")
    if name not in READABLE:
        raise ValueError(f"the format {name!r} is not one that is read here: {', '.join(READABLE)}")
    if name == "nvfp4":
        return _from_nvfp4(weight, scale, tensors["weight_scale_2"])
    if name in ggml_blocks.FORMATS:
        return ggml_blocks.dequantise_blocks(weight, name)
    weight = weight.float()
    if scale is not None:
        weight = weight * (scale.float().reshape(-1, 1) if name == ROWWISE else scale.float())
    # The rotation is its own inverse.
    return rotate(weight, entry.get("convrot_groupsize", GROUPS[0])) if entry.get("convrot") else weight


def rotation_group(width: int) -> int | None:
    """The largest rotation that a width divides into whole groups of; None where there is none."""
    return next((group for group in GROUPS if width % group == 0), None)


def rotate(x: torch.Tensor, group: int) -> torch.Tensor:
    """Turn each run of `group` numbers along the last dimension by the same orthogonal matrix: outliers spread.

    The matrix is a Kronecker power of ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1)) / 2, symmetric,
    so that turning twice gives x. Raises ValueError unless group is a power of 4 that divides the last dimension.
    """
    if group < 4 or group & (group - 1) or group.bit_length() % 2 == 0 or x.shape[-1] % group:
        raise ValueError(f"a rotation in groups of {group} does not fit a width of {x.shape[-1]}: the group must be a power "
                         "of 4 that divides it")
    base = (torch.ones(4, 4, device=x.device, dtype=x.dtype) - 2 * torch.eye(4, device=x.device, dtype=x.dtype).flip(0)) / 2
    shape, step = x.shape, 1
    while step < group:  # a Kronecker product is applied factor by factor, as in a fast Hadamard transform
        x = (x.reshape(-1, 4, step).transpose(1, 2) @ base).transpose(1, 2)
        step *= 4
    return x.reshape(shape)


def _to_nvfp4(weight):
    tensor_scale = (weight.abs().amax() / (FP8_MAX * FP4_MAX)).clamp(min=1e-30)
    blocks = weight.unflatten(1, (-1, FP4_BLOCK))
    scales = (blocks.abs().amax(-1) / FP4_MAX / tensor_scale).clamp(max=FP8_MAX).to(torch.float8_e4m3fn)
    total = (scales.float() * tensor_scale)[..., None]
    blocks = torch.where(total > 0, blocks / total.clamp(min=1e-37), 0.0)
    magnitude, codes = blocks.abs(), torch.zeros_like(blocks, dtype=torch.uint8)
    for code, (below, above) in enumerate(zip(_FP4, _FP4[1:])):
        middle = (below + above) / 2
        codes += magnitude >= middle if code % 2 else magnitude > middle  # halfway goes to the even code
    codes = (codes | blocks.signbit().to(torch.uint8) << 3).flatten(1)
    return {"weight": codes[:, 0::2] << 4 | codes[:, 1::2], "weight_scale": swizzle(scales), "weight_scale_2": tensor_scale}


def _from_nvfp4(weight, scales, tensor_scale):
    codes = torch.stack([weight >> 4, weight & 15], dim=-1).flatten(1)
    table = torch.tensor([*_FP4, *(-x for x in _FP4)], device=weight.device)
    values = table[codes.int()].unflatten(1, (-1, FP4_BLOCK))
    scales = unswizzle(scales.view(torch.float8_e4m3fn), weight.shape[0], values.shape[1]).float()
    return (values * (scales * tensor_scale.float())[..., None]).flatten(1)


def swizzle(scales: torch.Tensor) -> torch.Tensor:
    """Block scales (N, B) -> the order in which tensor cores read them, (N rounded up to 128, B rounded up to 4).

    Tiles of 128 x 4 lie one after the other; in a tile, rows 32 apart stand side by side.
    """
    rows, columns = scales.shape
    # Padded as bytes: not every torch fills fp8 numbers.
    padded = F.pad(scales.view(torch.uint8), (0, -columns % 4, 0, -rows % 128))
    tiles = padded.unflatten(1, (-1, 4)).unflatten(0, (-1, 4, 32))
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape).view(scales.dtype)


def unswizzle(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The opposite of `swizzle` -> (rows, columns)."""
    height, width = -(-rows // 128), -(-columns // 4)
    tiles = scales.view(torch.uint8).reshape(height, width, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height * 128, width * 4)[:rows, :columns].contiguous().view(scales.dtype)
