"""Pages: what gpucal's own decoder takes and what it leaves to pyarrow, in a table; what is impossible is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutants import RAW, Anatomy, corpus, table, written
from paged import PATH, table_of

from gpucal.errors import InputError
from gpucal.inputs.parquet.footer import end_of
from gpucal.inputs.parquet.layout import DATA_2, DICTIONARY, FIRST, KIND, PADDING, TO, VALUES, WANTED
from gpucal.inputs.parquet.pages import page_table, read_footer

GOOD = corpus()


def test_the_error_names_the_column() -> None:
    anatomy = Anatomy.of(GOOD["pyarrow-snappy-1.0-plain"])
    anatomy.chunks[5].pages[0].header[1].value = 1  # an index page
    data = anatomy.data()
    with pytest.raises(InputError, match=r"signal.parquet: column 5 has a page of an unknown type; copy it again"):
        table_of(data, np.arange(8))
    assert not table_of(data, np.array([0, 4, 6])).unfit


@pytest.mark.parametrize("order", [[0, 1, 2], [6, 2, 4], [7]], ids=str)
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_stand_by_column_and_row(order: list[int], dictionary: bool) -> None:
    data = written(table(), row_group_size=5, data_page_size=8, write_batch_size=2, use_dictionary=dictionary)
    found = table_of(data, np.array(order))
    assert (found.columns.tolist(), found.n_rows, found.unfit) == (order, 14, "")
    assert (found.firsts[0], found.firsts[-1], len(found.firsts)) == (0, len(found.pages), 1 + len(order))
    per_group = [5, 5, 4]
    for first, last in zip(found.firsts, found.firsts[1:], strict=False):
        pages = found.pages[first:last]
        starts = np.flatnonzero(pages[:, FIRST])
        assert len(starts) == 3
        assert ((pages[starts, KIND] == DICTIONARY) == dictionary).all()
        for start, stop, rows in zip(starts, [*starts[1:], len(pages)], per_group, strict=True):
            here = pages[start:stop]
            assert here[here[:, KIND] != DICTIONARY, VALUES].sum() == rows
            assert np.count_nonzero(here[:, KIND] != DICTIONARY) > 1
    ends = found.pages[:, TO] + found.pages[:, WANTED] + PADDING
    assert (found.pages[1:, TO] >= ends[:-1]).all()
    assert found.sizes.tolist() == [
        (np.append(found.pages[:, TO], ends[-1])[last] - found.pages[first, TO])
        for first, last in zip(found.firsts, found.firsts[1:], strict=False)
    ]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_both_versions_of_data_pages(version: str) -> None:
    found = table_of(written(table(), data_page_version=version, compression="zstd"), np.arange(8))
    assert not found.unfit
    assert (DATA_2 in found.pages[:, KIND]) == (version == "2.0")


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "brotli"},
        {"compression": "lz4"},
        {"use_dictionary": False, "column_encoding": "DELTA_BINARY_PACKED"},
        {"use_dictionary": False, "column_encoding": "BYTE_STREAM_SPLIT"},
    ],
    ids=str,
)
def test_other_codecs_and_encodings_are_left_to_others(options: dict[str, Any]) -> None:
    kind = "codec" if "compression" in options else "encoding"
    assert table_of(written(table(), **options), np.arange(8)).unfit.startswith(f"pages of {kind} ")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.5] * 9),
        pa.array(["a"] * 9),
        pa.array([[1]] * 9),
        pa.array([{"x": 1}] * 9),
        pa.array([1] * 9, pa.date32()),
        pa.array([1] * 9, pa.time32("ms")),
        pa.array([1] * 9, pa.duration("s")),
        pa.array([True] * 9),
        pa.array([1] * 9, pa.int64()),  # as durations are, but for Arrow's own schema
    ],
    ids=str,
)
def test_other_columns_are_left_to_others(column: pa.Array) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array([3] * 9, pa.uint16()), "b": column}), sink)
    assert table_of(sink.getvalue(), np.arange(2)).unfit
    nested = pa.types.is_list(column.type) or pa.types.is_struct(column.type)
    assert bool(table_of(sink.getvalue(), np.arange(1)).unfit) == nested  # a column beside it does not matter


def test_whole_numbers_of_64_bits_without_arrow_s_schema_are_taken() -> None:
    wide = table(RAW.astype(np.int64))
    assert table_of(written(wide), np.arange(8)).unfit
    assert not table_of(written(wide, store_schema=False), np.arange(8)).unfit


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_sizes_that_contradict_each_other(compression: str, strict: bool) -> None:
    """Some are left to pyarrow, and refused by strict checks."""
    anatomy = Anatomy.of(written(table(), compression=compression))
    anatomy.chunks[2].pages[0].header[7].value[1].value += 1  # values of a dictionary
    data = anatomy.data()
    footer = read_footer(end_of(io.BytesIO(data), PATH), len(data), PATH)
    if strict:
        with pytest.raises(InputError, match="column 2 has a page whose size contradicts its header"):
            page_table(data, footer, np.arange(8), PATH, strict=True)
    else:
        assert page_table(data, footer, np.arange(8), PATH).unfit == "pages whose sizes contradict each other"


@pytest.mark.parametrize(
    ("field", "wrong"), [(2, 1), (2, -1), (3, 13), (3, 15), (3, -1), (3, None), (4, None), (5, 999), (6, 1), (6, None)]
)
def test_what_no_flat_column_has_is_left_to_others(field: int, wrong: int | None) -> None:
    """Fields of the second version of data pages: nulls, rows, encoding, bytes of levels."""
    anatomy = Anatomy.of(written(table(), data_page_version="2.0", compression="snappy"))
    fields = anatomy.chunks[3].pages[1].header[8].value
    if wrong is None:
        del fields[field]
    else:
        fields[field].value = wrong
    assert table_of(anatomy.data(), np.arange(8)).unfit == "page headers that lack something or declare nulls"
    assert not table_of(anatomy.data(), np.arange(3)).unfit
