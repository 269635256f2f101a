"""CUDA sources of gpucal, shipped as package data (importable as ``gpucal.kernels``).

Each ``NAME.cu`` is self-contained and holds one kernel, ``NAME``, with C linkage; its opening comment says what it
computes, the layout of its arguments and how it is launched.
"""

from __future__ import annotations

from importlib.resources import files

__all__ = ["NAMES", "source"]

NAMES = ("calibrate", "horner")
"""The kernels."""


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
