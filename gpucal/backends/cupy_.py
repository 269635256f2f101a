"""The formula on a GPU, through CuPy: whether there is one that can be used, and if not, why and what to do.

`cupy_gpu` runs blocks on it. Pages are uploaded as the file stores them (`cupy_pages`), or else cropped uint16 counts
(`cupy_counts`); binned electrons are downloaded, or stay on the device. The environment variable GPUCAL_PAGES=host has
all pages decoded on the host.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import distributions
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Destination
from gpucal.backends.agreement import difference, difference_by_pages
from gpucal.backends.cupy_gpu import Gpu, line_of
from gpucal.errors import BackendUnavailable, BrokenDevice, ConfigError, DeviceError, DeviceMemoryError
from gpucal.hints import joined
from gpucal.science.plan import Plan
from gpucal.science.steps import Array

__all__ = ["connect", "split"]

log = logging.getLogger(__name__)

# Errors of importing CuPy: it makes a folder for compiled kernels, wheels for another NumPy fail in odd ways, and two
# wheels side by side are a warning, which may be an error here.
_IMPORT = (ImportError, OSError, ValueError, AttributeError, RuntimeError, Warning)

# Bytes of a block's pages, decompressed: a whole file of the usual size. A page of FGS1 keeps a warp busy for over a
# millisecond, so that all are decoded at the same time; one file's copy overlaps the kernels of another.
_PAGES = 2**27


Source = TypeVar("Source")
Result = TypeVar("Result")


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
        _require(gpu, _by_pages(gpu))
    return Backend("cupy", gpu.runs_on, gpu.bin_counts, gpu.bin_pages, partial(_on_device, True), _PAGES, gpu.memory)


def split(plan: Plan, counts: NDArray[np.uint16]) -> dict[str, float]:
    """Return the seconds of ``upload``, ``kernel`` and ``download`` of a block, each synchronised."""
    return _gpu().split(plan, counts)


def _takes_pages() -> bool:
    where = os.environ.get("GPUCAL_PAGES") or "auto"
    if where not in ("auto", "host"):
        raise ConfigError(f"GPUCAL_PAGES = {where!r}: must be auto or host")
    return where == "auto"


def _on_device(pages: bool) -> Destination:
    """Keep results on the current device, as CuPy arrays; the first use compares them with NumPy's."""
    gpu = _gpu()
    with _explained():
        _require(gpu, _on_device_by_counts(gpu))
        if pages:
            _require(gpu, _on_device_by_pages(gpu))
    bin_pages = gpu.bin_pages_into if pages else None
    return Destination(gpu.allocate, gpu.bin_into, bin_pages, gpu.arranged, gpu.change, _PAGES, gpu.memory)


def _gpu() -> Gpu:
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
        raise BackendUnavailable(f"backend 'cupy': a kernel does not compile: {line_of(error)}") from error
    except RuntimeError as error:  # CUDARuntimeError without driver or device, DynamicLibNotFoundError without NVRTC
        raise BackendUnavailable(
            f"backend 'cupy': {line_of(error)}; it needs an NVIDIA driver{_newer(error)}, a GPU and NVRTC "
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


@cache
def _checked(number: int) -> Gpu:
    gpu = Gpu(number)
    _require(gpu, difference(gpu.bin_counts))
    return gpu


@cache
def _by_pages(gpu: Gpu) -> float:
    return difference_by_pages(gpu.bin_pages)


@cache
def _on_device_by_counts(gpu: Gpu) -> float:
    """Compare results that stay on the device; CuPy's own kernels move those."""
    return difference(_there_and_back(gpu, gpu.bin_into))


@cache
def _on_device_by_pages(gpu: Gpu) -> float:
    return difference_by_pages(_there_and_back(gpu, gpu.bin_pages_into))


def _there_and_back(
    gpu: Gpu, place: Callable[[Plan, slice, Source, Array], Result]
) -> Callable[[Plan, slice, Source, NDArray[np.float64]], Result]:
    """Have what leaves results on the device fill an array of the host."""

    def bin_block(plan: Plan, pixels: slice, source: Source, out: NDArray[np.float64]) -> Result:
        there = gpu.allocate(out.shape, out.dtype)
        result = place(plan, pixels, source, there)
        np.copyto(out, gpu.arranged(there, (1, len(out))).get()[:, :, 0].T)
        return result

    return bin_block


def _require(gpu: Gpu, worst: float) -> None:
    """Refuse a device whose worst difference from NumPy is not one of rounding."""
    if not worst <= 1.0:
        raise BrokenDevice(
            f"backend 'cupy': {gpu.runs_on} gives other numbers than NumPy, {worst:.3g} times the rounding allowed; "
            "do not use this GPU"
        )
