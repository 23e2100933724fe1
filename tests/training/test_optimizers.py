"""Optimisers by name; learning rates."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.training.muon import Muon
from sanacog.training.optimizers import NAMES, make, rate


def test_muon_is_for_the_matrices_of_blocks():
    params = SanaParams(num_layers=2, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=32,
                        caption_channels=24)
    network = SanaTransformer(params)
    muon, adamw = make("muon", network.named_parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)].split(".", 2)[2] for group in muon.param_groups for p in group["params"]}
    attention = {f"{kind}.{part}.weight" for kind in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert chosen == attention | {"ff.conv_inverted.weight", "ff.conv_point.weight"}
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (3e-3, 1e-3)
    assert adamw.param_groups[0]["betas"] == (0.9, 0.98)
    with pytest.raises(ValueError, match="none of them is trained"):
        make("muon", network.proj_out.named_parameters(), 1e-3)


def test_muon_takes_a_convolution_as_the_matrix_that_it_is():
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(8, 4 * 9))
    kernel = nn.Parameter(matrix.detach().clone().view(8, 4, 3, 3))
    before, gradient = matrix.detach().clone(), torch.randn(8, 36)
    for p in (matrix, kernel):
        p.grad = gradient.view(p.shape).clone()
        Muon([p], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(kernel.flatten(1), matrix)
    moved = torch.linalg.svdvals(matrix - before) / (0.1 * 0.2 * 36**0.5)
    assert ((moved > 0.5) & (moved < 1.5)).all()  # all directions alike, about 1


@pytest.mark.parametrize("name, package", [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_packages(name, package, monkeypatch):
    """What they are asked for, where they are not there to be run."""
    asked = []

    def optimizer(groups, **settings):
        asked.append(settings)
        return torch.optim.SGD(groups, lr=settings["lr"])
    module = types.SimpleNamespace(Prodigy=optimizer, optim=types.SimpleNamespace(AdamW8bit=optimizer))
    monkeypatch.setitem(sys.modules, package, module)
    [made] = make(name, nn.Linear(2, 2).named_parameters(), 0.5, betas=[0.9, 0.95], weight_decay=0.1)
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
    assert asked[0]["lr"] == 0.5 and asked[0]["betas"] == (0.9, 0.95)
    assert ("safeguard_warmup" in asked[0]) == (name == "prodigy")


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.Linear(16, 8)])

    def forward(self, x):
        return self.transformer_blocks[0](x)


@pytest.mark.parametrize("name", NAMES)
def test_each_learns(name):
    package = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(name)
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(64, 16)
    wanted = torch.randn(64, 8)
    if package and importlib.util.find_spec(package) is None:
        with pytest.raises(ValueError, match=f"needs the package {package}"):
            make(name, model.named_parameters(), 1e-2)
        return
    optimizers = make(name, model.named_parameters(), 1.0 if name == "prodigy" else 1e-2)
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
    model = nn.ModuleDict({"transformer_blocks": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))})
    model["transformer_blocks"][0].bias.requires_grad_(False)
    for name in ("adamw", "came", "muon"):
        optimizers = make(name, model.named_parameters(), 1e-3, weight_decay=0.1)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
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
