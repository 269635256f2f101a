"""The watch over a run while it executes: time left, interrupts, summary, progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real

from gpucal.errors import ConfigError
from gpucal.runs.interrupts import Interrupts
from gpucal.runs.summary import Summary
from gpucal.settings.arguments import from_text
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.values import duration

__all__ = ["Watch", "deadline"]


@dataclass
class Watch:
    """Watches over a run, or over the part of one process. Executors ask it whether to go on, and tell it of items.

    Parameters
    ----------
    interrupts : Interrupts
        Asked between items.
    until : float, optional
        `time.monotonic` at which all work must have ended.
    show : callable
        Called between items with the numbers of observations that have ended and of failures.
    beside : int
        Items that other processes still have to write to the same folder, for the space that a full disk lacks.
    summary : Summary
        Counts items as they end, so that it is right after an interrupt, too.
    """

    interrupts: Interrupts = field(default_factory=Interrupts)
    until: float | None = None
    show: Callable[[int, int], object] = lambda ended, failed: None
    beside: int = 0
    summary: Summary = field(default_factory=Summary)
    observations: int = 0

    def expect(self, observations: int) -> None:
        """Begin to count down: two items an observation are left."""
        self.observations = observations
        self.summary.left = observations * len(DETECTORS)

    def is_over(self, needed: float = 0.0) -> bool:
        """Tell whether work of so many seconds would end too late."""
        return self.until is not None and time.monotonic() + needed >= self.until

    def update(self) -> None:
        """Show how many observations have ended."""
        ended = self.observations - -(-self.summary.left // len(DETECTORS))
        self.show(ended, len(self.summary.failed))


def deadline(limit: float | str | None) -> float | None:
    """Return the moment so many seconds from now; raises ConfigError if that is not a number of seconds."""
    if limit is None:
        return None
    if isinstance(limit, str):
        limit = from_text("time_limit", limit, duration)
    if isinstance(limit, bool) or not isinstance(limit, Real) or not 0 < float(limit) < float("inf"):
        raise ConfigError(f"time_limit = {limit!r}: must be a number of seconds above 0, or a text such as '8.5h'")
    return time.monotonic() + float(limit)
