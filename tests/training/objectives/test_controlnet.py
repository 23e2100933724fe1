"""A ControlNet's loss and gradients against diffusers' networks, and the native wiring against its blocks run by hand in float64."""

import copy

import pytest
import torch

from sanacog.sana_core.checkpoint import to_canonical
from sanacog.sana_core.transformer import modulate
from sanacog.training.objectives.controlnet import Controlled
from sanacog.training.objectives.sana import SanaFlow

from ...parity.test_sana_controlnet import diffusers_net, ours_of
from ...parity.test_sana_transformer import SMALL, inputs, pair, relative

LEVEL, SIGMA = 0.4375, 0.7  # shift 3


@pytest.fixture
def case():
    base, theirs = pair(SMALL)
    x, _, context, mask, _ = inputs(SMALL, 8, 10)
    control, net = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)), diffusers_net()
    return base, theirs, net, {"latents": x, "states": context, "mask": mask, "control": control}


def noise_of(batch):
    return torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(2))


def losses_of(base, net, wiring, batch):
    control = ours_of(net, wiring).requires_grad_(True)
    losses = SanaFlow(shift=3.0).losses_at(Controlled(base, control), batch, LEVEL, torch.Generator().manual_seed(2))
    losses.mean().backward()
    return losses, torch.cat([p.grad.flatten() for _, p in sorted(control.named_parameters())])


def test_diffusers_networks(case):
    base, theirs, net, batch = case
    losses, gradients = losses_of(base, net, "diffusers", batch)
    noise = noise_of(batch)
    x, timestep = (1 - SIGMA) * batch["latents"] + SIGMA * noise, torch.full((2,), 1000 * SIGMA)
    samples = net(x, batch["states"], timestep, batch["control"], encoder_attention_mask=batch["mask"], return_dict=False)[0]
    v = theirs(x, batch["states"], timestep, encoder_attention_mask=batch["mask"], controlnet_block_samples=samples, return_dict=False)[0]
    want = (v - (noise - batch["latents"])).square().mean(dim=(1, 2, 3))
    net.zero_grad()
    want.mean().backward()
    named = to_canonical({name: p.grad for name, p in net.named_parameters()}, "diffusers")
    assert relative(losses, want) < 1e-6
    assert relative(gradients, torch.cat([grad.flatten() for _, grad in sorted(named.items())])) < 1e-5
    assert all(p.grad is None for p in base.parameters())


def test_native_wiring(case):
    base, _, net, batch = case
    losses, gradients = losses_of(base, net, "native", batch)
    base, control = copy.deepcopy(base).double(), copy.deepcopy(ours_of(net, "native")).double().requires_grad_(True)
    latents, noise, mask = batch["latents"].double(), noise_of(batch).double(), ((1 - batch["mask"].double()) * -10000)[:, None, None]
    x = (1 - SIGMA) * latents + SIGMA * noise

    def embedded(network):
        modulation, embedding = network.time_embed(torch.full((2,), 700.0), None, torch.float64)
        return modulation, embedding, network.caption_norm(network.caption_projection(batch["states"].double()))

    modulation, embedding, text = embedded(base)
    own, _, own_text = embedded(control)
    h = base.patch_embed(x)
    c = base.transformer_blocks[0](control.patch_embed(x), own_text, own, mask, 8, 10) + control.input_block(
        control.patch_embed(batch["control"].double()))
    h = base.transformer_blocks[0](h, text, modulation, mask, 8, 10)
    for i, block in enumerate(control.transformer_blocks):
        c = block(c, own_text, own, mask, 8, 10)
        h = base.transformer_blocks[i + 1](h + control.controlnet_blocks[i](c), text, modulation, mask, 8, 10)
    shift, scale = (base.scale_shift_table + embedding[:, None]).chunk(2, dim=1)
    v = base.proj_out(modulate(h, shift, scale)).transpose(1, 2).unflatten(2, (8, 10))
    want = (v - (noise - latents)).square().mean(dim=(1, 2, 3))
    want.mean().backward()
    assert relative(losses, want) < 1e-6
    assert relative(gradients, torch.cat([p.grad.flatten() for _, p in sorted(control.named_parameters())])) < 1e-5
