"""SANA-Video's MODEL inside the real host, on random tiny weights: the same numbers as the bare core."""

import dataclasses

import pytest
import torch

from .video_model import (FIRST, KINDS, SECOND, WIDE, apart, conditioning, core, host, in_latent, noise, out_latent, sample, save,  # noqa: F401
                          velocity, weights)


def by_hand(host, params, net, start, cfg=4.5, given=None):
    """Three Euler steps. given: a clean first frame, shown at time 0."""
    sampling = host.comfy.model_sampling.ModelSamplingDiscreteFlow if hasattr(host.comfy, "model_sampling") else None
    assert sampling is not None
    shift = params.flow_shift
    table = [shift * t / (1 + (shift - 1) * t) for t in torch.arange(1, 1001, dtype=torch.float64) / 1000]
    sigmas = [float(table[-(1 + int(i * 1000 / 3))]) for i in range(3)] + [0.0]
    x = start * sigmas[0]
    for s, t in zip(sigmas, sigmas[1:]):
        time = torch.full((len(x),), 1000 * s)
        if given is not None:
            x[:, :, :1] = given
            time = time[:, None].repeat(1, x.shape[2])
            time[:, 0] = 0
        v = [velocity(net, x, time, text) for text in (conditioning(1, seed=1), conditioning(9))]
        x = x + (t - s) * (v[0] + cfg * (v[1] - v[0]))
    if given is not None:
        x[:, :, :1] = given
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_equals_the_bare_core(host, weights, kind):
    params = KINDS[kind]
    model, start = host.video.load_sana_video(weights(params)), noise(params, batch=2)
    found = sample(host, model, start)
    assert apart(found, out_latent(host, params, by_hand(host, params, core(params), start))) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_image_to_video(host, weights, kind):
    """The given frame comes out as it went in, and the network sees it clean and at time 0."""
    params = KINDS[kind]
    model, start = host.video.load_sana_video(weights(params)), noise(params)
    given = torch.randn(1, params.in_channels, 1, 4, 6, generator=torch.Generator().manual_seed(3))
    latent = torch.zeros_like(start)
    latent[:, :, :1] = given
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[:, :, 0] = 0
    found = sample(host, model, start, latent, noise_mask=mask)
    expected = by_hand(host, params, core(params), start, given=in_latent(host, params, given))
    assert apart(found, out_latent(host, params, expected)) < 1e-5
    assert apart(found[:, :, :1], given) < 1e-5


def test_times_of_parts(host):
    """One time where all is drawn, one for each frame where frames are given, one for each token where parts of a frame are."""
    t, times = torch.tensor([800.0, 400.0]), host.video.times_of_parts
    mask = torch.ones(2, 1, 2, 4, 4)
    assert times(t, mask, 2).tolist() == [800.0, 400.0]
    mask[:, :, 0] = 0
    assert times(t, mask, 2).tolist() == [[0.0, 800.0], [0.0, 400.0]]
    mask[:, :, 1, :2, :3] = 0  # its left token is given whole, the one beside it in part
    assert times(t, mask, 2).tolist() == [[0.0] * 5 + [800.0] * 3, [0.0] * 5 + [400.0] * 3]
    assert times(t, mask.expand(-1, 16, -1, -1, -1), 2).tolist() == times(t, mask, 2).tolist()


def test_calling_convention(host, weights):
    from comfy.patcher_extension import WrappersMP

    for params in (FIRST, SECOND):
        model, start, seen = host.video.load_sana_video(weights(params)), noise(params), []

        def wrapper(executor, *args, **kwargs):
            seen.append(("options last", "sample_sigmas" in args[-1]))
            return executor(*args, **kwargs)

        def block(args, extra):
            seen.append(("block", args["transformer_options"]["block_index"], args["transformer_options"]["total_blocks"]))
            return extra["original_block"](args)

        plain = sample(host, model, start, steps=1)
        watched = model.clone()
        watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
        watched.set_model_patch_replace(block, "dit", "double_block", 1)
        assert torch.equal(sample(host, watched, start, steps=1), plain)
        assert seen[0] == ("options last", True) and ("block", 1, params.num_layers) in seen
        skipped = model.clone()
        skipped.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
        assert apart(sample(host, skipped, start, steps=1), plain) > 1e-3


def test_layouts_and_storage(host, tmp_path, weights):
    """NVlabs' layout gives the same as diffusers'; so does a checkpoint that ComfyUI saved; fp8 comes near."""
    for params in (FIRST, SECOND):
        start = noise(params)
        plain = sample(host, host.video.load_sana_video(weights(params)), start)
        other = save(tmp_path / "nvlabs.safetensors", params, "nvlabs")
        assert apart(sample(host, host.video.load_sana_video(other), start), plain) < 1e-6
        host.comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), host.video.load_sana_video(weights(params)), None, None)
        assert torch.equal(sample(host, host.video.load_sana_video(tmp_path / "saved.safetensors"), start), plain)
        small = host.video.load_sana_video(weights(params), "fp8_e4m3fn")
        assert 1e-4 < apart(sample(host, small, start), plain) < 0.4


def test_what_is_refused(host, tmp_path, weights):
    model = host.video.load_sana_video(weights())
    with pytest.raises(ValueError, match="latents are of Wan 2.1's autoencoder.*EmptyHunyuanLatentVideo"):
        sample(host, model, noise(WIDE))
    with pytest.raises(ValueError, match="multiples of 2"):
        sample(host, model, noise(height=5))
    with pytest.raises(ValueError, match="NaN"):
        sample(host, model, noise(), latent=torch.full_like(noise(), float("nan")))
    with pytest.raises(ValueError, match="another model"):
        sample(host, model, noise(), positive=conditioning(9, width=32))
    from .. import tiny

    with pytest.raises(ValueError, match="not a SANA-Video transformer: this is a Sana transformer"):
        host.video.load_sana_video(tiny.save_sana(tmp_path / "picture.safetensors"))
    with pytest.raises(ValueError, match="conv_temp"):
        host.video.load_sana_video(save(tmp_path / "half.safetensors", **{"transformer_blocks.1.ff.conv_temp.weight": None}))


def test_loras(host, tmp_path, weights):
    """diffusers' names act in the stock loader and in ours, which reads NVlabs' fused ones too."""
    import comfy.utils
    from safetensors.torch import load_file, save_file

    from sanacog.host.lora import apply_lora

    generator = torch.Generator().manual_seed(4)
    down = torch.randn(2, 64, generator=generator)
    up = {name: torch.randn(64, 2, generator=generator) for name in "qkv"}
    ours = {f"transformer.transformer_blocks.0.attn1.to_{name}.lora_{side}.weight": t.contiguous()
            for name in "qkv" for side, t in (("A", down.clone()), ("B", up[name]))}
    fused = {"blocks.0.attn.qkv.lora_A.weight": down, "blocks.0.attn.qkv.lora_B.weight": torch.cat([up[n] for n in "qkv"])}
    save_file(ours, tmp_path / "a.safetensors")
    save_file(fused, tmp_path / "b.safetensors")
    model, start = host.video.load_sana_video(weights()), noise()
    stock, _ = host.comfy.sd.load_lora_for_models(model, None, load_file(tmp_path / "a.safetensors"), 1.0, 0.0)
    expected, plain = sample(host, stock, start), sample(host, model, start)
    assert apart(expected, plain) > 1e-3
    for name in "ab":
        patched, _ = apply_lora(tmp_path / f"{name}.safetensors", model)
        assert apart(sample(host, patched, start), expected) < 1e-5


def test_variant_settings(host, weights):
    for params, shift in ((FIRST, 8.0), (SECOND, 12.0)):
        sampling = host.video.load_sana_video(weights(params)).get_model_object("model_sampling")
        assert sampling.shift == shift and float(sampling.timestep(torch.tensor(0.5))) == 500
    moved = dataclasses.replace(FIRST, flow_shift=3.0)
    assert host.video.load_sana_video(weights(moved)).get_model_object("model_sampling").shift == 3.0


def test_lora_of_what_the_picture_models_lack(host, tmp_path, weights):
    """NVlabs' name of the convolution over time."""
    from safetensors.torch import save_file

    from sanacog.host.lora import apply_lora

    generator = torch.Generator().manual_seed(4)
    save_file({"blocks.1.mlp.t_conv.lora_A.weight": torch.randn(2, 64, 3, 1, generator=generator),
               "blocks.1.mlp.t_conv.lora_B.weight": torch.randn(64, 2, 1, 1, generator=generator)}, tmp_path / "a.safetensors")
    model, start = host.video.load_sana_video(weights()), noise()
    patched, _ = apply_lora(tmp_path / "a.safetensors", model)
    assert apart(sample(host, patched, start), sample(host, model, start)) > 1e-3
