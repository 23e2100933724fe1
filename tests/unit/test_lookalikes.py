"""Files of other models are refused by name. Key sets come from the real classes where a library has them."""

import diffusers
import pytest
import torch
import transformers

from sanacog.sana_core.config import identify
from sanacog.sana_core.lookalikes import looks_like

from .sana_releases import SANA_06, nvlabs_shapes

SMALL = dict(num_layers=1, num_attention_heads=2, attention_head_dim=8)
TEXT = dict(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2)
T5 = dict(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)


def of_diffusers(name, **config):
    return lambda: getattr(diffusers, name)(**config)


def of_transformers(model, config, **kw):
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**kw))


MODELS = [
    ("PixArt", of_diffusers("PixArtTransformer2DModel", **SMALL, sample_size=8, cross_attention_dim=16,
                            caption_channels=16)),
    ("FLUX", of_diffusers("FluxTransformer2DModel", **SMALL, num_single_layers=1, axes_dims_rope=(2, 2, 4))),
    ("Stable Diffusion 3", of_diffusers("SD3Transformer2DModel", **SMALL, caption_projection_dim=16, sample_size=8,
                                        pos_embed_max_size=8)),
    ("SDXL", of_diffusers(
        "UNet2DConditionModel", block_out_channels=(32, 64), layers_per_block=1, addition_embed_type="text_time",
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        projection_class_embeddings_input_dim=64, addition_time_embed_dim=8)),
    ("Stable Diffusion model", of_diffusers(
        "UNet2DConditionModel", block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))),
    ("Wan transformer", of_diffusers("WanTransformer3DModel", num_layers=1, num_attention_heads=2,
                                     attention_head_dim=12, ffn_dim=16)),
    ("Wan VAE", of_diffusers("AutoencoderKLWan", base_dim=8, num_res_blocks=1)),
    ("HunyuanVideo", of_diffusers("HunyuanVideoTransformer3DModel", **SMALL, num_single_layers=1,
                                  num_refiner_layers=1, rope_axes_dim=(2, 2, 4))),
    ("CogVideoX transformer", of_diffusers("CogVideoXTransformer3DModel", num_layers=1, num_attention_heads=2,
                                           attention_head_dim=16)),
    ("CogVideoX VAE", of_diffusers("AutoencoderKLCogVideoX", block_out_channels=(32, 32, 32, 32), layers_per_block=1)),
    ("LTX-Video", of_diffusers("LTXVideoTransformer3DModel", **SMALL)),
    ("Qwen-Image", of_diffusers("QwenImageTransformer2DModel", **SMALL, axes_dims_rope=(2, 2, 4))),
    ("Lumina 2", of_diffusers("Lumina2Transformer2DModel", num_layers=1, num_refiner_layers=1, hidden_size=96,
                                       num_attention_heads=2, num_kv_heads=1)),
    ("Stable Diffusion or FLUX VAE", of_diffusers("AutoencoderKL", block_out_channels=(32,), norm_num_groups=8)),
    ("DC-AE.*Load DC-AE", of_diffusers(
        "AutoencoderDC", latent_channels=32, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(32, 64),
        decoder_block_out_channels=(32, 64), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)))),
    ("SANA-Video", of_diffusers("SanaVideoTransformer3DModel", num_layers=1, num_attention_heads=2,
                                attention_head_dim=12, num_cross_attention_heads=2, cross_attention_head_dim=12,
                                cross_attention_dim=24)),
    ("Sana ControlNet", of_diffusers("SanaControlNetModel", **SMALL, num_cross_attention_heads=2,
                                     cross_attention_head_dim=8, cross_attention_dim=16)),
    ("a ControlNet", of_diffusers("ControlNetModel", block_out_channels=(32,), layers_per_block=1,
                                  down_block_types=("DownBlock2D",))),
    ("Gemma 2.*Load Sana Text Encoder", of_transformers("Gemma2Model", "Gemma2Config", **TEXT, head_dim=16)),
    ("Gemma 3", of_transformers("Gemma3TextModel", "Gemma3TextConfig", **TEXT, head_dim=16)),
    ("other than Gemma 2", of_transformers("LlamaModel", "LlamaConfig", **TEXT)),
    ("a T5", of_transformers("T5EncoderModel", "T5Config", **T5)),
    ("a UMT5", of_transformers("UMT5EncoderModel", "UMT5Config", **T5)),
    ("CLIP", of_transformers("CLIPTextModel", "CLIPTextConfig", vocab_size=32, hidden_size=32, intermediate_size=32,
                             num_hidden_layers=1, num_attention_heads=2)),
]

# Nunchaku's Sana: one file, and before that a folder of two.
NUNCHAKU_BLOCKS = " ".join(
    f"transformer_blocks.0.{layer}.{leaf}" for layer, leaves in {
        "attn.qkv_proj": "qweight wscales lora_down lora_up smooth", "attn.out_proj": "qweight wscales lora_down lora_up smooth",
        "cross_attn.q_linear": "qweight wscales lora_down lora_up smooth bias", "cross_attn.kv_linear": "weight bias",
        "cross_attn.out_proj": "qweight wscales lora_down lora_up smooth bias",
        "ff.inverted_conv": "qweight wscales lora_down lora_up smooth bias", "ff.depth_conv": "weight bias",
        "ff.point_conv": "qweight wscales lora_down lora_up smooth"}.items() for leaf in leaves.split())
NUNCHAKU_REST = ("caption_norm.weight caption_projection.linear_1.weight caption_projection.linear_2.weight "
                 "patch_embed.proj.weight proj_out.weight scale_shift_table time_embed.linear.weight "
                 "time_embed.emb.timestep_embedder.linear_1.weight time_embed.emb.timestep_embedder.linear_2.weight")
NUNCHAKU_WHOLE = f"{NUNCHAKU_BLOCKS} {NUNCHAKU_REST}"

KEYS = [  # files in layouts of their authors or of ComfyUI
    ("a PixArt", "x_embedder.proj.weight t_block.1.weight y_embedder.y_proj.fc1.weight "
                 "blocks.0.cross_attn.q_linear.weight blocks.0.attn.qkv.weight final_layer.linear.weight pos_embed"),
    ("FLUX", "double_blocks.0.img_attn.qkv.weight single_blocks.0.linear1.weight img_in.weight txt_in.weight"),
    ("FLUX", "model.diffusion_model.double_blocks.0.img_attn.qkv.weight vae.decoder.mid.attn_1.q.weight"),
    ("HunyuanVideo", "double_blocks.0.img_attn.qkv.weight txt_in.individual_token_refiner.blocks.0.norm1.weight"),
    ("SDXL", "model.diffusion_model.input_blocks.0.0.weight model.diffusion_model.label_emb.0.0.weight "
             "first_stage_model.decoder.conv_in.weight"),
    ("Stable Diffusion model", "model.diffusion_model.input_blocks.0.0.weight cond_stage_model.x"),
    ("Stable Diffusion 3", "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"),
    ("Wan transformer", "head.modulation patch_embedding.weight blocks.0.cross_attn.norm_k.weight"),
    ("Wan VAE", "decoder.middle.0.residual.0.gamma encoder.conv1.weight"),
    ("CogVideoX transformer", "model.diffusion_model.mixins.patch_embed.proj.weight "
                              "model.diffusion_model.transformer.layers.0.attention.query_key_value.weight"),
    ("DC-AE", "encoder.project_in.conv.weight decoder.stages.0.op_list.0.main.conv1.conv.weight "
              "decoder.stages.5.op_list.0.context_module.main.qkv.conv.weight"),
    ("DC-AE.*Load DC-AE", "encoder.project_in.weight decoder.stages.0.1.conv1.conv.weight "
                          "decoder.stages.5.0.context_module.qkv.0.weight"),
    ("LTX-Video", "patchify_proj.weight adaln_single.linear.weight caption_projection.linear_1.weight"),
    ("SANA-Video", "blocks.0.mlp.t_conv.weight blocks.0.mlp.inverted_conv.conv.weight attention_y_norm.weight"),
    ("Sana ControlNet: use Load Sana ControlNet", "controlnet.0.copied_block.mlp.inverted_conv.conv.weight "
                                                  "controlnet.0.before_proj.weight"),
    ("CogVideoX ControlNet: use Load CogVideoX ControlNet", "controlnet_encode_first.0.weight patch_embed.text_proj.weight"),
    ("ControlNet of another model family", "controlnet_x_embedder.weight double_blocks.0.img_attn.qkv.weight"),
    ("SANA-Video", "x_embedder.proj.weight t_block.1.weight y_embedder.y_proj.fc1.weight attention_y_norm.weight "
                   "blocks.0.attn.qkv.weight blocks.0.attn.beta_proj.weight blocks.0.cross_attn.q_linear.weight "
                   "blocks.0.mlp.gate_proj.weight attn_res.attn_proj.weight"),  # 2.0
    ("SANA-WM", "x_embedder.proj.weight t_block.1.weight y_embedder.y_proj.fc1.weight attention_y_norm.weight "
                "blocks.0.attn.A_log blocks.0.attn.dt_bias blocks.0.cross_attn.q_linear.weight"),
    ("quantised by Nunchaku .SVDQuant., .*: take Sana_1600M_1024px_BF16.*with Quantize Sana / CogVideoX", NUNCHAKU_WHOLE),
    ("quantised by Nunchaku .SVDQuant., .*: take Sana_1600M_1024px_BF16.*with Quantize Sana / CogVideoX", NUNCHAKU_BLOCKS),
    ("unquantised half of one by Nunchaku .SVDQuant.: put .* into one folder and choose that, or take Sana_1600M_1024px_BF16",
     NUNCHAKU_REST),
    ("other than Gemma 2", "model.layers.0.self_attn.qkv_proj.qweight model.layers.0.mlp.gate_up_proj.qweight"),
    ("a LoRA", "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight "
               "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight"),
    ("a LoRA", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight lora_unet_double_blocks_0_img_attn_qkv.alpha"),
    ("a LoRA", "base_model.model.transformer_blocks.0.ff.conv_inverted.lora_A.default.weight "
               "base_model.model.caption_norm.lora_A.default.weight"),
    ("Gemma 2", "model.layers.0.pre_feedforward_layernorm.weight model.embed_tokens.weight spiece_model"),
    ("does not know .2 tensors: a, b", "a b"),
    ("file without tensors", ""),
]


def refuses(shapes, name):
    with pytest.raises(ValueError, match=f"^file.safetensors: not a Sana transformer: this is .*{name}"):
        identify(shapes, None, "file.safetensors")


@pytest.mark.parametrize("name, build", MODELS, ids=[name for name, _ in MODELS])
def test_models_of_libraries(name, build):
    with torch.device("meta"):
        model = build()
    refuses({key: tuple(t.shape) for key, t in model.state_dict().items()}, name)


@pytest.mark.parametrize("name, keys", KEYS, ids=[name for name, _ in KEYS])
def test_keys_of_authors(name, keys):
    refuses({key: (8, 8) for key in keys.split()}, name)


def test_sana_is_named_for_other_loaders():
    assert looks_like(nvlabs_shapes(SANA_06)) == "a Sana transformer: use Load Sana Model"
