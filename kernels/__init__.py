"""CUDA sources of gpucal, shipped as package data (importable as ``gpucal.kernels``).

Each ``NAME.cu`` is self-contained and holds one kernel, ``NAME``, with C linkage. Its opening comment describes the
result, the layout of the arguments and the launch.
"""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType

__all__ = ["NAMES", "ROW", "THREADS", "calibrate_grid", "pages_grid", "source"]

NAMES = ("calibrate", "inflate", "bins")
"""The kernels."""

THREADS = MappingProxyType({"calibrate": 128, "inflate": 32, "bins": 128})
"""Threads of a block, by kernel."""

ROW = 64
"""Rows of counts are padded to a multiple of this many, 128 bytes."""

# Thread blocks to launch, at least: a dozen for each multiprocessor of a large GPU, so that few idle at the end.
_BLOCKS = 2048


def source(name: str) -> str:
    """Return the CUDA source of a kernel of `NAMES`; compiler errors name its file and lines."""
    return f'#line 1 "{name}.cu"\n' + files(__name__).joinpath(f"{name}.cu").read_text(encoding="utf-8")


def calibrate_grid(n_pixels: int, n_bins: int) -> tuple[int, int]:
    """Choose a grid for ``calibrate``: blocks (of four warps) that share a pixel's bins, and blocks along the pixels.

    Any grid gives the same bits.
    """
    across = max(1, min(-(-n_bins // 4), -(-_BLOCKS // n_pixels)))
    return across, min(n_pixels, 65_535)


def pages_grid(n: int) -> int:
    """Choose how many thread blocks of ``inflate`` share so many pages, or of ``bins`` so many pixels.

    Any grid gives the same bytes and bits.
    """
    return max(1, min(n, 65_535))
