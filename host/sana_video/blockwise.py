"""LongSANA's way of drawing: a block of latent frames after the other, each of which sees those before it through a state of
constant size.

Source: arXiv 2509.24695, section 3.3, and the pipeline released with it: ten latent frames a block, what is left over in the
first; a few noise levels, each brought to with fresh noise; then the finished block goes through the network once more, clean, to
leave its state behind.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import comfy.conds
import comfy.samplers
import torch
from tqdm.auto import tqdm

from ...kernels.rotary_attention import State
from ...sana_core.video_config import SanaVideoParams
from ...sana_core.video_transformer import Past

KEY = "sanacog_block"              # of a Block in transformer_options
FROM_FRAME = "sanacog_from_frame"  # in a conditioning: the latent frame that it holds from
FRAMES_PER_BLOCK = 10
FRAMES = 4                         # of pixels in a latent frame, but for the first
TIMESTEPS = (1000, 960, 889, 727)  # that LongSANA was distilled for
FOUR_STEP_SIGMAS = (0.9998332262, 0.9471688271, 0.8568977118, 0.6663702130)  # that SANA-Video 2.0 4-step was
FEW_STEPS = {"LongSANA": tuple(t / 1000 for t in TIMESTEPS), "SANA-Video 2.0 4-step": FOUR_STEP_SIGMAS}


@dataclass
class Block:
    """What a network call has to know of the frames before the ones at hand, and where it leaves what follows them has to know.

    past: {kind of condition: a Past for each of the network's blocks}, kinds being the host's 0 for the prompt and 1 for the
    negative one, each of which has seen the frames in its own way; None at the beginning. keep: the same of these frames.
    """

    first_frame: int
    past: dict | None
    keep: dict | None = None


@contextmanager
def of_run(transformer_options: dict, blocks: int):
    """past=, keep= and first_frame= for the forward of a network of `blocks` blocks, whose batch holds one part for each kind of
    condition. Raises ValueError for several prompts of a kind, as a state is of one, and where a block did not run."""
    block = transformer_options.get(KEY)
    if block is None:
        yield {}
        return
    kinds, own = transformer_options.get("cond_or_uncond", [0]), []
    if len({*kinds}) < len(kinds):
        raise ValueError("The LongSANA sampler draws by one prompt at a time: take out what combines several, or parts of the "
                         "picture (ConditioningCombine, ConditioningSetArea).")
    past = None if block.past is None else [joined(parts) for parts in zip(*(block.past[kind] for kind in kinds))]
    yield {"past": past, "keep": own, "first_frame": block.first_frame}
    if block.keep is not None:
        if len(own) < blocks:
            raise ValueError("A node leaves blocks of the network out (Step Cache, skip layer guidance), and the LongSANA sampler "
                             "needs what each of them leaves behind: take it out.")
        parts = [split(one, len(kinds)) for one in own]
        block.keep |= {kind: [part[i] for part in parts] for i, kind in enumerate(kinds)}


def joined(pasts) -> Past:
    """Of several batches as one."""
    return Past(State(*map(torch.cat, zip(*(past.state for past in pasts)))), torch.cat([past.frame for past in pasts]))


def split(past: Past, count: int) -> list[Past]:
    """The inverse of joined."""
    values, keys, frames = (t.chunk(count) for t in (*past.state, past.frame))
    return [Past(State(v, k), f) for v, k, f in zip(values, keys, frames)]


class LongSana(comfy.samplers.KSAMPLER):
    """SAMPLER. frames_per_block: latent frames. window: blocks of the past that are seen, 0 for all of it."""

    def __init__(self, frames_per_block: int = FRAMES_PER_BLOCK, window: int = 0):
        super().__init__(sample, {"frames_per_block": frames_per_block, "window": window})

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        check(model_wrap, sigmas)
        drawn = len(bounds(noise.shape[2], self.extra_options["frames_per_block"]))
        if callback is None:
            return super().sample(model_wrap, sigmas, extra_args, None, noise, *args, **kwargs)

        def counted(step, x0, x, total_steps):
            return callback(step, x0, x, drawn * total_steps)
        return super().sample(model_wrap, sigmas, extra_args, counted, noise, *args, **kwargs)


def check(guider, sigmas) -> None:
    """Raise ValueError for what cannot be drawn block by block."""
    params = getattr(guider.inner_model.model_config, "params", None)
    if not isinstance(params, SanaVideoParams):
        raise ValueError("The LongSANA sampler draws with SANA-Video models of the first generation, LongSANA best: load one with "
                         "Load SANA-Video Model.")
    if guider.model_options.get("context_handler") is not None:
        raise ValueError("Context windows and the LongSANA sampler are two ways to the same end: take the context window node out.")
    if len(sigmas) < 2 or sigmas[-1] != 0:
        raise ValueError("The LongSANA sampler finishes one block before it begins the next, so its SIGMAS have to end in 0: take "
                         "them whole, from SANA-Video Sigmas.")


def bounds(frames: int, frames_per_block: int) -> list[tuple[int, int]]:
    """(first, end) of each block: what is left over is in the first one, which alone may be shorter than the others' length."""
    first = frames if frames < frames_per_block else frames_per_block + frames % frames_per_block
    edges = [0, *range(first, frames + 1, frames_per_block)]
    return list(zip(edges, edges[1:]))


@torch.no_grad()
def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, frames_per_block=FRAMES_PER_BLOCK, window=0):
    """x (B, C, F, h, w), noise at sigmas[0]. model: the host's KSamplerX0Inpaint, whose guider is called block by block.

    What a mask leaves alone is taken as it is: whole blocks leave their state behind, frames and parts of a block are shown to
    the network clean.
    """
    guider, latent = model.inner_model, model.latent_image
    mask, seed = extra_args.get("denoise_mask"), extra_args.get("seed")
    options = extra_args.get("model_options", {})
    generator = torch.Generator().manual_seed((seed or 0) % 2**63)
    sampling, whole = guider.inner_model.model_sampling, guider.conds
    blocks = bounds(x.shape[2], frames_per_block)
    levels, out, pasts = len(sigmas) - 1, x.clone(), []
    progress = tqdm(total=len(blocks) * levels, disable=disable)

    def predict(part, sigma, start, keep=None):
        past = added(pasts[-window:])  # all of them without a window
        block = {**options.get("transformer_options", {}), KEY: Block(start, past, keep)}
        return guider(part, sigma * part.new_ones(len(part)), model_options={**options, "transformer_options": block}, seed=seed)

    def leave_state(start, end, prompt_from):
        keep = {}
        guider.conds = conditions_of(whole, prompt_from)
        predict(out[:, :, start:end], sigmas[-1], start, keep)
        pasts.append(keep)
        # The last one stays by itself: another prompt may have to see it anew.
        pasts[:] = pasts[-window - 1:] if window else [*filter(None, [added(pasts[:-1])]), pasts[-1]]

    def draw(number, start, end):
        drawn = None if mask is None or mask[:, :, start:end].min() == 1 else mask[:, :, start:end]
        given = None if drawn is None else latent[:, :, start:end]
        if given is not None and drawn.max() == 0:
            progress.update(levels)
            return given
        guider.conds = conditions_of(whole, start, drawn)
        part = x[:, :, start:end]
        for i in range(levels):
            part = part if given is None else part * drawn + given * (1 - drawn)
            clean = predict(part, sigmas[i], start)
            clean = clean if given is None else clean * drawn + given * (1 - drawn)
            out[:, :, start:end] = clean
            progress.update()
            if callback is not None:
                callback({"x": part, "i": number * levels + i, "sigma": sigmas[i], "sigma_hat": sigmas[i],
                          "denoised": out[:, :, :end]})
            if sigmas[i + 1] > 0:
                part = sampling.noise_scaling(sigmas[i + 1], torch.randn(part.shape, generator=generator).to(part), clean)
        return clean

    try:
        before = None
        for number, (start, end) in enumerate(blocks):
            if before and prompt_at(whole, start) != prompt_at(whole, before[0]):
                pasts.pop()
                leave_state(*before, start)
            out[:, :, start:end] = draw(number, start, end)
            if end < x.shape[2]:
                leave_state(start, end, start)
            before = (start, end)
    finally:
        guider.conds = whole
        progress.close()
    return out


def added(pasts: list):
    """What several stretches of frames, one behind the other, left behind, as of one; None of none."""
    if not pasts:
        return None
    total, *rest = pasts
    for later in rest:
        total = {kind: [before.then(own) for before, own in zip(total[kind], later[kind])] for kind in total}
    return total


def prompt_at(conds: dict, frame: int) -> int:
    """The latent frame from which the prompt holds that holds at `frame`."""
    return max((start for cond in conds.get("positive", []) if (start := cond.get(FROM_FRAME, 0)) <= frame), default=0)


def conditions_of(conds: dict, frame: int, mask=None) -> dict:
    """A guider's conditions for a block that begins at `frame`: the prompt that holds there, and its own part of the mask."""
    holds = prompt_at(conds, frame)
    own = {} if mask is None else {"denoise_mask": comfy.conds.CONDRegular(mask)}

    def fitted(cond):
        others = {name: value for name, value in cond["model_conds"].items() if name != "denoise_mask"}
        return {**cond, "model_conds": others | own}
    return {kind: [fitted(cond) for cond in several if kind != "positive" or cond.get(FROM_FRAME, 0) == holds]
            for kind, several in conds.items()}


def few_step_sigmas(model: str) -> torch.Tensor:
    """SIGMAS that a distilled model (a name of FEW_STEPS) is drawn with, ending in 0."""
    return torch.tensor([*FEW_STEPS[model], 0.0])


def prompt_switch(conditioning, following, frame: int) -> list:
    """CONDITIONING that turns into `following` at pixel frame `frame` of a clip that is drawn block by block: with the block that
    begins there or next after it. Raises ValueError for a frame before the first.

    Counted in latent frames of four, as LongSANA's are.
    """
    if frame < 1:
        raise ValueError(f"frame is {frame}: the clip begins with frame 0, and the first prompt; give 1 or more.")
    return conditioning + [[states, {**values, FROM_FRAME: -(-(frame - 1) // FRAMES) + 1}] for states, values in following]
