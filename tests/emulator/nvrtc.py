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

# What CuPy 14 passes around a RawModule's own options, for a GPU of that architecture; test_nvrtc.py asks CuPy itself.
CUPY_OPTIONS = ("-DCUPY_USE_JITIFY=0", "-ftz=true")


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
    """

    ptx: str
    registers: int
    spills: int
    stack: int
    shared: int


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


def compile(source: str, name: str, architecture: int, options: tuple[str, ...] = CUPY_OPTIONS) -> Compiled:
    """Compile a source that holds one kernel, to PTX and to machine code.

    Parameters
    ----------
    source : str
        CUDA.
    name : str
        The kernel.
    architecture : int
        One of `ARCHITECTURES`.
    options : tuple of str
        More of NVRTC's options; CuPy's by default.

    Raises
    ------
    CompileError
        With NVRTC's log.
    """
    ptx, _ = _compile(source, name, (*options, f"--gpu-architecture=compute_{architecture}"), "PTX")
    # Only a compilation to machine code, for a real architecture, runs ptxas, which allots registers.
    real = (*options, f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v")
    _, log = _compile(source, name, real, "CUBIN")
    used = re.search(r"Used (\d+) registers", log)
    spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not (used and spilled):
        raise CompileError(f"NVRTC's log names neither registers nor spills: {log}")
    shared = re.search(r"(\d+) bytes smem", log)
    stack, stores, loads = map(int, spilled.groups())
    return Compiled(ptx.decode(), int(used[1]), stores + loads, stack, int(shared[1]) if shared else 0)


def _compile(source: str, name: str, options: tuple[str, ...], kind: str) -> tuple[bytes, str]:
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None)
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = _library().nvrtcCompileProgram(program, len(options), words)
        log = _read(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(log)
        return _read(program, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}").rstrip(b"\0"), log
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def _read(program: ctypes.c_void_p, size: str, content: str) -> bytes:
    n = ctypes.c_size_t()
    _call(size, program, ctypes.byref(n))
    buffer = ctypes.create_string_buffer(n.value)
    _call(content, program, buffer)
    return buffer.raw


def _call(function: str, *arguments: object) -> None:
    error = getattr(_library(), function)(*arguments)
    if error:
        raise CompileError(f"{function} gives error {error}")
