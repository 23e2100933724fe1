"""The size of a change beside the weights, without the product of its matrices."""

import pytest
import torch

from sanacog.host.lora_keys import ALPHA, DOWN, MID, UP
from sanacog.host.lora_strength import relative_change

G = torch.Generator().manual_seed(0)
W = torch.randn(48, 32, generator=G)


def r(*shape):
    return torch.randn(*shape, generator=G)


PAIR, KRON = (r(48, 4), r(4, 32)), (r(6, 4), r(8, 2), r(2, 8))
CASES = {
    "lora": ({UP: PAIR[0], DOWN: PAIR[1]}, PAIR[0] @ PAIR[1]),
    "half precision": ({UP: PAIR[0].half(), DOWN: PAIR[1].half()}, PAIR[0].half().float() @ PAIR[1].half().float()),
    "alpha": ({UP: PAIR[0], DOWN: PAIR[1], ALPHA: torch.tensor(2.0)}, PAIR[0] @ PAIR[1] / 2),
    "convolution": ({UP: PAIR[0][..., None, None], DOWN: PAIR[1].reshape(4, 8, 2, 2)}, PAIR[0] @ PAIR[1]),
    "diff": ({"diff": 3 * W}, 3 * W),
    "lokr": ({"lokr_w1": KRON[0], "lokr_w2_a": KRON[1], "lokr_w2_b": KRON[2], ALPHA: torch.tensor(1.0)},
             torch.kron(KRON[0], KRON[1] @ KRON[2]) / 2),
    "whole lokr": ({"lokr_w1": KRON[0], "lokr_w2": r(8, 8), ALPHA: torch.tensor(9.0)}, None),
    "mid": ({UP: PAIR[0], DOWN: PAIR[1], MID: r(4, 4, 3, 3)}, torch.zeros(1)),
    "loha": ({"hada_w1_a": PAIR[0], "hada_w1_b": PAIR[1]}, torch.zeros(1)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_norm_of_the_product(name):
    parts, change = CASES[name]
    if change is None:
        change = torch.kron(parts["lokr_w1"], parts["lokr_w2"])  # without a rank alpha means nothing
    assert relative_change({"x": parts}, ["x"], {"x": W}) == pytest.approx(float(change.norm() / W.norm()), rel=1e-4)


def test_the_median_counts():
    layers = {str(i): {"diff": factor * W} for i, factor in enumerate((0.1, 0.2, 90.0))}
    assert relative_change(layers, list(layers), dict.fromkeys(layers, W)) == pytest.approx(0.2)


@pytest.mark.parametrize("weight", [None, torch.empty(48, 32, device="meta"), torch.zeros(48, 32),
                                    type("Packed", (torch.Tensor,), {})(48, 32)])
def test_a_weight_that_cannot_be_measured_is_passed_over(weight):
    layers = {name: {"diff": 3 * W} for name in "xy"}
    assert relative_change(layers, ["x"], {"x": weight}) == 0
    assert relative_change(layers, ["x", "y"], {"x": weight, "y": W}) == pytest.approx(3)


def test_weights_in_eight_bits():
    layers = {"x": {"diff": 3 * W}}
    assert relative_change(layers, ["x"], {"x": W.to(torch.float8_e4m3fn)}) == pytest.approx(3, rel=0.02)


def test_a_sample_is_enough():
    asked = []

    class Weights(dict):
        def get(self, name):
            asked.append(name)
            return W

    layers = {str(i): {"diff": 2 * W} for i in range(300)}
    assert relative_change(layers, list(layers), Weights()) == pytest.approx(2) and len(asked) < 20
