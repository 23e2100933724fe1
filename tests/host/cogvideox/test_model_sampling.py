"""Sampling CogVideoX in the real host: stock samplers and our own against diffusers' schedulers and the core's loops."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from sanacog.cogvideo_core import schedule

from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import PARAMS, TEXT_WIDTH, TOKENS
from .video_model import (  # noqa: F401
    VARIANTS,
    apart,
    host,
    model,
    noise,
    random,
    reference,
    sample,
    text,
    velocity_of,
    weights,
)

REFERENCE = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction",
    rescale_betas_zero_snr=True, set_alpha_to_one=True, timestep_spacing="trailing",
)


def ksampler(host, model, steps, sampler="euler", scheduler="simple", start=None, latent=None, **kw):
    """The stock KSampler."""
    start = noise() if start is None else start
    return host.comfy.sample.sample(model, start, steps, 3.0, sampler, scheduler, text(), text(1),
                                    torch.zeros_like(start) if latent is None else latent, seed=5, disable_pbar=True, **kw)


def node(module, name, *args, **kwargs):
    """What a stock node gives, inputs that newer hosts have added at their defaults."""
    import importlib

    cls = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    known = inspect.signature(cls.execute).parameters
    defaults = {port.id: port.default for port in cls.define_schema().inputs if getattr(port, "default", None) is not None}
    defaults |= {port.id: port.options[0] for port in cls.define_schema().inputs if getattr(port, "options", None)}
    full = {key: value for key, value in (defaults | kwargs).items() if key in known}
    bound = list(known)[:len(args)]
    return cls.execute(*args, **{key: value for key, value in full.items() if key not in bound}).result


# Against the reference's schedulers

def from_diffusers(scheduler, params, start, steps, **step):
    """A pipeline's loop around the bare transformer."""
    velocity = velocity_of(params)
    scheduler.set_timesteps(steps)
    x, old = start, None
    for i, t in enumerate(scheduler.timesteps):
        v = velocity(x, int(t))
        if isinstance(scheduler, CogVideoXDPMScheduler):
            x, old = scheduler.step(v, old, t, scheduler.timesteps[i - 1] if i else None, x, return_dict=False, **step)
        else:
            x = scheduler.step(v, t, x).prev_sample
    return x / params.scaling_factor


@pytest.mark.parametrize("name", ["5B", "2B"])
@pytest.mark.parametrize("steps", [50, 30, 20])
def test_ddim_equals_diffusers(host, weights, name, steps):
    params = VARIANTS[name]
    model = host.cogvideox.load_cogvideox(weights(params))
    scheduler = CogVideoXDDIMScheduler(**REFERENCE, snr_shift_scale=params.snr_shift_scale)
    wanted = from_diffusers(scheduler, params, noise(), steps)
    assert apart(sample(host, model, steps=steps), wanted) < 1e-5
    assert apart(reference(params, noise(), steps), wanted) < 1e-5


@pytest.mark.parametrize("steps", [50, 30, 20])
def test_dpm_equals_diffusers(host, model, monkeypatch, steps):
    ours = sample(host, model, steps=steps, sampler=host.samplers.cogvideox_dpm())
    # diffusers draws twice a step between the first and the last, and uses the second.
    generator = host.samplers.step_generator(5)
    draws = [torch.randn(noise().shape, generator=generator) for _ in range(steps)]
    queue = [draws[0]] + [part for draw in draws[1:-1] for part in (torch.zeros_like(draw), draw)] + [draws[-1]]
    import diffusers.schedulers.scheduling_dpm_cogvideox as module
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: queue.pop(0))
    wanted = from_diffusers(CogVideoXDPMScheduler(**REFERENCE, snr_shift_scale=1.0), PARAMS, noise(), steps)
    assert apart(ours, wanted) < 1e-5 and not queue


@pytest.mark.parametrize("scheduler, limit", [("simple", 1e-3), ("sgm_uniform", 2e-2)])
def test_stock_ksampler_gives_the_reference_picture(host, model, scheduler, limit):
    """What is left is the host's last sigma, which is finite, and for sgm_uniform its fractional timesteps."""
    wanted = reference(PARAMS, noise(), 50)
    assert apart(ksampler(host, model, 50, scheduler=scheduler), wanted) < limit


def test_other_schedulers_do_not(host, model):
    assert apart(ksampler(host, model, 50, scheduler="karras"), reference(PARAMS, noise(), 50)) > 2e-2


# Sigmas

def test_sigmas(host, model):
    table = model.get_model_object("model_sampling").sigmas
    sigmas = host.samplers.cogvideox_sigmas(model, 30)
    assert sigmas.tolist() == [*table[schedule.trailing_timesteps(30)].tolist(), 0.0]
    whole = host.samplers.cogvideox_sigmas(model, 62)
    assert host.samplers.cogvideox_sigmas(model, 50, 0.8).tolist() == whole[-51:].tolist()
    assert host.samplers.cogvideox_sigmas(model, 50, 0.0).shape == (0,)
    simple = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 50)
    assert torch.allclose(host.samplers.cogvideox_sigmas(model, 50), simple)
    with pytest.raises(ValueError, match="50 steps at denoise 0.01.*5000"):
        host.samplers.cogvideox_sigmas(model, 50, 0.01)


def test_other_models_are_refused(host, model):
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

    class Flow(ModelSamplingDiscreteFlow, CONST):
        pass
    flow = SimpleNamespace(get_model_object=lambda name: Flow())
    with pytest.raises(ValueError, match="not sampled as CogVideoX is"):
        host.samplers.cogvideox_sigmas(flow, 50)
    patched = model.clone()
    patched.add_object_patch("model_sampling", Flow())
    with pytest.raises(ValueError, match="not sampled as CogVideoX is"):
        sample(host, patched, sigmas=torch.tensor([1.0, 0.5, 0.0]))


def test_sigmas_that_do_not_fall_are_refused(host, model):
    for sigmas in (torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0])):
        with pytest.raises(ValueError, match="must fall"):
            sample(host, model, sigmas=sigmas)


def test_other_sigmas_go_from_one_to_the_next(host, model):
    """Any falling list works: between the trailing timesteps, and not to the end."""
    sigmas = torch.tensor([30.0, 4.0, 1.1, 0.3, 0.0])
    euler = host.comfy.samplers.sampler_object("euler")
    for end in (5, 3):
        ours, theirs = (sample(host, model, sampler=sampler, sigmas=sigmas[:end]) for sampler in (None, euler))
        assert apart(ours, theirs) < 1e-5  # DDIM is Euler's method in the host's scale


@pytest.mark.parametrize("steps", [20, 30])
def test_two_stages_are_one_run(host, model, steps):
    """SplitSigmas: the second stage goes on with the noise that the first has left."""
    sigmas = host.samplers.cogvideox_sigmas(model, steps)
    half = sample(host, model, sigmas=sigmas[:steps // 2 + 1])
    both = sample(host, model, torch.zeros_like(noise()), half, sigmas=sigmas[steps // 2:])
    assert apart(both, sample(host, model, steps=steps)) < 1e-4


# Video to video, masks, batches

def partial(params, start, latent, timesteps, steps):
    """The pipelines' video to video: noise added at the first timestep, then DDIM."""
    alphas, velocity = schedule.alphas_cumprod(params.snr_shift_scale), velocity_of(params)
    first = float(alphas[timesteps[0]])
    x = first**0.5 * latent * params.scaling_factor + (1 - first) ** 0.5 * start
    for t in timesteps:
        alpha = float(alphas[t])
        x0 = schedule.denoised(x, velocity(x, t), alpha)
        x = schedule.ddim_step(x, x0, alpha, schedule.target_alpha(alphas, t, steps))
    return x / params.scaling_factor


@pytest.mark.parametrize("steps, denoise", [(10, 0.5), (5, 0.3)])
def test_partial_denoise(host, model, steps, denoise):
    latent, total = random(1, 16, 3, 4, 6, seed=3), int(steps / denoise)
    wanted = partial(PARAMS, noise(), latent, schedule.trailing_timesteps(total)[-steps:], total)
    ours = sample(host, model, latent=latent, sigmas=host.samplers.cogvideox_sigmas(model, steps, denoise))
    assert apart(ours, wanted) < 1e-5
    stock = ksampler(host, model, steps, latent=latent, denoise=denoise)
    assert apart(stock, wanted) < (1e-3 if 1000 % total == 0 else 5e-2)


def test_noise_mask(host, model):
    latent, mask = random(1, 16, 3, 4, 6, seed=3), torch.zeros(1, 1, 3, 4, 6)
    mask[..., :3] = 1.0
    runs = {name: sample(host, model, latent=latent, mask=mask, steps=20, sampler=sampler) for name, sampler in (
        ("ddim", None), ("dpm", host.samplers.cogvideox_dpm()), ("euler", host.comfy.samplers.sampler_object("euler")))}
    for out in runs.values():
        assert apart(out[..., 3:], latent[..., 3:]) < 1e-5
        assert apart(out[..., :3], latent[..., :3]) > 0.1
    assert apart(runs["ddim"], runs["euler"]) < 1e-3
    assert apart(runs["ddim"], sample(host, model, latent=latent, steps=20)) > 1e-2


def test_differential_masks(host, model):
    """The host's hook that changes the mask with the step."""
    latent, mask, seen = random(1, 16, 3, 4, 6, seed=3), torch.full((1, 1, 3, 4, 6), 0.5), []

    def change(sigma, mask, extra_options):
        seen.append((float(sigma[0]), len(extra_options["sigmas"])))
        return torch.zeros_like(mask)
    changed = model.clone()
    changed.set_model_denoise_mask_function(change)
    assert apart(sample(host, changed, latent=latent, mask=mask), latent) < 1e-5
    assert len(seen) == 3 and seen[0][0] == pytest.approx(4518.76, rel=1e-4) and seen[0][1] == 4


@pytest.mark.parametrize("name", ["5B", "1.5"])
def test_batch(host, weights, name):
    model, two = host.cogvideox.load_cogvideox(weights(VARIANTS[name])), noise(4, batch=2)
    together = sample(host, model, two)
    for i in (0, 1):
        assert apart(together[i:i + 1], sample(host, model, two[i:i + 1])) < 1e-5


# The first latent of 1.5

def padded(host, start, seed=5):
    return torch.cat([host.sampling.front_noise(start, seed), start], dim=2)


def test_odd_latents_of_a_1_5_model(host, weights):
    params, start = VARIANTS["1.5"], noise(5, batch=2)
    model = host.cogvideox.load_cogvideox(weights(params))
    ours = sample(host, model, start)
    assert apart(ours, reference(params, padded(host, start))[:, :, 1:]) < 1e-5
    assert not torch.equal(ours, sample(host, model, start, seed=6))  # the seed decides what goes in front
    extra = host.sampling.front_noise(start, 5)
    assert extra.shape == (2, 16, 1, 4, 6) and 0.8 < extra.std() < 1.2
    drawn = torch.randn(start.shape, generator=torch.Generator().manual_seed(5))
    assert not torch.isin(extra, drawn).any()


@pytest.mark.parametrize("end", [False, True])
def test_start_picture_of_a_1_5_model(host, weights, end):
    """It lies where the latent is thrown away, with nothing behind it; an end picture stays the last."""
    params, start = VARIANTS["1.5 I2V"], noise(5)
    clip, channels = torch.zeros_like(start), torch.zeros(1, 16, 6, 4, 6)
    clip[:, :, 0] = channels[:, :, 0] = random(1, 16, 4, 6)
    if end:
        clip[:, :, -1] = channels[:, :, -1] = random(1, 16, 4, 6, seed=1)
    ours = sample(host, host.cogvideox.load_cogvideox(weights(params)), start, values=dict(concat_latent_image=clip))
    assert apart(ours, reference(params, padded(host, start), channels=channels)[:, :, 1:]) < 1e-5


def test_masked_video_of_a_1_5_model(host, weights):
    params, start = VARIANTS["Fun 1.5 InP"], noise(5)
    clip, mask = random(1, 16, 5, 4, 6), (random(1, 1, 5, 4, 6) > 0).float()
    channels = 0.7 * torch.cat([1 - mask, clip], dim=1)
    ours = sample(host, host.cogvideox.load_cogvideox(weights(params)), start,
                  values=dict(concat_latent_image=clip, concat_mask=mask))
    channels = torch.cat([channels[:, :, :1], channels], dim=2)
    assert apart(ours, reference(params, padded(host, start), channels=channels)[:, :, 1:]) < 1e-5


def test_video_to_video_of_a_1_5_model(host, weights):
    params, start, latent = VARIANTS["1.5"], noise(5), random(1, 16, 5, 4, 6, seed=3)
    model = host.cogvideox.load_cogvideox(weights(params))
    sigmas, mask = host.samplers.cogvideox_sigmas(model, 5, 0.5), torch.ones(1, 1, 5, 4, 6)
    wanted = partial(params, padded(host, start), torch.cat([latent[:, :, :1], latent], dim=2),
                     schedule.trailing_timesteps(10)[-5:], 10)[:, :, 1:]
    assert apart(sample(host, model, start, latent, sigmas=sigmas), wanted) < 1e-5
    assert apart(sample(host, model, start, latent, sigmas=sigmas, mask=mask), wanted) < 1e-5
    mask[:, :, :2] = 0.0
    kept = sample(host, model, start, latent, sigmas=sigmas, mask=mask)
    assert apart(kept[:, :, :2], latent[:, :, :2]) < 1e-5 and apart(kept[:, :, 2:], latent[:, :, 2:]) > 0.1
    picture = torch.zeros(1, 4, 6)  # LoadImage's mask, for all frames
    assert apart(sample(host, model, start, latent, sigmas=sigmas, mask=picture), latent) < 1e-5


def test_no_noise_gets_none_in_front(host):
    assert not host.sampling.front_noise(torch.zeros(1, 16, 3, 4, 6), 5).any()


# Other nodes of the host

@pytest.mark.parametrize("name", ["5B", "1.5"])
def test_sampler_custom_advanced(host, weights, name):
    from sanacog.nodes import cogvideox, cogvideox_sampling as nodes

    model = host.cogvideox.load_cogvideox(weights(VARIANTS[name]))
    latent, = cogvideox.EmptyCogVideoXLatent.execute(48, 32, 9, 2).result
    sigmas, = nodes.CogVideoXSigmas.execute(model, 20).result
    sampler, = nodes.CogVideoXDDIM.execute().result
    guider, = nodes.CogVideoXDynamicGuidance.execute(model, text(), text(1), 6.0, "ramp").result
    seed, = node("nodes_custom_sampler", "RandomNoise", noise_seed=5)
    out, denoised = node("nodes_custom_sampler", "SamplerCustomAdvanced", seed, guider, sampler, sigmas, latent)
    assert out["samples"].shape == denoised["samples"].shape == (2, 16, 3, 4, 6)
    assert apart(denoised["samples"], out["samples"]) < 1e-5
    assert sample(host, model, sampler=nodes.CogVideoXDPM.execute().result[0]).isfinite().all()


@pytest.mark.parametrize("mode", ["wave", "ramp"])
def test_dynamic_guidance(host, model, mode):
    steps = 20
    guider = host.samplers.cogvideox_guidance(model, text(), text(1), 6.0, mode)
    sigmas = host.samplers.cogvideox_sigmas(model, steps)
    sampler, zeros = host.samplers.cogvideox_ddim(), torch.zeros_like(noise())
    ours = guider.sample(noise(), zeros, sampler, sigmas, disable_pbar=True, seed=5)
    core, used = tinycog.transformer(), []

    def velocity(x, t):
        used.append(schedule.guidance_wave(t, steps, 6.0) if mode == "wave" else schedule.guidance_ramp(t, 6.0))
        c, u = (core(x, torch.tensor([float(t)]), random(1, TOKENS, TEXT_WIDTH, seed=seed)) for seed in (100, 101))
        return u + used[-1] * (c - u)
    assert apart(ours, schedule.ddim(velocity, noise(), steps) / 0.7) < 1e-5
    rising = all(after >= before for before, after in zip(used, used[1:]))
    assert rising is (mode == "ramp") and 1.0 <= min(used) and max(used) <= 7.0


def test_guidance_modes(host, model):
    with pytest.raises(ValueError, match="choose one of wave, ramp"):
        host.samplers.cogvideox_guidance(model, text(), text(1), 6.0, "saw")


def test_easycache(host, model):
    blocks = []
    counted = model.clone()
    counted.set_model_patch(lambda args: blocks.append(args["block_index"]) or args, "double_block")
    plain, full = ksampler(host, counted, 20), blocks.count(0)
    cached, never = (node("nodes_easycache", "EasyCacheNode", counted, reuse_threshold=limit)[0] for limit in (3.0, 0.0))
    out = ksampler(host, cached, 20)
    assert full == 20 and blocks.count(0) - full < 20 and out.isfinite().all()
    assert torch.equal(ksampler(host, never, 20), plain)


@pytest.mark.parametrize("name", ["5B", "1.5", "1.5 I2V"])
def test_context_windows(host, weights, name):
    params, start = VARIANTS[name], noise(9)
    model = host.cogvideox.load_cogvideox(weights(params))
    clip = torch.cat([random(1, 16, 1, 4, 6), torch.zeros(1, 16, 8, 4, 6)], dim=2)
    values = dict(concat_latent_image=clip) if name == "1.5 I2V" else {}
    windows, = node("nodes_context_windows", "ContextWindowsManualNode", model, context_length=4, context_overlap=2, dim=2)
    from comfy.patcher_extension import WrappersMP
    seen = []
    windows.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test",
                                 lambda executor, *a, **k: seen.append(a[0]) or executor(*a, **k))
    out = sample(host, windows, start, steps=1, values=values)
    assert out.shape == start.shape and out.isfinite().all()
    assert max(x.shape[2] for x in seen) <= 5
    if values:  # every window begins with the picture, and holds it nowhere else
        assert all(torch.equal(x[:, 16:, 0], seen[0][:, 16:, 0]) and not x[:, 16:, 1:].any() for x in seen)
        assert len(seen) > 2 and seen[0][:, 16:, 0].any()
    out = sample(host, windows, start, values=values)
    assert apart(out, sample(host, model, start, values=values)) > 1e-3
    whole, = node("nodes_context_windows", "ContextWindowsManualNode", model, context_length=10, context_overlap=2, dim=2)
    assert torch.equal(sample(host, whole, start, values=values), sample(host, model, start, values=values))


def test_interrupt(host, model):
    import comfy.model_management as mm

    steps = []

    def callback(step, x0, x, total):
        steps.append(step)
        if step == 1:
            mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        sample(host, model, steps=10, callback=callback)
    assert steps == [0, 1]
    assert sample(host, model).isfinite().all()


@pytest.mark.parametrize("name", ["5B", "1.5"])
def test_previews(host, weights, name):
    from latent_preview import Latent2RGBPreviewer

    frames = []
    model = host.cogvideox.load_cogvideox(weights(VARIANTS[name]))
    shown = model.model.latent_format
    previewer = Latent2RGBPreviewer(shown.latent_rgb_factors, shown.latent_rgb_factors_bias, shown.latent_rgb_factors_reshape)

    def callback(step, x0, x, total):
        assert x0.shape == x.shape == (1, 16, 3, 4, 6) and total == 3
        frames.append((x0, previewer.decode_latent_to_preview(x0)))
    out = sample(host, model, callback=callback)
    assert len(frames) == 3 and frames[0][1].size == (12, 8)  # three frames, two a row
    assert apart(frames[-1][0] / 0.7, out) < 1e-5
