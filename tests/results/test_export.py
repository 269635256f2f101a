"""Exports of a results folder, each read by its own library: complete, or not written at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import dask.array
import numpy as np
import pytest
import xarray
import zarr
from astropy.io import fits
from stored import CONFIG, FULL, IDS, NAMES, STEPS, check_history, files, folder, full, one_line

import gpucal
from gpucal import DQ, Dataset
from gpucal.errors import ConfigError, MissingExtra, OutputError
from gpucal.results.export import FORMATS, export
from gpucal.results.reader import Results


@pytest.fixture(scope="module", params=["float32", "float64"])
def cubes(request: pytest.FixtureRequest, visits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two visits with variances. Not to be written to."""
    return folder(visits, tmp_path_factory.mktemp("cubes"), dtype=request.param, variance=True)


@pytest.fixture(scope="module")
def plain(visits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float32, without variances. Not to be written to."""
    return folder(visits, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "copy")


def stack(results: Results, detector: str, kind: str) -> np.ndarray:
    return np.stack([getattr(results.calibrated(key, detector), kind) for key in IDS])


# Stacks of NumPy


def test_npy(cubes: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(cubes)
    to = tmp_path / "deep" / "to"
    written = export(results, to, "npy")
    axes = {"AIRS-CH0": ("time", "time_bounds", "wavelength"), "FGS1": ("time", "time_bounds")}
    kinds = ("signal", "dq", "variance", "read_variance")
    arrays = {f"{name}.{kind}.npy" for name in NAMES for kind in (*kinds, *axes[name])}
    assert {path.name for path in written} == files(to) == arrays | {f"{name}.json" for name in NAMES}
    for name in NAMES:
        for kind in kinds:
            stored = np.load(to / f"{name}.{kind}.npy")
            expected = stack(results, name, kind)
            assert stored.dtype == expected.dtype
            np.testing.assert_array_equal(stored, expected)
        for kind in axes[name]:
            np.testing.assert_array_equal(
                np.load(to / f"{name}.{kind}.npy"), getattr(results.calibrated((5, 0), name), kind)
            )
        about = json.loads((to / f"{name}.json").read_text())
        assert [tuple(key) for key in about["ids"]] == IDS
        assert about["units"]["signal"] == "electron"
        assert about["dq"] == {flag.name: flag.value for flag in DQ}
        assert len(about["provenance"]) == 2
        for history in about["provenance"]:
            check_history(history)
        assert about["provenance"][0]["inputs"] != about["provenance"][1]["inputs"]


def test_npy_without_variance_and_again(plain: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(plain)
    (tmp_path / "FGS1.signal.npy").write_text("of before")
    (tmp_path / "mine").write_text("mine")
    export(results, tmp_path, "npy")
    assert not [name for name in files(tmp_path) if "variance" in name]
    np.testing.assert_array_equal(np.load(tmp_path / "FGS1.signal.npy"), results["FGS1"].load())
    assert (tmp_path / "mine").read_text() == "mine"


def test_npy_never_replaces_items(copy: Path) -> None:
    before = (copy / "5" / "0" / "FGS1.signal.npy").read_bytes()
    with pytest.raises(OutputError, match="is where the results' own files are; choose another") as caught:
        export(gpucal.open_results(copy), copy / "5" / "0", "npy")
    one_line(caught.value)
    assert (copy / "5" / "0" / "FGS1.signal.npy").read_bytes() == before


# Zarr


@pytest.mark.parametrize("consolidated", [None, False, True])
def test_zarr_opens_in_xarray(cubes: Path, tmp_path: Path, consolidated: bool | None) -> None:
    results = gpucal.open_results(cubes)
    store = tmp_path / "deep" / "cubes.zarr"
    assert export(results, store, "zarr") == [store]
    assert [*store.parent.iterdir()] == [store]
    for name in NAMES:
        with xarray.open_zarr(store, group=name, consolidated=consolidated) as cube:
            assert isinstance(cube.signal.data, dask.array.Array)
            whole = ((4,), (282 if name == "AIRS-CH0" else 32,), (32,))
            assert cube.signal.chunks == cube.variance.chunks == ((1, 1), *whole)
            assert cube.dq.chunks == ((1, 1), *whole[1:])
            axes = ("x", "y") if name == "FGS1" else ("wavelength", "spatial")
            assert cube.signal.dims == ("observation", "time", *axes)
            assert cube.dq.dims == ("observation", *axes)
            for kind in ("signal", "dq", "variance", "read_variance"):
                expected = stack(results, name, kind)
                assert cube[kind].dtype == expected.dtype
                np.testing.assert_array_equal(cube[kind], expected)
            cal = results.calibrated((5, 0), name)
            assert set(cube.coords) == {"planet", "visit", "time", "time_bounds", "column", "row"} | (
                {"wavelength"} if cal.wavelength is not None else set()
            )
            assert all(cube[kind].long_name for kind in cube.variables)
            assert cube.Conventions.startswith("CF-1.")
            assert cube.title == f"{name}: calibrated signals of 2 observations in time bins"
            (line,) = cube.history.splitlines()
            assert f"gpucal {gpucal.__version__}: adc=COMPLETE" in line
            assert (cube.time.bounds, cube.time_bounds.dims) == ("time_bounds", ("time", "bounds"))
            np.testing.assert_array_equal(cube.time_bounds, cal.time_bounds)
            assert cube.column.values.tolist() == [*range(*cal.detector.crop)]
            assert (cube.column.dims, cube.row.dims) == ((axes[0],), (axes[1],))
            assert [*zip(cube.planet.values.tolist(), cube.visit.values.tolist(), strict=True)] == IDS
            np.testing.assert_array_equal(cube.time, cal.time)
            if cal.wavelength is not None:
                np.testing.assert_array_equal(cube.wavelength, cal.wavelength)
            units = {kind: cube[kind].units for kind in ("signal", "variance", "time")}
            assert units == {"signal": "electron", "variance": "electron2", "time": "hour"}
            assert cube.dq.flag_masks == [flag.value for flag in DQ]
            assert cube.dq.flag_meanings.split() == [flag.name.lower() for flag in DQ]
            history = json.loads(cube.provenance)
            assert [(i["planet"], i["visit"], i["detector"]) for i in history["items"]] == [(*k, name) for k in IDS]
            for item in history["items"]:
                assert not item.keys() & history["common"].keys()
                check_history({**history["common"], **item})


def test_zarr_itself(plain: Path, tmp_path: Path) -> None:
    export(gpucal.open_results(plain), tmp_path / "x.zarr", "zarr")
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert set(group.group_keys()) == set(NAMES)
    assert "variance" not in group["FGS1"]
    signal = group["AIRS-CH0/signal"]
    assert (signal.shape, signal.chunks, signal.dtype) == ((2, 4, 282, 32), (1, 4, 282, 32), np.float32)
    assert signal.metadata.dimension_names == ("observation", "time", "wavelength", "spatial")


def test_zarr_is_read_an_observation_at_a_time(plain: Path, tmp_path: Path) -> None:
    results, store = gpucal.open_results(plain), tmp_path / "x.zarr"
    export(results, store, "zarr")
    chunks = sorted((store / "FGS1" / "signal" / "c").glob("*/*/*/*"))
    assert len(chunks) == 2
    chunks[1].write_bytes(b"damaged")
    with xarray.open_zarr(store, group="FGS1") as cube:
        np.testing.assert_array_equal(cube.signal.isel(observation=0), results["FGS1"][0])
        with pytest.raises(Exception, match=r"\S"):
            cube.signal.isel(observation=1).load()


def test_zarr_is_not_replaced(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(OutputError, match=r"x\.zarr: exists; remove it or name another$") as caught:
        export(gpucal.open_results(plain), tmp_path / "x.zarr", "zarr")
    one_line(caught.value)
    assert files(tmp_path) == set()


def test_without_zarr(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtra, match=r'^zarr is not installed; pip install "gpucal\[zarr\]"$'):
        export(gpucal.open_results(plain), tmp_path / "x.zarr", "zarr")
    assert files(tmp_path) == set()


# FITS


def test_fits(cubes: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(cubes)
    written = export(results, tmp_path, "fits")
    assert [path.name for path in written] == [f"5-{visit}-{name}.fits" for visit in (0, 1) for name in NAMES]
    assert files(tmp_path) == {path.name for path in written}
    for path, (key, name) in zip(written, [(key, name) for key in IDS for name in NAMES], strict=True):
        cal = results.calibrated(key, name)
        with fits.open(path, checksum=True) as hdus:
            hdus.verify("exception")
            header = hdus[0].header
            assert (header["PLANET"], header["VISIT"], header["DETECTOR"]) == (*key, name)
            assert header["CREATOR"] == header["CAL_VER"] == f"gpucal {gpucal.__version__}"
            assert (header["BACKEND"], header["SETHASH"]) == ("numpy", CONFIG.content_hash)
            assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", header[c]) for c in ("DATE", "CAL_DATE"))
            assert header["CAL_DATE"] <= header["DATE"]
            steps = {card: header[card] for card in header if card.startswith("S_")}
            cards = ("S_ADC", "S_MASK", "S_LINEAR", "S_DARK", "S_CDS", "S_BIN", "S_FLAT", "S_INTERP")
            short = ("adc", "mask", "linearity", "dark", "cds", "bin", "flat", "interpolate")
            assert steps == {card: STEPS[step] for card, step in zip(cards, short, strict=True)}
            assert hdus["SCI"].data.dtype == cal.signal.dtype.newbyteorder(">")
            np.testing.assert_array_equal(hdus["SCI"].data, cal.signal)
            np.testing.assert_array_equal(hdus["ERR"].data, np.sqrt(cal.variance))
            np.testing.assert_array_equal(hdus["DQ"].data, cal.dq)
            np.testing.assert_array_equal(hdus["TIME"].data["TIME"], cal.time)
            assert hdus["TIME"].columns["TIME"].unit == "h"
            assert ("WAVELENGTH" in hdus) == (name == "AIRS-CH0")
            if cal.wavelength is not None:
                np.testing.assert_array_equal(hdus["WAVELENGTH"].data["WAVELENGTH"], cal.wavelength)
            history = json.loads(hdus["PROVENANCE"].data["PROVENANCE"][0])
            assert history == cal.provenance
            check_history(history)


def test_fits_of_different_shapes_without_variance(planets: Dataset, tmp_path: Path) -> None:
    out = folder(planets, tmp_path / "out", planets=[17])
    folder(planets, out, CONFIG.replace(bins={"AIRS-CH0": 9}), planets=[23], overwrite=True)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "17-0-FGS1.fits").write_text("of before")
    export(gpucal.open_results(out), tmp_path / "to", "fits")
    for planet, bins in ((17, 4), (23, 3)):
        with fits.open(tmp_path / "to" / f"{planet}-0-AIRS-CH0.fits") as hdus:
            assert hdus["SCI"].data.shape == (bins, 282, 32)
            assert "ERR" not in hdus
    with fits.open(tmp_path / "to" / "17-0-FGS1.fits") as hdus:
        assert hdus["SCI"].data.shape == (4, 32, 32)


# Exports that are refused


def test_unknown_format(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^format = 'hdf5': must be one of npy, zarr, fits$"):
        export(gpucal.open_results(plain), tmp_path / "to", "hdf5")


@pytest.mark.parametrize("form", FORMATS["cubes"])
def test_light_curves_are_no_cubes(visits: Dataset, tmp_path: Path, form: str) -> None:
    curves = folder(visits, tmp_path / "curves", product="light-curves")
    with pytest.raises(OutputError, match="holds light curves and no cubes; calibrate with --product cubes") as caught:
        export(gpucal.open_results(curves), tmp_path / "to", form)
    one_line(caught.value)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("form", ["npy", "zarr"])
@pytest.mark.parametrize(
    ("config", "options", "problem"),
    [
        (
            CONFIG.replace(bins={"FGS1": 20}),
            {},
            r"observations differ in shape, such as \(4, 32, 32\) and \(3, 32, 32\)",
        ),
        (CONFIG, {"variance": True}, "only some observations hold a variance"),
    ],
    ids=["bins", "variance"],
)
def test_cubes_that_do_not_stack(
    planets: Dataset, tmp_path: Path, form: str, config: gpucal.Calibration, options: dict[str, object], problem: str
) -> None:
    out = folder(planets, tmp_path / "out", planets=[17])
    folder(planets, out, config, planets=[23], overwrite=True, **options)
    with pytest.raises(OutputError, match=problem) as caught:
        export(gpucal.open_results(out), tmp_path / "to", form)
    one_line(caught.value)
    assert not (tmp_path / "to").exists()


def test_a_variance_of_an_earlier_export_does_not_stay(cubes: Path, plain: Path, tmp_path: Path) -> None:
    export(gpucal.open_results(cubes), tmp_path, "npy")
    (tmp_path / "mine.variance.npy").write_text("mine")
    written = export(gpucal.open_results(plain), tmp_path, "npy")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written} | {"mine.variance.npy"}


def change_axis(out: Path, name: str, factor: float) -> None:
    path = out / "5" / "1" / f"AIRS-CH0.{name}.npy"
    np.save(path, np.load(path) * factor)


@pytest.mark.parametrize("name", ["time", "wavelength"])
@pytest.mark.parametrize("form", ["npy", "zarr"])
def test_axes_must_agree(copy: Path, tmp_path: Path, form: str, name: str) -> None:
    change_axis(copy, name, 1.0 + 1e-9)
    export(gpucal.open_results(copy), tmp_path / "near", form)
    change_axis(copy, name, 1.01)
    with pytest.raises(OutputError, match=f"planet 5 visit 1 AIRS-CH0 has another {name} axis; ") as caught:
        export(gpucal.open_results(copy), tmp_path / "to", form)
    one_line(caught.value)
    assert not (tmp_path / "to").exists() or files(tmp_path / "to") == set()


@pytest.mark.parametrize("older", [["5/0"], ["5/1"], ["5/0", "5/1"]])
def test_items_of_an_older_version(cubes: Path, tmp_path: Path, older: list[str]) -> None:
    """They hold neither bounds of bins nor the read noise apart; what only some items hold is left out of stacks."""
    out = shutil.copytree(cubes, tmp_path / "out")
    for path in [out / visit / f"{name}.json" for visit in older for name in NAMES]:
        record = json.loads(path.read_text())
        record["files"] = {kind: of for kind, of in record["files"].items() if kind not in ("bounds", "readvariance")}
        record["provenance"] = {k: v for k, v in record["provenance"].items() if k not in ("constants", "files")}
        path.write_text(json.dumps(record))
    results = gpucal.open_results(out)
    export(results, tmp_path / "npy", "npy")
    assert not [name for name in files(tmp_path / "npy") if "bounds" in name or "read_variance" in name]
    export(results, tmp_path / "x.zarr", "zarr")
    for name in NAMES:
        with xarray.open_zarr(tmp_path / "x.zarr", group=name) as cube:
            assert not {"time_bounds", "read_variance"} & {*cube.variables}
            assert "bounds" not in cube.time.attrs
            np.testing.assert_array_equal(cube.variance, stack(results, name, "variance"))
    for visit in (0, 1):
        (path,) = [path for path in export(results, tmp_path / "fits", "fits") if path.name == f"5-{visit}-FGS1.fits"]
        with fits.open(path) as hdus:
            assert ("VAR_RNOISE" in hdus) == ("PAIRBIN" in hdus[0].header) == (f"5/{visit}" not in older)


def nothing_complete(out: Path) -> None:
    for visit in ("0", "1"):
        (out / "5" / visit / "FGS1.json").unlink()


def damaged(out: Path) -> None:
    (out / "5" / "1" / "FGS1.signal.npy").write_bytes(b"damaged")


@pytest.mark.parametrize("form", FORMATS["cubes"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [(nothing_complete, "no observation is complete"), (damaged, r"FGS1\.signal\.npy: is damaged; ")],
)
def test_a_failure_midway_leaves_nothing(
    copy: Path, tmp_path: Path, form: str, damage: Callable[[Path], None], problem: str
) -> None:
    damage(copy)
    to = tmp_path / "out" / "to"
    with pytest.raises(OutputError, match=f"^[^;]*{problem}") as caught:
        export(gpucal.open_results(copy), to, form)
    assert "cannot be written" not in one_line(caught.value)
    assert not (tmp_path / "out").exists() or files(tmp_path / "out") == set()


@pytest.mark.parametrize("form", ["npy", "fits"])
def test_a_failure_midway_keeps_what_was_there(copy: Path, tmp_path: Path, form: str) -> None:
    to = tmp_path / "to"
    export(gpucal.open_results(copy), to, form)
    before = {name: (to / name).read_bytes() for name in files(to)}
    damaged(copy)
    with pytest.raises(OutputError):
        export(gpucal.open_results(copy), to, form)
    assert {name: (to / name).read_bytes() for name in files(to)} == before


@pytest.mark.parametrize("form", FORMATS["cubes"])
def test_a_full_disk(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=FULL) as caught:
        export(gpucal.open_results(plain), tmp_path / "to", form)
    one_line(caught.value)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("form", FORMATS["cubes"])
def test_a_target_inside_a_file(plain: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        export(gpucal.open_results(plain), tmp_path / "file" / "to", form)
    one_line(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
