"""python run.py evaluate: how well a model draws, from pictures that are there or that a workflow draws in ComfyUI."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np

from ..bench import record
from ..evaluation import clip, distances, figures, files, image_reward, vision_language
from ..evaluation.drawn import clips, shapes, words
from ..headless import installation, launcher
from ..headless.client import Client
from . import demo, evaluate_drawing

ROOT = Path(__file__).resolve().parents[1]
# {name: (its prompts, how clips of them are judged)}
PROMPTS = {
    "pictures": (lambda: shapes.evaluation_scenes()[1], "clips"),
    "six": (lambda: shapes.wider_scenes()[1], "clips"),
    "two": (words.two_shapes, "clips"),
    "counting": (words.counting, "clips"),
    "clips": (lambda: clips.evaluation_scenes()[1], "clips"),
    "roaming": (lambda: clips.evaluation_scenes()[1], "roaming"),
}
ON_SHEET, SIDE = (64, 12), 256  # pictures, clips; pixels a side at most
SAID = ("workflow", "prompts", "seed", "steps", "best_of", "verifier")  # options in the report
HAVE_ONE = {"clip": clip.HAVE_ONE, "preference": clip.HAVE_ONE, "image_reward": image_reward.HAVE_ONE, "vlm": vision_language.HAVE_ONE}
REPORT, ROWS, SHEET = "evaluation.json", "rows.jsonl", "contact_sheet.png"


def parser():
    parser = argparse.ArgumentParser(
        prog="run.py evaluate", description="Measure pictures or clips: whether they obey their prompts (drawn world of the "
        "embedded models), CLIP score, what a preference or a vision-language model thinks, FID and KID to other pictures, and "
        "how clips move. "
        "Writes evaluation.json, rows.jsonl, a line a file, and contact_sheet.png. Run again, it goes on where it "
        "stopped. Exit status: 0, 1 below --at-least, 2 it could not be done.",
        epilog="docs/evaluation.md says what the figures mean.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workflow", metavar="NAME|FILE",
                      help="draw with it: a shipped workflow's name, or a file of yours in API form")
    what.add_argument("--pictures", type=Path, metavar="DIR", help="a folder of pictures or clips, prompts in "
                      "metadata.jsonl, in .txt files beside them, or in the PNGs as ComfyUI writes them")
    parser.add_argument("--prompts", metavar="SET|FILE", help=f"what is drawn: {', '.join(PROMPTS)}, or a text file with a "
                        "prompt a line (default: those that the embedded model of the workflow's kind never saw)")
    parser.add_argument("--count", type=positive, metavar="N", help="only the first prompts, or pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; the next ones' count up (default: 0)")
    parser.add_argument("--steps", type=positive, help="sampling steps (default: the workflow's)")
    parser.add_argument("--best-of", type=positive, metavar="N", help="draw N of each prompt, or take the pictures that "
                        "share one, and say what keeping the best gains")
    parser.add_argument("--verifier", choices=tuple(figures.VERIFIERS), default="judge",
                        help="who says which is best (default: judge)")
    parser.add_argument("--world", choices=("clips", "roaming"), help="roaming: what leaves a clip comes in on the other "
                        "side, as with the embedded SANA-Video (default: the prompts')")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="a CLIP's folder, for CLIP score, FID and KID")
    parser.add_argument("--preference", type=Path, metavar="DIR", help="a preference model that is a CLIP, as PickScore")
    parser.add_argument("--image-reward", type=Path, metavar="DIR", help="ImageReward's folder, with the tokenizer of BERT in it")
    parser.add_argument("--vlm", type=Path, metavar="DIR", help="a vision-language model that chats, as Qwen2.5-VL: how sure it is "
                        "that a picture or clip shows its prompt")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="pictures to measure FID and KID to; needs --clip")
    parser.add_argument("--device", default="cpu", help="of --clip, --preference, --image-reward and --vlm: cpu, cuda (default: cpu)")
    parser.add_argument("--server", metavar="URL", help="a ComfyUI that runs, with your models (default: one is started; "
                        "its models are those of `serve`)")
    parser.add_argument("--at-least", type=float, metavar="SHARE",
                        help="exit status 1 where fewer pictures obey all of their prompt")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: output/evaluate/NAME")
    return parser


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def main(arguments):
    """Returns the exit status. Raises SetupError, LaunchError, Refused, Failed, OSError."""
    options = parser().parse_args(arguments)
    try:
        return evaluate(options)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


def evaluate(options):
    if options.reference and not options.clip:
        raise ValueError(f"--reference needs --clip: FID and KID are taken from its features. {clip.HAVE_ONE}")
    if options.best_of and options.verifier != "judge" and not getattr(options, options.verifier):
        raise ValueError(f"--verifier {options.verifier} needs --{options.verifier.replace('_', '-')}. {HAVE_ONE[options.verifier]}")
    folders = {"clip": options.clip, "preference": options.preference}
    models = {name: folder and clip.Clip(folder, options.device) for name, folder in folders.items()}
    models["image_reward"] = options.image_reward and image_reward.ImageReward(options.image_reward, options.device)
    models["vlm"] = options.vlm and vision_language.LocalModel(options.vlm, options.device, answers=True)
    name = Path(options.workflow).stem if options.workflow else options.pictures.resolve().name
    output = options.output or ROOT / "output" / "evaluate" / name
    items, world = drawn(options, output) if options.workflow else (files.items(options.pictures)[: options.count], "clips")
    world = options.world or world

    rows = []
    for number, item in enumerate(items, 1):
        rows.append(figures.measured(item, world, **models))
        show(f"measured {number}/{len(items)}", number == len(items))
    if options.best_of:
        first, best = figures.chosen(rows, options.verifier, options.best_of)
        groups = {"first of each prompt": first, f"best of {options.best_of}": best}
    else:
        groups = {"all": rows}
    found = {title: figures.together(group) for title, group in groups.items()}
    if options.reference:
        reference = np.concatenate([models["clip"].pictures(middle(item)) for item in files.items(options.reference)])
        for title, group in groups.items():
            features = np.array([row["features"] for row in group])
            found[title] |= {"CLIP-FID": distances.fid(features, reference), "CLIP-KID": distances.kid(features, reference)}
    if not any(set(table) - {"files", "judged"} for table in found.values()):
        why = rows[0].get("not_judged", "there are none")
        raise ValueError(f"nothing could be measured: no prompt is of the drawn world ({why}). With --clip "
                         f"there are CLIP scores. {clip.HAVE_ONE}")
    for line in table(found):
        print(line)
    write(output, options, found, groups, rows, items)
    if options.at_least is None:
        return 0
    share = list(found.values())[-1].get("all")
    if share is None:
        raise ValueError("--at-least: no prompt is of the drawn world, so none was judged.")
    return int(share < options.at_least)


def middle(item):
    shown = files.frames(item.path)
    return shown[len(shown) // 2][None]


def drawn(options, output):
    """(items, world) of what the workflow draws of the prompts, into output/drawn."""
    nodes = evaluate_drawing.workflow(options.workflow)
    moving = evaluate_drawing.shows_clips(nodes)
    kinds = " ".join(node["class_type"] for node in nodes.values())
    usual = "pictures" if not moving else "roaming" if "SanaVideo" in kinds else "clips"
    prompts, world = chosen_prompts(options.prompts or usual)
    prompts = prompts[: options.count]
    wanted = evaluate_drawing.names(prompts, options.best_of or 1, moving)
    folder = output / "drawn"

    def progress(prompt, ended):
        there = sum((folder / name).exists() for *_, name in wanted)
        show(f"drawn {there}/{len(wanted)}: {prompt[:80]}", ended and there == len(wanted))

    missing = [name for *_, name in wanted if not (folder / name).exists()]
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(comfyui(options.server)) if missing else None
        evaluate_drawing.draw(client, nodes, wanted, folder, options.seed, options.steps, progress)
    return [files.Item(folder / name, prompt) for _, _, prompt, name in wanted], world


def chosen_prompts(name):
    """(prompts, how clips are judged) of a set's name or a text file."""
    if name in PROMPTS:
        make, world = PROMPTS[name]
        return make(), world
    if not Path(name).is_file():
        raise FileNotFoundError(f"--prompts {name}: neither a file nor one of {', '.join(PROMPTS)}.")
    prompts = [line.strip() for line in Path(name).read_text("utf-8").splitlines() if line.strip()]
    if not 0 < len(prompts) <= evaluate_drawing.MOST:
        raise ValueError(f"--prompts {name}: has {len(prompts)} prompts; 1 to {evaluate_drawing.MOST} can be drawn.")
    return prompts, "clips"


@contextlib.contextmanager
def comfyui(address):
    """A Client of the server at the address, or of one that runs meanwhile."""
    with contextlib.ExitStack() as stack:
        if address is None:
            print("Starting ComfyUI ...", flush=True)
            base = launcher.make_base(ROOT / "output" / "comfyui")
            launcher.give_inputs(base)
            address = stack.enter_context(launcher.Server(installation.host(), base, arguments=["--disable-api-nodes"])).url
        yield stack.enter_context(Client(address, patience_s=0))


# --- what is shown and written ---


def show(text, last):
    """One line, written over where there is a terminal; elsewhere only the last one."""
    if sys.stdout.isatty() or last:
        print(text.ljust(110 if sys.stdout.isatty() else 0), end="\n" if last else "\r", flush=True)


def table(found):
    """The figures as lines: a row a figure, a column a group."""
    def cell(value):
        return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"

    names = list(dict.fromkeys(name for group in found.values() for name in group))
    yield " " * 22 + "".join(f"{title:>22s}" for title in found)
    for name in names:
        yield f"{name:22s}" + "".join(f"{cell(group.get(name)):>22s}" for group in found.values())


def write(output, options, found, groups, rows, items):
    """Figures, rows and contact sheet, in the output folder."""
    said = {name: getattr(options, name) for name in SAID if getattr(options, name) is not None}
    if "best_of" not in said:
        said.pop("verifier")
    lines = (json.dumps({name: value for name, value in row.items() if name != "features"}) for row in rows)
    output.mkdir(parents=True, exist_ok=True)
    record.write(output / REPORT, {"conditions": record.conditions(), "options": said, "figures": found})
    demo.write_whole(output / ROWS, ("\n".join(lines) + "\n").encode())
    by_name = {item.path.name: item for item in items}
    data = BytesIO()
    sheet(list(groups.values())[-1], by_name).save(data, "PNG")
    demo.write_whole(output / SHEET, data.getvalue())
    print(f"{output / REPORT}\n{output / SHEET}")


def sheet(rows, items):
    """The first pictures, or strips of the first clips, with their prompts and what is wrong; a PIL image."""
    moving = any("motion" in row for row in rows)
    rows = rows[: ON_SHEET[moving]]
    captions = [": wrong ".join([row["prompt"] or row["file"], *filter(None, [", ".join(
        name for name, right in row.get("obeys", {}).items() if not right)])]) for row in rows]
    shown = [small(files.frames(items[row["file"]].path)) for row in rows]
    if moving:
        return demo.film_strips([encoded(frames[:: -(-len(frames) // 9)], "WEBP") for frames in shown], captions)
    return demo.contact_sheet([encoded(frames[:1], "PNG") for frames in shown], captions)


def small(frames):
    pictures = files.pillow(frames)
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    return pictures


def encoded(pictures, kind):
    data = BytesIO()
    pictures[0].save(data, kind, save_all=kind == "WEBP", append_images=pictures[1:], lossless=True)
    return data.getvalue()
