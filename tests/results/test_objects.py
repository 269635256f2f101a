"""Results that show themselves: ids, observations, tables in the competition's names, short reprs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from stored import CONFIG, folder

import gpucal
from gpucal.errors import InputError, OutputError, Unstackable
from gpucal.results.observation import CalibratedObservation
from gpucal.settings.detectors import curve_name
from gpucal.synthetic.competition import synthesize

WL = [f"wl_{k}" for k in range(1, 284)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two planets of two visits, and their results with variances. Not to be written to."""
    home = tmp_path_factory.mktemp("made")
    synthesize(home / "raw", layout="2025", planets=2, visits=2, frames=120)
    bins = {"AIRS-CH0": 15, "FGS1": 180}
    gpucal.run(gpucal.open_dataset(home / "raw"), home / "out", gpucal.Calibration(bins=bins), variance=True)
    return home


@pytest.fixture(scope="module")
def res(made: Path) -> gpucal.Results:
    return gpucal.open_results(made / "out")


def test_ids_and_observations(made: Path, res: gpucal.Results) -> None:
    ds = gpucal.open_dataset(made / "raw")
    assert list(res) == res.ids
    assert [ds[key].key for key in res] == res.ids
    planet = res.ids[0][0]
    for key, expected in (
        (planet, (planet, 0)),
        ((planet, 1), (planet, 1)),
        (str(planet), (planet, 0)),
        (np.int64(planet), (planet, 0)),
        ((float(planet), "1"), (planet, 1)),
    ):
        obs = res[key]  # type: ignore[index]
        assert isinstance(obs, CalibratedObservation)
        assert obs.key == ds[key].key == expected  # type: ignore[index]
    assert [*obs] == ["AIRS-CH0", "FGS1"]
    assert "FGS1" in obs
    assert "FGS2" not in obs
    np.testing.assert_array_equal(obs["FGS1"].signal, res["FGS1"][1])
    assert {name: cal.signal.shape[0] for name, cal in obs.items()} == {"AIRS-CH0": 4, "FGS1": 4}


@pytest.mark.parametrize("key", [3, (3, 0), "77", (1, 2, 3), [], None, 2.5, slice(2)])
def test_others_are_one_line(res: gpucal.Results, key: object) -> None:
    with pytest.raises(OutputError, match="no complete") as error:
        res[key]  # type: ignore[index]
    assert "\n" not in str(error.value)


def test_a_visit_that_is_missing_names_those_that_are_there(res: gpucal.Results) -> None:
    with pytest.raises(OutputError, match="it has visit 0 and 1"):
        res[res.ids[0][0], 7]
    with pytest.raises(KeyError, match="no detector 'FGS2'"):
        res["FGS2"]


def test_the_first_visit_is_the_first_that_is_complete(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made / "out", tmp_path / "out")
    planet = gpucal.open_results(out).ids[0][0]
    (out / str(planet) / "0" / "FGS1.json").unlink()
    assert gpucal.open_results(out)[planet].key == (planet, 1)


def test_completions(res: gpucal.Results) -> None:
    (first, _), _, (second, _), _ = res.ids
    expected = ["AIRS-CH0", "FGS1", first, second, (first, 1), (second, 1)]
    assert res._ipython_key_completions_() == expected
    assert res[first]._ipython_key_completions_() == ["AIRS-CH0", "FGS1"]


def test_table(made: Path, res: gpucal.Results) -> None:
    table = res.table()
    assert list(table)[:7] == ["planet_id", "visit", "detector", "status", "seconds", "backend", "version"]
    items = [(*key, name) for key in res.ids for name in ("AIRS-CH0", "FGS1")]
    assert [*table[["planet_id", "visit", "detector"]].itertuples(index=False, name=None)] == items
    assert set(table["status"]) == {"done"}
    assert (table["seconds"] > 0).all()
    assert set(table["version"]) == {gpucal.__version__}
    ds = gpucal.open_dataset(made / "raw")
    stars = table.merge(ds.stars())
    assert len(stars) == 8
    assert list(stars) == [*table, "Rs", "Ms", "Ts", "Mp", "e", "P", "sma", "i"]
    assert len(table.merge(ds.labels())) == 8
    assert len(table.merge(ds.table())) == 8


def test_quality_becomes_columns(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made / "out", tmp_path / "out")
    before = gpucal.open_results(out).table()
    first = gpucal.open_results(out).ids[0]
    path = out / str(first[0]) / "0" / "FGS1.json"
    record = json.loads(path.read_text())
    quality = {"drift": 81.5, "hits": {"HOT": 3, "in_trace": {"HOT": 1}}, "seconds": 2, "status": None}
    path.write_text(json.dumps({**record, "quality": quality}))
    table = gpucal.open_results(out).table()
    added = ["drift", "hits_HOT", "hits_in_trace_HOT", "quality_seconds", "quality_status"]
    assert {*table} == {*before, *added}
    row = table[(table["detector"] == "FGS1") & (table["planet_id"] == first[0]) & (table["visit"] == 0)]
    assert row[added[:4]].to_numpy().tolist() == [[81.5, 3, 1, 2]]
    assert table["drift"].isna().sum() == 7
    assert row["white_flux"].isna().all()


@pytest.mark.parametrize("without", [{}, {"quality": "none"}])
def test_quality_that_a_record_lacks_is_computed(
    without: dict[str, str], made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(made / "out", tmp_path / "out")
    expected = gpucal.open_results(out).table()
    for path in out.glob("*/*/*.json"):
        record = json.loads(path.read_text())
        del record["quality"]
        path.write_text(json.dumps(record | without))
    found = gpucal.open_results(out).table()
    assert list(found) == list(expected)
    for name in expected.columns[7:]:
        # of cubes as they are stored, in single precision
        np.testing.assert_allclose(found[name].astype(float), expected[name].astype(float), rtol=1e-3, atol=0.5)
    assert caplog.messages == []
    (out / str(found["planet_id"][0]) / "0" / "FGS1.signal.npy").write_bytes(b"")
    assert gpucal.open_results(out).table()["white_flux"].isna().sum() == 1
    (line,) = caplog.messages
    assert "FGS1: numbers on its quality cannot be computed: " in line
    assert "FGS1.signal.npy: is damaged" in line


def test_failures(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = shutil.copytree(made / "raw", tmp_path / "raw")
    ds = gpucal.open_dataset(raw)
    first, second, *_ = ds
    airs, fgs1 = gpucal.settings.detectors.DETECTORS.values()
    first.signal_path(airs).write_bytes(b"PAR1")
    (second.calibration_path(fgs1) / "dark.parquet").unlink()
    gpucal.run(ds, tmp_path / "out", gpucal.Calibration(bins={"AIRS-CH0": 15, "FGS1": 180}))
    res = gpucal.open_results(tmp_path / "out")
    failures = res.failures()
    assert list(failures) == ["planet_id", "visit", "detector", "problem", "mend", "file"]
    again = "copy it again from the competition data"
    assert [*failures.itertuples(index=False, name=None)] == [
        (*first.key, "AIRS-CH0", "is not a Parquet file (4 bytes)", again, str(first.signal_path(airs))),
        (
            *second.key,
            "FGS1",
            "calibration file is missing",
            again,
            str(second.calibration_path(fgs1) / "dark.parquet"),
        ),
    ]
    assert res.table()["status"].value_counts().to_dict() == {"done": 6, "failed": 2}
    assert res.table()["seconds"].isna().sum() == 2
    assert "failed" in repr(res)


@pytest.mark.parametrize("where", ["", "planet 5 visit 1 AIRS-CH0"])
@pytest.mark.parametrize("path", [None, Path("/a b/c.parquet"), Path("x.csv"), Path("/a/folder"), Path("r/d.parquet")])
@pytest.mark.parametrize("problem", ["is damaged", "has 3 pages: 4 were expected", "odd; (see above)"])
def test_lines_are_taken_apart(where: str, path: Path | None, problem: str) -> None:
    error = InputError(problem, "copy it again", path, where)
    found = InputError.parsed(str(error))
    assert (found.problem, found.mend, found.path, found.where) == (problem, "copy it again", path, where)


def test_no_failures_and_other_lines(res: gpucal.Results) -> None:
    assert len(res.failures()) == 0
    assert list(res.failures()) == ["planet_id", "visit", "detector", "problem", "mend", "file"]
    other = InputError.parsed("failed")
    assert (other.problem, other.mend, other.path, other.where) == ("failed", "", None, "")


def test_curves_have_the_competitions_names(made: Path, res: gpucal.Results) -> None:
    table = res.light_curve_table()
    assert list(table) == ["planet_id", "visit", "bin", "time", *WL, *(f"{name}_error" for name in WL)]
    assert [str(kind) for kind in table.dtypes[:5]] == ["int64", "int64", "int32", "float64", "float32"]
    assert [*table[["planet_id", "visit", "bin"]].itertuples(index=False, name=None)] == [
        (*key, k) for key in res.ids for k in range(4)
    ]
    both = res.light_curves_with_errors()
    np.testing.assert_array_equal(table[WL], both.flux.reshape(-1, 283).astype("float32"))
    errors = table[[f"{name}_error" for name in WL]]
    np.testing.assert_array_equal(errors, both.error.reshape(-1, 283).astype("float32"))
    np.testing.assert_array_equal(table["time"][:4], res.axes(res.ids[0], "AIRS-CH0")["time"])
    um = res.axes(res.ids[0], "AIRS-CH0")["wavelength"]
    assert table.attrs["wavelengths"] == dict(zip(WL[1:], um.tolist(), strict=True))
    units = table.attrs["units"]
    assert {units["time"], units["wl_1"], units["wl_283_error"], units["wavelengths"]} == {"h", "electron", "um"}
    pd.concat([table, table])
    table.to_parquet(made / "table.parquet")
    assert pd.read_parquet(made / "table.parquet").attrs == table.attrs


def test_curves_with_labels(made: Path, res: gpucal.Results, tmp_path: Path) -> None:
    ds = gpucal.open_dataset(made / "raw")
    labels = ds.labels()
    table = res.light_curve_table(labels=True)
    assert list(table)[-283:] == [f"{name}_label" for name in WL]
    assert len(table) == 16
    of = {planet: values for planet, *values in labels.itertuples(index=False, name=None)}
    for planet, rows in table.groupby("planet_id"):
        np.testing.assert_array_equal(rows.iloc[:, -283:], [of[planet]] * 8)
    assert table.attrs["wavelengths"]
    pd.testing.assert_frame_equal(res.light_curve_table(labels), table)
    out = shutil.copytree(made / "out", tmp_path / "out")
    for path in out.glob("*/*/*.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "dataset"}))
    with pytest.raises(OutputError, match=r"does not say from which data set it is; give labels=ds\.labels\(\)"):
        gpucal.open_results(out).light_curve_table(labels=True)


def test_curves_without_read_noise_have_no_errors(visits: gpucal.Dataset, tmp_path: Path) -> None:
    raw = shutil.copytree(visits.path, tmp_path / "raw")
    for path in raw.rglob("read.parquet"):
        path.unlink()
    res = gpucal.open_results(folder(gpucal.open_dataset(raw), tmp_path / "out"))
    table = res.light_curve_table()
    assert table[[f"{name}_error" for name in WL]].isna().all(axis=None)
    np.testing.assert_array_equal(table[WL], res.light_curves().reshape(-1, 283).astype("float32"))


def test_curves_that_were_stored(visits: gpucal.Dataset, tmp_path: Path) -> None:
    res = gpucal.open_results(folder(visits, tmp_path / "out", product="light-curves", dtype="float64"))
    both = res.light_curves_with_errors()
    table = res.light_curve_table()
    np.testing.assert_array_equal(table[[*WL]], both.flux.reshape(-1, 283))
    np.testing.assert_array_equal(table[[f"{name}_error" for name in WL]], both.error.reshape(-1, 283))
    assert "light curves (4, 282)" in repr(res)
    assert "not stored, but flux, error" in repr(res["FGS1"])
    assert "<path" in res._repr_html_()


def test_curves_of_other_columns_have_their_own_names(visits: gpucal.Dataset, tmp_path: Path) -> None:
    config = CONFIG.replace(crop={"AIRS-CH0": (37, 41)})
    out = folder(visits, tmp_path / "out", config)
    assert [*gpucal.open_results(out).light_curve_table()][4:9] == [
        "wl_1",
        "AIRS-CH0_037",
        "AIRS-CH0_038",
        "wl_2",
        "wl_3",
    ]
    gpucal.run(visits, out, CONFIG, backend="numpy", overwrite=True, planets=[5], shard=None)
    some = folder(gpucal.open_dataset(visits.path), tmp_path / "some", CONFIG)
    shutil.rmtree(some / "5" / "1")
    mixed = gpucal.open_results(some, folder(visits, tmp_path / "other", config))
    with pytest.raises(Unstackable, match="differ in their columns"):
        mixed.light_curve_table()


def test_names() -> None:
    assert [curve_name("FGS1", None), curve_name("AIRS-CH0", 39), curve_name("AIRS-CH0", 320)] == [
        "wl_1",
        "wl_2",
        "wl_283",
    ]
    assert [curve_name("AIRS-CH0", column) for column in (0, 38, 321)] == [
        "AIRS-CH0_000",
        "AIRS-CH0_038",
        "AIRS-CH0_321",
    ]


def is_short(text: str) -> bool:
    return len(text.splitlines()) <= 8 and len(text) <= 800


def test_reprs(made: Path, res: gpucal.Results) -> None:
    planet = res.ids[0][0]
    assert is_short(repr(res))
    assert "4 observations complete" in repr(res)
    assert "ariel2025 with bins={'AIRS-CH0': 15, 'FGS1': 180}" in repr(res)
    assert is_short(repr(res[planet]))
    assert f"planet {planet} visit 0" in repr(res[planet])
    for name, shape in (("AIRS-CH0", "(4, 282, 32), float32"), ("FGS1", "(4, 32, 32), float32")):
        assert is_short(repr(res[name]))
        assert f"ResultArray {name} signal: 4 observations" in repr(res[name])
        assert shape in repr(res[name])
    for cal in res[planet].values():
        text = repr(cal)
        assert is_short(text)
        for part in (cal.where, str(cal.signal.shape), "electrons", "flags", "ariel2025", "gpucal 0."):
            assert part in text
    for thing, panels in ((res, 4), (res[planet], 2), (res[planet]["FGS1"], 1)):
        root = ElementTree.fromstring(thing._repr_html_())
        assert len([*root.iter("{http://www.w3.org/2000/svg}path")]) == panels


def test_a_damaged_folder_is_still_shown(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made / "out", tmp_path / "out")
    res = gpucal.open_results(out)
    for path in out.glob("*/*/*.signal.npy"):
        path.write_bytes(b"x")
    assert is_short(repr(res))
    for html in (res._repr_html_(), res[res.ids[0]]._repr_html_()):
        assert "is damaged; remove it" in html
        assert "<svg" not in html


def test_an_empty_folder_is_shown(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made / "out", tmp_path / "out")
    for path in out.glob("*/*/FGS1.json"):
        path.unlink()
    res = gpucal.open_results(out)
    assert list(res) == []
    assert "0 observations complete" in repr(res)
    assert repr(res["FGS1"]) == "<gpucal ResultArray FGS1 signal: 0 observations>"
    assert "<svg" not in res._repr_html_()
    assert len(res.table()) == 4
    with pytest.raises(OutputError, match="no observation is complete"):
        res.light_curve_table()


def test_a_planet_is_its_first_visit_in_every_method(res: gpucal.Results) -> None:
    first, key = res.ids[0][0], res.ids[0]
    for planet in (first, str(first), np.int64(first)):
        assert res.calibrated(planet, "FGS1").visit == key[1]
        assert np.array_equal(res.light_curve(planet, "FGS1"), res.light_curve(key, "FGS1"))
        for (time, flux), (expected_time, expected) in zip(
            res.white_light(planet).values(), res.white_light(key).values(), strict=True
        ):
            assert np.array_equal(time, expected_time)
            assert np.array_equal(flux, expected)
        assert np.array_equal(res.light_curves_of(planet), res.light_curves_of(key))
        assert res.axes(planet, "AIRS-CH0").keys() == res.axes(key, "AIRS-CH0").keys()
    with pytest.raises(OutputError, match="no complete 99 in it"):
        res.white_light(99)
