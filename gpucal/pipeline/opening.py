"""Opens items in a process of their own, while this one feeds a GPU.

To open a planet takes 25 ms of a core (`benchmarks/pages.py`). For the most part that is Python, whose lock lets no
other thread of a process go on meanwhile.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from typing import IO, Any, cast

from gpucal.errors import InputError
from gpucal.inputs.dataset import Dataset, Observation
from gpucal.pipeline.process import last_words, relog, speak, start
from gpucal.pipeline.stream import Item, Opened, Outcome, open_items
from gpucal.settings.ids import ItemId

__all__ = ["COMMAND", "open_beside", "work"]

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-c", "from gpucal.pipeline.opening import work; work()")
"""What is started."""

# Items that are opened here first. A process takes as long to start as about so many take to open.
_HERE = 16

# Bytes of a pipe that the kernel lets any process have: 4 MB of an item of AIRS-CH0 then come in few turns.
_PIPE = 2**20


def open_beside(items: Iterable[Item]) -> Generator[Opened | Outcome, None, None]:
    """Open items as `gpucal.pipeline.stream.open_items` does, but all except the first ones in a process of its own.

    If that process does not start or ends, a warning is logged, and this one opens the items that are left.
    """
    with closing(_Opener()) as opener:
        for number, item in enumerate(items):
            if number == _HERE:
                opener.start()
            if opener.is_ready():
                yield opener.open(item)
            else:
                yield from open_items([item])


class _Opener:
    """The process, from its start to its end."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._popen: subprocess.Popen[bytes] | None = None
        self._has_started = False
        self._datasets: list[Dataset] = []  # those that were sent: each is sent once

    def start(self) -> None:
        """Start it, without waiting for it."""
        with self._kept():
            self._errors = self._resources.enter_context(os.fdopen(os.memfd_create("gpucal-errors"), "w+b"))
            self._popen = start(COMMAND, subprocess.PIPE, self._errors)
            with suppress(OSError):  # a container may allow less
                fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _PIPE)

    def is_ready(self) -> bool:
        """Tell whether it has started, without waiting for it, and has not been lost."""
        if self._popen and not self._has_started and select.select([self._output], [], [], 0)[0]:
            with self._kept():
                self._has_started = self._hear() is None
        return self._popen is not None and self._has_started

    def open(self, item: Item) -> Opened | Outcome:
        """Have it open an item."""
        with self._kept():
            self._ask(item)
            key, said = cast("tuple[ItemId, Any]", self._hear())
            if key != item.id:
                raise EOFError(f"an answer about {key}")
            if isinstance(said, InputError):
                return Outcome(item, said, "", {})
            return Opened(item, *said)
        (opened,) = open_items([item])
        return opened

    def _ask(self, item: Item) -> None:
        assert self._popen is not None
        assert self._popen.stdin is not None
        obs = item.obs
        known = next((number for number, other in enumerate(self._datasets) if other is obs.dataset), None)
        if known is None:
            self._datasets.append(obs.dataset)
        dataset = obs.dataset if known is None else known
        asked = dataset, obs.planet, obs.visit, obs.split, item.detector, item.config
        self._popen.stdin.write(pickle.dumps(asked, pickle.HIGHEST_PROTOCOL))
        self._popen.stdin.flush()

    @property
    def _output(self) -> IO[bytes]:
        assert self._popen is not None
        assert self._popen.stdout is not None
        return self._popen.stdout

    def _hear(self) -> object:
        """Wait for what it says; log what it has logged before that."""
        while isinstance(said := pickle.load(self._output), logging.LogRecord):
            relog(said)
        return said

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Do without it if anything fails: to open an item here then gives the item, or an error of its own."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (bytes that are no pickle of its own may raise any)
            why = str(error) or type(error).__name__
            if self._popen is not None:
                self._end()
                why = last_words(self._errors) or why
            self.close()
            log.warning("the process that opens files has ended: %s; this one opens them now", why)

    def close(self) -> None:
        """End it, if it runs, and free what it has."""
        self._end()
        self._resources.close()

    def _end(self) -> None:
        if self._popen is not None:
            with self._popen as popen, suppress(OSError):  # of what was not sent
                popen.kill()
                assert popen.stdin is not None
                popen.stdin.close()
        self._popen = None


def work() -> None:
    """Be that process: open one item after another."""
    say, datasets = speak(), list[Dataset]()
    say(None)
    with suppress(EOFError):
        while True:
            dataset, planet, visit, split, detector, config = pickle.load(sys.stdin.buffer)
            if isinstance(dataset, Dataset):
                datasets.append(dataset)
            else:
                dataset = datasets[dataset]
            item = Item(Observation(dataset, planet, visit, split), detector, config)
            (opened,) = open_items([item])
            if isinstance(opened, Outcome):
                say((item.id, opened.result))
            else:
                say((item.id, tuple(getattr(opened, field.name) for field in fields(opened)[1:])))
