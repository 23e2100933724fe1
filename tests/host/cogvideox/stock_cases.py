"""What the cases of docs/latent_nodes_cogvideox.md have in common, one for each of its rows.

A case is a function of a `Bench` that returns what a node gives and what it should give (None: nothing is right), and may
return what would be there without the node; tensors all of them.
"""

import importlib
from types import SimpleNamespace

from .video_model import VARIANTS, noise, sample, text

CASES = {}


class NotThere(Exception):
    """This ComfyUI has no such node or input."""


A, B = text(), text(2)


def case(name):
    def keep(function):
        CASES[name] = function
        return function
    return keep


class Bench(SimpleNamespace):
    """host, weights: the fixtures."""

    def model(self, name="5B"):
        return self.host.cogvideox.load_cogvideox(self.weights(VARIANTS[name]))

    def step(self, model=None, positive=A, start=None, cfg=1.0, **kwargs):
        return sample(self.host, model or self.model(), noise(batch=2) if start is None else start, steps=1, cfg=cfg,
                      positive=positive, **kwargs)


def outputs(name, *arguments, module="nodes", **keywords) -> tuple:
    """What a node of the host gives. Raises NotThere."""
    importlib.import_module("comfy_extras.nodes_post_processing")  # newer hosts' nodes_latent can only come after it
    try:
        place = importlib.import_module(module if module == "nodes" else f"comfy_extras.{module}")
    except ModuleNotFoundError as error:
        raise NotThere(name) from error
    cls = getattr(place, name, None)
    if cls is None:
        raise NotThere(name)
    if hasattr(cls, "define_schema"):
        out = cls.execute(*arguments, **keywords)
        return getattr(out, "result", out)  # a node may return a bare tuple, too
    return getattr(cls(), cls.FUNCTION)(*arguments, **keywords)


def output(name, *arguments, **keywords):
    return outputs(name, *arguments, **keywords)[0]
