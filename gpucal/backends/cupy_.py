"""The formula on a GPU: ``kernels/calibrate.cu`` through CuPy. No other module imports cupy.

Each thread that bins uses a lane: a stream of its own, pinned host buffers for both directions, and the same buffers on
the device. Two threads are two streams, so one's upload overlaps the other's kernel and download, and decoding overlaps
them all. Cropped uint16 counts are uploaded; binned electrons are downloaded, or stay on the device.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, partial
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Destination
from gpucal.backends.agreement import difference
from gpucal.errors import BackendUnavailable, BrokenDevice, DeviceError, DeviceMemoryError
from gpucal.kernels import ROW, THREADS, calibrate_grid, source
from gpucal.science.plan import Plan
from gpucal.science.steps import Array

__all__ = ["connect", "split"]

log = logging.getLogger(__name__)

# Errors of importing CuPy: it makes a folder for compiled kernels, and wheels for another NumPy fail in odd ways.
_IMPORT = (ImportError, OSError, ValueError, AttributeError, RuntimeError)

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, which pinned allocations raise


def connect() -> Backend:
    """Compile the kernel, launch it on the current device, and compare it with NumPy; any thread may use the backend.

    `BackendUnavailable` is raised without CuPy, driver, device or compiler, or if the device's results differ from
    NumPy's. Later a block raises `DeviceError` if the device fails, or has no room for a single pixel.
    """
    gpu = _gpu()
    return Backend("cupy", gpu.runs_on, gpu.bin_counts, on_device=_on_device)


def split(plan: Plan, counts: NDArray[np.uint16]) -> dict[str, float]:
    """Return the seconds of ``upload``, ``kernel`` and ``download`` of a block, each synchronised."""
    return _gpu().split(plan, counts)


class _Buffer:
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
            cupy.cuda.Device().synchronize()  # as in _Gpu.allocate
            self._size = size
        return self._host[:size].reshape(shape), self._device[:size].reshape(shape)


class _Lane:
    """The stream and buffers of one block on the device: queue the three parts in order, then synchronise."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._counts = _Buffer(np.uint16)
        self._constants, self._tau_s, self._out = (_Buffer(np.float64) for _ in range(3))
        self._saturated = _Buffer(np.uint32)

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
        constants[:] = _constants(plan, pixels)
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


class _Gpu:
    """One device, its kernel and its idle lanes."""

    def __init__(self, number: int) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device(number)
        self._idle: SimpleQueue[_Lane] = SimpleQueue()
        with self._device:
            self._kernel = cupy.RawModule(code=source("calibrate"), options=()).get_function("calibrate")
        self.runs_on = _described(cupy, number)

    def bin_counts(
        self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """See `gpucal.backends.numpy_.bin_counts`."""

        def deliver(part: slice, lane: _Lane) -> None:
            lane.download(electrons=True)
            lane.stream.synchronize()
            out[part] = lane.electrons

        return self._in_pieces(plan, pixels, counts, deliver)

    def bin_into(self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], target: Array) -> NDArray[np.bool_]:
        """Leave the electrons on the device, in ``target`` (bin, pixel)."""

        def deliver(part: slice, lane: _Lane) -> None:
            with lane.stream:
                target[:, part] = lane.out.T
            lane.download(electrons=False)
            lane.stream.synchronize()

        return self._in_pieces(plan, pixels, counts, deliver)

    def split(self, plan: Plan, counts: NDArray[np.uint16]) -> dict[str, float]:
        """Return the seconds of upload, kernel and download of a block of all a plan's pixels, one after the other."""
        seconds = {}
        with self._typed(f"{counts.nbytes:,} bytes of counts"):
            lane = self._lane()
            parts: dict[str, Callable[[], None]] = {
                "upload": partial(lane.upload, plan, slice(0, plan.n_pixels), counts),
                "kernel": partial(lane.launch, self._kernel, plan),
                "download": partial(lane.download, electrons=True),
            }
            for part, queue in parts.items():
                start = time.perf_counter()
                queue()
                lane.stream.synchronize()
                seconds[part] = time.perf_counter() - start
            self._idle.put(lane)
        return seconds

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Make an array on the device."""
        with self._typed(f"a result of {int(np.prod(shape)) * dtype.itemsize:,} bytes"):
            array = self._cupy.empty(shape, dtype)
            # The pool reuses memory that another stream may still read, and lanes do not wait for other streams.
            self._device.synchronize()
            return array

    def change(self, signal: Array, how: Callable[[Array], None]) -> None:
        """Call ``how`` on a result, on its device."""
        with self._typed(f"changing a result of {signal.nbytes:,} bytes"):
            how(signal)
            self._device.synchronize()

    @cached_property
    def on_device(self) -> float:
        """`agreement.difference` for results that stay on the device; CuPy's own kernels move those."""

        def there_and_back(
            plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]
        ) -> NDArray[np.bool_]:
            target = self.allocate((plan.n_bins, len(counts)), np.dtype(np.float64))
            saturated = self.bin_into(plan, pixels, counts, target)
            with self._device:
                out[:] = target.get().T
            return saturated

        return difference(there_and_back)

    def _in_pieces(
        self,
        plan: Plan,
        pixels: slice,
        counts: NDArray[np.uint16],
        deliver: Callable[[slice, _Lane], None],
    ) -> NDArray[np.bool_]:
        """Run a block, or its halves, quarters and so on if the device's memory is short."""
        saturated = np.empty(len(counts), bool)
        pieces = [slice(0, len(counts))]
        while pieces:
            part = pieces.pop()
            n = part.stop - part.start
            mine = slice(pixels.start + part.start, pixels.start + part.stop)
            full: DeviceMemoryError | None = None
            try:
                self._run(plan, mine, counts[part], saturated[part], partial(deliver, part))
            except DeviceMemoryError as error:
                full = DeviceMemoryError(*error.args)  # a new one: the traceback of the old would keep the lane
            if full is None:
                continue
            self._free()
            if n == 1:
                raise full
            log.warning("%s is short of memory: a block of %d pixels is halved", self.runs_on, n)
            pieces += [slice(part.start + n // 2, part.stop), slice(part.start, part.start + n // 2)]
        return saturated

    def _run(
        self,
        plan: Plan,
        pixels: slice,
        counts: NDArray[np.uint16],
        saturated: NDArray[np.bool_],
        deliver: Callable[[_Lane], None],
    ) -> None:
        """Run a block on a lane; after an error the lane is dropped."""
        need = f"{2 * plan.used_frames * len(counts):,} bytes of counts and {8 * plan.n_bins * len(counts):,} of result"
        with self._typed(need):
            lane = self._lane()
            lane.upload(plan, pixels, counts)
            lane.launch(self._kernel, plan)
            deliver(lane)
            saturated[:] = lane.flags != 0
            self._idle.put(lane)

    @contextmanager
    def _typed(self, need: str) -> Iterator[None]:
        """Make the device current, and turn its errors into gpucal's."""
        cuda = self._cupy.cuda
        try:
            with self._device:
                yield
        except (cuda.memory.OutOfMemoryError, cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            if getattr(error, "status", _OUT_OF_MEMORY) == _OUT_OF_MEMORY:
                raise DeviceMemoryError(
                    f"{self.runs_on}: no room for {need} ({_line(error)}); free device memory or use another backend"
                ) from error
            raise DeviceError(
                f"{self.runs_on}: {_line(error)}; start again, and if it fails again use another GPU"
            ) from error

    def _lane(self) -> _Lane:
        try:
            return self._idle.get_nowait()
        except Empty:
            return _Lane()

    def _free(self) -> None:
        """Free idle memory: other threads' idle lanes, and the pools."""
        while True:
            try:
                self._idle.get_nowait()
            except Empty:
                break
        with self._device:
            self._cupy.get_default_memory_pool().free_all_blocks()
            self._cupy.get_default_pinned_memory_pool().free_all_blocks()


def _on_device() -> Destination:
    """Keep results on the current device, as CuPy arrays; the first use compares them with NumPy's."""
    gpu = _gpu()
    with _explained():
        _refuse_unless(gpu.on_device <= 1.0, gpu, gpu.on_device)
    return Destination(gpu.allocate, gpu.bin_into, None, gpu.change)


def _gpu() -> _Gpu:
    """Return the current device; the first use compares it with NumPy."""
    try:
        import cupy
    except _IMPORT as error:
        reason = str(error).partition("\n")[0]
        raise BackendUnavailable(
            f'backend \'cupy\' cannot be imported ({reason}); pip install "gpucal[cuda12]" or "gpucal[cuda13]"'
        ) from error
    with _explained():
        if not cupy.cuda.runtime.getDeviceCount():
            raise BackendUnavailable("backend 'cupy': no GPU is visible; see CUDA_VISIBLE_DEVICES")
        return _checked(int(cupy.cuda.runtime.getDevice()))


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of a device into `BackendUnavailable` with the reason."""
    import cupy

    try:
        yield
    except DeviceMemoryError as error:
        raise BackendUnavailable(f"backend 'cupy': {error}") from error
    except DeviceError as error:
        raise BrokenDevice(f"backend 'cupy': {error}") from error
    except (cupy.cuda.compiler.CompileException, OSError) as error:  # OSError comes from CuPy's folder of kernels
        raise BackendUnavailable(f"backend 'cupy': a kernel does not compile: {_line(error)}") from error
    except RuntimeError as error:  # CUDARuntimeError without driver or device, DynamicLibNotFoundError without NVRTC
        raise BackendUnavailable(
            f"backend 'cupy': {_line(error)}; it needs an NVIDIA driver, a GPU and NVRTC (cupy-cuda12x[ctk])"
        ) from error


def _refuse_unless(agrees: bool, gpu: _Gpu, worst: float) -> None:
    if not agrees:
        raise BrokenDevice(
            f"backend 'cupy': {gpu.runs_on} gives other numbers than NumPy, {worst:.3g} times the rounding allowed; "
            "do not use this GPU"
        )


@cache
def _checked(number: int) -> _Gpu:
    gpu = _Gpu(number)
    worst = difference(gpu.bin_counts)
    _refuse_unless(worst <= 1.0, gpu, worst)
    return gpu


def _described(cupy: ModuleType, number: int) -> str:
    runtime = cupy.cuda.runtime
    facts = runtime.getDeviceProperties(number)
    driver = runtime.driverGetVersion()
    return (
        f"{facts['name'].decode()} (sm_{facts['major']}{facts['minor']}, device {number}), "
        f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}, "
        f"NVRTC {'.'.join(map(str, cupy.cuda.nvrtc.getVersion()))}, CuPy {cupy.__version__}"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _constants(plan: Plan, pixels: slice) -> NDArray[np.float64]:
    """Return each pixel's constants in the kernel's layout: c1 ... c5, dark, divisor, floor."""
    table = np.zeros((pixels.stop - pixels.start, 8))
    table[:, : len(plan.coefficients) - 1] = plan.coefficients[1:, pixels].T
    table[:, 5], table[:, 6], table[:, 7] = plan.dark[pixels], plan.divisor[pixels], plan.floor
    return table
