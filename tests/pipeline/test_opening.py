"""Items opened by a process of their own are those opened here, whatever becomes of that process."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
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
    with tempfile.TemporaryFile() as errors, closing(opening._Opener(errors)) as started:
        until(started.is_ready)
        yield started


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


def test_a_lost_process_is_done_without(old: Made, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(opening, "COMMAND", (sys.executable, "-c", LOST))
    dataset = gpucal.open_dataset(old[0])
    with tempfile.TemporaryFile() as errors, closing(opening._Opener(errors)) as started:
        until(started.is_ready)
        (item, *_) = items_of(dataset)
        assert isinstance(started.open(item), Opened)
        assert not started.is_ready()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "the process that opens files has ended: no more; this one opens them now"


LOST = """
import sys
from gpucal.pipeline.process import speak
speak()(None)
sys.stdin.buffer.read(1)
sys.exit("no more")
"""


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
    monkeypatch.setattr(opening._Opener, "is_ready", lambda self: ready(self, known))
    monkeypatch.setattr(opening._Opener, "open", lambda self, item: opened.append(item.id) or open_there(self, item))
    there = [cal.signal.get() for cal in gpucal.stream(dataset, "FGS1", CONFIG, device=True)]
    assert len(started) == 1
    assert len(opened) == len(dataset) - opening._HERE
    np.testing.assert_array_equal(there, here)
    assert not caplog.records
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
    for cal in gpucal.stream(dataset, "FGS1", CONFIG, device=True):  # left before its end
        if len(opened) > len(dataset) - opening._HERE:
            assert cal.signal.shape == here[0].shape
            break
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
