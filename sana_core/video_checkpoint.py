"""Layouts of SANA-Video's weights: diffusers, NVlabs, and the canonical one that the networks here load.

Canonical is diffusers' naming with the feed-forward network's 1x1 convolutions as matrices. 2.0 has no diffusers layout: its
canonical names are what diffusers would call the same parts, and "diffusers" is them as they are.
"""

from __future__ import annotations

import re

from ..kernels.state_dict import check_state_dict
from .checkpoint import BLOCK, OUTSIDE, fuse, split, split_key
from .config import Identity
from .lookalikes import strip_prefix
from .video2_transformer import SanaVideo2Transformer
from .video_config import SanaVideo2Params
from .video_transformer import SanaVideoTransformer

# NVlabs' names -> canonical ones, as in checkpoint.py; both generations in one table, as they share most and contradict nowhere.
_VIDEO_BLOCK = BLOCK | {
    "mlp.t_conv": ("ff.conv_temp",),
    "attn.beta_proj": ("attn1.beta_proj",),
    "attn.output_gate": ("attn1.output_gate",),
    "attn.o_norm": ("attn1.norm_out",),
    "mlp.gate_proj": ("ff.gate_proj",),
    "mlp.up_proj": ("ff.up_proj",),
    "mlp.down_proj": ("ff.down_proj",),
}
_VIDEO_OUTSIDE = OUTSIDE | {"x_embedder.proj": ("patch_embedding",)} | {
    f"attn_res.{name}": (f"attn_res.{name}",) for name in ("attn_proj", "mlp_proj", "final_proj")}
# Left over from training, or computed: see checkpoint.py. diffusers' rotary tables are not saved, but some savers do.
_LEFT_OVER = re.compile(r"y_embedder\.y_embedding|pos_embed|logvar_linear\.(weight|bias)|rope(_linear|_softmax)?\.freqs(_cos|_sin)?")
_CONV_1X1 = re.compile(r"transformer_blocks\.\d+\.ff\.conv_(inverted|point)\.weight")
LAYOUTS = ("diffusers", "nvlabs")


def network(params, **kw):
    """The network of SanaVideoParams or SanaVideo2Params. kw: device, dtype, operations."""
    return (SanaVideo2Transformer if isinstance(params, SanaVideo2Params) else SanaVideoTransformer)(params, **kw)


def to_canonical(state_dict: dict, layout: str) -> dict:
    """Any layout -> canonical; as sana_core.checkpoint.to_canonical."""
    state_dict = {key: t for key, t in strip_prefix(state_dict).items() if not _LEFT_OVER.fullmatch(key)}
    if _known(layout) == "nvlabs":
        state_dict = split(state_dict, _VIDEO_BLOCK, _VIDEO_OUTSIDE)
    return {key: t.flatten(1) if _CONV_1X1.fullmatch(key) and t.ndim > 1 else t for key, t in state_dict.items()}


def from_canonical(state_dict: dict, layout: str) -> dict:
    """Canonical -> "diffusers" or "nvlabs": the exact inverse of to_canonical on a released file's own keys."""
    state_dict = {key: t[:, :, None, None] if _CONV_1X1.fullmatch(key) else t for key, t in state_dict.items()}
    return state_dict if _known(layout) == "diffusers" else fuse(state_dict, _VIDEO_BLOCK, _VIDEO_OUTSIDE)


def check_shapes(shapes: dict[str, tuple], identity: Identity, filename: str = "") -> None:
    """Raise ValueError, naming the keys, unless a file has exactly the tensors of the model it was identified as."""
    check_state_dict(shapes, lambda tensors: to_canonical(tensors, identity.layout),
                     lambda: network(identity.params, device="meta"), identity.variant, filename)


def canonical_modules(name: str) -> tuple[str, ...]:
    """As sana_core.checkpoint.canonical_modules."""
    number, module, _ = split_key(name + ".", "blocks")
    names = (_VIDEO_BLOCK if number else _VIDEO_OUTSIDE).get(module, ())
    return tuple(f"transformer_blocks.{number}{part}" if number else part for part in names)


def _known(layout):
    if layout not in LAYOUTS:
        raise ValueError(f'unknown layout "{layout}" of a SANA-Video transformer, expected one of {", ".join(LAYOUTS)}')
    return layout
