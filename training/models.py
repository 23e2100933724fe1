"""What a run's `model` settings name, from any file that the pack reads: the network, its autoencoder, its text encoder.

Each is loaded when it is asked for and belongs to who asked: what is dropped there has left the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ..cogvideo_core import checkpoint as cogvideo_checkpoint
from ..cogvideo_core import config as cogvideo_config
from ..cogvideo_core import lookalikes as cogvideo_names
from ..cogvideo_core import precision as cogvideo_precision
from ..cogvideo_core.transformer import CogVideoTransformer
from ..kernels.quant_layers import float_shapes, from_metadata, quantised, read_layers, without_layers
from ..kernels.stated_config import INSIDE, read_config_tensor
from ..sana_core import checkpoint as sana_checkpoint
from ..sana_core import config as sana_config
from ..sana_core import lookalikes as sana_names
from ..sana_core import precision as sana_precision
from ..sana_core import video_checkpoint, video_config, video_precision
from ..sana_core.transformer import SanaTransformer
from ..storage.checkpoints import Checkpoint, check_finite, open_checkpoint
from . import autoencoders, text
from .quantised_linear import quantise_layers

EMBEDDED_SCALE = 0.7  # of the embedded SANA-Video's latents, as of the embedded CogVideoX'
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Family:
    """Where a family's knowledge of its files is."""

    config: ModuleType
    checkpoint: ModuleType
    names: ModuleType
    precision: ModuleType
    network: Callable[..., nn.Module]


FAMILIES = {
    "sana": Family(sana_config, sana_checkpoint, sana_names, sana_precision, SanaTransformer),
    "sana_video": Family(video_config, video_checkpoint, sana_names, video_precision, video_checkpoint.network),
    "cogvideox": Family(cogvideo_config, cogvideo_checkpoint, cogvideo_names, cogvideo_precision, CogVideoTransformer),
}


class Models:
    """The models of one run. settings: the config's `model`. transformer: another network's path, such as the teacher's.

    identity: what the transformer's file is, by its header. Nothing is read before it is asked for. Raises ValueError and
    FileNotFoundError, naming the setting's file.
    """

    def __init__(self, settings, transformer: str | None = None):
        if transformer is not None:
            settings = settings.model_copy(update={"transformer": transformer})
        self.settings, self.family = settings, FAMILIES[settings.family]
        self.checkpoint, self.names, self.identity = _identified(Path(settings.transformer), self.family)
        if settings.family == "sana_video" and settings.latents != self.params.latents:
            raise ValueError(f"{settings.transformer}: this is {self.identity.variant}, whose latents are {self.params.latents}, and "
                             f"model.latents is {settings.latents}. Take the model.variant that the file is of.")

    @property
    def params(self):
        return self.identity.params

    @property
    def scale(self) -> float:
        """A latent of the network is the autoencoder's times this."""
        if self.settings.family == "cogvideox":
            return self.params.scaling_factor
        if self.settings.family == "sana_video":  # the published autoencoders' latents come normalised
            return EMBEDDED_SCALE if self.params.latents == "cogvideox" else 1.0
        return autoencoders.dcae_identity(self._part("autoencoder", "vae")).params.scaling_factor

    def transformer(self, dtype: torch.dtype, quantize: str = "none", meta: bool = False) -> nn.Module:
        """The network on the CPU, frozen. dtype: of its weights; quantize: "int8" or "fp8" for those that bear it. meta: on the
        meta device, where nothing is read."""
        if meta:
            network = self.family.network(self.params, device="meta", dtype=dtype)
            if quantize != "none":
                quantise_layers(network, quantised(network.state_dict(), quantize, self.family.precision.KEPT)[1])
            return network.requires_grad_(False)
        return _network(Path(self.settings.transformer), self.checkpoint, self.names, self.identity, self.family, dtype, quantize)

    def autoencoder(self) -> nn.Module:
        """On the CPU, frozen, in fp32: what it makes is kept for all of the run."""
        kind = {"sana": "dcae", "cogvideox": "cogvideox"}.get(self.settings.family) or self.params.latents
        return autoencoders.load(kind, self._part("autoencoder", "vae"))

    def text_encoder(self):
        """A text.Gemma or a text.T5, on the CPU."""
        path = self._part("text_encoder", "text_encoder")
        if self.settings.family == "cogvideox":
            return text.T5(path, self.params.max_text_seq_length)
        return text.Gemma(path)

    def files(self, name: str) -> tuple[Path, ...]:
        """The weight files of "transformer", "autoencoder" or "text_encoder"."""
        if name == "transformer":
            return self.checkpoint.files
        return open_checkpoint(self._part(name, {"autoencoder": "vae"}.get(name, name))).files

    def _part(self, setting: str, subfolder: str) -> Path:
        """The path of a part: as set, else in the pipeline that the transformer lies in."""
        path = getattr(self.settings, setting)
        if path is not None:
            path = Path(path)
            return path / subfolder if (path / "model_index.json").is_file() else path
        transformer = Path(self.settings.transformer)
        for folder in (transformer, *transformer.parents):
            if (folder / "model_index.json").is_file():
                return folder / subfolder
        raise FileNotFoundError(f"model.{setting}: nothing given, and {transformer} lies in no diffusers repository. Give its "
                                f"path: model.{setting}=PATH.")


def _identified(path: Path, family: Family) -> tuple[Checkpoint, dict, object]:
    """(checkpoint, {the network's name: the file's}, identity) by the header."""
    pipeline = (path / "model_index.json").is_file()
    checkpoint = open_checkpoint(path, **({"subfolder": "transformer"} if pipeline else {}))
    names = family.names.strip_prefix({key: key for key in checkpoint.shapes})
    config, place = checkpoint.config, checkpoint.config_place
    if saved := names.pop(family.config.CONFIG_KEY, None):  # a model saved from ComfyUI
        config, place = read_config_tensor(checkpoint.load()[saved], family.config.CONFIG_KEY, f"{path.name}: "), INSIDE
    shapes = float_shapes(_of(checkpoint.shapes, names), _of(checkpoint.dtypes, names))
    identity = family.config.identify(shapes, config, str(path), place)
    family.checkpoint.check_shapes(shapes, identity, path.name)
    return checkpoint, names, identity


def _network(path, checkpoint, names, identity, family, dtype, quantize):
    told = {f"{layer}.weight": entry for layer, entry in from_metadata(checkpoint.metadata).items()}
    entries = {name.removesuffix(".weight"): entry for name, entry in _of(told, names).items()}
    try:
        tensors, layers = read_layers(_of(checkpoint.load(), names), entries)
        tensors = without_layers(tensors, layers, dtype)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    tensors = family.checkpoint.to_canonical(tensors, identity.layout)
    check_finite(tensors, path.name)
    # A copy, also where the type is right: weights that are mapped from the file would change with it.
    tensors = {name: t.to(dtype, copy=True).contiguous() for name, t in tensors.items()}
    network = family.network(identity.params, device="meta")
    if quantize != "none":
        tensors, layers = quantised(tensors, quantize, family.precision.KEPT)
        quantise_layers(network, layers)
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False).eval()


def _of(mapping: dict, names: dict) -> dict:
    """What a mapping by the file's names has, by the network's."""
    return {name: mapping[key] for name, key in names.items() if key in mapping}
