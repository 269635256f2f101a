"""Competition folders of both layouts: found without reading files, and opened on demand."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from gpucal.errors import DatasetError, GpucalError, InputError
from gpucal.inputs.dataset import LAYOUTS, Dataset, Observation, open_dataset
from gpucal.inputs.signal_file import open_signal
from gpucal.settings.calibration import PRESETS
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import synthesize

AIRS, FGS1 = DETECTORS["AIRS-CH0"], DETECTORS["FGS1"]


class Made(NamedTuple):
    path: Path
    planet: int


@pytest.fixture(scope="module")
def y2024(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a 2024 folder with one planet in train."""
    out = tmp_path_factory.mktemp("layouts") / "2024"
    return Made(out, *synthesize(out, frames=2, seed=3))


@pytest.fixture(scope="module")
def y2025(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a 2025 folder with two visits of one planet in test, each with calibration frames of its own."""
    out = tmp_path_factory.mktemp("layouts") / "2025"
    return Made(out, *synthesize(out, layout="2025", visits=2, frames=2, seed=4, splits=("test",)))


def hollow(path: Path, names: dict[str, list[str]], layout: str = "2025") -> Path:
    """Make a competition folder of empty files, from ``split/planet`` to its items; an item with a dot is a file."""
    path.mkdir(exist_ok=True)
    splits = {name.split("/")[0] for name in names}
    tables = ["axis_info.parquet", *(LAYOUTS[layout].adc.format(split=split) for split in splits)]
    for name in tables:
        (path / name).touch()
    for folder, items in names.items():
        (path / folder).mkdir(parents=True)
        for item in items:
            place = path / folder / item
            place.touch() if "." in item else place.mkdir()
    return path


def items(visits: int | None = None) -> list[str]:
    suffixes = [""] if visits is None else [f"_{visit}" for visit in range(visits)]
    kinds = (("signal", ".parquet"), ("calibration", ""))
    return [f"{name}_{kind}{suffix}{end}" for name in DETECTORS for suffix in suffixes for kind, end in kinds]


def keys(dataset: Dataset) -> list[tuple[int, int]]:
    return [observation.key for observation in dataset]


def refused(error: pytest.ExceptionInfo[GpucalError], *says: str) -> None:
    line = str(error.value)
    assert "\n" not in line
    for text in says:
        assert text in line


def test_layout_2024(y2024: Made) -> None:
    dataset = open_dataset(y2024.path)
    assert (dataset.layout.name, dataset.layout.preset) == ("2024", "ariel2024")
    (only,) = dataset
    assert (only.planet, only.visit, only.split, only.key) == (y2024.planet, 0, "train", (y2024.planet, 0))
    assert only.signal_path(AIRS) == y2024.path / "train" / str(y2024.planet) / "AIRS-CH0_signal.parquet"
    assert only.calibration_path(FGS1) == y2024.path / "train" / str(y2024.planet) / "FGS1_calibration"


def test_layout_2025(y2025: Made) -> None:
    dataset = open_dataset(y2025.path)
    assert (dataset.layout.name, dataset.layout.preset) == ("2025", "ariel2025")
    assert keys(dataset) == [(y2025.planet, 0), (y2025.planet, 1)]
    assert dataset.planets == [y2025.planet]
    assert dataset.visits(y2025.planet) == [0, 1]
    second = dataset[y2025.planet, 1]
    assert second.signal_path(FGS1) == y2025.path / "test" / str(y2025.planet) / "FGS1_signal_1.parquet"
    assert second.calibration_path(AIRS) == y2025.path / "test" / str(y2025.planet) / "AIRS-CH0_calibration_1"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_presets_of_layouts_exist(layout: str) -> None:
    assert LAYOUTS[layout].name == layout
    assert LAYOUTS[layout].preset in PRESETS


@pytest.mark.parametrize("layout", ["y2024", "y2025"])
@pytest.mark.parametrize("name", DETECTORS)
def test_everything_opens(layout: str, name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(layout)
    detector = DETECTORS[name]
    for observation in open_dataset(str(made.path)):
        signal = open_signal(observation.signal_path(detector), detector)
        assert observation.axis(detector).time_h.size == signal.n_frames
        assert observation.frames(detector).dark.shape == (detector.shape[0], detector.width)
        assert observation.adc(detector).gain > 0


def test_getitem_len_and_iteration(y2025: Made) -> None:
    dataset = open_dataset(y2025.path)
    first, second = dataset
    assert len(dataset) == 2
    assert dataset[y2025.planet] is dataset[y2025.planet, 0] is first
    assert dataset[y2025.planet, 1] is second
    assert list(dataset) == list(dataset)
    assert second.where(AIRS) == f"planet {y2025.planet} visit 1 AIRS-CH0"
    first, last = repr(dataset).split("\n")[0].split("...")  # a long path is shown without its middle
    assert f"<gpucal Dataset {y2025.path}".startswith(first)
    assert f"{y2025.path}: 2025 layout, 2 observations>".endswith(last)


def test_order_is_split_then_planet_then_visit(tmp_path: Path) -> None:
    names = {"test/3": items(1), "train/20": items(11), "train/100": items(2), "train/9": items(1)}
    dataset = open_dataset(hollow(tmp_path, names))
    twenty = [(20, visit) for visit in range(11)]
    assert keys(dataset) == [(9, 0), *twenty, (100, 0), (100, 1), (3, 0)]
    assert dataset.planets == [9, 20, 100, 3]


def test_visits_need_not_start_at_nought(tmp_path: Path) -> None:
    dataset = open_dataset(hollow(tmp_path, {"train/5": ["FGS1_signal_2.parquet", "AIRS-CH0_calibration_4"]}))
    assert dataset.visits(5) == [2, 4]
    assert dataset[5].visit == 2
    assert dataset.visits(6) == []


@pytest.mark.parametrize(("split", "planet", "gain"), [("train", 1, 0.5), ("test", 2, 0.25)])
def test_split(tmp_path: Path, split: str, planet: int, gain: float) -> None:
    hollow(tmp_path, {"train/1": items(), "test/2": items()}, "2024")
    for name, line in (("train", "1,0.5,0"), ("test", "2,0.25,0")):
        text = f"planet_id,FGS1_adc_gain,FGS1_adc_offset\n{line}\n"
        (tmp_path / f"{name}_adc_info.csv").write_text(text, encoding="utf-8")
    for dataset in (open_dataset(tmp_path, split=split), open_dataset(tmp_path)):
        assert dataset[planet].split == split
        assert dataset[planet].adc(FGS1).gain == gain
    assert open_dataset(tmp_path, split=split).planets == [planet]
    assert open_dataset(tmp_path).planets == [1, 2]


def test_a_split_needs_only_its_own_tables(tmp_path: Path) -> None:
    hollow(tmp_path, {"train/1": items(), "test/2": items()}, "2024")
    (tmp_path / "test_adc_info.csv").unlink()
    assert open_dataset(tmp_path, "train").planets == [1]
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path)
    refused(error, str(tmp_path), "test_adc_info.csv")


def test_planet_in_both_splits(tmp_path: Path) -> None:
    hollow(tmp_path, {"train/1": items(1), "train/2": items(1), "test/2": items(1)})
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path)
    refused(error, str(tmp_path), "planet 2", "choose one with split")
    assert open_dataset(tmp_path, "test")[2].split == "test"
    assert open_dataset(tmp_path, "train").planets == [1, 2]


def test_planet_in_both_splits_with_different_visits(tmp_path: Path) -> None:
    hollow(tmp_path, {"train/2": ["FGS1_signal_0.parquet"], "test/2": ["FGS1_signal_1.parquet"]})
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path)
    refused(error, "planet 2", "choose one with split")


def test_nothing_is_read_to_find_observations(y2025: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise AssertionError("a Parquet file was opened")

    copied = tmp_path / "copy"
    shutil.copytree(y2025.path, copied, ignore=shutil.ignore_patterns("truth"))
    signals = sorted(copied.rglob("*_signal_*.parquet"))
    for signal in signals:
        signal.write_bytes(b"")
    for name in ("ParquetFile", "read_table", "read_metadata"):
        monkeypatch.setattr(pq, name, fails)
    monkeypatch.setattr(Path, "open", fails)
    monkeypatch.setattr(Path, "read_bytes", fails)
    dataset = open_dataset(copied)
    assert keys(dataset) == keys(open_dataset(y2025.path))
    assert sorted(observation.signal_path(d) for observation in dataset for d in DETECTORS.values()) == signals


def test_empty_signals_fail_when_opened(tmp_path: Path) -> None:
    (observation,) = open_dataset(hollow(tmp_path, {"train/1": items(1)}))
    for use in (
        lambda: open_signal(observation.signal_path(AIRS), AIRS),
        lambda: observation.frames(AIRS),
        lambda: observation.axis(AIRS),
        lambda: observation.adc(AIRS),
    ):
        with pytest.raises(InputError) as error:
            use()
        refused(error, str(tmp_path), "; ")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planet_folder_with_nothing_in_it(tmp_path: Path, layout: str) -> None:
    dataset = open_dataset(hollow(tmp_path, {"train/5": [], "train/6": ["notes.txt"]}, layout))
    assert dataset.layout.name == layout
    assert keys(dataset) == [(5, 0), (6, 0)]
    with pytest.raises(InputError) as error:
        open_signal(dataset[5].signal_path(FGS1), FGS1)
    refused(error, str(dataset[5].signal_path(FGS1)), "missing")
    with pytest.raises(InputError) as error:
        dataset[6].frames(FGS1)
    refused(error, str(dataset[6].calibration_path(FGS1)), "missing")


def test_stray_files_and_folders_are_ignored(tmp_path: Path) -> None:
    stray = ["FGS1_signal_7.parquet.part", "FGS1_signal_8.csv", "old_FGS1_signal_9.parquet", ".hidden", "FGS2_signal_6"]
    hollow(tmp_path, {"train/1": [*items(1), *stray], "train/.cache": items(3), "train/1x": items(4), "train/-2": []})
    (tmp_path / "train" / "12").touch()
    (tmp_path / "train" / "README.md").touch()
    (tmp_path / "valid" / "13").mkdir(parents=True)
    assert keys(open_dataset(tmp_path)) == [(1, 0)]


def test_layout_is_told_by_numbered_files_too(tmp_path: Path) -> None:
    hollow(tmp_path, {"train/1": items(1)})
    assert open_dataset(tmp_path).layout.name == "2025"
    (tmp_path / "adc_info.csv").rename(tmp_path / "train_adc_info.csv")
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path)
    refused(error, "no adc_info.csv")


@pytest.mark.parametrize("key", [1, (1, 0), (2, 9), 0, -1, ("3", 0), "3", None, 2.5], ids=repr)
def test_unknown_observation(tmp_path: Path, key: object) -> None:
    dataset = open_dataset(hollow(tmp_path, {"train/2": items(2)}))
    with pytest.raises(DatasetError) as error:
        dataset.__getitem__(key)
    planet, visit = key if isinstance(key, tuple) else (key, None)
    refused(error, str(tmp_path), f"no planet {planet}", f"visit {visit}" if visit is not None else "2 observations")
    assert isinstance(error.value, LookupError)


@pytest.mark.parametrize("key", [2, np.int64(2), np.uint32(2), 2.0, (2, 0), (2, 1), (np.int64(2), 1.0)], ids=repr)
def test_in(tmp_path: Path, key: int) -> None:
    dataset = open_dataset(hollow(tmp_path, {"train/2": items(2), "train/30": items(1)}))
    assert key in dataset
    assert dataset[key] in dataset
    if not isinstance(key, tuple):
        assert key in dataset.planets


UNKNOWN = [1, 0, -1, 2.5, "3", b"2", None, (2, 2), (1, 0), ("3", 0), (2,), (), (2, 0, 0), "20", ((2, 0), 0), np.nan]
ODD = [pd.NA, slice(2), open_dataset, 10**400]
ARRAYS = [np.array(2), np.array([2]), np.array([2, 0])]
UNHASHABLE = [[2], [2, 0], {2: 0}, {2}, ([2], 0), (2, [0]), bytearray(b"2"), *ARRAYS]


@pytest.mark.parametrize("key", [*UNKNOWN, *ODD, *UNHASHABLE], ids=lambda key: repr(key)[:20])
def test_not_in(tmp_path: Path, key: object) -> None:
    dataset = open_dataset(hollow(tmp_path, {"train/2": items(2)}))
    assert key not in dataset
    with pytest.raises((DatasetError, TypeError, ValueError)):
        dataset.__getitem__(key)


def test_observations_in_their_own_data_set(tmp_path: Path) -> None:
    hollow(tmp_path, {"train/2": items(2), "train/3": items(1)})
    dataset, other = open_dataset(tmp_path), open_dataset(tmp_path)
    for observation in dataset:
        assert observation in dataset
        assert observation not in other
    assert Observation(dataset, 2, 1, "train") in dataset
    assert Observation(dataset, 2, 2, "train") not in dataset
    assert Observation(dataset, 2, 1, "test") not in dataset


BESIDE = {"axis_info.parquet": "2024", "train_adc_info.csv": "2024", "adc_info.csv": "2025"}


@pytest.mark.parametrize("ending", [".zip", ".gz"])
@pytest.mark.parametrize(("name", "layout"), BESIDE.items(), ids=BESIDE)
@pytest.mark.parametrize("whole", [True, False], ids=["whole-name", "stem"])
def test_a_packed_table_is_seen(tmp_path: Path, name: str, layout: str, ending: str, whole: bool) -> None:
    hollow(tmp_path, {"train/2": items(1 if layout == "2025" else None)}, layout)
    packed = f"{name if whole else Path(name).stem}{ending}"
    (tmp_path / name).rename(tmp_path / packed)
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path)
    mend = {".zip": "unzip it", ".gz": "gunzip it"}[ending]
    assert str(error.value) == f"{tmp_path}: no {name}, but {packed} is there; {mend}"


@pytest.mark.parametrize("ending", [".zip", ".gz"])
def test_packed_signals_are_observations(tmp_path: Path, ending: str) -> None:
    packed = [f"{name}_signal_{visit}.parquet{ending}" for name in DETECTORS for visit in (0, 1)]
    dataset = open_dataset(hollow(tmp_path, {"train/2": packed, "train/3": [f"FGS1_calibration_1{ending}"]}))
    assert keys(dataset) == [(2, 0), (2, 1), (3, 1)]
    mend = {".zip": "unzip it", ".gz": "gunzip it"}[ending]
    path = dataset[2, 1].signal_path(FGS1)
    with pytest.raises(InputError) as error:
        open_signal(path, FGS1)
    assert str(error.value) == f"{path}: signal file is missing, but {path.name}{ending} is there; {mend}"
    with pytest.raises(InputError) as error:
        dataset[3].frames(FGS1)
    refused(error, "dark.parquet: calibration file is missing", f"but FGS1_calibration_1{ending} is there; {mend}")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("missing", "does not exist; give the competition folder"),
        ("file", "is a file; did you mean"),
        ("empty", "no train/ or test/ folder"),
        ("inside-train", "no train/ or test/ folder; did you mean"),
        ("no-planets", "no planet folders in train"),
        ("no-adc", "no train_adc_info.csv"),
        ("no-adc-2025", "no adc_info.csv"),
    ],
)
def test_no_competition_folder(tmp_path: Path, what: str, says: str) -> None:
    path = hollow(tmp_path / "made", {"train/1": items(1 if what == "no-adc-2025" else None)}, "2024")
    if what == "no-adc-2025":
        (path / "train_adc_info.csv").unlink()
    elif what == "no-planets":
        shutil.rmtree(path / "train" / "1")
    elif what == "empty":
        shutil.rmtree(path / "train")
    elif what.startswith("no-"):
        (path / says.removeprefix("no ")).unlink()
    else:
        path = {"missing": tmp_path / "none", "file": path / "axis_info.parquet"}.get(what, path / "train")
    with pytest.raises(DatasetError) as error:
        open_dataset(path)
    refused(error, str(path), says, "; ")


@pytest.mark.parametrize("split", ["test", "valid", "2"])
def test_split_that_is_not_there(tmp_path: Path, split: str) -> None:
    hollow(tmp_path, {"train/2": items(1)})
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path, split=split)
    refused(error, f"no {split}/ folder")


def copy_calibration(made: Made, path: Path) -> Path:
    """Make a 2024 folder in which planets 1 and 2 have the calibration frames of visit 0, and planet 3 of visit 1."""
    hollow(path, {f"train/{planet}": [] for planet in (1, 2, 3)}, "2024")
    for planet, visit in ((1, 0), (2, 0), (3, 1)):
        for name in DETECTORS:
            source = made.path / "test" / str(made.planet) / f"{name}_calibration_{visit}"
            shutil.copytree(source, path / "train" / str(planet) / f"{name}_calibration")
    return path


@pytest.mark.parametrize("detector", DETECTORS)
def test_frames_are_shared_by_content(y2025: Made, tmp_path: Path, detector: str) -> None:
    dataset = open_dataset(copy_calibration(y2025, tmp_path))
    first, second, third = (observation.frames(DETECTORS[detector]) for observation in dataset)
    assert first is second
    assert dataset[1].frames(DETECTORS[detector]) is first
    assert third is not first
    assert third.digest != first.digest
    assert not np.array_equal(third.flat, first.flat)
    np.testing.assert_array_equal(
        open_dataset(y2025.path)[y2025.planet, 1].frames(DETECTORS[detector]).flat, third.flat
    )


def test_frames_changed_on_disk_are_opened_anew(y2025: Made, tmp_path: Path) -> None:
    dataset = open_dataset(copy_calibration(y2025, tmp_path))
    before = dataset[1].frames(FGS1)
    shutil.copy(dataset[3].calibration_path(FGS1) / "flat.parquet", dataset[1].calibration_path(FGS1))
    assert dataset[1].frames(FGS1) is not before
    assert dataset[2].frames(FGS1) is before


def test_visits_have_their_own_frames_and_share_the_rest(y2025: Made) -> None:
    first, second = open_dataset(y2025.path)
    assert first.frames(FGS1).digest != second.frames(FGS1).digest
    assert first.axis(AIRS) is second.axis(AIRS)
    assert first.adc(AIRS) == second.adc(AIRS)


def test_planet_without_an_adc_line(y2025: Made, tmp_path: Path) -> None:
    dataset = open_dataset(copy_calibration(y2025, tmp_path))
    with pytest.raises(InputError) as error:
        dataset[1].adc(AIRS)
    refused(error, str(tmp_path / "train_adc_info.csv"), "not in the ADC table")


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_pickle(y2025: Made, used: bool) -> None:
    dataset = open_dataset(y2025.path)
    if used:
        for observation in dataset:
            observation.frames(FGS1), observation.axis(FGS1), observation.adc(FGS1)
    back = pickle.loads(pickle.dumps(dataset))
    assert isinstance(back, Dataset)
    assert (back.path, back.layout, keys(back)) == (dataset.path, dataset.layout, keys(dataset))
    one = pickle.loads(pickle.dumps(dataset[y2025.planet, 1]))
    assert isinstance(one, Observation)
    assert (one.key, one.split) == ((y2025.planet, 1), "test")
    assert one.signal_path(AIRS) == dataset[y2025.planet, 1].signal_path(AIRS)
    assert one.dataset[y2025.planet, 1] is one
    for observation in (one, back[y2025.planet, 1]):
        frames = observation.frames(FGS1)
        assert frames.digest == dataset[y2025.planet, 1].frames(FGS1).digest
        np.testing.assert_array_equal(frames.dark, dataset[y2025.planet, 1].frames(FGS1).dark)
