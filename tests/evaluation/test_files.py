"""Where the prompts of pictures in a folder come from, and what cannot be read."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sanacog.app.graph import filled, shipped
from sanacog.evaluation import files


def save(path, colour="red", graph=None, **options):
    info = PngInfo()
    if graph:
        info.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (8, 8), colour).save(path, **({"pnginfo": info} if path.suffix == ".png" else {}), **options)


def test_prompts_of_three_origins(tmp_path):
    for name in ("a.png", "b.jpg", "e.png"):
        save(tmp_path / name)
    save(tmp_path / "c.png", graph=filled(shipped("sana_quickstart"), {}, "a fox"))
    save(tmp_path / "d.png", graph=filled(shipped("sana_best_of_n"), {}, "an owl"))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n\n'
                                             '{"file_name": "gone.png", "prompt": "x"}\n')
    (tmp_path / "b.txt").write_text(" a dog\n")
    (tmp_path / "notes.md").write_text("no picture")
    assert [(item.path.name, item.prompt) for item in files.items(tmp_path)] == [
        ("a.png", "a cat"), ("b.jpg", "a dog"), ("c.png", "a fox"), ("d.png", "an owl"), ("e.png", None)]


def test_pictures_and_animations(tmp_path):
    save(tmp_path / "a.png", (255, 51, 0))
    assert np.array_equal(files.frames(tmp_path / "a.png"), np.broadcast_to(np.float32([1, 0.2, 0]), (1, 8, 8, 3)))
    save(tmp_path / "b.webp", "red", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")], lossless=True)
    clip = files.frames(tmp_path / "b.webp")
    assert clip.shape == (2, 8, 8, 3) and clip[:, 0, 0].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        files.items(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no picture or clip"):
        files.items(tmp_path)
    for name in ("a.png", "a.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=f"{name}: cannot be read"):
            files.frames(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"text": 3}\n')
    with pytest.raises(ValueError, match="line 2: expected JSON with file_name"):
        files.items(tmp_path)
