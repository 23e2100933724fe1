"""Calibration of a model's file outside the canvas, for run.py convert: prompts in, the largest input of each layer out."""

from __future__ import annotations

from pathlib import Path

import torch

from .cogvideox import model as cogvideox
from .cogvideox.text import load_t5
from .quantise import kept_layers, largest_inputs, layers_to_quantise, shapes_of
from .sana import model as sana
from .sana.text import encode_prompt, load_text_encoder
from .sana_video import model as sana_video

CLIP = (5, 30, 52)  # latent frames, height and width of a SANA-Video clip, for the same reason
FRAMES = 17  # of a CogVideoX clip: the size of the inputs hardly depends on the length, the time does
PROMPTS = ("a red fox in the snow at sunrise, photograph", "a crowded market street at night, neon signs, rain",
           "a portrait of an old woman, oil painting", "a yellow car driving along the coast, seen from above")


@torch.inference_mode()  # as the host runs its nodes
def largest_inputs_of_file(path: Path, family: str, text_encoder: Path, prompts=PROMPTS, steps: int = 8) -> dict[str, float]:
    """{layer: largest magnitude of its inputs} of a transformer's file, over `steps` of sampling of each prompt.

    family: a name of FAMILIES. Pictures and clips have the size that the model was made for. Raises what the loaders
    of the family and quantise.largest_inputs do.
    """
    model, positives, negative, latent, cfg = FAMILIES[family](path, text_encoder, prompts)
    names = layers_to_quantise(shapes_of(model), "fp8", kept_layers(model))
    found = {}
    for positive in positives:
        for name, value in largest_inputs(model, names, positive, negative, latent, steps, cfg).items():
            found[name] = max(value, found.get(name, 0.0))
    return found


def _sana(path, text_encoder, prompts):
    model, clip = sana.load_sana(path), load_text_encoder(text_encoder)
    side = model.model.model_config.params.sample_size * sana.PIXELS
    return (model, [encode_prompt(clip, prompt, True) for prompt in prompts], encode_prompt(clip, "", False),
            sana.empty_latent(side, side, 1), 4.5)


def _sana_video(path, text_encoder, prompts):
    model, clip = sana_video.load_sana_video(path), load_text_encoder(text_encoder)
    return (model, [encode_prompt(clip, prompt, True) for prompt in prompts], encode_prompt(clip, "", False),
            sana_video.empty_latent(model, CLIP), 6.0)


def _cogvideox(path, text_encoder, prompts):
    model, clip = cogvideox.load_cogvideox(path), load_t5(text_encoder)
    params = model.model.model_config.params
    width, height = params.sample_width * cogvideox.PIXELS, params.sample_height * cogvideox.PIXELS
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in (*prompts, "")]
    return model, encoded[:-1], encoded[-1], cogvideox.empty_latent(width, height, FRAMES), 6.0


FAMILIES = {"sana": _sana, "sana_video": _sana_video, "cogvideox": _cogvideox}
