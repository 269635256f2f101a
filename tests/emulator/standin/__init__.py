"""A strict stand-in for CuPy: the modules ``cupy`` and ``cupyx`` without a GPU, and less forgiving than one.

Operations run late and in an adversarial order, memory is poisoned, allocations fail on demand, nothing moves between
host and device or from device to device unasked, and kernels are executed from their source with arguments checked.
A program that gives the same bits for many seeds misses no synchronisation that these schedules can show.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from . import arrays, cuda, errors, kernels
from .machine import Machine, activate, deactivate

__all__ = ["Machine", "installed", "modules", "names"]

VERSION = "14.2.0"

ATTRIBUTES = ("cupy.cuda.driver", "cupy.cuda.nvrtc")
"""Modules that ``import`` does not find under these names, in CuPy either."""

UFUNCS = (
    *("absolute", "add", "divide", "equal", "greater", "greater_equal", "isfinite", "isnan", "less", "less_equal"),
    *("logical_and", "logical_not", "logical_or", "maximum", "minimum", "multiply", "not_equal", "sqrt", "subtract"),
)
TYPES = ("bool_", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
FUNCTIONS = (
    *("asarray", "ascontiguousarray", "asnumpy", "empty", "empty_like", "full", "full_like", "ones", "ones_like"),
    *("reshape", "sum", "where", "zeros", "zeros_like"),
)


def names() -> dict[str, dict[str, Any]]:
    """What the modules hold, by module."""
    runtime = {
        "CUDARuntimeError": errors.CUDARuntimeError,
        "deviceSynchronize": cuda.device_synchronize,
        "driverGetVersion": cuda.driver_version,
        "getDevice": cuda.get_device,
        "getDeviceCount": cuda.device_count,
        "getDeviceProperties": cuda.device_properties,
        "runtimeGetVersion": cuda.runtime_version,
        "setDevice": cuda.set_device,
    }
    streams = {name: getattr(cuda, name) for name in ("Event", "Stream", "get_current_stream", "get_elapsed_time")}
    pools = {name: getattr(cuda, name) for name in ("MemoryPool", "PinnedMemory", "PinnedMemoryPool")}
    pointers = {"PinnedMemoryPointer": cuda.pinned_memory_pointer}
    defaults = ("get_default_memory_pool", "get_default_pinned_memory_pool", "memoize")
    return {
        "cupy": {
            "__version__": VERSION,
            "ndarray": arrays.Array,
            "nan": np.nan,
            "inf": np.inf,
            "newaxis": None,
            "any": arrays.any_,
            "RawModule": kernels.RawModule,
            **{name: getattr(cuda, name) for name in defaults},
            **{name: getattr(arrays, name) for name in FUNCTIONS},
            **{name: functools.partial(arrays.elementwise, getattr(np, name)) for name in UFUNCS},
            **{name: getattr(np, name) for name in TYPES},
        },
        "cupy.cuda": {"Device": cuda.Device, "is_available": cuda.is_available, **streams, **pools, **pointers},
        "cupy.cuda.compiler": {"CompileException": errors.CompileException},
        "cupy.cuda.device": {"Device": cuda.Device},
        "cupy.cuda.driver": {"CUDADriverError": errors.CUDADriverError},
        "cupy.cuda.memory": {"OutOfMemoryError": errors.OutOfMemoryError, "MemoryPool": cuda.MemoryPool},
        "cupy.cuda.nvrtc": {"getVersion": cuda.nvrtc_version},
        "cupy.cuda.runtime": runtime,
        "cupy.cuda.stream": streams,
        "cupyx": {"empty_pinned": cuda.empty_pinned, "zeros_pinned": cuda.zeros_pinned},
    }


def modules() -> dict[str, ModuleType]:
    """The modules that can be imported, and in them those that are attributes only."""
    made = {}
    for name, held in names().items():
        made[name] = ModuleType(name)
        made[name].__spec__ = ModuleSpec(name, None)  # without one, find_spec raises
        made[name].__dict__.update(held)
        parent, _, child = name.rpartition(".")
        if parent:
            made[parent].__path__ = []
            setattr(made[parent], child, made[name])
    return {name: module for name, module in made.items() if name not in ATTRIBUTES}


def _forget(fresh: Sequence[str]) -> dict[str, ModuleType]:
    """Take CuPy and the modules to be imported afresh out of ``sys.modules``."""
    taken = {}
    for name in list(sys.modules):
        if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends") or name in fresh:
            taken[name] = sys.modules.pop(name)
    for name in fresh:
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            sys.modules[parent].__dict__.pop(child, None)
    return taken


@contextmanager
def installed(
    seed: int = 0,
    devices: int = 1,
    memory: int = 2**31,
    *,
    capability: str = "75",
    name: str = "Stand-in T4",
    status: int = 100,
    nvrtc: bool = True,
    fresh: Sequence[str] = ("gpucal.backends.cupy_",),
) -> Iterator[Machine]:
    """Put the stand-in where ``import cupy`` finds it; real CuPy comes back at the end.

    Parameters
    ----------
    seed : int
        Of the schedule. 0 runs nothing that nobody waits for, and the rest in the order of the calls.
    devices : int
        How many; with 0 what needs a device raises CUDARuntimeError(``status``).
    memory : int
        Bytes of each.
    capability, name : str
        What the devices say they are.
    status : int
        35 for no driver, 100 for no device.
    nvrtc : bool
        Whether the run-time compiler can be found.
    fresh : sequence of str
        Modules that are to see this CuPy only, imported afresh within and again afterwards.

    Yields
    ------
    Machine
        Counts, memory, and failures on demand.
    """
    controller = Machine(seed, devices, memory, capability, name, status, nvrtc)
    activate(controller)
    before = _forget(fresh)
    sys.modules.update(modules())
    try:
        yield controller
        if devices:
            controller.drain()
    finally:
        _forget(fresh)
        sys.modules.update({kept: module for kept, module in before.items() if kept not in fresh})
        deactivate()
