"""TheDenk's ControlNet for CogVideoX, put together here from diffusers' own patch embedding and blocks, and its encoder of
control videos by its equations in float64."""

import pytest
import torch
from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding, Timesteps, get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from sanacog.cogvideo_core.controlnet import HINT_CHANNELS, CogVideoControlNet
from sanacog.cogvideo_core.controlnet_checkpoint import check_shapes, identify_controlnet, to_canonical

from .test_cogvideo_transformer import relative

HEADS, LAYERS, TEXT, TIME, TOKENS = 2, 2, 24, 32, 10
WIDTH = HEADS * 64
SAMPLE = 16, 22
CONFIG = dict(_class_name="CogVideoXControlnet", num_attention_heads=HEADS, attention_head_dim=64, in_channels=3, vae_channels=16,
              downscale_coef=8, time_embed_dim=TIME, num_layers=LAYERS, sample_height=SAMPLE[0], sample_width=SAMPLE[1],
              patch_size=2, max_text_seq_length=TOKENS, spatial_interpolation_scale=1.875, use_learned_positional_embeddings=False)


class Reference(torch.nn.Module):
    """The authors' modules, under their names, from diffusers' parts."""

    def __init__(self, code, out=None):
        super().__init__()
        self.controlnet_encode_first = torch.nn.Sequential(torch.nn.Conv2d(192, 96, 1), torch.nn.GroupNorm(2, 96))
        self.controlnet_encode_second = torch.nn.Sequential(torch.nn.Conv2d(96, 48, 1), torch.nn.GroupNorm(2, 48))
        self.patch_embed = CogVideoXPatchEmbed(
            patch_size=2, in_channels=64, embed_dim=WIDTH, text_embed_dim=TEXT, bias=True, sample_width=SAMPLE[1],
            sample_height=SAMPLE[0], sample_frames=5, max_text_seq_length=TOKENS, use_positional_embeddings=code,
            use_learned_positional_embeddings=False)
        self.time_proj = Timesteps(WIDTH, True, 0)
        self.time_embedding = TimestepEmbedding(WIDTH, TIME, "silu")
        self.transformer_blocks = torch.nn.ModuleList([
            CogVideoXBlock(WIDTH, HEADS, 64, TIME, activation_fn="gelu-approximate", attention_bias=True) for _ in range(LAYERS)])
        if out:
            self.out_projectors = torch.nn.ModuleList([torch.nn.Linear(WIDTH, out) for _ in range(LAYERS)])

    def forward(self, x, timestep, context, hint, rope):
        hidden = self.patch_embed(context, torch.cat([x, hint], dim=1).transpose(1, 2))
        text, video = hidden[:, :TOKENS], hidden[:, TOKENS:]
        embedding, out = self.time_embedding(self.time_proj(timestep)), []
        for i, block in enumerate(self.transformer_blocks):
            video, text = block(hidden_states=video, encoder_hidden_states=text, temb=embedding, image_rotary_emb=rope)
            out.append(self.out_projectors[i](video) if hasattr(self, "out_projectors") else video)
        return out


def pair(code, out=None):
    reference = Reference(code, out).eval()
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(t.shape, generator=generator) * (0.5 if t.ndim == 1 else t[0].numel() ** -0.5)
             for key, t in reference.state_dict().items()}
    reference.load_state_dict(state)
    identity = identify_controlnet({key: tuple(t.shape) for key, t in state.items()},
                                   CONFIG | {"use_rotary_positional_embeddings": not code, "out_proj_dim": out})
    ours = CogVideoControlNet(identity.params, identity.out_width)
    ours.load_state_dict(to_canonical(state, identity.layout))
    return ours.eval(), reference


@pytest.mark.parametrize("size", [(2, 16, 22), (3, 12, 16)])
@pytest.mark.parametrize("out", [None, 40])
@pytest.mark.parametrize("code, rotary", [(True, False), (True, True), (False, True)])
@torch.no_grad()
def test_residuals(code, rotary, out, size):
    """The 2B's code, the rotary one, and both at once, as a 5B's of the authors' training script has them."""
    ours, reference = pair(code, out)
    generator = torch.Generator().manual_seed(1)
    x, hint = (torch.randn(2, channels, *size, generator=generator) for channels in (16, HINT_CHANNELS))
    context, timestep = torch.randn(2, TOKENS, TEXT, generator=generator), torch.tensor([999.0, 250.0])
    grid = size[1] // 2, size[2] // 2
    crop = get_resize_crop_region_for_grid(grid, SAMPLE[1] // 2, SAMPLE[0] // 2)
    rope = get_3d_rotary_pos_embed(64, crop, grid, size[0]) if rotary else None
    wanted = reference(x, timestep, context, hint, rope)
    found = ours(x, timestep, context, hint, rotary)
    assert len(found) == LAYERS and found[0].shape[-1] == (out or WIDTH)
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, wanted))
    other = ours(x, timestep, context, hint, not rotary)
    assert relative(other[-1], wanted[-1]) > 1e-3
    odd = ours(x[..., :-1], timestep, context, hint[..., :-1], rotary)  # filled up as the base fills itself
    filled = [torch.cat([t[..., :-1], t[..., -2:-1]], dim=-1) for t in (x, hint)]
    assert relative(odd[-1], ours(filled[0], timestep, context, filled[1], rotary)[-1]) < 1e-6


@torch.no_grad()
def test_encoder_of_control_videos():
    ours, _ = pair(True)
    frames = torch.rand(2, 3, 9, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def stage(x, layer):
        """1 x 1 convolution, GroupNorm of two groups, ReLU: x (C, h, w)."""
        weight, bias, gain, shift = (p.double() for p in layer.parameters())
        y = torch.einsum("oc,chw->ohw", weight[:, :, 0, 0], x) + bias[:, None, None]
        half = len(y) // 2
        groups = [(part - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt() for part in (y[:half], y[half:])]
        return (torch.cat(groups) * gain[:, None, None] + shift[:, None, None]).clamp(min=0)

    def halved(clip):
        return [clip[0]] + [(clip[i] + clip[i + 1]) / 2 for i in range(1, len(clip), 2)]

    for video, found in zip(frames.double(), ours.encode(frames)):
        clip = []
        for frame in video.unbind(1):
            squares = torch.zeros(192, 2, 3, dtype=torch.float64)
            for colour in range(3):
                for row in range(16):
                    for column in range(24):
                        squares[colour * 64 + row % 8 * 8 + column % 8, row // 8, column // 8] = frame[colour, row, column]
            clip.append(stage(squares, ours.controlnet_encode_first))
        clip = halved([stage(frame, ours.controlnet_encode_second) for frame in halved(clip)])
        assert found.shape == (48, 3, 2, 3)
        assert relative(found.double(), torch.stack(clip, dim=1)) < 1e-5
    with pytest.raises(ValueError, match="8 frames, expected 4 n"):
        ours.encode(frames[:, :, :8])


def released(heads, layers=8, out=None):
    """{key: shape} of TheDenk/cogvideox-{2b,5b}-controlnet-*: the modules that the authors' class makes."""
    D = heads * 64
    linear = {"patch_embed.text_proj": (D, 4096), "time_embedding.linear_1": (512, D), "time_embedding.linear_2": (512, 512)}
    other = {"controlnet_encode_first.0": (96, 192, 1, 1), "controlnet_encode_first.1": (96,),
             "controlnet_encode_second.0": (48, 96, 1, 1), "controlnet_encode_second.1": (48,), "patch_embed.proj": (D, 64, 2, 2)}
    for i in range(layers):
        linear |= {f"transformer_blocks.{i}.{name}": shape for name, shape in {
            "norm1.linear": (6 * D, 512), "norm1.norm": (D,), "attn1.norm_q": (64,), "attn1.norm_k": (64,), "attn1.to_q": (D, D),
            "attn1.to_k": (D, D), "attn1.to_v": (D, D), "attn1.to_out.0": (D, D), "norm2.linear": (6 * D, 512), "norm2.norm": (D,),
            "ff.net.0.proj": (4 * D, D), "ff.net.2": (D, 4 * D)}.items()}
        if out:
            linear[f"out_projectors.{i}"] = (out, D)
    return {f"{name}.{leaf}": shape if leaf == "weight" else shape[:1]
            for name, shape in (linear | other).items() for leaf in ("weight", "bias")}


@pytest.mark.parametrize("heads, out, variant", [(30, None, "CogVideoX 2B"), (48, None, "CogVideoX 5B"), (30, 3072, "CogVideoX 5B")])
def test_released_files(heads, out, variant):
    shapes = released(heads, out=out)
    for found in (shapes, {f"module.{key}": shape for key, shape in shapes.items()}):
        identity = identify_controlnet(found, None, "diffusion_pytorch_model.safetensors")
        check_shapes(found, identity, "x.safetensors")
        assert variant in identity.variant and "8 blocks" in identity.variant and identity.out_width == out
        assert identity.params.in_channels == 64 and not identity.params.use_rotary_positional_embeddings
        assert "as the authors trained it" in identity.evidence
    told = identify_controlnet(shapes, {"_class_name": "CogVideoXControlnet", "use_rotary_positional_embeddings": True})
    assert told.params.use_rotary_positional_embeddings and "no code added (its config)" in told.evidence
    other = identify_controlnet(shapes, {"_class_name": "CogVideoXControlnet", "num_layers": 6,
                                         "use_rotary_positional_embeddings": True})
    assert other.warnings and not other.params.use_rotary_positional_embeddings


def test_refused():
    shapes = released(30)
    for change, message in (
            ({"transformer_blocks.7.ff.net.2.bias": None}, "not a whole ControlNet of CogVideoX 2B, 8 blocks: missing transformer_"),
            ({"transformer_blocks.0.extra.weight": (1, 1)}, "unexpected transformer_blocks.0.extra.weight")):
        changed = {key: shape for key, shape in (shapes | change).items() if shape}
        with pytest.raises(ValueError, match=f"x.safetensors: .*{message}"):
            check_shapes(changed, identify_controlnet(changed, None, "x.safetensors"), "x.safetensors")
    for change, message in (
            ({"patch_embed.proj.weight": None}, "patch_embed.proj.weight missing"),
            ({"patch_embed.proj.weight": (1920, 64)}, r"of another kind: patch_embed.proj.weight \(1920, 64\).*1.0 models"),
            ({"controlnet_encode_first.0.weight": (24, 48, 1, 1)}, r"of another kind: .*\(24, 48, 1, 1\).*squares of 8 px"),
            ({"transformer_blocks.0.attn1.to_q.SCB": (1,)}, "quantised by bitsandbytes, 8 bit")):
        with pytest.raises(ValueError, match=f"x.safetensors: .*{message}"):
            identify_controlnet({key: shape for key, shape in (shapes | change).items() if shape}, None, "x.safetensors")
    with pytest.raises(ValueError, match="not a CogVideoX ControlNet: this is a CogVideoX transformer"):
        identify_controlnet({key: shape for key, shape in shapes.items() if "controlnet" not in key})
    with pytest.raises(ValueError, match="num_layers is 'eight'"):
        identify_controlnet(shapes, {"num_layers": "eight"})
