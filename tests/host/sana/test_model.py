"""Sana's MODEL inside the real host, on random tiny weights: the same numbers as the bare core."""

import pytest
import torch

from .. import tiny
from .sana_model import MARK, apart, conditioning, host, model, noise, sample, vae, weights  # noqa: F401


def test_sampling_equals_the_bare_core(host, model):
    core = tiny.sana()
    start = noise()
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    assert sigmas.tolist() == pytest.approx([1.0, 0.857, 0.6, 0.0], abs=2e-3)  # flow shift 3
    x = start * sigmas[0]
    for s, t in zip(sigmas, sigmas[1:]):
        v = [core(x, (1000 * s).expand(2), c[0][0].expand(2, -1, -1), c[0][1]["attention_mask"].expand(2, -1))
             for c in (conditioning(1, seed=1), conditioning(9))]
        x = x + (t - s) * (v[0] + 4.5 * (v[1] - v[0]))
    ours = sample(host, model, start=start)
    assert apart(ours, x / 0.41407) < 1e-5


def test_masked_tokens_do_not_matter(host, model):
    dirty = conditioning(9)
    dirty[0][0][:, 9:] = 5.0
    assert apart(sample(host, model, positive=dirty), sample(host, model)) < 1e-6


def test_joined_conditioning_keeps_both_prompts(host, model):
    two = conditioning(5, seed=3)
    joined = [[torch.cat([conditioning(9)[0][0], two[0][0]], 1), conditioning(9)[0][1]]]  # ConditioningConcat
    both = [[torch.cat([conditioning(9)[0][0][:, :9], two[0][0][:, :5]], 1), MARK]]
    assert apart(sample(host, model, positive=joined), sample(host, model, positive=both)) < 1e-5
    assert apart(sample(host, model, positive=joined), sample(host, model)) > 1e-3


def test_calling_convention(host, model):
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(("options last", "sample_sigmas" in args[-1]))
        return executor(*args, **kwargs)

    def block(args, extra):
        options = args["transformer_options"]
        seen.append(("block", options["block_index"], options["total_blocks"], options["block_type"]))
        return extra["original_block"](args)

    plain = sample(host, model, steps=1)
    watched = model.clone()
    from comfy.patcher_extension import WrappersMP
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    watched.set_model_patch_replace(block, "dit", "double_block", 1)
    assert torch.equal(sample(host, watched, steps=1), plain)
    assert seen[0] == ("options last", True) and ("block", 1, 3, "double") in seen

    skipped = model.clone()
    skipped.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
    assert apart(sample(host, skipped, steps=1), plain) > 1e-3

    patched = model.clone()
    patched.set_model_patch(lambda args: {"img": args["img"] * 0, "txt": args["txt"]}, "double_block")
    assert apart(sample(host, patched, steps=1), plain) > 1e-3

    silent, heard = model.clone(), []
    silent.set_model_patch(lambda args: {"img": args["img"], "txt": args["txt"] * 0}, "post_input")
    silent.set_model_patch(lambda args: heard.append(args["txt"].abs().max().item()) or args, "double_block")
    sample(host, silent, steps=1)
    assert heard and not any(heard)  # a changed text goes through all blocks


def test_control_residuals_are_added(model):
    dit = model.model.diffusion_model
    x, t, c = noise(1), torch.tensor([500.0]), conditioning(9)[0][0]
    plain = dit(x, t, c)
    token = torch.ones(1, 35, 64)
    same = dit(x, t, c, control={"input": [None, 0 * token]}, transformer_options={})
    assert torch.equal(same, plain)
    assert apart(dit(x, t, c, control={"input": [None, token]}, transformer_options={}), plain) > 1e-3


def test_flow_shift_and_timestep_multiplier_of_the_variant(host, tmp_path):
    import dataclasses

    path = tiny.save_sana(tmp_path / "a.safetensors", dataclasses.replace(tiny.SANA, flow_shift=6.0))
    sampling = host.sana.load_sana(path).get_model_object("model_sampling")
    assert sampling.shift == 6.0 and float(sampling.timestep(torch.tensor(0.5))) == 500
    sprint = dataclasses.replace(tiny.SANA, guidance_embeds=True, qk_norm=True)
    model = host.sana.load_sana(tiny.save_sana(tmp_path / "b.safetensors", sprint))
    assert float(model.get_model_object("model_sampling").timestep(torch.tensor(0.5))) == 0.5
    assert sample(host, model, cfg=1.0).isfinite().all()


def test_nvlabs_layout_loads_the_same(host, model, tmp_path):
    path = tiny.save_sana(tmp_path / "native.safetensors", layout="nvlabs")
    assert torch.equal(sample(host, host.sana.load_sana(path)), sample(host, model))


@pytest.mark.parametrize("name, limit", [("fp32", 1e-6), ("bf16", 2e-2), ("fp16", 1e-2), ("fp8_e4m3fn", 0.25)])
def test_weight_dtypes(host, weights, model, name, limit):
    loaded = host.sana.load_sana(weights.sana, name)
    assert {p.dtype for p in loaded.model.parameters()} == {host.loading.WEIGHT_DTYPES[name]}
    out = sample(host, loaded, cfg=1.0, steps=1)
    assert apart(out, sample(host, model, cfg=1.0, steps=1)) < limit
    # fp16 is no type to compute in for a model trained in bf16; a CPU computes in fp32.
    assert loaded.model.manual_cast_dtype is (None if name == "fp32" else torch.float32)


def test_memory_estimate(host, model):
    params = model.model.model_config.params
    numbers = 3 * params.width + 4 * params.hidden  # eager, in fp32
    # tokens * numbers a token; 0.15 / 0.01 is the host's own margin without flash attention.
    assert model.model.memory_required([2, 32, 8, 8]) / (2 * 64 * numbers) == pytest.approx(15, rel=1e-3)


@pytest.mark.parametrize("fused, dtype, numbers", [(True, torch.bfloat16, "3 D + 3 h"), (False, torch.bfloat16, "16 D"),
                                                   (False, torch.float32, "3 D + 4 h")])
def test_memory_estimate_on_a_gpu(host, model, monkeypatch, fused, dtype, numbers):
    """Counted, not measured: eager linear attention keeps fp32 copies, the fused kernels leave tensors out."""
    params = model.model.model_config.params
    config = host.sana.SanaConfig(params)
    monkeypatch.setattr("sanacog.host.sana.model.mm.get_torch_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr("sanacog.kernels.dispatch.available", lambda index: fused)
    config.set_inference_dtype(torch.bfloat16, dtype)
    D, h = params.width, params.hidden
    wanted = {"3 D + 3 h": 3 * D + 3 * h, "16 D": 16 * D, "3 D + 4 h": 3 * D + 4 * h}[numbers]
    assert config.memory_usage_factor * 0.01 * 2**20 == pytest.approx(wanted)


# Samplers and previews

def test_flow_dpm_solver_is_the_stochastic_solver_without_noise(host, model):
    """The host's dpmpp_2m_sde with eta 0, midpoint, is the same method (it, too, knows the flow's log-SNR)."""
    sigmas = torch.tensor([0.98, 0.9, 0.75, 0.5, 0.2, 0.0])
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(9), conditioning(1, seed=1))
    guider.set_cfg(2.0)

    def run(sampler):
        return guider.sample(noise(), torch.zeros_like(noise()), sampler, sigmas, disable_pbar=True, seed=0)

    theirs = host.comfy.samplers.ksampler("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "midpoint"})
    assert apart(run(host.sampling.flow_dpm_solver()), run(theirs)) < 1e-5
    assert apart(run(host.sampling.flow_dpm_solver()), run(host.comfy.samplers.ksampler("euler"))) > 1e-4


def test_preview_colours_fit_the_embedded_autoencoder(host):
    from sanacog.headless.installation import ROOT
    from sanacog.evaluation.drawn import shapes

    generator = torch.Generator().manual_seed(9)
    pictures = shapes.draw(shapes.sample_scenes(24, generator), generator)
    vae = host.vae.load_dcae(ROOT / "models" / "vae" / "sanacog_tiny_dcae.safetensors")
    latents = vae.encode((pictures.movedim(1, -1) + 1) / 2)
    factors, bias = (torch.tensor(part) for part in host.sana.rgb_factors(96))
    seen = (latents * 0.41407).movedim(1, -1) @ factors + bias
    wanted = torch.nn.functional.avg_pool2d(pictures, 32).movedim(1, -1)
    assert ((seen - wanted) ** 2).mean() < 0.15 * wanted.var()


def test_preview_colours_of_the_released_models(host):
    factors, bias = host.sana.rgb_factors(2304)
    assert torch.tensor(factors).shape == (32, 3) and all(-1 < value < 0 for value in bias)
    assert max(range(32), key=lambda i: abs(sum(factors[i]))) == 24  # brightness


# What is refused, and how

def test_text_of_another_model_is_refused(host, model):
    for width, name in ((4096, "T5-XXL"), (768, "CLIP-L"), (123, "123")):
        with pytest.raises(ValueError, match=f"{name}.*Load Sana Text Encoder"):
            sample(host, model, positive=conditioning(9, width))


@pytest.mark.parametrize("start, latent, message", [
    (noise(1, 64, 64, 4), torch.ones(1, 4, 64, 64), "Empty Sana Latent"),
    (noise(0), torch.zeros_like(noise(0)), "at least 1"),
    (noise(1), torch.full_like(noise(1), float("nan")), "NaN"),
])
def test_wrong_latents_are_refused(host, model, start, latent, message):
    with pytest.raises(ValueError, match=message):
        sample(host, model, latent, start=start)


def test_stock_empty_latent(host, model):
    """EmptyLatentImage reckons with 8 px: an old host's is refused with the remedy, a new one's is resized."""
    from sanacog.host.compat import corrects_empty_latents

    latent = torch.zeros(1, 4, 32, 32)  # 256 x 256 px, as this model wants
    if corrects_empty_latents():
        fixed = host.comfy.sample.fix_empty_latent_channels(model, latent, 8)
        assert fixed.shape == (1, 32, 8, 8) and sample(host, model, fixed, start=noise(1, 8, 8)).isfinite().all()
        return
    fixed = host.comfy.sample.fix_empty_latent_channels(model, latent)
    with pytest.raises(ValueError, match="1024 x 1024 px.*256 x 256.*Empty Sana Latent"):
        sample(host, model, fixed, start=noise(1, 32, 32))


def test_empty_latent_sizes(host):
    assert host.sana.empty_latent(96, 64, 3)["samples"].shape == (3, 32, 2, 3)
    for arguments, name in (((100, 64, 1), "width"), ((96, 0, 1), "height"), ((96, -32, 1), "height"), ((96, 64, 0), "batch_size")):
        with pytest.raises(ValueError, match=name):
            host.sana.empty_latent(*arguments)
