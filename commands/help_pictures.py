"""The pictures of the help pages in web/docs/pictures, drawn anew by the embedded models: python run.py help-pictures.

Give names to draw only these. They come from shipped workflows with few changes, on a ComfyUI started for it.
"""

from __future__ import annotations

import io

import av
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps, ImageSequence

from ..app.graph import WORKFLOWS, shipped
from ..cogvideo_core import schedule
from ..headless import installation
from ..headless.client import Client
from ..headless.launcher import Server, give_inputs
from ..kernels.quant import FORMATS
from . import demo
from .convert import convert

PICTURES = installation.ROOT / "web" / "docs" / "pictures"
WIDTH = 640  # px of a sheet, at most


class Studio:
    """A running ComfyUI, and what it draws."""

    def __init__(self, server, client):
        self.server, self.client = server, client

    def run(self, workflow, ending=".png"):
        """The file with this ending that a workflow in API form makes, in bytes."""
        entry = next(e for e in self.client.run(workflow, 1200).files() if e["filename"].endswith(ending))
        return self.client.file(entry)

    def made(self, name, ending=".png", **inputs):
        """The same for a shipped workflow and its `changed` inputs."""
        return self.run(changed(name, **inputs), ending)

    def clip(self, name, **inputs):
        """The same of one that makes a clip: its frames."""
        return frames(self.made(name, ".webp", **inputs))


def changed(name, **inputs):
    """A shipped workflow. inputs: "class.input" -> value; a text is the prompt's, not the negative's."""
    workflow = shipped(name)
    for node in workflow.values():
        for key, old in node["inputs"].items():
            if old != "":
                node["inputs"][key] = inputs.get(f"{node['class_type']}.{key}", old)
    return workflow


def text_to_image(studio):
    prompts = ["a large red circle on a blue background", "a large yellow square on a purple background",
               "a large green triangle on a white background", "a large orange ring on a black background"]
    return sheet([studio.made("sana_quickstart", **{"SanaCogSanaTextEncode.text": prompt}) for prompt in prompts], prompts)


def flow_dpm_steps(studio):
    steps = 2, 4, 8, 20
    return sheet([studio.made("sana_flow_dpm_solver", **{"SanaCogSanaSigmas.steps": n}) for n in steps],
                 [f"{n} steps" for n in steps])


def sprint_steps(studio):
    steps = 1, 2, 4
    tiny = {"SanaCogLoadSanaModel.model_name": "sanacog_tiny_sana_sprint.safetensors",
            "SanaCogLoadSanaTextEncoder.text_encoder_name": "sanacog_tiny_gemma2.safetensors",
            "SanaCogLoadDCAE.vae_name": "sanacog_tiny_dcae.safetensors",
            "SanaCogEmptySanaLatent.width": 256, "SanaCogEmptySanaLatent.height": 256,
            "SanaCogSanaTextEncode.text": "a large yellow star on a purple background"}
    return sheet([studio.made("sana_sprint", **tiny, **{"SanaCogSanaSprintSampler.steps": n}) for n in steps],
                 [f"{n} step{'s' * (n > 1)}" for n in steps])


def perturbed_attention(studio):
    scales = 0, 2, 4

    def drawn(scale):
        workflow = changed("sana_quickstart", **{"SanaCogSanaTextEncode.text": "a large yellow star on a purple background"})
        sampler = next(node["inputs"] for node in workflow.values() if node["class_type"] == "KSampler")
        workflow["pag"] = {"class_type": "SanaCogSanaPAG", "inputs": {
            "model": sampler["model"], "scale": scale, "blocks": "auto", "start_percent": 0.0, "end_percent": 1.0}}
        sampler["model"] = ["pag", 0]
        return studio.run(workflow)
    return sheet(map(drawn, scales), [f"scale {scale}" for scale in scales])


def controlnet(studio):
    """The edges of a picture, and what three prompts draw along them."""
    prompts = ["a green square on a white background", "a red square on a blue background", "a white square on a black background"]
    aside = Image.new("RGB", (256, 256), "#fd5")
    ImageDraw.Draw(aside).rectangle((30, 110, 130, 210), fill="#22a")
    aside.save(studio.server.base / "input" / "aside.png")

    def drawn(prompt):
        inputs = {"LoadImage.image": "aside.png", "SanaCogSanaTextEncode.text": prompt, "KSampler.seed": 5}
        files = studio.client.run(changed("sana_controlnet", **inputs), 1200).files()
        return {entry["type"]: studio.client.file(entry) for entry in files}
    made = [drawn(prompt) for prompt in prompts]
    return sheet([made[0]["temp"], *(files["output"] for files in made)], ["the edges, by Canny", *prompts])


def lora(studio):
    """Three prompts without the embedded LoRA and with it, under each other."""
    prompts = ["a large red circle on a blue background", "a large green triangle on a white background",
               "a large yellow square on a black background"]

    def row(strength, captions):
        return sheet([studio.made("sana_lora", **{"SanaCogSanaTextEncode.text": prompt, "SanaCogLoadLoRA.strength_model": strength})
                      for prompt in prompts], captions)
    without, with_it = row(0.0, ["strength 0"] * len(prompts)), row(1.0, prompts)
    both = Image.new("RGB", (without.width, without.height + with_it.height), "white")
    both.paste(without, (0, 0))
    both.paste(with_it, (0, without.height))
    return both


def quantised(studio):
    """One picture by the embedded Sana as it is and in each format. The weights are turned back to bf16 when they are
    loaded, which every ComfyUI can do: what is seen is the weights' share of the loss."""
    folder, name = studio.server.base / "models" / "diffusion_models", "sanacog_tiny_sana.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"as it is": name} | {kind: f"help_{kind}.safetensors" for kind in FORMATS}
    for kind in FORMATS:
        convert(installation.ROOT / "models" / "diffusion_models" / name, folder / files[kind], quantize=kind)
    return sheet([studio.made("sana_quickstart", **{
        "SanaCogLoadSanaModel.model_name": file, "SanaCogLoadSanaModel.weight_dtype": "bf16",
        "SanaCogSanaTextEncode.text": "a large yellow square on a purple background"}) for file in files.values()], files)


def autoencoder(studio):
    """A picture, its latent channel by channel, and the picture decoded from it."""
    from safetensors.torch import load_file

    link = {"vae": ["2", 0]}
    decoded = studio.run({
        "1": {"class_type": "LoadImage", "inputs": {"image": "sanacog_circle.png"}},
        "2": {"class_type": "SanaCogLoadDCAE", "inputs": {"vae_name": "sanacog_tiny_dcae.safetensors"}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], **link}},
        "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "help"}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], **link}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "help"}}})
    latent = load_file(next((studio.server.base / "output").glob("help*.latent")))["latent_tensor"][0].float()
    grid = Image.new("L", (8 * 32, 8 * 32), 255)
    for i, channel in enumerate((latent / latent.abs().amax() * 127.5 + 127.5).byte()):
        tile = Image.fromarray(channel.numpy()).resize((30, 30), Image.Resampling.NEAREST)
        grid.paste(tile, (i % 8 * 32, i // 8 * 32 + 64))
    shown = [(studio.server.base / "input" / "sanacog_circle.png").read_bytes(), as_png(grid), decoded]
    return sheet(shown, ["a picture, 3 x 256 x 256", "its latent, 32 x 8 x 8: the channels", "decoded from the latent"])


def text_to_video(studio):
    prompts = ["a red circle moving right on a blue background", "a white triangle moving up on a red background"]
    return strips([studio.clip("cogvideox_text_to_video", **{"CLIPTextEncode.text": prompt}) for prompt in prompts], prompts)


def image_to_video(studio):
    prompts = ["a yellow square moving right on a purple background", "a yellow square moving down on a purple background"]
    clips = [studio.clip("cogvideox_image_to_video", **{"CLIPTextEncode.text": prompt}) for prompt in prompts]
    return strips(clips, [f"from the same first frame: {prompt}" for prompt in prompts])


def flow_edit(studio):
    return strips([given("cogvideox_flow_edit"), studio.clip("cogvideox_flow_edit")],
                  ["given: a yellow square moving right on a purple background", "the same with green in place of yellow"])


def picture_edit(studio):
    return sheet([as_png(given("sana_edit")[0]), studio.made("sana_edit")],
                 ["given: a large red circle", "a large blue circle"])


def keep_structure(studio):
    """An edit by inversion with Keep Structure, and the same without that node."""
    workflow = changed("cogvideox_edit")
    key, node = next((key, node) for key, node in workflow.items() if node["class_type"] == "SanaCogKeepStructure")
    for other in workflow.values():
        other["inputs"] = {name: node["inputs"]["model"] if value == [key, 0] else value
                           for name, value in other["inputs"].items()}
    return strips([given("cogvideox_edit"), frames(studio.run(workflow, ".webp")), studio.clip("cogvideox_edit")],
                  ["given: a yellow square moving right on a purple background", "green by inversion alone",
                   "with Keep Structure"])


def inversion(studio):
    return sheet([as_png(given("sana_inversion")[0]), studio.made("sana_inversion")],
                 ["given: a large red circle", "to noise, and back by another prompt"])


def mask_video(studio):
    """What is given, its mask, and what comes of it."""
    return strips([*(given("cogvideox_edit_masked", which) for which in (0, 1)), studio.clip("cogvideox_edit_masked")],
                  ["given: a yellow square moving right on a purple background", "the mask",
                   "a green square, within the mask"])


def continued(studio):
    clip = studio.clip("cogvideox_continue")
    return strips([clip[:9], clip[8:]], ["a clip of 9 frames", "what follows, by another prompt"])


def loop(studio):
    return strips([studio.clip("cogvideox_loop")], ["a loop of 12 frames: its first follows its last"], 6)


def long_video(studio):
    clip = studio.clip("sana_video_long")
    return strips([clip[:41], clip[40:]], ["81 frames, block by block: every tenth of the first half",
                                           "and of the second, by another prompt"])


def extended(studio):
    clip = studio.clip("sana_video_extend")
    return strips([clip[:17], clip[16:49]],
                  ["a clip of 17 frames: every fourth", "half of what was added: every eighth, by another prompt"])


def decode_tiles(studio):
    """The same latent decoded whole and in tiles, and how far apart they are."""
    def decoded(side):
        inputs = {"SanaCogCogVideoXDecode.tile_width": side, "SanaCogCogVideoXDecode.tile_height": side,
                  "CLIPTextEncode.text": "a red circle moving right on a blue background"}
        return studio.made("cogvideox_dynamic_guidance", ".webp", **inputs)

    whole, tiles = decoded(0), decoded(64)
    return sheet([whole, tiles, apart(whole, tiles)],
                 ["one frame of 96 x 96, decoded whole", "in tiles of 64 x 64", "the difference, x 8"])


def dynamic_guidance(studio):
    """Both modes over 50 steps, at cfg 6."""
    steps, scale = 50, 6.0
    lowest, highest, step = 200, 20, 11  # px
    plot = Image.new("RGB", (60 + steps * step, 250), "white")
    draw, font = ImageDraw.Draw(plot), ImageFont.load_default(size=13)
    for guidance in range(1, 8):
        y = lowest - (guidance - 1) / scale * (lowest - highest)
        draw.line([(40, y), (plot.width - 10, y)], "#ddd")
        draw.text((22, y - 8), str(guidance), "black", font)
    timesteps = schedule.trailing_timesteps(steps)
    for colour, name, values in (
            ("#c33", "wave", [schedule.guidance_wave(t, steps, scale) for t in timesteps]),
            ("#36c", "ramp", [schedule.guidance_ramp(t, scale) for t in timesteps])):
        points = [(45 + i * step, lowest - (float(g) - 1) / scale * (lowest - highest)) for i, g in enumerate(values)]
        draw.line(points, colour, 2)
        draw.text((45 if name == "wave" else 125, 222), name, colour, font)
    draw.text((220, 222), f"guidance at each of {steps} steps, cfg {scale:g}", "black", font)
    return plot


def sheet(pictures, captions):
    """Pictures beside each other with their captions, WIDTH in all."""
    side = min(256, WIDTH // len(captions) - 16)
    small = [picture(data).resize((side, side), Image.Resampling.LANCZOS) for data in pictures]
    return demo.contact_sheet(map(as_png, small), captions)


def apart(one, other):
    """How far two pictures are apart, eight times as strong."""
    difference = ImageChops.difference(picture(one), picture(other))
    return as_png(difference.point(lambda value: min(255, 8 * value)))


def strips(clips, captions, count=5):
    """So many frames of clips, evenly, a clip a row under its caption, WIDTH in all at most."""
    side = WIDTH // count - 5  # and the gaps

    def thinned(clip):
        first, *more = [ImageOps.contain(frame, (min(side, frame.width),) * 2) for frame in evenly(clip, count)]
        out = io.BytesIO()
        first.save(out, "WEBP", save_all=True, append_images=more, lossless=True)
        return out.getvalue()
    return demo.film_strips(map(thinned, clips), captions)


def evenly(clip, count):
    return [clip[round(i * (len(clip) - 1) / (count - 1))] for i in range(count)]


def frames(data):
    """Of a file's bytes, RGB; a picture is a clip of one."""
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]


def given(name, which=0):
    """Of a picture or video that a workflow loads, the first unless told, the frames."""
    node = [node for node in shipped(name).values() if node["class_type"] in ("LoadVideo", "LoadImage")][which]
    path = WORKFLOWS / "input" / next(iter(node["inputs"].values()))
    if node["class_type"] == "LoadImage":
        return frames(path.read_bytes())
    with av.open(str(path)) as video:
        return [frame.to_image() for frame in video.decode(video=0)]


def picture(data):
    """From a file's bytes; of a moving one the first frame."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def as_png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


DRAWN = {draw.__name__: draw for draw in (
    text_to_image, flow_dpm_steps, sprint_steps, perturbed_attention, controlnet, lora, quantised, autoencoder, text_to_video,
    image_to_video, flow_edit, picture_edit, keep_structure, inversion, mask_video, continued, loop, long_video, extended,
    decode_tiles, dynamic_guidance)}


def main(names):
    if unknown := set(names) - DRAWN.keys():
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(DRAWN)}")
        return 2
    PICTURES.mkdir(exist_ok=True)
    with Server(installation.host(), arguments=["--disable-api-nodes"]) as server, Client(server.url, patience_s=0) as client:
        give_inputs(server.base)
        for name in names or DRAWN:
            drawn, file = DRAWN[name](Studio(server, client)), PICTURES / f"{name}.jpg"
            drawn.convert("RGB").save(file, quality=88, optimize=True)
            print(f"{file.name}: {drawn.width} x {drawn.height}, {file.stat().st_size} bytes")
    return 0
