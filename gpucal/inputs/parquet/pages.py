"""The pages of a Parquet file, checked before anything decodes them: their declared sizes are possible and affordable.

Decoders allocate as much as a page header declares, up to 2 GiB a page, and Polars ends the process if that fails. So
all page headers are parsed here before anything is decoded, and parsing them allocates nothing that they ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN
from gpucal.inputs.parquet.footer import Footer, parse_footer
from gpucal.inputs.parquet.thrift import ABSENT, BINARY, I32, I64, STRUCT, TRUE, FieldPath, Unreadable, parse_structs

__all__ = ["MOST_ROWS", "check_chunks", "check_pages", "read_footer"]

MOST_ROWS = 2**22
"""Limit on a file's rows: 31 times the 135,000 frames of FGS1. A column of this length is 8 MiB of counts."""

# Limit on the pages of a column chunk. Writers begin one every 20,000 values or 1 MiB, which makes 7 for FGS1.
_MOST_PAGES = 4096

# Limits on the uncompressed bytes of pages. 16 bytes a value are enough for a dictionary of 64-bit integers and its
# indices. The dictionary of every 16-bit number, which Arrow writes whole into each row group, fits the extra bytes a
# page may have; a file has extra bytes, too.
_VALUE, _PAGE, _FILE = 16, 2**20, 2**28

# Numbers of parquet.thrift: page types, encodings, codecs; bytes of physical types.
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_UNCOMPRESSED, _SNAPPY, _ZSTD = 0, 1, 6
_WIDTHS = np.array([0, 4, 8, 12, 4, 8, 0, 0])

# The fields of a page header in parquet.thrift, with the statistics of data pages.
_STATISTICS = {1: BINARY, 2: BINARY, 3: I64, 4: I64, 5: BINARY, 6: BINARY, 7: TRUE, 8: TRUE}
_HEADER: dict[FieldPath, int] = dict.fromkeys([(1,), (2,), (3,), (4,)], I32)
_HEADER.update(dict.fromkeys([(5,), (7,), (8,), (5, 5), (8, 8)], STRUCT))
_HEADER.update(((body, field), I32) for body, fields in ((5, 4), (7, 2), (8, 6)) for field in range(1, fields + 1))
_HEADER.update({(7, 3): TRUE, (8, 7): TRUE})
_HEADER.update(((*path, field), kind) for path in ((5, 5), (8, 8)) for field, kind in _STATISTICS.items())
# The fields wanted: type, bytes uncompressed and compressed; values of either data page or of a dictionary; encoding
# of values, and of definition levels.
_FIELDS: list[FieldPath] = [(1,), (2,), (3,), (5, 1), (7, 1), (8, 1), (5, 2), (7, 2), (5, 3)]
_WANTED = {path: _HEADER[path] for path in _FIELDS}


@dataclass(frozen=True)
class _Chunks:
    """Column chunks that have rows, one in each element of the arrays."""

    column: NDArray[np.int64]
    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    uncompressed: NDArray[np.int64]
    width: NDArray[np.int64]
    codec: NDArray[np.int64]
    polars: bool
    path: Path

    def refuse(self, wrong: NDArray[np.bool_], problem: str, which: NDArray[np.intp] | None = None) -> None:
        """Raise an error that names the column of the first wrong chunk, if any; ``which`` are the chunks judged."""
        if wrong.any():
            first = wrong.argmax() if which is None else which[wrong.argmax()]
            raise InputError(f"column {self.column[first]} {problem}", AGAIN, self.path)


def read_footer(data: bytes, size: int, n_columns: int, path: Path) -> Footer:
    """Parse a footer, and refuse more rows or bytes than any observation has.

    Parameters
    ----------
    data : bytes
        The end of a file, from its footer on.
    size : int
        Bytes of the file.
    n_columns : int
        Columns of the file, including those inside structs and lists.
    path : Path
        The file, for messages.

    Raises
    ------
    InputError
        If the footer cannot be parsed, declares more than `MOST_ROWS` rows or row groups that do not add up, or the
        file has more bytes than its rows need.
    """
    try:
        footer = parse_footer(data, 0, len(data) - 8, n_columns)
    except Unreadable as error:
        raise InputError(f"is not a readable Parquet file: its footer {error}", AGAIN, path) from error
    if not 0 <= footer.n_rows <= MOST_ROWS:
        raise InputError(f"declares {footer.n_rows:,} rows, expected 0 to {MOST_ROWS:,}", AGAIN, path)
    # each is checked before the sum, which may overflow 64 bits
    if ((footer.rows < 0) | (footer.rows > footer.n_rows)).any() or footer.rows.sum() != footer.n_rows:
        raise InputError(f"declares {footer.n_rows:,} rows, but its row groups do not add up to them", AGAIN, path)
    most = len(data) + _FILE + _VALUE * footer.n_rows * n_columns
    if size > most:
        raise InputError(f"has {size:,} bytes, more than the {most:,} that its rows can need", AGAIN, path)
    return footer


def check_chunks(footer: Footer, columns: NDArray[np.intp], stop: int, path: Path) -> None:
    """Check a footer's column chunks: each has its row group's values, lies before ``stop``, and overlaps no other."""
    chunks = _chunks(footer, columns, stop, path)
    first = np.argsort(chunks.start, kind="stable")
    starts, ends = chunks.start[first], (chunks.start + chunks.size)[first]
    chunks.refuse(starts[1:] < ends[:-1], "overlaps another one", first[1:])


def check_pages(data: bytes, footer: Footer, columns: NDArray[np.intp], path: Path, *, strict: bool = False) -> bool:
    """Check column chunks and page headers, before they are decoded.

    Parameters
    ----------
    data : bytes
        The file.
    footer : Footer
        Its footer, of flat columns.
    columns : ndarray of intp
        The columns that will be decoded.
    path : Path
        The file, for messages.
    strict : bool
        Refuse inconsistent pages, too.

    Returns
    -------
    bool
        True if all pages are consistent, and of the kinds that Polars decodes as pyarrow does (see `_for_polars`). If
        not, pyarrow must decode the file.

    Raises
    ------
    InputError
        If a header cannot be parsed, or declares more values or bytes than its rows can need.
    """
    stop = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chunks = _chunks(footer, columns, stop, path)
    at, values, size = chunks.start.copy(), np.zeros_like(chunks.rows), np.zeros_like(chunks.rows)
    coded = np.zeros(at.size, bool)
    polars = chunks.polars
    left = _FILE + _VALUE * int(chunks.rows.sum())
    some = np.arange(at.size)
    for page in range(_MOST_PAGES):
        if not some.size:
            break
        headers = _headers(data, at[some], stop, chunks, some)
        _check_headers(headers, stop, chunks, some)
        dictionary = headers.kind == _DICTIONARY
        chunks.refuse(dictionary & (page > 0), "has a dictionary after other pages", some)
        coded[some] |= dictionary
        values[some] += np.where(dictionary, 0, headers.values)
        chunks.refuse(values[some] > chunks.rows[some], "has more values in its pages than rows", some)
        left -= int(headers.uncompressed.sum())
        if left < 0:
            raise InputError("has pages that declare more bytes than its rows can need", AGAIN, path)
        size[some] += headers.ends - at[some] + headers.uncompressed
        at[some] = headers.ends + headers.stored
        wrong = (chunks.codec[some] == _UNCOMPRESSED) & (headers.stored != headers.uncompressed)
        wrong |= dictionary & (headers.values * chunks.width[some] != headers.uncompressed)
        if strict:
            chunks.refuse(wrong, "has a page whose size contradicts its header", some)
        polars = polars and not wrong.any() and _for_polars(headers, coded[some])
        some = some[values[some] < chunks.rows[some]]
    chunks.refuse(values < chunks.rows, f"has more than {_MOST_PAGES:,} pages in a row group")
    wrong = (at != chunks.start + chunks.size) | (size != chunks.uncompressed)
    if strict:
        chunks.refuse(wrong, "has pages whose sizes contradict the footer")
    return polars and not wrong.any()


@dataclass(frozen=True)
class _Headers:
    """Page headers, one in each element of the arrays; ``known`` if all their fields are in parquet.thrift."""

    kind: NDArray[np.int64]
    uncompressed: NDArray[np.int64]
    stored: NDArray[np.int64]
    values: NDArray[np.int64]
    encoding: NDArray[np.int64]
    levels: NDArray[np.int64]
    ends: NDArray[np.int64]
    known: bool


def _headers(data: bytes, at: NDArray[np.int64], stop: int, chunks: _Chunks, which: NDArray[np.intp]) -> _Headers:
    try:
        found, ends, layouts = parse_structs(data, at, stop, _WANTED)
    except Unreadable as error:
        chunks.refuse(np.arange(at.size) == error.which, f"has a page header that cannot be read: it {error}", which)
        raise  # never
    kind, uncompressed, stored, data_values, dictionary_values, data_2_values, data_encoding, encoding, levels = found
    values = np.select([kind == _DATA, kind == _DICTIONARY], [data_values, dictionary_values], data_2_values)
    # a header has exactly one struct of values
    others = (found[3:6] != ABSENT).sum(axis=0) != 1
    chunks.refuse(others | ~np.isin(kind, (_DATA, _DICTIONARY, _DATA_2)), "has a page of an unknown type", which)
    encoding = np.where(kind == _DICTIONARY, encoding, data_encoding)
    known = all(layout.kinds.items() <= _HEADER.items() for layout in layouts)
    return _Headers(kind, uncompressed, stored, values, encoding, levels, ends, known)


def _check_headers(headers: _Headers, stop: int, chunks: _Chunks, which: NDArray[np.intp]) -> None:
    """Refuse pages that no decoder should be given."""
    least = np.minimum(np.minimum(headers.uncompressed, headers.stored), headers.values)
    chunks.refuse(least < 0, "has a page header with a negative size or count", which)
    chunks.refuse(headers.ends + headers.stored > stop, "has a page that ends outside the file", which)
    most = np.maximum(headers.uncompressed, headers.values)
    problem = "has a page that declares more bytes or values than its rows can need"
    chunks.refuse(most > _PAGE + _VALUE * chunks.rows[which], problem, which)


def _for_polars(headers: _Headers, coded: NDArray[np.bool_]) -> bool:
    """Tell whether Polars decodes these pages as pyarrow does, damaged or not. One in a thousand damaged ones slips by.

    Where the second version of data pages says that there are no nulls, Polars 2.1 ignores their definition levels.
    Delta encodings have headers of their own, which nothing checks before. The damage that remains is inside compressed
    pages. There Polars accepts definition levels above 1, too few of them, and fewer dictionary indices than a run
    announces, while pyarrow refuses the page. Without a checksum such damage looks like damage to the counts.
    """
    kind, encoding = headers.kind, headers.encoding
    plain, by_dictionary = encoding == _PLAIN, np.isin(encoding, (_PLAIN_DICTIONARY, _RLE_DICTIONARY))
    dictionary = (kind == _DICTIONARY) & (plain | (encoding == _PLAIN_DICTIONARY))
    values = (kind == _DATA) & (headers.levels == _RLE) & (plain | (by_dictionary & coded))
    return headers.known and bool((dictionary | values).all())


def _chunks(footer: Footer, columns: NDArray[np.intp], stop: int, path: Path) -> _Chunks:
    rows = np.broadcast_to(footer.rows[:, None], (footer.rows.size, len(columns)))
    filled = rows > 0  # for a chunk without rows, pyarrow writes no offset
    rows, column = rows[filled], np.broadcast_to(columns, filled.shape)[filled]
    kind, codec, values, uncompressed, size, data, dictionary = (
        facts[:, columns][filled]
        for facts in (
            footer.kind,
            footer.codec,
            footer.values,
            footer.uncompressed,
            footer.compressed,
            footer.data,
            footer.dictionary,
        )
    )
    # pyarrow begins here; some writers give 0 as the offset of a dictionary that is not there
    start = np.where((dictionary > 0) & (dictionary < data), dictionary, data)
    polars = (dictionary == ABSENT) | (dictionary == start)
    polars &= np.isin(codec, (_UNCOMPRESSED, _SNAPPY, _ZSTD))  # Polars 2.1 ignores the checksum of gzip
    width = _WIDTHS[np.clip(kind, 0, 7)]
    chunks = _Chunks(
        column, rows, start, size, uncompressed, width, codec, bool(polars.all() and footer.rows.all()), path
    )
    chunks.refuse(values != rows, "has more or fewer values than its row group has rows")
    # each is checked before the sum, which may overflow 64 bits
    chunks.refuse((start < 4) | (start > stop) | (size < 0) | (size > stop), "is outside the file")
    chunks.refuse(start + size > stop, "ends outside the file")
    return chunks
