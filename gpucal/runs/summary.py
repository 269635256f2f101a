"""What a run did: counted, said in a few lines, and kept in a log file in the results folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpucal.errors import GpucalError
from gpucal.results.atomic import unwritable
from gpucal.settings.detectors import DETECTORS

__all__ = ["RunFailed", "Summary", "logged_to"]

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a run did, counted in items (an observation's detector).

    Parameters
    ----------
    done, skipped : int
        Items calibrated, and items that were there already.
    failed : dict of str to str
        Planet, visit and detector to the one line that says why.
    left : int
        Items that were not begun, as the run was stopped before; 0 where it was not.
    stopped : str
        What stopped it: empty, or such as ``time limit``.
    seconds : float
        Wall time.
    stages : dict of str to float
        Seconds spent opening, reading, decoding, binning and writing, summed over threads; they overlap.
    backend : str
        Which backend ran.
    notes : list of str
        What was not written although nothing failed, such as light curves of bins that cannot be stacked.
    """

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    stopped: str = ""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    backend: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def planets_per_hour(self) -> float:
        """Observations calibrated an hour, an item for each detector; 0 if none was."""
        return self.done / len(DETECTORS) * 3600 / self.seconds if self.seconds else 0.0

    @property
    def slowest_stage(self) -> str:
        """The stage that took the most thread time; empty if nothing was calibrated."""
        return max(self.stages, key=self.stages.__getitem__, default="")

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Add time spent in stages.

        Parameters
        ----------
        seconds : mapping of str to float
            By stage.
        """
        for stage, more in seconds.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + more

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what another process did.

        Parameters
        ----------
        other : mapping
            The fields of its summary.
        """
        self.done += other["done"]
        self.skipped += other["skipped"]
        self.failed |= other["failed"]
        self.left += other["left"]
        self.stopped = self.stopped or other["stopped"]
        self.spent(other["stages"])
        backends = [name for name in (*self.backend.split(", "), *other["backend"].split(", ")) if name]
        self.backend = ", ".join(dict.fromkeys(backends))

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, as ``--json`` prints them.

        Returns
        -------
        dict
            Plain values.
        """
        return {**vars(self), "planets_per_hour": self.planets_per_hour, "slowest_stage": self.slowest_stage}

    @property
    def counts(self) -> str:
        """How many items were done, were there already, failed, and are left."""
        left = f", {self.left} left" if self.left else ""
        return f"{self.done} done, {self.skipped} already there, {len(self.failed)} failed{left}"

    def trouble(self, out: Path) -> str:
        """Say in one line what is missing in a results folder, and why.

        Parameters
        ----------
        out : Path
            The folder.

        Returns
        -------
        str
            Empty if nothing is missing.
        """
        first = next(iter(self.failed.values()), "")
        parts = [
            self.stopped,
            self.counts if self.failed or self.left or self.stopped else "",
            first and f"the first failure is {first}; all are in summary.failed and {out / 'gpucal.log'}",
            *self.notes,
            "run it again to continue" if self.left or self.stopped else "",
        ]
        said = "; ".join(filter(None, parts))
        return said and f"{out}: {said}"

    def __str__(self) -> str:
        line = f"{self.counts} in {self.seconds:.1f} s ({self.backend or 'no backend'})"
        if self.done:
            share = self.stages[self.slowest_stage] / sum(self.stages.values())
            line += f", {self.planets_per_hour:,.0f} planets an hour, slowest stage {self.slowest_stage} ({share:.0%})"
        return line


class RunFailed(GpucalError, RuntimeError):
    """A run that was to raise on failure left something undone.

    Parameters
    ----------
    line : str
        How much, and the first cause.
    summary : Summary
        What the run did.
    """

    def __init__(self, line: str, summary: Summary) -> None:
        super().__init__(line, summary)
        self.summary = summary

    def __str__(self) -> str:
        return str(self.args[0])


class _LogFile(logging.FileHandler):
    """A log file that a full disk ends, in one line, and not in a traceback at every message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, its name in the standard library
        self.addFilter(lambda record: False)
        log.warning("%s: cannot be written any longer", self.baseFilename)


@contextmanager
def logged_to(path: Path, summary: Summary) -> Iterator[None]:
    """Append what is logged, and in the end the summary, to a file.

    Parameters
    ----------
    path : Path
        The file.
    summary : Summary
        Said in the end, however that comes.

    Yields
    ------
    None
        Once.

    Raises
    ------
    OutputError
        If it cannot be opened.
    """
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise unwritable(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    logger = logging.getLogger("gpucal")
    logger.addHandler(handler)
    try:
        yield
    finally:
        # Not logged: at the level of libraries, WARNING, it would be lost, and above it, shown twice.
        handler.handle(logger.makeRecord(__name__, logging.INFO, __file__, 0, str(summary), (), None))
        logger.removeHandler(handler)
        with suppress(OSError):  # what it could not write it tries once more; that has been said
            handler.close()
