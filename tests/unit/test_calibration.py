"""The largest inputs of layers while a model runs."""

import pytest
import torch

from sanacog.kernels.calibration import LargestInputs


def network():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))


def test_largest_input_over_all_calls():
    net = network().requires_grad_(False)
    x = torch.tensor([[0.5, -3.0, 1.0, 2.0]])
    plain = net(x)
    largest = max(float(net[1](net[0](one)).max()) for one in (x, x / 10))  # biases may make the smaller input's the larger
    with LargestInputs(net, ["0", "2"]) as seen:
        assert torch.equal(net(x), plain)
        net(x / 10)
    assert seen.values() == {"0": 3.0, "2": pytest.approx(largest)}
    net(x * 100)  # no longer watched
    assert seen.values()["0"] == 3.0 and not net[0]._forward_pre_hooks


def test_watching_ends_with_an_error_too():
    net = network()
    with pytest.raises(KeyboardInterrupt), LargestInputs(net, ["0"]):
        raise KeyboardInterrupt
    assert not net[0]._forward_pre_hooks


def test_numbers_that_are_none():
    net = network()
    with LargestInputs(net, ["0"]) as seen:
        net(torch.tensor([[1.0, float("nan"), 0, 0]]))
    with pytest.raises(ValueError, match="NaN"):
        seen.values()
    with LargestInputs(net, ["2"]) as seen:
        pass
    assert seen.values() == {}  # what did not run has no figure
