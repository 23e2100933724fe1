"""fp32 products by oneDNN: the same numbers, also from a host's kind of layer, and out of the way elsewhere."""

import pytest
import torch
from torch import nn

from sanacog.kernels import processor, products


class Casting(nn.Linear):
    """Casts its weights when called, as a host's layer does."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x), self.bias.to(x))


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN multiplied."""
    seen, plain = [], products.plain

    def counted(tensor):
        answer = plain(tensor)
        seen.append(answer)
        return answer
    monkeypatch.setattr(products, "plain", counted)
    return lambda: sum(seen)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("kind, bias, shape", [(nn.Linear, True, (2, 37, 48)), (nn.Linear, False, (5, 48)), (Casting, True, (3, 48))])
def test_equals_linear(kind, bias, shape):
    torch.manual_seed(0)
    layer = products.multiplying(kind)(48, 72, bias=bias)
    x = torch.randn(*shape)
    want = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.inference_mode():
        got = layer(x)
    assert got.shape == want.shape
    assert ((got - want).norm() / want.norm()).item() < 1e-6


def test_goes_to_onednn_for_plain_fp32_alone(calls):
    layer = products.multiplying(nn.Linear)(48, 72).requires_grad_(False)
    layer(torch.randn(3, 48))
    assert not calls()  # gradients are on
    with torch.no_grad():
        layer(torch.randn(3, 48))
        assert calls() == 4  # the input in forward, and all three at the product
        layer.to(torch.bfloat16)(torch.randn(3, 48, dtype=torch.bfloat16))
    assert calls() == 4


def test_gradients_pass():
    layer = products.multiplying(nn.Linear)(8, 8)
    layer(torch.randn(2, 8)).sum().backward()
    assert layer.weight.grad is not None


def test_tangents_pass():
    layer = products.multiplying(nn.Linear)(8, 8)
    x, along = torch.randn(2, 8), torch.randn(2, 8)
    with torch.no_grad():
        _, slope = torch.func.jvp(layer, (x,), (along,))
    torch.testing.assert_close(slope, along @ layer.weight.T)


@pytest.mark.parametrize("amd", [False, True])
def test_the_namespace(monkeypatch, amd):
    monkeypatch.setattr(processor, "is_amd", lambda: amd)
    layers = products.fastest(nn)
    assert layers.RMSNorm is nn.RMSNorm
    assert issubclass(layers.Linear, nn.Linear)
    assert (layers.Linear is not nn.Linear) == (amd and torch.backends.mkldnn.is_available())
