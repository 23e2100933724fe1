"""DC-AE in tiles in the real host: the stock tiled nodes, memory that runs out, Sana Decode and Sana Encode."""

import pytest
import torch

from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams
from sanacog.sana_core.tiles import Tiles

from .. import tiny
from ..alive import peak
from .sana_model import apart, host, noise, vae, weights  # noqa: F401


@pytest.fixture(scope="module")
def core():
    return tiny.dcae()


@pytest.fixture(scope="module")
def stock(host):
    import nodes

    return nodes


def latent(height, width, batch=1):
    return noise(batch, height, width) * 0.1


def picture(height, width, batch=1):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(5))


def decoded(core, z, tiles):
    return ((core.decode(z, tiles) + 1) / 2).clamp(0, 1).movedim(1, -1)


def encoded(core, images, tiles):
    return core.encode(images.movedim(-1, 1) * 2 - 1, tiles)


@pytest.fixture
def blended(monkeypatch):
    """As if no picture fitted in pieces that equal the whole."""
    monkeypatch.setattr("sanacog.host.sana.vae.exact_bytes", lambda *_: 2**60)


@pytest.mark.parametrize("height, width", [(7, 9), (4, 4), (3, 12)])
def test_stock_tiled_nodes_give_the_whole(vae, core, stock, height, width):
    z, images = latent(height, width, batch=2), picture(32 * height, 32 * width, batch=2)
    out = stock.VAEDecodeTiled().decode(vae, {"samples": z}, tile_size=128, overlap=32)[0]
    assert apart(out, vae.decode(z)) < 1e-5
    again = stock.VAEEncodeTiled().encode(vae, images, tile_size=128, overlap=64)[0]["samples"]
    assert apart(again, vae.encode(images)) < 1e-5


def test_stock_tiled_nodes(vae, core, stock, blended, caplog):
    z, images = latent(7, 9, batch=2), picture(224, 288, batch=2)
    out = stock.VAEDecodeTiled().decode(vae, {"samples": z}, tile_size=128, overlap=32)[0]
    assert out.shape == (2, 224, 288, 3)
    assert apart(out, decoded(core, z, Tiles(4, 4, 1))) < 1e-5
    again = stock.VAEEncodeTiled().encode(vae, images, tile_size=128, overlap=64)[0]["samples"]
    assert again.shape == (2, 32, 7, 9)
    assert apart(again, encoded(core, images, Tiles(4, 4, 2))) < 1e-5
    assert "does not fit even in pieces that equal the whole" in caplog.text
    # In one piece it is something else: these are tiles indeed.
    assert apart(out, vae.decode(z)) > 1e-4 and apart(again, vae.encode(images)) > 1e-4


def test_stock_nodes_with_what_their_widgets_allow(vae, core, stock, blended):
    """An overlap larger than the tile, a tile of two latents."""
    images = picture(96, 160)
    again = stock.VAEEncodeTiled().encode(vae, images, tile_size=64, overlap=4096)[0]["samples"]
    assert apart(again, encoded(core, images, Tiles(2, 2, 1))) < 1e-5
    z = latent(3, 5)
    out = stock.VAEDecodeTiled().decode(vae, {"samples": z}, tile_size=64, overlap=64)[0]
    assert apart(out, decoded(core, z, Tiles(2, 2, 0))) < 1e-5


@pytest.fixture
def runs_out(host, vae, monkeypatch):
    """The device has no memory for anything larger than a tile of 1024 px."""
    import comfy.model_management as mm

    model, seen = vae.first_stage_model, []
    for way, limit in (("decode", 32), ("encode", 1024)):
        def once(x, real=getattr(model, way), limit=limit):
            seen.append(tuple(x.shape[2:]))
            if max(x.shape[2:]) > limit:
                raise mm.OOM_EXCEPTION("forced")
            return real(x)

        monkeypatch.setattr(model, way, once)
    return seen


def test_out_of_memory_falls_to_pieces_that_equal_the_whole(vae, core, runs_out, caplog):
    z, images = latent(3, 40), picture(96, 1280)
    assert apart(vae.decode(z), decoded(core, z, None)) < 1e-5
    assert apart(vae.encode(images), encoded(core, images, None)) < 1e-5
    assert runs_out == [(3, 40), (96, 1280)]
    assert "decoding, retrying with tiled" in caplog.text and "encoding, retrying with tiled" in caplog.text


def test_out_of_memory_falls_to_tiles_of_1024(vae, core, runs_out, blended, caplog):
    z, images = latent(3, 40), picture(96, 1280)
    assert apart(vae.decode(z), decoded(core, z, Tiles())) < 1e-5
    assert apart(vae.encode(images), encoded(core, images, Tiles())) < 1e-5
    assert runs_out == [(3, 40), (3, 32), (3, 32), (96, 1280), (96, 1024), (96, 1024)]
    assert "decoding, retrying with tiled" in caplog.text and "encoding, retrying with tiled" in caplog.text


@pytest.mark.parametrize("lack", ["free memory of the CPU", "all memory of a GPU"])
def test_what_cannot_fit_is_tiled_at_once(vae, core, runs_out, monkeypatch, caplog, lack):
    """Without being tried in one piece: on a CPU nothing says that memory ran out."""
    import comfy.model_management as mm

    z, images = latent(3, 40), picture(96, 1280)
    for needed, call, wanted in (
            (vae.memory_used_decode(z.shape, torch.float32), lambda: vae.decode(z), decoded(core, z, None)),
            (vae.memory_used_encode((1, 3, 96, 1280), torch.float32), lambda: vae.encode(images),
             encoded(core, images, None))):
        monkeypatch.setattr("sanacog.host.sana.vae.exact_bytes", lambda *_: needed - 1)
        if "GPU" in lack:
            monkeypatch.setattr("sanacog.host.memory.mm.is_device_cpu", lambda device: False)
            monkeypatch.setattr("sanacog.host.sana.vae.check_fits", lambda *_: None)
            monkeypatch.setattr(mm, "get_total_memory", lambda device: needed - 1)
        else:
            monkeypatch.setattr(mm, "get_free_memory", lambda *_, **__: needed - 1)
        assert apart(call(), wanted) < 1e-5
    assert not runs_out
    assert "does not fit at once: decoding it in tiles" in caplog.text and "encoding it in tiles" in caplog.text


@pytest.mark.parametrize("pixels", [1024, 2048])
def test_memory_that_the_host_is_told(vae, host, pixels):
    """Against the tensors alive in the released autoencoder, and its tiles, whatever the picture."""
    real = AutoencoderDC(DCAEParams(), device="meta", dtype=torch.bfloat16).eval()
    told = host.vae.picture_bytes(128, pixels**2, 2, False)
    z = torch.empty(1, 32, pixels // 32, pixels // 32, device="meta", dtype=torch.bfloat16)
    x = torch.empty(1, 3, pixels, pixels, device="meta", dtype=torch.bfloat16)
    assert 0.8 < peak(real.decode, z) / told < 1 and 0.8 < peak(real.encode, x) / told < 1
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4)):
        told = host.vae.picture_bytes(8, 128 * 192, size, True)
        assert vae.memory_used_decode((5, 32, 4, 6), dtype) == vae.memory_used_encode((5, 3, 128, 192), dtype) == told
    assert vae.memory_used_decode((0, 32, 0, 6), torch.bfloat16) == 1  # hosts divide by it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pixels", [1024, 4096])
def test_memory_of_pieces_that_equal_the_whole(host, pixels, dtype):
    """Against the tensors alive in the released autoencoder: 4096 px in bf16 take 1.5 GiB, where the whole takes 14."""
    real = AutoencoderDC(DCAEParams(), device="meta", dtype=dtype).eval()
    z = torch.empty(1, 32, pixels // 32, pixels // 32, device="meta", dtype=dtype)
    x = torch.empty(1, 3, pixels, pixels, device="meta", dtype=dtype)
    for side, call, given, out in (("decoder", real.decode_exactly, z, x), ("encoder", real.encode_exactly, x, z)):
        told = host.vae.exact_bytes(real.params, side, pixels, pixels, dtype.itemsize, False)
        assert 0.7 < peak(call, given, out.float()) / told < 1, side
        assert told < 2 * 2**30 * dtype.itemsize // 2


def test_memory_of_tiles_does_not_grow_with_the_picture():
    real = AutoencoderDC(DCAEParams(), device="meta", dtype=torch.bfloat16).eval()
    tiles, found = Tiles(), []
    for side in (40, 128):
        z = torch.empty(1, 32, side, side, device="meta", dtype=torch.bfloat16)
        found.append(peak(real.decode, z, tiles) - 3 * (32 * side) ** 2 * 4)
    assert found[1] < 1.01 * found[0] < 1e9  # of 1280 px and of 4096 px, beside the picture itself


def test_room_is_made_for_pieces(vae, host, monkeypatch):
    import comfy.model_management as mm

    asked, real = [], mm.load_models_gpu
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, memory_required=0, **kw: (
        asked.append(memory_required), real(models, memory_required=memory_required, **kw)))
    vae.decode_tiled(latent(3, 9), tile_x=4, tile_y=4, overlap=1)
    vae.encode_tiled(picture(96, 288), tile_x=128, tile_y=128, overlap=32)
    told = [host.vae.exact_bytes(tiny.DCAE, side, 96, 288, 4, True, 128) for side in ("decoder", "encoder")]
    assert asked == told


def test_room_is_made_for_a_tile_only(vae, monkeypatch, blended):
    import comfy.model_management as mm

    asked, real = [], mm.load_models_gpu
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, memory_required=0, **kw: (
        asked.append(memory_required), real(models, memory_required=memory_required, **kw)))
    vae.decode_tiled(latent(3, 9), tile_x=4, tile_y=4, overlap=1)
    vae.encode_tiled(picture(96, 288), tile_x=128, tile_y=128, overlap=32)
    assert asked == [vae.memory_used_decode((1, 32, 3, 4), vae.vae_dtype), vae.memory_used_encode((1, 3, 96, 128), vae.vae_dtype)]


def test_pictures_beyond_the_memory_of_the_machine_are_refused(vae, monkeypatch):
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "get_total_memory", lambda device: 2**20)
    monkeypatch.setattr(mm, "get_free_memory", lambda *_, **__: 2**40)
    for decode in (vae.decode, vae.decode_tiled):
        with pytest.raises(ValueError, match=r"Decoding 3 picture\(s\) of 256 x 192 px"):
            decode(latent(6, 8, batch=3))


@pytest.fixture
def bar(host):
    seen = []
    host.comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    yield seen
    host.comfy.utils.set_progress_bar_global_hook(None)


def test_progress_of_pieces(vae, bar):
    vae.decode_tiled(latent(6, 8, batch=2), tile_x=4, tile_y=4, overlap=1)
    # Of each picture: what comes before the attention, a block with it, and 2 x 2 tiles of 128 px.
    assert bar[-1] == (12, 12) and bar == sorted(set(bar))
    bar.clear()
    vae.encode_tiled(picture(192, 96), tile_x=128, tile_y=128, overlap=32)
    assert bar[-1][0] == bar[-1][1] and bar == sorted(set(bar))


def test_progress(vae, bar, blended):
    hooks = len(vae.first_stage_model.decoder._forward_hooks)
    vae.decode_tiled(latent(6, 8, batch=2), tile_x=4, tile_y=4, overlap=1)  # 2 x 3 tiles
    # Newer hosts leave steps out that come too fast.
    assert (bar[0], bar[-1]) == ((1, 12), (12, 12)) and bar == sorted(set(bar))
    bar.clear()
    vae.encode_tiled(picture(192, 96), tile_x=128, tile_y=128, overlap=32)
    assert bar == [(1, 2), (2, 2)]
    vae.decode(latent(2, 2))
    assert len(bar) == 2 and len(vae.first_stage_model.decoder._forward_hooks) == hooks


def test_interrupt_between_pieces(host, vae, core, monkeypatch):
    import comfy.model_management as mm

    pieces, real = [], host.comfy.utils.ProgressBar.update

    def interrupt(self, value):
        pieces.append(1)
        real(self, value)
        mm.interrupt_current_processing()

    monkeypatch.setattr(host.comfy.utils.ProgressBar, "update", interrupt)
    with pytest.raises(mm.InterruptProcessingException):
        vae.decode_tiled(latent(6, 8), tile_x=4, tile_y=4, overlap=1)
    assert len(pieces) == 1


def test_interrupt_between_tiles(host, vae, core, blended):
    import comfy.model_management as mm

    tiles = []

    def interrupt(*_):
        tiles.append(1)
        mm.interrupt_current_processing()

    hook = vae.first_stage_model.decoder.register_forward_hook(interrupt)
    with pytest.raises(mm.InterruptProcessingException):
        vae.decode_tiled(latent(6, 8), tile_x=4, tile_y=4, overlap=1)
    hook.remove()
    assert len(tiles) == 1
    assert apart(vae.decode(latent(2, 2)), decoded(core, latent(2, 2), None)) < 1e-5


# Sana Decode and Sana Encode

def test_nodes(host, vae):
    decode, encode = host.vae.decode_pictures, host.vae.encode_pictures
    z, images = latent(6, 8), picture(192, 256)
    assert torch.equal(decode(vae, z, 0, 128), vae.decode(z))
    assert torch.equal(decode(vae, z, 128, 64), vae.decode_in_tiles(z, Tiles(4, 4, 2)))
    assert torch.equal(encode(vae, images, 0, 128)["samples"], vae.encode(images))
    assert torch.equal(encode(vae, images, 160, 32)["samples"], vae.encode_in_tiles(images, Tiles(5, 5, 1)))
    for size, overlap, message in ((100, 0, "tile_size is 100.*multiple of 32"), (-32, 0, "tile_size"), (128, 40, "overlap is 40"),
                                   (128, 96, "at most half of tile_size, which is 128")):
        for call, subject in ((decode, z), (encode, images)):
            with pytest.raises(ValueError, match=message):
                call(vae, subject, size, overlap)
    for call, subject in ((decode, z), (encode, images)):
        with pytest.raises(ValueError, match="Load DC-AE"):
            call(host.comfy.sd.VAE(sd={}), subject, 0, 128)
