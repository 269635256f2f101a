"""Progress of whatever takes long: a bar in a notebook or a terminal, else a line a minute."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from gpucal.errors import ConfigError

__all__ = ["AFTER", "EVERY", "Progress", "checked_progress", "shown"]

AFTER, EVERY = 2.0, 60.0
"""Seconds after which a bar appears, and seconds from one line to the next."""

# Seconds from one look at the clock to the next.
_TICK = 0.5


@dataclass
class Progress:
    """Told of what has ended, it sets its bar and says its lines.

    Parameters
    ----------
    total : int
        The number of parts.
    unit : str
        The name of a part.
    say : callable
        Called with a line a minute, if the work takes so long.
    bar : optional
        A bar of tqdm.
    """

    total: int
    unit: str
    say: Callable[[str], object]
    bar: Any = None
    ended: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self.began = self.said = time.monotonic()

    def __call__(self, ended: int, failed: int = 0, total: int | None = None) -> None:
        """Show how many parts have ended, and the count of failures; the total may be known only now."""
        self.ended, self.failed = ended, failed
        self.total = self.total if total is None else total
        if self.bar is not None:
            self.bar.total = self.total
            self.bar.set_postfix_str(self._speed(), refresh=False)
            self.bar.update(ended - self.bar.n)

    def tick(self) -> None:
        """Show the time that has passed; say a line if it is due."""
        if self.bar is not None:
            self.bar.update(0)
        if (now := time.monotonic()) - self.said >= EVERY:
            self.said = now
            self.say(f"{self.ended:,} of {self.total:,} {self.unit}s in {now - self.began:.0f} s, {self._speed()}")

    def _speed(self) -> str:
        speed = f"{60 * self.ended / max(time.monotonic() - self.began, 1e-3):.1f} {self.unit}s/min"
        return f"{speed}, {self.failed:,} failure{'s' * (self.failed != 1)}" if self.failed else speed


@contextmanager
def shown(
    total: int, unit: str, progress: bool | str = True, note: Callable[[str], object] = lambda line: None
) -> Iterator[Progress]:
    """Yield a `Progress`; log lines go above its bar.

    Parameters
    ----------
    total : int
        The number of parts; 0 if it is not known yet.
    unit : str
        The name of a part.
    progress : bool or 'auto'
        As for `gpucal.run`.
    note : callable
        Gets the lines that are said once a minute, for a log.

    Yields
    ------
    Progress
        Tell it what has ended.
    """
    with ExitStack() as stack:
        bar = stack.enter_context(_bar(total, unit)) if progress and _is_watched() else None
        told = Progress(total, unit, _both(note, _write) if progress is True and bar is None else note, bar)
        over = threading.Event()

        def watch_the_clock() -> None:
            while not over.wait(_TICK):
                told.tick()

        clock = threading.Thread(target=watch_the_clock, name="gpucal-progress", daemon=True)
        clock.start()
        try:
            yield told
        finally:
            over.set()
            clock.join()


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # without ipywidgets a bar is one of text
        from tqdm.contrib.logging import logging_redirect_tqdm

    logger = logging.getLogger("gpucal")
    on_terminal = [handler for handler in logger.handlers if _is_terminal(handler)]
    form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
    # Shown whenever it is told to, though nothing has ended since: time passes.
    bar = _kind()(total=total, unit=unit, bar_format=form, delay=AFTER, miniters=0)
    with bar, logging_redirect_tqdm([logger]) if on_terminal else nullcontext():
        # Most versions of tqdm replace the terminal's handler by one without filters.
        for one in (one for handler in on_terminal for one in handler.filters):
            logger.handlers[-1].addFilter(one)
        yield bar


def checked_progress(progress: object) -> bool | str:
    """Return True, False or 'auto'; raises ConfigError for anything else."""
    if isinstance(progress, bool) or (isinstance(progress, str) and progress == "auto"):
        return progress
    raise ConfigError(f"progress = {progress!r}: must be True, False or 'auto'")


def _both(*says: Callable[[str], object]) -> Callable[[str], object]:
    def say(line: str) -> None:
        for one in says:
            one(line)

    return say


def _write(line: str) -> None:
    with suppress(AttributeError, OSError, ValueError):  # closed, or full: no line is worth a run
        sys.stderr.write(f"gpucal: {line}\n")
        sys.stderr.flush()


def _is_watched() -> bool:
    if _in_notebook():
        return True
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed, or a script's own, with no more than `write`
        return False


def _in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook."""
    shell = ipython.get_ipython() if (ipython := sys.modules.get("IPython")) else None
    return shell is not None and "IPKernelApp" in shell.config


def _kind() -> Any:  # noqa: ANN401, tqdm's classes have no common type
    """Return the bar of notebooks, if what draws it is installed, or the one of text."""
    if _in_notebook() and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as of_notebooks

        return of_notebooks
    from tqdm import tqdm

    return tqdm


def _is_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
