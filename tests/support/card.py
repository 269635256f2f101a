"""The shipped kernels on a GPU, called with NumPy arrays as `emulator.cpp.Kernel` is, between bytes that must stay."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from emulator import standin
from launch import require_compiler

from gpucal import kernels

__all__ = ["STAND_IN", "CardKernel", "connected"]

STAND_IN = os.environ.get("GPUCAL_CARD") == "stand-in"
"""Whether the tests of a card are tried without one."""

# Larger arrays are inputs, and are not copied back.
_MOST = 2**30


@contextmanager
def connected() -> Iterator[ModuleType]:
    """CuPy with a GPU, or the stand-in if GPUCAL_CARD asks for that; otherwise skip the test with the reason."""
    if STAND_IN:
        require_compiler()
        with standin.installed(seed=1):
            yield importlib.import_module("cupy")
        return
    cupy = pytest.importorskip("cupy")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    yield cupy


class CardKernel:
    """A kernel of the package on the current device; arrays go there, and back to where they came from."""

    def __init__(self, name: str, guard: int = 4096) -> None:
        self._guard = guard  # bytes before and behind every array, so many that vector loads stay aligned
        self._cupy = importlib.import_module("cupy")
        self._function = self._cupy.RawModule(code=kernels.source(name), options=()).get_function(name)
        self.name = name

    def __call__(self, grid: Sequence[int], block: Sequence[int], *arguments: Any) -> None:
        """Launch, wait, and bring back what may have changed; bytes around arrays, and read-only ones, may not."""
        guard, there, given = self._guard, [], []
        for value in arguments:
            if not isinstance(value, np.ndarray):
                given.append(value)
                continue
            host = np.full(max(1, value.nbytes + 2 * guard), 0x5A, np.uint8)
            inside = slice(guard, guard + value.nbytes)
            host[inside] = np.ascontiguousarray(value).view(np.uint8).ravel()
            on_device = self._cupy.empty(host.size, np.uint8)
            on_device.set(host)
            given.append(on_device[inside].view(value.dtype))
            there.append((value, host, on_device, inside))
        self._function(tuple(grid), tuple(block), tuple(given))
        self._cupy.cuda.Device().synchronize()
        for value, host, on_device, inside in there:
            if host.size > _MOST:
                continue
            back, before = on_device.get(), host.copy()
            if value.flags.writeable:
                value[...] = back[inside].view(value.dtype).reshape(value.shape)
                back[inside] = before[inside] = 0
            assert (back == before).all(), f"{self.name} wrote outside of an array, or to an input"
