"""Numbers that tell good calibrations from bad ones, from the arrays of one item while they are in memory.

They are a quick look: nothing is fitted, and a transit is taken to lie in the middle third of the observation. Medians
keep a few bad bins or wavelengths from deciding. What cannot be told is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.science.bad_pixels import unusable
from gpucal.science.plan import DQ
from gpucal.science.pointing import Pointing
from gpucal.science.steps import time_parts

__all__ = [
    "centroids",
    "count_flags",
    "curve_quality",
    "middles",
    "motion",
    "negative_share",
    "position",
    "positions",
    "quality",
    "scatter",
    "thirds",
    "trace",
    "white_light",
]

_PERCENTILES = (5, 50, 95)

# Standard deviations of a normal distribution in a median absolute deviation.
_NORMAL = 1.4826


def quality(
    signal: NDArray[Any], dq: NDArray[np.uint8], flux: NDArray[Any], error: NDArray[Any], *, photometer: bool
) -> dict[str, Any]:
    """Return the numbers on quality of one item, ready for JSON.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    flux, error : ndarray, shape (time, wavelength) or (time, 1)
        Light curves and their errors, electrons.
    photometer : bool
        Whether the detector takes images instead of spectra.

    Returns
    -------
    dict
        Numbers and mappings of numbers; None where a number cannot be told.

        Those of `curve_quality`, and: ``flags``, ``trace_flags``: pixels by flag, of all and of the `trace`.
        ``negative_share``: see the function. ``trace_row``: `position` of the light on the spatial axis;
        ``trace_row_drift``: last third minus first third, pixels. ``trace_column`` and ``trace_column_drift``: the same
        on the other axis, of a photometer.
    """
    numbers = curve_quality(flux, error, photometer=photometer)
    good = ~unusable(dq)
    with np.errstate(all="ignore"):  # bad values without a flag may overflow
        images = [_image(signal[part], good) for part in thirds(len(signal))]
        whole = images[1] if len(signal) < 3 else _image_of(images, thirds(len(signal)))
        inside = trace(whole, photometer=photometer)
        of_cube: dict[str, Any] = {"flags": count_flags(dq), "trace_flags": count_flags(dq[inside])}
        of_cube["nan_columns"] = numbers.pop("nan_columns")  # its place in tables
        of_cube["negative_share"] = negative_share(signal, good)
        for name, axis in (("trace_row", 1), ("trace_column", 0))[: 1 + photometer]:
            of_cube[name] = position(whole, axis)
            of_cube[f"{name}_drift"] = position(images[2], axis) - position(images[0], axis)
    return numbers | {name: _plain(value) for name, value in of_cube.items()}


def curve_quality(flux: NDArray[Any], error: NDArray[Any], *, photometer: bool) -> dict[str, Any]:
    """Return the numbers on quality that light curves alone tell, ready for JSON.

    Parameters
    ----------
    flux, error : ndarray, shape (time, wavelength) or (time, 1)
        Light curves and their errors, electrons.
    photometer : bool
        Whether the detector takes images instead of spectra.

    Returns
    -------
    dict
        Numbers and mappings of numbers; None where a number cannot be told.

        ``white_flux``: median of `white_light`, electrons. ``scatter_ppm``: its `scatter`. ``expected_ppm``: its error.
        ``excess``: the first over the second. ``scatter_ppm_by_wavelength``, ``expected_ppm_by_wavelength``,
        ``excess_by_wavelength``: the same of each light curve, at the percentiles ``p5``, ``p50``, ``p95``; not of a
        photometer. ``drift_ppm``: last third minus first third of the white light. ``depth_ppm``: by how much the
        middle third is below the mean of the other two. ``nan_columns``: light curves with a bin that is not finite.
    """
    flux, error = np.asarray(flux, np.float64), np.asarray(error, np.float64)
    with np.errstate(all="ignore"):
        white, white_error, broken = white_light(flux, error)
        numbers: dict[str, Any] = {"white_flux": middles(white)[0], **_noise(white, white_error, 0)}
        if not photometer:
            of_curves = _noise(flux, error, slice(None))
            numbers |= {f"{name}_by_wavelength": _percentiles(values) for name, values in of_curves.items()}
        first, middle, last = (middles(white[part])[0] for part in thirds(len(white)))
        numbers["drift_ppm"] = 1e6 * (last - first) / abs(numbers["white_flux"])
        numbers["depth_ppm"] = 1e6 * (1.0 - middle / ((first + last) / 2.0))
        numbers["nan_columns"] = broken
    return {name: _plain(value) for name, value in numbers.items()}


def count_flags(dq: NDArray[np.uint8]) -> dict[str, int]:
    """Count the pixels that have each flag."""
    return {str(flag.name): int(np.count_nonzero(dq & np.uint8(flag))) for flag in DQ}


def motion(pointing: Pointing, *, photometer: bool) -> dict[str, Any]:
    """Return the numbers on the pointing of one item, ready for JSON.

    Parameters
    ----------
    pointing : Pointing
        As measured.
    photometer : bool
        Whether the detector takes images instead of spectra.

    Returns
    -------
    dict
        Numbers; None where a number cannot be told. ``pointing_row_drift``: median of the last third minus that of the
        first, pixels along the spatial axis. ``pointing_row_scatter``: `scatter`, pixels. ``pointing_row_excess``: that
        over the error; 1 is a star that stands still. ``pointing_column_drift`` and so on: the same on the other axis,
        of a photometer. In records, spectra are measured at every eighth wavelength.
    """
    numbers = {}
    rows, columns = (pointing.dy, pointing.dy_error), (pointing.dx, pointing.dx_error)
    with np.errstate(all="ignore"):
        for name, (shift, error) in (("row", rows), ("column", columns))[: 1 + photometer]:
            first, _, last = (middles(shift[part]) for part in thirds(len(shift)))
            spread = scatter(shift[:, None])[0]
            numbers[f"pointing_{name}_drift"] = _plain(float(last - first))
            numbers[f"pointing_{name}_scatter"] = _plain(float(spread))
            numbers[f"pointing_{name}_excess"] = _plain(float(spread / np.sqrt((error * error).mean())))
    return numbers


def thirds(n: int) -> tuple[slice, slice, slice]:
    """Cut so many bins into three parts; the middle one has the rest, and all of fewer than three."""
    part = n // 3
    return slice(0, part), slice(part, n - part), slice(n - part, n)


def middles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return medians over time.

    Parameters
    ----------
    values : ndarray of float64, shape (time, curve)
        Light curves.

    Returns
    -------
    ndarray of float64, shape (curve,)
        NaN without bins, or where a value is NaN.
    """
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    return _middle(np.sort(np.ascontiguousarray(values.T), axis=-1))


def _middle(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the medians of sorted values: several times faster than `numpy.median`, which partitions row by row."""
    n = ordered.shape[-1]
    # sorting puts NaN last
    middle = (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2.0
    result: NDArray[np.float64] = np.where(np.isnan(ordered[..., -1]), np.nan, middle)
    return result


def scatter(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scatter from bin to bin, ``1.4826 · MAD(x[b+1] − x[b]) / √2``.

    It is the standard deviation of normal noise. Slow drifts and the few bins of a transit's edges do not show.

    Parameters
    ----------
    values : ndarray of float64, shape (time, curve)
        Light curves.

    Returns
    -------
    ndarray of float64, shape (curve,)
        NaN with fewer than three bins, or where a value is not finite.
    """
    if len(values) < 3:
        return np.full(values.shape[1:], np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.diff(np.ascontiguousarray(values.T), axis=-1)
        steps.sort(axis=-1)
        steps -= _middle(steps)[..., None]
        np.abs(steps, out=steps)
        steps.sort(axis=-1)
        result: NDArray[np.float64] = _NORMAL / math.sqrt(2.0) * _middle(steps)
    return np.where(np.isfinite(result), result, np.nan)


def white_light(
    flux: NDArray[np.float64], error: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Add up the light curves that are finite in every bin.

    Parameters
    ----------
    flux, error : ndarray of float64, shape (time, curve)
        Light curves and their errors.

    Returns
    -------
    white, white_error : ndarray of float64, shape (time, 1)
        The sum and its error; NaN if no light curve is finite.
    broken : int
        How many light curves were left out.
    """
    whole = np.isfinite(flux).all(axis=0)
    broken = int(np.count_nonzero(~whole))
    if broken == whole.size:
        nothing = np.full((len(flux), 1), np.nan)
        return nothing, nothing, broken
    kept, of = (flux[:, whole], error[:, whole]) if broken else (flux, error)
    return kept.sum(axis=1, keepdims=True), np.sqrt((of * of).sum(axis=1, keepdims=True)), broken


def trace(image: NDArray[np.float64], *, photometer: bool) -> NDArray[np.bool_]:
    """Tell which pixels most of the light falls on.

    These are rows whose profile is above the middle between its smallest and its largest value; of a photometer, the
    same columns of these rows.

    Parameters
    ----------
    image : ndarray of float64, shape (wavelength, spatial)
        Mean signal, NaN at pixels without one.
    photometer : bool
        Whether it is an image instead of a spectrum.

    Returns
    -------
    ndarray of bool, shape (wavelength, spatial)
        True in the trace; nowhere if no pixel has a signal.
    """
    rows = _bright(_profile(image, 1))
    columns = _bright(_profile(image, 0)) if photometer else np.ones(len(image), bool)
    return columns[:, None] & rows


def position(image: NDArray[np.float64], axis: int) -> float:
    """Return the centroid of the light along one axis, above the faintest place of its profile.

    Parameters
    ----------
    image : ndarray of float64, shape (wavelength, spatial)
        Mean signal, NaN at pixels without one, which are left out of the profile's means.
    axis : int
        The axis of the position.

    Returns
    -------
    float
        Pixels from the first one; NaN if no pixel has a signal, or all places have the same.
    """
    return float(centroids(_profile(image, axis)))


def positions(images: NDArray[Any], good: NDArray[np.bool_], axis: int) -> NDArray[np.float64]:
    """Return the `position` of the light in several images.

    Parameters
    ----------
    images : ndarray, shape (time, wavelength, spatial)
        Signals; those of good pixels are finite.
    good : ndarray of bool, shape (wavelength, spatial)
        The pixels that count.
    axis : int
        The axis of the position.

    Returns
    -------
    ndarray of float64, shape (time,)
        As for one image.
    """
    counted = good.sum(axis=1 - axis)
    kept = np.where(good, images, 0.0)
    profiles = kept.sum(axis=-1 - axis, dtype=np.float64) / np.where(counted, counted, np.nan)
    return centroids(profiles)


def centroids(profiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centroids of profiles, (..., pixel), above their faintest pixel; NaN without light, or if even."""
    there = np.isfinite(profiles)
    least = np.min(profiles, axis=-1, keepdims=True, initial=np.inf, where=there)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        light = np.where(there, profiles - least, 0.0)
        total = light.sum(axis=-1)
        found: NDArray[np.float64] = light @ np.arange(light.shape[-1]) / total
        return np.where((total > 0.0) & (total < math.inf), found, math.nan)


def negative_share(signal: NDArray[Any], good: NDArray[np.bool_]) -> float:
    """Return the share of values below 0.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal.
    good : ndarray of bool, shape (wavelength, spatial)
        The pixels that count.

    Returns
    -------
    float
        From 0 to 1; NaN counts as not below. NaN if no pixel counts.
    """
    n = len(signal) * int(np.count_nonzero(good))
    below = sum(int(np.count_nonzero((signal[part] < 0.0) & good)) for part in time_parts(signal))
    return below / n if n else math.nan


def _image(signal: NDArray[Any], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over time; NaN at pixels that are not good or not finite."""
    if not len(signal):
        return np.full(good.shape, np.nan)
    mean: NDArray[np.float64] = signal.sum(axis=0, dtype=np.float64)
    mean /= len(signal)
    mean[~(good & np.isfinite(mean))] = np.nan
    return mean


def _image_of(images: list[NDArray[np.float64]], parts: tuple[slice, ...]) -> NDArray[np.float64]:
    lengths = [part.stop - part.start for part in parts]
    total: NDArray[np.float64] = sum(image * n for image, n in zip(images, lengths, strict=True)) / sum(lengths)
    return total


def _profile(image: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return means along one axis, of the pixels that are not NaN; NaN where there is none."""
    there = ~np.isnan(image)
    n = there.sum(axis=1 - axis)
    profile: NDArray[np.float64] = np.where(there, image, 0.0).sum(axis=1 - axis) / np.where(n, n, np.nan)
    return profile


def _bright(profile: NDArray[np.float64]) -> NDArray[np.bool_]:
    there = profile[np.isfinite(profile)]
    if not there.size:
        return np.zeros(profile.shape, bool)
    bright: NDArray[np.bool_] = profile > (there.min() + there.max()) / 2.0
    return bright


def _noise(flux: NDArray[np.float64], error: NDArray[np.float64], which: int | slice) -> dict[str, Any]:
    level = np.abs(middles(flux)) * 1e-6
    measured, expected = scatter(flux) / level, np.sqrt((error * error).mean(axis=0)) / level
    of = {"scatter_ppm": measured, "expected_ppm": expected, "excess": measured / expected}
    return {name: values[which] for name, values in of.items()}


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    there = values[np.isfinite(values)]
    found = np.percentile(there, _PERCENTILES) if there.size else [math.nan] * len(_PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(_PERCENTILES, found, strict=True)}


def _plain(value: float | Mapping[str, float]) -> int | float | dict[str, Any] | None:
    """Return a number as JSON has it: in six digits, and None if it is not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(of) for name, of in value.items()}
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
