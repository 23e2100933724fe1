"""Files of TheDenk's ControlNets for CogVideoX: which one a file holds, and whether it is whole. They have one layout."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..kernels.foreign_quant import refuse_foreign
from ..kernels.state_dict import check_state_dict, refuse_hollow
from ..kernels.stated_config import INSIDE, Rules, believed
from .config import CogVideoParams, Identity
from .controlnet import COLOURS, HINT_CHANNELS, CogVideoControlNet
from .lookalikes import looks_like, strip_prefix

_REMEDY = "Take the file that it was made from, in bf16 or fp16. For less memory choose weight_dtype fp8_e4m3fn with it."
_NAMES = dict(first="controlnet_encode_first.0.weight", patch="patch_embed.proj.weight", text="patch_embed.text_proj.weight",
              head="transformer_blocks.0.attn1.norm_q.weight", time="time_embedding.linear_2.weight")
_DIMENSIONS = dict(first=4, patch=4, text=2, head=1, time=2)
_TABLE = "patch_embed.pos_embedding"


@dataclass(frozen=True)
class ControlIdentity(Identity):
    """As Identity, of a ControlNet; params.num_layers is the number of its blocks. out_width: see CogVideoControlNet."""

    out_width: int | None


@dataclass(frozen=True)
class _Stated:
    """What is read of a ControlNet's config: its authors' names."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    time_embed_dim: int
    patch_size: int
    max_text_seq_length: int
    sample_height: int
    sample_width: int
    spatial_interpolation_scale: float
    temporal_interpolation_scale: float
    norm_eps: float
    use_rotary_positional_embeddings: bool


_RULES = Rules(_Stated, {}, ("CogVideoXControlnet", "CogVideoXControlNet"))


def identify_controlnet(shapes: dict[str, tuple], config: dict | None = None, filename: str = "",
                        config_place: str = INSIDE) -> ControlIdentity:
    """Find out which CogVideoX ControlNet a file holds; arguments as for config.identify.

    No tensor shows whether a sine-cosine code is added, as the authors' training script has it for 2B and 5B: the config
    says, and without one it is. Raises ValueError when it is no such ControlNet, saying what it looks like, for
    contradicting shapes, and for a config with values that no model has.
    """
    shapes, where = strip_prefix(shapes), f"{filename}: " if filename else ""
    if "CogVideoX ControlNet:" not in (what := looks_like(shapes)):
        raise ValueError(f"{where}not a CogVideoX ControlNet: this is {what}.")
    refuse_foreign(shapes, "a CogVideoX ControlNet", _REMEDY, where)
    refuse_hollow(shapes, "CogVideoX ControlNet", where)
    if missing := [name for name in _NAMES.values() if name not in shapes]:
        raise ValueError(f"{where}a CogVideoX ControlNet by its names, but {', '.join(missing)} missing. The file is "
                         "incomplete or altered: get it again.")
    found = {fact: tuple(shapes[name]) for fact, name in _NAMES.items()}
    odd = [f"{_NAMES[fact]} {shape}" for fact, shape in found.items() if len(shape) != _DIMENSIONS[fact]]
    patch, head, colours = found["patch"], found["head"][0], found["first"][1:2]
    if not odd and (colours != (COLOURS,) or patch[1] <= HINT_CHANNELS or patch[0] % head or patch[2] != patch[3]):
        odd = [f"{_NAMES['first']} {found['first']}", f"{_NAMES['patch']} {patch}", f"heads of {head}"]
    if odd:
        raise ValueError(f"{where}a CogVideoX ControlNet by its names, but of another kind: {', '.join(odd)}. Known are those "
                         "that read a control video of 3 colours in squares of 8 px, for the 1.0 models (patches of one latent "
                         "frame).")
    out = shapes.get("out_projectors.0.weight", (None,))[0]
    facts = dict(
        num_layers=len({match[1] for key in shapes if (match := re.match(r"transformer_blocks\.(\d+)\.", key))}),
        num_attention_heads=patch[0] // head, attention_head_dim=head, time_embed_dim=found["time"][0], patch_size=patch[2])
    fields, warnings = believed(config, config_place, _RULES, lambda fields: next(
        (f"{name} {fields[name]}, tensors {fact}" for name, fact in facts.items() if fields.get(name, fact) != fact), ""),
        where=where)
    rotary = fields.pop("use_rotary_positional_embeddings", None)
    params = CogVideoParams(**(fields | facts), in_channels=patch[1], out_channels=patch[1] - HINT_CHANNELS,
                            text_embed_dim=found["text"][1], use_rotary_positional_embeddings=bool(rotary),
                            use_learned_positional_embeddings=_TABLE in shapes)
    width = out or params.width
    size = {1920: "2B", 3072: "5B"}.get(width, f"width {width}")
    evidence = (f"{params.num_layers} blocks of width {params.width} (tensors); {'no' if rotary else 'a sine-cosine'} code "
                f"added ({'as the authors trained it' if rotary is None else 'its config'})")
    variant = f"ControlNet of CogVideoX {size}, {params.num_layers} blocks"
    return ControlIdentity(params, variant, "diffusers", evidence, warnings, out)


def to_canonical(state_dict: dict, layout: str) -> dict:
    """The names that the network has: a saver's prefix taken off. layout: as identified, there is but one."""
    return dict(strip_prefix(state_dict))


def check_shapes(shapes: dict[str, tuple], identity: ControlIdentity, filename: str = "") -> None:
    """Raise ValueError, naming the keys, unless a file has exactly the tensors of the ControlNet it was identified as."""
    check_state_dict(shapes, lambda tensors: to_canonical(tensors, identity.layout),
                     lambda: CogVideoControlNet(identity.params, identity.out_width, device="meta"), identity.variant,
                     filename)
