"""Looks at a data set before a run: what would fail, what is unlike the rest, and what the run will need.

Files are judged by their sizes, marks and lengths of footers. Files that differ from the rest are opened as a run does,
and with ``deep`` all are. One observation is calibrated, in memory, to measure the time.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gpucal.backends import choose
from gpucal.errors import InputError
from gpucal.inputs.calibration_files import calibration_paths
from gpucal.inputs.dataset import Observation
from gpucal.inputs.signal_file import ends_of
from gpucal.pipeline.calibrate import stream
from gpucal.pipeline.memory import Budget, result_bytes, usual_memory, working_bytes
from gpucal.pipeline.stream import (
    Item,
    Opened,
    Outcome,
    bins_pages,
    has_fingerprints,
    open_items,
    plan_of,
    require_no_read,
)
from gpucal.results.records import is_finished, is_whole, item_of, record_path, records
from gpucal.results.writer import Store
from gpucal.runs.folder import require_same_settings
from gpucal.runs.gpus import gpus_for, job_of_each
from gpucal.runs.job import Job, items_of
from gpucal.runs.request import Request, prepare
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, ORDER, Detector
from gpucal.settings.ids import ItemId

__all__ = ["Checked", "Frames", "check"]

# A file this many times smaller or larger than the median of all is named. So many of these are opened, at most.
_UNLIKE, _OPENED = 2.0, 50

# Bytes of an item's record and of the headers of its arrays.
_RECORD = 8_000


@dataclass(frozen=True)
class Frames:
    """How the frames of one detector become bins, in the observation that was looked at."""

    frames: int
    pairs_per_bin: int
    bins: int
    unused_pairs: int


@dataclass
class Checked:
    """The findings of a check; an item is one detector of one observation.

    Parameters
    ----------
    dataset, layout : str
        The data set's folder and layout.
    observations, items, bytes : int
        What would be calibrated, and the bytes of its signal files.
    preset : str
        The data set's preset.
    changes : dict of str to list
        Settings that differ from the preset: its value, and the value that was asked for.
    detectors : dict of str to Frames
        Frames and bins.
    failing : dict of str to str
        Planet, visit and detector of each item that would fail, and why.
    unlike : dict of str to str
        Items that would not fail, but are unlike the rest, and how.
    notes : list of str
        What a run needs and this machine lacks.
    finished, unfinished : int
        Items that OUT holds already, with these settings, and those that are left to do.
    failed_before, other_settings : int
        Items in OUT that failed, and those of other settings.
    disk_bytes, free_bytes : int
        What the rest will take on the disk of OUT, and what is free there; -1 without OUT.
    memory_bytes : int
        Peak memory of a run.
    seconds, seconds_each : float or None
        Estimate for the rest, and for one observation, as measured here; None if nothing could be calibrated.
    backend : str
        The backend that was measured.
    deep : bool
        Whether every footer was parsed and every calibration frame read.
    """

    dataset: str
    layout: str
    observations: int
    items: int
    preset: str
    deep: bool
    bytes: int = 0
    changes: dict[str, list[object]] = field(default_factory=dict)
    detectors: dict[str, Frames] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    unlike: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    finished: int = 0
    unfinished: int = 0
    failed_before: int = 0
    other_settings: int = 0
    disk_bytes: int = 0
    free_bytes: int = -1
    memory_bytes: int = 0
    seconds: float | None = None
    seconds_each: float | None = None
    backend: str = ""

    @property
    def would_fail(self) -> bool:
        """Whether a run would leave something undone."""
        return bool(self.failing) or (0 <= self.free_bytes < self.disk_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        frames = {name: vars(found) for name, found in self.detectors.items()}
        return {**vars(self), "detectors": frames, "would_fail": self.would_fail}

    def lines(self) -> Iterator[str]:
        """Give the report line by line, without the lists of items."""
        what = f"{self.observations:,} observations, {self.items:,} items, {_size(self.bytes)} of signals"
        yield f"{self.dataset}: {self.layout} layout, {what}"
        changes = ", ".join(f"{name} = {now} (there {then})" for name, (then, now) in self.changes.items())
        yield f"settings: preset {self.preset}" + (f", but {changes}" if changes else ", and nothing else")
        for name, found in self.detectors.items():
            left = f", {found.unused_pairs} pairs left over" if found.unused_pairs else ""
            yield f"{name}: {found.frames:,} frames, {found.bins} bins of {found.pairs_per_bin} pairs{left}"
        held = f"{self.finished:,} items are finished, {self.unfinished:,} are left"
        failed = f"; {self.failed_before:,} failed before" if self.failed_before else ""
        other = f"; {self.other_settings:,} are of other settings" if self.other_settings else ""
        yield f"results: {held}{failed}{other}"
        free = f" ({_size(self.free_bytes)} are free)" if self.free_bytes >= 0 else ""
        spent = "an unknown time, as nothing could be calibrated"
        if self.seconds is not None:
            spent = f"about {_duration(self.seconds)} ({self.seconds_each:.2f} s an observation, {self.backend}, here)"
        yield f"the run will need {_size(self.disk_bytes)} of disk{free}, {_size(self.memory_bytes)} of memory, {spent}"
        yield from self.notes
        if not self.deep:
            yield "looked at: sizes, marks, lengths of footers, and inputs of finished items; --deep opens every file"


def check(
    request: Request, *, deep: bool = False, show: Callable[[int, int, int], object] = lambda ended, failed, total: None
) -> Checked:
    """Look at a data set before it is calibrated; nothing is written.

    Parameters
    ----------
    request : Request
        What a run would be asked for.
    deep : bool
        Open every file as a run does: parse every footer and read every calibration frame.
    show : callable
        Called with the number of looks at items that have ended, of items that would fail, and of all looks. With
        ``deep``, there are two looks at each item.

    Returns
    -------
    Checked
        What would fail, what is unlike the rest, and what the run will need.

    Raises
    ------
    ConfigError, DatasetError, OutputError, BackendUnavailable
        As `gpucal.run` does, before anything is written.
    """
    dataset, out = request.dataset, request.out
    job, observations = prepare(request)
    if out is not None:
        require_same_settings(Store(out), job, request.config)
    items = [*items_of(job, observations)]
    preset = dataset.layout.preset
    found = Checked(str(dataset.path), dataset.layout.name, len(observations), len(items), preset, deep)
    then, now = Calibration.preset(preset).to_dict(), job.config.to_dict()
    found.changes = {name: [then[name], now[name]] for name in now if now[name] != then[name]}
    look = _Look(job, found, lambda ended: show(ended, len(found.failing), len(items) * (1 + deep)))
    opened = look.at(items)
    finished = _look_at_results(found, job, items, out, look.inputs)
    _look_at_needs(found, job, items, out, look.sizes, opened, finished)
    return found


@dataclass
class _Look:
    """A look at the files of the items: their sizes, their faults, and what differs."""

    job: Job
    found: Checked
    show: Callable[[int], object]
    sizes: dict[ItemId, int] = field(default_factory=dict)
    footers: dict[ItemId, int] = field(default_factory=dict)
    inputs: dict[ItemId, str] = field(default_factory=dict)
    axes: dict[str, InputError | None] = field(default_factory=dict)
    unmarked: set[ItemId] = field(default_factory=set)

    def at(self, items: list[Item]) -> dict[str, Opened]:
        """Look at all items, and return an opened one of each detector."""
        sound = []
        for ended, item in enumerate(items, 1):
            if not self._is_faulty(item):
                sound.append(item)
            self.show(ended)
        unlike = self._unlike(sound)
        opened: dict[str, Opened] = {}
        frames: dict[ItemId, int] = {}
        for one in self._opened(sound, unlike):
            opened.setdefault(one.item.detector.name, one)
            frames[one.item.id] = one.signal.n_frames
            self.inputs[one.item.id] = one.inputs
            if self.found.deep:
                self.show(len(items) + len(frames))
        if self.found.deep:
            unlike |= _apart(frames, "has {value:,} frames, where most have {usual:,}")
        for item in sound:
            where = str(item.id)
            if where not in self.found.failing and (how := unlike.get(item.id)):
                self.found.unlike[where] = f"{where}: {item.obs.signal_path(item.detector)}: {how}"
        return opened

    def _opened(self, sound: list[Item], unlike: Mapping[ItemId, str]) -> Iterator[Opened]:
        """Open items as a run does: all, or the unlike ones and, of each detector, others until one is in order."""
        if self.found.deep:
            yield from self._in_order(sound)
            return
        for name in DETECTORS:
            alike = [item for item in sound if item.id not in unlike and item.detector.name == name]
            before = len(self.found.failing)
            yield from islice(self._in_order(alike[:_OPENED]), 1)
            if len(self.found.failing) > before:
                self.found.notes.append(
                    f"{name}: the first file that was opened would fail; --deep opens the others too"
                )
        yield from self._in_order([item for item in sound if item.id in unlike][:_OPENED])

    def _in_order(self, items: Iterable[Item]) -> Iterator[Opened]:
        for one in open_items(items, strict=self.job.strict, variance=self.job.variance):
            if not self._cannot_be_calibrated(one) and isinstance(one, Opened):
                yield one

    def _is_faulty(self, item: Item) -> bool:
        """Judge an item's files by their ends."""
        obs, detector = item.obs, item.detector
        try:
            size, footer, is_marked = ends_of(obs.signal_path(detector), "signal file")
            self.sizes[item.id], self.footers[item.id] = size, footer
            self.found.bytes += size
            if not is_marked:
                self.unmarked.add(item.id)
            paths = calibration_paths(obs.calibration_path(detector))
            for path in paths.values():
                ends_of(path, "calibration file")
            if "read" not in paths:
                require_no_read(item, self.job.variance)
            obs.adc(detector)
            if error := self._axis_error(obs, detector):
                raise error
        except InputError as error:
            return self._fails(item, error)
        return False

    def _axis_error(self, obs: Observation, detector: Detector) -> InputError | None:
        """Return the error of the axis table, which is the same for all observations."""
        if detector.name not in self.axes:
            self.axes[detector.name] = None
            try:
                obs.axis(detector)
            except InputError as error:
                self.axes[detector.name] = error
        return self.axes[detector.name]

    def _cannot_be_calibrated(self, one: Opened | Outcome) -> bool:
        if isinstance(one, Outcome):
            assert isinstance(one.result, InputError)
            return self._fails(one.item, one.result)
        try:
            plan_of(one)
        except InputError as error:
            return self._fails(one.item, error)
        return False

    def _fails(self, item: Item, error: InputError) -> bool:
        where = str(item.id)
        self.found.failing[where] = str(error.at(where))
        return True

    def _unlike(self, items: Iterable[Item]) -> dict[ItemId, str]:
        keys = {item.id for item in items}
        sizes, footers = (
            {key: value for key, value in values.items() if key in keys} for values in (self.sizes, self.footers)
        )
        return {
            **_apart(footers, "has a footer of {value:,} bytes, where most have {usual:,}", _UNLIKE),
            **_apart(sizes, "has {value:,} bytes, where most have {usual:,}", _UNLIKE),
            **dict.fromkeys(self.unmarked & keys, "does not begin as a Parquet file does; it may be damaged"),
        }


def _apart(values: Mapping[ItemId, int], how: str, times: float = 1.0) -> dict[ItemId, str]:
    """Find values that differ from the median of their detector by more than so many times."""
    apart = {}
    for name in DETECTORS:
        own = {key: value for key, value in values.items() if key.detector == name}
        usual = int(statistics.median_low(own.values())) if own else 0
        for key, value in own.items():
            if not usual / times <= value <= usual * times:
                apart[key] = how.format(value=value, usual=usual)
    return apart


def _look_at_results(
    found: Checked, job: Job, items: list[Item], out: Path | None, inputs: Mapping[ItemId, str]
) -> set[ItemId]:
    """Count and return the items that are finished already, and whose inputs are still the same."""
    wanted = {item.id: item for item in items}
    finished: set[ItemId] = set()
    decided: set[ItemId] = set()  # as in a run: of several folders, the first that knows an item decides
    for folder in [*([] if out is None else [out]), *job.resume_from]:
        for record in records(folder):
            key = item_of(record)
            if key not in wanted or key in decided:
                continue
            decided |= {key} if folder != out or record["status"] == "done" else set()
            is_ours = record.get("settings") == job.settings_hash
            if folder == out:
                found.failed_before += not is_finished(record)
                found.other_settings += is_finished(record) and not is_ours
            home = record_path(folder, key).parent
            if is_ours and is_finished(record) and is_whole(home, record) and not job.overwrite:
                is_same = (
                    inputs[key] == record.get("inputs") if key in inputs else _has_same_inputs(wanted[key], record)
                )
                finished |= {key} if is_same else set()
    found.finished = len(finished)
    found.unfinished = len(wanted) - len(finished)
    return finished


def _has_same_inputs(item: Item, record: Mapping[str, Any]) -> bool:
    """Tell whether an item that was not opened has the inputs that it was made from, as far as a record tells."""
    known = record["provenance"].get("fingerprints")
    try:
        return not isinstance(known, dict) or has_fingerprints(item, known)
    except InputError:  # which was found before, and makes the item fail
        return False


def _look_at_needs(
    found: Checked,
    job: Job,
    items: list[Item],
    out: Path | None,
    sizes: Mapping[ItemId, int],
    opened: Mapping[str, Opened],
    finished: Collection[ItemId],
) -> None:
    """Estimate disk, memory and time from one opened item of each detector."""
    backend = choose(job.backend)
    usual = usual_memory(backend)
    planets = len({item.obs.planet for item in items})
    processes = max(1, len(gpus_for(job.backend, planets, job.threads, job.memory)))
    own = job_of_each(job, processes)
    budget = Budget(own.memory, own.threads, usual)
    value_bytes = np.dtype(job.dtype).itemsize
    destination = backend.destination(device=False)
    by_pages = bins_pages(destination)
    stored, reserved = {}, {}
    for name, one in sorted(opened.items(), key=lambda pair: [*DETECTORS].index(pair[0])):
        plan, detector = plan_of(one), one.item.detector
        pairs = one.signal.n_frames // 2
        found.detectors[name] = Frames(
            one.signal.n_frames, plan.pairs_per_bin, plan.n_bins, pairs - plan.n_bins * plan.pairs_per_bin
        )
        pixels, curves = detector.n_pixels, 1 if detector.photometer else detector.width
        cube = plan.n_bins * pixels
        values = plan.n_bins * curves * 2  # flux and errors
        values += cube * (1 + job.variance) if job.product == "cubes" else 0
        stored[name] = values * value_bytes + pixels + 8 * (plan.n_bins + curves) + _RECORD
        working = working_bytes(
            one.signal, own.threads, destination.page_block, by_pages=by_pages and not plan.cosmic_rays
        )
        reserved[name] = working + result_bytes(cube, np.dtype(job.dtype), job.value_bytes)
    for item in items:
        where, name = str(item.id), item.detector.name
        needed = sizes.get(item.id, 0) + reserved.get(name, 0)
        if item.id in finished:
            continue
        if budget.strict and needed > budget.total and where not in found.failing:
            total = f"needs {budget.other + needed:,} bytes of memory, more than the {budget.total + budget.other:,}"
            error = InputError(
                f"{total} allowed", "raise --memory or lower --workers", item.obs.signal_path(item.detector)
            )
            found.failing[where] = str(error.at(where))
    largest = max(
        (sizes[item.id] + reserved.get(item.detector.name, 0) for item in items if item.id in sizes), default=0
    )
    found.memory_bytes = job.memory or processes * max(usual, budget.other + largest)
    share = found.unfinished / max(1, len(items))
    found.disk_bytes = int(sum(stored.get(item.detector.name, 0) for item in items) * share)
    if out is not None:
        there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
        found.free_bytes = shutil.disk_usage(there).free
        if found.free_bytes < found.disk_bytes:
            found.notes.append(f"{there}: has too little space; free {_size(found.disk_bytes - found.free_bytes)}")
    if (free := os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < found.memory_bytes:
        found.notes.append(f"only {_size(free)} of memory are unused now; end what else needs some, or give --memory")
    _measure(found, job, opened, finished)


def _measure(found: Checked, job: Job, opened: Mapping[str, Opened], finished: Collection[ItemId]) -> None:
    """Calibrate one item of each detector in memory, twice, as the first time includes imports."""
    if len(opened) < len(DETECTORS):
        return
    seconds = 0.0
    for name in ORDER:
        obs, took = opened[name].item.obs, []
        for _ in range(2):
            began = time.perf_counter()
            try:
                (cal,) = stream(
                    [obs],
                    name,
                    job.config,
                    backend=job.backend,
                    dtype=job.dtype,
                    workers=job.threads,
                    memory=job.memory,
                )
            except InputError as error:
                if (item := opened[name].item.id) not in finished:
                    found.failing.setdefault(str(item), str(error.at(str(item))))
                return
            took.append(time.perf_counter() - began)
        found.backend = str(cal.provenance["backend"])
        seconds += min(took)
    found.seconds_each = seconds
    found.seconds = seconds * found.unfinished / len(DETECTORS)


def _size(count: float) -> str:
    unit, divisor = next((pair for pair in (("GB", 10**9), ("MB", 10**6)) if count >= pair[1]), ("kB", 10**3))
    return f"{count / divisor:,.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
