"""Signal files: every legal encoding gives the same pixels, every damaged file one line."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from gpucal.errors import ConfigError, InputError, MissingExtra
from gpucal.inputs.counts import DECODERS, choose_decoder
from gpucal.inputs.signal_file import open_signal
from gpucal.settings.detectors import DETECTORS

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


def read(path: Path, decoder: str, *blocks: slice) -> list[Raw]:
    """Decode some blocks in one call."""
    found = list(open_signal(path, TINY).load(decoder).decode([list(blocks)]))
    assert [pixels for pixels, _ in found] == list(blocks)
    return [counts for _, counts in found]


def same(path: Path, raw: Raw) -> None:
    """Check that every decoder gives exactly the cropped pixels."""
    for decoder in DECODERS:
        (counts,) = read(path, decoder, slice(0, TINY.n_pixels))
        np.testing.assert_array_equal(counts, cropped(raw), strict=True, err_msg=decoder)


def refused(path: Path, problem: str, decoders: Iterable[str] = DECODERS) -> None:
    """Check that every decoder fails with one line: the file, the problem, the mend."""
    for decoder in decoders:
        with pytest.raises(InputError) as error:
            read(path, decoder, slice(0, TINY.n_pixels))
        line = str(error.value)
        assert "\n" not in line
        assert line.startswith(f"{path}: ")
        assert problem in line.removeprefix(f"{path}: ")
        assert line.endswith("; copy it again from the competition data")


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


def strictly(path: Path, decoder: str, *blocks: slice) -> list[Raw]:
    """Decode some blocks with strict checks."""
    return [counts for _, counts in open_signal(path, TINY, strict=True).load(decoder).decode([list(blocks)])]


@pytest.mark.parametrize("prefix", ["column_", ""])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("rows", [5, 1000], ids=lambda rows: f"groups-of-{rows}")
def test_numbered_columns_in_any_order(path: Path, order: Sequence[int], prefix: str, rows: int) -> None:
    names = [f"{prefix}{k}" for k in order]
    pq.write_table(table(RAW[list(order)], names=names), path, row_group_size=rows, compression="zstd")
    same(path, RAW)
    for decoder in DECODERS:
        (counts,) = strictly(path, decoder, slice(0, TINY.n_pixels))
        np.testing.assert_array_equal(counts, cropped(RAW), strict=True)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("edges", [[0, 1], [19, 20], [3, 11], [0, 5, 10, 15, 20], [7, 8, 10, 20]], ids=str)
@pytest.mark.parametrize("kind", [pa.uint16(), pa.int32(), pa.dictionary(pa.int8(), pa.uint16())], ids=str)
def test_blocks_of_numbered_columns(path: Path, kind: pa.DataType, edges: list[int], decoder: str) -> None:
    order = alphabetical()
    pq.write_table(table(RAW[order], kind, [f"column_{k}" for k in order]), path, row_group_size=10)
    blocks = [slice(first, last) for first, last in pairwise(edges)]
    for pixels, counts in zip(blocks, read(path, decoder, *blocks), strict=True):
        np.testing.assert_array_equal(counts, cropped(RAW)[pixels], strict=True)


@pytest.mark.parametrize("index", [pd.Index(np.arange(FRAMES), name="0"), pd.Index([*"abcdefghijklmnopqrstuvw"])])
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
    assert (after.plain, after.n_frames) == (before.plain, before.n_frames)
    content = path.read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    assert after.fingerprint == hashlib.sha256(f"{len(content)} ".encode() + footer).hexdigest()


def with_index_first(path: Path) -> None:
    indexed = pa.Table.from_pandas(frame(RAW, pd.Index(np.arange(FRAMES) * 2.5, name="time")))
    names = [indexed.column_names[-1], *indexed.column_names[:-1]]
    pq.write_table(indexed.select(names).replace_schema_metadata(indexed.schema.metadata), path)


TWO = pd.MultiIndex.from_arrays([np.arange(FRAMES), list("ab" * 11 + "c")], names=["frame", "kind"])
WRITERS: Mapping[str, Callable[[Path], None]] = {
    "pandas": lambda path: frame(RAW).to_parquet(path),
    "pandas-range-index-stored": lambda path: frame(RAW).to_parquet(path, index=True),
    "pandas-index-last": lambda path: frame(RAW, pd.Index(np.arange(FRAMES), name="time")).to_parquet(path),
    "pandas-unnamed-index": lambda path: frame(RAW, pd.Index(np.arange(FRAMES)[::-1])).to_parquet(path),
    "pandas-text-index": lambda path: frame(RAW, pd.Index(list("abcdefghijklmnopqrstuvw"))).to_parquet(path),
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


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("edges", [[0, 1], [19, 20], [3, 11], [0, 5, 10, 15, 20], [7, 8, 10, 20]], ids=str)
def test_blocks(path: Path, edges: list[int], decoder: str) -> None:
    pq.write_table(table(RAW), path, row_group_size=10)
    blocks = [slice(first, last) for first, last in pairwise(edges)]
    for pixels, counts in zip(blocks, read(path, decoder, *blocks), strict=True):
        np.testing.assert_array_equal(counts, cropped(RAW)[pixels], strict=True)


@pytest.mark.parametrize(("unit_bytes", "units"), [(0, 5), (16 * FRAMES - 1, 5), (16 * FRAMES, 3), (10**9, 1)])
def test_units(path: Path, unit_bytes: int, units: int) -> None:
    pq.write_table(table(RAW), path)
    loaded = open_signal(path, TINY).load("pyarrow")
    blocks = [slice(first, first + 4) for first in range(0, 20, 4)]
    in_units = list(replace(loaded, decoder=DECODERS["polars"]).units(iter(blocks), unit_bytes))
    assert [block for unit in in_units for block in unit] == blocks
    assert len(in_units) == units
    assert list(loaded.units(iter(blocks), unit_bytes)) == [[block] for block in blocks]


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_few_frames(path: Path, frames: int) -> None:
    raw = np.arange(36 * frames, dtype=np.uint16).reshape(36, frames)
    pq.write_table(table(raw), path)
    assert open_signal(path, TINY).n_frames == frames
    same(path, raw)


@pytest.mark.parametrize("decoder", DECODERS)
def test_threads_share_the_units(path: Path, decoder: str) -> None:
    raw = made(frames=400)
    pq.write_table(table(raw), path, row_group_size=90, compression="zstd")
    loaded = open_signal(path, TINY).load(decoder)
    units = iter([[slice(k, k + 2), slice(k + 2, k + 4)] for k in range(0, TINY.n_pixels, 4)] * 10)
    with ThreadPoolExecutor(6) as pool:
        workers = [pool.submit(lambda: list(loaded.decode(units))) for _ in range(6)]
        found = [block for worker in workers for block in worker.result()]
    assert len(found) == 100
    for pixels, counts in found:
        np.testing.assert_array_equal(counts, cropped(raw)[pixels], strict=True)


@pytest.mark.parametrize("where", [(pl, "read_parquet"), (pl.DataFrame, "null_count")], ids=lambda where: where[1])
def test_an_interrupt_that_polars_raises_in_a_thread_is_the_main_one_s(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[object, str]
) -> None:
    pq.write_table(table(RAW), path)
    plain, calls = getattr(*where), []

    def interrupted(*args: object, **how: object) -> pl.DataFrame:
        calls.append(threading.current_thread())
        if len(calls) % 2:
            raise KeyboardInterrupt
        return plain(*args, **how)

    monkeypatch.setattr(*where, interrupted)
    with ThreadPoolExecutor(1) as pool:
        (counts,) = pool.submit(read, path, "polars", slice(0, TINY.n_pixels)).result()
    np.testing.assert_array_equal(counts, cropped(RAW), strict=True)
    assert len(calls) == 2
    with pytest.raises(KeyboardInterrupt):
        read(path, "polars", slice(0, TINY.n_pixels))


# Which calls of Polars look for SIGINT is its own affair: so many come that each call of a decoding has one.
INTERRUPTED = """
import os, signal, sys, threading, time
from dataclasses import replace
from pathlib import Path

came = 0

def handler(number, frame):
    global came
    came += 1

signal.signal(signal.SIGINT, handler)

import numpy as np
from gpucal.settings.detectors import DETECTORS
from gpucal.inputs.signal_file import open_signal

path, expected = Path(sys.argv[1]), np.load(sys.argv[2])
tiny = replace(DETECTORS["AIRS-CH0"], shape=(4, 9), crop=(2, 7))
right = 0

def decode():
    global right
    for _ in range(300):
        (counts,) = (counts for _, counts in open_signal(path, tiny).load("polars").decode([[slice(0, 20)]]))
        assert np.array_equal(counts, expected)
    with lock:
        right += 300

lock = threading.Lock()
threads = [threading.Thread(target=decode) for _ in range(2)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.002 + 0.0005 * (came % 40))  # some of it long enough for any call, however slow the machine
print(right, came > 30)
"""


@pytest.mark.slow
def test_interrupts_do_not_disturb_polars(path: Path) -> None:
    pq.write_table(table(RAW), path)
    np.save(path.with_suffix(".npy"), cropped(RAW))
    command = [sys.executable, "-c", INTERRUPTED, path, path.with_suffix(".npy")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (run.stdout, run.stderr) == ("600 True\n", "")


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
    refused(path, f"column 11 holds counts from {min(count, 0)} to {max(count, 0)}")


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
    assert signal.load().buffer.getvalue() == content


@pytest.mark.parametrize(
    ("name", "variable", "plain", "chosen"),
    [
        (None, "", True, "polars"),
        ("auto", "pyarrow", True, "polars"),
        (None, "pyarrow", True, "pyarrow"),
        ("polars", "pyarrow", True, "polars"),
        ("polars", "", False, "pyarrow"),
    ],
)
def test_choice(name: str | None, variable: str, plain: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCAL_READER", variable)
    assert choose_decoder(name, plain=plain) == chosen


def test_choice_without_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUCAL_READER", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_decoder() == "pyarrow"
    with pytest.raises(MissingExtra, match=r"^polars is not installed; "):
        choose_decoder("polars")
    with pytest.raises(ConfigError, match=r"^reader = 'duckdb': must be one of auto, polars, pyarrow$"):
        choose_decoder("duckdb")


def test_fingerprint(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.parquet"
    pq.write_table(table(RAW), path)
    shutil.copyfile(path, elsewhere)
    assert open_signal(elsewhere, TINY).fingerprint == (first := open_signal(path, TINY).fingerprint)
    for other in (made(FRAMES + 1), np.zeros_like(RAW)):
        pq.write_table(table(other), elsewhere)
        assert open_signal(elsewhere, TINY).fingerprint != first
