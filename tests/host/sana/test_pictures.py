"""Sana Decode, Sana Encode and Sana Crop to Size over HTTP, on the embedded models: a picture of a size that Sana does not
know, there and back in tiles."""

import numpy as np

from ..test_stock_nodes import apart, graph, input_picture, node  # noqa: F401


def test_any_size_in_tiles(server, input_picture):
    """A picture of 300 x 200 px, fitted to a known size, encoded and decoded in tiles of 256, cropped back."""
    nodes = dict(
        load=node("LoadImage", image="square.png"),
        size=node("SanaCogSanaResolution", base="512", aspect_ratio="1:1", wanted_width=300, wanted_height=200),
        fit=node("SanaCogSanaCropToSize", image=["load", 0], width=["size", 0], height=["size", 1]),
        latent=node("SanaCogSanaEncode", pixels=["fit", 0], vae=["vae", 0], tile_size=256, overlap=64),
        decode=node("SanaCogSanaDecode", samples=["latent", 0], vae=["vae", 0], tile_size=256, overlap=64),
        crop=node("SanaCogSanaCropToSize", image=["decode", 0], width=300, height=200),
        save=node("SaveImage", images=["crop", 0], filename_prefix="test"),
        fitted=node("SaveImage", images=["fit", 0], filename_prefix="fitted"))
    result = server.run_prompt({"vae": graph()["vae"], **nodes})
    pictures = {name.split("_")[0]: clip[0] / 255.0 for name, clip in result.clips.items()}
    assert pictures["test"].shape == (200, 300, 3) and pictures["fitted"].shape == (416, 608, 3)
    # The square's middle third, as broad as the picture: what covers 3:2 of it.
    wanted = np.stack([np.interp(np.linspace(0, 255, 300), range(256), input_picture[128, :, c]) for c in range(3)], axis=-1)
    assert apart(pictures["test"][100], wanted) < 0.03


def test_bad_sizes_are_refused(server, input_picture):
    decode = node("SanaCogSanaDecode", samples=["latent", 0], vae=["vae", 0], tile_size=128, overlap=96)
    assert "at most half of tile_size" in server.expect_error(graph(decode=decode))
