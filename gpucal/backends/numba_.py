"""The formula compiled by Numba: pages to binned sums in one pass. On a CPU with Numba, it is the default."""

from __future__ import annotations

import importlib
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Pages
from gpucal.errors import BackendUnavailable
from gpucal.inputs.signal_file import Loaded
from gpucal.science.plan import Plan

__all__ = ["connect"]


def connect() -> Backend:
    """Compile the formula for pages, or load it from the cache; that for counts is compiled when it is first needed.

    `BackendUnavailable` is raised without Numba.
    """
    try:
        import numba

        from gpucal.backends.pagewise.meanwhile import compiled_meanwhile

        with compiled_meanwhile("bins"):
            importlib.import_module("gpucal.backends.pagewise.inflate")
        from gpucal.backends.pagewise import decode
    except ImportError as error:  # Numba raises this, too, beside a NumPy that it does not support
        reason = str(error).partition("\n")[0]
        raise BackendUnavailable(
            f"backend 'numba' cannot be imported ({reason}); pip install \"gpucal[fast]\""
        ) from error
    idle: SimpleQueue[decode.Scratch] = SimpleQueue()  # of threads that have no block at the moment

    def bin_pages(
        plan: Plan, pixels: slice, loaded: Loaded, out: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], Pages]:
        try:
            scratch = idle.get_nowait()
        except Empty:
            scratch = decode.Scratch()
        result = decode.bin_pages(plan, pixels, loaded, out, scratch)
        idle.put(scratch)
        return result

    return Backend("numba", f"Numba {numba.__version__}", decode.bin_counts, bin_pages)
