"""From a latent to noise and back through the host's own sampling, on random tiny weights: against the equations, and
there and back."""

import math
from types import SimpleNamespace

import pytest
import torch

from sanacog.cogvideo_core import schedule

from .. import tiny
from ..cogvideox import video_model
from ..cogvideox.video_model import apart, velocity_of
from ..sana import sana_model

STEPS = 6


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.samplers

    from sanacog.host import samplers
    from sanacog.host.cogvideox import model as cogvideox
    from sanacog.host.editing import flow_edit, inversion, noise, structure
    from sanacog.host.sana import model as sana, sampling

    with torch.inference_mode():
        yield SimpleNamespace(comfy=comfy, samplers=samplers, cogvideox=cogvideox, sana=sana, sampling=sampling,
                              inversion=inversion, noise=noise, flow_edit=flow_edit, structure=structure)


@pytest.fixture(scope="module")
def models(host, tmp_path_factory):
    """name -> (MODEL, latent, prompt, negative, sigmas)"""
    folder = tmp_path_factory.mktemp("weights")
    made = {}

    def get(name):
        if name not in made:
            if name == "Sana":
                model = host.sana.load_sana(tiny.save_sana(folder / "sana.safetensors"))
                texts = sana_model.conditioning(9), sana_model.conditioning(5, seed=3)
                made[name] = model, 0.3 * sana_model.noise(2, 4, 6), *texts, host.sampling.sana_sigmas(model, STEPS)
            else:
                params = video_model.VARIANTS[name]
                file = video_model.tinycog.save_transformer(folder / f"{name}.safetensors", params)
                model = host.cogvideox.load_cogvideox(file)
                made[name] = (model, 0.3 * video_model.random(1, 16, 3, 4, 6), video_model.text(), video_model.text(1),
                              host.samplers.cogvideox_sigmas(model, STEPS))
        return made[name]
    return get


def run(host, case, sampler, noise=None, cfg=1.0, latent=None, model=None, sigmas=None, seed=5, mask=None):
    own, source, positive, negative, whole = case
    guider = host.comfy.samplers.CFGGuider(model or own)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    latent = source if latent is None else latent
    return guider.sample(torch.zeros_like(source) if noise is None else noise, latent, sampler,
                         whole if sigmas is None else sigmas, mask, None, True, seed)


def euler(host):
    return host.comfy.samplers.ksampler("euler")


ALL = ["Sana", "2B", "5B", "1.5"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_edict_is_exact(host, models, name, cfg):
    case = models(name)
    noise = run(host, case, host.inversion.inversion("edict", 1, 0.0), cfg=cfg)
    assert apart(run(host, case, host.inversion.way_back("edict"), noise, cfg), case[1]) < 2e-3
    assert apart(noise, case[1]) > 0.5


@pytest.mark.parametrize("name", ALL)
def test_fixed_point_solves_the_samplers_equation(host, models, name):
    case, found = models(name), {}
    for iterations in (1, 4, 40):
        noise = run(host, case, host.inversion.inversion("fixed point", iterations, 0.0))
        found[iterations] = apart(run(host, case, euler(host), noise), case[1])
    plain = apart(run(host, case, euler(host), run(host, case, host.inversion.inversion("plain", 1, 0.0))), case[1])
    assert found[40] < 0.02 < plain and found[40] < found[4] < found[1] < plain


def test_tolerance_ends_the_repetitions(host, models, monkeypatch):
    calls = []
    predict = host.inversion.Path.predict
    monkeypatch.setattr(host.inversion.Path, "predict", lambda self, *a: calls.append(1) or predict(self, *a))
    run(host, models("Sana"), host.inversion.inversion("fixed point", 20, 0.05))
    assert STEPS * 2 <= len(calls) < STEPS * 21


def test_midpoint_is_of_second_order_and_for_flows(host, models):
    """With twice the steps its error falls by more than half, and the plain one's by less."""
    case, found = models("Sana"), {}
    for method, back in (("midpoint", host.inversion.way_back("midpoint")), ("plain", euler(host))):
        for steps in (16, 32):
            sigmas = host.sampling.sana_sigmas(case[0], steps)
            noise = run(host, case, host.inversion.inversion(method, 1, 0.0), sigmas=sigmas)
            found[method, steps] = apart(run(host, case, back, noise, sigmas=sigmas), case[1])
    assert found["midpoint", 32] < 0.5 * found["midpoint", 16] and found["midpoint", 32] < 0.5 * found["plain", 32]
    assert found["plain", 32] > 0.5 * found["plain", 16]
    with pytest.raises(ValueError, match="for flow models"):
        run(host, models("5B"), host.inversion.inversion("midpoint", 1, 0.0))


@pytest.mark.parametrize("name", ["2B", "5B"])
def test_a_plain_step_by_the_equations(host, models, name):
    """In alphas and v, in float64: facts/training.md 6.3."""
    case, params = models(name), video_model.VARIANTS[name]
    found = run(host, case, host.inversion.inversion("plain", 1, 0.0), cfg=3.0)
    v, alphas = velocity_of(params, 3.0), schedule.alphas_cumprod(params.snr_shift_scale)
    x, below = case[1].double() * params.scaling_factor, 1.0
    for timestep in schedule.trailing_timesteps(STEPS)[::-1]:
        above = float(alphas[timestep])
        c = math.sqrt(below * above) + math.sqrt((1 - below) * (1 - above))
        d = math.sqrt(below * (1 - above)) - math.sqrt(above * (1 - below))
        x, below = c * x + d * v(x.float(), timestep).double(), above
    # The host's last level has a little of the latent in it, which it adds by itself.
    assert apart(found, x.float()) < 2e-3


def test_an_odd_clip_of_1_5_keeps_its_extra_latent(host, models):
    case = models("1.5")
    assert case[1].shape[2] % 2
    noise = run(host, case, host.inversion.inversion("edict", 1, 0.0))
    back = run(host, case, host.inversion.way_back("edict"), noise)
    assert apart(back[:, :, :1], case[1][:, :, :1]) < 2e-3  # without what stood in front this frame would differ


def test_rf_inversion_goes_to_its_noise_and_back_to_the_source(host, models):
    for name in ("Sana", "5B"):
        case = models(name)
        drawn = torch.randn(case[1].shape, generator=torch.Generator().manual_seed(9))
        noise = run(host, case, host.inversion.rf_inversion(1.0, 9))
        assert apart(noise, drawn) < 0.05
        for eta, least, most in ((1.0, 0.0, 1e-3), (0.0, 0.05, 99.0)):
            back = run(host, case, host.inversion.rf_sampler(eta, 1.0), noise)
            assert least <= apart(back, case[1]) <= most


def test_sigmas_that_are_turned_round_are_refused(host, models):
    case = models("Sana")
    for wrong in (case[4].flip(0), case[4][:-1], case[4][-2:]):
        with pytest.raises(ValueError, match="without FlipSigmas"):
            run(host, case, host.inversion.inversion("fixed point", 3, 0.0), sigmas=wrong)


def test_edict_of_a_noise_that_nobody_inverted_is_refused(host, models):
    case = models("Sana")
    with pytest.raises(ValueError, match="Run the inversion again"):
        run(host, case, host.inversion.way_back("edict"), torch.ones_like(case[1]))


def test_the_noise_has_to_fit(host):
    noise = host.noise.LatentNoise({"samples": torch.ones(1, 32, 4, 4)})
    assert noise.generate_noise({"samples": torch.zeros(1, 32, 4, 4)}).equal(torch.ones(1, 32, 4, 4))
    with pytest.raises(ValueError, match="another size"):
        noise.generate_noise({"samples": torch.zeros(1, 32, 4, 8)})
