"""Pictures and clips to evaluate, drawn by a workflow in a headless ComfyUI. What is there already is not drawn again."""

from __future__ import annotations

import json
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..app.graph import WORKFLOWS, filled
from ..evaluation.files import METADATA
from .demo import write_whole

MOVING = ("CreateVideo", "SaveAnimatedWEBP", "SaveAnimatedPNG", "VHS_VideoCombine")
KEEPING = (*MOVING, "SaveVideo", "SaveImage", "PreviewImage")
SETTINGS = "settings.json"
MOST = 1000  # prompts; the next candidates' seeds begin so far behind


def workflow(name: str) -> dict:
    """A shipped workflow by its name, or the API form in a file. Raises FileNotFoundError, ValueError."""
    path = Path(name) if name.endswith(".json") else WORKFLOWS / "api" / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such workflow. Give the name of a shipped one, as sana_quickstart, or a file "
                                "that ComfyUI wrote by Export (API).")
    try:
        nodes = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}).") from error
    if not (isinstance(nodes, dict) and nodes and all(isinstance(n, dict) and "class_type" in n for n in nodes.values())):
        raise ValueError(f"{path}: is not a workflow in API form. In ComfyUI, choose Export (API).")
    return nodes


def shows_clips(nodes: dict) -> bool:
    return any(node["class_type"] in MOVING for node in nodes.values())


def with_frames_shown(nodes: dict) -> dict:
    """The workflow that shows the frames of its clip, or its picture, without loss and keeps no file.

    Raises ValueError where it saves more than one thing."""
    found = [{tuple(node["inputs"]["images"]) for node in nodes.values() if node["class_type"] in kinds}
             for kinds in (MOVING, ("SaveImage",), ("PreviewImage",))]
    links = next(filter(None, found), set())
    if len(links) != 1:
        raise ValueError(f"the workflow saves {len(links)} different pictures or clips, and one is evaluated: have one Save "
                         "node in it.")
    nodes = {key: node for key, node in nodes.items() if node["class_type"] not in KEEPING}
    return nodes | {"evaluate": {"class_type": "PreviewImage", "inputs": {"images": list(links.pop())}}}


def names(prompts: list[str], best_of: int, clips: bool) -> list[tuple[int, int, str, str]]:
    """(number of the prompt, of the candidate, prompt, file name) of all that is to be drawn, first candidates first."""
    ending = "mkv" if clips else "png"
    return [(i, k, prompt, f"{i:04d}_{k}.{ending}") for k in range(best_of) for i, prompt in enumerate(prompts)]


def draw(client, nodes: dict, wanted: list, folder: Path, seed: int, steps: int | None, progress) -> None:
    """Draw into a folder what is not there. wanted: as `names` gives it. progress: called with (prompt, ended) before and
    after each.

    Prompt i's candidate k has the seed seed + i + 1000 k. Raises ValueError where the folder is another run's, or the
    workflow has no place for a prompt; Refused, Failed, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _same_run(folder, {"workflow": nodes, "seed": seed, "steps": steps}, {name: prompt for _, _, prompt, name in wanted})
    shown = with_frames_shown(nodes)
    for i, k, prompt, name in wanted:
        if (folder / name).exists():
            continue
        progress(prompt, False)
        try:
            graph = filled(shown, {"seed": seed + i + MOST * k, "steps": steps}, prompt)
        except KeyError as error:
            raise ValueError(f"the workflow cannot be evaluated: {error.args[0]}.") from error
        entries = client.run(graph, timeout_s=24 * 3600).files()
        data = [client.file(entry) for entry in entries]
        write_whole(folder / name, data[0] if name.endswith(".png") else video(data, rate_of(nodes)))
        progress(prompt, True)


def rate_of(nodes: dict) -> float:
    """Frames a second that a workflow saves with; 8 where it takes them from another video."""
    told = (node["inputs"].get("fps") for node in nodes.values())
    return next((rate for rate in told if isinstance(rate, (int, float))), 8)


def video(pictures: list[bytes], rate: float = 8) -> bytes:
    """Encoded pictures as the frames of a video that keeps every bit (FFV1, RGB)."""
    import av  # comes with ComfyUI

    frames = [np.array(Image.open(BytesIO(data)).convert("RGB")) for data in pictures]
    buffer = BytesIO()
    with av.open(buffer, "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def _same_run(folder, settings, prompts):
    """Write what the files are drawn by, or see that it is what they were drawn by."""
    path, table = folder / SETTINGS, folder / METADATA
    before = json.loads(path.read_text("utf-8")) if path.exists() else settings
    told = [json.loads(line) for line in table.read_text("utf-8").splitlines()] if table.exists() else []
    told = {row["file_name"]: row["text"] for row in told}
    if before != settings or any(told.get(name, prompt) != prompt for name, prompt in prompts.items()):
        raise ValueError(f"{folder}: what is there was drawn by another workflow, seed or prompts. Give another "
                         "--output, or delete it.")
    write_whole(path, json.dumps(settings).encode())
    lines = (json.dumps({"file_name": name, "text": prompt}) for name, prompt in sorted((told | prompts).items()))
    write_whole(table, ("\n".join(lines) + "\n").encode())
