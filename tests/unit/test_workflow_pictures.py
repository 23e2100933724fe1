"""The pictures that shipped workflows load are drawn by the training's own drawing code, and stay what it draws."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sanacog.training import shapes

INPUT = Path(__file__).resolve().parents[2] / "workflows" / "input"


def drawn(colour: str, shape: str, background: str) -> np.ndarray:
    scene = (shapes.COLOURS.index(colour), shapes.SHAPES.index(shape), shapes.COLOURS.index(background),
             shapes.SIZES.index("large"), shapes.PLACES.index("centre"))
    picture = shapes.draw(torch.tensor([scene]))[0]
    return ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def test_circle():
    """For image to image."""
    assert np.array_equal(np.array(Image.open(INPUT / "sanacog_circle.png")), drawn("red", "circle", "white"))


def test_masked():
    """For inpainting: LoadImage reads the mask from the alpha channel, transparent where the picture is to change."""
    picture = np.array(Image.open(INPUT / "sanacog_masked.png"))
    alpha = np.full((256, 256), 255, np.uint8)
    alpha[32:224, 32:224] = 0
    assert np.array_equal(picture, np.dstack([drawn("red", "circle", "yellow"), alpha]))
