"""The corner ``OUT/.gpucal`` of a results folder: lock and temporary files of the runs that are working there.

Several runs may share one folder. Each claims the item that it works on, by a lock. The kernel releases a lock when its
process ends, however it ends. A temporary file is named after the lock that its run holds while it writes the file, as
``17-0-FGS1.FGS1.dq.npy.0123.tmp`` is after ``17-0-FGS1.lock``. A file whose lock is free was left by a killed run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from contextlib import closing, suppress
from pathlib import Path

from gpucal.results.atomic import TEMPORARY, beside
from gpucal.settings.ids import ItemId

__all__ = ["ALL", "LOCK", "SETTINGS", "Claims", "leave", "lock_of", "sweep", "temporary_name"]

LOCK = ".lock"
"""The ending of lock files' names."""

ALL, SETTINGS = "all", "settings"
"""Locks of a folder: on the files about all items, and on the settings, which runs of the same settings share."""

_CORNER = ".gpucal"

# How often another run may remove the corner between the two calls that make it and a file in it.
_PATIENCE = 1000

# Errors of file systems without locks, such as Lustre mounted without them.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Claims:
    """The claims of one run. A held claim is refused to any other `Claims`, in this process or another."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}

    def take(self, path: Path) -> bool:
        """Take an exclusive lock; returns False if another run holds it. Always True on file systems without locks."""
        return path in self._held or self._take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def wait(self, path: Path) -> None:
        """Take an exclusive lock, when no other run holds it any more."""
        self._take(path, fcntl.LOCK_EX)

    def share(self, path: Path) -> None:
        """Take a shared lock, or make an exclusive one shared. Blocks while another process holds it alone."""
        if path in self._held:
            _flock(self._held[path], fcntl.LOCK_SH)
        else:
            self._take(path, fcntl.LOCK_SH)

    def free(self, path: Path) -> None:
        """Release a lock; does nothing if it is not held."""
        if (lock := self._held.pop(path, None)) is not None:
            _release(path, lock)

    def close(self) -> None:
        """Release every lock."""
        for path in [*self._held]:
            self.free(path)

    def _take(self, path: Path, how: int) -> bool:
        if (lock := _acquire(path, how)) is not None:
            self._held[path] = lock
        return lock is not None


def lock_of(out: Path, owner: ItemId | str) -> Path:
    """Return the lock file of an item, or of `ALL` or `SETTINGS`."""
    name = owner.path.replace("/", "-") if isinstance(owner, ItemId) else owner
    return out / _CORNER / f"{name}{LOCK}"


def temporary_name(out: Path, owner: ItemId | str, target: Path) -> Path:
    """Return a new name to write ``target`` under until it is complete, while the lock of ``owner`` is held.

    The folder of the target must exist. If a link leads from there to another disk, the name is beside the target, as
    no file can be renamed from disk to disk.
    """
    if target.parent.stat().st_dev != out.stat().st_dev:
        return beside(target)
    return lock_of(out, owner).with_suffix(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")


def sweep(out: Path) -> None:
    """Remove what killed runs left in the corner; the caller holds the lock of `ALL`."""
    corner = out / _CORNER
    for owner in {file.name.partition(".")[0] for file in corner.iterdir() if file.suffix in (LOCK, TEMPORARY)}:
        with closing(Claims()) as claims:
            if owner == ALL or claims.take(lock_of(out, owner)):
                for file in corner.iterdir():
                    if file.name.startswith(f"{owner}.") and file.suffix == TEMPORARY:
                        file.unlink(missing_ok=True)


def leave(out: Path) -> None:
    """Remove the corner, if no other run is working there."""
    with suppress(OSError):  # it holds files, or is gone
        (out / _CORNER).rmdir()


def _acquire(path: Path, how: int) -> int | None:
    """Lock a file, made if it is missing; None if another process holds the lock and ``how`` says not to wait."""
    while True:
        lock = _opened(path)
        try:
            _flock(lock, how)
            if _is_same(path, lock):
                return lock
        except BlockingIOError:
            _close(lock)
            return None
        except BaseException:
            _close(lock)
            raise
        _close(lock)  # its holder removed it after we opened it: this lock protects nothing


def _opened(path: Path) -> int:
    """Open a lock file, and make it and the corner if they are missing."""
    for _ in range(_PATIENCE):
        with suppress(FileNotFoundError):
            return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # such as a link that leads nowhere


def _flock(lock: int, how: int) -> None:
    try:
        fcntl.flock(lock, how)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _is_same(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _release(path: Path, lock: int) -> None:
    with suppress(OSError):  # a folder may be read-only by now: an empty file stays, which locks nothing
        # Only the last of those that share the lock gets it alone, and removes the file.
        _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    _close(lock)


def _close(lock: int) -> None:
    with suppress(OSError):  # it is closed even so, and no data can be lost
        os.close(lock)
