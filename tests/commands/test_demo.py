"""What the demo does around the server: filling in the workflow, files, captions."""

import json

import pytest
from PIL import Image, ImageFont

from sanacog.commands import demo


@pytest.fixture
def workflow():
    return json.loads(demo.WORKFLOW.read_text("utf-8"))


def test_prompt_goes_to_the_positive_text(workflow):
    before = json.dumps(workflow)
    filled = demo.filled(workflow, "a small blue ring on a red background", 7, 12)
    sampler, = (node["inputs"] for node in filled.values() if node["class_type"] == "KSampler")
    assert (sampler["seed"], sampler["steps"]) == (7, 12)
    assert filled[sampler["positive"][0]]["inputs"]["text"] == "a small blue ring on a red background"
    assert filled[sampler["negative"][0]]["inputs"]["text"] == ""
    assert json.dumps(workflow) == before


def test_steps_of_the_workflow_unless_given(workflow):
    steps = [node["inputs"]["steps"] for node in demo.filled(workflow, "x", 1, None).values()
             if node["class_type"] == "KSampler"]
    assert steps == [20]


@pytest.mark.parametrize("name", demo.VIDEO_WORKFLOWS)
def test_video_workflows_are_filled(name):
    """The prompt reaches every text encoder that is not for the negative, through whatever stands between."""
    workflow = json.loads((demo.WORKFLOWS / f"{name}.json").read_text("utf-8"))
    filled = demo.filled(workflow, "a blue ring moving up on a red background", 7, 3)
    samplers = [node["inputs"] for node in filled.values() if node["class_type"] == "KSampler"]
    assert samplers and all((sampler["seed"], sampler["steps"]) == (7, 3) for sampler in samplers)
    before, after = ([value for node in graph.values() for key, value in node["inputs"].items()
                      if key in ("text", "value") and isinstance(value, str)] for graph in (workflow, filled))
    assert sorted(after) == sorted(["a blue ring moving up on a red background", *[""] * before.count("")])
    assert len(before) == len(after)


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
