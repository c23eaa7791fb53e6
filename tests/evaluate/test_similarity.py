"""Similarity of images: against scikit-image's SSIM, exact properties, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dori_fast import demo
from dori_fast.errors import UsageError
from dori_fast.evaluate.similarity import (
    SSIM_SIGMA,
    THRESHOLD,
    blur,
    blurred_correlation,
    gaussian_matrix,
    luminance_ssim,
    similarity,
)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    a = noise(0, 64, 64, 3)
    b = np.clip(a + rng.normal(0, 40, a.shape), 0, 255).astype(np.uint8)
    grey = [x.astype(float) @ np.array([0.299, 0.587, 0.114]) for x in (a, b)]
    ours = luminance_ssim(a.astype(float), b.astype(float))
    theirs = metrics.structural_similarity(
        *grey,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )[1].mean()
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_blur_agrees_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = noise(1, 40, 52).astype(float)
    theirs = ndimage.gaussian_filter(x, 1.5, truncate=3.5, mode="reflect")
    np.testing.assert_allclose(blur(x, 1.5), theirs, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 70), sigma=st.floats(0.3, 4))
def test_blur_keeps_the_mean_of_constant_images(size: int, sigma: float) -> None:
    np.testing.assert_allclose(gaussian_matrix(size, sigma).sum(axis=1), 1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_equal_is_one_and_order_does_not_matter(seed: int) -> None:
    a, b = noise(seed, 24, 32, 3), noise(seed + 1, 24, 32, 3)
    assert similarity(a, a) == pytest.approx(1)
    assert similarity(a, b) == pytest.approx(float(similarity(b, a)))
    assert -1 <= similarity(a, b) <= 1


def test_negative_and_flat_images() -> None:
    a = noise(3, 32, 32, 3)
    assert blurred_correlation(a.astype(float), 255.0 - a) == pytest.approx(-1)
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert blurred_correlation(a.astype(float), flat.astype(float)) == 0


def test_leading_axes_broadcast() -> None:
    a, b = noise(4, 3, 1, 16, 16, 3), noise(5, 2, 16, 16, 3)
    whole = similarity(a, b)
    assert whole.shape == (3, 2) and whole.dtype == np.float64
    assert whole[2, 1] == pytest.approx(float(similarity(a[2, 0], b[1])))


def test_threshold_separates_damaged_copies_from_unrelated_images() -> None:
    images = np.stack([image for _, image in demo.pairs("memorized")])
    unrelated = similarity(images[:, None], images[None])
    assert unrelated[~np.eye(len(images), dtype=bool)].max() < THRESHOLD
    rng = np.random.default_rng(0)
    noisy = np.clip(images + rng.normal(0, 12, images.shape), 0, 255).astype(np.uint8)
    assert similarity(images, noisy).min() > THRESHOLD


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)]
)
def test_other_images_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(UsageError, match="pass uint8"):
        similarity(bad, np.zeros((8, 8, 3), np.uint8))


def test_different_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="resize one of them"):
        similarity(noise(0, 8, 8, 3), noise(0, 8, 9, 3))
