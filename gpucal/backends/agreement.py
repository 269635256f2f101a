"""Compare a backend with NumPy, on a small cube that has an example of every kind of pixel."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.backends import BinCounts, BinPages, Pages
from gpucal.backends.numpy_ import bin_counts as numpy_bin_counts
from gpucal.inputs.parquet.footer import end_of
from gpucal.inputs.parquet.pages import page_table, read_footer
from gpucal.inputs.signal_file import Loaded
from gpucal.science.plan import Plan
from gpucal.settings.detectors import DETECTORS

__all__ = ["difference", "difference_by_pages", "example"]

# Rounding in another order may change a value by 1e-12 of itself or of an electron, and by 1e-13 of the sum of |P(n)|
# over a bin of 2 * 360 reads below 2e5 electrons. Real errors are larger by many orders.
_TOLERANCE = MappingProxyType({"relative": 1e-12, "absolute": 1e-12 + 1e-13 * 720 * 2e5})

_FRAMES = 2 * (2 * 360 + 1)


def difference(bin_counts: BinCounts, n_pixels: int = 70) -> float:
    """Compare a backend with NumPy at 1, 7, 30 and 360 pairs a bin; this takes some milliseconds.

    Parameters
    ----------
    bin_counts : callable
        See `gpucal.backends`.
    n_pixels : int
        Pixels; 12 are enough for one of every kind.

    Returns
    -------
    float
        The worst difference as a multiple of the rounding errors allowed: up to 1 the backend agrees. It is infinite if
        a saturated pixel is missed, or a value is finite in one of the two results only.
    """
    counts = _counts(n_pixels)
    worst = 0.0
    for pairs_per_bin in (1, 7, 30, 360):
        plan = _plan(pairs_per_bin, n_pixels, _FRAMES // 2 // pairs_per_bin)
        given, expected = np.full((2, n_pixels, plan.n_bins), np.nan)
        pixels = slice(0, n_pixels)
        saturated = numpy_bin_counts(plan, pixels, counts, expected)
        if not np.array_equal(bin_counts(plan, pixels, counts, given), saturated):
            return float("inf")
        allowed = _TOLERANCE["relative"] * np.abs(expected) + _TOLERANCE["absolute"]
        worst = max(worst, float(np.max(np.nan_to_num(np.abs(given - expected) / allowed, nan=np.inf))))
    return worst


def difference_by_pages(bin_pages: BinPages) -> float:
    """Compare a backend with NumPy on the pages of a file in memory, as `difference` does it with counts.

    Parameters
    ----------
    bin_pages : callable
        See `gpucal.backends`.

    Returns
    -------
    float
        As of `difference`; infinite, too, if the backend decodes no page wholly by itself.
    """
    n_pixels, total = 12, [Pages()]
    loaded = _loaded(_counts(n_pixels))

    def through_pages(
        plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        saturated, pages = bin_pages(plan, pixels, loaded, out)
        total.append(pages)
        return saturated

    worst = difference(through_pages, n_pixels)
    return worst if sum(total, Pages()).own else float("inf")


def example(n_bins: int = 187, pairs_per_bin: int = 30) -> tuple[Plan, NDArray[np.uint16]]:
    """Make up a plan of 282 pixels, and their raw counts (pixel, frame); by default as long as those of AIRS-CH0."""
    counts = np.random.default_rng(0).integers(300, 60_000, (282, 2 * pairs_per_bin * n_bins), np.uint16)
    return _plan(pairs_per_bin, 282, n_bins), counts


def _counts(n_pixels: int) -> NDArray[np.uint16]:
    """Draw raw counts (pixel, frame): faint, bright, constant, and with a saturated read in every eleventh pixel."""
    counts = np.random.default_rng(0).integers(300, 60_000, (n_pixels, _FRAMES), np.uint16)
    counts[::5] //= 50
    counts[3] = 1234
    counts[::11, 100] = 65_535
    return counts


def _loaded(counts: NDArray[np.uint16]) -> Loaded:
    """Make a file of counts (pixel, frame), as if it had been read."""
    sink, path = BytesIO(), Path("example.parquet")
    pq.write_table(pa.table({f"column_{k}": column for k, column in enumerate(counts)}), sink, compression="zstd")
    data = sink.getvalue()
    table = page_table(data, read_footer(end_of(sink, path), len(data), path), np.arange(len(counts)), path)
    return Loaded(path, np.frombuffer(data, np.uint8), table, False)


def _plan(pairs_per_bin: int, n_pixels: int, n_bins: int) -> Plan:
    """Make up a plan: polynomials as in the competition, a floor, and half of the pixels without dark and flat."""
    rng = np.random.default_rng(pairs_per_bin)
    centres = np.array([0.1, 1.0, 1e-7, 1.2e-11, -6e-17, 1.3e-22])
    coefficients = centres[:, None] * rng.normal(1.0, 0.05, (6, n_pixels))
    plain = np.arange(n_pixels) % 2 == 0
    return Plan(
        detector=replace(DETECTORS["FGS1"], shape=(1, n_pixels), crop=(0, n_pixels)),
        n_bins=n_bins,
        pairs_per_bin=pairs_per_bin,
        coefficients=coefficients,
        floor=450.25,
        dark=np.where(plain, 0.0, 0.01),
        tau_s=rng.uniform(1.0, 5.0, n_bins),
        divisor=np.where(plain, 1.0, rng.normal(1.0, 0.02, n_pixels)),
        electron=1.0,
        read_noise=np.full(n_pixels, 10.0),
        saturation=65_535,
        dq=np.zeros(n_pixels, np.uint8),
        time_h=np.arange(n_bins) / 1000.0,
        bounds_h=(np.arange(n_bins)[:, None] + [-0.5, 0.5]) / 1000.0,
    )
