"""Arrow columns as arrays, without pandas; and a whole run that imports neither pandas nor astropy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpucal.inputs.parquet.arrow import values_of
from gpucal.synthetic.competition import synthesize

NUMBERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


def column(*chunks: list[object], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(chunk, type=kind) for chunk in chunks], type=kind)


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("chunks", [([1, 2, 3],), ([1], [2, 3]), ([], [1, 2], [], [3]), ([],), ()], ids=str)
def test_numbers(kind: str, chunks: tuple[list[object], ...]) -> None:
    values = values_of(column(*chunks, kind=pa.type_for_alias(kind)))
    assert values.dtype == kind
    assert values.shape == (3 if any(chunks) else 0,)
    assert values.tolist() == [number for chunk in chunks for number in chunk]


def test_extremes_are_exact() -> None:
    whole = [0, 2**63 - 1, 2**64 - 1]
    assert values_of(column(whole, kind=pa.uint64())).tolist() == whole
    np.testing.assert_array_equal(values_of(column([np.nan, -np.inf, 5e-324])), [np.nan, -np.inf, 5e-324])


def test_a_shared_array_is_read_only() -> None:
    shared = column([1, 2, 3])
    values = values_of(shared)
    assert values.ctypes.data == shared.chunk(0).buffers()[1].address
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 9
    assert shared.to_pylist() == [1, 2, 3]


def test_slices_are_only_what_they_show() -> None:
    assert values_of(column([1, 2, 3, 4]).slice(1, 2)).tolist() == [2, 3]
    assert values_of(column([1, None, 3]).slice(2)).tolist() == [3]
    assert values_of(column([True] * 9 + [False, True]).slice(8)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_nulls_of_floating_point_become_nan(kind: pa.DataType) -> None:
    holed = column([np.float16(1.5), None], [None, np.float16(2.5)], kind=kind)
    np.testing.assert_array_equal(values_of(holed), [1.5, np.nan, np.nan, 2.5])
    assert holed.null_count == 2


def test_booleans_are_0_and_1() -> None:
    values = values_of(column([True, False], [True]))
    assert values.dtype == np.uint8
    assert values.tolist() == [1, 0, 1]
    assert values_of(column(kind=pa.bool_())).dtype == np.uint8


@pytest.mark.parametrize("values", [[3, 1, 3], [0.5, -1.5, 0.5], [True, False, True]], ids=str)
def test_dictionaries(values: list[object]) -> None:
    encoded = pa.chunked_array([pa.array(values).dictionary_encode()] * 2)
    assert values_of(encoded).tolist() == values * 2


def test_a_dictionary_with_nulls() -> None:
    encoded = pa.chunked_array([pa.array([0.5, None, 0.5]).dictionary_encode()])
    np.testing.assert_array_equal(values_of(encoded), [0.5, np.nan, 0.5])


@pytest.mark.parametrize(
    "wrong",
    [
        column([1, None]),
        column([True, None]),
        column(["1"]),
        column([b"1"]),
        column([[1]]),
        column([1], kind=pa.date32()),
        column([1], kind=pa.timestamp("ns")),
        column([1], kind=pa.decimal128(5)),
        column([None], kind=pa.null()),
        column(kind=pa.string()),
        column(kind=pa.date32()),
        pa.chunked_array([pa.array(["a"]).dictionary_encode()]),
        pa.chunked_array([pa.array([1, None]).dictionary_encode()]),
    ],
    ids=lambda wrong: f"{wrong.type} {len(wrong)} {wrong.null_count}",
)
def test_anything_else_is_a_type_error(wrong: pa.ChunkedArray) -> None:
    with pytest.raises(TypeError):
        values_of(wrong)


VALUES = """
import sys
import pyarrow.parquet as pq
from gpucal.inputs.parquet.arrow import values_of
for column in pq.ParquetFile(sys.argv[1]).read().itercolumns():
    print(values_of(column).tolist(), values_of(column.slice(0, 0)).dtype)
print({"pandas"} & set(sys.modules))
"""

RUN = """
import sys
from gpucal.cli.main import main
assert main(sys.argv[1:]) == 0
print({"pandas", "astropy"} & {name.partition(".")[0] for name in sys.modules})
"""


def last_line(script: str, *arguments: Path | str) -> str:
    run = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def test_does_not_import_pandas(tmp_path: Path) -> None:
    columns = {
        "whole": pa.array([1, 2], pa.uint16()),
        "holed": pa.array([1.5, None]),
        "truth": pa.array([True, False]),
        "coded": pa.array([1.5, 1.5]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "some.parquet")
    assert last_line(VALUES, tmp_path / "some.parquet") == "set()"


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_a_run_imports_neither_pandas_nor_astropy(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize(tmp_path / "raw", layout="2025", frames=120)
    for reader in ("auto", "pyarrow"):
        monkeypatch.setenv("GPUCAL_READER", reader)
        bins = ("--bin", "AIRS-CH0=30", "--bin", "FGS1=360", "--backend", backend, "--variance")
        assert last_line(RUN, "calibrate", tmp_path / "raw", tmp_path / reader, *bins) == "set()"
