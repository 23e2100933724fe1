"""Sana's text in a sampling run: embedded, and made keys and values of, at the first step, and dropped with the run.

It is the same at every step unless a node sees to it that it is not. So what a network has read is used again only for equal
states and masks, and not at all while weights may change (hooks, training) or while nodes get hold of the text on its way.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from ..sana_core.transformer import ReadsText, Text

KEY = "sanacog_texts"  # of a run's Texts in transformer_options
LIMIT = 256 * 1024**2  # bytes: Sana 1.6B's guided batch with full prompts takes 103 MiB in 16 bits


class Read(NamedTuple):
    """What a network has read."""

    network: ReadsText
    states: torch.Tensor       # (B, T, C)
    mask: torch.Tensor | None  # (B, T)
    text: Text

    def size(self) -> int:
        return _size(self.network, self.text)


class Texts:
    """What networks have read in one run: the last texts used, of LIMIT bytes in all. With several devices the host asks
    from a thread for each."""

    def __init__(self):
        self.kept = []  # Read, the last used at the end
        self.lock = threading.Lock()

    def read(self, network: ReadsText, states, mask) -> Text:
        """The network's Text of states (B, T, C), in the type that it computes in, and mask (B, T)."""
        for read in self.kept:
            if read.network is network and _same(read.states, states) and _same(read.mask, mask):
                break
        else:
            text = network.embed_text(states, mask, trim=not _compiled(network))
            if _size(network, text) > LIMIT:
                return text
            # Copies, because a node may write into what it was given.
            read = Read(network, states.clone(), mask if mask is None else mask.clone(), network.with_pairs(text))
        with self.lock:
            kept = [other for other in self.kept if other is not read] + [read]
            while sum(other.size() for other in kept) > LIMIT:
                kept.pop(0)
            self.kept = kept
        return read.text


def around_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """The host's OUTER_SAMPLE wrapper: a run of more than one step gets its Texts, in options that the host made for it."""
    if len(sigmas) > 2:
        executor.class_obj.model_options.setdefault("transformer_options", {})[KEY] = Texts()
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def may_be_kept(patcher, transformer_options) -> bool:
    """Whether a network's weights stay as they are, and its states of the text reach its blocks as they are, which nodes
    could also write into. patcher: the running model's, or None."""
    patches = transformer_options.get("patches", {})
    on_the_way = (patches.get("post_input") or patches.get("double_block")
                  or transformer_options.get("patches_replace", {}).get("dit")
                  or get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options))
    hooked = patcher is not None and patcher.current_hooks is not None
    return not (on_the_way or hooked or torch.is_grad_enabled())


def _same(a, b) -> bool:
    if a is None or b is None:
        return a is b
    return (a.device, a.dtype) == (b.device, b.dtype) and torch.equal(a, b)


def _size(network, text) -> int:
    return (1 + 2 * len(network.transformer_blocks)) * text.context.nbytes


def _compiled(network) -> bool:
    """Whether parts of it are compiled, and would be anew for every length of a prompt."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in network.modules())
