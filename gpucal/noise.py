"""The variance of a binned CDS sum: the detector's own noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.plan import Plan

__all__ = ["variance"]


def variance(signal: NDArray[Any], plan: Plan) -> NDArray[np.float64]:
    """Return the variance of every output, ``(max(S, 0) + 2·N·read²) / divisor²``.

    S is the binned sum before dark subtraction, recovered as ``signal·divisor + dark·τ``. Both reads of a pair belong
    to one accumulating exposure, so only the charge gathered between them is counted. Pointing jitter is not in it.

    Parameters
    ----------
    signal : ndarray, shape (time, wavelength, spatial)
        Calibrated signal, electrons.
    plan : Plan
        What it was made with.

    Returns
    -------
    ndarray of float64, shape (time, wavelength, spatial)
        Electrons².
    """
    frame = (plan.detector.shape[0], plan.detector.width)
    divisor, dark, read = (values.reshape(frame).T for values in (plan.divisor, plan.dark, plan.read_noise))
    with np.errstate(divide="ignore", invalid="ignore"):
        result: NDArray[np.float64] = signal * divisor
        result += dark * plan.tau_s[:, None, None]
        np.maximum(result, 0.0, out=result)
        result += 2 * plan.pairs_per_bin * read**2
        result /= divisor**2
    return result
