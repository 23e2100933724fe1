"""Tora's trajectories on a CogVideoX MODEL."""

from __future__ import annotations

import re
from pathlib import Path

import comfy.model_management as mm
import comfy.ops
import torch
from torchvision.utils import flow_to_image

from ...cogvideo_core.lookalikes import looks_like
from ...cogvideo_core.tora import MotionFuser, TrajectoryExtractor
from ...cogvideo_core.trajectories import field, parse
from ...kernels.key_names import without
from ...kernels.state_dict import check_state_dict
from ...storage.checkpoints import open_checkpoint
from ..compat import load_weights, model_patcher
from .conditioning import check_clip_fits, check_vae, encoded, first_frames, fitted
from .model import MOTION, CogVideoXModel, empty_latent

FUSERS = "sanacog_tora"  # of a MODEL's additional models: the fusers' patcher
# Of either part: what stands before its names in a file that holds both and the transformer, how the number of its blocks is
# told, and words.
_PARTS = {"fuser": ("fuser.", r"(\d+)\.flow_cond_norm\.weight", "Tora's motion fuser"),
          "extractor": ("traj_extractor.", r"body\.(\d+)\.bn1\.weight", "Tora's trajectory extractor")}


class Motion:
    """What the model is given at every step. features: of the extractor, on the CPU. fusers: a module for each block."""

    def __init__(self, features, fusers, first: float, last: float):
        self.features, self.fusers, self.first, self.last = features, fusers, first, last

    def of(self, patcher):
        """The same with the fusers that belong to a patcher of the model: the host has one for each device that it uses."""
        own = [] if patcher is None else patcher.get_additional_models_with_key(FUSERS)
        return Motion(self.features, own[0].model, self.first, self.last) if own else self

    def adapt(self, options):
        """cogvideo_core's `adapt` for this step, None outside of the range of noise levels. options: transformer_options."""
        sigmas, window = options.get("sigmas"), options.get("context_window")
        if sigmas is not None and not self.last <= float(sigmas[0]) <= self.first:
            return None

        def run(number, tokens, grid):
            features = self.features[number]
            if window is not None and window.dim == 2:
                features = window.get_tensor(features, features.device, dim=0)
            if (len(features), *features.shape[2:]) != tuple(grid):
                frames, height, width = len(features), *features.shape[2:]
                raise ValueError(f"The trajectories were made for {frames} latent frames of {16 * width} x {16 * height} px, the "
                                 f"video that is sampled has {grid[0]} of {16 * grid[2]} x {16 * grid[1]}: set width, height and "
                                 "length of CogVideoX Tora to those of the latent.")
            return self.fusers[number](tokens, features.to(tokens))
        return run


def follow_trajectories(model, vae, fuser: Path, extractor: Path, width: int, height: int, length: int, trajectories: str = "",
                        flow_video=None, strength: float = 1.0, start: float = 0.0, end: float = 1.0):
    """(MODEL that follows them, the video of colours that it is shown, an IMAGE).

    fuser, extractor: Tora's two files, or twice the one that holds both. trajectories: JSON, see trajectories.parse, in pixels
    of width x height; or flow_video, motion drawn as such colours. strength: factor on the features. start, end: shares of
    the sampling. Raises ValueError.
    """
    empty_latent(width, height, length)  # says what is wrong with these
    if (flow_video is None) == (not trajectories.strip()):
        raise ValueError("CogVideoX Tora takes either trajectories or a flow_video: give one of the two.")
    points = parse(trajectories) if flow_video is None else None
    check_points(points or [], width, height)
    check_vae(vae)
    check_clip_fits(width, height, length)
    fusers = opened(fuser, "fuser")
    check_model(model, fusers)
    extractors = opened(extractor, "extractor")
    if extractors.blocks != fusers.blocks:
        raise ValueError(f"{extractor.name} makes features for {extractors.blocks} blocks, {fuser.name} has fusers for "
                         f"{fusers.blocks}: they are of different models.")
    if flow_video is None:
        video = flow_to_image(field(points, length, width, height)).movedim(1, -1) / 255.0
    else:
        video = fitted(first_frames(flow_video, length, "flow_video"), width, height, "flow_video")
    latent = encoded(vae, video)[0].transpose(0, 1) * model.model.model_config.params.scaling_factor
    features = extracted(extractors, latent) * strength

    sampling = model.get_model_object("model_sampling")
    patched, patcher = model.clone(), load_fusers(fuser, model.model_dtype())
    motion = Motion(features.to(model.model_dtype() if model.model_dtype().itemsize > 1 else torch.bfloat16), patcher.model,
                    float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end)))
    patched.model_options["transformer_options"][MOTION] = motion
    patched.set_additional_models(FUSERS, [patcher])  # the host loads them with the model
    return patched, video


class opened:
    """One of Tora's parts on disk, looked at and checked. part: a key of _PARTS. Raises ValueError."""

    def __init__(self, path: Path, part: str):
        self.path, self.part = Path(path), part
        prefix, number, what = _PARTS[part]
        self.checkpoint = open_checkpoint(self.path)
        self.prefix = prefix if any(key.startswith(prefix) for key in self.checkpoint.shapes) else ""
        shapes = without(self.checkpoint.shapes, self.prefix)
        numbers = {int(match[1]) for key in shapes if (match := re.fullmatch(number, key))}
        if not numbers:
            raise ValueError(f"{self.path.name}: this is not {what}, it looks like {looks_like(shapes)}.")
        self.blocks = len(numbers) if part == "fuser" else len(numbers) // 2
        self.width = shapes["0.flow_cond_norm.weight"][0] if part == "fuser" and "0.flow_cond_norm.weight" in shapes else 0
        kept = {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
        check_state_dict(kept, dict, lambda: _Counted(self.network("meta")), what, self.path.name)

    def network(self, device, dtype=None, operations=torch.nn):
        if self.part == "extractor":
            return TrajectoryExtractor(self.blocks, device=device, dtype=dtype)
        return torch.nn.ModuleList([MotionFuser(self.width, device=device, dtype=dtype, operations=operations)
                                    for _ in range(self.blocks)])

    def tensors(self) -> dict:
        return without(self.checkpoint.load(), self.prefix)


def load_fusers(path: Path, dtype, disable_dynamic: bool = False):
    """The fusers in the host's patcher. dtype: the model's; 8 bits are not for these. disable_dynamic: the host asks so when it
    needs a plain patcher."""
    dtype, part = dtype if dtype.itemsize > 1 else torch.bfloat16, opened(path, "fuser")
    network = part.network(mm.unet_offload_device(), dtype, comfy.ops.manual_cast).eval()
    tensors = {key: tensor.to(dtype) for key, tensor in part.tensors().items()}
    if hasattr(mm, "archive_model_dtypes"):  # dynamic patchers read what each weight is to become
        mm.archive_model_dtypes(network)
    patcher = model_patcher(network, mm.get_torch_device(), mm.unet_offload_device(), tensors, disable_dynamic)
    load_weights(patcher, network, network.load_state_dict, tensors)
    patcher.cached_patcher_init = (load_fusers, (path, dtype))
    return patcher


class _Counted:
    """A network's state dict without the counters of its batch norms, which some files leave out and nobody reads."""

    def __init__(self, network):
        self.network = network

    def state_dict(self):
        return {key: t for key, t in self.network.state_dict().items() if not key.endswith("num_batches_tracked")}


def extracted(part: opened, latent):
    """Features (blocks, T, 128, h, w) in fp32 on the CPU: computed once, on the main device."""
    device = mm.get_torch_device()
    network = part.network(device, torch.float32).eval()
    network.load_state_dict({key: t for key, t in part.tensors().items() if not key.endswith("num_batches_tracked")}, strict=False)
    with torch.inference_mode():
        return network(latent.to(device, torch.float32)).cpu()


def check_points(trajectories, width: int, height: int) -> None:
    """Raise ValueError for a trajectory that lies outside of the video as a whole; one that leaves it is fine."""
    for points in trajectories:
        if not any(0 <= x < width and 0 <= y < height for x, y in points):
            raise ValueError(f"A trajectory is not in the video at all: {points[0][0]:g}, {points[0][1]:g} and so on, in a video of "
                             f"{width} x {height} px. Give points in its pixels.")


def check_model(model, fusers: opened) -> None:
    """Raise ValueError unless the fusers fit a MODEL."""
    if not isinstance(model.model, CogVideoXModel):
        raise ValueError("Tora goes with CogVideoX: connect a model from Load CogVideoX Model.")
    params = model.model.model_config.params
    if params.patch_size_t:
        raise ValueError("These parts of Tora were made for CogVideoX 1.0 (5B), and the model is a 1.5, whose tokens are of two "
                         "latent frames each. Load Tora's own transformer.")
    if (fusers.width, fusers.blocks) != (params.width, params.num_layers):
        raise ValueError(f"{fusers.path.name} was made for {fusers.blocks} blocks of width {fusers.width}, the model has "
                         f"{params.num_layers} of {params.width}: load the transformer that it goes with, Tora's 5B.")
