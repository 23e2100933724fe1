"""From a row to the tensor that comes of its picture or clip."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sanacog.training.data import contents, media
from sanacog.training.data.buckets import Bucket, cover, place
from sanacog.training.data.manifest import Row

from . import corpus
from .corpus import UNEVEN, noise, numbers, row_of


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
