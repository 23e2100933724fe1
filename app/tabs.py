"""The page's tabs: which workflow each fills with what, and the picture or clip that it hands over."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from .graph import filled, shipped, with_lora
from .offers import TINY, Offers, Preset, preset_of

ASPECTS = ("1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16")
LONGEST_PROMPT = 8000  # characters; both text encoders read far less


@dataclass(frozen=True)
class Tab:
    """name: in the page's API. source: what a person gives beside words. strength: None, or the usual share of the source that is
    redrawn (denoise). example: a prompt that the embedded models know."""

    name: str
    title: str
    family: str
    workflow: str
    example: str
    source: str | None = None
    strength: float | None = None

    @property
    def video(self):
        return self.family == "cogvideox"

    @property
    def sprint(self):
        return self.name == "sana_sprint"

    def offer(self, offers: Offers):
        if self.video:
            return offers.cogvideox(image=self.source == "image")
        return offers.sana(self.sprint, self.source == "sketch")


TABS = (
    Tab("sana_text", "Text to image", "sana", "sana_text_to_image", "a large red circle on a blue background"),
    Tab("sana_image", "Image to image", "sana", "sana_image_to_image", "a large green square on a white background", "image", 0.8),
    Tab("sana_inpaint", "Inpaint", "sana", "sana_inpaint", "a large blue square on a yellow background", "mask", 1.0),
    Tab("sana_sketch", "Sketch", "sana", "sana_controlnet", "a green circle on a white background", "sketch"),
    Tab("sana_sprint", "Sprint", "sana", "sana_sprint", "a large yellow ring on a black background"),
    Tab("video_text", "Text to video", "cogvideox", "cogvideox_text_to_video", "a red circle moving right on a blue background"),
    Tab("video_image", "Image to video", "cogvideox", "cogvideox_image_to_video", "a yellow square moving right on a purple background",
        "image"),
    Tab("video_video", "Video to video", "cogvideox", "cogvideox_video_to_video", "a green square moving right on a purple background",
        "video", 0.8),
)


@dataclass(frozen=True)
class Choices:
    """What a person chose. aspect: of ASPECTS, where the tab has a choice of sizes; lora: file or empty."""

    model: str
    prompt: str
    negative: str = ""
    steps: int = 20
    guidance: float = 4.5
    seed: int = 0
    aspect: str = "1:1"
    strength: float = 1.0
    lora: str = ""
    lora_strength: float = 1.0


def has_sizes(tab: Tab, preset: Preset | None) -> bool:
    """Whether aspect ratios are offered: the tab makes its own size, and the model's name tells which it knows."""
    return not tab.video and tab.source is None and bool(preset and preset.base)


def workflow_of(tab: Tab, offers: Offers, choices: Choices, uploaded: str = "") -> dict:
    """The graph that ComfyUI is given. uploaded: the source's name in its input/. Raises ValueError for what a person can mend."""
    offer = tab.offer(offers)
    if choices.model not in offer.companions:
        raise ValueError(offer.missing or f"{choices.model or 'No model'} is not offered here; choose one of the list.")
    check(tab, choices)
    preset, files = preset_of(choices.model), offer.companions[choices.model]
    values = {("SanaCogLoadCogVideoXModel" if tab.video else "SanaCogLoadSanaModel", "model_name"): choices.model}
    if tab.video:
        values |= {("SanaCogLoadCogVideoXTextEncoder", "text_encoder_name"): files["t5"],
                   ("SanaCogLoadCogVideoXVAE", "vae_name"): files["video_vae"]}
    else:
        values |= {("SanaCogLoadSanaTextEncoder", "text_encoder_name"): files["gemma"],
                   ("SanaCogLoadDCAE", "vae_name"): files["dcae"]}
    name, sampler = tab.workflow, "SanaCogSanaSprintSampler" if tab.sprint else "KSampler"
    values |= {(sampler, "seed"): choices.seed, (sampler, "steps"): choices.steps,
               (sampler, "guidance" if tab.sprint else "cfg"): choices.guidance}
    if tab.strength is not None:
        values[sampler, "denoise"] = choices.strength
    if tab.source == "video":
        values["LoadVideo", "file"] = uploaded
    elif tab.source:
        values["LoadImage", "image"] = uploaded
    if tab.source == "sketch":
        values["SanaCogLoadSanaControlNet", "control_net_name"] = files["controlnet"]
    if has_sizes(tab, preset):
        values |= {("SanaCogSanaResolution", "base"): preset.base, ("SanaCogSanaResolution", "aspect_ratio"): choices.aspect}
    graph = shipped(name)
    width, height = size_of(preset)
    if tab.video and tab.source != "video" and preset:
        values |= {(kind, key): value for kind in ("SanaCogEmptyCogVideoXLatent", "SanaCogCogVideoXImageToVideo")
                   for key, value in (("width", width), ("height", height), ("length", preset.frames))
                   if any(node["class_type"] == kind for node in graph.values())}
        values["CreateVideo", "fps"] = preset.fps
        values["SaveAnimatedWEBP", "fps"] = preset.fps
    if not tab.video and not has_sizes(tab, preset) and tab.source in (None, "sketch"):
        for node in graph.values():  # in place of the sizes of Sana Resolution
            if node["class_type"] == "SanaCogEmptySanaLatent":
                node["inputs"] |= {"width": width, "height": height}
        graph = {key: node for key, node in graph.items() if node["class_type"] != "SanaCogSanaResolution"}
    graph = filled(graph, values, choices.prompt, choices.negative)
    return with_lora(graph, choices.lora, choices.lora_strength) if choices.lora else graph


def size_of(preset: Preset | None) -> tuple[int, int]:
    return (preset.width, preset.height) if preset else (1024, 1024)


def check(tab: Tab, choices: Choices) -> None:
    """Raise ValueError for settings that no sampler takes."""
    if not choices.prompt.strip():
        raise ValueError("Say what to draw.")
    if len(choices.prompt) > LONGEST_PROMPT:
        raise ValueError(f"This prompt has {len(choices.prompt)} characters; {LONGEST_PROMPT} are taken.")
    if not 1 <= choices.steps <= 200:
        raise ValueError(f"{choices.steps} steps: 1 to 200 are taken.")
    if not 0.0 <= choices.guidance <= 30.0:
        raise ValueError(f"Guidance {choices.guidance:g}: 0 to 30 is taken.")
    if not 0 <= choices.seed < 2**63:
        raise ValueError(f"Seed {choices.seed}: 0 to {2**63 - 1} are taken.")
    if tab.strength is not None and not 0.0 < choices.strength <= 1.0:
        raise ValueError(f"Strength {choices.strength:g}: more than 0 and at most 1 is taken.")


# --- what is handed over ---


def source_of(tab: Tab, given, preset: Preset | None) -> tuple[bytes, str]:
    """(bytes, ending) of the source, of the size that the model works at. given: a PIL picture, an editor's {background, layers,
    composite}, or a clip's path. Raises ValueError where nothing usable was given."""
    if tab.source == "video":
        if not given:
            raise ValueError("Give a video to redraw.")
        return Path(given).read_bytes(), Path(given).suffix or ".mp4"
    width, height = size_of(preset)
    if tab.source == "image":
        if given is None:
            raise ValueError("Give a picture to begin with.")
        return png(cover(given.convert("RGB"), width, height)), ".png"
    if not given or given.get("composite") is None:
        raise ValueError("Give a picture, and paint over what is to change." if tab.source == "mask" else "Draw a shape first.")
    if tab.source == "sketch":
        return png(on_white(cover(given["composite"].convert("RGBA"), width, height))), ".png"
    if given.get("background") is None:
        raise ValueError("Give a picture, and paint over what is to change.")
    painted = painted_over(given["layers"], given["background"].size)
    if painted.getextrema()[1] == 0:
        raise ValueError("Paint over what is to change: nothing is marked.")
    picture = cover(on_white(given["background"].convert("RGBA")), width, height)
    # ComfyUI takes what is transparent for the mask.
    picture.putalpha(cover(painted, width, height).point(lambda value: 0 if value > 127 else 255))
    return png(picture), ".png"


def cover(picture, width: int, height: int):
    """The picture's middle in that size: nothing is stretched."""
    from PIL import ImageOps

    return ImageOps.fit(picture, (width, height))


def on_white(picture):
    """An RGBA picture on white, as RGB."""
    from PIL import Image

    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def painted_over(layers, size):
    """Where any layer of an editor has paint: an L picture, 0 or 255."""
    from PIL import Image, ImageChops

    painted = Image.new("L", size)
    for layer in layers or ():
        alpha = layer.convert("RGBA").getchannel("A").resize(size)
        painted = ImageChops.lighter(painted, alpha.point(lambda value: 255 if value > 25 else 0))
    return painted


def png(picture) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def is_embedded(model: str) -> bool:
    return TINY in model
