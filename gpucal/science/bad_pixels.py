"""Bad pixels as they are to be handed on: kept, NaN, or a straight line between their good neighbours.

Interpolation is the one thing that couples pixels, so it comes after all blocks are in. It runs along the spatial axis;
a column of the spectrum without a good pixel is interpolated along wavelength, between the nearest columns that have
one, row by row. Where only one side has a good neighbour, its value is taken. Positions and weights are those of
`numpy.interp`; they are the same for every bin, so a pixel is ``(1 − w) · first + w · second`` at any time, and its
variance ``(1 − w)² · var(first) + w² · var(second)``.
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
    """Tell which pixels have a flag and were not interpolated.

    Parameters
    ----------
    dq : ndarray of uint8
        Data-quality flags.

    Returns
    -------
    ndarray of bool
        Of the same shape.
    """
    bad: NDArray[np.bool_] = (dq != 0) & (dq & np.uint8(DQ.INTERPOLATED) == 0)
    return bad


def find_mends(dq: NDArray[np.uint8]) -> list[Mend]:
    """Find what bad pixels are to be interpolated from.

    Parameters
    ----------
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags; INTERPOLATED alone does not make a pixel bad.

    Returns
    -------
    list of Mend
        To be done in this order: whole columns come last, from what was mended before. Empty where no pixel is good.
    """
    bad = (dq & ~np.uint8(DQ.INTERPOLATED)) != 0
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
    """Return each wanted position, the good ones beside it, and the weight of the second."""
    rank = np.interp(wanted, good, np.arange(good.size))
    before = np.floor(rank).astype(np.intp)
    after = np.where(rank > before, before + 1, before)  # at either end one neighbour, which is both
    return list(
        zip(wanted.tolist(), good[before].tolist(), good[after].tolist(), (rank - before).tolist(), strict=True)
    )


def interpolate(signal: Array, mends: Sequence[Mend]) -> None:
    """Interpolate bad pixels, in place.

    Parameters
    ----------
    signal : array, shape (time, wavelength, spatial)
        Electrons; of NumPy or CuPy.
    mends : sequence of Mend
        From `find_mends`.
    """
    xp = namespace(signal)
    for mend in mends:
        first, second = (xp.asarray(signal[:, x, y], dtype=xp.float64) for x, y in (mend.first, mend.second))
        signal[:, mend.pixel[0], mend.pixel[1]] = (1.0 - mend.weight) * first + mend.weight * second


def carry_variance(variance: Array, mends: Sequence[Mend]) -> None:
    """Give interpolated pixels the variance of what they are, in place.

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
    """Turn the coefficients of a sum over pixels into those of the same sum over measured pixels alone, in place.

    Interpolated pixels share noise with what they are made of; only over measured ones do variances add up.

    Parameters
    ----------
    coefficients : array of float64, shape (wavelength, spatial)
        What each pixel is multiplied by in the sum; 0 at interpolated pixels afterwards.
    mends : sequence of Mend
        From `find_mends`.
    """
    for mend in reversed(mends):
        share = coefficients[mend.pixel[0], mend.pixel[1]] + 0.0
        coefficients[mend.pixel[0], mend.pixel[1]] = 0.0
        for (x, y), weight in ((mend.first, 1.0 - mend.weight), (mend.second, mend.weight)):
            coefficients[x, y] = coefficients[x, y] + weight * share


def plan_repair(dq: NDArray[np.uint8], how: str) -> tuple[NDArray[np.uint8], Callable[[Array], None] | None]:
    """Say what becomes of bad pixels.

    Parameters
    ----------
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    how : {'keep', 'nan', 'interpolate'}
        As in `gpucal.Calibration`.

    Returns
    -------
    dq : ndarray of uint8, shape (wavelength, spatial)
        The flags, INTERPOLATED among them where that is done. Where no pixel is good, nothing can be interpolated: all
        become NaN.
    change : callable or None
        What to do to the signal (time, wavelength, spatial), in place.
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
