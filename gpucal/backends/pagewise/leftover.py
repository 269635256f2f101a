"""Leaves to pyarrow the pages and columns that gpucal's own code does not take.

Pyarrow's codec decompresses such pages, and pyarrow decodes such columns. Nothing here is compiled, so the backend of a
GPU uses it too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpucal.backends.pagewise.statuses import ASKED, DONE, OTHER, SEQUENCES, STATUSES, TOLD
from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN, shortened
from gpucal.inputs.parquet.codec import decompress, decompress_all
from gpucal.inputs.parquet.layout import AT, CHECKSUM, CODEC, PREFIX, SIZE, STORED, WANTED, ZSTD, ZSTD_MAGIC
from gpucal.inputs.parquet.pages import PageTable
from gpucal.inputs.parquet.thrift import ABSENT
from gpucal.inputs.signal_file import Loaded

__all__ = ["foreseen", "inflate_by_codec", "settle", "verify_checksums"]


def verify_checksums(table: PageTable, data: NDArray[np.uint8], first: int, last: int, path: Path) -> None:
    """Compare the checksums of pages that have one."""
    for page in range(first, last):
        at, size, checksum = (int(table.pages[page, place]) for place in (AT, SIZE, CHECKSUM))
        if checksum != ABSENT and zlib.crc32(data[at : at + size].data) != checksum & 0xFFFF_FFFF:
            raise _refusal(table, page, "has another checksum than its header says", path)


# Errors of pages that a codec cannot decompress.
_DAMAGED = pa.ArrowException, OSError, ValueError, MemoryError

# Bytes of pages, about, that are decompressed by one call of the codec.
_TOGETHER = 2**20

# By the type and the format of a block's literals (RFC 8878, 3.1.1.3.1.1), raw, repeated, coded by a tree, and by the
# tree before: bytes of their header, where the bits of their size begin in it, and how many those are.
_LITERALS = np.array(
    [
        *([(1, 3, 5), (2, 4, 12), (1, 3, 5), (3, 4, 20)], [(1, 3, 0), (2, 4, 0), (1, 3, 0), (3, 4, 0)]),
        *2 * ([(3, 14, 10), (3, 14, 10), (4, 18, 14), (5, 22, 18)],),
    ]
)


def foreseen(data: NDArray[np.uint8], pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell which pages have to be left to the codec, as far as the head of their frame and of its first block says.

    Parameters
    ----------
    data : ndarray of uint8
        The file; at least eight bytes of it follow every page.
    pages : ndarray of int64, shape (page, COLUMNS)
        Some pages of its table.

    Returns
    -------
    ndarray of int64, shape (page,)
        The reason, by page; DONE if none is seen here. A frame that is damaged may have any.
    """
    words = np.ndarray(max(0, data.size - 7), "<i8", data, strides=(1,))  # the eight bytes at every offset

    def word(at: NDArray[np.int64]) -> NDArray[np.int64]:
        return words[np.minimum(at, words.size - 1)]

    became = np.where(np.isin(pages[:, CODEC], (STORED, ZSTD)), DONE, OTHER)
    (some,) = np.nonzero(pages[:, CODEC] == ZSTD)
    facts = pages[some]
    at = facts[:, AT] + facts[:, PREFIX]
    head = word(at)
    width = 1 << (head >> 38 & 3)  # bytes of the content's size, of which the last bits are compared
    content = (word(at + 5) & (1 << np.minimum(8 * width, 62)) - 1) + np.where(width == 2, 256, 0)
    block = word(at + 5 + width)
    of_literals = word(at + 8 + width)
    header, shift, bits = _LITERALS[of_literals & 3, of_literals >> 2 & 3].T
    stored = of_literals >> shift & (1 << bits) - 1
    stored += (of_literals & 3) == 1  # repeated: one byte
    sequences = word(at + 8 + width + header + stored) & 0xFF
    sound = ((head & 0xFFFF_FFFF) == ZSTD_MAGIC) & ((head >> 32 & 0x3F) == 0x20)
    sound &= content == facts[:, WANTED] - facts[:, PREFIX]
    became[some[sound & ((block >> 1 & 3) == 2) & (sequences != 0)]] = SEQUENCES
    return became


def inflate_by_codec(
    table: PageTable,
    data: NDArray[np.uint8],
    pages: NDArray[np.intp],
    out: NDArray[np.uint8],
    places: NDArray[np.int64],
    path: Path,
) -> None:
    """Inflate pages by pyarrow's codec.

    Parameters
    ----------
    table : PageTable
        The file's pages.
    data : ndarray of uint8
        The file.
    pages : ndarray of intp, shape (page,)
        Which pages.
    out : ndarray of uint8
        Filled with the pages.
    places : ndarray of int64, shape (page,)
        Where in ``out`` each begins.
    path : Path
        The file, for messages.

    Raises
    ------
    InputError
        If a page cannot be inflated to the size that its header says.
    """
    facts = table.pages[pages]
    sizes = facts[:, WANTED] - facts[:, PREFIX]
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // _TOGETHER, append=-1)) + 1
    for first, last in pairwise([0, *ends.tolist()]):
        some = slice(first, last)
        content, begin = _decompressed(table, data, pages[some], path), 0
        of_some = facts[some][:, [AT, PREFIX]].tolist(), places[some].tolist(), sizes[some].tolist()
        for (at, prefix), to, size in zip(*of_some, strict=True):
            if prefix:  # stored as it is
                out[to : to + prefix] = data[at : at + prefix]
            out[to + prefix : to + prefix + size] = content[begin : begin + size]
            begin += size


def _decompressed(table: PageTable, data: NDArray[np.uint8], pages: NDArray[np.intp], path: Path) -> NDArray[np.uint8]:
    """Decompress pages together, or one by one to find the damaged one."""
    facts = table.pages[pages]
    codecs = facts[:, CODEC].tolist()
    sizes = (facts[:, WANTED] - facts[:, PREFIX]).tolist()
    begins, ends = facts[:, AT] + facts[:, PREFIX], facts[:, AT] + facts[:, SIZE]
    stored = [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    with suppress(*_DAMAGED):
        return decompress_all(codecs, stored, sizes)
    content = []
    for page, codec, one, size in zip(pages.tolist(), codecs, stored, sizes, strict=True):
        try:
            content.append(decompress(codec, one, size))
        except _DAMAGED as error:
            raise _refusal(table, page, f"cannot be decompressed ({shortened(error)})", path) from error
    return np.concatenate(content)


def settle(
    loaded: Loaded, pixels: slice, statuses: NDArray[np.integer], again: Callable[[int, NDArray[np.uint16]], None]
) -> int:
    """Settle what is wrong with columns: pyarrow decodes those that it may find sound.

    Parameters
    ----------
    loaded : Loaded
        The file.
    pixels : slice
        Which columns.
    statuses : ndarray of int, shape (pixel, 2)
        What is wrong with each, and with which page, counted from the first of these columns.
    again : callable
        Takes a column, counted from the first, and its counts, (1, frame).

    Returns
    -------
    int
        Pages that pyarrow decoded.

    Raises
    ------
    InputError
        If a page cannot be decoded by pyarrow either; the line names the column, and which of its pages.
    """
    table, by_arrow = loaded.table, 0
    first = int(table.firsts[pixels.start])
    for pixel in np.flatnonzero(statuses[:, 0]).tolist():
        number, page = statuses[pixel].tolist()
        one, problem = slice(pixels.start + pixel, pixels.start + pixel + 1), STATUSES[number]
        if number not in TOLD:
            raise _refusal(table, first + page, problem, loaded.path)
        try:
            ((_, counts),) = loaded.counts([one])
        except InputError as error:
            raise _refusal(table, first + page, f"{problem} ({error.problem})", loaded.path, error.mend) from error
        if number not in ASKED:
            raise _refusal(table, first + page, problem, loaded.path)
        again(pixel, counts)
        by_arrow += int(table.firsts[one.stop] - table.firsts[one.start])
    return by_arrow


def _refusal(table: PageTable, page: int, problem: str, path: Path, mend: str = AGAIN) -> InputError:
    column = int(np.searchsorted(table.firsts, page, side="right")) - 1
    number = page - int(table.firsts[column]) + 1
    return InputError(f"column {table.columns[column]}: page {number} {problem}", mend, path)
