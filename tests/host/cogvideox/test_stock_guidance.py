"""ComfyUI's conditioning and guidance nodes, and CFG Interval, on a CogVideoX MODEL, with DDIM; most by hand in one step."""

import pytest
import torch

from .. import stock
from .video_model import apart, host, model, noise, sample, text, weights  # noqa: F401

A, B, EMPTY = text(), text(2), text(1)


def one_step(host, model, positive=A, cfg=1.0, start=None):
    return sample(host, model, noise(batch=2) if start is None else start, steps=1, cfg=cfg, positive=positive, negative=EMPTY)


def test_combined_averaged_and_joined_prompts(host, model):
    a, b = one_step(host, model), one_step(host, model, B)
    assert apart(a, b) > 1e-3
    assert apart(one_step(host, model, stock.run("ConditioningCombine", A, B)), (a + b) / 2) < 1e-5
    averaged = [[0.25 * A[0][0] + 0.75 * B[0][0], {}]]
    assert apart(one_step(host, model, stock.run("ConditioningAverage", A, B, 0.25)), one_step(host, model, averaged)) < 1e-5
    joined = stock.run("ConditioningConcat", A, B)
    guided = one_step(host, model, EMPTY) + 3.0 * (one_step(host, model, joined) - one_step(host, model, EMPTY))
    assert apart(one_step(host, model, joined, cfg=3.0), guided) < 1e-5  # prompts of two lengths in one step


def test_area_prompt(host, model):
    """In pixels: the node's unit is CogVideoX's latent pixel. Width 32, height 16, x 16, y 16 of 48 x 32."""
    area = stock.run("ConditioningSetArea", B, 32, 16, 16, 16, 2.0)
    ours = one_step(host, model, stock.run("ConditioningCombine", A, area))
    start, place = noise(batch=2), (..., slice(2, 4), slice(2, 6))
    wanted = one_step(host, model)
    wanted[place] = (wanted[place] + 2.0 * one_step(host, model, B, start=start[place])) / 3.0
    assert apart(ours, wanted) < 1e-5


@pytest.mark.parametrize("name, arguments, module", [
    ("CFGNorm", (0.9,), "nodes_cfg"), ("CFGZeroStar", (), "nodes_cfg"), ("RescaleCFG", (0.7,), "nodes_model_advanced"),
    ("TCFG", (), "nodes_tcfg"), ("Mahiro", (), "nodes_mahiro"), ("RenormCFG", (1e4, 0.9), "nodes_lumina2")])
def test_guidance_nodes(host, model, name, arguments, module):
    got = sample(host, stock.run(name, model, *arguments, module=module))
    assert got.isfinite().all() and apart(got, sample(host, model)) > 1e-4


def test_skip_layer_guidance(host, model):
    clone = model.clone()
    clone.set_model_patch_replace(lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 1)
    c, weak = one_step(host, model), one_step(host, clone)
    slg = stock.run("SkipLayerGuidanceDiT", model, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="1",
                    single_layers="", module="nodes_slg")
    assert apart(weak, c) > 1e-3
    assert apart(one_step(host, slg, cfg=3.0), one_step(host, model, cfg=3.0) + 2.0 * (c - weak)) < 1e-5


def test_cfg_interval(host, model):
    from comfy.patcher_extension import WrappersMP
    from sanacog.host.sana.guidance import cfg_interval

    clone, rows = cfg_interval(model, 0.3, 1.0), []
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test",
                               lambda executor, x, *args, **kw: rows.append(len(x)) or executor(x, *args, **kw))
    plain, without = (sample(host, model, steps=4, cfg=cfg) for cfg in (3.0, 1.0))
    ours = sample(host, clone, steps=4, cfg=3.0)
    assert rows == [1, 1, 2, 2] and apart(ours, plain) > 1e-3 and apart(ours, without) > 1e-3
    none = cfg_interval(model, 1.0, 1.0)
    assert torch.equal(sample(host, none, steps=4, cfg=3.0), without)
