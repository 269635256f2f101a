"""Synthetic signal files: the pages, statistics and indexes that Polars gives the published ones."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import compact
import numpy as np
import polars as pl
import polars_files
import pyarrow.parquet as pq
import pytest
from mutants import Anatomy, unpacked
from numpy.typing import NDArray

from gpucal.inputs.parquet.footer import parse_footer
from gpucal.inputs.parquet.thrift import ABSENT
from gpucal.synthetic import published_parquet
from gpucal.synthetic.index_runs import hybrid
from gpucal.synthetic.published_parquet import write_signal

LAYOUTS = ("2024", "2025")
DATA, DICTIONARY = 0, 2


def written(columns: NDArray[Any], folder: Path, layout: str = "2025", threads: int = 1) -> bytes:
    with ThreadPoolExecutor(threads) as pool:
        write_signal(folder / "signal.parquet", columns.astype(np.uint16), layout, pool)
    return (folder / "signal.parquet").read_bytes()


def noise(n_columns: int, n_rows: int, values: int = 40) -> NDArray[np.uint16]:
    return np.random.default_rng(n_rows).integers(450, 450 + values, (n_columns, n_rows)).astype(np.uint16)


def runs(stream: bytes, bits: int) -> list[tuple[str, int]]:
    """Tell what the runs are: literal ones and their groups of eight, or the length of one value's."""
    found, at = [], 0
    while at < len(stream):
        head, at = compact.read_varint(stream, at)
        found.append(("groups", head >> 1) if head & 1 else ("times", head >> 1))
        at += (head >> 1) * bits if head & 1 else (bits + 7) // 8
    assert at == len(stream)
    return found


def content(data: bytes, column: int = 0) -> tuple[int, list[tuple[str, int]]]:
    """Return the bit width and the runs of a column's indices."""
    chunk = Anatomy.of(data).chunks[column]
    body = unpacked(chunk, chunk.pages[-1])
    at = 4 + int.from_bytes(body[:4], "little")
    return body[at], runs(body[at + 1 :], body[at])


# ---------------------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 24, 300, 8191, 8192, 8193, 8197, 16_384, 16_391])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_come_back(tmp_path: Path, rows: int, layout: str) -> None:
    row = np.arange(rows)
    still = np.where(row % 700 < 600, 450 + row // 700, noise(1, rows)[0])
    columns = np.array([*noise(2, rows), *noise(1, rows, 300), still, np.full(rows, 65_535), row, row % 2 * 65_535])
    data = written(columns, tmp_path, layout)
    by_pyarrow, by_polars = pq.read_table(io.BytesIO(data)), pl.read_parquet(io.BytesIO(data))
    names = [f"column_{k}" for k in range(len(columns))]
    assert by_pyarrow.column_names == by_polars.columns == names
    assert {str(kind) for kind in by_pyarrow.schema.types} == {"uint16"}
    assert set(by_polars.dtypes) == {pl.UInt16}
    assert all(field.nullable for field in by_pyarrow.schema)
    for name, column in zip(names, columns, strict=True):
        np.testing.assert_array_equal(by_pyarrow[name].to_numpy(), column)
        np.testing.assert_array_equal(by_polars[name].to_numpy(), column)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n_columns", "n_rows"), [(1, 0), (3, 0), (1, 2)])
def test_smallest(tmp_path: Path, layout: str, n_columns: int, n_rows: int) -> None:
    data = written(noise(n_columns, n_rows), tmp_path, layout)
    stored = pq.ParquetFile(io.BytesIO(data))
    assert stored.metadata.num_row_groups == (n_rows > 0)
    # ParquetFile.read of pyarrow 18 refuses a file without row groups
    assert pq.read_table(io.BytesIO(data)).shape == (n_rows, n_columns)
    assert pl.read_parquet(io.BytesIO(data)).shape == (n_rows, n_columns)


def test_every_count(tmp_path: Path) -> None:
    columns = np.random.default_rng(0).permutation(np.resize(np.arange(65_536), 90_000))[None]
    for layout in LAYOUTS:
        data = written(columns, tmp_path, layout)
        np.testing.assert_array_equal(pq.read_table(io.BytesIO(data))["column_0"].to_numpy(), columns[0])
        bits, found = content(data)
        assert bits == 16
        assert found == [("groups", 1024)] * 10 + [("groups", 1010)]


def test_bytes_do_not_depend_on_threads_or_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = noise(50, 90)
    columns[3] = 500
    for layout in LAYOUTS:
        made = [written(columns, tmp_path, layout, threads) for threads in (1, 3)]
        monkeypatch.setattr(published_parquet, "_BLOCK", 200)
        made += [written(columns, tmp_path, layout, threads) for threads in (1, 3)]
        monkeypatch.undo()
        assert len(set(made)) == 1


# ------------------------------------------------------------------------------------------------------------- the form


@pytest.mark.parametrize("kind", ["long", "short"])
@pytest.mark.parametrize("version", polars_files.VERSIONS)
def test_pages_are_those_of_polars(tmp_path: Path, version: str, kind: str) -> None:
    columns = polars_files.columns(kind)
    data = written(columns, tmp_path, polars_files.VERSIONS[version])
    ours, theirs = Anatomy.of(data), Anatomy.of(polars_files.path_of(version, kind).read_bytes())
    assert len(ours.chunks) == len(theirs.chunks) == len(columns)
    for one, other in zip(ours.chunks, theirs.chunks, strict=True):
        assert [unpacked(one, page) for page in one.pages] == [unpacked(other, page) for page in other.pages]
        # all that is said but sizes of frames and offsets: these depend on the version of zstd
        for page, their_page in zip(one.pages, other.pages, strict=True):
            assert page.header.pop(3).value == len(page.body)
            del their_page.header[3]
            assert page.header == their_page.header
        for place in (7, 9):
            del one.metadata[place], other.metadata[place]
        assert one.metadata == other.metadata
    for footer in (ours.footer, theirs.footer):
        group = footer[4].value[0].value
        del group[1], group[6]  # its columns, compared above, and their size
        (pair,) = footer.pop(5).value
        assert pair.value[1].value == b"ARROW:schema"
    assert ours.footer == theirs.footer


def test_where_pages_are(tmp_path: Path) -> None:
    columns = np.array([*noise(2, 300), np.arange(300)])
    data = written(columns, tmp_path)
    end = len(data) - 8
    begin = end - int.from_bytes(data[end : end + 4], "little")
    footer = parse_footer(data, begin, end)
    assert (footer.dictionary == ABSENT).all()
    assert (footer.codec == 6).all()
    (group,) = compact.read_struct(data, begin)[0][4].value
    assert group.value[6].value == footer.compressed.sum()
    for place, (column, counts) in enumerate(zip(group.value[1].value, columns, strict=True)):
        said = {number: field.value for number, field in column.value.items()}
        start, size = said[3][9].value, said[3][7].value
        assert start == footer.data[0, place]
        assert data[said[2] :].startswith(compact.write_struct(said[3]))
        assert said[2] == start + size
        kinds = []
        while start < said[2]:
            last, (header, after) = start, compact.read_struct(data, start)
            kinds.append(header[1].value)
            assert 4 not in header  # checksum
            assert data[after : after + 4] == b"\x28\xb5\x2f\xfd"
            start = after + header[3].value
        assert kinds == ([DICTIONARY, DATA] if place < 2 else [DATA])
        offsets, behind = compact.read_struct(data, said[4])
        assert behind == said[4] + said[5]
        (page,) = offsets[1].value
        assert [page.value[k].value for k in (1, 2, 3)] == [last, start - last, 0]
        index, behind = compact.read_struct(data, said[6])
        assert behind == said[6] + said[7]
        low, high = (int.from_bytes(index[k].value[0].value, "little") for k in (2, 3))
        assert (low, high) == (counts.min(), counts.max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "groups"), [(24, [3]), (8191, [1024]), (8193, [1024, 1]), (16_400, [1024, 1024, 2])])
def test_literal_runs(tmp_path: Path, layout: str, rows: int, groups: list[int]) -> None:
    columns = np.arange(rows)[None] % 13
    assert content(written(columns, tmp_path, layout)) == (4, [("groups", n) for n in groups])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_value_takes_no_bits(tmp_path: Path, layout: str) -> None:
    assert content(written(np.full((1, 9), 7), tmp_path, layout)) == (0, [("times", 9)])
    assert content(written(np.full((1, 8), 7), tmp_path, layout)) == (0, [("groups", 1)])


@pytest.mark.parametrize(
    ("before", "repeats", "after", "expected"),
    [
        (0, 8, 8, [("groups", 2)]),
        (0, 9, 0, [("times", 9)]),
        (3, 13, 1, [("groups", 3)]),
        (3, 14, 1, [("groups", 1), ("times", 9), ("groups", 1)]),
        (8184, 9, 0, [("groups", 1023), ("times", 9)]),
        (8185, 15, 0, [("groups", 1024), ("groups", 1)]),
        (8185, 16, 3, [("groups", 1024), ("times", 9), ("groups", 1)]),
        (8200, 40, 8200, [("groups", 1024), ("groups", 1), ("times", 40), ("groups", 1024), ("groups", 1)]),
    ],
)
def test_repeats(before: int, repeats: int, after: int, expected: list[tuple[str, int]]) -> None:
    indices = [k % 2 for k in range(before)] + [2] * repeats + [k % 2 for k in range(after)]
    assert runs(hybrid(np.array(indices, np.uint16), 2), 2) == expected


def test_dictionaries_of_either_year(tmp_path: Path) -> None:
    columns = np.array([[9, 3, 9, 7, 3, 9, 9, 3, 9, 7, 3, 9]])
    words = {}
    for layout in LAYOUTS:
        (chunk,) = Anatomy.of(written(columns, tmp_path, layout)).chunks
        words[layout] = np.frombuffer(unpacked(chunk, chunk.pages[0]), "<i4").tolist()
    assert words == {"2024": [9, 3, 7], "2025": [3, 7, 9]}


@pytest.mark.parametrize(
    ("rows", "values", "coded"),
    [
        (4, 3, {"2024": True, "2025": True}),
        (4, 4, {"2024": False, "2025": True}),
        (256, 256, {"2024": False, "2025": True}),
        (400, 257, {"2024": True, "2025": True}),
        (400, 300, {"2024": True, "2025": False}),
        (400, 301, {"2024": False, "2025": False}),
    ],
)
def test_plain_where_a_dictionary_saves_little(tmp_path: Path, rows: int, values: int, coded: dict[str, bool]) -> None:
    columns = np.arange(rows)[None] % values
    for layout in LAYOUTS:
        (chunk,) = Anatomy.of(written(columns, tmp_path, layout)).chunks
        assert [page.number(1) for page in chunk.pages] == [DICTIONARY] * coded[layout] + [DATA]
