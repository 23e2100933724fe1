"""The workflows that the pack ships, as they are and with the embedded models in place of released files."""

import json
from pathlib import Path

from ..host.tiny_smoother import INTERPOLATION, TIMES, UPSCALER

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))

# What takes the place of released files, which no test downloads, and of their size: {node type: its first widget}.
EMBEDDED = {
    "SanaCogLoadSanaModel": "sanacog_tiny_sana.safetensors",
    "SanaCogLoadSanaTextEncoder": "sanacog_tiny_gemma2.safetensors",
    "SanaCogLoadDCAE": "sanacog_tiny_dcae.safetensors",
    "SanaCogSanaResolution": "512",  # the least; the embedded model is made for 256
    "SanaCogLoadSanaControlNet": "sanacog_tiny_sana_controlnet.safetensors",
    "SanaCogLoadSanaVideoModel": "sanacog_tiny_sana_video.safetensors",
    "SanaCogLoadCogVideoXControlNet": "random_cogvideox_controlnet.safetensors",  # which the tests make
    "SanaCogLoadCogVideoXModel": "sanacog_tiny_cogvideox.safetensors",
    "SanaCogLoadCogVideoXTextEncoder": "sanacog_tiny_t5.safetensors",
    "SanaCogLoadCogVideoXVAE": "sanacog_tiny_cogvideox_vae.safetensors",
    "FrameInterpolationModelLoader": INTERPOLATION, "UpscaleModelLoader": UPSCALER,  # which the tests make
}
# What takes the place of a model beside one of these nodes: embedded, and random ones that the tests make.
CONDITIONED = {
    "SanaCogSanaSprintSampler": "sanacog_tiny_sana_sprint.safetensors",
    "SanaCogSanaSCM": "sanacog_tiny_sana_sprint.safetensors",
    "SanaCogCogVideoXImageToVideo": "sanacog_tiny_cogvideox_i2v.safetensors",
    "SanaCogCogVideoXFunInpaint": "random_fun_inpaint.safetensors",
    "SanaCogCogVideoXFunControl": "random_fun_control.safetensors",
}
# What takes the place of the stock autoencoders: random ones; and of what goes with them.
AUTOENCODERS = {
    "wan_2.1_vae.safetensors": ("random_wan_vae.safetensors", "sanacog_tiny_sana_video.safetensors"),
    "LTX23_video_vae_bf16.safetensors": ("random_ltx2_vae.safetensors", "random_sana_video_2.safetensors"),
}
FRAMES, SIDE = 9, 96  # of all videos that are made with them
LONGER = {"sana_video_text_to_video": 17, "sana_video_image_to_video": 17, "sana_video_long": 81,
          "sana_video_extend": 81, "sana_video_2b_text_to_video": 17, "cogvideox_continue": 17, "cogvideox_loop": 12,
          "cogvideox_interpolate": 17}
LARGER = {"cogvideox_upscale": TIMES * SIDE}
# What older ComfyUIs lack: a node without which a workflow cannot be opened, or cannot run.
TO_OPEN = {"cogvideox_interpolate": "FrameInterpolate"}
TO_RUN = {**TO_OPEN, "sana_enhance_prompt": "TextGenerate"}


def shipped(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def graph(api: dict) -> dict:
    """An API workflow without the titles: those that nobody set are worded differently from frontend to frontend. And
    without the places where Load Video and Preview as Text show what has come, which are among the inputs then."""
    def is_display(node, name):
        return name == "video-preview" or node["class_type"] == "PreviewAny" and name != "source"

    return {key: {"class_type": node["class_type"], "inputs": {
        name: value for name, value in node["inputs"].items() if not is_display(node, name)}} for key, node in api.items()}


def with_embedded_models(workflow: dict) -> dict:
    """The canvas workflow with the embedded models in its loaders, and with what makes it quick."""
    autoencoders = [AUTOENCODERS[node["widgets_values"][0]] for node in workflow["nodes"] if node["type"] == "VAELoader"]
    conditioned = {CONDITIONED[node["type"]] for node in workflow["nodes"] if node["type"] in CONDITIONED}
    sprint = conditioned == {"sanacog_tiny_sana_sprint.safetensors"}
    loader = "SanaCogLoadSanaModel" if sprint else "SanaCogLoadCogVideoXModel"
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if node["type"] in EMBEDDED:
            values[0] = EMBEDDED[node["type"]]
            node["properties"].pop("models", None)
        if node["type"] == loader and conditioned:
            values[0], = conditioned
        if autoencoders and node["type"] in ("VAELoader", "SanaCogLoadSanaVideoModel"):
            values[0] = autoencoders[0][node["type"] != "VAELoader"]
            node["properties"].pop("models", None)
        if node["type"] in ("EmptyHunyuanLatentVideo", "EmptyLTXVLatentVideo") and autoencoders:
            values[:3] = SIDE, SIDE, 17 if node["type"] == "EmptyHunyuanLatentVideo" else 9
        if node["type"] == "SanaCogSanaSigmas" and autoencoders:
            values[0] = 4
        if node["type"] == "SanaCogCogVideoXTora":  # random parts, which the tests make
            values[:6] = "fuser.safetensors", "traj_extractor.safetensors", SIDE, SIDE, FRAMES, "[[20, 20], [70, 60]]"
        if node["type"] == "SanaCogSanaTextEncode" and values[0] and "background" not in values[0]:
            values[0] = "a large red circle on a blue background"  # of what it does not know, it may draw a plain background
        if node["type"] == "SanaCogEmptySanaLatent":
            values[:2] = 256, 256
        if node["type"] == "SanaCogSanaCropToSize":
            values[:2] = 320, 180
        if node["type"] == "SanaCogEmptyCogVideoXLatent" or node["type"] in CONDITIONED and "CogVideoX" in node["type"]:
            values[:3] = SIDE, SIDE, FRAMES
        if node["type"] == "SanaCogCogVideoXSigmas":
            values[0] = 8
        if node["type"] == "KSampler":
            values[2] = min(values[2], 25)
    return workflow
