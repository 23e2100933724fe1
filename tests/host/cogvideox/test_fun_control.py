"""CogVideoX-Fun Control against diffusers' whole pipeline, CogVideoXFunControlPipeline, with the same weights."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXFunControlPipeline, CogVideoXTransformer3DModel

from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import TEXT_WIDTH, TOKENS, params_of
from .test_model_sampling import REFERENCE
from .video_model import SINCOS, apart, host, random, sample, text, weights  # noqa: F401

SIZE, FRAMES, STEPS, CFG = 96, 9, 4, 3.0


def of_diffusers(params):
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size", "time_embed_dim",
             "text_embed_dim", "max_text_seq_length", "sample_height", "sample_width", "use_rotary_positional_embeddings")
    transformer = CogVideoXTransformer3DModel(**{name: getattr(params, name) for name in names}, sample_frames=49).eval()
    transformer.load_state_dict(tinycog.transformer(params).state_dict())
    transformer.norm_out.norm.eps = 1e-6  # the authors' epsilon
    vae = AutoencoderKLCogVideoX(
        block_out_channels=tinycog.VAE.block_out_channels, layers_per_block=tinycog.VAE.layers_per_block,
        norm_num_groups=tinycog.VAE.norm_num_groups, latent_channels=16, scaling_factor=params.scaling_factor).eval()
    vae.load_state_dict(tinycog.autoencoder().state_dict())
    scheduler = CogVideoXDDIMScheduler(**REFERENCE, snr_shift_scale=params.snr_shift_scale)
    pipeline = CogVideoXFunControlPipeline(None, None, vae, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", ["5B", "2B"])
@torch.no_grad()
def test_the_whole_pipeline(host, weights, tmp_path, name):
    from dataclasses import replace

    from sanacog.host.cogvideox.conditioning import fun_control
    from sanacog.host.cogvideox.vae import load_cogvideox_vae

    # At the size of the base grid Fun 2B's stretched code, which diffusers does not have, is the plain one.
    params = params_of("control") if name == "5B" else replace(params_of("control"), **SINCOS, resize_positions=True)
    video = torch.rand(FRAMES, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(4))
    start = random(1, 16, 3, SIZE // 8, SIZE // 8, seed=7)
    prompts = [random(1, TOKENS, TEXT_WIDTH, seed=100 + i) for i in (0, 1)]

    wanted = of_diffusers(params)(
        prompt_embeds=prompts[0], negative_prompt_embeds=prompts[1], height=SIZE, width=SIZE, num_inference_steps=STEPS,
        guidance_scale=CFG, latents=start.transpose(1, 2), control_video=video.movedim(-1, 1)[None], output_type="latent",
        return_dict=False)[0].transpose(1, 2) / params.scaling_factor

    model = host.cogvideox.load_cogvideox(weights(params))
    vae = load_cogvideox_vae(tinycog.save_autoencoder(tmp_path / "vae.safetensors"))
    positive, negative, latent = fun_control(text(), text(1), vae, SIZE, SIZE, FRAMES, 1, video)
    found = sample(host, model, start, latent["samples"], STEPS, CFG, positive=positive, negative=negative)
    assert apart(found, wanted) < 1e-5
    free = sample(host, model, start, steps=STEPS, cfg=CFG)
    assert apart(free, wanted) > 1e-2
