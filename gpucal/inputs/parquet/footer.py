"""The footer of a Parquet file: its columns, its rows, and the offset and declared size of each column chunk.

gpucal parses it itself, because asking pyarrow 26 for a column chunk of a damaged footer can end the process, and
pyarrow's own objects for 11,392 columns take 19 MB. A pattern finds column chunks, which are then parsed all at once.
A chunk found that way counts only if it begins where the one before it ends.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN
from gpucal.inputs.kinds import HEAD, mistaken
from gpucal.inputs.parquet.thrift import (
    ABSENT,
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    FieldPath,
    StructReader,
    Unreadable,
    parse_structs,
)

__all__ = [
    "MAGIC",
    "MOST_FOR_ARROW",
    "Footer",
    "check_length",
    "count_rows",
    "end_of",
    "footer_length",
    "numbered_names",
    "parse_footer",
]

MAGIC = b"PAR1"
"""The mark at the beginning and the end of a Parquet file."""

MOST_FOR_ARROW = 2**25
"""Limit on the bytes of a footer that pyarrow parses, which then takes 800 MB: 30 row groups of AIRS-CH0."""

# Limits of any footer: the bytes of 240 row groups of AIRS-CH0, and five times its 11,392 columns.
_MOST_BYTES, _MOST_COLUMNS = 2**28, 2**16

# Bytes of an Arrow schema that is kept, so that files with the same one are checked once: twice those of AIRS-CH0.
_KEPT = 2**21

# A column of the schema as most writers have it: physical type, repetition; name of up to 64 bytes; converted type,
# logical type. Then a column order.
_NAME = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(1, 65))
_COLUMN = re.compile(
    rb"(\x15[\x00-\x0e]\x25[\x00-\x02])\x18(?:%s)((?:\x25.)?(?:\x4c\xac\x13.[\x11\x12]\0\0)?\0)" % _NAME, re.DOTALL
)
_NO_NAME = b"\x18\0"
_ORDER = re.compile(rb"\x1c\0\0")

# Bytes of physical types that are integers; integers by their converted type: bits, and whether they have a sign.
_WIDTHS = {1: 4, 2: 8}
_INTEGERS = {11: (8, False), 12: (16, False), 13: (32, False), 14: (64, False)}
_INTEGERS |= {15: (8, True), 16: (16, True), 17: (32, True), 18: (64, True)}

_WANTED: Mapping[FieldPath, int] = {
    (3, 1): I32,  # physical type
    (3, 4): I32,  # codec
    (3, 5): I64,  # values
    (3, 6): I64,  # bytes uncompressed
    (3, 7): I64,  # and compressed
    (3, 9): I64,  # offset of the first data page
    (3, 11): I64,  # and of the dictionary
}

# Fields of a column chunk, and their kinds, without which pyarrow refuses a footer.
_NEEDED: dict[FieldPath, int] = {
    (2,): I64,
    (3,): STRUCT,
    (3, 2): LIST,
    (3, 3): LIST,
    (3, 3, 0): BINARY,
    **{path: _WANTED[path] for path in ((3, 1), (3, 4), (3, 5), (3, 6), (3, 7), (3, 9))},
}

# The same of items of its lists: encodings, the column's name, and counts of pages, of which each has all these fields.
_ITEMS, _COUNTS = {(3, 2): I32, (3, 3): BINARY, (3, 13): STRUCT}, {1: I32, 2: I32, 3: I32}


@dataclass(frozen=True)
class Footer:
    """The content of a footer.

    Parameters
    ----------
    n_rows : int
        Rows of the file.
    names : tuple of str
        Names of the columns, those inside structs and lists included.
    nested : bool
        Whether there are structs or lists.
    facts : ndarray of int64, shape (column, 3)
        Of each column: whether it has definition levels, bytes of a value, and the highest count that its type has. A
        column has 0 bytes if it does not hold plain integers, or only its Arrow schema can tell.
    types : ndarray of int64, shape (column,)
        Physical type of each column by the schema, as numbered in parquet.thrift;
        `gpucal.inputs.parquet.thrift.ABSENT` if a converted or logical type is given.
    pandas : bytes
        What pandas noted of the table, as JSON; empty if nothing.
    rows : ndarray of int64, shape (row group,)
        Rows of each row group.
    kind, codec : ndarray of int64, shape (row group, column)
        Physical type and codec, as numbered in parquet.thrift.
    values, uncompressed, compressed : ndarray of int64, shape (row group, column)
        Values in a column chunk, and bytes of its pages with their headers.
    data, dictionary : ndarray of int64, shape (row group, column)
        Offsets of the first data page and of the dictionary; `gpucal.inputs.parquet.thrift.ABSENT` if none is given.
    """

    n_rows: int
    names: tuple[str, ...]
    nested: bool
    facts: NDArray[np.int64]
    types: NDArray[np.int64]
    pandas: bytes
    rows: NDArray[np.int64]
    kind: NDArray[np.int64]
    codec: NDArray[np.int64]
    values: NDArray[np.int64]
    uncompressed: NDArray[np.int64]
    compressed: NDArray[np.int64]
    data: NDArray[np.int64]
    dictionary: NDArray[np.int64]


def footer_length(file: BinaryIO, path: Path) -> int:
    """Read the length of a Parquet file's footer from its last bytes.

    Files that are not Parquet, are encrypted, or have a footer with too many bytes to parse are refused.
    """
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    if size < 12 or tail[4:] not in (MAGIC, b"PARE"):
        file.seek(0)
        if error := mistaken(file.read(HEAD), path, "Parquet"):
            raise error
    if size < 12:
        raise InputError(f"is not a Parquet file ({size} bytes)", AGAIN, path)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] == b"PARE":
        raise InputError("is encrypted", AGAIN, path)
    if tail[4:] != MAGIC or length > size - 12:
        raise InputError("is not a complete Parquet file (truncated or overwritten)", AGAIN, path)
    check_length(length, _MOST_BYTES, path)
    return length


def end_of(file: BinaryIO, path: Path) -> bytes:
    """Read a Parquet file's end: its footer, the footer's length and the closing mark.

    Files that `footer_length` refuses, or that have a footer with too many columns to parse, are refused first.
    """
    length = footer_length(file, path)
    file.seek(-8 - length, 2)
    end = file.read(length + 8)
    try:
        columns = _count_columns(StructReader(end, 0, length))
    except Unreadable as error:
        raise InputError(f"is not a readable Parquet file: its footer {error}", AGAIN, path) from error
    if columns > _MOST_COLUMNS:
        raise InputError(f"has {columns:,} columns, expected at most {_MOST_COLUMNS:,}", AGAIN, path)
    return end


def check_length(length: int, most: int, path: Path) -> None:
    """Refuse a footer of more bytes than can be parsed."""
    if length > most:
        problem = f"has a footer of {length:,} bytes, expected at most {most:,}"
        raise InputError(problem, "save it with fewer row groups", path)


def _count_columns(reader: StructReader) -> int:
    """Count a schema's columns and the groups around them without parsing it: pyarrow takes 1.6 GB for 900,000."""
    field = 0
    while True:
        field, kind = reader.head(field)
        if (field, kind) == (2, LIST):
            return reader.items()[1] - 1
        if field != 1:
            raise Unreadable("has no schema")
        reader.skip(kind)


def count_rows(data: bytes, stop: int) -> int:
    """Read the number of rows from a footer's beginning, ``data[:stop]``, which holds the schema and little more.

    `Unreadable` is raised if it does not come before ``stop``.
    """
    reader = StructReader(data, 0, stop)
    field = 0
    while True:
        field, kind = reader.head(field)
        if (field, kind) == (3, I64):
            return reader.number()
        if (field, kind) == (2, LIST):
            items, count = reader.items()
            if items != STRUCT or count > stop - reader.at:
                raise Unreadable("has no schema")
            _read_schema(reader, count)
        elif field == 1:
            reader.skip(kind)
        else:
            raise Unreadable("does not say how many rows there are")


def parse_footer(data: bytes, at: int, stop: int) -> Footer:
    """Parse the footer in ``data[at:stop]``; at least eight bytes must follow it.

    `Unreadable` is raised if the footer cannot be parsed, or a row group has another number of columns than the schema.
    """
    reader = StructReader(data, at, stop)
    n_rows, rows, groups, notes = -1, [], [], {}
    schema: _Schema | None = None
    chunks: _Chunks | None = None
    field, needed = 0, {(1, I32), (2, LIST), (3, I64), (4, LIST)}
    while True:
        field, kind = reader.head(field)
        if not kind:
            break
        needed.discard((field, kind))
        if (field, kind) == (3, I64):
            n_rows = reader.number()
        elif field in (2, 4, 5, 7) and kind == LIST:
            items, count = reader.items()
            if items != STRUCT:
                raise Unreadable("has a list of the wrong kind")
            if count > stop - reader.at:
                raise Unreadable("has a list of more items than it has bytes")
            if field == 2:
                schema = _read_schema(reader, count)
            elif field == 4:
                if schema is None:
                    raise Unreadable("has no schema")
                for _ in range(count):
                    rows_here, found, chunks = _row_group(reader, chunks, len(schema.names))
                    rows.append(rows_here)
                    groups.append(found)
            elif field == 5:
                notes = dict(_note(reader) for _ in range(count))
            else:
                if schema is None or count < len(schema.names):
                    raise Unreadable("has fewer orders than columns")
                _pass_orders(reader, count)
        elif field in (2, 3, 4):
            raise Unreadable("has a field of the wrong kind")
        else:
            reader.skip(kind)
    if schema is None or needed:
        raise Unreadable("has no schema" if schema is None else "lacks a field")
    if b"ARROW:schema" in notes:
        note = notes[b"ARROW:schema"]
        (_check_arrow_schema if len(note) <= _KEPT else _check_arrow_schema.__wrapped__)(note)
    table = np.stack(groups, axis=1) if groups else np.zeros((len(_WANTED), 0, len(schema.names)), np.int64)
    facts, types = schema.facts(b"ARROW:schema" in notes)
    return Footer(
        n_rows, schema.names, schema.nested, facts, types, notes.get(b"pandas", b""), np.array(rows, np.int64), *table
    )


@dataclass(frozen=True)
class _Schema:
    """A schema: the names of its columns, and for each the number of its form, which is all but the name."""

    names: tuple[str, ...]
    numbers: NDArray[np.intp]
    forms: list[bytes]
    nested: bool

    def facts(self, arrow: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `Footer.facts` and `Footer.types`; ``arrow`` says that the file has an Arrow schema beside this one."""
        facts = np.array([_facts(form, arrow) for form in self.forms], np.int64).reshape(-1, 4)
        return facts[self.numbers, :3], facts[self.numbers, 3]


def _read_schema(reader: StructReader, count: int) -> _Schema:
    """Read the elements of a schema: as usual all at once, or those that match the pattern fast."""
    if not count:
        raise Unreadable("has no schema")
    _, _, inside = _element(reader)  # the table itself, of all other elements
    match, data, stop = _COLUMN.match, reader.data, reader.stop
    if inside == count - 1 and (found := match(data, reader.at, stop)):
        usual, known_names = _numbered_columns(found[1], found[2], count - 1)
        if data.startswith(usual, reader.at, stop):
            reader.at += len(usual)
            return _Schema(known_names, np.zeros(len(known_names), np.intp), [found[1] + _NO_NAME + found[2]], False)
    names: list[bytes] = []
    numbers: list[int] = []
    known: dict[bytes, int] = {}
    nested = inside != count - 1
    for _ in range(count - 1):
        if found := match(data, reader.at, stop):
            (_, first), (last, reader.at) = found.span(1), found.span(2)
            name, form = data[first + 2 : last], found[1] + _NO_NAME + found[2]
        else:
            name, form, children = _element(reader)
            if children:
                nested = True
                continue
        names.append(name)
        numbers.append(known.setdefault(form, len(known)))
    try:
        return _Schema(tuple(name.decode() for name in names), np.array(numbers, np.intp), list(known), nested)
    except UnicodeDecodeError as error:
        raise Unreadable("has a column whose name is not UTF-8") from error


@functools.lru_cache(8)
def numbered_names(prefix: str, count: int) -> tuple[str, ...]:
    """Return the names ``column_0``, ``column_1``, ..., where ``column_`` is the prefix."""
    return tuple(f"{prefix}{number}" for number in range(count))


@functools.lru_cache(8)
def _numbered_columns(before: bytes, behind: bytes, count: int) -> tuple[bytes, tuple[str, ...]]:
    """Make the schema of columns ``column_0``, ``column_1``, ..., which differ in nothing else, and their names."""
    names = numbered_names("column_", count)
    return b"".join(b"%b\x18%c%b%b" % (before, len(name), name.encode(), behind) for name in names), names


def _element(reader: StructReader) -> tuple[bytes, bytes, int]:
    """Read an element of a schema: its name, its bytes with an empty name, and how many others it has inside."""
    begin, name, form, children, field = reader.at, b"", b"", 0, 0
    while True:
        field, kind = reader.head(field)
        if not kind:
            if not form:
                raise Unreadable("has a column without a name")
            return name, form + reader.data[begin : reader.at], children
        if (field, kind) == (4, BINARY):
            form = reader.data[begin : reader.at] + b"\0"
            name, begin = reader.binary(), reader.at
        elif (field, kind) == (5, I32):
            children = reader.number()
        else:
            reader.skip(kind)


def _facts(form: bytes, arrow: bool) -> tuple[int, int, int, int]:
    """Return the row of `Footer.facts` and the number of `Footer.types` of a column of this form."""
    layout, numbers = StructReader(form, 0, len(form)).struct()
    said = {place: numbers[number] for place, number in layout.numbers.items() if layout.kinds[place] == I32}
    repetition, converted = said.get((3,), ABSENT), said.get((6,), ABSENT)
    kind = said.get((1,), ABSENT)
    width = _WIDTHS.get(kind, 0)
    bits, signed = _INTEGERS.get(converted, (64, True))
    logical = b"\x4c\xac\x13%c%c\0\0" % (bits, 0x11 if signed else 0x12)  # the same, as a union of structs
    bare = converted == ABSENT and (10,) not in layout.kinds
    plain = bare and not (arrow and width == 8)  # a duration for Arrow
    known = converted in _INTEGERS and ((10,) not in layout.kinds or logical in form)
    if repetition not in (0, 1) or not (plain or known):
        width = 0
    return repetition, width, min(0xFFFF, (1 << (bits - signed)) - 1), kind if bare else ABSENT


def _note(reader: StructReader) -> tuple[bytes, bytes]:
    """Read a key and its value."""
    found: dict[int, bytes] = {}
    field = 0
    while True:
        field, kind = reader.head(field)
        if not kind:
            if 1 not in found:
                raise Unreadable("has a note without a key")
            return found[1], found.get(2, b"")
        if field in (1, 2) and kind == BINARY:
            found[field] = reader.binary()
        else:
            reader.skip(kind)


@functools.lru_cache(4)
def _check_arrow_schema(note: bytes) -> None:
    """Refuse an Arrow schema that pyarrow refuses: 6 ms for the 0.8 MB of 11,392 columns, the same in most files."""
    try:
        pa.ipc.read_schema(pa.py_buffer(base64.b64decode(note, validate=True)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable("has an Arrow schema that cannot be read") from error


def _pass_orders(reader: StructReader, count: int) -> None:
    """Skip the orders of columns: as usual all at once, or those that match the pattern fast."""
    match, data, stop = _ORDER.match, reader.data, reader.stop
    usual = b"\x1c\0\0" * count
    if data.startswith(usual, reader.at, stop):
        reader.at += len(usual)
        return
    for _ in range(count):
        if found := match(data, reader.at, stop):
            reader.at = found.end()
        else:
            reader.skip(STRUCT)


class _Chunks:
    """Column chunks after an offset, found by a pattern and parsed in advance.

    ``until`` gives, for each of them, the index after the last of its unbroken sequence.
    """

    def __init__(self, data: bytes, at: int, stop: int) -> None:
        self.data, self.stop = data, stop
        self.starts = _find_chunks(data, at, stop)
        try:
            self.found, self.ends = _parse_chunks(data, self.starts, stop)
        except Unreadable:  # the pattern matched something else: parse the chunks one by one
            self.starts = self.starts[:0]
            self.found, self.ends = _parse_chunks(data, self.starts, stop)
        # for each chunk, the next one that does not begin where the one before it ends
        breaks = np.flatnonzero(np.append(self.ends[:-1] != self.starts[1:], True)[: self.starts.size]) + 1
        self.until = breaks[np.searchsorted(breaks, np.arange(1, self.starts.size + 1))]

    def read(self, reader: StructReader, count: int) -> NDArray[np.int64]:
        """Read the next column chunks, those parsed in advance all at once."""
        parts, left = [], count
        while left:
            first = int(np.searchsorted(self.starts, reader.at))
            if first < self.starts.size and self.starts[first] == reader.at:
                last = min(int(self.until[first]), first + left)
                parts.append(self.found[:, first:last])
                reader.at, left = int(self.ends[last - 1]), left - (last - first)
            else:
                found, ends = _parse_chunks(self.data, np.array([reader.at]), self.stop)
                parts.append(found)
                reader.at, left = int(ends[0]), left - 1
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(_WANTED), 0), np.int64)


def _find_chunks(data: bytes, at: int, stop: int) -> NDArray[np.int64]:
    """Find what looks like the beginning of a column chunk: offset, metadata, physical type, encodings."""
    raw = np.frombuffer(data, np.uint8, stop - at, at)
    behind = np.flatnonzero(raw[:-3] == 0x1C)
    for byte, most, least in ((1, 0x15, 0x15), (2, 0x0E, 0), (3, 0x19, 0x19)):  # one by one: less memory, and sooner
        there = raw[behind + byte]
        behind = behind[(there <= most) & (there >= least)]
    starts = behind - 2  # before a number of one byte; those of all other bytes are above 127
    for _ in range(6):
        starts = np.maximum(starts - (raw[starts] > 0x7F), 0)
    found: NDArray[np.int64] = starts[(raw[starts] == 0x26) & (starts < behind - 1)] + at
    return found


def _parse_chunks(data: bytes, at: NDArray[np.int64], stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parse the column chunks at some offsets; return the numbers wanted, and the ends."""
    found, ends, layouts = parse_structs(data, at, stop, _WANTED)
    if not all(_is_whole(layout.kinds) for layout in layouts):
        raise Unreadable("has a column chunk that lacks a field")
    return found, ends


def _is_whole(kinds: Mapping[FieldPath, int]) -> bool:
    """Tell whether a column chunk with fields of these kinds has all those that pyarrow needs."""
    items = [path for path in kinds if len(path) == 3 and path[:2] in _ITEMS]
    fields = {(*path, field): kind for path in items if path[1] == 13 for field, kind in _COUNTS.items()}
    of_items = {path: _ITEMS[path[:2]] for path in items}
    return (_NEEDED | of_items | fields).items() <= kinds.items()


def _row_group(
    reader: StructReader, chunks: _Chunks | None, n_columns: int
) -> tuple[int, NDArray[np.int64], _Chunks | None]:
    """Read a row group: its rows, and the wanted fields of its column chunks."""
    n_rows, found = -1, None
    field, needed = 0, {(1, LIST), (2, I64), (3, I64)}
    while True:
        field, kind = reader.head(field)
        if not kind:
            break
        needed.discard((field, kind))
        if (field, kind) == (3, I64):
            n_rows = reader.number()
        elif (field, kind) == (1, LIST):
            items, count = reader.items()
            if items != STRUCT or count != n_columns:
                raise Unreadable(f"has a row group of {count:,} columns, not {n_columns:,}")
            chunks = chunks or _Chunks(reader.data, reader.at, reader.stop)
            found = chunks.read(reader, count)
        elif field in (1, 3):
            raise Unreadable("has a field of the wrong kind")
        else:
            reader.skip(kind)
    if found is None or needed:
        raise Unreadable("has a row group that lacks a field")
    return n_rows, found, chunks
