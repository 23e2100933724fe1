"""Step Cache in the real host, on random tiny weights of both families."""

import functools
import logging
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from sanacog.cogvideo_core import teacache

from . import tiny, tiny_cogvideox as tinycog
from .cogvideox import video_model
from .sana import sana_model
from .sana.sana_model import host  # noqa: F401
from .step_cache_cases import POLYNOMIALS, Reference

FAMILIES = ("sana", "2B", "5B", "1.5", "1.5 I2V")
METHODS = ("first block", "TeaCache")
STEPS = 8
THRESHOLDS = {"sana": (0.15, 0.7), "2B": (0.3, 0.5), "5B": (0.3, 0.5), "1.5": (0.3, 0.5),
              "1.5 I2V": (0.3, 0.5)}  # of METHODS
LAYERS = 4


@pytest.fixture(scope="module")
def cache(host):
    from sanacog.host import step_cache
    return step_cache


def params_of(name):
    return replace(tiny.SANA if name == "sana" else video_model.VARIANTS[name], num_layers=LAYERS)


def core_of(name):
    if name == "sana":
        return tiny.sana(params_of(name))
    core = tinycog.transformer(params_of(name))
    with torch.no_grad():
        core.time_embedding.linear_2.weight *= 0.1  # else random weights change it more from step to step than trained ones
    return core


@pytest.fixture(scope="module")
def load(host, tmp_path_factory):
    """Family -> MODEL."""
    from sanacog.host.cogvideox import model as cogvideox

    folder = tmp_path_factory.mktemp("step_cache")

    @functools.cache
    def file(name):
        if name == "sana":
            return tiny.save_sana(folder / "sana.safetensors", params_of(name))
        return tinycog.save(core_of(name).state_dict(), folder / f"{name}.safetensors", asdict(params_of(name)))

    return lambda name: (host.sana.load_sana if name == "sana" else cogvideox.load_cogvideox)(file(name))


def texts(name):
    if name == "sana":
        return sana_model.conditioning(9), sana_model.conditioning(1, seed=1)
    return video_model.text(), video_model.text(1)


def start_of(name, batch=1):
    return sana_model.noise(batch) if name == "sana" else video_model.noise(4, batch)


def sample(host, name, model, batch=1, cfg=3.0, steps=STEPS, sampler="euler", start=None, positive=None):
    start = start_of(name, batch) if start is None else start
    plus, minus = texts(name)
    return host.comfy.sample.sample(model, start, steps, cfg, sampler, "sgm_uniform", positive or plus, minus,
                                    torch.zeros_like(start), seed=0, disable_pbar=True)


def counted(model, block):
    """A clone, and the list of the batches that its block number `block` gets."""
    seen = []

    def look(args, extra):
        seen.append(len(args["img"]))
        return extra["original_block"](args)

    clone = model.clone()
    clone.set_model_patch_replace(look, "dit", "double_block", block)
    return clone, seen


def one_by_one(monkeypatch, model):
    """Each condition in a call of its own, as where memory is short."""
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 2.0**60)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_threshold_0_is_no_node(host, cache, load, name, method):
    model = load(name)
    plain = sample(host, name, model)
    assert torch.equal(sample(host, name, cache.step_cache(model, method, 0.0)), plain)
    before = cache.step_cache(model, "first block", 100.0)
    assert torch.equal(sample(host, name, cache.step_cache(before, method, 0.0)), plain)  # the last one counts
    # And one that watches and never reuses changes nothing either.
    assert torch.equal(sample(host, name, cache.step_cache(model, method, 1e-30, start=0.999, end=1.0)), plain)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_first_and_the_last_step_are_computed(host, cache, load, name, method, batch, caplog):
    clone, seen = counted(load(name), LAYERS - 1)
    cached = cache.step_cache(clone, method, 1e9, most=99)
    with caplog.at_level(logging.INFO):
        out = sample(host, name, cached, batch)
    assert seen == [2 * batch] * 2 and out.isfinite().all()
    assert f"threshold 1e+09): {STEPS - 2} of {STEPS} evaluations reused" in caplog.text
    seen.clear()
    again = sample(host, name, cached, batch)
    assert seen == [2 * batch] * 2 and torch.equal(again, out)  # nothing is left of the run before


@pytest.mark.parametrize("most", [1, 2])
def test_so_many_in_a_row(host, cache, load, most):
    clone, seen = counted(load("sana"), LAYERS - 1)
    sample(host, "sana", cache.step_cache(clone, "first block", 1e9, most=most))
    assert len(seen) == {1: 5, 2: 4}[most]  # of 8: 0 2 4 6 7, and 0 3 6 7


def test_part_of_the_sampling(host, cache, load):
    model = load("sana")
    sigmas = []

    def look(args, extra):
        sigmas.append(float(args["transformer_options"]["sigmas"][0]))
        return extra["original_block"](args)

    clone = model.clone()
    clone.set_model_patch_replace(look, "dit", "double_block", LAYERS - 1)
    sample(host, "sana", clone)
    full, percent = sigmas[:], clone.model.model_sampling.percent_to_sigma
    sigmas.clear()
    sample(host, "sana", cache.step_cache(clone, "TeaCache", 1e9, 0.3, 0.7, most=99))
    assert sigmas == [s for s in full if not percent(0.7) <= s <= percent(0.3)] and 0 < len(sigmas) < len(full)


def reference_of(name, method, threshold, core):
    params, first = params_of(name), method == "first block"
    if name == "sana":
        def measure(x, modulation):
            shift, scale = (core.transformer_blocks[0].scale_shift_table + modulation)[:, :2].chunk(2, dim=1)
            centred = x - x.mean(-1, keepdim=True)
            return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift
        rescale = float
    else:
        fit = np.poly1d(POLYNOMIALS[name])

        def rescale(change):
            return fit(change) if change <= 0.25 else max(fit(change), change)

        def measure(x, embedding):
            return embedding
    return Reference(params.num_layers, threshold, first, rescale, measure, computed=(0, STEPS - 1))


def expected(host, name, model, start, predict):
    """Euler over the model's own noise levels, by predict(x, timestep, states, mask or nothing)."""
    sampling, [[states, values]] = model.get_model_object("model_sampling"), texts(name)[0]
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "sgm_uniform", STEPS)
    x = sampling.noise_scaling(sigmas[0], start, torch.zeros_like(start), True)
    for sigma, after in zip(sigmas[:-1], sigmas[1:]):
        given, t = sampling.calculate_input(sigma[None], x), sampling.timestep(sigma[None])
        extra = (values["attention_mask"],) if name == "sana" else ()
        if name == "1.5 I2V":
            given = torch.cat([given, torch.zeros_like(given)], dim=1)
        v = predict(given, t.float(), states, *extra)
        denoised = sampling.calculate_denoised(sigma[None], v, x)
        x = x + (x - denoised) / sigma * (after - sigma)
    return model.model.process_latent_out(x)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_reuses_what_the_equations_say(host, cache, load, name, method):
    model, core, start = load(name), core_of(name), start_of(name)
    threshold = THRESHOLDS[name][METHODS.index(method)]
    reference = reference_of(name, method, threshold, core)
    want = expected(host, name, model, start, functools.partial(core, run_block=reference))
    got = sample(host, name, cache.step_cache(model, method, threshold, most=99), cfg=1.0)
    assert 0 < sum(reference.log) < STEPS - 2  # it has decisions to make
    assert sana_model.apart(got, want) < 1e-5
    assert sana_model.apart(sample(host, name, model, cfg=1.0), want) > 1e-4


def test_equals_diffusers_first_block_cache(host, cache, load):
    from diffusers import CogVideoXTransformer3DModel, FirstBlockCacheConfig

    model, p = load("2B"), params_of("2B")
    with torch.inference_mode(False), torch.no_grad():
        theirs = CogVideoXTransformer3DModel(
            num_layers=p.num_layers, num_attention_heads=p.num_attention_heads, attention_head_dim=p.attention_head_dim,
            time_embed_dim=p.time_embed_dim, text_embed_dim=p.text_embed_dim, max_text_seq_length=p.max_text_seq_length,
            sample_height=4, sample_width=6, sample_frames=13, use_rotary_positional_embeddings=False).eval()
        theirs.load_state_dict(core_of("2B").state_dict())
        theirs.norm_out.norm.eps = 1e-6
        theirs.enable_cache(FirstBlockCacheConfig(threshold=0.3))

        calls = []

        def predict(x, t, states):
            calls.append(t)
            if len(calls) == STEPS:
                theirs._reset_stateful_cache()  # it would reuse in the last step too
            with theirs.cache_context("cond"):
                return theirs(x.transpose(1, 2), states, t).sample.transpose(1, 2)

        want = expected(host, "2B", model, start_of("2B").clone(), predict)
    got = sample(host, "2B", cache.step_cache(model, "first block", 0.3, most=99), cfg=1.0)
    assert sana_model.apart(got, want) < 1e-5


@pytest.mark.parametrize("name", ["sana", "5B"])
@pytest.mark.parametrize("method", METHODS)
def test_conditions_in_one_call_or_in_two(host, cache, load, monkeypatch, name, method):
    clone, seen = counted(load(name), LAYERS - 1)
    cached = cache.step_cache(clone, method, THRESHOLDS[name][METHODS.index(method)], most=99)
    together = sample(host, name, cached)
    batches = seen[:]
    seen.clear()
    one_by_one(monkeypatch, clone)
    apart = sample(host, name, cached)
    assert set(batches) == {2} and seen == [1] * 2 * len(batches) and 2 < len(batches) < STEPS
    assert sana_model.apart(apart, together) < 1e-5


def test_another_size_batch_or_window_begins_anew(host, cache, load):
    clone, seen = counted(load("5B"), LAYERS - 1)
    cached = cache.step_cache(clone, "first block", 1e9, most=99)
    for batch, frames in ((1, 4), (2, 4), (1, 5)):
        start = video_model.noise(frames, batch)
        wanted = sample(host, "5B", cache.step_cache(load("5B"), "first block", 1e9, most=99), start=start)
        assert torch.equal(sample(host, "5B", cached, start=start), wanted)
    from .cogvideox.test_model_sampling import node
    start, counts = video_model.noise(9), []
    for model in (clone, cached):
        seen.clear()
        windows, = node("nodes_context_windows", "ContextWindowsManualNode", model, context_length=4,
                        context_overlap=2, dim=2)
        assert sample(host, "5B", windows, start=start).isfinite().all()
        counts.append(len(seen))
    assert counts[0] > STEPS and counts[1] == counts[0] // STEPS * 2  # each window in the first and in the last step


def test_a_condition_that_comes_later_is_computed(host, cache, load):
    """From half the sampling another prompt: no state of it yet."""
    from . import stock

    clone, seen = counted(load("sana"), LAYERS - 1)
    plus, other = sana_model.conditioning(9), sana_model.conditioning(6, seed=3)
    parts = stock.run("ConditioningCombine", stock.run("ConditioningSetTimestepRange", plus, 0.0, 0.5),
                      stock.run("ConditioningSetTimestepRange", other, 0.5, 1.0))
    out = sample(host, "sana", cache.step_cache(clone, "first block", 1e9, most=99), positive=parts)
    assert seen == [2, 2, 2] and out.isfinite().all()


def test_perturbed_attention_has_states_of_its_own(host, cache, load):
    from . import stock

    clone, seen = counted(load("sana"), LAYERS - 1)
    weak = stock.run("PerturbedAttentionGuidance", clone, 3.0, module="nodes_pag")
    cached = cache.step_cache(weak, "TeaCache", 1e9, most=99)
    got = sample(host, "sana", cached)
    assert seen == [2, 1] * 2
    core = core_of("sana")
    prompt, empty, weakened = (reference_of("sana", "TeaCache", 1e9, core) for _ in range(3))
    [[nothing, values]] = texts("sana")[1]

    def predict(x, t, states, mask):
        c = core(x, t, states, mask, run_block=prompt)
        u = core(x, t, nothing, values["attention_mask"], run_block=empty)
        w = core(x, t, states, mask, run_block=weakened, self_attention={LAYERS // 2: lambda q, k, v, heads: v})
        return u + 3.0 * (c - u) + 3.0 * (c - w)

    assert sana_model.apart(got, expected(host, "sana", load("sana"), start_of("sana"), predict)) < 1e-5


@pytest.mark.parametrize("name", ["sana", "5B"])
def test_keep_structure_goes_with_it(host, cache, load, name):
    from sanacog.host.editing.structure import keep_structure

    clone, seen = counted(load(name), LAYERS - 1)
    start = start_of(name)
    plus, minus = texts(name)
    for model, calls in ((clone, STEPS), (cache.step_cache(clone, "first block", 1e9, most=99), 2)):
        seen.clear()
        out = host.comfy.sample.sample(keep_structure(model, 0.0, 1.0), start, STEPS, 3.0, "euler", "sgm_uniform", plus,
                                       minus, torch.ones_like(start), seed=0, disable_pbar=True)
        assert seen == [4] * calls and out.isfinite().all()


def test_a_batch_that_doubles_on_the_way(host, cache, load):
    from sanacog.host.editing.structure import keep_structure

    clone, seen = counted(load("5B"), LAYERS - 1)
    start, (plus, minus) = start_of("5B"), texts("5B")
    model = keep_structure(cache.step_cache(clone, "first block", 1e9, most=99), 0.5, 1.0)
    host.comfy.sample.sample(model, start, STEPS, 3.0, "euler", "sgm_uniform", plus, minus,
                             torch.ones_like(start), seed=0, disable_pbar=True)
    assert seen == [2, 4, 4]


def test_controlnet_and_samplers_of_two_evaluations(host, cache, load, tmp_path, caplog):
    clone, seen = counted(load("sana"), LAYERS - 1)
    cached = cache.step_cache(clone, "first block", 1e9, most=99)
    with caplog.at_level(logging.INFO):
        assert sample(host, "sana", cached, sampler="heun").isfinite().all() and len(seen) == 3
    assert f"{2 * STEPS - 4} of {2 * STEPS - 1} evaluations" in caplog.text
    from sanacog.host.sana import control
    net = control.load_sana_controlnet(tiny.save_controlnet(tmp_path / "net.safetensors", params=params_of("sana")))
    dcae = host.vae.load_dcae(tiny.save_dcae(tmp_path / "dcae.safetensors"))
    from . import stock
    positive, _ = stock_control(stock, texts("sana"), net, dcae)
    seen.clear()
    out = sample(host, "sana", cached, positive=positive)
    assert len(seen) in (2, 4) and sana_model.apart(out, sample(host, "sana", cached)) > 1e-3


def stock_control(stock, conditionings, net, vae):
    import nodes

    hint = torch.rand(1, 160, 224, 3, generator=torch.Generator().manual_seed(1))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(*conditionings, net, hint, 1.0, 0.0, 1.0, vae)


def test_sprint_of_four_steps(host, cache, tmp_path):
    params = replace(tiny.SANA, guidance_embeds=True, flow_shift=1.0, num_layers=LAYERS, qk_norm=True)
    model = host.sana.load_sana(tiny.save_sana(tmp_path / "sprint.safetensors", params))
    clone, seen = counted(model, LAYERS - 1)
    from sanacog.host.sana import sprint
    cached = cache.step_cache(clone, "TeaCache", 1e9, most=99)
    for steps, left in ((4, 2), (2, 2), (1, 1)):
        seen.clear()
        out = sprint.sample_sprint(cached, sana_model.conditioning(9), {"samples": sana_model.noise(1) * 0}, steps, 4.5, 1)
        assert len(seen) == left and out["samples"].isfinite().all()


def test_compiled(host, cache, load):
    """What the stock TorchCompileModel compiles, without a compiler of code."""
    model = load("sana")
    want = sample(host, "sana", cache.step_cache(model, "first block", 0.3, most=99))
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    compiled = cache.step_cache(model, "first block", 0.3, most=99)
    set_torch_compile_wrapper(compiled, backend="eager")
    torch._dynamo.reset()
    assert sana_model.apart(sample(host, "sana", compiled), want) < 1e-5


def test_other_models_and_bad_values_are_refused(host, cache, load):
    class Other:
        model = object()

    with pytest.raises(ValueError, match="this model is object: load one of those with its loader"):
        cache.step_cache(Other(), "TeaCache", 0.1)
    with pytest.raises(ValueError, match="method is 'magic': choose one of first block, TeaCache"):
        cache.step_cache(load("sana"), "magic", 0.1)
    with pytest.raises(ValueError, match="max_skips is 0"):
        cache.step_cache(load("sana"), "TeaCache", 0.1, most=0)


@pytest.mark.parametrize("name, variant", [
    ("2B", "2B"), ("2B", "Fun 2B InP"), ("5B", "5B"), ("5B", "5B I2V"), ("5B", "Fun 5B Control"), ("1.5", "1.5"),
    ("1.5", "Fun 1.5 InP"), ("1.5 I2V", "1.5 I2V")])
def test_each_variant_has_its_polynomial(name, variant):
    assert teacache.polynomial(video_model.VARIANTS[variant]) == tuple(POLYNOMIALS[name])


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_a_large_change_never_counts_for_less_than_it_is(cache, name):
    changes = np.linspace(0.0, 2.0, 201)
    ours = np.array([cache.rescaled(POLYNOMIALS[name], change) for change in changes])
    small, large = changes < 0.25, changes > 0.25
    assert np.allclose(ours[small], np.poly1d(POLYNOMIALS[name])(changes[small])) and (ours[large] >= changes[large]).all()
