"""Pointing: how an image moves, from a fit of its own mean and of that mean's derivatives.

    signal[b, pixel] = brightness[b] · (M[pixel] − dx[b] · ∂M/∂x[pixel] − dy[b] · ∂M/∂y[pixel])

M is the mean over time. The fit is linear, with weights of one over the mean variance: each of its results is a sum of
pixels with factors that do not depend on time. A spectrum has a brightness for each wavelength, and moves along the
slit; a photometer has one brightness, and moves along both axes. Bad and interpolated pixels are left out.

Derivatives are those of a compact scheme, ``d[i−1] + 3 d[i] + d[i+1] = 7/3 · (M[i+1] − M[i−1]) + 1/12 · (M[i+2] −
M[i−2])`` (Lele 1992, J. Comput. Phys. 103, 16), good to 0.3 % for a star of σ 1.1 pixels; central differences are up to
8 % off. The two outermost pixels have lower orders. Bad pixels are first filled in by the smoothest image: the one with
the least fourth differences along both axes at once, and a tenth of those along either.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucal.science.plan import DQ
from gpucal.science.steps import Array, namespace, time_parts

__all__ = ["Pointing", "derivative", "fill", "measured", "pointing", "profile_weights"]

_ORDER, _EITHER = 4, 0.1
# Wavelengths that are filled in together, and those beside them, on either side, that are looked at; and how much a
# value that nothing decides is held at 0.
_WINDOW, _BESIDE, _UNDECIDED = 16, 8, 1e-10
# A scheme of five pixels needs as many.
_LEAST = 5
# Smallest eigenvalue of the correlations of M and its derivatives with which they can still be told apart.
_TOLD_APART = 1e-6
# A star is seen if the derivatives are this many times those that the mean image's noise would have.
_SEEN = 2.0

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


class Pointing(NamedTuple):
    """Position of the image in each bin, relative to the median, and its errors, in pixels.

    Parameters
    ----------
    dx, dy : ndarray of float64, shape (time,)
        Shift along axes 1 and 2 of the cube. A spectrum is measured along the slit alone, so its ``dx`` is NaN.
    dx_error, dy_error : ndarray of float64, shape (time,)
        Standard deviations, from the variances of the pixels.
    """

    dx: Float
    dy: Float
    dx_error: Float
    dy_error: Float


class _Fit(NamedTuple):
    """Factors of pixels: ``of[k]`` sums to 1 over component k of a group, and to 0 over its others.

    The components are M and what a shift of one pixel along each axis adds to it; groups are wavelengths, or all of a
    photometer's image. ``variance[k]``, (group, 1), is that of the k-th sum.
    """

    of: Float
    variance: Float


def measured(dq: NDArray[np.uint8]) -> Bool:
    """Tell which pixels hold a measured, good value: those without a flag, or with COSMIC alone."""
    good: Bool = (dq & ~np.uint8(DQ.COSMIC)) == 0
    return good


def pointing(
    signal: NDArray[Any], dq: NDArray[np.uint8], noise: Float, *, photometer: bool, image: Float | None = None
) -> Pointing:
    """Measure the pointing of each bin.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons; of NumPy or CuPy.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags; pixels with a flag other than COSMIC are left out.
    noise : ndarray of float64, shape (wavelength, spatial)
        Mean variance of the pixels, electrons², on the host.
    photometer : bool
        Whether the detector takes images instead of spectra.
    image : ndarray of float64, shape (wavelength, spatial), optional
        The mean of the signal over time, on the host, where it is known.

    Returns
    -------
    Pointing
        On the host. All NaN where no star is seen: where the noise of the mean image explains half of the derivatives,
        or more.
    """
    n = len(signal)
    image = _on_host(_mean(signal)) if image is None else image
    good = measured(dq) & np.isfinite(image) & np.isfinite(noise) & (noise > 0.0)
    found = np.full((4, n), np.nan)
    with np.errstate(all="ignore"):
        variance = np.where(good, noise, 0.0)
        weight = np.where(good, 1.0 / noise, 0.0)
        fit = _fit(np.stack([np.where(good, image, 0.0), *_moves(image, good, photometer)]), weight, photometer)
        factors: dict[int, list[Float]] = {}
        for component, axis in enumerate((0, 1) if photometer else (1,), 1):
            told = np.where(fit.variance[component] > 0.0, 1.0 / fit.variance[component], 0.0)
            by_noise = np.count_nonzero(good) * (_derivative(image.shape[axis]) ** 2).sum(axis=1).mean() / max(n, 1)
            if told.sum() > _SEEN * by_noise:
                factors[axis] = [told * fit.of[component], told * fit.of[0]]
        if factors:
            sums = iter(_sums_over(signal, np.stack([*chain.from_iterable(factors.values())])).T)
            for axis, (moved, light) in factors.items():
                found[axis], found[axis + 2] = _shifts(next(sums), next(sums), moved, light, variance)
    return Pointing(*found)


def _shifts(up: Float, down: Float, moved: Float, light: Float, variance: Float) -> tuple[Float, Float]:
    """Return the ratio of two sums, whose factors are given, less its median, and its error."""
    shift = up / down
    a, b, c = ((one * other * variance).sum() for one, other in ((moved, moved), (moved, light), (light, light)))
    there = shift[np.isfinite(shift)]
    middle = np.median(there) if there.size else np.nan
    return shift - middle, np.sqrt(a - 2.0 * shift * b + shift**2 * c) / np.abs(down)


def profile_weights(image: Array, noise: Array, good: Array, inside: Array, photometer: bool) -> Array:
    """Return the factors of pixels whose sum is the brightness of M, whatever the shift.

    Parameters
    ----------
    image, noise : array of float64, shape (wavelength, spatial)
        Means over time of the signal, less the background, and of its variance; of NumPy or CuPy.
    good : array of bool, shape (wavelength, spatial)
        The pixels to use.
    inside : array of bool, shape (wavelength, spatial)
        Those among them to fit; the others serve for derivatives alone.
    photometer : bool
        Fit all pixels together; if False, those of each wavelength.

    Returns
    -------
    array of float64, shape (wavelength, spatial)
        The sum over the mean image is 1; 0 where nothing can be fitted. Computed on the host.
    """
    xp = namespace(image)
    values, variances, used, fitted = (_on_host(of) for of in (image, noise, good, inside))
    used = used & np.isfinite(values) & np.isfinite(variances) & (variances > 0.0)
    with np.errstate(all="ignore"):
        weight = np.where(used & fitted, 1.0 / variances, 0.0)
        vectors = np.stack([np.where(used, values, 0.0), *_moves(values, used, photometer)])
        return xp.asarray(_fit(vectors, weight, photometer).of[0])


def derivative(n: int) -> Float:
    """Return the matrix (n, n) that turns n values into their derivatives; all 0 for fewer than five."""
    if n < _LEAST:
        return np.zeros((n, n))
    one, two = np.eye(n, k=1), np.eye(n, k=2)
    left = np.eye(n) + (one + one.T) / 3
    right = (one - one.T) * (7 / 9) + (two - two.T) / 36
    left[[1, -2]] = np.eye(n)[[1, -2]] + (one + one.T)[[1, -2]] / 4
    right[[1, -2]] = (one - one.T)[[1, -2]] * (3 / 4)
    right[[0, -1]] = 0.0
    left[0, 1] = left[-1, -2] = 2.0
    right[0, :3] = -5 / 2, 2, 1 / 2
    right[-1, -3:] = -1 / 2, -2, 5 / 2
    return np.asarray(np.linalg.solve(left, right), dtype=np.float64)


@lru_cache(8)
def _derivative(n: int) -> Float:
    """Return `derivative`, read-only, made once for each length: an item needs it up to four times."""
    made = derivative(n)
    made.flags.writeable = False
    return made


def fill(image: Float, good: Bool) -> Float:
    """Fill bad pixels in so that the image is as smooth as can be.

    Parameters
    ----------
    image : ndarray of float64, shape (wavelength, spatial)
        Finite where it is good.
    good : ndarray of bool, shape (wavelength, spatial)
        The pixels to keep.

    Returns
    -------
    ndarray of float64, shape (wavelength, spatial)
        The image with the least Σ (Δx⁴ Δy⁴ image)² + 0.1 · Σ (Δx⁴ image)² + 0.1 · Σ (Δy⁴ image)²; differences are of
        lower orders on axes of four pixels or fewer. Many wavelengths are filled 16 at a time, with the eight beside
        them on either side. All 0 if no pixel is good.
    """
    smooth = np.where(good, image, 0.0)
    if good.all() or not good.any():
        return smooth
    kept, width, y = smooth.copy(), len(image), _roughness(image.shape[1])
    window = width if width <= _WINDOW + 2 * _BESIDE else _WINDOW
    of_width: dict[int, Float] = {}
    for start in range(0, width, window):
        if good[start : start + window].all():
            continue
        first, stop = max(start - _BESIDE, 0), min(start + window + _BESIDE, width)
        if stop - first not in of_width:
            of_width[stop - first] = _roughness(stop - first)
        part = _filled(kept[first:stop], good[first:stop], of_width[stop - first], y)
        smooth[start : start + window] = part[start - first :][:window]
    return smooth


def _filled(image: Float, good: Bool, x: Float, y: Float) -> Float:
    """Fill in what is bad, by the equations of that minimum; ``image`` is 0 there, x and y are `_roughness`."""
    beside = image @ y
    slope = x @ (beside + _EITHER * image) + _EITHER * beside
    of_x, of_y = np.nonzero(~good)
    xx, yy = x[np.ix_(of_x, of_x)], y[np.ix_(of_y, of_y)]
    same_x, same_y = of_x[:, None] == of_x, of_y[:, None] == of_y
    bends = xx * yy + _EITHER * (xx * same_y + same_x * yy)
    # Where the good pixels do not decide a value, this makes it small.
    bends[np.diag_indices_from(bends)] *= 1.0 + _UNDECIDED
    filled = image.copy()
    filled[~good] = np.linalg.solve(bends, -slope[~good])
    return filled


def _roughness(n: int) -> Float:
    steps = np.diff(np.eye(n), n=min(_ORDER, n - 1), axis=0) if n > 1 else np.zeros((1, 1))
    return steps.T @ steps


def _moves(image: Float, good: Bool, photometer: bool) -> list[Float]:
    """Return what a shift of one pixel adds to the image, along each axis that is measured; 0 at bad pixels."""
    whole = fill(image, good)
    along = [_derivative(image.shape[0]) @ whole] if photometer else []
    return [np.where(good, -slope, 0.0) for slope in (*along, whole @ _derivative(image.shape[1]).T)]


def _fit(vectors: Float, weight: Float, photometer: bool) -> _Fit:
    """Fit components, (component, wavelength, spatial), to the pixels of each group, with weights."""
    n, width, height = vectors.shape
    groups = (n, 1, width * height) if photometer else (n, width, height)
    parts, w = vectors.reshape(groups), weight.reshape(groups[1:])
    weighted = (parts * w).transpose(1, 0, 2)
    products = weighted @ parts.transpose(1, 2, 0)
    usable = np.isfinite(products).all(axis=(1, 2))  # outliers without a flag may overflow
    weighted[~usable] = products[~usable] = 0.0
    norms = np.sqrt(np.einsum("gkk->gk", products))
    there = norms > 0.0
    norms = np.where(there, norms, 1.0)
    products = products / norms[:, :, None] / norms[:, None, :] + np.eye(n) * ~there[:, None, :]
    apart = np.linalg.eigvalsh(products)[:, 0] > _TOLD_APART
    products[~apart] = np.eye(n)
    there[~apart, 1:] = False
    inverse = np.linalg.inv(products) * there[:, :, None] * there[:, None, :] / norms[:, :, None] / norms[:, None, :]
    of = (inverse @ weighted).transpose(1, 0, 2).reshape(vectors.shape)
    return _Fit(of, np.einsum("gkk->kg", inverse)[:, :, None])


def _mean(signal: Array) -> Array:
    xp = namespace(signal)
    with np.errstate(invalid="ignore", over="ignore"):
        return xp.sum(signal, axis=0, dtype=xp.float64) / max(len(signal), 1)


def _sums_over(signal: Array, factors: Float) -> Float:
    """Return the sums of factors times signal, (time, factor); signals do not count where every factor is 0."""
    unused = (factors == 0.0).all(axis=0)
    matrix = factors.reshape(len(factors), -1).T
    sums = np.empty((len(signal), len(factors)))
    for part in time_parts(signal):  # as 0 times NaN is NaN, those that do not count become 0
        if isinstance(signal, np.ndarray):  # one product of matrices instead of a sum a factor
            values = signal[part].astype(np.float64)
            np.copyto(values, 0.0, where=unused)
            sums[part] = values.reshape(len(values), -1).dot(matrix)
            continue
        xp = namespace(signal)
        values = xp.where(xp.asarray(unused), 0.0, signal[part, ...])
        for k, of in enumerate(factors):
            sums[part, k] = _on_host(xp.sum(values * xp.asarray(of), axis=(1, 2)))
    return sums


def _on_host(array: Array) -> NDArray[Any]:
    return array.get() if hasattr(array, "get") else np.asarray(array)
