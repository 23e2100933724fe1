"""How far two sets of pictures are from each other, by features of theirs: FID and KID. In float64."""
from __future__ import annotations

import numpy as np


def frechet(mean, covariance, other_mean, other_covariance) -> float:
    """Frechet distance of two Gaussians: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) (Heusel et al. 2017).

    The trace of the root is taken from the eigenvalues of C^(1/2) C' C^(1/2), which is symmetric, so it stays real.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * shared)


def fid(features: np.ndarray, others: np.ndarray) -> float:
    """Frechet distance of the Gaussians through two sets of features (N, D) and (M, D), covariances with N - 1.

    With fewer pictures than features it is too large. Raises ValueError as `_checked`."""
    features, others = _checked(features, others)
    covariance, other_covariance = (np.atleast_2d(np.cov(one, rowvar=False)) for one in (features, others))
    return frechet(features.mean(0), covariance, others.mean(0), other_covariance)


def kid(features: np.ndarray, others: np.ndarray) -> float:
    """Kernel distance: the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, unbiased, over all pictures
    at once and not over subsets (Binkowski et al. 2018). May be below 0 where the two are alike. Raises ValueError as
    `_checked`."""
    features, others = _checked(features, others)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(features) + within(others) - 2 * kernel(features, others).mean())


def _checked(features, others):
    features, others = (np.asarray(one, dtype=np.float64) for one in (features, others))
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1] or min(len(features), len(others)) < 2:
        raise ValueError(f"expected features (N, D) and (M, D) of two pictures or more each, found {features.shape} and "
                         f"{others.shape}")
    return features, others
