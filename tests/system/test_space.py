"""A small disk that is full, a folder that is read-only, and input that is gone: what they cost, and how it goes on."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import many
import pytest
from conftest import until
from many import Ended, Runs

PLANETS = range(1, 21)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.make(tmp_path_factory.mktemp("source") / "many", PLANETS)


@dataclass(frozen=True)
class Disk:
    """A disk of its own, which only the runs in its namespace see; ``seen`` is where others find it."""

    runs: Runs
    source: Path
    mounted: Path

    @property
    def out(self) -> Path:
        return self.mounted / "out"

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.runs.pid}/root{self.out}")

    def calibrate(self, *argv: object) -> Ended:
        return self.runs.calibrate(self.source, self.out, "--json", *argv)

    def change(self, options: str) -> None:
        assert self.runs.shell("mount", "-o", f"remount,{options}", self.mounted) == 0

    def records(self) -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in self.seen.glob("*/*/*.json")}


@pytest.fixture
def disk(source: Path, tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 400 KB, in a user and mount namespace: it goes with the runs, however they end."""
    (tmp_path / "disk").mkdir()
    launcher = ["unshare", "-rm"]
    mounting = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path / "disk")]
    possible = shutil.which("unshare") and subprocess.run([*launcher, *mounting], capture_output=True, check=False)
    if not possible or possible.returncode:
        pytest.skip(f"no disk can be mounted here: {possible.stderr.decode().strip() if possible else 'no unshare'}")
    with Runs(tmp_path, launcher=launcher) as runs:
        assert runs.shell(*mounting) == 0
        yield Disk(runs, source, tmp_path / "disk")


def undisturbed(disk: Disk, tmp_path: Path, *argv: object) -> dict[str, object]:
    assert disk.runs.calibrate(disk.source, tmp_path / "undisturbed", *argv).code == 0
    return many.content(tmp_path / "undisturbed")


@pytest.mark.parametrize("product", ["cubes", "light-curves"])
def test_a_full_disk_ends_the_run_early_and_more_room_lets_it_go_on(disk: Disk, tmp_path: Path, product: str) -> None:
    flags = ("--product", product)
    ended = disk.calibrate(*flags)
    summary = ended.summary
    assert ended.code == 1
    assert 0 < summary["done"] < len(PLANETS) * 2
    assert len([where for where in summary["failed"] if where.startswith("planet ")]) == 1
    assert summary["left"] == len(PLANETS) * 2 - summary["done"] - 1
    missing = f"the {summary['left'] + 1} items still to be done need about [12] MB and 0 MB are free; free [12] MB"
    assert re.fullmatch(f"{re.escape(str(disk.out))}: nothing more can be written; {missing}", summary["stopped"])
    assert ended.lines[0].endswith("cannot be written (No space left on device); free space or choose another folder")
    assert all(line.startswith("gpucal: ") for line in ended.lines)
    assert ended.lines[-1].startswith(f"gpucal: {summary['stopped']}: {summary['done']} done, 0 finished before, ")
    assert ended.lines[-1].endswith("finished items are kept, run it again to continue")
    assert many.wrong(disk.seen, begun=True) == []
    assert many.litter(disk.seen) == []
    before = disk.records()
    assert len(before) == summary["done"]
    # still full: nothing can be begun, and nothing is harmed
    (disk.seen / "fill").touch()
    assert disk.runs.shell("sh", "-c", f"cat /dev/zero > {disk.out}/fill 2>/dev/null") != 0
    ended = disk.calibrate(*flags)
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "No space left on device" in ended.lines[0]
    assert disk.records() == before
    (disk.seen / "fill").unlink()
    disk.change("size=8m")
    ended = disk.calibrate(*flags)
    assert (ended.code, ended.lines) == (0, [])
    assert (ended.summary["done"], ended.summary["skipped"]) == (summary["left"] + 1, summary["done"])
    assert before.items() <= disk.records().items()
    assert (many.wrong(disk.seen), many.litter(disk.seen)) == ([], [])
    assert many.content(disk.seen) == undisturbed(disk, tmp_path, *flags)


def test_a_read_only_folder_is_refused(disk: Disk) -> None:
    disk.change("size=8m")
    assert disk.calibrate("--planet", 1).code == 0
    held = many.content(disk.seen)
    disk.change("ro")
    for argv in ((), ("--overwrite",), ("--planet", 1)):
        ended = disk.calibrate(*argv)
        assert ended.code == 2
        assert ended.lines == [
            f"gpucal: {disk.out}: cannot be written (Read-only file system); free space or choose another folder"
        ]
    # as Kaggle gives a session's results back
    ended = disk.runs.calibrate(disk.source, disk.mounted.with_name("next"), "--resume-from", disk.out, "--json")
    assert (ended.code, ended.lines) == (0, [])
    assert (ended.summary["done"], ended.summary["skipped"]) == (len(PLANETS) * 2 - 2, 2)
    assert many.content(disk.seen) == held


def test_input_that_vanishes_costs_its_items(source: Path, tmp_path: Path) -> None:
    theirs = shutil.copytree(source, tmp_path / "source")
    out = tmp_path / "out"
    with Runs(tmp_path) as runs:
        run = runs.start("calibrate", theirs, out, "--json", *many.SETTINGS)

        def has_an_item() -> bool:
            run.send(signal.SIGSTOP)  # it goes on only while nobody looks
            if any(out.glob("*/*/*.json")):
                return True
            run.send(signal.SIGCONT)
            return False

        until(has_an_item, 30)
        shutil.rmtree(theirs / "train" / "19")
        (theirs / "train" / "20" / "AIRS-CH0_signal.parquet").unlink()
        run.send(signal.SIGCONT)
        ended = run.wait()
        lost = ["planet 19 visit 0 FGS1", "planet 19 visit 0 AIRS-CH0", "planet 20 visit 0 AIRS-CH0"]
        assert (ended.code, [*ended.summary["failed"]]) == (1, lost)
        assert ended.summary["done"] == len(PLANETS) * 2 - 3
        assert ended.lines == [f"gpucal: {line}" for line in ended.summary["failed"].values()]
        noted = {file.parts[-3]: record["error"] for file, record in many.all_records(out) if "error" in record}
        assert [*noted] == ["19", "20"]
        assert "AIRS-CH0_signal.parquet: signal file is missing; " in noted["20"]
        assert (many.wrong(out), many.litter(out)) == ([], [])
        ended = runs.calibrate(source, out)
        assert (ended.code, ended.lines) == (0, [])
        assert runs.calibrate(source, tmp_path / "undisturbed").code == 0
    assert many.content(out) == many.content(tmp_path / "undisturbed")
