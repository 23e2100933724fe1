"""The network against the equations that the models were trained with, where those and diffusers part."""

from dataclasses import replace

import pytest
import torch

from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer

from .sana_equations import velocity

PARAMS = SanaParams(3, 3, 2, 48, caption_channels=40)
FLAVOURS = {"1.0": PARAMS, "1.0, trained in fp16": replace(PARAMS, clamp_fp16=True), "1.5": replace(PARAMS, qk_norm=True),
            "Sprint": replace(PARAMS, qk_norm=True, guidance_embeds=True),
            "Sprint's teacher": replace(PARAMS, qk_norm=True, timestep_scale=0.001)}


def network(params, small=1.0):
    """small: what queries and keys are multiplied with, where an epsilon shows."""
    torch.manual_seed(0)
    net = SanaTransformer(params).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.normal_(std=weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.5)
            if ".to_q." in name or ".to_k." in name:
                weight.mul_(small)
    return net


def inputs(params):
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(3, 32, 5, 7, generator=generator), torch.randn(3, 12, params.caption_channels, generator=generator)
    mask = (torch.arange(12) < torch.tensor([[12], [7], [1]])).float()
    timestep = torch.tensor([998.7, 412.5, 3.9]) * (params.timestep_multiplier / 1000)
    return x, timestep, context, mask, torch.tensor([4.5, 3.0, 5.0]) if params.guidance_embeds else None


def relative(a, b):
    return float((a.double() - b).norm() / b.norm())


@torch.no_grad()
@pytest.mark.parametrize("small", [1.0, 3e-4])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_network(flavour, small):
    params = FLAVOURS[flavour]
    net, given = network(params, small), inputs(params)
    assert relative(net(*given), velocity(params, net.state_dict(), *given)) < 1e-5  # most of it fp32 angles of timesteps near 1000


@torch.no_grad()
@pytest.mark.parametrize("sigma, whole", [(0.98242, 982), (0.997, 997), (0.999, 999), (1.0, 1000), (0.0, 0)])
def test_timesteps_are_cut_and_whole_ones_are_kept(sigma, whole):
    """0.997 times 1000 is 996.99998 in fp32."""
    net = network(PARAMS)
    x, _, context, mask, _ = inputs(PARAMS)
    found = net(x, torch.full((3,), sigma) * 1000, context, mask)
    assert torch.equal(found, net(x, torch.full((3,), float(whole)), context, mask))
