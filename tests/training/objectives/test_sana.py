"""Sana's objective against its own arithmetic in float64, diffusers' scheduler and network, and the authors' noise levels."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sanacog.sana_core import checkpoint
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.controlnet import SanaControlNet
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.training.objectives.controlnet import Controlled
from sanacog.training.objectives.sana import SanaFlow, with_empty

PARAMS = SanaParams(num_layers=2, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=32,
                    caption_channels=24)


def network(params=PARAMS):
    torch.manual_seed(0)
    model = SanaTransformer(params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 7)
    mask[1, 4:] = 0
    return {"latents": torch.randn(3, 32, 4, 6, generator=g), "states": torch.randn(3, 7, 24, generator=g), "mask": mask,
            "null_states": torch.randn(1, 9, 24, generator=g), "null_mask": torch.tensor([[1.0] + [0.0] * 8])}


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def gradients(model):
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("empty_mask", ["caption", "own"])
def test_equations_in_float64(batch, empty_mask):
    flow = SanaFlow(shift=3.0, caption_dropout=0.5, empty_mask=empty_mask)
    model, exact = network(), network().double()
    losses = flow.losses(model, batch, torch.Generator().manual_seed(5))
    losses.mean().backward()

    g = torch.Generator().manual_seed(5)
    u = torch.sigmoid(torch.randn(3, generator=g, dtype=torch.float64))
    base = (u * 1000).floor() / 1000
    sigma = 3 * base / (1 + 2 * base)
    dropped = torch.rand(3, generator=g) < 0.5
    assert 0 < dropped.sum() < 3
    noise = torch.randn(3, 32, 4, 6, generator=g).double()
    states, mask = torch.zeros(3, 9, 24, dtype=torch.float64), torch.zeros(3, 9)
    states[:, :7], mask[:, :7] = batch["states"].double(), batch["mask"]
    for row in dropped.nonzero().flatten():
        states[row] = batch["null_states"][0].double()
        if empty_mask == "own":
            mask[row] = batch["null_mask"][0]
    x0 = batch["latents"].double()
    x = (1 - sigma[:, None, None, None]) * x0 + sigma[:, None, None, None] * noise
    want = (exact(x, 1000 * sigma, states, mask) - (noise - x0)).square().mean(dim=(1, 2, 3))
    want.mean().backward()
    assert losses.shape == (3,) and losses.dtype == torch.float32
    assert relative(losses, want) < 1e-6
    assert relative(gradients(model), gradients(exact)) < 1e-5


def test_diffusers_network_and_scheduler(batch):
    diffusers = pytest.importorskip("diffusers")
    params = replace(PARAMS, num_layers=2)
    model = network(params)
    theirs = diffusers.SanaTransformer2DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=32, num_cross_attention_heads=2, cross_attention_head_dim=32,
        cross_attention_dim=64, caption_channels=24, sample_size=4)
    theirs.load_state_dict(checkpoint.from_canonical(model.state_dict(), "diffusers"))
    flow = SanaFlow(shift=3.0, caption_dropout=0.0, whole_timesteps=False)
    level = 0.4375  # 3 * l / (1 + 2 * l) = 0.7: a whole timestep
    losses = flow.losses_at(model, batch, level, torch.Generator().manual_seed(2))
    losses.mean().backward()

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    at = (scheduler.timesteps - 700).abs().argmin()
    assert abs(scheduler.sigmas[at] - 0.7) < 1e-3
    noise = torch.randn(3, 32, 4, 6, generator=torch.Generator().manual_seed(2))
    x = 0.3 * batch["latents"] + 0.7 * noise
    v = theirs(x, batch["states"], torch.full((3,), 700.0), encoder_attention_mask=batch["mask"]).sample
    want = F.mse_loss(v, noise - batch["latents"], reduction="none").mean(dim=(1, 2, 3))
    want.mean().backward()
    assert relative(losses, want) < 1e-6
    theirs_by_name = checkpoint.to_canonical({name: p.grad for name, p in theirs.named_parameters()}, "diffusers")
    want = torch.cat([theirs_by_name[name].flatten() for name, _ in model.named_parameters()])
    assert relative(gradients(model), want) < 1e-5


@pytest.mark.parametrize("shift, mean, median", [(1, 0.50, 0.50), (3, 0.714, 0.75), (4, 0.761, 0.80), (6, 0.819, 0.857)])
def test_noise_levels_are_the_authors(shift, mean, median):
    sigma = SanaFlow(shift=float(shift)).levels(200_000, torch.Generator().manual_seed(0))
    assert abs(sigma.mean() - mean) < 2e-3 and abs(sigma.median() - median) < 2e-3
    for at, ends in ((3, (0.365, 0.939)), (6, (0.535, 0.969))):
        if shift == at:
            assert torch.allclose(torch.quantile(sigma[:100_000], torch.tensor([0.05, 0.95])), torch.tensor(ends), atol=3e-3)
    assert sigma.max() < 1
    base = sigma.double() / (shift - (shift - 1) * sigma.double())
    assert (1000 * base - (1000 * base).round()).abs().max() < 1e-2  # the table's
    anywhere = SanaFlow(shift=float(shift), whole_timesteps=False).levels(200_000, torch.Generator().manual_seed(0))
    above = anywhere - sigma
    assert anywhere.unique().numel() > 150_000 and 0 < above.max() < 0.0011 * shift and above.min() > -1e-6


def test_share_of_dropped_captions(batch):
    flow = SanaFlow(caption_dropout=0.1)
    seen = []

    def count(x, timestep, states, mask):
        seen.append((states[:, 0] == batch["null_states"][0, 0]).all(dim=1).float().mean().item())
        return x
    g = torch.Generator().manual_seed(0)
    for _ in range(1000):
        flow.losses(count, batch, g)
    assert abs(sum(seen) / len(seen) - 0.1) < 0.02
    seen.clear()
    flow.losses_at(count, batch, 0.5, g)
    assert seen == [0]


def test_an_empty_prompts_own_mask_leaves_its_padding_out(batch):
    states, mask = with_empty(batch, torch.tensor([True, False, True]), "own")
    assert states.shape[1] == 7 and mask.sum(dim=1).tolist() == [1, 4, 1]
    assert torch.equal(states[0, :1], batch["null_states"][0, :1]) and not states[0, 1:].any()
    assert torch.equal(states[1], batch["states"][1])
    long = batch | {"null_mask": torch.ones(1, 9)}
    states, mask = with_empty(long, torch.tensor([True, False, False]), "own")
    assert states.shape[1] == 9 and mask.sum(dim=1).tolist() == [9, 4, 7] and not states[1:, 7:].any()


def test_padding_of_the_empty_prompt_that_was_left_out(batch):
    batch["null_states"][:, 3:] = 0
    with pytest.raises(ValueError, match="padding is zeros"):
        with_empty(batch, torch.tensor([True, False, False]), "caption")
    with_empty(batch, torch.tensor([True, False, False]), "own")


@pytest.mark.parametrize("empty_mask", ["caption", "own"])
def test_a_step_without_numbers(batch, empty_mask):
    """On the meta device, where memory is counted before training."""
    given = {name: tensor.to("meta") for name, tensor in batch.items()}
    flow = SanaFlow(caption_dropout=1.0, empty_mask=empty_mask)
    losses = flow.losses(SanaTransformer(PARAMS, device="meta"), given, torch.Generator())
    losses.sum().backward()
    assert losses.is_meta and losses.shape == (3,)


def test_an_empty_prompt_of_too_few_states(batch):
    with pytest.raises(ValueError, match="empty prompt has 5 states, and a caption 7"):
        with_empty(batch | {"null_states": batch["null_states"][:, :5]}, torch.tensor([True, False, False]), "caption")


@pytest.mark.parametrize("wiring", ["native", "diffusers"])
def test_a_controlnet_is_trained_and_its_base_is_not(batch, wiring):
    base = network()
    control = SanaControlNet(PARAMS, 1, wiring)
    control.start_from(base)
    both = Controlled(base, control)
    flow = SanaFlow(caption_dropout=0.0)
    given = batch | {"control": torch.randn(3, 32, 4, 6)}
    plain = flow.losses(base, batch, torch.Generator().manual_seed(3))
    losses = flow.losses(both, given, torch.Generator().manual_seed(3))
    assert relative(losses, plain) < 1e-6  # its outputs are zero yet
    losses.mean().backward()
    assert control.controlnet_blocks[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in base.parameters())
