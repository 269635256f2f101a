"""The results folder: its files, resuming, failures that cost one item each, and reading it."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import CONFIG, again

import gpucal
from gpucal import Calibration
from gpucal.backends import choose
from gpucal.errors import DatasetError, OutputError

NAMES = ("AIRS-CH0", "FGS1")
KINDS = ("signal", "dq", "variance", "readvariance", "flux", "error", "time", "bounds")


def stamps(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob("*/*/*")}


def test_files_are_the_contract_s(source: Path, finished: Path) -> None:
    expected = {"config.toml", "gpucal.log", "manifest.parquet"}
    for planet in (17, 23):
        for name in NAMES:
            kinds = ["json", *(f"{kind}.npy" for kind in KINDS)]
            kinds += ["wavelength.npy"] if name == "AIRS-CH0" else []
            expected |= {f"{planet}/0/{name}.{kind}" for kind in kinds}
    assert {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()} == expected
    assert Calibration.from_toml(finished / "config.toml") == CONFIG
    for name, width in (("AIRS-CH0", 282), ("FGS1", 32)):
        cal = gpucal.calibrate(gpucal.open_dataset(source)[17], name, CONFIG, dtype="float32")
        stem = finished / "17" / "0" / name
        np.testing.assert_array_equal(np.load(f"{stem}.signal.npy"), cal.signal)
        np.testing.assert_array_equal(np.load(f"{stem}.dq.npy"), cal.dq)
        np.testing.assert_array_equal(np.load(f"{stem}.variance.npy"), cal.variance.astype(np.float32))
        np.testing.assert_array_equal(np.load(f"{stem}.readvariance.npy"), cal.read_variance.astype(np.float32))
        np.testing.assert_array_equal(np.load(f"{stem}.bounds.npy"), cal.time_bounds)
        with np.errstate(over="ignore"):
            for kind, values in cal.light_curve_with_errors()._asdict().items():
                np.testing.assert_array_equal(np.load(f"{stem}.{kind}.npy"), values.astype(np.float32))
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


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "strict"])
@pytest.mark.parametrize(
    "decoder",
    [
        "auto",
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in ("auto-beside-an-index", "pyarrow", "pyarrow-beside-an-index")
        ),
    ],
)
def test_files_saved_with_sorted_columns_give_the_same_bits(
    source: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str, strict: bool
) -> None:
    decoder, _, index = decoder.partition("-")
    monkeypatch.setenv("GPUCAL_READER", decoder)
    saved = shutil.copytree(source, tmp_path / "sorted")
    moved = 0
    for path in saved.glob("train/17/**/*.parquet"):
        whole = pq.read_table(path)
        names = sorted(whole.column_names)
        moved += names != whole.column_names
        if index and "signal" in path.name:
            frame = whole.select(names).to_pandas().rename_axis("column_time")
            frame.to_parquet(path, index=True, row_group_size=50)
        else:
            pq.write_table(whole.select(names), path, row_group_size=50, compression="zstd")
    assert moved == 12
    out = tmp_path / "out"
    summary = again(saved, out, strict=strict, planets=[17])
    assert (summary.done, summary.failed) == (2, {})
    arrays = sorted(path.relative_to(out) for path in out.glob("17/0/*.npy"))
    assert len(arrays) == 17
    for array in arrays:
        assert (out / array).read_bytes() == (finished / array).read_bytes(), array


@pytest.mark.parametrize("key", [17, 23, np.int64(17), 17.0, (17, 0), (np.uint16(23), 0)], ids=repr)
def test_in(finished: Path, key: object) -> None:
    assert key in gpucal.open_results(finished)


NOT_IN = [5, -17, "18", None, 17.5, (17, 1), (17,), (), (17, 0, "FGS1"), ("18", 0), 10**400, np.nan]
UNHASHABLE = [[17, 0], [17], {17: 0}, ([17], 0), np.array(17), np.array([17]), np.array([17, 0]), slice(17, [0])]


@pytest.mark.parametrize("key", [*NOT_IN, *UNHASHABLE], ids=lambda key: repr(key)[:20])
def test_not_in(finished: Path, key: object) -> None:
    assert key not in gpucal.open_results(finished)


def test_what_is_not_complete_is_not_in(out: Path) -> None:
    (out / "23" / "0" / "FGS1.json").unlink()
    results = gpucal.open_results(out)
    assert [23 in results, (23, 0) in results, 17 in results, (17, 0) in results] == [False, False, True, True]
    assert [key for key in results.ids if key not in results] == []


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
    failed = again(broken, out).failed
    assert list(failed) == ["planet 17 visit 0 FGS1"]
    np.testing.assert_array_equal(np.load(out / "17" / "0" / "FGS1.signal.npy"), before)
    opened = gpucal.open_results(out)
    assert opened.ids == [(23, 0)]
    assert opened.failed == {(17, 0, "FGS1"): failed["planet 17 visit 0 FGS1"]}
    assert again(source, out).skipped == 4
    assert (gpucal.open_results(out).ids, gpucal.open_results(out).failed) == ([(17, 0), (23, 0)], {})
    assert pq.read_table(out / "manifest.parquet")["error"].null_count == 4


DAMAGES: dict[str, Callable[[Path], object]] = {
    "lost": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", ["signal", "dq", "variance"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_or_damaged_array_is_made_again(source: Path, out: Path, kind: str, damage: str) -> None:
    path = out / "17" / "0" / f"AIRS-CH0.{kind}.npy"
    before = path.read_bytes()
    assert json.loads((out / "17" / "0" / "AIRS-CH0.json").read_text())["files"][kind]["bytes"] == len(before)
    DAMAGES[damage](path)
    if damage == "a folder":
        path.rmdir()
    summary = again(source, out)
    assert (summary.done, summary.skipped, summary.failed) == (1, 3, {})
    assert path.read_bytes() == before


DAMAGED_HEADERS: dict[str, Callable[[Path], object]] = {
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no magic": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "zip magic": lambda path: path.write_bytes(b"PK\3\4" + path.read_bytes()[4:]),
    "short header": lambda path: path.write_bytes(path.read_bytes().replace(b"\x76\0{", b"\x20\0{", 1)),
    "no header": lambda path: path.write_bytes(path.read_bytes().replace(b"'descr", b",descr", 1)),
    "mixed keys": lambda path: path.write_bytes(path.read_bytes().replace(b" 'fort", b"B'fort", 1)),
    "negative shape": lambda path: path.write_bytes(path.read_bytes().replace(b"28", b"-8", 1)),
    "negative shapes": lambda path: path.write_bytes(path.read_bytes().replace(b"282, 32", b"-82, -2", 1)),
    "huge shape": lambda path: path.write_bytes(path.read_bytes().replace(b"282, 32), }  ", b"99999999999),}", 1)),
    "smaller shape": lambda path: path.write_bytes(path.read_bytes().replace(b"282,", b"28 ,", 1)),
    "other type": lambda path: path.write_bytes(path.read_bytes().replace(b"<f4", b">f4", 1).replace(b"|u1", b"|i1")),
}


def negative_is_what_fits(folder: Path) -> bool:
    """Tell whether NumPy takes a negative length for the one that fits, as 2.0 and older do, or refuses it."""
    path = folder / "three.npy"
    np.save(path, np.zeros(3))
    path.write_bytes(path.read_bytes().replace(b"(3,), }", b"(-3,),}"))
    with path.open("rb") as stream:
        try:
            np.lib.format.read_array(stream)
        except ValueError:
            return False
    return True


@pytest.mark.parametrize("kind", ["signal", "dq"])
@pytest.mark.parametrize("damage", DAMAGES | DAMAGED_HEADERS)
def test_reading_a_lost_or_damaged_array_is_one_line(out: Path, kind: str, damage: str, tmp_path: Path) -> None:
    if damage == "negative shape" and negative_is_what_fits(tmp_path):
        pytest.skip("this NumPy reads what was written, see the next test")
    path = out / "23" / "0" / f"AIRS-CH0.{kind}.npy"
    (DAMAGES | DAMAGED_HEADERS)[damage](path)
    opened = gpucal.open_results(out)
    airs = opened["AIRS-CH0"]
    np.testing.assert_array_equal(airs[0], np.load(out / "17" / "0" / "AIRS-CH0.signal.npy"))
    signal = [lambda: airs[1], lambda: airs[-1, :2], lambda: airs[:, 0], lambda: airs[1:], airs.load]
    reads = {"signal": signal, "dq": [lambda: opened.dq("AIRS-CH0")]}[kind]
    for read in (*reads, opened.light_curves, lambda: opened.light_curves_of((23, 0))):
        with pytest.raises(OutputError) as caught:
            read()
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith(f"{path}: ")
        assert line.endswith(f"run `gpucal calibrate DATASET {out}` again")


@pytest.mark.parametrize("kind", ["signal", "dq"])
@pytest.mark.parametrize("read", [lambda a: a[1], lambda a: a[1, :2], lambda a: a[:, 0], lambda a: a.load()])
def test_a_negative_length_gives_no_other_numbers(
    out: Path, kind: str, read: Callable[[Any], np.ndarray], tmp_path: Path
) -> None:
    results = gpucal.open_results(out)
    what = results.dq if kind == "dq" else lambda name: read(results[name])
    before = what("AIRS-CH0")
    DAMAGED_HEADERS["negative shape"](out / "23" / "0" / f"AIRS-CH0.{kind}.npy")
    try:
        after = what("AIRS-CH0")
    except OutputError as error:
        assert "is damaged" in str(error)  # noqa: PT017
    else:
        assert negative_is_what_fits(tmp_path)
        np.testing.assert_array_equal(after, before)


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
    assert airs[2:].shape == (0, 4, 282, 32)
    assert airs[2:, 1].shape == (0, 282, 32)
    for read in (opened.__getitem__, opened.dq):
        with pytest.raises(KeyError, match="no detector 'AIRS'; there are AIRS-CH0, FGS1"):
            read("AIRS")


def test_reading_everything_holds_it_once(finished: Path) -> None:
    airs = gpucal.open_results(finished)["AIRS-CH0"]
    one = airs.load().nbytes // 2
    tracemalloc.start()
    try:
        everything = airs.load()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert everything.nbytes == 2 * one
    assert peak < 3.3 * one  # all of it, and one that is being read; twice all would be 4


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


def test_nothing_complete_is_one_line(source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    for planet in ("17", "23"):
        (broken / "train" / planet / "FGS1_signal.parquet").unlink()
    again(broken, tmp_path / "out")
    opened = gpucal.open_results(tmp_path / "out")
    airs = opened["AIRS-CH0"]
    assert (len(opened), len(airs), list(airs)) == (0, 0, [])
    for read in (airs.load, lambda: airs[:, 0], lambda: opened.dq("FGS1"), opened.light_curves):
        with pytest.raises(OutputError, match="no observation is complete, 2 items failed; ") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_different_settings_in_one_folder(source: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpucal.open_results(out)
    assert caplog.messages == []
    again(source, out, CONFIG.replace(bins={"FGS1": 20, "AIRS-CH0": 9}), planets=[23], overwrite=True)
    opened = gpucal.open_results(out)
    assert opened.ids == [(17, 0), (23, 0)]
    ((logger, level, line),) = caplog.record_tuples
    assert (logger, level) == ("gpucal.results.reader", logging.WARNING)
    assert line.startswith(f"{out}: holds 4 items of 2 different settings; ")
    assert "\n" not in line
    assert opened["FGS1"][1].shape == (3, 32, 32)
    for read in (opened["FGS1"].load, lambda: opened["AIRS-CH0"][:, :, 3], opened.light_curves):
        with pytest.raises(OutputError, match="observations differ in shape, such as ") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert opened["AIRS-CH0"][:, 0].shape == (2, 282, 32)


def change_record(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{"planet": "23"}, {"planet": None}, {"visit": 0.5}, {"visit": True}, {"detector": []}, {"files": []}],
    ids=str,
)
def test_a_record_of_wrong_types_is_ignored(source: Path, out: Path, changes: dict[str, object]) -> None:
    change_record(out / "23" / "0" / "FGS1.json", **changes)
    assert gpucal.open_results(out).ids == [(17, 0)]
    summary = again(source, out)
    assert (summary.done, summary.skipped) == (1, 3)
    assert gpucal.open_results(out).ids == [(17, 0), (23, 0)]


def test_a_folder_named_like_a_record_is_ignored(out: Path) -> None:
    (out / "23" / "0" / "FGS1.json").unlink()
    (out / "23" / "0" / "FGS1.json").mkdir()
    assert gpucal.open_results(out).ids == [(17, 0)]


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
