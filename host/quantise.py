"""A loaded MODEL, quantised and saved: calibration, then a file in ComfyUI's format, layer by layer."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import comfy.lora
import comfy.model_management as mm
import comfy.sample
import comfy.utils
import folder_paths
import torch

from ..cogvideo_core import precision as cogvideo_precision
from ..kernels.calibration import LargestInputs
from ..kernels.quant import FORMATS, fits
from ..kernels.quant_layers import quantised, reason_to_keep, summary, to_metadata
from ..sana_core import precision as sana_precision
from ..sana_core import video_precision as sana_video_precision
from ..storage.checkpoints import write_converted
from .cogvideox.model import CogVideoXModel
from .compat import fixed_empty_samples, has_quantised_layers
from .sana.model import SanaModel
from .sana_video.model import SanaVideoModel

FOLDER = "diffusion_models"  # in the output folder, where the host's loaders look too
PREFIX = "diffusion_model."
PRECISION = {SanaModel: sana_precision, SanaVideoModel: sana_video_precision, CogVideoXModel: cogvideo_precision}


def save_quantised(model, kind: str, filename_prefix: str, positive=None, negative=None, latent=None, steps: int = 4,
                   cfg: float = 4.5) -> str:
    """Write `model`, with the LoRAs on it, to the output folder; returns lines for people, the first of which is the path.

    kind: a name of quant.FORMATS. positive, negative (CONDITIONING) and latent (LATENT): what fp8 is calibrated with, by
    `steps` of sampling at `cfg`; without them its products stay in full precision. Raises ValueError, before anything is
    written, for a model of another family and for one that is quantised already.
    """
    kept = kept_layers(model)
    if (positive is None) != (latent is None):
        raise ValueError("Calibration needs a prompt and a latent: connect both positive and latent, or neither.")
    weights = model.get_key_patches(PREFIX)
    shapes = shapes_of(model)
    largest = {}
    if kind == "fp8" and positive is not None:
        names = layers_to_quantise(shapes, kind, kept)
        largest = largest_inputs(model, names, positive, positive if negative is None else negative, latent, steps, cfg)

    def change(part):
        part = {key: patched(weights[PREFIX + key], tensor, PREFIX + key) for key, tensor in part.items()}
        return quantised(part, kind, kept, largest)

    entries = {}

    def metadata(found):
        entries.update(found)
        config = json.dumps(dataclasses.asdict(model.model.model_config.params))
        return {"format": "pt", "config": config} | to_metadata(found)

    path = free_path(filename_prefix)
    parts = [{key.removeprefix(PREFIX): entry[0][0].detach()} for key, entry in weights.items()]
    write_converted(path, parts, change, metadata, interruptible)
    name = path.relative_to(folder_paths.get_output_directory()).as_posix()
    return "\n".join([f"{name}, {path.stat().st_size / 1e6:,.1f} MB", *summary(shapes, entries, kept)])


def kept_layers(model) -> tuple:
    """The table of what stays in 16 bits in a MODEL. Raises ValueError."""
    kept = next((module.KEPT for kind, module in PRECISION.items() if isinstance(model.model, kind)), None)
    if kept is None:
        raise ValueError(f"This is a {type(model.model).__name__} model: only Sana and CogVideoX models from Load Sana Model, Load "
                         "SANA-Video Model and Load CogVideoX Model are quantised here.")
    if has_quantised_layers(model.model.model_config):
        raise ValueError("This model is quantised already: load the file that it was made from, or choose weight_dtype bf16 in "
                         "its loader.")
    return kept


def shapes_of(model) -> dict[str, tuple]:
    """{canonical key: shape} of a MODEL's weights."""
    return {key.removeprefix(PREFIX): tuple(entry[0][0].shape) for key, entry in model.get_key_patches(PREFIX).items()}


def layers_to_quantise(shapes: dict[str, tuple], kind: str, kept) -> list[str]:
    """Names of the Linear layers that `quantised` would turn into the format `kind`."""
    return [layer for key, shape in shapes.items() if (layer := key.removesuffix(".weight")) != key and fits(shape, kind)
            and reason_to_keep(layer, kept) is None]


def largest_inputs(model, names, positive, negative, latent, steps, cfg) -> dict[str, float]:
    """{layer: largest magnitude of its inputs} over a short sampling run."""
    samples = fixed_empty_samples(model, latent)
    if getattr(model.model.model_config.params, "guidance_embeds", False):
        cfg = 1.0  # Sprint has its guidance built in
    bar = comfy.utils.ProgressBar(steps)
    with LargestInputs(model.model.diffusion_model, names) as seen:
        comfy.sample.sample(model, comfy.sample.prepare_noise(samples, 0), steps, cfg, "euler", "simple", positive, negative,
                            samples, seed=0, callback=lambda step, *_: bar.update_absolute(step + 1, steps))
    return seen.values()


def patched(entry, tensor, key):
    """A weight with the LoRAs on it. entry: of ModelPatcher.get_key_patches; tensor: its weight, or one on meta."""
    patches = entry[1:]
    if tensor.device.type == "meta":
        return tensor
    weight = tensor.to(mm.get_torch_device())
    if not patches:
        return weight
    return comfy.lora.calculate_weight(patches, weight.to(torch.float32, copy=True), key).to(tensor.dtype)


def interruptible(parts):
    """The parts one by one, with the host's progress bar; stops where the user does."""
    bar = comfy.utils.ProgressBar(len(parts))
    for part in parts:
        mm.throw_exception_if_processing_interrupted()
        yield part
        bar.update(1)


def free_path(filename_prefix: str) -> Path:
    """A file in the output folder that is not there yet, numbered as the host's save nodes do."""
    output = folder_paths.get_output_directory()
    folder, filename, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, output)
    os.makedirs(folder, exist_ok=True)
    path = Path(folder) / f"{filename}_{counter:05}_.safetensors"
    while path.exists():
        counter += 1
        path = Path(folder) / f"{filename}_{counter:05}_.safetensors"
    return path
