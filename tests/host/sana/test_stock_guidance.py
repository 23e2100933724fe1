"""ComfyUI's own guidance nodes on a Sana MODEL: one step from pure noise, against each method's formula."""

from types import SimpleNamespace

import pytest
import torch

from .. import stock
from .sana_model import apart, conditioning, host, model, noise, weights  # noqa: F401

S = 4.5  # CFG
POSITIVE, NEGATIVE, EMPTY = conditioning(9), conditioning(5, seed=2), conditioning(1, seed=1)


def predicted(host, model, cfg=S, positive=POSITIVE, negative=NEGATIVE, guider=None):
    """What the sampler is told to be the clean latent at sigma 1, in the transformer's scale (B, 32, H, W)."""
    if guider is None:
        guider = host.comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
    out = guider.sample(noise(), torch.zeros_like(noise()), host.comfy.samplers.ksampler("euler"), torch.tensor([1.0, 0.0]),
                        disable_pbar=True, seed=0)
    return out * 0.41407


@pytest.fixture(scope="module")
def alone(host, weights):
    """Predictions of the positive, the negative and the empty prompt alone, plain CFG of the first two, and the noise."""
    model = host.sana.load_sana(weights.sana)
    c, u, n = (predicted(host, model, 1.0, text) for text in (POSITIVE, NEGATIVE, EMPTY))
    return SimpleNamespace(c=c, u=u, n=n, g=u + S * (c - u), x=noise())


def dot(a, b):
    return (a * b).flatten(1).sum(1)[:, None, None, None]


def cfg_norm(p):
    return 0.9 * p.g * (p.c.norm(dim=1, keepdim=True) / p.g.norm(dim=1, keepdim=True)).clamp(max=1)


def cfg_zero_star(p):
    """The scale is that of the velocities; the node puts it to the predictions of the clean latent."""
    v, w = p.x - p.c, p.x - p.u
    u = dot(v, w) / dot(w, w) * p.u
    return u + S * (p.c - u)


def rescaled(p):
    """On the prediction of v: from a flow's x and x0 at sigma 1 that is (x/2 - x0) sqrt(2), as the node has it."""
    v, g = ((p.x / 2 - t) * 2**0.5 for t in (p.c, p.g))
    spread = v.std((1, 2, 3), keepdim=True) / g.std((1, 2, 3), keepdim=True)
    return p.x / 2 - (0.7 * g * spread + 0.3 * g) / 2**0.5


def rescaled_clean(p):
    """What newer hosts do for flow models: on the prediction of the clean latent."""
    spread = p.c.std((1, 2, 3), keepdim=True) / p.g.std((1, 2, 3), keepdim=True)
    return 0.7 * p.g * spread + 0.3 * p.g


def tangential_damping(p):
    rows = torch.stack([p.x - p.u, p.x - p.c], 1).flatten(2)  # (B, 2, N)
    _, vectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
    axis = torch.nn.functional.normalize((vectors[:, :, -1:].transpose(1, 2) @ rows)[:, 0], dim=1).view_as(p.x)
    u = p.x - dot(p.x - p.u, axis) * axis
    return u + S * (p.c - u)


def apg(p):
    d = p.c - p.u
    return p.c + S * (d - dot(d, p.c) / dot(p.c, p.c) * p.c)


# node, arguments, module, result; None: no simple formula, it has to differ from plain CFG. Several: of several hosts.
NODES = [
    ("CFGNorm", (0.9,), "nodes_cfg", cfg_norm),
    ("CFGZeroStar", (), "nodes_cfg", cfg_zero_star),
    ("RescaleCFG", (0.7,), "nodes_model_advanced", (rescaled, rescaled_clean)),
    ("TCFG", (), "nodes_tcfg", tangential_damping),
    ("APG", (0.0, 0.0, 0.0), "nodes_apg", apg),
    ("EpsilonScaling", (1.05,), "nodes_eps", lambda p: p.x - (p.x - p.g) / 1.05),
    ("FreSca", (1.0, 1.0, 20), "nodes_fresca", lambda p: p.g),
    ("FreSca", (0.5, 1.5, 1), "nodes_fresca", None),
    ("Mahiro", (), "nodes_mahiro", None),
]


@pytest.mark.parametrize("name, arguments, module, formula", NODES, ids=[f"{n[0]} {n[1]}" for n in NODES])
def test_patches_of_the_model(host, model, alone, name, arguments, module, formula):
    got = predicted(host, stock.run(name, model, *arguments, module=module))
    assert got.isfinite().all()
    if formula is None:
        assert apart(got, alone.g) > 1e-4
    else:
        formulas = formula if isinstance(formula, tuple) else (formula,)
        assert min(apart(got, wanted(alone)) for wanted in formulas) < 1e-4
    assert apart(predicted(host, model), alone.g) < 1e-5  # the model itself stays as it is


def without_block(host, model, text, block=1):
    """Prediction of one prompt by the model without a block."""
    clone = model.clone()
    clone.set_model_patch_replace(lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", block)
    return predicted(host, clone, 1.0, text)


def test_skip_layer_guidance(host, model, alone):
    weak = without_block(host, model, POSITIVE)
    assert apart(weak, alone.c) > 1e-2
    for start, end, scale in ((0.0, 1.0, 3.0), (0.5, 1.0, 0.0)):
        slg = stock.run("SkipLayerGuidanceDiT", model, scale=3.0, start_percent=start, end_percent=end, double_layers="1",
                        single_layers="", module="nodes_slg")
        assert apart(predicted(host, slg), alone.g + scale * (alone.c - weak)) < 1e-5
    sd3 = stock.run("SkipLayerGuidanceSD3", model, "1", 3.0, 0.0, 1.0, module="nodes_sd3")
    assert apart(predicted(host, sd3), alone.g + 3.0 * (alone.c - weak)) < 1e-5


def test_skip_layer_guidance_simple(host, model, alone):
    slg = stock.run("SkipLayerGuidanceDiTSimple", model, 0.0, 1.0, "1", "", module="nodes_slg")
    weak = without_block(host, model, NEGATIVE)
    assert apart(predicted(host, slg), weak + S * (alone.c - weak)) < 1e-5


def perp(p):
    positive, negative = p.c - p.n, p.u - p.n
    return p.n + S * (positive - 0.8 * (negative - (negative * positive).sum() / positive.norm() ** 2 * positive))


def test_perp_neg(host, model, alone):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(model)
    guider.set_conds(POSITIVE, NEGATIVE, EMPTY)
    guider.set_cfg(S, 0.8)
    assert apart(predicted(host, model, guider=guider), perp(alone)) < 1e-5
    assert apart(predicted(host, stock.run("PerpNeg", model, EMPTY, 0.8, module="nodes_perpneg")), perp(alone)) < 1e-5


@pytest.mark.parametrize("nested", [False, True])
def test_dual_cfg(host, model, alone, nested):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(POSITIVE, NEGATIVE, EMPTY)
    guider.set_cfg(3.0, 2.0, nested)
    c, m, n = alone.c, alone.u, alone.n
    wanted = n + 2.0 * (m + 3.0 * (c - m) - n) if nested else n + 2.0 * (m - n) + 3.0 * (c - m)
    assert apart(predicted(host, model, guider=guider), wanted) < 1e-5
