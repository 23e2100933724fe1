"""CogVideoX's networks against the equations of its authors' code (SAT), in float64, where diffusers deviates from them."""

import pytest
import torch
import torch.nn.functional as F

from sanacog.cogvideo_core.autoencoder import CogVideoVAE, decode_chunks, encode_chunks
from sanacog.cogvideo_core.config import CogVideoParams, CogVideoVAEParams
from sanacog.cogvideo_core.transformer import CogVideoTransformer


@torch.no_grad()
def test_last_norm():
    """Shown on numbers small enough for the epsilon to matter. Source: SAT's final layer, LayerNorm with 1e-6."""
    torch.manual_seed(0)
    net = CogVideoTransformer(CogVideoParams(num_layers=1, num_attention_heads=2, time_embed_dim=16, text_embed_dim=8))
    norm, x, embedding = net.norm_out.double(), 1e-3 * torch.randn(2, 5, 128, dtype=torch.float64), torch.randn(2, 16).double()
    for weight in norm.parameters():
        weight.normal_(std=0.5)
    shift, scale = (F.silu(embedding) @ norm.linear.weight.T + norm.linear.bias)[:, None].chunk(2, -1)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.norm.weight + norm.norm.bias
    torch.testing.assert_close(norm(x, embedding), normed * (1 + scale) + shift, rtol=1e-9, atol=1e-12)


VAE = CogVideoVAEParams(block_out_channels=(8, 16, 16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=4)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    network = CogVideoVAE(VAE).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.5 if weight.ndim < 2 else weight[0].numel() ** -0.5)
    return network


class Equations:
    """A clip is a list of pieces throughout: convolutions see the frames before a piece, norms the piece alone."""

    def __init__(self, network):
        self.w = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def conv(self, name, pieces):
        past, out = pieces[0][:, :, :1].expand(-1, -1, 2, -1, -1), []
        for x in pieces:
            x = torch.cat([past, x], 2)
            past = x[:, :, -2:]
            out.append(F.conv3d(x, self.w[f"{name}.conv.weight"], self.w[f"{name}.conv.bias"], padding=(0, 1, 1)))
        return out

    def norm(self, name, pieces, eps, latents=None):
        inner = f"{name}.norm_layer" if latents else name
        normed = [F.group_norm(x, VAE.norm_num_groups, self.w[f"{inner}.weight"], self.w[f"{inner}.bias"], eps) for x in pieces]
        if latents:
            seen = [self.enlarged(z, x.shape[2:], first) for z, x, first in zip(latents, pieces, [True] + [False] * len(pieces))]
            scale, shift = ([F.conv3d(z, self.w[f"{name}.{kind}.conv.weight"], self.w[f"{name}.{kind}.conv.bias"]) for z in seen]
                            for kind in ("conv_y", "conv_b"))
            normed = [x * a + b for x, a, b in zip(normed, scale, shift)]
        return [F.silu(x) for x in normed]

    @staticmethod
    def enlarged(z, size, first):
        if first and size[0] > 1 and size[0] % 2:
            return torch.cat([F.interpolate(z[:, :, :1], (1, *size[1:])), F.interpolate(z[:, :, 1:], (size[0] - 1, *size[1:]))], 2)
        return F.interpolate(z, size)

    def resnet(self, name, pieces, latents=None):
        eps = 1e-6 if latents else VAE.norm_eps
        h = self.conv(f"{name}.conv1", self.norm(f"{name}.norm1", pieces, eps, latents))
        h = self.conv(f"{name}.conv2", self.norm(f"{name}.norm2", h, eps, latents))
        if f"{name}.conv_shortcut.weight" in self.w:
            pieces = [F.conv3d(x, self.w[f"{name}.conv_shortcut.weight"], self.w[f"{name}.conv_shortcut.bias"]) for x in pieces]
        return [x + y for x, y in zip(pieces, h)]

    def level(self, name, pieces, latents=None):
        resnets = {key.split(".resnets.")[1].split(".")[0] for key in self.w if key.startswith(f"{name}.resnets.")}
        for i in sorted(resnets, key=int):
            pieces = self.resnet(f"{name}.resnets.{i}", pieces, latents)
        return pieces

    def conv2d(self, name, x, **how):
        frames = [F.conv2d(frame, self.w[f"{name}.weight"], self.w[f"{name}.bias"], **how) for frame in x.unbind(2)]
        return torch.stack(frames, 2)

    def decode(self, latents):
        x = self.level("decoder.mid_block", self.conv("decoder.conv_in", latents), latents)
        for i in range(4):
            x = self.level(f"decoder.up_blocks.{i}", x, latents)
            if i < 3:
                alone = x[0].shape[2] % 2 if i < 2 else 0  # the clip's first frame
                large = [F.interpolate(y, scale_factor=(1 + (i < 2), 2, 2)) for y in x]
                large[0] = large[0][:, :, alone:]
                x = [self.conv2d(f"decoder.up_blocks.{i}.upsamplers.0.conv", y, padding=1) for y in large]
        return torch.cat(self.conv("decoder.conv_out", self.norm("decoder.norm_out", x, 1e-6, latents)), 2)

    def encode(self, frames):
        x = self.conv("encoder.conv_in", [frames])
        for i in range(4):
            x = self.level(f"encoder.down_blocks.{i}", x)
            if i < 3:
                if i < 2 and x[0].shape[2] > 1:
                    first = x[0].shape[2] % 2
                    x = [torch.cat([x[0][:, :, :first], x[0][:, :, first:].unflatten(2, (-1, 2)).mean(3)], 2)]
                x = [self.conv2d(f"encoder.down_blocks.{i}.downsamplers.0.conv", F.pad(x[0], (0, 1, 0, 1)), stride=2)]
        x = self.level("encoder.mid_block", x)
        return self.conv("encoder.conv_out", self.norm("encoder.norm_out", x, 1e-6))[0].chunk(2, 1)[0]


def relative(a, b):
    return float((a.double() - b).norm() / b.norm())


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 13, 17, 33])
def test_a_clip_is_encoded_whole(vae, frames):
    x = torch.rand(1, 3, frames, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = Equations(vae).encode(x.double())
    assert relative(vae.encode(x, whole=True), wanted) < 1e-5
    # diffusers' way: exact up to 13 frames.
    assert (relative(vae.encode(x), wanted) < 1e-5) == (frames <= 13)


@torch.no_grad()
@pytest.mark.parametrize("latents", [1, 2, 3, 21, 25, 41])
def test_a_clip_is_decoded_in_ten_pieces_at_most(vae, latents):
    z = torch.randn(1, 4, latents, 2, 3, generator=torch.Generator().manual_seed(1))
    count = max(1, min(10, latents // 2))  # as near to equal as can be, the longer ones first
    pieces = [part.double() for part in z.tensor_split(count, 2)]
    wanted = Equations(vae).decode(pieces)
    found = vae.decode(z, whole=True)
    assert found.shape[2] == (4 * latents - 3 if latents % 2 else 4 * latents) and relative(found, wanted) < 1e-5
    assert (relative(vae.decode(z), wanted) < 1e-5) == (latents <= 21)


def test_pieces():
    assert decode_chunks(25, whole=True) == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 17), (17, 19), (19, 21), (21, 23), (23, 25)]
    for latents in range(1, 22):
        assert decode_chunks(latents, whole=True) == decode_chunks(latents), latents
    assert encode_chunks(33, whole=True) == [(0, 33)] and encode_chunks(33) == [(0, 9), (9, 17), (17, 25), (25, 33)]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_types_on_a_cpu(vae, dtype):
    """As ComfyUI's --bf16-vae and --fp16-vae ask for. Frames of large values do not overflow where two become one."""
    clip = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    half = CogVideoVAE(vae.params).to(dtype)
    half.load_state_dict(vae.state_dict())
    with torch.no_grad():
        latent = vae.encode(clip)
        drawn = vae.decode(latent)
        for ours, theirs in ((half.encode(clip.to(dtype)), latent), (half.decode(latent.to(dtype)), drawn)):
            assert (ours.float() - theirs).norm() < 0.05 * theirs.norm()
        down = half.encoder.down_blocks[0].downsamplers[0]
        down.conv = torch.nn.Identity()
        large = torch.full((1, 1, 9, 4, 4), 6e4, dtype=dtype)
        assert torch.isfinite(down(large, True)).all()
