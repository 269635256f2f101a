"""Light curves: sums over spatial pixels, as one map of coefficients, so that their errors are those of the sum.

    flux[b, λ] = Σ_y c[λ, y] · signal[b, λ, y]        error² = Σ_y c² · variance        (a photometer: Σ over λ too)

All choices are in c, which does not depend on time, so they keep a transit's depth. A background that is constant in
time has coefficients of its own, for the mean over time of the signal. Bad pixels have 0. Plain weights
are 1. Optimal weights are P/V · Σ P / Σ (P²/V), with the mean profile P and the mean variance V (Horne 1986, PASP 98,
609). Weights by profile are those of a fit of P and of what shifts of the image add to it: the sum over P is kept, and
jitter adds nothing to it, also where bad pixels hide light (`gpucal.science.pointing`). Background rows have
−Σc / their number. A mended pixel's coefficient goes to the pixels it was made of. The light curve of a column
that was interpolated as a whole is a mean of its neighbours' light curves.

Optimal weights come from a profile that has noise itself, so faint light comes out too large: by 27 % at 300 e⁻ a bin
and column, 0.9 % at 3,000, nothing at 10,000. Its transit depth comes out too small: by 6, 0.1 and 0 %. Weights by
profile keep the mean flux of a plain sum; the depth comes out 9 % too small at 300 e⁻, 1 % at 1,000, and right at 3,000
(``benchmarks/closure.py --weights``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpucal.science.bad_pixels import Mends, carry_variance, gather, interpolate, mends_of, unusable
from gpucal.science.plan import Plan
from gpucal.science.pointing import measured, profile_weights
from gpucal.science.rejected import NONE, Rejected
from gpucal.science.steps import Array, namespace, time_parts
from gpucal.settings.detectors import Detector
from gpucal.settings.rules import (
    Window,
    check_aperture,
    check_columns,
    check_overlap,
    checked_window,
    checked_windows,
    faintest,
)
from gpucal.settings.table import BY_NOISE, SETTINGS

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
    weights : {'plain', 'variance', 'profile'}
        Every good pixel counts 1, or the optimal weights of profile over variance, or those of a fit of the mean image
        and of its shifts to the pixels that are neither bad nor interpolated.
    rows : tuple of int, optional
        First and one-past-last spatial row; by default all.
    background_rows : sequence of tuple of int, or str
        Windows of rows, or one, whose mean is the background: of each wavelength, or of all for a photometer. A light
        curve without a usable pixel in these rows is NaN. Without the subtraction it would not compare with the others.
        ``'faintest:6'`` takes the six rows of the smallest mean over time and usable pixels, among those not summed, or
        among all if all are summed.
    background : {'bin', 'constant'}
        The background of each time bin, or its mean over all bins.
    columns : tuple of int, optional
        First and one-past-last stored column of a photometer; by default all. Background rows keep all their columns.

    Raises
    ------
    ConfigError
        If a value is not possible, the background rows are the rows that are summed, or columns are chosen of a
        spectrum.
    """

    detector: Detector
    weights: str = "plain"
    rows: Window | None = None
    background_rows: tuple[Window, ...] | str = ()
    background: str = "bin"
    columns: Window | None = None

    def __post_init__(self) -> None:
        height = self.detector.shape[0]
        for name in ("weights", "background"):
            SETTINGS[name].rule(name, getattr(self, name))
        rows = (0, height) if self.rows is None else checked_window("rows", self.rows, height)
        object.__setattr__(self, "rows", rows)
        background = checked_windows("background_rows", self.background_rows, height)
        object.__setattr__(self, "background_rows", background)
        width, crop = self.detector.shape[1], self.detector.crop
        columns = (0, width) if self.columns is None else checked_window("columns", self.columns, width)
        object.__setattr__(self, "columns", columns)
        check_columns("columns", columns, self.detector)
        check_overlap("columns", columns, crop)
        whole = columns[0] <= crop[0] and crop[1] <= columns[1]
        check_aperture("background_rows", rows, background, height, whole=whole)

    @classmethod
    def of(cls, detector: Detector, settings: Mapping[str, Any]) -> Aperture:
        """Make the aperture of a detector from settings, as `gpucal.Calibration.to_dict` gives them."""
        name = detector.name
        rows, background_rows = settings["rows"][name], settings["background_rows"][name]
        # Results of 0.1 have neither of these.
        background, columns = settings.get("background", "bin"), settings.get("columns", {}).get(name)
        return cls(detector, settings["weights"], rows, background_rows, background, columns)

    @property
    def needs_variances(self) -> bool:
        """Whether the variances of all bins must be known before those of a light curve."""
        return self.weights in BY_NOISE or (self.background == "constant" and bool(self.background_rows))

    def target(self) -> NDArray[np.bool_]:
        """Return which pixels are summed, (wavelength, spatial)."""
        assert self.columns is not None  # __post_init__ sets it
        columns = np.arange(*self.detector.crop)
        chosen: NDArray[np.bool_] = (self.columns[0] <= columns) & (columns < self.columns[1])
        return chosen[:, None] & self._target_rows()

    def _target_rows(self) -> NDArray[np.bool_]:
        assert self.rows is not None  # __post_init__ sets it
        return self._chosen([self.rows])

    def sky(self, level: Callable[[], NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Return which spatial rows are background; ``level`` is called for the brightness of each, if that decides."""
        if isinstance(self.background_rows, str):
            target = self._target_rows()
            order = np.argsort(level(), kind="stable")
            # Left out, not ranked last: a row without a usable pixel has no level, and would come after them.
            order = order if target.all() else order[~target[order]]
            chosen = np.zeros(target.size, bool)
            chosen[order[: faintest(self.background_rows)]] = True
            return chosen
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
    background_rows: tuple[Window, ...] | str
    background: str
    columns: Window | None


class LightCurve(NamedTuple):
    """Light curves and their errors, electrons."""

    flux: NDArray[np.float64]
    error: NDArray[np.float64]


def light_curve(
    signal: NDArray[Any],
    dq: NDArray[np.uint8],
    aperture: Aperture,
    variance: NDArray[Any] | None = None,
    mends: Mends | None = None,
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
        Of the signal, electrons²; the weights ``'variance'`` and ``'profile'`` need it.
    mends : sequence of Mend or Blend, optional
        What mended pixels were made of; by default they were interpolated.

    Returns
    -------
    ndarray of float64, shape (time, wavelength) or (time, 1)
        Electrons, on the device of the signal; NaN without a good pixel, or without a good pixel of a background asked
        for.
    """
    photometer = aperture.detector.photometer
    inside, columns = _split(mends_of(dq, mends), photometer)
    c, sky = _coefficients(signal, dq, inside, aperture, variance)
    flux: NDArray[np.float64] = weighted_sum(signal, c, photometer)
    if sky is not None:
        flux += _mean_sum(signal, signal, sky, photometer)
    interpolate(flux[:, :, None], columns)
    return flux


def light_curve_with_errors(
    signal: NDArray[Any],
    dq: NDArray[np.uint8],
    aperture: Aperture,
    variance: NDArray[Any],
    mends: Mends | None = None,
) -> LightCurve:
    """Sum a signal cube as `light_curve` does, and its variance with the squares of the same coefficients.

    Parameters
    ----------
    signal, dq, aperture
        As for `light_curve`.
    variance : ndarray, shape (time, wavelength, spatial)
        Of the signal, electrons².
    mends : sequence of Mend or Blend, optional
        As for `light_curve`.

    Returns
    -------
    LightCurve
        ``flux`` and ``error``, each (time, wavelength) or (time, 1), on the device of the signal; NaN as in
        `light_curve`.
    """
    xp, photometer = namespace(signal), aperture.detector.photometer
    inside, columns = _split(mends_of(dq, mends), photometer)
    c, sky = _coefficients(signal, dq, inside, aperture, variance)
    flux = weighted_sum(signal, c, photometer)
    with np.errstate(over="ignore"):  # bad values without a flag may overflow
        if sky is None:
            squared = weighted_sum(variance, c * c, photometer)
        else:
            flux += _mean_sum(signal, signal, sky, photometer)
            n = xp.maximum(_times(signal), 1)
            squared = weighted_sum(variance, c * c, photometer) + _mean_sum(variance, signal, sky * sky / n, photometer)
            # A pixel may be in both sums: (c + sky/n)² has a mixed term.
            squared += _sums(variance, 2.0 * c * sky / n, photometer)
    interpolate(flux[:, :, None], columns)
    carry_variance(squared[:, :, None], columns)
    return LightCurve(flux, xp.sqrt(squared))


def light_curve_of_plan(
    signal: NDArray[Any],
    dq: NDArray[np.uint8],
    aperture: Aperture,
    plan: Plan,
    rejected: Rejected = NONE,
    mends: Mends | None = None,
) -> LightCurve:
    """Sum a signal cube as `light_curve_with_errors` does with the variances of `gpucal.science.noise.variance`.

    They are added up where they are made, so this takes a quarter of the time, and needs no memory for a second cube.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons; of NumPy.
    dq, aperture
        As for `light_curve`; not an aperture that `Aperture.needs_variances`.
    plan : Plan
        The plan that the signal was made with.
    rejected : Rejected
        As for `gpucal.science.noise.variance`.
    mends : sequence of Mend or Blend, optional
        As for `light_curve`.

    Returns
    -------
    LightCurve
        ``flux`` and ``error``, each (time, wavelength) or (time, 1); NaN as in `light_curve`.
    """
    photometer = aperture.detector.photometer
    inside, columns = _split(mends_of(dq, mends), photometer)
    c, _ = _coefficients(signal, dq, inside, aperture, None)
    unused = c == 0.0
    is_plain = bool((unused | (c == 1.0)).all())  # to multiply by 1 changes nothing
    frame = (plan.detector.shape[0], plan.detector.width)
    maps = (values.reshape(frame).T for values in (plan.divisor, plan.dark, plan.read_noise))
    divisor, dark, read = (np.where(unused, 0.0, values) for values in maps)
    sums, axes = ("bxy,xy->b", (1, 2)) if photometer else ("bxy,xy->bx", 2)
    flux, squared = (np.empty((len(signal), 1 if photometer else signal.shape[1])) for _ in range(2))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(unused, 0.0, plan.electron * (c / divisor) ** 2)
        reads = 2 * plan.pairs_per_bin / plan.electron * read**2
        for part in time_parts(signal):
            charge = signal[part].astype(np.float64)
            np.copyto(charge, 0.0, where=unused)
            place = (part, 0) if photometer else part
            flux[place] = (charge if is_plain else charge * c).sum(axis=axes)
            charge *= divisor
            tau_s = plan.tau_s[part, None, None]
            charge += dark * (tau_s[:1] if (tau_s == tau_s[0]).all() else tau_s)  # mostly the same in every bin
            np.maximum(charge, 0.0, out=charge)
            charge += reads
            if rejected.pairs.size:
                rejected.part(part).rescale(charge, plan.pairs_per_bin)
                np.copyto(charge, 0.0, where=unused)
            np.einsum(sums, charge, share, out=squared[place])
        nothing = unused.all() if photometer else unused.all(axis=1)
        flux[:, nothing] = squared[:, nothing] = np.nan
        interpolate(flux[:, :, None], columns)
        carry_variance(squared[:, :, None], columns)
        return LightCurve(flux, np.sqrt(squared))


def _split(mends: Mends, photometer: bool) -> tuple[Mends, Mends]:
    """Return the mends inside a light curve, and those of whole light curves, as pixels of (wavelength, 1)."""
    if photometer:
        return mends, []
    inside = [mend for mend in mends if mend.pixel[0] == mend.first[0]]
    return inside, [mend for mend in mends if mend.pixel[0] != mend.first[0] and mend.pixel[1] == 0]


def _coefficients(
    signal: NDArray[Any], dq: NDArray[np.uint8], mends: Mends, aperture: Aperture, variance: NDArray[Any] | None
) -> tuple[Array, Array | None]:
    """Return the coefficients of a bin, and those of the mean over time; None without a constant background."""
    xp = namespace(signal)
    good = xp.asarray(~unusable(dq))
    rows = (xp.asarray(aperture.target()), xp.asarray(aperture.sky(lambda: _row_means(signal, good))))
    means: dict[str, Array] = {}
    if aperture.weights in BY_NOISE and variance is not None:
        means = {"profile": _time_mean(signal), "variance": _time_mean(variance)}
        if aperture.weights == "profile":
            means["fitted"] = xp.asarray(measured(dq))
    if aperture.background == "bin" or not aperture.background_rows:
        return coefficients(good, *rows, mends, aperture.detector.photometer, **means), None
    c, sky = _target_and_sky(good, *rows, aperture.detector.photometer, **means)
    for part in (c, sky):
        gather(part, mends)
    return c, sky


def coefficients(
    good: Array,
    target: Array,
    background: Array,
    mends: Mends,
    photometer: bool,
    profile: Array | None = None,
    variance: Array | None = None,
    fitted: Array | None = None,
) -> Array:
    """Return the factor of each pixel in a light curve, for arrays of one namespace on one device.

    Parameters
    ----------
    good : array of bool, shape (wavelength, spatial)
        Pixels that may count.
    target : array of bool, shape (wavelength, spatial) or (spatial,)
        Pixels or rows that are summed.
    background : array of bool, shape (spatial,)
        Rows of background.
    mends : sequence of Mend or Blend
        What mended pixels were made of.
    photometer : bool
        Make one sum over everything; if False, one for each wavelength.
    profile, variance : array of float64, shape (wavelength, spatial), optional
        Means over time; with them, weights are optimal.
    fitted : array of bool, shape (wavelength, spatial), optional
        The pixels to which the profile and its shifts are fitted; with them, weights are those of the fit.

    Returns
    -------
    array of float64, shape (wavelength, spatial)
        All 0 if a light curve has no good pixel, or no good pixel of a background asked for.
    """
    c, sky = _target_and_sky(good, target, background, photometer, profile, variance, fitted)
    c = c + sky
    gather(c, mends)
    return c


def _target_and_sky(
    good: Array,
    target: Array,
    background: Array,
    photometer: bool,
    profile: Array | None = None,
    variance: Array | None = None,
    fitted: Array | None = None,
) -> tuple[Array, Array]:
    """Return the factors of pixels that are summed, and those of background pixels, which are 0 or below."""
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
            if fitted is None:
                mean = xp.where(ours & (profile > level), profile - level, 0.0)
                c = xp.where(mean > 0.0, mean / variance, 0.0)
                norm = total(c * mean)
                c = xp.where(norm > 0.0, c * total(mean) / norm, 0.0)
            else:
                mean = xp.where(ours, profile - level, 0.0)
                c = profile_weights(profile - level, variance, good & fitted, ours, photometer) * total(mean)
        share = xp.where(n_sky > 0.0, -(sky * total(c) / n_sky), 0.0)
        c = xp.where((n_sky > 0.0) | ~xp.any(background), c, 0.0)
    return c, share


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
    any_used = xp.any(c != 0.0, axis=(0, 1) if photometer else 1)
    return xp.where(any_used, _sums(values, c, photometer), xp.nan)


def _sums(values: Array, c: Array, photometer: bool) -> Array:
    """Return ``Σ c · values``; 0 where every coefficient is 0."""
    xp = namespace(values)
    axes = (1, 2) if photometer else (2,)
    used = c != 0.0
    sums = xp.empty_like(values[:, : 1 if photometer else None, 0], dtype=xp.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # from bad pixels, which are then left out
        for part in time_parts(values):
            total = xp.sum(xp.where(used, values[part, ...] * c, 0.0), axis=axes)
            sums[part, :] = xp.reshape(total, (-1, sums.shape[1]))
    return sums


def _mean_sum(values: Array, signal: Array, c: Array, photometer: bool) -> Array:
    """Return ``Σ c · mean of values over time``; a pixel's bins without a finite signal do not count."""
    xp = namespace(values)
    total = xp.zeros(c.shape, dtype=xp.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # from bad pixels, which are then left out
        for part in time_parts(values):
            total += xp.sum(xp.where(xp.isfinite(signal[part, ...]), values[part, ...], 0.0), axis=0, dtype=xp.float64)
        mean = total / xp.maximum(_times(signal), 1)
        return xp.sum(xp.where(c != 0.0, c * mean, 0.0), axis=(0, 1) if photometer else 1)


def _times(signal: Array) -> Array:
    """Return how many bins of each pixel have a finite signal."""
    xp = namespace(signal)
    return sum(xp.sum(xp.isfinite(signal[part, ...]), axis=0) for part in time_parts(signal))


def _row_means(signal: Array, good: Array) -> NDArray[np.float64]:
    """Return each row's mean over time and over good pixels; a row without any is infinitely bright."""
    xp = namespace(signal)
    mean = _time_mean(signal)
    counts = good & xp.isfinite(mean)
    n = xp.sum(counts, axis=0)
    level = xp.where(n > 0, xp.sum(xp.where(counts, mean, 0.0), axis=0) / xp.maximum(n, 1), xp.inf)
    host: NDArray[np.float64] = level.get() if hasattr(level, "get") else np.asarray(level)
    return host


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
