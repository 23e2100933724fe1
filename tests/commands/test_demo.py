"""What the demo does around the server: files, captions."""

import pytest
from PIL import Image, ImageFont

from sanacog.commands import demo


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    demo.write_whole(path, b"first")
    monkeypatch.setattr(demo.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        demo.write_whole(path, b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prompt, name", [
    ("A large Red circle!", "sana_1_a-large-red-circle.png"), ("", "sana_1_picture.png"),
    ("../../etc/passwd", "sana_1_etc-passwd.png"), ("\u7ea2\u8272", "sana_1_picture.png")])
def test_names_of_files(prompt, name):
    assert demo.file_name(1, prompt) == name


def test_names_are_short():
    assert len(demo.file_name(1, "word " * 10_000)) < 100


def png(colour, size):
    from io import BytesIO

    data = BytesIO()
    Image.new("RGB", (size, size), colour).save(data, "PNG")
    return data.getvalue()


def test_contact_sheet():
    colours = ["red", "green", "blue", "yellow", "purple"]
    sheet = demo.contact_sheet([png(colour, 64) for colour in colours], ["", "one", "long " * 200, "x" * 500, "y"])
    assert sheet.width == 12 + 4 * (64 + 12)  # four in a row
    found = {sheet.getpixel((x, y)) for x in range(sheet.width) for y in range(sheet.height)}
    assert {Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours} <= found


def test_film_strips():
    from io import BytesIO

    def clip(colours):
        data, frames = BytesIO(), [Image.new("RGB", (32, 32), colour) for colour in colours]
        frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
        return data.getvalue()

    sheet = demo.film_strips([clip(["red", "lime", "blue"]), clip(["blue", "red"])], ["one", "word " * 100])
    assert sheet.size == (4 + 3 * 36, 2 * (24 + 36))
    centres = [[sheet.getpixel((4 + 16 + i * 36, row * 60 + 24 + 16)) for i in range(3)] for row in range(2)]
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    assert centres == [[red, green, blue], [blue, red, white]]


def test_captions_fit():
    font = ImageFont.load_default(size=13)
    lines = demo.wrapped("a large red circle on a blue background " + "x" * 300, font, 120)
    assert len(lines) > 2 and all(font.getlength(line) <= 120 for line in lines)
