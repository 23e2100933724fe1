"""Stock nodes on SANA-Video: the autoencoders that ComfyUI has, empty latents, custom sampling, caching, context windows."""

import pytest
import torch

from .. import stock, tiny_video_vaes
from .video_model import (EMBEDDED, FIRST, SECOND, WIDE, apart, conditioning, core, host, noise, out_latent, sample, velocity,  # noqa: F401
                          weights)


@pytest.fixture(scope="module")
def vaes(host, tmp_path_factory):
    """{latents: the stock VAE object of a file with random weights}."""
    import comfy.utils

    folder, out = tmp_path_factory.mktemp("vaes"), {}
    for name, save in (("wan", tiny_video_vaes.save_wan_vae), ("ltx2", tiny_video_vaes.save_ltx2_vae)):
        tensors, metadata = comfy.utils.load_torch_file(str(save(folder / f"{name}.safetensors")), return_metadata=True)
        out[name] = host.comfy.sd.VAE(sd=tensors, metadata=metadata)
    return out


@pytest.mark.parametrize("params, frames, step", [(FIRST, 4, 8), (WIDE, 8, 32)], ids=["wan", "ltx2"])
def test_picture_to_clip_and_back(host, weights, vaes, params, frames, step):
    """The whole way with the host's own autoencoder: a picture, a latent that begins with it, a clip of the right size."""
    vae = vaes[params.latents]
    picture = torch.rand(2, 100, 140, 3, generator=torch.Generator().manual_seed(1))
    latent = host.conditioning.image_to_video(vae, 4 * step, 2 * step, 2 * frames + 1, 2, picture)
    assert latent["samples"].shape == (2, params.in_channels, 3, 2, 4)
    assert latent["noise_mask"][:, :, 0].max() == 0 and latent["noise_mask"][:, :, 1:].min() == 1
    assert torch.equal(latent["samples"][0], latent["samples"][1]) and latent["samples"][:, :, 1:].abs().max() == 0
    found = sample(host, host.video.load_sana_video(weights(params)), noise(params, 2, 3, 2, 4), latent["samples"],
                   noise_mask=latent["noise_mask"])
    assert apart(found[:, :, :1], latent["samples"][:, :, :1]) < 1e-5
    assert vae.decode(found).shape == (2, 2 * frames + 1, 2 * step, 4 * step, 3)


def test_sizes_that_do_not_fit(host, vaes):
    picture = torch.rand(1, 32, 32, 3)
    make = host.conditioning.image_to_video
    for name, arguments in (("width", (100, 64, 9)), ("height", (64, 100, 9)), ("length", (64, 64, 8))):
        with pytest.raises(ValueError, match=name):
            make(vaes["wan"], *arguments, 1, picture)
    with pytest.raises(ValueError, match="8 n \\+ 1, such as 1 or 9"):
        make(vaes["ltx2"], 64, 64, 5, 1, picture)
    with pytest.raises(ValueError, match="picture"):
        make(vaes["wan"], 64, 64, 5, 1, picture[:0])


def test_a_vae_of_pictures_is_refused(host, tmp_path):
    from sanacog.host.sana.vae import load_dcae

    from .. import tiny

    with pytest.raises(ValueError, match="one of pictures"):
        host.conditioning.image_to_video(load_dcae(tiny.save_dcae(tmp_path / "dcae.safetensors")), 64, 64, 5, 1, torch.rand(1, 32, 32, 3))


@pytest.mark.parametrize("name, module, arguments, params", [
    ("EmptyHunyuanLatentVideo", "nodes_hunyuan", (64, 32, 9, 1), FIRST), ("EmptyLTXVLatentVideo", "nodes_lt", (128, 64, 17, 1), WIDE)])
def test_stock_empty_latents(host, weights, name, module, arguments, params):
    """The host's own empty latents have the right shape, and are sampled as they are."""
    from sanacog.host.compat import fixed_empty_samples

    latent = stock.run(name, *arguments, module=module)
    model = host.video.load_sana_video(weights(params))
    samples = fixed_empty_samples(model, latent)
    assert samples.shape[1:3] == (params.in_channels, 3)
    assert samples.shape == latent["samples"].shape
    assert sample(host, model, noise(params, 1, *samples.shape[2:]), samples, steps=1).isfinite().all()


def test_four_steps_of_the_stock_sampler(host, weights):
    """SANA-Video 2.0 4-step: `lcm` at its sigmas is its authors' sampler, but for the first noise, which the host scales."""
    import comfy.k_diffusion.sampling as stock_sampling

    model, start, net = host.video.load_sana_video(weights(SECOND)), noise(SECOND), core(SECOND)
    sigmas = host.blockwise.few_step_sigmas("SANA-Video 2.0 4-step")
    found = host.comfy.sample.sample_custom(model, start, 1.0, host.comfy.samplers.sampler_object("lcm"), sigmas, conditioning(9),
                                            conditioning(1), torch.zeros_like(start), disable_pbar=True, seed=5)
    draw = stock_sampling.default_noise_sampler(start, seed=5)
    x = start * sigmas[0]
    for sigma, target in zip(sigmas, sigmas[1:]):
        x = x - sigma * velocity(net, x, torch.full((1,), float(1000 * sigma)), conditioning(9))
        if target > 0:
            x = (1 - target) * x + target * draw(sigma, target)
    assert apart(found, x) < 1e-5


def test_caching_node(host, weights):
    """EasyCache finds what it needs, and with a threshold of nothing changes nothing."""
    pytest.importorskip("comfy_extras.nodes_easycache")
    model, start = host.video.load_sana_video(weights()), noise()
    plain = sample(host, model, start, steps=6)
    assert torch.equal(sample(host, stock.run("EasyCacheNode", model, 0.0, 0.0, 1.0, False, module="nodes_easycache"), start, steps=6), plain)
    cached = sample(host, stock.run("EasyCacheNode", model, 100.0, 0.0, 1.0, False, module="nodes_easycache"), start, steps=6)
    assert apart(cached, plain) > 1e-4


def test_context_windows(host, weights):
    """Windows over time draw a clip that is longer than they are, with a first frame that is given; one window changes nothing."""
    import inspect

    import comfy_extras.nodes_context_windows as module

    node = module.WanContextWindowsManualNode

    def windowed(model, length, overlap):
        known = inspect.signature(node.execute).parameters
        given = {"context_length": length, "context_overlap": overlap, "context_schedule": "standard_static", "context_stride": 1,
                 "closed_loop": False, "fuse_method": "pyramid", "freenoise": False, "cond_retain_index_list": "", "split_conds_to_windows": False}
        return node.execute(model, **{name: value for name, value in given.items() if name in known}).result[0]

    model, start = host.video.load_sana_video(weights()), noise(frames=6)
    latent, mask = torch.zeros_like(start), torch.ones(1, 1, 6, 4, 6)
    latent[:, :, :1], mask[:, :, 0] = 0.5, 0
    plain = sample(host, model, start, latent, noise_mask=mask)
    assert torch.equal(sample(host, windowed(model, 81, 0), start, latent, noise_mask=mask), plain)
    found = sample(host, windowed(model, 13, 4), start, latent, noise_mask=mask)
    assert found.isfinite().all() and apart(found, plain) > 1e-4 and apart(found[:, :, :1], latent[:, :, :1]) < 1e-5


def test_partial_loading(host, weights):
    """Loaded a layer at a time, as where memory is short, it computes the same."""
    start = noise()
    plain = sample(host, host.video.load_sana_video(weights()), start)
    model = host.video.load_sana_video(weights(), disable_dynamic=True)
    model.model_size()
    patched = model.clone()
    patched.patch_model_lowvram(device_to=torch.device("cpu"), lowvram_model_memory=1000) if hasattr(patched, "patch_model_lowvram") \
        else patched.load(torch.device("cpu"), lowvram_model_memory=1000)
    assert apart(sample(host, patched, start), plain) < 1e-6


def test_previews(host, weights):
    """A sheet of frames in colours that its autoencoder's latents have."""
    import latent_preview

    for params in (FIRST, WIDE, EMBEDDED):
        format = host.video.load_sana_video(weights(params)).model.latent_format
        previewer = latent_preview.Latent2RGBPreviewer(format.latent_rgb_factors, format.latent_rgb_factors_bias,
                                                       format.latent_rgb_factors_reshape)
        assert previewer.decode_latent_to_preview(torch.randn(1, params.in_channels, 4, 6, 8)).size == (16, 12)


@pytest.mark.parametrize("method", ["first block", "TeaCache"])
def test_step_cache(host, weights, method):
    """The pack's own: a threshold that everything passes leaves evaluations out, none does not; 2.0 is refused."""
    from sanacog.host.step_cache import step_cache

    model, start = host.video.load_sana_video(weights()), noise()
    plain = sample(host, model, start, steps=6)
    assert apart(sample(host, step_cache(model, method, 1e-9), start, steps=6), plain) < 1e-6
    assert 1e-4 < apart(sample(host, step_cache(model, method, 100.0), start, steps=6), plain) < 1.0
    with pytest.raises(ValueError, match="of the first generation"):
        step_cache(host.video.load_sana_video(weights(SECOND)), method, 0.1)
