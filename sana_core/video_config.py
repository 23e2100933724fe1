"""What the transformers of SANA-Video and SANA-Video 2.0 are made of, and which one a file holds."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from ..kernels.foreign_quant import TRANSFORMER_REMEDY, refuse_foreign
from ..kernels.key_names import several_models
from ..kernels.state_dict import refuse_hollow
from ..kernels.stated_config import INSIDE, Rules, believed
from .config import Identity
from .lookalikes import looks_like, strip_prefix

# In models saved from ComfyUI: the params' fields as JSON in a tensor of bytes, since tensors do not tell everything.
CONFIG_KEY = "sana_video_config"
LATENTS = ("wan", "ltx2", "cogvideox")  # whose autoencoder: Wan 2.1's, LTX-2's, CogVideoX's (the embedded model's)


@dataclass(frozen=True)
class SanaVideoParams:
    """Everything that tells one SANA-Video transformer from another. Fields have diffusers' names where it has one."""

    num_layers: int
    num_attention_heads: int
    num_cross_attention_heads: int
    cross_attention_head_dim: int
    attention_head_dim: int = 112
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2                # of height and width; a latent frame is a patch's own
    caption_channels: int = 2304       # width of the text encoder's states (Gemma-2-2B)
    mlp_ratio: float = 3.0
    latents: str = "wan"               # whose, of LATENTS
    causal: bool = False               # LongSANA: trained to draw a block of frames after the other
    flow_shift: float = 8.0            # timestep shift of the sampling schedule

    # What Sana's layers ask, and all of these models answer alike.
    qk_norm: ClassVar[bool] = True
    guidance_embeds: ClassVar[bool] = False
    guidance_embeds_scale: ClassVar[float] = 0.1
    timestep_multiplier: ClassVar[float] = 1000.0

    @property
    def width(self) -> int:
        """D, channels of a token inside the network."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Channels behind the gate of the feed-forward network."""
        return int(self.width * self.mlp_ratio + 1e-6)  # a ratio taken from shapes may fall a hair short

    def to_diffusers(self) -> dict:
        """As a config of diffusers; what it does not know, and our loaders do, stands there too and is passed over. It has
        no LongSANA, whose config is ours."""
        shared = asdict(self) | {"patch_size": [1, self.patch_size, self.patch_size]}
        if self.causal:
            return {"_class_name": "SanaVideo", **shared}
        return {"_class_name": CLASSES[0], **shared, "cross_attention_dim": self.width, "qk_norm": "rms_norm_across_heads"}


@dataclass(frozen=True)
class SanaVideo2Params:
    """The same for SANA-Video 2.0."""

    num_layers: int
    width: int
    num_cross_attention_heads: int
    softmax_layers: tuple[int, ...]    # the others' attention is linear
    linear_head_dim: int = 128
    softmax_head_dim: int = 256
    in_channels: int = 128
    out_channels: int = 128
    patch_size: int = 1
    caption_channels: int = 2304
    mlp_ratio: float = 4.0
    depth_group: int = 8               # blocks whose sum is one source of the attention over depth
    latents: str = "ltx2"
    distilled: bool = False            # for four steps without CFG
    flow_shift: float = 12.0

    qk_norm: ClassVar[bool] = True
    guidance_embeds: ClassVar[bool] = False
    guidance_embeds_scale: ClassVar[float] = 0.1
    timestep_multiplier: ClassVar[float] = 1000.0

    @property
    def hidden(self) -> int:
        return int(self.width * self.mlp_ratio + 1e-6)

    @property
    def cross_attention_head_dim(self) -> int:
        return self.width // self.num_cross_attention_heads

    def to_diffusers(self) -> dict:
        """A config in the manner of diffusers, which has no SANA-Video 2.0."""
        return {"_class_name": "SanaVideo2", **asdict(self), "patch_size": [1, self.patch_size, self.patch_size]}


# Where facts are read from. 2.0 has NVlabs' layout alone, and ours.
_NAMES = {
    "diffusers": dict(patch="patch_embedding.weight", caption="caption_projection.linear_1.weight", out="proj_out.weight",
                      cross="transformer_blocks.0.attn2.to_q.weight", depth="transformer_blocks.0.ff.conv_depth.weight",
                      gate="transformer_blocks.0.ff.gate_proj.weight", block=r"transformer_blocks\.",
                      beta=r"transformer_blocks\.(\d+)\.attn1\.beta_proj\.weight", norm="attn1.norm_out.weight"),
    "nvlabs": dict(patch="x_embedder.proj.weight", caption="y_embedder.y_proj.fc1.weight", out="final_layer.linear.weight",
                   cross="blocks.0.cross_attn.q_linear.weight", depth="blocks.0.mlp.depth_conv.conv.weight",
                   gate="blocks.0.mlp.gate_proj.weight", block=r"blocks\.",
                   beta=r"blocks\.(\d+)\.attn\.beta_proj\.weight", norm="attn.o_norm.weight"),
}
_HEADS = {2240: (20, 112)}                               # width -> heads of 2B, head_dim; in both attentions
_CROSS_HEADS_2 = {2560: 20, 4096: 32}                    # width -> heads of 2.0's cross-attention
_SIZES = {(20, 2240): "2B", (32, 2560): "5B", (40, 4096): "14B"}
_LATENTS_OF = {16: "wan", 128: "ltx2"}                   # by channels
_LONG = re.compile(r"long[-_ ]?(sana|live)|self[-_ ]?forcing|sana[-_ ]?video.*[-_]ode\b|longsana.*ode")
_FOUR_STEPS = re.compile(r"4[-_ ]?steps?|dmd")
CLASSES = ("SanaVideoTransformer3DModel", "SanaVideoCausalTransformer3DModel")  # diffusers' names; the second never came out
_RULES = Rules(SanaVideoParams, {"latents": LATENTS}, CLASSES)
_RULES_2 = Rules(SanaVideo2Params, {"latents": LATENTS, "softmax_layers": range(1000)}, ("SanaVideo2",))


def identify(shapes: dict[str, tuple], config: dict | None = None, filename: str = "", config_place: str = INSIDE) -> Identity:
    """Find out which SANA-Video transformer a file holds, of the first generation (SanaVideoParams) or 2.0 (SanaVideo2Params).

    Arguments as for sana_core.config.identify. LongSANA's tensors are those of 2B at 480p, and the four-step 2.0's those of 2.0:
    config or name tell, and without either the plain one is taken. Raises ValueError when it is none, saying what it looks like,
    and for a width that was never released when no config tells the heads. Source: the released configurations, NVlabs/Sana's
    and diffusers'.
    """
    shapes, where = strip_prefix(shapes), f"{filename}: " if filename else ""
    if "a SANA-Video transformer" not in (what := looks_like(shapes)):
        raise ValueError(f"{where}not a SANA-Video transformer: this is {what}.{several_models(shapes)}")
    refuse_foreign(shapes, "a SANA-Video transformer", TRANSFORMER_REMEDY, where)
    refuse_hollow(shapes, "SANA-Video transformer", where)
    layout = "diffusers" if any(key.startswith("transformer_blocks.") for key in shapes) else "nvlabs"
    names = _NAMES[layout]
    second = names["gate"] in shapes
    for fact, dims in {"patch": 5, "caption": 2, "out": 2, "cross": 2, "gate" if second else "depth": 2 if second else 4}.items():
        if len(shape := shapes.get(names[fact], ())) != dims:
            raise ValueError(f"{where}a damaged SANA-Video transformer: {names[fact]} should have {dims} dimensions and "
                             f"{f'has shape {shape}' if names[fact] in shapes else 'is missing'}. Get the file again.")
    blocks = {int(n) for n in re.findall(rf"^{names['block']}(\d+)\.", "\n".join(shapes), re.M)}
    if blocks != set(range(len(blocks))):
        raise ValueError(f"{where}a damaged SANA-Video transformer: of its blocks 0 to {max(blocks)} only {len(blocks)} are "
                         "there. Get the file again.")
    words = "/".join(re.split(r"[\\/]", str(filename))[-3:]).lower()
    width, channels, _, patch_size, _ = shapes[names["patch"]]
    found = dict(num_layers=len(blocks), in_channels=channels, patch_size=patch_size, caption_channels=shapes[names["caption"]][1],
                 out_channels=shapes[names["out"]][0] // patch_size**2)
    make = _second if second else _first
    params, warnings, why = make(shapes, names, found, width, config, config_place, words, where)
    size = _SIZES.get((params.num_layers, width))
    variant = _variant(params, size)
    evidence = f"{len(blocks)} layers of width {width}, {channels} channels (tensors); {why}"
    return Identity(params, variant, layout, evidence, warnings)


def _first(shapes, names, found, width, config, place, words, where):
    found["mlp_ratio"] = shapes[names["depth"]][0] / 2 / width
    config = _plain(config)
    config, warnings = believed(config, place, _RULES, lambda fields: _contradiction(fields, found, width), None, where)
    heads, head_dim = _HEADS.get(width, (None, None))
    heads = config.get("num_attention_heads", heads)
    cross = config.get("num_cross_attention_heads", heads)
    if heads is None or width % heads:
        raise ValueError(_unknown_heads(where, width, "num_attention_heads", warnings))
    latents, why = config.get("latents"), "config"
    if latents is None:
        latents, why = _LATENTS_OF.get(found["in_channels"], "wan"), "channels"
    causal, reason = _told("causal", config, bool(_LONG.search(words)), "LongSANA", "the plain model")
    params = SanaVideoParams(
        **found, num_attention_heads=heads, attention_head_dim=width // heads, num_cross_attention_heads=cross,
        cross_attention_head_dim=config.get("cross_attention_head_dim", width // cross), latents=latents, causal=causal,
        flow_shift=config.get("flow_shift", 8.0))
    return params, warnings, f"{latents} latents ({why}); {reason}"


def _second(shapes, names, found, width, config, place, words, where):
    found["mlp_ratio"] = shapes[names["gate"]][0] / width
    found["softmax_layers"] = tuple(sorted(set(range(found["num_layers"])) - {
        int(match[1]) for key in shapes if (match := re.fullmatch(names["beta"], key))}))
    norms = [shape[0] for key, shape in shapes.items() if key.endswith(names["norm"]) and shape]
    if norms:
        found["linear_head_dim"] = norms[0]
    config, warnings = believed(_plain(config), place, _RULES_2, lambda fields: _contradiction(fields, found, width), None, where)
    heads = config.get("num_cross_attention_heads", _CROSS_HEADS_2.get(width))
    softmax_dim = config.get("softmax_head_dim", 256)
    if heads is None or width % heads or width % softmax_dim:
        raise ValueError(_unknown_heads(where, width, "num_cross_attention_heads and softmax_head_dim", warnings))
    distilled, reason = _told("distilled", config, bool(_FOUR_STEPS.search(words)), "distilled for four steps", "the plain model")
    params = SanaVideo2Params(
        **found, width=width, num_cross_attention_heads=heads, softmax_head_dim=softmax_dim, distilled=distilled,
        depth_group=config.get("depth_group", 8), latents=config.get("latents", _LATENTS_OF.get(found["in_channels"], "ltx2")),
        flow_shift=config.get("flow_shift", 12.0))
    return params, warnings, f"{params.latents} latents; {reason}"


def _plain(config):
    """diffusers' config in our words: patches of (1, p, p), and its name of the norm that all of them have."""
    config = dict(config or {})
    if isinstance(patch := config.get("patch_size"), (list, tuple)) and len(patch) == 3 and patch[0] == 1 and patch[1] == patch[2]:
        config["patch_size"] = patch[1]
    if str(config.get("_class_name", "")).startswith("SanaVideoCausal"):
        config["causal"] = True
    return config


def _contradiction(fields, found, width):
    """In what these fields of a config cannot belong to the tensors, or ""."""
    for field, value in found.items():
        stated = fields.get(field, value)
        if tuple(stated) != value if isinstance(value, tuple) else abs(stated - value) > 1e-3:
            return f"{field} {stated}, tensors {value}"
    heads = fields.get("num_attention_heads")
    if heads and heads * fields.get("attention_head_dim", width // heads) != width:
        return f"num_attention_heads {heads}, width {width}"
    return ""


def _told(field, config, named, yes, no):
    """A fact that no tensor shows, and how it is known."""
    if field in config:
        return config[field], f"{yes if config[field] else no} (config)"
    return named, f"{yes} (file name)" if named else f"{no} (assumed: no config and no name says otherwise)"


def _unknown_heads(where, width, field, warnings):
    return (f"{where}a SANA-Video transformer of width {width}, which was never released, and no config that tells "
            f"{field}{''.join(f' ({text})' for text in warnings)}. Put its config.json beside it, in a folder of its own.")


def _variant(params, size):
    second = isinstance(params, SanaVideo2Params)
    name = "SANA-Video 2.0" if second else "LongSANA" if params.causal else "SANA-Video"
    if size is None:
        return f"{name}, {params.num_layers} layers of width {params.width}"
    if second:
        return f"{name} {size}" + " 4-step" * params.distilled
    return f"{name} {size} {'720p' if params.latents == 'ltx2' else '480p'}"


def params_of(config: dict):
    """The params of a saved config's fields."""
    kind = SanaVideo2Params if "softmax_layers" in config else SanaVideoParams
    known = {field.name for field in fields(kind)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name in known}
    return kind(**values)
