"""What a Sana transformer is made of, and which one a file holds."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from ..kernels.foreign_quant import TRANSFORMER_REMEDY, refuse_foreign
from ..kernels.key_names import several_models
from ..kernels.state_dict import refuse_hollow
from ..kernels.stated_config import INSIDE, Rules, believed
from .lookalikes import looks_like, strip_prefix

# In models saved from ComfyUI: SanaParams' fields as JSON in a tensor of bytes, since tensors do not tell everything.
CONFIG_KEY = "sana_config"


@dataclass(frozen=True)
class SanaParams:
    """Everything that tells one Sana transformer from another. Fields have diffusers' names where it has one.

    The first four have no common value; the rest default to what most released text-to-image models share.
    """

    num_layers: int
    num_attention_heads: int           # self-attention; width = num_attention_heads * attention_head_dim
    num_cross_attention_heads: int
    cross_attention_head_dim: int
    attention_head_dim: int = 32
    in_channels: int = 32
    out_channels: int = 32
    patch_size: int = 1
    caption_channels: int = 2304       # width of the text encoder's states (Gemma-2-2B)
    mlp_ratio: float = 2.5
    qk_norm: bool = False              # RMSNorm over the whole width of q and k, in both attentions
    guidance_embeds: bool = False      # Sprint: the guidance scale is an input
    guidance_embeds_scale: float = 0.1
    sample_size: int = 32              # latent side the position code is laid out for
    interpolation_scale: float | None = None  # None: no position code; 2K 1.0, 4K 2.0
    timestep_scale: float = 1.0        # 0.001 for Sprint's teachers, see timestep_multiplier
    clamp_fp16: bool = False           # trained in fp16 with +-65504 clipped after self-attention: part of the model
    flow_shift: float = 3.0            # timestep shift of the sampling schedule

    @property
    def width(self) -> int:
        """D, channels of a token inside the network."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Channels behind the gate of the feed-forward network."""
        return int(self.width * self.mlp_ratio + 1e-6)  # a ratio taken from shapes may fall a hair short

    @property
    def timestep_multiplier(self) -> float:
        """The network's timestep is sigma times this: 1000, but 1 for Sprint and its teachers."""
        return self.timestep_scale * (1.0 if self.guidance_embeds else 1000.0)

    def to_diffusers(self) -> dict:
        """As a config of diffusers; what it does not know, and our loaders do, stands there too and is passed over."""
        return {"_class_name": "SanaTransformer2DModel", **asdict(self), "cross_attention_dim": self.width,
                "qk_norm": "rms_norm_across_heads" if self.qk_norm else None}


@dataclass(frozen=True)
class Identity:
    """What a file is: `variant` for people, `layout` for checkpoint.py, `evidence` (what was concluded from what) and
    `warnings` for the log. `dataclasses.replace` on `params` overrules a guess."""

    params: SanaParams
    variant: str
    layout: str  # "diffusers" or "nvlabs"
    evidence: str
    warnings: tuple[str, ...]


# Where facts are read from in each layout, and the files that NVlabs and the diffusers team released.
_NAMES = {
    "diffusers": dict(
        patch="patch_embed.proj.weight", caption="caption_projection.linear_1.weight", out="proj_out.weight",
        depth="transformer_blocks.0.ff.conv_depth.weight", qk_norm="transformer_blocks.0.attn1.norm_q.weight",
        cross="transformer_blocks.0.attn2.to_q.weight", guidance="time_embed.guidance_embedder.linear_1.weight",
        block=r"transformer_blocks\."),
    "nvlabs": dict(
        patch="x_embedder.proj.weight", caption="y_embedder.y_proj.fc1.weight", out="final_layer.linear.weight",
        depth="blocks.0.mlp.depth_conv.conv.weight", qk_norm="blocks.0.attn.q_norm.weight",
        cross="blocks.0.cross_attn.q_linear.weight", guidance="cfg_embedder.mlp.0.weight", block=r"blocks\."),
}
_SIZES = {(28, 1152): "0.6B", (20, 2240): "1.6B", (60, 2240): "4.8B"}  # layers, width
_CROSS_HEADS = {1152: (16, 72), 2240: (20, 112)}                       # width -> heads, head_dim
_TIERS = {16: "512px", 32: "1024px", 64: "2K", 128: "4K"}              # sample_size -> its name
_TIER_WORDS = {"512": 16, "1024": 32, "1k": 32, "2048": 64, "2k": 64, "4096": 128, "4k": 128}
_INTERPOLATION = {64: 1.0, 128: 2.0}
_FLOW_SHIFT = {("0.6B", 32): 4.0, ("1.6B", 128): 6.0}
# A size in a file's name: by itself, or joined to the words that stand around it in such names (sana4k, 1600m4kpx).
_SIZE_WORD = re.compile(r"(?:(?<![a-z0-9.])|(?<=sana)|(?<=\d[mb]))(512|1024|2048|4096|[124]k)(?:px|x\d+)?"
                        r"(?=bf16|fp16|fp32|fp8|[^a-z0-9]|$)")
CLASSES = ("SanaTransformer2DModel", "SanaControlNetModel")  # diffusers' names
_RULES = Rules(SanaParams, {}, CLASSES)


def identify(shapes: dict[str, tuple], config: dict | None = None, filename: str = "", config_place: str = INSIDE) -> Identity:
    """Find out which Sana transformer a file holds.

    shapes: {key: shape} of the whole file, in either layout, wrapped by a saver's prefix or not.
    config: diffusers' config.json, or SanaParams' fields; one that contradicts the tensors is ignored. config_place: where
    it lies, a name of stated_config.
    filename: the path; its last three parts count (repository/transformer/file).
    A ControlNet of NVlabs' holds its base whole: then that is what the file is.
    Tensors decide whatever they can, then the config, then the name, or the name first in a folder of several models;
    `evidence` says which it was, `warnings` where they disagree.
    Raises ValueError when it is no Sana transformer, saying what it looks like, for a config with values that no model has,
    and when heads that no tensor shows (a width that was never released, and no config) stay unknown. Source: the released
    configurations, NVlabs/Sana's and the diffusers repositories'.
    """
    return identify_stated(shapes, config, filename, config_place, _RULES)[0]


def identify_stated(shapes: dict[str, tuple], config: dict | None, filename: str, config_place: str,
                    rules: Rules) -> tuple[Identity, dict]:
    """As identify, and which of the config's fields were believed. rules: how the config is read."""
    shapes, where = strip_prefix(shapes), f"{filename}: " if filename else ""
    shapes, control = _without_control(shapes)
    layout, names = _layout(shapes, where)
    words = "/".join(re.split(r"[\\/]", str(filename))[-3:]).lower()

    width, in_channels, patch_size, _ = shapes[names["patch"]]
    blocks = {int(n) for n in re.findall(rf"^{names['block']}(\d+)\.", "\n".join(shapes), re.M)}
    if blocks != set(range(len(blocks))):
        raise ValueError(f"{where}a damaged Sana transformer: of its blocks 0 to {max(blocks)} only {len(blocks)} are there. "
                         "Get the file again.")
    found = dict(
        num_layers=len(blocks),
        in_channels=in_channels,
        out_channels=shapes[names["out"]][0] // patch_size**2,
        patch_size=patch_size,
        caption_channels=shapes[names["caption"]][1],
        mlp_ratio=shapes[names["depth"]][0] / 2 / width,
        qk_norm=names["qk_norm"] in shapes,
        guidance_embeds=names["guidance"] in shapes,
    )
    extras = ", query-key norm" * found["qk_norm"] + ", guidance embedding" * found["guidance_embeds"]
    evidence = [f"{found['num_layers']} layers of width {width}{extras} (tensors)"]
    if control:
        evidence.append("the ControlNet in the same file is left out: Load Sana ControlNet reads it")

    size = _SIZES.get((found["num_layers"], width))
    plain = not (found["qk_norm"] or found["guidance_embeds"])
    config = dict(config or {})
    if isinstance(config.get("qk_norm", False), (str, type(None))):
        config["qk_norm"] = bool(config["qk_norm"])  # diffusers names the kind of norm
    tier = _stored_tier(shapes)
    shown = found | ({"sample_size": tier} if tier else {})
    inner = shapes.get(names["cross"], (width,))[0]
    config, warnings = believed(
        config, config_place, rules, lambda fields: _contradiction(fields, shown, width, inner),
        _named(words, plain, found["guidance_embeds"], tier), where)

    # A 0.6B with query-key norm and no guidance was only released as a teacher; the 1.6B one is Sana 1.5's double.
    teacher = not plain and not found["guidance_embeds"] and (size == "0.6B" or "teacher" in words)
    tier, why = (tier, "its pos_embed") if tier else _tier(config, words)
    evidence.append(f"{_tier_name(tier)} ({why})")
    clamp, why = _clamp_fp16(size, plain, tier, config, words)
    evidence.append(f"{'with' if clamp else 'without'} the clip of fp16 training ({why})")

    params = SanaParams(
        **found,
        **_heads(width, config, where, warnings),
        guidance_embeds_scale=config.get("guidance_embeds_scale", 0.1),
        sample_size=tier,
        interpolation_scale=config.get("interpolation_scale", _INTERPOLATION.get(tier)),
        timestep_scale=config.get("timestep_scale", 0.001 if teacher else 1.0),
        clamp_fp16=clamp,
        flow_shift=config.get("flow_shift", _FLOW_SHIFT.get((size, tier), 3.0) if plain else 3.0),
    )
    return Identity(params, _variant(params, size, plain), layout, "; ".join(evidence), warnings), config


def _without_control(shapes):
    """The base of an NVlabs ControlNet, and whether there was anything else; all of any other file."""
    base = {key: shape for key, shape in shapes.items() if not key.startswith("controlnet.")}
    return (base, len(base) < len(shapes)) if base else (shapes, False)


def _layout(shapes, where):
    """The layout and its names, once it is certain that this is a Sana transformer and what identify reads is there."""
    if "Sana transformer:" not in (what := looks_like(shapes)):
        raise ValueError(f"{where}not a Sana transformer: this is {what}.{several_models(shapes)}")
    refuse_foreign(shapes, "a Sana transformer", TRANSFORMER_REMEDY, where)
    refuse_hollow(shapes, "Sana transformer", where)
    layout = "diffusers" if any(key.startswith("transformer_blocks.") for key in shapes) else "nvlabs"
    names = _NAMES[layout]
    for fact, dims in dict(patch=4, caption=2, out=2, depth=4).items():
        if len(shape := shapes.get(names[fact], ())) != dims:
            raise ValueError(f"{where}a damaged Sana transformer: {names[fact]} should have {dims} dimensions and "
                             f"{f'has shape {shape}' if names[fact] in shapes else 'is missing'}. "
                             f"Get the file again.")
    return layout, names


def _contradiction(fields, found, width, inner):
    """In what these fields of a config cannot belong to the tensors, or "". inner: width of the cross-attention."""
    for field in ("num_layers", "in_channels", "patch_size", "caption_channels", "qk_norm", "guidance_embeds", "sample_size"):
        if field in found and fields.get(field, found[field]) != found[field]:
            return f"{field} {fields[field]}, tensors {found[field]}"
    head_dim = fields.get("attention_head_dim", 32)
    if "num_attention_heads" in fields and fields["num_attention_heads"] * head_dim != width:
        return f"num_attention_heads {fields['num_attention_heads']}, width {width}"
    if width % head_dim:
        return f"attention_head_dim {head_dim}, width {width}"
    if heads := fields.get("num_cross_attention_heads"):
        if heads * fields.get("cross_attention_head_dim", inner // heads) != inner:
            return f"num_cross_attention_heads {heads}, width {inner}"
    return ""


def _heads(width, config, where, warnings):
    """The head counts, which no tensor shows."""
    head_dim = config.get("attention_head_dim", 32)
    heads, cross_dim = _CROSS_HEADS.get(width, (None, None))
    heads = config.get("num_cross_attention_heads", heads)
    cross_dim = config.get("cross_attention_head_dim", cross_dim)
    if heads is None or width % head_dim:
        raise ValueError(f"{where}a Sana transformer of width {width}, which was never released, and no config that tells "
                         f"num_cross_attention_heads{''.join(f' ({text})' for text in warnings)}. Put its config.json beside "
                         "it, in a folder of its own.")
    return dict(num_attention_heads=width // head_dim, attention_head_dim=head_dim,
                num_cross_attention_heads=heads, cross_attention_head_dim=cross_dim or width // heads)


def _stored_tier(shapes):
    """sample_size by the position table that NVlabs' training leaves, (1, tokens, width); None without one."""
    return round(shapes["pos_embed"][-2] ** 0.5) if len(shapes.get("pos_embed", ())) > 1 else None


def _named(words, plain, sprint, stored_tier):
    """Fields that a file's name states and no tensor shows."""
    sizes = [] if stored_tier else _SIZE_WORD.findall(words)
    named = {"sample_size": _TIER_WORDS[sizes[-1]]} if sizes else {}
    if not plain and not sprint:  # Sana 1.5, or a teacher of Sprint's with the same tensors
        if "teacher" in words:
            named["timestep_scale"] = 0.001
        elif re.search(r"sana[-_ ]?1[._]5", words):
            named["timestep_scale"] = 1.0
    return named


def _tier(config, words):
    """sample_size and why. Diffusers files of one size have the same tensors from 512 px to 4K."""
    if "sample_size" in config:
        return config["sample_size"], "config"
    if found := _SIZE_WORD.findall(words):
        return _TIER_WORDS[found[-1]], "file name"
    return 32, "assumed: no config and no size in the file name; a 2K or 4K model needs one"


def _tier_name(sample_size):
    return _TIERS.get(sample_size, f"{32 * sample_size}px")


def _clamp_fp16(size, plain, tier, config, words):
    """Whether the checkpoint was trained in fp16, hence with the clip, and why."""
    if "clamp_fp16" in config:
        return bool(config["clamp_fp16"]), "config"
    if size is None:
        return False, "no release, and no clamp_fp16 in a config"
    if not plain:
        return False, "all Sana 1.5 and Sprint were trained in bf16"
    if size == "0.6B":
        return True, "all 0.6B were trained in fp16"
    if tier in _INTERPOLATION:
        return False, "2K and 4K were trained in bf16"
    if tier == 16:
        return True, "all of 512px were trained in fp16"
    if "bf16" in words:
        return False, "file name"
    if re.search(r"sana[-_ ]?1600m|fp16", words):
        return True, "file name"
    return False, "assumed: neither BF16 nor an fp16 release's name in the file name"


def _variant(params, size, plain):
    """The released name, or a description of something that was not released."""
    if size is None or (size == "4.8B" and plain):
        return f"Sana, {params.num_layers} layers of width {params.width}, {_tier_name(params.sample_size)}"
    if params.guidance_embeds:
        family = "Sana Sprint"
    elif params.timestep_scale != 1.0:
        family, size = "Sana Sprint", f"{size} teacher"
    else:
        family = "Sana" if plain else "Sana 1.5"
    bf16 = plain and params.sample_size == 32 and not params.clamp_fp16
    return f"{family} {size} {_tier_name(params.sample_size)}" + " BF16" * bf16
