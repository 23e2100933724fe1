"""What quantising costs, on a small scale: the inputs' errors, and one step of the embedded Sana."""


import pytest
import torch

from sanacog.bench import quant as bench
from sanacog.sana_core import checkpoint, precision
from sanacog.sana_core.config import identify
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.storage.checkpoints import open_checkpoint


def apart(a, b):
    return float((a - b).norm() / b.norm())


def test_inputs_as_layers_get_them():
    x = torch.randn(3, 5, 192, generator=torch.Generator().manual_seed(0))
    for kind, low, high in (("int8", 0.004, 0.010), ("fp8", 0.02, 0.03), ("nvfp4", 0.07, 0.11)):
        found = bench.input_as_kept(x, kind, torch.tensor(float(x.abs().max()) * 2 / 448))
        assert found.shape == x.shape and low < apart(found, x) < high
    # A scale for inputs a thousand times as large, and one for inputs a thousand times as small: what calibration is for.
    assert apart(bench.input_as_kept(x / 1000, "fp8", torch.tensor(1.0)), x / 1000) > 0.3
    assert apart(bench.input_as_kept(x * 1000, "fp8", torch.tensor(1.0)), x * 1000) > 0.3


@pytest.fixture(scope="module")
def embedded():
    file = open_checkpoint(bench.MODELS / "diffusion_models" / "sanacog_tiny_sana.safetensors")
    model = SanaTransformer(identify(file.shapes, file.config).params)
    model.load_state_dict({k: t.float() for k, t in checkpoint.to_canonical(file.load(), "diffusers").items()})
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("row, low, high", [("int8", 0.002, 0.02), ("fp8, calibrated", 0.01, 0.06), ("nvfp4", 0.03, 0.25)])
def test_one_step_of_the_embedded_sana(embedded, row, low, high):
    kind, inputs = bench.ROWS[row]
    generator = torch.Generator().manual_seed(0)
    cases = [(torch.randn(2, 32, 8, 8, generator=generator), torch.full((2,), float(t)),
              torch.randn(2, 12, 96, generator=generator)) for t in bench.TIMES]
    largest = bench.largest_inputs(embedded, precision.KEPT, lambda model: [model(*case) for case in cases])
    assert len(largest) == 48 and min(largest.values()) > 0
    changed = bench.as_kept(embedded, kind, precision.KEPT, largest, inputs)
    assert low < bench.one_step(changed, embedded, cases) < high
    assert bench.one_step(embedded, embedded, cases) == 0


def test_tables():
    found = {"Sana": {"as it is": {"one step": 0.003, "size": 3_500_000, "shape": 0.86},
                      "int8": {"one step": 0.01, "size": 2_300_000, "shape": 0.85, "loss": 0.01, "allowed": 0.02},
                      "nvfp4, weights alone": {"one step": 0.1, "size": 2_000_000}},
             "released": {"Sana 9B": dict(bf16=18e9, int8=9e9, fp8=9e9, nvfp4=5e9)}, "seconds": 3.0}
    head, first, second, third, _, sizes = bench.lines(found)
    assert sizes.split() == ["Sana", "9B", "18.00", "9.00", "9.00", "5.00"]
    assert "shape" in head and "loss" in head and "0.860" in first and "0.010 (0.02)" in second and "0.1000" in third


def test_sizes_of_released_models():
    sizes = bench.released_sizes()
    assert sizes["CogVideoX 5B"]["bf16"] == pytest.approx(2 * 5.570e9, rel=1e-3)
    for name, of in sizes.items():
        assert of["bf16"] > of["int8"] > of["nvfp4"] > of["bf16"] / 4 and of["fp8"] < of["int8"], name
    # The row scales of int8 are all that it has more than fp8, which has one scale a layer.
    assert sizes["Sana 1.6B"]["int8"] - sizes["Sana 1.6B"]["fp8"] < 0.002 * sizes["Sana 1.6B"]["int8"]
