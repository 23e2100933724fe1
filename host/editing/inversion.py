"""From a latent to the noise that the sampler turns back into it, and, where it takes a sampler of its own, back.

- plain: the sampler's step with the prediction of where it comes from. Quick and rough.
- fixed point: solves the sampler's own equation for where the step came from, by repetition.
- midpoint: a step of second order, with its sampler; flow models.
- edict: two latents that lead each other in turn, so that each step can be undone exactly at any guidance
  (arXiv 2211.12446).
- rf: a flow that is drawn to a given noise on the way up, and to the source on the way down (arXiv 2410.10792).
"""

from __future__ import annotations

import comfy.samplers
import torch
from tqdm.auto import trange

from ..kept import Kept
from .path import SMALLEST_LEVEL, Level, Path, check_flow

METHODS = ("fixed point", "plain", "midpoint", "edict")
WAYS_BACK = ("midpoint", "edict")
MIXING = 0.93  # of EDICT's two latents after each step, as its authors have it
_PARTNERS = Kept(64)


class Inversion(comfy.samplers.KSAMPLER):
    """A SAMPLER whose result is noise. What is done around a sampling asks for it by this type."""


def inversion(method: str, iterations: int, tolerance: float) -> Inversion:
    """SAMPLER that gives the noise of the latent it is given, for the falling sigmas that it is to be sampled with.

    iterations, tolerance: of `fixed point`, most repetitions a step and the relative change that ends them.
    """
    return Inversion(_invert, extra_options={"method": method, "iterations": iterations, "tolerance": tolerance})


def way_back(method: str) -> comfy.samplers.KSAMPLER:
    """SAMPLER that goes back the way that `inversion` of the same method came."""
    return comfy.samplers.KSAMPLER({"midpoint": sample_midpoint, "edict": sample_edict}[method])


def rf_inversion(gamma: float, seed: int) -> Inversion:
    """SAMPLER to noise, which is drawn to a noise of the seed: gamma 0 not at all, 1 straight."""
    return Inversion(_invert_rf, extra_options={"gamma": gamma, "noise_seed": seed})


def rf_sampler(eta: float, end: float) -> comfy.samplers.KSAMPLER:
    """SAMPLER to a picture that is drawn to the latent given beside the noise: eta 0 not at all, 1 straight, in the first
    share `end` of the steps."""
    return comfy.samplers.KSAMPLER(sample_rf, extra_options={"eta": eta, "end": end})


class Progress:
    """Walks over steps, with a bar and the host's callback."""

    def __init__(self, callback, disable):
        self.callback, self.disable = callback, disable

    def over(self, levels):
        """(level, the next one) for each step."""
        for i in trange(len(levels) - 1, disable=self.disable):
            self.i = i
            yield levels[i], levels[i + 1]

    def show(self, x, clean, level):
        if self.callback is not None:
            self.callback({"x": x, "i": self.i, "sigma": level.sigma, "sigma_hat": level.sigma, "denoised": clean})


# --- to noise ---


def _invert(model, x, sigmas, extra_args=None, callback=None, disable=None, method="fixed point", iterations=3,
            tolerance=1e-3):
    """The host's sampler function. The source is the run's latent; x, which the host made of it with noise, is not used."""
    path = Path(model, extra_args)
    if method == "midpoint":
        check_flow(path, "The midpoint method")
    rising = path.levels(sigmas)[::-1]
    progress = Progress(callback, disable)
    source = model.latent_image.clone()
    if method == "edict":
        x, partner = edict_up(path, source, rising, progress)
        return _result(path, x, rising[-1], sigmas, partner)
    if method == "midpoint":
        x = midpoint_up(path, source, rising, progress)
    else:
        x = fixed_point_up(path, source, rising, progress, iterations if method == "fixed point" else 0, tolerance)
    return _result(path, x, rising[-1], sigmas)


def _result(path, x, level, sigmas, partner=None):
    """The noise as the host is to hand it out: it takes it for a latent of the model and will scale it as one."""
    inner = path.model.inner_model.inner_model
    latent = path.model.latent_image
    given = inner.process_latent_in(path.noise_of(x, level, sigmas, latent))
    if partner is not None:
        noise = inner.process_latent_out(given.clone().to(torch.float32))  # to the bit what comes back
        _PARTNERS.keep(noise, path.noise_of(partner, level, sigmas, latent))
    return given


def fixed_point_up(path, x, rising, progress, iterations, tolerance):
    """x (B, ...) at the first level -> at the last. The step from y down to x is x = c * y + d * velocity(y)."""
    for below, above in progress.over(rising):
        up, down = path.move(below, above), path.move(above, below)
        velocity, clean = path.predict(x, above)
        y = up[0] * x + up[1] * velocity
        for _ in range(iterations):
            velocity, clean = path.predict(y, above)
            last, y = y, (x - down[1] * velocity) / down[0]
            if (y - last).norm() <= tolerance * y.norm():
                break
        x = y
        progress.show(x, clean, above)
    return x


def midpoint_up(path, x, rising, progress):
    for below, above in progress.over(rising):
        x, clean = midpoint_step(path, x, below, above)
        progress.show(x, clean, above)
    return x


def midpoint_step(path, x, level, to):
    """One step of second order of a flow, up or down -> (x, clean latent of its middle)."""
    start = level if level.b >= SMALLEST_LEVEL else _small(level)
    middle = path.between(level, to)
    velocity, _ = path.predict(x, start)
    velocity, clean = path.predict(x + (middle.b - level.b) * velocity, middle)
    return x + (to.b - level.b) * velocity, clean


def _small(level):
    return Level(level.sigma.new_tensor(SMALLEST_LEVEL), 1.0 - SMALLEST_LEVEL, SMALLEST_LEVEL)


def edict_up(path, source, rising, progress):
    """(x, its partner): undoes `edict_step` from the clean latent, which both begin with, to noise."""
    x = y = source
    for below, above in progress.over(rising):
        c, d = path.move(above, below)
        y = (y - (1.0 - MIXING) * x) / MIXING
        x = (x - (1.0 - MIXING) * y) / MIXING
        y = (y - d * path.predict(x, above)[0]) / c
        velocity, clean = path.predict(y, above)
        x = (x - d * velocity) / c
        progress.show(x, clean, above)
    return x, y


def _invert_rf(model, x, sigmas, extra_args=None, callback=None, disable=None, gamma=0.5, noise_seed=0):
    path = Path(model, extra_args, flow=True)
    rising = path.levels(sigmas)[::-1]
    progress = Progress(callback, disable)
    x = model.latent_image.clone()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(noise_seed)).to(x)
    for below, above in progress.over(rising):
        velocity, clean = path.predict(x, above)
        velocity = velocity + gamma * ((noise - x) / (1.0 - below.b) - velocity)
        x = x + (above.b - below.b) * velocity
        progress.show(x, clean, above)
    return _result(path, x, rising[-1], sigmas)


# --- and back ---


def sample_midpoint(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The host's sampler function: Euler's midpoint method on a flow, two evaluations a step."""
    path = Path(model, extra_args)
    check_flow(path, "The midpoint method")
    progress = Progress(callback, disable)
    levels = path.levels(sigmas)
    for level, to in progress.over(levels):
        x, clean = midpoint_step(path, x, level, to)
        progress.show(x, clean, level)
    return x


def sample_edict(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The host's sampler function: two coupled latents, of which the first is given back."""
    path = Path(model, extra_args)
    levels = path.levels(sigmas)
    partner = _PARTNERS.of(model.noise)
    if partner is None:
        raise ValueError("EDICT samples from the noise that an inversion by `edict` gave in this session, as it is, by way "
                         "of Latent as Noise; this noise is not one. Run the inversion again, or take another sampler.")
    x, y = (path.begun(noise, levels[0], sigmas, model.latent_image) for noise in (model.noise, partner))
    progress = Progress(callback, disable)
    for level, to in progress.over(levels):
        c, d = path.move(level, to)
        velocity, clean = path.predict(y, level)
        x = c * x + d * velocity
        y = c * y + d * path.predict(x, level)[0]
        x = MIXING * x + (1.0 - MIXING) * y
        y = MIXING * y + (1.0 - MIXING) * x
        progress.show(x, clean, level)
    return x


def sample_rf(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=0.9, end=0.4):
    """The host's sampler function: Euler on the flow, drawn to the latent that the run was given."""
    path = Path(model, extra_args, flow=True)
    levels = path.levels(sigmas)
    x = path.begun(model.noise, levels[0], sigmas, model.latent_image)
    progress = Progress(callback, disable)
    for level, to in progress.over(levels):
        velocity, clean = path.predict(x, level)
        if progress.i < end * (len(levels) - 1):
            velocity = velocity + eta * ((x - model.latent_image) / level.b - velocity)
        x = x + (to.b - level.b) * velocity
        progress.show(x, clean, level)
    return x
