"""Quantised checkpoints of every description, and what the tables keep as it is."""

import json
import re

import pytest
import torch

from sanacog.cogvideo_core import precision as cogvideo_precision
from sanacog.kernels import quant, quant_layers
from sanacog.sana_core import precision as sana_precision

from ..host import tiny, tiny_cogvideox


def apart(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def as_bytes(entry):
    return torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


@pytest.fixture
def sana():
    return tiny.sana().state_dict()


FAMILIES = {"sana": (tiny.sana, sana_precision.KEPT), "cogvideox": (tiny_cogvideox.transformer, cogvideo_precision.KEPT)}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_stays_is_what_the_table_says(family):
    make, kept = FAMILIES[family]
    module = make()
    linear = {name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    tensors, entries = quant_layers.quantised(module.state_dict(), "int8", kept)
    assert set(entries) == {name for name in linear if quant_layers.reason_to_keep(name, kept) is None}
    wanted = r"attn1\.to_(q|k|v|out\.0)$|" + (r"attn2\.to_(q|out\.0)$|ff\.conv_(inverted|point)$" if family == "sana"
                                              else r"ff\.net\.(0\.proj|2)$")
    assert all(re.search(wanted, name) for name in entries) and len(entries) == len(list(filter(re.compile(wanted).search, linear)))
    # Each line of the table is there for something, and gives its reason.
    for pattern, reason in kept:
        assert any(re.search(pattern, name) for name, _ in module.named_modules()) or "ofs" in pattern, pattern
        assert len(reason) > 20
    assert all(torch.equal(t, module.state_dict()[key]) for key, t in tensors.items() if key in module.state_dict()
               and key.removesuffix(".weight") not in entries)


@pytest.mark.parametrize("kind", list(quant.FORMATS))
def test_there_and_back(sana, kind):
    tensors, entries = quant_layers.quantised(sana, kind, sana_precision.KEPT)
    metadata = quant_layers.to_metadata(entries)
    read, again = quant_layers.read_layers(tensors, quant_layers.from_metadata(metadata))
    assert again == entries
    back = quant_layers.without_layers(read, again, torch.float32)
    assert back.keys() == sana.keys()
    for key, tensor in sana.items():
        layer = key.removesuffix(".weight")
        assert torch.equal(back[key], tensor) if layer not in entries else 1e-3 < apart(back[key], tensor) < 0.12
    shapes = {key: tuple(t.shape) for key, t in tensors.items()}
    dtypes = {key: t.dtype for key, t in tensors.items()}
    assert quant_layers.float_shapes(shapes, dtypes) == {key: tuple(t.shape) for key, t in sana.items()}


def test_entries_in_tensors(sana):
    tensors, entries = quant_layers.quantised(sana, "int8", sana_precision.KEPT)
    saved = tensors | {f"{layer}.comfy_quant": as_bytes(entry) for layer, entry in entries.items()}
    read, again = quant_layers.read_layers(saved)
    assert again == entries and read.keys() == tensors.keys()
    shapes = {key: tuple(t.shape) for key, t in saved.items()}
    assert quant_layers.float_shapes(shapes, {key: t.dtype for key, t in saved.items()}).keys() == sana.keys()


@pytest.mark.parametrize("marker, full", [(torch.zeros(2, dtype=torch.float8_e4m3fn), True),
                                          (torch.zeros(1, dtype=torch.float32), False)])
def test_the_older_scaled_form(marker, full):
    w = torch.randn(32, 32)
    old = {"scaled_fp8": marker}
    for name in "ab":
        old |= {f"{name}.weight": (w / 0.01).to(torch.float8_e4m3fn), f"{name}.scale_weight": torch.tensor(0.01)}
    old |= {"a.scale_input": torch.tensor(0.5), "b.scale_input": torch.tensor(1.0), "c.weight": w}
    tensors, entries = quant_layers.read_layers(old)
    assert entries["a"] == {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if full else {})
    assert entries["b"]["full_precision_matrix_mult"]  # an input scale of 1 is none
    assert tensors.keys() == {"a.weight", "a.weight_scale", "a.input_scale", "b.weight", "b.weight_scale", "c.weight"}
    assert apart(quant_layers.without_layers(tensors, entries, torch.float32)["b.weight"], w) < 0.04
    shapes = {key: tuple(t.shape) for key, t in old.items()}
    assert set(quant_layers.float_shapes(shapes, {key: t.dtype for key, t in old.items()})) == {"a.weight", "b.weight", "c.weight"}


def test_bare_fp8():
    w = torch.randn(32, 32)
    tensors = {"a.weight": w.to(torch.float8_e4m3fn), "a.bias": w[0], "norm.weight": w[0].to(torch.float8_e4m3fn), "b.weight": w}
    entries = quant_layers.unscaled_layers(tensors)
    assert list(entries) == ["a"] and float(tensors["a.weight_scale"]) == 1
    assert apart(quant_layers.without_layers(tensors, entries, torch.float32)["a.weight"], w) < 0.04


def test_what_cannot_be_understood():
    w = torch.zeros(16, 16)
    for entry in ({"form": "x"}, "float8_e4m3fn", None):
        with pytest.raises(ValueError, match="quantised layer a"):
            quant_layers.read_layers({"a.weight": w, "a.comfy_quant": as_bytes(entry)})
        with pytest.raises(ValueError, match="quantised layer a"):
            quant_layers.read_layers({"a.weight": w}, {"a": entry})
    with pytest.raises(ValueError, match="quantised layer b"):
        quant_layers.read_layers({"a.weight": w}, {"b": {"format": "nvfp4"}})
    for text in ("no json", "{}", '{"layers": 3}'):
        with pytest.raises(ValueError, match="_quantization_metadata"):
            quant_layers.from_metadata({"_quantization_metadata": text})
    with pytest.raises(ValueError, match="svdq.*turned back"):
        quant_layers.without_layers({"a.weight": w}, {"a": {"format": "svdq"}}, torch.float32)


def test_a_scale_that_nothing_describes():
    eight = torch.randn(16, 16).to(torch.float8_e4m3fn)
    tensors, entries = quant_layers.read_layers({"a.weight": eight, "a.weight_scale": torch.tensor(0.25), "b.weight": eight})
    assert entries == {"a": {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}}
    assert tensors["a.weight_scale"] == 0.25 and "b.weight_scale" not in tensors
    with pytest.raises(ValueError, match="nothing in it says how to read the float8_e4m3fn numbers of a.weight. Take the file"):
        quant_layers.read_layers({"a.weight": eight, "a.weight_scale": torch.ones(1, 16)})
    with pytest.raises(ValueError, match="nothing in it says how to read the int8 numbers of a.weight. Take the file"):
        quant_layers.read_layers({"a.weight": torch.ones(16, 16, dtype=torch.int8), "a.weight_scale": torch.ones(16, 1)})


@pytest.mark.parametrize("entry", [torch.tensor(list(b"{"), dtype=torch.uint8), torch.ones(3), torch.tensor([300])])
def test_entries_that_cannot_be_read(entry):
    with pytest.raises(ValueError, match="a.comfy_quant cannot be read, expected JSON"):
        quant_layers.read_layers({"a.weight": torch.ones(16, 16), "a.comfy_quant": entry})


@pytest.mark.parametrize("beside", ["weight_s_rel", "weight_zeros"])
def test_four_bits_in_int8_are_counted_as_two_numbers(beside):
    """So that a file of a format that is read elsewhere alone is told by its format, and not by strange shapes."""
    shapes = {"a.weight": (6, 4), f"a.{beside}": (6, 1), "b.weight": (6, 4)}
    dtypes = {"a.weight": torch.int8, f"a.{beside}": torch.float32, "b.weight": torch.int8}
    assert quant_layers.float_shapes(shapes, dtypes) == {"a.weight": (6, 8), "b.weight": (6, 4)}


def test_a_layer_whose_inputs_are_multiplied_is_not_turned_back(sana):
    tensors, entries = quant_layers.quantised(sana, "nvfp4", sana_precision.KEPT)
    layer = next(iter(entries))
    assert quant_layers.without_layers(tensors, entries, torch.float32).keys() == sana.keys()
    tensors[f"{layer}.pre_quant_scale"] = torch.ones(4)
    shapes, dtypes = ({key: of(t) for key, t in tensors.items()} for of in (lambda t: tuple(t.shape), lambda t: t.dtype))
    assert quant_layers.float_shapes(shapes, dtypes).keys() == sana.keys()
    with pytest.raises(ValueError, match=f"{re.escape(layer)} are multiplied by a pre_quant_scale"):
        quant_layers.without_layers(tensors, entries, torch.float32)
