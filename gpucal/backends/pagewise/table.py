"""The table of a signal file's pages, parsed and checked before any page is inflated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpucal.backends.pagewise.layout import (
    AT,
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
    PREFIX,
    SIZE,
    SNAPPY,
    STORED,
    TO,
    VALUES,
    WANTED,
    ZSTD,
)
from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN
from gpucal.inputs.parquet.footer import Footer
from gpucal.inputs.parquet.thrift import ABSENT, I32, LIST, STRUCT, FieldPath, StructReader, Unreadable, parse_structs

__all__ = ["PageTable", "Unfit", "page_table", "read_facts"]

# Pages of a column in a row group. Writers begin one every 20,000 values or 1 MiB, which makes 7 for FGS1.
_MOST_PAGES = 4096
# What pages may hold: 16 bytes a value and 1 MiB a page; see gpucal.inputs.parquet.pages.
_VALUE, _PAGE, _FILE = 16, 2**20, 2**28

_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_WIDTHS = {1: 4, 2: 8}  # bytes of INT32 and INT64

# Integers by their converted type: bits, and whether they have a sign.
_INTEGERS = {11: (8, False), 12: (16, False), 13: (32, False), 14: (64, False)}
_INTEGERS |= {15: (8, True), 16: (16, True), 17: (32, True), 18: (64, True)}

# A column of the schema as most writers have it, but for its name: what is in front of that, and what is behind it.
_NAMES = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(1, 65))
_ELEMENT = re.compile(
    rb"(\x15[\x00-\x0e]\x25[\x00-\x02])\x18(?:%s)((?:\x25.)?(?:\x4c\xac\x13.[\x11\x12]\0\0)?\0)" % _NAMES, re.DOTALL
)

# Of a page header: type, bytes inflated and stored; values, encoding, encodings of definition and repetition levels; of
# the second version of data pages, their nulls, rows, and the bytes of definition and repetition levels. It has to have
# all those of its type.
_PLACES: list[FieldPath] = [
    *((1,), (2,), (3,)),
    *((5, 1), (5, 2), (5, 3), (5, 4)),
    *((7, 1), (7, 2)),
    *((8, 1), (8, 4), (8, 2), (8, 3), (8, 5), (8, 6)),
]
_OF_TYPE = {DATA: slice(3, 7), DICTIONARY: slice(7, 9), DATA_2: slice(9, 15)}
_WANTED = dict.fromkeys(_PLACES, I32)


class Unfit(Exception):
    """Pages are of a kind that is not decoded here, and may be sound; the text says of which."""


@dataclass(frozen=True, eq=False)
class PageTable:
    """The pages of some columns.

    Parameters
    ----------
    pages : ndarray of int64, shape (page, COLUMNS)
        See `gpucal.backends.pagewise.layout`; column after column, in the order of rows.
    firsts : ndarray of int64, shape (column + 1,)
        Where the pages of each column begin in it, and the last ones end.
    facts : ndarray of int64, shape (column, 3)
        Whether it has definition levels, bytes of a value, and the highest count its type has.
    columns : ndarray of intp, shape (column,)
        Positions in the file.
    n_rows : int
        Values of each.
    """

    pages: NDArray[np.int64]
    firsts: NDArray[np.int64]
    facts: NDArray[np.int64]
    columns: NDArray[np.intp]
    n_rows: int


def read_facts(data: bytes, at: int, stop: int) -> NDArray[np.int64]:
    """Read the schema of a footer.

    Parameters
    ----------
    data : bytes
        What it is in; at least eight bytes follow.
    at, stop : int
        Where the footer begins and ends.

    Returns
    -------
    ndarray of int64, shape (column, 3)
        See `PageTable.facts`.

    Raises
    ------
    Unreadable
        If it cannot be parsed.
    Unfit
        If a column is inside another, or holds something else than integers.
    """
    reader = StructReader(data, at, stop)
    field = 0
    while True:
        field, kind = reader.head(field)
        if (field, kind) == (2, LIST):
            break
        if field != 1:
            raise Unreadable("has no schema")
        reader.skip(kind)
    items, count = reader.items()
    if items != STRUCT or not count:
        raise Unreadable("has a list of the wrong kind")
    layout, numbers = reader.struct()  # of all columns
    if (5,) not in layout.numbers or numbers[layout.numbers[5,]] != count - 1:
        raise Unfit("columns inside others")
    known: dict[bytes, int] = {}
    found: list[tuple[int, int, int]] = []
    forms = np.empty(count - 1, np.int64)
    match = _ELEMENT.match
    for column in range(count - 1):
        if element := match(data, reader.at, stop):
            form, reader.at = element[1] + b"\x18\0" + element[2], element.end()  # of an empty name
        else:
            before = reader.at
            reader.skip(STRUCT)
            form = data[before : reader.at]
        number = known.get(form)
        if number is None:
            number = known[form] = len(found)
            found.append(_facts(form))
        forms[column] = number
    return np.array(found, np.int64).reshape(-1, 3)[forms]


def _facts(form: bytes) -> tuple[int, int, int]:
    layout, numbers = StructReader(form, 0, len(form)).struct()
    said = {place: numbers[number] for place, number in layout.numbers.items()}
    repetition, converted = said.get((3,), ABSENT), said.get((6,), ABSENT)
    width = _WIDTHS.get(said.get((1,), ABSENT))
    if (5,) in said or repetition not in (0, 1):
        raise Unfit("columns inside others")
    bits, signed = _INTEGERS.get(converted, (64, True))
    logical = b"\x4c\xac\x13%c%c\0\0" % (bits, 0x11 if signed else 0x12)  # the same, as a union of structs
    known = converted in _INTEGERS and ((10,) not in layout.kinds or logical in form)
    plain = converted == ABSENT and (10,) not in layout.kinds
    if width is None or not (known or plain):
        raise Unfit("columns of something else than integers")
    return repetition, width, min(0xFFFF, (1 << (bits - signed)) - 1)


def page_table(
    data: bytes, footer: Footer, facts: NDArray[np.int64], columns: NDArray[np.intp], path: Path
) -> PageTable:
    """Parse and check all pages of some columns.

    Parameters
    ----------
    data : bytes
        The file.
    footer : Footer
        What its footer says.
    facts : ndarray of int64, shape (column, 3)
        What its schema says, see `read_facts`.
    columns : ndarray of intp
        Which columns.
    path : Path
        The file, for messages.

    Returns
    -------
    PageTable
        Their pages. Each is inside the file, and there are as many values as rows.

    Raises
    ------
    InputError
        If a header cannot be parsed, declares more than its rows can need, or pages are not where they should be.
    Unfit
        If something has to decode them that knows more encodings or codecs.
    """
    stop = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chunks = _Chunks.of(footer, columns, stop, path)
    for codec in np.unique(chunks.codec).tolist():
        if codec not in (STORED, SNAPPY, ZSTD):
            raise Unfit(f"pages of codec {codec}")
    filled = footer.rows > 0
    widths = np.array([_WIDTHS.get(kind, 0) for kind in range(8)])[np.clip(footer.kind[filled][:, columns], 0, 7)]
    if (widths != facts[columns, 1]).any():
        raise Unfit("columns of another type than the schema's")
    at, values = chunks.start.copy(), np.zeros_like(chunks.rows)
    left = _FILE + _VALUE * int(chunks.rows.sum())
    some, parts, order = np.arange(at.size), [], []
    for turn in range(_MOST_PAGES):
        if not some.size:
            break
        part, ends = _pages(data, at[some], stop, chunks, some, facts)
        part[:, FIRST] = turn == 0
        dictionary = part[:, KIND] == DICTIONARY
        chunks.refuse(dictionary & (turn > 0), "has a dictionary behind other pages", some)
        values[some] += np.where(dictionary, 0, part[:, VALUES])
        chunks.refuse(values[some] > chunks.rows[some], "has pages of more values than its row group", some)
        left -= int(part[:, WANTED].sum())
        if left < 0:
            raise InputError("has pages that declare more bytes than its rows can need", AGAIN, path)
        at[some] = ends
        parts.append(part)
        order.append(some)
        some = some[values[some] < chunks.rows[some]]
    chunks.refuse(values < chunks.rows, f"has more than {_MOST_PAGES:,} pages in a row group")
    chunks.refuse(at > chunks.start + chunks.size, "has pages that end outside of it")

    pages, chunk = np.concatenate(parts or [np.zeros((0, COLUMNS), np.int64)]), np.concatenate(order or [some])
    # by chunks, and these by columns; a stable sort leaves the pages of a chunk as they come
    sequence = np.argsort(chunks.place[chunk], kind="stable")
    pages, place = np.ascontiguousarray(pages[sequence]), chunks.place[chunk][sequence]
    pages[1:, TO] = np.cumsum((pages[:-1, WANTED] + PADDING + 7) & ~7)
    groups = footer.rows.size
    firsts = np.searchsorted(place, groups * np.arange(len(columns) + 1)).astype(np.int64)
    return PageTable(pages, firsts, facts[columns], columns, footer.n_rows)


def _pages(
    data: bytes, at: NDArray[np.int64], stop: int, chunks: _Chunks, which: NDArray[np.intp], facts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parse and check one page of each of some chunks; return rows of the table, and where the pages end."""
    try:
        found, ends, _ = parse_structs(data, at, stop, _WANTED)
    except Unreadable as error:
        chunks.refuse(np.arange(at.size) == error.which, f"has a page header that cannot be read: it {error}", which)
        raise  # never
    kind, inflated, stored = found[:3]
    # exactly the struct that its type says
    others = (found[[3, 7, 9]] != ABSENT).sum(axis=0) != 1
    chunks.refuse(others | ~np.isin(kind, (DATA, DICTIONARY, DATA_2)), "has a page of no known type", which)
    for number, fields in _OF_TYPE.items():
        if (found[fields][:, kind == number] == ABSENT).any():
            raise Unfit("page headers that lack something")
    first, second, coded = kind == DATA, kind == DATA_2, kind == DICTIONARY
    values = np.select([first, coded], [found[3], found[7]], found[9])
    encoding = np.select([first, coded], [found[4], found[8]], found[10])
    chunks.refuse(np.minimum(np.minimum(inflated, stored), values) < 0, "has a page of less than nothing", which)
    chunks.refuse(stored > stop - ends, "has a page that ends outside the file", which)
    most = np.maximum(inflated, values) > _PAGE + _VALUE * chunks.rows[which]
    chunks.refuse(most, "has a page that declares more bytes or values than its rows can need", which)

    known = np.where(coded, np.isin(encoding, (_PLAIN, _PLAIN_DICTIONARY)), False)
    known |= ~coded & np.isin(encoding, (_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY))
    if not known.all():
        raise Unfit(f"pages of encoding {encoding[~known][0]}")
    if (first & (found[5] != _RLE) & (facts[chunks.column[which], 0] > 0)).any():
        raise Unfit("definition levels of another encoding")
    levels = np.where(second, found[13], 0)
    wrong = second & ((levels < 0) | (levels > np.minimum(inflated, stored)) | (found[14] != 0))
    wrong |= second & (facts[chunks.column[which], 0] == 0) & (levels > 0)
    chunks.refuse(wrong, "has a page of more levels than a flat column has", which)
    chunks.refuse(second & (found[11] != 0), "holds nulls", which)

    codec = chunks.codec[which]
    # of the second version, a page that would not shrink is stored as it is, and says so
    for page in np.flatnonzero(second & (codec != STORED) & (stored == inflated)):
        if _says_stored(data, int(at[page]), stop):
            codec[page] = STORED
    chunks.refuse((codec == STORED) & (stored != inflated), "has a page of another size than its header says", which)
    pages = np.zeros((at.size, COLUMNS), np.int64)
    for place, facts_ in (
        (AT, ends),
        (SIZE, stored),
        (CODEC, codec),
        (PREFIX, levels),
        (WANTED, inflated),
        (KIND, kind),
    ):
        pages[:, place] = facts_
    pages[:, ENCODING], pages[:, VALUES], pages[:, LEVELS] = encoding, values, levels
    return pages, ends + stored


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


@dataclass(frozen=True)
class _Chunks:
    """Column chunks that have rows, one an element of each array; `place` numbers them by columns, then row groups."""

    column: NDArray[np.int64]
    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    codec: NDArray[np.int64]
    place: NDArray[np.int64]
    path: Path

    @classmethod
    def of(cls, footer: Footer, columns: NDArray[np.intp], stop: int, path: Path) -> _Chunks:
        """Take them from a footer, and check their places."""
        groups = footer.rows.size
        rows = np.broadcast_to(footer.rows[:, None], (groups, len(columns)))
        filled = rows > 0  # of no rows, pyarrow writes no place
        place = np.arange(groups)[:, None] + groups * np.arange(len(columns))
        arrays = (footer.values, footer.data, footer.dictionary, footer.compressed, footer.codec)
        values, data, dictionary, size, codec = (said[:, columns][filled] for said in arrays)
        # where pyarrow begins; some writers say 0 where there is no dictionary
        start = np.where((dictionary > 0) & (dictionary < data), dictionary, data)
        column = np.broadcast_to(columns, filled.shape)[filled]
        chunks = cls(column, rows[filled], start, size, codec, place[filled], path)
        chunks.refuse(values != chunks.rows, "has another number of values than its row group")
        # one by one, as a sum of 64-bit numbers may be anything
        chunks.refuse((start < 4) | (start > stop) | (size < 0) | (size > stop), "is outside the file")
        chunks.refuse(start + size > stop, "ends outside the file")
        return chunks

    def refuse(self, wrong: NDArray[np.bool_], problem: str, which: NDArray[np.intp] | None = None) -> None:
        """Raise an error that names the first column of a wrong chunk, if there is one, among some or all."""
        if wrong.any():
            first = wrong.argmax() if which is None else which[wrong.argmax()]
            raise InputError(f"column {self.column[first]} {problem}", AGAIN, self.path)
