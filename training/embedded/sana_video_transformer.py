"""Training of the tiny SANA-Video transformer on cached latents and text states, and its examination.

One network learns all that the released models do: clips from text, clips that begin with a picture, and, as LongSANA, blocks of
frames that follow others.
"""
from __future__ import annotations

import random

import torch
from torch import nn
from tqdm import tqdm

from . import gemma
from . import video_autoencoder as vae
from ..objectives.sana_video import SanaVideoFlow
from ...evaluation.drawn import clips, roaming
from ...sana_core.sampling import flow_sigmas
from ...sana_core.text import with_motion_score
from ...sana_core.video_config import SanaVideoParams
from ...sana_core.video_transformer import Past, SanaVideoTransformer

BATCH = 24
CLIP, BLOCK, CACHED, LONG = 5, 4, 9, 21  # latent frames: of a plain clip, of a block that follows, of what is cached, of a long one
WITH_INSTRUCTION, WITH_SCORE = 0.4, 0.5  # shares of the cached prompts
TURNS = ("clip", "picture", "block", "clip", "block")  # what a step trains, in turn
PAST_NOISE = 0.15  # at most, on the latents that a block follows: what it follows when it draws is not perfect
PARAMS = SanaVideoParams(
    num_layers=6, num_attention_heads=4, num_cross_attention_heads=4, cross_attention_head_dim=32, attention_head_dim=32,
    caption_channels=96, mlp_ratio=2.5, latents="cogvideox", flow_shift=3.0)


def build() -> SanaVideoTransformer:
    """The tiny transformer with random weights; it starts out predicting zero."""
    model = SanaVideoTransformer(PARAMS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale_shift_table"):
                parameter.zero_()
                if parameter.shape[0] == 6:
                    parameter[[2, 5]] = 0.3  # the gates
            elif name.endswith("conv_temp.weight"):
                parameter.zero_()  # as the authors begin
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        nn.init.normal_(model.time_embed.linear.weight, std=0.02)
        nn.init.zeros_(model.proj_out.weight)
    return model


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon trains: every Linear inside the blocks."""
    return [p for name, p in model.named_parameters() if p.dim() == 2 and "transformer_blocks" in name and "table" not in name]


@torch.no_grad()
def make_cache(autoencoder, text, tokenizer, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """latents (N, 16, 9, 12, 12) times the scale, of clips of 33 frames; states (N + 1, T, 96) and mask (N + 1, T) of a prompt for
    each, the empty one last. Floating point tensors are fp16."""
    generator, rng = torch.Generator().manual_seed(3 + seed), random.Random(3 + seed)
    scenes = clips.sample_scenes(count, generator)
    latents = [vae.encode(autoencoder, roaming.draw(part, 4 * (CACHED - 1) + 1, generator)).half()
               for part in tqdm(scenes.split(8), desc="latents", mininterval=5)]
    states, masks = [], []
    for scene in tqdm(scenes.tolist(), desc="prompts", mininterval=5):
        prompt = with_motion_score(clips.any_prompt(scene, rng), rng.choice((10, 20, 30)) if rng.random() < WITH_SCORE else 0)
        state, mask = gemma.encode_prompts(text, tokenizer, [prompt], rng.random() < WITH_INSTRUCTION)
        states.append(state[0].half())
        masks.append(mask[0].half())
    state, mask = gemma.encode_prompts(text, tokenizer, [""], False)
    states, masks = [*states, state[0].half()], [*masks, mask[0].half()]
    length = max(map(len, masks))
    pad = nn.functional.pad
    return {"latents": torch.cat(latents), "states": torch.stack([pad(s, (0, 0, 0, length - len(s))) for s in states]),
            "mask": torch.stack([pad(m, (0, length - len(m))) for m in masks])}


class Flow(nn.Module):
    """Network and cache, with the loss of one step."""

    def __init__(self, model: SanaVideoTransformer, cache: dict[str, torch.Tensor], device=torch.device("cpu")):
        super().__init__()
        self.model, self.device = model, device
        self.cache = {k: v.to(device) for k, v in cache.items()}
        self.objectives = {turn: SanaVideoFlow(shift=PARAMS.flow_shift, whole_timesteps=False, empty_mask="own",
                                               picture_share=float(turn == "picture")) for turn in TURNS}

    def loss(self, step: int, progress: float) -> torch.Tensor:
        generator, turn = torch.Generator().manual_seed(step), TURNS[step % len(TURNS)]
        chosen = torch.randint(len(self.cache["latents"]), (BATCH,), generator=generator).to(self.device)
        latents = self.cache["latents"][chosen].float()
        batch = {name: self.cache[name][chosen].float() for name in ("states", "mask")}
        batch |= {f"null_{name}": self.cache[name][-1:].float() for name in ("states", "mask")}
        network = self.model
        if turn == "block":
            first = int(torch.randint(2, (), generator=generator))  # a clip's first frame is another kind than those of blocks
            before, latents = latents[:, :, first:CLIP], latents[:, :, CLIP:]
            amount = PAST_NOISE * torch.rand(BATCH, 1, 1, 1, 1, generator=generator)
            before = before + (amount * torch.randn(before.shape, generator=generator)).to(self.device)
            network = Following(self.model, before, CLIP)
        else:
            latents = latents[:, :, :CLIP]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.objectives[turn].losses(network, batch | {"latents": latents}, generator).mean()


class Following:
    """The network on frames that follow others, (B, C, F, h, w), clean, the last of which is number first_frame - 1."""

    def __init__(self, model: SanaVideoTransformer, before: torch.Tensor, first_frame: int):
        self.model, self.before, self.first_frame = model, before, first_frame

    def __call__(self, x, timestep, states, mask):
        past: list[Past] = []
        self.model(self.before, timestep.new_zeros(len(x)), states, mask, keep=past, first_frame=self.first_frame - self.before.shape[2])
        return self.model(x, timestep, states, mask, past=past, first_frame=self.first_frame)


@torch.no_grad()
def sample(model, prompts, *, seeds: list[int], steps: int = 20, guidance: float = 4.5, start=None, frames: int = CLIP):
    """Euler with classifier-free guidance -> scaled latents (B, 16, frames, 12, 12). prompts: states, mask, and those of the empty
    one, each (B or 1, T, ...). start (B, 16, 1, 12, 12): first latent frames that are given."""
    states, mask, null_states, null_mask = prompts
    count, length = len(states), max(states.shape[1], null_states.shape[1])
    pad = nn.functional.pad
    text = torch.cat([pad(s, (0, 0, 0, length - s.shape[1])) for s in (null_states.expand(count, -1, -1), states)])
    seen = torch.cat([pad(m, (0, length - m.shape[1])) for m in (null_mask.expand(count, -1), mask)])
    x = torch.stack([torch.randn(16, frames, 12, 12, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(states)
    sigmas = flow_sigmas(steps, PARAMS.flow_shift).to(x)
    for sigma, target in zip(sigmas, sigmas[1:]):
        time = (1000 * sigma).expand(2 * count, frames).clone()
        if start is not None:
            x[:, :, :1], time[:, 0] = start, 0
        null, said = model(x.repeat(2, 1, 1, 1, 1), time, text, seen).chunk(2)
        x = x + (target - sigma) * (null + guidance * (said - null))
    if start is not None:
        x[:, :, :1] = start
    return x


@torch.no_grad()
def sample_long(model, prompts, *, seeds: list[int], frames: int = LONG, steps: int = 20, guidance: float = 4.5):
    """As `sample`, block by block as LongSANA draws, each block seeing the one before -> (B, 16, frames, 12, 12)."""
    states, mask, null_states, null_mask = prompts
    count, length = len(states), max(states.shape[1], null_states.shape[1])
    pad = nn.functional.pad
    text = torch.cat([pad(s, (0, 0, 0, length - s.shape[1])) for s in (null_states.expand(count, -1, -1), states)])
    seen = torch.cat([pad(m, (0, length - m.shape[1])) for m in (null_mask.expand(count, -1), mask)])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sigmas, past, parts, first = flow_sigmas(steps, PARAMS.flow_shift), None, [], 0

    def noise(size):
        return torch.stack([torch.randn(16, size, 12, 12, generator=generator) for generator in generators]).to(states)

    while first < frames:
        size = CLIP if first == 0 else BLOCK
        x = noise(size)
        for sigma, target in zip(sigmas, sigmas[1:]):
            time = torch.full((2 * count,), float(1000 * sigma))
            null, said = model(x.repeat(2, 1, 1, 1, 1), time, text, seen, past=past, first_frame=first).chunk(2)
            clean = x - sigma * (null + guidance * (said - null))
            x = clean if target == 0 else torch.lerp(clean, noise(size), float(target))
        keep: list[Past] = []
        model(x.repeat(2, 1, 1, 1, 1), torch.zeros(2 * count), text, seen, past=past, keep=keep, first_frame=first)
        parts.append(x)
        past, first = keep, first + size
    return torch.cat(parts, 2)


@torch.no_grad()
def evaluate(model, autoencoder, text, tokenizer, *, picture: bool = False, long: bool = False, steps: int = 20, guidance: float = 4.5,
             count: int = 48):
    """Draw the first `count` of the 48 held-out prompts, prompt i from seed i; with `picture` each from the first frame of a drawn
    clip of its scene, `long`: LONG latent frames block by block -> (shares that obey; `first frame`, mean PSNR in dB, where there
    is a picture; the clips)."""
    scenes, said = (part[:count] for part in clips.evaluation_scenes())
    device = next(model.parameters()).device
    prompts = [t.to(device) for pair in (gemma.encode_prompts(text, tokenizer, said, False), gemma.encode_prompts(text, tokenizer, [""], False))
               for t in pair]
    shown = roaming.draw(scenes, 1, torch.Generator().manual_seed(48))
    start = vae.encode(autoencoder, shown).to(device) if picture else None
    latents = []
    for rows in torch.arange(count).split(16):
        said_here, told = [prompts[0][rows], prompts[1][rows], *prompts[2:]], dict(seeds=rows.tolist(), steps=steps, guidance=guidance)
        latents.append(sample_long(model, said_here, **told) if long else
                       sample(model, said_here, start=None if start is None else start[rows], **told))
    drawn = vae.decode(autoencoder, torch.cat(latents))
    seen = roaming.agreement(roaming.to_frames(drawn), scenes)
    both = seen["colour"] & seen["background"]
    figures = {k: float(v.mean()) for k, v in seen.items()}
    figures |= {"colour+background": float(both.mean()), "colours+direction": float((both & seen["direction"]).mean())}
    if picture:
        figures["first frame"] = float(vae.psnr(drawn[:, :, 0], shown[:, :, 0]).mean())
    return figures, drawn
