"""``cupy.RawModule`` over `emulator.cpp`: the source that would run on the device, its arguments checked."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emulator import cpp

from .arrays import Array
from .cuda import require_nvrtc
from .errors import CompileException, CUDADriverError
from .machine import machine


@functools.cache
def _folder() -> Path:
    """Where libraries are built, until the interpreter ends."""
    folder = Path(tempfile.mkdtemp(prefix="standin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _built(source: str, name: str) -> cpp.Kernel:
    return cpp.Kernel(source, name, Path(tempfile.mkdtemp(dir=_folder())))


class RawModule:
    def __init__(self, code: str | None = None, *, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        if not isinstance(code, str):
            raise TypeError(f"code must be str, got {type(code).__name__}")
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.options, self.backend = code, options, backend

    def get_function(self, name: str) -> Function:
        """Compile; with g++, from which only definitions among the options can be hidden: others are ignored."""
        with machine().lock:
            machine().touch()
            require_nvrtc()
            pairs = [option[2:].partition("=") for option in self.options if option.startswith("-D")]
            defined = "".join(f"#define {macro} {value or 1}\n" for macro, _, value in pairs)
            try:
                return Function(_built(defined + self.code, name))
            except cpp.KernelError as error:
                raise CompileException(str(error), self.code, name, self.options, self.backend) from None


class Function:
    """A kernel of a module."""

    def __init__(self, kernel: cpp.Kernel) -> None:
        self._kernel, self.name = kernel, kernel.name

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], *, shared_mem: int = 0
    ) -> None:
        """Check what the device would not, and queue the launch.

        Raises
        ------
        TypeError
            If number or types of the arguments are not the kernel's; numbers of Python have no C type and never fit.
        ValueError
            If an array is on another device than the current one.
        CUDADriverError
            If the grid or the block is none.
        """
        if shared_mem:
            raise NotImplementedError("the emulator has no dynamic shared memory")
        try:
            cpp.checked_shape(grid, block)
        except ValueError as error:
            raise CUDADriverError(1) from error
        values = [self._on_device(position, value) for position, value in enumerate(args)]
        cpp.check_arguments(self.name, self._kernel.signature, values)
        kernel, here = self._kernel, machine()
        here.launches += 1

        def launch() -> None:
            kernel(grid, block, *values)
            if kernel.name in here.spoiled:
                kinds = [kind.endswith("*") and not kind.startswith("const ") for kind in kernel.signature]
                values[kinds.index(True)].flat[-1] += 1

        here.enqueue(here.queue, launch)

    def _on_device(self, position: int, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            raise TypeError(f"argument {position} of {self.name} is in host memory, which a kernel cannot read")
        return value.on_current_device() if isinstance(value, Array) else value
