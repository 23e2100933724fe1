"""The pictures beside the names of the shipped workflows in ComfyUI's template browser: python run.py thumbnails [NAME ...].

Each is what its workflow makes, run by a ComfyUI started for it. Where a workflow names released files, the embedded models
take their places. Edits show what they are given as well. Where no embedded model stands in for the weights, as with other
people's ControlNets, Tora and Fun, the canvas is shown; a few that show several results are composed by hand.
"""

from __future__ import annotations

from PIL import Image, ImageOps

from ..app.graph import WORKFLOWS
from ..headless import installation
from ..headless.client import Client
from ..headless.launcher import Server, give_inputs
from .help_pictures import changed, evenly, frames, given
from .thumbnails_canvas import canvas

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
                             "cogvideox_continue", "cogvideox_loop", "cogvideox_image_to_video_windows",
                             "sana_video_text_to_video", "sana_video_image_to_video", "sana_video_long",
                             "sana_video_extend")},
    **{name: CLIP for name in ("cogvideox_5b_text_to_video", "cogvideox_1_5_text_to_video")},
    "cogvideox_1_5_image_to_video": CLIP | {"SanaCogLoadCogVideoXModel.model_name": "sanacog_tiny_cogvideox_i2v.safetensors",
                                            "CLIPTextEncode.text": "a yellow square moving down on a purple background"},
}
# Those that change a picture or a clip, which is shown above or beside what they make of it.
EDITS = ("cogvideox_edit", "cogvideox_flow_edit", "cogvideox_edit_masked", "cogvideox_edit_first_frame", "sana_edit",
         "sana_inversion", "sana_rf_inversion")
DRAWN |= dict.fromkeys(EDITS, {})
# Those whose autoencoder, size or further model has no embedded relative: drawn by the embedded model's workflow instead.
ALIKE = {"cogvideox_interpolate": "cogvideox_text_to_video", "cogvideox_upscale": "cogvideox_text_to_video",
         "sana_4k": "sana_quickstart", "sana_video_2b_text_to_video": "sana_video_text_to_video",
         "sana_video_2": "sana_video_text_to_video"}
# Those that nothing embedded can run.
SHOWN = ("cogvideox_controlnet", "cogvideox_fun_control", "cogvideox_fun_inpaint", "cogvideox_tora")


def thumbnail(shown, source=()):
    """One picture of a picture, or of twelve frames of a clip at most, evenly, in rows of six. With a source, it beside the
    picture, or six of its frames above six of the clip."""
    if len(shown) == 1:
        return row([ImageOps.contain(one, (256, 256), Image.Resampling.LANCZOS) for one in (*source, *shown)], 8)
    count = COLUMNS if source else min(2 * COLUMNS, len(shown) // COLUMNS * COLUMNS)
    chosen = [frame.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
              for one in (source, shown) if one for frame in evenly(one, count)]
    rows = [row(chosen[i : i + COLUMNS], GAP) for i in range(0, len(chosen), COLUMNS)]
    sheet = Image.new("RGB", (rows[0].width, len(rows) * (SIDE + GAP) - GAP), "white")
    for i, one in enumerate(rows):
        sheet.paste(one, (0, i * (SIDE + GAP)))
    return sheet


def row(pictures, gap):
    """Pictures of one size side by side."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * (width + gap), 0))
    return sheet


def main(names):
    """Draw those of the names, or all."""
    names = names or [*SHOWN, *DRAWN, *ALIKE]
    if unknown := set(names) - DRAWN.keys() - ALIKE.keys() - set(SHOWN):
        print(f"no thumbnail is drawn for: {', '.join(sorted(unknown))}; there are {', '.join([*SHOWN, *DRAWN, *ALIKE])}")
        return 2
    for name in set(names) & set(SHOWN):
        save(canvas(name), name)
    if drawn := [name for name in names if name not in SHOWN]:
        return draw(drawn)
    return 0


def draw(names):
    """Run each in ComfyUI; returns the exit status."""
    with (Server(installation.host(), arguments=["--disable-api-nodes"]) as server,
          Client(server.url, patience_s=0) as client):
        give_inputs(server.base)
        for name in names:
            made = client.run(changed(ALIKE.get(name, name), **DRAWN[ALIKE.get(name, name)]), 1200).files()
            best = next((e for e in made if e["type"] == "output" and e["filename"].endswith((".webp", ".png"))), None)
            if best is None:
                print(f"{name}: it made no picture and no animated picture, but {[e['filename'] for e in made]}")
                return 1
            save(thumbnail(frames(client.file(best)), given(name) if name in EDITS else ()), name)
    return 0


def save(picture, name):
    file = WORKFLOWS / f"{name}.jpg"
    picture.save(file, quality=88, optimize=True)
    print(f"{file.name}: {picture.width} x {picture.height}, {file.stat().st_size} bytes", flush=True)
