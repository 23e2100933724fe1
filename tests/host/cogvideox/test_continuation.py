"""A clip continued by its last frames, and joined: what is held while sampling, what each kind of model is shown,
colours."""

import pytest
import torch

from .test_conditioning import SeenVAE
from .video_model import VARIANTS, apart, host, noise, sample, text, weights  # noqa: F401

LENGTH, WIDTH, HEIGHT = 13, 48, 32


@pytest.fixture(scope="module")
def continuation(host):  # noqa: F811
    from sanacog.host.cogvideox import continuation

    return continuation


def clip(frames=9, width=WIDTH, height=HEIGHT):
    """Frames that differ from each other and from place to place."""
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(3))


def model_of(host, weights, name):  # noqa: F811
    return host.cogvideox.load_cogvideox(weights(VARIANTS[name]))


@pytest.mark.parametrize("name, sampler", [
    ("5B", "ddim"), ("5B", "euler"), ("5B I2V", "euler"), ("1.5", "euler"), ("1.5 I2V", "ddim"), ("Fun 5B InP", "euler")])
def test_the_frames_are_held(host, weights, continuation, name, sampler):  # noqa: F811
    """Whatever the model and the sampler, the stretch begins with the latents of the clip's last frames."""
    model, vae, video = model_of(host, weights, name), SeenVAE(), clip()
    positive, negative, latent = continuation.continued(model, text(), text(1), vae, video, LENGTH, 5)
    held = vae.encode(video[-5:])
    found = sample(host, model, noise(4), latent["samples"], mask=latent["noise_mask"], positive=positive, negative=negative,
                   sampler=host.comfy.samplers.ksampler("euler") if sampler == "euler" else None)
    assert found.shape == (1, 16, 4, HEIGHT // 8, WIDTH // 8)
    assert apart(found[:, :, :2], held) < 1e-4
    free = sample(host, model, noise(4), positive=positive, negative=negative)
    assert apart(free[:, :, :2], held) > 0.1, "it is not the mask that holds them"
    assert found[:, :, 2:].std() > 0.05


def test_each_kind_of_model_is_shown_what_it_takes(host, weights, continuation):  # noqa: F811
    video, vae, given = clip(), SeenVAE(), text(control="here")

    def shown(name):
        positive, negative, _ = continuation.continued(model_of(host, weights, name), given, text(1), vae, video, LENGTH, 5)
        assert {key for key in positive[0][1]} - {"control"} == {key for key in negative[0][1]}
        return positive[0][1]
    assert shown("5B").keys() == shown("Fun 5B Control").keys() == {"control"}
    picture = shown("5B I2V")["concat_latent_image"]
    assert torch.equal(picture[:, :, :1], vae.encode(video[4:5])) and not picture[:, :, 1:].any()
    inpaint = shown("Fun 5B InP")
    assert torch.equal(inpaint["concat_latent_image"][:, :, :2], vae.encode(video[4:9]))
    assert inpaint["concat_mask"][0, 0].amax((1, 2)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("changed, said", [
    (dict(overlap=4), "take 1, 5, 9"), (dict(overlap=13), "video has 9 frames"), (dict(overlap=0), "take 1 to 9"),
    (dict(overlap=9, length=9), "nothing new would be drawn"), (dict(length=10), "must be 4 n"),
    (dict(video=clip(width=40)), "multiples of 16"), (dict(video=clip()[:0]), "video is empty")])
def test_continued_refuses(host, weights, continuation, changed, said):  # noqa: F811
    values = dict(video=clip(), length=LENGTH, overlap=5) | changed
    with pytest.raises(ValueError, match=said):
        continuation.continued(model_of(host, weights, "5B"), text(), text(1), SeenVAE(), **values)


def test_another_model_is_refused(continuation):
    from types import SimpleNamespace as Some

    other = Some(model=Some(model_config=Some()))
    with pytest.raises(ValueError, match="not a CogVideoX from Load CogVideoX Model"):
        continuation.continued(other, text(), text(1), SeenVAE(), clip(), LENGTH, 5)


# --- joined ---


def test_a_clip_cut_in_two_is_whole_again(continuation):
    video = clip(13)
    assert torch.allclose(continuation.joined(video[:9], video[4:], 5), video, atol=1e-6)
    assert torch.allclose(continuation.joined(video[:9], video[8:], 1), video, atol=1e-6)


def test_colours_are_held(continuation):
    """By what most of the overlap differs in, whatever a smaller part of it shows."""
    video, tint = 0.2 + 0.5 * clip(13), torch.tensor([0.1, -0.05, 0.02])
    second = video[4:] + tint
    assert torch.allclose(continuation.joined(video[:9], second, 5), video, atol=1e-5)
    half = continuation.joined(video[:9], second, 5, 0.5)
    assert torch.allclose(half[9:], video[9:] + tint / 2, atol=1e-5)
    shape = second.clone()
    shape[:5, :12] = 0.0  # 12 of 32 rows came out otherwise
    assert torch.allclose(continuation.joined(video[:9], shape, 5)[9:], video[9:], atol=1e-5)


def test_shared_frames_fade(continuation):
    black, white = torch.zeros(7, 16, 16, 3), torch.ones(6, 16, 16, 3)
    found = continuation.joined(black, white, 3, 0.0)[:, 0, 0, 0]
    assert torch.allclose(found, torch.tensor([0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]))


@pytest.mark.parametrize("second, overlap, said", [
    (clip(3), 5, "second has 3 frames"), (clip(9, 32), 5, "clips that are joined have one size"),
    (clip(9), 0, "take 1 to 9"), (clip(9)[:0], 1, "second is empty")])
def test_joined_refuses(continuation, second, overlap, said):
    with pytest.raises(ValueError, match=said):
        continuation.joined(clip(9), second, overlap)
