"""Bad pixels: kept, set to NaN, or interpolated between their good neighbours.

Interpolation is the only operation that couples pixels, so it runs after all blocks are in. It runs along the spatial
axis. A column of the spectrum without a good pixel is interpolated along wavelength, row by row, between the nearest
columns that have one. A pixel with a good neighbour on one side only gets that neighbour's value. Positions and weights
are those of `numpy.interp`. They are the same for every bin, so a pixel is ``(1 − w) · first + w · second`` at any
time, and its variance is ``(1 − w)² · var(first) + w² · var(second)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpucal.science.plan import DQ
from gpucal.science.steps import Array, namespace

__all__ = ["Mend", "carry_variance", "find_mends", "gather", "interpolate", "plan_repair", "unusable"]

Pixel: TypeAlias = "tuple[int, int]"
"""Wavelength and spatial index."""


@dataclass(frozen=True)
class Mend:
    """A bad pixel as a mean of two others: ``(1 − weight) · first + weight · second``."""

    pixel: Pixel
    first: Pixel
    second: Pixel
    weight: float


def unusable(dq: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which pixels have a flag and were not interpolated; COSMIC alone does not make a pixel unusable."""
    bad: NDArray[np.bool_] = (dq & ~np.uint8(DQ.COSMIC) != 0) & (dq & np.uint8(DQ.INTERPOLATED) == 0)
    return bad


def find_mends(dq: NDArray[np.uint8]) -> list[Mend]:
    """Find the good pixels from which each bad pixel is interpolated.

    Parameters
    ----------
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags; INTERPOLATED or COSMIC alone does not make a pixel bad.

    Returns
    -------
    list of Mend
        To be done in this order: whole columns come last, as they use pixels mended before. Empty if no pixel is good.
    """
    bad = (dq & ~np.uint8(DQ.INTERPOLATED | DQ.COSMIC)) != 0
    mends = []
    columns = np.flatnonzero(~bad.all(axis=1))
    for x in columns[bad[columns].any(axis=1)].tolist():
        good, wanted = np.flatnonzero(~bad[x]), np.flatnonzero(bad[x])
        mends += [Mend((x, y), (x, first), (x, second), weight) for y, first, second, weight in _between(good, wanted)]
    if columns.size:
        for x, first, second, weight in _between(columns, np.flatnonzero(bad.all(axis=1))):
            mends += [Mend((x, y), (first, y), (second, y), weight) for y in range(bad.shape[1])]
    return mends


def _between(good: NDArray[np.intp], wanted: NDArray[np.intp]) -> list[tuple[int, int, int, float]]:
    """Return each wanted position, its two good neighbours, and the weight of the second."""
    rank = np.interp(wanted, good, np.arange(good.size))
    before = np.floor(rank).astype(np.intp)
    after = np.where(rank > before, before + 1, before)  # at either end, the one neighbour counts as both
    return list(
        zip(wanted.tolist(), good[before].tolist(), good[after].tolist(), (rank - before).tolist(), strict=True)
    )


def interpolate(signal: Array, mends: Sequence[Mend]) -> None:
    """Interpolate bad pixels of a signal (time, wavelength, spatial), of NumPy or CuPy, in place, with `find_mends`."""
    xp = namespace(signal)
    for mend in mends:
        first, second = (xp.asarray(signal[:, x, y], dtype=xp.float64) for x, y in (mend.first, mend.second))
        signal[:, mend.pixel[0], mend.pixel[1]] = (1.0 - mend.weight) * first + mend.weight * second


def carry_variance(variance: Array, mends: Sequence[Mend]) -> None:
    """Give interpolated pixels the variance of their weighted mean, in place.

    Parameters
    ----------
    variance : array of float64, shape (time, wavelength, spatial)
        Of the pixels as measured, electrons².
    mends : sequence of Mend
        From `find_mends`.
    """
    for mend in mends:
        (a, b), (c, d) = mend.first, mend.second
        mean = (1.0 - mend.weight) ** 2 * variance[:, a, b] + mend.weight**2 * variance[:, c, d]
        variance[:, mend.pixel[0], mend.pixel[1]] = mean


def gather(coefficients: Array, mends: Sequence[Mend]) -> None:
    """Move the coefficients of interpolated pixels to the measured pixels that they were made of, in place.

    The sum over all pixels stays the same. Interpolated pixels share noise with measured ones; variances add up only
    over measured ones.

    Parameters
    ----------
    coefficients : array of float64, shape (wavelength, spatial)
        Factor of each pixel in the sum; 0 at interpolated pixels afterwards.
    mends : sequence of Mend
        From `find_mends`.
    """
    for mend in reversed(mends):
        share = coefficients[mend.pixel[0], mend.pixel[1]] + 0.0
        coefficients[mend.pixel[0], mend.pixel[1]] = 0.0
        for (x, y), weight in ((mend.first, 1.0 - mend.weight), (mend.second, mend.weight)):
            coefficients[x, y] = coefficients[x, y] + weight * share


def plan_repair(dq: NDArray[np.uint8], how: str) -> tuple[NDArray[np.uint8], Callable[[Array], None] | None]:
    """Return the flags after bad pixels are handled, and the function that handles them.

    Parameters
    ----------
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    how : {'keep', 'nan', 'interpolate'}
        As in `gpucal.Calibration`.

    Returns
    -------
    dq : ndarray of uint8, shape (wavelength, spatial)
        The flags, with INTERPOLATED where pixels are interpolated. If no pixel is good, none can be, and all become
        NaN.
    change : callable or None
        Changes a signal (time, wavelength, spatial) in place; None if nothing is to change.
    """
    mends = find_mends(dq) if how == "interpolate" else []
    if mends:
        mended = dq.copy()
        for mend in mends:
            mended[mend.pixel] |= np.uint8(DQ.INTERPOLATED)
        return mended, lambda signal: interpolate(signal, mends)
    bad = np.argwhere(unusable(dq)).tolist()
    if how == "keep" or not bad:
        return dq, None
    return dq, lambda signal: _blank(signal, bad)


def _blank(signal: Array, bad: Sequence[Sequence[int]]) -> None:
    for x, y in bad:
        signal[:, x, y] = float("nan")
