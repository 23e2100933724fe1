"""What the ComfyUI behind the page has: models, what goes with them, and the settings that suit each."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "models"
EMBEDDED = "sanacog_tiny"  # how the names of the embedded models begin


@dataclass(frozen=True)
class Preset:
    """Sampling settings of a variant. frames: 0 for a picture. conditioning: what the model takes beside text."""

    variant: str
    family: str
    width: int
    height: int
    steps: int
    guidance: float
    frames: int = 0
    frame_step: int = 0
    max_frames: int = 0
    fps: float = 0.0
    conditioning: str = "none"
    dynamic_guidance: bool = False
    distilled: bool = False
    latents: str = ""  # of SANA-Video: whose autoencoder


# Of SANA-Video's clips, which have a multiple of it and one more: what the autoencoder makes one latent of, or two.
FRAME_STEPS = {"wan": 4, "ltx2": 8, "cogvideox": 8}
# For models whose file's name tells nothing.
USUAL = {"sana": "sana_1600m_1024px", "sprint": "sana_sprint_1600m", "sana_video": "sana_video_2b_480p",
         "cogvideox": "cogvideox_5b"}


@functools.cache
def presets():
    """{what a file's name begins with: Preset}, of every variant, by its names in configs/models."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = yaml.safe_load(path.read_text("utf-8"))
        model, sampling = config["model"], config["sampling"]
        names = [model["variant"], *(name.rpartition("/")[2] for name in model.get("published", {}).values())]
        if "transformer" in model:
            names.append(Path(model["transformer"].rstrip("}")).name)
        if "latents" in model:
            model |= {"frame_step": FRAME_STEPS[model["latents"]], "max_frames": sampling["frames"]}
        preset = Preset(**{key: value for key, value in {**model, **sampling}.items() if key in Preset.__dataclass_fields__})
        # Several variants share a repository of the authors, whose name then tells nothing of one.
        found |= {plain(name): preset for name in names if plain(name) not in found}
    return found


def plain(name):
    """A name without what its writings differ in: letters' case, punctuation, endings."""
    name = re.sub(r"\.(safetensors|pth|pt)$", "", name.lower()).replace("_diffusers", "")
    return re.sub(r"[^a-z0-9]", "", name)


def preset_of(model):
    """The Preset of the variant with which the model's name begins, the longest that does; None where it tells nothing.

    model: as a loader lists it, a file in folders or a folder, such as "CogVideoX-5b/transformer".
    """
    parts = [plain(part) for part in re.split(r"[/\\]", model)]
    names = [name for name in presets() if any(part.startswith(name) for part in parts)]
    return presets()[max(names, key=len)] if names else None


# Lists of files: {kind: (node, its input, what it is, words in the names of those that suit)}. The folders also
# hold other families' files.
LISTS = {
    "sana": ("SanaCogLoadSanaModel", "model_name", "Sana model", ()),
    "sana_video": ("SanaCogLoadSanaVideoModel", "model_name", "SANA-Video model", ()),
    "cogvideox": ("SanaCogLoadCogVideoXModel", "model_name", "CogVideoX model", ()),
    "gemma": ("SanaCogLoadSanaTextEncoder", "text_encoder_name", "text encoder Gemma-2-2B", ("gemma",)),
    "dcae": ("SanaCogLoadDCAE", "vae_name", "DC-AE", ("dc-ae", "dcae", "dc_ae")),
    "controlnet": ("SanaCogLoadSanaControlNet", "control_net_name", "Sana ControlNet", ("sana",)),
    "t5": ("SanaCogLoadCogVideoXTextEncoder", "text_encoder_name", "text encoder T5-XXL", ("t5",)),
    "video_vae": ("SanaCogLoadCogVideoXVAE", "vae_name", "CogVideoX VAE", ("cogvideo",)),
    "wan_vae": ("VAELoader", "vae_name", "Wan 2.1 VAE", ("wan",)),
    "lora": ("SanaCogLoadLoRA", "lora_name", "LoRA", ()),
    "ratio": ("SanaCogSanaResolution", "aspect_ratio", "aspect ratio", ()),
    "base": ("SanaCogSanaResolution", "base", "size", ()),
}
NEEDS = {"sana": ("gemma", "dcae"), "sana_video": ("gemma", "wan_vae"), "cogvideox": ("t5", "video_vae")}


@dataclass(frozen=True)
class Model:
    """A model that can run. files: {input of a loader: file}, itself among them. loras: those that may fit."""

    name: str
    preset: Preset
    files: dict
    loras: tuple

    @property
    def embedded(self):
        return EMBEDDED in self.name


class Offers:
    """ask(path): the server's answer to a GET, as `Client.get`. Raises ValueError when it does not have this pack."""

    def __init__(self, ask):
        self.lists = {kind: options(ask(f"/object_info/{node}"), node, name) for kind, (node, name, _, _) in LISTS.items()}

    def models(self, family, sprint=False, conditioning="none", extra=(), released=True):
        """([Model], why there is none): those with all that they need beside them, released ones first. Of SANA-Video those with
        Wan's autoencoder alone, which every host has.

        extra: kinds of files that are needed too. released: whether there is a workflow for other than embedded models.
        """
        found, lacking = [], f"There is no {'Sana Sprint' if sprint else LISTS[family][2].removesuffix(' model')} model" + \
            (" for pictures" if conditioning == "image" else "")
        for name in sorted(self.lists[family], key=lambda name: (EMBEDDED in name, name.lower())):
            preset = preset_of(name) or presets()[plain(USUAL["sprint" if "sprint" in name.lower() else family])]
            if (preset.family, preset.distilled, preset.conditioning) != (family, sprint, conditioning):
                continue
            if preset.latents == "ltx2" or not released and EMBEDDED not in name:
                continue
            own = [preset.latents == "cogvideox" and kind == "wan_vae" and "video_vae" or kind for kind in NEEDS[family]]
            files = {kind: self.beside(name, kind) for kind in (*own, *extra)}
            missing = [LISTS[kind][2] for kind, file in files.items() if not file]
            if missing:
                lacking = f"{name} needs a {' and a '.join(missing)}"
                continue
            loras = tuple(lora for lora in self.lists["lora"] if self.goes_with(lora, name))
            found.append(Model(name, preset, {"model_name": name, **{LISTS[kind][1]: file for kind, file in files.items()}}, loras))
        return found, "" if found else f"{lacking}; docs/models.md says where to get it."

    def beside(self, model, kind):
        """The first file of a kind that goes with the model; None when there is none."""
        hints = LISTS[kind][3]
        return next((file for file in self.lists[kind] if self.goes_with(file, model)
                     and (not hints or any(hint in file.lower() for hint in hints))), None)

    @staticmethod
    def goes_with(file, model):
        """Embedded files go with embedded models of their family, released ones with released ones."""
        return (EMBEDDED in file) == (EMBEDDED in model) and not (
            EMBEDDED in file and "lora" in file and family_in(file) != family_in(model))


def family_in(name):
    """Which family an embedded file's name tells."""
    return next(family for family in ("cogvideo", "sana_video", "sana") if family in name)


def options(info, node, name):
    """The choices of a node's input, from the server's /object_info in both of its forms."""
    if node not in info:
        raise ValueError("This ComfyUI does not have the pack's nodes: put the pack into its custom_nodes and restart it.")
    kind, *more = {**info[node]["input"].get("required", {}), **info[node]["input"].get("optional", {})}[name]
    found = kind if isinstance(kind, list) else more[0].get("options", [])
    return [option for option in found if isinstance(option, str)]
