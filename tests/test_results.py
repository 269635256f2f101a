"""The results folder: the contract's files, resuming, failures that cost nothing else, and reading it back."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import BINS, Made

import gpucal
from gpucal import Calibration, store
from gpucal.backends import choose
from gpucal.errors import DatasetError, OutputError
from gpucal.pipeline import Summary

CONFIG = Calibration(bins=BINS)
NAMES = ("AIRS-CH0", "FGS1")


@pytest.fixture(scope="module")
def source(old: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the competition folder that tests may damage, if they mend it again."""
    return shutil.copytree(old[0], tmp_path_factory.mktemp("source") / "y2024")


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its results. Not to be written to."""
    out = tmp_path_factory.mktemp("finished") / "deep" / "out"
    summary = gpucal.run(gpucal.open_dataset(source), out, CONFIG, variance=True)
    assert (summary.done, summary.skipped, summary.failed) == (4, 0, {})
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the results that a test may change."""
    return shutil.copytree(finished, tmp_path / "out")


def again(source: Path, out: Path, config: Calibration = CONFIG, **options: object) -> Summary:
    return gpucal.run(gpucal.open_dataset(source), out, config, **({"variance": True} | options))


def stamps(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob("*/*/*")}


def test_files_are_the_contract_s(source: Path, finished: Path) -> None:
    expected = {"config.toml", "manifest.parquet"}
    for planet in (17, 23):
        for name in NAMES:
            kinds = ("json", "signal.npy", "dq.npy", "variance.npy")
            expected |= {f"{planet}/0/{name}.{kind}" for kind in kinds}
    assert {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()} == expected
    assert Calibration.from_toml(finished / "config.toml") == CONFIG
    for name, width in (("AIRS-CH0", 282), ("FGS1", 32)):
        cal = gpucal.calibrate(gpucal.open_dataset(source)[17], name, CONFIG, dtype="float32")
        stem = finished / "17" / "0" / name
        np.testing.assert_array_equal(np.load(f"{stem}.signal.npy"), cal.signal)
        np.testing.assert_array_equal(np.load(f"{stem}.dq.npy"), cal.dq)
        np.testing.assert_array_equal(np.load(f"{stem}.variance.npy"), cal.variance.astype(np.float32))
        record = json.loads(Path(f"{stem}.json").read_text())
        assert {"planet", "visit", "detector", "status", "files", "settings", "inputs", "seconds"} <= record.keys()
        assert (record["status"], record["backend"], record["version"]) == ("done", choose().name, gpucal.__version__)
        signal = record["files"]["signal"]
        assert (signal["file"], signal["dtype"]) == (f"{name}.signal.npy", "float32")
        assert signal["shape"] == [4, width, 32]
        assert signal["sha256"] == hashlib.sha256(cal.signal.tobytes()).hexdigest()


def test_manifest_is_the_records(finished: Path) -> None:
    rows = pq.read_table(finished / "manifest.parquet").to_pylist()
    assert [(row["planet"], row["visit"], row["detector"], row["status"]) for row in rows] == [
        (planet, 0, name, "done") for planet in (17, 23) for name in NAMES
    ]
    for row in rows:
        record = json.loads((finished / str(row["planet"]) / "0" / f"{row['detector']}.json").read_text())
        assert row == {name: record.get(name) for name in row}


def test_a_second_run_does_nothing(source: Path, out: Path) -> None:
    before = stamps(out)
    summary = again(source, out)
    assert (summary.done, summary.skipped, summary.failed) == (0, 4, {})
    assert stamps(out) == before


@pytest.mark.parametrize(
    "change",
    [
        {"config": CONFIG.replace(dark=False)},
        {"config": CONFIG.replace(bins={"FGS1": 17})},
        {"dtype": "float64"},
        {"variance": False},
        {"overwrite": True},
    ],
    ids=["step", "bins", "dtype", "variance", "overwrite"],
)
def test_other_settings_are_done_again(source: Path, out: Path, change: dict[str, object]) -> None:
    assert again(source, out, **change).done == 4
    kept = {key: value for key, value in change.items() if key != "overwrite"}
    assert again(source, out, **kept).skipped == 4


@pytest.mark.parametrize("damage", ["no record", "not json", "a list", "half a record"])
def test_without_a_record_an_item_does_not_exist(source: Path, out: Path, damage: str) -> None:
    record = out / "23" / "0" / "FGS1.json"
    text = {"not json": "{", "a list": "[]", "half a record": '{"planet": 23}'}
    record.unlink()
    if damage in text:
        record.write_text(text[damage])
    assert gpucal.open_results(out).ids == [(17, 0)]
    summary = again(source, out)
    assert (summary.done, summary.skipped) == (1, 3)
    assert gpucal.open_results(out).ids == [(17, 0), (23, 0)]


def test_other_inputs_are_done_again(source: Path, out: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(source, tmp_path / "changed")
    home = changed / "train" / "23"
    shutil.copy(changed / "train" / "17" / "FGS1_signal.parquet", home / "FGS1_signal.parquet")
    summary = again(changed, out)
    assert (summary.done, summary.skipped) == (1, 3)
    calibration = home / "AIRS-CH0_calibration"
    shutil.rmtree(calibration)
    shutil.copytree(changed / "train" / "17" / "AIRS-CH0_calibration", calibration)
    summary = again(changed, out)
    assert (summary.done, summary.skipped) == (1, 3)
    table = changed / "train_adc_info.csv"
    table.write_text(table.read_text().replace("17,-812.345678", "17,-812.5", 1))
    summary = again(changed, out)
    assert (summary.done, summary.skipped) == (1, 3)


def test_a_failure_costs_its_item_only_and_is_tried_again(source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    signal = broken / "train" / "17" / "AIRS-CH0_signal.parquet"
    signal.rename(tmp_path / "aside")
    out = tmp_path / "out"
    summary = again(broken, out)
    assert (summary.done, summary.skipped) == (3, 0)
    (line,) = summary.failed.values()
    assert list(summary.failed) == ["planet 17 visit 0 AIRS-CH0"]
    opened = gpucal.open_results(out)
    assert opened.ids == [(23, 0)]
    assert opened.failed == {(17, 0, "AIRS-CH0"): line}
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    assert [(row["status"], row["error"]) for row in rows] == [("failed", line), *[("done", None)] * 3]
    (tmp_path / "aside").rename(signal)
    summary = again(broken, out)
    assert (summary.done, summary.skipped, summary.failed) == (1, 3, {})
    assert gpucal.open_results(out).failed == {}


def test_a_failure_keeps_the_finished_result(source: Path, out: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    signal = broken / "train" / "17" / "FGS1_signal.parquet"
    signal.write_bytes(signal.read_bytes()[:-100])
    before = np.load(out / "17" / "0" / "FGS1.signal.npy")
    assert list(again(broken, out).failed) == ["planet 17 visit 0 FGS1"]
    np.testing.assert_array_equal(np.load(out / "17" / "0" / "FGS1.signal.npy"), before)
    opened = gpucal.open_results(out)
    assert opened.ids == [(17, 0), (23, 0)]
    assert again(source, out).skipped == 4


def test_a_full_disk_leaves_no_debris_and_no_half_item(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.name != "config.toml"}
    save, calls = np.save, []

    def full(file: object, array: np.ndarray, **options: object) -> None:
        calls.append(array.shape)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(file, array, **options)

    monkeypatch.setattr(store.np, "save", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        again(source, out, overwrite=True)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.name != "config.toml"} == before


def test_only_some_planets(source: Path, tmp_path: Path) -> None:
    summary = again(source, tmp_path / "out", planets=[23, 23])
    assert summary.done == 2
    assert gpucal.open_results(tmp_path / "out").ids == [(23, 0)]
    with pytest.raises(DatasetError, match="no planet 99"):
        again(source, tmp_path / "other", planets=[23, 99])
    assert not (tmp_path / "other").exists()


def test_reading_back(finished: Path) -> None:
    opened = gpucal.open_results(str(finished))
    airs = opened["AIRS-CH0"]
    assert len(opened) == len(airs) == 2
    assert airs.load().shape == (2, 4, 282, 32)
    assert opened["FGS1"][:].shape == (2, 4, 32, 32)
    np.testing.assert_array_equal(airs[1], np.load(finished / "23" / "0" / "AIRS-CH0.signal.npy"))
    np.testing.assert_array_equal(airs[-1], airs[1])
    np.testing.assert_array_equal(airs[0, 1:3, ::7], airs[0][1:3, ::7])
    np.testing.assert_array_equal(airs[1:, :, 5], airs.load()[1:, :, 5])
    assert not isinstance(airs[0, 1:3], np.memmap)
    assert opened.dq("FGS1").shape == (2, 32, 32)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened))["AIRS-CH0"].load(), airs.load())
    with pytest.raises(IndexError):
        airs[2]
    with pytest.raises(KeyError, match="no detector 'AIRS'"):
        opened["AIRS"]


def test_light_curves_put_fgs1_first(source: Path, finished: Path) -> None:
    curves = gpucal.open_results(finished).light_curves()
    assert curves.shape == (2, 4, 283)
    dataset = gpucal.open_dataset(source)
    for row, planet in zip(curves, (17, 23), strict=True):
        fgs1, airs = (gpucal.calibrate(dataset[planet], name, CONFIG, dtype="float32") for name in ("FGS1", "AIRS-CH0"))
        np.testing.assert_allclose(row, np.concatenate([fgs1.light_curve(), airs.light_curve()], axis=1), rtol=1e-12)


def test_light_curves_need_equal_bins(source: Path, tmp_path: Path) -> None:
    again(source, tmp_path / "out", CONFIG.replace(bins={"FGS1": 30}), planets=[17])
    with pytest.raises(OutputError, match=r"have \[2, 4\] bins"):
        gpucal.open_results(tmp_path / "out").light_curves()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("")])
def test_no_results(tmp_path: Path, make: object) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputError, match="holds no results; make some with"):
        gpucal.open_results(tmp_path / "out")


def test_out_is_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot be written"):
            again(source, path)
    assert (tmp_path / "file").read_text() == "mine"
