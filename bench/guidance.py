"""Do perturbed-attention guidance and a CFG interval help the embedded tiny Sana? Its held-out prompts, judged from pixels."""

from __future__ import annotations

import time

import torch

from .accuracy import MODELS, load_tiny_sana

SEEDS = (0, 64)  # of the first picture of each round of 64
CFG = 4.5
VARIANTS = {
    "CFG": {},
    "CFG, PAG 2": {"pag": 2.0},
    "CFG in the first 80 %": {"end": 0.8},
    "no CFG": {"cfg": 1.0},
    "no CFG, PAG 2": {"cfg": 1.0, "pag": 2.0},
}


class Guided:
    """A transformer whose two predictions give, put together by CFG at `cfg`, what PAG and the interval would.

    It is called with the pictures twice, for the prompt and for the empty one. block: the one that PAG weakens. end:
    share of the sampling after which there is no CFG.
    """

    def __init__(self, model, block: int, shift: float, cfg: float = CFG, pag: float = 0.0, end: float = 1.0):
        self.model, self.block, self.shift, self.cfg, self.pag, self.end = model, block, shift, cfg, pag, end

    def __call__(self, x, timestep, context, mask):
        sigma, half = float(timestep[0]) / 1000, len(x) // 2
        one = x[:half], timestep[:half], context[:half], mask[:half]
        share = 1 - sigma / (self.shift - (self.shift - 1) * sigma)
        if self.cfg == 1.0 or share > self.end:
            v = empty = self.model(*one)
        else:
            v, empty = self.model(x, timestep, context, mask).chunk(2)
        push = 0.0
        if self.pag:
            push = self.pag * (v - self.model(*one, self_attention={self.block: lambda q, k, v, heads: v}))
        return torch.cat([v + push, empty + push])


def guidance_accuracy(folder=MODELS):
    """Each of VARIANTS on training's 64 held-out prompts, 20 steps, a round for each of SEEDS, in fp32.

    Returns {variant: {attribute: share}, "wanted": {}, "seconds": float}. Raises FileNotFoundError naming the command that
    makes the files.
    """
    from ..training.embedded import transformer

    text, tokenizer, pictures, sana = load_tiny_sana(folder)
    start, found = time.perf_counter(), {}
    for name, options in VARIANTS.items():
        model = Guided(sana, len(sana.transformer_blocks) // 2, transformer.SHIFT, **options)
        rounds = [transformer.evaluate(model, pictures, text, tokenizer, guidance=model.cfg, seed=seed)[0] for seed in SEEDS]
        found[name] = {key: sum(r[key] for r in rounds) / len(rounds) for key in rounds[0]}
    return found | {"wanted": {}, "seconds": round(time.perf_counter() - start, 1)}
