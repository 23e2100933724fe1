"""One sampling run in two stages, as KSamplerAdvanced and SplitSigmas make them: what is not in the LATENT is not lost."""

import pytest
import torch

from sanacog.cogvideo_core import schedule

from .. import stock
from .video_model import VARIANTS, apart, host, model, noise, random, sample, text, weights  # noqa: F401


@pytest.fixture
def model_of(host, weights):  # noqa: F811
    return lambda name: host.cogvideox.load_cogvideox(weights(VARIANTS[name]))


def in_two(host, model, sigmas, at, start, **kwargs):  # noqa: F811
    half = sample(host, model, start, sigmas=sigmas[:at + 1], **kwargs)
    return sample(host, model, torch.zeros_like(start), half, sigmas=sigmas[at:], **kwargs)


@pytest.mark.parametrize("name", ["5B", "1.5", "1.5 I2V", "Fun 1.5 InP"])
def test_split_sigmas(host, model_of, name):  # noqa: F811
    model, start = model_of(name), noise(5, batch=2)  # noqa: F811
    values = {} if name in ("5B", "1.5") else dict(concat_latent_image=random(1, 16, 5, 4, 6))
    if name == "Fun 1.5 InP":
        values["concat_mask"] = torch.ones(1, 1, 5, 4, 6)
    sigmas = host.samplers.cogvideox_sigmas(model, 20)
    whole = sample(host, model, start, steps=20, values=values)
    assert apart(in_two(host, model, sigmas, 10, start, values=values), whole) < 1e-4
    if name == "1.5":  # the state of the extra latent matters
        host.sampling._FRONTS.kept.clear()
        assert apart(in_two(host, model, sigmas, 10, start), whole) < 1e-4
        half = sample(host, model, start, sigmas=sigmas[:11])
        host.sampling._FRONTS.kept.clear()
        assert apart(sample(host, model, torch.zeros_like(start), half, sigmas=sigmas[10:])[:, :, :1], whole[:, :, :1]) > 1e-2


@pytest.mark.parametrize("frames", [3, 5])
def test_ksampler_advanced(host, model_of, frames):  # noqa: F811
    model, latent = model_of("1.5"), {"samples": torch.zeros(2, 16, frames, 4, 6)}  # noqa: F811

    def stage(latent, first, last, start=0, end=10000):
        return stock.run("KSamplerAdvanced", model, "enable" if first else "disable", 5, 10, 3.0, "euler", "simple", text(),
                         text(1), latent, start, end, "disable" if last else "enable")
    whole = stage(latent, True, True)["samples"]
    half = stage(latent, True, False, end=4)
    assert apart(stage(half, False, True, start=4)["samples"], whole) < 1e-4
    # Rows of a batch apart, turned round, and in the least type that hosts pass latents on in.
    turned = {"samples": half["samples"].flip(0)}
    assert apart(stage(turned, False, True, start=4)["samples"].flip(0), whole) < 1e-4
    assert apart(stage({"samples": half["samples"][1:]}, False, True, start=4)["samples"], whole[1:]) < 1e-4
    assert apart(stage({"samples": half["samples"].half().float()}, False, True, start=4)["samples"], whole) < 3e-3


def test_three_stages(host, model_of):  # noqa: F811
    model, start = model_of("1.5"), noise(3)  # noqa: F811
    sigmas = host.samplers.cogvideox_sigmas(model, 9)
    part = sample(host, model, start, sigmas=sigmas[:4])
    for a, b in ((3, 7), (6, 10)):
        part = sample(host, model, torch.zeros_like(start), part, sigmas=sigmas[a:b])
    assert apart(part, sample(host, model, start, steps=9)) < 1e-4


def test_a_lost_state_is_said(host, model_of, caplog):  # noqa: F811
    model, start = model_of("1.5"), noise(3)  # noqa: F811
    sigmas = host.samplers.cogvideox_sigmas(model, 9)
    half = sample(host, model, start, sigmas=sigmas[:4])
    sample(host, model, torch.zeros_like(start), half, sigmas=sigmas[3:])
    sample(host, model, start, half, sigmas=sigmas[3:])  # video to video
    assert "is lost" not in caplog.text
    sample(host, model, torch.zeros_like(start), half * 1.1, sigmas=sigmas[3:])
    assert caplog.text.count("is lost") == 1


def test_few_states_are_kept(host):  # noqa: F811
    from sanacog.host.kept import Kept

    fronts = Kept(3)
    clips = torch.arange(4.0)[:, None, None, None, None].expand(-1, 16, 3, 4, 6)
    fronts.keep(clips, clips[:, :, :1])
    assert fronts.of(clips[:1]) is None and torch.equal(fronts.of(clips[1:]), clips[1:, :, :1])
    assert fronts.of(clips[1:, :, :, :2]) is None


# What goes by the step's number

def test_noise_of_dpm_goes_on(host, model, monkeypatch):  # noqa: F811
    used = []
    step = host.samplers.dpm_step
    monkeypatch.setattr(host.samplers, "dpm_step", lambda *args: used.append(args[4]) or step(*args))
    sigmas, start = host.samplers.cogvideox_sigmas(model, 10), noise()
    sample(host, model, steps=10, sampler=host.samplers.cogvideox_dpm())
    whole, used[:] = list(used), []
    in_two(host, model, sigmas, 4, start, sampler=host.samplers.cogvideox_dpm())
    assert len(used) == 10 and all(torch.equal(a, b) for a, b in zip(used, whole))


def wave_of(host, model, sigmas, start, latent=None):  # noqa: F811
    """Guidance scales of a run with the reference's wave."""
    guider, used = host.samplers.cogvideox_guidance(model, text(), text(1), 6.0, "wave"), []
    set_cfg = guider.set_cfg
    guider.set_cfg = lambda cfg: used.append(cfg) or set_cfg(cfg)
    guider.sample(start, torch.zeros_like(start) if latent is None else latent, host.samplers.cogvideox_ddim(), sigmas,
                  disable_pbar=True, seed=5)
    return used


@pytest.mark.parametrize("scheduler", ["trailing", "simple", "sgm_uniform"])
@pytest.mark.parametrize("steps, at", [(50, 20), (30, 1), (30, 28), (20, 10), (7, 3)])
def test_wave_of_a_part_is_the_wave_of_the_run(host, model, scheduler, steps, at):  # noqa: F811
    import comfy.samplers

    sigmas = (host.samplers.cogvideox_sigmas(model, steps) if scheduler == "trailing" else
              comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps))
    sampling = model.get_model_object("model_sampling")
    assert host.samplers.steps_of_run(sampling, sigmas, False) == steps
    assert host.samplers.steps_of_run(sampling, sigmas[:at + 1], False) == steps
    assert host.samplers.steps_of_run(sampling, sigmas[at:], True) == steps


def test_wave_in_two_stages(host, model):  # noqa: F811
    sigmas, start = host.samplers.cogvideox_sigmas(model, 20), noise()
    whole = wave_of(host, model, sigmas, start)
    parts = wave_of(host, model, sigmas[:9], start) + wave_of(host, model, sigmas[8:], 0 * start, start)
    assert parts == whole and len(whole) == 20
    assert whole[:3] == [schedule.guidance_wave(t, 20, 6.0) for t in (999, 949, 899)]


def test_wave_of_video_to_video_is_the_references(host, model):  # noqa: F811
    """Its pipelines count the steps that are left, 40 of 50, and so does the first of two stages."""
    sigmas = host.samplers.cogvideox_sigmas(model, 50)[10:]
    used = wave_of(host, model, sigmas, noise(), noise())
    assert used[:2] == [schedule.guidance_wave(t, 40, 6.0) for t in (799, 779)]
    assert wave_of(host, model, sigmas[:20], noise(), noise()) == used[:19]


def test_wave_of_sigmas_that_do_not_tell(host, model, caplog):  # noqa: F811
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 10)
    wave_of(host, model, sigmas, noise())
    assert "do not tell" not in caplog.text
    wave_of(host, model, sigmas[:6], noise())
    assert "6 sigmas" in caplog.text and "as in a run of 5" in caplog.text
