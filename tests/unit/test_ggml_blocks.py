"""Q4_0 and Q8_0 blocks against ggml's definition, number by number, and checkpoints that hold them."""

import struct

import pytest
import torch

from sanacog.kernels import quant_layers
from sanacog.kernels.ggml_blocks import BLOCK, dequantise_blocks, float_shape
from sanacog.kernels.quant import dequantise


def blocks_of(weight, kind):
    """A matrix (N, K) as bytes, written as ggml's quantize_row_*_reference does: struct by struct."""
    rows = []
    for row in weight.tolist():
        data = b""
        for start in range(0, len(row), BLOCK):
            block = row[start : start + BLOCK]
            largest = max(block, key=abs)
            if kind == "Q8_0":
                d = abs(largest) / 127
                data += struct.pack("<e32b", d, *(round(x / d) for x in block))
            else:
                d = largest / -8
                q = [min(15, int(x / d + 8.5)) for x in block]
                data += struct.pack("<e16B", d, *(low | high << 4 for low, high in zip(q[:16], q[16:])))
        rows.append(list(data))
    return torch.tensor(rows, dtype=torch.uint8)


def numbers_of(data, kind):
    """The definition, in Python's floats."""
    rows, size = [], 34 if kind == "Q8_0" else 18
    for row in data.tolist():
        out = []
        for start in range(0, len(row), size):
            block = bytes(row[start : start + size])
            [d] = struct.unpack("<e", block[:2])
            if kind == "Q8_0":
                out += [d * q for q in struct.unpack("<32b", block[2:])]
            else:
                out += [d * ((byte & 15) - 8) for byte in block[2:]] + [d * ((byte >> 4) - 8) for byte in block[2:]]
        rows.append(out)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kind, error", [("Q4_0", 0.12), ("Q8_0", 0.008)])
def test_numbers(kind, error):
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    data = blocks_of(weight, kind)
    found = dequantise_blocks(data, f"ggml_{kind}")
    assert found.dtype == torch.float32 and torch.equal(found.double(), numbers_of(data, kind))
    assert 0 < float((found - weight).norm() / weight.norm()) < error
    assert dequantise_blocks(data.to("meta"), f"ggml_{kind}").shape == weight.shape


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_in_a_checkpoint(kind):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    data = blocks_of(weight, kind)
    file = {f"a.{kind}_qweight": data, "a.bias": weight[0], "norm.weight": weight[0]}
    shapes = quant_layers.float_shapes({key: tuple(t.shape) for key, t in file.items()}, {key: t.dtype for key, t in file.items()})
    assert shapes == {"a.weight": (8, 64), "a.bias": (64,), "norm.weight": (64,)}
    tensors, entries = quant_layers.read_layers(file)
    assert entries == {"a": {"format": f"ggml_{kind}"}}
    back = quant_layers.without_layers(tensors, entries, torch.bfloat16)
    assert torch.equal(back["a.weight"], numbers_of(data, kind).bfloat16()) and back.keys() == shapes.keys()


def test_rows_of_broken_blocks_are_no_weight():
    assert float_shape("Q4_0_qweight", (8, 37)) is None
    assert quant_layers.float_shapes({"a.Q4_0_qweight": (8, 37)}, {"a.Q4_0_qweight": torch.uint8}) == {"a.Q4_0_qweight": (8, 37)}


@pytest.mark.parametrize("shape", [(32,), (32, 1)])
@pytest.mark.parametrize("name", ["weight_scale", "scale_weight"])
def test_fp8_with_a_scale_a_row(name, shape):
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 3, 32)[:, None]
    scale = weight.abs().amax(1, keepdim=True) / 448
    file = {"a.weight": (weight / scale).to(torch.float8_e4m3fn), f"a.{name}": scale.reshape(shape)}
    if name == "scale_weight":
        file["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    tensors, entries = quant_layers.read_layers(file)
    assert entries["a"]["format"] == "rowwise_float8"
    found = dequantise({"weight": tensors["a.weight"], "weight_scale": tensors["a.weight_scale"]}, entries["a"]).double()
    wanted = torch.stack([row.double() * float(s) for row, s in zip(file["a.weight"].float(), scale.flatten())])
    assert torch.equal(found, wanted.float().double()) and float((found - weight).norm() / weight.norm()) < 0.04


def test_other_scales_beside_fp8_are_refused():
    weight = torch.zeros(32, 48).to(torch.float8_e4m3fn)
    for shape in ((1, 48), (32, 3), (16,)):
        with pytest.raises(ValueError, match="nothing in it says how to read the float8_e4m3fn numbers of a.weight"):
            quant_layers.read_layers({"a.weight": weight, "a.weight_scale": torch.ones(shape)})
