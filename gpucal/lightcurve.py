"""Light curves: sums over good spatial pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.detectors import Detector

__all__ = ["light_curve"]


def light_curve(signal: NDArray[Any], dq: NDArray[np.uint8], detector: Detector) -> NDArray[np.float64]:
    """Sum a signal cube over its good pixels (dq = 0), along the slit for a spectrum, over the image for a photometer.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags.
    detector : Detector
        The detector.

    Returns
    -------
    ndarray of float64, shape (time, wavelength) or (time, 1)
        Electrons; NaN where no pixel is good.
    """
    good = dq == 0
    axes = (1, 2) if detector.photometer else (2,)
    total = np.where(good, signal, 0.0).sum(axis=axes, dtype=np.float64, keepdims=True)
    any_good = good.any(axis=tuple(axis - 1 for axis in axes), keepdims=True)
    return np.where(any_good, total, np.nan).reshape(signal.shape[0], -1)
