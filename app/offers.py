"""What the page can offer: the models that the ComfyUI behind it has, with the settings that suit each."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "models"
TINY = "sanacog_tiny"
# Input that lists files of each kind: (node, input).
LISTS = {
    "sana": ("SanaCogLoadSanaModel", "model_name"),
    "gemma": ("SanaCogLoadSanaTextEncoder", "text_encoder_name"),
    "dcae": ("SanaCogLoadDCAE", "vae_name"),
    "controlnet": ("SanaCogLoadSanaControlNet", "control_net_name"),
    "cogvideox": ("SanaCogLoadCogVideoXModel", "model_name"),
    "t5": ("SanaCogLoadCogVideoXTextEncoder", "text_encoder_name"),
    "video_vae": ("SanaCogLoadCogVideoXVAE", "vae_name"),
    "lora": ("SanaCogLoadLoRA", "lora_name"),
}
HINTS = {  # words in the names of other models' files that lie in the same folders
    "gemma": ("gemma",), "dcae": ("dc-ae", "dcae"), "t5": ("t5",), "video_vae": ("cogvideo",),
}


@dataclass(frozen=True)
class Preset:
    """Settings of a variant, as configs/models has them. frames: 1 for a picture; fps: 0 then. base: of the nodes for sizes."""

    name: str
    family: str
    width: int
    height: int
    steps: int
    guidance: float
    frames: int = 1
    fps: float = 0.0
    image: bool = False
    distilled: bool = False

    @property
    def base(self):
        return {512: "512", 1024: "1024", 2048: "2K", 4096: "4K"}.get(self.width)


@functools.cache
def presets() -> dict[str, Preset]:
    """{what a file's name has in it: Preset}, of every variant."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        values = yaml.safe_load(path.read_text("utf-8"))
        model, sampling = values["model"], values["sampling"]
        preset = Preset(path.stem, model["family"], sampling["width"], sampling["height"], sampling["steps"], sampling["guidance"],
                        sampling.get("frames", 1), sampling.get("fps", 0.0), model.get("conditioning", "none") != "none",
                        model.get("distilled", False))
        names = [name.rpartition("/")[2] for name in model.get("published", {}).values()]
        if "transformer" in model:
            names.append(Path(model["transformer"].rstrip("}")).stem)
        found |= {_plain(name): preset for name in names}
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removesuffix(".safetensors").removesuffix("_diffusers"))


def preset_of(model: str) -> Preset | None:
    """Of the variant whose name is in the file's name, the longest that is; None where it tells nothing."""
    plain = _plain(model.replace("\\", "/").rpartition("/")[2])
    names = [name for name in presets() if plain.startswith(name)]
    return presets()[max(names, key=len)] if names else None


@dataclass(frozen=True)
class Offer:
    """A tab's models, or why there are none. models: file names. companions: {kind: its file} for each of them."""

    models: tuple[str, ...]
    companions: dict[str, dict[str, str]]
    missing: str = ""


class Offers:
    """What a ComfyUI has. object_info: its answer to /object_info, or the part of it about our loaders."""

    def __init__(self, object_info: dict):
        if "SanaCogLoadSanaModel" not in object_info:
            raise ValueError("The ComfyUI behind the page does not have this pack: put it into its custom_nodes and restart it.")
        self.lists = {kind: _choices(object_info[node], name) for kind, (node, name) in LISTS.items()}

    def sana(self, sprint=False, controlnet=False) -> Offer:
        models = [name for name in self.of_family("sana") if bool(preset_of(name) and preset_of(name).distilled) == sprint]
        kinds = {"gemma": "text encoder (Gemma-2-2B-it)", "dcae": "DC-AE"} | ({"controlnet": "Sana ControlNet"} if controlnet else {})
        return self._with("Sana Sprint model" if sprint else "Sana model", models, kinds)

    def cogvideox(self, image=False) -> Offer:
        models = [name for name in self.of_family("cogvideox") if bool(preset_of(name) and preset_of(name).image) == image]
        return self._with("CogVideoX I2V model" if image else "CogVideoX model", models,
                          {"t5": "text encoder (T5-XXL)", "video_vae": "CogVideoX VAE"})

    def of_family(self, family) -> list[str]:
        """The files that are of a family by their names: the folder has other models too. Which are, the loader knows for sure."""
        return [name for name in self.lists[family]
                if (preset_of(name).family if preset_of(name) else "cogvideox" if "cogvideo" in name.lower() else
                    "sana" if "sana" in name.lower() else None) == family]

    def _with(self, what, models, kinds) -> Offer:
        """The models that have all their companions, the embedded ones last."""
        companions, lacking = {}, ""
        for model in sorted(models, key=lambda name: (TINY in name, name.lower())):
            found = {kind: self.companion(kind, TINY in model) for kind in kinds}
            without = [kinds[kind] for kind, name in found.items() if name is None]
            if without:
                lacking = f"{model} is there, but no {' and no '.join(without)}"
            else:
                companions[model] = found
        missing = "" if companions else (lacking or f"there is no {what}") + "; docs/models.md says where it is had."
        return Offer(tuple(companions), companions, missing)

    def companion(self, kind: str, tiny: bool) -> str | None:
        """The file of a kind that goes with an embedded model, or with a released one."""
        names = [name for name in self.lists[kind] if (TINY in name) == tiny]
        likely = [name for name in names if any(hint in name.lower() for hint in HINTS.get(kind, ("",)))]
        return next(iter(likely), None)


def _choices(node: dict, name: str) -> list[str]:
    spec = {**node["input"].get("required", {}), **node["input"].get("optional", {})}[name]
    options = spec[0] if isinstance(spec[0], list) else spec[1].get("options", [])
    return [option for option in options if isinstance(option, str)]
