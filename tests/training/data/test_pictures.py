"""Pictures: what is found in files of every kind."""

import random

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, features

from sanacog.training.data import media
from sanacog.training.data.facts import Unreadable

from . import corpus
from .corpus import noise


def test_exif_orientation(tmp_path):
    content = np.zeros((40, 60, 3), np.uint8)
    content[:10] = 255
    for orientation, side in {1: np.s_[:8], 3: np.s_[-8:], 6: np.s_[:, -8:], 8: np.s_[:, :8]}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = corpus.picture(tmp_path / f"{orientation}.png", content, exif=exif)
        read, facts = media.read_picture(path), media.probe(path)
        assert read[side].min() == 255 and read.mean() < 80
        assert (facts.height, facts.width) == read.shape[:2] and facts.rotation == {1: 0, 3: 180, 6: -90, 8: 90}[orientation]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 0x4321, np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(np.full((4, 4), 0x4321, np.uint16)).save(tmp_path / "16.tif")
    for name in ("16.png", "16.tif"):
        assert np.unique(media.read_picture(tmp_path / name)).tolist() == [67]
        assert media.probe(tmp_path / name).bits == 16


def test_transparency_over_white(tmp_path):
    content = np.zeros((4, 4, 4), np.uint8)
    content[..., 3] = [0, 51, 255, 255]
    Image.fromarray(content).save(tmp_path / "a.png")
    assert media.read_picture(tmp_path / "a.png")[0, :, 0].tolist() == [255, 204, 0, 0]
    assert media.probe(tmp_path / "a.png").alpha
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([9, 9, 9, 70, 70, 70])
    palette.save(tmp_path / "p.png", transparency=0)
    assert media.read_picture(tmp_path / "p.png")[0, :, 0].tolist() == [255, 70]
    content[..., 3] = 255
    Image.fromarray(content).save(tmp_path / "opaque.png")
    assert not media.probe(tmp_path / "opaque.png").alpha


def test_cmyk_and_profiles(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red = media.read_picture(tmp_path / "red.jpg").reshape(-1, 3).astype(int)
    assert red[:, 0].min() > 240 and red[:, 1:].max() < 15
    # sRGB's own profile changes nothing; one of another name in which red and blue have changed places does.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    corpus.picture(tmp_path / "s.png", np.full((4, 4, 3), (200, 30, 20), np.uint8), icc_profile=srgb)
    assert media.read_picture(tmp_path / "s.png")[0, 0].tolist() == [200, 30, 20]
    other = srgb.replace("sRGB".encode("utf-16-be"), "abcd".encode("utf-16-be")).replace(b"sRGB", b"abcd")
    for old, new in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        other = other[:128] + other[128:].replace(old, new, 1)
    corpus.picture(tmp_path / "o.png", np.full((4, 4, 3), (200, 30, 20), np.uint8), icc_profile=other)
    assert np.abs(media.read_picture(tmp_path / "o.png")[0, 0].astype(int) - [20, 30, 200]).max() <= 2


@pytest.mark.parametrize("make, reason", [
    (lambda path: path.write_bytes(b""), "file.empty"),
    (lambda path: path.write_text("<html>"), "file.unreadable"),
    (lambda path: corpus.cut(corpus.picture(path, noise(90, 90))), "file.truncated"),
])
def test_files_that_are_no_pictures(tmp_path, make, reason):
    for name in ("x.png", "x.jpg"):
        make(tmp_path / name)
        with pytest.raises(Unreadable) as error:
            media.probe(tmp_path / name)
        assert error.value.reason == reason


@pytest.mark.parametrize("name, codec", [("a.png", None), ("a.jpg", None), ("a.tif", None), ("a.avif", None), ("a.mp4", "libx264"),
                                         ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_any_damage_is_unreadable_or_read(tmp_path, name, codec):
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow does not know AVIF")
    path, dice = tmp_path / name, random.Random(0)
    if codec:
        corpus.clip(path, list(noise(9, 32, 48)), codec=codec)
    else:
        corpus.picture(path, noise(40, 60))
    whole, kind, read = path.read_bytes(), "video" if codec else "image", 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(dice.choice([1, 3, 20])):
            content[dice.randrange(min(len(content), dice.choice([100, 400, 10**6])))] = dice.randrange(256)
        content = bytes(content[: dice.randrange(len(content))] if dice.random() < 0.3 else content)
        try:
            facts = media.probe(content, kind)
            if codec:
                assert sum(1 for _ in media.read_frames(content, range(facts.frames))) == facts.frames
            read += 1
        except Unreadable as error:
            assert error.reason in ("file.unreadable", "file.truncated", "file.empty")
    assert read < 60 and (read or name == "a.png")  # PNG has checksums


def test_a_title_in_other_letters_is_no_damage(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE CAFE"
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = 64, 96
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(corpus.grey(0), format="rgb24")), *stream.encode()]:
            container.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"TITLE CAFE", b"TITLE CAF\xe9"))
    assert (media.probe(path).frames, media.probe(path).damage) == (1, "")
