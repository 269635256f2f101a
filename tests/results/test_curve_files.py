"""Light curves in each export format, read by its own library: values, errors, names, units and wavelengths."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import QTable, Table
from stored import CONFIG, FULL, IDS, NAMES, check_history, files, folder, full, one_line

import gpucal
from gpucal import Dataset
from gpucal.cli.main import main
from gpucal.errors import ConfigError, OutputError, Unstackable
from gpucal.results.curves import Curve, curves_of
from gpucal.results.export import FORMATS, export
from gpucal.results.reader import Results

# FITS has no unit for electrons; astropy warns and keeps the name, as it does for Kepler's and TESS's e-/s.
_ELECTRON = pytest.mark.filterwarnings("ignore:'electron' did not parse as fits unit")

FORMS = tuple(FORMATS["light-curves"])
WL = [f"wl_{k}" for k in range(1, 284)]
COLUMNS = ["planet_id", "visit", "bin", "time", *WL, *(f"{name}_error" for name in WL)]


@pytest.fixture(scope="module", params=["light-curves", "cubes"])
def stored(request: pytest.FixtureRequest, visits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light curves of two visits, or cubes with variances. Not to be written to."""
    variance, dtype = (True, "float64") if request.param == "cubes" else (None, "float32")
    out = tmp_path_factory.mktemp("stored")
    return folder(visits, out, product=request.param, variance=variance, dtype=dtype)


@pytest.fixture(scope="module")
def curves(visits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light curves of two visits. Not to be written to."""
    return folder(visits, tmp_path_factory.mktemp("curves"), product="light-curves")


def kind_of(results: Results) -> np.dtype:
    files = results._record((5, 0), "FGS1")["files"]
    return np.dtype(files["flux" if "flux" in files else "signal"]["dtype"])


def check_table(results: Results, key: tuple[int, int], table: Table | pd.DataFrame) -> None:
    """Compare a table's rows of one observation with the results."""
    curve, kind = results.light_curves_with_errors_of(key), kind_of(results)
    assert len(table) == 4
    assert {*table["planet_id"]} == {5}
    assert {*table["visit"]} == {key[1]}
    assert [*table["bin"]] == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.asarray(table["time"]), results.axes(key, "AIRS-CH0")["time"])
    for k, name in enumerate(WL):
        np.testing.assert_array_equal(np.asarray(table[name], kind), curve.flux[:, k].astype(kind))
        np.testing.assert_array_equal(np.asarray(table[f"{name}_error"], kind), curve.error[:, k].astype(kind))


def wavelengths(results: Results) -> list[float | None]:
    return [None, *results.axes((5, 0), "AIRS-CH0")["wavelength"].tolist()]


def test_ecsv(stored: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(stored)
    written = export(results, tmp_path / "to", "ecsv", "light-curves")
    assert [path.name for path in written] == [f"5-{visit}-light-curves.ecsv" for visit in (0, 1)]
    for key, path in zip(IDS, written, strict=True):
        table = QTable.read(path)
        assert table.colnames == COLUMNS
        check_table(results, key, Table(table))
        assert table["wl_2"].dtype == kind_of(results)
        assert table["time"].unit == units.h
        assert {table[name].unit for name in COLUMNS[4:]} == {units.electron}
        facts = [table[name].info.meta for name in WL]
        assert [of["detector"] for of in facts] == ["FGS1", *["AIRS-CH0"] * 282]
        assert [of.get("column") for of in facts] == [None, *range(39, 321)]
        assert [of.get("wavelength_um") for of in facts] == wavelengths(results)
        assert table["wl_2_error"].info.meta == table["wl_2"].info.meta
        assert table["wl_2"].info.description.startswith("AIRS-CH0 column 39, 3.8")
        for name in NAMES:
            check_history(json.loads(table.meta["provenance"][name]))


@_ELECTRON
def test_fits(stored: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(stored)
    written = export(results, tmp_path / "to", "fits", "light-curves")
    assert [path.name for path in written] == [f"5-{visit}-light-curves.fits" for visit in (0, 1)]
    for key, path in zip(IDS, written, strict=True):
        with fits.open(path, checksum=True) as hdus:
            hdus.verify("exception")
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "LIGHT_CURVES", "CURVES", "TIME", "DETECTORS"]
            for hdu in hdus:
                silent = {card.keyword for card in hdu.header.cards if not card.comment}
                assert silent <= {"HISTORY"}, hdu.name
            header = hdus[0].header
            assert [header[card] for card in ("TELESCOP", "OBJECT", "PLANET", "VISIT")] == ["Ariel", "planet 5", *key]
            assert header["INSTRUME"] == "FGS1, AIRS-CH0"
            assert header["GPUCAL BAD_PIXELS"] == "interpolate"
            assert header["GPUCAL BINS AIRS-CH0"] == CONFIG.bins["AIRS-CH0"]
            assert "FGS1: dark SKIPPED: dark current subtracted" in [*header["HISTORY"]]
            assert hdus["LIGHT_CURVES"].header.comments["TTYPE6"].startswith("AIRS-CH0 column 39, 3.8")
        table = QTable.read(path, hdu="LIGHT_CURVES")
        assert table.colnames == COLUMNS
        check_table(results, key, Table(table))
        assert table["wl_2"].dtype.newbyteorder("=") == kind_of(results)
        assert table["time"].unit == units.h
        assert {units.Unit(str(table[name].unit)) for name in COLUMNS[4:]} == {units.electron}
        about = Table.read(path, hdu="CURVES")
        assert about["NAME"].tolist() == WL
        assert about["COLUMN"].tolist() == [-1, *range(39, 321)]
        assert about["WAVELENGTH"].unit == units.um
        np.testing.assert_array_equal(np.asarray(about["WAVELENGTH"])[1:], wavelengths(results)[1:])
        times = Table.read(path, hdu="TIME")
        for name in NAMES:
            title = name.replace("-", "_")
            np.testing.assert_array_equal(times[f"{title}_TIME"], results.axes(key, name)["time"])
            bounds = np.stack([times[f"{title}_BEGIN"], times[f"{title}_END"]], axis=1)
            np.testing.assert_array_equal(bounds, results.time_bounds(key, name))
        for row in Table.read(path, hdu="DETECTORS"):
            assert row["SETTINGS_HASH"] == CONFIG.content_hash
            check_history(json.loads(row["PROVENANCE"]))


def test_csv(stored: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(stored)
    written = export(results, tmp_path / "to", "csv", "light-curves")
    assert files(tmp_path / "to") == {path.name for path in written}
    assert [path.name for path in written] == ["light-curves.csv", "light-curves.columns.csv", "light-curves.json"]
    assert [*pd.read_csv(written[0]).columns] == COLUMNS
    # Of the two only NumPy's numbers are exact with every version.
    table = pd.DataFrame(np.loadtxt(written[0], delimiter=",", skiprows=1), columns=COLUMNS)
    assert len(table) == 8
    for key in IDS:
        check_table(results, key, table[table.visit == key[1]])
    about = pd.read_csv(written[1], index_col="name")
    assert [*about.index] == COLUMNS
    assert about.unit["wl_1":].eq("electron").all()
    assert about.unit["time"] == "h"
    assert about.detector[WL].tolist() == ["FGS1", *["AIRS-CH0"] * 282]
    np.testing.assert_array_equal(about.column[WL[1:]], np.arange(39, 321))
    np.testing.assert_allclose(about.wavelength_um[WL[1:]], np.array(wavelengths(results)[1:]), rtol=1e-14)
    assert np.isnan(about.wavelength_um["wl_1"])
    history = json.loads(written[2].read_text())["provenance"]
    for item in history["items"]:
        check_history({**history["common"], **item})


def test_npy(stored: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(stored)
    to = tmp_path / "to"
    export(results, to, "npy", "light-curves")
    both, kind = results.light_curves_with_errors(), kind_of(results)
    arrays = {name: np.load(to / f"light-curves.{name}.npy") for name in ("flux", "error", "time", "wavelength", "ids")}
    assert arrays["flux"].dtype == arrays["error"].dtype == kind
    np.testing.assert_array_equal(arrays["flux"], both.flux.astype(kind))
    np.testing.assert_array_equal(arrays["error"], both.error.astype(kind))
    np.testing.assert_array_equal(arrays["time"], [results.axes(key, "AIRS-CH0")["time"] for key in IDS])
    np.testing.assert_array_equal(arrays["wavelength"][1:], wavelengths(results)[1:])
    assert np.isnan(arrays["wavelength"][0])
    assert [tuple(key) for key in arrays["ids"]] == IDS
    about = json.loads((to / "light-curves.json").read_text())
    assert about["curves"] == WL
    assert about["units"] == {"flux": "electron", "error": "electron", "time": "h", "wavelength": "um"}
    assert len(about["provenance"]["items"]) == 4


def test_from_the_command_line(curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(curves), str(tmp_path / "to"), "--product", "light-curves", "--format", "csv"]
    assert main(words) == 0
    assert "2 observations in " in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "to" / "light-curves.csv")) == 8
    assert main([*words[:3], "--format", "csv"]) == 2
    line = "format = 'csv': must be one of npy, zarr, fits; light-curves can be csv (--product light-curves)"
    assert capsys.readouterr().err == f"gpucal: {line}\n"


def test_a_name_means_one_wavelength(planets: Dataset, tmp_path: Path) -> None:
    out = folder(
        planets, tmp_path / "out", CONFIG.replace(crop={"AIRS-CH0": [37, 42]}), planets=[17], product="light-curves"
    )
    found = curves_of(gpucal.open_results(out), (17, 0))
    assert [curve.name for curve in found] == ["wl_1", "AIRS-CH0_037", "AIRS-CH0_038", "wl_2", "wl_3", "wl_4"]
    assert [curve.wavelength_um is None for curve in found] == [True, *[False] * 5]
    assert Curve("AIRS-CH0", 320, None).name == "wl_283"
    assert Curve("AIRS-CH0", 321, None).name == "AIRS-CH0_321"


@_ELECTRON
def test_observations_of_other_bins(planets: Dataset, tmp_path: Path) -> None:
    out = folder(planets, tmp_path / "out", planets=[17], product="light-curves")
    bins = CONFIG.replace(bins={"AIRS-CH0": 9, "FGS1": 20})
    folder(planets, out, bins, planets=[23], overwrite=True, product="light-curves")
    results = gpucal.open_results(out)
    export(results, tmp_path / "to", "csv", "light-curves")
    assert pd.read_csv(tmp_path / "to" / "light-curves.csv").groupby("planet_id").size().to_dict() == {17: 4, 23: 3}
    export(results, tmp_path / "to", "fits", "light-curves")
    assert len(Table.read(tmp_path / "to" / "23-0-light-curves.fits", hdu="LIGHT_CURVES")) == 3
    with pytest.raises(Unstackable, match=r"such as \(4, 283\) and \(3, 283\)") as caught:
        export(results, tmp_path / "npy", "npy", "light-curves")
    one_line(caught.value)
    assert files(tmp_path / "npy") == set()


@pytest.mark.parametrize("form", ["csv", "npy"])
def test_observations_of_other_columns(planets: Dataset, tmp_path: Path, form: str) -> None:
    out = folder(planets, tmp_path / "out", planets=[17], product="light-curves")
    crop = CONFIG.replace(crop={"AIRS-CH0": [38, 320]})
    folder(planets, out, crop, planets=[23], overwrite=True, product="light-curves")
    with pytest.raises(Unstackable, match="observations differ in their columns; ") as caught:
        export(gpucal.open_results(out), tmp_path / "to", form, "light-curves")
    one_line(caught.value)
    assert not (tmp_path / "to").exists()


def test_detectors_of_other_settings(visits: Dataset, tmp_path: Path) -> None:
    """A card is written for the settings that both share; the rest is in their provenance."""
    one = folder(visits, tmp_path / "one", product="light-curves")
    two = folder(visits, tmp_path / "two", CONFIG.replace(reduce="mean"), product="light-curves")
    for visit in ("0", "1"):
        for file in (two / "5" / visit).glob("FGS1.*"):
            shutil.copy(file, one / "5" / visit)
    (path, _) = export(gpucal.open_results(one), tmp_path / "to", "fits", "light-curves")
    header = fits.getheader(path)
    assert "GPUCAL REDUCE" not in header
    assert header["GPUCAL GAIN"] == "divide"
    made = [json.loads(row["PROVENANCE"])["settings"]["reduce"] for row in Table.read(path, hdu="DETECTORS")]
    assert made == ["mean", "sum"]


# Exports that are refused


@pytest.mark.parametrize("form", FORMS)
def test_cubes_without_variances(visits: Dataset, curves: Path, tmp_path: Path, form: str) -> None:
    """They hold the same light curves with errors as the other product."""
    out = folder(visits, tmp_path / "out", variance=False)
    of_cubes = export(gpucal.open_results(out), tmp_path / "to", form, "light-curves")
    of_curves = export(gpucal.open_results(curves), tmp_path / "other", form, "light-curves")
    assert [path.name for path in of_cubes] == [path.name for path in of_curves]
    if form == "csv":
        assert of_cubes[0].read_bytes() == of_curves[0].read_bytes()
    if form == "npy":
        for one, other in zip(of_cubes[:2], of_curves[:2], strict=True):
            assert one.read_bytes() == other.read_bytes()
            assert np.isfinite(np.load(one)).any()


@pytest.mark.parametrize(
    ("form", "product", "problem"),
    [
        ("zarr", "light-curves", "^format = 'zarr': must be one of npy, parquet, fits, ecsv, csv; cubes can be zarr"),
        ("feather", "light-curves", "^format = 'feather': must be one of npy, parquet, fits, ecsv, csv$"),
        ("npy", "images", "^product = 'images': must be one of cubes, light-curves$"),
    ],
)
def test_what_there_is_not(curves: Path, tmp_path: Path, form: str, product: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        export(gpucal.open_results(curves), tmp_path / "to", form, product)


def test_npy_never_replaces_the_results_own_files(curves: Path) -> None:
    before = files(curves)
    with pytest.raises(OutputError, match="is where the results' own files are; choose another"):
        export(gpucal.open_results(curves), curves, "npy", "light-curves")
    assert files(curves) == before


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_midway_keeps_what_was_there(curves: Path, tmp_path: Path, form: str) -> None:
    copy, to = shutil.copytree(curves, tmp_path / "copy"), tmp_path / "to"
    export(gpucal.open_results(copy), to, form, "light-curves")
    before = {name: (to / name).read_bytes() for name in files(to)}
    (copy / "5" / "1" / "FGS1.error.npy").write_bytes(b"damaged")
    with pytest.raises(OutputError, match=r"FGS1\.error\.npy: is damaged; ") as caught:
        export(gpucal.open_results(copy), to, form, "light-curves")
    one_line(caught.value)
    assert {name: (to / name).read_bytes() for name in files(to)} == before


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk(curves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=FULL) as caught:
        export(gpucal.open_results(curves), tmp_path / "to", form, "light-curves")
    one_line(caught.value)
    assert files(tmp_path) == set()
