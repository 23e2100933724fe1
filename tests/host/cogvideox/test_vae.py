"""CogVideoX' autoencoder as the host's VAE, on random tiny weights: the core's numbers, which are diffusers'."""

import json
import logging
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors import safe_open

from .. import tiny, tiny_cogvideox


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import nodes

    from sanacog.host.cogvideox import vae as cogvideox_vae

    with torch.inference_mode():  # as the host runs its nodes
        yield SimpleNamespace(comfy=comfy, mm=comfy.model_management, nodes=nodes, vae=cogvideox_vae)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "vae.safetensors")


@pytest.fixture
def vae(host, path):
    """With clips cut as diffusers cuts them; test_vae_clips.py has the other way."""
    return host.vae.load_cogvideox_vae(path, "chunks")


@pytest.fixture(scope="module")
def core():
    return autoencoder()


@pytest.fixture
def theirs(core):
    model = AutoencoderKLCogVideoX(
        block_out_channels=tiny_cogvideox.VAE.block_out_channels, latent_channels=16, norm_num_groups=4,
        layers_per_block=tiny_cogvideox.VAE.layers_per_block).eval()
    model.load_state_dict(core.state_dict())
    return model


def autoencoder():
    """Random weights whose frames lie in [-1, 1], so that clipping to an IMAGE hides nothing."""
    model = tiny_cogvideox.autoencoder()
    with torch.no_grad():
        model.decoder.conv_out.conv.weight.mul_(0.03)
    return model


def save(path):
    return tiny_cogvideox.save(autoencoder().state_dict(), path, asdict(tiny_cogvideox.VAE))


def clip(frames, height=32, width=40, seed=5):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def latents(count=3, height=4, width=5, batch=1):
    return torch.randn(batch, 16, count, height, width, generator=torch.Generator().manual_seed(6))


def pixels(images):
    """IMAGE (T, H, W, 3) in [0, 1] -> (1, 3, T, H, W) in [-1, 1]."""
    return images.movedim(-1, 0)[None] * 2 - 1


def images(frames):
    """(B, 3, T, H, W) in [-1, 1] -> (B, T, H, W, 3) in [0, 1]."""
    return (frames / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def apart(a, b):
    """Relative L2 distance."""
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def sat_file(folder):
    from sanacog.cogvideo_core.checkpoint import autoencoder_from_canonical

    tensors = autoencoder_from_canonical(autoencoder().state_dict(), "sat")
    assert any("decoder.up.3.block.0" in key for key in tensors)
    torch.save({"state_dict": tensors | {"loss.logvar": torch.zeros(1)}}, folder / "3d-vae.pt")
    (folder / "config.json").write_text(json.dumps(asdict(tiny_cogvideox.VAE)))
    return folder / "3d-vae.pt"


def pipeline(folder):
    (folder / "vae").mkdir()
    (folder / "model_index.json").write_text("{}")
    save(folder / "vae" / "diffusion_pytorch_model.safetensors")
    return folder


# The numbers

@pytest.mark.parametrize("layout", ["diffusers", "sat", "pipeline"])
@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_same_numbers(host, path, core, theirs, tmp_path, frames, layout):
    vae = host.vae.load_cogvideox_vae({"diffusers": lambda: path, "sat": lambda: sat_file(tmp_path),
                                       "pipeline": lambda: pipeline(tmp_path)}[layout](), "chunks")
    video = clip(frames)
    z = vae.encode(video)
    assert core.decode(z).abs().quantile(0.95) < 1
    assert z.shape == (1, 16, (frames + 3) // 4, 4, 5)
    assert apart(z, core.encode(pixels(video))) < 1e-5
    assert apart(z, theirs.encode(pixels(video)).latent_dist.mean) < 1e-5
    out = vae.decode(z)
    # Of two latents diffusers makes eight frames, three of them before the first of the clip.
    assert out.shape == (1, frames, 32, 40, 3)
    assert apart(out, images(core.decode(z))[:, -frames:]) < 1e-5
    assert apart(out, images(theirs.decode(z).sample)[:, -frames:]) < 1e-5


def test_stock_nodes(host, vae, core):
    z = host.nodes.VAEEncode().encode(vae, clip(9))[0]["samples"]
    assert torch.equal(z, vae.encode(clip(9)))
    out = host.nodes.VAEDecode().decode(vae, {"samples": z})[0]
    assert out.shape == (9, 32, 40, 3)
    assert apart(out[None], images(core.decode(z))) < 1e-5


def test_batches_are_clip_by_clip(host, vae):
    z = latents(batch=2)
    out = host.nodes.VAEDecode().decode(vae, {"samples": z})[0]
    each = [vae.decode(z[i : i + 1])[0] for i in range(2)]
    assert apart(out, torch.cat(each)) < 1e-5
    tiles = host.nodes.VAEDecodeTiled().decode(vae, {"samples": z}, tile_size=32, overlap=8)[0]
    assert apart(tiles, torch.cat([vae.decode_tiled(z[i : i + 1], 4, 4, 1)[0] for i in range(2)])) < 1e-5


def test_even_counts_keep_length_and_time(vae, core):
    """13 frames become 4 latents: as many come back, in the places that the reference's last 13 of 16 have."""
    z = vae.encode(clip(13))
    assert z.shape[2] == 4
    out, tiles = vae.decode(z), vae.decode_tiled(z, tile_x=64, tile_y=64, overlap=8)
    assert out.shape[1] == 13 == vae.upscale_ratio[0](4)
    assert apart(out, images(core.decode(z))[:, 3:]) < 1e-5
    assert apart(tiles, out) < 1e-6


# Tiles

@pytest.mark.parametrize("count", [1, 3, 5])
def test_tiled_nodes_equal_diffusers(host, vae, theirs, count):
    theirs.enable_tiling(32, 32, 0.25, 0.25)
    z = latents(count, 6, 7)
    out = host.nodes.VAEDecodeTiled().decode(vae, {"samples": z}, tile_size=32, overlap=8, temporal_size=8,
                                             temporal_overlap=4)[0]
    assert out.shape == (4 * count - 3, 48, 56, 3)
    assert apart(out[None], images(theirs.decode(z).sample)) < 1e-5
    video = clip(4 * count - 3, 48, 56)
    again = host.nodes.VAEEncodeTiled().encode(vae, video, tile_size=32, overlap=8, temporal_size=8,
                                               temporal_overlap=4)[0]["samples"]
    assert again.shape == (1, 16, count, 6, 7)
    assert apart(again, theirs.encode(pixels(video)).latent_dist.mean) < 1e-5


def test_sides_that_fit_are_not_cut(vae):
    z = latents(3, 4, 7)
    one = vae.decode_tiled(z[..., :4], tile_x=4, tile_y=4, overlap=1)
    assert torch.equal(one, vae.decode(z[..., :4]))
    # Columns are cut, rows are not: the first tile's own columns are those of the tile decoded alone.
    row = vae.decode_tiled(z, tile_x=4, tile_y=4, overlap=1)
    assert apart(row[..., :24, :], vae.decode(z[..., :4])[..., :24, :]) < 1e-6


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_out_of_memory_falls_to_tiles(host, vae, theirs, monkeypatch, way):
    model, tried = vae.first_stage_model, []
    real = getattr(model, way)

    def once(x, tiles=None):
        tried.append(tiles)
        if tiles is None:
            raise host.mm.OOM_EXCEPTION("forced")
        return real(x, tiles)

    monkeypatch.setattr(model, way, once)
    if way == "decode":
        monkeypatch.setattr(vae, "spacial_compression_decode", lambda: 64)  # tiles of 256 / 64 latents, to be quick
        theirs.enable_tiling(32, 32, 0.25, 0.25)
        assert apart(vae.decode(latents(3, 6, 7)), images(theirs.decode(latents(3, 6, 7)).sample)) < 1e-5
    else:
        theirs.enable_tiling(256, 256, 0.25, 0.25)
        video = clip(5, 33 * 8, 34 * 8)
        assert apart(vae.encode(video), theirs.encode(pixels(video)).latent_dist.mean) < 1e-5
    assert tried[0] is None and tried[1] is not None


@pytest.fixture
def small_tiles(host, monkeypatch):
    """The tiles of 30 x 45 latents that are taken where nothing else is said, made smaller."""
    whole = host.vae.Tiles
    monkeypatch.setattr(host.vae, "Tiles", lambda *sizes: whole(*(sizes or (4, 5, 1, 1))))
    return whole(4, 5, 1, 1)


def test_frames_too_large_for_the_device_are_tiled(host, vae, small_tiles, monkeypatch, caplog):
    z, video = latents(3, 6, 7), clip(9, 48, 56)
    params = tiny_cogvideox.VAE
    for needed, way, argument in ((host.vae.decode_bytes(params, z.shape, 4), "decod", z),
                                  (host.vae.encode_bytes(params, (1, 3, 9, 48, 56), 4), "encod", video)):
        monkeypatch.setattr(host.mm, "get_total_memory", lambda device: needed - 1)
        out = getattr(vae, f"{way}e")(argument)
        assert f"{way}ing them in tiles" in caplog.text
        assert torch.equal(out, getattr(vae, f"{way}e_in_tiles")(argument, small_tiles))


# Clips as they come

@pytest.mark.parametrize("frames, kept", [(2, 1), (8, 5), (12, 9)])
def test_other_lengths_are_cropped(host, vae, caplog, frames, kept):
    with caplog.at_level(logging.INFO):
        z = vae.encode(clip(frames))
    assert f"the last {frames - kept} of {frames} are left out" in caplog.text
    assert torch.equal(z, vae.encode(clip(frames)[:kept]))
    caplog.clear()
    tiles = vae.encode_tiled(clip(frames), tile_x=32, tile_y=32, overlap=8)
    assert torch.equal(tiles, vae.encode_tiled(clip(frames)[:kept], tile_x=32, tile_y=32, overlap=8))


def test_a_picture_is_one_latent(vae):
    assert vae.encode(clip(1)).shape == (1, 16, 1, 4, 5)


def test_odd_sides_and_transparency(vae):
    video = torch.cat([clip(5, 35, 46), torch.rand(5, 35, 46, 1)], dim=-1)
    wanted = vae.encode(video[:, 1:33, 3:43, :3])
    assert torch.equal(vae.encode(video), wanted)
    assert torch.equal(vae.encode_tiled(video, tile_x=64, tile_y=64, overlap=8), wanted)


# What the host asks of a VAE

def test_ratios(vae):
    assert [vae.downscale_ratio[0](n) for n in (1, 4, 5, 9, 49)] == [1, 1, 2, 3, 13]
    assert [vae.upscale_ratio[0](n) for n in (0, 1, 2, 3, 13)] == [0, 1, 5, 9, 49]
    assert vae.spacial_compression_encode() == vae.spacial_compression_decode() == 8
    assert vae.temporal_compression_decode() == 4
    assert (vae.latent_channels, vae.latent_dim, vae.output_channels) == (16, 3, 3)


def test_process_output_is_in_place_and_returned(vae):
    frames = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert vae.process_output(frames) is frames and frames.tolist() == [0, 0, 0.5, 1, 1]


def test_saved_file_loads_again(host, vae, tmp_path):
    """The number of norm groups is in no tensor: it has to survive."""
    for prefix in ("", "vae."):
        file = tmp_path / f"saved{prefix}safetensors"
        state_dict = {prefix + key: t for key, t in vae.get_sd().items()}
        host.comfy.utils.save_torch_file(state_dict, str(file), metadata={})
        again = host.vae.load_cogvideox_vae(file)
        assert again.first_stage_model.params == vae.first_stage_model.params
        assert torch.equal(again.decode(latents()), vae.decode(latents()))


def test_released_files_get_nothing_added(host, tmp_path):
    from sanacog.cogvideo_core.autoencoder import CogVideoVAE
    from sanacog.cogvideo_core.config import CogVideoVAEParams

    params = CogVideoVAEParams(block_out_channels=(32,) * 4, layers_per_block=1)
    path = tiny_cogvideox.save(tiny.randomise(CogVideoVAE(params)).state_dict(), tmp_path / "a.safetensors", {})
    with safe_open(path, "pt") as file:
        assert host.vae.load_cogvideox_vae(path).get_sd().keys() == set(file.keys())


def test_patcher_can_be_made_again(vae):
    function, arguments = vae.patcher.cached_patcher_init
    again = function(*arguments, disable_dynamic=True)
    old, new = vae.patcher.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize("asked, expected", [((8, 12), (8, 12)), ((128, 96), (30, 45)), ((None, None), (30, 45))])
def test_tiles_after_memory_ran_out_are_no_larger_than_ours(vae, monkeypatch, asked, expected):
    """Newer hosts ask for nearly the whole frame, by their estimate of what has just failed."""
    seen, z = [], latents()
    monkeypatch.setattr(vae, "_decode", lambda samples, tiles: seen.append(tiles) or samples)
    wide = z.expand(*z.shape[:3], -1, -1).repeat(1, 1, 1, 200 // z.shape[3] + 1, 200 // z.shape[4] + 1)
    vae.decode_tiled_3d(wide, tile_t=9999, tile_x=asked[1], tile_y=asked[0], overlap=(1, 4, 4))
    assert (seen[0].height, seen[0].width) == expected


def test_what_newer_nodes_hand_on_says_nothing(vae):
    clip = torch.rand(5, 32, 32, 3)
    assert torch.equal(vae.encode(clip, not_video=False), vae.encode(clip))


def test_lazily_loaded_weights(host, path, core, monkeypatch):
    """Newer hosts make layers without weights and assign the file's tensors: nothing may look at a weight before."""
    memory = pytest.importorskip("comfy.memory_management")
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this host has no dynamic VRAM")
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    monkeypatch.setattr(host.mm, "WINDOWS", True, raising=False)  # elsewhere some hosts allocate
    vae = host.vae.load_cogvideox_vae(path)
    assert apart(vae.decode(latents()), images(core.decode(latents()))) < 1e-5


@pytest.fixture
def bar(host):
    seen = []
    host.comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    yield seen
    host.comfy.utils.set_progress_bar_global_hook(None)


def test_progress_over_chunks_and_tiles(vae, bar):
    vae.decode(latents(5))  # 3 + 2 latents
    assert bar == [(1, 2), (2, 2)]
    vae.decode_tiled(latents(5, 6, 7), tile_x=4, tile_y=4, overlap=1)  # 2 x 3 tiles
    assert bar[-1] == (12, 12)
    vae.encode(clip(17))  # 9 + 8 frames
    assert bar[-1] == (2, 2)


def test_interrupt(host, vae, core):
    calls = []
    hook = vae.first_stage_model.decoder.register_forward_hook(
        lambda *_: (calls.append(1), host.mm.interrupt_current_processing()))
    with pytest.raises(host.mm.InterruptProcessingException):
        vae.decode(latents(9))
    assert len(calls) == 1
    hook.remove()
    assert apart(vae.decode(latents()), images(core.decode(latents()))) < 1e-5


# CogVideoX Decode

def test_decode_node(host, vae):
    decode, tiles = host.vae.decode_frames, host.vae.Tiles
    z = latents(3, 7, 6)
    assert torch.equal(decode(vae, z, 0, 0), vae.decode(z)[0])
    assert torch.equal(decode(vae, z, 40, 48), vae.decode_in_tiles(z, tiles(6, 5, 1, 1))[0])
    assert torch.equal(decode(vae, z, 0, 48), vae.decode_in_tiles(z, tiles(6, 6, 1, 0))[0])
    assert torch.equal(decode(vae, z, 40, 0), vae.decode_in_tiles(z, tiles(7, 5, 0, 1))[0])
    two = latents(3, batch=2)
    assert torch.equal(decode(vae, two, 360, 240), vae.decode_tiled(two).flatten(0, 1))
    for width, height, name in ((-8, 0, "tile_width"), (0, 20, "tile_height")):
        with pytest.raises(ValueError, match=f"{name}.*multiple of 8"):
            decode(vae, z, width, height)
    with pytest.raises(ValueError, match="Load CogVideoX VAE"):
        decode(host.comfy.sd.VAE(sd={}), z, 0, 0)


# What is refused, and how

@pytest.mark.parametrize("z, message", [
    (torch.zeros(1, 4, 3, 8, 8), "of another model: it is 1 x 4 x 3 x 8 x 8"),
    (torch.zeros(1, 16, 8, 8), "of another model"),
    (torch.zeros(1, 16, 0, 8, 8), "empty"),
    (torch.zeros(0, 16, 3, 8, 8), "empty"),
    (torch.full((1, 16, 3, 2, 2), float("nan")), "NaN"),
])
def test_wrong_latents(vae, z, message):
    for decode in (vae.decode, vae.decode_tiled):
        with pytest.raises(ValueError, match=message):
            decode(z)


@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (1, 4, 32, 3), (1, 32, 32, 1), (32, 32, 3)])
def test_wrong_clips(vae, shape):
    for encode in (vae.encode, vae.encode_tiled):
        with pytest.raises(ValueError, match="cannot be encoded"):
            encode(torch.zeros(shape))


def test_what_cannot_fit_is_refused_before_it_is_tried(host, vae, monkeypatch):
    def never(*_, **__):
        raise AssertionError("this was tried")

    monkeypatch.setattr(host.mm, "get_total_memory", lambda device: 6 * 2**30)
    monkeypatch.setattr(host.mm, "load_models_gpu", never)
    z, video = torch.zeros(1, 1, 1, 1, 1).expand(1, 16, 501, 60, 90), torch.zeros(1, 1, 1, 1).expand(2001, 480, 720, 3)
    for decode in (vae.decode, vae.decode_tiled):
        with pytest.raises(ValueError, match="Decoding 2001 frames of 720 x 480 px needs at least 8.*has 6.0 GiB"):
            decode(z)
    for encode in (vae.encode, vae.encode_tiled):
        with pytest.raises(ValueError, match="Encoding 2001 frames of 720 x 480 px.*fewer or smaller"):
            encode(video)


def test_wrong_files(host, path, tmp_path):
    for file, name in ((tiny.save_dcae(tmp_path / "dcae.safetensors"), "DC-AE"),
                       (tiny_cogvideox.save_t5(tmp_path / "t5.safetensors"), "T5 text encoder"),
                       (tiny_cogvideox.save_transformer(tmp_path / "dit.safetensors"), "Load CogVideoX Model")):
        with pytest.raises(ValueError, match=f"{file.name}: .*{name}"):
            host.vae.load_cogvideox_vae(file)
    tensors = autoencoder().state_dict()
    key = "decoder.mid_block.resnets.0.conv1.conv.weight"
    for changes, message in (({key: None}, f"missing {key}"), ({"extra.weight": torch.zeros(2)}, "unexpected extra.weight"),
                             ({key: torch.zeros(3, 3)}, f"another shape {key}")):
        bad = {k: t for k, t in (tensors | changes).items() if t is not None}
        file = tiny_cogvideox.save(bad, tmp_path / "bad.safetensors", asdict(tiny_cogvideox.VAE))
        with pytest.raises(ValueError, match=f"bad.safetensors: not a whole.*{message}"):
            host.vae.load_cogvideox_vae(file)
