"""Nodes that ComfyUI itself has, run in this process."""

import importlib


def run(name, *args, module="nodes", **kwargs):
    """First output of the node class `name` in ComfyUI's nodes.py, or in a module of comfy_extras."""
    if module == "nodes_latent":  # newer ones import each other, and only in this order
        importlib.import_module("comfy_extras.nodes_post_processing")
    cls = getattr(importlib.import_module(module if module == "nodes" else f"comfy_extras.{module}"), name)
    if hasattr(cls, "FUNCTION") and not hasattr(cls, "define_schema"):
        return getattr(cls(), cls.FUNCTION)(*args, **kwargs)[0]
    return cls.execute(*args, **kwargs).result[0]
