"""Buckets: Sana's tables, the nearest shape, how a picture gets there, and who has no place."""

import pytest
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN

from sanacog.training.data import buckets
from sanacog.training.data.buckets import Bucket, Unplaced, cover, place
from sanacog.training.data.manifest import Row


def picture(width, height):
    return Row("a.png", "image", width=width, height=height)


def clip(frames, duration=None, width=720, height=480):
    return Row("a.mp4", "video", width=width, height=height, frames=frames, duration=duration)


@pytest.mark.parametrize("name, bins", [(512, ASPECT_RATIO_512_BIN), ("1024", ASPECT_RATIO_1024_BIN),
                                        ("2K", ASPECT_RATIO_2048_BIN), (4096, ASPECT_RATIO_4096_BIN)])
def test_sanas_tables_have_what_its_pipelines_have(name, bins):
    table = buckets.sana(name)
    assert len(set(table)) == len(table) == 40 and {b.frames for b in table} == {1}
    assert {(int(h), int(w)) for h, w in bins.values()} <= {(b.height, b.width) for b in table}
    ratios = [b.height / b.width for b in table]
    assert ratios == sorted(ratios) and (ratios[0], ratios[-1]) == (0.25, 4)
    side = next(b.height for b in table if b.height == b.width)
    assert all(0.85 < b.height * b.width / side**2 < 1.05 for b in table)
    buckets.check(table, 32)


def test_the_table_of_2880():
    table = buckets.sana(2880)
    assert len(set(table)) == 40 and Bucket(1, 2880, 2880) in table and Bucket(1, 1408, 5760) in table
    sizes = {(b.height, b.width) for b in table}
    assert sizes - {(width, height) for height, width in sizes} == {(1920, 3776)}  # all others are there both ways round
    assert all(0.87 < b.height * b.width / 2880**2 < 1.05 for b in table)
    buckets.check(table, 32)
    with pytest.raises(ValueError, match="512, 1024, 2048, 2880 and 4096"):
        buckets.sana(768)


def test_the_nearest_shape():
    table = buckets.sana(1024)
    assert place(picture(1920, 1080), table).bucket == Bucket(1, 768, 1344)
    assert place(picture(1080, 1920), table).bucket == Bucket(1, 1344, 768)
    assert place(picture(500, 500), table).bucket == Bucket(1, 1024, 1024)
    assert place(picture(9000, 100), table).bucket == Bucket(1, 512, 2048)
    assert place(picture(100, 9000), table).bucket == Bucket(1, 2048, 512)


def test_how_it_gets_there():
    # 1000 x 500 into 300 wide, 200 high: times 0.4, 400 x 200, 50 off at each side: a quarter of it.
    assert cover(500, 1000, Bucket(1, 200, 300)) == (Bucket(1, 200, 300), (200, 400), 0, 50, 1.0, pytest.approx(0.25))
    # 100 x 100 into the same: times 3, 300 x 300, 50 off above and below: a third.
    assert cover(100, 100, Bucket(1, 200, 300)) == (Bucket(1, 200, 300), (300, 300), 50, 0, 3.0, pytest.approx(1 / 3))
    assert cover(200, 300, Bucket(1, 200, 300)) == (Bucket(1, 200, 300), (200, 300), 0, 0, 1.0, 0.0)


def test_it_always_covers_and_is_never_stretched():
    for height in range(37, 400, 13):
        for width in range(41, 400, 17):
            for bucket in (Bucket(1, 96, 160), Bucket(1, 128, 128)):
                placed = cover(height, width, bucket)
                tall, wide = placed.resize
                assert tall >= bucket.height and wide >= bucket.width
                assert tall == bucket.height or wide == bucket.width
                assert 0 <= placed.top <= tall - bucket.height and 0 <= placed.left <= wide - bucket.width
                scale = max(bucket.height / height, bucket.width / width)
                assert abs(tall - height * scale) <= 0.5 + 1e-9 and abs(wide - width * scale) <= 0.5 + 1e-9
                assert 0 <= placed.cropped < 1 and placed.enlarged == pytest.approx(max(1, scale))


def test_clips_go_to_the_most_frames_that_fit_then_to_the_nearest_shape():
    table = buckets.clips([9, 17, 49], [(480, 720), (720, 480)])
    assert place(clip(48), table).bucket == Bucket(17, 480, 720)
    assert place(clip(49, width=480, height=720), table).bucket == Bucket(49, 720, 480)
    # 4 s at 25 a second are 32 at 8; six seconds and a frame are 49.
    assert place(clip(100, 4.0), table, fps=8).bucket.frames == 17
    assert place(clip(145, 145 / 24), table, fps=8).bucket.frames == 49
    assert place(clip(100, 4.0), table).bucket.frames == 49  # at its own rate


@pytest.mark.parametrize("row, fps, table, reason, words", [
    (clip(8), None, buckets.COGVIDEOX, "clip.too_short", "it has 8 frames, the shortest bucket has 9"),
    (clip(24, 1.0), 8, buckets.COGVIDEOX, "clip.too_short", "8 frames at 8 frames a second"),
    (clip(24), None, buckets.sana(512), "picture.no_bucket", "frames-to-pictures"),
    (picture(9, 9), 8, buckets.COGVIDEOX, "picture.no_bucket", "it is a picture"),
])
def test_who_has_no_place(row, fps, table, reason, words):
    with pytest.raises(Unplaced) as error:
        place(row, table, fps)
    assert error.value.reason == reason and words in str(error.value)


def test_padding_is_asked_for_and_a_row_must_be_probed():
    assert place(clip(8), buckets.COGVIDEOX, pad_last=True).bucket.frames == 9
    assert place(clip(8), [Bucket(1, 32, 32), Bucket(9, 32, 32)], pad_last=True).bucket.frames == 9
    with pytest.raises(ValueError, match="run.py dataset"):
        place(Row("a.png", "image"), buckets.sana(512))


def test_buckets_that_a_model_cannot_take():
    buckets.check(buckets.COGVIDEOX, 16, buckets.COGVIDEOX_FRAMES)
    buckets.check(buckets.COGVIDEOX_1_5, 16, buckets.COGVIDEOX_1_5_FRAMES)
    for table, words in (([], "no buckets"), ([Bucket(1, 500, 512)], "multiples of 32 px"),
                         ([Bucket(50, 64, 64)], "no 50 frames, the nearest is 49"), ([Bucket(0, 64, 64)], "does not go")):
        with pytest.raises(ValueError, match=words):
            buckets.check(table, 32, buckets.COGVIDEOX_FRAMES)
