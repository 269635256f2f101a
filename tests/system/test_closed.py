"""Folders and files that cannot be read cost the observations in them, and are named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import BINS, Made

import gpucal
from gpucal import Calibration
from gpucal.cli.main import main
from gpucal.errors import DatasetError, InputError, OutputError, RunWarning
from gpucal.results.verify import verify
from gpucal.runs.check import check
from gpucal.runs.request import Request

CONFIG = Calibration(bins=BINS)


def close(folder: Path) -> None:
    """Have any look into a folder fail; the name is too long for that, as permissions do not hold for root."""
    shutil.rmtree(folder)
    folder.symlink_to("x" * 300)


@pytest.fixture
def source(old: Made, tmp_path: Path) -> Path:
    shutil.copytree(old[0], tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    gpucal.run(gpucal.open_dataset(source), tmp_path / "out", CONFIG)
    return tmp_path / "out"


def test_calibration_frames_that_cannot_be_read(source: Path, tmp_path: Path) -> None:
    dataset = gpucal.open_dataset(source)
    obs, *others = dataset
    close(obs.calibration_path("FGS1"))
    line = rf"planet {obs.planet} visit {obs.visit} FGS1: .*cannot be read \(File name too long\)"
    with pytest.warns(RunWarning, match=line):
        summary = gpucal.run(dataset, tmp_path / "out", CONFIG)
    assert summary.observations == {"failed": 1, "calibrated": len(others), "finished before": 0, "left": 0}
    assert len(summary.failed) == 1
    assert gpucal.open_results(tmp_path / "out").ids == [other.key for other in others]
    assert len(check(Request(dataset, None, CONFIG)).failing) == 1
    assert len(dataset.table()) == len(dataset)
    assert "no calibration frames" not in repr(obs)
    with pytest.raises(InputError, match="cannot be read"):
        gpucal.calibrate(obs, "FGS1", CONFIG)


def test_a_planet_that_cannot_be_read(source: Path, tmp_path: Path) -> None:
    planet, *others = gpucal.open_dataset(source).planets
    close(source / "train" / str(planet))
    dataset = gpucal.open_dataset(source)
    assert dataset.planets == [planet, *others]
    assert "no raw reads" in repr(dataset[planet])
    with pytest.warns(RunWarning, match=rf"planet {planet} visit 0 .*{planet}.*cannot be read"):
        summary = gpucal.run(dataset, tmp_path / "out", CONFIG)
    assert len(summary.failed) == 2
    assert {key[0] for key in gpucal.open_results(tmp_path / "out").ids} == set(others)
    assert len(check(Request(dataset, None, CONFIG)).failing) == 2
    assert len(dataset.table()) == len(dataset)


def test_a_split_that_cannot_be_read_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path.iterdir

    def iterdir(folder: Path) -> object:
        if folder.name == "train":
            raise PermissionError(13, "Permission denied", str(folder))
        return usual(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(DatasetError, match=r"raw/train: cannot be read \(Permission denied\); make it readable"):
        gpucal.open_dataset(source)


@pytest.mark.parametrize("depth", [1, 2], ids=["planet", "visit"])
def test_results_that_cannot_be_read(out: Path, depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named, and never left out without a word."""
    first = gpucal.open_results(out).ids[0]
    folder = Path(*[out, str(first[0]), str(first[1])][: 1 + depth])
    close(folder)
    line = rf"{folder}: cannot be read \(File name too long\); make it readable"
    with pytest.raises(OutputError, match=line):
        gpucal.open_results(out)
    assert any(line.replace("\\", "") in found for found in verified(out))
    for verb in ("report", "verify", "export"):
        assert main([verb, str(out), *([str(tmp_path / "to")] if verb == "export" else [])]) in (1, 2)
        assert f"{folder}: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


NOT_READ = r"gpucal: .*/closed/\w+(/train|/resumed-from.json)?: cannot be read \(File name too long\); make it readable"
NOT_WRITTEN = r"gpucal: .*/closed/\S+: cannot be written \(File name too long\); free space or choose another folder"
VERBS = {
    "report CLOSED/out": NOT_READ,
    "verify CLOSED/out": NOT_READ,
    "plot CLOSED/out": NOT_READ,
    "export CLOSED/out TO": NOT_READ,
    "info CLOSED/raw": NOT_READ,
    "calibrate CLOSED/raw TO": NOT_READ,
    "calibrate RAW CLOSED/out": NOT_READ,
    "check RAW CLOSED/out": NOT_READ,
    "calibrate RAW TO --resume-from CLOSED/out": NOT_READ,
    "export OUT CLOSED/to": NOT_WRITTEN,
    "plot OUT --out CLOSED/pictures": NOT_WRITTEN,
    "report OUT --html CLOSED/page.html": NOT_WRITTEN,
    "synth CLOSED/raw": NOT_WRITTEN,
    "demo CLOSED/demo --frames 120": NOT_WRITTEN,
}


@pytest.mark.parametrize("line", VERBS)
def test_what_lies_in_a_folder_that_cannot_be_read_is_one_line(
    line: str, out: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the folder of somebody else."""
    (tmp_path / "closed").mkdir()
    close(tmp_path / "closed")
    places = {"CLOSED": tmp_path / "closed", "RAW": source, "OUT": out, "TO": tmp_path / "to"}
    words = [re.sub(r"[A-Z]+", lambda name: str(places[name[0]]), word) for word in line.split()]
    assert main(words) == 2
    assert re.match(VERBS[line], capsys.readouterr().err)
    assert not (tmp_path / "to").exists()


def verified(out: Path) -> list[str]:
    try:
        return [*verify(out)]
    except OutputError as error:
        return [str(error)]


@pytest.mark.parametrize("depth", [1, 2], ids=["planet", "visit"])
def test_a_run_fails_the_items_of_a_folder_that_cannot_be_read(out: Path, source: Path, depth: int) -> None:
    *others, last = gpucal.open_results(out).ids
    close(Path(*[out, str(last[0]), str(last[1])][: 1 + depth]))
    with pytest.warns(RunWarning, match="File name too long"):
        summary = gpucal.run(gpucal.open_dataset(source), out, CONFIG)
    assert summary.observations == {"failed": 1, "calibrated": 0, "finished before": len(others), "left": 0}
