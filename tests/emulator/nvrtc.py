"""NVIDIA's run-time compiler, called as a library: it needs neither a GPU nor a driver."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = (60, 70, 75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities, times ten: P100, V100, T4, A100, A10, L4, H100, B200, RTX 50."""


class CompileError(Exception):
    """NVRTC did not compile the source; its log."""


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes
    ----------
    ptx : str
        The intermediate code.
    registers, spills, stack, shared : int
        A thread's registers, bytes spilled and bytes of stack; a block's bytes of static shared memory.
    threads : int
        The most a block may have, by its launch bounds.
    """

    ptx: str
    registers: int
    spills: int
    stack: int
    shared: int
    threads: int


@functools.cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0]).glob("lib/libnvrtc.so.*"))
    return ctypes.CDLL(str(found[0])) if found else None


def available() -> bool:
    """Whether the package nvidia-cuda-nvrtc-cu12 is installed."""
    return _library() is not None


def version() -> tuple[int, int]:
    """NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def cupy_options(architecture: int) -> tuple[str, ...]:
    """What CuPy 14 tells NVRTC for a RawModule without options of its own; test_nvrtc.py asks CuPy itself."""
    return ("-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space")


def compile(source: str, name: str, architecture: int, options: tuple[str, ...] = ()) -> Compiled:
    """Compile a source that holds one kernel to PTX, and that to machine code, with CuPy's options.

    Parameters
    ----------
    source : str
        CUDA.
    name : str
        The kernel.
    architecture : int
        One of `ARCHITECTURES`.
    options : tuple of str
        More of NVRTC's options.

    Raises
    ------
    CompileError
        With NVRTC's log.
    """
    words = [*options, *cupy_options(architecture), "--ptxas-options=-v"]
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None)
    try:
        pointers = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
        failed = _library().nvrtcCompileProgram(program, len(words), pointers)
        log = _read(program, "ProgramLog")
        if failed:
            raise CompileError(log)
        ptx = _read(program, "PTX")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))
    used = re.search(r"Used (\d+) registers", log)
    spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not (used and spilled):
        raise CompileError(f"NVRTC's log names neither registers nor spills: {log}")
    shared = re.search(r"(\d+) bytes smem", log)
    stack, stores, loads = map(int, spilled.groups())
    bounds = re.search(r"\.maxntid (\d+), 1, 1", ptx)
    threads = int(bounds[1]) if bounds else 1024
    return Compiled(ptx, int(used[1]), stores + loads, stack, int(shared[1]) if shared else 0, threads)


def _read(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, buffer)
    return buffer.value.decode()


def _call(function: str, *arguments: object) -> None:
    error = getattr(_library(), function)(*arguments)
    if error:
        raise CompileError(f"{function} gives error {error}")
