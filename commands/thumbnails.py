"""The pictures beside the names of the shipped workflows in ComfyUI's template browser: python run.py thumbnails [NAME ...].

Each is what its workflow makes, run by a ComfyUI started for it. Where a workflow names released files, the embedded models
take their places. Those that need weights that no embedded model stands in for (other people's ControlNets, Tora, Fun,
interpolation, upscaling) have none, and those that show something beside the result are composed by hand.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps, ImageSequence

from ..app.graph import WORKFLOWS
from ..headless import installation
from ..headless.client import Client
from ..headless.launcher import Server, give_inputs
from . import help_pictures

SIDE, COLUMNS, GAP = 96, 6, 2  # px of a frame, frames in a row, px between them
PICTURE = {"SanaCogLoadSanaModel.model_name": "sanacog_tiny_sana.safetensors",
           "SanaCogLoadSanaTextEncoder.text_encoder_name": "sanacog_tiny_gemma2.safetensors",
           "SanaCogLoadDCAE.vae_name": "sanacog_tiny_dcae.safetensors",
           "SanaCogEmptySanaLatent.width": 256, "SanaCogEmptySanaLatent.height": 256,
           "SanaCogSanaTextEncode.text": "a large purple triangle at the bottom on a yellow background"}
CLIP = {"SanaCogLoadCogVideoXTextEncoder.text_encoder_name": "sanacog_tiny_t5.safetensors",
        "SanaCogLoadCogVideoXVAE.vae_name": "sanacog_tiny_cogvideox_vae.safetensors",
        "UNETLoader.unet_name": "sanacog_tiny_cogvideox.safetensors",
        "SanaCogLoadCogVideoXModel.model_name": "sanacog_tiny_cogvideox.safetensors",
        **{f"SanaCog{node}.{key}": value for node in ("EmptyCogVideoXLatent", "CogVideoXImageToVideo")
           for key, value in (("width", 96), ("height", 96), ("length", 9))},
        "CLIPTextEncode.text": "a green circle moving right on a white background"}
SPRINT = PICTURE | {"SanaCogLoadSanaModel.model_name": "sanacog_tiny_sana_sprint.safetensors"}

# workflow: the inputs that are changed for it
DRAWN = {
    **{name: PICTURE for name in ("sana_enhance_prompt", "sana_quantize")},
    **{name: {} for name in ("sana_quickstart", "sana_flow_dpm_solver", "sana_guidance", "sana_image_to_image",
                             "sana_inpaint", "sana_lora", "sana_stock_text_encode")},
    "sana_sprint": SPRINT, "sana_sprint_custom": SPRINT,
    "sana_sprint_image_to_image": SPRINT | {"SanaCogSanaTextEncode.text": "a large green circle on a white background"},
    "sana_sprint_inpaint": SPRINT | {"SanaCogSanaTextEncode.text": "a large blue square on a yellow background"},
    **{name: {} for name in ("cogvideox_text_to_video", "cogvideox_image_to_video", "cogvideox_video_to_video",
                             "cogvideox_dynamic_guidance", "cogvideox_step_cache", "sana_to_cogvideox",
                             "sana_video_text_to_video", "sana_video_image_to_video", "sana_video_long", "sana_video_extend")},
    **{name: CLIP for name in ("cogvideox_5b_text_to_video", "cogvideox_1_5_text_to_video")},
    "cogvideox_1_5_image_to_video": CLIP | {"SanaCogLoadCogVideoXModel.model_name": "sanacog_tiny_cogvideox_i2v.safetensors",
                                            "CLIPTextEncode.text": "a yellow square moving down on a purple background"},
}
# Those whose autoencoder, or size, has no embedded relative: drawn by the workflow of the embedded model instead.
ALIKE = {"sana_4k": "sana_quickstart", "sana_video_2b_text_to_video": "sana_video_text_to_video",
         "sana_video_2": "sana_video_text_to_video"}


def frames(data):
    """Of a file's bytes, RGB; a picture is a clip of one."""
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]


def thumbnail(shown):
    """One picture of a picture, or of twelve frames of a clip at most, evenly, in rows of six."""
    if len(shown) == 1:
        return ImageOps.contain(shown[0], (256, 256), Image.Resampling.LANCZOS)
    count = min(2 * COLUMNS, len(shown) // COLUMNS * COLUMNS)
    chosen = [shown[round(i * (len(shown) - 1) / (count - 1))] for i in range(count)]
    step = SIDE + GAP
    sheet = Image.new("RGB", (COLUMNS * step - GAP, count // COLUMNS * step - GAP), "white")
    for i, frame in enumerate(chosen):
        sheet.paste(frame.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (i % COLUMNS * step, i // COLUMNS * step))
    return sheet


def main(names):
    """Draw those of the names, or all."""
    if unknown := set(names) - DRAWN.keys() - ALIKE.keys():
        print(f"no thumbnail is drawn for: {', '.join(sorted(unknown))}; there are {', '.join([*DRAWN, *ALIKE])}")
        return 2
    with (Server(installation.host(), arguments=["--disable-api-nodes"]) as server,
          Client(server.url, patience_s=0) as client):
        give_inputs(server.base)
        for name in names or [*DRAWN, *ALIKE]:
            made = client.run(help_pictures.changed(ALIKE.get(name, name), **DRAWN[ALIKE.get(name, name)]), 1200).files()
            best = next((e for e in made if e["type"] == "output" and e["filename"].endswith((".webp", ".png"))), None)
            if best is None:
                print(f"{name}: it made no picture and no animated picture, but {[e['filename'] for e in made]}")
                return 1
            picture, file = thumbnail(frames(client.file(best))), WORKFLOWS / f"{name}.jpg"
            picture.save(file, quality=88, optimize=True)
            print(f"{file.name}: {picture.width} x {picture.height}, {file.stat().st_size} bytes", flush=True)
    return 0
