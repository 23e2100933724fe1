"""Pictures and clips of a folder with the prompts that they were made from."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # the animated ones among them are clips
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
METADATA = "metadata.jsonl"
SEEN = 8  # frames of a clip that a network looks at


@dataclass(frozen=True)
class Item:
    path: Path
    prompt: str | None


def items(folder: Path) -> list[Item]:
    """The pictures and clips of a folder, by name, not those of folders in it. A prompt comes from metadata.jsonl
    (file_name, and text or prompt), else from the .txt of the same name, else from what ComfyUI keeps in its pictures; None
    where there is none.

    Raises FileNotFoundError where there is nothing, ValueError for a broken metadata.jsonl.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Give the folder that the pictures or clips lie in.")
    told = _told(folder / METADATA)
    found = [path for path in sorted(folder.iterdir())
             if path.suffix.lower() in PICTURES + VIDEOS and not path.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"{folder}: no picture or clip is in it. It may have {', '.join(PICTURES + VIDEOS)}.")
    return [Item(path, told.get(path.name) or _beside(path) or _within(path)) for path in found]


def frames(path: Path) -> np.ndarray:
    """(T, H, W, 3) float32 in [0, 1] of a picture, T = 1, or a clip. Raises ValueError for
    a file that cannot be read."""
    try:
        if path.suffix.lower() in VIDEOS:
            import av  # comes with ComfyUI
            with av.open(str(path)) as file:
                read = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        else:
            with Image.open(path) as file:
                read = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
    except (OSError, ValueError) as error:  # Pillow's and PyAV's are either
        raise ValueError(f"{path}: cannot be read ({error}). Take it out of the folder, or write it anew.") from error
    if not read:
        raise ValueError(f"{path}: has no frame. Take it out of the folder, or write it anew.")
    return np.stack(read).astype(np.float32) / 255


def eight_bits(pictures) -> list[np.ndarray]:
    """Pictures, each (H, W, 3) in [0, 1], as networks' processors take them: uint8."""
    return [np.clip(np.asarray(one) * 255 + 0.5, 0, 255).astype(np.uint8) for one in pictures]


def config_of(folder: Path) -> dict:
    """The config.json of a network's folder; empty where there is none that can be read."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def some(frames: np.ndarray) -> np.ndarray:
    """SEEN frames at most, evenly spaced, the first and the last among them."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, min(SEEN, len(frames))).round().astype(int))]


def pillow(frames) -> list[Image.Image]:
    """Frames (T, H, W, 3) in [0, 1] as pictures of 8 bits."""
    return [Image.fromarray(frame) for frame in eight_bits(frames)]


def _told(path):
    """{file name: prompt} of a metadata.jsonl; nothing where there is none."""
    if not path.is_file():
        return {}
    told = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                told[row["file_name"]] = row.get("text") or row.get("prompt")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: expected JSON with file_name, and text or prompt, found "
                                 f"{line[:80]!r}.") from error
    return told


def _beside(path):
    text = path.with_suffix(".txt")
    return text.read_text("utf-8").strip() or None if text.is_file() else None


def _within(path):
    """The positive prompt in the workflow that ComfyUI keeps in a PNG; None where there is not exactly one."""
    if path.suffix.lower() != ".png":
        return None
    try:
        with Image.open(path) as file:
            nodes = json.loads(getattr(file, "text", {}).get("prompt", "{}"))
        links = [node["inputs"]["positive"] for node in nodes.values() if "positive" in node["inputs"]]
        texts = {_text(nodes, link, len(nodes)) for link in links} - {None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return texts.pop() if len(texts) == 1 else None


def _text(nodes, link, steps):
    """The words behind a link, past nodes that add to the prompt."""
    while isinstance(link, list) and steps > 0:
        inputs, steps = nodes[link[0]]["inputs"], steps - 1
        link = next((inputs[name] for name in ("text", "prompt", "value", "positive") if name in inputs), None)
    return link if isinstance(link, str) else None
