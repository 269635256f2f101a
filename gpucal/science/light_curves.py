"""Light curves: sums over spatial pixels, as one map of coefficients, so that their errors are those of the sum.

    flux[b, λ] = Σ_y c[λ, y] · signal[b, λ, y]        error² = Σ_y c² · variance        (a photometer: Σ over λ too)

All choices are in c, which does not depend on time, so they keep a transit's depth. Bad pixels have 0. Plain weights
are 1. Optimal weights are P/V · Σ P / Σ (P²/V), with the mean profile P and the mean variance V (Horne 1986, PASP 98,
609). Background rows have −Σc / their number. An interpolated pixel's coefficient goes to the pixels it was made of.
The light curve of a column that was interpolated as a whole is a mean of its neighbours' light curves.

Optimal weights come from a profile that has noise itself, so faint light comes out too large: by 27 % at 300 e⁻ a bin
and column, 0.9 % at 3,000, nothing at 10,000. Its transit depth comes out too small: by 6, 0.1 and 0 %
(``benchmarks/closure.py --weights``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpucal.science.bad_pixels import Mend, carry_variance, find_mends, gather, interpolate, unusable
from gpucal.science.plan import DQ, Plan
from gpucal.science.steps import Array, namespace, time_parts
from gpucal.settings.detectors import Detector
from gpucal.settings.rules import Window, check_aperture, checked_window, checked_windows
from gpucal.settings.table import SETTINGS

__all__ = [
    "Aperture",
    "Choices",
    "LightCurve",
    "coefficients",
    "light_curve",
    "light_curve_of_plan",
    "light_curve_with_errors",
    "weighted_sum",
    "white_light",
]


@dataclass(frozen=True)
class Aperture:
    """The pixels of a light curve, and their weights.

    Parameters
    ----------
    detector : Detector
        The detector.
    weights : {'plain', 'variance'}
        Every good pixel counts 1, or the optimal weights of profile over variance.
    rows : tuple of int, optional
        First and one-past-last spatial row; by default all.
    background_rows : sequence of tuple of int
        Windows of rows, or one, whose mean is the background: of each wavelength, or of all for a photometer. A light
        curve without a usable pixel in these rows is NaN. Without the subtraction it would not compare with the others.

    Raises
    ------
    ConfigError
        If a value is not possible, or the background rows are the rows that are summed.
    """

    detector: Detector
    weights: str = "plain"
    rows: Window | None = None
    background_rows: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        height = self.detector.shape[0]
        SETTINGS["weights"].rule("weights", self.weights)
        rows = (0, height) if self.rows is None else checked_window("rows", self.rows, height)
        object.__setattr__(self, "rows", rows)
        background = checked_windows("background_rows", self.background_rows, height)
        object.__setattr__(self, "background_rows", background)
        check_aperture("background_rows", rows, background)

    @classmethod
    def of(cls, detector: Detector, settings: Mapping[str, Any]) -> Aperture:
        """Make the aperture of a detector from settings, as `gpucal.Calibration.to_dict` gives them."""
        name = detector.name
        return cls(detector, settings["weights"], settings["rows"][name], settings["background_rows"][name])

    def target(self) -> NDArray[np.bool_]:
        """Return which spatial rows are summed."""
        assert self.rows is not None  # __post_init__ sets it
        return self._chosen([self.rows])

    def background(self) -> NDArray[np.bool_]:
        """Return which spatial rows are background."""
        return self._chosen(self.background_rows)

    def _chosen(self, windows: Sequence[Window]) -> NDArray[np.bool_]:
        chosen = np.zeros(self.detector.shape[0], bool)
        for first, stop in windows:
            chosen[first:stop] = True
        return chosen


class Choices(TypedDict, total=False):
    """Fields of `Aperture` that can be given by keyword."""

    weights: str
    rows: Window | None
    background_rows: tuple[Window, ...]


class LightCurve(NamedTuple):
    """Light curves and their errors, electrons."""

    flux: NDArray[np.float64]
    error: NDArray[np.float64]


def light_curve(
    signal: NDArray[Any], dq: NDArray[np.uint8], aperture: Aperture, variance: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Sum a signal cube over its good pixels: along the slit for a spectrum, over the image for a photometer.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons; of NumPy or CuPy.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags; a pixel counts if it has none or was interpolated.
    aperture : Aperture
        The pixels and their weights.
    variance : ndarray, shape (time, wavelength, spatial), optional
        Of the signal, electrons²; only the weights ``'variance'`` need it.

    Returns
    -------
    ndarray of float64, shape (time, wavelength) or (time, 1)
        Electrons, on the device of the signal; NaN without a good pixel, or without a good pixel of a background asked
        for.
    """
    photometer = aperture.detector.photometer
    inside, columns = _mends(dq, photometer)
    flux: NDArray[np.float64] = weighted_sum(signal, _coefficients(signal, dq, inside, aperture, variance), photometer)
    interpolate(flux[:, :, None], columns)
    return flux


def light_curve_with_errors(
    signal: NDArray[Any], dq: NDArray[np.uint8], aperture: Aperture, variance: NDArray[Any]
) -> LightCurve:
    """Sum a signal cube as `light_curve` does, and its variance with the squares of the same coefficients.

    Parameters
    ----------
    signal, dq, aperture
        As for `light_curve`.
    variance : ndarray, shape (time, wavelength, spatial)
        Of the signal, electrons².

    Returns
    -------
    LightCurve
        ``flux`` and ``error``, each (time, wavelength) or (time, 1), on the device of the signal; NaN as in
        `light_curve`.
    """
    xp, photometer = namespace(signal), aperture.detector.photometer
    inside, columns = _mends(dq, photometer)
    c = _coefficients(signal, dq, inside, aperture, variance)
    flux = weighted_sum(signal, c, photometer)
    with np.errstate(over="ignore"):  # bad values without a flag may overflow
        squared = weighted_sum(variance, c * c, photometer)
    interpolate(flux[:, :, None], columns)
    carry_variance(squared[:, :, None], columns)
    return LightCurve(flux, xp.sqrt(squared))


def light_curve_of_plan(signal: NDArray[Any], dq: NDArray[np.uint8], aperture: Aperture, plan: Plan) -> LightCurve:
    """Sum a signal cube as `light_curve_with_errors` does with the variances of `gpucal.science.noise.variance`.

    They are added up where they are made, so this takes a quarter of the time, and needs no memory for a second cube.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons; of NumPy.
    dq, aperture
        As for `light_curve`; the weights must be plain, as others need the variances before the sums.
    plan : Plan
        The plan that the signal was made with.

    Returns
    -------
    LightCurve
        ``flux`` and ``error``, each (time, wavelength) or (time, 1); NaN as in `light_curve`.
    """
    photometer = aperture.detector.photometer
    inside, columns = _mends(dq, photometer)
    c = _coefficients(signal, dq, inside, aperture, None)
    unused = c == 0.0
    frame = (plan.detector.shape[0], plan.detector.width)
    maps = (values.reshape(frame).T for values in (plan.divisor, plan.dark, plan.read_noise))
    divisor, dark, read = (np.where(unused, 0.0, values) for values in maps)
    sums = "bxy,xy->b" if photometer else "bxy,xy->bx"
    flux = weighted_sum(signal, c, photometer)
    squared = np.empty_like(flux)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(unused, 0.0, plan.electron * (c / divisor) ** 2)
        reads = 2 * plan.pairs_per_bin / plan.electron * read**2
        for part in time_parts(signal):
            charge = signal[part].astype(np.float64)
            np.copyto(charge, 0.0, where=unused)
            charge *= divisor
            charge += dark * plan.tau_s[part, None, None]
            np.maximum(charge, 0.0, out=charge)
            charge += reads
            np.einsum(sums, charge, share, out=squared[part, 0] if photometer else squared[part])
        nothing = unused.all() if photometer else unused.all(axis=1)
        squared[:, nothing] = np.nan
        interpolate(flux[:, :, None], columns)
        carry_variance(squared[:, :, None], columns)
        return LightCurve(flux, np.sqrt(squared))


def _mends(dq: NDArray[np.uint8], photometer: bool) -> tuple[list[Mend], list[Mend]]:
    """Return the mends inside a light curve, and those of whole light curves, as pixels of (wavelength, 1)."""
    mends = find_mends(dq) if (dq & np.uint8(DQ.INTERPOLATED)).any() else []
    if photometer:
        return mends, []
    inside = [mend for mend in mends if mend.pixel[0] == mend.first[0]]
    return inside, [mend for mend in mends if mend.pixel[0] != mend.first[0] and mend.pixel[1] == 0]


def _coefficients(
    signal: NDArray[Any], dq: NDArray[np.uint8], mends: list[Mend], aperture: Aperture, variance: NDArray[Any] | None
) -> Array:
    xp = namespace(signal)
    rows = (xp.asarray(aperture.target()), xp.asarray(aperture.background()))
    means = (
        [_time_mean(signal), _time_mean(variance)] if aperture.weights == "variance" and variance is not None else []
    )
    return coefficients(xp.asarray(~unusable(dq)), *rows, mends, aperture.detector.photometer, *means)


def coefficients(
    good: Array,
    target: Array,
    background: Array,
    mends: list[Mend],
    photometer: bool,
    profile: Array | None = None,
    variance: Array | None = None,
) -> Array:
    """Return the factor of each pixel in a light curve, for arrays of one namespace on one device.

    Parameters
    ----------
    good : array of bool, shape (wavelength, spatial)
        Pixels that may count.
    target, background : array of bool, shape (spatial,)
        Rows that are summed, and rows of background.
    mends : list of Mend
        Interpolated pixels.
    photometer : bool
        Make one sum over everything; if False, one for each wavelength.
    profile, variance : array of float64, shape (wavelength, spatial), optional
        Means over time; with them, weights are optimal.

    Returns
    -------
    array of float64, shape (wavelength, spatial)
        All 0 if a light curve has no good pixel, or no good pixel of a background asked for.
    """
    xp = namespace(good)

    def total(values: Array) -> Array:
        return xp.sum(values, axis=(0, 1) if photometer else 1, keepdims=True)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if profile is not None and variance is not None:
            good = good & xp.isfinite(profile) & xp.isfinite(variance)
        sky = xp.asarray(good & background, dtype=xp.float64)
        n_sky = total(sky)
        ours = good & target
        if profile is None or variance is None:
            c = xp.asarray(ours, dtype=xp.float64)
        else:
            level = total(xp.where(sky > 0.0, profile, 0.0)) / xp.where(n_sky > 0.0, n_sky, 1.0)
            mean = xp.where(ours & (profile > level), profile - level, 0.0)
            c = xp.where(mean > 0.0, mean / variance, 0.0)
            norm = total(c * mean)
            c = xp.where(norm > 0.0, c * total(mean) / norm, 0.0)
        c = xp.where(n_sky > 0.0, c - sky * total(c) / n_sky, xp.where(xp.any(background), 0.0, c))
    gather(c, mends)
    return c


def weighted_sum(values: Array, c: Array, photometer: bool) -> Array:
    """Return ``Σ c · values``, for arrays of one namespace on one device.

    Parameters
    ----------
    values : array, shape (time, wavelength, spatial)
        Signal or variance; may be NaN where c is 0.
    c : array of float64, shape (wavelength, spatial)
        Coefficients.
    photometer : bool
        Sum over both axes; if False, over the spatial axis.

    Returns
    -------
    array of float64, shape (time, wavelength) or (time, 1)
        The sums; NaN where every coefficient is 0.
    """
    xp = namespace(values)
    axes = (1, 2) if photometer else (2,)
    used = c != 0.0
    any_used = xp.any(used, axis=tuple(axis - 1 for axis in axes))
    sums = xp.empty_like(values[:, : 1 if photometer else None, 0], dtype=xp.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # from bad pixels, which are then left out
        for part in time_parts(values):
            total = xp.sum(xp.where(used, values[part, ...] * c, 0.0), axis=axes)
            sums[part, :] = xp.reshape(xp.where(any_used, total, xp.nan), (-1, sums.shape[1]))
    return sums


def _time_mean(values: Array) -> Array:
    xp = namespace(values)
    with np.errstate(invalid="ignore", over="ignore"):
        return xp.sum(values, axis=0, dtype=xp.float64) / values.shape[0]


def white_light(
    flux: NDArray[np.float64], error: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Sum light curves over wavelength; a curve that is not finite in every bin is left out, so that none jumps.

    Parameters
    ----------
    flux : ndarray of float64, shape (time, wavelength)
        Light curves, electrons.
    error : ndarray of float64, shape (time, wavelength), optional
        Their errors.

    Returns
    -------
    flux, error : ndarray of float64, shape (time,)
        The white light curve, NaN if no curve is finite; and its error, None if none was given.
    """
    used = np.isfinite(flux).all(axis=0)
    if not used.any():
        nothing = np.full(len(flux), np.nan)
        return nothing, None if error is None else nothing
    white = flux[:, used].sum(axis=1)
    with np.errstate(over="ignore"):
        return white, None if error is None else np.sqrt((error[:, used] ** 2).sum(axis=1))
