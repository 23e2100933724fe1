"""The tiny CogVideoX transformers, text to video and image to video: their size, their first weights, and their examination."""
from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from . import t5
from . import video_autoencoder as vae
from ...evaluation.drawn import clip_judge, clips
from ...cogvideo_core import schedule
from ...cogvideo_core.config import CogVideoParams
from ...cogvideo_core.transformer import CogVideoTransformer

# Positions as the 2B has them, added to the tokens: from pure noise, rotary positions alone tell a token only after some
# training how far it is from the text, which stands at 0, and thereby where it is.
PARAMS = CogVideoParams(
    num_layers=5, num_attention_heads=4, attention_head_dim=32, time_embed_dim=64, text_embed_dim=96,
    max_text_seq_length=t5.LENGTH, sample_height=vae.LATENT[2], sample_width=vae.LATENT[3],
    use_rotary_positional_embeddings=False, spatial_interpolation_scale=1.0, scaling_factor=vae.LATENT_SCALE, snr_shift_scale=3.0)
IMAGE_PARAMS = replace(PARAMS, in_channels=32, conditioning="image")


def build(params: CogVideoParams = PARAMS) -> CogVideoTransformer:
    """The tiny transformer with random weights; it starts out predicting zero."""
    model = CogVideoTransformer(params)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        for block in model.transformer_blocks:
            for norm in (block.norm1, block.norm2):
                nn.init.normal_(norm.linear.weight, std=0.02)
                norm.linear.bias.view(2, 3, -1)[:, 2] = 0.3  # the gates, of video and of text
        nn.init.normal_(model.norm_out.linear.weight, std=0.02)
        nn.init.zeros_(model.proj_out.weight)
    return model


def with_picture(model: CogVideoTransformer) -> CogVideoTransformer:
    """An image-to-video transformer that does what this text-to-video one does: new input columns are zero."""
    ours = build(IMAGE_PARAMS)
    tensors = dict(model.state_dict())
    patch = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = torch.cat([patch, torch.zeros_like(patch)], dim=1)
    ours.load_state_dict(tensors)
    return ours


def beside(start: torch.Tensor, frames: int = vae.LATENT[1]) -> torch.Tensor:
    """A start picture's scaled latent (B, 16, 1, h, w) as the condition of a clip of so many latent frames: at its first one,
    zeros behind it."""
    return F.pad(start, (0, 0, 0, 0, 0, frames - 1))


@torch.no_grad()
def sample(model: CogVideoTransformer, states, empty, *, seeds: list[int], start=None, steps: int = 25,
           guidance: float = 5.0, form: clips.Format = clips.SMALL) -> torch.Tensor:
    """DDIM with trailing timesteps and classifier-free guidance -> scaled latents (B, 16, T, H, W) of clips of that format.

    states (B, 32, 96), empty (1, 32, 96) of the empty prompt; start (B, 16, 1, H, W) scaled, for image to video, kept
    in both halves of the guidance. One seed a clip."""
    device = states.device
    shape = vae.latent(form)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(device)
    context = torch.cat([states, empty.expand_as(states)])
    condition = [] if start is None else [beside(start, shape[1]).repeat(2, 1, 1, 1, 1)]

    def guided(x, timestep):
        at = torch.full((len(context),), timestep, device=device)
        v, v_empty = model(torch.cat([x.repeat(2, 1, 1, 1, 1), *condition], dim=1), at, context).chunk(2)
        return v_empty + guidance * (v - v_empty)

    return schedule.ddim(guided, noise, steps, model.params.snr_shift_scale)


@torch.no_grad()
def evaluate(model, autoencoder, text, tokenizer, *, picture: bool = False, steps: int = 25, guidance: float = 5.0,
             seed: int = 0, count: int = 48, form: clips.Format = clips.SMALL) -> tuple[dict[str, float], torch.Tensor]:
    """Draw the first `count` of the 48 held-out prompts, prompt i from seed + i; with `picture`, each from the first
    frame of a drawn clip of its scene. -> (shares that obey: each attribute, colours together, colours and direction;
    `first frame`, mean PSNR in dB, and `kept`, the share over 20 dB, where there is a picture; the clips)."""
    scenes, prompts = (part[:count] for part in clips.evaluation_scenes())
    states = t5.encode_prompts(text, tokenizer, prompts)
    empty = t5.encode_prompts(text, tokenizer, [""])
    shown = clips.draw(scenes, torch.Generator().manual_seed(48), clips.WIDE, form=form)[:, :, :1]
    start = vae.encode(autoencoder, shown).to(states.device) if picture else None
    latents = []
    for rows in torch.arange(len(prompts)).split(16):
        latents.append(sample(model, states[rows], empty, seeds=[seed + int(i) for i in rows], steps=steps,
                              guidance=guidance, form=form, start=None if start is None else start[rows]))
    drawn = vae.decode(autoencoder, torch.cat(latents))
    seen = clip_judge.agreement(clips.to_frames(drawn), scenes)
    both = seen["colour"] & seen["background"]
    figures = {k: float(v.mean()) for k, v in seen.items()}
    figures |= {"colour+background": float(both.mean()), "colours+direction": float((both & seen["direction"]).mean())}
    if picture:
        kept = vae.psnr(drawn[:, :, 0], shown[:, :, 0])
        figures |= {"first frame": float(kept.mean()), "kept": float((kept > 20).float().mean())}
    return figures, drawn
