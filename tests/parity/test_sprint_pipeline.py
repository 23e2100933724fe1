"""Sprint's whole loop against diffusers' SanaSprintPipeline with the same weights, prompt states and noise, fp32."""

import pytest
import torch
from diffusers import SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler

from sanacog.sana_core.checkpoint import to_canonical
from sanacog.sana_core.config import identify
from sanacog.sana_core.sampling import sample_scm, sprint_sigmas
from sanacog.sana_core.transformer import SanaTransformer

CAPTION, TOKENS = 24, 300


@pytest.fixture(scope="module")
def pair():
    """Our transformer and diffusers' with the same random weights."""
    theirs = SanaTransformer2DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=32, num_cross_attention_heads=2, cross_attention_head_dim=32,
        cross_attention_dim=64, caption_channels=CAPTION, sample_size=8, guidance_embeds=True,
        qk_norm="rms_norm_across_heads", timestep_scale=1.0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.ndim == 1 else p[0].numel() ** -0.5))
    state = theirs.state_dict()
    params = identify({key: tuple(t.shape) for key, t in state.items()}, dict(theirs.config)).params
    ours = SanaTransformer(params).eval()
    ours.load_state_dict(to_canonical(state, "diffusers"))
    return ours, theirs


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@torch.no_grad()
def test_loop(pair, steps):
    ours, theirs = pair
    generator = torch.Generator().manual_seed(1)
    states, mask = torch.randn(2, TOKENS, CAPTION, generator=generator), torch.ones(2, TOKENS)
    mask[1, 7:] = 0
    noise = torch.randn(2, 32, 4, 6, generator=generator)
    pipeline = SanaSprintPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=theirs, scheduler=SCMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    want = pipeline(prompt_embeds=states, prompt_attention_mask=mask, latents=noise, num_inference_steps=steps,
                    intermediate_timesteps=1.3 if steps == 2 else None, guidance_scale=4.5, height=128, width=192,
                    use_resolution_binning=False, output_type="latent", generator=torch.Generator().manual_seed(5)).images

    drawn = torch.Generator().manual_seed(5)

    def denoised(x, sigma):
        v = ours(x, sigma, states, mask, torch.full((2,), 4.5))
        return x - sigma[:, None, None, None] * v

    got = sample_scm(denoised, noise, sprint_sigmas(steps),
                     noise_sampler=lambda *_: torch.randn(noise.shape, generator=drawn))
    assert ((got - want).norm() / want.norm()).item() < 1e-5
