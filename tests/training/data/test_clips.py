"""Clips: what is found in files of every kind, and which frames are taken."""

import av
import numpy as np
import pytest
from PIL import Image

from sanacog.training.data import media, timing, videos
from sanacog.training.data.facts import Unreadable
from sanacog.training.data.manifest import Row

from . import corpus
from .corpus import UNEVEN, noise, numbers, row_of


# --- facts ---


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


# --- frames ---


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
