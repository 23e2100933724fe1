"""A folder of drawn files, clean ones and ones with a fault each: `plant(folder)` says which codes are to be found where."""

import numpy as np
from PIL import Image, ImageFilter

from . import drawn

PICTURES, CLIPS = 8, 5  # clean ones
BUCKETS = [(1, 256, 256), (9, 64, 96)]  # frames, height, width: what the files are drawn for

SUBJECTS = ("a harbour", "two foxes", "an old tractor", "a glass of tea", "a market street", "snow on a roof", "a violin")
DETAILS = ("in the evening light", "seen from above", "beside a stone wall", "under a grey sky", "with a red ribbon",
           "at the end of a path", "next to a wooden door", "behind a fence", "after the rain")


def plant(folder):
    """Write the files; {name: code} of each planted fault."""
    planted, number = {}, iter(range(1000))

    def text(name, caption=None):
        n = next(number)
        if caption is None:
            caption = f"sks {SUBJECTS[n % 7]} {DETAILS[n % 9]}, number {n} of the series"
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")

    def picture(name, code=None, change=lambda image: image, caption=None, size=(320, 320), **options):
        change(drawn.picture(100 + len(planted) + 500 * (code is None) + next(number), size)).save(folder / name, **options)
        done(name, code, caption)

    def clip(name, code=None, change=lambda frames: frames, count=17, size=(96, 64), **options):
        pictures = change(drawn.frames(100 + next(number), count, size))
        drawn.write_clip(folder / name, pictures, **options)
        done(name, code)

    def done(name, code, caption=None):
        text(name, caption)
        if code:
            planted[name] = code

    for n in range(PICTURES):
        picture(f"clean {n}.png" if n % 2 else f"clean_{n}.jpg")
    for n in range(CLIPS):
        clip(f"clean_clip_{n}.mp4")

    # files
    (folder / "empty.png").write_bytes(b"")
    done("empty.png", "file.empty")
    (folder / "empty_clip.mp4").write_bytes(b"")
    done("empty_clip.mp4", "file.empty")
    picture("cut_off.jpg", "file.truncated")
    cut(folder / "cut_off.jpg")
    picture("cut_off.png", "file.truncated")
    cut(folder / "cut_off.png")
    (folder / "page.jpg").write_text("<html>404 not found</html>")
    done("page.jpg", "file.unreadable")
    clip("index_lost.mp4", "file.unreadable")
    cut(folder / "index_lost.mp4")
    clip("cut_off_clip.mp4", "file.truncated", count=65, options={"movflags": "faststart"})
    cut(folder / "cut_off_clip.mp4")
    clip("cut_off_clip.mkv", "file.truncated")
    cut(folder / "cut_off_clip.mkv")
    drawn.write_sound(folder / "song.mp4")
    done("song.mp4", "file.no_video")
    clip("lying.avi", "file.header_frames", codec="mpeg4", codec_options={"qscale": "2"})
    lie_about_frames(folder / "lying.avi", 99)
    clip("uneven.mp4", "file.variable_rate", times=[125 * n + 60 * (n % 3 == 1) for n in range(17)])
    clip("turned.mp4", "file.rotated", size=(64, 96))
    drawn.turn(folder / "turned.mp4")
    clip("interlaced.mp4", "file.interlaced", codec_options={"flags": "+ilme+ildct"})
    clip("ten_bits.mkv", "file.high_bit_depth", codec="ffv1", pixels="yuv420p10le")
    clip("see_through.mkv", "file.alpha", lambda frames: list(map(with_hole, frames)), codec="ffv1", pixels="bgra")
    clip("odd.mkv", "file.odd_size", codec="ffv1", pixels="bgr0", size=(99, 65))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("turned.jpg", "file.rotated", exif=exif)
    picture("see_through.png", "file.alpha", with_hole)
    picture("sixteen_bits.png", "file.high_bit_depth", lambda image: Image.fromarray(
        np.asarray(image.convert("L"), np.uint16) * 257))

    # pictures
    picture("small.png", "picture.enlarged", size=(160, 160))
    picture("panorama.png", "picture.cropped", size=(640, 288))
    picture("letterbox.png", "picture.black_bars", lambda image: framed(image, (0, 40)))
    picture("night.png", "picture.black", lambda image: image.point(lambda value: value // 16))
    picture("paper.png", "picture.white", lambda image: image.point(lambda value: 240 + value // 17))
    picture("one_colour.png", "picture.flat", lambda image: Image.new("RGB", image.size, (90, 140, 40)))
    picture("soft.png", "picture.blurred", lambda image: image.filter(ImageFilter.GaussianBlur(5)))
    clip("pillarbox.mp4", "picture.black_bars", lambda frames: [framed(frame, (12, 0)) for frame in frames], size=(120, 64))

    # clips
    clip("single.mp4", "clip.too_short", count=1)
    clip("cut.mp4", "clip.cuts", lambda frames: frames[:8] + [inverted(frame) for frame in frames[8:]])
    clip("still.mp4", "clip.frozen", lambda frames: frames[:1] * 17)
    clip("flicker.mp4", "clip.flicker", lambda frames: [
        frame.point(lambda value, n=n: value * (70 + 30 * (n % 2)) // 100) for n, frame in enumerate(frames)])
    clip("flash.mp4", "clip.flash", lambda frames: frames[:8] + [Image.new("RGB", frames[0].size, "white")] + frames[9:])

    # captions
    picture("missing.png", "caption.missing")
    (folder / "missing.txt").unlink()
    long = "sks " + " ".join(f"thing{n}" for n in range(160))
    repeated = "sks with a cat on the mat" + ", with a cat on the mat" * 4
    for name, caption in {
        "empty": " \n", "refusal": "I'm sorry, but I cannot describe sks in this picture", "short": "sks cat", "long": long,
        "repeated": repeated, "opening": "The image shows sks in front of a shop", "url": "sks by the sea, https://example.com/a",
        "markup": "**sks** on a <b>blue</b> chair", "spaces": "sks on a\nblue  chair",
        "file_name": "sks chair IMG_0042.JPG on a lawn",
        "script": "sks \u043a\u043e\u0448\u043a\u0430 \u0441\u0438\u0434\u0438\u0442 \u043d\u0430 \u043e\u043a\u043d\u0435",
        "trigger": "a chair on a lawn in summer",
    }.items():
        picture(f"caption_{name}.png", f"caption.{name}", caption=caption)

    # the set; the same in another folder, since a stem has one caption
    (folder / "more").mkdir()
    (folder / "more" / "copy.jpg").write_bytes((folder / "clean_0.jpg").read_bytes())
    done("more/copy.jpg", "set.duplicate", (folder / "clean_0.txt").read_text("utf-8"))
    with Image.open(folder / "clean_2.jpg") as image:
        image.resize((300, 300)).save(folder / "more" / "alike.jpg", quality=60)
    done("more/alike.jpg", "set.near_duplicate")
    return planted


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[:len(data) * 6 // 10])


def lie_about_frames(path, count):
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32  # dwLength
    data[at:at + 4] = count.to_bytes(4, "little")
    path.write_bytes(data)


def with_hole(image):
    image.putalpha(255)
    image.paste((0, 0, 0, 0), (10, 10, 60, 60))
    return image


def framed(image, bars):
    """Black bars laid over the borders: bars = (left and right, top and bottom) pixels."""
    result = Image.new("RGB", image.size)
    box = (bars[0], bars[1], image.width - bars[0], image.height - bars[1])
    result.paste(image.crop(box), box)
    return result


def inverted(image):
    return image.point(lambda value: 255 - value).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
