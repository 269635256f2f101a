"""Columns of calibration frames: gpucal decodes those stored as published, and leaves all others to pyarrow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutants import Anatomy, table, written, written_by_polars
from numpy.typing import NDArray

from gpucal.inputs.parquet.tables import plain_columns

PATH = Path("dark.parquet")
NUMBERS = np.random.default_rng(2).normal(size=(6, 13))
NUMBERS[0, :4] = np.nan, np.inf, -0.0, 5e-324
MAP = NUMBERS > 0.3
PLAIN: dict[str, Any] = {"use_dictionary": False, "compression": "zstd"}


def required(values: NDArray[Any]) -> pa.Table:
    arrays = [pa.array(column) for column in values]
    fields = [pa.field(f"column_{k}", array.type, nullable=False) for k, array in enumerate(arrays)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


@pytest.mark.parametrize(
    "values",
    [NUMBERS, MAP, NUMBERS[:, :1], MAP[:1], np.ones((3, 200))],
    ids=["numbers", "map", "row", "column", "long"],
)
@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
@pytest.mark.parametrize("make", [table, required], ids=["nullable", "required"])
def test_columns_as_published(values: NDArray[Any], compression: str, make: Any) -> None:
    files = [written(make(values), **PLAIN | {"compression": compression})]
    files += [
        written(make(values), **PLAIN | {"compression": compression, "data_page_version": "1.0", "version": "1.0"})
    ]
    for data in files:
        found = plain_columns(data, PATH)
        assert found is not None
        assert found[0].dtype == values.dtype
        np.testing.assert_array_equal(found[0].T, values)
        np.testing.assert_array_equal(np.signbit(found[0].T.astype(float)), np.signbit(values.astype(float)))
        np.testing.assert_array_equal(found[1], np.arange(len(values)))


@pytest.mark.parametrize("values", [NUMBERS, MAP], ids=["numbers", "map"])
def test_polars_writes_them_so(values: NDArray[Any]) -> None:
    found = plain_columns(written_by_polars(table(values), compression="zstd"), PATH)
    assert found is not None
    np.testing.assert_array_equal(found[0].T, values)


def test_columns_come_in_the_order_of_their_numbers() -> None:
    moved = table(NUMBERS).select([f"column_{k}" for k in (4, 0, 5, 1, 3, 2)])
    found = plain_columns(written(moved, **PLAIN), PATH)
    assert found is not None
    np.testing.assert_array_equal(found[0].T, NUMBERS)
    assert found[1].tolist() == [1, 3, 5, 4, 0, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": True},
        {"compression": "gzip"},
        {"row_group_size": 5},
        {"data_page_size": 8, "write_batch_size": 2},
        {"data_page_version": "2.0"},
        {"column_encoding": "BYTE_STREAM_SPLIT"},
    ],
    ids=str,
)
def test_columns_stored_in_another_way_are_left(options: dict[str, Any]) -> None:
    assert plain_columns(written(table(NUMBERS), **PLAIN | options), PATH) is None


@pytest.mark.parametrize(
    "columns",
    [
        [[1.0, None, 2.0], [1.0, 2.0, 3.0]],
        [[1.0, 2.0, 3.0], [True, False, True]],
        [np.float32([1, 2, 3]), np.float32([1, 2, 3])],
        [np.arange(3), np.arange(3)],
        [[1.0, 2.0, 3.0], [[1.0], [2.0], [3.0]]],
        [["a", "b", "c"], ["a", "b", "c"]],
    ],
    ids=["nulls", "two types", "float32", "int64", "lists", "texts"],
)
def test_other_columns_are_left(columns: list[Any]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({f"column_{k}": column for k, column in enumerate(columns)}), sink, **PLAIN)
    assert plain_columns(sink.getvalue(), PATH) is None


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 9, written(table(NUMBERS), **PLAIN)[:-30]], ids=len)
def test_what_is_not_parquet_is_left(data: bytes) -> None:
    assert plain_columns(data, PATH) is None


def changed(sizes: dict[int, int], said: bool) -> bytes:
    """A file in which pages hold some bytes more or less than their headers say, and their frames say it or not."""
    anatomy = Anatomy.of(written(table(NUMBERS), **PLAIN))
    for place, more in sizes.items():
        page = anatomy.chunks[place].pages[0]
        content = bytes(pa.decompress(page.body, page.number(2), "zstd"))
        content = content + content[:more] if more > 0 else content[:more]
        if said:
            page.body = bytes(pa.compress(content, "zstd"))
        else:
            with io.BytesIO() as sink, pa.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(content)
                stream.flush()
                page.body = sink.getvalue()
        page.header[3].value = len(page.body)
    return anatomy.data()


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("sizes", [{1: 8}, {1: -8}, {1: 8, 2: -8}, {1: -8, 2: 8}], ids=str)
def test_pages_of_other_sizes_do_not_move_those_behind(sizes: dict[int, int], said: bool) -> None:
    assert plain_columns(changed({}, said), PATH) is not None
    assert plain_columns(changed(sizes, said), PATH) is None


def test_frames_are_told_apart_where_one_is_cut() -> None:
    """Two pages whose frames have the right sizes together, but not each: the first takes bytes of the second."""
    anatomy = Anatomy.of(written(table(NUMBERS), **PLAIN))
    first, second = (anatomy.chunks[place].pages[0] for place in (2, 3))
    size = first.number(2)
    frame = bytes(pa.compress(pa.decompress(first.body, size, "zstd"), "zstd"))
    other = bytes(pa.compress(pa.decompress(second.body, size, "zstd"), "zstd"))
    assert frame[4] == 0x20  # one byte tells the size
    first.body, second.body = frame[:-6], frame[:6] + other
    for page in (first, second):
        page.header[3].value = len(page.body)
    assert plain_columns(anatomy.data(), PATH) is None
    second.body = other + bytes(pa.compress(b"", "zstd"))  # a frame more, of nothing: pyarrow takes it
    first.body = frame
    for page in (first, second):
        page.header[3].value = len(page.body)
    found = plain_columns(anatomy.data(), PATH)
    assert found is not None
    np.testing.assert_array_equal(found[0].T, NUMBERS)


def test_what_pandas_notes_is_left() -> None:
    frame = pd.DataFrame(NUMBERS.T, columns=[f"column_{k}" for k in range(len(NUMBERS))])
    sink = io.BytesIO()
    frame.to_parquet(sink, compression="zstd", engine="pyarrow", use_dictionary=False)
    assert plain_columns(sink.getvalue(), PATH) is None


@pytest.mark.parametrize("at", range(6))
def test_levels_that_are_not_all_ones_are_left(at: int) -> None:
    anatomy = Anatomy.of(written(table(NUMBERS), **PLAIN | {"compression": "none"}))
    body = bytearray(anatomy.chunks[3].pages[0].body)
    assert body[:6] == bytes([2, 0, 0, 0, 13 << 1, 1])
    body[at] ^= 1 if at != 4 else 2
    anatomy.chunks[3].pages[0].body = bytes(body)
    assert plain_columns(anatomy.data(), PATH) is None
