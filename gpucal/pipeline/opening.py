"""Opens items in a process of their own, while this one feeds a GPU.

To open a planet is 30 ms of Python, in which its lock lets no other thread of the process go on. That is more than all
that is left to do for a GPU.
"""

from __future__ import annotations

import fcntl
import logging
import pickle
import select
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from typing import IO, Any, cast

from gpucal.errors import InputError
from gpucal.pipeline.process import last_words, speak, start
from gpucal.pipeline.stream import Item, Opened, Outcome, open_items

__all__ = ["COMMAND", "open_beside", "work"]

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-c", "from gpucal.pipeline.opening import work; work()")
"""What is started."""

# Items that are opened here before a process is started: it takes as long to start as some 20 items to open.
_HERE = 16

# Bytes of a pipe that the kernel lets any process have: 4 MB of an item of AIRS-CH0 then come in few turns.
_PIPE = 2**20


def open_beside(items: Iterable[Item]) -> Generator[Opened | Outcome, None, None]:
    """Open items as `gpucal.pipeline.stream.open_items` does, but all except the first ones in a process of its own.

    If that process ends, a warning is logged, and this one opens the items that are left.
    """
    with ExitStack() as stack:
        opener: _Opener | None = None
        for number, item in enumerate(items):
            if number == _HERE:
                opener = stack.enter_context(closing(_Opener(stack.enter_context(tempfile.TemporaryFile()))))
            if opener is not None and opener.is_ready():
                yield opener.open(item)
            else:
                yield from open_items([item])


class _Opener:
    """The process, from its start to its end."""

    def __init__(self, errors: IO[bytes]) -> None:
        self._errors = errors
        self._popen = start(COMMAND, subprocess.PIPE, errors)
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._from = self._popen.stdout
        with suppress(OSError):  # a container may allow less
            fcntl.fcntl(self._from, fcntl.F_SETPIPE_SZ, _PIPE)
        self._to = self._popen.stdin
        # One pickler, and one at the other end, for all items: what they share, such as the data set, is sent once.
        self._pickler = pickle.Pickler(self._to, pickle.HIGHEST_PROTOCOL)
        self._is_ready = self._is_lost = False

    def is_ready(self) -> bool:
        """Tell whether the process has started, without waiting for it, and has not been lost."""
        if not self._is_ready and not self._is_lost and select.select([self._from], [], [], 0)[0]:
            with self._kept():
                self._is_ready = self._hear() is None
        return self._is_ready and not self._is_lost

    def open(self, item: Item) -> Opened | Outcome:
        """Have the process open an item."""
        with self._kept():
            self._pickler.dump(item)
            self._to.flush()
            said = self._hear()
            if isinstance(said, InputError):
                return Outcome(item, said, "", {})
            return Opened(item, *cast("tuple[Any, ...]", said))
        (opened,) = open_items([item])
        return opened

    def _hear(self) -> object:
        """Wait for what the process says; log what it has logged before that."""
        while isinstance(said := pickle.load(self._from), logging.LogRecord):
            logging.getLogger(said.name).handle(said)
        return said

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Do without the process if it ends."""
        try:
            yield
        except (OSError, EOFError, pickle.UnpicklingError):
            self._is_lost = True
            self._popen.kill()
            self._popen.wait()
            why = last_words(self._popen, self._errors)
            log.warning("the process that opens files has ended: %s; this one opens them now", why)

    def close(self) -> None:
        """End the process."""
        self._popen.kill()
        self._popen.wait()
        with suppress(OSError):  # what was not sent
            self._to.close()
        self._from.close()


def work() -> None:
    """Be that process: open one item after another."""
    say = speak()
    items = pickle.Unpickler(sys.stdin.buffer)
    say(None)
    with suppress(EOFError):
        while True:
            (opened,) = open_items([items.load()])
            if isinstance(opened, Outcome):
                say(opened.result)
            else:
                say(tuple(getattr(opened, field.name) for field in fields(opened)[1:]))
