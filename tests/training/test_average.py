"""The moving average of what is trained."""

import pytest
import torch
from torch import nn

from sanacog.training.average import Average


def test_average():
    model = nn.Linear(1, 1, bias=False)
    average = Average(model.named_parameters(), 0.9)
    want = start = model.weight.item()
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update()
        decay = min(0.9, (step + 1) / (step + 10))
        want = decay * want + (1 - decay) * step
        assert abs(average.values["weight"].item() - want) < 1e-3
    assert start != want
    with average.in_place():
        assert abs(model.weight.item() - want) < 1e-3
    assert model.weight.item() == 199
    other = Average(nn.Linear(1, 1, bias=False).named_parameters(), 0.9)
    other.load_state_dict(average.state_dict())
    assert other.step == 200 and torch.equal(other.values["weight"], average.values["weight"])
    for layer, found in ((nn.Linear(2, 1, bias=False), r"weight is \(1, 1\), and here \(1, 2\)"),
                         (nn.Linear(1, 1), "bias is not there, and here")):
        with pytest.raises(ValueError, match=found):
            Average(layer.named_parameters(), 0.9).load_state_dict(average.state_dict())


def test_the_network_is_itself_again_after_an_error():
    model = nn.Linear(1, 1)
    average, before = Average(model.named_parameters(), 0.9), model.weight.item()
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(RuntimeError, match="stopped"), average.in_place():
        assert model.weight.item() == before
        raise RuntimeError("stopped")
    assert model.weight.item() == before + 1 and average.values["weight"].item() == before
