"""Between Sana's latents and pictures of any size."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.compat import schema
from ..host.sana import vae as dcae
from ..host.sana.resolution import fitted


def _tile_inputs(verb):
    return [
        io.Int.Input("tile_size", default=0, min=0, max=16384, step=32,
                     tooltip=f"Side of a tile in pixels. 0 {verb} the picture in one piece where it fits into memory, else in "
                             "tiles of 1024."),
        io.Int.Input("overlap", default=128, min=0, max=8192, step=32,
                     tooltip="Least overlap of two tiles in pixels, at most half of tile_size; 128 where tile_size is 0. It "
                             "counts only where a picture is so large that its tiles have to be blended."),
    ]


class SanaDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaDecode", display_name="Sana Decode", category="Sana/latent",
            description="Decodes a Sana latent to a picture of any size: in one piece, or in tiles that equal it.",
            search_aliases=["vae decode", "tiled decode", "dc-ae decode", "4k decode"],
            inputs=[
                io.Latent.Input("samples", tooltip="From a sampler."),
                io.Vae.Input("vae", tooltip="From Load DC-AE."),
                *_tile_inputs("decodes"),
            ],
            outputs=[io.Image.Output(tooltip="The picture.")])

    @classmethod
    def execute(cls, samples, vae, tile_size=0, overlap=128):
        return io.NodeOutput(dcae.decode_pictures(vae, samples["samples"], tile_size, overlap))


class SanaEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaEncode", display_name="Sana Encode", category="Sana/latent",
            description="Encodes a picture of any size to a Sana latent: in one piece, or in tiles that equal it.",
            search_aliases=["vae encode", "tiled encode", "dc-ae encode", "image to latent"],
            inputs=[
                io.Image.Input("pixels", tooltip="Sides that are no multiples of 32 px are cut to one."),
                io.Vae.Input("vae", tooltip="From Load DC-AE."),
                *_tile_inputs("encodes"),
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler's latent_image.")])

    @classmethod
    def execute(cls, pixels, vae, tile_size=0, overlap=128):
        return io.NodeOutput(dcae.encode_pictures(vae, pixels, tile_size, overlap))


class SanaCropToSize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def side(name):
            return io.Int.Input(name, default=1024, min=1, max=16384, tooltip=f"{name.capitalize()} of the result in pixels.")

        return schema(
            node_id="SanaCogSanaCropToSize", display_name="Sana Crop to Size", category="Sana/image",
            description="Scales a picture until it covers a size and cuts off evenly what is over: from a size that Sana "
                        "knows to the one you want, or from your picture to a size that Sana knows.",
            search_aliases=["resize", "crop", "fit", "image scale"],
            inputs=[
                io.Image.Input("image", tooltip="Any picture."),
                side("width"),
                side("height"),
            ],
            outputs=[io.Image.Output(tooltip="The picture, of exactly that size.")])

    @classmethod
    def execute(cls, image, width, height):
        return io.NodeOutput(fitted(image, width, height))


NODES = [SanaDecode, SanaEncode, SanaCropToSize]
