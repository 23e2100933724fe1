"""Evaluations that reuse an earlier one: what the blocks added to the tokens then is added again, and they do not run.

Two ways to tell how much a result will have changed. TeaCache (arXiv 2411.19108): by what modulates the first block's input,
its changes rescaled and added up since the last computed evaluation. First block (ParaAttention's first-block cache): by
what the first block adds, compared with what it added at the last computed evaluation.
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

    method: one of METHODS. threshold: the relative change, 0 to 1 and more, up to which the earlier one is reused; 0 gives
    the model as it was, without a Step Cache that it had. start, end: the part of the sampling, 0 to 1, in which it acts;
    the first and the last step are always computed. most: evaluations left out in a row, at least 1.
    Raises ValueError for another model than those of the pack.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(METHODS)}.")
    if most < 1:
        raise ValueError(f"max_skips is {most}: it must be at least 1. A threshold of 0 switches the cache off.")
    if not hasattr(model.model, "teacache_polynomial"):
        raise ValueError("Step Cache knows the blocks of Sana, CogVideoX and SANA-Video of the first generation, and this "
                         f"model is {type(model.model).__name__}: load one of those with its loader of this pack, or take "
                         "the stock EasyCache.")
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
    """Of calls for the same conditions. Nothing after the blocks looks at the text: the picture (B, N, D) is all there is
    to keep."""

    measured: torch.Tensor  # what a change is measured against
    grown: torch.Tensor     # what the blocks added to the picture
    used: int               # in which of its window's evaluations
    change: float = 0.0     # TeaCache's, since the last computed evaluation


@dataclass
class Window:
    """Of one context window, or of the whole latent, on one device: its states, and what was decided last."""

    states: dict = field(default_factory=dict)
    sigma: float | None = None
    decider: tuple | None = None
    reuses: bool = False
    row: int = 0         # reused one after the other
    evaluations: int = 0
    reused: int = 0      # of these


class Run:
    """One sampling. The first call at a noise level decides, by its first condition, and all others of that level follow: so
    that it does not matter how many conditions the host has memory to evaluate at once."""

    def __init__(self, settings: Settings, patcher, sigmas):
        sampling = patcher.get_model_object("model_sampling")
        self.settings, self.polynomial = settings, patcher.model.teacache_polynomial()
        self.highest, self.lowest = (float(sampling.percent_to_sigma(share)) for share in (settings.start, settings.end))
        self.last = float(sigmas[-2]) * (1 + 1e-6) if len(sigmas) > 1 else 0.0
        self.windows = {}

    @property
    def evaluations(self) -> int:
        return sum(window.evaluations for window in self.windows.values())

    @property
    def reused(self) -> int:
        return sum(window.reused for window in self.windows.values())

    def around(self, run_block: Callable, blocks: int, modulated: Callable, options: dict) -> Callable:
        """run_block (host/blocks.py) for one call of a network of `blocks` blocks.

        modulated(x, vec) -> (B, ...): the modulated input of block 0, or what stands for it.
        """
        sigmas = options.get("sigmas")
        if sigmas is None or torch.is_grad_enabled():
            return run_block
        call = Call(self, options, float(sigmas.flatten()[0]))
        first_block = self.settings.method == "first block"

        def cached(i, run, x, context, vec):
            if i > 0 and call.reuses:
                return x, context
            if i == 0 and not first_block:
                call.decide(modulated(x, vec), x)
            if not call.reuses:
                before, (x, context) = x, run_block(i, run, x, context, vec)
            if i == 0 and first_block:
                call.decide(x - before, x)
            if i == 0 and call.reuses:
                return x + call.state.grown, context
            if i == blocks - 1:
                call.keep(x)
            return x, context

        return cached

    def decides(self, window: Window, sigma: float, state: State | None, measured) -> bool:
        """Whether the evaluation at sigma reuses an earlier one. state: the deciding call's, None: it has none to reuse.
        measured: what the method looks at."""
        if state is None:
            return False
        change = _relative_change(measured, state.measured)
        if self.settings.method == "TeaCache":
            state.change += rescaled(self.polynomial, change)
            state.measured, change = measured, state.change
        inside = self.lowest <= sigma <= self.highest and sigma > self.last
        return inside and window.row < self.settings.most and change <= self.settings.threshold


class Call:
    """One call of the network."""

    def __init__(self, run: Run, options: dict, sigma: float):
        self.run, self.sigma = run, sigma
        self.window = run.windows.setdefault(_window(options), Window())
        self.conditions, self.key = len(options.get("uuids") or [None]), _conditions(options)
        self.state = self.window.states.get(self.key)
        self.reuses, self.measured, self.start = False, None, None

    def decide(self, measured, x) -> None:
        """Sets self.reuses. x: what a reused evaluation would be added to."""
        run, window, state = self.run, self.window, self.state
        self.measured = measured[:len(measured) // self.conditions].clone()  # a view would keep all of it
        if state and not _fit(state.grown, x):
            state = None
        if window.sigma != self.sigma or window.decider == self.key:
            window.sigma, window.decider = self.sigma, self.key
            window.evaluations += 1
            window.reuses = run.decides(window, self.sigma, state, self.measured)
            window.row = window.row + 1 if window.reuses else 0
            window.reused += window.reuses
            window.states = {key: s for key, s in window.states.items() if s.used >= window.evaluations - 2}
        self.reuses = window.reuses and state is not None
        if self.reuses:
            state.used = window.evaluations
        else:
            self.start = x.clone()  # nodes may write into what they are given

    def keep(self, x) -> None:
        """Note what the blocks have added since decide."""
        self.window.states[self.key] = State(self.measured, x - self.start, self.window.evaluations)


def _conditions(options: dict) -> tuple:
    """A name for the conditions of a call, in their order. Nodes evaluate the same ones again with other parts replaced, as
    PAG does: these are others. Functions are told by their code, as some are made anew for every call."""
    replaced = tuple((kind, place, id(getattr(patch, "__code__", patch)))
                     for kind, patches in options.get("patches_replace", {}).items() for place, patch in patches.items())
    return tuple(options.get("uuids") or ()), replaced


def _window(options: dict):
    """A name for the context window of a call, on the device that it runs on: where the host spreads conditions over
    several, each decides by its own ones, as none can know what another is about to."""
    window = options.get("context_window")
    return options.get("multigpu_thread_device"), None if window is None else tuple(window.index_list)


def _fit(a, b) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _relative_change(new, old) -> float:
    """mean |new - old| / mean |old|"""
    return float((new - old).abs().mean(dtype=torch.float32) / old.abs().mean(dtype=torch.float32))


def rescaled(polynomial, change: float) -> float:
    """A relative change by TeaCache's polynomial, coefficients with the highest power first; never less than the change
    where that is beyond what was fitted."""
    value = 0.0
    for coefficient in polynomial:
        value = value * change + coefficient
    return max(value, change) if change > FITTED else value
