"""Signal files: every legal encoding gives the same pixels, every damaged file one line."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import compact
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compact import BINARY, STRUCT, Value
from mutants import Anatomy, written
from numpy.typing import NDArray
from paged import Binned, by_counts, same_bits, telling

from gpucal.backends.pagewise import decode
from gpucal.errors import ConfigError, InputError
from gpucal.inputs import counts as counts_module
from gpucal.inputs import signal_file
from gpucal.inputs.counts import takes_pages
from gpucal.inputs.parquet import pages
from gpucal.inputs.signal_file import Loaded, Signal, open_signal
from gpucal.settings.detectors import DETECTORS

TINY = replace(DETECTORS["AIRS-CH0"], shape=(4, 9), crop=(2, 7))
FRAMES = 24  # even: sums of pairs tell of the last frame, too
LETTERS = list("abcdefghijklmnopqrstuvwx")
EVERY = slice(0, TINY.n_pixels)
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
    if not (kind and pa.types.is_dictionary(kind)):
        return array.cast(kind or array.type)
    coded = array.cast(kind.value_type).dictionary_encode()
    return pa.DictionaryArray.from_arrays(coded.indices.cast(kind.index_type), coded.dictionary)


def table(raw: Raw, kind: pa.DataType | None = None, names: Sequence[str] = (), null: bool = True) -> pa.Table:
    arrays = [column(values, kind) for values in raw]
    names = names or [f"column_{k}" for k in range(len(raw))]
    fields = [pa.field(name, array.type, null) for name, array in zip(names, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def frame(raw: Raw, index: pd.Index | None = None) -> pd.DataFrame:
    return pd.DataFrame(raw.T, columns=[f"column_{k}" for k in range(len(raw))], index=index)


WAYS = {"pages": True, "pyarrow": False}
"""Whether pages are binned where gpucal takes them, or decoded by pyarrow."""


def read(path: Path, way: str, *blocks: slice, strict: bool = False) -> list[Raw] | list[Binned]:
    """Read some blocks: counts by pyarrow, sums of pairs from pages that gpucal takes."""
    loaded = loaded_apart(open_signal(path, TINY, strict=strict), used(path))
    if loaded.table.unfit or not WAYS[way]:
        found = list(loaded.counts(blocks))
        assert [pixels for pixels, _ in found] == list(blocks)
        return [counts for _, counts in found]
    plan, scratch, binned = telling(TINY.n_pixels, loaded.table.n_rows), decode.Scratch(), []
    for pixels in blocks:
        out = np.full((pixels.stop - pixels.start, plan.n_bins), -1.0)
        saturated, _ = decode.bin_pages(plan, pixels, loaded, out, scratch)
        binned.append((out, saturated))
    return binned


def check(found: Raw | Binned, counts: Raw, pixels: slice = EVERY) -> None:
    """Check that what a block was read as is these pixels of the counts, (pixel, frame), and nothing else."""
    if not isinstance(found, tuple):
        np.testing.assert_array_equal(found, counts[pixels], strict=True)
        return
    sums, saturated = by_counts(telling(*counts.shape), counts)
    assert same_bits(found[0], sums[pixels])
    np.testing.assert_array_equal(found[1], saturated[pixels])


def same(path: Path, raw: Raw) -> None:
    """Check that every way gives exactly the cropped pixels."""
    for way in WAYS:
        (found,) = read(path, way, EVERY)
        check(found, cropped(raw))


def by_own(path: Path) -> bool:
    """Tell whether gpucal's decoder takes a file."""
    return open_signal(path, TINY).load().table.unfit == ""


def refused(path: Path, problem: str, pages: str | None = None) -> None:
    """Check that every way fails with one line: the file, the problem, the mend."""
    for way in WAYS:
        with pytest.raises(InputError) as error:
            read(path, way, EVERY)
        line = str(error.value)
        assert "\n" not in line
        assert line.startswith(f"{path}: ")
        assert (pages if pages and way == "pages" else problem) in line.removeprefix(f"{path}: ")
        assert line.endswith("; copy it again from the competition data")


def used(path: Path, byte: int = 0xA5) -> NDArray[np.uint8]:
    """Return memory for a file that holds something else."""
    return np.full(path.stat().st_size + 100, byte, np.uint8)


def loaded_apart(signal: Signal, memory: NDArray[np.uint8]) -> Loaded:
    """Load a file without what is between the pixels' columns, as it is done where that is long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "_GAP", 0)
        return signal.load(memory)


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
    same(path, RAW)


@pytest.mark.parametrize("rows", [5, 1000], ids=lambda rows: f"groups-of-{rows}")
def test_only_the_pixels_columns_are_read(path: Path, rows: int) -> None:
    pq.write_table(table(RAW), path, row_group_size=rows, compression="zstd")
    memory, whole = used(path), np.fromfile(path, np.uint8)
    file = pq.ParquetFile(path).metadata
    signal = open_signal(path, TINY)
    loaded = loaded_apart(signal, memory)
    check(read(path, "pages", EVERY)[0], cropped(RAW))
    beside = sorted(set(range(TINY.n_columns)) - set(signal.columns.tolist()))
    for place in range(TINY.n_columns):
        for group in range(file.num_row_groups):
            chunk = file.row_group(group).column(place)
            begin = chunk.dictionary_page_offset
            here = slice(begin, begin + chunk.total_compressed_size)
            expected = np.full_like(whole[here], 0xA5) if place in beside else whole[here]
            np.testing.assert_array_equal(loaded.data[here], expected)
    assert not loaded.table.unfit
    assert (memory[path.stat().st_size :] == 0xA5).all()


@pytest.mark.parametrize("more", [-70, -9, -1, 1, 9, 70])
@pytest.mark.parametrize("place", [6, 7, 10])  # the last column of a row of pixels, one in between, and one beside
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("writer", ["parquet-cpp-arrow version 26.0.1", "parquet-mr version 1.2.8"])
def test_what_a_damaged_file_holds_does_not_depend_on_the_memory(
    path: Path, writer: str, compression: str, place: int, more: int
) -> None:
    """Of old writers' files pyarrow reads up to 100 bytes behind a column chunk, whose size may lack a header."""
    data = written(table(RAW), compression=compression)
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = compact.read_struct(data, begin)
    footer[4].value[0].value[1].value[place].value[3].value[7].value += more  # bytes of the column chunk
    footer[6] = Value(BINARY, writer.encode())
    end = compact.write_struct(footer)
    path.write_bytes(data[:begin] + end + len(end).to_bytes(4, "little") + b"PAR1")
    ends = []
    for byte in (0, 0x15, 0xA5, 0xFF):
        try:
            loaded = loaded_apart(open_signal(path, TINY), used(path, byte))
            ((_, counts),) = loaded.counts([EVERY])
            ends.append((loaded.table.unfit, loaded.table.pages.tobytes() + counts.tobytes()))
        except InputError as error:
            ends.append((str(error), b""))
    assert len(set(ends)) == 1


@pytest.mark.parametrize("groups", [61, 240])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"use_dictionary": False}], ids=str)
def test_many_row_groups(path: Path, options: dict[str, Any], groups: int) -> None:
    raw = made(2 * groups)
    pq.write_table(table(raw), path, row_group_size=2, **options)
    assert pq.ParquetFile(path).num_row_groups == groups
    assert by_own(path)
    same(path, raw)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_footer_that_is_too_long_for_pyarrow(path: Path, compression: str) -> None:
    """As 33 row groups of AIRS-CH0 have: gpucal takes their pages, if they are such as it takes."""
    anatomy = Anatomy.of(written(table(RAW), compression=compression))
    note = {1: Value(BINARY, b"note"), 2: Value(BINARY, bytes(2**25))}
    anatomy.footer[5].value.append(Value(STRUCT, note))
    path.write_bytes(anatomy.data())
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little")
    assert footer > 2**25
    if compression == "zstd":
        assert by_own(path)
        (found,) = read(path, "pages", EVERY)
        check(found, cropped(RAW))
    for way in ["pyarrow"] if compression == "zstd" else WAYS:
        with pytest.raises(InputError) as error:
            read(path, way, EVERY)
        said = f"has a footer of {footer + 8:,} bytes, expected at most 33,554,432; save it with fewer row groups"
        assert str(error.value) == f"{path}: {said}"


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"])
@pytest.mark.parametrize("kind", [pa.uint16(), pa.int32(), pa.int64()], ids=str)
@pytest.mark.parametrize("page", [16, 1 << 20], ids=["many-pages", "one-page"])
def test_encodings(path: Path, encoding: str, kind: pa.DataType, page: int) -> None:
    options = {"column_encoding": encoding, "use_dictionary": False, "data_page_size": page, "write_batch_size": 4}
    pq.write_table(table(RAW, kind), path, **options)
    same(path, RAW)


@pytest.mark.parametrize("store_schema", [True, False], ids=["arrow-schema", "no-arrow-schema"])
@pytest.mark.parametrize("null", [True, False], ids=["optional", "required"])
@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integer_types(path: Path, kind: pa.DataType, null: bool, store_schema: bool) -> None:
    raw = made(most=min(65_535, np.iinfo(kind.to_pandas_dtype()).max))
    pq.write_table(table(raw, kind, null=null), path, store_schema=store_schema, row_group_size=10)
    same(path, raw)


@pytest.mark.parametrize("width", [pa.int8(), pa.int32()], ids=str)
@pytest.mark.parametrize("kind", [pa.uint16(), pa.int64()], ids=str)
@pytest.mark.parametrize("rows", [4, FRAMES])
def test_arrow_dictionaries(path: Path, width: pa.DataType, kind: pa.DataType, rows: int) -> None:
    pq.write_table(table(RAW, pa.dictionary(width, kind)), path, row_group_size=rows)
    same(path, RAW)


def test_columns_of_different_types(path: Path) -> None:
    arrays = [column(values, INTEGERS[3 + k % 5]) for k, values in enumerate(RAW)]
    pq.write_table(pa.Table.from_arrays(arrays, [f"column_{k}" for k in range(len(RAW))]), path)
    same(path, RAW)


NAMES: Mapping[str, Sequence[str]] = {
    "all-empty": [""] * 36,
    "dotted": [f"a.b.{k}" for k in range(36)],
    "some-twice": [f"column_{k % 7}" for k in range(36)],
    "like-an-index": [f"__index_level_{k}__" for k in range(36)],
    # nearly complete sets: those of another order that lack a number or write one otherwise
    "another-prefix": [f"pixel_{k}" for k in reversed(range(36))],
    "from-one": [f"column_{k}" for k in range(36, 0, -1)],
    "one-missing": [f"column_{k}" for k in (40, *range(34, -1, -1))],
    "one-twice": [f"column_{k}" for k in (1, *range(34, -1, -1))],
    "two-kinds": [f"column_{k}" if k else "0" for k in reversed(range(36))],
    **{
        f"zero-as-{zero!a}": [f"{prefix}{k or zero}" for k in reversed(range(36))]
        for prefix, zero in [("column_", "00"), ("column_", "\u0660"), ("", " 0"), ("", "+0"), ("", "-0"), ("", "0.0")]
    },
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_columns_count_by_position(path: Path, names: Sequence[str]) -> None:
    pq.write_table(table(RAW, names=names), path)
    same(path, RAW)


def alphabetical(prefix: str = "column_", count: int = 36) -> list[int]:
    """Return the order of pixels in a file whose writer sorts columns by name."""
    return sorted(range(count), key=lambda k: f"{prefix}{k}")


ORDERS: Mapping[str, Sequence[int]] = {
    "alphabetical": alphabetical(),
    "reversed": range(35, -1, -1),
    "two-swapped": [*range(20), 21, 20, *range(22, 36)],
    "last-first": [35, *range(35)],
    "any": np.random.default_rng(3).permutation(36).tolist(),
}


@pytest.mark.parametrize("prefix", ["column_", ""])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("rows", [5, 1000], ids=lambda rows: f"groups-of-{rows}")
def test_numbered_columns_in_any_order(path: Path, order: Sequence[int], prefix: str, rows: int) -> None:
    names = [f"{prefix}{k}" for k in order]
    pq.write_table(table(RAW[list(order)], names=names), path, row_group_size=rows, compression="zstd")
    same(path, RAW)
    for way in WAYS:
        (found,) = read(path, way, EVERY, strict=True)
        check(found, cropped(RAW))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("edges", [[0, 1], [19, 20], [3, 11], [0, 5, 10, 15, 20], [7, 8, 10, 20]], ids=str)
@pytest.mark.parametrize("kind", [pa.uint16(), pa.int32(), pa.dictionary(pa.int8(), pa.uint16())], ids=str)
def test_blocks_of_numbered_columns(path: Path, kind: pa.DataType, edges: list[int], way: str) -> None:
    order = alphabetical()
    pq.write_table(table(RAW[order], kind, [f"column_{k}" for k in order]), path, row_group_size=10)
    blocks = [slice(first, last) for first, last in pairwise(edges)]
    for pixels, found in zip(blocks, read(path, way, *blocks), strict=True):
        check(found, cropped(RAW), pixels)


@pytest.mark.parametrize("index", [pd.Index(np.arange(FRAMES), name="0"), pd.Index(LETTERS)])
@pytest.mark.parametrize("prefix", ["column_", ""])
def test_numbered_columns_beside_a_pandas_index(path: Path, index: pd.Index, prefix: str) -> None:
    order = alphabetical(prefix)
    names = [f"{prefix}{k}" for k in order]
    if index.name in names:
        index = index.rename("frame")
    indexed = pa.Table.from_pandas(pd.DataFrame(RAW[order].T, columns=names, index=index))
    for first in (0, 17, 36):  # where in the file the index is
        stored = [*names[:first], indexed.column_names[-1], *names[first:]]
        pq.write_table(indexed.select(stored).replace_schema_metadata(indexed.schema.metadata), path)
        same(path, RAW)


@pytest.mark.parametrize("at", [0, 36])
def test_a_column_too_many_is_no_pixel_by_its_name(path: Path, at: int) -> None:
    names = [f"column_{k}" for k in alphabetical()]
    names.insert(at, "column_36")
    pq.write_table(table(np.zeros((37, 4), np.uint16), names=names), path)
    refused(path, "has 37 columns, expected 36")


def test_what_is_wrong_in_numbered_columns_is_said_of_its_place(path: Path) -> None:
    order = alphabetical()
    names, place = [f"column_{k}" for k in order], order.index(11)
    assert place != 11
    holes = column(RAW[11], pa.int32(), np.arange(FRAMES) == 4)
    pq.write_table(table(RAW[order], names=names).set_column(place, "column_11", holes), path)
    refused(path, f"column {place} holds 1 null")
    pq.write_table(table(RAW[order], names=names).set_column(place, "column_11", pa.array([-1] * FRAMES)), path)
    refused(path, f"column {place} holds counts from -1 to -1")


def test_the_order_of_columns_changes_nothing_else(path: Path) -> None:
    pq.write_table(table(RAW), path)
    before = open_signal(path, TINY)
    assert before.columns.tolist() == TINY.columns().tolist()
    order = alphabetical()
    pq.write_table(table(RAW[order], names=[f"column_{k}" for k in order]), path)
    after = open_signal(path, TINY)
    assert [order[place] for place in after.columns] == before.columns.tolist()
    assert (after.by_pages, after.n_frames) == (before.by_pages, before.n_frames)
    content = path.read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    assert after.fingerprint == hashlib.sha256(f"{len(content)} ".encode() + footer).hexdigest()


def with_index_first(path: Path) -> None:
    indexed = pa.Table.from_pandas(frame(RAW, pd.Index(np.arange(FRAMES) * 2.5, name="time")))
    names = [indexed.column_names[-1], *indexed.column_names[:-1]]
    pq.write_table(indexed.select(names).replace_schema_metadata(indexed.schema.metadata), path)


TWO = pd.MultiIndex.from_arrays([np.arange(FRAMES), list("ab" * 12)], names=["frame", "kind"])
WRITERS: Mapping[str, Callable[[Path], None]] = {
    "pandas": lambda path: frame(RAW).to_parquet(path),
    "pandas-range-index-stored": lambda path: frame(RAW).to_parquet(path, index=True),
    "pandas-index-last": lambda path: frame(RAW, pd.Index(np.arange(FRAMES), name="time")).to_parquet(path),
    "pandas-unnamed-index": lambda path: frame(RAW, pd.Index(np.arange(FRAMES)[::-1])).to_parquet(path),
    "pandas-text-index": lambda path: frame(RAW, pd.Index(LETTERS)).to_parquet(path),
    "pandas-index-first": with_index_first,
    "pandas-two-indexes": lambda path: frame(RAW, TWO).to_parquet(path),
    "pandas-nullable": lambda path: frame(RAW).astype("UInt16").to_parquet(path),
    "pandas-metadata-removed": lambda path: pq.write_table(pa.table(frame(RAW)).replace_schema_metadata(None), path),
    "polars": lambda path: pl.from_numpy(RAW.T, schema=[f"c{k}" for k in range(36)]).write_parquet(path),
    "polars-groups": lambda path: pl.from_numpy(RAW.T).write_parquet(path, row_group_size=6, compression="gzip"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_writers(path: Path, write: Callable[[Path], None]) -> None:
    write(path)
    same(path, RAW)


@pytest.mark.parametrize("text", [b"{", b"null", b"[]", b"{}", b'{"index_columns": null}'], ids=repr)
def test_metadata_that_pandas_did_not_write(path: Path, text: bytes) -> None:
    pq.write_table(table(RAW).replace_schema_metadata({b"pandas": text}), path)
    same(path, RAW)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("edges", [[0, 1], [19, 20], [3, 11], [0, 5, 10, 15, 20], [7, 8, 10, 20]], ids=str)
def test_blocks(path: Path, edges: list[int], way: str) -> None:
    pq.write_table(table(RAW), path, row_group_size=10)
    blocks = [slice(first, last) for first, last in pairwise(edges)]
    for pixels, found in zip(blocks, read(path, way, *blocks), strict=True):
        check(found, cropped(RAW), pixels)


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_few_frames(path: Path, frames: int) -> None:
    raw = np.arange(36 * frames, dtype=np.uint16).reshape(36, frames)
    pq.write_table(table(raw), path)
    signal = open_signal(path, TINY)
    assert (signal.n_frames, signal.load().table.n_rows) == (frames, frames)
    (counts,) = read(path, "pyarrow", EVERY)
    check(counts, cropped(raw))
    if frames == 2:  # no plan has bins of less
        same(path, raw)


def test_threads_share_the_blocks(path: Path) -> None:
    raw = made(frames=400)
    pq.write_table(table(raw), path, row_group_size=90, compression="zstd")
    loaded = open_signal(path, TINY).load()
    blocks = iter([slice(k, k + 2) for k in range(0, TINY.n_pixels, 2)] * 10)
    with ThreadPoolExecutor(6) as pool:
        workers = [pool.submit(lambda: list(loaded.counts(blocks))) for _ in range(6)]
        found = [block for worker in workers for block in worker.result()]
    assert len(found) == 100
    for pixels, counts in found:
        np.testing.assert_array_equal(counts, cropped(raw)[pixels], strict=True)


@pytest.mark.parametrize("size", [0, 1, 5, 11, 12, 100, 4000])
def test_random_bytes(path: Path, size: int) -> None:
    path.write_bytes(np.random.default_rng(size).bytes(size))
    refused(path, "Parquet file")


@pytest.mark.parametrize("middle", [b"", b"\0" * 40, b"\xff" * 40], ids=["none", "zeros", "ones"])
@pytest.mark.parametrize("length", [0, 1, 40, 41, 2**32 - 1])
def test_magic_around_nonsense(path: Path, middle: bytes, length: int) -> None:
    path.write_bytes(b"PAR1" + middle + length.to_bytes(4, "little") + b"PAR1")
    refused(path, "")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95, 0.999])
def test_truncated(path: Path, kept: float) -> None:
    pq.write_table(table(RAW), path)
    os.truncate(path, int(path.stat().st_size * kept))
    refused(path, "Parquet file")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x15"], ids=["zeros", "ones", "thrift"])
@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_overwritten_pages(path: Path, compression: str, fill: bytes, version: str) -> None:
    pq.write_table(table(RAW), path, compression=compression, data_page_version=version)
    content = path.read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
    path.write_bytes(content[:4] + fill * (len(content) - len(footer) - 4) + footer)
    assert open_signal(path, TINY).n_frames == FRAMES
    refused(path, "column 2 has a page")


def test_no_file(path: Path) -> None:
    refused(path, "signal file is missing")
    path.mkdir()
    refused(path, "cannot be read")
    refused(path.with_name("other") / "inside", "signal file is missing")


@pytest.mark.parametrize("columns", [0, 1, 20, 35, 37, 72])
def test_wrong_number_of_columns(path: Path, columns: int) -> None:
    pq.write_table(table(np.zeros((columns, 4), np.uint16)), path)
    refused(path, f"has {columns} columns, expected 36")
    frame(np.zeros((columns, 4), np.uint16), pd.Index(list("abcd"), name="time")).to_parquet(path)
    refused(path, f"has {columns} columns, expected 36")


SCALARS = [
    pa.float32(),
    pa.float64(),
    pa.decimal128(7, 2),
    pa.string(),
    pa.binary(),
    pa.bool_(),
    pa.date32(),
    pa.null(),
]
NESTED = [pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.uint16()), pa.struct([("a", pa.uint16())])]


@pytest.mark.parametrize("at", [0, 17, 35], ids=["outside-crop", "middle", "last"])
@pytest.mark.parametrize("kind", [*SCALARS, *NESTED], ids=str)
def test_columns_that_are_no_integers(path: Path, kind: pa.DataType, at: int) -> None:
    good = table(RAW)
    pq.write_table(good.set_column(at, "bad", pa.nulls(FRAMES, kind)), path)
    refused(path, "expected raw counts")


@pytest.mark.parametrize("kind", [pa.uint16(), pa.int64(), pa.dictionary(pa.int8(), pa.uint16())], ids=str)
@pytest.mark.parametrize("at", [0, FRAMES - 1, slice(None)], ids=["first", "last", "all"])
def test_nulls(path: Path, kind: pa.DataType, at: int | slice) -> None:
    gone = np.zeros(FRAMES, bool)
    gone[at] = True
    pq.write_table(table(RAW).set_column(11, "holes", column(RAW[11], kind, gone)), path)
    refused(path, f"column 11 holds {gone.sum()} null")


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
    said = f"column 11 holds counts from {min(count, 0)} to {max(count, 0)}"
    refused(path, said, "holds counts outside 0 to 65535" if by_own(path) else said)


def test_what_is_outside_the_crop_is_not_decoded(path: Path) -> None:
    pq.write_table(table(RAW).set_column(0, "outside", pa.array([-1] * FRAMES)), path)
    same(path, RAW)


def test_changed_after_opening(path: Path, tmp_path: Path) -> None:
    same_size = tmp_path / "other.parquet"
    for file, raw in ((path, RAW), (same_size, RAW ^ 1)):
        pq.write_table(table(raw), file, compression="none", use_dictionary=False)
    content, other = path.read_bytes(), same_size.read_bytes()
    assert len(other) == len(content)
    signal = open_signal(path, TINY)
    for wrong in (other, content + content[-8:], content[:-1], b"", None):
        path.unlink() if wrong is None else path.write_bytes(wrong)
        with pytest.raises(InputError) as error:
            signal.load()
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert signal.load().data.tobytes() == content


@pytest.mark.parametrize(
    ("variable", "pages"), [(None, True), ("", True), ("auto", True), ("pyarrow", False), ("polars", True)]
)
def test_choice(
    variable: str | None, pages: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("GPUCAL_READER", raising=False)
    if variable is not None:
        monkeypatch.setenv("GPUCAL_READER", variable)
    counts_module._warn_of_polars.cache_clear()
    assert takes_pages() == takes_pages() == pages  # warned of once
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (variable == "polars")
    assert all("GPUCAL_READER=polars" in line and line.endswith("; unset it") for line in warnings)


@pytest.mark.parametrize("variable", ["duckdb", "Pyarrow"])
def test_no_such_reader(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCAL_READER", variable)
    with pytest.raises(ConfigError, match=rf"^GPUCAL_READER = '{variable}': must be auto or pyarrow$"):
        takes_pages()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("at", [0, -1])
def test_strict_verifies_checksums(path: Path, compression: str, version: str, at: int) -> None:
    options = {"compression": compression, "data_page_version": version, "write_page_checksum": True}
    data = written(table(RAW), **options)
    path.write_bytes(data)
    for way in WAYS:
        (found,) = read(path, way, EVERY, strict=True)
        check(found, cropped(RAW))
    for number in range(2):  # a dictionary, and what it codes
        anatomy = Anatomy.of(data)
        page = anatomy.chunks[11].pages[number]
        body = bytearray(page.body)
        body[at] ^= 4
        page.body = bytes(body)
        path.write_bytes(anatomy.data())
        with pytest.raises(InputError) as error:
            read(path, "pages", EVERY, strict=True)
        said = f"{path}: column 11: page {number + 1} has another checksum than its header says; copy it again from"
        assert str(error.value) == f"{said} the competition data"
        with pytest.raises(InputError, match=r"cannot be decoded .*CRC checksum verification failed"):
            read(path, "pyarrow", EVERY, strict=True)


@pytest.mark.parametrize("more", [0, 1, 10**6])
def test_memory_is_used_again(path: Path, more: int) -> None:
    pq.write_table(table(RAW), path)
    content = path.read_bytes()
    memory = np.full(len(content) + more, 0xA5, np.uint8)
    loaded = open_signal(path, TINY).load(memory)
    assert loaded.data.base is memory
    assert loaded.data.tobytes() == content
    assert (memory[len(content) :] == 0xA5).all()


@pytest.mark.parametrize(
    ("options", "own"), [({}, True), ({"compression": "zstd"}, True), ({"compression": "gzip"}, False)], ids=str
)
def test_pyarrow_s_footer_is_parsed_once_and_only_where_it_decodes(
    path: Path, options: dict[str, Any], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed, plain = [], signal_file.parse_metadata
    monkeypatch.setattr(signal_file, "parse_metadata", lambda *of: parsed.append(of) or plain(*of))
    pq.write_table(table(RAW), path, **options)
    signal = open_signal(path, TINY)
    assert signal.by_pages == own
    loaded = signal.load()
    assert (loaded.table.unfit == "") == own
    assert parsed == []
    with ThreadPoolExecutor(8) as pool:  # of several threads that need a column at once
        for counts in pool.map(lambda _: list(loaded.counts([EVERY])), range(40)):
            check(counts[0][1], cropped(RAW))
    assert len(parsed) == 1


def test_fingerprint(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.parquet"
    pq.write_table(table(RAW), path)
    shutil.copyfile(path, elsewhere)
    assert open_signal(elsewhere, TINY).fingerprint == (first := open_signal(path, TINY).fingerprint)
    for other in (made(FRAMES + 1), np.zeros_like(RAW)):
        pq.write_table(table(other), elsewhere)
        assert open_signal(elsewhere, TINY).fingerprint != first
