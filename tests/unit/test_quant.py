"""Quantised numbers: against their definition in float64, against the sizes of error that the formats have, and back."""

import pytest
import torch

from sanacog.kernels import quant


def weight(rows=48, columns=192, outliers=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator)
    if outliers:
        w[:, torch.randperm(columns, generator=generator)[: columns // 100 + 1]] *= 30
    return w


def apart(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


# Of one Gaussian matrix, as measured for these formats with ComfyUI's own code: 0.008, 0.027 and 0.095.
@pytest.mark.parametrize("kind, limit, with_outliers", [("int8", 0.010, 0.016), ("fp8", 0.029, 0.030), ("nvfp4", 0.105, 0.105)])
def test_error_of_a_weight(kind, limit, with_outliers):
    w = weight(96, 1152)
    error = apart(quant.dequantise(*quant.quantise(w, kind)), w)
    assert limit / 3 < error < limit
    w = weight(96, 1152, outliers=True)
    assert apart(quant.dequantise(*quant.quantise(w, kind)), w) < with_outliers


def test_int8_is_its_definition():
    w = weight(8, 40)  # a width that no rotation divides
    tensors, entry = quant.quantise(w, "int8")
    assert entry == {"format": "int8_tensorwise"} and tensors["weight"].dtype == torch.int8
    assert tensors["weight_scale"].shape == (8, 1) and tensors["weight_scale"].dtype == torch.float32
    scale = w.double().abs().amax(1, keepdim=True) / 127
    assert int((tensors["weight"].double() - (w.double() / scale).round()).abs().max()) <= 1
    assert apart(tensors["weight"].double() * scale, quant.dequantise(tensors, entry)) < 1e-6


@pytest.mark.parametrize("width, group", [(2240, 64), (5600, 16), (1152, 64), (2880, 64), (3072, 256), (1920, 64), (40, None)])
def test_rotation_of_the_released_widths(width, group):
    assert quant.rotation_group(width) == group
    entry = quant.quantise(torch.ones(1, width), "int8")[1]
    assert entry.get("convrot_groupsize") == group and entry.get("convrot", False) == (group is not None)


@pytest.mark.parametrize("group", [4, 16, 64, 256])
def test_rotation(group):
    base = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64) / 2
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < group:
        matrix = torch.kron(matrix, base)
    x = weight(3, 2 * group).double()
    expected = (x.unflatten(1, (2, group)) @ matrix).flatten(1)
    assert apart(quant.rotate(x, group), expected) < 1e-14
    assert apart(quant.rotate(quant.rotate(x, group), group), x) < 1e-14


@pytest.mark.parametrize("width, group", [(64, 8), (64, 32), (64, 48), (40, 16), (64, 2), (64, 0)])
def test_rotations_that_do_not_fit(width, group):
    with pytest.raises(ValueError, match="power of 4"):
        quant.rotate(torch.zeros(2, width), group)


def test_fp8_is_its_definition():
    w = weight(32, 64)
    tensors, entry = quant.quantise(w, "fp8", largest_input=100.0)
    assert entry == {"format": "float8_e4m3fn"} and tensors["weight"].dtype == torch.float8_e4m3fn
    assert float(tensors["weight_scale"]) == pytest.approx(float(w.abs().max()) / 448)
    assert float(tensors["weight"].float().abs().max()) == 448
    # Room for twice what calibration saw.
    assert float(tensors["input_scale"]) * 448 == pytest.approx(200.0)
    tensors, entry = quant.quantise(w, "fp8")
    assert entry["full_precision_matrix_mult"] and "input_scale" not in tensors


def test_every_e2m1_number_and_every_tie():
    """A block whose largest number is 6 has scale 1 (to rounding): each number goes to its neighbour, halves to the even."""
    numbers = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    halves = {0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5: 4}
    near = {0.26: 0.5, 0.74: 0.5, 1.26: 1.5, 2.4: 2, 2.6: 3, 3.4: 3, 4.9: 4, 5.1: 6}
    given = torch.tensor([*numbers, *halves, *near] + [0.0] * 8 + [6.0])
    given = torch.cat([given, -given])
    expected = torch.tensor([*numbers, *halves.values(), *near.values()] + [0.0] * 8 + [6.0])
    expected = torch.cat([expected, -expected])
    assert len(given) == 64  # four blocks with a 6 in each
    # A fifth block decides the tensor's scale, so that the scales of the others are exactly 1.
    w = torch.zeros(16, 80)
    w[:, :64], w[:, 64] = given, 6.0 * 448
    back = quant.dequantise(*quant.quantise(w, "nvfp4"))
    assert torch.equal(back[0, :64], expected)
    assert torch.equal(quant.dequantise(*quant.quantise(torch.zeros(16, 32), "nvfp4")), torch.zeros(16, 32))


def test_block_scales_in_the_order_of_tensor_cores():
    """NVIDIA's definition, number by number: tile row and column, then row modulo 32, row / 32 modulo 4, column modulo 4."""
    rows, columns = 200, 7
    scales = torch.arange(rows * columns).remainder(120).to(torch.uint8).view(rows, columns).view(torch.float8_e4m3fn)
    out = quant.swizzle(scales)
    assert out.shape == (256, 8)
    flat = out.view(torch.uint8).flatten()
    for r in (0, 1, 31, 32, 127, 128, 199):
        for c in range(columns):
            tile = (r // 128) * 2 + c // 4
            assert flat[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4] == scales.view(torch.uint8)[r, c]
    assert torch.equal(quant.unswizzle(out, rows, columns).view(torch.uint8), scales.view(torch.uint8))


@pytest.mark.parametrize("kind", list(quant.FORMATS))
def test_shapes_come_from_the_meta_device_too(kind):
    real, meta = (quant.quantise(weight(144, 80).to(device), kind, 2.0) for device in ("cpu", "meta"))
    assert real[1] == meta[1]
    assert {k: (t.dtype, t.shape) for k, t in real[0].items()} == {k: (t.dtype, t.shape) for k, t in meta[0].items()}


def test_what_does_not_fit():
    assert quant.fits((7, 9), "int8") and not quant.fits((7, 16), "fp8") and not quant.fits((16, 24), "nvfp4")
    assert not quant.fits((16,), "int8") and not quant.fits((16, 16, 1, 1), "int8")
    with pytest.raises(ValueError, match="cannot be kept as fp8"):
        quant.quantise(torch.zeros(7, 16), "fp8")
    with pytest.raises(ValueError, match="int3.*int8, fp8, nvfp4"):
        quant.quantise(torch.zeros(16, 16), "int3")
    with pytest.raises(ValueError, match="mxfp8"):
        quant.dequantise({"weight": torch.zeros(16, 16)}, {"format": "mxfp8"})
