"""The text of a Sana run in the real host: read once, read again whenever it or the weights are others, gone with the run."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from .. import tiny
from .sana_model import apart, conditioning, host, model, noise, sample, vae, weights  # noqa: F401

STEPS = 3


@pytest.fixture(scope="module")
def texts(host):
    from sanacog.host import text_cache as texts

    return texts


@contextmanager
def counted(module):
    """[how many times `module` ran]"""
    calls = [0]

    def count(*args):
        calls[0] += 1
    hook = module.register_forward_hook(count)
    try:
        yield calls
    finally:
        hook.remove()


def first_key(model):
    return model.model.diffusion_model.transformer_blocks[0].attn2.to_k


@pytest.fixture
def each_step_anew(host, texts, monkeypatch):
    """sample(...) of a run in which nothing is kept."""
    def run(*args, **kw):
        with monkeypatch.context() as patch:
            patch.setattr(texts, "LIMIT", 0)
            return sample(host, *args, **kw)
    return run


def agrees(host, each_step_anew, model, reads, **kw):
    """That a run is right, and how many times it reads the text."""
    expected = each_step_anew(model, **kw)
    with counted(first_key(model)) as calls:
        assert apart(sample(host, model, **kw), expected) < 1e-5
    assert calls == [reads]
    return expected


def test_the_text_is_read_once_a_run(host, model, each_step_anew):
    network = model.model.diffusion_model
    layers = [network.caption_projection] + [
        layer for block in network.transformer_blocks for layer in (block.attn2.to_k, block.attn2.to_v)]
    for layer in layers:
        with counted(layer) as calls:
            sample(host, model, steps=STEPS)
            sample(host, model, steps=STEPS)
        assert calls == [2]
        with counted(layer) as calls:
            each_step_anew(model, steps=STEPS)
        assert calls == [STEPS]
    agrees(host, each_step_anew, model, 1)
    agrees(host, each_step_anew, model, 1, cfg=1.0)


def test_one_step_keeps_nothing(host, model):
    seen = []
    model.add_wrapper_with_key("apply_model", "test", lambda executor, *args, **kw: seen.append(
        "sanacog_texts" in args[5]) or executor(*args, **kw))
    sample(host, model, steps=1)
    sample(host, model, steps=2)
    assert seen == [False, True, True]


def test_regions_and_scheduled_prompts(host, model, each_step_anew):
    import node_helpers

    first, second = conditioning(9), conditioning(12, seed=4)
    early = node_helpers.conditioning_set_values(first, {"start_percent": 0.0, "end_percent": 0.3})
    late = node_helpers.conditioning_set_values(second, {"start_percent": 0.3, "end_percent": 1.0})
    switched = agrees(host, each_step_anew, model, 2, steps=4, positive=early + late)
    assert apart(switched, sample(host, model, steps=4)) > 1e-3
    left = node_helpers.conditioning_set_values(second, {"area": ("percentage", 1.0, 0.5, 0.0, 0.0), "strength": 1.0})
    agrees(host, each_step_anew, model, 2, steps=4, positive=first + left)  # the whole picture's batch, and the half's


def test_weight_hooks_turn_it_off(host, model, each_step_anew):
    import comfy.hooks

    change = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    hooks = comfy.hooks.HookGroup()
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights, hook.need_weight_init = {"diffusion_model.transformer_blocks.0.attn2.to_k.weight": (change,)}, False
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    frames.add(comfy.hooks.HookKeyframe(strength=-2.0, start_percent=0.4))
    hooks.add(hook)
    hooks.set_keyframes_on_hooks(frames)
    text = comfy.hooks.set_hooks_for_conditioning(conditioning(9), hooks)
    plain = sample(host, model, steps=4)
    hooked = agrees(host, each_step_anew, model, 4 + 1, steps=4, positive=text)  # hooked each step, the negative once
    assert apart(hooked, plain) > 1e-3
    assert apart(sample(host, model, steps=4), plain) < 1e-6


@pytest.mark.parametrize("in_place", [False, True])
def test_what_nodes_do_to_the_text_counts(host, model, each_step_anew, in_place):
    """At every place where a node gets hold of the text, from the second step on."""
    plain, step = sample(host, model, steps=4), [0]

    def double(text):
        return text.mul_(2) if in_place else text * 2

    def around_model(executor, x, timestep, context, *args, **kw):
        step[0] += 1
        return executor(x, timestep, double(context) if step[0] % 4 > 1 else context, *args, **kw)

    def around_unet(apply_model, args):
        step[0] += 1
        c = args["c"]
        if step[0] % 4 > 1:
            c = {**c, "c_crossattn": double(c["c_crossattn"])}
        return apply_model(args["input"], args["timestep"], **c)

    def inside(args):
        step[0] += 1
        return {"img": args["img"], "txt": double(args["txt"]) if step[0] % 12 > 3 else args["txt"]}

    def block(args, extra):
        return extra["original_block"]({**args, "txt": double(args["txt"])})

    changes = {"model": lambda m: m.add_wrapper_with_key("diffusion_model", "test", around_model),
               "unet": lambda m: m.set_model_unet_function_wrapper(around_unet),
               "input": lambda m: m.set_model_patch(inside, "post_input"),
               "patch": lambda m: m.set_model_patch(inside, "double_block"),
               "block": lambda m: m.set_model_patch_replace(block, "dit", "double_block", 1)}
    for name, change in changes.items():
        changed = model.clone()
        change(changed)
        step[0] = 0
        expected = each_step_anew(changed, steps=4)
        step[0] = 0
        assert apart(sample(host, changed, steps=4), expected) < 1e-5, name
        assert apart(expected, plain) > 1e-3, name


def test_changed_mask_counts(host, model, each_step_anew):
    def hide(executor, x, timestep, context, mask, *args, **kw):
        mask = mask.clone()
        mask[:, 5:] = 0
        return executor(x, timestep, context, mask, *args, **kw)

    plain = sample(host, model)
    model.add_wrapper_with_key("diffusion_model", "test", hide)
    expected = each_step_anew(model)
    assert apart(sample(host, model), expected) < 1e-5 and apart(expected, plain) > 1e-3


def test_without_a_mask_all_tokens_count(host, model, each_step_anew):
    plain = sample(host, model)
    model.set_model_unet_function_wrapper(lambda apply_model, args: apply_model(
        args["input"], args["timestep"], **{key: value for key, value in args["c"].items() if key != "attention_mask"}))
    assert apart(agrees(host, each_step_anew, model, 1), plain) > 1e-3


def test_it_is_gone_with_the_run(host, texts, model, monkeypatch):
    made, start = [], texts.Texts.__init__
    monkeypatch.setattr(texts.Texts, "__init__", lambda self: made.append(weakref.ref(self)) or start(self))
    sample(host, model)
    assert len(made) == 1

    def stop(step, *args):
        if step == 1:
            assert made[-1]().kept
            raise RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"):
        sample(host, model, callback=stop)
    gc.collect()
    assert len(made) == 2 and not any(run() for run in made)


def test_it_has_a_limit(host, texts, model, monkeypatch):
    network = model.model.diffusion_model
    states = [torch.randn(2, 8, tiny.CAPTION, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    run = texts.Texts()
    first = run.read(network, states[0], None)
    size = first.context.nbytes + sum(t.nbytes for pair in first.pairs for t in pair)
    monkeypatch.setattr(texts, "LIMIT", 2 * size)
    assert run.read(network, states[0].clone(), None) is first
    second = run.read(network, states[1], None)
    assert run.read(network, states[0], None) is first       # now the second is the older one
    run.read(network, states[2], None)
    assert run.read(network, states[0], None) is first and len(run.kept) == 2
    assert run.read(network, states[1], None) is not second
    states[1] *= 2                                            # written into since
    assert not torch.equal(run.read(network, states[1], None).context, second.context)
    assert not run.read(network, torch.cat(states), None).pairs  # three times as large
    third = run.read(network, states[1], torch.tensor([[1] * 8, [1] * 3 + [0] * 5]))
    assert third.pairs and third.mask is not None and not torch.equal(third.pairs[0][0], second.pairs[0][0])


def test_training_reads_at_every_step(host, texts, model):
    assert texts.may_be_kept(None, {})
    with torch.inference_mode(False), torch.enable_grad():
        assert not texts.may_be_kept(None, {})


def test_a_compiled_model_is_one_graph_for_all_prompts(host, model):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    plain = {count: sample(host, model, positive=conditioning(count)) for count in (9, 40)}
    graphs = []
    torch._dynamo.reset()
    try:
        set_torch_compile_wrapper(model=model, backend=lambda graph, inputs: graphs.append(graph) or graph, options={})
        for count, expected in plain.items():
            with counted(first_key(model)) as calls:
                assert apart(sample(host, model, positive=conditioning(count)), expected) < 1e-5
            assert calls == [1]
        assert len(graphs) == 1
    finally:
        torch._dynamo.reset()


def test_a_controlnet_reads_its_own(host, model, vae, each_step_anew, tmp_path):
    from sanacog.host.sana import control

    from .test_controlnet import apply

    for wiring in ("native", "diffusers"):
        net = control.load_sana_controlnet(tiny.save_controlnet(tmp_path / f"{wiring}.safetensors", wiring))
        own = net.control_model.transformer_blocks[0].attn2.to_k
        conds = apply(net, vae)
        with counted(own) as calls:
            agrees(host, each_step_anew, model, 1 + STEPS * (wiring == "native"), **conds)
        assert calls == [STEPS + 1]  # without and with
        assert {"timestep"} <= set(conds["positive"][0][1]["control"].extra_args) <= {"timestep", "base_block"}
