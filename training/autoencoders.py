"""The autoencoders that latents are made with, from any file that the pack reads, frozen and in fp32.

All have encode(pixels, tiles) and decode(latents): pixels in [-1, 1], (B, 3, F, H, W), of DC-AE (B, 3, H, W); tiles: None, or
that the work is to be done in pieces. SANA-Video's two, Wan 2.1's and LTX-2's, are diffusers'.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from ..cogvideo_core import checkpoint as cogvideo_checkpoint
from ..cogvideo_core import config as cogvideo_config
from ..cogvideo_core import lookalikes as cogvideo_names
from ..cogvideo_core.autoencoder import CogVideoVAE
from ..kernels.stated_config import INSIDE, read_config_tensor
from ..sana_core import autoencoder_checkpoint as sana_autoencoder
from ..sana_core.autoencoder import AutoencoderDC
from ..storage.checkpoints import check_finite, open_checkpoint

# diffusers' class; channels of a latent, by their name in its config; where people get it.
PUBLISHED = {
    "wan": ("AutoencoderKLWan", "z_dim", 16, "wan_2.1_vae.safetensors of Comfy-Org/Wan_2.1_ComfyUI_repackaged, or vae/ of "
                                             "Efficient-Large-Model/SANA-Video_2B_480p_diffusers"),
    "ltx2": ("AutoencoderKLLTX2Video", "latent_channels", 128, "the folder vae/ of Lightricks/LTX-2; for SANA-Video 2.0 that of "
                                                               "Efficient-Large-Model/LTX-2.3-Diffusers"),
}


def load(kind: str, path: Path) -> nn.Module:
    """kind: a name of latent_sizes.SIZES. Raises ValueError, FileNotFoundError; ModuleNotFoundError where diffusers is missing."""
    if kind in PUBLISHED:
        return Normalised(_of_diffusers(kind, path))
    return {"dcae": _dcae, "cogvideox": _cogvideox}[kind](path)


# --- DC-AE ---


def dcae_identity(path: Path):
    checkpoint = open_checkpoint(path)
    identity = sana_autoencoder.identify_autoencoder(checkpoint.shapes, checkpoint.config, str(path), checkpoint.config_place)
    sana_autoencoder.check_shapes(checkpoint.shapes, identity, path.name)
    return identity


def _dcae(path: Path) -> AutoencoderDC:
    identity = dcae_identity(path)
    params = identity.params
    if (params.compression, params.latent_channels) != (32, 32):
        raise ValueError(f"{path.name}: this is {identity.variant}: its latents have {params.latent_channels} channels of "
                         f"{params.compression} x {params.compression} px, Sana's 32 of 32 x 32. Take Sana's: "
                         "dc-ae-f32c32-sana-1.1, or 1.0, or a lite one of them.")
    tensors = sana_autoencoder.to_canonical(open_checkpoint(path).load(), identity.layout)
    return _filled(AutoencoderDC(params, device="meta"), tensors, path)


# --- CogVideoX ---


def _cogvideox(path: Path) -> CogVideoVAE:
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


# --- Wan 2.1, LTX-2 ---


class Normalised(nn.Module):
    """One of diffusers', whose latents are of mean 0 and deviation 1 here, channel by channel, by the figures that come with it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        for name in ("latents_mean", "latents_std"):  # LTX-2's are tensors of its file, Wan's are in its config
            stated = getattr(network, name, None)
            stated = network.config[name] if stated is None else stated
            self.register_buffer(name, torch.as_tensor(stated, dtype=torch.float32).clone().view(1, -1, 1, 1, 1))

    def encode(self, pixels, tiles=None):
        """The mean of the latent's distribution, as the authors train with."""
        self._in_pieces(tiles)
        return (self.network.encode(pixels).latent_dist.mode() - self.latents_mean) / self.latents_std

    def decode(self, latents, tiles=None):
        self._in_pieces(tiles)
        return self.network.decode(latents * self.latents_std + self.latents_mean).sample

    def _in_pieces(self, tiles):
        self.network.disable_tiling() if tiles is None else self.network.enable_tiling()


def _of_diffusers(kind: str, path: Path) -> nn.Module:
    cls, field, channels, source = PUBLISHED[kind]
    checkpoint = open_checkpoint(path)
    stated = checkpoint.config or {}
    if path.is_file() and "_class_name" in stated and checkpoint.config_place == "beside":
        path = path.parent
    if path.is_dir() and (stated.get("_class_name"), stated.get(field, channels)) != (cls, channels):
        told = ", ".join(f"{name} {stated[name]}" for name in ("_class_name", field) if name in stated) or "no config.json"
        raise ValueError(f"{path.name}: not the autoencoder of this model: found {told}; expected {cls} with {channels} channels. "
                         f"Give {source}.")
    if path.is_file() and (kind == "ltx2" or checkpoint.shapes.get("conv2.weight", ())[:2] != (channels, channels)):
        raise ValueError(f"{path.name}: not a file that can be read as the autoencoder of this model. Give {source}.")
    try:
        import diffusers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"The autoencoder {path.name} is read with diffusers, which is missing here: "
                                  "pip install diffusers==0.42.1.") from None
    check_finite(checkpoint.load(), path.name)
    cls = getattr(diffusers, cls)
    if path.is_dir():
        network, told = cls.from_pretrained(path, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True)
        if lost := sorted(told["missing_keys"]):
            raise ValueError(f"{path.name}: {len(lost)} tensors are missing, such as {lost[0]}. Get it again: {source}.")
        return network
    with tempfile.TemporaryDirectory() as folder:  # or diffusers would get a config from the Hub; its defaults are Wan 2.1's
        told = {"_class_name": cls.__name__, "base_dim": checkpoint.shapes["encoder.conv1.weight"][0]}
        (Path(folder) / "config.json").write_text(json.dumps(told))
        return cls.from_single_file(str(path), config=folder, torch_dtype=torch.float32, local_files_only=True)
