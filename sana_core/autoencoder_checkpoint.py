"""Layouts of DC-AE's weights, and which DC-AE a file holds.

Canonical is diffusers' naming, which AutoencoderDC loads. The authors released DC-AE in efficientvit's: fused qkv, and
residual connections and layer lists that are levels of the names. ComfyUI_ExtraModels' is efficientvit's with most of
these levels left out.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace

import torch

from ..kernels.foreign_quant import AUTOENCODER_REMEDY, refuse_foreign
from ..kernels.key_names import several_models
from ..kernels.state_dict import check_state_dict, refuse_hollow, some
from ..kernels.stated_config import INSIDE, Rules, believed
from .autoencoder import ACTIVATIONS, AutoencoderDC, DCAEParams
from .lookalikes import looks_like, strip_autoencoder_prefix

LAYOUTS = ("diffusers", "efficientvit", "extramodels")

_BLOCK_TYPES, _DEPTHS = ("ResBlock", "EfficientViTBlock"), range(100)
_RULES = Rules(DCAEParams, {
    "encoder_block_types": _BLOCK_TYPES, "decoder_block_types": _BLOCK_TYPES, "encoder_layers_per_block": _DEPTHS,
    "decoder_layers_per_block": _DEPTHS, "decoder_act_fns": (*ACTIVATIONS,), "decoder_conv_act_fn": (*ACTIVATIONS,),
}, ("AutoencoderDC",))


@dataclass(frozen=True)
class AutoencoderIdentity:
    """What a file is: `variant` for people, `layout` for the maps below, `evidence` (what was concluded from what) and
    `warnings` for the log."""

    params: DCAEParams
    variant: str
    layout: str  # one of LAYOUTS
    evidence: str
    warnings: tuple[str, ...]


# efficientvit's name of a layer inside a block -> the canonical one.
_ATTENTION = {f"context_module.main.{theirs}": f"attn.{ours}" for theirs, ours in {
    "qkv.conv": "to_qkv",
    "proj.conv": "to_out",
    "proj.norm": "norm_out",
}.items()}
_FEED_FORWARD = {f"local_module.main.{theirs}": f"conv_out.{ours}" for theirs, ours in {
    "inverted_conv.conv": "conv_inverted",
    "depth_conv.conv": "conv_depth",
    "point_conv.conv": "conv_point",
    "point_conv.norm": "norm",
}.items()}
_RES_BLOCK = {
    "main.conv1.conv": "conv1",
    "main.conv2.conv": "conv2",
    "main.conv2.norm": "norm",
}
# A strided convolution is one level less deep than one that goes with a pixel shuffle, unshuffle or interpolation.
_RESAMPLING = {"main.conv.conv": "conv", "main.conv": "conv"}
_BLOCK = _ATTENTION | _FEED_FORWARD | _RES_BLOCK | _RESAMPLING
_OUTSIDE = {
    "encoder.project_in.conv": "encoder.conv_in",
    "encoder.project_in.conv.conv": "encoder.conv_in.conv",
    "encoder.project_out.main.op_list.0.conv": "encoder.conv_out",
    "decoder.project_in.main.conv": "decoder.conv_in",
    "decoder.project_out.op_list.0": "decoder.norm_out",
    "decoder.project_out.op_list.2.conv": "decoder.conv_out",
    "decoder.project_out.op_list.2.conv.conv": "decoder.conv_out.conv",
}
_BLOCK_INVERSE = {ours: theirs for theirs, ours in _BLOCK.items()}
_OUTSIDE_INVERSE = {ours: theirs for theirs, ours in _OUTSIDE.items()}
# efficientvit's key -> ExtraModels': what goes in its place, in this order.
_SHORTER = (
    (r"\.op_list\.", "."),
    (r"(context|local)_module\.main\.", r"\1_module."),
    (r"context_module\.(qkv|proj)\.conv\.", r"context_module.\1.0."),
    (r"context_module\.proj\.norm\.", "context_module.proj.1."),
    (r"(stages\.\d+\.\d+)\.main\.(conv[12])\.", r"\1.\2."),
    (r"(stages\.\d+\.\d+\.main|encoder\.project_in)(\.conv)?\.conv\.", r"\1\2."),
)
_THIRDS = ("to_q", "to_k", "to_v")
_THIRD = re.compile(r"attn\.to_[qkv]$")
_STAGES = {"encoder": "down_blocks", "decoder": "up_blocks"}
_SCALE = re.compile(r"context_module\.(?:main\.)?aggreg\.(\d+)\.([01])")
_OUR_SCALE = re.compile(r"attn\.to_qkv_multiscale\.(\d+)\.proj_(in|out)")
_THEIR_BLOCK = re.compile(r"(encoder|decoder)\.stages\.(\d+)\.(?:op_list\.)?(\d+)\.(.+)\.(weight|bias)")
_OUR_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(\d+)\.(.+)\.(weight|bias)")


def to_canonical(state_dict: dict, layout: str) -> dict:
    """Any layout -> canonical. layout: one of LAYOUTS (AutoencoderIdentity.layout).

    A saver's prefix goes. Tensors are views where they can be, of any dtype or device, meta too. Raises ValueError
    naming the keys that have no place in a DC-AE of that layout; missing ones are found by check_shapes.
    """
    _known(layout)
    state_dict = strip_autoencoder_prefix(state_dict)
    if layout == "diffusers":
        return dict(state_dict)
    out, unknown, tables = {}, [], _tables(layout)
    first_stage = any(key.startswith("encoder.stages.0.") for key in state_dict)
    for key, t in state_dict.items():
        name = _their_key(key, tables, first_stage)
        if name is None or (".to_qkv." in name and t.shape[0] % 3):
            unknown.append(key)
        elif ".to_qkv." in name:
            out |= {name.replace("to_qkv", third): part for third, part in zip(_THIRDS, t.flatten(1).chunk(3))}
        else:
            out[name] = t.flatten(1) if name.endswith("attn.to_out.weight") else t
    if unknown:
        raise ValueError(f"no DC-AE of this layout has {some(unknown)}")
    return out


def from_canonical(state_dict: dict, layout: str) -> dict:
    """Canonical -> one of LAYOUTS: the exact inverse of to_canonical on a released file's keys."""
    _known(layout)
    if layout == "diffusers":
        return dict(state_dict)
    out, thirds, unknown = {}, {}, []
    found = _read({key: tuple(t.shape) for key, t in state_dict.items()})
    strided = found["downsample_block_type"] == "conv"
    for key, t in state_dict.items():
        name = _our_key(key, strided)
        name = _shorter(name) if name and layout == "extramodels" else name
        if name is None:
            unknown.append(key)
        elif third := re.search(r"\.attn\.(to_[qkv])\.weight", key):
            thirds.setdefault(name, {})[third[1]] = t
            out[name] = None  # holds the place
        else:
            out[name] = t[:, :, None, None] if key.endswith("attn.to_out.weight") else t
    unknown += [name for name, parts in thirds.items() if len(parts) < 3]
    if unknown:
        raise ValueError(f"not a whole DC-AE: {some(unknown)}")
    return out | {name: torch.cat([parts[t] for t in _THIRDS])[:, :, None, None] for name, parts in thirds.items()}


def identify_autoencoder(shapes: dict[str, tuple], config: dict | None = None, filename: str = "",
                         config_place: str = INSIDE) -> AutoencoderIdentity:
    """Find out which DC-AE a file holds.

    shapes: {key: shape} of the whole file, in any layout, wrapped by a saver's prefix or not.
    config: diffusers' config.json, or DCAEParams' fields; one that contradicts the tensors is ignored. config_place: where
    it lies, a name of stated_config.
    Tensors tell widths, depths, blocks and resampling; activations and shortcuts come from the config or are those of
    the released models. Raises ValueError when it is no DC-AE that this network can be, saying what it is instead, and for a
    config with values that no DC-AE has.
    """
    where = f"{filename}: " if filename else ""
    shapes = strip_autoencoder_prefix(shapes)
    layout = _layout(shapes, where)
    try:
        tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        shapes = {key: tuple(t.shape) for key, t in to_canonical(tensors, layout).items()}
        found = _read(shapes)
    except (KeyError, IndexError, ValueError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where}a damaged DC-AE autoencoder: {what}. Get the file again.") from None

    # The lite decoders have residual blocks alone, and SiLU before the last convolution (efficientvit's dc_ae.py).
    lite = "EfficientViTBlock" not in found["decoder_block_types"]
    assumed = DCAEParams(**_filled(found, {}), decoder_act_fns="silu", decoder_conv_act_fn="silu" if lite else "relu")
    config, warnings = believed(
        config, config_place, _RULES, lambda stated: _contradiction(found, assumed, stated), where=where)
    params = DCAEParams(**asdict(assumed) | config)
    params = replace(params, **_filled(found, asdict(params)))
    evidence = "tensors and config" if config else "tensors"
    if "decoder_conv_act_fn" not in config:
        evidence += f"; {params.decoder_conv_act_fn} before the last convolution: assumed"
    return AutoencoderIdentity(params, _variant(params, lite), layout, f"{_describe(params)} ({evidence})", warnings)


def check_shapes(shapes: dict[str, tuple], identity: AutoencoderIdentity, filename: str = "") -> None:
    """Raise ValueError, naming the keys, unless a file has exactly the tensors of the model it was identified as.

    shapes: {key: shape} of the file in its own layout. Nothing is allocated.
    """
    check_state_dict(shapes, lambda tensors: to_canonical(tensors, identity.layout),
                     lambda: AutoencoderDC(identity.params, device="meta"), identity.variant, filename)


def _known(layout):
    if layout not in LAYOUTS:
        raise ValueError(f'unknown layout "{layout}" of a DC-AE, expected one of {", ".join(LAYOUTS)}')


def _layout(shapes, where):
    if "DC-AE" not in (what := looks_like(shapes)):
        raise ValueError(f"{where}not a DC-AE autoencoder: this is {what}.{several_models(shapes)}")
    refuse_foreign(shapes, "a DC-AE autoencoder", AUTOENCODER_REMEDY, where)
    refuse_hollow(shapes, "DC-AE autoencoder", where)
    if any(".norm.running_mean" in key for key in shapes):
        raise ValueError(f"{where}a DC-AE with batch norm (the ImageNet models, in-1.0 and mix-1.0), expected one of Sana's, "
                         f"which have RMS norm. Get dc-ae-f32c32-sana-1.1.")
    if any(".op_list." in key for key in shapes):
        return "efficientvit"
    return "extramodels" if any(".stages." in key for key in shapes) else "diffusers"


def _shorter(key):
    """efficientvit's key -> ExtraModels'."""
    for pattern, short in _SHORTER:
        key = re.sub(pattern, short, key)
    return key


def _tables(layout):
    """{their layer: canonical layer}, inside a block and outside of blocks."""
    if layout == "efficientvit":
        return _BLOCK, _OUTSIDE
    block = "encoder.stages.0.0."
    return ({_shorter(f"{block}{theirs}.")[len(block):-1]: ours for theirs, ours in _BLOCK.items()},
            {_shorter(f"{theirs}.")[:-1]: ours for theirs, ours in _OUTSIDE.items()})


def _their_key(key, tables, first_stage):
    """A key of the layout with these tables -> the canonical one, to_qkv standing for the three; None when there is none.

    first_stage: whether the encoder has layers at full size. Without, its first convolution is a resampling one.
    """
    in_block, outside = tables
    if match := _THEIR_BLOCK.fullmatch(key):
        side, stage, block, layer, leaf = match.groups()
        if scale := _SCALE.fullmatch(layer):
            layer = f"attn.to_qkv_multiscale.{scale[1]}.proj_{'out' if scale[2] == '1' else 'in'}"
        else:
            layer = in_block.get(layer)
        return layer and f"{side}.{_STAGES[side]}.{stage}.{block}.{layer}.{leaf}"
    layer, _, leaf = key.rpartition(".")
    layer = outside.get(layer)
    if layer == "encoder.conv_in" and not first_stage:
        layer = "encoder.conv_in.conv"
    return layer and f"{layer}.{leaf}"


def _our_key(key, strided):
    """Canonical key -> efficientvit's; None when there is none. strided: the encoder's downsampling."""
    if match := _OUR_BLOCK.fullmatch(key):
        side, stage, block, layer, leaf = match.groups()
        if scale := _OUR_SCALE.fullmatch(layer):
            layer = f"context_module.main.aggreg.{scale[1]}.{int(scale[2] == 'out')}"
        elif layer == "conv":
            layer = "main.conv" if side == "encoder" and strided else "main.conv.conv"
        else:
            layer = _BLOCK_INVERSE.get(_THIRD.sub("attn.to_qkv", layer))
        return layer and f"{side}.stages.{stage}.op_list.{block}.{layer}.{leaf}"
    layer, _, leaf = key.rpartition(".")
    if layer == "encoder.conv_in.conv" and strided:
        layer = "encoder.conv_in"
    layer = _OUTSIDE_INVERSE.get(layer)
    return layer and f"{layer}.{leaf}"


# --- what the tensors tell ---


def _read(shapes):
    """DCAEParams' fields from canonical shapes. In fields with one entry a stage, None stands for what no tensor shows:
    all but the depth of a stage without layers, and the scales of one without attention."""
    found = {}
    for side, stages in _STAGES.items():
        layers = {}
        for key in shapes:
            if match := re.match(rf"{side}\.{stages}\.(\d+)\.(\d+)\.(conv1|attn|conv\.)", key):
                layers.setdefault(int(match[1]), {})[int(match[2])] = match[3]
        if max(layers, default=0) > 63:
            raise ValueError(f"its {side} has a stage {max(layers)}")
        blocks = [{i: kind for i, kind in layers.get(stage, {}).items() if kind != "conv."}
                  for stage in range(1 + max(layers, default=-1))]
        names = [f"{side}.{stages}.{stage}.{min(inside)}" if inside else None for stage, inside in enumerate(blocks)]
        attends = ["attn" in inside.values() for inside in blocks]
        widths = [name and shapes[name + (".attn.to_out.weight" if attention else ".conv2.weight")][0]
                  for name, attention in zip(names, attends)]
        found |= {
            f"{side}_block_types": tuple(
                name and ("EfficientViTBlock" if attention else "ResBlock") for name, attention in zip(names, attends)),
            f"{side}_block_out_channels": tuple(widths),
            f"{side}_layers_per_block": tuple(map(len, blocks)),
            f"{side}_qkv_multiscales": tuple(
                _kernel_sizes(shapes, name) if attention else None for name, attention in zip(names, attends)),
        }
    if not found["encoder_block_types"] or not found["decoder_block_types"]:
        raise ValueError("its encoder or its decoder is missing")
    for key, shape in shapes.items():
        if key.endswith(".to_qkv_multiscale.0.proj_out.weight"):
            found["attention_head_dim"] = shape[1]
            break
    found["in_channels"] = _first(shapes, "encoder.conv_in.weight", "encoder.conv_in.conv.weight")[1]
    found["latent_channels"] = shapes["encoder.conv_out.weight"][0]
    found["downsample_block_type"] = "conv" if _downsamples_by_stride(shapes, found) else "pixel_unshuffle"
    found["upsample_block_type"] = "interpolate" if _upsamples_by_interpolation(shapes, found) else "pixel_shuffle"
    return found


def _kernel_sizes(shapes, block):
    scales = [key for key in shapes if re.fullmatch(re.escape(block) + r"\.attn\.to_qkv_multiscale\.\d+\.proj_in\.weight", key)]
    return tuple(shapes[key][-1] for key in sorted(scales))


def _first(shapes, *names):
    for name in names:
        if name in shapes:
            return shapes[name]
    raise KeyError(names[0])


def _downsamples_by_stride(shapes, found):
    """A strided convolution makes all channels of the next stage itself; a pixel unshuffle makes four from one."""
    widths, depths = found["encoder_block_out_channels"], found["encoder_layers_per_block"]
    if not depths[0]:
        return shapes["encoder.conv_in.conv.weight"][0] == widths[1]
    for stage, depth in enumerate(depths[:-1]):
        if depth and widths[stage + 1]:
            return shapes[f"encoder.down_blocks.{stage}.{depth}.conv.weight"][0] == widths[stage + 1]
    return True


def _upsamples_by_interpolation(shapes, found):
    """As above: before a pixel shuffle a convolution makes four times the channels."""
    widths, depths = found["decoder_block_out_channels"], found["decoder_layers_per_block"]
    for stage, depth in enumerate(depths[:-1]):
        if depth:
            return shapes[f"decoder.up_blocks.{stage}.0.conv.weight"][0] == widths[stage]
    return not depths[0] and shapes["decoder.conv_out.conv.weight"][0] == found["in_channels"]


def _filled(found, stated):
    """`found` without None: from `stated`, else something that makes no difference."""
    fallback = dict(block_types="ResBlock", qkv_multiscales=())
    out = {}
    for key, value in found.items():
        if isinstance(value, tuple):
            other = stated.get(key) or [fallback.get(key.partition("_")[2])] * len(value)
            value = [other[i] if v is None else v for i, v in enumerate(value)]
            for i in reversed(range(len(value) - 1)):  # a width that is nowhere: half of the next
                value[i] = value[i + 1] // 2 if value[i] is None else value[i]
        out[key] = tuple(value) if isinstance(value, list) else value
    return out


def _contradiction(found, assumed, config):
    """In what these fields of a config cannot belong to the tensors, or ""."""
    params = DCAEParams(**asdict(assumed) | config)
    for key, value in found.items():
        stated = getattr(params, key)
        if isinstance(value, tuple):
            same = len(stated) == len(value) and all(v is None or v == s for v, s in zip(value, stated))
        else:
            same = value == stated or (key.endswith("sample_block_type") and _resampling(value) == _resampling(stated))
        if not same:
            return f"its {key} differ"
    if len(params.decoder_act_fns) != len(found["decoder_block_types"]):
        return "its decoder_act_fns are not one a stage"
    return ""


def _resampling(name):
    """Configs name a plain convolution in several ways: all but the two pixel kinds mean it."""
    return name if name in ("pixel_shuffle", "pixel_unshuffle") else "conv"


def _describe(params):
    def numbers(values):
        return ",".join(map(str, values))

    return (f"widths {numbers(params.encoder_block_out_channels)}, encoder depths "
            f"{numbers(params.encoder_layers_per_block)}, decoder widths {numbers(params.decoder_block_out_channels)}, "
            f"depths {numbers(params.decoder_layers_per_block)}")


def _variant(params, lite):
    size = f"f{params.compression}c{params.latent_channels}"
    released = DCAEParams()
    if replace(params, scaling_factor=released.scaling_factor) == released:
        return f"DC-AE {size} of Sana (1.0 or 1.1)"
    same_encoder = all(getattr(params, f.name) == getattr(released, f.name)
                       for f in fields(params) if f.name.startswith("encoder_"))
    return f"DC-AE Lite {size} of Sana" if lite and same_encoder else f"DC-AE {size}"
