"""The formula on NumPy, in tiles that stay in a core's cache; the backend that always works."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend
from gpucal.science.plan import Plan

__all__ = ["bin_counts", "cds_pairs", "connect"]

# Counts in a tile. Its three float64 arrays, 3 MiB, stay in the last-level cache. Smaller tiles would fit L2, but then
# two threads fight for the interpreter lock: 6.2 ns a count at 16,384, 2.4 at 131,072 (2 cores, AIRS-CH0).
_TILE = 131_072


def connect() -> Backend:
    """Return the backend; it runs everywhere."""
    return Backend("numpy", f"NumPy {np.__version__}", bin_counts)


def bin_counts(plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Evaluate the formula over one pixel block.

    ``out[p, b] = (Σ_pairs [P(n_end) − P(n_start)] − dark·τ[b]) / divisor``; P's constant cancels and is left out.

    Parameters
    ----------
    plan : Plan
        The arrays of the formula.
    pixels : slice
        The plan's pixels that the block holds.
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts.
    out : ndarray of float64, shape (pixel, bin)
        Filled with electrons.

    Returns
    -------
    ndarray of bool, shape (pixel,)
        True where a used count is saturated.
    """
    used = counts[:, : plan.used_frames]
    frames_per_bin = 2 * plan.pairs_per_bin
    bins_per_tile = max(1, min(plan.n_bins, _TILE // frames_per_bin))
    pixels_per_tile = max(1, _TILE // (frames_per_bin * bins_per_tile))
    coefficients = plan.coefficients[:, pixels, None]
    # Outlier coefficients may overflow, and a flat may be zero: such pixels are flagged, and their values are kept.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for first in range(0, used.shape[0], pixels_per_tile):
            rows = slice(first, first + pixels_per_tile)
            for start in range(0, plan.n_bins, bins_per_tile):
                bins = slice(start, min(start + bins_per_tile, plan.n_bins))
                frames = slice(bins.start * frames_per_bin, bins.stop * frames_per_bin)
                pairs = cds_pairs(used[rows, frames], coefficients[:, rows], plan.floor)
                grouped = pairs.reshape(pairs.shape[0], bins.stop - bins.start, plan.pairs_per_bin)
                np.add.reduce(grouped, axis=2, out=out[rows, bins])
        out -= plan.dark[pixels, None] * plan.tau_s
        out /= plan.divisor[pixels, None]
    saturated: NDArray[np.bool_] = used.max(axis=1) >= plan.saturation
    return saturated


def cds_pairs(counts: NDArray[np.uint16], coefficients: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Return P(end) − P(start) without P's constant, shape (pixel, pair)."""
    n = counts.astype(np.float64)
    if floor > 0.0:
        np.maximum(n, floor, out=n)
    value = n * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        value += coefficient
        value *= n
    difference: NDArray[np.float64] = value[:, 1::2] - value[:, 0::2]
    return difference
