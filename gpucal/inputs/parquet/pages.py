"""The pages of a Parquet file: parsed and checked before anything decodes them.

Decoders allocate as much as a page header declares, up to 2 GiB a page. So all page headers are parsed here first, and
parsing them allocates nothing that they ask for. What is found is a table, one row a page, which says as well whether
gpucal's own decoder takes the pages (`PageTable.unfit`); pyarrow decodes all others, and judges them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN
from gpucal.inputs.parquet.footer import Footer, parse_footer
from gpucal.inputs.parquet.layout import (
    AT,
    CHECKSUM,
    CODEC,
    COLUMNS,
    DATA,
    DATA_2,
    DICTIONARY,
    ENCODING,
    FIRST,
    KIND,
    LEVELS,
    PADDING,
    PLAIN,
    PLAIN_DICTIONARY,
    PREFIX,
    RLE_DICTIONARY,
    SIZE,
    SNAPPY,
    STORED,
    TO,
    VALUES,
    WANTED,
    ZSTD,
)
from gpucal.inputs.parquet.thrift import ABSENT, I32, FieldPath, StructReader, Unreadable, parse_structs

__all__ = [
    "MOST_ROWS",
    "PageTable",
    "check_chunks",
    "most_bytes",
    "page_table",
    "ranges_of",
    "read_footer",
    "unfit_columns",
]

MOST_ROWS = 2**22
"""Limit on a file's rows: 31 times the 135,000 frames of FGS1. A column of this length is 8 MiB of counts."""

# Limit on the pages of a column chunk. Writers begin one every 20,000 values or 1 MiB, which makes 7 for FGS1.
_MOST_PAGES = 4096

# Limits on the uncompressed bytes of pages. 16 bytes a value are enough for a dictionary of 64-bit integers and its
# indices. The dictionary of every 16-bit number, which Arrow writes whole into each row group, fits the extra bytes a
# page may have; a file has extra bytes, too.
_VALUE, _PAGE, _FILE = 16, 2**20, 2**28

# Bytes between column chunks that are read with them, as leaving them out costs a call more.
_GAP = 2**17

# The encoding of levels, as parquet.thrift numbers it; bytes of physical types.
_RLE = 3
_WIDTHS = np.array([0, 4, 8, 12, 4, 8, 0, 0])

# The fields of a page header: type, bytes uncompressed and compressed, checksum; values, encoding, encodings of
# definition and repetition levels; values and encoding of a dictionary; of the second version of data pages values,
# encoding, nulls, rows, and the bytes of definition and repetition levels.
_FIELDS: list[FieldPath] = [
    *((1,), (2,), (3,), (4,)),
    *((5, 1), (5, 2), (5, 3), (5, 4)),
    *((7, 1), (7, 2)),
    *((8, 1), (8, 4), (8, 2), (8, 3), (8, 5), (8, 6)),
]
_OF_ONE, _OF_CODED, _OF_TWO = slice(4, 8), slice(8, 10), slice(10, 16)
_HEADER = dict.fromkeys(_FIELDS, I32)


@dataclass(frozen=True, eq=False)
class PageTable:
    """The pages of some columns.

    Parameters
    ----------
    pages : ndarray of int64, shape (page, COLUMNS)
        See `gpucal.inputs.parquet.layout`; column after column, in the order of rows.
    firsts : ndarray of int64, shape (column + 1,)
        Index of each column's first page, and the number of pages.
    facts : ndarray of int64, shape (column, 3)
        See `gpucal.inputs.parquet.footer.Footer`.
    columns : ndarray of intp, shape (column,)
        Positions in the file.
    n_rows : int
        Values of each column.
    unfit : str
        Why gpucal's decoder of counts does not take the pages; empty if it does.
    unfit_pages : str
        Why the pages, whatever their columns hold, are not as simple as those taken; empty if they are.
    """

    pages: NDArray[np.int64]
    firsts: NDArray[np.int64]
    facts: NDArray[np.int64]
    columns: NDArray[np.intp]
    n_rows: int
    unfit: str
    unfit_pages: str

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each column's pages in memory, decompressed and padded."""
        if not len(self.pages):
            return np.zeros(len(self.columns), np.int64)
        ends = np.append(self.pages[:, TO], self.pages[-1:, TO] + self.pages[-1:, WANTED] + PADDING)
        return ends[self.firsts[1:]] - ends[self.firsts[:-1]]


def read_footer(data: bytes, size: int, path: Path) -> Footer:
    """Parse a footer, and refuse more rows or bytes than any observation has.

    Parameters
    ----------
    data : bytes
        The end of a file, from its footer on.
    size : int
        Bytes of the file.
    path : Path
        The file, for messages.

    Raises
    ------
    InputError
        If the footer cannot be parsed, declares more than `MOST_ROWS` rows or row groups that do not add up, or the
        file has more bytes than its rows need.
    """
    try:
        footer = parse_footer(data, 0, len(data) - 8)
    except Unreadable as error:
        raise InputError(f"is not a readable Parquet file: its footer {error}", AGAIN, path) from error
    if not 0 <= footer.n_rows <= MOST_ROWS:
        raise InputError(f"declares {footer.n_rows:,} rows, expected 0 to {MOST_ROWS:,}", AGAIN, path)
    # each is checked before the sum, which may overflow 64 bits
    if ((footer.rows < 0) | (footer.rows > footer.n_rows)).any() or footer.rows.sum() != footer.n_rows:
        raise InputError(f"declares {footer.n_rows:,} rows, but its row groups do not add up to them", AGAIN, path)
    most = len(data) + _FILE + _VALUE * footer.n_rows * len(footer.names)
    if size > most:
        raise InputError(f"has {size:,} bytes, more than the {most:,} that its rows can need", AGAIN, path)
    return footer


def most_bytes(footer: Footer) -> int:
    """Return the most bytes that the pages of a column may have, decompressed."""
    return _VALUE * footer.n_rows + 2 * _PAGE * footer.rows.size


def check_chunks(footer: Footer, columns: NDArray[np.intp], stop: int, path: Path) -> None:
    """Check a footer's column chunks: each has its row group's values, lies before ``stop``, and overlaps no other."""
    chunks = _Chunks.of(footer, columns, stop, path)
    first = np.argsort(chunks.start, kind="stable")
    starts, ends = chunks.start[first], (chunks.start + chunks.size)[first]
    chunks.refuse(starts[1:] < ends[:-1], "overlaps another one", first[1:])


def ranges_of(footer: Footer, columns: NDArray[np.intp], size: int, stop: int, path: Path) -> list[tuple[int, int]]:
    """Return where a file of ``size`` bytes holds some columns, and where its mark and its end from ``stop`` are.

    Neighbours are in one range. InputError is raised if a chunk does not lie before ``stop``.
    """
    chunks = _Chunks.of(footer, columns, stop, path)
    starts = np.concatenate([[0, stop], chunks.start])
    ends = np.concatenate([[4, size], chunks.start + chunks.size])
    first = np.argsort(starts, kind="stable")
    starts, ends = starts[first], np.maximum.accumulate(ends[first])
    apart = starts[1:] > ends[:-1] + _GAP
    return list(zip(starts[np.append(True, apart)].tolist(), ends[np.append(apart, True)].tolist(), strict=True))


def page_table(
    data: bytes, footer: Footer, columns: NDArray[np.intp], path: Path, *, strict: bool = False
) -> PageTable:
    """Parse and check all pages of some columns.

    Parameters
    ----------
    data : bytes
        The file.
    footer : Footer
        Its footer.
    columns : ndarray of intp
        The columns that will be decoded.
    path : Path
        The file, for messages.
    strict : bool
        Refuse pages whose sizes contradict each other, too.

    Returns
    -------
    PageTable
        Their pages. Each is inside the file, and a column has as many values as the file has rows.

    Raises
    ------
    InputError
        If a header cannot be parsed, or declares more values or bytes than its rows can need.
    """
    stop = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chunks = _Chunks.of(footer, columns, stop, path)
    headers, ends = _walk(data, chunks, stop)
    codec = chunks.codec[headers.chunk]
    # a data page of the second version that would not shrink is stored as it is, and says so
    for page in np.flatnonzero((headers.kind == DATA_2) & (codec != STORED) & (headers.stored == headers.inflated)):
        if _says_stored(data, int(headers.at[page]), stop):
            codec[page] = STORED
    wrong = (codec == STORED) & (headers.stored != headers.inflated)
    dictionary = headers.kind == DICTIONARY
    wrong |= dictionary & (headers.values * chunks.width[headers.chunk] != headers.inflated)
    uncompressed = np.bincount(
        headers.chunk, headers.behind - headers.at - headers.stored + headers.inflated, chunks.rows.size
    )
    elsewhere = (ends != chunks.start + chunks.size) | (uncompressed != chunks.uncompressed)
    if strict:
        chunks.refuse(wrong, "has a page whose size contradicts its header", headers.chunk)
        chunks.refuse(elsewhere, "has pages whose sizes contradict the footer")
    unfit_pages = _unfit_pages(headers, footer.facts[chunks.column[headers.chunk], 0] > 0)
    if not unfit_pages and (wrong.any() or (ends > chunks.start + chunks.size).any()):
        unfit_pages = "pages whose sizes contradict each other"
    unfit = unfit_columns(footer, columns) or unfit_pages

    # by columns, and in each by row groups; a stable sort leaves the pages of a chunk in their order
    place = chunks.place[headers.chunk]
    order = np.argsort(place, kind="stable")
    pages = np.zeros((order.size, COLUMNS), np.int64)
    for field, values in (
        (AT, headers.behind - headers.stored),
        (SIZE, headers.stored),
        (CODEC, codec),
        (PREFIX, headers.levels),
        (WANTED, headers.inflated),
        (KIND, headers.kind),
        (ENCODING, headers.encoding),
        (VALUES, headers.values),
        (LEVELS, headers.levels),
        (FIRST, headers.first),
        (CHECKSUM, headers.checksum),
    ):
        pages[:, field] = values.take(order)
    pages[1:, TO] = np.cumsum(((headers.inflated + PADDING + 7) & ~7)[order[:-1]])
    groups = footer.rows.size
    counts = np.bincount(place, minlength=groups * len(columns)).reshape(len(columns), groups).sum(axis=1)
    firsts = np.append(0, np.cumsum(counts))
    return PageTable(pages, firsts, footer.facts[columns], columns, footer.n_rows, unfit, unfit_pages)


@dataclass(frozen=True, eq=False)
class _Headers:
    """Page headers, one in each element of the arrays; `ABSENT` stands for what a header does not have.

    ``chunk`` is the index of a page's column chunk, ``at`` the place of its header, ``behind`` that of what follows the
    page, and ``first`` says whether it is the first page of its chunk. ``levels`` are bytes of definition levels in
    front of a data page of the second version. ``plain`` tells whether a header has all fields of its type, no nulls,
    and levels and rows that are those of a flat column.
    """

    chunk: NDArray[np.intp]
    at: NDArray[np.int64]
    behind: NDArray[np.int64]
    first: NDArray[np.bool_]
    kind: NDArray[np.int64]
    inflated: NDArray[np.int64]
    stored: NDArray[np.int64]
    checksum: NDArray[np.int64]
    values: NDArray[np.int64]
    encoding: NDArray[np.int64]
    levels: NDArray[np.int64]
    level_encoding: NDArray[np.int64]
    plain: NDArray[np.bool_]


def _walk(data: bytes, chunks: _Chunks, stop: int) -> tuple[_Headers, NDArray[np.int64]]:
    """Parse page after page of all chunks at the same time; return the headers, and where the chunks' pages end."""
    at, values = chunks.start.copy(), np.zeros_like(chunks.rows)
    left = _FILE + _VALUE * int(chunks.rows.sum())
    some, parts = np.arange(at.size), []
    for turn in range(_MOST_PAGES):
        if turn and not some.size:
            break
        headers = _headers(data, at[some], stop, chunks, some, turn == 0)
        dictionary = headers.kind == DICTIONARY
        chunks.refuse(dictionary & (turn > 0), "has a dictionary after other pages", some)
        values[some] += np.where(dictionary, 0, headers.values)
        chunks.refuse(values[some] > chunks.rows[some], "has more values in its pages than rows", some)
        left -= int(headers.inflated.sum())
        if left < 0:
            raise InputError("has pages that declare more bytes than its rows can need", AGAIN, chunks.path)
        at[some] = headers.behind
        parts.append(headers)
        some = some[values[some] < chunks.rows[some]]
    chunks.refuse(values < chunks.rows, f"has more than {_MOST_PAGES:,} pages in a row group")
    return _Headers(*(np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0]))), at


def _headers(
    data: bytes, at: NDArray[np.int64], stop: int, chunks: _Chunks, which: NDArray[np.intp], first: bool
) -> _Headers:
    """Parse a page header of each of some chunks, and refuse what no decoder should be given."""
    try:
        found, ends, _ = parse_structs(data, at, stop, _HEADER)
    except Unreadable as error:
        chunks.refuse(np.arange(at.size) == error.which, f"has a page header that cannot be read: it {error}", which)
        raise  # never
    kind, inflated, stored, checksum = found[:4]
    one, two, coded = kind == DATA, kind == DATA_2, kind == DICTIONARY
    values = np.where(one, found[4], np.where(coded, found[8], found[10]))
    # a header has exactly one struct of values
    of_one, of_coded, of_two = ((found[row] != ABSENT).astype(np.int8) for row in (4, 8, 10))
    chunks.refuse((of_one + of_coded + of_two != 1) | ~(one | two | coded), "has a page of an unknown type", which)
    least = np.minimum(np.minimum(inflated, stored), values)
    chunks.refuse(least < 0, "has a page header with a negative size or count", which)
    chunks.refuse(ends + stored > stop, "has a page that ends outside the file", which)
    problem = "has a page that declares more bytes or values than its rows can need"
    chunks.refuse(np.maximum(inflated, values) > _PAGE + _VALUE * chunks.rows[which], problem, which)

    plain = np.ones(at.size, bool)
    for of_type, fields in ((one, _OF_ONE), (coded, _OF_CODED), (two, _OF_TWO)):
        if of_type.any():
            plain &= ~of_type | (found[fields] != ABSENT).all(axis=0)
    levels = np.where(two, found[14], 0)
    plain &= ~two | ((levels >= 0) & (levels <= np.minimum(inflated, stored)) & (found[15] == 0) & (found[12] == 0))
    plain &= ~two | (found[13] == values)  # rows
    encoding = np.where(one, found[5], np.where(coded, found[9], found[11]))
    level_encoding = np.where(one, found[6], _RLE)
    begins, behind = np.full(at.size, first), ends + stored
    said = (kind, inflated, stored, checksum, values, encoding, levels, level_encoding)
    return _Headers(which, at, behind, begins, *said, plain)


def unfit_columns(footer: Footer, columns: NDArray[np.intp]) -> str:
    """Return what gpucal's decoder does not take of these columns, according to the footer; empty if it takes all."""
    if footer.nested:
        return "structs or lists"
    filled = footer.rows > 0
    widths, sizes = _WIDTHS[np.clip(footer.kind[filled][:, columns], 0, 7)], footer.facts[columns, 1]
    if not sizes.all() or (widths != sizes).any():
        return "columns that are not plain integers"
    codec = footer.codec[filled][:, columns]
    known = (codec == STORED) | (codec == SNAPPY) | (codec == ZSTD)
    if not known.all():
        return f"pages of codec {codec[~known].min()}"
    return ""


def _unfit_pages(headers: _Headers, optional: NDArray[np.bool_]) -> str:
    """Return what gpucal's decoder does not take of these pages; ``optional`` are those with definition levels."""
    if not headers.plain.all():
        return "page headers that lack something or declare nulls"
    known = (headers.encoding == PLAIN) | (headers.encoding == PLAIN_DICTIONARY)
    known |= (headers.kind != DICTIONARY) & (headers.encoding == RLE_DICTIONARY)
    if not known.all():
        return f"pages of encoding {headers.encoding[~known][0]}"
    if (optional & (headers.level_encoding != _RLE)).any() or (~optional & (headers.levels > 0)).any():
        return "definition levels of another encoding"
    return ""


def _says_stored(data: bytes, at: int, stop: int) -> bool:
    """Tell whether the header of a data page of the second version says that it is not compressed."""
    reader = StructReader(data, at, stop)
    for wanted in (8, 7):
        field = 0
        while True:
            before = reader.at
            field, kind = reader.head(field)
            if field == wanted or not kind:
                break
            reader.skip(kind)
        if not kind:
            return False
    return data[before] & 15 == 2  # false, a kind of its own


@dataclass(frozen=True, eq=False)
class _Chunks:
    """Column chunks that have rows, one in each element of the arrays; ``place`` numbers them by column, then group."""

    column: NDArray[np.int64]
    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    uncompressed: NDArray[np.int64]
    width: NDArray[np.int64]
    codec: NDArray[np.int64]
    place: NDArray[np.int64]
    path: Path

    @classmethod
    def of(cls, footer: Footer, columns: NDArray[np.intp], stop: int, path: Path) -> _Chunks:
        """Take them from a footer, and check their places."""
        groups = footer.rows.size
        filled = np.flatnonzero(footer.rows > 0)  # for a chunk without rows, pyarrow writes no offset
        rows = np.repeat(footer.rows[filled], len(columns))
        place = (filled[:, None] + groups * np.arange(len(columns))).ravel()
        column = np.tile(columns, filled.size)
        kind, codec, values, uncompressed, size, data, dictionary = (
            facts[filled][:, columns].ravel()
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
        width = _WIDTHS[np.clip(kind, 0, 7)]
        chunks = cls(column, rows, start, size, uncompressed, width, codec, place, path)
        chunks.refuse(values != chunks.rows, "has more or fewer values than its row group has rows")
        # each is checked before the sum, which may overflow 64 bits
        chunks.refuse((start < 4) | (start > stop) | (size < 0) | (size > stop), "is outside the file")
        chunks.refuse(start + size > stop, "ends outside the file")
        return chunks

    def refuse(self, wrong: NDArray[np.bool_], problem: str, which: NDArray[np.intp] | None = None) -> None:
        """Raise an error that names the column of the first wrong chunk, if any; ``which`` are the chunks judged."""
        if wrong.any():
            first = wrong.argmax() if which is None else which[wrong.argmax()]
            raise InputError(f"column {self.column[first]} {problem}", AGAIN, self.path)
