"""The footer of a Parquet file: rows, and the offset and declared size of each column chunk.

gpucal parses it itself, because asking pyarrow 26 for a column chunk of a damaged footer can end the process. A pattern
finds column chunks, which are then parsed all at once. A chunk found that way counts only if it begins where the one
before it ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN
from gpucal.inputs.kinds import HEAD, mistaken
from gpucal.inputs.parquet.thrift import I32, I64, LIST, STRUCT, FieldPath, StructReader, Unreadable, parse_structs

__all__ = ["MAGIC", "Footer", "end_of", "parse_footer"]

MAGIC = b"PAR1"
"""The mark at the beginning and the end of a Parquet file."""

# Limits of a footer: the bytes of 15 row groups of AIRS-CH0 as Polars writes them, and five times its 11,392 columns.
# pyarrow needs 800 MB to parse so many bytes, and 130 MB for so many columns.
_MOST_BYTES, _MOST_COLUMNS = 2**25, 2**16

# A column of the schema as most writers have it: physical type, repetition, name of up to 64 bytes, converted type,
# logical type. Then the beginning of a column chunk: offset, metadata, physical type, encodings. Then a column order.
_NAME = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(1, 65))
_COLUMN = re.compile(
    rb"\x15[\x00-\x0e]\x25[\x00-\x02]\x18(?:%s)(?:\x25.)?(?:\x4c\xac\x13.[\x11\x12]\0\0)?\0" % _NAME, 16
)
_CHUNK = re.compile(rb"\x26[\x80-\xff]{0,6}[\x00-\x7f]\x1c\x15[\x00-\x0e]\x19")
_ORDER = re.compile(rb"\x1c\0\0")

_WANTED: Mapping[FieldPath, int] = {
    (3, 1): I32,  # physical type
    (3, 4): I32,  # codec
    (3, 5): I64,  # values
    (3, 6): I64,  # bytes uncompressed
    (3, 7): I64,  # and compressed
    (3, 9): I64,  # offset of the first data page
    (3, 11): I64,  # and of the dictionary
}


@dataclass(frozen=True)
class Footer:
    """The content of a footer.

    Parameters
    ----------
    n_rows : int
        Rows of the file.
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
    rows: NDArray[np.int64]
    kind: NDArray[np.int64]
    codec: NDArray[np.int64]
    values: NDArray[np.int64]
    uncompressed: NDArray[np.int64]
    compressed: NDArray[np.int64]
    data: NDArray[np.int64]
    dictionary: NDArray[np.int64]


def end_of(file: BinaryIO, path: Path) -> bytes:
    """Read a Parquet file's end: its footer, the footer's length and the closing mark.

    Files that are not Parquet, are encrypted, or have a footer with too many bytes or columns to parse are refused
    first.
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
    if length > _MOST_BYTES:
        raise InputError(f"has a footer of {length:,} bytes, expected at most {_MOST_BYTES:,}", AGAIN, path)
    file.seek(size - 8 - length)
    footer = file.read(length)
    try:
        columns = _count_columns(StructReader(footer, 0, len(footer)))
    except Unreadable as error:
        raise InputError(f"is not a readable Parquet file: its footer {error}", AGAIN, path) from error
    if columns > _MOST_COLUMNS:
        raise InputError(f"has {columns:,} columns, expected at most {_MOST_COLUMNS:,}", AGAIN, path)
    return footer + tail


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


def parse_footer(data: bytes, at: int, stop: int, n_columns: int) -> Footer:
    """Parse the footer in ``data[at:stop]``; at least eight bytes must follow it.

    ``n_columns`` counts columns inside structs and lists, too. `Unreadable` is raised if the footer cannot be parsed,
    or a row group has another number of columns.
    """
    reader = StructReader(data, at, stop)
    n_rows, rows, groups = -1, [], []
    chunks: _Chunks | None = None
    field = 0
    while True:
        field, kind = reader.head(field)
        if not kind:
            break
        if (field, kind) == (3, I64):
            n_rows = reader.number()
        elif field in (2, 4, 7) and kind == LIST:
            items, count = reader.items()
            if items != STRUCT:
                raise Unreadable("has a list of the wrong kind")
            if field == 4:
                for _ in range(count):
                    rows_here, found, chunks = _row_group(reader, chunks, n_columns)
                    rows.append(rows_here)
                    groups.append(found)
            else:
                _pass_structs(reader, count, _COLUMN if field == 2 else _ORDER)
        elif field in (2, 3, 4):
            raise Unreadable("has a field of the wrong kind")
        else:
            reader.skip(kind)
    table = np.stack(groups, axis=1) if groups else np.zeros((len(_WANTED), 0, n_columns), np.int64)
    return Footer(n_rows, np.array(rows, np.int64), *table)


def _pass_structs(reader: StructReader, count: int, pattern: re.Pattern[bytes]) -> None:
    """Skip the structs of a list; those that match the pattern are fast."""
    match, data, stop = pattern.match, reader.data, reader.stop
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
        self.starts = np.fromiter((match.start() for match in _CHUNK.finditer(data, at, stop)), np.int64)
        try:
            self.found, self.ends, _ = parse_structs(data, self.starts, stop, _WANTED)
        except Unreadable:  # the pattern matched something else: parse the chunks one by one
            self.starts = self.starts[:0]
            self.found, self.ends, _ = parse_structs(data, self.starts, stop, _WANTED)
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
                found, ends, _ = parse_structs(self.data, np.array([reader.at]), self.stop, _WANTED)
                parts.append(found)
                reader.at, left = int(ends[0]), left - 1
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(_WANTED), 0), np.int64)


def _row_group(
    reader: StructReader, chunks: _Chunks | None, n_columns: int
) -> tuple[int, NDArray[np.int64], _Chunks | None]:
    """Read a row group: its rows, and the wanted fields of its column chunks."""
    n_rows, found, field = -1, None, 0
    while True:
        field, kind = reader.head(field)
        if not kind:
            break
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
    if found is None:
        raise Unreadable("has a row group without columns")
    return n_rows, found, chunks
