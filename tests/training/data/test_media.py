"""Pictures and clips: what is found in files of every kind, which frames are taken, and the tensor that comes of it."""

import random
import tarfile
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from sanacog.training.data import contents, media, timing, videos
from sanacog.training.data.buckets import Bucket, cover, place
from sanacog.training.data.facts import Unreadable
from sanacog.training.data.manifest import Row

from . import corpus

UNEVEN = [0, 125, 250, 300, 350, 400, 800, 900, 1000, 1100, 1200, 1500, 1700, 1800, 1900, 2000]  # ms


def numbers(frames):
    return [corpus.number_of(frame) for frame in frames]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)


def row_of(path, kind="video"):
    return media.probe_row(Row(path.name, kind), path.parent)


# --- clips: facts ---


@pytest.mark.parametrize("name, codec, header, stated", [
    ("a.mp4", "libx264", 24, 3.0), ("a.mkv", "libx264", 0, 3.0), ("a.avi", "mpeg4", 24, None), ("a.webm", "libvpx-vp9", 0, 3.0)])
def test_facts_of_a_plain_clip(tmp_path, name, codec, header, stated):
    facts = media.probe(corpus.clip(tmp_path / name, codec=codec))
    assert (facts.kind, facts.width, facts.height, facts.frames, facts.frames_header) == ("video", 96, 64, 24, header)
    assert (facts.fps, facts.duration) == (pytest.approx(8), pytest.approx(3)) and facts.duration_header == stated
    assert facts.times == pytest.approx([n / 8 for n in range(24)])
    assert (facts.rotation, facts.bits, facts.damage) == (0, 8, "")
    assert not (facts.variable or facts.alpha or facts.interlaced or facts.mirrored)
    content = (tmp_path / name).read_bytes()
    assert media.probe(content, "video") == media.probe(content) == facts


def test_facts_of_a_variable_rate(tmp_path):
    facts = media.probe(corpus.clip(tmp_path / "v.mp4", 16, times=UNEVEN))
    assert facts.variable and facts.frames == 16
    assert facts.times == pytest.approx([ms / 1000 for ms in UNEVEN])
    assert (facts.fps, facts.duration) == (pytest.approx(15 / 2), pytest.approx(2.125))
    # Milliseconds of Matroska make 41 and 42 of 24 frames a second: one rate all the same.
    even = media.probe(corpus.clip(tmp_path / "e.mkv", 24, 24))
    assert not even.variable and len({round(b - a, 4) for a, b in zip(even.times, even.times[1:])}) == 2


def test_facts_of_a_wrong_header(tmp_path):
    facts = media.probe(corpus.claims_frames(corpus.clip(tmp_path / "a.avi", codec="mpeg4"), 99))
    assert (facts.frames, facts.frames_header, facts.damage) == (24, 99, "")


@pytest.mark.parametrize("name, codec, options", [
    ("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mkv", "libx264", None), ("a.avi", "mpeg4", None)])
def test_a_clip_cut_short_keeps_its_first_frames(tmp_path, name, codec, options):
    facts = media.probe(corpus.cut(corpus.clip(tmp_path / name, list(noise(24, 64, 96)), codec=codec, options=options)))
    assert 0 < facts.frames < 24 and facts.damage
    row = row_of(tmp_path / name)
    assert (row.status, row.reasons, row.frames) == ("error", ["file.truncated"], facts.frames)


def test_damage_in_the_middle_costs_what_it_hits(tmp_path):
    path = corpus.clip(tmp_path / "a.mp4", list(noise(24, 64, 96)), options={"movflags": "faststart"}, stream_options={"g": "4"})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    facts, whole = media.probe(path), noise(24, 64, 96)
    assert facts.damage and 20 <= facts.frames < 24
    # What is after it keeps its time, and is found by it.
    assert facts.times[-1] == pytest.approx(23 / 8) and facts.times == tuple(sorted(facts.times))
    for time in (5 / 8, 18 / 8, 23 / 8):
        frame = next(media.read_frames(path, times=[time])).astype(int)
        assert np.argmin([np.abs(frame - other).mean() for other in whole]) == time * 8


def test_a_sound_clip_has_no_damage_and_one_frame_has_no_rate(tmp_path):
    facts = media.probe(corpus.clip(tmp_path / "one.mp4", 1))
    assert (facts.frames, facts.fps, facts.variable, facts.damage, facts.times) == (1, None, False, "", (0.0,))
    assert facts.duration == pytest.approx(1 / 8)


def test_odd_sizes_ten_bits_alpha_and_square_pixels(tmp_path):
    facts = media.probe(corpus.clip(tmp_path / "odd.mkv", 2, size=(97, 63), codec="ffv1", pix="bgr0"))
    assert (facts.width, facts.height) == (97, 63)
    assert media.probe(corpus.clip(tmp_path / "ten.mp4", 2, pix="yuv420p10le")).bits == 10
    clear = np.dstack([corpus.grey(9), np.full((64, 96), 51, np.uint8)])
    path = corpus.clip(tmp_path / "clear.mkv", [clear, clear], codec="ffv1", pix="bgra")
    assert media.probe(path).alpha
    # A fifth of 55 over four fifths of 255.
    assert np.unique(np.concatenate(list(media.read_frames(path, [0, 1])))).tolist() == [215]
    wide = media.probe(corpus.clip(tmp_path / "wide.mp4", 2, aspect="3/2"))
    assert (wide.width, wide.height) == (144, 64)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_is_applied(tmp_path, quarters):
    content = np.zeros((64, 96, 3), np.uint8)
    content[:16] = 255  # the top is white
    path = corpus.turned(corpus.clip(tmp_path / "r.mp4", [content] * 3), quarters)
    facts = media.probe(path)
    assert (facts.width, facts.height) == ((64, 96) if quarters % 2 else (96, 64))
    assert facts.rotation % 360 == -90 * quarters % 360
    frame = next(media.read_frames(path, [1]))
    assert frame.shape == (facts.height, facts.width, 3)
    sides = {"right": frame[:, -8:], "bottom": frame[-8:], "left": frame[:, :8]}
    white = [side for side, part in sides.items() if part.min() > 200]
    assert white == [["right"], ["bottom"], ["left"]][quarters - 1]


@pytest.mark.parametrize("make, reason", [
    (lambda path: path.write_bytes(b""), "file.empty"),
    (lambda path: path.write_bytes(b"nonsense" * 999), "file.unreadable"),
    (lambda path: corpus.cut(corpus.clip(path)), "file.unreadable"),  # its index was at the end
    (corpus.sound, "file.no_video"),
    (lambda path: path.write_text("plain words, no video\n" * 50), "file.unreadable"),
])
def test_files_that_are_no_clips(tmp_path, make, reason):
    path = tmp_path / "x.mp4"
    make(path)
    with pytest.raises(Unreadable) as error:
        media.probe(path)
    assert error.value.reason == reason and str(path) in str(error.value)
    row = media.probe_row(Row("x.mp4", "video", reasons=["caption.missing"]), tmp_path)
    assert (row.status, row.reasons) == ("error", ["caption.missing", reason])


def test_colours_by_the_matrix_that_the_file_names_or_its_size_means(tmp_path):
    red = np.full((64, 96, 3), (200, 40, 30), np.uint8)
    large = np.full((720, 1280, 3), (200, 40, 30), np.uint8)
    # Names none, and is of one matrix or the other as its size means; then one that says so.
    for name, content, matrix, named in (("small", red, 5, None), ("large", large, 1, None), ("says", red, 1, 1)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8, options={"qp": "1"})
            stream.height, stream.width = content.shape[:2]
            stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(content, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
            stream.codec_context.colorspace = frame.colorspace = named or 2
            for packet in [*stream.encode(frame), *stream.encode()]:
                container.mux(packet)
        shown = next(media.read_frames(tmp_path / f"{name}.mp4", [0]))
        assert np.abs(shown[20, 20].astype(int) - [200, 40, 30]).max() <= 3, name


def test_interlaced_frames_and_gifs(tmp_path):
    path = corpus.clip(tmp_path / "i.mpg", 4, 25, codec="mpeg2video", stream_options={"flags": "+ildct+ilme"})
    assert media.probe(path).interlaced
    pages = [Image.fromarray(corpus.grey(n)) for n in range(3)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=[100, 200, 100])
    facts = media.probe(tmp_path / "a.gif")
    assert facts.times == pytest.approx((0, 0.1, 0.3)) and facts.duration == pytest.approx(0.4)
    assert numbers(media.read_frames(tmp_path / "a.gif", times=[0, 0.15, 0.29, 0.3])) == [0, 1, 1, 2]


def test_a_playlist_opens_nothing(tmp_path):
    corpus.clip(tmp_path / "real.mp4")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nhttp://127.0.0.1:9/real.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(Unreadable):
        media.probe(tmp_path / "list.mp4")


# --- clips: frames ---


def test_frames_by_number_in_any_order(tmp_path):
    path = corpus.clip(tmp_path / "ü ß.mp4", 24)  # has B frames: they are decoded in another order than shown
    assert numbers(media.read_frames(path, range(24))) == list(range(24))
    assert numbers(media.read_frames(path, [3, 3, 7, 23, 23])) == [3, 3, 7, 23, 23]
    assert numbers(media.read_frames(path, [5, 2, 9, 2])) == [5, 2, 9, 2]
    assert list(media.read_frames(path, [])) == []
    with pytest.raises(IndexError, match="it has 24"):
        list(media.read_frames(path, [24]))


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_seeking_gives_the_frames_that_decoding_from_the_start_gives(tmp_path, name, monkeypatch):
    path = corpus.clip(tmp_path / name, list(noise(120, 32, 48)), 25,
                       stream_options={"g": "20", "bf": "2", "x264-params": "open-gop=1"})
    wanted = [61, 62, 75, 118]
    found = list(media.read_frames(path, wanted))
    with monkeypatch.context() as patch:
        patch.setattr(videos, "SEEK_FROM", 1000)
        whole = list(media.read_frames(path, wanted))
    assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
    with monkeypatch.context() as patch:  # that it does seek: fewer frames are decoded
        count = []
        decoded = videos._decoded
        patch.setattr(videos, "_decoded", lambda *parts: (count.append(1) or item for item in decoded(*parts)))
        list(media.read_frames(path, [101]))
    assert len(count) <= 45


def test_frames_by_time(tmp_path):
    path = corpus.clip(tmp_path / "v.mp4", 16, times=UNEVEN)
    # At 0.29 frame 2 (0.25) is shown, at 0.3 frame 3, at 0.79 still frame 5 (0.4), after the end the last one.
    assert numbers(media.read_frames(path, times=[0, 0.29, 0.3, 0.79, 0.8, 9])) == [0, 2, 3, 5, 6, 15]


def test_a_start_below_zero_is_the_start(tmp_path):
    path = corpus.clip(tmp_path / "late.mkv", 8, offset=40)
    facts = media.probe(path)
    assert facts.times == pytest.approx([n / 8 for n in range(8)]) and (facts.duration, facts.damage) == (pytest.approx(1), "")
    assert numbers(media.read_frames(path, times=[0.25])) == [2]


def test_pictures_of_a_clip(tmp_path):
    path = corpus.clip(tmp_path / "a.mp4", 24, aspect="3/2")
    found = list(media.pictures_of(path, 0.75))
    assert [time for time, _ in found] == [0, 0.75, 1.5, 2.25]
    assert numbers(frame for _, frame in found) == [0, 6, 12, 18]
    assert found[0][1].shape == (64, 144, 3)
    with pytest.raises(ValueError, match="above 0"):
        next(media.pictures_of(path, 0))


def test_resampling_by_time_stamps():
    times = [ms / 1000 for ms in UNEVEN]
    # Instants 0, 0.25, 0.5 ... 2.0, by hand.
    assert timing.at_rate(times, 2.125, 4) == [0, 2, 5, 5, 8, 10, 11, 12, 15]
    # 30 to 8 frames a second: instants at 0, 3.75, 7.5, 11.25 ... frames.
    assert timing.at_rate([n / 30 for n in range(30)], 1.0, 8) == [0, 3, 7, 11, 15, 18, 22, 26]
    # Milliseconds must not make a frame of the same rate come twice.
    rounded = [round(n / 24, 3) for n in range(48)]
    assert timing.at_rate(rounded, 2.0, 24) == list(range(48))
    # Slower to faster: each is shown until the next begins.
    assert timing.at_rate([0, 0.25], 0.5, 8) == [0, 0, 1, 1]
    # 24 frames a second for six seconds and one frame: 49 instants at 8, the last at 6.0.
    assert timing.available(145, 145 / 24, 8) == 49 and timing.available(144, 6.0, 8) == 48
    assert timing.available(7, None, 8) == timing.available(7, 3.0, None) == 7


def test_windows():
    assert timing.samples(10, 4) == [[0, 1, 2, 3]]
    assert timing.samples(10, 4, "slide") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert timing.samples(10, 4, "uniform") == [[0, 3, 6, 9]]
    assert timing.samples(4, 4, "uniform") == [[0, 1, 2, 3]]
    assert timing.samples(10, 1, "uniform") == [[0]]
    assert timing.samples(3, 4) == timing.samples(3, 4, "slide") == []
    assert timing.samples(3, 5, "slide", pad_last=True) == [[0, 1, 2, 2, 2]] and timing.samples(0, 5, pad_last=True) == []
    with pytest.raises(ValueError, match="head, uniform, slide"):
        timing.samples(9, 4, "tail")
    assert timing.frames_that_fit(48, range(9, 50, 8)) == 41 and timing.frames_that_fit(8, [9, 17]) is None


# --- pictures ---


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


# --- rows to tensors ---


def test_a_circle_stays_a_circle_and_its_middle_is_kept(tmp_path):
    corpus.picture(tmp_path / "c.png", corpus.circle(300, 120, 40, 149.5, 59.5))
    row = row_of(tmp_path / "c.png", "image")
    placed = place(row, [Bucket(1, 64, 96)])
    assert placed.resize == (64, 160) and (placed.top, placed.left) == (0, 32)
    drawn = media.load(row, placed, tmp_path)
    assert drawn.shape == (3, 1, 64, 96) and drawn.dtype == torch.float32 and drawn.min() >= -1 and drawn.max() <= 1
    white = (drawn[0, 0] > 0).float()
    rows, columns = white.sum(0).max(), white.sum(1).max()
    assert abs(float(rows - columns)) <= 1 and abs(float(rows) - 80 * 64 / 120) <= 1
    centre = (white.nonzero().float().mean(0) + 0.5).tolist()
    assert centre == pytest.approx([32, 48], abs=0.3)


def test_pixels_that_are_not_square_are_shown_square(tmp_path):
    # Stored 96 wide, shown 144 wide: a disc is stored as an ellipse.
    disc = np.asarray(Image.fromarray(corpus.circle(144, 64, 24, 71.5, 31.5)).resize((96, 64), Image.Resampling.BICUBIC))
    path = corpus.clip(tmp_path / "w.mp4", [disc] * 9, aspect="3/2", stream_options={"qp": "0"}, pix="yuv444p")
    row = row_of(path)
    assert (row.width, row.height) == (144, 64)
    drawn = media.load(row, place(row, [Bucket(9, 64, 64)]), tmp_path)
    white = (drawn[0, 4] > 0).float()
    assert abs(float(white.sum(0).max() - white.sum(1).max())) <= 1 and abs(float(white.sum(0).max()) - 48) <= 1


def test_nothing_is_changed_where_nothing_has_to_be(tmp_path):
    content = noise(64, 96)
    corpus.picture(tmp_path / "n.png", content)
    row = row_of(tmp_path / "n.png", "image")
    drawn = media.load(row, place(row, [Bucket(1, 64, 96)]), tmp_path)
    assert torch.equal(drawn[:, 0], torch.from_numpy(content).permute(2, 0, 1) / 127.5 - 1)


def test_scaling_is_pillows(tmp_path):
    content = noise(90, 130)
    corpus.picture(tmp_path / "n.png", content)
    row = row_of(tmp_path / "n.png", "image")
    placed = cover(90, 130, Bucket(1, 32, 32))
    drawn = (media.load(row, placed, tmp_path)[:, 0] + 1) * 127.5
    height, width = placed.resize
    expected = np.asarray(Image.fromarray(content).resize((width, height), Image.Resampling.BICUBIC))
    expected = expected[placed.top : placed.top + 32, placed.left : placed.left + 32]
    assert (drawn - torch.tensor(expected).permute(2, 0, 1)).abs().max() <= 1.01


@pytest.mark.parametrize("window, clip, expected", [
    ("head", 0, [0, 2, 5, 5, 8]), ("uniform", 0, [0, 5, 8, 11, 15]), ("slide", 0, [0, 2, 5, 5, 8])])
def test_a_clip_at_the_models_rate(tmp_path, window, clip, expected):
    path = corpus.clip(tmp_path / "v.mp4", 16, times=UNEVEN)
    row = row_of(path)
    placed = place(row, [Bucket(5, 64, 96)], fps=4)
    drawn = media.load(row, placed, tmp_path, fps=4, window=window, clip=clip)
    assert drawn.shape == (3, 5, 64, 96)
    assert numbers(((drawn + 1) * 127.5).permute(1, 2, 3, 0).numpy()) == expected
    with pytest.raises(ValueError, match="1 samples of 5 frames"):
        media.load(row, placed, tmp_path, fps=4, window=window, clip=1)


def test_samples_side_by_side_and_a_padded_end(tmp_path):
    row = row_of(corpus.clip(tmp_path / "a.mp4", 24))
    placed = place(row, [Bucket(9, 64, 96)])
    second = media.load(row, placed, tmp_path, window="slide", clip=1)
    assert numbers(((second + 1) * 127.5).permute(1, 2, 3, 0).numpy()) == list(range(9, 18))
    long = place(row, [Bucket(25, 64, 96)], pad_last=True)
    padded = media.load(row, long, tmp_path, pad_last=True)
    assert numbers(((padded + 1) * 127.5).permute(1, 2, 3, 0).numpy()) == [*range(24), 23]


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    (tmp_path / "c").mkdir()
    for number in range(11):  # 10.png comes after 9.png
        corpus.picture(tmp_path / "c" / f"{number}.png", corpus.grey(number))
    row = media.probe_row(Row("c", "video"), tmp_path)
    assert (row.width, row.height, row.frames, row.fps, row.duration) == (96, 64, 11, None, None) and row.sha256
    drawn = media.load(row, place(row, [Bucket(9, 64, 96)], fps=8), tmp_path, fps=8)
    assert numbers(((drawn + 1) * 127.5).permute(1, 2, 3, 0).numpy()) == list(range(9))
    corpus.picture(tmp_path / "c" / "3.png", size=(10, 10))
    assert media.probe_row(row, tmp_path).reasons == ["file.unreadable"]


def test_a_changed_file_is_no_tensor_of_its_old_row(tmp_path):
    row = row_of(corpus.picture(tmp_path / "n.png"), "image")
    placed = place(row, [Bucket(1, 32, 32)])
    corpus.picture(tmp_path / "n.png", size=(50, 40))
    with pytest.raises(ValueError, match="50 x 40, its row says 60 x 40"):
        media.load(row, placed, tmp_path)
    clip = row_of(corpus.clip(tmp_path / "a.mp4", 9))
    placed = place(clip, [Bucket(9, 32, 32)])
    corpus.clip(tmp_path / "a.mp4", 9, size=(64, 96))
    with pytest.raises(ValueError, match="64 x 96, its row says 96 x 64"):
        media.load(clip, placed, tmp_path)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(FileNotFoundError, match="moved or deleted"):
        media.load(clip, placed, tmp_path)


def test_a_condition_is_placed_by_its_own_size(tmp_path):
    corpus.picture(tmp_path / "c.png", corpus.circle(120, 300, 40, 59.5, 149.5))
    drawn = media.load_picture("c.png", tmp_path, Bucket(49, 64, 96))
    assert drawn.shape == (3, 1, 64, 96)
    white = (drawn[0, 0] > 0).nonzero().float().mean(0) + 0.5
    assert white.tolist() == pytest.approx([32, 48], abs=0.3)


def test_members_of_tars_are_files_too(tmp_path):
    corpus.clip(tmp_path / "a.mp4", 9)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "a.mp4", "sub/a.mp4")
    row = media.probe_row(Row("x.tar::sub/a.mp4", "video"), tmp_path)
    plain = row_of(tmp_path / "a.mp4")
    assert replace(row, file="a.mp4") == plain
    placed = place(row, [Bucket(9, 32, 48)])
    assert torch.equal(media.load(row, placed, tmp_path), media.load(plain, placed, tmp_path))
    assert media.probe_row(Row("x.tar::b.mp4", "video"), tmp_path).reasons == ["file.missing"]
    assert isinstance(contents.locate(tmp_path, row.file), bytes)
