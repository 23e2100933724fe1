"""The tiny Sana transformer: its size, its first weights, and its examination."""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import gemma
from .autoencoder import LATENT_SCALE, to_numpy
from ...evaluation.drawn import judge, shapes, words
from ...evaluation.drawn.obedience import obeys
from ...evaluation.figures import together
from ...sana_core.config import SanaParams
from ...sana_core.transformer import SanaTransformer

SHIFT = 3.0

PARAMS = SanaParams(
    num_layers=6, num_attention_heads=4, attention_head_dim=32, num_cross_attention_heads=4, cross_attention_head_dim=32,
    caption_channels=96, qk_norm=True, sample_size=8, interpolation_scale=1.0, flow_shift=SHIFT)


def build() -> SanaTransformer:
    """The tiny transformer with random weights; it starts out predicting zero."""
    model = SanaTransformer(PARAMS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale_shift_table"):
                parameter.zero_()
                if parameter.shape[0] == 6:
                    parameter[[2, 5]] = 0.3  # the gates
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        nn.init.normal_(model.time_embed.linear.weight, std=0.02)
        nn.init.zeros_(model.proj_out.weight)
    return model


@torch.no_grad()
def sample(model: SanaTransformer, states, mask, empty_states, empty_mask, *, steps: int = 20, guidance: float = 4.5,
           seeds: list[int]) -> torch.Tensor:
    """Euler over the shifted schedule with classifier-free guidance -> latents (B, 32, 8, 8), scaled.

    states (B, T, 96), mask (B, T); empty_* the same for the empty prompt, of batch 1. One seed a picture."""
    device = states.device
    x = torch.stack([torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(device)
    t = torch.linspace(1, 0, steps + 1)
    sigmas = (SHIFT * t / (1 + (SHIFT - 1) * t)).tolist()
    pad = states.shape[1] - empty_states.shape[1]
    context = torch.cat([states, F.pad(empty_states, (0, 0, 0, pad)).expand_as(states)])
    keep = torch.cat([mask, F.pad(empty_mask, (0, pad)).expand_as(mask)])
    for now, then in zip(sigmas, sigmas[1:]):
        v, v_empty = model(torch.cat([x, x]), torch.full((2 * len(x),), 1000 * now, device=device), context, keep).chunk(2)
        x = x + (then - now) * (v_empty + guidance * (v - v_empty))
    return x


def figures_of(pictures: np.ndarray, scenes: torch.Tensor, named: list[bool]) -> dict[str, float]:
    """Shares of pictures (N, H, W, 3) in [0, 1] that obey: each attribute, colours together, colours and shape together;
    place only where the prompt names one. `fit`: mean overlap (intersection over union) of what was drawn with the ideal shape
    that it is nearest to, at its place and size."""
    verdicts = [judge.judge(picture) for picture in pictures]
    seen = {k: np.array(v) for k, v in judge.agreed(verdicts, scenes).items()}
    both = seen["colour"] & seen["background"]
    figures = {k: float(v.mean()) for k, v in seen.items()}
    figures["place"] = float(seen["place"][np.array(named)].mean())
    figures["fit"] = float(np.mean([verdict.overlap for verdict in verdicts]))
    return figures | {"colour+background": float(both.mean()), "colour+background+shape": float((both & seen["shape"]).mean())}


@torch.no_grad()
def drawn(model, autoencoder, text, tokenizer, prompts: list[str], *, instruction: bool = False, steps: int = 20,
          guidance: float = 4.5, seed: int = 0, sampler=sample) -> torch.Tensor:
    """Draw prompt i from seed + i by `sampler` -> pictures (N, 3, 256, 256) in [-1, 1]."""
    states, mask = gemma.encode_prompts(text, tokenizer, prompts, instruction)
    empty = gemma.encode_prompts(text, tokenizer, [""], False)
    latents = sampler(model, states, mask, *empty, steps=steps, guidance=guidance, seeds=[seed + i for i in range(len(prompts))])
    return torch.cat([autoencoder.decode(z / LATENT_SCALE).float().cpu() for z in latents.split(16)])


def evaluate(model, autoencoder, text, tokenizer, *, count: int = 64, cases=shapes.evaluation_scenes,
             **settings) -> tuple[dict[str, float], torch.Tensor]:
    """Draw the first `count` of the held-out prompts that `cases` gives, with `drawn`'s settings -> (figures, pictures)."""
    scenes, prompts, named = (part[:count] for part in cases())
    pictures = drawn(model, autoencoder, text, tokenizer, prompts, **settings)
    return figures_of(to_numpy(pictures), scenes, named), pictures


SEVERAL = {"two shapes": words.two_shapes, "one to three": words.counting}


def evaluate_several(model, autoencoder, text, tokenizer, *, count: int = 64,
                     **settings) -> tuple[dict[str, dict[str, float]], torch.Tensor]:
    """As evaluate, for the first `count` of each of SEVERAL -> ({which: `together`'s figures},
    pictures of each, one after the other)."""
    figures, sheets = {}, []
    for name, cases in SEVERAL.items():
        prompts = cases()[:count]
        pictures = drawn(model, autoencoder, text, tokenizer, prompts, **settings)
        figures[name] = together([{"obeys": obeys(picture[None], words.read(prompt))}
                                  for picture, prompt in zip(to_numpy(pictures), prompts)])
        sheets.append(pictures)
    return figures, torch.cat(sheets)
