"""Signal files: every legal encoding gives the same pixels, every damaged file one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from gpucal.detectors import DETECTORS
from gpucal.errors import InputError, OutputError
from gpucal.reader import open_signal

TINY = replace(DETECTORS["AIRS-CH0"], shape=(4, 9), crop=(2, 7))
FRAMES = 23
Raw = NDArray[np.uint16]


def made(frames: int = FRAMES, most: int = 65_535) -> Raw:
    """Return (column, frame) counts that include the least and the greatest."""
    raw = np.random.default_rng(7).integers(0, most, (TINY.n_columns, frames), np.uint16, endpoint=True)
    raw[:, 0], raw[:, -1] = 0, most
    return raw


RAW = made()
INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


def cropped(raw: Raw) -> Raw:
    """Return (pixel, frame) counts inside the crop, without the package's own list of columns."""
    rows, width = TINY.shape
    return raw.reshape(rows, width, raw.shape[1])[:, slice(*TINY.crop)].reshape(TINY.n_pixels, raw.shape[1])


def column(values: Raw, kind: pa.DataType | None = None, gone: NDArray[np.bool_] | None = None) -> pa.Array:
    """Return counts as an Arrow array of some type, null where they are gone."""
    array = pa.array(values, mask=gone)
    if kind is None or not pa.types.is_dictionary(kind):
        return array.cast(kind) if kind else array
    coded = array.cast(kind.value_type).dictionary_encode()
    return pa.DictionaryArray.from_arrays(coded.indices.cast(kind.index_type), coded.dictionary)


def table(raw: Raw, kind: pa.DataType | None = None, names: Sequence[str] = (), null: bool = True) -> pa.Table:
    arrays = [column(values, kind) for values in raw]
    names = names or [f"column_{k}" for k in range(len(raw))]
    fields = [pa.field(name, array.type, null) for name, array in zip(names, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def frame(raw: Raw, index: pd.Index | None = None) -> pd.DataFrame:
    return pd.DataFrame(raw.T, columns=[f"column_{k}" for k in range(len(raw))], index=index)


def read(path: Path, pixels: slice = slice(None)) -> Raw:
    with open_signal(path, TINY).reader() as reader:
        return reader.read(pixels)


def refused(path: Path) -> str:
    """Open and read a file, which must fail with one line that names it and ends with a mend; return the problem."""
    with pytest.raises(InputError) as error:
        read(path)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    problem, _, mend = line.removeprefix(f"{path}: ").rpartition("; ")
    assert problem
    assert mend.startswith(("copy it again", "run again"))
    return problem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "AIRS-CH0_signal.parquet"


@pytest.mark.parametrize("rows", [1, 5, 1000], ids=lambda rows: f"groups-of-{rows}")
@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "lz4", "none"])
@pytest.mark.parametrize("dictionary", [True, False], ids=["dictionary", "plain"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_layouts(path: Path, rows: int, compression: str, dictionary: bool, version: str) -> None:
    options = {"compression": compression, "use_dictionary": dictionary, "data_page_version": version}
    pq.write_table(table(RAW), path, row_group_size=rows, **options)
    block = read(path)
    assert block.dtype == np.uint16
    np.testing.assert_array_equal(block, cropped(RAW))


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"])
@pytest.mark.parametrize("kind", [pa.uint16(), pa.int32(), pa.int64()], ids=str)
@pytest.mark.parametrize("page", [16, 1 << 20], ids=["many-pages", "one-page"])
def test_encodings(path: Path, encoding: str, kind: pa.DataType, page: int) -> None:
    options = {"column_encoding": encoding, "use_dictionary": False, "data_page_size": page, "write_batch_size": 4}
    pq.write_table(table(RAW, kind), path, **options)
    np.testing.assert_array_equal(read(path), cropped(RAW))


@pytest.mark.parametrize("store_schema", [True, False], ids=["arrow-schema", "no-arrow-schema"])
@pytest.mark.parametrize("null", [True, False], ids=["optional", "required"])
@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integer_types(path: Path, kind: pa.DataType, null: bool, store_schema: bool) -> None:
    raw = made(most=min(65_535, np.iinfo(kind.to_pandas_dtype()).max))
    pq.write_table(table(raw, kind, null=null), path, store_schema=store_schema, row_group_size=10)
    np.testing.assert_array_equal(read(path), cropped(raw))


@pytest.mark.parametrize("width", [pa.int8(), pa.int32()], ids=str)
@pytest.mark.parametrize("kind", [pa.uint16(), pa.int64()], ids=str)
@pytest.mark.parametrize("rows", [4, FRAMES])
def test_arrow_dictionaries(path: Path, width: pa.DataType, kind: pa.DataType, rows: int) -> None:
    pq.write_table(table(RAW, pa.dictionary(width, kind)), path, row_group_size=rows)
    np.testing.assert_array_equal(read(path), cropped(RAW))


def test_columns_of_different_types(path: Path) -> None:
    kinds = [pa.int32(), pa.uint16(), pa.int64(), pa.dictionary(pa.int8(), pa.int32()), pa.uint32()]
    arrays = [column(values, kinds[k % len(kinds)]) for k, values in enumerate(RAW)]
    pq.write_table(pa.Table.from_arrays(arrays, [f"column_{k}" for k in range(len(RAW))]), path)
    np.testing.assert_array_equal(read(path), cropped(RAW))


NAMES: Mapping[str, Sequence[str]] = {
    "all-empty": [""] * 36,
    "dotted": [f"a.b.{k}" for k in range(36)],
    "reversed": [f"column_{k}" for k in reversed(range(36))],
    "some-twice": [f"column_{k % 7}" for k in range(36)],
    "like-an-index": [f"__index_level_{k}__" for k in range(36)],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_columns_count_by_position(path: Path, names: Sequence[str]) -> None:
    pq.write_table(table(RAW, names=names), path)
    np.testing.assert_array_equal(read(path), cropped(RAW))


def with_index_first(path: Path) -> None:
    indexed = pa.Table.from_pandas(frame(RAW, pd.Index(np.arange(FRAMES) * 2.5, name="time")))
    names = [indexed.column_names[-1], *indexed.column_names[:-1]]
    pq.write_table(indexed.select(names).replace_schema_metadata(indexed.schema.metadata), path)


def with_metadata(text: bytes) -> Callable[[Path], None]:
    return lambda path: pq.write_table(table(RAW).replace_schema_metadata({b"pandas": text}), path)


def with_two_indexes(path: Path) -> None:
    index = pd.MultiIndex.from_arrays([np.arange(FRAMES), list("ab" * 11 + "c")], names=["frame", "kind"])
    frame(RAW, index).to_parquet(path)


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "pandas": lambda path: frame(RAW).to_parquet(path),
    "pandas-range-index-stored": lambda path: frame(RAW).to_parquet(path, index=True),
    "pandas-no-index": lambda path: frame(RAW, pd.Index(range(9, 9 + FRAMES))).to_parquet(path, index=False),
    "pandas-index-last": lambda path: frame(RAW, pd.Index(np.arange(FRAMES), name="time")).to_parquet(path),
    "pandas-unnamed-index": lambda path: frame(RAW, pd.Index(np.arange(FRAMES)[::-1])).to_parquet(path),
    "pandas-text-index": lambda path: frame(RAW, pd.Index(list("abcdefghijklmnopqrstuvw"))).to_parquet(path),
    "pandas-date-index": lambda path: frame(RAW, pd.date_range("2029", periods=FRAMES, name="t")).to_parquet(path),
    "pandas-index-first": with_index_first,
    "pandas-two-indexes": with_two_indexes,
    "pandas-nullable": lambda path: frame(RAW).astype("UInt16").to_parquet(path),
    "pandas-metadata-removed": lambda path: pq.write_table(pa.table(frame(RAW)).replace_schema_metadata(None), path),
    "polars": lambda path: pl.from_numpy(RAW.T, schema=[f"c{k}" for k in range(36)]).write_parquet(path),
    "polars-groups": lambda path: pl.from_numpy(RAW.T).write_parquet(path, row_group_size=6, compression="gzip"),
    "polars-wide": lambda path: pl.from_numpy(RAW.T).cast(pl.Int64).write_parquet(path, statistics=False),
    "metadata-not-json": with_metadata(b"{"),
    "metadata-not-text": with_metadata(b"\xff\xfe\xfd"),
    "metadata-null": with_metadata(b"null"),
    "metadata-list": with_metadata(b"[]"),
    "metadata-no-index-columns": with_metadata(b"{}"),
    "metadata-null-index-columns": with_metadata(b'{"index_columns": null}'),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_writers(path: Path, write: Callable[[Path], None]) -> None:
    write(path)
    np.testing.assert_array_equal(read(path), cropped(RAW))


@pytest.mark.parametrize(
    "text", ["0:1", "19:20", "3:11", "0:0", "5:5", "18:99", "50:60", "::3", "-4:", "::-1", "12:2:-4", ":"]
)
def test_slices(path: Path, text: str) -> None:
    pixels = slice(*(int(part) if part else None for part in text.split(":")))
    pq.write_table(table(RAW), path, row_group_size=10)
    np.testing.assert_array_equal(read(path, pixels), cropped(RAW)[pixels], strict=True)


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_few_frames(path: Path, frames: int) -> None:
    raw = np.arange(36 * frames, dtype=np.uint16).reshape(36, frames)
    pq.write_table(table(raw), path)
    assert open_signal(path, TINY).n_frames == frames
    np.testing.assert_array_equal(read(path), cropped(raw))


def test_threads_each_with_a_reader(path: Path) -> None:
    raw = made(frames=400)
    pq.write_table(table(raw), path, row_group_size=90, compression="zstd")
    signal = open_signal(path, TINY)

    def work(seed: int) -> bool:
        firsts = np.random.default_rng(seed).integers(0, TINY.n_pixels, 25)
        with signal.reader() as reader:
            blocks = [(slice(k, k + 3), reader.read(slice(k, k + 3))) for k in firsts]
        return all(np.array_equal(block, cropped(raw)[pixels]) for pixels, block in blocks)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(12)))


@pytest.mark.parametrize("size", [0, 1, 5, 11, 12, 100, 4000])
def test_random_bytes(path: Path, size: int) -> None:
    path.write_bytes(np.random.default_rng(size).bytes(size))
    assert "Parquet file" in refused(path)


@pytest.mark.parametrize("middle", [b"", b"\0" * 40, b"\xff" * 40], ids=["none", "zeros", "ones"])
@pytest.mark.parametrize("length", [0, 1, 40, 41, 2**32 - 1])
def test_magic_around_nonsense(path: Path, middle: bytes, length: int) -> None:
    path.write_bytes(b"PAR1" + middle + length.to_bytes(4, "little") + b"PAR1")
    assert refused(path)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95, 0.999])
def test_truncated(path: Path, kept: float) -> None:
    pq.write_table(table(RAW), path)
    os.truncate(path, int(path.stat().st_size * kept))
    assert "Parquet file" in refused(path)


def split(path: Path) -> tuple[bytes, bytes]:
    """Return a file's whole content, and its footer with length and magic."""
    content = path.read_bytes()
    return content, content[-8 - int.from_bytes(content[-8:-4], "little") :]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x15"], ids=["zeros", "ones", "thrift"])
@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_overwritten_pages(path: Path, compression: str, fill: bytes, version: str) -> None:
    pq.write_table(table(RAW), path, compression=compression, data_page_version=version)
    content, footer = split(path)
    path.write_bytes(content[:4] + fill * (len(content) - len(footer) - 4) + footer)
    assert open_signal(path, TINY).n_frames == FRAMES
    assert "decoded" in refused(path)


def test_overwritten_footer(path: Path) -> None:
    pq.write_table(table(RAW), path)
    content, footer = split(path)
    path.write_bytes(content[: -len(footer)] + b"\xff" * (len(footer) - 8) + footer[-8:])
    assert "cannot be decoded" in refused(path)


@pytest.mark.parametrize("what", ["missing", "folder", "in-a-file"])
def test_no_file(path: Path, what: str) -> None:
    if what == "folder":
        path.mkdir()
    elif what == "in-a-file":
        path.write_bytes(b"")
        path = path / "inside"
    assert refused(path)


@pytest.mark.parametrize("columns", [0, 1, 20, 35, 37, 72])
def test_wrong_number_of_columns(path: Path, columns: int) -> None:
    pq.write_table(table(np.zeros((columns, 4), np.uint16)), path)
    assert refused(path).startswith(f"has {columns} columns, expected 36")
    frame(np.zeros((columns, 4), np.uint16), pd.Index(list("abcd"), name="time")).to_parquet(path)
    assert refused(path).startswith(f"has {columns} columns, expected 36")


KINDS = {
    "float": pa.float32(),
    "double": pa.float64(),
    "text": pa.string(),
    "bytes": pa.binary(),
    "bool": pa.bool_(),
    "decimal": pa.decimal128(7, 2),
    "date": pa.date32(),
    "dictionary-of-text": pa.dictionary(pa.int8(), pa.string()),
    "null": pa.null(),
    "list": pa.list_(pa.uint16()),
    "struct": pa.struct([("a", pa.uint16()), ("b", pa.uint16())]),
}


@pytest.mark.parametrize("at", [0, 17, 35], ids=["outside-crop", "middle", "last"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_columns_that_are_no_integers(path: Path, kind: pa.DataType, at: int) -> None:
    good = table(RAW)
    pq.write_table(good.set_column(at, "bad", pa.nulls(FRAMES, kind)), path)
    assert "expected raw counts" in refused(path)


@pytest.mark.parametrize("kind", [pa.uint16(), pa.int64(), pa.dictionary(pa.int8(), pa.uint16())], ids=str)
@pytest.mark.parametrize("at", [0, FRAMES - 1, slice(None)], ids=["first", "last", "all"])
def test_nulls(path: Path, kind: pa.DataType, at: int | slice) -> None:
    gone = np.zeros(FRAMES, bool)
    gone[at] = True
    pq.write_table(table(RAW).set_column(11, "holes", column(RAW[11], kind, gone)), path)
    assert f"column 11 holds {gone.sum()} null" in refused(path)


UNFIT: Mapping[pa.DataType, Sequence[int]] = {
    pa.int8(): [-1],
    pa.int16(): [-1, -32_768],
    pa.int32(): [-1, 65_536],
    pa.uint32(): [65_536, 2**32 - 1],
    pa.int64(): [-(2**63), 2**32],
    pa.uint64(): [65_536, 2**64 - 1],
    pa.dictionary(pa.int8(), pa.int32()): [-1, 65_536],
}


@pytest.mark.parametrize(
    ("kind", "count"), [(kind, count) for kind, counts in UNFIT.items() for count in counts], ids=str
)
def test_counts_that_do_not_fit(path: Path, kind: pa.DataType, count: int) -> None:
    values = np.array([0] * (FRAMES - 1) + [count], np.uint64 if count > 2**63 else np.int64)
    pq.write_table(table(RAW).set_column(11, "wide", column(values, kind)), path, row_group_size=8)
    assert f"column 11 holds counts from {min(count, 0)} to {max(count, 0)}" in refused(path)


def test_what_is_outside_the_crop_is_not_decoded(path: Path) -> None:
    pq.write_table(table(RAW).set_column(0, "outside", pa.array([-1] * FRAMES)), path)
    np.testing.assert_array_equal(read(path), cropped(RAW))


@pytest.mark.parametrize(
    "own", [ValueError("a"), OSError(28, "disk is full"), OutputError("b"), MemoryError()], ids=repr
)
def test_callers_own_errors_pass_through_a_reader(path: Path, own: Exception) -> None:
    pq.write_table(table(RAW), path)
    with pytest.raises(type(own)) as error, open_signal(path, TINY).reader():
        raise own
    assert error.value is own


def test_a_file_gone_after_opening(path: Path) -> None:
    pq.write_table(table(RAW), path)
    signal = open_signal(path, TINY)
    path.unlink()
    for use in (signal.check_unchanged, lambda: signal.reader().__enter__()):
        with pytest.raises(InputError, match="; ") as error:
            use()
        assert str(path) in str(error.value)


def test_check_unchanged(path: Path, tmp_path: Path) -> None:
    same_size = tmp_path / "other.parquet"
    for file, raw in ((path, RAW), (same_size, RAW ^ 1)):
        pq.write_table(table(raw), file, compression="none", use_dictionary=False)
    assert same_size.stat().st_size == path.stat().st_size
    signal = open_signal(path, TINY)
    shutil.copy(path, tmp_path / "copy.parquet")
    os.utime(path, (1, 1))
    signal.check_unchanged()
    shutil.copy(tmp_path / "copy.parquet", path)
    signal.check_unchanged()
    content = path.read_bytes()
    for other in (same_size.read_bytes(), content + content[-8:], content[:-1], b""):
        path.write_bytes(other)
        with pytest.raises(InputError) as error:
            signal.check_unchanged()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    path.write_bytes(content)
    signal.check_unchanged()
    assert path.read_bytes() == content


def test_fingerprint(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.parquet"
    pq.write_table(table(RAW), path)
    shutil.copyfile(path, elsewhere)
    first = open_signal(path, TINY).fingerprint
    assert open_signal(elsewhere, TINY).fingerprint == first
    for other in (made(FRAMES + 1), np.zeros_like(RAW)):
        pq.write_table(table(other), elsewhere)
        assert open_signal(elsewhere, TINY).fingerprint != first
