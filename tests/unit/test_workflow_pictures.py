"""The pictures and clips that shipped workflows load are drawn by the training's own drawing code, and stay what it
draws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanacog.commands import thumbnails_canvas
from sanacog.evaluation.drawn import clips, shapes

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
INPUT = WORKFLOWS / "input"
CLIP = ("yellow", "square", "purple", "right")


def drawn(colour: str, shape: str, background: str, size: str = "large", place: str = "centre") -> np.ndarray:
    scene = (shapes.COLOURS.index(colour), shapes.SHAPES.index(shape), shapes.COLOURS.index(background),
             shapes.SIZES.index(size), shapes.PLACES.index(place))
    picture = shapes.draw(torch.tensor([scene]))[0]
    return ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def clip(colour: str, shape: str, background: str, direction: str) -> np.ndarray:
    """Frames (9, 96, 96, 3)."""
    scene = (shapes.COLOURS.index(colour), shapes.SHAPES.index(shape), shapes.COLOURS.index(background),
             clips.DIRECTIONS.index(direction))
    return (clips.to_frames(clips.draw(torch.tensor([scene])))[0] * 255).round().astype(np.uint8)


def test_circle():
    """For image to image."""
    assert np.array_equal(np.array(Image.open(INPUT / "sanacog_circle.png")), drawn("red", "circle", "white"))


def test_masked():
    """For inpainting: LoadImage reads the mask from the alpha channel, transparent where the picture is to change."""
    picture = np.array(Image.open(INPUT / "sanacog_masked.png"))
    alpha = np.full((256, 256), 255, np.uint8)
    alpha[32:224, 32:224] = 0
    assert np.array_equal(picture, np.dstack([drawn("red", "circle", "yellow"), alpha]))


def test_first_and_last_frame():
    """For image to video, and for Fun inpainting between the two."""
    frames = clip(*CLIP)
    for name, frame in (("sanacog_first_frame.png", frames[0]), ("sanacog_last_frame.png", frames[-1])):
        assert np.array_equal(np.array(Image.open(INPUT / name)), frame)


@pytest.mark.parametrize("name, drawn", [("sanacog_moving_square", CLIP),
                                         ("sanacog_moving_mask", ("white", "square", "black", "right"))])
def test_moving_square(name, drawn):
    """For video to video, and a mask of the square in it; the codec stores every other pixel's colour, and not exactly."""
    import av  # comes with ComfyUI

    with av.open(str(INPUT / f"{name}.mp4")) as file:
        assert file.streams.video[0].average_rate == clips.RATE
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert frames.shape == (9, 96, 96, 3)
    assert np.abs(frames.astype(int) - clip(*drawn)).mean() < 4


@pytest.mark.parametrize("number, size, colour, shape, place", [
    (1, "large", "red", "circle", "centre"), (2, "large", "blue", "square", "left"), (3, "small", "green", "triangle", "right"),
    (4, "large", "purple", "star", "centre"), (5, "small", "white", "circle", "top"), (6, "small", "black", "square", "centre"),
    (7, "large", "blue", "star", "bottom"), (8, "large", "red", "triangle", "centre")])
def test_data_set(number, size, colour, shape, place):
    """For the training of a LoRA: the background stands in no caption."""
    folder = WORKFLOWS / "datasets" / "sanacog_sunny"
    assert len(list(folder.iterdir())) == 16
    assert np.array_equal(np.array(Image.open(folder / f"{number:02}.png")), drawn(colour, shape, "yellow", size, place))
    assert (folder / f"{number:02}.txt").read_text("utf-8") == f"a {size} {colour} {shape} in sunny style\n"


def test_every_workflow_has_a_thumbnail():
    names = {path.stem for path in WORKFLOWS.glob("*.json")}
    assert names and {path.stem for path in WORKFLOWS.glob("*.jpg")} == names
    for name in names:
        with Image.open(WORKFLOWS / f"{name}.jpg") as picture:
            assert 200 <= picture.width <= 640 and np.asarray(picture.convert("RGB")).std() > 10


def test_a_canvas_shows_its_groups_and_nodes():
    """A column of the middle of each group goes from its colour to its nodes'."""
    workflow = json.loads((WORKFLOWS / "cogvideox_tora.json").read_text("utf-8"))
    picture = np.asarray(thumbnails_canvas.canvas("cogvideox_tora")).astype(int)
    assert picture.shape[1] == thumbnails_canvas.WIDTH
    boxes = [group["bounding"] for group in workflow["groups"]]
    left, right = min(box[0] for box in boxes), max(box[0] + box[2] for box in boxes)
    scale = (thumbnails_canvas.WIDTH - 2 * thumbnails_canvas.MARGIN) / (right - left)
    for group, (x, _, width, _) in zip(workflow["groups"], boxes):
        column = picture[:, round(thumbnails_canvas.MARGIN + (x + width / 3 - left) * scale)]
        node = np.abs(column - 0x35).max(1) < 6
        low = picture[-16, round(thumbnails_canvas.MARGIN + (x + 8 - left) * scale)]
        assert node.sum() > 20, group["title"]
        assert low.max() - low.min() > 12, group["title"]
