"""Figures of files and what is judged of them, each on both sides of its threshold."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from sanacog.training.data import checks, looks, pixels
from sanacog.training.data.looks import Look
from sanacog.training.data.manifest import Row
from sanacog.training.data.reasons import CODES, ERROR, WARN, Finding, status_of

from . import drawn


def look_at(source, kind):
    """The figures of a file, or of bytes as one."""
    if isinstance(source, bytes):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "file").write_bytes(source)
            return looks.look_at(Path(folder), "file", kind)
    return looks.look_at(source.parent, source.name, kind)


def look_of(frames):
    """The figures of frames, without a file."""
    collected = pixels.Pixels()
    for frame in frames:
        collected.add(np.asarray(frame))
    return Look(width=frames[0].width, height=frames[0].height, frames=len(frames), fps=8.0, pixels=collected.figures())


def codes(frames):
    look = look_of(frames)
    return [finding.code for finding in checks.check_pixels(look, "video" if len(frames) > 1 else "image")]


def plain(colour, size=(96, 64)):
    return Image.new("RGB", size, colour)


def test_every_code_has_a_severity_and_something_to_do():
    assert all(code.severity in (ERROR, WARN) and code.what and code.do for code in CODES.values())
    assert status_of([]) == "ok" and status_of([Finding("clip.cuts", 1, "")]) == WARN
    assert status_of([Finding("clip.cuts", 1, ""), Finding("file.empty", 0, "")]) == ERROR


# --- files ---


def test_a_clip_in_numbers(tmp_path):
    look = look_at(drawn.write_clip(tmp_path / "gr\u00fcn \u72d7.mp4", drawn.frames(1, 12), fps=8), "video")
    assert (look.width, look.height, look.frames, look.header_frames, look.fps, look.duration) == (96, 64, 12, 12, 8.0, 1.5)
    assert not look.variable and not look.problem and look.bits == 8 and len(look.sha256) == 64
    assert Look(**look.to_json()) == look


def test_a_clip_that_is_turned(tmp_path):
    look = look_at(drawn.turn(drawn.write_clip(tmp_path / "a.mp4", drawn.frames(1, 3))), "video")
    assert (look.width, look.height) == (64, 96) and look.rotation in (90, -90)
    assert look_at(drawn.turn(drawn.write_clip(tmp_path / "b.mp4", drawn.frames(1, 3)), 180), "video").rotation in (180, -180)


def test_clips_with_sound_that_is_longer_are_whole(tmp_path):
    for name in ("both.mkv", "both.mp4", "both.flv"):  # of the last one, only the whole file's duration is known
        look = look_at(drawn.write_clip(tmp_path / name, drawn.frames(1, 8), sound=5), "video")
        assert (look.problem, look.frames) == (None, 8)


def test_pictures_of_many_modes(tmp_path):
    image = drawn.picture(3, (64, 48))
    for name, changed in {"grey.png": image.convert("L"), "palette.gif": image.convert("P"), "cmyk.jpg": image.convert("CMYK"),
                          "opaque.png": image.convert("RGBA"), "x.webp": image, "x.bmp": image,
                          "one_bit.png": image.convert("1")}.items():
        changed.save(tmp_path / name)
        look = look_at(tmp_path / name, "image")
        assert (look.problem, look.width, look.height, look.alpha) == (None, 64, 48, False), name
        assert look.bits <= 8, name
    assert look_at(tmp_path / "x.bmp", "image") == look_at((tmp_path / "x.bmp").read_bytes(), "image")


@pytest.mark.parametrize("orientation, size, rotation", [(3, (64, 48), 180), (6, (48, 64), -90), (2, (64, 48), 0)])
def test_exif(tmp_path, orientation, size, rotation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn.picture(1, (64, 48)).save(tmp_path / "x.jpg", exif=exif)
    look = look_at(tmp_path / "x.jpg", "image")
    assert ((look.width, look.height), look.rotation) == (size, rotation)
    (found,) = checks.check_file(look, "image")
    assert found.code == "file.rotated" and ("mirrored" in found.sentence) == (rotation == 0)


def test_files_that_are_not_there(tmp_path):
    assert look_at(tmp_path / "x.png", "image").problem == "file.missing"
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert look_at(tmp_path / "link.png", "image").problem == "file.missing"


@pytest.mark.parametrize("data", [b"x", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 ", bytes(5000)])
def test_rubbish_is_told_and_never_raised(data):
    for kind in ("image", "video"):
        look = look_at(data, kind)
        assert look.problem in ("file.unreadable", "file.truncated", "file.no_video") and look.said and look.pixels == {}


def test_files_cut_off_anywhere(tmp_path):
    """However much is missing, a file is never taken for whole, and nothing is raised."""
    picture, clip = tmp_path / "x.jpg", tmp_path / "x.mp4"
    drawn.picture(1, (96, 64)).save(picture)
    drawn.write_clip(clip, drawn.frames(1, 9), options={"movflags": "faststart"})
    for file, kind in ((picture, "image"), (clip, "video")):
        data = file.read_bytes()
        for share in (0.02, 0.1, 0.3, 0.5, 0.8, 0.97):
            assert look_at(data[:int(len(data) * share)], kind).problem in (
                "file.unreadable", "file.truncated", "file.no_video"), (kind, share)


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    for number, frame in enumerate(drawn.frames(1, 5)):
        frame.save(tmp_path / f"{number:03}.png")
    look = look_at(tmp_path, "video")
    assert (look.frames, look.width, look.fps, look.problem) == (5, 96, None, None) and look.pixels["moved_most"] > 5
    drawn.picture(1, (32, 32)).save(tmp_path / "900.png")
    assert "it is 32 x 32, the first picture of the folder 96 x 64" in look_at(tmp_path, "video").said


def test_frames_from_all_over_a_clip(tmp_path):
    drawn.write_clip(tmp_path / "x.mp4", [plain((20 * n, 0, 0)) for n in range(12)], codec_options={"crf": "5"})
    row = Row("x.mp4", "video", width=192, height=64, frames=12)  # as if its pixels were twice as wide as high
    found = looks.some_frames(row, tmp_path, 3)
    assert [round(frame.getpixel((5, 5))[0] / 20) for frame in found] == [2, 6, 10] and found[0].size == (192, 64)
    assert len(looks.some_frames(row, tmp_path, 99)) == 12
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot open"):
        looks.some_frames(row, tmp_path, 3)


# --- pictures ---


@pytest.mark.parametrize("frame, expected", [
    (plain((25, 25, 25)), ["picture.black"]), (plain((27, 27, 27)), ["picture.flat"]),
    (plain((240, 240, 240)), ["picture.white"]), (plain((200, 230, 230)), ["picture.flat"]),
])
def test_plain_pictures(frame, expected):
    assert codes([frame]) == expected


def on_black(box, size=(200, 150)):
    image = plain("black", size)
    image.paste(drawn.picture(5, (box[2] - box[0], box[3] - box[1])), box[:2])
    return image


@pytest.mark.parametrize("image, expected", [
    (on_black((0, 20, 200, 130)), (20, 20, 0, 0)), (on_black((30, 0, 170, 150)), (0, 0, 30, 30)),
    (on_black((0, 20, 200, 150)), None),   # at one side: a dark sky
    (on_black((0, 2, 200, 148)), None),    # two of 150 pixels: a border
    (on_black((0, 40, 200, 140)), None),   # much wider at the top
    (on_black((20, 15, 180, 135)), (15, 15, 20, 20)),
])
def test_bars(image, expected):
    assert checks.bars_of(look_of([image])) == expected


def test_a_shape_on_black_has_no_bars():
    image = plain("black", (200, 200))
    ImageDraw.Draw(image).ellipse((50, 50, 150, 150), "white")
    assert checks.bars_of(look_of([image])) is None
    image = plain("black", (200, 200))
    ImageDraw.Draw(image).rectangle((60, 60, 140, 140), "white")
    assert checks.bars_of(look_of([image])) is None


def test_bars_have_to_be_there_in_every_frame():
    barred, whole = on_black((0, 20, 200, 130)), drawn.picture(5, (200, 150))
    assert checks.bars_of(look_of([barred] * 3)) == (20, 20, 0, 0)
    assert checks.bars_of(look_of([barred, whole, barred])) is None


@pytest.mark.parametrize("radius, blurred", [(0, False), (1, False), (1.5, False), (3, True), (6, True)])
def test_blur_does_not_depend_on_how_plain_the_rest_is(radius, blurred):
    busy, still = drawn.picture(3, (400, 300)), plain((30, 60, 160), (400, 300))
    ImageDraw.Draw(still).ellipse((150, 100, 210, 160), (220, 40, 40))
    for image in (busy, still):
        image = image.filter(ImageFilter.GaussianBlur(radius))
        assert ("picture.blurred" in codes([image])) == blurred


def test_the_sharpness_of_an_edge():
    edge = plain("black", (300, 300))
    edge.paste("white", (0, 0, 150, 300))
    blurred = edge.filter(ImageFilter.GaussianBlur(3))
    assert pixels.sharpness(edge) == pytest.approx(1, abs=0.05)
    assert pixels.sharpness(blurred) == pytest.approx(0.242 / 9, rel=0.25)


def test_places():
    assert checks.check_place(1.0, 0.2, (1, 64, 96)) == []
    enlarged, cropped = checks.check_place(1.01, 0.21, (1, 64, 96))
    assert enlarged.sentence == "enlarged 1.01 times to its bucket of 96 x 64"
    assert cropped.sentence == "21% of it are cropped for its bucket of 96 x 64"


# --- clips ---


def test_cuts_flashes_and_what_is_neither():
    one, two = drawn.frames(1, 24), [frame.point(lambda v: 255 - v) for frame in drawn.frames(2, 24)]
    assert codes(one) == []
    assert look_of(one[:8] + two[8:16] + one[16:]).pixels["cuts"] == [8, 16]
    assert look_of(one[:8] + two[8:9] + one[9:]).pixels["flashes"] == [8]
    fade = [Image.blend(a, b, min(max((n - 6) / 12, 0), 1)) for n, (a, b) in enumerate(zip(one, two))]
    assert codes(fade) == []
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(12)]
    assert look_of(noise).pixels["cuts"] == []  # everything changes all the time
    assert pixels.jumps_at([2, 40, 2, 2], [40, 40, 4]) == ([2], [])
    assert pixels.jumps_at([2, 40, 40, 2], [40, 3, 40]) == ([], [2])
    assert pixels.jumps_at([], []) == ([], [])


@pytest.mark.parametrize("one, two, difference", [
    ((0, 255, 255), (64, 255, 255), 64 * 180 / 256 / 3),  # a quarter of the circle of hues
    ((2, 255, 255), (254, 255, 255), 4 * 180 / 256 / 3),  # hues are a circle
    ((0, 0, 100), (128, 0, 100), 0.0), ((0, 255, 100), (128, 0, 100), 255 / 3),  # grey has no hue
    ((9, 9, 10), (9, 9, 40), 10.0),
])
def test_hsv_difference(one, two, difference):
    one, two = (np.full((2, 2, 3), values, np.float32) for values in (one, two))
    assert pixels.hsv_difference(one, two) == pytest.approx(difference, abs=1e-4)


def test_still_and_slow():
    frame = drawn.picture(3, (192, 128))
    assert codes([frame] * 9) == ["clip.frozen"]
    rng = np.random.default_rng(0)
    grainy = [Image.fromarray(np.clip(np.asarray(frame) + rng.normal(0, 0.7, (128, 192, 3)), 0, 255).astype(np.uint8))
              for _ in range(9)]
    assert codes(grainy) == ["clip.frozen"]
    moving = []
    for n in range(9):  # ten of 192 pixels wide, a third of a pixel a frame
        image = frame.copy()
        ImageDraw.Draw(image).rectangle((40 + n // 3, 40, 50 + n // 3, 60), "white")
        moving.append(image)
    assert codes(moving) == []


def test_flicker_is_not_a_fade():
    frame = drawn.picture(3, (96, 64))
    assert codes([frame.point(lambda v, n=n: v * (10 + n % 2) // 11) for n in range(12)]) == ["clip.flicker"]
    assert codes([frame.point(lambda v, n=n: v * (20 - n) // 20) for n in range(12)]) == []


# --- the set ---


def duplicates(images, shas=None):
    found = [look_of([image]) for image in images]
    for number, look in enumerate(found):
        look.sha256 = shas[number] if shas else str(number)
    names = [f"{n}.png" for n in range(len(found))]
    return {number: [(f.code, f.figure) for f in findings] for number, findings in checks.check_duplicates(names, found).items()}


def test_duplicates():
    image = drawn.picture(3, (320, 240))
    coded = io.BytesIO()
    image.save(coded, "JPEG", quality=40)
    images = [image, drawn.picture(4, (320, 240)), image.resize((200, 150)), image, Image.open(coded)]
    assert duplicates(images, ["a", "b", "c", "a", "d"]) == {
        2: [("set.near_duplicate", 0)], 3: [("set.duplicate", 0)], 4: [("set.near_duplicate", 0)]}


def test_plain_pictures_are_not_taken_for_each_other():
    """Their hashes hardly differ: colours have to agree, too."""
    images = []
    for colour in ("red", "green", "blue", "yellow"):
        for x in (30, 70):
            images.append(plain("white", (160, 160)))
            ImageDraw.Draw(images[-1]).ellipse((x, 60, x + 40, 100), colour)
    assert duplicates(images) == {} and duplicates([*images, images[3]]) == {8: [("set.near_duplicate", 3)]}
    assert duplicates([plain("red"), plain("blue")]) == {}


def test_clips_are_the_same_only_all_along():
    one, two = drawn.frames(1, 12), drawn.frames(2, 12)
    sets = [look_of(one), look_of(one[:4] + two[4:]), look_of(one[:]), look_of(one[:1])]
    for number, look in enumerate(sets):
        look.sha256 = str(number)
    assert {n: f[0].figure for n, f in checks.check_duplicates(list("abcd"), sets).items()} == {2: 0}


def test_all_pairs_within_the_distance_are_found():
    """Against a plain double loop, on random hashes some bits apart."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 12, dtype=np.uint64)
    values = [int(value) for value in base]
    for bits in range(7):
        value = values[0]
        for bit in rng.choice(64, bits, replace=False):
            value ^= 1 << int(bit)
        values.append(value)
    same = [Look(pixels={"hashes": [f"{value:016x}"], "thumbnails": ["80" * 192]}) for value in values]
    expected = {}
    for number, value in enumerate(values):
        near = [before for before in range(number) if bin(value ^ values[before]).count("1") <= 4]
        if near:
            expected[number] = near[0]
    assert checks.near_duplicates(same) == expected and len(expected) >= 5
