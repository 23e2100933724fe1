"""python run.py demo: a headless ComfyUI draws prompts with the embedded tiny Sana, and makes three videos of one: with the
embedded tiny CogVideoX from the text, and from a picture that Sana draws, and with the tiny SANA-Video. Runs in the environment.
"""

import argparse
import os
import re
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from ..app.graph import filled, shipped
from ..headless import installation
from ..headless.client import Client
from ..headless.launcher import Server

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = "sana_quickstart"
PROMPTS = ["a large red circle on a blue background", "a large yellow square on a purple background",
           "a green triangle above an orange ring on a white background", "three red circles on a black background"]
VIDEO_WORKFLOWS = ("cogvideox_text_to_video", "sana_to_cogvideox", "sana_video_text_to_video")
MOST_FRAMES = 9  # of a strip
VIDEO_PROMPT = "a red circle moving right on a white background"


def parser():
    parser = argparse.ArgumentParser(prog="run.py demo", description="Draw with the embedded tiny Sana, and make three "
                                     "videos: with the tiny CogVideoX from text, and from a picture that Sana draws, and with the tiny "
                                     "SANA-Video.")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="what to draw; give it more than once for "
                        "more pictures (default: four prompts of the tiny model's world)")
    parser.add_argument("--video-prompt", default=VIDEO_PROMPT, metavar="TEXT",
                        help="what the videos show (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first picture, and of the videos; the "
                        "next pictures' count up (default: %(default)s)")
    parser.add_argument("--steps", type=positive, help="sampling steps (default: the workflow's)")
    parser.add_argument("--output", type=Path, default=ROOT / "output", metavar="DIR",
                        help="folder for the pictures and videos (default: output/)")
    return parser


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def write_whole(path, data):
    """Write a file under another name first, so that under its own it is never half there."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def file_name(number, prompt, kind="sana", ending="png"):
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return f"{kind}_{number}_{words[:60].rstrip('-') or 'picture'}.{ending}"


class Progress:
    """One line: it is written over where there is a terminal, else it is written once, when it is done."""

    def __init__(self, count):
        self.count, self.number, self.prompt = count, 0, ""
        self.live = sys.stdout.isatty()

    def next(self, prompt):
        self.number, self.prompt = self.number + 1, prompt
        self.show("loading")

    def event(self, kind, data):
        if kind == "progress":
            self.show(f"step {data['value']}/{data['max']}")

    def show(self, state, end="\r"):
        if self.live or end == "\n":
            print(f"[{self.number}/{self.count}] {self.prompt[:80]}: {state}".ljust(110 if self.live else 0),
                  end=end, flush=True)


def contact_sheet(pictures, prompts):
    """All pictures in one, in rows of up to four, each with its prompt under it; returns a PIL image."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = [Image.open(BytesIO(data)).convert("RGB") for data in pictures]
    font = ImageFont.load_default(size=13)
    side, gap, line = max(max(picture.size) for picture in pictures), 12, 17
    captions = [wrapped(prompt, font, side)[:6] for prompt in prompts]
    columns = min(len(pictures), 4)
    height = side + gap + line * max(map(len, captions))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (gap + columns * (side + gap), gap + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions)):
        x, y = gap + i % columns * (side + gap), gap + i // columns * (height + gap)
        sheet.paste(picture, (x, y))
        for n, text in enumerate(caption):
            draw.text((x, y + side + gap // 2 + n * line), text, "black", font)
    return sheet


def film_strips(clips, captions):
    """Frames of animated pictures, MOST_FRAMES at most, in one, a clip a row under its caption; returns a PIL image."""
    from PIL import Image, ImageDraw, ImageFont, ImageSequence

    clips = [[frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(BytesIO(data)))] for data in clips]
    clips = [clip[::-(-len(clip) // MOST_FRAMES)] for clip in clips]
    font, gap, line = ImageFont.load_default(size=13), 4, 24
    width, height = (max(size) for size in zip(*(frame.size for clip in clips for frame in clip)))
    sheet = Image.new("RGB", (gap + max(map(len, clips)) * (width + gap), len(clips) * (line + height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions)):
        top = row * (line + height + gap)
        draw.text((gap, top + 4), wrapped(caption, font, sheet.width - 2 * gap)[0], "black", font)
        for i, frame in enumerate(clip):
            sheet.paste(frame, (gap + i * (width + gap), top + line))
    return sheet


def wrapped(text, font, width):
    """`text` in lines that are at most `width` pixels wide; a word that is wider is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width:
            word = word[:-1]
        lines.append(word)
    return [line for line in lines if line] or ["(empty prompt)"]


def main(arguments):
    """Draw; returns the exit status. Raises SetupError, LaunchError, Refused, Failed, OSError."""
    options = parser().parse_args(arguments)
    prompts = options.prompt or PROMPTS
    options.output.mkdir(parents=True, exist_ok=True)
    paths, pictures, clips = [], [], []

    def save(name, data):
        paths.append(options.output / name)
        write_whole(paths[-1], data)

    print("Starting ComfyUI ...", flush=True)
    with Server(installation.host(), arguments=["--disable-api-nodes"]) as server, Client(server.url, patience_s=0) as client:
        progress = Progress(len(prompts) + len(VIDEO_WORKFLOWS))

        def run(workflow, prompt, seed, shown):
            progress.next(shown)
            result = client.run(filled(shipped(workflow), {"seed": seed, "steps": options.steps}, prompt),
                                timeout_s=3600, on_event=progress.event)
            progress.show(f"{result.seconds:.1f} s", end="\n")
            return result.files()

        for i, prompt in enumerate(prompts):
            pictures.append(client.file(run(WORKFLOW, prompt, options.seed + i, prompt)[0]))
            save(file_name(i + 1, prompt), pictures[-1])
        for i, name in enumerate(VIDEO_WORKFLOWS):
            files = run(name, options.video_prompt, options.seed, f"{name}, {options.video_prompt}")
            video, clip = (next(entry for entry in files if entry["filename"].endswith(ending))
                           for ending in (".mp4", ".webp"))
            save(file_name(i + 1, options.video_prompt, name, "mp4"), client.file(video))
            clips.append(client.file(clip))
    for name, sheet in (("sana_contact_sheet.png", contact_sheet(pictures, prompts)),
                        ("video_contact_sheet.png", film_strips(clips, [
                            f"{name}: {options.video_prompt}" for name in VIDEO_WORKFLOWS]))):
        data = BytesIO()
        sheet.save(data, "PNG")
        save(name, data.getvalue())
    print("\n".join(map(str, paths)))
    return 0
