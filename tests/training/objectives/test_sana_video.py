"""SANA-Video's objective against its own arithmetic in float64, with first frames that are given and without."""

import pytest
import torch

from sanacog.sana_core.video_checkpoint import network
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams
from sanacog.training.objectives.sana_video import SanaVideoFlow

FIRST = SanaVideoParams(2, 2, 2, 32, attention_head_dim=32, in_channels=4, out_channels=4, caption_channels=24)
SECOND = SanaVideo2Params(3, 96, 3, (1,), linear_head_dim=24, softmax_head_dim=48, in_channels=4, out_channels=4, caption_channels=24,
                          mlp_ratio=2.0, depth_group=2)


def made(params):
    torch.manual_seed(0)
    model = network(params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def gradients(model):
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 7)
    mask[1, 4:] = 0
    return {"latents": torch.randn(3, 4, 3, 4, 6, generator=g), "states": torch.randn(3, 7, 24, generator=g), "mask": mask,
            "null_states": torch.randn(1, 9, 24, generator=g), "null_mask": torch.tensor([[1.0] + [0.0] * 8])}


@pytest.mark.parametrize("params", [FIRST, SECOND], ids=["first", "2.0"])
@pytest.mark.parametrize("share, given", [(0.0, [0, 0, 0]), (0.5, [1, 0, 1]), (1.0, [1, 1, 1])])
def test_equations_in_float64(batch, params, share, given):
    flow = SanaVideoFlow(shift=3.0, caption_dropout=0.4, picture_share=share)
    model, exact = made(params), made(params).double()
    losses = flow.losses(model, batch, torch.Generator().manual_seed(0))
    losses.mean().backward()

    g = torch.Generator().manual_seed(0)
    assert (torch.rand(3, generator=g) < share).tolist() == [bool(one) for one in given]
    u = torch.sigmoid(torch.randn(3, generator=g, dtype=torch.float64))
    base = (u * 1000).floor() / 1000
    sigma = 3 * base / (1 + 2 * base)
    dropped = torch.rand(3, generator=g) < 0.4
    assert 0 < dropped.sum() < 3
    noise = torch.randn(3, 4, 3, 4, 6, generator=g).double()
    states, x0, losses_wanted = batch["states"].double(), batch["latents"].double(), []
    for row in range(3):
        start = given[row]  # the first frame that counts
        x, time = (1 - sigma[row]) * x0[row] + sigma[row] * noise[row], (1000 * sigma[row]).repeat(3)
        x[:, :start], time[:start] = x0[row, :, :start], 0
        text = batch["null_states"][:, :7].double() if dropped[row] else states[row : row + 1]
        v = exact(x[None], time[None], text, batch["mask"][row : row + 1])[0]
        losses_wanted.append((v - (noise[row] - x0[row]))[:, start:].square().mean())
    want = torch.stack(losses_wanted)
    want.mean().backward()
    assert losses.shape == (3,) and relative(losses, want) < 1e-6
    assert relative(gradients(model), gradients(exact)) < 1e-5


def test_held_out_rows_begin_with_their_frame_where_all_do(batch):
    seen = []

    def network(x, time, states, mask):
        seen.append((x, time))
        return torch.zeros_like(x)
    for share in (0.3, 1.0):
        SanaVideoFlow(picture_share=share).losses_at(network, batch, 0.5, torch.Generator().manual_seed(0))
    (x, time), (given, given_time) = seen
    assert time.unique().tolist() == [750.0] and not torch.equal(x[:, :, 0], batch["latents"][:, :, 0])
    assert torch.equal(given[:, :, 0], batch["latents"][:, :, 0]) and given_time[:, 0].abs().max() == 0
    assert torch.equal(given[:, :, 1:], x[:, :, 1:]) and torch.equal(given_time[:, 1:], time[:, 1:])
