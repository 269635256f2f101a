"""How compiled functions are told of pages: a table of int64, one row a page, in the order of columns and rows."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = [
    "AT",
    "CHECKSUM",
    "CODEC",
    "COLUMNS",
    "DATA",
    "DATA_2",
    "DICTIONARY",
    "ENCODING",
    "FIRST",
    "KIND",
    "LEVELS",
    "PADDING",
    "PLAIN",
    "PLAIN_DICTIONARY",
    "PREFIX",
    "RLE_DICTIONARY",
    "SIZE",
    "SNAPPY",
    "STORED",
    "TO",
    "VALUES",
    "WANTED",
    "ZSTD",
    "ZSTD_MAGIC",
    "Array",
]

Array: TypeAlias = "NDArray[Any]"
"""An array; of what, the signature of a compiled function says."""

# Where a page begins, and its bytes; its codec; how many bytes in front are stored as they are whatever that is; where
# it is to be put, beside all the others, and how many bytes it has then; type, encoding, values; bytes of definition
# levels in front, for the second version of data pages; whether it is the first of a column chunk; the checksum of its
# stored bytes, `gpucal.inputs.parquet.thrift.ABSENT` if it has none.
AT, SIZE, CODEC, PREFIX, TO, WANTED, KIND, ENCODING, VALUES, LEVELS, FIRST, CHECKSUM, COLUMNS = range(13)

# Codecs of pages that are taken, as parquet.thrift numbers them.
STORED, SNAPPY, ZSTD = 0, 1, 6

# How values of a page are encoded, as parquet.thrift numbers it: as they are, and by a dictionary.
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8

ZSTD_MAGIC = 0xFD2FB528
"""The first four bytes of a zstd frame (RFC 8878, 3.1.1)."""

# Types of pages, as parquet.thrift numbers them.
DATA, DICTIONARY, DATA_2 = 0, 2, 3

PADDING = 16
"""Bytes that have to be there behind every page, in memory: words are loaded whole."""
