"""What a person gives becomes what the workflows take, or is told what is wrong."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from sanacog.app import media
from sanacog.app.offers import presets

TINY, LARGE = presets()["sanacogtinysana"], presets()["sana1600m1024px"]
CLIPS = presets()["sanacogtinycogvideox"]


def edited(background, layer):
    return {"background": background, "layers": [layer], "composite": Image.alpha_composite(background.convert("RGBA"), layer)}


@pytest.mark.parametrize("size, fitting", [((1000, 1000), (1024, 1024)), ((1920, 1080), (1376, 768)), ((10, 4000), (512, 2048))])
def test_a_picture_keeps_its_shape_in_whole_cells(size, fitting):
    assert media.fitted(size, LARGE) == fitting
    assert media.fitted(size, TINY) == (256, 256) and media.fitted(size, CLIPS) == (96, 96)


def test_a_picture_is_cut_in_the_middle_and_turned_upright():
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    exif = picture.getexif()
    exif[274] = 6  # lies on its side
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif, quality=95)
    data, size = media.picture_file(Image.open(file), TINY)
    made = Image.open(io.BytesIO(data))
    assert made.size == size == (256, 256)
    assert np.array(made)[8:-8].mean((0, 1)) == pytest.approx([0, 0, 255], abs=8)


def test_the_painted_part_is_what_is_transparent():
    layer = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle((0, 0, 255, 511), "teal")
    data, _ = media.mask_file(edited(Image.new("RGBA", (512, 512), "red"), layer), TINY)
    made = np.array(Image.open(io.BytesIO(data)))
    assert (made[:, :126, 3] == 0).all() and (made[:, 130:, 3] == 255).all() and (made[:, 130:, 0] == 255).all()


@pytest.mark.parametrize("make, said", [
    (lambda: media.picture_file(None, TINY), "Choose a picture"),
    (lambda: media.mask_file(None, TINY), "Choose a picture"),
    (lambda: media.mask_file({"background": None, "layers": [], "composite": None}, TINY), "Choose a picture"),
    (lambda: media.mask_file(edited(Image.new("RGBA", (64, 64), "red"), Image.new("RGBA", (64, 64))), TINY), "Paint over"),
    (lambda: media.sketch_file(edited(Image.new("RGBA", (64, 64), "white"), Image.new("RGBA", (64, 64))), TINY), "Draw a shape"),
    (lambda: media.sketch_file(None, TINY), "Draw a shape"),
    (lambda: media.video_file(None, CLIPS, 9), "Choose a video"),
    (lambda: media.video_file(__file__, CLIPS, 9), "not a video"),
])
def test_what_is_wrong_is_told(make, said):
    with pytest.raises(media.Told, match=said):
        make()


def film(path, frames, fps, size=(128, 96)):
    """A film whose brightness is the number of the frame times four."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps), options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), 20 + 4 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("fps, shown", [(8, range(9)), (24, range(0, 27, 3)), (4, [0, 0, 1, 1, 2, 2, 3, 3, 4])])
def test_a_video_is_played_at_the_models_rate(tmp_path, fps, shown):
    data, count = media.video_file(film(tmp_path / "film.mp4", 40, fps), CLIPS, 9)
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert float(file.streams.video[0].average_rate) == 8
    assert count == len(frames) == 9 and frames[0].shape == (96, 96, 3)
    assert [frame.mean() for frame in frames] == pytest.approx([20 + 4 * number for number in shown], abs=2)


def test_a_short_video_gives_what_it_has(tmp_path):
    larger = presets()["cogvideox5b"]
    assert media.video_file(film(tmp_path / "film.mp4", 20, 8), larger, 49)[1] == 17
    with pytest.raises(media.Told, match="too short: the model needs 9 frames"):
        media.video_file(film(tmp_path / "short.mp4", 5, 8), larger, 49)
