"""Sana PAG and CFG Interval inside the real host, on random tiny weights."""

from types import SimpleNamespace

import pytest
import torch

from sanacog.sana_core.checkpoint import from_canonical

from .. import stock, tiny
from .sana_model import apart, conditioning, host, model, noise, sample, weights  # noqa: F401

SCALE = 0.41407


@pytest.fixture(scope="module")
def guidance(host):
    from sanacog.host.sana import guidance
    return guidance


def sample_custom(host, model, sigmas, cfg=4.5, sampler=None, guider=None, start=None):
    start = noise() if start is None else start
    if guider is None:
        guider = host.comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning(9), conditioning(1, seed=1))
        guider.set_cfg(cfg)
    return guider.sample(start, torch.zeros_like(start), sampler or host.comfy.samplers.ksampler("euler"),
                         torch.tensor(sigmas), disable_pbar=True, seed=0)


def watched(model):
    """A clone, and the list that it fills: for each evaluation how many pictures, which conditions, which ids."""
    from comfy.patcher_extension import WrappersMP

    seen = []

    def look(executor, x, *args, **kwargs):
        options = args[-1]
        seen.append(SimpleNamespace(rows=len(x), conds=options["cond_or_uncond"], ids=options["uuids"],
                                    sigma=float(options["sigmas"][0])))
        return executor(x, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", look)
    return clone, seen


# PAG

@pytest.mark.parametrize("cfg, blocks, layers", [(4.5, "1", ["transformer_blocks.1"]), (1.0, "1", ["transformer_blocks.1"]),
                                                 (4.5, "0, 2", ["transformer_blocks.0", "transformer_blocks.2"])])
def test_pag_equals_diffusers(host, guidance, model, cfg, blocks, layers):
    """Two Euler steps of SanaPAGPipeline with the same weights, states and noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaPAGPipeline, SanaTransformer2DModel

    p = tiny.SANA
    with torch.inference_mode(False), torch.no_grad():
        theirs = SanaTransformer2DModel(
            num_layers=p.num_layers, num_attention_heads=p.num_attention_heads, attention_head_dim=p.attention_head_dim,
            num_cross_attention_heads=p.num_cross_attention_heads, cross_attention_head_dim=p.cross_attention_head_dim,
            cross_attention_dim=p.width, caption_channels=p.caption_channels, sample_size=p.sample_size).eval()
        theirs.load_state_dict(from_canonical(tiny.sana().state_dict(), "diffusers"))
        pipeline = SanaPAGPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=theirs, pag_applied_layers=layers,
                                   scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
        pipeline.set_progress_bar_config(disable=True)
        [[states, values]], [[empty, empty_values]] = conditioning(9), conditioning(1, seed=1)
        want = pipeline(
            negative_prompt=None, prompt_embeds=states.expand(2, -1, -1), negative_prompt_embeds=empty.expand(2, -1, -1),
            prompt_attention_mask=values["attention_mask"].expand(2, -1),
            negative_prompt_attention_mask=empty_values["attention_mask"].expand(2, -1), latents=noise(), sigmas=[1.0, 0.6],
            num_inference_steps=2, guidance_scale=cfg, pag_scale=2.5, height=160, width=224, use_resolution_binning=False,
            output_type="latent").images
    patched = guidance.pag(model, 2.5, blocks)
    assert apart(sample_custom(host, patched, [1.0, 0.6, 0.0], cfg) * SCALE, want) < 1e-5
    assert apart(sample_custom(host, model, [1.0, 0.6, 0.0], cfg) * SCALE, want) > 1e-3


def test_pag_costs_one_evaluation_of_the_prompt_where_it_acts(host, guidance, model):
    clone, seen = watched(guidance.pag(model, 2.0, start=0.2, end=0.6))
    sigmas = [1.0, 0.9, 0.8, 0.6, 0.2, 0.0]  # flow shift 3: shares 0, 0.25, 0.43, 0.67, 0.92
    sample_custom(host, clone, sigmas)
    assert [(s.rows, s.conds) for s in seen if s.conds == [0]] == [(2, [0])] * 2
    assert [s.sigma for s in seen if s.conds == [0]] == pytest.approx([0.9, 0.8])
    assert len(seen) == 7 and sum(s.rows for s in seen) == 5 * 4 + 2 * 2
    # Another id than the prompt's, the same at each step: what a caching node goes by.
    prompt = {s.ids[s.conds.index(0)] for s in seen if len(s.conds) == 2}
    weakened = {s.ids[0] for s in seen if s.conds == [0]}
    assert len(prompt) == len(weakened) == 1 and prompt != weakened


def test_pag_off_changes_nothing(host, guidance, model):
    plain = sample(host, model)
    for patched in (guidance.pag(model, 0.0), guidance.pag(model, 2.0, start=0.99, end=0.995)):
        assert torch.equal(sample(host, patched), plain)
    guidance.pag(model, 2.0)
    assert torch.equal(sample(host, model), plain)  # the model that was patched stays as it was


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "res_multistep", "euler_cfg_pp", "flow"])
@pytest.mark.parametrize("cfg", [4.5, 1.0])
def test_pag_with_every_sampler(host, guidance, model, sampler, cfg):
    sampler = host.sampling.flow_dpm_solver() if sampler == "flow" else host.comfy.samplers.ksampler(sampler)
    outputs = [sample_custom(host, patched, [0.98, 0.8, 0.4, 0.0], cfg, sampler)
               for patched in (model, guidance.pag(model, 2.0), guidance.pag(model, 4.0))]
    assert all(out.isfinite().all() for out in outputs)
    plain, weak, strong = outputs
    assert 1e-3 < apart(weak, plain) < apart(strong, plain)


def test_pag_adds_to_what_another_node_made_of_cfg(host, guidance, model):
    def one_step(model, cfg=4.5):
        return sample_custom(host, model, [1.0, 0.0], cfg)

    rescaled = stock.run("RescaleCFG", model, 0.7, module="nodes_model_advanced")
    push = one_step(guidance.pag(model, 2.0), 1.0) - one_step(model, 1.0)  # 2 (c - p)
    assert apart(push, one_step(model)) > 1e-3
    assert apart(one_step(guidance.pag(rescaled, 2.0)), one_step(rescaled) + push) < 1e-5
    assert apart(one_step(guidance.pag(guidance.pag(model, 1.5), 0.5)), one_step(model) + push) < 1e-5
    # A node behind it sees the guided picture: the norm that CFGNorm brings it down to is the prompt's.
    normed = one_step(stock.run("CFGNorm", guidance.pag(model, 2.0), 1.0, module="nodes_cfg"))
    assert (normed.norm(dim=1) <= one_step(model, 1.0).norm(dim=1) * 1.0001).all()
    assert apart(normed, one_step(guidance.pag(model, 2.0))) > 1e-3


def test_stock_pag_takes_the_default_block(host, guidance, model):
    stocks = stock.run("PerturbedAttentionGuidance", model, 2.0, module="nodes_pag")
    assert apart(sample(host, stocks), sample(host, guidance.pag(model, 2.0, "1"))) < 1e-6
    assert apart(sample(host, stocks), sample(host, guidance.pag(model, 2.0, "0"))) > 1e-4


def test_default_blocks(guidance):
    assert [guidance.default_pag_block(layers) for layers in (20, 28, 60, 3)] == [8, 14, 30, 1]


@pytest.mark.parametrize("blocks", ["3", "0, 7", "", "last"])
def test_blocks_that_are_not_there_are_refused(guidance, model, blocks):
    with pytest.raises(ValueError, match="blocks is .*auto.*blocks 0 to 2"):
        guidance.pag(model, 2.0, blocks)


def test_pag_refuses_other_models(guidance):
    other = SimpleNamespace(model=SimpleNamespace(model_config=SimpleNamespace(params=object())))
    with pytest.raises(ValueError, match="no Sana model.*Load Sana Model"):
        guidance.pag(other, 2.0)


def test_pag_with_easy_cache(host, guidance, model):
    """EasyCache skips the prompt's evaluations as it does without PAG, and takes none of PAG's own for one of them."""
    def cached(model):
        clone, seen = watched(stock.run("EasyCacheNode", model, 1.5, 0.1, 0.95, False, module="nodes_easycache"))
        out = sample_custom(host, clone, [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.3, 0.0])
        return out, [s.sigma for s in seen if len(s.conds) == 2]

    (plain, computed), (weak, with_weak), (strong, _) = (cached(m) for m in (
        model, guidance.pag(model, 0.001), guidance.pag(model, 2.0)))
    assert with_weak == computed and len(computed) < 8
    assert apart(weak, plain) < 0.1 < apart(strong, plain)


# CFG interval

def test_cfg_interval_by_hand(host, guidance, model):
    """Guided in the second and third of four steps: the core alone with a scale for each step."""
    core, x = tiny.sana(), noise()
    sigmas = [1.0, 0.9, 0.75, 0.5, 0.0]  # shares 0, 0.25, 0.5, 0.75
    for i, (s, t) in enumerate(zip(sigmas, sigmas[1:])):
        v, u = (core(x, torch.full((2,), 1000 * s), c[0][0].expand(2, -1, -1), c[0][1]["attention_mask"].expand(2, -1))
                for c in (conditioning(9), conditioning(1, seed=1)))
        x = x + (t - s) * (u + 4.5 * (v - u) if i in (1, 2) else v)
    clone, seen = watched(guidance.cfg_interval(model, 0.2, 0.6))
    assert apart(sample_custom(host, clone, sigmas) * SCALE, x) < 1e-5
    assert [(s.rows, sorted(s.conds)) for s in seen] == [(2, [0]), (4, [0, 1]), (4, [0, 1]), (2, [0])]


def test_whole_and_empty_interval(host, guidance, model):
    assert torch.equal(sample(host, guidance.cfg_interval(model, 0.0, 1.0)), sample(host, model))
    clone, seen = watched(guidance.cfg_interval(model, 0.995, 1.0))
    assert torch.equal(sample(host, clone), sample(host, model, cfg=1.0))
    assert {tuple(s.conds) for s in seen} == {(0,)}
    twice = guidance.cfg_interval(guidance.cfg_interval(model, 0.0, 0.3), 0.9, 1.0)  # nothing is in both
    assert torch.equal(sample(host, twice), sample(host, model, cfg=1.0))


def test_cfg_interval_with_pag(host, guidance, model):
    """Outside it PAG goes on alone; in it both act."""
    clone, seen = watched(guidance.pag(guidance.cfg_interval(model, 0.2, 0.6), 2.0))
    out = sample_custom(host, clone, [0.98, 0.0])
    assert torch.equal(out, sample_custom(host, guidance.pag(model, 2.0), [0.98, 0.0], 1.0))
    assert [s.conds for s in seen] == [[0], [0]]
    both = sample_custom(host, guidance.pag(guidance.cfg_interval(model, 0.2, 0.6), 2.0), [0.85, 0.0])
    assert torch.equal(both, sample_custom(host, guidance.pag(model, 2.0), [0.85, 0.0]))


def perp_neg(host, model):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(model)
    guider.set_conds(conditioning(9), conditioning(5, seed=2), conditioning(1, seed=1))
    guider.set_cfg(4.5, 1.0)
    return guider


def dual(host, model):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(conditioning(9), conditioning(5, seed=2), conditioning(1, seed=1))
    guider.set_cfg(3.0, 4.5)
    return guider


@pytest.mark.parametrize("make", [perp_neg, dual])
def test_cfg_interval_with_other_guiders(host, guidance, model, make):
    clone, seen = watched(guidance.cfg_interval(model, 0.2, 0.6))
    guider = make(host, clone)
    before = dict(vars(guider))
    out = sample_custom(host, clone, [1.0, 0.0], guider=guider)
    assert apart(out, sample_custom(host, model, [1.0, 0.0], 1.0)) < 1e-6
    assert [s.rows for s in seen] == [2]
    assert {name: vars(guider)[name] for name in guidance.POSITIVE_ALONE if name in before} == {
        name: before[name] for name in guidance.POSITIVE_ALONE if name in before}
    inside = sample_custom(host, clone, [0.85, 0.0], guider=make(host, clone))
    assert torch.equal(inside, sample_custom(host, model, [0.85, 0.0], guider=make(host, model)))
