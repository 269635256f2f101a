"""Several runs on one results folder: who has which item in hand.

A claim is a lock on a file beside the item. The kernel drops it when the process ends, however it ends, so a claim
never outlives its run, and what lies about unclaimed is litter of a run that was killed.
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
"""What lock files' names end in; they begin with a dot."""

# What file systems without locks answer, such as Lustre mounted without them.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Claims:
    """What this run has in hand; a claim is for one thread of one process, whoever asks second does not get it."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}

    def take(self, path: Path) -> bool:
        """Claim what a lock file stands for.

        Parameters
        ----------
        path : Path
            The lock file, in a folder that exists.

        Returns
        -------
        bool
            False if another run has it. Where the file system has no locks everything can be had, see `locks_work`.

        Raises
        ------
        OSError
            If the file cannot be made.
        """
        if path in self._held:
            return True
        lock = _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is not None:
            self._held[path] = lock
        return lock is not None

    def share(self, path: Path) -> None:
        """Claim with others what a lock file stands for, or let others have a claim too; waits for who has it alone.

        Parameters
        ----------
        path : Path
            The lock file, in a folder that exists.

        Raises
        ------
        OSError
            If the file cannot be made.
        """
        if (lock := self._held.get(path)) is None:
            lock = _acquire(path, fcntl.LOCK_SH)
            assert lock is not None  # it was waited for
            self._held[path] = lock
        else:
            _flock(lock, fcntl.LOCK_SH)

    def free(self, path: Path) -> None:
        """Give a claim back; one that is not held is none to give.

        Parameters
        ----------
        path : Path
            The lock file.
        """
        if (lock := self._held.pop(path, None)) is not None:
            _release(path, lock)

    def close(self) -> None:
        """Give every claim back."""
        for path in [*self._held]:
            self.free(path)


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Wait for a claim and hold it for a while.

    Parameters
    ----------
    path : Path
        The lock file, in a folder that exists.

    Yields
    ------
    None
        Once, when it is held.

    Raises
    ------
    OSError
        If the file cannot be made.
    """
    lock = _acquire(path, fcntl.LOCK_EX)
    assert lock is not None  # it was waited for
    try:
        yield
    finally:
        _release(path, lock)


def locks_work(path: Path) -> bool:
    """Tell whether a file system has locks.

    Parameters
    ----------
    path : Path
        A file that is made for it, and removed.

    Returns
    -------
    bool
        False if claims there keep nobody out.

    Raises
    ------
    OSError
        If the file cannot be made.
    """
    with path.open("wb") as file:
        path.unlink(missing_ok=True)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            return error.errno not in _UNSUPPORTED
    return True


def _acquire(path: Path, how: int) -> int | None:
    """Lock a file that is made where it is missing; None if another has it and ``how`` says not to wait."""
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
        _close(lock)  # its holder removed it between our opening and locking it: it protects nothing


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
    with suppress(OSError):  # of a folder that is read-only by now; an empty file is left, which locks nothing
        _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of those that share it the last removes it
        path.unlink(missing_ok=True)
    _close(lock)


def _close(lock: int) -> None:
    with suppress(OSError):  # it is closed all the same, and holds nothing that could be lost
        os.close(lock)
