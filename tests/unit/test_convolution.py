"""Convolutions of small clips by oneDNN: the same numbers, and out of the way elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from sanacog.cogvideo_core.autoencoder import CogVideoVAE, starting
from sanacog.cogvideo_core.config import CogVideoVAEParams

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
SLOW, FAST = "aten::slow_conv3d_forward", "aten::mkldnn_convolution"


class Casting(torch.nn.Conv3d):
    """Casts its weights when called, as a host's layer does."""

    def forward(self, x):
        return self._conv_forward(x, self.weight.to(x), None if self.bias is None else self.bias.to(x))


def run(call):
    """(what it gives, names of the operators it called)."""
    with profile() as seen:
        result = call()
    return result, {event.key for event in seen.key_averages()}


@torch.no_grad()
@pytest.mark.parametrize("kind, bias, at_start", [(torch.nn.Conv3d, True, False), (Casting, False, False), (Casting, True, True)])
def test_equals_conv3d(kind, bias, at_start):
    torch.manual_seed(0)
    layer = starting(kind)(8, 12, 3, padding=(0, 1, 1), bias=bias)
    layer.at_start = at_start
    x = torch.randn(1, 8, 5, 10, 12)
    whole = torch.cat([x[:, :, :1]] * 2 + [x], 2) if at_start else x
    want = F.conv3d(whole.double(), layer.weight.double(), layer.bias.double() if bias else None, padding=(0, 1, 1))
    got, called = run(lambda: layer(x))
    assert got.shape == want.shape and (got - want).norm() < 1e-6 * want.norm()
    assert FAST in called and SLOW not in called


@torch.no_grad()
def test_a_single_clip_takes_the_fast_path():
    vae = CogVideoVAE(CogVideoVAEParams(block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4))
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=0.1)
    for call in (lambda: vae.encode(torch.zeros(1, 3, 9, 32, 32)), lambda: vae.decode(torch.zeros(1, 16, 3, 4, 4))):
        _, called = run(call)
        assert FAST in called and SLOW not in called


def test_elsewhere_it_is_conv3d():
    layer = starting(torch.nn.Conv3d)(8, 8, 3, padding=(0, 1, 1))
    x = torch.randn(1, 8, 5, 10, 12)
    y, called = run(lambda: layer(x))  # gradients are on
    assert SLOW in called
    y.sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        assert FAST not in run(lambda: layer(x))[1]
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent is not None
    with torch.no_grad():
        exported = torch.compile(layer, backend="eager", fullgraph=True)
        assert (exported(x) - y).norm() < 1e-5 * y.norm()
