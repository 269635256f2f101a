"""The whole observation as one float64 cube, in place: a careful NumPy user's way instead of the notebook's.

Every step is one vectorised expression over all frames and pixels, and nothing is copied that need not be. It is the
arithmetic alone, from counts in memory, and imports nothing of the package.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def calibrate(
    raw: NDArray[np.uint16],
    gain: float,
    offset: float,
    linear_corr: Float,
    dark: Float,
    flat: Float,
    integration_s: Float,
    bin_pairs: int,
) -> Float:
    """Take counts through ADC, linearity, dark, CDS, binning and flat.

    Parameters
    ----------
    raw : ndarray of uint16, shape (frame, spatial, wavelength)
        Counts.
    gain, offset : float
        ADC.
    linear_corr : ndarray, shape (6, spatial, wavelength)
        Ascending powers.
    dark, flat : ndarray, shape (spatial, wavelength)
        0 and 1 at dead pixels.
    integration_s : ndarray, shape (frame,)
        Seconds of each frame.
    bin_pairs : int
        Pairs in a bin.

    Returns
    -------
    ndarray of float64, shape (bin, spatial, wavelength)
        Electrons.
    """
    signal = raw.astype(np.float64)
    signal /= gain
    signal += offset
    electrons = signal.copy()
    signal *= linear_corr[5]
    for coefficient in linear_corr[4:0:-1]:
        signal += coefficient
        signal *= electrons
    signal += linear_corr[0]
    np.multiply(dark, integration_s[:, None, None], out=electrons)
    signal -= electrons
    pairs = np.subtract(signal[1::2], signal[0::2], out=electrons[: len(signal) // 2])
    bins = len(pairs) // bin_pairs
    binned: Float = pairs[: bins * bin_pairs].reshape(bins, bin_pairs, *pairs.shape[1:]).sum(axis=1)
    binned /= flat
    return binned
