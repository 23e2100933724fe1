"""What a file is when it is not the one that was asked for. One table, used by every loader of Sana's parts."""

from __future__ import annotations

from ..kernels.key_names import AUTOENCODER, DIFFUSION_MODEL, unwrapped

# A name that every transformer and ControlNet has, in diffusers' and in NVlabs' layout; and every DC-AE, in each of its own.
_TRANSFORMER = ("patch_embed.proj.weight", "patch_embedding.weight", "x_embedder.proj.weight")
_AUTOENCODER = ("decoder.conv_in.weight", "decoder.project_in.main.conv.weight")

INSTEAD_OF_SVDQUANT = ("take Sana_1600M_1024px_BF16, which it was made from, and for less memory make an int8 or "
                       "fp8 file of it with Quantize Sana / CogVideoX")

# What it is, then what shows it: any one group of key fragments, of which every one must occur in some key.
# The order matters: an adapter names layers of its model, a video model contains the image model's names.
TABLE = (
    ("a LoRA: load the model first and give this file to a LoRA loader node",
     (".lora_A.",), (".lora_B.",), (".lora_down.",), (".lora_up.",), ("lora_unet_",), (".lora.up.",), (".hada_w1_a",),
     (".lokr_w1",), (".matrix_A.",)),
    ("a Sana ControlNet: use Load Sana ControlNet",
     ("controlnet_blocks.", "ff.conv_inverted."), ("controlnet.0.copied_block.", "mlp.inverted_conv.")),
    ("a ControlNet of another model family", ("controlnet_blocks.",), ("controlnet_x_embedder.",), ("control_model.",),
     ("controlnet_cond_embedding.",), ("zero_convs.0.",)),
    ("a SANA-WM or SANA-Streaming transformer, which this pack does not run",
     (".attn.A_log", "attention_y_norm."), (".attn1.A_log", "caption_norm."), ("cam_embed", "caption_norm.")),
    ("a SANA-Video transformer: use Load SANA-Video Model",
     ("ff.conv_temp.",), ("mlp.t_conv.",), ("attn_res.attn_proj.", "attention_y_norm."), ("attn_res.attn_proj.", "caption_norm.")),
    (f"a Sana transformer quantised by Nunchaku (SVDQuant), which Load Sana Model alone reads: {INSTEAD_OF_SVDQUANT}",
     ("ff.inverted_conv.qweight",), (".cross_attn.kv_linear.", ".attn.qkv_proj.qweight")),
    ("a Sana transformer: use Load Sana Model",
     ("ff.conv_inverted.", "caption_norm."), ("mlp.inverted_conv.", "attention_y_norm.")),
    ("a Sana transformer without its blocks, such as the unquantised half of one by Nunchaku (SVDQuant): put "
     "transformer_blocks.safetensors and unquantized_layers.safetensors into one folder and choose that, or "
     f"{INSTEAD_OF_SVDQUANT}", ("caption_norm.", "patch_embed.proj.", "time_embed.linear.")),
    ("a DC-AE autoencoder: use Load DC-AE",
     ("decoder.up_blocks.", "conv_out.conv_depth."), ("decoder.stages.", "context_module."),
     ("encoder.down_blocks.", "to_qkv_multiscale.")),

    ("a CogVideoX ControlNet: use Load CogVideoX ControlNet", ("controlnet_encode_first.",)),
    ("a CogVideoX transformer",
     ("patch_embed.text_proj.",), ("mixins.", "attention.query_key_value."), ("mixins.patch_embed.",)),
    ("a CogVideoX VAE", ("conv_y.conv.", "decoder."),),
    ("an LTX-Video model", ("patchify_proj.", "adaln_single."),
     ("time_embed.emb.", "caption_projection.linear_1.", "transformer_blocks.0.ff.net.", "proj_in.")),
    ("a PixArt transformer",
     ("adaln_single.emb.", "caption_projection."), ("t_block.1.", "y_embedder.y_proj.", "cross_attn.q_linear.")),
    ("a Chroma transformer", ("distilled_guidance_layer.",)),
    ("a HunyuanVideo transformer",
     ("txt_in.individual_token_refiner.",), ("context_embedder.token_refiner.",)),
    ("a FLUX transformer",
     ("double_blocks.0.img_attn.",), ("single_transformer_blocks.0.proj_mlp.",), ("single_blocks.0.linear1.",)),
    ("a Stable Diffusion 3 transformer",
     ("joint_blocks.0.context_block.",), ("transformer_blocks.0.attn.add_q_proj.", "pos_embed.proj.")),
    ("a Qwen-Image transformer", ("transformer_blocks.0.img_mod.1.",)),
    ("a HiDream transformer", ("double_stream_blocks.0.",)),
    ("a Wan transformer",
     ("head.modulation",), ("condition_embedder.time_embedder.", "blocks.0.attn2."), ("blocks.0.cross_attn.norm_k.",)),
    ("a Wan VAE", ("decoder.middle.0.residual.0.gamma",), ("decoder.mid_block.resnets.0.norm1.gamma",)),
    ("an AuraFlow transformer", ("double_layers.0.attn.w1q.",)),
    ("a Lumina 2 or Z-Image transformer", ("cap_embedder.0.", "noise_refiner."), ("context_refiner.",)),
    ("a Mochi transformer", ("blocks.0.attn.qkv_x.",)),
    ("a Cosmos transformer", ("blocks.block0.blocks.0.block.attn.",), ("adaln_modulation_cross_attn.",)),
    ("a Stable Cascade model", ("clip_txt_mapper.",), ("clf.1.", "down_blocks.0.")),
    ("an SDXL model", ("label_emb.0.0.", "input_blocks."), ("add_embedding.linear_1.", "down_blocks.")),
    ("a Stable Diffusion model", ("input_blocks.0.0.",), ("conv_norm_out.", "time_embedding.linear_1.")),
    ("a Stable Diffusion or FLUX VAE",
     ("decoder.mid.attn_1.",), ("decoder.mid_block.attentions.0.",), ("decoder.mid.block_1.",)),

    ("a Gemma 3 text encoder", ("layers.0.pre_feedforward_layernorm.", "self_attn.q_norm.")),
    ("a Gemma 2 text encoder: use Load Sana Text Encoder", ("layers.0.pre_feedforward_layernorm.",)),
    ("a UMT5 text encoder", ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.",)),
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.",)),
    ("a CLIP text encoder", ("text_model.encoder.layers.0.",), ("transformer.resblocks.0.attn.",),
     ("embeddings.position_embedding.", "encoder.layers.0.self_attn.")),
    ("a language model other than Gemma 2", ("layers.0.self_attn.q_proj.", "mlp.gate_proj."),
     ("layers.0.self_attn.qkv_proj.",)),
    ("an upscaling model", ("RRDB_trunk.",), ("body.0.rdb1.",), ("model.1.sub.0.RDB1.",)),
    ("a textual inversion embedding", ("emb_params",), ("string_to_param",)),
)


def strip_prefix(mapping: dict) -> dict:
    """A transformer's or ControlNet's names without the wrapping of savers and trainers, and of a checkpoint of several
    models its part alone. Values are passed through, tensors and shapes alike."""
    return unwrapped(mapping, _TRANSFORMER, DIFFUSION_MODEL)


def strip_autoencoder_prefix(mapping: dict) -> dict:
    """The same for a DC-AE."""
    return unwrapped(mapping, _AUTOENCODER, AUTOENCODER)


def looks_like(shapes: dict) -> str:
    """Name what a file holds, from its keys (any mapping by key), as a phrase that follows "this is"."""
    for name, *groups in TABLE:
        if any(all(any(part in key for key in shapes) for part in group) for group in groups):
            return name
    if not shapes:
        return "a file without tensors"
    some = ", ".join(list(shapes)[:4])
    return f"something this pack does not know ({len(shapes)} tensors: {some}, ...)"
