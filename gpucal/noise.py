"""The variance of a binned CDS sum: the detector's own noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.plan import Plan
from gpucal.steps import Array, namespace

__all__ = ["on_arrays", "variance"]


def variance(signal: NDArray[Any], plan: Plan) -> NDArray[np.float64]:
    """Return the variance of every output, ``(max(S, 0) + 2·N·read²) / divisor²``.

    S is the binned sum before dark subtraction, recovered as ``signal·divisor + dark·τ``. Both reads of a pair belong
    to one accumulating exposure, so only the charge gathered between them is counted. Pointing jitter is not in it.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons; of NumPy or CuPy.
    plan : Plan
        What it was made with.

    Returns
    -------
    ndarray of float64, shape (time, wavelength, spatial)
        Electrons², where the signal is.
    """
    xp = namespace(signal)
    frame = (plan.detector.shape[0], plan.detector.width)
    maps = (values.reshape(frame).T for values in (plan.divisor, plan.dark, plan.read_noise))
    divisor, dark, read, tau_s = (xp.asarray(values) for values in (*maps, plan.tau_s))
    result: NDArray[np.float64] = on_arrays(signal, divisor, dark, read, tau_s, plan.pairs_per_bin)
    return result


def on_arrays(signal: Array, divisor: Array, dark: Array, read: Array, tau_s: Array, pairs_per_bin: int) -> Array:
    """Return the variance, of arrays of one namespace on one device.

    Parameters
    ----------
    signal : array, shape (time, wavelength, spatial)
        Calibrated signal, electrons.
    divisor, dark, read : array of float64, shape (wavelength, spatial)
        As in `gpucal.plan.Plan`.
    tau_s : array of float64, shape (time,)
        Integration time of a bin, s.
    pairs_per_bin : int
        CDS pairs in it.

    Returns
    -------
    array of float64, shape (time, wavelength, spatial)
        Electrons².
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        result = signal * divisor
        result += dark * tau_s[:, None, None]
        result[result < 0.0] = 0.0
        result += 2 * pairs_per_bin * read**2
        result /= divisor**2
    return result
