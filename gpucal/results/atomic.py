"""Files that appear whole or not at all: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import OutputError, OutputLost
from gpucal.hints import blocking_file

__all__ = ["TEMPORARY", "npy_writer", "place", "placing", "sync", "temporary_name", "unwritable"]

TEMPORARY = ".tmp"
"""What temporary files' names end in; they begin with a dot."""

# Nothing else can be written either: no space, no quota, and what the kernel does to a file system with errors.
_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def temporary_name(target: Path) -> Path:
    """Return a name beside a file to write it under until it is complete.

    Parameters
    ----------
    target : Path
        The file.

    Returns
    -------
    Path
        A new name at every call.
    """
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")


def place(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file and rename it into place.

    Parameters
    ----------
    target : Path
        The file; its folder is made where it is missing.
    write : callable
        Writes the file that it is given the name of.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is there still.
    """
    temporary = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            sync(temporary)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(target, error) from error


@contextmanager
def npy_writer(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Write a NumPy file piece by piece, and flush it to the disk.

    Not by `numpy.save`, which says of a full disk how many items it has written, and not that it is full.

    Parameters
    ----------
    path : Path
        The file.
    shape : tuple of int
        Of all pieces together.
    kind : dtype
        Of the file; pieces are converted.

    Yields
    ------
    callable
        Appends an array in C order.
    """
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda array: file.write(np.ascontiguousarray(array, kind).data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def placing(into: Path) -> Iterator[Callable[[Path], Path]]:
    """Write several files or folders that appear when all of them are complete.

    Parameters
    ----------
    into : Path
        Where they belong, for the message.

    Yields
    ------
    callable
        From a target to the temporary name to write it under. In the end all are renamed, or none is left.

    Raises
    ------
    OutputError
        If something cannot be written.
    """
    staged: dict[Path, Path] = {}

    def stage(target: Path) -> Path:
        staged[target] = temporary_name(target)
        return staged[target]

    try:
        yield stage
        for temporary in staged.values():
            sync(temporary)
        for target, temporary in staged.items():
            temporary.replace(target)
    except OutputError:  # an OSError as well, of what was read
        raise
    except OSError as error:
        raise unwritable(into, error) from error
    finally:
        for temporary in staged.values():
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                with suppress(OSError):  # the first error is the one to tell; the next start clears it
                    temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or all files in a folder, to the disk.

    Parameters
    ----------
    path : Path
        The file or folder.
    """
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def unwritable(path: Path, error: OSError) -> OutputError:
    """Say that something cannot be written.

    Parameters
    ----------
    path : Path
        What.
    error : OSError
        Why.

    Returns
    -------
    OutputError
        To be raised; `OutputLost` if nothing else can be written either.
    """
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and (found := blocking_file(path)):
        return OutputError(f"{found}: cannot be written, as it is a file; OUT must be a folder")
    kind = OutputLost if error.errno in _LOST else OutputError
    return kind(f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder")
