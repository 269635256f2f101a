"""`gpucal check` and `calibrate --dry-run`: what they say comes true in a run, and they write nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import BINS, CONFIG, PLANETS, Made
from hostile import write_table

import gpucal
from gpucal.backends import load
from gpucal.cli.main import main
from gpucal.errors import ConfigError, RunWarning
from gpucal.runs.check import check
from gpucal.runs.request import Request
from gpucal.settings.detectors import DETECTORS

FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]


@pytest.fixture
def raw(old: Made, tmp_path: Path) -> Path:
    """A copy that a test may damage: planets 17 and 23."""
    return shutil.copytree(old[0], tmp_path / "raw")


def found(raw: Path, *argv: object, capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["check", str(raw), *map(str, argv), *FLAGS, "--json"]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def beginning_lost(path: Path) -> None:
    path.write_bytes(b"\0\0\0\0" + path.read_bytes()[4:])


def page(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html>Sign in</html>")


def to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


def other_gain(path: Path) -> None:
    path.write_text(path.read_text().replace("17,", "18,", 1))


SIGNAL, FLAT, AXES = "train/17/FGS1_signal.parquet", "train/17/AIRS-CH0_calibration/flat.parquet", "axis_info.parquet"
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a signal is missing": (SIGNAL, Path.unlink, "signal file is missing"),
    "a calibration file is missing": (FLAT, Path.unlink, "calibration file is missing"),
    "a signal is short": (SIGNAL, truncated, "is not a complete Parquet file"),
    "a calibration file is short": (FLAT, truncated, "is not a complete Parquet file"),
    "a signal is of zeros": (SIGNAL, zeros, "is not a Parquet file but zeros"),
    "a signal is a web page": (SIGNAL, page, "is not a Parquet file but a web page (HTML)"),
    "a calibration file is a web page": (FLAT, page, "is not a Parquet file but a web page (HTML)"),
    "a signal is a link to nowhere": (SIGNAL, to_nowhere, "is a link to gone, which does not exist"),
    "the planet is not in the table": ("train_adc_info.csv", other_gain, "planet is not in the ADC table"),
    "the axes are none": (AXES, page, "is not a Parquet file but a web page (HTML)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_would_fail_does(name: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, damage, says = FAULTS[name]
    damage(raw / place)
    told = found(raw, capsys=capsys, code=1)
    assert told["would_fail"]
    assert all(says in line for line in told["failing"].values())
    with pytest.warns(RunWarning):
        summary = gpucal.run(gpucal.open_dataset(raw), tmp_path / "out", CONFIG)
    assert told["failing"] == summary.failed


def test_what_does_not_begin_as_parquet_does_is_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beginning_lost(raw / SIGNAL)
    told = found(raw, capsys=capsys, code=0)
    assert told["unlike"]["planet 17 visit 0 FGS1"].endswith("does not begin as a Parquet file does; it may be damaged")
    told = found(raw, "--strict", capsys=capsys, code=1)
    assert "does not begin as a Parquet file does" in told["failing"]["planet 17 visit 0 FGS1"]


def test_nothing_would_fail(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(raw.rglob("*"))
    assert main(["check", str(raw), str(tmp_path / "out"), *FLAGS]) == 0
    said = capsys.readouterr().out
    assert f"{raw}: 2024 layout, 2 observations, 4 items, " in said
    assert "settings: preset ariel2024, but bins = " in said
    assert "AIRS-CH0: 60 frames, 4 bins of 7 pairs, 2 pairs left over\n" in said
    assert "FGS1: 140 frames, 4 bins of 16 pairs, 6 pairs left over\n" in said
    assert "results: 0 items are finished, 4 are left" in said
    assert "s an observation, " in said
    assert "would fail" not in said
    assert sorted(raw.rglob("*")) == before
    assert not (tmp_path / "out").exists()


DEEP: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a column is missing": (
        "FGS1_signal.parquet",
        lambda path: pq.write_table(pq.read_table(path).drop_columns(["column_7"]), path),
        "has 1023 columns, expected 1024",
    ),
    "an odd number of frames": (
        "FGS1_signal.parquet",
        lambda path: pq.write_table(pq.read_table(path).slice(0, 139), path),
        "has 139 frames, an odd number",
    ),
    "fewer frames than a bin": (
        "FGS1_signal.parquet",
        lambda path: pq.write_table(pq.read_table(path).slice(0, 20), path),
        "has 20 frames, fewer than the 32 of one bin",
    ),
    "no dead map": (
        "FGS1_calibration/dead.parquet",
        lambda path: write_table(path, np.full((32, 32), 7)),
        "holds 7, expected a map of dead pixels",
    ),
    "a dark without a value": (
        "FGS1_calibration/dark.parquet",
        lambda path: write_table(path, np.full((32, 32), np.nan)),
        "has a frame without a value",
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_what_only_a_deep_look_finds(name: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, damage, says = DEEP[name]
    damage(raw / "train" / "23" / place)
    told = found(raw, "--deep", capsys=capsys, code=1)
    ((where, line),) = told["failing"].items()
    assert where == "planet 23 visit 0 FGS1"
    assert says in line
    with pytest.warns(RunWarning):
        assert gpucal.run(gpucal.open_dataset(raw), tmp_path / "out", CONFIG).failed == told["failing"]


def test_the_first_of_many_that_fail_asks_for_a_deep_look(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for planet in (17, 23):
        path = raw / "train" / str(planet) / "FGS1_signal.parquet"
        pq.write_table(pq.read_table(path).slice(0, 139), path)
    told = found(raw, capsys=capsys, code=1)
    assert len(told["failing"]) == 2
    assert told["notes"][0] == "FGS1: the first file that was opened would fail; --deep opens the others too"
    assert told["seconds"] is None
    assert [*told["detectors"]] == ["AIRS-CH0"]
    assert found(raw, "--odd-frames=drop", capsys=capsys, code=0)["failing"] == {}


def test_what_is_unlike_its_neighbours(
    many: Path, old: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = shutil.copytree(many, tmp_path / "raw", symlinks=True)
    for planet in (103, 104):
        (raw / "train" / str(planet)).unlink()
        shutil.copytree(old[0] / "train" / "17", raw / "train" / str(planet))
    short, fewer = (raw / "train" / name / "FGS1_signal.parquet" for name in ("103", "104"))
    table = pq.read_table(short)
    pq.write_table(table.slice(0, 32), short, compression="zstd", write_statistics=False)
    pq.write_table(table.slice(0, 138), fewer, compression="zstd", write_statistics=False)
    told = found(raw, capsys=capsys, code=0)
    ((where, line),) = told["unlike"].items()
    assert where == "planet 103 visit 0 FGS1"
    assert line.startswith(f"{where}: {short}: has {short.stat().st_size:,} bytes, where most have ")
    told = found(raw, "--deep", capsys=capsys, code=0)
    assert [*told["unlike"]] == ["planet 103 visit 0 FGS1", "planet 104 visit 0 FGS1"]
    assert told["unlike"]["planet 104 visit 0 FGS1"].endswith("has 138 frames, where most have 140")
    pq.write_table(table.slice(0, 30), short, compression="zstd", write_statistics=False)
    told = found(raw, capsys=capsys, code=1)
    assert "has 30 frames, fewer than the 32 of one bin" in told["failing"]["planet 103 visit 0 FGS1"]


def test_many_that_fail_are_grouped(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = shutil.copytree(many, tmp_path / "raw", symlinks=True)
    for planet in PLANETS:
        if planet > 110:
            (raw / "train" / str(planet)).unlink()
            (raw / "train" / str(planet)).mkdir()
            (raw / "train" / str(planet) / "notes.txt").touch()  # an empty folder is not an observation
    assert main(["check", str(raw), *FLAGS]) == 1
    said = capsys.readouterr().out
    assert "would fail: 18 of 40 items\n" in said
    assert said.count("signal file is missing") == 6
    assert "18 lines of this kind, `gpucal check --all` shows all of them; the first: planet 111" in said
    assert main(["check", str(raw), *FLAGS, "--all"]) == 1
    assert capsys.readouterr().out.count("signal file is missing") == 18
    told = found(raw, "--planet=100,101", capsys=capsys, code=0)
    assert (told["observations"], told["items"]) == (2, 4)
    assert found(raw, "--shard=1/20", capsys=capsys, code=0)["observations"] == 1


@pytest.mark.parametrize("more", [[], ["--variance"], ["--product=light-curves"], ["--dtype=float64"]], ids=str)
def test_the_disk_that_it_needs_is_what_it_takes(
    more: list[str], old: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = found(old[0], tmp_path / "out", *more, capsys=capsys, code=0)
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), *FLAGS, *more]) == 0
    taken = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert 0.7 * taken < told["disk_bytes"] < 1.3 * taken
    assert told["free_bytes"] > told["disk_bytes"]
    told = found(old[0], tmp_path / "out", *more, capsys=capsys, code=0)
    assert (told["finished"], told["unfinished"], told["disk_bytes"], told["seconds"]) == (4, 0, 0, 0)
    assert told["seconds_each"] > 0


def test_too_little_space_would_fail(
    old: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    told = found(old[0], tmp_path / "out" / "deeper", capsys=capsys, code=1)
    assert told["notes"][0].startswith(f"{tmp_path}: has too little space; free ")
    assert found(old[0], capsys=capsys, code=0)["free_bytes"] == -1


@pytest.mark.parametrize(("backend", "page_block"), [("numba", None), ("numba", 2**25), ("numpy", None)])
def test_a_backend_s_own_memory_is_asked_for(
    old: Made, tmp_path: Path, backend: str, page_block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts take more than pages. One file of each detector is opened, so bytes of footers differ a little."""
    made = replace(load(backend), page_block=page_block)
    monkeypatch.setattr(f"gpucal.backends.{backend}_.connect", lambda: made)
    dataset, how = gpucal.open_dataset(old[0]), {"memory": 300_000_000, "workers": 1, "backend": backend}
    told = check(Request(dataset, None, CONFIG, **how))
    with pytest.warns(RunWarning):
        failed = gpucal.run(dataset, tmp_path / "out", CONFIG, **how).failed
    needed = [
        {where: int(line.partition("needs ")[2].partition(" ")[0].replace(",", "")) for where, line in lines.items()}
        for lines in (told.failing, failed)
    ]
    assert needed[0] == pytest.approx(needed[1], rel=1e-4)
    assert len(failed) >= 2


def test_too_little_memory_would_fail(old: Made, capsys: pytest.CaptureFixture[str]) -> None:
    least = 290_000_000 + 4_000_000 + 1_000_000
    told = found(old[0], f"--memory={least}", "--workers=1", capsys=capsys, code=1)
    assert len(told["failing"]) == 4
    assert all("raise --memory" in line for line in told["failing"].values())
    assert found(old[0], "--memory=900MB", capsys=capsys, code=0)["memory_bytes"] == 900_000_000


def test_what_out_holds_already(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, later = tmp_path / "out", tmp_path / "later"
    (raw / "train" / "23" / "FGS1_signal.parquet").rename(tmp_path / "kept")
    assert main(["calibrate", str(raw), str(out), *FLAGS]) == 1
    told = found(raw, out, capsys=capsys, code=1)
    assert (told["finished"], told["unfinished"], told["failed_before"]) == (3, 1, 1)
    assert found(raw, out, "--overwrite", capsys=capsys, code=1)["finished"] == 0
    assert found(raw, later, "--resume-from", out, capsys=capsys, code=1)["finished"] == 3
    assert not later.exists()
    path = raw / "train" / "17" / "FGS1_signal.parquet"
    write_table(path, np.full((140, 1024), 500, np.uint16))
    for flags in ([], ["--deep"]):
        assert found(raw, out, *flags, capsys=capsys, code=1)["finished"] == 2  # its input has changed


@pytest.mark.parametrize("name", ["train_adc_info.csv", "axis_info.parquet", "train/17/FGS1_calibration/dark.parquet"])
def test_what_has_other_inputs_is_not_finished(
    name: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of a run that follows, though no file is opened."""
    out = tmp_path / "out"
    assert main(["calibrate", str(raw), str(out), *FLAGS]) == 0
    path = raw / name
    if path.suffix == ".csv":
        header, row, *rows = path.read_text().splitlines()
        columns = row.split(",")
        columns[1] = str(float(columns[1]) * 1.5)
        path.write_text("\n".join([header, ",".join(columns), *rows]) + "\n")
    else:
        table = pq.read_table(path)
        halved = pc.multiply(table.column(1), pa.scalar(0.5)) if "dark" in name else pc.add(table.column(1), 1e-9)
        pq.write_table(table.set_column(1, table.column_names[1], halved), path)
    told = found(raw, out, capsys=capsys, code=0)
    done = gpucal.run(gpucal.open_dataset(raw), out, gpucal.Calibration(bins=BINS)).done
    assert told["unfinished"] == done > 0


def test_what_is_gone_is_not_finished(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["calibrate", str(raw), str(out), *FLAGS]) == 0
    (raw / "train" / "23" / "AIRS-CH0_signal.parquet").unlink()
    told = found(raw, out, capsys=capsys, code=1)
    assert (told["finished"], told["unfinished"], len(told["failing"])) == (3, 1, 1)


@pytest.mark.parametrize("order", ["older first", "later first"])
def test_of_several_folders_the_first_that_knows_an_item_decides(
    order: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the run that follows: a result is not right where a later session found its file damaged."""
    older, later, out = (tmp_path / name for name in ("older", "later", "out"))
    assert main(["calibrate", str(raw), str(older), *FLAGS]) == 0
    shutil.copytree(older, later)
    path = raw / "train" / "17" / "FGS1_signal.parquet"
    content = path.read_bytes()
    truncated(path)
    assert main(["calibrate", str(raw), str(later), *FLAGS]) == 1
    path.write_bytes(content)
    folders = [older, later] if order == "older first" else [later, older]
    flags = [word for folder in folders for word in ("--resume-from", folder)]
    told = found(raw, out, *flags, capsys=capsys, code=0)
    done = gpucal.run(gpucal.open_dataset(raw), out, gpucal.Calibration(bins=BINS), resume_from=folders).done
    assert told["unfinished"] == done == (order == "later first")


def test_finished_items_need_no_memory(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, least = tmp_path / "out", ["--memory=295000000", "--workers=1"]
    assert main(["calibrate", str(raw), str(out), *FLAGS]) == 0
    assert len(found(raw, *least, capsys=capsys, code=1)["failing"]) == 4
    assert found(raw, out, *least, capsys=capsys, code=0)["failing"] == {}
    assert main(["calibrate", str(raw), str(out), *FLAGS, *least]) == 0


REFUSED = {
    "other settings": (["--no-flat"], "holds results of other settings (flat = true there and false now)"),
    "an unknown planet": (["--planet=99"], "no planet 99"),
    "impossible bins": (["--bin=FGS1=71"], "no observation has more than 70 pairs of reads"),
    "no memory": (["--memory=1MB"], "memory = 1MB: the least is"),
    "a backend that cannot run": (["--backend=cupy"], "cupy"),
}


@pytest.mark.parametrize("verb", ["check", "calibrate"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_run_refuses_a_check_refuses(
    name: str, verb: str, source: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, says = REFUSED[name]
    dry = ["--dry-run"] * (verb == "calibrate")
    assert main([verb, str(source), str(finished), "--variance", *FLAGS, *flags, *dry]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_dry_run_is_a_check(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / SIGNAL).unlink()
    argv = [str(raw), str(tmp_path / "out"), *FLAGS, "--variance", "--reduce=mean", "--json"]
    told = []
    for words in (["check", *argv], ["calibrate", *argv, "--dry-run"]):
        assert main(words) == 1
        told.append(json.loads(capsys.readouterr().out))
    for one in told:
        for measured in ("seconds", "seconds_each", "free_bytes", "notes"):
            one.pop(measured)
    assert told[0] == told[1]
    assert told[0]["changes"]["reduce"] == ["sum", "mean"]
    assert not (tmp_path / "out").exists()


def test_a_time_limit_that_is_too_short_is_said(old: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(old[0]), *FLAGS, "--time-limit=0.000001s"]) == 0
    assert "the run will reach its --time-limit; run it again to continue" in capsys.readouterr().out


def test_no_read_noise(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "train" / "17" / "FGS1_calibration" / "read.parquet").unlink()
    assert found(raw, capsys=capsys, code=0)["failing"] == {}
    for flag in ("--variance", "--weights=variance"):
        told = found(raw, flag, capsys=capsys, code=1)
        assert [*told["failing"]] == ["planet 17 visit 0 FGS1"]
        assert f"which {flag.replace('=', ' ')} needs" in told["failing"]["planet 17 visit 0 FGS1"]


def test_python_has_it_too(planets: gpucal.Dataset, tmp_path: Path) -> None:
    checked = check(Request(planets, tmp_path / "out", CONFIG, planets="17.0", variance=True))
    assert (checked.items, checked.would_fail, checked.unfinished) == (2, False, 2)
    assert {name: frames.bins for name, frames in checked.detectors.items()} == dict.fromkeys(DETECTORS, 4)
    with pytest.raises(ConfigError, match="product = 'x'"):
        check(Request(planets, None, product="x"))
