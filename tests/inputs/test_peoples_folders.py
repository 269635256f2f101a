"""Competition folders as people have them: stray tables, names that are not UTF-8; detectors as people write them."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import BINS, CONFIG, Made
from stored import done_in

import gpucal
from gpucal.cli.main import main
from gpucal.cli.parser import parsed
from gpucal.errors import InputError
from gpucal.settings.options import settings_from

STRAY = {
    "2025's table in 2024": ("old", "adc_info.csv", "2024"),
    "2024's table in 2025": ("new", "train_adc_info.csv", "2025"),
    "another split's table in 2025": ("new", "test_adc_info.csv", "2025"),
    "a numbered file in 2024": ("old", "train/17/FGS1_signal_1.parquet", "2024"),
    "a file without a number in 2025": ("new", "train/5/FGS1_signal.parquet", "2025"),
    "a numbered folder in 2024": ("old", "train/23/AIRS-CH0_calibration_3", "2024"),
}


@pytest.mark.parametrize("name", STRAY)
def test_what_is_stray_does_not_change_the_layout(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    which, place, layout = STRAY[name]
    source: Made = request.getfixturevalue(which)
    raw = shutil.copytree(source[0], tmp_path / "raw")
    (raw / place).touch() if "." in place else (raw / place).mkdir()
    before, dataset = gpucal.open_dataset(source[0]), gpucal.open_dataset(raw)
    assert dataset.layout.name == layout
    assert [obs.key for obs in dataset] == [obs.key for obs in before]
    for obs, expected in zip(dataset, before, strict=True):
        cal, other = gpucal.calibrate(obs, "FGS1", CONFIG), gpucal.calibrate(expected, "FGS1", CONFIG)
        np.testing.assert_array_equal(cal.signal, other.signal)
        assert cal.provenance["inputs"] == other.provenance["inputs"]


@pytest.mark.parametrize(("table", "layout"), [("adc_info.csv", "2025"), ("train_adc_info.csv", "2024")])
def test_without_files_of_planets_the_tables_decide(tmp_path: Path, table: str, layout: str) -> None:
    (tmp_path / "train" / "17").mkdir(parents=True)
    (tmp_path / "train" / "17" / "notes.txt").touch()
    (tmp_path / table).touch()
    assert gpucal.open_dataset(tmp_path).layout.name == layout


@pytest.mark.parametrize(
    "place", ["train_adc_info.csv", "train/17/FGS1_signal.parquet", "train/17/FGS1_calibration/flat.parquet"]
)
@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EACCES, "make it and its folders readable"),
        (errno.EPERM, "make it and its folders readable"),
        (errno.EIO, "copy it again from the competition data"),
    ],
)
def test_a_file_that_may_not_be_read(
    place: str, number: int, mend: str, old: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of it would be as unreadable."""
    plain, path = os.open, old[0] / place

    def refuses(name: object, *how: object, **more: object) -> int:
        if str(name) == str(path):
            raise OSError(number, os.strerror(number))
        return plain(name, *how, **more)  # type: ignore[arg-type]

    obs = gpucal.open_dataset(old[0])[17]
    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(InputError) as caught:
        gpucal.calibrate(obs, "FGS1", CONFIG)
    assert re.search(rf"{path}: .*cannot be read \({os.strerror(number)}\); {mend}$", str(caught.value))


ODD = {"latin-1": b"r\xe9sultats", "bytes": b"\xff\xfe\x80"}
FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]


def rows(path: Path) -> int:
    with path.open("rb") as stream:
        return len(pq.read_table(stream))


@pytest.mark.parametrize("name", ODD)
def test_names_that_are_not_utf_8(name: str, old: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb, for the data set, the results and the exports; the standard output that pytest has is strict."""
    home = tmp_path / os.fsdecode(ODD[name])
    home.mkdir()
    raw, out, more, curves = shutil.copytree(old[0], home / "raw"), home / "out", home / "more", home / "curves"
    (raw / "train" / "23" / "FGS1_signal.parquet").unlink()

    def gpucal_(*argv: object, expected: int = 0) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == expected
        return capsys.readouterr().out

    assert "2 planets" in gpucal_("info", raw)
    assert "\\udcff" in gpucal_("calibrate", raw, out, *FLAGS, "--variance", expected=1) or name != "bytes"
    assert "no mismatches" in gpucal_("verify", out)
    assert "FGS1_signal.parquet: signal file is missing" in gpucal_("report", out)
    done = [(17, 0, "AIRS-CH0"), (17, 0, "FGS1"), (23, 0, "AIRS-CH0")]
    assert done_in(gpucal_("report", out, "--json")) == done
    assert "1 of 2 observations complete, 2 need a look" in gpucal_("report", out, "--html")
    page = (out / "report.html").read_text()
    assert "FGS1_signal.parquet" in page
    assert str(tmp_path) not in page
    assert rows(out / "manifest.parquet") == 4
    for form in ("npy", "fits", "zarr"):
        gpucal_("export", out, home / form, f"--format={form}")
        assert any((home / form).iterdir())
    gpucal_("plot", out, 17)
    gpucal_("calibrate", raw, curves, *FLAGS, "--product=light-curves", expected=1)
    gpucal_("export", curves, home / "tables", "--product=light-curves", "--format=parquet")
    assert rows(home / "tables" / "light-curves.parquet") == 4
    assert "no mismatches" in gpucal_("verify", curves)
    gpucal_("calibrate", raw, more, *FLAGS, "--variance", "--resume-from", out, expected=1)
    assert done_in(gpucal_("report", more, "--json")) == done
    assert gpucal.open_results(more).light_curves().shape == (1, 4, 283)


@pytest.mark.parametrize("name", ODD)
def test_synthetic_data_there(name: str, tmp_path: Path) -> None:
    raw = tmp_path / os.fsdecode(ODD[name])
    assert main(["synth", str(raw), "--frames=2"]) == 0
    assert len(gpucal.open_dataset(raw)) == 1
    assert main(["check", str(raw), "--bin=AIRS=1,FGS1=1"]) == 0


WORDS = {
    "short": ["--bin", "AIRS=30"],
    "small": ["--bin", "airs-ch0=30"],
    "odd case": ["--bin", "aIrS_cH0=30"],
    "several": ["--bin", "AIRS=30,FGS1=360"],
    "several with a space": ["--bin", "fgs=360, AIRS-CH0=30"],
    "several flags": ["--bin", "airs=30", "--bin", "FGS=360"],
}


@pytest.mark.parametrize("name", WORDS)
def test_detectors_as_people_write_them(name: str) -> None:
    settings = settings_from(parsed(["calibrate", "a", "b", *WORDS[name]]))
    assert dict(settings.bins) == {"AIRS-CH0": 30, "FGS1": 360}


@pytest.mark.parametrize(
    ("flag", "setting", "value"),
    [
        ("--crop=airs=40:320,FGS1=1:31", "crop", {"AIRS-CH0": (40, 320), "FGS1": (1, 31)}),
        ("--rows=fgs1=8:24,Airs=9:20", "rows", {"AIRS-CH0": (9, 20), "FGS1": (8, 24)}),
        (
            "--background-rows=AIRS=0:8,24:32,fgs=0:4",
            "background_rows",
            {"AIRS-CH0": ((0, 8), (24, 32)), "FGS1": ((0, 4),)},
        ),
    ],
)
def test_other_flags_by_detector_are_written_so_too(flag: str, setting: str, value: dict[str, object]) -> None:
    assert dict(getattr(settings_from(parsed(["calibrate", "a", "b", flag])), setting)) == value


def test_a_detector_that_could_be_either_is_refused(old: Made, tmp_path: Path) -> None:
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), "--bin", "=30"]) == 2
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), "--bin", "NIR=30"]) == 2
