"""CAME against its algorithm in float64, and what it keeps."""

import pytest
import torch
from torch import nn

from sanacog.training.came import Came
from sanacog.training.optimizers import make


def came_in_float64(w, gradients, lr, betas, eps, decay):
    """arXiv 2307.02047, algorithm 2, for a matrix, written with loops over rows and columns."""
    rows, columns = w.shape
    r, c, R, C = (torch.zeros(n, dtype=torch.float64) for n in (rows, columns, rows, columns))
    m = torch.zeros_like(w)
    for g in gradients:
        square = g * g + eps[0]
        r = betas[1] * r + (1 - betas[1]) * square.sum(1)
        c = betas[1] * c + (1 - betas[1]) * square.sum(0)
        u = torch.stack([torch.stack([g[i, j] / (r[i] * c[j] / r.sum()).sqrt() for j in range(columns)]) for i in range(rows)])
        u = u / max(1.0, float((u * u).mean().sqrt()))
        m = betas[0] * m + (1 - betas[0]) * u
        unstable = (u - m) ** 2 + eps[1]
        R = betas[2] * R + (1 - betas[2]) * unstable.sum(1)
        C = betas[2] * C + (1 - betas[2]) * unstable.sum(0)
        S = torch.stack([torch.stack([R[i] * C[j] / R.sum() for j in range(columns)]) for i in range(rows)])
        w = w - lr * decay * w
        w = w - lr * m / S.sqrt()
    return w


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1)])
def test_came_is_its_algorithm(shape):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=g, dtype=torch.float64)
    gradients = [torch.randn(3, 4, generator=g, dtype=torch.float64) * 10 ** (i - 2) for i in range(5)]
    # The algorithm's moments are sums and ours are means, with an epsilon for each number either way.
    want = came_in_float64(start, gradients, 1e-2, (0.9, 0.99, 0.995), (1e-30, 1e-16), 0.1)
    weight = nn.Parameter(start.float().reshape(shape))
    optimizer = Came([weight], lr=1e-2, betas=(0.9, 0.99, 0.995), weight_decay=0.1)
    for gradient in gradients:
        weight.grad = gradient.float().reshape(shape)
        optimizer.step()
    assert ((weight.detach().double().reshape(3, 4) - want).norm() / (want - start).norm()).item() < 1e-5


def test_came_keeps_little_and_treats_depthwise_kernels_whole():
    matrix, depthwise, bias = nn.Parameter(torch.randn(64, 48)), nn.Parameter(torch.randn(64, 1, 3, 3)), nn.Parameter(torch.zeros(64))
    optimizer = Came([matrix, depthwise, bias])
    for parameter in (matrix, depthwise, bias):
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    count = {p: sum(t.numel() for t in optimizer.state[p].values()) for p in (matrix, depthwise, bias)}
    assert count == {matrix: 64 * 48 + 2 * (64 + 48), depthwise: 2 * depthwise.numel(), bias: 128}


def test_came_of_what_is_no_matrix():
    """Second moments whole, no instability: as NVlabs' code treats vectors and depthwise kernels."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(4, 1, 3, 3, generator=g, dtype=torch.float64)
    gradients = [torch.randn(4, 1, 3, 3, generator=g, dtype=torch.float64) * 10 ** (i - 2) for i in range(5)]
    want, square, average = start, 0.0, 0.0
    for gradient in gradients:
        square = 0.99 * square + 0.01 * (gradient**2 + 1e-30)
        update = gradient / square.sqrt()
        update = update / max(1.0, float((update * update).mean().sqrt()))
        average = 0.9 * average + 0.1 * update
        want = want - 0.1 * 0.1 * want - 0.1 * average
    weight = nn.Parameter(start.float())
    optimizer = Came([weight], lr=0.1, betas=(0.9, 0.99, 0.995), weight_decay=0.1)
    for gradient in gradients:
        weight.grad = gradient.float()
        optimizer.step()
    assert ((weight.detach().double() - want).norm() / (want - start).norm()).item() < 1e-5


def test_came_goes_on_from_its_state():
    torch.manual_seed(0)
    weights, states = [], None
    for stop in (False, True):
        weight = nn.Parameter(torch.ones(6, 5))
        optimizer = Came([weight], lr=1e-2)
        for step in range(6):
            if stop and step == 3:
                states = optimizer.state_dict()
                weight = nn.Parameter(weight.detach().clone())
                optimizer = Came([weight], lr=1e-2)
                optimizer.load_state_dict(states)
            weight.grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_came_wants_three_betas():
    with pytest.raises(ValueError, match="three betas, 2 were given"):
        make("came", nn.Linear(2, 2).named_parameters(), 1e-3, betas=(0.9, 0.99))
