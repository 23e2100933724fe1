"""Sana Sprint: one to four steps from conditioning to latent."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch

from ...sana_core.config import SanaParams
from ...sana_core.sampling import sample_scm, sprint_sigmas
from ..compat import EMPTY_LATENT_RATIOS, fixed_empty_samples


def scm() -> comfy.samplers.KSAMPLER:
    """Sprint's sampler for SamplerCustom and SamplerCustomAdvanced."""
    return comfy.samplers.KSAMPLER(sample_scm)


def sigmas(steps: int, denoise: float = 1.0) -> torch.Tensor:
    """SIGMAS of Sprint -> (steps + 1,). denoise < 1: the last `steps` of steps / denoise, as the host's schedulers do; 0
    gives none. Raises ValueError below 1 step."""
    if denoise <= 0.0:
        return torch.empty(0)
    return sprint_sigmas(max(steps, int(steps / denoise)) if steps > 0 else steps)[-(steps + 1):]


class PositiveGuider(comfy.samplers.CFGGuider):
    """A guider for a model that has guidance built in: one evaluation a step, no negative prompt."""

    def set_conds(self, positive):
        self.inner_set_conds({"positive": positive})


def sample_sprint(model, positive, latent: dict, steps: int, guidance: float, seed: int, denoise: float = 1.0) -> dict:
    """LATENT of a Sprint model. guidance: what it was trained with is 4 to 5. Raises ValueError for another model."""
    params = getattr(model.model.model_config, "params", None)
    if not (isinstance(params, SanaParams) and params.guidance_embeds):
        raise ValueError("This is no Sana Sprint model: it has no guidance built in, and one to four steps are too few for "
                         "it. Load a Sprint model with Load Sana Model, or use KSampler.")
    levels = sigmas(steps, denoise)
    samples = fixed_empty_samples(model, latent)
    latent = {key: value for key, value in latent.items() if key not in EMPTY_LATENT_RATIOS}  # they are done with
    if len(levels) < 2:
        return latent | {"samples": samples}
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    guider = PositiveGuider(model)
    guider.set_conds(node_helpers.conditioning_set_values(positive, {"guidance": guidance}))
    out = guider.sample(noise, samples, scm(), levels, denoise_mask=latent.get("noise_mask"),
                        callback=latent_preview.prepare_callback(model, steps),
                        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed)
    return latent | {"samples": out.to(comfy.model_management.intermediate_device())}
