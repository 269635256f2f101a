"""Raw counts on a GPU: ``kernels/calibrate.cu``, on a lane of `gpucal.backends.cupy_gpu`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpucal.backends.cupy_buffers import Buffer, constants_of
from gpucal.kernels import ROW, THREADS, calibrate_grid
from gpucal.science.plan import Plan

__all__ = ["CountLane"]


class CountLane:
    """The stream and buffers of one block on the device: queue the three parts in order, then synchronise."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._counts = Buffer(np.uint16)
        self._constants, self._tau_s, self._out = (Buffer(np.float64) for _ in range(3))
        self._saturated = Buffer(np.uint32)

    def upload(self, plan: Plan, pixels: slice, counts: NDArray[np.uint16]) -> None:
        """Copy a block, its constants and τ to pinned memory, and queue their upload."""
        n, used = len(counts), plan.used_frames
        self.pitch = -(-used // ROW) * ROW
        # All buffers come first, so that nothing is queued if an allocation fails.
        raw, self.raw = self._counts.views(n, self.pitch)
        constants, self.constants = self._constants.views(n, 8)
        tau_s, self.tau_s = self._tau_s.views(plan.n_bins)
        self.electrons, self.out = self._out.views(n, plan.n_bins)
        self.flags, self.saturated = self._saturated.views(n)

        raw[:, :used] = counts[:, :used]
        constants[:] = constants_of(plan, pixels)
        tau_s[:] = plan.tau_s
        self.flags[:] = 0
        for host, device in (
            (raw, self.raw),
            (constants, self.constants),
            (tau_s, self.tau_s),
            (self.flags, self.saturated),
        ):
            device.set(host, stream=self.stream)

    def launch(self, kernel: Callable[..., None], plan: Plan) -> None:
        """Queue the kernel. Its arguments must have the C types of its parameters, as nothing checks them."""
        n = len(self.flags)
        sizes = np.int64(self.pitch), np.int32(n), np.int32(plan.n_bins), np.int32(plan.pairs_per_bin)
        results = np.uint32(plan.saturation), self.out, self.saturated
        grid, block = calibrate_grid(n, plan.n_bins), (THREADS["calibrate"],)
        with self.stream:
            kernel(grid, block, (self.raw, *sizes, self.constants, self.tau_s, *results))

    def download(self, electrons: bool) -> None:
        """Queue the download of the flags to pinned memory, and of the electrons if they are wanted there."""
        self.saturated.get(stream=self.stream, out=self.flags, blocking=False)
        if electrons:
            self.out.get(stream=self.stream, out=self.electrons, blocking=False)
