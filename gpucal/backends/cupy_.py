"""The formula on a GPU, through CuPy: ``kernels/calibrate.cu`` from raw counts, and `cupy_pages` from a file's pages.

Each thread that bins uses a lane: a stream of its own, pinned host buffers for both directions, and the same buffers on
the device. Two threads are two streams, so one's upload overlaps the other's kernel and download, and the host's work
overlaps them all. Pages are uploaded as the file stores them, or else cropped uint16 counts; binned electrons are
downloaded, or stay on the device. The environment variable GPUCAL_PAGES=host has all pages decoded on the host.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from importlib.metadata import distributions
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Destination, Pages
from gpucal.backends.agreement import difference, difference_by_pages
from gpucal.backends.cupy_pages import PageKernels, PageLane
from gpucal.backends.pagewise.leftover import settle
from gpucal.errors import BackendUnavailable, BrokenDevice, ConfigError, DeviceError, DeviceMemoryError, InputError
from gpucal.hints import joined
from gpucal.inputs.signal_file import Loaded
from gpucal.kernels import ROW, THREADS, calibrate_grid, source
from gpucal.science.plan import Plan
from gpucal.science.steps import Array

__all__ = ["connect", "split"]

log = logging.getLogger(__name__)

# Errors of importing CuPy: it makes a folder for compiled kernels, wheels for another NumPy fail in odd ways, and two
# wheels side by side are a warning, which may be an error here.
_IMPORT = (ImportError, OSError, ValueError, AttributeError, RuntimeError, Warning)

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, which pinned allocations raise

# Bytes of a block's pages, decompressed: a quarter of a file. A page of FGS1 keeps a warp busy for long, so that many
# have to be decoded at the same time; and a file needs several blocks for one's copy to overlap another's kernels.
_PAGES = 2**25


def connect() -> Backend:
    """Compile the kernels, launch them on the current device, and compare them with NumPy; any thread may use them.

    `BackendUnavailable` is raised without CuPy, driver, device or compiler, or if the device's results differ from
    NumPy's. Later a block raises `DeviceError` if the device fails, or has no room for a single pixel. `ConfigError` is
    raised if GPUCAL_PAGES is neither auto nor host.
    """
    gpu = _gpu()
    if not _takes_pages():
        log.info("backend cupy: GPUCAL_PAGES=host, so the host decodes all pages")
        return Backend("cupy", gpu.runs_on, gpu.bin_counts, on_device=partial(_on_device, False))
    with _explained():
        _refuse_unless(gpu.by_pages <= 1.0, gpu, gpu.by_pages)
    return Backend("cupy", gpu.runs_on, gpu.bin_counts, gpu.bin_pages, partial(_on_device, True), _PAGES)


def split(plan: Plan, counts: NDArray[np.uint16]) -> dict[str, float]:
    """Return the seconds of ``upload``, ``kernel`` and ``download`` of a block, each synchronised."""
    return _gpu().split(plan, counts)


def _takes_pages() -> bool:
    where = os.environ.get("GPUCAL_PAGES") or "auto"
    if where not in ("auto", "host"):
        raise ConfigError(f"GPUCAL_PAGES = {where!r}: must be auto or host")
    return where == "auto"


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
    """One device, its kernels and its idle lanes."""

    def __init__(self, number: int) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device(number)
        self._idle: SimpleQueue[_Lane] = SimpleQueue()
        self._idle_for_pages: SimpleQueue[PageLane] = SimpleQueue()
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

        return self._counts_in_pieces(plan, pixels, counts, deliver)

    def bin_into(self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], target: Array) -> NDArray[np.bool_]:
        """Leave the electrons on the device, in ``target`` (bin, row, column)."""

        def deliver(part: slice, lane: _Lane) -> None:
            with lane.stream:
                _spread(lane.out, target, part.start)
            lane.download(electrons=False)
            lane.stream.synchronize()

        return self._counts_in_pieces(plan, pixels, counts, deliver)

    def bin_pages(
        self, plan: Plan, pixels: slice, loaded: Loaded, out: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], Pages]:
        """See `gpucal.backends.pagewise.decode.bin_pages`."""

        def deliver(part: slice, lane: PageLane) -> None:
            lane.out.get(stream=lane.stream, out=lane.electrons, blocking=False)
            lane.finish()
            np.copyto(out[part], lane.electrons)

        def again(one: slice, counts: NDArray[np.uint16]) -> NDArray[np.bool_]:
            place = one.start - pixels.start
            return self.bin_counts(plan, one, counts, out[place : place + 1])

        return self._pages_in_pieces(plan, pixels, loaded, deliver, again)

    def bin_pages_into(
        self, plan: Plan, pixels: slice, loaded: Loaded, target: Array
    ) -> tuple[NDArray[np.bool_], Pages]:
        """Leave the electrons on the device, in ``target`` (bin, row, column)."""

        def deliver(part: slice, lane: PageLane) -> None:
            with lane.stream:
                _spread(lane.out, target, part.start)
            lane.finish()

        def again(one: slice, counts: NDArray[np.uint16]) -> NDArray[np.bool_]:
            y, x = divmod(one.start - pixels.start, target.shape[2])
            return self.bin_into(plan, one, counts, target[:, y : y + 1, x : x + 1])

        return self._pages_in_pieces(plan, pixels, loaded, deliver, again)

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
            target = self.allocate((plan.n_bins, 1, len(counts)), np.dtype(np.float64))
            saturated = self.bin_into(plan, pixels, counts, target)
            with self._device:
                out[:] = target.get()[:, 0].T
            return saturated

        return difference(there_and_back)

    @cached_property
    def by_pages(self) -> float:
        """`agreement.difference_by_pages`."""
        return difference_by_pages(self.bin_pages)

    @cached_property
    def by_pages_on_device(self) -> float:
        """The same for results that stay on the device."""

        def there_and_back(
            plan: Plan, pixels: slice, loaded: Loaded, out: NDArray[np.float64]
        ) -> tuple[NDArray[np.bool_], Pages]:
            target = self.allocate((plan.n_bins, 1, len(out)), np.dtype(np.float64))
            result = self.bin_pages_into(plan, pixels, loaded, target)
            with self._device:
                out[:] = target.get()[:, 0].T
            return result

        return difference_by_pages(there_and_back)

    @cached_property
    def _page_kernels(self) -> PageKernels:
        with self._device:
            return PageKernels()

    def _counts_in_pieces(
        self,
        plan: Plan,
        pixels: slice,
        counts: NDArray[np.uint16],
        deliver: Callable[[slice, _Lane], None],
    ) -> NDArray[np.bool_]:
        saturated = np.empty(len(counts), bool)

        def run(part: slice) -> None:
            mine = slice(pixels.start + part.start, pixels.start + part.stop)
            self._run(plan, mine, counts[part], saturated[part], partial(deliver, part))

        self._in_pieces(len(counts), run)
        return saturated

    def _pages_in_pieces(
        self,
        plan: Plan,
        pixels: slice,
        loaded: Loaded,
        deliver: Callable[[slice, PageLane], None],
        again: Callable[[slice, NDArray[np.uint16]], NDArray[np.bool_]],
    ) -> tuple[NDArray[np.bool_], Pages]:
        """Run a block; ``again`` bins a column from its counts, where its pages are not such as the kernel takes."""
        saturated, total = np.empty(pixels.stop - pixels.start, bool), [Pages()]

        def run(part: slice) -> None:
            mine = slice(pixels.start + part.start, pixels.start + part.stop)
            by_codec, seconds, wrong = self._run_pages(plan, mine, loaded, saturated[part], partial(deliver, part))

            def bin_again(pixel: int, counts: NDArray[np.uint16]) -> None:
                one = slice(mine.start + pixel, mine.start + pixel + 1)
                saturated[part.start + pixel] = again(one, counts)[0]

            by_arrow = settle(loaded, mine, wrong, bin_again)
            n_pages = int(loaded.table.firsts[mine.stop] - loaded.table.firsts[mine.start])
            total.append(Pages(n_pages - by_codec - by_arrow, by_codec, by_arrow, seconds))

        self._in_pieces(len(saturated), run)
        return saturated, sum(total, Pages())

    def _in_pieces(self, n_pixels: int, run: Callable[[slice], None]) -> None:
        """Run a block, or its halves, quarters and so on if the device's memory is short."""
        pieces = [slice(0, n_pixels)]
        while pieces:
            part = pieces.pop()
            n = part.stop - part.start
            full: DeviceMemoryError | None = None
            try:
                run(part)
            except DeviceMemoryError as error:
                full = DeviceMemoryError(*error.args)  # a new one: the traceback of the old would keep the lane
            if full is None:
                continue
            self._free()
            if n == 1:
                raise full
            log.warning("%s is short of memory: a block of %d pixels is halved", self.runs_on, n)
            pieces += [slice(part.start + n // 2, part.stop), slice(part.start, part.start + n // 2)]

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

    def _run_pages(
        self,
        plan: Plan,
        pixels: slice,
        loaded: Loaded,
        saturated: NDArray[np.bool_],
        deliver: Callable[[PageLane], None],
    ) -> tuple[int, float, NDArray[np.int32]]:
        """Run a block on a lane; return what `PageLane.run` does, and what is wrong with columns."""
        n = len(saturated)
        size = int(loaded.table.sizes[pixels].sum())
        with self._typed(f"{size:,} bytes of pages, their compressed ones, and {8 * plan.n_bins * n:,} of result"):
            try:
                lane = self._idle_for_pages.get_nowait()
            except Empty:
                lane = PageLane(_Buffer)
            try:
                by_codec, seconds = lane.run(self._page_kernels, plan, _constants(plan, pixels), pixels, loaded)
            except InputError:
                self._idle_for_pages.put(lane)  # nothing is queued on it
                raise
            deliver(lane)
            saturated[:] = lane.flags != 0
            wrong = lane.wrong.copy()
            self._idle_for_pages.put(lane)
        return by_codec, seconds, wrong

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
        for idle in (self._idle, self._idle_for_pages):
            while not idle.empty():
                with suppress(Empty):
                    idle.get_nowait()
        with self._device:
            self._cupy.get_default_memory_pool().free_all_blocks()
            self._cupy.get_default_pinned_memory_pool().free_all_blocks()


def _on_device(pages: bool) -> Destination:
    """Keep results on the current device, as CuPy arrays; the first use compares them with NumPy's."""
    gpu = _gpu()
    with _explained():
        _refuse_unless(gpu.on_device <= 1.0, gpu, gpu.on_device)
        if pages:
            _refuse_unless(gpu.by_pages_on_device <= 1.0, gpu, gpu.by_pages_on_device)
    return Destination(gpu.allocate, gpu.bin_into, gpu.bin_pages_into if pages else None, gpu.change, _PAGES)


def _spread(binned: Array, target: Array, at: int) -> None:
    """Copy (pixel, bin), from the ``at``-th pixel of ``target`` on, to their places in (bin, row, column)."""
    width, done = target.shape[2], 0
    while done < len(binned):
        y, x = divmod(at + done, width)
        n = min(width - x, len(binned) - done)
        target[:, y, x : x + n] = binned[done : done + n].T
        done += n


def _gpu() -> _Gpu:
    """Return the current device; the first use compares it with NumPy."""
    try:
        import cupy
    except _IMPORT as error:
        lines = (line.strip() for line in str(error).splitlines())
        reason = next((line for line in lines if line.strip("-")), type(error).__name__)
        raise BackendUnavailable(f"backend 'cupy' cannot be imported ({reason}); {_mend(error)}") from error
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
            f"backend 'cupy': {_line(error)}; it needs an NVIDIA driver{_newer(error)}, a GPU and NVRTC "
            "(cupy-cuda12x[ctk])"
        ) from error


def _mend(error: Exception) -> str:
    """Return what makes CuPy importable."""
    wheels = sorted({name for one in distributions() if re.fullmatch(r"cupy(-.*)?", name := one.name.lower())})
    if len(wheels) > 1:
        return f"{joined(wheels, 'and')} are installed together: pip uninstall all but one"
    if isinstance(error, OSError) and error.errno is not None:
        return "let CUPY_CACHE_DIR name a folder that can be written"
    return 'pip install "gpucal[cuda12]" or "gpucal[cuda13]"'


def _newer(error: Exception) -> str:
    """Say which driver is too old; CuPy's error is the same where there is none."""
    import cupy

    version = cupy.cuda.runtime.driverGetVersion() if "nsufficient" in str(error) else 0
    return f" newer than the one here, which is for CUDA {version // 1000}.{version % 1000 // 10}" if version else ""


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
