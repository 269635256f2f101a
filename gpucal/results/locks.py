"""Claims on items, so that several runs can share one results folder.

A claim is a lock on a file beside the item. The kernel releases it when the process ends, however it ends, so a claim
never outlives its run. Unclaimed temporary files are therefore leftovers of a killed run.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["LOCK", "Claims", "holding", "locks_work"]

LOCK = ".lock"
"""The ending of lock files' names, which begin with a dot."""

# Errors of file systems without locks, such as Lustre mounted without them.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Claims:
    """The claims of one run. A held claim is refused to any other `Claims`, in this process or another."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}

    def take(self, path: Path) -> bool:
        """Take an exclusive lock; returns False if another run holds it.

        The lock file's folder must exist. Where the file system has no locks the answer is always True, see
        `locks_work`.
        """
        if path in self._held:
            return True
        lock = _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is not None:
            self._held[path] = lock
        return lock is not None

    def share(self, path: Path) -> None:
        """Take a shared lock, or make an exclusive one shared. Blocks while another process holds it alone."""
        if (lock := self._held.get(path)) is None:
            lock = _acquire(path, fcntl.LOCK_SH)
            assert lock is not None  # the call blocks until it is free
            self._held[path] = lock
        else:
            _flock(lock, fcntl.LOCK_SH)

    def free(self, path: Path) -> None:
        """Release a lock; does nothing if it is not held."""
        if (lock := self._held.pop(path, None)) is not None:
            _release(path, lock)

    def close(self) -> None:
        """Release every lock."""
        for path in [*self._held]:
            self.free(path)


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Wait for an exclusive lock and hold it inside the block. The lock file's folder must exist."""
    lock = _acquire(path, fcntl.LOCK_EX)
    assert lock is not None  # the call blocks until it is free
    try:
        yield
    finally:
        _release(path, lock)


def locks_work(path: Path) -> bool:
    """Tell whether a file system has locks, with a file that is made for the test and removed."""
    with path.open("wb") as file:
        path.unlink(missing_ok=True)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            return error.errno not in _UNSUPPORTED
    return True


def _acquire(path: Path, how: int) -> int | None:
    """Lock a file, made if it is missing; None if another process holds the lock and ``how`` says not to wait."""
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
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
