"""The CogVideoX transformer against diffusers' with the same weights, fp32, small width."""

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.transformer import CogVideoTransformer

# Two layers of two heads; heads of 64, which the rotary code splits into 16 + 24 + 24.
SMALL = dict(num_layers=2, num_attention_heads=2, time_embed_dim=32, text_embed_dim=24, max_text_seq_length=10)
VARIANTS = {
    "2B": dict(use_rotary_positional_embeddings=False),
    "5B": dict(),
    "5B-I2V": dict(in_channels=32, use_learned_positional_embeddings=True),
    "1.5-5B": dict(patch_size_t=2),
    "1.5-5B-I2V": dict(patch_size_t=2, in_channels=32, ofs_embed_dim=32),
}
# Latent frames, height and width: 480 x 720 pixels at a quarter of its sides, portrait, and odd numbers of patches.
SIZES = {"landscape": (2, 16, 22), "portrait": (2, 22, 16), "odd": (4, 14, 26), "tall": (2, 34, 6), "square": (2, 16, 16)}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def pair(**changes):
    """Our model and diffusers' with the same random weights; norms and biases random too, so that none can hide."""
    params = CogVideoParams(**(SMALL | dict(sample_height=16, sample_width=22) | changes))
    known = {name: getattr(params, name) for name in (
        "num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size",
        "patch_size_t", "time_embed_dim", "ofs_embed_dim", "text_embed_dim", "max_text_seq_length", "sample_height",
        "sample_width", "use_rotary_positional_embeddings", "use_learned_positional_embeddings")}
    theirs = CogVideoXTransformer3DModel(**known, sample_frames=49).eval()
    generator = torch.Generator().manual_seed(0)
    # The position table, the only one of three dimensions, is as large as the tokens: few of them are text, and a
    # mistake in its text rows must show in the video.
    state = {key: torch.randn(value.shape, generator=generator) * {1: 0.5, 3: 1.0}.get(value.ndim, value.shape[-1] ** -0.5)
             for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    theirs.norm_out.norm.eps = 1e-6  # the authors' epsilon
    ours = CogVideoTransformer(params)
    ours.load_state_dict(state)
    return ours, theirs


def reference(theirs, x, timestep, context, ofs=None):
    """diffusers' transformer as its pipeline calls it. x (B, C, T, H, W)."""
    config, (frames, height, width) = theirs.config, x.shape[2:]
    grid, base, rope = (height // 2, width // 2), (config.sample_height // 2, config.sample_width // 2), None
    if config.use_rotary_positional_embeddings and config.patch_size_t is None:
        crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
        rope = get_3d_rotary_pos_embed(config.attention_head_dim, crop, grid, frames)
    elif config.use_rotary_positional_embeddings:
        # Its pipeline slices a table of the size that the config names, which fails for portrait videos; any table
        # that is large enough has the same entries.
        rope = get_3d_rotary_pos_embed(config.attention_head_dim, None, grid, frames // 2, grid_type="slice", max_size=(64, 64))
    return theirs(x.transpose(1, 2), context, timestep, ofs=ofs, image_rotary_emb=rope).sample.transpose(1, 2)


def inputs(ours, frames, height, width, batch=2, tokens=10):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, ours.params.in_channels, frames, height, width, generator=generator)
    context = torch.randn(batch, tokens, ours.params.text_embed_dim, generator=generator)
    return x, torch.tensor([999.0, 19.0])[:batch], context


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_transformer(variant, size):
    frames, height, width = SIZES[size]
    changes = VARIANTS[variant]
    if changes.get("use_learned_positional_embeddings"):  # the reference takes the trained size only, and all 13 latents
        frames, changes = 13, changes | dict(sample_height=height, sample_width=width)
    ours, theirs = pair(**changes)
    x, timestep, context = inputs(ours, frames, height, width, batch=1 if frames == 13 else 2)
    ofs = torch.full_like(timestep, 2.0)
    expected = reference(theirs, x, timestep, context, ofs)
    assert relative(ours(x, timestep, context), expected) < 1e-5


@torch.no_grad()
def test_ofs_is_an_input():
    ours, theirs = pair(**VARIANTS["1.5-5B-I2V"])
    x, timestep, context = inputs(ours, 2, 8, 8)
    expected = reference(theirs, x, timestep, context, torch.tensor([0.5, 7.0]))
    assert relative(ours(x, timestep, context, torch.tensor([0.5, 7.0])), expected) < 1e-5


@torch.no_grad()
def test_odd_number_of_latents_is_filled_up_in_front():
    ours, theirs = pair(**VARIANTS["1.5-5B"])
    x, timestep, context = inputs(ours, 3, 8, 10)
    expected = reference(theirs, torch.cat([x[:, :, :1], x], dim=2), timestep, context)[:, :, 1:]
    assert relative(ours(x, timestep, context), expected) < 1e-5


@pytest.mark.parametrize("variant", ["5B", "1.5-5B"])
@torch.no_grad()
def test_odd_sides_are_filled_up(variant):
    ours, theirs = pair(**VARIANTS[variant])
    x, timestep, context = inputs(ours, 2, 7, 11)
    filled = torch.nn.functional.pad(x, (0, 1, 0, 1, 0, 0), mode="replicate")
    expected = reference(theirs, filled, timestep, context)[..., :7, :11]
    assert relative(ours(x, timestep, context), expected) < 1e-5


@torch.no_grad()
def test_fewer_frames_use_the_first_rows_of_the_learned_table():
    # diffusers would put a computed table in its place; SAT slices, and so a model with a shorter table must agree.
    ours, theirs = pair(**VARIANTS["5B-I2V"], sample_height=8, sample_width=8)
    x, timestep, context = inputs(ours, 3, 8, 8)
    table = theirs.patch_embed.pos_embedding[:, : 10 + 3 * 16]
    theirs.patch_embed.register_buffer("pos_embedding", table)
    theirs.patch_embed.sample_frames = 9
    assert relative(ours(x, timestep, context), reference(theirs, x, timestep, context)) < 1e-5


@torch.no_grad()
def test_fun_2b_stretches_the_table_of_its_base_grid():
    import torch.nn.functional as F
    ours, theirs = pair(in_channels=33, use_rotary_positional_embeddings=False, resize_positions=True)
    x, timestep, context = inputs(ours, 13, 10, 12)
    embed = theirs.patch_embed
    video = embed.pos_embedding[0, 10:].view(13, 8, 11, -1).permute(3, 0, 1, 2)[None]
    video = F.interpolate(video, size=(13, 5, 6), mode="trilinear", align_corners=False)  # as VideoX-Fun does
    embed.pos_embedding = torch.cat([embed.pos_embedding[:, :10], video[0].flatten(1).T[None]], dim=1)
    embed.sample_height, embed.sample_width = 10, 12
    assert relative(ours(x, timestep, context), reference(theirs, x, timestep, context)) < 1e-5


@torch.no_grad()
def test_half_precision_stays_close():
    ours, theirs = pair(**VARIANTS["5B"])
    x, timestep, context = inputs(ours, 2, 8, 10)
    expected = reference(theirs, x, timestep, context)
    result = ours.bfloat16()(x.bfloat16(), timestep, context)
    assert result.dtype == torch.bfloat16 and relative(result.float(), expected) < 0.03


def test_gradients():
    ours, theirs = pair(**VARIANTS["1.5-5B-I2V"])
    x, timestep, context = inputs(ours, 2, 6, 6)
    ours(x, timestep, context).square().sum().backward()
    reference(theirs, x, timestep, context, torch.full_like(timestep, 2.0)).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative(parameter.grad, expected[name].grad) < 1e-4, name
