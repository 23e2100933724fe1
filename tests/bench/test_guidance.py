"""The guidance whose accuracy bench/ measures is that of the equations."""

import pytest
import torch
from torch import nn

from sanacog.bench import guidance
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer

SHIFT = 3.0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = SanaTransformer(SanaParams(2, 2, 2, 32, caption_channels=24, sample_size=8))
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return net.eval()


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("options", guidance.VARIANTS.values(), ids=guidance.VARIANTS)
@torch.no_grad()
def test_guided(model, options, share):
    torch.manual_seed(1)
    x, context = torch.randn(1, 32, 4, 4), torch.randn(2, 5, 24)
    sigma = SHIFT * (1 - share) / (1 + (SHIFT - 1) * (1 - share))
    t, mask = torch.full((2,), 1000 * sigma), torch.ones(2, 5)
    c, u = model(torch.cat([x, x]), t, context, mask).chunk(2)
    p = model(x, t[:1], context[:1], mask[:1], self_attention={1: lambda q, k, v, heads: v})
    assert not torch.allclose(c, p, atol=1e-3)

    guided = guidance.Guided(model, 1, SHIFT, **options)
    v, empty = guided(torch.cat([x, x]), t, context, mask).chunk(2)
    cfg = 1.0 if share > options.get("end", 1.0) else options.get("cfg", guidance.CFG)
    torch.testing.assert_close(empty + guided.cfg * (v - empty), u + cfg * (c - u) + options.get("pag", 0.0) * (c - p),
                               rtol=1e-4, atol=1e-5)


def test_missing_models_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train tiny-sana"):
        guidance.guidance_accuracy(tmp_path)
