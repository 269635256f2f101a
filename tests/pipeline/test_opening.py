"""Items opened by a process of their own are those opened here, whatever becomes of that process."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BINS, Made, until
from emulator import standin

import gpucal
from gpucal.errors import InputError
from gpucal.inputs.parquet.footer import Footer
from gpucal.pipeline import opening
from gpucal.pipeline.opening import open_beside
from gpucal.pipeline.stream import Item, Opened, Outcome, open_items
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS

CONFIG = Calibration(bins=BINS, integration="notebook")


@pytest.fixture
def opener() -> Iterator[opening._Opener]:
    with closing(opening._Opener()) as made:
        made.start()
        until(made.is_ready)
        yield made


def items_of(dataset: gpucal.Dataset) -> list[Item]:
    config = CONFIG.filled(dataset.layout.preset)
    return [Item(obs, config.cropped(detector), config) for obs in dataset for detector in DETECTORS.values()]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if hasattr(one, "__dataclass_fields__") and not isinstance(one, Calibration):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return bool(one == other)


@pytest.mark.parametrize("layout", ["old", "new"])
def test_they_are_the_same(layout: str, opener: opening._Opener, request: pytest.FixtureRequest) -> None:
    dataset = gpucal.open_dataset(request.getfixturevalue(layout)[0])
    for item, here in zip(items_of(dataset), open_items(items_of(dataset)), strict=True):
        there = opener.open(item)
        assert isinstance(there, Opened)
        assert isinstance(here, Opened)
        assert isinstance(there.signal.footer, Footer)
        assert there.item is item
        for field in fields(Opened)[1:-1]:  # but for the seconds it took
            assert same(getattr(there, field.name), getattr(here, field.name)), field.name


def test_errors_and_warnings_are_the_same(
    opener: opening._Opener, old: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(old[0], tmp_path / "raw")
    planet = next((tmp_path / "raw" / "train").iterdir())
    for path in planet.rglob("read.parquet"):
        path.unlink()
    next(planet.glob("FGS1_signal*")).write_bytes(b"PAR1 and no more")
    lines = []
    for way in (lambda items: [*open_items(items)], lambda items: [*map(opener.open, items)]):
        caplog.clear()
        outcomes = way(items_of(gpucal.open_dataset(tmp_path / "raw")))
        errors = [one.result for one in outcomes if isinstance(one, Outcome)]
        assert len(errors) == 1
        assert isinstance(errors[0], InputError)
        lines.append([str(errors[0]), vars(errors[0]), [record.getMessage() for record in caplog.records]])
    assert lines[0] == lines[1]
    assert "read noise" in lines[0][2][0]


BEGIN = """
import sys
from gpucal.pipeline.process import speak
speak()(None)
sys.stdin.buffer.read(1)
"""
PRINTS = "print('Loading modules', flush=True); import time; time.sleep(60)"
WRONG = BEGIN.replace("speak()(None)", "say = speak(); say(None)") + "say(((1, 0, 'FGS1'), ()))"
CUT = BEGIN + "import os, pickle; os.write(1, pickle.dumps([b'x' * 999])[:500]); sys.exit('cut short')"


@pytest.mark.parametrize(
    ("child", "why"),
    [
        (BEGIN + "sys.exit('no more')", "no more"),
        (BEGIN + "import os; os.kill(os.getpid(), 9)", "Ran out of input"),
        (CUT, "cut short"),
        (WRONG, "an answer about (1, 0, 'FGS1')"),
        (PRINTS, None),
    ],
)
def test_a_lost_process_is_done_without(
    child: str, why: str | None, old: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "COMMAND", (sys.executable, "-c", child))
    items = items_of(gpucal.open_dataset(old[0]))
    with closing(opening._Opener()) as made:
        made.start()
        until(lambda: made.is_ready() or caplog.records)
        assert all(isinstance(made.open(item) if made.is_ready() else item, (Opened, Item)) for item in items)
        assert not made.is_ready()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    before, _, said = record.getMessage().partition(": ")
    assert before == "the process that opens files has ended"
    assert said.endswith("; this one opens them now")
    assert why is None or why in said


def test_one_that_cannot_start_is_done_without(
    many: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "start", lambda *_: (_ for _ in ()).throw(BlockingIOError(11, "no process is left")))
    items = items_of(gpucal.open_dataset(many))
    assert [one.item for one in open_beside(iter(items)) if isinstance(one, Opened)] == items
    (record,) = caplog.records
    assert "no process is left" in record.getMessage()


def test_nothing_is_needed_for_it(
    many: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("os.memfd_create", missing)
    items = items_of(gpucal.open_dataset(many))
    assert [one.item for one in open_beside(iter(items)) if isinstance(one, Opened)] == items
    assert len(caplog.records) == 1


def test_what_cannot_be_sent_is_opened_here(
    old: Made, opener: opening._Opener, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = gpucal.open_dataset(old[0])
    vars(dataset)["lambda"] = lambda: None
    (item, *_) = items_of(dataset)
    assert isinstance(opener.open(item), Opened)
    assert not opener.is_ready()
    assert len(caplog.records) == 1


def test_a_data_set_is_sent_once(old: Made, new: Made, opener: opening._Opener) -> None:
    """And nothing else is kept: a stream may never end."""
    first, second = (items_of(gpucal.open_dataset(made[0])) for made in (old, new))
    for item in 2 * [*first, *second]:
        assert isinstance(opener.open(item), Opened)
    assert opener._datasets == [first[0].obs.dataset, second[0].obs.dataset]


def test_levels_of_logging_hold(
    opener: opening._Opener, old: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(old[0], tmp_path / "raw")
    for path in (tmp_path / "raw").rglob("read.parquet"):
        path.unlink()
    (item, *_) = items_of(gpucal.open_dataset(tmp_path / "raw"))
    with caplog.at_level(logging.ERROR, "gpucal"):
        assert isinstance(opener.open(item), Opened)
    assert not caplog.records


def test_one_that_does_not_start_is_not_waited_for(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(opening, "_HERE", 0)
    start = time.monotonic()
    items = items_of(gpucal.open_dataset(many))
    assert [one.item for one in open_beside(iter(items)) if isinstance(one, Opened)] == items
    assert time.monotonic() - start < 30


def ready(opener: opening._Opener, known: Callable[[opening._Opener], bool]) -> bool:
    until(lambda: known(opener))
    return True


def test_a_stream_of_a_gpu_has_one(
    device: standin.Machine, many: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = gpucal.open_dataset(many)
    here = [cal.signal.get() for cal in gpucal.stream(dataset, "FGS1", CONFIG, device=True)]
    started: list[int] = []
    opened: list[object] = []
    start, known, open_there = opening.start, opening._Opener.is_ready, opening._Opener.open

    def noted(*arguments: Any) -> Any:
        popen = start(*arguments)
        started.append(popen.pid)
        return popen

    monkeypatch.setattr(opening, "start", noted)
    monkeypatch.setattr(opening._Opener, "is_ready", lambda self: self._popen is not None and ready(self, known))
    monkeypatch.setattr(opening._Opener, "open", lambda self, item: opened.append(item.id) or open_there(self, item))
    there = [cal.signal.get() for cal in gpucal.stream(dataset, "FGS1", CONFIG, device=True)]
    assert len(started) == 1
    assert len(opened) == len(dataset) - opening._HERE
    np.testing.assert_array_equal(there, here)
    assert not caplog.records
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
    for _ in gpucal.stream(dataset, "FGS1", CONFIG, device=True):  # left before its end
        if len(opened) > len(dataset) - opening._HERE:
            break
    else:
        pytest.fail("it was not left")
    until(lambda: is_gone(started[1]))


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_stream_of_a_cpu_has_none(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "start", None)
    monkeypatch.setattr(opening, "_HERE", 0)
    assert len([*gpucal.stream(gpucal.open_dataset(many), "FGS1", CONFIG, backend="numpy")]) == 20
