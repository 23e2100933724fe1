"""Loading Sana's three parts, its text, its empty latent."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import files, loading
from ..host.compat import schema
from ..host.sana import model as sana
from ..host.sana import vae
from ..host.sana.text import encode_prompt, load_text_encoder


class LoadSanaModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadSanaModel", display_name="Load Sana Model", category="Sana/loaders",
            description="Loads a Sana transformer (Sana, Sana 1.5, Sprint; diffusers or NVlabs files) as an ordinary "
                        "MODEL.",
            search_aliases=["sana", "nvidia sana", "unet loader", "diffusion model"],
            inputs=[
                io.Combo.Input("model_name", options=files.choices("diffusion_models"),
                               tooltip="A file or folder in models/diffusion_models, or a diffusers pipeline in "
                                       "models/diffusers."),
                io.Combo.Input("weight_dtype", options=list(loading.WEIGHT_DTYPES), default="default",
                               tooltip="What the weights are kept as. The fp8 types halve the memory and cost some "
                                       "quality; default is right otherwise, and for quantised files, which the other "
                                       "types turn back."),
            ],
            outputs=[io.Model.Output(tooltip="For KSampler and every other node that takes a MODEL.")])

    @classmethod
    def fingerprint_inputs(cls, model_name, weight_dtype):
        return files.fingerprint(files.model_path("diffusion_models", model_name))

    @classmethod
    def execute(cls, model_name, weight_dtype="default"):
        return io.NodeOutput(sana.load_sana(files.model_path("diffusion_models", model_name), weight_dtype))


class LoadSanaTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadSanaTextEncoder", display_name="Load Sana Text Encoder", category="Sana/loaders",
            description="Loads Gemma-2-2B-it, the language model that reads Sana's prompts, as an ordinary CLIP.",
            search_aliases=["gemma", "gemma 2", "clip loader", "sana clip"],
            inputs=[
                io.Combo.Input("text_encoder_name", options=files.choices("text_encoders"),
                               tooltip="gemma-2-2b-it: a file or folder in models/text_encoders, or a diffusers "
                                       "pipeline in models/diffusers."),
                io.Combo.Input("tokenizer_name", options=files.tokenizer_choices(), default="auto",
                               tooltip="auto takes the tokenizer inside the file, else tokenizer.model or "
                                       "tokenizer.json beside it."),
                io.Combo.Input("weight_dtype", options=list(loading.WEIGHT_DTYPES), default="default", optional=True,
                               tooltip="What the weights are kept as. The fp8 types save 2 GB of 5 and cost some quality; "
                                       "default keeps the file's own."),
            ],
            outputs=[io.Clip.Output(tooltip="For Sana Text Encode, or the stock CLIP Text Encode.")])

    @classmethod
    def fingerprint_inputs(cls, text_encoder_name, tokenizer_name, weight_dtype="default"):
        return (files.fingerprint(files.model_path("text_encoders", text_encoder_name)),
                files.fingerprint(files.tokenizer_path(tokenizer_name)))

    @classmethod
    def execute(cls, text_encoder_name, tokenizer_name="auto", weight_dtype="default"):
        return io.NodeOutput(load_text_encoder(files.model_path("text_encoders", text_encoder_name),
                                               files.tokenizer_path(tokenizer_name), weight_dtype))


class LoadDCAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadDCAE", display_name="Load DC-AE", category="Sana/loaders",
            description="Loads Sana's autoencoder (32 px a latent pixel) as an ordinary VAE.",
            search_aliases=["dc-ae", "sana vae", "vae loader", "deep compression autoencoder"],
            inputs=[io.Combo.Input("vae_name", options=files.choices("vae"),
                                   tooltip="A file in models/vae, or a diffusers pipeline in models/diffusers.")],
            outputs=[io.Vae.Output(tooltip="For VAE Decode, VAE Encode and their tiled versions.")])

    @classmethod
    def fingerprint_inputs(cls, vae_name):
        return files.fingerprint(files.model_path("vae", vae_name))

    @classmethod
    def execute(cls, vae_name):
        return io.NodeOutput(vae.load_dcae(files.model_path("vae", vae_name)))


class SanaTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaTextEncode", display_name="Sana Text Encode", category="Sana/conditioning",
            description="Encodes a prompt for Sana, with the instruction that its text encoder was given in training.",
            search_aliases=["sana prompt", "clip text encode", "complex human instruction"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Sana Text Encoder."),
                io.String.Input("text", multiline=True, dynamic_prompts=True,
                                tooltip="What to draw, in up to 300 tokens; the rest is cut off."),
                io.Boolean.Input("instruction", default=True,
                                 tooltip="On for the positive prompt, off for the negative one: so Sana was trained."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For a sampler's positive or negative.")])

    @classmethod
    def execute(cls, clip, text, instruction=True):
        return io.NodeOutput(encode_prompt(clip, text, instruction))


class EmptySanaLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def side(name):
            return io.Int.Input(name, default=1024, min=32, max=16384, step=32,
                                tooltip=f"{name.capitalize()} of the picture in pixels, a multiple of 32.")

        return schema(
            node_id="SanaCogEmptySanaLatent", display_name="Empty Sana Latent", category="Sana/latent",
            description="An empty latent for Sana: 32 channels, 32 px a latent pixel.",
            search_aliases=["empty latent", "latent image", "sana latent"],
            inputs=[
                side("width"),
                side("height"),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures at once."),
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler's latent_image.")])

    @classmethod
    def execute(cls, width, height, batch_size=1):
        return io.NodeOutput(sana.empty_latent(width, height, batch_size))


NODES = [LoadSanaModel, LoadSanaTextEncoder, LoadDCAE, SanaTextEncode, EmptySanaLatent]
