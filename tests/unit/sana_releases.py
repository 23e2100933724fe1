"""What was released of Sana, as tables: architectures, repositories and both layouts' shapes, from the papers' and
repositories' figures and not from our code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    layers: int
    width: int
    qk_norm: bool = False
    sprint: bool = False
    parameters: int = 0
    diffusers_keys: int = 0
    nvlabs_keys: int = 0  # without y_embedding, pos_embed, logvar


SANA_06 = Architecture(28, 1152, False, False, 591_747_872, 548, 436)
SANA_16 = Architecture(20, 2240, False, False, 1_604_462_752, 396, 316)
SANA_15_16 = Architecture(20, 2240, True, False, 1_604_641_952, 476, 396)
SANA_15_48 = Architecture(60, 2240, True, False, 4_721_825_952, 1396, 1156)
SPRINT_06 = Architecture(28, 1152, True, True, 593_501_216, 664, 552)
SPRINT_16 = Architecture(20, 2240, True, True, 1_610_237_472, 480, 400)
TEACHER_06 = Architecture(28, 1152, True, False)
ARCHITECTURES = {"Sana 0.6B": SANA_06, "Sana 1.6B": SANA_16, "Sana 1.5 1.6B": SANA_15_16, "Sana 1.5 4.8B": SANA_15_48,
                 "Sprint 0.6B": SPRINT_06, "Sprint 1.6B": SPRINT_16}


@dataclass(frozen=True)
class Release:
    """repository (NVlabs' name; diffusers' adds _diffusers), what it must be called, and what tensors do not show. file: the
    stem of NVlabs' file, where it is not the repository's name."""

    repository: str
    variant: str
    architecture: Architecture
    sample_size: int
    clamp_fp16: bool = False
    flow_shift: float = 3.0
    interpolation_scale: float | None = None
    timestep_multiplier: float = 1000.0
    file: str | None = None


RELEASES = [
    Release("Sana_600M_512px", "Sana 0.6B 512px", SANA_06, 16, True, file="Sana_600M_512px_MultiLing"),
    Release("Sana_600M_1024px", "Sana 0.6B 1024px", SANA_06, 32, True, 4.0, file="Sana_600M_1024px_MultiLing"),
    Release("Sana_1600M_512px", "Sana 1.6B 512px", SANA_16, 16, True),
    Release("Sana_1600M_512px_MultiLing", "Sana 1.6B 512px", SANA_16, 16, True),
    Release("Sana_1600M_1024px", "Sana 1.6B 1024px", SANA_16, 32, True),
    Release("Sana_1600M_1024px_MultiLing", "Sana 1.6B 1024px", SANA_16, 32, True),
    Release("Sana_1600M_1024px_BF16", "Sana 1.6B 1024px BF16", SANA_16, 32),
    Release("Sana_1600M_2Kpx_BF16", "Sana 1.6B 2K", SANA_16, 64, interpolation_scale=1.0),
    Release("Sana_1600M_4Kpx_BF16", "Sana 1.6B 4K", SANA_16, 128, flow_shift=6.0, interpolation_scale=2.0),
    Release("SANA1.5_1.6B_1024px", "Sana 1.5 1.6B 1024px", SANA_15_16, 32),
    Release("SANA1.5_4.8B_1024px", "Sana 1.5 4.8B 1024px", SANA_15_48, 32),
    Release("Sana_Sprint_0.6B_1024px", "Sana Sprint 0.6B 1024px", SPRINT_06, 32, timestep_multiplier=1.0),
    Release("Sana_Sprint_1.6B_1024px", "Sana Sprint 1.6B 1024px", SPRINT_16, 32, timestep_multiplier=1.0),
    Release("Sana_Sprint_0.6B_1024px_teacher", "Sana Sprint 0.6B teacher 1024px", TEACHER_06, 32,
            timestep_multiplier=1.0),
    Release("SANA_Sprint_1.6B_1024px_teacher", "Sana Sprint 1.6B teacher 1024px", SANA_15_16, 32,
            timestep_multiplier=1.0),
]


def cross_heads(width):
    return {1152: (16, 72), 2240: (20, 112)}[width]


def diffusers_config(a, sample_size=32, interpolation_scale=None, timestep_scale=1.0):
    """transformer/config.json of a diffusers repository."""
    heads, head_dim = cross_heads(a.width)
    return dict(in_channels=32, out_channels=32, num_attention_heads=a.width // 32, attention_head_dim=32,
                num_layers=a.layers, num_cross_attention_heads=heads, cross_attention_head_dim=head_dim,
                cross_attention_dim=a.width, caption_channels=2304, mlp_ratio=2.5, sample_size=sample_size,
                patch_size=1, interpolation_scale=interpolation_scale, guidance_embeds=a.sprint,
                guidance_embeds_scale=0.1, qk_norm="rms_norm_across_heads" if a.qk_norm else None,
                timestep_scale=timestep_scale)


def nvlabs_shapes(a, position_tokens=None):
    """{key: shape} of an NVlabs file; position_tokens adds what training left in it."""
    D, H = a.width, int(a.width * 2.5)
    linear = {  # name: (out, in, bias)
        "x_embedder.proj": ((D, 32, 1, 1), True), "y_embedder.y_proj.fc1": ((D, 2304), True),
        "y_embedder.y_proj.fc2": ((D, D), True), "t_embedder.mlp.0": ((D, 256), True),
        "t_embedder.mlp.2": ((D, D), True), "t_block.1": ((6 * D, D), True), "final_layer.linear": ((32, D), True),
        "attention_y_norm": ((D,), False)}
    if a.sprint:
        linear |= {"cfg_embedder.mlp.0": ((D, 256), True), "cfg_embedder.mlp.2": ((D, D), True)}
    shapes = {"final_layer.scale_shift_table": (2, D)}
    for i in range(a.layers):
        b = f"blocks.{i}."
        shapes[b + "scale_shift_table"] = (6, D)
        linear |= {
            b + "attn.qkv": ((3 * D, D), False), b + "attn.proj": ((D, D), True),
            b + "cross_attn.q_linear": ((D, D), True), b + "cross_attn.kv_linear": ((2 * D, D), True),
            b + "cross_attn.proj": ((D, D), True), b + "mlp.inverted_conv.conv": ((2 * H, D, 1, 1), True),
            b + "mlp.depth_conv.conv": ((2 * H, 1, 3, 3), True), b + "mlp.point_conv.conv": ((D, H, 1, 1), False)}
        if a.qk_norm:
            linear |= {b + f"{attention}.{n}_norm": ((D,), False) for attention in ("attn", "cross_attn") for n in "qk"}
    for name, (shape, bias) in linear.items():
        shapes[name + ".weight"] = shape
        if bias:
            shapes[name + ".bias"] = shape[:1]
    if position_tokens:
        shapes |= {"y_embedder.y_embedding": (300, 2304), "pos_embed": (1, position_tokens, D)}
        if a.sprint:
            shapes |= {"logvar_linear.weight": (1, 256), "logvar_linear.bias": (1,)}
    return shapes


def nvlabs_control_shapes(a, blocks=7):
    """{key: shape} of an NVlabs ControlNet file: the base, and beside it the copies of its first blocks."""
    D, base = a.width, nvlabs_shapes(a)
    shapes = dict(base)
    for i in range(blocks):
        shapes |= {f"controlnet.{i}.copied_block.{key.removeprefix(f'blocks.{i}.')}": shape
                   for key, shape in base.items() if key.startswith(f"blocks.{i}.")}
        for name in ("before_proj", "after_proj") if i == 0 else ("after_proj",):
            shapes |= {f"controlnet.{i}.{name}.weight": (D, D), f"controlnet.{i}.{name}.bias": (D,)}
    return shapes
