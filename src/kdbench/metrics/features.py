"""Similarity of the features of two networks."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import norm

from kdbench.metrics.probability import Floats


def linear_cka(features_a: Floats, features_b: Floats) -> float:
    """Return the linear centred kernel alignment of the features of two networks for the same images.

        ||B^T A||_F^2 / (||A^T A||_F ||B^T B||_F),    A and B with column means of 0

    It takes D_a * D_b numbers of memory, and no N x N matrix. With fewer images than features it is near 1 for any
    networks; take several times as many images as features.

    Args:
        features_a: [N, D_a], such as pooled maps or embeddings.
        features_b: [N, D_b], of the same images in the same order; D_b may differ from D_a.

    Returns:
        From 0, no linear relation, to 1, equal but for rotation and scale. The order of the two does not matter.

    Raises:
        ValueError: features are not finite floats [N, D] with equal N, or do not vary over images.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), section 3.
    """
    a, b = centred(features_a), centred(features_b)
    if len(a) != len(b):
        raise ValueError(f"features are of {len(a)} and {len(b)} images; both must be of the same images")
    alignment = float(norm(b.T @ a)) ** 2 / (float(norm(a.T @ a)) * float(norm(b.T @ b)))
    return min(alignment, 1.0)  # rounding alone exceeds 1


def centred(features: Floats) -> NDArray[np.float64]:
    """Return features [N, D] in float64 with column means of 0 and a largest absolute value of 1."""
    array = np.asarray(features)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or not array.size:
        raise ValueError(f"features are {array.dtype} {list(array.shape)}; they must be floats [N, D]")
    if not np.isfinite(array).all():
        raise ValueError("features are not finite")
    wide = array.astype(np.float64)
    scale = float(np.abs(wide).max())
    wide /= scale or 1.0  # before the mean, whose sum would overflow
    wide -= wide.mean(axis=0)
    spread = float(np.abs(wide).max())
    if spread <= 1e-12:
        raise ValueError("features do not vary over images")
    wide /= spread
    return wide
