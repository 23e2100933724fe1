"""The steps of the data set command, one by one; all of them together are in tests/commands/test_dataset.py."""

import tarfile
from pathlib import Path

import av
import pytest

from sanacog.training.data import mending, preparation
from sanacog.training.data.buckets import Bucket
from sanacog.training.data.looks import Look
from sanacog.training.data.manifest import Row
from sanacog.training.data.preparation import Item

from . import drawn


def seen(row, **figures):
    """An item of a row whose file has these figures, with nothing wrong in them."""
    pixels = {"size": [figures.get("width", 96), figures.get("height", 64)], "bars": [0, 0, 0, 0], "low": 50, "high": 200,
              "spread": 40, "sharpness": 1.0, "cuts": [], "flashes": [], "flicker": 0, "moved_mean": 9, "moved_most": 9,
              "hashes": [f"{hash(row.file) % 2**64:016x}"], "thumbnails": ["00" * 192], **figures.pop("pixels", {})}
    figures = {"width": 96, "height": 64, "frames": 17, **figures}
    for name in ("width", "height", "frames", "fps", "duration", "sha256"):
        setattr(row, name, figures.get(name, getattr(row, name)))
    return Item(row, Look(pixels=pixels, **figures))


@pytest.mark.parametrize("name, renamed", [
    ("a/b.png", "../set/a/b.png"), ("x.tar::./dir/b.png", "../set/x.tar::./dir/b.png"),
    ("saved::train/0/image", "../set/saved::train/0/image"),
    ("hf:owner/name@v1::train/0/image", "hf:owner/name@v1::train/0/image"), ("/elsewhere/b.png", "../../elsewhere/b.png"),
])
def test_names_from_another_folder(name, renamed):
    assert preparation.renamed(name, Path("/data/set"), Path("/data/out")) == renamed


def test_a_tar_that_has_changed_is_read_again(tmp_path):
    keys = []
    for size in (10, 20_000):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            (tmp_path / "a.png").write_bytes(bytes(size))
            archive.add(tmp_path / "a.png", "a.png")
        keys.append(preparation.key_of(Row("x.tar::a.png", "image"), tmp_path))
    assert keys[0] != keys[1]
    assert preparation.key_of(Row("x.tar::b.png", "image"), tmp_path) != keys[1]


def test_the_rate_of_the_model_counts():
    rules, buckets = {}, [Bucket(17, 64, 96)]
    for fps, reasons in ((None, []), (16.0, []), (8.0, ["clip.too_short"])):
        item = seen(Row("a.mp4", "video", captions=["a clip of something"]), fps=16.0, duration=17 / 16)
        preparation.judge([item], buckets, fps, rules)
        assert item.row.reasons == reasons, fps
    assert item.found[0].sentence.startswith("it has 9 frames at 8 frames a second")


def test_the_same_file_with_other_captions_stays(tmp_path):
    def items():
        rows = [Row(f"{n}.png", "image", captions=[text]) for n, text in enumerate(("one", "two", "one"))]
        return [seen(row, sha256="a" * 64) for row in rows]

    kept = items()
    done = preparation.mend(kept, "", tmp_path, tmp_path / "journal")
    assert [item.row.file for item in kept] == ["0.png", "1.png"] and "2.png: left out" in done[0]


def test_bars_of_pixels_that_are_not_square_stay(tmp_path):
    barred = {"bars": [10, 10, 0, 0]}
    item = seen(Row("a.mp4", "video"), width=128, pixels={"size": [96, 64], **barred})
    assert preparation.mend([item], "", tmp_path, tmp_path / "journal") == []
    with pytest.raises(FileNotFoundError):  # it would be mended, were it there
        preparation.mend([seen(Row("a.mp4", "video"), pixels=barred)], "", tmp_path, tmp_path / "journal")


def test_a_cropped_clip_has_even_sides_and_its_times(tmp_path):
    times = [0, 100, 350, 400]
    clip = drawn.write_clip(tmp_path / "a.mkv", drawn.frames(1, 4), codec="ffv1", pixels="bgr0", times=times)
    mending.cropped_copy(clip, "video", (1, 0, 3, 0), tmp_path / "out" / "a.mp4")
    with av.open(str(tmp_path / "out" / "a.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(92, 62)] * 4
    assert [round(1000 * frame.time) for frame in frames] == times
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mp4"]


def test_a_crop_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError):
        mending.cropped_copy(tmp_path / "a.png", "image", (1, 0, 3, 0), tmp_path / "out" / "a.png")
    assert list((tmp_path / "out").iterdir()) == []


def test_captions_of_a_run_before():
    rows = [Row("a.png", "image", sha256="a" * 64), Row("b.png", "image", caption_manual="new")]
    before = [Row("mended/a_aaaaaaaa.png", "image", caption_manual="by hand", caption_auto={"text": "x"}),
              Row("b.png", "image", caption_manual="old")]
    preparation.keep_captions([Item(row) for row in rows], before, Path("."))
    assert (rows[0].caption_manual, rows[0].caption_auto, rows[1].caption_manual) == ("by hand", {"text": "x"}, "new")
