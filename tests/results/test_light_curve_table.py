"""The table of all light curves, and the files of all that 0.1 wrote: equal to the items, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from stored import CONFIG, FULL, IDS, check_history, files, folder, full, one_line, write_stacks

import gpucal
from gpucal import Dataset
from gpucal.errors import OutputError, RunWarning, Unstackable
from gpucal.results import curve_files
from gpucal.results.export import export
from gpucal.results.light_curve_table import LIGHT_CURVES, light_curves_are_current, read_light_curves
from gpucal.results.records import records
from gpucal.results.verify import verify


@pytest.fixture(scope="module", params=["float32", "float64"])
def curves(request: pytest.FixtureRequest, visits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their light curves, with files of all as 0.1 wrote them. Not to be written to."""
    out = folder(visits, tmp_path_factory.mktemp("curves"), dtype=request.param, product="light-curves")
    assert not {*LIGHT_CURVES} & files(out)  # the items have the numbers
    return write_stacks(out)


def check_light_curves(out: Path) -> None:
    results = gpucal.open_results(out)
    both = results.light_curves_with_errors()
    stored = next(records(out))["files"]
    kind = stored["flux" if "flux" in stored else "signal"]["dtype"]
    flux, error = (np.load(out / f"light-curves.{end}") for end in ("npy", "errors.npy"))
    assert flux.shape == error.shape == (2, 4, 283)
    assert flux.dtype == error.dtype == kind
    np.testing.assert_array_equal(flux, both.flux.astype(kind))
    np.testing.assert_array_equal(error, both.error.astype(kind))
    names = [f"wl_{k}" for k in range(1, 284)]
    table = pd.read_parquet(out / "light-curves.parquet")
    assert list(table) == ["planet_id", "visit", "bin", "time", *names, *(f"{name}_error" for name in names)]
    assert [str(t) for t in table.dtypes[:5]] == ["int64", "int64", "int32", "float64", kind]
    rows = [(*key, k) for key in IDS for k in range(4)]
    assert [*table[["planet_id", "visit", "bin"]].itertuples(index=False, name=None)] == rows
    np.testing.assert_array_equal(table.time, np.concatenate([results.axes(key, "AIRS-CH0")["time"] for key in IDS]))
    np.testing.assert_array_equal(table[names].to_numpy(), flux.reshape(8, 283))
    np.testing.assert_array_equal(table[[f"{name}_error" for name in names]].to_numpy(), error.reshape(8, 283))
    np.testing.assert_array_equal(np.load(out / "light-curves.ids.npy"), IDS)
    schema = pq.read_schema(out / "light-curves.parquet")
    assert schema.field("wl_1").metadata is None
    written = [
        float(schema.field(f"{name}{what}").metadata[b"wavelength_um"]) for what in ("", "_error") for name in names[1:]
    ]
    assert written == 2 * results.axes((5, 0), "AIRS-CH0")["wavelength"].tolist()
    history = json.loads(schema.metadata[b"gpucal"])
    order = [(*key, name) for key in IDS for name in ("FGS1", "AIRS-CH0")]
    assert [(item["planet"], item["visit"], item["detector"]) for item in history["items"]] == order
    for item in history["items"]:
        check_history({**history["common"], **item})


def test_pandas_reads_units_and_wavelengths(curves: Path) -> None:
    path, results = curves / "light-curves.parquet", gpucal.open_results(curves)
    expected = results.light_curve_table()
    assert pd.read_parquet(path).attrs == expected.attrs
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected, check_exact=True)
    found = read_light_curves(path)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert found.attrs == expected.attrs


def test_old_names_are_read(curves: Path, tmp_path: Path) -> None:
    """As 0.1 named them, and without units."""
    out = shutil.copytree(curves, tmp_path / "out")
    path = out / "light-curves.parquet"
    table, expected = pq.read_table(path), read_light_curves(path)
    columns = ["FGS1", *(f"AIRS-CH0_{column:03d}" for column in range(39, 321))]
    names = ["planet", "visit", "bin", "time_h", *columns, *(f"{name}_error" for name in columns)]
    history = {b"gpucal": table.schema.metadata[b"gpucal"]}
    pq.write_table(table.rename_columns(names).replace_schema_metadata(history), path)
    found = read_light_curves(path)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert found.attrs == expected.attrs
    assert light_curves_are_current(gpucal.open_results(out))
    assert [*verify(out)] == []
    other = table.rename_columns(["planets", *names[1:]]).replace_schema_metadata(history)
    pq.write_table(other, path)
    assert len([*verify(out)]) == 1


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"x" * 20)
    pd.DataFrame({"planet_id": [1], "visit": [0], "status": ["done"]}).to_parquet(tmp_path / "other.parquet")
    for name, problem in (("x", "cannot be read "), ("nothing", "cannot be read "), ("other", "is no table of ")):
        with pytest.raises(OutputError, match=rf"{name}\.parquet: {problem}.*; give a light-curves\.parquet") as error:
            read_light_curves(tmp_path / f"{name}.parquet")
        one_line(error.value)


def test_the_files_of_all_are_those_of_the_items(curves: Path) -> None:
    check_light_curves(curves)
    assert [*verify(curves)] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_light_curves_of_cubes(visits: Dataset, tmp_path: Path, dtype: str) -> None:
    check_light_curves(write_stacks(folder(visits, tmp_path / "out", dtype=dtype, variance=True)))


@pytest.mark.parametrize(("at_least", "groups"), [(1, [4, 4]), (5, [8]), (4096, [8])])
def test_row_groups_are_whole_observations(
    curves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_least: int, groups: list[int]
) -> None:
    monkeypatch.setattr(curve_files, "_GROUP_ROWS", at_least)
    out = write_stacks(shutil.copytree(curves, tmp_path / "out"))
    about = pq.ParquetFile(out / "light-curves.parquet").metadata
    assert [about.row_group(k).num_rows for k in range(about.num_row_groups)] == groups
    assert {about.row_group(0).column(k).compression for k in range(about.num_columns)} == {"ZSTD"}
    check_light_curves(out)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bins": {"AIRS-CH0": 9, "FGS1": 20}}, r"observations differ in shape, such as \(4, 283\) and \(3, 283\)"),
        ({"crop": {"AIRS-CH0": [38, 320]}}, "observations differ in their columns"),
        ({"bins": {"FGS1": 30}}, r"FGS1 and AIRS-CH0 have \[2, 4\] bins; give them equal ones"),
    ],
    ids=["bins", "columns", "detectors"],
)
def test_light_curves_that_do_not_stack(
    planets: Dataset, tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    out = folder(planets, tmp_path / "out", planets=[17], product="light-curves")
    options = {"product": "light-curves", "backend": "numpy", "overwrite": True}
    summary = gpucal.run(planets, out, CONFIG.replace(**change), planets=[23], **options)
    assert (summary.done, summary.failed) == (2, {})  # every item is there by itself
    assert gpucal.open_results(out).ids == [(17, 0), (23, 0)]
    with pytest.raises(Unstackable, match=problem) as caught:
        export(gpucal.open_results(out), tmp_path / "to", "npy", "light-curves")
    one_line(caught.value)
    assert not [*tmp_path.glob("to/*")]
    if "shape" in problem:  # a table has as many rows as there are bins
        (table,) = export(gpucal.open_results(out), tmp_path / "to", "parquet", "light-curves")
        assert read_light_curves(table).groupby("planet_id").size().tolist() == [4, 3]


def test_files_of_all_are_kept_while_they_are_those_of_the_items(planets: Dataset, tmp_path: Path) -> None:
    def run(product: str = "light-curves", **options: Any) -> list[str]:
        summary = gpucal.run(planets, tmp_path, CONFIG, product=product, backend="numpy", **options)
        assert not summary.failed
        return summary.notes

    assert run() == []
    assert not [*tmp_path.glob("light-curves*")]
    for path in tmp_path.glob("*/*/*.json"):  # times are whole seconds: an item made again in the same one is the same
        record = json.loads(path.read_text())
        record["provenance"]["created"] = "2026-01-01T00:00:00+00:00"
        path.write_text(json.dumps(record))
    before = {path.name: path.stat().st_mtime_ns for path in write_stacks(tmp_path).glob("light-curves*")}
    assert before.keys() == {*LIGHT_CURVES}
    for options in ({}, {"planets": [23]}, {"variance": True}):  # they have errors anyway
        assert run(**options) == []
        assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("light-curves*")} == before
    for lost in (tmp_path / LIGHT_CURVES[0], tmp_path / "17" / "0" / "FGS1.json"):
        lost.unlink()
        with pytest.warns(RunWarning, match="were of other items and are removed; `gpucal export"):
            assert len(run()) == 1
        assert not [*tmp_path.glob("light-curves*")]
        write_stacks(tmp_path)
    run("cubes", overwrite=True)
    assert not [*tmp_path.glob("light-curves*")]


def test_light_curves_need_no_variances(visits: Dataset, tmp_path: Path) -> None:
    out = folder(visits, tmp_path / "out")
    assert not any("variance" in name for name in files(out))
    check_light_curves(write_stacks(out))


def test_a_full_disk_at_the_light_curves(curves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=FULL) as caught:
        export(gpucal.open_results(curves), tmp_path / "to", "parquet", "light-curves")
    one_line(caught.value)
    assert [*tmp_path.glob("to/*")] == []
    with pytest.raises(OutputError, match="is where the results' own files are; choose another folder"):
        export(gpucal.open_results(curves), curves, "parquet", "light-curves")
