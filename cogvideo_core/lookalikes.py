"""What a file is when it is not the CogVideoX part that was asked for."""

from __future__ import annotations

from ..kernels.key_names import AUTOENCODER, DIFFUSION_MODEL, unwrapped

# A name that every transformer has, in SAT's and in the other layouts; and one that every autoencoder has.
_TRANSFORMER = ("mixins.patch_embed.proj.weight", "patch_embed.proj.weight")
_TORA = ("fuser.", "traj_extractor.")
_AUTOENCODER = ("encoder.conv_in.conv.weight",)

# What it is, then what shows it: any one group of key fragments, of which every one must occur in some key.
# The order matters: an adapter names layers of its model.
TABLE = (
    ("SAT's checkpoint of a LoRA training: load the model from its own file, the one it was trained from, with Load CogVideoX "
     "Model, and this file with Load LoRA (Sana + CogVideoX), out of models/loras", (".matrix_A.", ".original.")),
    ("a LoRA: load the model first and give this file to a LoRA loader node",
     (".lora_A.",), (".lora_B.",), (".lora_down.",), (".lora_up.",), ("lora_unet_",), (".matrix_A.",)),
    ("a CogVideoX ControlNet: use Load CogVideoX ControlNet", ("controlnet_encode_first.",)),
    ("a ControlNet of another kind for CogVideoX", ("controlnet_transformer",)),
    ("ConsisID, a CogVideoX with parts for a face, which this pack does not run",
     ("local_facial_extractor.",), ("perceiver_cross_attention.",)),
    ("Diffusion as Shader, a CogVideoX with parts for a tracking video, which this pack does not run",
     ("transformer_blocks_copy.", "combine_linears.")),
    ("Tora's motion fuser: it goes into CogVideoX Tora", ("flow_gamma_spatial.", "flow_cond_norm.")),
    ("Tora's trajectory extractor: it goes into CogVideoX Tora", ("body.0.block1.", "body.0.bn1.", "conv_in.")),
    ("a CogVideoX transformer: use Load CogVideoX Model",
     ("patch_embed.text_proj.",), ("mixins.", "attention.query_key_value."), ("attn1.to_q.", "norm1.linear.", "norm2.linear."),
     ("blocks.0.norm1.linear.", "blocks.0.attn_out.")),
    ("a CogVideoX VAE: use Load CogVideoX VAE", ("norm1.conv_y.conv.",)),
    ("a Sana transformer", ("ff.conv_inverted.", "caption_norm."), ("mlp.inverted_conv.", "attention_y_norm.")),
    ("a DC-AE autoencoder", ("decoder.up_blocks.", "conv_depth."), ("decoder.stages.", "context_module.")),
    ("a Mochi transformer", ("blocks.0.attn.qkv_x.",)),
    ("an LTX-Video model", ("patchify_proj.", "adaln_single."), ("proj_in.", "adaln_single.", "scale_shift_table")),
    ("a HunyuanVideo transformer", ("individual_token_refiner.",), ("context_embedder.token_refiner.",)),
    ("a FLUX transformer", ("double_blocks.0.img_attn.",), ("single_transformer_blocks.0.",)),
    ("a Wan transformer",
     ("head.modulation",), ("condition_embedder.time_embedder.", "blocks.0.attn2."), ("blocks.0.cross_attn.norm_k.",)),
    ("a Wan VAE", ("decoder.middle.0.residual.0.gamma",), ("decoder.mid_block.resnets.0.norm1.gamma",)),
    ("a Stable Diffusion 3 transformer", ("joint_blocks.0.context_block.",), ("transformer_blocks.0.attn.add_q_proj.",)),
    ("a PixArt transformer", ("adaln_single.emb.",), ("t_block.1.", "y_embedder.y_proj.")),
    ("a Stable Diffusion model", ("input_blocks.0.0.",), ("conv_norm_out.", "time_embedding.linear_1.")),
    ("an image VAE", ("decoder.mid.attn_1.",), ("decoder.mid_block.attentions.0.",)),
    ("a T5 text encoder: use Load CogVideoX Text Encoder", ("encoder.block.0.layer.0.SelfAttention.",)),
    ("a CLIP text encoder", ("text_model.encoder.layers.0.",)),
    ("a Gemma text encoder: Sana's is loaded with Load Sana Text Encoder", ("layers.0.pre_feedforward_layernorm.",)),
    ("a language model", ("layers.0.self_attn.", "mlp.gate_proj.")),
)


def strip_prefix(mapping: dict) -> dict:
    """A transformer's names without the wrapping of savers and trainers, and of a checkpoint of several models its part
    alone, as of Tora's, whose other parts CogVideoX Tora reads. Values are passed through, tensors and shapes alike."""
    found = unwrapped(mapping, _TRANSFORMER, DIFFUSION_MODEL)
    if not any(key.startswith(_TORA) for key in found) or "patch_embed.proj.weight" not in found:
        return found
    return {key: value for key, value in found.items() if not key.startswith(_TORA)}


def strip_autoencoder_prefix(mapping: dict) -> dict:
    """The same for an autoencoder."""
    return unwrapped(mapping, _AUTOENCODER, AUTOENCODER)


def looks_like(shapes: dict) -> str:
    """Name what a file holds, from its keys, as a phrase that follows "it looks like"."""
    for name, *groups in TABLE:
        if any(all(any(part in key for key in shapes) for part in group) for group in groups):
            return name
    some = ", ".join(list(shapes)[:4])
    return f"something this pack does not know ({len(shapes)} tensors: {some}, ...)" if shapes else "an empty file"
