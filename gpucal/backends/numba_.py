"""The formula compiled by Numba: pages to binned sums in one pass. On a CPU with Numba, it is the default."""

from __future__ import annotations

import importlib
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Pages
from gpucal.errors import BackendUnavailable, BrokenBackend
from gpucal.inputs.signal_file import Loaded
from gpucal.science.cosmic_rays import Search
from gpucal.science.plan import Plan

__all__ = ["connect"]


def connect() -> Backend:
    """Compile the formula for pages, or load it from the cache; that for counts is compiled when it is first needed.

    `BackendUnavailable` is raised without Numba, or if it is broken.
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
    except Exception as error:  # beside other versions of libraries, or with little memory, it may raise any
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BrokenBackend(
            f"backend 'numba' cannot be used ({reason}); mend it if `import numba` fails, or choose numpy"
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

    def count_pages(pixels: slice, loaded: Loaded) -> tuple[NDArray[np.uint16], Pages]:
        try:
            scratch = idle.get_nowait()
        except Empty:
            scratch = decode.Scratch()
        result = decode.count_pages(pixels, loaded, scratch)
        idle.put(scratch)
        return result

    runs_on = f"Numba {numba.__version__}"
    return Backend(
        "numba", runs_on, decode.bin_counts, bin_pages, count_pages=count_pages, search=Search(_prepare, _flag_chunks)
    )


def _prepare(counts: NDArray[np.uint16], used_frames: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    from gpucal.backends.pagewise import hits  # compiled where it is needed

    return hits.prepare(counts, used_frames)


def _flag_chunks(series: NDArray[np.int32], limits: NDArray[np.int32]) -> NDArray[np.bool_]:
    from gpucal.backends.pagewise import hits

    return hits.flag_chunks(series, limits)
