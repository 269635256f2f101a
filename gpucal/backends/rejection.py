"""Bins without the pairs that cosmic rays hit: found on the host, from raw counts, for every backend alike.

    out[b, p] = ( Σ over the kept pairs of [ P(n_end) − P(n_start) ] · pairs / kept  −  dark · τ[b] ) / divisor

A bin of which no pair is kept is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpucal.backends.numpy_ import cds_pairs
from gpucal.science.cosmic_rays import NUMPY, Search, find_hits
from gpucal.science.plan import Plan
from gpucal.science.rejected import Rejected

__all__ = ["Repairs", "repairs"]


@dataclass(frozen=True, eq=False)
class Repairs:
    """Bins with rejected pairs, and their values: arrays (bin,), and the values (bin,)."""

    rejected: Rejected
    values: NDArray[np.float64]


def repairs(plan: Plan, pixels: slice, counts: NDArray[np.uint16], search: Search = NUMPY) -> Repairs:
    """Find the bins of a block that have rejected pairs, and sum them without.

    Parameters
    ----------
    plan : Plan
        The arrays of the formula, with the threshold.
    pixels : slice
        The plan's pixels that the block holds.
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts.
    search : Search
        See `gpucal.science.cosmic_rays.find_hits`.

    Returns
    -------
    Repairs
        In the order of pixels and bins.
    """
    hits = find_hits(counts, plan.used_frames, plan.cosmic_rays, search)
    n = plan.pairs_per_bin
    places, inverse, numbers = np.unique(
        np.stack([hits[:, 0], hits[:, 1] // n], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    values = np.empty(len(places))
    for place, (pixel, bin_) in enumerate(places):
        kept = np.ones(n, bool)
        kept[hits[inverse.ravel() == place, 1] - bin_ * n] = False
        values[place] = _without(plan, pixels.start + pixel, bin_, counts[pixel], kept)
    rejected = Rejected(places[:, 1], pixels.start + places[:, 0], numbers)
    return Repairs(rejected, values)


def _without(plan: Plan, pixel: int, bin_: int, counts: NDArray[np.uint16], kept: NDArray[np.bool_]) -> float:
    frames = slice(2 * kept.size * bin_, 2 * kept.size * (bin_ + 1))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        pairs = cds_pairs(counts[None, frames], plan.coefficients[:, pixel, None, None], plan.floor)[0]
        total = pairs[kept].sum() * (np.float64(kept.size) / kept.sum())
        return float((total - plan.dark[pixel] * plan.tau_s[bin_]) / plan.divisor[pixel])
