"""A CUDA source built by g++ over the shim, and launched on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent

# Contraction off: what is not written as a fused multiply-add is none, as with the explicit intrinsics on the device.
FLAGS = (
    *("-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-pthread"),
    *("-Wall", "-Werror", "-Wno-unknown-pragmas"),  # pragmas are for the device's compiler
    "-U_FORTIFY_SOURCE",  # it takes a longjmp between fibers for an error
    "-fno-gnu-unique",  # each library keeps its own counts and failures
)

SANITIZERS = {
    "address": ("-fsanitize=address", "-fno-omit-frame-pointer"),
    "undefined": ("-fsanitize=undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-fsanitize=thread",),
}

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
MOST = {
    **{"grid.x": 2**31 - 1, "grid.y": 65_535, "grid.z": 65_535},
    **{"block.x": 1024, "block.y": 1024, "block.z": 64},
}

Shape = Sequence[int]

KEPT = "GPUCAL_TEST_BUILDS"
"""The environment variable that names a folder for what several processes would build alike."""


def on_device(values: np.ndarray) -> np.ndarray:
    """Copy an array to where the device's allocator would have put it: on a boundary of 256 bytes."""
    room = np.empty(values.nbytes + 256, np.uint8)
    first = -room.ctypes.data % 256
    placed = room[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    placed[...] = values
    return placed


class KernelError(Exception):
    """A launch failed: a deadlock, lanes that meet at different barriers, or what a sanitizer found."""


@dataclass(frozen=True)
class Traffic:
    """What the loads (or stores) of a launch touched, in bytes; see machine.h."""

    instructions: int
    used_by_load: int
    fetched_by_load: int
    used_by_block: int
    fetched_by_block: int

    @property
    def efficiency(self) -> tuple[float, float]:
        """Bytes used over bytes fetched, by warp instruction and by thread block."""
        return self.used_by_load / self.fetched_by_load, self.used_by_block / self.fetched_by_block


def compiler() -> str | None:
    """The C++ compiler: the environment variable CXX, or g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _build(source: str, kernel: str, folder: Path, flags: Sequence[str]) -> Path:
    """Compile ``source``, CUDA or translated PTX, or copy what a process of this session has made of it already."""
    # A name of its own: a library of a path that is loaded already would not be loaded again.
    digest = hashlib.sha256(repr((source, kernel, flags)).encode()).hexdigest()[:12]
    built = folder / f"{kernel}-{digest}.so"
    kept = _kept(built.name)
    if kept and kept.exists():
        _copy(kept, built)
        return built
    unit = built.with_suffix(".cpp")
    unit.write_text(f'#include "launch.h"\n{source}\nEMULATE({kernel})\n')
    done = _compile(*_precompiled(flags), "-I", str(HERE), *flags, "-x", "c++", str(unit), "-o", str(built))
    if done.returncode:
        raise KernelError(f"g++: {done.stderr}")
    if kept:
        _copy(built, kept)
    return built


def _compile(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(compiler()), *FLAGS, *arguments], capture_output=True, text=True, check=False)


def _kept(name: str) -> Path | None:
    """Where the processes of a test session keep what they build for each other, if it has such a folder."""
    folder = os.environ.get(KEPT)
    return Path(folder, name) if folder else None


def _copy(there: Path, to: Path) -> None:
    """Copy a file so that others see it whole or not at all, and a library that is loaded from there stays as it is."""
    half = to.with_name(f"{to.name}.{os.getpid()}")
    shutil.copy(there, half)
    half.replace(to)


def _precompiled(flags: Sequence[str]) -> list[str]:
    """Have launch.h compiled beforehand, once a session: it is half of what a small kernel takes."""
    kept = _kept(hashlib.sha256(repr(flags).encode()).hexdigest()[:12])
    if kept is None:
        return []
    header = kept / "launch.h.gch"
    if not header.exists():
        kept.mkdir(exist_ok=True)
        half = header.with_name(f"{header.name}.{os.getpid()}")
        # -w: "#pragma once" in what is compiled by itself is a warning, and warnings are errors here
        done = _compile(*flags, "-w", "-x", "c++-header", str(HERE / "launch.h"), "-o", str(half))
        if done.returncode:
            raise KernelError(f"g++: {done.stderr}")
        half.replace(header)
    return ["-I", str(kept)]


def check_arguments(kernel: str, signature: Sequence[str], arguments: Sequence[Any]) -> None:
    """Compare arguments with the kernel's signature: a launch on the device checks neither number nor type."""
    if len(arguments) != len(signature):
        raise TypeError(f"{kernel} takes {len(signature)} arguments, got {len(arguments)}")
    for position, (expected, value) in enumerate(zip(signature, arguments, strict=True)):
        if not isinstance(value, np.ndarray | np.generic):
            raise TypeError(f"argument {position} of {kernel} must be {expected}, got {type(value).__name__}")
        given = f"{value.dtype}*" if isinstance(value, np.ndarray) else str(value.dtype)
        if given != expected.removeprefix("const "):
            raise TypeError(f"argument {position} of {kernel} must be {expected}, got {given}")
        if isinstance(value, np.ndarray):
            if not value.flags.c_contiguous:
                raise TypeError(f"argument {position} of {kernel} is not contiguous")
            if not expected.startswith("const ") and not value.flags.writeable:
                raise TypeError(f"argument {position} of {kernel} is written to, and read-only")


class Kernel:
    """A kernel in a shared library, its threads taking turns.

    Parameters
    ----------
    source : str
        CUDA source, or C++ made of PTX.
    name : str
        The kernel.
    folder : Path
        Where to build.
    signature : sequence of str, optional
        Types of its arguments as in ``("const uint16*", "int64")``, where the source does not tell them (PTX).
    count : bool
        Count the memory sectors that loads and stores touch. Far slower.
    """

    def __init__(
        self, source: str, name: str, folder: Path, signature: Sequence[str] = (), *, count: bool = False
    ) -> None:
        flags = ["-shared", "-fPIC", *(["-DEMULATOR_COUNT"] if count else [])]
        self._library = ctypes.CDLL(str(_build(source, name, folder, flags)))
        self._launch = self._library[f"{name}_launch"]
        self._launch.restype = ctypes.c_char_p
        described = self._library[f"{name}_signature"]
        described.restype = ctypes.c_char_p
        self.signature = tuple(signature) or tuple(described().decode().split(","))
        self.name = name

    def __call__(self, grid: Shape, block: Shape, *arguments: Any) -> None:
        """Launch on NumPy arrays, which it reads and writes in place, and NumPy scalars.

        Raises
        ------
        TypeError
            If number or types of the arguments are not the kernel's.
        ValueError
            If no device would take such a grid or block.
        KernelError
            If the launch fails.
        """
        shape = checked_shape(grid, block)
        check_arguments(self.name, self.signature, arguments)
        boxes = [
            ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else value.reshape(1)
            for value in arguments
        ]
        pointers = (ctypes.c_void_p * len(boxes))(
            *(box.ctypes.data if isinstance(box, np.ndarray) else ctypes.addressof(box) for box in boxes)
        )
        error = self._launch((ctypes.c_uint * 6)(*shape), pointers)
        if error:
            raise KernelError(f"{self.name}: {error.decode()}")

    def traffic(self) -> tuple[Traffic, Traffic]:
        """Loads and stores of the last launch; zeros without ``count``."""
        fields = ctypes.c_ulonglong * 10
        self._library.emulator_traffic.restype = ctypes.POINTER(fields)
        values = list(self._library.emulator_traffic().contents)
        return Traffic(*values[:5]), Traffic(*values[5:])


class Sanitized:
    """A kernel as a program under sanitizers, every CUDA thread a thread of the system.

    Parameters
    ----------
    source, name, folder
        As for `Kernel`.
    sanitizers : str
        Keys of `SANITIZERS`.
    """

    def __init__(self, source: str, name: str, folder: Path, *sanitizers: str) -> None:
        flags = ["-DEMULATOR_THREADS", "-DEMULATOR_MAIN", "-g", "-O1"]
        flags += [flag for sanitizer in sanitizers for flag in SANITIZERS[sanitizer]]
        self._program = _build(source, name, folder, flags)
        self._folder = folder
        described = subprocess.run([self._program], capture_output=True, text=True, timeout=60, check=False)
        self.signature = tuple(described.stdout.split(","))
        self.name = name

    def __call__(self, grid: Shape, block: Shape, *arguments: Any) -> None:
        """Launch; arrays are copied to files of exactly their size, and back.

        Raises
        ------
        TypeError, ValueError
            As for `Kernel`.
        KernelError
            With what the sanitizer printed, or if it does not end.
        """
        shape = map(str, checked_shape(grid, block))
        check_arguments(self.name, self.signature, arguments)
        words = []
        for position, value in enumerate(arguments):
            if isinstance(value, np.ndarray):
                path = self._folder / f"argument{position}"
                value.tofile(path)
                words.append(str(path))
            else:
                words.append(repr(value.item()))
        command = [self._program, *shape, *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"{self.name} does not end: a deadlock?") from error
        if done.returncode:
            raise KernelError(f"exit {done.returncode}: {done.stderr[:4000]}")
        for word, value in zip(words, arguments, strict=True):
            if isinstance(value, np.ndarray) and value.flags.writeable:
                value[...] = np.fromfile(word, value.dtype).reshape(value.shape)


def checked_shape(grid: Shape, block: Shape) -> tuple[int, ...]:
    """Check a launch against the limits of every device from sm_30 on, and give it three dimensions."""
    shape = (*grid, 1, 1)[:3] + (*block, 1, 1)[:3]
    for (name, most), size in zip(MOST.items(), shape, strict=True):
        if not 0 < size <= most:
            raise ValueError(f"{name} is {size}, a device takes 1 to {most}")
    if shape[3] * shape[4] * shape[5] > 1024:
        raise ValueError(f"a block of {shape[3] * shape[4] * shape[5]} threads, a device takes 1024")
    return shape
