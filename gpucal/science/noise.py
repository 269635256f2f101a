"""The variance of a binned CDS sum from detector and photon noise, and the excess of the data's scatter over it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.science.bad_pixels import Mends, carry_variance, mends_of
from gpucal.science.plan import Plan
from gpucal.science.rejected import NONE, Rejected
from gpucal.science.steps import Array, namespace, time_parts

__all__ = ["neighbour_residuals", "noise_excess", "on_arrays", "read_variance", "scatter", "variance"]

# Median absolute difference of two draws from a normal distribution, in units of its standard deviation.
_NORMAL = 0.6744897501960817 * 2.0**0.5


def variance(
    signal: NDArray[Any],
    plan: Plan,
    dq: NDArray[np.uint8],
    rejected: Rejected = NONE,
    mends: Mends | None = None,
) -> NDArray[np.float64]:
    """Return the variance of every output, ``(max(S, 0) + 2·N·read²) / divisor²``.

    S is the binned sum before dark subtraction, recovered as ``signal·divisor + dark·τ``. Both reads of a pair belong
    to one accumulating exposure, so only the charge gathered between them is counted. Pointing jitter is not included;
    `noise_excess` shows it. A mended pixel gets the variance of its weighted sum. If counts are multiplied by
    the gain, signals are electrons times gain², and so are read noise and each photon's share: ``gain² · max(S, 0)``.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons; of NumPy or CuPy.
    plan : Plan
        The plan it was made with.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    rejected : Rejected
        Pairs left out of bins. The rest was scaled up by pairs over kept pairs, and so is the variance.
    mends : sequence of Mend or Blend, optional
        What mended pixels were made of; by default they were interpolated.

    Returns
    -------
    ndarray of float64, shape (time, wavelength, spatial)
        Electrons², on the device of the signal.
    """
    xp = namespace(signal)
    frame = (plan.detector.shape[0], plan.detector.width)
    maps = (values.reshape(frame).T for values in (plan.divisor, plan.dark, plan.read_noise))
    divisor, dark, read, tau_s = (xp.asarray(values) for values in (*maps, plan.tau_s))
    result: NDArray[np.float64] = on_arrays(signal, divisor, dark, read, tau_s, plan.pairs_per_bin, plan.electron)
    rejected.rescale(result, plan.pairs_per_bin)
    carry_variance(result, mends_of(dq, mends))
    return result


def read_variance(plan: Plan, dq: NDArray[np.uint8], mends: Mends | None = None) -> NDArray[np.float64]:
    """Return the part of `variance` that is read noise, ``2·N·read² / divisor²``; it is the same in every bin.

    Parameters
    ----------
    plan : Plan
        The plan that the signal was made with.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    mends : sequence of Mend or Blend, optional
        As for `variance`.

    Returns
    -------
    ndarray of float64, shape (wavelength, spatial)
        Electrons², on the host. The rest of the variance is photon noise.
    """
    frame = (plan.detector.shape[0], plan.detector.width)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        pixels = 2 * plan.pairs_per_bin * plan.read_noise**2 / plan.divisor**2
        result: NDArray[np.float64] = np.ascontiguousarray(pixels.reshape(frame).T)
        carry_variance(result[None], mends_of(dq, mends))
    return result


def on_arrays(
    signal: Array, divisor: Array, dark: Array, read: Array, tau_s: Array, pairs_per_bin: int, electron: float
) -> Array:
    """Return the variance, for arrays of one namespace on one device.

    Parameters
    ----------
    signal : array, shape (time, wavelength, spatial)
        Calibrated signal, electrons.
    divisor, dark, read : array of float64, shape (wavelength, spatial)
        As in `gpucal.science.plan.Plan`.
    tau_s : array of float64, shape (time,)
        Integration time of a bin, s.
    pairs_per_bin : int
        CDS pairs in a bin.
    electron : float
        As in `gpucal.science.plan.Plan`.

    Returns
    -------
    array of float64, shape (time, wavelength, spatial)
        Electrons².
    """
    xp = namespace(signal)
    result = xp.empty_like(signal, dtype=xp.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Products, as np.power(x, 2) of NumPy 2.0 and older is not always x * x.
        reads, square = 2 * pairs_per_bin * (read * read), divisor * divisor
        for part in time_parts(signal):
            charge = signal[part, ...] * divisor
            charge += dark * tau_s[part, None, None]
            charge[charge < 0.0] = 0.0
            charge *= electron
            charge += reads
            charge /= square
            result[part, ...] = charge
    return result


def noise_excess(values: Array, variances: Array) -> Array:
    """Compare the scatter of consecutive bins with their variances.

    ``median |x[b+1] − x[b]| / (0.6745 · √2) / √(mean variance)``: 1 means no more scatter than the variances explain.
    Slow drifts do not show in differences. Their median ignores the few bins at a transit's edges and those hit by a
    cosmic ray. The rest is noise from bin to bin, such as pointing jitter. In 25 pairs of reads of 2025, bright
    AIRS-CH0 pixels have 1.6 (2.7 in variance), and those of FGS1 several times that.

    Parameters
    ----------
    values : array, shape (time, ...)
        A cube or light curves, electrons; of NumPy or CuPy.
    variances : array of float64, shape (time, ...)
        Their variances, electrons².

    Returns
    -------
    array of float64, shape (...)
        Ratio of standard deviations; NaN for a single bin, or where a value is NaN.
    """
    xp = namespace(values)
    n = values.shape[0] - 1
    if n == 0:
        return xp.full_like(variances[0, ...], xp.nan)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = xp.asarray(values[1:, ...], dtype=xp.float64) - xp.asarray(values[:-1, ...], dtype=xp.float64)
        ordered = xp.sort(xp.abs(steps), axis=0)
        # sorting puts NaN last, so a NaN anywhere makes the last value NaN, and with it the sum
        typical = (ordered[(n - 1) // 2, ...] + ordered[n // 2, ...]) / 2.0 + 0.0 * ordered[-1, ...]
        return typical / _NORMAL / xp.sqrt(xp.sum(variances, axis=0) / variances.shape[0])


def scatter(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation of noise from bin to bin: ``median |x[b+1] − x[b]| / (0.6745 · √2)``.

    Parameters
    ----------
    values : ndarray of float64, shape (time, ...)
        Light curves.

    Returns
    -------
    ndarray of float64, shape (...)
        In the unit of the values; NaN as in `noise_excess`.
    """
    result: NDArray[np.float64] = noise_excess(values, np.ones_like(values))
    return result


def neighbour_residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract from each bin the mean of the bins beside it, which takes away any transit and slow drift.

    Parameters
    ----------
    values : ndarray of float64, shape (time, ...)
        Light curves.

    Returns
    -------
    ndarray of float64, shape (time, ...)
        Scaled so that noise of standard deviation σ keeps σ; NaN in the first and the last bin.
    """
    residuals = np.full_like(values, np.nan, dtype=np.float64)
    residuals[1:-1] = (values[1:-1] - (values[:-2] + values[2:]) / 2.0) / np.sqrt(1.5)
    return residuals
