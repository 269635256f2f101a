"""Signal files encoded as the published ones are, which Polars wrote with its default options.

There is one row group. A column is a dictionary page and a data page of version 1. A page is a zstd frame of level 3.
pyarrow's own files are other work for a reader: they have more and shorter pages and runs, and a faster level. Polars
begins another row group after 262,144 rows. That is more than a signal file has, and is not done here.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpucal.inputs.parquet.footer import MAGIC
from gpucal.inputs.parquet.thrift import BINARY, I32, I64, LIST, STRUCT
from gpucal.synthetic.index_runs import hybrid, literal_runs, may_repeat, pack, varint

__all__ = ["write_signal"]

# More of the kinds in Thrift's compact protocol; a true value is 1 in a list and a field's kind, a false one is 2.
_FALSE, _BYTE, _I16, _BOOL = 2, 3, 4, 1

# Numbers of parquet.thrift.
_INT32, _OPTIONAL, _UINT_16, _ZSTD, _DATA, _DICTIONARY, _UNORDERED = 1, 1, 12, 6, 0, 2, 0
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8

_LEVEL = 3
# Counts that a thread encodes at a time, about: with fewer, threads wait for each other between NumPy's calls.
_BLOCK = 2**19


@dataclass(frozen=True)
class _Polars:
    """The versions of Polars whose files a year has, as far as their bytes differ.

    Parameters
    ----------
    in_order : bool
        Whether a dictionary is sorted; otherwise its values stand in the order in which they appear.
    always : int
        A dictionary of so many values or fewer is always worth it; a longer one if it saves a quarter of the values.
    runs_only : bool
        Whether definition levels are a run of one value even if there are eight or fewer; otherwise those are literal.
    """

    in_order: bool
    always: int
    runs_only: bool


_OF_LAYOUT = MappingProxyType(
    {
        "2024": _Polars(in_order=False, always=0, runs_only=False),  # 0.20.31 to 1.4
        "2025": _Polars(in_order=True, always=256, runs_only=True),  # 1.31.0
    }
)


@dataclass(frozen=True)
class _Chunk:
    """A column's pages.

    Parameters
    ----------
    pages : bytes
        The pages with their headers.
    data : int
        Bytes of them before the data page.
    inflated : int
        Bytes of the pages with their headers before compression.
    encodings : sequence of int
        Encodings in them.
    low, high : bytes
        The lowest and the highest value.
    """

    pages: bytes
    data: int
    inflated: int
    encodings: Sequence[int]
    low: bytes
    high: bytes


def write_signal(path: Path, columns: NDArray[np.uint16], layout: str, pool: Executor) -> None:
    """Write a signal file. Its bytes depend on the values and the layout only, never on the number of threads.

    Parameters
    ----------
    path : Path
        The file.
    columns : ndarray of uint16, shape (column, row)
        The counts; they become ``column_0``, ``column_1``, ...
    layout : {"2024", "2025"}
        The year whose files it is to be like.
    pool : Executor
        Threads that encode; none of them waits for another.
    """
    style = _OF_LAYOUT[layout]
    n_columns, n_rows = columns.shape
    names = [b"column_%d" % column for column in range(n_columns)]
    step = max(1, _BLOCK // max(n_rows, 1))
    blocks = [columns[first : first + step] for first in range(0, n_columns if n_rows else 0, step)]
    inflated = 0
    ends: list[int] = []
    metadata: list[bytes] = []
    indexes: list[bytes] = []
    offsets: list[bytes] = []
    with path.open("wb") as file:
        file.write(MAGIC)
        for chunks in pool.map(lambda block: _encode(block, style), blocks):
            for chunk in chunks:
                at = file.tell()
                ends.append(at + len(chunk.pages))
                metadata.append(_metadata(chunk, names[len(metadata)], n_rows, at))
                indexes.append(_column_index(chunk))
                offsets.append(_offset_index(chunk, at))
                inflated += chunk.inflated
                file.write(chunk.pages + metadata[-1])  # a copy of what the footer says
        stored = file.tell() - len(MAGIC) - sum(map(len, metadata))
        index_at = file.tell()
        file.write(b"".join(indexes))
        offset_at = file.tell()
        file.write(b"".join(offsets))
        entries = []
        for end, said, index, offset in zip(ends, metadata, indexes, offsets, strict=True):
            of_offsets = (4, I64, _int(offset_at)), (5, I32, _int(len(offset)))
            of_index = (6, I64, _int(index_at)), (7, I32, _int(len(index)))
            entries.append(_struct((2, I64, _int(end)), (3, STRUCT, said), *of_offsets, *of_index))
            index_at, offset_at = index_at + len(index), offset_at + len(offset)
        groups = [_row_group(entries, n_rows, inflated, stored)] if n_rows else []
        footer = _footer(names, n_rows, groups)
        file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)


# ----------------------------------------------------------------------------------------------------------- the pages


def _encode(columns: NDArray[np.uint16], style: _Polars) -> list[_Chunk]:
    """Encode some columns of at least one row; all at once where NumPy can, as its calls are slower than its loops."""
    n_columns, n_rows = columns.shape
    low, high = columns.min(axis=1).astype(np.intp), columns.max(axis=1).astype(np.intp)
    # for each column a piece of one table, with a place for each value from its lowest to its highest
    sizes = high - low + 1
    starts = np.cumsum(sizes) - sizes
    places = columns + (starts - low)[:, None]
    first = np.full(int(sizes.sum()), n_rows, np.int32)  # the row where a value appears first
    np.minimum.at(first, places.ravel(), np.tile(np.arange(n_rows, dtype=np.int32), n_columns))
    found = np.flatnonzero(first < n_rows)
    ends = np.searchsorted(found, starts + sizes)
    counts = np.diff(ends, prepend=0)
    if not style.in_order:
        found = found[np.argsort(first[found] + n_rows * np.repeat(np.arange(n_columns), counts))]
    table = np.empty(first.size, np.uint16)
    table[found] = np.arange(found.size) - np.repeat(ends - counts, counts)
    indices, values = table.take(places), (found + np.repeat(low - starts, counts)).astype("<i4")

    # 2024 says "not more than", 2025 "less than" three quarters
    saves = (counts <= style.always) | (4 * counts < 3 * n_rows + (not style.in_order))
    bits = np.frexp(counts - 1)[1]
    packed, repeated = pack(indices, bits), may_repeat(indices)
    chunks = []
    for column in range(n_columns):
        dictionary, width = values[ends[column] - counts[column] : ends[column]], int(bits[column])
        if not saves[column]:
            dictionary, content = None, columns[column].astype("<i4").tobytes()
        elif repeated[column]:
            content = bytes([width]) + hybrid(indices[column], width)
        else:
            content = bytes([width]) + literal_runs(packed[column], n_rows, width)
        chunks.append(_pages(n_rows, dictionary, content, int(low[column]), int(high[column]), style))
    return chunks


def _pages(
    n_rows: int, dictionary: NDArray[np.int32] | None, content: bytes, low: int, high: int, style: _Polars
) -> _Chunk:
    """Write the page of a dictionary, if there is one, and the page of the indices or values."""
    before, inflated, encoding = b"", 0, _PLAIN
    if dictionary is not None:
        encoding = _RLE_DICTIONARY
        said = _struct((1, I32, _int(dictionary.size)), (2, I32, _int(_PLAIN)))
        before, inflated = _page(_DICTIONARY, dictionary.tobytes(), 7, said)
    levels = varint(n_rows << 1) + b"\1"
    if n_rows <= 8 and not style.runs_only:
        levels = hybrid(np.ones(n_rows, np.uint16), 1)
    bounds = low.to_bytes(4, "little"), high.to_bytes(4, "little")
    of_levels = (3, I32, _int(_RLE)), (4, I32, _int(_RLE))
    said = _struct((1, I32, _int(n_rows)), (2, I32, _int(encoding)), *of_levels, (5, STRUCT, _statistics(*bounds)))
    page, size = _page(_DATA, len(levels).to_bytes(4, "little") + levels + content, 5, said)
    encodings = (_PLAIN, _RLE, encoding) if encoding else (_PLAIN, _RLE)
    return _Chunk(before + page, len(before), inflated + size, encodings, *bounds)


def _page(kind: int, body: bytes, field: int, said: bytes) -> tuple[bytes, int]:
    """Compress a page; return it behind its header, and their bytes before compression."""
    frame = pa.Codec("zstd", compression_level=_LEVEL).compress(body, asbytes=True)
    sizes = (2, I32, _int(len(body))), (3, I32, _int(len(frame)))
    header = _struct((1, I32, _int(kind)), *sizes, (field, STRUCT, said))
    return header + frame, len(header) + len(body)


# ---------------------------------------------------------------------------------------------------------- the structs


def _row_group(entries: Sequence[bytes], n_rows: int, inflated: int, stored: int) -> bytes:
    return _struct(
        (1, LIST, _list(STRUCT, entries)),
        (2, I64, _int(inflated)),
        (3, I64, _int(n_rows)),
        (5, I64, _int(len(MAGIC))),
        (6, I64, _int(stored)),
        (7, _I16, _int(0)),
    )


def _footer(names: Sequence[bytes], n_rows: int, groups: Sequence[bytes]) -> bytes:
    unsigned = _struct((10, STRUCT, _struct((1, _BYTE, b"\x10"), (2, _FALSE, b""))))  # 16 bits, not signed
    kind, option = (1, I32, _int(_INT32)), (3, I32, _int(_OPTIONAL))
    counts = (6, I32, _int(_UINT_16)), (10, STRUCT, unsigned)
    schema = [_struct((4, BINARY, _text(b"root")), (5, I32, _int(len(names))))]
    schema += [_struct(kind, option, (4, BINARY, _text(name)), *counts) for name in names]
    arrow = pa.schema([(name.decode(), pa.uint16()) for name in names]).serialize()
    pair = _struct((1, BINARY, _text(b"ARROW:schema")), (2, BINARY, _text(base64.b64encode(arrow))))
    return _struct(
        (1, I32, _int(1)),  # version
        (2, LIST, _list(STRUCT, schema)),
        (3, I64, _int(n_rows)),
        (4, LIST, _list(STRUCT, groups)),
        (5, LIST, _list(STRUCT, [pair])),
        (6, BINARY, _text(b"Polars")),  # readers look at the name: what they do for published files, they do here
        (7, LIST, _list(STRUCT, [_struct((1, STRUCT, _struct()))] * len(names))),  # the order of the type
    )


def _metadata(chunk: _Chunk, name: bytes, n_rows: int, at: int) -> bytes:
    return _struct(
        (1, I32, _int(_INT32)),
        (2, LIST, _list(I32, [_int(number) for number in chunk.encodings])),
        (3, LIST, _list(BINARY, [_text(name)])),
        (4, I32, _int(_ZSTD)),
        (5, I64, _int(n_rows)),
        (6, I64, _int(chunk.inflated)),
        (7, I64, _int(len(chunk.pages))),
        (9, I64, _int(at)),  # said of the first data page, though the dictionary is there
        (12, STRUCT, _statistics(chunk.low, chunk.high)),
    )


def _statistics(low: bytes, high: bytes) -> bytes:
    return _struct((3, I64, _int(0)), (5, BINARY, _text(high)), (6, BINARY, _text(low)))


def _column_index(chunk: _Chunk) -> bytes:
    return _struct(
        (1, LIST, _list(_BOOL, [b"\2"])),  # not only nulls
        (2, LIST, _list(BINARY, [_text(chunk.low)])),
        (3, LIST, _list(BINARY, [_text(chunk.high)])),
        (4, I32, _int(_UNORDERED)),
        (5, LIST, _list(I64, [_int(0)])),
    )


def _offset_index(chunk: _Chunk, at: int) -> bytes:
    place = (1, I64, _int(at + chunk.data)), (2, I32, _int(len(chunk.pages) - chunk.data)), (3, I64, _int(0))
    return _struct((1, LIST, _list(STRUCT, [_struct(*place)])))


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """Write a struct in Thrift's compact protocol, from the number, kind and content of its fields."""
    parts, last = bytearray(), 0
    for number, kind, content in fields:
        parts.append(number - last << 4 | kind)
        parts += content
        last = number
    parts.append(0)
    return bytes(parts)


def _list(kind: int, contents: Sequence[bytes]) -> bytes:
    head = bytes([len(contents) << 4 | kind]) if len(contents) < 15 else bytes([0xF0 | kind]) + varint(len(contents))
    return head + b"".join(contents)


def _text(content: bytes) -> bytes:
    return varint(len(content)) + content


def _int(value: int) -> bytes:
    """Write a number that is not negative."""
    return varint(value << 1)
