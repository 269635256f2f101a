"""A signal file's pages to binned sums, block by block of pixels.

Nothing of the size of a frame stack is ever written: a block's pages are inflated into memory that stays in the cache,
and summed from there. What the compiled functions do not take is left to pyarrow: a page's codec, or a whole column.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Pages
from gpucal.backends.pagewise import bins, inflate
from gpucal.backends.pagewise.inflate import inflate_pages
from gpucal.backends.pagewise.leftover import inflate_by_codec, settle, verify_checksums
from gpucal.backends.pagewise.snappy import inflate_snappy
from gpucal.inputs.calibration_files import DEGREE
from gpucal.inputs.parquet.layout import CODEC, PADDING, SNAPPY, TO, WANTED
from gpucal.inputs.signal_file import Loaded
from gpucal.science.plan import Plan

__all__ = ["Scratch", "bin_counts", "bin_pages"]


class Scratch:
    """Memory of one thread, used again and again."""

    def __init__(self) -> None:
        self.inflating = inflate.workspace()
        self._shape = 0, 0
        self._binning: tuple[Any, ...] = ()
        self._inflated = np.empty(0, np.uint8)

    def binning(self, n_rows: int, pairs_per_bin: int) -> tuple[Any, ...]:
        """Return what `bins` works in, for columns of so many values and bins of so many CDS pairs."""
        if n_rows > self._shape[0] or pairs_per_bin > self._shape[1]:
            self._shape = max(n_rows, self._shape[0]), max(pairs_per_bin, self._shape[1])
            self._binning = bins.workspace(*self._shape)
        return self._binning

    def inflated(self, size: int) -> NDArray[np.uint8]:
        """Return so many bytes for inflated pages, whatever they hold."""
        if self._inflated.size < size:
            self._inflated = np.empty(size, np.uint8)
        return self._inflated[:size]


def bin_pages(
    plan: Plan, pixels: slice, loaded: Loaded, out: NDArray[np.float64], scratch: Scratch
) -> tuple[NDArray[np.bool_], Pages]:
    """Evaluate the formula over one pixel block, from its pages.

    Parameters
    ----------
    plan : Plan
        The arrays of the formula.
    pixels : slice
        Which pixels.
    loaded : Loaded
        A file whose table is of the plan's pixels, with pages that are decoded here (`PageTable.unfit`).
    out : ndarray of float64, shape (pixel, bin)
        Filled with electrons; C-contiguous.
    scratch : Scratch
        The thread's.

    Returns
    -------
    saturated : ndarray of bool, shape (pixel,)
        Whether any used count is saturated.
    pages : Pages
        How many pages were decoded in which way.

    Raises
    ------
    InputError
        If a page cannot be inflated or decoded; the line names the column, and which of its pages.
    """
    table = loaded.table
    inflated, pages, by_codec, seconds = _inflated(pixels, loaded, scratch)
    firsts = table.firsts[pixels.start : pixels.stop + 1] - table.firsts[pixels.start]
    saturated, wrong = np.empty(len(out), np.uint8), np.empty((len(out), 2), np.int64)
    bins.bin_pages(
        inflated, pages, firsts, table.facts[pixels], table.n_rows,
        *_constants(plan, pixels), out, saturated, wrong, *scratch.binning(table.n_rows, plan.pairs_per_bin),
    )  # fmt: skip

    def again(pixel: int, counts: NDArray[np.uint16]) -> None:
        one = slice(pixels.start + pixel, pixels.start + pixel + 1)
        saturated[pixel : pixel + 1] = bin_counts(plan, one, counts, out[pixel : pixel + 1], scratch)

    by_arrow = settle(loaded, pixels, wrong, again)
    return saturated.astype(bool), Pages(len(pages) - by_codec - by_arrow, by_codec, by_arrow, seconds)


def count_pages(pixels: slice, loaded: Loaded, scratch: Scratch) -> tuple[NDArray[np.uint16], Pages]:
    """Decode the pages of one pixel block to raw counts.

    Parameters
    ----------
    pixels, loaded, scratch
        As of `bin_pages`.

    Returns
    -------
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts.
    pages : Pages
        How many pages were decoded in which way.

    Raises
    ------
    InputError
        As of `bin_pages`.
    """
    table = loaded.table
    inflated, pages, by_codec, seconds = _inflated(pixels, loaded, scratch)
    firsts = table.firsts[pixels.start : pixels.stop + 1] - table.firsts[pixels.start]
    counts = np.empty((pixels.stop - pixels.start, table.n_rows), np.uint16)
    wrong = np.empty((len(counts), 2), np.int64)
    work = scratch.binning(table.n_rows, 1)
    bins.count_pages(inflated, pages, firsts, table.facts[pixels], table.n_rows, counts, wrong, *work)

    def again(pixel: int, column: NDArray[np.uint16]) -> None:
        counts[pixel] = column[0]

    by_arrow = settle(loaded, pixels, wrong, again)
    return counts, Pages(len(pages) - by_codec - by_arrow, by_codec, by_arrow, seconds)


def _inflated(pixels: slice, loaded: Loaded, scratch: Scratch) -> tuple[NDArray[np.uint8], NDArray[Any], int, float]:
    """Inflate the pages of a block; return them, their table, how many the codec inflated, and the time it took."""
    table = loaded.table
    first, last = (int(table.firsts[place]) for place in (pixels.start, pixels.stop))
    pages, data = table.pages[first:last], loaded.data
    by_codec, start = 0, time.perf_counter()
    if len(pages):
        if loaded.strict:
            verify_checksums(table, data, first, last, loaded.path)
        inflated = scratch.inflated(int(pages[-1, TO] + pages[-1, WANTED] - pages[0, TO]) + PADDING)
        status = np.empty(len(pages), np.int64)
        inflate_pages(data, pages, 0, len(pages), inflated, status, *scratch.inflating)
        if (pages[status != 0, CODEC] == SNAPPY).any():
            inflate_snappy(data, pages, inflated, status)
        others = np.flatnonzero(status)
        by_codec = len(others)
        inflate_by_codec(table, data, first + others, inflated, pages[others, TO] - pages[0, TO], loaded.path)
    else:
        inflated = scratch.inflated(PADDING)
    return inflated, pages, by_codec, time.perf_counter() - start


def bin_counts(
    plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64], scratch: Scratch | None = None
) -> NDArray[np.bool_]:
    """Evaluate the formula over one pixel block, from its counts: the same bits.

    Parameters
    ----------
    plan : Plan
        The arrays of the formula.
    pixels : slice
        Which pixels.
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts.
    out : ndarray of float64, shape (pixel, bin)
        Filled with electrons; C-contiguous.
    scratch : Scratch, optional
        The thread's.

    Returns
    -------
    ndarray of bool, shape (pixel,)
        Whether any used count is saturated.
    """
    saturated = np.empty(len(out), np.uint8)
    shape = plan.used_frames, plan.pairs_per_bin
    work = bins.workspace(*shape) if scratch is None else scratch.binning(*shape)
    bins.bin_counts(np.ascontiguousarray(counts), *_constants(plan, pixels), out, saturated, *work)
    return saturated.astype(bool)


def _constants(plan: Plan, pixels: slice) -> tuple[Any, ...]:
    """Give what the compiled functions take of a plan."""
    coefficients = np.zeros((pixels.stop - pixels.start, DEGREE))
    coefficients[:, : len(plan.coefficients) - 1] = plan.coefficients[1:, pixels].T
    dark, divisor = plan.dark[pixels], plan.divisor[pixels]
    return coefficients, plan.floor, plan.pairs_per_bin, dark, plan.tau_s, divisor, plan.saturation
