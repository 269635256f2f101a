"""System calls that fail on an item's way to the disk, one after the other: they cost that item and nothing else."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath

import many
import pytest
from many import FULL, KILL, LOCKED, ONCE, READ, SHORT, Ended, Runs

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EINTR)
LOST = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Place:
    """A results folder with planets 1 and 2 of 3 finished, and what it is to hold in the end."""

    runs: Runs
    source: Path
    out: Path
    product: str
    complete: dict[str, object]

    def calibrate(self, *argv: object, fault: tuple[int, ...] = ()) -> Ended:
        what = (self.source, self.out, "--product", self.product, "--json", *argv)
        return self.runs.calibrate(*what, fault=(str(self.out), *fault) if fault else ())

    def finished(self) -> dict[str, bytes]:
        files = (file for planet in "12" for file in (self.out / planet).rglob("*"))
        return {str(file): file.read_bytes() for file in files if file.is_file()}

    def restore(self) -> None:
        """Have it as it was at first, in a tenth of the time of a clean run."""
        shutil.rmtree(self.out)
        shutil.copytree(self.out.with_name("whole"), self.out)

    def clean_up(self, what: object) -> None:
        """A clean run completes everything, whatever was before it."""
        ended = self.calibrate()
        assert (ended.code, ended.lines) == (0, []), what
        assert many.litter(self.out) == [], what
        assert many.content(self.out) == self.complete, what


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Runs that system calls can be made to fail in."""
    folder = tmp_path_factory.mktemp("faults")
    with Runs(folder, many.build_faults(folder)) as runs:
        yield runs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.make(tmp_path_factory.mktemp("source") / "three", range(1, 4))


@pytest.fixture(scope="module", params=["light-curves", "cubes"])
def place(
    request: pytest.FixtureRequest, faulty: Runs, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    folder = tmp_path_factory.mktemp("faults")
    given = (faulty, source, folder / "out", request.param)
    assert Place(*given, {}).calibrate().code == 0
    shutil.copytree(folder / "out", folder / "whole")
    return Place(*given, many.content(folder / "out"))


def check(place: Place, ended: Ended, before: dict[str, bytes], error: int, expected: int) -> str:
    """Look at what a run with a fault has left; return what became of it."""
    what = (ended.fault["what"], errno.errorcode.get(error, error), ended)
    text = "\n".join(ended.lines)
    assert ended.code in (0, 1, 2), what
    assert "Traceback" not in text, what
    assert "ignored" not in text, what
    assert all(line.startswith("gpucal: ") for line in ended.lines), what
    assert {name: data for name, data in place.finished().items() if "/." not in name} == before, what
    assert many.wrong(place.out, begun=True) == [], what
    if ended.code == 2:
        assert len(ended.lines) == 1, what
        assert os.strerror(error) in text, what
        return "refused"
    summary = ended.summary
    failed = summary["failed"]
    # each has its line, and no item is counted twice or forgotten
    assert all(f"gpucal: {line}" in ended.lines for line in failed.values()), what
    items = [where for where in failed if where.startswith("planet ")]
    assert summary["done"] + summary["skipped"] + len(items) + summary["left"] == expected, what
    assert ended.code == (1 if failed else 0), what
    assert bool(summary["left"]) <= bool(summary["stopped"]), what
    if not failed:
        assert many.wrong(place.out) == [], what
        return "survived"
    # pyarrow does not say why a file cannot be closed
    assert os.strerror(error) in text or "error closing file" in text, what
    if items and error in LOST:
        assert "nothing more can be written; " in summary["stopped"], what
        assert any(summary["stopped"] in line for line in ended.lines), what
        return "stopped"
    return "failed" if items else "failed for all"


@dataclass(frozen=True)
class Call:
    """The call that failed: its name, and the file's under the results folder."""

    name: str
    path: str

    @property
    def of_item(self) -> bool:
        """Whether it is on a file of an item, in its folder or on its way there."""
        return bool(re.match(r"\d/0/|\.gpucal/\d-0-", self.path))

    @property
    def kind(self) -> tuple[object, ...]:
        """Calls that are alike: on files of an item or of all, by what they hold and whether they are temporary."""
        *stem, last = PurePath(self.path).name.split(".")
        return self.name, self.of_item, last, stem[-2] if last == "tmp" else ""

    def outcomes(self, how: int, error: int) -> set[str]:
        """What may become of the run: for most calls there is one thing, however the threads were scheduled."""
        lost = {"stopped" if error in LOST else "failed"}
        temporary, item = self.path.endswith(".tmp"), self.of_item
        if self.path.startswith(".gpucal/settings.lock"):  # taken in the beginning, given back when all is done
            expected = {"refused"} if self.name == "open" else {"refused", "survived"}
        elif "config.toml" in self.path:
            expected = {"refused"}
        elif self.path == "gpucal.log":
            # The log's first lines are written before all else, so a disk that is full from then on ends the run.
            from_then_on = {"stopped", "failed for all"} if how in (FULL, LOCKED) else set()
            expected = {"refused"} if self.name == "open" else {"survived"} | from_then_on
        elif self.name == "rmdir" or (self.name == "unlink" and (temporary or self.path.endswith(".lock"))):
            # what cannot be removed is the next start's to remove; but the removal may be one of many things that fail
            expected = {"survived"} if how == ONCE else EVERYTHING
        elif item and how == READ:
            # A record that the first look cannot read is read again where the item is opened.
            expected = lost if temporary else EVERYTHING - {"stopped"}
        elif item and (temporary or self.name == "rename"):
            expected = lost
        elif temporary:
            expected = {"failed for all"}
        else:
            expected = EVERYTHING
        return expected | ({"survived"} if error == errno.EINTR or how == SHORT else set())  # Python tries again


EVERYTHING = {"refused", "survived", "failed", "stopped", "failed for all"}


def sweep(place: Place, how: int, errors: Sequence[int], *argv: object) -> Counter[str]:
    """Fail call after call until there is none left to fail, with one error after the other.

    Where each call is to fail, the first of a kind does so with every error; after that, and after every fourth other
    call, a clean run has to mend what was left.
    """
    became: Counter[str] = Counter()
    before, kinds = place.finished(), set[object]()
    for at in count(1):
        first, *others = (errors[(at + k) % len(errors)] for k in range(len(errors)))
        call = fail(place, how, at, first, became, before, *argv)
        if call is None:
            print(f"{how}: {became.total()} faults, {at - 1} calls: {dict(became)}")  # noqa: T201, with -s
            return became
        new = call.kind not in kinds
        kinds.add(call.kind)
        if new or at % 4 == 0:
            place.clean_up((at, first, call))
        else:
            place.restore()
        for error in others if new else ():
            fail(place, how, at, error, became, before, *argv)
            place.clean_up((at, error, call))
    raise AssertionError


def fail(
    place: Place, how: int, at: int, error: int, became: Counter[str], before: dict[str, bytes], *argv: object
) -> Call | None:
    """Fail one call and count what became of the run; return the call, if there was one."""
    if "--overwrite" not in argv:
        shutil.rmtree(place.out / "3", ignore_errors=True)
    ended = place.calibrate(*argv, fault=(at, error, how))
    if not ended.fault["failed"]:
        return None
    call = Call(*ended.fault["what"].split(" ", 1))
    outcome = check(place, ended, before, error, 2 if argv else 6)
    assert outcome in call.outcomes(how, error), (outcome, call, errno.errorcode.get(error, error), ended)
    became[outcome] += 1
    if "--overwrite" in argv and how == FULL:
        held = many.content(place.out)
        kept = {name: what for name, what in place.complete.items() if name.startswith("3/")}
        assert kept.items() <= held.items(), ended
    return call


def test_a_failing_call_costs_its_item_at_most(place: Place) -> None:
    errors = ERRORS if place.product == "light-curves" else ERRORS[:2]  # its items are written alike
    became = sweep(place, ONCE, errors)
    assert became.keys() == EVERYTHING


def test_a_record_that_cannot_be_read_costs_its_item_at_most(place: Place) -> None:
    became = sweep(place, READ, [errno.EIO])
    # it survives what it reads to spare itself work, if there is such a file
    assert became.keys() - {"survived"} == {"refused", "failed", "failed for all"}


@pytest.mark.parametrize("how", [pytest.param(FULL, id="full"), pytest.param(LOCKED, id="read-only")])
def test_a_disk_that_is_full_or_read_only_from_then_on_ends_the_run(place: Place, how: int) -> None:
    errors = {FULL: [errno.ENOSPC, errno.EDQUOT], LOCKED: [errno.EROFS]}[how]
    became = sweep(place, how, errors)
    # the last call may be one nothing depends on
    assert became.keys() - {"survived"} == {"refused", "stopped", "failed for all"}


def test_a_full_disk_keeps_what_was_to_be_overwritten(place: Place) -> None:
    became = sweep(place, FULL, [errno.ENOSPC], "--overwrite", "--planet", 3)
    assert became.keys() >= {"refused", "stopped", "failed for all"}


def test_short_writes_are_gone_on_with(place: Place) -> None:
    became = sweep(place, SHORT, [0])
    assert became.keys() == {"survived"}


def test_a_kill_at_a_call_loses_nothing(place: Place) -> None:
    """In the middle of a file, between two, before their record: where test_kills.py hits by chance, and mostly not."""
    before, left = place.finished(), Counter[str]()
    for at in count(1):
        shutil.rmtree(place.out / "3", ignore_errors=True)
        ended = place.calibrate(fault=(at, 0, KILL))
        if ended.code == 0:
            break
        assert (ended.code, ended.lines) == (128 + signal.SIGKILL, []), at
        assert {name: data for name, data in place.finished().items() if "/." not in name} == before, at
        assert many.wrong(place.out, begun=True) == [], at
        left.update({PurePath(name).suffix for name in many.litter(place.out)})
        place.clean_up(at)
    print(f"{at - 1} calls, left behind: {dict(left)}")  # noqa: T201, with -s
    # or the corner, with nothing in it
    assert left.keys() - {""} == {".tmp", ".npy", ".lock"}
