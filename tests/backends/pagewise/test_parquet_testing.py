"""The Parquet project's own test files: columns of integers have pyarrow's values, or are refused or left to pyarrow.

They are used where GPUCAL_PARQUET_TESTING names a copy of github.com/apache/parquet-testing, or one lies in
``shared/data/parquet-testing`` beside the checkout.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from paged import bin_loaded, by_counts, same_bits, table_of, telling

from gpucal.errors import InputError
from gpucal.inputs.parquet.footer import end_of
from gpucal.inputs.parquet.pages import read_footer
from gpucal.inputs.signal_file import Loaded

BESIDE = Path(__file__).resolve().parents[4] / "shared" / "data" / "parquet-testing"
FOLDER = Path(os.environ.get("GPUCAL_PARQUET_TESTING", BESIDE))
FILES = {path.name: path for path in sorted(FOLDER.rglob("*.parquet"))}

# How many columns of a file are taken and have counts.
TAKEN = {
    "ARROW-GH-43605.parquet": 1,
    "alltypes_dictionary.parquet": 5,
    "alltypes_plain.parquet": 5,
    "alltypes_plain.snappy.parquet": 5,
    "alltypes_tiny_pages.parquet": 7,
    "alltypes_tiny_pages_plain.parquet": 7,
    "column_chunk_key_value_metadata.parquet": 2,
    "dict-page-offset-zero.parquet": 1,
    "nation.dict-malformed.parquet": 2,
    "plain-dict-uncompressed-checksum.parquet": 1,
    "rle-dict-snappy-checksum.parquet": 1,
    "rle-dict-uncompressed-corrupt-checksum.parquet": 1,
}

# Files of more pages than any observation has: 20,000 of a value or two.
TOO_MANY_PAGES = {"overflow_i16_page_cnt.parquet"}


def plain(path: Path, column: int) -> NDArray[np.uint16] | None:
    """The counts that pyarrow reads; None if it refuses the column or finds something else in it."""
    try:
        with pq.ParquetFile(path) as file:
            found = file.reader.read_all(column_indices=[column], use_threads=False).column(0)
    except (pa.ArrowException, OSError, ValueError):
        return None
    values = found.to_pylist()
    if not all(isinstance(value, int) and 0 <= value <= 0xFFFF for value in values):
        return None
    return np.array([values], np.uint16)


def one_line(error: InputError, path: Path) -> str:
    line = str(error)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert len(line) < 500
    return line


def became(path: Path, column: int, *, strict: bool = False) -> str:
    """Say what becomes of a column: left to pyarrow, refused, or binned as what pyarrow reads."""
    data = path.read_bytes()
    try:
        table = table_of(data, np.array([column]), path)
        if table.unfit:
            return "left"
        loaded = Loaded(path, np.frombuffer(data, np.uint8), table, strict)
        plan = telling(1, table.n_rows)
        sums, saturated, _ = bin_loaded(plan, loaded)
    except InputError as error:
        return one_line(error, path)
    counts = plain(path, column)
    assert counts is not None
    assert counts.shape == (1, table.n_rows)
    expected = by_counts(plan, counts)
    assert same_bits(sums, expected[0])
    np.testing.assert_array_equal(saturated, expected[1])
    return "binned"


def columns_of(path: Path) -> tuple[range, bool]:
    """The columns of a file, none if its footer is refused, and whether some are inside structs or lists."""
    data = path.read_bytes()
    try:
        footer = read_footer(end_of(BytesIO(data), path), len(data), path)
    except InputError as error:
        one_line(error, path)
        return range(0), False
    return range(len(footer.names)), footer.nested


@pytest.mark.parametrize("name", FILES)
def test_columns(name: str) -> None:
    path = FILES[name]
    columns, nested = columns_of(path)
    found = {column: became(path, column) for column in columns}
    assert list(found.values()).count("binned") == TAKEN.get(name, 0), found
    for column, line in found.items():
        if not nested and line not in ("left", "binned") and plain(path, column) is not None:
            assert name in TOO_MANY_PAGES
            assert "has more than 4,096 pages" in line


CORRUPT = {"datapage_v1-corrupt-checksum.parquet", "rle-dict-uncompressed-corrupt-checksum.parquet"}


@pytest.mark.parametrize("name", [name for name in FILES if "checksum" in name])
def test_checksums(name: str) -> None:
    lines = [became(FILES[name], column, strict=True) for column in columns_of(FILES[name])[0]]
    assert any("has another checksum than its header says" in line for line in lines) == (name in CORRUPT)
