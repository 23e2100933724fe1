"""Clips in a circle: each step by the core alone with latents turned round by hand, and the seam of the embedded model's
clips."""

import pytest
import torch

from sanacog.cogvideo_core import schedule
from sanacog.headless.installation import ROOT
from sanacog.evaluation.drawn import clips

from .video_model import VARIANTS, apart, host, noise, random, sample, text, velocity_of, weights  # noqa: F401


@pytest.fixture(scope="module")
def loop(host):  # noqa: F811
    from sanacog.host.cogvideox import loop

    return loop


def model_of(host, weights, name):  # noqa: F811
    return host.cogvideox.load_cogvideox(weights(VARIANTS[name]))


@pytest.mark.parametrize("name, shift, frames", [("5B", 1, 3), ("2B", 2, 5), ("1.5", 1, 4)])
def test_every_step_is_turned_on(host, weights, loop, name, shift, frames):  # noqa: F811
    params, start = VARIANTS[name], noise(frames)
    plain, calls = velocity_of(params), iter(range(9))

    def velocity(x, timestep):
        turn = shift * next(calls)
        return plain(x.roll(-turn, 2), timestep).roll(turn, 2)
    wanted = schedule.ddim(velocity, start, 4, params.snr_shift_scale) / params.scaling_factor
    found = sample(host, loop.looping(model_of(host, weights, name), shift), start, steps=4)
    assert apart(found, wanted) < 1e-4
    assert apart(sample(host, model_of(host, weights, name), start, steps=4), wanted) > 1e-2


def test_a_sampler_that_asks_twice_sees_one_circle(loop):
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0])
    assert [loop.step_of(torch.tensor([sigma]), sigmas) for sigma in (4.0, 3.0, 2.0, 1.5, 1.0, 0.5)] == [0, 0, 1, 1, 2, 2]
    assert loop.step_of(torch.tensor([3.0]), None) == 0


def test_a_control_video_is_turned_with_it(host, weights, loop):  # noqa: F811
    params, start, video = VARIANTS["Fun 5B Control"], noise(3), random(1, 16, 3, 4, 6, seed=9)
    plain, calls = velocity_of(params, channels=None), iter(range(9))

    def velocity(x, timestep):
        turn = next(calls)
        return plain(torch.cat([x, video * params.condition_scale], 1).roll(-turn, 2), timestep).roll(turn, 2)
    wanted = schedule.ddim(velocity, start, 3, params.snr_shift_scale) / params.scaling_factor
    model = loop.looping(model_of(host, weights, "Fun 5B Control"), 1)
    found = sample(host, model, start, values=dict(concat_latent_image=video))
    assert apart(found, wanted) < 1e-4


def test_it_refuses_what_has_a_place(host, weights, loop):  # noqa: F811
    for name in ("5B I2V", "2B img2vid", "Fun 5B InP", "VOID"):
        with pytest.raises(ValueError, match="the same picture as start_image and as end_image"):
            loop.looping(model_of(host, weights, name), 1)
    with pytest.raises(ValueError, match="shift is 0"):
        loop.looping(model_of(host, weights, "5B"), 0)
    with pytest.raises(ValueError, match="8 n \\+ 5"):
        sample(host, loop.looping(model_of(host, weights, "1.5"), 1), noise(3))
    model = loop.looping(model_of(host, weights, "5B"), 1)
    model.model_options["transformer_options"][host.cogvideox.MOTION] = "tora's"
    with pytest.raises(ValueError, match="with a ControlNet or with Tora"):
        sample(host, model)
    windows = pytest.importorskip("comfy.context_windows")
    model = loop.looping(model_of(host, weights, "5B"), 1)
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.ContextSchedule("standard_static", lambda *_: []), windows.ContextFuseMethod("flat", None),
        context_length=2, dim=2)
    with pytest.raises(ValueError, match="does not go with context windows"):
        sample(host, model, noise(5))


# --- the embedded models ---


@pytest.fixture(scope="module")
def embedded(host):  # noqa: F811
    from sanacog.host.cogvideox import text as host_text, vae

    models = ROOT / "models"
    clip = host_text.load_t5(models / "text_encoders/sanacog_tiny_t5.safetensors")
    return (host.cogvideox.load_cogvideox(models / "diffusion_models/sanacog_tiny_cogvideox.safetensors"),
            lambda prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)),
            vae.load_cogvideox_vae(models / "vae/sanacog_tiny_cogvideox_vae.safetensors"))


def changes(frames):
    """Mean change from each frame (N, H, W, 3) to the next, the last one to the first."""
    return (frames.roll(-1, 0) - frames).abs().mean((1, 2, 3))


def test_the_seam_is_a_frame_like_others(host, embedded, loop):  # noqa: F811
    model, encode, vae = embedded
    for i, scene in enumerate(clips.evaluation_scenes()[0][:48:16]):
        start = random(1, 16, 3, 12, 12, seed=i)
        found = {turned: loop.decode_circle(vae, sample(
            host, loop.looping(model, 1) if turned else model, start, steps=20, positive=encode(clips.plain_prompt(scene)),
            negative=encode("")), 0, 0) for turned in (True, False)}
        inside, seam = changes(found[True])[:-1], changes(found[True])[-1]
        assert len(found[True]) == 12 and seam <= inside.max()
        assert seam < 0.6 * changes(found[False])[-1], "without the circle the seam is no larger"
        assert inside.max() > 0.005, "nothing moves"


def test_a_circle_decodes_the_same_from_any_place(embedded, loop):
    vae = embedded[2]
    drawn = clips.draw(clips.evaluation_scenes()[0][:1])[0].movedim(0, -1) * 0.5 + 0.5
    circle = vae.encode(torch.cat([drawn, drawn.flip(0)[1:]]))  # there and back
    whole, turned = (loop.decode_circle(vae, z, 0, 0) for z in (circle, circle.roll(-2, 2)))
    assert whole.shape == (20, 96, 96, 3)
    # The decoder's norms go over the frames that are decoded together, so that not all is equal; a plain decode is off by 8 times.
    off = (turned - whole.roll(-8, 0)).abs().mean()
    bare = (vae.decode(circle.roll(-2, 2))[0][-8:] - vae.decode(circle)[0][1:9]).abs().mean()
    assert off < 0.2 * bare and bare > 0.01, (off, bare)
    two = loop.decode_circle(vae, torch.cat([circle, circle]), 0, 0, repeat_first=True)
    assert two.shape[0] == 42 and torch.equal(two[20], two[0]) and torch.equal(two[41], two[21])
    assert torch.allclose(two[:20], whole, atol=1e-4)
    one = loop.decode_circle(vae, circle[:, :, :1], 0, 0)
    assert one.shape[0] == 4
