"""Memory: how much of it items on their way through may take, and one thread that decodes them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from io import BytesIO
from pathlib import Path
from threading import Condition

from gpucal.errors import ConfigError, InputError

__all__ = ["BLOCK", "DEFAULT_MEMORY", "PROCESS", "Budget", "decode_bytes"]

DEFAULT_MEMORY = 900_000_000
"""Peak resident memory to stay below by default, bytes; a single larger item is still worked on, alone."""

# What the process holds beside items and what it decodes, bytes: interpreter, libraries, freed memory kept by
# allocators (340 MB measured with Polars and Numba after ten observations).
PROCESS = 360_000_000

# Bytes of raw counts in a pixel block: enough that a call's overhead vanishes, little beside the result.
BLOCK = 6 * 2**20

# The most bytes of counts decoded in one call (more is little faster: benchmarks/readers.py), and bytes that parsing
# the footer takes in each call of Polars (33 MB measured with AIRS-CH0, 11392 columns).
_UNIT, _FOOTER = 64 * 2**20, 33_000_000


def decode_bytes(unit: int) -> int:
    """Bound what one thread holds while it decodes: footer, table, a block of it, its pages.

    Parameters
    ----------
    unit : int
        Bytes of counts that it decodes in one call.

    Returns
    -------
    int
        Bytes.
    """
    return _FOOTER + unit + unit // 2 + 2 * BLOCK


class Budget:
    """Bytes of files and outputs that may be in memory at once, and how much a thread may decode in one call.

    Parameters
    ----------
    memory : int, optional
        Peak resident memory of the process to stay below; by default `DEFAULT_MEMORY`, not enforced on a single item.
    threads : int
        Threads that decode.

    Raises
    ------
    ConfigError
        If the memory is too little for any item.
    """

    def __init__(self, memory: int | None, threads: int) -> None:
        self.strict = memory is not None
        total = DEFAULT_MEMORY if memory is None else memory
        least = PROCESS + threads * decode_bytes(BLOCK)
        if self.strict and total < least:
            given = f"{total // 10**6}MB" if total >= 10**6 else f"{total} bytes"
            raise ConfigError(
                f"memory = {given}: the least is {-(-least // 10**6)}MB, as {threads} threads need {least:,} bytes "
                "beside the data; raise it, or lower workers"
            )
        share = (total - PROCESS) // (2 * threads)  # half of the rest may be decoded counts
        self.unit = max(BLOCK, min(_UNIT, (share - decode_bytes(0)) * 2 // 3))
        self.other = PROCESS + threads * decode_bytes(self.unit)
        self.total = total - self.other
        self._threads = threads
        self._used, self._closed = 0, False
        self._spare: list[BytesIO] = []
        self._changed = Condition()

    def acquire(self, wanted: int, path: Path, check_alive: Callable[[], None]) -> BytesIO | None:
        """Wait until so many bytes are free, or nothing is in use.

        Parameters
        ----------
        wanted : int
            Bytes.
        path : Path
            The file they are for.
        check_alive : callable
            Called while waiting; may raise to end that.

        Returns
        -------
        BytesIO or None
            A buffer to use again, if there is one.

        Raises
        ------
        InputError
            If there will never be so many.
        CancelledError
            If nobody is to wait any longer.
        """
        if self.strict and wanted > self.total:
            # The other half is as much as this one, within what decoding can use.
            least, most = (self._threads * decode_bytes(unit) for unit in (BLOCK, _UNIT))
            raise InputError(
                f"needs {PROCESS + wanted + min(max(wanted, least), most):,} bytes of memory, "
                f"more than the {self.total + self.other:,} allowed",
                "raise --memory or lower --workers",
                path,
            )
        with self._changed:
            while not (self._closed or not self._used or self._used + wanted <= self.total):
                check_alive()
                self._changed.wait(timeout=0.5)
            if self._closed:
                raise CancelledError
            self._used += wanted
            spare = self._spare.pop() if self._spare else None
            while self._spare and self._used + sum(buffer.getbuffer().nbytes for buffer in self._spare) > self.total:
                self._spare.pop()
            return spare

    def release(self, returned: int, spare: BytesIO | None = None) -> None:
        """Give bytes back.

        Parameters
        ----------
        returned : int
            How many.
        spare : BytesIO, optional
            A buffer to use again that was among them.
        """
        with self._changed:
            self._used -= returned
            if spare is not None:
                self._spare.append(spare)
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
