"""Light curves: sums over good spatial pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.detectors import Detector
from gpucal.steps import Array, namespace

__all__ = ["light_curve", "on_arrays"]


def light_curve(signal: NDArray[Any], dq: NDArray[np.uint8], detector: Detector) -> NDArray[np.float64]:
    """Sum a signal cube over its good pixels (dq = 0), along the slit for a spectrum, over the image for a photometer.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons; of NumPy or CuPy.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    detector : Detector
        The detector.

    Returns
    -------
    ndarray of float64, shape (time, wavelength) or (time, 1)
        Electrons; NaN where no pixel is good. Where the signal is.
    """
    curve: NDArray[np.float64] = on_arrays(signal, namespace(signal).asarray(dq == 0), detector.photometer)
    return curve


def on_arrays(signal: Array, good: Array, photometer: bool) -> Array:
    """Return the light curve, of arrays of one namespace on one device.

    Parameters
    ----------
    signal : array, shape (time, wavelength, spatial)
        Calibrated signal, electrons.
    good : array of bool, shape (wavelength, spatial)
        Pixels to sum.
    photometer : bool
        Sum over both axes, and not over the spatial one alone.

    Returns
    -------
    array of float64, shape (time, wavelength) or (time, 1)
        Electrons.
    """
    xp = namespace(signal)
    axes = (1, 2) if photometer else (2,)
    total = xp.sum(xp.where(good, signal, 0.0), axis=axes, dtype=xp.float64)
    any_good = xp.any(good, axis=tuple(axis - 1 for axis in axes))
    return xp.reshape(xp.where(any_good, total, xp.nan), (signal.shape[0], -1))
