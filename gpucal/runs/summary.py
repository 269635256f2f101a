"""The summary of a run, and the log file in its results folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpucal.backends import Pages
from gpucal.display.shown import Shown, listed
from gpucal.errors import GpucalError
from gpucal.results.atomic import unwritable
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.ids import ItemId

__all__ = ["RunFailed", "Summary", "logged_to"]

log = logging.getLogger(__name__)

# How an item can end. The first of those of an observation's items says how the observation has ended.
_ENDS = ("failed", "calibrated", "finished before")


@dataclass(repr=False)
class Summary:
    """The outcome of a run, counted in items; an item is one detector of one observation.

    Parameters
    ----------
    done, skipped : int
        Items calibrated, and items that were finished before.
    failed : dict of str to str
        Planet, visit and detector to the one-line message.
    left : int
        Items that were not begun because the run was stopped; else 0.
    stopped : str
        The reason why the run was stopped, such as ``time limit``; empty if it was not.
    seconds : float
        Wall time.
    stages : dict of str to float
        Seconds spent opening, reading, decoding, binning and writing, summed over threads; they overlap.
    pages : dict of str to int
        Pages that were decoded in each way, see `gpucal.backends.Pages`.
    backend : str
        The backend that ran.
    notes : list of str
        Files that are gone although nothing failed, such as light curves of other items that 0.1 put together.

    Examples
    --------
    >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
    >>> gpucal.run(ds, "calibrated", variance=True)  # everything in it is finished
    <gpucal Summary
      items    0 done, 4 finished before, 0 failed...>
    """

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    stopped: str = ""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    pages: dict[str, int] = field(default_factory=dict)
    backend: str = ""
    notes: list[str] = field(default_factory=list)
    _ends: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def end(self, item: ItemId, how: str) -> None:
        """Note how an item has ended: ``calibrated``, ``finished before`` or ``failed``."""
        self._ends.setdefault(f"{item.planet} {item.visit}", []).append(how)

    @property
    def observations(self) -> dict[str, int]:
        """The numbers of observations that were calibrated, were finished before, have failed and are left.

        One has failed if any of its items has, and is left if none has and not all have ended.
        """
        counts = dict.fromkeys((*_ENDS, "left"), 0)
        for ends in self._ends.values():
            if "failed" in ends or len(ends) == len(DETECTORS):
                counts[next(how for how in _ENDS if how in ends)] += 1
        items = self.left + sum(map(len, self._ends.values()))
        counts["left"] = items // len(DETECTORS) - sum(counts.values())
        return counts

    @property
    def planets_per_hour(self) -> float:
        """Observations calibrated per hour, an item for each detector; 0 if there were none."""
        return self.done / len(DETECTORS) * 3600 / self.seconds if self.seconds else 0.0

    @property
    def slowest_stage(self) -> str:
        """The stage that took the most thread time; empty if nothing was calibrated."""
        return max(self.stages, key=self.stages.__getitem__, default="")

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds spent in each stage."""
        for stage, more in seconds.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + more

    def decoded(self, pages: Mapping[str, int]) -> None:
        """Add the pages that were decoded in each way."""
        for way, more in pages.items():
            self.pages[way] = self.pages.get(way, 0) + more

    def add(self, other: Summary) -> None:
        """Add the summary of another process."""
        self.done += other.done
        self.skipped += other.skipped
        self.failed |= other.failed
        self._ends |= other._ends
        self.left += other.left
        self.stopped = self.stopped or other.stopped
        self.spent(other.stages)
        self.decoded(other.pages)
        backends = [name for name in (*self.backend.split(", "), *other.backend.split(", ")) if name]
        self.backend = ", ".join(dict.fromkeys(backends))

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, as ``--json`` prints them.

        Returns
        -------
        dict
            Plain values.

        Examples
        --------
        >>> gpucal.Summary(done=2, seconds=1.0).to_dict()["planets_per_hour"]
        3600.0
        """
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        more = ("observations", "planets_per_hour", "slowest_stage")
        return plain | {name: getattr(self, name) for name in more}

    @property
    def counts(self) -> str:
        """The numbers of items done, finished before, failed and left."""
        left = f", {self.left} left" if self.left else ""
        return f"{self.done} done, {self.skipped} finished before, {len(self.failed)} failed{left}"

    def trouble(self, out: Path, *, overwrite: bool = False) -> str:
        """Describe in one line what is missing in a results folder, and the first cause; empty if nothing is.

        A run that was to ``overwrite`` would start over if it were repeated.
        """
        how = "run it again to continue"
        if overwrite:
            how = "overwrite=True makes all again; without it, a run makes what has other settings or inputs"
        first = next(iter(self.failed.values()), "")
        parts = [
            self.stopped,
            self.counts if self.failed or self.left or self.stopped else "",
            first and f"the first failure is {first}; all are in summary.failed and {out / 'gpucal.log'}",
            *self.notes,
            how if self.left or self.stopped else "",
        ]
        said = "; ".join(filter(None, parts))
        return said and f"{out}: {said}"

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _shown(self) -> Shown:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.stages.items())
        facts = {
            "items": self.counts,
            "time": f"{self.seconds:.1f} s, {self.planets_per_hour:,.0f} observations an hour" if self.done else "",
            "backend": self.backend,
            "stages": stages and f"{stages}, summed over threads",
            "stopped": self.stopped,
            "failed": listed([*self.failed.values()], 1),
            "notes": listed(self.notes, 1),
        }
        return Shown("Summary", facts)

    def __str__(self) -> str:
        counts = self.observations
        done = counts["calibrated"]
        more = [f"{counts[how]} {how}" for how in ("finished before", "failed", "left") if counts[how]]
        of_all = [f"{name} failed" for name in self.failed if not name.startswith("planet ")]
        said = [f"{done} observation{'s' * (done != 1)} calibrated", *more, *of_all]
        return f"{', '.join(said)} in {self.seconds:.1f} s"

    @property
    def details(self) -> str:
        """The numbers of items, the speed and the slowest stage, for the log."""
        line = f"{self.counts} in {self.seconds:.1f} s ({self.backend or 'no backend'})"
        if self.done:
            share = self.stages[self.slowest_stage] / sum(self.stages.values())
            line += f", {self.planets_per_hour:,.0f} planets an hour, slowest stage {self.slowest_stage} ({share:.0%})"
        return line


class RunFailed(GpucalError, RuntimeError):
    """Raised with ``raise_on_failure`` at the end of a run that left something undone.

    Parameters
    ----------
    line : str
        The number of items, and the first cause.
    summary : Summary
        The run's summary.
    """

    def __init__(self, line: str, summary: Summary) -> None:
        super().__init__(line, summary)
        self.summary = summary

    def __str__(self) -> str:
        return str(self.args[0])


class _LogFile(logging.FileHandler):
    """A log file that stops at a full disk with one line, instead of a traceback for every message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, its name in the standard library
        self.addFilter(lambda record: False)
        log.warning("%s: cannot be written any longer", self.baseFilename)


@contextmanager
def logged_to(path: Path, summary: Summary) -> Iterator[Callable[[str], None]]:
    """Append log messages to a file, and the summary at the end, however the run ends.

    Yields a function that writes a line to the file alone.

    Raises OutputError if the file cannot be opened.
    """
    try:
        handler = _LogFile(path.resolve(), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise unwritable(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    logger = logging.getLogger("gpucal")
    logger.addHandler(handler)

    def note(line: str) -> None:
        # Not logged: below WARNING, the default level, it would be lost; at WARNING it would be shown twice.
        record = logger.makeRecord(__name__, logging.INFO, __file__, 0, line, (), None)
        (logger if logger.isEnabledFor(logging.INFO) else handler).handle(record)

    try:
        yield note
    finally:
        lines = [f"pages: {Pages(**summary.pages)}"] if summary.pages else []
        for line in (*lines, summary.details):
            note(line)
        logger.removeHandler(handler)
        with suppress(OSError):  # closing tries the failed write again, which has been reported
            handler.close()
