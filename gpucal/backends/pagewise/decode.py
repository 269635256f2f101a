"""A signal file's pages to binned sums, block by block of pixels.

Nothing of the size of a frame stack is ever written: a block's pages are inflated into memory that stays in the cache,
and summed from there. What the compiled functions do not take is left to pyarrow: a page's codec, or a whole column.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpucal.backends import Pages
from gpucal.backends.pagewise import bins, inflate
from gpucal.backends.pagewise.bins import ASKED, STATUSES, TOLD
from gpucal.backends.pagewise.inflate import HEADER, SIZES, inflate_pages
from gpucal.errors import InputError
from gpucal.inputs.calibration_files import DEGREE
from gpucal.inputs.files import AGAIN, shortened
from gpucal.inputs.parquet.layout import AT, CHECKSUM, CODEC, PADDING, PREFIX, SIZE, SNAPPY, TO, WANTED, ZSTD
from gpucal.inputs.parquet.pages import PageTable
from gpucal.inputs.parquet.thrift import ABSENT
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
    first, last = (int(table.firsts[place]) for place in (pixels.start, pixels.stop))
    pages, data = table.pages[first:last], np.frombuffer(loaded.buffer.getvalue(), np.uint8)
    by_codec = by_arrow = 0
    start = time.perf_counter()
    if len(pages):
        if loaded.strict:
            _verify(table, data, first, last, loaded.path)
        inflated = scratch.inflated(int(pages[-1, TO] + pages[-1, WANTED] - pages[0, TO]) + PADDING)
        status = np.empty(len(pages), np.int64)
        inflate_pages(data, pages, 0, len(pages), inflated, status, *scratch.inflating)
        others = np.flatnonzero(status)
        by_codec = len(others)
        for page in others:
            number, to = int(status[page]), int(pages[page, TO] - pages[0, TO])
            _inflate_otherwise(table, data, first + int(page), number, inflated, to, loaded.path)
    else:
        inflated = scratch.inflated(PADDING)
    seconds = time.perf_counter() - start
    saturated, wrong = np.empty(len(out), np.uint8), np.empty((len(out), 2), np.int64)
    bins.bin_pages(
        inflated, pages, table.firsts[pixels.start : pixels.stop + 1] - first, table.facts[pixels], table.n_rows,
        *_constants(plan, pixels), out, saturated, wrong, *scratch.binning(table.n_rows, plan.pairs_per_bin),
    )  # fmt: skip
    for pixel in np.flatnonzero(wrong[:, 0]):
        number, page = wrong[pixel].tolist()
        one, problem = slice(pixels.start + int(pixel), pixels.start + int(pixel) + 1), STATUSES[number]
        if number not in TOLD:
            raise _refusal(table, first + page, problem, loaded.path)
        try:
            ((_, counts),) = loaded.counts([one])
        except InputError as error:
            raise _refusal(table, first + page, f"{problem} ({error.problem})", loaded.path, error.mend) from error
        if number not in ASKED:
            raise _refusal(table, first + page, problem, loaded.path)
        saturated[pixel : pixel + 1] = bin_counts(plan, one, counts, out[pixel : pixel + 1], scratch)
        by_arrow += int(table.firsts[one.stop] - table.firsts[one.start])
    return saturated.astype(bool), Pages(len(pages) - by_codec - by_arrow, by_codec, by_arrow, seconds)


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


def _verify(table: PageTable, data: NDArray[np.uint8], first: int, last: int, path: Path) -> None:
    """Compare the checksums of pages that have one."""
    for page in range(first, last):
        at, size, checksum = (int(table.pages[page, place]) for place in (AT, SIZE, CHECKSUM))
        if checksum != ABSENT and zlib.crc32(data[at : at + size].data) != checksum & 0xFFFF_FFFF:
            raise _refusal(table, page, "has another checksum than its header says", path)


def _inflate_otherwise(
    table: PageTable, data: NDArray[np.uint8], page: int, status: int, out: NDArray[np.uint8], to: int, path: Path
) -> None:
    """Inflate a page by pyarrow's codec."""
    facts = table.pages[page]
    at, size, prefix, wanted = (int(facts[place]) for place in (AT, SIZE, PREFIX, WANTED))
    stored, wanted, to = data[at + prefix : at + size], wanted - prefix, to + prefix
    codec = int(facts[CODEC])
    try:
        if codec == ZSTD and status not in (HEADER, SIZES):
            # its header says that it holds as much as it should, and the codec sees to that
            inflated = pa.Codec("zstd").decompress(pa.py_buffer(stored), decompressed_size=wanted)
        elif codec == ZSTD:
            with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(stored)), "zstd") as stream:
                inflated = stream.read_buffer(wanted + 1)
        elif codec == SNAPPY and _snappy_size(stored) == wanted:
            inflated = pa.Codec("snappy").decompress(pa.py_buffer(stored), decompressed_size=wanted)
        else:
            raise OSError("of another size than its header says")
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _refusal(table, page, f"cannot be decompressed ({shortened(error)})", path) from error
    if inflated.size != wanted:
        raise _refusal(table, page, "cannot be decompressed (to the size that its header says)", path)
    out[to : to + wanted] = np.frombuffer(inflated, np.uint8)


def _snappy_size(stored: NDArray[np.uint8]) -> int:
    """Return the size that compressed bytes begin with, in groups of seven bits."""
    size = 0
    for place, byte in enumerate(stored[:5].tobytes()):
        size |= (byte & 127) << 7 * place
        if byte < 128:
            return size
    return -1


def _refusal(table: PageTable, page: int, problem: str, path: Path, mend: str = AGAIN) -> InputError:
    column = int(np.searchsorted(table.firsts, page, side="right")) - 1
    number = page - int(table.firsts[column]) + 1
    return InputError(f"column {table.columns[column]}: page {number} {problem}", mend, path)
