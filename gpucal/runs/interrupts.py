"""Interrupts: a run that is asked to end finishes its item first, and says what is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

__all__ = ["SIGNALLED", "Interrupts"]

SIGNALLED = 128
"""The exit code of a process that a signal ended is this plus the signal's number, as in shells."""

P = ParamSpec("P")
T = TypeVar("T")


class Interrupts:
    """Requests to end a run early: its caller's ``stop``, and in a ``with`` block SIGINT and SIGTERM.

    In the block a signal raises KeyboardInterrupt. An exception at an arbitrary moment may leave a file behind, or be
    mistaken for an error of the code it interrupts: NumPy reports a file as damaged if it is interrupted while reading
    its header. So a run calls `defer`, and asks between items whether an end is `requested`.

    Parameters
    ----------
    stop : callable
        Returns True when the run is to end.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self.came = 0
        self._stop = stop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            # A signal that is ignored, as nohup or a shell's & do, stays ignored.
            self._before = {number: before for number, before in handlers.items() if before is not signal.SIG_IGN}
        self._handle(self._raise)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def defer(self) -> None:
        """Note the first signal from now on, instead of raising; the second one ends the process at once."""
        self._handle(self._note)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay a signal to the end of the block: Python ignores and reports one that comes between imports."""
        self.defer()
        yield
        self._handle(self._raise)
        if self.came:
            raise KeyboardInterrupt

    def requested(self) -> bool:
        """Tell whether the run is to end."""
        return self.came != 0 or self._stop()

    def shield(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Make a call that a KeyboardInterrupt cannot split; a second one does not wait for its end.

        The call runs in another thread, as only the main thread is interrupted. The main thread has to stay free: a
        call may hang in the kernel, and then the second signal must be heard.
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1, "gpucal-shield") as thread:  # its end waits for the call
            thread.submit(int).result()  # an interrupt while the thread starts would lose the call
            return thread.submit(call, *arguments, **options).result()

    def _handle(self, handler: Callable[[int, FrameType | None], object]) -> None:
        for number in self._before:
            signal.signal(number, handler)

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        self.came = number
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            # End as a kill does, in case something hangs. Finished items are safe.
            with suppress(AttributeError, OSError, ValueError):  # no file is behind it: closed, or a script's own
                os.write(sys.stderr.fileno(), f"gpucal: ended by {signal.Signals(number).name}\n".encode())
            os._exit(SIGNALLED + number)
        self.came = number
