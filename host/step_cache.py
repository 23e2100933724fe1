"""Evaluations that reuse an earlier one: what the blocks added to the tokens then is added again, and they do not run.

Two ways to tell how much a result will have changed. TeaCache (arXiv 2411.19108): by what modulates the first block's input,
its changes rescaled and added up since the last computed evaluation. First block (ParaAttention's first-block cache): by what
the first block adds, compared with what it added at the last computed evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comfy.patcher_extension import WrappersMP

KEY = "sanacog_step_cache"  # of the wrapper, and of a run's Run in transformer_options
METHODS = ("first block", "TeaCache")
IDENTITY = (1.0, 0.0)
FITTED = 0.25  # relative changes up to this: beyond, the published polynomials turn back, some of them below 0


@dataclass(frozen=True)
class Settings:
    method: str
    threshold: float
    start: float
    end: float
    most: int


def step_cache(model, method: str, threshold: float, start: float = 0.0, end: float = 1.0, most: int = 3):
    """MODEL whose sampling leaves out the blocks of evaluations that would change little.

    method: one of METHODS. threshold: the relative change, 0 to 1 and more, up to which the earlier one is reused; 0 gives the
    model as it was, without a Step Cache that it had. start, end: the part of the sampling, 0 to 1, in which it acts; the first
    and the last step are always computed. most: evaluations left out in a row, at least 1.
    Raises ValueError for another model than those of the pack.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(METHODS)}.")
    if most < 1:
        raise ValueError(f"max_skips is {most}: it must be at least 1. A threshold of 0 switches the cache off.")
    if not hasattr(model.model, "teacache_polynomial"):
        raise ValueError(f"Step Cache knows the blocks of Sana and CogVideoX, and this model is {type(model.model).__name__}: load "
                         "one with Load Sana Model or Load CogVideoX Model, or take the stock EasyCache.")
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)  # the last one counts
    if threshold > 0.0:
        settings = Settings(method, threshold, start, end, most)

        def around_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
            guider = executor.class_obj
            run = Run(settings, guider.model_patcher, sigmas)
            guider.model_options.setdefault("transformer_options", {})[KEY] = run  # the host made them for this run
            result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            logging.info("Step Cache (%s, threshold %g): %d of %d evaluations reused an earlier one.", method, threshold,
                         run.reused, run.evaluations)
            return result

        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, around_sampling)
    return patched


@dataclass
class State:
    """Of one condition. grown: what the blocks added to picture (b, N, D) and text (b, T, D)."""

    measured: torch.Tensor | None = None  # what a change is measured against
    change: float = 0.0                   # TeaCache's, since the last computed evaluation
    grown: tuple = ()
    used: int = 0                         # at which evaluation


@dataclass
class Window:
    """Of one context window, or of the whole latent: its states, and what was decided last."""

    states: dict = field(default_factory=dict)
    sigma: float | None = None
    decider: tuple | None = None
    reuses: bool = False
    row: int = 0         # reused one after the other
    evaluations: int = 0


class Run:
    """One sampling. The first call at a noise level decides, by its first condition, and all others of that level follow: so
    that it does not matter how many conditions the host has memory to evaluate at once."""

    def __init__(self, settings: Settings, patcher, sigmas):
        sampling = patcher.get_model_object("model_sampling")
        self.settings, self.polynomial = settings, patcher.model.teacache_polynomial()
        self.highest, self.lowest = (float(sampling.percent_to_sigma(share)) for share in (settings.start, settings.end))
        self.last = float(sigmas[-2]) * (1 + 1e-6) if len(sigmas) > 1 else 0.0
        self.windows, self.evaluations, self.reused = {}, 0, 0

    def around(self, run_block: Callable, blocks: int, modulated: Callable, options: dict) -> Callable:
        """run_block (host/blocks.py) for one call of a network of `blocks` blocks.

        modulated(x, vec) -> (B, ...): the modulated input of block 0, or what stands for it.
        """
        sigmas = options.get("sigmas")
        if sigmas is None or torch.is_grad_enabled():
            return run_block
        conditions = _conditions(options)
        call = Call(self, self.windows.setdefault(_window(options), Window()), float(sigmas.flatten()[0]), conditions)
        first_block = self.settings.method == "first block"

        def cached(i, run, x, context, vec):
            if i > 0 and call.reuses:
                return x, context
            if i == 0 and not first_block:
                call.decide(modulated(x, vec), x, context)
            if not call.reuses:
                before, (x, context) = x, run_block(i, run, x, context, vec)
            if i == 0 and first_block:
                call.decide(x - before, x, context)
            if i == 0 and call.reuses:
                return call.grown(x, context)
            if i == blocks - 1:
                call.keep(x, context)
            return x, context

        return cached

    def decides(self, window: Window, sigma: float, state: State | None, measured) -> bool:
        """Whether the evaluation at sigma reuses an earlier one. state: the deciding condition's, None: it has none to reuse.
        measured: its share of what the method looks at."""
        if state is None:
            return False
        change = _relative_change(measured, state.measured)
        if self.settings.method == "TeaCache":
            state.change += rescaled(self.polynomial, change)
            state.measured, change = measured, state.change
        inside = self.lowest <= sigma <= self.highest and sigma > self.last
        return inside and window.row < self.settings.most and change <= self.settings.threshold


class Call:
    """One call of the network: conditions, keys of states, stand one after the other in its batch."""

    def __init__(self, run: Run, window: Window, sigma: float, conditions: list):
        self.run, self.window, self.sigma, self.conditions = run, window, sigma, conditions
        self.reuses, self.measured, self.start = False, None, ()

    def decide(self, measured, x, context) -> None:
        """Sets self.reuses. x, context: what a reused evaluation would be added to."""
        run, window = self.run, self.window
        parts = list(zip(*(tensor.chunk(len(self.conditions)) for tensor in (x, context))))
        states = [window.states.get(key) for key in self.conditions]
        usable = all(state and _fit(state.grown, part) for state, part in zip(states, parts))
        self.measured = measured.chunk(len(self.conditions))
        if window.sigma != self.sigma or window.decider in self.conditions:
            window.sigma, window.decider = self.sigma, self.conditions[0]
            window.evaluations += 1
            window.reuses = run.decides(window, self.sigma, states[0] if usable else None, self.measured[0])
            window.row = window.row + 1 if window.reuses else 0
            run.evaluations += 1
            run.reused += window.reuses
            window.states = {key: s for key, s in window.states.items() if s.used >= window.evaluations - 2}
        self.reuses = window.reuses and usable
        if self.reuses:
            for state in states:
                state.used = window.evaluations
        else:
            self.start = x.clone(), context.clone()  # nodes may write into what they are given

    def grown(self, x, context) -> tuple:
        """x (B, N, D) and context (B, T, D) with what the blocks added at the last computed evaluation."""
        added = zip(*(self.window.states[key].grown for key in self.conditions))
        return tuple(tensor + torch.cat(parts) for tensor, parts in zip((x, context), added))

    def keep(self, x, context) -> None:
        """Note what the blocks have added since decide."""
        added = [(after - before).chunk(len(self.conditions)) for after, before in zip((x, context), self.start)]
        for key, measured, *grown in zip(self.conditions, self.measured, *added):
            self.window.states[key] = State(measured, 0.0, tuple(grown), self.window.evaluations)
        self.start = ()


def _conditions(options: dict) -> list:
    """A name for each condition of a call. Nodes evaluate the same one again with other parts replaced, as PAG does: that is
    another one."""
    replaced = tuple((kind, key, id(patch)) for kind, patches in options.get("patches_replace", {}).items()
                     for key, patch in patches.items())
    return [(uuid, replaced) for uuid in options.get("uuids") or [None]]


def _window(options: dict):
    window = options.get("context_window")
    return None if window is None else tuple(window.index_list)


def _fit(grown: tuple, tensors: tuple) -> bool:
    return bool(grown) and all((a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) for a, b in zip(grown, tensors))


def _relative_change(new, old) -> float:
    """mean |new - old| / mean |old|"""
    return float((new - old).abs().mean(dtype=torch.float32) / old.abs().mean(dtype=torch.float32))


def rescaled(polynomial, change: float) -> float:
    """A relative change by TeaCache's polynomial, coefficients with the highest power first; never less than the change where that
    is beyond what was fitted."""
    value = 0.0
    for coefficient in polynomial:
        value = value * change + coefficient
    return max(value, change) if change > FITTED else value
