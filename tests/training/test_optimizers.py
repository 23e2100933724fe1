"""Optimisers by name; CAME against its algorithm in float64; learning rates; averages."""

import importlib.util

import pytest
import torch
from torch import nn

from sanacog.training.average import Average
from sanacog.training.came import Came
from sanacog.training.optimizers import NAMES, make, rate


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


@pytest.mark.parametrize("name", NAMES)
def test_each_learns(name):
    package = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(name)
    torch.manual_seed(0)
    model, x = nn.Linear(16, 8), torch.randn(64, 16)
    wanted = torch.randn(64, 8)
    if package and importlib.util.find_spec(package) is None:
        with pytest.raises(ValueError, match=f"needs the package {package}"):
            make(name, model.named_parameters(), 1e-2)
        return
    optimizers = make(name, model.named_parameters(), 1e-2)
    first = None
    for _ in range(100):
        loss = (model(x) - wanted).square().mean()
        first = first or loss.item()
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss.item() < 0.9 * first


def test_every_parameter_once_and_vectors_do_not_decay():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model[0].bias.requires_grad_(False)
    for name in ("adamw", "came", "muon"):
        groups = [group for optimizer in make(name, model.named_parameters(), 1e-3, weight_decay=0.1) for group in optimizer.param_groups]
        every = [p for group in groups for p in group["params"]]
        assert {id(p) for p in every} == {id(p) for p in model.parameters() if p.requires_grad} and len(every) == 3
        assert all((group["weight_decay"] > 0) == all(p.dim() > 1 for p in group["params"]) for group in groups)
    with pytest.raises(ValueError, match="Nothing is to be trained"):
        make("adamw", model.requires_grad_(False).named_parameters(), 1e-3)
    with pytest.raises(ValueError, match="choose one of adamw"):
        make("sgd", model.requires_grad_(True).named_parameters(), 1e-3)


def test_rates():
    assert [rate(step, 10, 4, "constant") for step in (0, 3, 4, 9)] == [0.25, 1.0, 1.0, 1.0]
    assert rate(5, 10, 0, "linear") == 0.5 and rate(7, 10, 4, "linear") == 0.5
    assert rate(0, 10, 0, "cosine") == 1.0 and abs(rate(5, 10, 0, "cosine") - 0.5) < 1e-12 and rate(9, 10, 0, "cosine") > 0
    with pytest.raises(ValueError, match="choose constant"):
        rate(0, 10, 0, "step")


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
    assert start != want
    with average.in_place():
        assert abs(model.weight.item() - want) < 1e-3
    assert model.weight.item() == 199
    other = Average(nn.Linear(1, 1, bias=False).named_parameters(), 0.9)
    other.load_state_dict(average.state_dict())
    assert other.step == 200 and torch.equal(other.values["weight"], average.values["weight"])
