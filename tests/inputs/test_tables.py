"""Tables of a data set: what is in it, its stars, its labels, in the competition's names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

import gpucal
from gpucal.errors import DatasetError, InputError
from gpucal.inputs import signal_file
from gpucal.inputs.signal_file import frames_in
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import synthesize

LAYOUTS = ("2024", "2025")


@pytest.fixture(scope="module", params=LAYOUTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two train planets. Not to be written to."""
    folder = tmp_path_factory.mktemp("made") / "raw"
    synthesize(folder, layout=request.param, planets=2, frames=60)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(made, tmp_path / "raw")


def test_observations(made: Path) -> None:
    ds = gpucal.open_dataset(made)
    table = ds.table()
    assert list(table) == ["planet_id", "visit", "split", "files", "frames", "frames_FGS1"]
    assert [*table[["planet_id", "visit"]].itertuples(index=False, name=None)] == [obs.key for obs in ds]
    assert table["planet_id"].dtype == "int64"
    assert [*table.drop(columns=["planet_id", "visit"]).itertuples(index=False, name=None)] == [
        ("train", 12, 60, 720)
    ] * 2


def test_observations_that_lack_something(folder: Path) -> None:
    ds = gpucal.open_dataset(folder)
    airs, fgs1 = (ds[ds.planets[at]].signal_path(DETECTORS[name]) for at, name in ((0, "AIRS-CH0"), (1, "FGS1")))
    airs.unlink()
    fgs1.write_bytes(b"PAR1")
    table = ds.table()
    assert table["files"].tolist() == [11, 12]
    assert table["frames"].isna().tolist() == [True, False]
    assert table["frames_FGS1"].isna().tolist() == [False, True]
    for path, problem in ((airs, "signal is missing"), (fgs1, "is not a Parquet file")):
        with pytest.raises(InputError, match=problem):
            frames_in(path)


@pytest.mark.parametrize("size", [1, 16, 5_000, 2**19, 2**30])
def test_frames_wherever_the_schema_ends(made: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(signal_file, "_SCHEMA", size)
    (obs, *_) = gpucal.open_dataset(made)
    assert [frames_in(obs.signal_path(detector)) for detector in DETECTORS.values()] == [60, 720]


@pytest.mark.parametrize("damage", [slice(0, 4), slice(4, 8), slice(10, 400)])
def test_frames_of_a_damaged_footer(folder: Path, damage: slice) -> None:
    (obs, *_) = gpucal.open_dataset(folder)
    path = obs.signal_path(DETECTORS["AIRS-CH0"])
    content = bytearray(path.read_bytes())
    at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[at + damage.start : at + damage.stop] = b"\xff" * (damage.stop - damage.start)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable Parquet file: its footer"):
        frames_in(path)


def test_stars(made: Path) -> None:
    ds = gpucal.open_dataset(made)
    stars = ds.stars()
    assert stars["planet_id"].tolist() == ds.planets
    assert stars["planet_id"].dtype == "int64"
    expected = ["star"] if ds.layout.name == "2024" else ["Rs", "Ms", "Ts", "Mp", "e", "P", "sma", "i"]
    assert list(stars) == ["planet_id", *expected]
    assert stars.notna().all(axis=None)
    merged = ds.table().merge(stars)
    assert len(merged) == 2
    assert set(merged) == {*ds.table(), *stars}


def test_labels(made: Path) -> None:
    ds = gpucal.open_dataset(made)
    labels = ds.labels()
    assert list(labels) == ["planet_id", *(f"wl_{k}" for k in range(1, 284))]
    path = made / ("train_labels.csv" if ds.layout.name == "2024" else "train.csv")
    expected = pd.read_csv(path, index_col="planet_id").loc[ds.planets]
    pd.testing.assert_frame_equal(labels.set_index("planet_id"), expected, rtol=1e-12)
    um = labels.attrs["wavelengths"]
    assert [*um] == list(labels)[1:]
    assert um["wl_2"] > um["wl_283"] > um["wl_1"]
    pd.concat([labels, labels])  # attributes that cannot be compared would raise


def test_ids_as_floats_order_and_others(folder: Path) -> None:
    """As the official 2025 test_star_info.csv has them."""
    ds = gpucal.open_dataset(folder)
    name = "train_labels.csv" if ds.layout.name == "2024" else "train.csv"
    header, *lines = (folder / name).read_text().splitlines()
    changed = [f"{line.partition(',')[0]}.0,{line.partition(',')[2]}" for line in lines]
    other = "77," + lines[0].partition(",")[2]
    (folder / name).write_text("\ufeff" + "\r\n".join([header, other, *changed[::-1], changed[0], "", ",,"]), "utf-8")
    assert ds.labels()["planet_id"].tolist() == ds.planets


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: "", "table is empty"),
        (lambda text: text.replace("planet_id", "planet"), "has no column planet_id"),
        (lambda text: text.replace("wl_2,", "wl_1,"), "has two columns of one name"),
        (lambda text: text + "x,1\n", "line 4 has planet_id 'x', which is not a planet id"),
        (lambda text: text + "5,1\n", "line 4 has 2 values, and the header has 284"),
        (lambda text: text + "5" + ",x" * 283 + "\n", "line 4 has wl_1 'x', which is not a number"),
        (
            lambda text: text + text.splitlines()[1].partition(",")[0] + ",1" * 283 + "\n",
            "gives planet .* other values",
        ),
        (lambda text: text.replace("planet_id", "\udcff"), "table cannot be read"),
    ],
)
def test_unusable_labels_are_one_line(folder: Path, change: object, problem: str) -> None:
    ds = gpucal.open_dataset(folder)
    path = folder / ("train_labels.csv" if ds.layout.name == "2024" else "train.csv")
    path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))  # type: ignore[operator]
    with pytest.raises(InputError, match=problem) as error:
        ds.labels()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_equal_lines_without_a_value_count_once(folder: Path) -> None:
    ds = gpucal.open_dataset(folder)
    path = folder / ("train_labels.csv" if ds.layout.name == "2024" else "train.csv")
    header, first, *rest = path.read_text().splitlines()
    lacking = first.rpartition(",")[0] + ","
    path.write_text("\n".join([header, lacking, *rest, lacking]) + "\n")
    assert ds.labels()["wl_283"].isna().sum() == 1


def test_missing_tables(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in folder.glob("train*.csv"):
        if "adc" not in path.name:
            path.unlink()
    ds = gpucal.open_dataset(folder)
    with pytest.raises(DatasetError, match=r"no train(_labels)?\.csv; copy it from the competition data"):
        ds.labels()
    if ds.layout.name == "2025":
        with pytest.raises(DatasetError, match=r"no train_star_info\.csv; copy it"):
            ds.stars()
    (folder / "wavelengths.csv").unlink()


def test_a_missing_table_of_one_split_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    if (folder / "train_adc_info.csv").exists():
        shutil.copy(folder / "train_adc_info.csv", folder / "test_adc_info.csv")
    (folder / "test").mkdir()
    planet = gpucal.open_dataset(folder).planets[0]
    (folder / "train" / str(planet)).rename(folder / "test" / str(planet))
    ds = gpucal.open_dataset(folder)
    assert len(ds.labels()) == 2  # by their planets, wherever these lie
    assert len(ds.stars()) == (2 if ds.layout.name == "2024" else 1)
    assert ("no test_star_info.csv" in caplog.text) == (ds.layout.name == "2025")


def test_reprs(made: Path) -> None:
    ds = gpucal.open_dataset(made)
    (first, *_) = ds
    for text in (repr(ds), repr(first)):
        assert len(text.splitlines()) <= 8
        assert len(text) <= 800
    assert repr(ds) == f"<gpucal Dataset {made}: {ds.layout.name} layout, 2 observations>"
    assert repr(first).startswith(f"<gpucal Observation planet {first.planet} visit 0\n")
    assert "MB of raw reads" in repr(first)
    for html in (ds._repr_html_(), first._repr_html_()):
        assert html.startswith("<div")
        assert str(first.planet) in html
    assert ds._ipython_key_completions_() == ds.planets


def test_completions_name_further_visits(visits: gpucal.Dataset) -> None:
    assert visits._ipython_key_completions_() == [5, (5, 1)]


def test_observation_without_files(folder: Path) -> None:
    (first, *_) = gpucal.open_dataset(folder)
    shutil.rmtree(folder / "train" / str(first.planet))
    assert "no raw reads, no calibration frames" in repr(first)
