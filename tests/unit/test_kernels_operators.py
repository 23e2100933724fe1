"""The kernels that torch.compile is to keep as one node each: registered as operators, checked with the eager form that
they have on a CPU."""

import importlib

import pytest
import torch

from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.kernels import dispatch
from sanacog.kernels.linear_attention import eager as eager_attention
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer

from . import kernel_cases as cases

PARAMS = SanaParams(num_layers=2, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=32,
                    caption_channels=24)


@pytest.fixture(autouse=True)
def registered():
    pytest.importorskip("triton")
    importlib.import_module("sanacog.kernels.fused")


@pytest.mark.parametrize("batch, tokens, heads, dtype", [(2, 70, 3, torch.float32), (1, 9, 2, torch.bfloat16)])
def test_linear_attention(batch, tokens, heads, dtype):
    args = *cases.attention_inputs(batch, tokens, tokens, heads, 32, dtype), 1e-15
    torch.library.opcheck(torch.ops.sanacog.relu_linear_attention.default, args)
    assert torch.equal(torch.ops.sanacog.relu_linear_attention(*args), eager_attention(*args))


@pytest.mark.parametrize("batch, height, width, hidden, dtype", [(2, 3, 5, 7, torch.float32), (1, 4, 4, 16, torch.bfloat16)])
def test_gated_depthwise(batch, height, width, hidden, dtype):
    args = cases.gate_inputs(batch, height, width, hidden, dtype)
    torch.library.opcheck(torch.ops.sanacog.gated_depthwise.default, args)
    assert cases.relative(torch.ops.sanacog.gated_depthwise(*args), cases.gate(*args)) < 1e-6 if dtype == torch.float32 else 1e-2


def graph_of(model, inputs, monkeypatch):
    """What the nodes call of the one graph that the compiled model is; its output is compared."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    want = model(*inputs)
    graphs = []

    def backend(graph, example):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    monkeypatch.setattr(dispatch, "DEVICE", "cpu")
    monkeypatch.setattr(dispatch, "_available", lambda index: True)
    got = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)(*inputs)
    torch.compiler.reset()
    assert len(graphs) == 1 and cases.relative(got, want) < 1e-6
    return graphs[0]


@torch.no_grad()
def test_a_compiled_sana_is_one_graph_with_both_operators(monkeypatch):
    inputs = torch.randn(2, 32, 4, 3), torch.tensor([700.0, 700.0]), torch.randn(2, 6, 24), torch.ones(2, 6)
    graph = graph_of(SanaTransformer(PARAMS), inputs, monkeypatch)
    for name in ("relu_linear_attention", "gated_depthwise"):
        assert sum(name in target for target in graph) == PARAMS.num_layers


@torch.no_grad()
def test_a_compiled_cogvideox_is_one_graph_with_none(monkeypatch):
    """The compiler fuses norm and rotation itself."""
    params = CogVideoParams(num_layers=2, num_attention_heads=2, text_embed_dim=24, max_text_seq_length=4)
    inputs = torch.randn(1, 16, 2, 4, 6), torch.tensor([700.0]), torch.randn(1, 4, 24)
    assert not any("sanacog" in target for target in graph_of(CogVideoTransformer(params), inputs, monkeypatch))


@torch.no_grad()
def test_the_other_kernels_leave_a_compiler_what_it_fuses(monkeypatch):
    monkeypatch.setattr(dispatch, "DEVICE", "cpu")
    monkeypatch.setattr(dispatch, "_available", lambda index: True)
    answers = []

    def call(x):
        answers.append((dispatch.fusible(x), dispatch.fusible(x, compiled=True)))
        return x + 1

    torch.compile(call, backend="eager")(torch.ones(2))
    call(torch.ones(2))
    torch.compiler.reset()
    assert answers == [(False, True), (True, True)]
