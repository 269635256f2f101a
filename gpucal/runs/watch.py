"""The watch over a run while it executes: time left, interrupts, summary, progress bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real

from gpucal.errors import ConfigError
from gpucal.runs.interrupts import Interrupts
from gpucal.runs.summary import Summary
from gpucal.settings.detectors import DETECTORS

__all__ = ["Watch", "deadline", "shown"]


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
        Called between items with the number of observations that have ended.
    beside : int
        Items that other processes still have to write to the same folder, for the space that a full disk lacks.
    summary : Summary
        Counts items as they end, so that it is right after an interrupt, too.
    """

    interrupts: Interrupts = field(default_factory=Interrupts)
    until: float | None = None
    show: Callable[[int], object] = lambda ended: None
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
        self.show(self.observations - -(-self.summary.left // len(DETECTORS)))


def deadline(limit: float | None) -> float | None:
    """Return the moment so many seconds from now; raises ConfigError if that is not a number of seconds."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, Real) or not 0 < float(limit) < float("inf"):
        raise ConfigError(f"time_limit = {limit!r}: must be a number of seconds above 0")
    return time.monotonic() + float(limit)


@contextmanager
def shown(total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that sets a progress bar with planets a minute and the time left; log lines go above it."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
    began, logger = time.monotonic(), logging.getLogger("gpucal")
    # Most versions of tqdm replace the terminal's handler by one without filters.
    filters = [one for handler in logger.handlers if _is_terminal(handler) for one in handler.filters]
    with tqdm(total=total, unit="planet", bar_format=form) as bar, logging_redirect_tqdm([logger]):
        for one in filters:
            logger.handlers[-1].addFilter(one)

        def update(ended: int) -> None:
            bar.update(ended - bar.n)
            bar.set_postfix_str(f"{60 * ended / (time.monotonic() - began):.1f} planets/min")

        yield update


def _is_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
