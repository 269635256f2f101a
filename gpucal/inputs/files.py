"""Open and read input files safely: none can block the program, and none can fill the memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import MappingProxyType

from gpucal.errors import InputError, InputUnavailable

__all__ = [
    "AGAIN",
    "is_file",
    "leads_nowhere",
    "may_be_folder",
    "may_be_there",
    "mend_of",
    "missing",
    "open_regular",
    "packed_beside",
    "read_whole",
    "shortened",
]

AGAIN = "copy it again from the competition data"
"""The mend for a damaged file."""

_PACKED: Mapping[str, str] = MappingProxyType(
    {
        ".zip": "unzip it",
        ".gz": "gunzip it",
        ".bz2": "bunzip2 it",
        ".xz": "unxz it",
        ".zst": "unzstd it",
        ".part": "finish its download",
        ".crdownload": "finish its download",
    }
)
"""Endings that downloads add to a file's name, and the mend for each."""


def packed_beside(path: Path) -> tuple[Path, str] | None:
    """Find the download, such as ``NAME.parquet.zip`` or ``NAME.zip``, that may hold a missing file, and its mend."""
    names = [path.name, *([path.stem] if path.suffix in (".parquet", ".csv") else [])]
    found = ((path.with_name(name + ending), mend) for name in names for ending, mend in _PACKED.items())
    return next(((packed, mend) for packed, mend in found if packed.is_file()), None)


def is_file(path: Path) -> bool:
    """Tell whether a file is there; False too where that cannot be told, as in a folder that may not be read."""
    try:
        return path.is_file()
    except OSError:
        return False


def may_be_folder(entry: Path | os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder; True too for a link into one that may not be read: listing it will say why."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def may_be_there(path: Path) -> bool:
    """Tell whether something is there; True too where that cannot be told: reading it will say why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def leads_nowhere(path: Path) -> str:
    """Return what is wrong with a link whose target does not exist; empty for anything else."""
    return f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() and not path.exists() else ""


def missing(path: Path, name: str) -> InputUnavailable:
    """Return an error that says that a file is missing, and names what stands in its place: a link, or an archive."""
    for place in (path, path.parent):
        if link := leads_nowhere(place):
            which = "" if place == path else f": {place.name}"
            return InputUnavailable(f"{name} is missing{which} {link}" if which else link, "mend the link", path)
        if found := packed_beside(place):
            packed, mend = found
            return InputUnavailable(f"{name} is missing, but {packed.name} is there", mend, path)
        if place.parent.is_dir():
            break
    return InputUnavailable(f"{name} is missing", AGAIN, path)


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading, unbuffered; one read may return fewer bytes than asked for.

    Anything else raises `OSError`: opening a FIFO waits for a writer, perhaps for ever, and opening a device may change
    it.
    """
    _require_regular(path.stat())
    # The file may have been replaced since: open without blocking, and check again.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor))
        return FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def mend_of(error: Exception) -> str:
    """Return what to do about a file that cannot be read; a copy of one that may not be is no better."""
    if isinstance(error, MemoryError):
        return "lower --workers or --memory, or end what else needs some"
    return "make it and its folders readable" if isinstance(error, PermissionError) else AGAIN


def read_whole(path: Path, most: int, name: str) -> bytes:
    """Read a small file, of at most ``most`` bytes; ``name`` is its kind, for messages."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise InputError(f"has {size:,} bytes, more than the {most:,} of any {name}", AGAIN, path)
            content = b""
            while part := file.read(size + 1 - len(content)):
                content += part
    except FileNotFoundError as error:
        raise missing(path, name) from error
    except OSError as error:
        raise InputUnavailable(f"{name} cannot be read ({error.strerror or error})", mend_of(error), path) from error
    if len(content) != size:
        raise InputError("changed while it was being read", "run again when nothing writes to it", path)
    return content


def shortened(what: object) -> str:
    """Return one printable line of at most 200 characters, for a message that quotes a file.

    A file may name a column with a million bytes, line ends or escape sequences.
    """
    line = str(what).partition("\n")[0] or type(what).__name__
    line = line if len(line) <= 200 else line[:197] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in line)
