"""ComfyUI's conditioning nodes on a Sana MODEL: what comes out against the same made by hand."""

import pytest
import torch

from .. import stock, tiny
from .sana_model import MARK, apart, conditioning, host, model, noise, sample, weights  # noqa: F401

A, B, EMPTY = conditioning(9), conditioning(14, seed=3), conditioning(1, seed=1)


def one_step(host, model, positive, negative=EMPTY, cfg=1.0, start=None):
    """A step from pure noise to the prediction, in which what is blended shows as it is."""
    return sample(host, model, positive=positive, negative=negative, cfg=cfg, steps=1,
                  start=noise(2, 8, 8) if start is None else start)


def joined(*texts):
    """The words of several prompts, in this order, as one without padding."""
    states = [c[0][0][:, c[0][1]["attention_mask"][0].bool()] for c in texts]
    return [[torch.cat(states, 1), MARK]]


def test_combine_is_the_mean_of_the_predictions(host, model):
    both = stock.run("ConditioningCombine", A, B)
    assert apart(one_step(host, model, both), (one_step(host, model, A) + one_step(host, model, B)) / 2) < 1e-5
    negative = one_step(host, model, EMPTY)
    guided = negative + 4.5 * (one_step(host, model, both) - negative)
    assert apart(one_step(host, model, both, cfg=4.5), guided) < 1e-5


def test_concat_is_one_longer_prompt(host, model):
    assert apart(one_step(host, model, stock.run("ConditioningConcat", A, B)), one_step(host, model, joined(A, B))) < 1e-5
    thrice = stock.run("ConditioningConcat", stock.run("ConditioningConcat", A, B), EMPTY)
    assert apart(one_step(host, model, thrice), one_step(host, model, joined(A, B, EMPTY))) < 1e-5


@pytest.mark.parametrize("first, second", [(A, B), (B, A)], ids=["longer second", "shorter second"])
def test_average_keeps_the_words_of_both(host, model, first, second):
    def averaged(strength):
        return one_step(host, model, stock.run("ConditioningAverage", first, second, strength))

    half = [[(first[0][0][:, :14] + second[0][0][:, :14]) / 2, MARK]]
    assert apart(averaged(0.5), one_step(host, model, half)) < 1e-5
    assert apart(averaged(1.0), one_step(host, model, first)) < 1e-5
    assert apart(averaged(0.0), one_step(host, model, second)) < 1e-5


def test_prompts_of_different_lengths_in_a_batch(host, model):
    states = torch.cat([A[0][0], B[0][0]])
    mask = torch.cat([A[0][1]["attention_mask"], B[0][1]["attention_mask"]])
    batch = one_step(host, model, [[states, {"attention_mask": mask}]], cfg=4.5)
    for i, text in enumerate((A, B)):
        assert apart(batch[i], one_step(host, model, text, cfg=4.5)[i]) < 1e-5


def test_zeroed_prompt(host, model):
    """ConditioningZeroOut for the negative prompt: all its tokens are alike, so their number plays no part."""
    negative = stock.run("ConditioningZeroOut", B)
    out = one_step(host, model, A, negative, cfg=4.5)
    one_zero = [[torch.zeros(1, 1, tiny.CAPTION), {"attention_mask": torch.ones(1, 1, dtype=torch.long)} | MARK]]
    assert apart(out, one_step(host, model, A, one_zero, cfg=4.5)) < 1e-5


def test_timestep_ranges(host, model):
    first = stock.run("ConditioningSetTimestepRange", A, 0.0, 0.5)
    then = stock.run("ConditioningSetTimestepRange", B, 0.5, 1.0)
    ours = sample(host, model, positive=stock.run("ConditioningCombine", first, then), cfg=1.0)
    core, x = tiny.sana(), noise()
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    assert sigmas[1] > 0.75 > sigmas[2]  # flow shift 3: where half of the sampling is
    for s, t, [[states, values]] in zip(sigmas, sigmas[1:], (A, A, B)):
        x = x + (t - s) * core(x, (1000 * s).expand(2), states.expand(2, -1, -1), values["attention_mask"].expand(2, -1))
    assert apart(ours, x / 0.41407) < 1e-5


@pytest.mark.parametrize("node, arguments", [("ConditioningSetArea", (128, 96, 128, 32)),
                                             ("ConditioningSetAreaPercentage", (0.5, 0.375, 0.5, 0.125))])
def test_area_prompts(host, model, node, arguments):
    """In a picture of 256 x 256 px: width 128, height 96, x 128, y 32; in latent pixels 4 x 3 at x 4, y 1."""
    area = stock.run(node, B, *arguments, 2.0)
    ours = one_step(host, model, stock.run("ConditioningCombine", A, area), cfg=4.5)
    start, place = noise(2, 8, 8), (..., slice(1, 4), slice(4, 8))

    def blended(whole, part):
        out = one_step(host, model, whole)
        out[place] = (out[place] + 2.0 * one_step(host, model, part, start=start[place])) / 3.0
        return out

    c, u = blended(A, B), blended(EMPTY, EMPTY)
    assert apart(ours, u + 4.5 * (c - u)) < 1e-5
    assert apart(ours, one_step(host, model, A, cfg=4.5)) > 1e-3


def test_area_to_the_nearest_latent_pixel_and_within_the_picture(host, model):
    from sanacog.host.sana.areas import in_latent_pixels

    assert in_latent_pixels((8, 8, 0, 0), (8, 8)) == (2, 2, 0, 0)
    assert in_latent_pixels((8, 100, 3, 22), (8, 8)) == (2, 2, 1, 6)      # cut at the right edge
    assert in_latent_pixels((1, 1, 0, 0), (8, 8)) == (1, 1, 0, 0)
    before = stock.run("ConditioningSetArea", B, 128, 128, 256, 0, 1.0)
    with pytest.raises(ValueError, match="outside the picture: it begins at x 256, y 0.*256 x 256 px"):
        one_step(host, model, stock.run("ConditioningCombine", A, before))
    assert before[0][1]["area"] == (16, 16, 0, 32)  # the node's output is left as it was


def test_masked_prompts(host, model):
    mask = torch.zeros(1, 256, 256)
    mask[..., :128] = 1
    left = stock.run("ConditioningSetMask", A, mask, "default", 1.0)
    right = stock.run("ConditioningSetMask", B, 1 - mask, "default", 0.6)
    ours = one_step(host, model, stock.run("ConditioningCombine", left, right))
    a, b = one_step(host, model, A), one_step(host, model, B)
    assert apart(ours[..., :3], a[..., :3]) < 1e-5 and apart(ours[..., 5:], b[..., 5:]) < 1e-5
    everywhere = stock.run("ConditioningSetMask", B, torch.ones(1, 256, 256), "default", 0.5)
    assert apart(one_step(host, model, stock.run("ConditioningCombine", A, everywhere)), (a + 0.5 * b) / 1.5) < 1e-5


def test_mask_bounds_as_area(host, model):
    """"mask bounds": only the mask's box is evaluated."""
    mask = torch.zeros(1, 12, 12)
    mask[..., 2:10, 3:11] = 1  # of a latent of 12 x 12
    text = stock.run("ConditioningSetMask", B, mask, "mask bounds", 1.0)
    start = noise(1, 12, 12)
    ours = one_step(host, model, stock.run("ConditioningCombine", A, text), start=start)
    place = (..., slice(2, 10), slice(3, 11))
    whole = one_step(host, model, A, start=start)
    part = one_step(host, model, B, start=start[place])
    assert apart(ours[place], (whole[place] + part) / 2) < 1e-5
    whole[place] = ours[place]
    assert apart(ours, whole) < 1e-5
