"""A model's way from clean to noise, with one set of formulas for both families.

A state is x = a * clean + b * noise. The network's prediction is put as a velocity, in which a step of the deterministic
sampler (DDIM for CogVideoX, Euler for a flow) from one level to another is x' = c * x + d * velocity, and can be
turned round.

CogVideoX: a = sqrt(alpha), b = sqrt(1 - alpha), velocity v. Flow: a = 1 - sigma, b = sigma, velocity noise - clean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import comfy.model_sampling
import comfy.samplers
import torch

from ..samplers import alphas_of, check_sampling, fed

SMALLEST_LEVEL = 0.001  # of a flow: below it the host's x0 says too little of the velocity


class Level(NamedTuple):
    """sigma: the host's noise level, of no dimension. a, b: shares of clean and noise."""

    sigma: torch.Tensor
    a: float
    b: float


class Path:
    """The way of the model that a sampler function of the host was given.

    model: the sampler's first argument. extra_args: its arguments for the model, taken without a mask. flow: walk a
    CogVideoX as the flow that it is in another scale, too.
    """

    def __init__(self, model, extra_args, flow=False):
        self.model = model
        self.extra_args = {**(extra_args or {}), "denoise_mask": None}
        self.sampling = model.inner_model.inner_model.model_sampling
        self.is_flow = isinstance(self.sampling, comfy.model_sampling.CONST)
        if not self.is_flow:
            check_sampling(self.sampling)
        self.as_flow = self.is_flow or flow

    def levels(self, sigmas):
        """A `Level` for each of sigmas (n,). Raises ValueError unless they fall, to 0 at last."""
        check_whole(sigmas)
        if self.is_flow:
            return [Level(sigma, 1.0 - float(sigma), float(sigma)) for sigma in sigmas.double()]
        roots = [(math.sqrt(alpha), math.sqrt(1.0 - alpha)) for alpha in alphas_of(sigmas)]
        return [Level(sigma, a / (a + b), b / (a + b)) if self.as_flow else Level(sigma, a, b)
                for sigma, (a, b) in zip(sigmas.double(), roots)]

    def between(self, level, other):
        """The level half way between two, of a flow by itself."""
        sigma = (level.sigma + other.sigma) / 2.0
        return Level(sigma, 1.0 - float(sigma), float(sigma))

    def host_scale(self, level) -> float:
        """What a state is multiplied by to be the host's, in whose words it is clean + sigma * noise or that of a flow."""
        return 1.0 if self.is_flow else float((1.0 + level.sigma**2).sqrt()) * self._scale(level)

    def _scale(self, level) -> float:
        """From this path's scale to variance 1."""
        return 1.0 / math.hypot(level.a, level.b) if self.as_flow else 1.0

    def predict(self, x, level):
        """(velocity, clean latent) that the model believes in, both like x (B, ...), at a level with noise."""
        sigma = level.sigma.to(x.dtype)
        ones = x.new_ones(x.shape[0])
        if self.is_flow:
            clean = self.model(x, sigma * ones, **self.extra_args)
            return (x - clean) / sigma, clean
        whole = x * self._scale(level)
        clean = self.model(fed(whole, sigma, self.sampling), sigma * ones, **self.extra_args)
        # The host's last sigma is finite, where the path's is not: v is what both have in common.
        root = 1.0 / float(1.0 + level.sigma**2) ** 0.5
        v = (root * whole - clean) / math.sqrt(1.0 - root**2)
        if not self.as_flow:
            return v, level.a * x - level.b * v
        both = math.hypot(level.a, level.b)
        clean = (level.a * whole - level.b * v) / both
        return (x - clean) / level.b, clean

    def move(self, level, to):
        """(c, d) of a step from a level to another, in either direction."""
        if self.as_flow:
            return 1.0, to.b - level.b
        return level.a * to.a + level.b * to.b, level.a * to.b - level.b * to.a

    def begun(self, noise, level, sigmas, latent):
        """The state, at the first level, of a run of sigmas that the host begins with noise and latent (B, ...)."""
        return self._started(noise, latent, sigmas) / self.host_scale(level)

    def noise_of(self, x, level, sigmas, latent):
        """The noise (B, ...) of which `begun` makes the state x."""
        one = x.new_ones([1] * x.ndim)
        from_latent = self._started(torch.zeros_like(x), latent, sigmas)
        return (x * self.host_scale(level) - from_latent) / self._started(one, 0.0 * one, sigmas)

    def _started(self, noise, latent, sigmas):
        host = self.model.inner_model
        full = comfy.samplers.Sampler().max_denoise(host, sigmas)
        return self.sampling.noise_scaling(sigmas[0].to(noise.dtype), noise.clone(), latent, full)


def as_flow(sigmas):
    """sigmas (n,) of a CogVideoX as levels of the flow that it is in another scale, the infinite one as 1 less a little."""
    sigmas = sigmas.double()
    return (sigmas / (1.0 + sigmas)).float()


def from_flow(x, levels, sampling):
    """(state as the host feeds it, its sigmas (B,)) of a CogVideoX for a state x (B, ...) of that flow at levels (B,)."""
    levels = levels.double()
    sigmas = (levels / (1.0 - levels)).clamp(max=float(sampling.sigma_max)).to(x.dtype)
    each = sigmas.reshape(-1, *[1] * (x.ndim - 1))
    return fed(x * (1.0 + each) / (1.0 + each**2).sqrt(), each, sampling), sigmas


def check_whole(sigmas) -> None:
    """Raise ValueError unless sigmas (n,) fall to 0, as those that a run is sampled with do."""
    values = sigmas.double().tolist()
    if len(values) < 3 or values[-1] != 0.0 or any(after >= before for before, after in zip(values, values[1:])):
        some = ", ".join(f"{value:g}" for value in values[:6]) + " ..." * (len(values) > 6)
        raise ValueError("Inversion and editing want the sigmas that the result is sampled with, two steps or more, falling "
                         f"to 0; these are {some}. Take CogVideoX Sigmas, Sana Sigmas or BasicScheduler, whole and without "
                         "FlipSigmas: an inversion turns them round by itself, and does not compute at the clean end, where "
                         "the model has learned nothing.")


def check_flow(path: Path, what: str) -> None:
    """Raise ValueError for a model that is no flow."""
    if not path.is_flow:
        raise ValueError(f"{what} is for flow models, such as Sana. For CogVideoX take `fixed point`.")
