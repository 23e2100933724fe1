"""Sana beside the wrong stock nodes: what changes nothing, what is corrected, what is warned of, what is refused."""

import dataclasses
import logging
import math

import pytest
import torch

from .. import stock, tiny
from .sana_model import PROMPT, apart, clip, conditioning, host, model, noise, sample, vae, weights  # noqa: F401

SPRINT = dataclasses.replace(tiny.SANA, guidance_embeds=True, qk_norm=True)
SIGMAS = torch.tensor([0.98, 0.7, 0.3, 0.0])


@pytest.fixture
def sprint(host, tmp_path):
    return host.sana.load_sana(tiny.save_sana(tmp_path / "sprint.safetensors", SPRINT))


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


# Noise levels

def shifted(model, name, shift):
    """The model behind a stock node that sets this shift."""
    if name in ("ModelSamplingFlux", "ModelSamplingLTXV"):  # their shift is a logarithm
        module = "nodes_model_advanced" if name == "ModelSamplingFlux" else "nodes_lt"
        size = (1024, 1024) if name == "ModelSamplingFlux" else ()
        return stock.run(name, model, math.log(shift), math.log(shift), *size, module=module)
    return stock.run(name, model, shift, module="nodes_model_advanced")


@pytest.mark.parametrize("name", ["ModelSamplingAuraFlow", "ModelSamplingFlux", "ModelSamplingLTXV"])
def test_other_flow_models_shift_nodes_equal_sd3s(host, model, name):
    sd3 = sample(host, shifted(model, "ModelSamplingSD3", 3.0), sigmas=SIGMAS)
    assert apart(sd3, sample(host, model, sigmas=SIGMAS)) < 1e-6
    assert apart(sample(host, shifted(model, name, 3.0), sigmas=SIGMAS), sd3) < 1e-6
    five, other = (host.comfy.samplers.calculate_sigmas(shifted(model, kind, 5.0).get_model_object("model_sampling"), "simple", 4)
                   for kind in ("ModelSamplingSD3", name))
    assert torch.allclose(five, other, atol=2e-3)  # Flux has ten times as many levels


@pytest.mark.parametrize("name", ["ModelSamplingSD3", "ModelSamplingAuraFlow", "ModelSamplingFlux", "ModelSamplingLTXV"])
def test_shift_nodes_on_sprint(host, sprint, name):
    plain = sample(host, sprint, cfg=1.0, sigmas=SIGMAS)
    assert apart(sample(host, shifted(sprint, name, 3.0), cfg=1.0, sigmas=SIGMAS), plain) < 1e-6


@pytest.mark.parametrize("name, arguments", [
    *[("ModelSamplingDiscrete", (kind, False)) for kind in ("eps", "v_prediction", "lcm", "x0", "img_to_img")],
    *[("ModelSamplingContinuousEDM", (kind, 80.0, 0.002)) for kind in ("v_prediction", "edm", "eps", "cosmos_rflow")],
    ("ModelSamplingStableCascade", (2.0,))])
def test_other_kinds_of_sampling_are_refused(host, model, name, arguments):
    patched = stock.run(name, model, *arguments, module="nodes_model_advanced")
    with pytest.raises(ValueError, match="Sana is a flow model.*ModelSamplingSD3"):
        sample(host, patched)
    assert sample(host, model, steps=1).isfinite().all()  # the model itself is as it was


@pytest.mark.parametrize("dtype, lines", [("fp16", 1), ("fp32", 0), ("bf16", 0), ("default", 0)])
def test_a_number_type_that_overflows_is_warned_of(host, model, warnings, dtype, lines):
    sample(host, stock.run("ModelComputeDtype", model, dtype, module="nodes_model_advanced"), cfg=1.0, steps=1)
    assert len([line for line in warnings() if "float16, where it overflows" in line]) == lines


# Sprint in a KSampler

def test_sprint_with_cfg_is_refused(host, sprint):
    with pytest.raises(ValueError, match="CFG is 4.5.*Sana Sprint Sampler.*CFG 1"):
        sample(host, sprint, cfg=4.5, steps=20)
    with pytest.raises(ValueError, match="CFG is 5"):
        dual_guider(sprint).sample(noise(1), torch.zeros_like(noise(1)), host.comfy.samplers.ksampler("euler"), SIGMAS, disable_pbar=True)


def dual_guider(model):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(conditioning(9), conditioning(5), conditioning(1))
    guider.set_cfg(1.0, 5.0)
    return guider


def test_sprint_with_little_cfg_or_many_steps_is_warned_of(host, sprint, warnings):
    sample(host, sprint, cfg=1.0, steps=4, sampler="lcm")
    assert not warnings()
    sample(host, sprint, cfg=1.5, steps=2)
    [line] = warnings()
    assert "CFG 1.5 guides it twice" in line
    sample(host, sprint, cfg=1.0, steps=5)
    assert "5 bring nothing" in warnings()[1] and "Sana Sprint Sampler" in warnings()[1]


def test_other_models_may_have_any_cfg_and_steps(host, model, warnings):
    sample(host, model, cfg=7.0, steps=6)
    assert not warnings()


def test_calibrating_sprint_takes_no_cfg(host, sprint):
    from sanacog.host.quantise import largest_inputs

    name, latent = "transformer_blocks.0.attn1.to_q", host.sana.empty_latent(64, 64, 1)
    with_cfg, without = (largest_inputs(sprint, [name], conditioning(9), conditioning(1), latent, 2, cfg) for cfg in (4.5, 1.0))
    assert with_cfg == without and with_cfg[name] > 0


# Text

def of_another(tokens):
    """What the stock loaders and encoders make of Gemma-2 for Lumina 2, of 9 tokens, and for PixelDiT, of 300."""
    states, values = conditioning(9)[0]
    return [[states[:, :tokens], {"attention_mask": values["attention_mask"][:, :tokens], "pooled_output": None}]]


def test_gemmas_text_for_another_model_is_refused(host, model):
    for place in ("positive", "negative"):
        with pytest.raises(ValueError, match="Lumina 2.*9 tokens.*300.*Load Sana Text Encoder"):
            sample(host, model, **{place: of_another(9)})


def test_text_of_another_packs_encoder_is_warned_of(host, model, warnings):
    sample(host, model, steps=1, positive=of_another(300), cfg=1.0)
    [line] = warnings()
    assert "Load Sana Text Encoder" in line


def test_our_text_is_known_behind_stock_nodes(host, model, clip, warnings):
    a, b = (host.text.encode_prompt(clip, text, True) for text in (PROMPT, "a green square"))
    stocks = stock.run("CLIPTextEncode", clip, PROMPT)
    for text in (a, stocks, stock.run("ConditioningCombine", a, b), stock.run("ConditioningConcat", a, b),
                 stock.run("ConditioningAverage", a, b, 0.5), stock.run("ConditioningZeroOut", a),
                 stock.run("ConditioningSetArea", a, 64, 64, 0, 0, 1.0),
                 stock.run("ConditioningSetTimestepRange", a, 0.0, 1.0)):
        sample(host, model, steps=1, positive=text, negative=b)
    assert not warnings()


def test_clip_set_last_layer(host, clip):
    plain = host.text.encode_prompt(clip, PROMPT, True)[0][0]
    last, before = (host.text.encode_prompt(stock.run("CLIPSetLastLayer", clip, layer), PROMPT, True)[0][0] for layer in (-1, -2))
    assert torch.equal(last, plain)
    # An earlier layer is normed as the last one is.
    seen = plain[0].norm(dim=-1) > 0
    assert apart(before, plain) > 0.05 and 0.5 < before[0][seen].norm() / plain[0][seen].norm() < 2


# Latents

@pytest.fixture(params=[True, False], ids=["host corrects", "host does not"])
def correcting(request, monkeypatch):
    """Both kinds of host, whichever runs."""
    from sanacog.host.sana import companions

    monkeypatch.setattr(companions, "corrects_empty_latents", lambda: request.param)
    return request.param


def test_our_empty_latent_may_have_any_size(host, model, correcting, warnings):
    """A 4K file whose name does not say so passes for a 1K one."""
    from sanacog.host.sana.companions import check_latent

    latent = host.sana.empty_latent(4096, 4096, 1)["samples"]
    check_latent(torch.randn_like(latent), latent, tiny.SANA)
    ours = host.sana.empty_latent(640, 640, 1)["samples"]
    assert torch.equal(ours, torch.zeros(1, 32, 20, 20))
    drawn = sample(host, model, ours, start=noise(1, 20, 20), steps=2)
    assert not [line for line in warnings() if "latent" in line]
    zeros = torch.ones(1, 32, 20, 20) * 1e-30  # not empty: goes the same way through the host, without being looked at
    assert apart(drawn, sample(host, model, zeros, start=noise(1, 20, 20), steps=2)) < 1e-6


def test_stock_empty_latents(host, model, correcting, warnings):
    """4 channels of 8 px, that the host has made 32 channels of."""
    large, small = (host.comfy.utils.repeat_to_batch_size(torch.zeros(1, 4, side, side), 32, dim=1) for side in (32, 16))
    if correcting:
        sample(host, model, small, start=noise(1, 16, 16), steps=1)
        assert not [line for line in warnings() if "latent" in line]
        return
    with pytest.raises(ValueError, match="1024 x 1024 px.*256 x 256.*Empty Sana Latent"):
        sample(host, model, large, start=noise(1, 32, 32))
    sample(host, model, small, start=noise(1, 16, 16), steps=1)
    [line] = [line for line in warnings() if "latent" in line]
    assert "512 x 512 px" in line and "Empty Sana Latent" in line


@pytest.mark.parametrize("name, arguments, module", [
    ("RepeatLatentBatch", (2,), "nodes"), ("LatentUpscaleBy", ("bilinear", 1.5), "nodes"), ("LatentFromBatch", (0, 1), "nodes"),
    ("LatentUpscaleBy", ("nearest-exact", 2.0), "nodes"), ("LatentRotate", ("90 degrees",), "nodes"),
    ("LatentCut", ("x", 0, 8), "nodes_latent"), ("LatentBatchSeedBehavior", ("fixed",), "nodes_latent")])
def test_the_mark_of_our_empty_latent_survives_stock_nodes(host, name, arguments, module):
    from sanacog.host.sana.companions import is_ours

    latent = host.sana.empty_latent(640, 640, 2)
    out = stock.run(name, latent, *arguments, module=module)["samples"]
    assert not out.any() and is_ours(out) and is_ours(out.to(torch.bfloat16))
    assert not is_ours(torch.zeros(1, 32, 20, 20))


def test_sprint_sampler_takes_a_stock_empty_latent(host, sprint):
    """As KSampler does: in the size that was asked for where the host knows how, in the model's channels everywhere."""
    from sanacog.host.sana.sprint import sample_sprint

    latent = stock.run("EmptyLatentImage", 64, 64)
    for denoise in (1.0, 0.0):
        out = sample_sprint(sprint, conditioning(9), latent, 1, 4.5, 0, denoise)
        assert out["samples"].shape == ((1, 32, 2, 2) if "downscale_ratio_spacial" in latent else (1, 32, 8, 8))
        assert "downscale_ratio_spacial" not in out


# What stock nodes read of a network

def test_renorm_cfg(host, model):
    """At sigma 1 from pure noise; the node bounds the norm of the guided prediction by the positive one's."""
    one, start = torch.tensor([1.0, 0.0]), noise(1)
    c, u, plain = (sample(host, model, start=start, cfg=cfg, sigmas=one, positive=text) for cfg, text in (
        (1.0, None), (1.0, conditioning(1, seed=1)), (4.5, None)))
    renormed = stock.run("RenormCFG", model, 100.0, 1.0, module="nodes_lumina2")
    wanted = plain * min(1.0, float(c.norm() / plain.norm()))
    assert apart(sample(host, renormed, start=start, sigmas=one), wanted) < 1e-5
    assert apart(plain, u + 4.5 * (c - u)) < 1e-4
