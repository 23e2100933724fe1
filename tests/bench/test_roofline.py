"""The floors of the bench: what is counted, and that real cases count what their shapes say."""

import pytest
import torch

from sanacog.bench import harness, roofline, sana

from .test_harness import X


def test_products_convolutions_and_attention_are_counted():
    linear, convolution = torch.nn.Linear(64, 32, bias=False), torch.nn.Conv2d(8, 4, 3, padding=1, bias=False)
    q = torch.randn(1, 2, 16, 8)

    def call(x, picture):
        linear(x).relu()
        convolution(picture)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    with torch.inference_mode():  # as the harness runs
        found = roofline.operations(call, torch.randn(10, 64), torch.randn(1, 8, 9, 9))
    (linear_flops, linear_bytes), (convolution_flops, _), *attention = found
    assert (linear_flops, linear_bytes) == (2 * 10 * 64 * 32, 4 * (10 * 64 + 64 * 32 + 10 * 32))
    assert convolution_flops == 2 * 81 * 8 * 4 * 9
    assert sum(flops for flops, _ in attention) == 2 * 2 * (2 * 16 * 16 * 8)


def test_compiled_code_counts_as_eager_code_does():
    class Layer(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    layer, x = Layer(64, 32), torch.randn(10, 64)
    want = roofline.operations(layer, x)
    layer.compile(backend=lambda graph, inputs: lambda *args: [torch.zeros(10, 32)])  # code in which no product is to be seen
    assert layer(x).count_nonzero() == 0 and len(want) == 1 and roofline.operations(layer, x) == want


def test_the_floor_is_the_longer_of_both_for_each():
    assert roofline.floor([(100, 1), (1, 100)], roofline.Machine(flops=10.0, bytes=50.0)) == 10 + 2


def test_a_step_counts_what_its_shapes_say():
    params = sana.SIZES["0.6B"]
    ours, baseline = sana.transformers(params, "meta", torch.float32)
    found = roofline.operations(ours, *sana.step_inputs(params, 512, "meta", torch.float32)[0])
    width, picture, text = params.width, 2 * 256, 2 * sana.TOKENS
    linear = 2 * width * width * (picture * (4 + 2 + 3 * params.mlp_ratio) + 2 * text) * params.num_layers
    assert sum(flops for flops, _ in found) == pytest.approx(linear, rel=0.06)  # attention, embeddings: little


def test_a_row_has_its_floor_where_the_machine_is_known():
    def product(x):
        return torch.ones(4, 4) @ (x * torch.ones(4, 4))

    made = harness.Case("toy", product, product, X, 1e-5)
    assert harness.measure(made, 2, 1, harness.WallClock()).floor is None
    row = harness.measure(made, 2, 1, harness.WallClock(), machine=roofline.Machine(flops=64.0, bytes=1e9))
    assert row.floor == 2 * 4**3 / 64 and harness.row_from_json(harness.row_to_json(row)) == row


def test_a_machine_is_measured(monkeypatch):
    monkeypatch.setitem(roofline.SIDE, "cpu", 64)
    monkeypatch.setitem(roofline.COPIED, "cpu", 2**12)

    class Seconds:
        def run(self, call):
            call()
            return 0.5

        def seconds(self, marks):
            assert len(marks) == roofline.RUNS
            return marks

    assert roofline.machine("cpu", torch.float32, Seconds()) == roofline.Machine(2 * 64**3 / 0.5, 2 * 2**12 / 0.5)
