"""FID, KID and the measures of clips beside values that are known in closed form, or computed here in another way."""

import numpy as np
import pytest
import scipy.linalg
import torch

from sanacog.evaluation import distances
from sanacog.evaluation.drawn import clips
from sanacog.evaluation.motion import motion


def exactly(mean, deviations):
    """Features whose mean and covariance (with N - 1) are exactly these: pairs on either side along each axis."""
    count = 2 * len(deviations)
    step = np.diag(deviations) * np.sqrt((count - 1) / 2)
    return np.array(mean) + np.concatenate([step, -step])


def test_fid_of_gaussians_in_closed_form():
    one, other = exactly([1.0, 0.0, -2.0], [1.0, 2.0, 0.5]), exactly([0.0, 3.0, -2.0], [2.0, 2.0, 1.5])
    # Axes are shared: (1 + 9) for the means, (1 - 2)^2 + 0 + (0.5 - 1.5)^2 for the deviations.
    assert distances.fid(one, other) == pytest.approx(10 + 1 + 1, rel=1e-12)
    assert distances.fid(one, one) == pytest.approx(0, abs=1e-10)
    assert distances.fid(one, one + np.array([0.0, 3.0, 4.0])) == pytest.approx(25, rel=1e-12)


def test_fid_beside_the_root_of_a_matrix():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(40, 8)) + 0.3
    covariances = [np.cov(a, rowvar=False) for a in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert distances.fid(one, other) == pytest.approx(wanted, rel=1e-9)


def test_kid_beside_sums_over_pairs():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)) + 0.5

    def kernel(a, b):
        return (sum(x * y for x, y in zip(a, b)) / 4 + 1) ** 3

    def mean(a, b, same):
        pairs = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return sum(pairs) / len(pairs)

    wanted = mean(one, one, True) + mean(other, other, True) - 2 * mean(one, other, False)
    assert distances.kid(one, other) == pytest.approx(wanted, rel=1e-12)


def test_too_few_or_other_features_are_said():
    for one, other in ((np.ones((1, 4)), np.ones((5, 4))), (np.ones((5, 4)), np.ones((5, 3)))):
        for distance in (distances.fid, distances.kid):
            with pytest.raises(ValueError, match=r"two pictures or more each, found \("):
                distance(one, other)


def test_a_steady_fade_moves_and_does_not_flicker():
    fade = np.linspace(0.2, 0.6, 5)[:, None, None, None] * np.ones((5, 8, 8, 3))
    found = motion(fade)
    assert found["consistency"] == 0  # flat, and not alike
    assert found == pytest.approx({"motion": 25.5, "flicker": 0, "trembling": 25.5, "consistency": 0}, abs=1e-9)
    still = motion(np.full((4, 8, 8, 3), 0.5))
    assert still == pytest.approx({"motion": 0, "flicker": 0, "trembling": 0, "consistency": 1}, abs=1e-12)


def test_a_trembling_clip():
    """Frames by turns a and b = a + 10/255 in the left three quarters, the right quarter still."""
    a = np.random.default_rng(2).uniform(0.2, 0.8, (8, 8, 3))
    b = a.copy()
    b[:, :6] += 10 / 255
    found = motion(np.stack([a, b, a, b]))
    correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert found == pytest.approx({"motion": 7.5, "flicker": 15, "trembling": 10, "consistency": correlation}, rel=1e-9)


def test_a_moving_square():
    """One column of 32 a step: 8 pixels turn on and 8 off in each, and the rest is still."""
    frames = np.zeros((6, 32, 32, 3))
    for t, frame in enumerate(frames):
        frame[12:20, 4 + t : 12 + t] = 1
    found = motion(frames)
    assert found["motion"] == pytest.approx(255 * 16 / 1024) and found["trembling"] == 0
    assert found["flicker"] == pytest.approx(255 * 32 / 1024)  # the pixels of two changes, which are others
    p = 64 / 1024
    assert found["consistency"] == pytest.approx((56 / 1024 - p * p) / (p - p * p))


def test_drawn_clips_have_a_still_background():
    drawn = clips.to_frames(clips.draw(torch.tensor([[0, 1, 6, 1]])))[0]
    noisy = drawn[:1] + np.random.default_rng(3).normal(0, 2 / 255, drawn.shape)
    assert motion(drawn)["trembling"] == 0 < motion(drawn)["motion"]
    # The mean absolute difference of two normal numbers of deviation s is 2 s / sqrt(pi).
    assert motion(noisy)["trembling"] == pytest.approx(2 * 2 / np.sqrt(np.pi), rel=0.03)
    with pytest.raises(ValueError, match="three or more"):
        motion(drawn[:2])
