"""Commit records carry the number of their format: older ones are read, newer ones are refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import CONFIG, again, broken

import gpucal
from gpucal.cli.main import main
from gpucal.errors import OutputError
from gpucal.results.records import FORMAT, read_record
from gpucal.results.verify import verify

ITEMS = ("17/0/AIRS-CH0", "23/0/FGS1")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_every_record_says_its_format(source: Path, tmp_path: Path) -> None:
    with broken(source / "train" / "23" / "FGS1_signal.parquet"):
        assert again(source, tmp_path).done == 3
    found = {path: json.loads(path.read_text()) for path in tmp_path.glob("*/*/*.json")}
    assert {record["status"] for record in found.values()} == {"done", "failed"}
    assert [record["format"] for record in found.values()] == [FORMAT] * 4
    assert again(source, tmp_path).done == 1
    assert json.loads((tmp_path / "23" / "0" / "FGS1.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize("item", ITEMS)
def test_records_of_0_1_name_none_and_are_read(source: Path, out: Path, item: str) -> None:
    path = out / f"{item}.json"
    old = json.loads(path.read_text())
    del old["format"]
    path.write_text(json.dumps(old))
    assert read_record(path) == old
    assert len(gpucal.open_results(out)) == 2
    assert again(source, out).skipped == 4
    assert [*verify(out)] == []


@pytest.mark.parametrize("number", [FORMAT + 1, 99])
@pytest.mark.parametrize("item", ITEMS)
def test_newer_records_are_refused(out: Path, item: str, number: int) -> None:
    path = out / f"{item}.json"
    planet, visit, detector = item.split("/")
    path.write_text(json.dumps({"planet": int(planet), "visit": int(visit), "detector": detector, "format": number}))
    expected = (
        f"{path}: is a record of format {number}, and this gpucal reads formats up to {FORMAT}; update gpucal, "
        f"which is {gpucal.__version__} here"
    )
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        gpucal.open_results(out)
    with pytest.raises(OutputError, match=f"^{re.escape(expected)}$"):
        read_record(path)


def test_newer_records_outlive_a_run(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "23" / "0" / "FGS1.json"
    change(path, format=FORMAT + 1)
    before = path.read_bytes()
    flags = [f"--bin={name}={pairs}" for name, pairs in dict(CONFIG.bins).items()]
    assert main(["calibrate", str(source), str(out), "--variance", *flags]) == 1
    said = capsys.readouterr()
    assert f"{path}: is a record of format {FORMAT + 1}" in said.err
    assert "Traceback" not in said.err
    assert main(["verify", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", ["2", True, None, 1.5, [2]])
def test_what_is_no_number_is_no_record(source: Path, out: Path, number: object) -> None:
    change(out / "17" / "0" / "FGS1.json", format=number)
    assert gpucal.open_results(out).ids == [(23, 0)]
    assert (again(source, out).done, again(source, out).skipped) == (1, 4)
