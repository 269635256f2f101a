"""Memory for the lanes of `gpucal.backends.cupy_gpu`, and a pixel's constants as the kernels take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.science.plan import Plan
from gpucal.science.steps import Array

__all__ = ["Buffer", "Room", "constants_of"]


class Buffer:
    """Pinned memory and its counterpart on the device, as long as the longest use so far."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._dtype = dtype
        self._size = 0
        self._host: Any = None
        self._device: Array = None

    def views(self, *shape: int) -> tuple[NDArray[Any], Array]:
        """Return two C-contiguous arrays of that shape, on the host and on the device."""
        import cupy
        import cupyx

        size = int(np.prod(shape))
        if size > self._size:
            self._size, self._host, self._device = 0, None, None  # freed before more is allocated
            self._host, self._device = cupyx.empty_pinned(size, self._dtype), cupy.empty(size, self._dtype)
            cupy.cuda.Device().synchronize()  # as in Gpu.allocate
            self._size = size
        return self._host[:size].reshape(shape), self._device[:size].reshape(shape)


class Room:
    """Bytes of the device alone, as many as the longest use so far."""

    def __init__(self) -> None:
        self._bytes: Array = None

    def view(self, size: int) -> Array:
        """Return so many bytes."""
        import cupy

        if self._bytes is None or self._bytes.size < size:
            self._bytes = None  # freed before more is allocated
            self._bytes = cupy.empty(size, np.uint8)
            cupy.cuda.Device().synchronize()  # as in Gpu.allocate
        return self._bytes[:size]


def constants_of(plan: Plan, pixels: slice) -> NDArray[np.float64]:
    """Return each pixel's constants in the kernel's layout: c1 ... c5, dark, divisor, floor."""
    table = np.zeros((pixels.stop - pixels.start, 8))
    table[:, : len(plan.coefficients) - 1] = plan.coefficients[1:, pixels].T
    table[:, 5], table[:, 6], table[:, 7] = plan.dark[pixels], plan.divisor[pixels], plan.floor
    return table
