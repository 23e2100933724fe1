"""Files of Sana's ControlNets: which one a file holds, and its weights in diffusers', NVlabs' and the canonical layout.

NVlabs' files hold the whole base and beside it the copied blocks; the embedders, which diffusers' files repeat, are the
base's. Canonical is diffusers' naming with the 1x1 convolutions as matrices, as for the transformer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..kernels.foreign_quant import refuse_foreign
from ..kernels.state_dict import check_state_dict, refuse_hollow
from ..kernels.stated_config import INSIDE, Rules
from . import checkpoint
from .config import CLASSES, Identity, SanaParams, identify_stated
from .controlnet import WIRINGS, SanaControlNet
from .lookalikes import looks_like, strip_prefix

_COPY = re.compile(r"controlnet\.(\d+)\.copied_block\.")
_BASE_BLOCK = re.compile(r"(blocks|final_layer)\.")  # of the base, and not repeated in diffusers' files
_INPUT = ("controlnet.0.before_proj.", "input_block.")
_BASE_DEPTH = {1152: 28, 2240: 20}  # width -> layers of the released bases
_REMEDY = "Take the file that it was made from, in bf16 or fp16. For less memory choose weight_dtype fp8_e4m3fn with it."


@dataclass(frozen=True)
class ControlIdentity(Identity):
    """As Identity, of a ControlNet; params.num_layers is the number of its copied blocks. wiring: see controlnet.py."""

    wiring: str


@dataclass(frozen=True)
class _Stated(SanaParams):
    """What a ControlNet's config may state."""

    wiring: str = WIRINGS[0]


_RULES = Rules(_Stated, {"wiring": WIRINGS}, CLASSES)


def identify_controlnet(shapes: dict[str, tuple], config: dict | None = None, filename: str = "", wiring: str = "auto",
                        config_place: str = INSIDE) -> ControlIdentity:
    """Find out which Sana ControlNet a file holds; arguments as for config.identify.

    wiring: one of controlnet.WIRINGS, or "auto": what the config names as `wiring`, else the layout's own. Only a file
    converted from one layout into the other, and not trained again, needs to be told.
    Raises ValueError when it is no Sana ControlNet, saying what it looks like, and for what `identify` raises it.
    """
    shapes, where, config = strip_prefix(shapes), f"{filename}: " if filename else "", dict(config or {})
    if "Sana ControlNet:" not in (what := looks_like(shapes)):
        raise ValueError(f"{where}not a Sana ControlNet: this is {what}.")
    refuse_foreign(shapes, "a Sana ControlNet", _REMEDY, where)
    refuse_hollow(shapes, "Sana ControlNet", where)
    if wiring not in ("auto", *WIRINGS):
        raise ValueError(f"wiring is {wiring!r}: choose one of auto, {', '.join(WIRINGS)}.")
    layout = "nvlabs" if any(_COPY.match(key) for key in shapes) else "diffusers"
    numbers = set(map(int, re.findall(_COPY if layout == "nvlabs" else r"controlnet_blocks\.(\d+)\.", "\n".join(shapes))))
    blocks = len(numbers)
    if numbers != set(range(blocks)):
        raise ValueError(f"{where}a damaged Sana ControlNet: of its blocks 0 to {max(numbers)} only {blocks} are there. "
                         "Get the file again.")
    if layout == "nvlabs":
        if "x_embedder.proj.weight" not in shapes:
            raise ValueError(f"{where}a Sana ControlNet without its base, whose embedders it needs: in NVlabs' files they are "
                             "together. Get the whole file.")
        base = {key: shape for key, shape in shapes.items() if not key.startswith("controlnet.")}
    elif "controlnet_blocks.0.weight" not in shapes:
        raise ValueError(f"{where}a Sana ControlNet by its names, but controlnet_blocks.0.weight is missing. The file is "
                         "incomplete or altered: get it again.")
    else:  # its size tells which base it is a part of, and that what else tensors do not show
        depth = _BASE_DEPTH.get(shapes.get("input_block.bias", (0,))[0], blocks)
        base = _as_base(shapes, depth)
        if type(config.get("num_layers")) is int and config["num_layers"] == blocks:  # its own, not its base's
            config["num_layers"] = depth
    found, stated = identify_stated(base, config, filename, config_place, _RULES)
    if wiring == "auto":
        wiring = stated.get("wiring", "native" if layout == "nvlabs" else "diffusers")
    params = replace(found.params, num_layers=blocks)
    return ControlIdentity(params, f"ControlNet of {found.variant}, {blocks} copied blocks, {wiring} wiring", layout,
                           f"its base: {found.evidence}", found.warnings, wiring)


def to_canonical(state_dict: dict, layout: str) -> dict:
    """Any layout -> canonical, as checkpoint.to_canonical; of an NVlabs file the base's blocks go."""
    if layout != "nvlabs":
        return checkpoint.to_canonical(state_dict, layout)
    network, own = {}, {}
    for key, t in strip_prefix(state_dict).items():
        if copy := _COPY.match(key):
            network[f"blocks.{copy[1]}.{key[copy.end():]}"] = t
        elif key.startswith("controlnet."):
            own[_renamed(key)] = t
        elif not _BASE_BLOCK.match(key):
            network[key] = t
    return checkpoint.to_canonical(network, "nvlabs") | own


def from_canonical(state_dict: dict, layout: str, base: dict | None = None) -> dict:
    """Canonical -> "diffusers" or "nvlabs". base: canonical weights of the whole base, for "nvlabs", else ValueError; the
    ControlNet's own embedders go there, because NVlabs' layout has no place for them."""
    if layout != "nvlabs":
        return checkpoint.from_canonical(state_dict, layout)
    if base is None:
        raise ValueError("A ControlNet in NVlabs' layout holds its base: give the base's weights too.")
    own = {key: t for key, t in state_dict.items() if key.startswith(("controlnet_blocks.", "input_block."))}
    copies = {key: t for key, t in state_dict.items() if key.startswith("transformer_blocks.")}
    embedders = {key: t for key, t in state_dict.items() if key not in own and key not in copies}
    out = checkpoint.from_canonical(base | embedders, "nvlabs")
    out |= {re.sub(r"blocks\.(\d+)\.", r"controlnet.\1.copied_block.", key): t
            for key, t in checkpoint.from_canonical(copies, "nvlabs").items()}
    for key, t in own.items():
        key = re.sub(r"controlnet_blocks\.(\d+)\.", r"controlnet.\1.after_proj.", key)
        out[_INPUT[0] + key[len(_INPUT[1]):] if key.startswith(_INPUT[1]) else key] = t
    return out


def check_shapes(shapes: dict[str, tuple], identity: ControlIdentity, filename: str = "") -> None:
    """Raise ValueError, naming the keys, unless a file has exactly the tensors of the ControlNet it was identified as."""
    check_state_dict(shapes, lambda tensors: to_canonical(tensors, identity.layout),
                     lambda: SanaControlNet(identity.params, identity.params.num_layers, identity.wiring, device="meta"),
                     identity.variant, filename)


def _renamed(key):
    """NVlabs' name of what a ControlNet has beside the copies -> canonical; an unknown one stays, to be named by a check."""
    key = re.sub(r"controlnet\.(\d+)\.after_proj\.", r"controlnet_blocks.\1.", key)
    return _INPUT[1] + key[len(_INPUT[0]):] if key.startswith(_INPUT[0]) else key


def _as_base(shapes, depth):
    """Shapes like those of the base of a ControlNet in diffusers' layout: `depth` blocks like its own, and an output."""
    patch = shapes.get("patch_embed.proj.weight", ())
    width, channels, patch_size, _ = patch if len(patch) == 4 else (1, 1, 1, 1)  # identify names the odd one
    base = {key: shape for key, shape in shapes.items() if not key.startswith(("controlnet_blocks.", "input_block."))}
    return base | {"proj_out.weight": (patch_size**2 * channels, width)} | {
        f"transformer_blocks.{number}.scale_shift_table": (6, width) for number in range(depth)}
