"""A text encoder's file: which of its tensors are the network's, and which of them are quantised. For both encoders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..kernels.foreign_quant import refuse_foreign
from ..kernels.key_names import prefix_of
from ..kernels.quant_layers import LEAVES, MARKER, from_metadata, read_layers, without_layers
from ..storage.checkpoints import open_checkpoint
from .compat import hand_over_text_layers, quantised_formats
from .files import is_pipeline


class EncoderFile:
    """A text encoder on disk, looked at and not read: file, sharded folder or diffusers pipeline, or its part of a checkpoint
    of several models.

    names: {the network's name of a tensor: the file's}. shapes: by the network's names. extras: {name: the file's key} of
    what our tokenizers keep beside the weights. pipeline: whether it is one.
    """

    def __init__(self, path: Path, anchors: Sequence[str], canonical, extras: Sequence[str]):
        """anchors: names that files of this encoder have, somewhere behind a prefix. canonical: what stands behind the same
        prefix -> the network's name of it, or None. extras: names that `self.extras` may have. Raises what
        storage.open_checkpoint does, and ValueError for a description of quantised layers that cannot be read."""
        self.path, self.pipeline = Path(path), is_pipeline(path)
        self.checkpoint = open_checkpoint(self.path, **({"subfolder": "text_encoder"} if self.pipeline else {}))
        keys = self.checkpoint.shapes
        prefix = next((before for anchor in anchors if (before := prefix_of(keys, anchor)) is not None), None)
        self.names = {} if prefix is None else {
            name: key for key in keys if key.startswith(prefix) and (name := canonical(key[len(prefix):]))}
        # A marker, and what our tokenizers keep, may stand less deep than the weights.
        above = {key.rpartition(".")[2]: key for key in keys
                 if (prefix or "").startswith(key.removesuffix(key.rpartition(".")[2]))}
        if MARKER in above:
            self.names[MARKER] = above[MARKER]
        self.extras = {leaf: above[leaf] for leaf in extras if leaf in above}
        self.shapes = {name: tuple(keys[key]) for name, key in self.names.items()}
        try:
            entries = {f"{layer}.weight": entry for layer, entry in from_metadata(self.checkpoint.metadata).items()}
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {error}") from None
        self.told = {name.removesuffix(".weight"): entries[key] for name, key in self.names.items() if key in entries}

    def refuse_foreign(self, what: str, remedy: str) -> None:
        """Raise ValueError for weights that nobody here reads. what, remedy: words for it."""
        refuse_foreign(self.checkpoint.shapes, what, remedy, f"{self.path.name}: ")

    def odd_weights(self, expected: dict[str, tuple]) -> list[str]:
        """Names that are missing, unexpected or of another shape than `expected`, {name: shape}. Scales beside quantised
        weights are none of them, and a packed weight may have fewer columns than its layer."""
        packed = {*self.told, *(name.removesuffix(".comfy_quant") for name in self.names if name.endswith(".comfy_quant"))}

        def is_scale(name):
            layer, _, leaf = name.rpartition(".")
            return name == MARKER or leaf in LEAVES and f"{layer}.weight" in self.shapes

        def fits(name):
            shape, wanted = self.shapes.get(name), expected.get(name)
            return shape == wanted or shape and wanted and shape[0] == wanted[0] and name.removesuffix(".weight") in packed
        return sorted(name for name in expected.keys() | self.shapes.keys() if not is_scale(name) and not fits(name))

    def read(self) -> tuple[dict, dict, dict]:
        """(tensors by the network's names, {layer: entry} of the quantised ones, extras)."""
        everything = self.checkpoint.load()
        try:
            tensors, layers = read_layers({name: everything[key] for name, key in self.names.items()}, self.told)
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {error}") from None
        return tensors, layers, {name: everything[key] for name, key in self.extras.items()}

    def for_host(self, tensors: dict, layers: dict, dtype: torch.dtype, kept: bool,
                 embeddings: tuple[str, ...]) -> tuple[dict, dict, dict]:
        """(tensors, {layer: entry} that stay quantised, the host's model options): what this host does not read is turned back.

        dtype: of what is turned back. kept: whether layers may stay quantised. embeddings: how the names of matrices end that
        never do. Raises ValueError for a format that neither the host nor this pack reads.
        """
        formats = quantised_formats() if kept else ()
        back = {layer: entry for layer, entry in layers.items() if entry["format"] not in formats or layer.endswith(embeddings)}
        if back:
            logging.info("%s: quantised weights of %d layers turned back to %s", self.path.name, len(back), dtype)
            try:
                tensors = without_layers(tensors, back, dtype)
            except ValueError as error:
                raise ValueError(f"{self.path.name}: {error} Update ComfyUI, or take the file that it was made from.") from None
        layers = {layer: entry for layer, entry in layers.items() if layer not in back}
        matrices = {key.removesuffix(".weight") for key, t in tensors.items() if key.endswith(".weight") and t.ndim == 2}
        whole = {layer for layer in matrices if not layer.endswith(embeddings)} == layers.keys()
        tensors, options = hand_over_text_layers(tensors, layers, whole)
        return tensors, layers, options
