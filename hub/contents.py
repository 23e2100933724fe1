"""What a file of weights is, told by its tensors: which model, where the loaders look for it, which workflow runs it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..cogvideo_core import checkpoint as video_checkpoint
from ..cogvideo_core import config as video_config
from ..cogvideo_core import controlnet_checkpoint as video_controlnet
from ..cogvideo_core import lookalikes as video_names
from ..cogvideo_core.transformer import CogVideoTransformer
from ..kernels.quant_layers import float_shapes, from_metadata
from ..kernels.stated_config import INSIDE, read_config_tensor
from ..sana_core import autoencoder_checkpoint, controlnet_checkpoint
from ..sana_core import checkpoint as sana_checkpoint
from ..sana_core import config as sana_config
from ..sana_core import lookalikes as sana_names
from ..sana_core import video_checkpoint as sana_video_checkpoint
from ..sana_core import video_config as sana_video_config
from ..sana_core.config import SanaParams
from ..sana_core.transformer import SanaTransformer
from ..sana_core.video_config import SanaVideo2Params, SanaVideoParams
from ..storage.checkpoints import Checkpoint, open_checkpoint

LORAS = "loras"
LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".matrix_A.", ".matrix_B.", ".lora.down.", ".lora.up.")
DIFFUSERS_LORA = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".alpha")
LOADERS = {("sana", "diffusion_models"): "Load Sana Model", ("sana", "vae"): "Load DC-AE",
           ("sana", "text_encoders"): "Load Sana Text Encoder", ("sana", "controlnet"): "Load Sana ControlNet",
           ("sana_video", "diffusion_models"): "Load SANA-Video Model", ("sana_video", "vae"): "Load VAE",
           ("cogvideox", "diffusion_models"): "Load CogVideoX Model", ("cogvideox", "vae"): "Load CogVideoX VAE",
           ("cogvideox", "text_encoders"): "Load CogVideoX Text Encoder", ("cogvideox", "controlnet"): "Load CogVideoX ControlNet"}
# family -> (what looks_like says of its transformer, where its knowledge of files is, its network)
TRANSFORMERS = {
    "sana": ("Sana transformer:", sana_config, sana_checkpoint, sana_names, SanaTransformer),
    "sana_video": ("SANA-Video transformer:", sana_video_config, sana_video_checkpoint, sana_names, sana_video_checkpoint.network),
    "cogvideox": ("CogVideoX transformer:", video_config, video_checkpoint, video_names, CogVideoTransformer)}


@dataclass(frozen=True)
class Contents:
    """kind: the folder in ComfyUI's models. variant: for people. layout: of its names, "diffusers" where diffusers reads them.
    params: of a network. quantised: in ComfyUI's format, which diffusers does not read. checkpoint: the file, looked at."""

    kind: str
    family: str
    variant: str
    layout: str
    checkpoint: Checkpoint = field(repr=False)
    params: object = None
    quantised: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def loader(self) -> str:
        if (self.family, self.kind, self.layout) == ("sana_video", "vae", "diffusers"):
            return f"run.py train; for ComfyUI's own Load VAE there is `run.py hub pull {self.variant}`"
        return LOADERS.get((self.family, self.kind), "Load LoRA (Sana + CogVideoX)")

    @property
    def of_diffusers(self) -> bool:
        """Whether diffusers loads it and computes the same: it does not read ComfyUI's quantised files, has of the Fun models
        those with a control video, no LongSANA and no SANA-Video 2.0, and ControlNets in its own wiring and without query-key
        norm."""
        if self.kind == "controlnet" and (self.family != "sana" or getattr(self.params, "qk_norm", False)
                                          or "native wiring" in self.variant):
            return False
        if getattr(self.params, "causal", False) or isinstance(self.params, SanaVideo2Params):
            return False
        known = getattr(self.params, "conditioning", "none") in ("none", "image", "control")
        return known and self.layout == "diffusers" and not self.quantised

    @property
    def workflow(self) -> str:
        """The shipped workflow to open with it."""
        if self.family == "sana":
            if self.kind in (LORAS, "controlnet"):
                return {LORAS: "sana_lora", "controlnet": "sana_controlnet"}[self.kind]
            sprint, large = getattr(self.params, "guidance_embeds", False), getattr(self.params, "sample_size", 0) == 128
            return "sana_sprint" if sprint else "sana_4k" if large else "sana_text_to_image"
        if self.family == "sana_video":
            if "2.0" in self.variant or "LTX" in self.variant:
                return "sana_video_2"
            if getattr(self.params, "causal", False):
                return "sana_video_long"
            embedded = getattr(self.params, "latents", "") == "cogvideox"
            return "sana_video_text_to_video" if embedded else "sana_video_2b_text_to_video"
        if self.kind == "controlnet":
            return "cogvideox_controlnet"
        conditioning, new = getattr(self.params, "conditioning", "none"), bool(getattr(self.params, "patch_size_t", None))
        if conditioning in ("inpaint", "control"):
            return f"cogvideox_fun_{conditioning}"
        if conditioning != "none":
            return "cogvideox_1_5_image_to_video" if new else "cogvideox_image_to_video"
        return "cogvideox_1_5_text_to_video" if new else "cogvideox_5b_text_to_video"


def identify(path: Path, name: str = "", config: bool = True, family: str = "") -> Contents:
    """Look at a file, one shard of several, or a folder with one model.

    name: what it is, or will be, called, where that is not its path's end; tensors do not tell everything, and then names count.
    config: whether the config.json beside it counts. family: whose a LoRA is that fits several and does not say. Raises
    ValueError, FileNotFoundError: what it is instead, or what is wrong.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    shapes = float_shapes(checkpoint.shapes, checkpoint.dtypes)
    stated = (checkpoint.config, checkpoint.config_place)
    if not config and checkpoint.config_place != INSIDE:
        stated = (None, INSIDE)
    named, quantised = name or str(path), len(shapes) != len(checkpoint.shapes) or bool(from_metadata(checkpoint.metadata))

    def found(kind, family, identity=None, variant=""):
        layout = identity.layout if identity else "diffusers"
        params, warnings = getattr(identity, "params", None), getattr(identity, "warnings", ())
        return Contents(kind, family, variant or identity.variant, layout, checkpoint, params, quantised, warnings)

    if any(mark in key for mark in LORA_MARKS for key in shapes):
        family, variant = lora_of(shapes, path.name, checkpoint.metadata.get("modelspec.architecture") or family)
        ours = all(key.startswith("transformer.") and key.endswith(DIFFUSERS_LORA) for key in shapes)
        return Contents(LORAS, family, variant, "diffusers" if ours else "another", checkpoint)
    sana, video = sana_names.looks_like(shapes), video_names.looks_like(shapes)
    if "Sana ControlNet:" in sana:
        identity = controlnet_checkpoint.identify_controlnet(shapes, stated[0], named, config_place=stated[1])
        controlnet_checkpoint.check_shapes(shapes, identity, path.name)
        return found("controlnet", "sana", identity)
    if "CogVideoX ControlNet:" in video:
        identity = video_controlnet.identify_controlnet(shapes, stated[0], named, stated[1])
        video_controlnet.check_shapes(shapes, identity, path.name)
        return found("controlnet", "cogvideox", identity)
    if family := next((family for family, (what, *_) in TRANSFORMERS.items() if what in sana or what in video), None):
        _, core, layouts, names, _ = TRANSFORMERS[family]
        shapes = names.strip_prefix(shapes)
        if core.CONFIG_KEY in shapes:  # saved from ComfyUI
            tensor = names.strip_prefix(checkpoint.load())[core.CONFIG_KEY]
            stated = (read_config_tensor(tensor, core.CONFIG_KEY, f"{path.name}: "), INSIDE)
            shapes = {key: shape for key, shape in shapes.items() if key != core.CONFIG_KEY}
        identity = core.identify(shapes, stated[0], named, stated[1])
        layouts.check_shapes(shapes, identity, path.name)
        return found("diffusion_models", family, identity)
    if "DC-AE autoencoder:" in sana:
        identity = autoencoder_checkpoint.identify_autoencoder(shapes, stated[0], named, stated[1])
        autoencoder_checkpoint.check_shapes(shapes, identity, path.name)
        return found("vae", "sana", identity)
    if "CogVideoX VAE:" in video:
        shapes = video_names.strip_autoencoder_prefix(shapes)
        identity = video_config.identify_autoencoder(shapes, stated[0], named, stated[1])
        video_checkpoint.check_autoencoder_shapes(shapes, identity, path.name)
        return found("vae", "cogvideox", identity)
    if variant := _sana_videos_vae({key.removeprefix("vae.") for key in shapes}):
        layout = "comfy" if any("per_channel_statistics" in key or key == "conv2.weight" for key in shapes) else "diffusers"
        return Contents("vae", "sana_video", variant, layout, checkpoint)
    if "Gemma 2 text encoder" in sana:
        variant = _encoder(shapes, "Gemma 2", ("embed_tokens.weight", "norm.weight"), path.name)
        return found("text_encoders", "sana", variant=variant)
    if "T5 text encoder" in video:
        return found("text_encoders", "cogvideox", variant=_encoder(shapes, "T5", ("final_layer_norm.weight",), path.name))
    what = sana if "something this pack" not in sana else video
    raise ValueError(f"{path.name}: neither Sana's nor CogVideoX': this is {what}.")


def _sana_videos_vae(keys: set[str]) -> str:
    """Words for Wan 2.1's or LTX-2's autoencoder, in ComfyUI's layout or diffusers'; "" for anything else."""
    for variant, *layouts in (("Wan 2.1 VAE", {"conv2.weight", "decoder.middle.0.residual.0.gamma"},
                               {"post_quant_conv.weight", "decoder.mid_block.resnets.0.norm1.gamma"}),
                              ("LTX-2 VAE", {"per_channel_statistics.mean-of-means", "decoder.conv_in.conv.weight"},
                               {"latents_mean", "latents_std", "decoder.conv_in.conv.weight"})):
        if any(layout <= keys for layout in layouts):
            return variant
    return ""


def _encoder(shapes, name, ends, filename) -> str:
    """Words for a text encoder, once it is certain that its last layers are there too."""
    if lost := [end for end in ends if not any(key.endswith(end) for key in shapes)]:
        raise ValueError(f"{filename}: a {name} text encoder without {', '.join(lost)}. The file is incomplete: get it "
                         "again.")
    return f"{name} text encoder"


# --- LoRAs ---


def lora_of(shapes: dict, filename: str, architecture: str = "") -> tuple[str, str]:
    """(family, variant) of a LoRA, by the widths of the layers that it changes; ("", "") for names that only our Load LoRA knows.
    architecture: as the file states it, "sana_video/lora", or what it is taken for: Sana 1.6B and SANA-Video 2B
    have attention of the same widths.

    Where diffusers' names are, every change must fit a layer. Raises ValueError when none of the models has them all.
    """
    sizes = {}  # layer -> (in, out) of the change
    for key, shape in shapes.items():
        if key.startswith("transformer.") and key.endswith((".lora_A.weight", ".lora_B.weight")):
            layer, _, part = key.removeprefix("transformer.").removesuffix(".weight").rpartition(".lora_")
            sizes.setdefault(layer, {})[part] = shape
    if not sizes:
        return "", ""
    if half := [layer for layer, parts in sizes.items() if len(parts) < 2 or parts["A"][0] != parts["B"][1]]:
        raise ValueError(f"{filename}: of {half[0]} only one of the two matrices of a LoRA is there, or they do not fit "
                         "each other. The file is cut off: get it again.")
    stated = architecture.partition("/")[0]
    for family, variant, layers in sorted(_layers(), key=lambda one: one[0] != stated):
        if all(layers.get(layer) == (parts["B"][0], parts["A"][1]) for layer, parts in sizes.items()):
            return family, variant
    layer, parts = next(iter(sizes.items()))
    raise ValueError(f"{filename}: a LoRA, but of no Sana or CogVideoX transformer: {layer} goes from {parts['A'][1]} to "
                     f"{parts['B'][0]} channels. It is another model's.")


@functools.cache
def _layers() -> list[tuple[str, str, dict[str, tuple[int, int]]]]:
    """(family, what to call it, {layer: (out, in)}) of every size there is, the smaller of two with the same widths first: a LoRA
    of few layers fits both, and is told to be of the first."""
    def layers(network):
        state = network.state_dict()
        return {key.removesuffix(".weight"): tuple(t.shape[:2]) for key, t in state.items() if key.endswith(".weight")}

    return [(family, variant, layers(network)) for family, variant, network in _networks()]


def _networks() -> Iterator[tuple[str, str, torch.nn.Module]]:
    """(family, what to call it, network without weights): the released sizes, and the embedded models."""
    for layers, heads, cross, dim, name in ((28, 36, 16, 72, "0.6B"), (20, 70, 20, 112, "1.6B"), (60, 70, 20, 112, "4.8B")):
        yield "sana", f"Sana {name}", SanaTransformer(SanaParams(layers, heads, cross, dim, qk_norm=True), device="meta")
    yield "sana_video", "SANA-Video 2B", sana_video_checkpoint.network(SanaVideoParams(20, 20, 20, 112), device="meta")
    yield "sana_video", "SANA-Video 2.0 5B", sana_video_checkpoint.network(
        SanaVideo2Params(32, 2560, 20, tuple(range(3, 32, 4))), device="meta")
    for layers, heads, name in ((30, 30, "2B"), (42, 48, "5B")):
        yield "cogvideox", f"CogVideoX {name}", CogVideoTransformer(
            video_config.CogVideoParams(layers, heads, ofs_embed_dim=512), device="meta")
    models = Path(__file__).resolve().parents[1] / "models" / "diffusion_models"
    for family, (_, core, _, _, network) in TRANSFORMERS.items():
        file = f"sanacog_tiny_{family}.safetensors"
        if (models / file).is_file():
            checkpoint = open_checkpoint(models / file)
            identity = core.identify(checkpoint.shapes, checkpoint.config, file)
            yield family, identity.variant, network(identity.params, device="meta")
