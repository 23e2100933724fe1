"""What a CogVideoX transformer or autoencoder is made of, and which one a file holds."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from ..kernels.foreign_quant import AUTOENCODER_REMEDY, TRANSFORMER_REMEDY, refuse_foreign
from ..kernels.key_names import several_models
from ..kernels.state_dict import refuse_hollow
from ..kernels.stated_config import INSIDE, Rules, believed
from .lookalikes import looks_like, strip_autoencoder_prefix, strip_prefix

TABLE_FRAMES = 13  # latent frames of 5B-I2V's learned table

# In models saved from ComfyUI: CogVideoParams' fields as JSON in a tensor of bytes, since tensors do not tell everything.
CONFIG_KEY = "cogvideox_config"


@dataclass(frozen=True)
class CogVideoParams:
    """Everything that tells one CogVideoX transformer from another. Fields have diffusers' names where it has one."""

    num_layers: int
    num_attention_heads: int               # width = num_attention_heads * attention_head_dim
    attention_head_dim: int = 64
    in_channels: int = 16                  # 16 of the noisy latent, the rest conditions
    out_channels: int = 16
    patch_size: int = 2
    patch_size_t: int | None = None        # latent frames in a patch: None for the 1.0 models, 2 for 1.5
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None       # 1.5-5B-I2V: a second scalar beside the timestep
    text_embed_dim: int = 4096             # width of T5's states
    max_text_seq_length: int = 226
    use_rotary_positional_embeddings: bool = True    # else sine-cosine
    use_learned_positional_embeddings: bool = False  # a learned table as well
    resize_positions: bool = False         # Fun 2B: the sine-cosine code of the base grid is stretched to the video
    sample_height: int = 60                # latent size that the 1.0 positions are laid out for
    sample_width: int = 90
    spatial_interpolation_scale: float = 1.875       # of the sine-cosine code only
    temporal_interpolation_scale: float = 1.0
    norm_eps: float = 1e-5
    conditioning: str = "none"             # what in_channels[16:] holds, see CONDITIONING
    scaling_factor: float = 0.7            # the transformer's latent = VAE output * scaling_factor
    snr_shift_scale: float = 1.0           # of the noise schedule, see schedule.py

    @property
    def width(self) -> int:
        """D, channels of a token inside the network."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def base_grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the positions of a 1.0 model are laid out for."""
        return self.sample_height // self.patch_size, self.sample_width // self.patch_size

    @property
    def table_rows(self) -> int:
        """Rows of the learned position table: text, then video."""
        return self.max_text_seq_length + TABLE_FRAMES * self.base_grid[0] * self.base_grid[1]

    def to_diffusers(self) -> dict:
        """As a config of diffusers; what it does not know, and our loaders do, stands there too and is passed over."""
        return {"_class_name": "CogVideoXTransformer3DModel", **asdict(self), "patch_bias": self.patch_size_t is None}

    @property
    def condition_scale(self) -> float:
        """What the VAE's output for a conditioning picture or video is multiplied by.

        The same as for the latent itself, but 1 for 1.5-5B-I2V: its SAT code scales and divides again.
        """
        return 1.0 if self.ofs_embed_dim else self.scaling_factor

    def grid(self, shape) -> tuple[int, int, int]:
        """Patches along time, height and width of a latent of shape (B, C, T, H, W)."""
        return shape[2] // (self.patch_size_t or 1), shape[3] // self.patch_size, shape[4] // self.patch_size


# What the channels behind the noisy latent hold, by their number.
CONDITIONING = {
    "none": 0,
    "image": 16,           # the start picture's latent at latent frame 0, zeros elsewhere
    "repeated_image": 16,  # the start picture's latent at every frame (CogVideoX-2b-img2vid)
    "control": 16,         # the control video's latent
    "inpaint": 17,         # mask, then the masked video's latent
    "void": 32,            # latent of the inverted quadmask, then the masked video's latent
}


@dataclass(frozen=True)
class CogVideoVAEParams:
    """Everything that tells one CogVideoX autoencoder from another; the defaults are the released one. Fields have
    diffusers' names. The scaling factor is not among them: it belongs to the transformer, see CogVideoParams."""

    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3              # residual blocks on each level of the encoder; the decoder has one more
    latent_channels: int = 16
    in_channels: int = 3
    out_channels: int = 3
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    temporal_compression_ratio: int = 4


@dataclass(frozen=True)
class Identity:
    """What a file is: `variant` for people, `layout` for checkpoint.py, `evidence` (what was concluded from what) and
    `warnings` for the log. `dataclasses.replace` on `params` overrules a guess."""

    params: CogVideoParams | CogVideoVAEParams
    variant: str
    layout: str  # "diffusers", "sat" or "comfy"
    evidence: str
    warnings: tuple[str, ...]


# Where a fact is read from in each layout.
_LAYOUTS = {
    "diffusers": dict(
        patch="patch_embed.proj.weight", text="patch_embed.text_proj.weight", out="proj_out.weight",
        head="transformer_blocks.0.attn1.norm_q.weight", time="time_embedding.linear_2.weight",
        ofs="ofs_embedding.linear_2.weight", table="patch_embed.pos_embedding", block=r"transformer_blocks\.(\d+)\."),
    "comfy": dict(
        patch="patch_embed.proj.weight", text="patch_embed.text_proj.weight", out="proj_out.weight",
        head="blocks.0.norm_q.weight", time="time_embedding_linear_2.weight",
        ofs="ofs_embedding_linear_2.weight", table="patch_embed.pos_embedding", block=r"blocks\.(\d+)\."),
    "sat": dict(
        patch="mixins.patch_embed.proj.weight", text="mixins.patch_embed.text_proj.weight",
        out="mixins.final_layer.linear.weight", head="mixins.adaln_layer.query_layernorm_list.0.weight",
        time="time_embed.2.weight", ofs="ofs_embed.2.weight", table="mixins.pos_embed.pos_embedding",
        block=r"transformer\.layers\.(\d+)\."),
}
_REQUIRED = {"patch": (2, 4), "text": (2,), "out": (2,), "head": (1,), "time": (2,)}  # and how many dimensions they have
_RULES = Rules(CogVideoParams, {"conditioning": (*CONDITIONING,)}, ("CogVideoXTransformer3DModel",))
_VAE_RULES = Rules(CogVideoVAEParams, {"temporal_compression_ratio": (4,)}, ("AutoencoderKLCogVideoX",))
# Fields that no tensor shows.
_HIDDEN = ("sample_height", "sample_width", "max_text_seq_length", "spatial_interpolation_scale",
           "temporal_interpolation_scale", "norm_eps", "snr_shift_scale", "scaling_factor", "resize_positions")
_VAE_HIDDEN = ("norm_num_groups", "norm_eps", "temporal_compression_ratio")


def identify(shapes: dict[str, tuple], config: dict | None = None, filename: str = "", config_place: str = INSIDE) -> Identity:
    """Find out which CogVideoX transformer a file holds.

    shapes: {key: shape} of the whole file, in any of the three layouts, wrapped by a saver's prefix or not.
    config: diffusers' config.json, or CogVideoParams' fields; only what no tensor shows is taken from it, and nothing when
    it contradicts the tensors. config_place: where it lies, a name of stated_config.
    filename: the path; its last three parts count (repository/transformer/file).
    Tensors decide whatever they can, then the config, then the name, or the name first in a folder of several models;
    `evidence` says which it was, `warnings` where they disagree.
    Raises ValueError when it is no CogVideoX transformer, saying what it looks like, when its shapes contradict each other,
    and for a config with values that no model has.
    """
    shapes, config = strip_prefix(shapes), dict(config or {})
    where = f"{filename}: " if filename else ""
    words = "/".join(re.split(r"[\\/]", filename)[-3:]).lower()
    layout, names = _layout(shapes, where)
    facts = _facts(shapes, names, layout, where)
    evidence = [
        f"{facts['num_layers']} layers of width {facts['num_attention_heads'] * facts['attention_head_dim']}, "
        f"{facts['in_channels']} input channels, "
        f"{'patches of 2 latent frames' if facts['patch_size_t'] else 'patches of 1 latent frame'} (tensors)"
    ]

    if "_class_name" in config:  # diffusers writes all fields, and had none of these before the 1.5 models
        config = {"patch_size_t": None, "ofs_embed_dim": None} | config
    named = _named(facts, words)
    config, warnings = believed(config, config_place, _RULES, lambda fields: _contradiction(fields, facts), named, where)
    rotary, why = _rotary(facts, names["table"] in shapes, layout, config)
    facts["use_rotary_positional_embeddings"] = rotary
    evidence.append(f"{'rotary' if rotary else 'sine-cosine'} positions ({why})")
    facts["conditioning"], why = _conditioning(facts, config, named, where)
    evidence.append(f"conditioning: {facts['conditioning']} ({why})")

    # The 2B and what was trained from it are told by their position code.
    facts["snr_shift_scale"] = 1.0 if rotary else 3.0
    facts["scaling_factor"] = 0.7 if rotary else 1.15258426
    facts["resize_positions"] = not rotary and facts["conditioning"] in ("inpaint", "control")
    facts |= {name: config[name] for name in _HIDDEN if name in config}

    params = CogVideoParams(**facts)
    if 0 in params.base_grid:
        raise ValueError(f"{where}its config says that sample_height and sample_width are {params.sample_height} and "
                         f"{params.sample_width}, less than one patch of {params.patch_size}. Correct the config, or take it "
                         "away.")
    if params.use_learned_positional_embeddings and shapes[names["table"]][1] != params.table_rows:
        raise ValueError(
            f"{where}the learned position table has {shapes[names['table']][1]} rows; {params.max_text_seq_length} text "
            f"tokens and {TABLE_FRAMES} frames of {params.base_grid[0]} x {params.base_grid[1]} patches need "
            f"{params.table_rows}. Put the config.json of this model beside the file."
        )
    return Identity(params, _variant(params), layout, "; ".join(evidence), warnings)


def _layout(shapes, where):
    what = looks_like(shapes)
    if "CogVideoX transformer:" not in what:
        raise ValueError(f"{where}this is no CogVideoX transformer, it looks like {what}.{several_models(shapes)}")
    refuse_foreign(shapes, "a CogVideoX transformer", TRANSFORMER_REMEDY, where)
    refuse_hollow(shapes, "CogVideoX transformer", where)
    for layout, names in _LAYOUTS.items():
        if all(names[fact] in shapes for fact in _REQUIRED):
            return layout, names
    layout, names = max(_LAYOUTS.items(), key=lambda item: sum(item[1][fact] in shapes for fact in _REQUIRED))
    missing = [names[fact] for fact in _REQUIRED if names[fact] not in shapes]
    raise ValueError(f"{where}a CogVideoX transformer by its names ({layout}), but {', '.join(missing)} "
                     f"{'are' if len(missing) > 1 else 'is'} missing. The file is incomplete or altered: get it again.")


def _facts(shapes, names, layout, where):
    """The params that tensors show."""
    def contradiction(what):
        return ValueError(f"{where}a CogVideoX transformer by its names, but {what}. Is the file complete?")

    for fact, dims in _REQUIRED.items():
        if len(shape := shapes[names[fact]]) not in dims:
            raise contradiction(f"{names[fact]} has the shape {tuple(shape)}")
    patch, out, table = shapes[names["patch"]], shapes[names["out"]], names["table"] in shapes
    width, head = patch[0], shapes[names["head"]][0]
    if layout == "sat" and is_flat_patch(patch, out):
        patch = (width, patch[1] // 4, 2, 2)
    p, pt = (patch[2], None) if len(patch) == 4 else (2, 2)
    volume = p * p * (pt or 1)
    if width % head or out[0] % volume or out[1] != width or (pt and patch[1] % volume):
        raise contradiction(f"its input patches {tuple(patch)}, heads of {head} and output {tuple(out)} do not fit together")
    blocks = {int(match[1]) for key in shapes if (match := re.match(names["block"], key))}
    if blocks != set(range(len(blocks))):
        raise contradiction(f"of its blocks 0 to {max(blocks)} only {len(blocks)} are there")
    in_channels = patch[1] // volume if pt else patch[1]
    return dict(
        num_layers=len(blocks), num_attention_heads=width // head, attention_head_dim=head,
        in_channels=in_channels, out_channels=out[0] // volume, patch_size=p, patch_size_t=pt,
        time_embed_dim=shapes[names["time"]][0], text_embed_dim=shapes[names["text"]][1],
        ofs_embed_dim=shapes[names["ofs"]][0] if names["ofs"] in shapes else None,
        # SAT stores the 2B's computed table under the same name as 5B-I2V's learned one.
        use_learned_positional_embeddings=table and not (layout == "sat" and in_channels == 16),
    )


def is_flat_patch(patch, out) -> bool:
    """Whether a 1.0 model's patch embedding was saved by the SAT code of today: as a matrix (D, channels * 2 * 2), as only the
    1.5 models have one elsewhere, whose output (patches of 2 frames) has twice as many rows. patch, out: shapes."""
    return len(patch) == 2 and out[0] == 2 * 2 * 16 and not patch[1] % 4


def _rotary(facts, table, layout, config):
    if facts["use_learned_positional_embeddings"]:
        return True, "its learned position table goes with them"
    if layout == "sat" and table:
        return False, "its stored position table"
    if facts["patch_size_t"]:
        return True, "patches of 2 latent frames go with them"
    if "use_rotary_positional_embeddings" in config:
        return bool(config["use_rotary_positional_embeddings"]), "its config"
    width = facts["num_attention_heads"] * facts["attention_head_dim"]
    return width != 1920, "its width"  # 1920 is the 2B, the only released size without them


def _contradiction(fields, facts):
    """In what these fields of a config cannot belong to the tensors, or ""."""
    for field in ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size",
                  "patch_size_t", "text_embed_dim", "ofs_embed_dim", "use_learned_positional_embeddings"):
        if fields.get(field, facts[field]) != facts[field]:
            return f"{field} {fields[field]}, tensors {facts[field]}"
    return ""


def _named(facts, words):
    """Fields that a file's name states and no tensor shows."""
    told = facts["ofs_embed_dim"] or facts["use_learned_positional_embeddings"]
    if told or facts["in_channels"] - facts["out_channels"] != 16:
        return {}
    if "img2vid" in words:
        return {"conditioning": "repeated_image"}
    return {"conditioning": "image"} if re.search(r"i2v|image[-_]?to[-_]?video|interpolation", words) else {}


def _conditioning(facts, config, named, where):
    extra = facts["in_channels"] - facts["out_channels"]
    fitting = [kind for kind, channels in CONDITIONING.items() if channels == extra]
    if not fitting:
        raise ValueError(
            f"{where}a CogVideoX transformer with {facts['in_channels']} input channels; known are 16 (text to video), "
            "32 (image to video, Fun control), 33 (Fun inpaint) and 48 (VOID)."
        )
    if len(fitting) == 1:
        return fitting[0], "its input channels"
    if facts["ofs_embed_dim"]:
        return "image", "its ofs embedding"
    if facts["use_learned_positional_embeddings"]:
        return "image", "its learned position table"
    if config.get("conditioning") in fitting:
        return config["conditioning"], "its config"
    if named:
        return named["conditioning"], "its name; no tensor tells it from Fun control"
    return "control", "neither position table nor ofs embedding, and no name that says image to video"


def _variant(params):
    size = {(30, 1920): "2B", (42, 3072): "5B"}.get(
        (params.num_layers, params.width), f"{params.num_layers} layers of {params.width}")
    version = "1.5 " if params.patch_size_t else ""
    if params.conditioning in ("inpaint", "control"):
        kind = {"inpaint": "InP", "control": "Control"}[params.conditioning]
        return f"CogVideoX-Fun {version}{size} {kind}"
    suffix = {"none": "", "image": " I2V", "repeated_image": " img2vid", "void": " VOID"}[params.conditioning]
    return f"CogVideoX {version}{size}{suffix}"


def identify_autoencoder(shapes: dict[str, tuple], config: dict | None = None, filename: str = "",
                         config_place: str = INSIDE) -> Identity:
    """Find out what CogVideoX autoencoder a file holds; arguments and errors as for `identify`.

    The number of groups of its norms is the one thing that neither tensors nor SAT files show: 32 without a config.
    """
    shapes, where = strip_autoencoder_prefix(shapes), f"{filename}: " if filename else ""
    what = looks_like(shapes)
    if "CogVideoX VAE:" not in what:
        raise ValueError(f"{where}this is no CogVideoX VAE, it looks like {what}.{several_models(shapes)}")
    refuse_foreign(shapes, "a CogVideoX VAE", AUTOENCODER_REMEDY, where)
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith("loss.")}
    refuse_hollow(shapes, "CogVideoX VAE", where)
    layout = "sat" if any(key.startswith("encoder.down.") for key in shapes) else "diffusers"
    block = {"diffusers": r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.conv\.weight$",
             "sat": r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.conv\.weight$"}[layout]
    found = {(int(m[1]), int(m[2])): shapes[key][0] for key in shapes if (m := re.match(block, key))}
    ends = {key: shapes.get(f"{key}.conv.weight", ()) for key in ("encoder.conv_in", "decoder.conv_in", "decoder.conv_out")}
    levels = 1 + max((level for level, _ in found), default=-1)
    if odd := [f"{key}.conv.weight" for key, shape in ends.items() if len(shape) != 5] + [
            f"the encoder's level {level}" for level in range(min(max(levels, 1), 64)) if not found.get((level, 0))]:
        raise ValueError(f"{where}a CogVideoX VAE by its names, but {', '.join(odd)} missing or of another shape. The file is "
                         "incomplete or altered: get it again.")
    facts = dict(
        block_out_channels=tuple(found[level, 0] for level in range(levels)),
        layers_per_block=1 + max(block for _, block in found),
        latent_channels=ends["decoder.conv_in"][1], in_channels=ends["encoder.conv_in"][1],
        out_channels=ends["decoder.conv_out"][0],
    )
    config, warnings = believed(config, config_place, _VAE_RULES, lambda fields: _vae_contradiction(fields, facts), where=where)
    params = CogVideoVAEParams(**facts, **{name: config[name] for name in _VAE_HIDDEN if name in config})
    if any(channels % params.norm_num_groups for channels in params.block_out_channels):
        raise ValueError(
            f"{where}a CogVideoX VAE with {params.block_out_channels} channels, which {params.norm_num_groups} norm groups "
            "do not divide. Put the config.json of this model beside the file."
        )
    size = "" if params.block_out_channels == CogVideoVAEParams.block_out_channels else f" {params.block_out_channels}"
    evidence = f"channels {params.block_out_channels} (tensors); {params.norm_num_groups} norm groups " + (
        "(its config)" if "norm_num_groups" in config else "(as released)")
    return Identity(params, f"CogVideoX VAE{size}", layout, evidence, warnings)


def _vae_contradiction(fields, facts):
    """In what these fields of a config cannot belong to the tensors, or ""."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for field, fact in facts.items():
        if fields.get(field, fact) != fact:
            return f"{field} {fields[field]}, tensors {fact}"
    groups = fields.get("norm_num_groups", 1)
    return f"norm_num_groups {groups}, channels {facts['block_out_channels']}" if any(
        channels % groups for channels in facts["block_out_channels"]) else ""
