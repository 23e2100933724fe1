"""What a run's `model` settings name, from any file that the pack reads: the network, its autoencoder, its text encoder.

Each is loaded when it is asked for and belongs to who asked: what is dropped there has left the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ..cogvideo_core import checkpoint as cogvideo_checkpoint
from ..cogvideo_core import config as cogvideo_config
from ..cogvideo_core import lookalikes as cogvideo_names
from ..cogvideo_core import precision as cogvideo_precision
from ..cogvideo_core.autoencoder import CogVideoVAE
from ..cogvideo_core.transformer import CogVideoTransformer
from ..kernels.quant_layers import float_shapes, from_metadata, quantised, read_layers, without_layers
from ..kernels.stated_config import INSIDE, read_config_tensor
from ..sana_core import autoencoder_checkpoint as sana_autoencoder
from ..sana_core import checkpoint as sana_checkpoint
from ..sana_core import config as sana_config
from ..sana_core import lookalikes as sana_names
from ..sana_core import precision as sana_precision
from ..sana_core.autoencoder import AutoencoderDC
from ..sana_core.transformer import SanaTransformer
from ..storage.checkpoints import Checkpoint, check_finite, open_checkpoint
from . import text
from .quantised_linear import quantise_layers

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Family:
    """Where a family's knowledge of its files is."""

    config: ModuleType
    checkpoint: ModuleType
    names: ModuleType
    precision: ModuleType
    network: type[nn.Module]
    spacing: int  # px of a latent's side


FAMILIES = {
    "sana": Family(sana_config, sana_checkpoint, sana_names, sana_precision, SanaTransformer, 32),
    "cogvideox": Family(cogvideo_config, cogvideo_checkpoint, cogvideo_names, cogvideo_precision, CogVideoTransformer, 8),
}


class Models:
    """The models of one run. settings: the config's `model`.

    identity: what the transformer's file is, by its header. Nothing is read before it is asked for. Raises ValueError and
    FileNotFoundError, naming the setting's file.
    """

    def __init__(self, settings):
        self.settings, self.family = settings, FAMILIES[settings.family]
        self.checkpoint, self.names, self.identity = _identified(Path(settings.transformer), self.family)

    @property
    def params(self):
        return self.identity.params

    @property
    def scale(self) -> float:
        """A latent of the network is the autoencoder's times this."""
        if self.settings.family == "cogvideox":
            return self.params.scaling_factor
        return _autoencoder_identity(self._part("autoencoder", "vae")).params.scaling_factor

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
        path = self._part("autoencoder", "vae")
        return (_dcae if self.settings.family == "sana" else _video_autoencoder)(path)

    def text_encoder(self):
        """A text.Gemma or a text.T5, on the CPU."""
        path = self._part("text_encoder", "text_encoder")
        if self.settings.family == "sana":
            return text.Gemma(path)
        return text.T5(path, self.params.max_text_seq_length)

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


def _autoencoder_identity(path: Path):
    checkpoint = open_checkpoint(path)
    identity = sana_autoencoder.identify_autoencoder(checkpoint.shapes, checkpoint.config, str(path), checkpoint.config_place)
    sana_autoencoder.check_shapes(checkpoint.shapes, identity, path.name)
    return identity


def _dcae(path: Path) -> AutoencoderDC:
    identity = _autoencoder_identity(path)
    params = identity.params
    if (params.compression, params.latent_channels) != (32, 32):
        raise ValueError(f"{path.name}: this is {identity.variant}: its latents have {params.latent_channels} channels of "
                         f"{params.compression} x {params.compression} px, Sana's 32 of 32 x 32. Take Sana's: "
                         "dc-ae-f32c32-sana-1.1, or 1.0, or a lite one of them.")
    tensors = sana_autoencoder.to_canonical(open_checkpoint(path).load(), identity.layout)
    return _filled(AutoencoderDC(params, device="meta"), tensors, path)


def _video_autoencoder(path: Path) -> CogVideoVAE:
    checkpoint = open_checkpoint(path)
    strip, key = cogvideo_names.strip_autoencoder_prefix, cogvideo_config.CONFIG_KEY
    tensors, config, place = strip(checkpoint.load()), checkpoint.config, checkpoint.config_place
    if key in tensors:
        config, place = read_config_tensor(tensors.pop(key), key, f"{path.name}: "), INSIDE
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    identity = cogvideo_config.identify_autoencoder(shapes, config, str(path), place)
    cogvideo_checkpoint.check_autoencoder_shapes(shapes, identity, path.name)
    tensors = cogvideo_checkpoint.autoencoder_to_canonical(tensors, identity.layout)
    return _filled(CogVideoVAE(identity.params, device="meta"), tensors, path)


def _filled(network, tensors, path):
    check_finite(tensors, path.name)
    network.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    return network.requires_grad_(False).eval()


def _of(mapping: dict, names: dict) -> dict:
    """What a mapping by the file's names has, by the network's."""
    return {name: mapping[key] for name, key in names.items() if key in mapping}
