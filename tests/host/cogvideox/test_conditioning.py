"""What the CogVideoX conditioning nodes put into CONDITIONING, with a VAE that shows what it was given."""

import pytest
import torch
import torch.nn.functional as F

from .. import tiny

WIDTH, HEIGHT, LENGTH = 64, 48, 9
SIZE = (WIDTH, HEIGHT, LENGTH, 1)


class SeenVAE:
    """Latents whose first channel is the frames' mean brightness; keeps every clip that it encoded."""

    latent_channels, latent_dim = 16, 3

    def __init__(self):
        self.clips = []

    def encode(self, frames):
        self.clips.append(frames)
        frames = frames[: 1 + (len(frames) - 1) // 4 * 4].mean(-1)
        small = F.avg_pool2d(frames, 8)
        groups = [small[:1]] + [small[i:i + 4] for i in range(1, len(small), 4)]
        latent = torch.stack([group.mean(0) for group in groups])
        return F.pad(latent[None, None], (0, 0, 0, 0, 0, 0, 0, 15))


@pytest.fixture(scope="module")
def nodes(comfyui_path):
    tiny.import_host(comfyui_path)
    from sanacog.host.cogvideox import conditioning as cogvideox_conditioning

    return cogvideox_conditioning


@pytest.fixture
def vae():
    return SeenVAE()


@pytest.fixture
def text():
    return [[torch.zeros(1, 32, 8), {"pooled_output": None}]], [[torch.ones(1, 32, 8), {}]]


def picture(value, count=1, width=WIDTH, height=HEIGHT):
    return torch.full((count, height, width, 3), float(value))


def given(result):
    """What both conditionings of a result hold, which must be the same, beside what they held before."""
    positive, negative, latent = result
    assert latent["samples"].shape == (1, 16, 3, HEIGHT // 8, WIDTH // 8) and not latent["samples"].any()
    positive, negative = (one[0][1] for one in (positive, negative))
    names = {"concat_latent_image", "concat_mask"}
    assert names & positive.keys() == names & negative.keys()
    assert all(torch.equal(positive[name], negative[name]) for name in names & positive.keys())
    return positive


def test_start_image(nodes, vae, text):
    latent = given(nodes.image_to_video(*text, vae, *SIZE, picture(0.5)))["concat_latent_image"]
    assert latent.shape == (1, 16, 3, HEIGHT // 8, WIDTH // 8)
    assert torch.allclose(latent[:, 0, 0], torch.tensor(0.5)) and not latent[:, :, 1:].any()
    assert text[0][0][1] == {"pooled_output": None}, "the input conditioning was changed"


def test_end_image_and_strength(nodes, vae, text):
    result = nodes.image_to_video(*text, vae, *SIZE, picture(0.5), picture(0.25), strength=0.5)
    latent = given(result)["concat_latent_image"][0, 0]
    assert torch.allclose(latent.mean((1, 2)), torch.tensor([0.25, 0.0, 0.125]))
    assert [len(clip) for clip in vae.clips] == [1, 1], "as a clip of two the second picture would be lost"


def test_of_several_pictures_the_first_starts_and_the_last_ends(nodes, vae, text):
    several = torch.cat([picture(v) for v in (0.1, 0.2, 0.3)])
    latent = given(nodes.image_to_video(*text, vae, *SIZE, several, several))["concat_latent_image"][0, 0]
    assert torch.allclose(latent.mean((1, 2)), torch.tensor([0.1, 0.0, 0.3]))


def test_noise_augmentation(nodes, vae, text):
    grey = picture(0.5, width=256, height=256)
    for seed, sigma in ((1, 0.2), (1, 0.2), (2, 0.2)):
        nodes.image_to_video(*text, vae, 256, 256, 9, 1, grey, grey, 1.0, sigma, seed)
    first, last, again, _, other, _ = vae.clips
    assert abs(float(first.std()) - 0.1) < 0.002, "sigma 0.2 of pixels in [-1, 1] is 0.1 of pixels in [0, 1]"
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, last)


def test_picture_of_another_size_covers_and_is_cropped(nodes, vae, text):
    wide = picture(0.0, width=400, height=HEIGHT)
    wide[:, :, 168:232] = 1.0  # just the middle, as wide as the video
    given(nodes.image_to_video(*text, vae, *SIZE, wide))
    assert vae.clips[0].shape == (1, HEIGHT, WIDTH, 3) and vae.clips[0].min() > 0.99
    alpha = torch.cat([picture(0.5), picture(0.0)[..., :1]], dim=-1)
    assert torch.allclose(given(nodes.image_to_video(*text, vae, *SIZE, alpha))["concat_latent_image"][0, 0, 0],
                          torch.tensor(0.5))


def test_inpaint_without_anything_is_text_to_video(nodes, vae, text):
    assert "concat_latent_image" not in given(nodes.fun_inpaint(*text, vae, *SIZE)) and not vae.clips
    everything = torch.ones(1, HEIGHT, WIDTH)
    assert "concat_mask" not in given(nodes.fun_inpaint(*text, vae, *SIZE, video=picture(1, LENGTH), mask=everything))


def test_inpaint_between_two_pictures(nodes, vae, text):
    found = given(nodes.fun_inpaint(*text, vae, *SIZE, start_image=picture(0.5), end_image=picture(0.75)))
    assert known_latents(found) == [True, False, True]
    clip, = vae.clips
    assert clip.shape == (LENGTH, HEIGHT, WIDTH, 3)
    assert clip.mean((1, 2, 3)).tolist() == [0.5, 0, 0, 0, 0, 0.75, 0.75, 0.75, 0.75]


def known_latents(found):
    """Of each latent frame whether the mask says that it is known; it must not say anything between."""
    mask = found["concat_mask"][0, 0].flatten(1)
    assert ((mask == 0) | (mask == 1)).all() and (mask.amax(1) == mask.amin(1)).all()
    return (mask[:, 0] == 0).tolist()


def frames(*values):
    return torch.cat([picture(value) for value in values])


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("side", ["start_image", "end_image"])
def test_a_latent_is_known_with_all_of_its_frames(nodes, vae, text, caplog, side, count):
    """No black frame gets into a latent that is marked known, every given frame is in one, and none is left out."""
    given_frames = frames(*(0.1 * (i + 1) for i in range(count)))
    _, _, latent = result = nodes.fun_inpaint(*text, vae, WIDTH, HEIGHT, 17, 1, **{side: given_frames})
    clip, known = vae.clips[0].mean((1, 2, 3)), known_latents(result[0][0][1])
    of_latent = [known[0]] + [one for one in known[1:] for _ in range(4)]
    assert [bool(value > 0.05) for value in clip] == of_latent and len(known) == 5 and not all(known)
    place = slice(0, count) if side == "start_image" else slice(17 - count, 17)
    assert torch.allclose(clip[place], given_frames.mean((1, 2, 3)))
    held = torch.tensor([clip[i] for i in range(17) if of_latent[i] and not range(17)[place].count(i)])
    assert len(held) < 4 and torch.allclose(held, given_frames[-1 if side == "start_image" else 0].mean().expand(len(held)))
    fits = count % 4 == (1 if side == "start_image" else 0)
    assert (not caplog.records) is fits is (len(held) == 0)
    assert fits or f"{side}: {count} frame" in caplog.text and f"for {len(held)} more" in caplog.text


def test_start_and_end_must_leave_a_latent_to_draw(nodes, vae, text):
    with pytest.raises(ValueError, match="6 and end_image 2 frames.*clip of 9.*set length to 17"):
        nodes.fun_inpaint(*text, vae, *SIZE, start_image=picture(0, 6), end_image=picture(0, 2))
    with pytest.raises(ValueError, match="9 and end_image 0 frames.*set length to 13"):
        nodes.fun_inpaint(*text, vae, *SIZE, start_image=picture(0, 9))
    assert not vae.clips


def test_a_mask_of_each_frame_holds_for_the_whole_latent(nodes, vae, text):
    """What is white in one of a latent's four frames is drawn in all of them, and black to the model."""
    mask = torch.zeros(LENGTH, HEIGHT, WIDTH)
    mask[6, :, :32], mask[0, :16] = 1.0, 1.0
    found = given(nodes.fun_inpaint(*text, vae, *SIZE, video=picture(0.5, LENGTH), mask=mask))
    drawn = found["concat_mask"][0, 0]
    assert drawn[0, :2].all() and not drawn[0, 2:].any() and not drawn[1].any()
    assert drawn[2, :, :4].all() and not drawn[2, :, 4:].any()
    seen = vae.clips[0][..., 0]
    assert torch.equal(seen[5:, :, :32], torch.zeros(4, HEIGHT, 32)) and (seen[5:, :, 32:] == 0.5).all()
    assert (seen[1:5] == 0.5).all() and not seen[0, :16].any()


def test_inpaint_noise_spares_what_is_drawn(nodes, vae, text):
    given(nodes.fun_inpaint(*text, vae, *SIZE, start_image=picture(0.5), noise_augmentation=0.1, noise_seed=3))
    assert vae.clips[0][0].std() > 0.03 and not vae.clips[0][1:].any()


def test_inpaint_video_and_mask(nodes, vae, text):
    mask = torch.zeros(1, 96, 128)  # twice the video's size, as after a resize
    mask[..., 64:] = 0.8
    found = given(nodes.fun_inpaint(*text, vae, *SIZE, video=picture(0.5, 12), mask=mask))
    left, right = vae.clips[0][:, :, :WIDTH // 2], vae.clips[0][:, :, WIDTH // 2:]
    assert (left == 0.5).all() and not right.any() and len(left) == LENGTH
    assert torch.equal(found["concat_mask"][0, 0, :, :, :4], torch.zeros(3, 6, 4))
    assert torch.equal(found["concat_mask"][0, 0, :, :, 4:], torch.ones(3, 6, 4))


@pytest.mark.parametrize("mask_width", [400, 50])
def test_mask_follows_the_crop(nodes, vae, text, mask_width):
    """Of a video 400 px wide the middle 64 are taken: from 216 on is three quarters into that, for a mask of the video's
    own size and for one of another shape, which lies over the whole video all the same."""
    mask = torch.zeros(LENGTH, HEIGHT, mask_width)
    mask[:, :, 216 * mask_width // 400:] = 1.0
    given(nodes.fun_inpaint(*text, vae, *SIZE, video=picture(1.0, LENGTH, 400), mask=mask))
    assert vae.clips[0][:, :, :43].min() > 0.99 and not vae.clips[0][:, :, 53:].any()


def test_clip_that_cannot_fit(nodes, vae, text, monkeypatch):
    """Both functions that make a clip of pixels refuse it before they do; a picture alone is no matter of length."""
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "get_total_memory", lambda device: 2 * 12 * 64 * 48 * 2000)
    for call in (lambda: nodes.fun_inpaint(*text, vae, 64, 48, 2001, 1, start_image=picture(0)),
                 lambda: nodes.fun_control(*text, vae, 64, 48, 2001, 1, picture(0))):
        with pytest.raises(ValueError, match="2001 frames of 64 x 48 px needs"):
            call()
    assert not vae.clips
    assert nodes.image_to_video(*text, vae, 64, 48, 2001, 1, picture(0))[2]["samples"].shape[2] == 501


def test_control(nodes, vae, text):
    ramp = torch.linspace(0, 1, 12)[:, None, None, None].expand(-1, 96, 128, 3)
    latent = given(nodes.fun_control(*text, vae, *SIZE, ramp, strength=2.0))["concat_latent_image"][0, 0]
    expected = 2 * torch.tensor([0.0, (1 + 2 + 3 + 4) / 4 / 11, (5 + 6 + 7 + 8) / 4 / 11])
    assert torch.allclose(latent.mean((1, 2)), expected, atol=4e-3)  # a picture is resized in steps of 1 / 255


@pytest.mark.parametrize("size, said", [
    ((64, 48, 10, 1), ("length is 10", "9", "13")), ((64, 48, 0, 1), ("length is 0",)), ((60, 48, 9, 1), ("width is 60", "8")),
    ((64, 44, 9, 1), ("height is 44", "8")), ((64, 48, 9, 0), ("batch_size is 0",)), ((0, 48, 9, 1), ("width is 0",))])
def test_sizes_are_refused_before_anything_is_encoded(nodes, vae, text, size, said):
    for call in (lambda: nodes.image_to_video(*text, vae, *size, picture(0)),
                 lambda: nodes.fun_inpaint(*text, vae, *size, start_image=picture(0)),
                 lambda: nodes.fun_control(*text, vae, *size, picture(0, 9))):
        with pytest.raises(ValueError) as error:
            call()
        assert all(part in str(error.value) for part in said) and not vae.clips


def test_pictures_that_are_none(nodes, vae, text):
    def refused(part, **changes):
        with pytest.raises(ValueError, match=part):
            nodes.fun_inpaint(*text, vae, *SIZE, **changes)
        assert not vae.clips

    refused("start_image is empty", start_image=torch.zeros(0, 3, 0, 0))
    refused("end_image is 64 x 2 px", end_image=picture(0, 1, 64, 2))
    refused("mask is given alone", mask=torch.ones(1, 8, 8))
    refused("video is given alone", video=picture(0, 9))
    refused("take one of the two", video=picture(0, 9), mask=torch.ones(1, 8, 8), start_image=picture(0))
    refused("mask is empty", video=picture(0, 9), mask=torch.zeros(1, 64, 64))
    refused("has 8 frames, length asks for 9: set length to 5", video=picture(0, 8), mask=torch.ones(1, 64, 64))
    refused("mask has 3 frames", video=picture(0, 9), mask=torch.ones(3, 64, 64))
    refused("start_image has 5 and end_image 5 frames", start_image=picture(0, 5), end_image=picture(0, 5))
    with pytest.raises(ValueError, match="control_video has 1 frame, length asks for 9: set length to 1"):
        nodes.fun_control(*text, vae, *SIZE, picture(0))
    with pytest.raises(ValueError, match="length is 1"):
        nodes.image_to_video(*text, vae, WIDTH, HEIGHT, 1, 1, picture(0), picture(0))


def test_vae_of_another_model(nodes, vae, text):
    vae.latent_channels, vae.latent_dim = 32, 2
    with pytest.raises(ValueError, match="Load CogVideoX VAE"):
        nodes.image_to_video(*text, vae, *SIZE, picture(0))
    vae.latent_channels, vae.latent_dim = 16, 3
    vae.encode = lambda frames: torch.zeros(1, 16, 1, HEIGHT // 16, WIDTH // 16)
    with pytest.raises(ValueError, match="Load CogVideoX VAE"):
        nodes.image_to_video(*text, vae, *SIZE, picture(0))
