"""python run.py demo: a headless ComfyUI draws prompts with the embedded tiny Sana. Runs in the environment."""

import argparse
import json
import os
import re
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from .client import Client
from .launcher import Server

ROOT = Path(__file__).resolve().parent
WORKFLOW = ROOT / "workflows" / "api" / "sana_quickstart.json"
PROMPTS = ["a large red circle on a blue background", "a large yellow square on a purple background",
           "a large green triangle on a white background", "a large orange ring on a black background"]


def parser():
    parser = argparse.ArgumentParser(prog="run.py demo", description=__doc__.split(":")[1].split(". ")[0].strip())
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="what to draw; give it more than once for "
                        "more pictures (default: four prompts of the tiny model's world)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first picture; the next ones count up "
                        "(default: %(default)s)")
    parser.add_argument("--steps", type=positive, help="sampling steps (default: the workflow's)")
    parser.add_argument("--output", type=Path, default=ROOT / "output", metavar="DIR",
                        help="folder for the pictures (default: output/)")
    return parser


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def filled(workflow, prompt, seed, steps):
    """The workflow (API form) with these in its sampler, and the text in the node that is the sampler's positive."""
    workflow = json.loads(json.dumps(workflow))
    sampler = next(node["inputs"] for node in workflow.values() if node["class_type"] == "KSampler")
    sampler["seed"] = seed
    if steps:
        sampler["steps"] = steps
    workflow[sampler["positive"][0]]["inputs"]["text"] = prompt
    return workflow


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


def file_name(number, prompt):
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return f"sana_{number}_{words[:60].rstrip('-') or 'picture'}.png"


class Progress:
    """One line: it is written over where there is a terminal, else it is written once, when the picture is done."""

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
            print(f"[{self.number}/{self.count}] {self.prompt[:60]}: {state}".ljust(90 if self.live else 0),
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


def main(arguments, host):
    """Draw; returns the exit status. host: ComfyUI's folder. Raises LaunchError, Refused, Failed, OSError."""
    options = parser().parse_args(arguments)
    prompts = options.prompt or PROMPTS
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    options.output.mkdir(parents=True, exist_ok=True)
    paths, pictures = [], []
    print("Starting ComfyUI ...", flush=True)
    with Server(host, arguments=["--disable-api-nodes"]) as server, Client(server.url) as client:
        progress = Progress(len(prompts))
        for i, prompt in enumerate(prompts):
            progress.next(prompt)
            result = client.run(filled(workflow, prompt, options.seed + i, options.steps), timeout_s=3600,
                                on_event=progress.event)
            path = options.output / file_name(i + 1, prompt)
            pictures.append(client.file(result.files()[0]))
            write_whole(path, pictures[-1])
            paths.append(path)
            progress.show(f"{result.seconds:.1f} s", end="\n")
    sheet = BytesIO()
    contact_sheet(pictures, prompts).save(sheet, "PNG")
    paths.append(options.output / "sana_contact_sheet.png")
    write_whole(paths[-1], sheet.getvalue())
    print("\n".join(map(str, paths)))
    return 0
