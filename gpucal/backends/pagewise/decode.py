"""A signal file's pages to binned sums, block by block of pixels, on any number of threads.

Nothing of the size of a frame stack is ever written: a block's pages are inflated into memory that stays in the cache,
and summed from there. What the compiled functions do not take is left to pyarrow: a page's codec, or a whole column.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.backends.pagewise import bins, inflate
from gpucal.backends.pagewise.bins import ASKED, STATUSES, bin_counts, bin_pages
from gpucal.backends.pagewise.inflate import HEADER, SIZES, inflate_pages
from gpucal.backends.pagewise.layout import AT, CODEC, PADDING, PREFIX, SIZE, SNAPPY, TO, WANTED, ZSTD
from gpucal.backends.pagewise.table import PageTable, page_table, read_facts
from gpucal.errors import InputError
from gpucal.inputs.calibration_files import DEGREE
from gpucal.inputs.counts import typed_errors
from gpucal.inputs.files import AGAIN, shortened
from gpucal.inputs.parquet.arrow import values_of
from gpucal.inputs.parquet.footer import end_of
from gpucal.inputs.parquet.pages import read_footer
from gpucal.inputs.parquet.thrift import Unreadable
from gpucal.science.plan import Plan

__all__ = ["Scratch", "bin_block", "bin_decoded", "bin_file", "blocks", "open_pages"]

BLOCK = 1 << 19
"""Bytes of inflated pages that a block has, about: they stay in a core's second cache."""

Decode: TypeAlias = "Callable[[NDArray[np.intp]], NDArray[np.uint16]]"
"""From positions of columns to their counts, (column, frame)."""


class Scratch:
    """Memory of one thread, used again and again.

    Parameters
    ----------
    n_rows : int
        Values of a column.
    pairs_per_bin : int
        CDS pairs in a bin.
    """

    def __init__(self, n_rows: int, pairs_per_bin: int) -> None:
        self.inflating = inflate.workspace()
        self.binning = bins.workspace(n_rows, pairs_per_bin)
        self._inflated = np.empty(0, np.uint8)

    def inflated(self, size: int) -> NDArray[np.uint8]:
        """Return so many bytes for inflated pages, whatever they hold."""
        if self._inflated.size < size:
            self._inflated = np.empty(size, np.uint8)
        return self._inflated[:size]


def blocks(table: PageTable, size: int = BLOCK) -> list[slice]:
    """Cut a table's columns into blocks of so many bytes of inflated pages, about; a column at least."""
    ends = np.append(table.pages[:, TO], table.pages[-1:, TO] + table.pages[-1:, WANTED])[table.firsts]
    cuts, first = [], 0
    while first < len(table.columns):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + size)))
        cuts.append(slice(first, min(last, len(table.columns))))
        first = last
    return cuts


def open_pages(data: bytes, n_columns: int, columns: NDArray[np.intp], path: Path) -> PageTable:
    """Parse and check a signal file's footer and pages.

    Parameters
    ----------
    data : bytes
        The file.
    n_columns : int
        Columns that it has.
    columns : ndarray of intp
        Which of them are wanted.
    path : Path
        The file, for messages.

    Returns
    -------
    PageTable
        Their pages.

    Raises
    ------
    InputError
        If something is not as it should be.
    Unfit
        If something has to decode the file that knows more encodings or codecs.
    """
    end = end_of(BytesIO(data), path)
    at = len(data) - len(end)
    try:
        facts = read_facts(data, at, len(data) - 8)
    except Unreadable as error:
        raise InputError(f"is no readable Parquet file: its footer {error}", AGAIN, path) from error
    if len(facts) != n_columns:
        raise InputError(f"has {len(facts)} columns, expected {n_columns}", AGAIN, path)
    return page_table(data, read_footer(end, len(data), n_columns, path), facts, columns, path)


def bin_file(
    data: bytes, table: PageTable, plan: Plan, path: Path, threads: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Evaluate the formula over a whole file.

    Parameters
    ----------
    data : bytes
        The file.
    table : PageTable
        Its pages.
    plan : Plan
        The arrays of the formula.
    path : Path
        The file, for messages.
    threads : int
        Threads that do so.

    Returns
    -------
    signal : ndarray of float64, shape (pixel, bin)
        Electrons.
    saturated : ndarray of bool, shape (pixel,)
        Whether any used count is saturated.

    Raises
    ------
    InputError
        If a page cannot be inflated or decoded.
    """
    signal, saturated = np.empty((plan.n_pixels, plan.n_bins)), np.empty(plan.n_pixels, bool)
    raw, left = np.frombuffer(data, np.uint8), iter(blocks(table))

    def work() -> None:
        scratch, decode = Scratch(table.n_rows, plan.pairs_per_bin), _by_pyarrow(data, path)
        for pixels in left:
            saturated[pixels] = bin_block(table, raw, plan, pixels, signal[pixels], decode, scratch, path)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
    return signal, saturated


def _by_pyarrow(data: bytes, path: Path) -> Decode:
    """Decode columns as pyarrow does."""

    def decode(columns: NDArray[np.intp]) -> NDArray[np.uint16]:
        with typed_errors(path), pq.ParquetFile(pa.BufferReader(data)) as file:
            found = file.reader.read_all(column_indices=columns.tolist(), use_threads=False)
            counts = np.empty((len(columns), found.num_rows), np.uint16)
            for row, position, column in zip(counts, columns, found.itercolumns(), strict=True):
                if column.null_count:
                    raise InputError(f"column {position} holds {column.null_count} nulls", AGAIN, path)
                values = values_of(column)
                if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
                    raise InputError(f"column {position} holds counts outside 0 to 65535", AGAIN, path)
                row[:] = values
        return counts

    return decode


def bin_block(
    table: PageTable,
    data: NDArray[np.uint8],
    plan: Plan,
    pixels: slice,
    out: NDArray[np.float64],
    decode: Decode,
    scratch: Scratch,
    path: Path,
) -> NDArray[np.bool_]:
    """Evaluate the formula over one pixel block, from its pages.

    Parameters
    ----------
    table : PageTable
        The pages of all pixels of the plan.
    data : ndarray of uint8, shape (byte,)
        The file.
    plan : Plan
        The arrays of the formula.
    pixels : slice
        Which pixels.
    out : ndarray of float64, shape (pixel, bin)
        Filled with electrons; C-contiguous.
    decode : callable
        Decodes columns by other means: those with a page that is not as usual and may be sound all the same.
    scratch : Scratch
        The thread's.
    path : Path
        The file, for messages.

    Returns
    -------
    ndarray of bool, shape (pixel,)
        Whether any used count is saturated.

    Raises
    ------
    InputError
        If a page cannot be inflated or decoded; the line names the column, and which of its pages.
    """
    first, last = (int(table.firsts[place]) for place in (pixels.start, pixels.stop))
    pages = table.pages[first:last]
    if len(pages):
        inflated = scratch.inflated(int(pages[-1, TO] + pages[-1, WANTED] - pages[0, TO]) + PADDING)
        status = np.empty(len(pages), np.int64)
        inflate_pages(data, pages, 0, len(pages), inflated, status, *scratch.inflating)
        for page in np.flatnonzero(status):
            _inflate_otherwise(table, data, first + int(page), int(status[page]), inflated, pages[0, TO], path)
    else:
        inflated = scratch.inflated(PADDING)
    saturated, wrong = np.empty(len(out), np.uint8), np.empty((len(out), 2), np.int64)
    bin_pages(
        inflated, pages, table.firsts[pixels.start : pixels.stop + 1] - first, table.facts[pixels], table.n_rows,
        *_constants(plan, pixels), out, saturated, wrong, *scratch.binning,
    )  # fmt: skip
    for pixel in np.flatnonzero(wrong[:, 0]):
        number, page = wrong[pixel].tolist()
        if number not in ASKED:
            raise _refusal(table, first + page, STATUSES[number], path)
        at = pixels.start + int(pixel)
        one = slice(at, at + 1)
        try:
            counts = decode(table.columns[one])
        except InputError as error:
            raise _refusal(table, first + page, f"{STATUSES[number]} ({error.problem})", path) from error
        saturated[pixel : pixel + 1] = bin_decoded(plan, one, counts, out[pixel : pixel + 1], scratch)
    return saturated.astype(bool)


def bin_decoded(
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
        Raw counts, C-contiguous.
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
    work = bins.workspace(plan.used_frames, plan.pairs_per_bin) if scratch is None else scratch.binning
    bin_counts(counts, *_constants(plan, pixels), out, saturated, *work)
    return saturated.astype(bool)


def _constants(plan: Plan, pixels: slice) -> tuple[Any, ...]:
    """Give what the compiled functions take of a plan."""
    coefficients = np.zeros((pixels.stop - pixels.start, DEGREE))
    coefficients[:, : len(plan.coefficients) - 1] = plan.coefficients[1:, pixels].T
    dark, divisor = plan.dark[pixels], plan.divisor[pixels]
    return coefficients, plan.floor, plan.pairs_per_bin, dark, plan.tau_s, divisor, plan.saturation


def _inflate_otherwise(
    table: PageTable, data: NDArray[np.uint8], page: int, status: int, out: NDArray[np.uint8], base: int, path: Path
) -> None:
    """Inflate a page by pyarrow's codec."""
    facts = table.pages[page]
    at, size, prefix, to, wanted = (int(facts[place]) for place in (AT, SIZE, PREFIX, TO, WANTED))
    stored, wanted, to = data[at + prefix : at + size], wanted - prefix, to + prefix - base
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


def _refusal(table: PageTable, page: int, problem: str, path: Path) -> InputError:
    column = int(np.searchsorted(table.firsts, page, side="right")) - 1
    number = page - int(table.firsts[column]) + 1
    return InputError(f"column {table.columns[column]}: page {number} {problem}", AGAIN, path)
