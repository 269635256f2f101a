"""An id whose value is an integer is that integer, wherever ids are given; what a type cannot hold is an error."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Made

import gpucal
from gpucal import Calibration
from gpucal.cli.main import main
from gpucal.cli.parser import parsed
from gpucal.errors import DatasetError, OutputError, RunWarning
from gpucal.settings.ids import as_id, ids_in

LARGE = 4_169_614_766

SAME = [
    (17, 17),
    (17.0, 17),
    ("17", 17),
    ("17.0", 17),
    (" 17.000 ", 17),
    ("1.7e1", 17),
    (np.int8(17), 17),
    (np.uint32(LARGE), LARGE),
    (np.float32(1_103_775), 1_103_775),
    (np.float64(LARGE), LARGE),
    (np.str_("1103775.0"), 1_103_775),
    (pd.Series([1_103_775.0, np.nan])[0], 1_103_775),
    (pd.Series([LARGE, None], dtype="Int64")[0], LARGE),
    (pd.Series(["4169614766.0"], dtype="string")[0], LARGE),
    (pd.DataFrame({"planet_id": [LARGE]}).set_index("planet_id").index[0], LARGE),
    (Decimal("17.0"), 17),
    (Fraction(34, 2), 17),
    (0, 0),
]


@pytest.mark.parametrize(("value", "expected"), SAME, ids=lambda value: repr(value)[:40])
def test_the_same_integer(value: object, expected: int) -> None:
    found = as_id(value)
    assert found == expected
    assert type(found) is int


ROUNDED = [np.float32(LARGE), np.float32(2**24), np.float16(4096), float(2**53), np.int32(LARGE - 2**32)]
NONE = [
    "",
    "x",
    "17.5",
    "1_7",
    "\u0661\u0667",
    "1e999999",
    "nan",
    "inf",
    "-17",
    "0x11",
    b"17",
    True,
    np.True_,
    2.5,
    -17,
]
NEITHER = [None, pd.NA, pd.NaT, math.nan, math.inf, np.float64("nan"), 10**400, Decimal("NaN"), 1j, np.array(17), [17]]


@pytest.mark.parametrize("value", [*ROUNDED, *NONE, *NEITHER], ids=lambda value: repr(value)[:40])
def test_no_id(value: object) -> None:
    assert as_id(value) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [("17", ["17"]), (17, [17]), (np.int64(17), [17]), ([17, "23"], [17, "23"]), (pd.Series([17.0]), [17.0])],
    ids=lambda value: repr(value)[:20],
)
def test_one_or_several(given: object, expected: list[object]) -> None:
    assert ids_in(given) == expected


@pytest.mark.parametrize("key", [17.0, "17", "17.0", np.float32(17), pd.Series([17.0])[0], (17.0, "0"), ("17", 0.0)])
def test_a_data_set_takes_them(planets: gpucal.Dataset, key: object) -> None:
    obs = planets[key]
    assert (obs.key, type(obs.planet)) == ((17, 0), int)
    assert key in planets
    assert planets.visits(key[0] if isinstance(key, tuple) else key) == [0]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (np.float32(LARGE), "float32 cannot hold every id of this size; use int64"),
        (np.int32(LARGE - 2**32), "it may have been too large for int32; use int64"),
        ((np.float32(LARGE), 0), "float32 cannot hold"),
        (17.5, "an id is an integer, not float"),
        (None, "an id is an integer, not NoneType"),
        ("17,23", "no planet 17,23 among its 2 observations"),
    ],
    ids=str,
)
def test_what_cannot_be_one_is_an_error_that_says_why(planets: gpucal.Dataset, key: object, says: str) -> None:
    assert key not in planets
    with pytest.raises(DatasetError) as error:
        planets[key]
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def results(old: Made, tmp_path_factory: pytest.TempPathFactory) -> gpucal.Results:
    out = tmp_path_factory.mktemp("ids") / "out"
    config = Calibration(bins={"AIRS-CH0": 7, "FGS1": 16})
    summary = gpucal.run(gpucal.open_dataset(old[0]), out, config, planets="17.0", variance=True)
    assert (summary.done, summary.failed) == (2, {})
    return gpucal.open_results(out)


@pytest.mark.parametrize("wanted", [[23.0], ("23",), pd.Series([23, 23.0]), np.array([23], np.float32), 23, "23"])
def test_a_run_takes_them(results: gpucal.Results, old: Made, wanted: object) -> None:
    again = Calibration(bins={"AIRS-CH0": 7, "FGS1": 16})
    summary = gpucal.run(gpucal.open_dataset(old[0]), results.path, again, planets=wanted, variance=True)
    assert (summary.done + summary.skipped, summary.failed) == (2, {})
    assert gpucal.open_results(results.path).ids == [(17, 0), (23, 0)]


@pytest.mark.parametrize("key", [(17.0, 0), ("17", 0), ("17.0", np.int8(0)), (np.float32(17), 0.0)], ids=str)
def test_results_take_them(results: gpucal.Results, key: tuple[int, int]) -> None:
    assert key in results
    assert key[0] in results
    cal, expected = results.calibrated(key, "FGS1"), results.calibrated((17, 0), "FGS1")
    assert (cal.planet, cal.visit, type(cal.planet)) == (17, 0, int)
    np.testing.assert_array_equal(cal.variance, expected.variance)
    np.testing.assert_array_equal(results.light_curves_of(key), results.light_curves_of((17, 0)))
    np.testing.assert_array_equal(results.axes(key, "AIRS-CH0")["time"], results.axes((17, 0), "AIRS-CH0")["time"])


@pytest.mark.parametrize("key", [(np.float32(LARGE), 0), ("seventeen", 0), (17.5, 0)], ids=str)
def test_results_without_them(results: gpucal.Results, key: tuple[int, int]) -> None:
    assert key not in results
    with pytest.raises(OutputError, match="no complete planet"):
        results.calibrated(key, "FGS1")


def test_the_command_line_takes_them(results: gpucal.Results, capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(["calibrate", "a", "b", "--planet", "1103775.0,17.", "4.169614766e9"]).planet == [1103775, 17, LARGE]
    assert main(["plot", str(results.path), "17.0"]) == 0
    assert (results.path / "17-0.png").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(["plot", str(results.path), "17.5"])
    assert error.value.code == 2
    assert "'17.5' is not a planet id" in capsys.readouterr().err


ODD = {
    "leading zeros": ("0017", "0017 (rename it to 17) is left out, as its name is not a planet id"),
    "a float": ("17.0", "17.0 (rename it to 17) is left out"),
    "other digits": ("\uff11\uff17", "\uff11\uff17 is left out"),
    "a word": ("planet_17", "planet_17 is left out"),
    "not UTF-8": ("17\udcff", "17\udcff is left out"),
}


@pytest.mark.parametrize("name", ODD)
def test_folders_of_other_names_are_warned_of(
    name: str, old: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, line = ODD[name]
    linked(old, tmp_path, {"23": "23", folder: "17"})
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert gpucal.open_dataset(tmp_path).planets == [23]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert line in record.getMessage()
    assert record.getMessage().startswith(f"{tmp_path / 'train'}: ")


def linked(made: Made, folder: Path, names: dict[str, str]) -> None:
    """Make a competition folder of links, from a planet's folder there to the name of one that is made."""
    (folder / "train").mkdir()
    for beside in ("axis_info.parquet", "train_adc_info.csv"):
        (folder / beside).symlink_to(made[0] / beside)
    for name, target in names.items():
        (folder / "train" / name).symlink_to(made[0] / "train" / target)


def test_many_folders_of_other_names_are_one_warning(
    old: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    linked(old, tmp_path, {"17": "17", **{f"x{number}": "23" for number in range(9)}})
    assert gpucal.open_dataset(tmp_path).planets == [17]
    (line,) = caplog.messages
    assert "x0, x1, x2 and 6 more are left out, as their names are not planet ids" in line.replace(
        "a planet id", "planet ids"
    )


def test_planets_that_are_links_to_nowhere_are_warned_of(
    old: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    linked(old, tmp_path, {"17": "17", "23": "gone", "x": "gone"})
    (tmp_path / "train" / "31").symlink_to("31")  # in a circle
    assert gpucal.open_dataset(tmp_path).planets == [17]
    for name, target in (("23", old[0] / "train" / "gone"), ("x", old[0] / "train" / "gone"), ("31", "31")):
        line = f"{tmp_path / 'train' / name}: is left out: is a link to {target}, which does not exist; mend the link"
        assert any(message.startswith(line) for message in caplog.messages)


LINKS = {
    "signal": "train/17/FGS1_signal.parquet",
    "calibration folder": "train/17/FGS1_calibration",
    "calibration file": "train/17/FGS1_calibration/flat.parquet",
}


@pytest.mark.parametrize("name", LINKS)
def test_files_that_are_links_to_nowhere_cost_their_item(name: str, source: Path, tmp_path: Path) -> None:
    place, kept = source / LINKS[name], tmp_path / "kept"
    place.rename(kept)
    place.symlink_to("gone")
    try:
        with pytest.warns(RunWarning):
            summary = gpucal.run(gpucal.open_dataset(source), tmp_path / "out", Calibration(bins={"FGS1": 16}))
    finally:
        place.unlink()
        kept.rename(place)
    ((where, line),) = summary.failed.items()
    assert where == "planet 17 visit 0 FGS1"
    assert "is a link to gone, which does not exist; mend the link" in line
    assert "\n" not in line


@pytest.mark.parametrize("name", ["train", "axis_info.parquet", "train_adc_info.csv"])
def test_links_to_nowhere_of_the_data_set(name: str, old: Made, tmp_path: Path) -> None:
    linked(old, tmp_path, {"17": "17"})
    if name == "train":
        (tmp_path / "train" / "17").unlink()
        (tmp_path / "train").rmdir()
    else:
        (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(DatasetError, match="is a link to gone, which does not exist"):
        gpucal.open_dataset(tmp_path)
