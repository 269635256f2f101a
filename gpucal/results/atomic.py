"""Writes files that appear whole or not at all: under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import OutputError, OutputLost
from gpucal.hints import blocking_file

__all__ = ["TEMPORARY", "beside", "npy_writer", "placing", "rename", "unwritable", "write_atomically", "writing"]

TEMPORARY = ".tmp"
"""The ending of temporary files' names."""

# Errors after which no other write can succeed: no space, no quota, and a file system that the kernel made read-only.
_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def beside(target: Path) -> Path:
    """Return a new hidden name beside ``target`` to write it under until it is complete."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")


def write_atomically(target: Path, write: Callable[[Path], object], name: Callable[[Path], Path] = beside) -> None:
    """Call ``write`` with a temporary name and rename the file to ``target``, making its folder if needed.

    Raises OutputError if the file cannot be written; an earlier file of that name is then unchanged.
    """
    with placing(target, name) as stage:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(stage(target))


@contextmanager
def npy_writer(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Write a NumPy file piece by piece.

    `numpy.save` is not used, as on a full disk its error gives the number of items written, not the cause.

    Parameters
    ----------
    path : Path
        The file.
    shape : tuple of int
        Shape of all pieces together.
    kind : dtype
        Type of the file; pieces are converted.

    Yields
    ------
    callable
        Appends an array in C order.
    """
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda array: file.write(np.ascontiguousarray(array, kind).data)


def rename(staged: Mapping[Path, Path]) -> None:
    """Rename temporary files to their targets, which are the keys, in this order."""
    for target, temporary in staged.items():
        temporary.replace(target)


@contextmanager
def placing(
    into: Path,
    name: Callable[[Path], Path] = beside,
    place: Callable[[Mapping[Path, Path]], None] = rename,
) -> Iterator[Callable[[Path], Path]]:
    """Write several files or folders that all appear at the end, or none of them.

    Yields a function from a target to the temporary name, made by ``name``, to write it under. In the end all are
    flushed to the disk, and ``place`` renames them. Raises OutputError, naming ``into``, if something cannot be
    written.
    """
    staged: dict[Path, Path] = {}
    made: list[Path] = []

    def stage(target: Path) -> Path:
        staged[target] = name(target)
        if not (folder := staged[target].parent).is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            made.append(folder)
        return staged[target]

    try:
        with writing(into):
            yield stage
            for temporary in staged.values():
                _sync(temporary)
            place(staged)
        staged.clear()
    finally:
        for temporary in staged.values():
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                with suppress(OSError):  # report the first error; the next run removes the file
                    temporary.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # it holds what was written
                folder.rmdir()


def _sync(path: Path) -> None:
    """Flush a file, or all files in a folder, to the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise OutputError, naming ``path``, where the block raises an OSError; one that the block raised stays."""
    try:
        yield
    except OutputError:  # an OSError too
        raise
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error for a path that cannot be written: `OutputLost` if nothing else can be written either."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and (found := blocking_file(path)):
        return OutputError(f"{found}: cannot be written, as it is a file; OUT must be a folder")
    kind = OutputLost if error.errno in _LOST else OutputError
    mend = "free space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM):
        mend = "make it writable, or choose another folder"
    if error.errno == errno.EFBIG:
        mend = "raise the limit of a file's size (`ulimit -f`), or choose another file system: FAT has a limit too"
    return kind(f"{path}: cannot be written ({error.strerror or error}); {mend}")
