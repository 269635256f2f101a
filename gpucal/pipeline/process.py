"""Processes of gpucal's own, which send pickles to the one that started them.

Such a process is a new one, not a fork, as CUDA does not survive that. It finds modules where its parent does, folders
added in a notebook included, and ends when its parent does, however that ends.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from logging.handlers import QueueHandler
from types import SimpleNamespace
from typing import IO

__all__ = ["last_words", "relog", "speak", "start"]

# Becomes a command that the kernel kills (PR_SET_PDEATHSIG) when the process that started it ends, however that ends.
_BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def start(
    command: Sequence[str], stdin: IO[bytes] | int, stderr: IO[bytes], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of such a process, in a session of its own, as a terminal signals all of one."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command],
        env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )


def last_words(errors: IO[bytes]) -> str:
    """Return the last line that a process wrote to its standard error; empty if there is none."""
    errors.seek(0)
    lines = errors.read().decode(errors="backslashreplace").strip().splitlines()
    return lines[-1].removeprefix("gpucal: ") if lines else ""


def relog(record: logging.LogRecord) -> None:
    """Log what another process has logged, if that is wanted here."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def speak() -> Callable[[object], None]:
    """Return how such a process sends something to its parent; what it logs is sent from now on."""
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no pickle

    def say(what: object) -> None:
        said.write(pickle.dumps(what, pickle.HIGHEST_PROTOCOL))  # whole, whichever threads speak
        said.flush()

    logging.getLogger("gpucal").addHandler(QueueHandler(SimpleNamespace(put_nowait=say)))
    return say
