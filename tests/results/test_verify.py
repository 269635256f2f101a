"""`verify` finds every kind of damage, and reports nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CONFIG, again, broken
from stored import write_stacks

import gpucal
from gpucal.cli.main import main
from gpucal.errors import OutputError
from gpucal.results.verify import verify


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


AIRS = "23/0/AIRS-CH0"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit in the values": (f"{AIRS}.signal.npy", lambda p: flip(p, 5000), "holds other values"),
    "a flipped bit at the end": (f"{AIRS}.dq.npy", lambda p: flip(p, -1), "holds other values"),
    "a flipped bit in the magic": (f"{AIRS}.variance.npy", lambda p: flip(p, 1), "is not a NumPy file"),
    "axes turned round": (
        f"{AIRS}.signal.npy",
        lambda p: p.write_bytes(p.read_bytes().replace(b"False", b"True ", 1)),
        "holds other values",
    ),
    "another type": (
        f"{AIRS}.signal.npy",
        lambda p: p.write_bytes(p.read_bytes().replace(b"<f4", b"<i4", 1)),
        "is int32 (4, 282, 32), its record says float32 (4, 282, 32)",
    ),
    "cut short": (f"{AIRS}.time.npy", lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, its record says"),
    "lost": (f"{AIRS}.wavelength.npy", Path.unlink, "cannot be read (No such file or directory)"),
    "a folder in its place": (f"{AIRS}.dq.npy", lambda p: (p.unlink(), p.mkdir()), "bytes, its record says"),
    "no record": (f"{AIRS}.json", lambda p: p.write_text("{"), "is not a commit record"),
    "the record of another": (f"{AIRS}.json", lambda p: change(p, planet=17), "is not a commit record"),
    "another sum": (
        f"{AIRS}.json",
        lambda p: p.write_text(p.read_text().replace('"sha256": "', '"sha256": "0', 1)),
        "holds other values",
    ),
    "a flipped bit in a light curve": (f"{AIRS}.flux.npy", lambda p: flip(p, 500), "holds other values"),
    "errors that are lost": (f"{AIRS}.error.npy", Path.unlink, "cannot be read (No such file or directory)"),
    "a file of no record": (f"{AIRS}.other.npy", lambda p: np.save(p, np.ones(3)), "belongs to no record"),
    "litter": ("23/0/.AIRS-CH0.dq.npy.1.tmp", lambda p: p.write_bytes(b""), "belongs to no record"),
    "an index of other times": (
        "manifest.parquet",
        lambda p: pq.write_table(pq.read_table(p).slice(1), p),
        "does not agree with the records",
    ),
    "no index": ("manifest.parquet", Path.unlink, "is missing"),
    "an index of no text": (
        "manifest.parquet",
        lambda p: p.write_bytes(p.read_bytes().replace(b"planet", b"\xffplane")),
        "cannot be read",
    ),
    "a damaged index": ("manifest.parquet", lambda p: p.write_bytes(b"PAR1"), "cannot be read"),
}


def test_nothing_is_found_where_nothing_is_wrong(finished: Path) -> None:
    assert list(verify(finished)) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(out: Path, name: str) -> None:
    file, damage, words = DAMAGES[name]
    damage(out / file)
    lines = list(verify(out))
    array = f"{AIRS}.signal.npy" if name == "another sum" else file
    assert any(line.startswith(f"{out / array}: ") and words in line for line in lines), lines
    assert all("\n" not in line and not line.startswith(str(out / "17")) for line in lines)


def test_what_failed_is_no_mismatch(source: Path, out: Path) -> None:
    with broken(source / "train" / "17" / "FGS1_signal.parquet"):
        assert len(again(source, out).failed) == 1
    assert list(verify(out)) == []


@pytest.fixture(scope="module")
def curves(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light curves of two planets, with files of all as 0.1 wrote them. Not to be written to."""
    path = tmp_path_factory.mktemp("curves") / "out"
    assert again(source, path, variance=False, product="light-curves").done == 4
    return write_stacks(path)


def change_table(path: Path) -> None:
    table = pq.read_table(path)
    values = table["wl_63"].to_numpy().copy()
    values[-1] += 1
    pq.write_table(table.set_column(table.column_names.index("wl_63"), "wl_63", pa.array(values)), path)


CURVE_DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a value of the stack": ("light-curves.npy", lambda p: flip(p, -2), "of planet 23 visit 0"),
    "a value of the errors": ("light-curves.errors.npy", lambda p: flip(p, -2), "of planet 23 visit 0"),
    "a value of the table": ("light-curves.parquet", change_table, "of planet 23 visit 0"),
    "rows missing": (
        "light-curves.parquet",
        lambda p: pq.write_table(pq.read_table(p).slice(0, 4), p),
        "lacks planet 23 visit 0",
    ),
    "a longer stack": (
        "light-curves.npy",
        lambda p: np.save(p, np.load(p)[[0, 1, 1]]),
        "another number of observations",
    ),
    "a shorter stack": ("light-curves.npy", lambda p: np.save(p, np.load(p)[:1]), "another number of observations"),
    "a stack that is cut": ("light-curves.npy", lambda p: p.write_bytes(p.read_bytes()[:-8]), "cannot be read"),
    "a planet of the list": ("light-curves.ids.npy", lambda p: flip(p, -9), "does not list planet 23 visit 0"),
    "a table lost": ("light-curves.parquet", Path.unlink, "cannot be read"),
}


@pytest.mark.parametrize("name", CURVE_DAMAGES)
def test_damaged_light_curves_are_found(curves: Path, tmp_path: Path, name: str) -> None:
    assert list(verify(curves)) == []
    out = shutil.copytree(curves, tmp_path / "out")
    file, damage, words = CURVE_DAMAGES[name]
    damage(out / file)
    lines = list(verify(out))
    assert any(words in line for line in lines), lines
    assert all("\n" not in line for line in lines)


def test_the_command_line(out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: no mismatches\n"
    flip(out / f"{AIRS}.signal.npy", -1)
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{out / AIRS}.signal.npy: ")
    assert said[1] == f"{out}: 1 mismatch; remove the files that do not match and run `gpucal calibrate` again"
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{out}: 2 observations complete, 0 items failed"
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no results"):
        list(verify(tmp_path))


def test_what_is_found_is_made_again_with_overwrite(source: Path, out: Path) -> None:
    flip(out / f"{AIRS}.signal.npy", -1)
    assert list(verify(out)) != []
    again(source, out, overwrite=True, planets=[23])
    assert list(verify(out)) == []
    assert gpucal.open_results(out).ids == [(17, 0), (23, 0)]
    assert gpucal.Calibration.from_toml(out / "config.toml") == CONFIG
