"""ComfyUI's conditioning and guidance nodes, and CFG Interval, on a CogVideoX MODEL, with DDIM; most by hand in one step."""

import importlib
import re

import pytest
import torch

from .. import stock
from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import TOKENS
from .video_model import VARIANTS, apart, host, model, noise, sample, text, weights  # noqa: F401

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


# Perturbed attention

def weakened(core, block, start, prompt):
    """The bare transformer's x0 of one step at timestep 999, the video's tokens of a block attending to themselves alone."""
    from sanacog.cogvideo_core.transformer import sdpa

    at = []

    def run_block(i, call, *tokens):
        at[:] = [i]
        return call(*tokens)

    def attention(q, k, v, heads, mask):
        length = q.shape[1]
        mask = torch.zeros(length, length)
        if at == [block]:
            mask[TOKENS:] = -torch.inf
            mask[TOKENS:, TOKENS:].fill_diagonal_(0.0)
        return sdpa(q, k, v, heads, mask)
    text = prompt[0][0].expand(len(start), -1, -1)
    return -core(start, torch.full((len(start),), 999.0), text, attention=attention, run_block=run_block) / 0.7


def test_stock_perturbed_attention(host, model):
    c, u, start = one_step(host, model), one_step(host, model, EMPTY), noise(batch=2)
    assert apart(weakened(tinycog.transformer(), None, start, A), c) < 1e-5
    weak = weakened(tinycog.transformer(), 1, start, A)
    assert apart(weak, c) > 1e-3
    pag = stock.run("PerturbedAttentionGuidance", model, 2.0, module="nodes_pag")
    assert apart(one_step(host, pag, cfg=3.0), u + 3.0 * (c - u) + 2.0 * (c - weak)) < 1e-5
    none = stock.run("PerturbedAttentionGuidance", model, 0.0, module="nodes_pag")
    assert torch.equal(one_step(host, none, cfg=3.0), one_step(host, model, cfg=3.0))


@pytest.mark.parametrize("name", ["5B", "1.5", "2B"])
def test_replaced_self_attention(host, weights, name):
    """Of a block of one's choice; all of its tokens are the video's, and attention over them alone is another picture."""
    seen, model = [], host.cogvideox.load_cogvideox(weights(VARIANTS[name]))
    from comfy.ldm.modules.attention import optimized_attention

    def attend(q, k, v, extra):
        seen.append((extra["block_index"], q.shape, k.shape, v.shape))
        return optimized_attention(q, k, v, extra["n_heads"])
    patched = model.clone()
    patched.set_model_attn1_replace(attend, "double_block", 0)
    got = sample(host, patched, noise(4), steps=1)
    tokens = 4 * 2 * 3 // (2 if name == "1.5" else 1)
    assert seen == [(0, *[(2, tokens, 64)] * 3)] and apart(got, sample(host, model, noise(4), steps=1)) > 1e-4


def test_self_attention_guidance_is_refused(host, model):
    sag = stock.run("SelfAttentionGuidance", model, 0.5, 2.0, module="nodes_sag")
    with pytest.raises(ValueError, match="Self-Attention Guidance.*Take the node out; Perturbed"):
        sample(host, sag)


# Nodes that have nothing to act on

def idle(caplog):
    return [record.getMessage() for record in caplog.records if "has no place for" in record.getMessage()]


@pytest.mark.parametrize("name, arguments, module, said", [
    ("TomePatchModel", (0.3,), "nodes_tomesd", "attn1_output_patch .*ToMe.*, attn1_patch"),
    ("PatchModelAddDownscale", (3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic"), "nodes_model_downscale",
     "input_block_patch_after_skip .as of Kohya Deep Shrink., output_block_patch"),
    ("ScaleROPE", (2.0, 0.0, 1.0, 0.0, 1.0, 0.0), "nodes_rope", "rope_options .as of ScaleROPE"),
    ("NAGuidance", (5.0, 0.5, 1.5), "nodes_nag", "attn1_output_patch .*NAG")])
def test_a_node_without_effect_is_said_once(host, model, caplog, name, arguments, module, said):
    try:
        importlib.import_module(f"comfy_extras.{module}")
    except ModuleNotFoundError:
        pytest.skip(f"this ComfyUI has no {name}")
    patched = stock.run(name, model, *arguments, module=module)
    assert torch.equal(sample(host, patched), sample(host, model))
    [line] = idle(caplog)
    assert re.search(said, line)


def test_blocks_that_the_model_does_not_have(host, model, caplog):
    slg = stock.run("SkipLayerGuidanceDiT", model, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="7",
                    single_layers="1", module="nodes_slg")
    assert apart(sample(host, slg), sample(host, model)) < 1e-5
    assert idle(caplog) == ["CogVideoX has no place for dit of double_block 7, dit of single_block 1: the node that set it does "
                            "nothing."]


def test_what_other_models_read_in_a_conditioning(host, model, caplog):
    guided = [[A[0][0], {"guidance": 3.5}]]
    assert torch.equal(sample(host, model, positive=guided), sample(host, model))
    assert idle(caplog) == ["CogVideoX has no place for guidance (as of FluxGuidance): the node that set it does nothing."]


def test_a_control_net_of_another_model(host, model, caplog):
    from comfy.controlnet import ControlBase

    class Unet(ControlBase):
        def get_control(self, *args, **kwargs):
            return {"middle": [torch.ones(1, 4, 2, 2)], "output": [torch.ones(1, 4, 2, 2)]}

        def copy(self):
            return self
    control = Unet()
    positive = [[A[0][0], {"control": control, "control_apply_to_uncond": False}]]
    assert apart(sample(host, model, positive=positive), sample(host, model)) < 1e-5
    [line] = idle(caplog)
    assert "the ControlNet's residuals" in line


def test_nodes_that_act_are_not_said(host, model, caplog):
    slg = stock.run("SkipLayerGuidanceDiT", model, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="1",
                    single_layers="", module="nodes_slg")
    sample(host, stock.run("PerturbedAttentionGuidance", slg, 2.0, module="nodes_pag"))
    patched = model.clone()
    for kind in ("post_input", "double_block"):
        patched.set_model_patch(lambda args: args, kind)
    sample(host, patched)
    assert not caplog.records


@pytest.mark.parametrize("name, arguments, said", [
    ("ModelSamplingSD3", (3.0,), "FLOW|CONST|Discrete"), ("ModelSamplingDiscrete", ("eps", False), "EPS|Discrete"),
    ("ModelSamplingDiscrete", ("v_prediction", True), None)])
def test_noise_levels_of_another_kind_are_said(host, model, caplog, name, arguments, said):
    sample(host, stock.run(name, model, *arguments, module="nodes_model_advanced"),
           sampler=host.comfy.samplers.sampler_object("euler"), sigmas=torch.tensor([1.0, 0.5, 0.0]))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [] if said is None else re.search(f"sampled as .*({said})", lines[0])


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
