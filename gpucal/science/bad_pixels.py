"""Bad pixels: kept, set to NaN, or made of good neighbours, along a straight line or by the profile of the star.

Interpolation is the only operation that couples pixels, so it runs after all blocks are in. It runs along the spatial
axis. A column of the spectrum without a good pixel is interpolated along wavelength, row by row, between the nearest
columns that have one. A pixel with a good neighbour on one side only gets that neighbour's value. Positions and weights
are those of `numpy.interp`. They are the same for every bin, so a pixel is ``(1 − w) · first + w · second`` at any
time, and its variance is ``(1 − w)² · var(first) + w² · var(second)``.

By profile, a pixel is a sum over the good pixels of its column, with weights that are the same for every bin too. Each
of the ten nearest columns n makes an estimate from its mean over time, m, over the rows g that are good in both:

    pixel[b] = m[n, y] · f[b]        f[b] = Σ_g m[n, g] · signal[b, x, g] / Σ_g m[n, g]²

f is the least-squares factor between the two columns. The pixel is the mean of its estimates, each with the weight
Σ_g m[n, g]², or their median if that is smaller: so columns beside FGS1's star count little, and none counts alone. A
column that lacks the pixel makes no estimate. Without any the pixel is interpolated, and so are whole columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpucal.science.plan import DQ
from gpucal.science.steps import Array, namespace, time_parts

__all__ = [
    "MENDING",
    "Blend",
    "Mend",
    "Mends",
    "carry_variance",
    "find_mends",
    "gather",
    "interpolate",
    "mean_profile",
    "mends_of",
    "plan_repair",
    "unusable",
]

MENDING = ("interpolate", "profile")
"""Values of the setting ``bad_pixels`` that make bad pixels of good ones."""

_NEAR = 5  # columns on either side whose profiles count: their traces are a twentieth of a pixel apart at most

Pixel: TypeAlias = "tuple[int, int]"
"""Wavelength and spatial index."""


@dataclass(frozen=True)
class Mend:
    """A bad pixel as a mean of two others: ``(1 − weight) · first + weight · second``."""

    pixel: Pixel
    first: Pixel
    second: Pixel
    weight: float

    def value(self, values: Array, power: int = 1) -> Array:
        """Return the sum over the two, (time,), of their values (time, wavelength, spatial) with powers of weights."""
        xp = namespace(values)
        first, second = (xp.asarray(values[:, x, y], dtype=xp.float64) for x, y in (self.first, self.second))
        return (1.0 - self.weight) ** power * first + self.weight**power * second

    def share(self, coefficients: Array, moved: Array) -> None:
        """Add to the coefficients (wavelength, spatial) of the two their parts of one."""
        for (x, y), weight in ((self.first, 1.0 - self.weight), (self.second, self.weight)):
            coefficients[x, y] = coefficients[x, y] + weight * moved


@dataclass(frozen=True, eq=False)
class Blend:
    """A bad pixel as a sum over its column, with a weight for each row, 0 for bad pixels."""

    pixel: Pixel
    weights: NDArray[np.float64]

    @property
    def first(self) -> Pixel:
        """The first pixel that counts."""
        return self.pixel[0], int(np.flatnonzero(self.weights)[0])

    def value(self, values: Array, power: int = 1) -> Array:
        """See `Mend.value`."""
        xp = namespace(values)
        column, weights = xp.asarray(values[:, self.pixel[0], :], dtype=xp.float64), xp.asarray(self.weights**power)
        with np.errstate(invalid="ignore", over="ignore"):  # from bad pixels, which are then left out
            return xp.sum(xp.where(weights != 0.0, column * weights, 0.0), axis=1)

    def share(self, coefficients: Array, moved: Array) -> None:
        """See `Mend.share`."""
        x = self.pixel[0]
        coefficients[x, :] = coefficients[x, :] + namespace(coefficients).asarray(self.weights) * moved


Mends: TypeAlias = Sequence[Mend | Blend]
"""Bad pixels and what they are made of, in the order in which that is done."""


def unusable(dq: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which pixels have a flag and were not interpolated; COSMIC alone does not make a pixel unusable."""
    bad: NDArray[np.bool_] = (dq & ~np.uint8(DQ.COSMIC) != 0) & (dq & np.uint8(DQ.INTERPOLATED) == 0)
    return bad


def mends_of(dq: NDArray[np.uint8], mends: Mends | None = None) -> Mends:
    """Return the mends of a product whose flags say INTERPOLATED: those given, or straight lines."""
    if mends is None:
        return find_mends(dq) if (dq & np.uint8(DQ.INTERPOLATED)).any() else []
    return mends


def find_mends(dq: NDArray[np.uint8], profile: NDArray[np.float64] | None = None) -> list[Mend | Blend]:
    """Find the good pixels of which each bad pixel is made.

    Parameters
    ----------
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags; INTERPOLATED or COSMIC alone does not make a pixel bad.
    profile : ndarray of float64, shape (wavelength, spatial), optional
        Mean over time, see `mean_profile`; without it all bad pixels are interpolated.

    Returns
    -------
    list of Mend or Blend
        To be done in this order: whole columns come last, as they use pixels mended before. Empty if no pixel is good.
    """
    bad = (dq & ~np.uint8(DQ.INTERPOLATED | DQ.COSMIC)) != 0
    mends: list[Mend | Blend] = []
    columns = np.flatnonzero(~bad.all(axis=1))
    for x in columns[bad[columns].any(axis=1)].tolist():
        good, wanted = np.flatnonzero(~bad[x]), np.flatnonzero(bad[x])
        lines = [Mend((x, y), (x, first), (x, second), weight) for y, first, second, weight in _between(good, wanted)]
        mends += lines if profile is None else [_blend(profile, bad, line.pixel) or line for line in lines]
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


def _blend(profile: NDArray[np.float64], bad: NDArray[np.bool_], pixel: Pixel) -> Blend | None:
    """Make a pixel a sum over good ones of its column; None if no column near it can say how."""
    x, y = pixel
    near = np.array([n for n in range(max(0, x - _NEAR), min(len(bad), x + _NEAR + 1)) if n != x and not bad[n, y]])
    if not near.size:
        return None
    shapes = np.where(bad[near] | bad[x], 0.0, profile[near])
    with np.errstate(all="ignore"):  # columns without light, and pixels that are not finite: they make no estimate
        power = np.sum(shapes**2, axis=1)
        found = shapes * (profile[near, y] / power)[:, None]
    told = np.isfinite(power) & np.isfinite(found).all(axis=1)
    if not found[told].any():
        return None
    return Blend(pixel, np.average(found[told], axis=0, weights=np.minimum(power[told], np.median(power[told]))))


def mean_profile(signal: Array) -> NDArray[np.float64]:
    """Return the mean over time of a signal (time, wavelength, spatial), over finite bins; always on the host."""
    host: NDArray[Any] = signal.get() if hasattr(signal, "get") else signal
    total, n = np.zeros(host.shape[1:]), np.zeros(host.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):  # of bad pixels, which do not count
        for part in time_parts(host):
            finite = np.isfinite(host[part])
            total += np.sum(np.where(finite, host[part], 0.0), axis=0, dtype=np.float64)
            n += finite.sum(axis=0)
        mean: NDArray[np.float64] = np.where(n > 0, total / np.maximum(n, 1), np.nan)
    return mean


def interpolate(signal: Array, mends: Mends) -> None:
    """Mend bad pixels of a signal (time, wavelength, spatial), of NumPy or CuPy, in place, with `find_mends`."""
    for mend in mends:
        x, y = mend.pixel
        signal[:, x, y] = mend.value(signal)


def _by_profile(signal: Array, dq: NDArray[np.uint8]) -> None:
    """Mend a signal in place, on the host, so that a device has the same bits."""
    host: NDArray[Any] = signal.get() if hasattr(signal, "get") else signal
    interpolate(host, find_mends(dq, mean_profile(host)))
    if host is not signal:
        signal[...] = namespace(signal).asarray(host)


def carry_variance(variance: Array, mends: Mends) -> None:
    """Give mended pixels the variance of their weighted sum, in place.

    Parameters
    ----------
    variance : array of float64, shape (time, wavelength, spatial)
        Of the pixels as measured, electrons².
    mends : sequence of Mend or Blend
        From `find_mends`.
    """
    for mend in mends:
        x, y = mend.pixel
        variance[:, x, y] = mend.value(variance, power=2)


def gather(coefficients: Array, mends: Mends) -> None:
    """Move the coefficients of mended pixels to the measured pixels that they were made of, in place.

    The sum over all pixels stays the same. Mended pixels share noise with measured ones; variances add up only
    over measured ones.

    Parameters
    ----------
    coefficients : array of float64, shape (wavelength, spatial)
        Factor of each pixel in the sum; 0 at mended pixels afterwards.
    mends : sequence of Mend or Blend
        From `find_mends`.
    """
    for mend in reversed(mends):
        x, y = mend.pixel
        moved = coefficients[x, y] + 0.0
        coefficients[x, y] = 0.0
        mend.share(coefficients, moved)


def plan_repair(dq: NDArray[np.uint8], how: str) -> tuple[NDArray[np.uint8], Callable[[Array], None] | None]:
    """Return the flags after bad pixels are handled, and the function that handles them.

    Parameters
    ----------
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    how : {'keep', 'nan', 'interpolate', 'profile'}
        As in `gpucal.Calibration`.

    Returns
    -------
    dq : ndarray of uint8, shape (wavelength, spatial)
        The flags, with INTERPOLATED where pixels are made of others. If no pixel is good, none can be, and all become
        NaN.
    change : callable or None
        Changes a signal (time, wavelength, spatial) in place; None if nothing is to change.
    """
    mends = find_mends(dq) if how in MENDING else []
    if mends:
        mended = dq.copy()
        for mend in mends:
            mended[mend.pixel] |= np.uint8(DQ.INTERPOLATED)
        if how == "profile":
            return mended, lambda signal: _by_profile(signal, dq)
        return mended, lambda signal: interpolate(signal, mends)
    bad = np.argwhere(unusable(dq)).tolist()
    if how == "keep" or not bad:
        return dq, None
    return dq, lambda signal: _blank(signal, bad)


def _blank(signal: Array, bad: Sequence[Sequence[int]]) -> None:
    for x, y in bad:
        signal[:, x, y] = float("nan")
