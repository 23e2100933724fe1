"""FlowEdit (arXiv 2412.08629): along the difference of what a model makes of a source prompt and of a target prompt.

The edited latent z begins as the source. At each level the source is noised to x_s, z to x_t = z + x_s - source, and z
follows the difference of the two velocities. In the words of the host's samplers that is a model which believes in
source + clean(x_t) - clean(x_s): any of them walks the way, Euler as the paper does.
"""

from __future__ import annotations

import comfy.model_sampling
import comfy.samplers
import torch

from ..samplers import check_sampling
from .path import as_flow, check_whole, from_flow


class FlowEdit(comfy.samplers.CFGGuider):
    """A GUIDER of four conditionings. skip: steps left out at the start, which keeps more of the source. refine: steps at
    the end that are plain sampling of the target. averages: noises a step, whose differences are averaged."""

    def __init__(self, model, source, target, source_cfg=1.0, target_cfg=2.0, skip=0, refine=0, averages=1):
        super().__init__(model)
        sampling = model.get_model_object("model_sampling")
        self.flow = isinstance(sampling, comfy.model_sampling.CONST)
        if not self.flow:
            check_sampling(sampling)
        if averages < 1 or skip < 0 or refine < 0:
            raise ValueError(f"FlowEdit: averages {averages}, skip {skip}, refine {refine}; at least 1, 0 and 0 are needed.")
        self.inner_set_conds({"positive": target[0], "negative": target[1],
                              "source": source[0], "source_negative": source[1]})
        self.set_cfg(target_cfg)
        self.source_cfg, self.skip, self.refine, self.averages = source_cfg, skip, refine, averages
        self.plain = False

    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        if len(sigmas) < 2:
            return latent_image
        check_whole(sigmas)
        check_source(latent_image)
        if not isinstance(sampler, comfy.samplers.KSAMPLER):
            raise ValueError("FlowEdit walks with the samplers of KSamplerSelect; euler is the paper's. This one is none of "
                             "them.")
        steps = len(sigmas) - 1
        if self.skip + self.refine > steps or self.skip >= steps:
            raise ValueError(f"FlowEdit: skip {self.skip} and refine {self.refine} are more than the {steps} steps of these "
                             "sigmas.")
        return super().sample(noise, latent_image, Walk(self, sampler, steps - self.refine - self.skip), sigmas[self.skip:],
                              *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        """x and timestep are the flow's, also where the model is a CogVideoX."""
        if self.plain:
            return self._clean(x, timestep, model_options, seed, "positive", "negative", self.cfg)
        sigma = timestep.reshape(-1, *[1] * (x.ndim - 1)).to(x)
        change = torch.zeros_like(x)
        for _ in range(self.averages):
            noise = torch.randn(x.shape, generator=self.generator).to(x)
            source = (1.0 - sigma) * self.start + sigma * noise
            target = x + source - self.start
            change += self._clean(target, timestep, model_options, seed, "positive", "negative", self.cfg)
            change -= self._clean(source, timestep, model_options, seed, "source", "source_negative", self.source_cfg)
        return self.start + change / self.averages

    def _clean(self, x, sigma, model_options, seed, positive, negative, cfg):
        if not self.flow:
            x, sigma = from_flow(x, sigma, self.inner_model.model_sampling)
        conds = self.conds.get(negative), self.conds.get(positive)
        return comfy.samplers.sampling_function(self.inner_model, x, sigma, *conds, cfg, model_options=model_options,
                                                seed=seed)


class Walk(comfy.samplers.Sampler):
    """The sampler as FlowEdit lets it walk: from the source, in the flow's levels, at last plainly from where it came."""

    def __init__(self, guider, sampler, edited):
        self.guider, self.sampler, self.edited = guider, sampler, edited

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        guider, sampler = self.guider, self.sampler
        guider.start, guider.plain = latent_image, False
        # Of its own: with the seed itself the host has drawn the first noise.
        guider.generator = torch.Generator().manual_seed(((extra_args.get("seed") or 0) + 1) % 2**64)
        levels = sigmas if guider.flow else as_flow(sigmas)
        model = Masked(model_wrap, latent_image, denoise_mask)
        total, x = len(levels) - 1, latent_image.clone()

        def walk(x, levels, done):
            shown = callback and (lambda now: callback(done + now["i"], now["denoised"], now["x"], total))
            return sampler.sampler_function(model, x, levels, extra_args=dict(extra_args), disable=disable_pbar,
                                            callback=shown or (lambda now: None), **sampler.extra_options)
        if self.edited:
            x = walk(x, levels[:self.edited + 1], 0)
        if self.edited < total:
            sigma = levels[self.edited]
            guider.plain = True
            drawn = torch.randn(x.shape, generator=guider.generator).to(x)
            x = walk(x + sigma * (drawn - latent_image), levels[self.edited:], self.edited)
        return x


class Masked:
    """The model as samplers call it, with the source kept outside the mask."""

    def __init__(self, model, source, mask):
        self.inner_model, self.latent_image, self.mask, self.noise = model, source, mask, torch.zeros_like(source)

    def __call__(self, x, sigma, denoise_mask=None, model_options={}, seed=None):
        out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
        return out if self.mask is None else out * self.mask + self.latent_image * (1.0 - self.mask)


def check_source(latent) -> None:
    """Raise ValueError for a latent that shows nothing to edit."""
    if not latent.any():
        raise ValueError("FlowEdit changes a picture or clip that is there, and this latent is empty. Connect the source, "
                         "encoded by the model's VAE, to the sampler's latent_image.")
