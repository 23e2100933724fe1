"""SANA-Video's networks against the equations in float64: what diffusers lacks (LongSANA, 2.0), and the first generation again."""

import pytest
import torch

from sanacog.sana_core.video_checkpoint import from_canonical, network
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams

from .sana_video_equations import first_generation, second_generation

FIRST = SanaVideoParams(3, 2, 2, 32, attention_head_dim=32, in_channels=4, out_channels=4, caption_channels=24)
SECOND = SanaVideo2Params(7, 96, 3, (2, 5), linear_head_dim=24, softmax_head_dim=48, in_channels=6, out_channels=6,
                          caption_channels=24, mlp_ratio=2.0, depth_group=3)


def made(params):
    """Our network with random weights, and those under NVlabs' names."""
    net = network(params).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=(weight[0].numel() if weight.ndim > 1 else 2) ** -0.5, generator=generator)
    return net, from_canonical(net.state_dict(), "nvlabs")


def inputs(params, frames=4, side=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, params.in_channels, frames, side, side + 2, generator=generator)
    y = torch.randn(2, 9, params.caption_channels, generator=generator)
    mask = torch.ones(2, 9)
    mask[0, 7:] = mask[1, 4:] = 0
    return x, y, mask


def close(found, expected, bound=1e-5):
    assert found.shape == expected.shape
    assert ((found.double() - expected).norm() / expected.norm()).item() < bound


@torch.no_grad()
@pytest.mark.parametrize("times", ["one", "a frame"])
def test_first_generation(times):
    net, weights = made(FIRST)
    x, y, mask = inputs(FIRST)
    t = torch.tensor([[799.7, 799.7, 799.7, 799.7], [0.0, 30.2, 30.2, 30.2]]) if times == "a frame" else torch.tensor([700.4, 12.0])
    each = t if t.ndim == 2 else t[:, None].expand(-1, 4)
    expected = first_generation(weights, x, each, y, mask, patch=2, layers=3, heads=2, cross_heads=2)
    close(net(x, t, y, mask), expected)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(3, 2, 2), (1, 1, 1, 4), (7,)], ids=str)
def test_blocks_one_after_the_other(sizes):
    """LongSANA: a clip in blocks, each given the Past of those before, is the causal network of the whole clip."""
    net, weights = made(FIRST)
    x, y, mask = inputs(FIRST, frames=7)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    expected = first_generation(weights, x, torch.full((2, 7), 727.0), y, mask, patch=2, layers=3, heads=2, cross_heads=2,
                                starts=tuple(starts))
    past, parts = None, []
    for start, count in zip(starts, sizes):
        keep = []
        parts.append(net(x[:, :, start: start + count], torch.tensor([727.0, 727.0]), y, mask, past=past, keep=keep,
                         first_frame=start))
        assert len(keep) == 3
        past = keep if past is None else [before.then(own) for before, own in zip(past, keep)]
    close(torch.cat(parts, 2), expected)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_left_behind_is_of_one_frame(batch):
    """Also in memory: a view of the last frame would hold all of them, in every block."""
    net, _ = made(FIRST)
    x, y, mask = inputs(FIRST, frames=6)
    keep = []
    net(x[:batch], torch.tensor([727.0] * batch), y[:batch], mask[:batch], keep=keep)
    for own in keep:
        assert own.frame.untyped_storage().nbytes() == own.frame.numel() * own.frame.element_size()


@torch.no_grad()
@pytest.mark.parametrize("times", ["one", "a frame"])
def test_second_generation(times):
    net, weights = made(SECOND)
    x, y, mask = inputs(SECOND, frames=3)
    t = torch.tensor([[0.0, 600.0, 600.0], [0.0, 44.0, 44.0]]) if times == "a frame" else torch.tensor([600.9, 3.0])
    each = t if t.ndim == 2 else t[:, None].expand(-1, 3)
    expected = second_generation(weights, x, each, y, mask, layers=7, softmax_layers=(2, 5), linear_dim=24, softmax_dim=48,
                                 cross_heads=3, group=3)
    close(net(x, t, y, mask), expected)


@torch.no_grad()
def test_a_block_can_be_stood_around():
    """run_block sees what adds up to the result: one that adds nothing changes nothing, one that leaves blocks out does."""
    for params in (FIRST, SECOND):
        net, _ = made(params)
        x, y, mask = inputs(params)
        t = torch.tensor([600.0, 3.0])
        plain, seen = net(x, t, y, mask), []

        def same(i, call, *args):
            seen.append(i)
            return call(*args)

        assert torch.equal(net(x, t, y, mask, run_block=same), plain) and seen == list(range(params.num_layers))
        without = net(x, t, y, mask, run_block=lambda i, call, x, context, vec: (x, context) if i == 1 else call(x, context, vec))
        assert (without - plain).norm() > 0.01 * plain.norm()
