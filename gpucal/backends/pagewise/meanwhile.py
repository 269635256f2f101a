"""Compiles one module in a process of its own while this process compiles another.

Numba holds the interpreter's lock while it compiles, so two threads are no faster than one. A first run is timed by
``benchmarks/end_to_end.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gpucal.backends.pagewise.intrinsics import is_in_cache

__all__ = ["compiled_meanwhile"]

_IMPORT = "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); importlib.import_module(sys.argv[2])"


@contextmanager
def compiled_meanwhile(module: str) -> Iterator[None]:
    """Have another process compile a module of this package into Numba's cache during the block.

    Nothing is begun where the cache has it, or cannot be written, or there is a single core. If the other process
    fails, the module is compiled when it is imported.
    """
    if is_in_cache(module) or len(os.sched_getaffinity(0)) < 2 or not sys.executable:
        yield
        return
    command = [sys.executable, "-c", _IMPORT, json.dumps(sys.path), f"{__package__}.{module}"]
    none = subprocess.DEVNULL
    try:
        other = subprocess.Popen(command, stdin=none, stdout=none, stderr=none)
    except OSError:  # as where no more processes are allowed
        yield
        return
    with other:
        try:
            yield
        except BaseException:
            with suppress(ProcessLookupError):
                other.kill()
            raise
