"""CUDA sources of gpucal, shipped as package data (importable as ``gpucal.kernels``).

Each ``NAME.cu`` is self-contained and holds one kernel, ``NAME``, with C linkage; its opening comment says what it
computes, the layout of its arguments and how it is launched.
"""

from __future__ import annotations

from importlib.resources import files

__all__ = ["NAMES", "ROW", "THREADS", "calibrate_grid", "source"]

NAMES = ("calibrate", "horner")
"""The kernels."""

THREADS = 128
"""Threads of a block, of each of them."""

ROW = 64
"""Counts: rows are padded to a multiple, 128 bytes."""

# Thread blocks worth launching: a dozen for each multiprocessor of a large GPU, so that the last do not leave it idle.
_BLOCKS = 2048


def source(name: str) -> str:
    """Read a kernel's source.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Returns
    -------
    str
        CUDA; compiler errors name the file and its lines.
    """
    return f'#line 1 "{name}.cu"\n' + files(__name__).joinpath(f"{name}.cu").read_text(encoding="utf-8")


def calibrate_grid(n_pixels: int, n_bins: int) -> tuple[int, int]:
    """Choose a grid for ``calibrate``; any gives the same bits.

    Parameters
    ----------
    n_pixels, n_bins : int
        What it is launched on.

    Returns
    -------
    tuple of int
        Blocks that share a pixel's bins, each with four warps, and blocks along the pixels.
    """
    across = max(1, min(-(-n_bins // 4), -(-_BLOCKS // n_pixels)))
    return across, min(n_pixels, 65_535)
