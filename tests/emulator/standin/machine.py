"""The devices behind the stand-in: queues that run late and in any order allowed, poisoned memory, and its limits.

An operation is not executed where it is called but queued, with the set of those it has to wait for: the earlier ones
of its stream, what the legacy null stream implies, and events. Any order that keeps to this is one the hardware may
take; the seed draws it. Seed 0 runs nothing that nobody waits for; the others may also run ahead.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CUDARuntimeError, OutOfMemoryError

ALIGNMENT = 512
"""Bytes: CuPy's pool hands out multiples of it."""

DEPTH = 256
"""Operations queued before a call has to wait for one of them, as on the hardware when queues are full."""

POISON = 0xFFFDA5A5
"""A quiet NaN as float32, and twice as float64; no byte of it is zero, and it has counts no detector gives."""


def poisoned(nbytes: int) -> np.ndarray:
    """Memory on a boundary of `ALIGNMENT` bytes, and a multiple of it, as uint8."""
    size = -(-nbytes // ALIGNMENT) * ALIGNMENT
    room = np.empty(size + ALIGNMENT, np.uint8)
    room = room[-room.ctypes.data % ALIGNMENT :][:size]
    poison(room)
    return room


def poison(room: np.ndarray) -> None:
    room.view(np.uint32)[...] = POISON


def _nothing() -> None:
    """What an event does."""


@dataclass(frozen=True, eq=False)
class Queue:
    """A stream as the device sees it. The null stream and blocking streams wait for each other."""

    device: int
    null: bool = False
    blocking: bool = False


class Operation:
    """Something a stream is to do, after other things."""

    def __init__(self, queue: Queue, action: Callable[[], object], after: set[Operation]) -> None:
        self.queue, self.action, self.after = queue, action, after
        self.followers: list[Operation] = []
        self.finished_s: float | None = None
        for other in after:
            other.followers.append(self)


class Block:
    """Device memory. Freed with its last array, at once, whatever is still queued: as in CuPy's pool."""

    def __init__(self, machine: Machine, queue: Queue, nbytes: int) -> None:
        self.room = poisoned(nbytes)
        self.device = queue.device
        self._queue, self._freed = queue, machine.freed

    def __del__(self) -> None:
        self._freed.append((self._queue, self.room))  # no more: the collector may call this inside this very module


class Pinned:
    """Page-locked host memory. Freed it may be handed out again at once, and here it is poisoned."""

    def __init__(self, nbytes: int) -> None:
        self.room = poisoned(nbytes)
        self.__array_interface__ = self.room.__array_interface__  # the base of every view of it is this object

    def __del__(self) -> None:
        poison(self.room)


@dataclass
class Memory:
    """Of one device, bytes: ``held`` by the pool, ``used`` of it by arrays, and the most ever used."""

    limit: int
    used: int = 0
    held: int = 0
    peak: int = 0


class Machine:
    """The controller of a stand-in; see `emulator.standin.installed`.

    Attributes
    ----------
    allocations, pinned_allocations, launches : int
        How many there were, failed allocations included.
    memory : list of Memory
        A device's is ``memory[0]``: limit, used, held, peak.
    """

    def __init__(
        self, seed: int, devices: int, memory: int, capability: str, name: str, status: int, nvrtc: bool
    ) -> None:
        self.capability, self.name, self.status, self.nvrtc = capability, name, status, nvrtc
        self.memory = [Memory(memory) for _ in range(devices)]
        self.nulls = [Queue(device, null=True) for device in range(devices)]
        self.allocations = self.pinned_allocations = self.launches = 0
        self.spoiled: set[str] = set()
        self.lock = threading.RLock()
        self.local = threading.local()
        self.freed: deque[tuple[Queue, np.ndarray]] = deque()
        self._pinned: weakref.WeakSet[Pinned] = weakref.WeakSet()
        self._pending: dict[Operation, None] = {}
        self._last: dict[Queue, Operation] = {}
        self._failing = self._failing_pinned = range(0)
        self._process: int | None = None
        self._random = random.Random(seed)
        self._haste = self._random.choice((0.0, 0.3, 0.9)) if seed else 0.0
        self._lazy = not seed

    # What a test asks for.

    def fail_allocation(self, n: int = 1, times: int = 1) -> None:
        """Let the ``n``-th allocation of device memory from now fail, and those after it: ``times`` in all."""
        self._failing = range(self.allocations + n, self.allocations + n + times)

    def fail_pinned(self, n: int = 1, times: int = 1) -> None:
        """The same for pinned memory."""
        self._failing_pinned = range(self.pinned_allocations + n, self.pinned_allocations + n + times)

    def spoil(self, *kernels: str) -> None:
        """Let these kernels, and no others, give a wrong last number in the first array they write."""
        self.spoiled = set(kernels)

    @property
    def pending(self) -> int:
        """Operations not yet run."""
        return len(self._pending)

    @property
    def touched(self) -> bool:
        """Whether CUDA was used at all, so that a fork would break it."""
        return self._process is not None

    # Devices and streams of the calling thread.

    def touch(self) -> None:
        """Begin every call that needs the driver."""
        if not self.memory:
            raise CUDARuntimeError(self.status)
        if self._process is None:
            self._process = os.getpid()
        if self._process != os.getpid():
            raise CUDARuntimeError(3)

    @property
    def device(self) -> int:
        self.touch()
        return getattr(self.local, "device", 0)

    @device.setter
    def device(self, device: int) -> None:
        self.touch()
        if not 0 <= device < len(self.memory):
            raise CUDARuntimeError(101)
        self.local.device = device

    @property
    def streams(self) -> dict[int, Any]:
        """This thread's current stream on each device; without one it is the null stream."""
        return self.local.__dict__.setdefault("streams", {})

    @property
    def queue(self) -> Queue:
        """The current stream of the current device."""
        stream = self.streams.get(self.device)
        return stream.queue if stream else self.nulls[self.device]

    # The order of things.

    def enqueue(self, queue: Queue, action: Callable[[], object] = _nothing, *after: Operation) -> Operation:
        """Have a stream do something, once it has done all before and the others of ``after`` are done.

        ``action`` must hold NumPy views and no arrays of the stand-in: a queue keeps no device memory from being freed.
        """
        with self.lock:
            self.touch()
            self._reclaim()
            operation = Operation(queue, action, self._before(queue) | self._pending.keys() & set(after))
            self._pending[operation] = None
            self._last[queue] = operation
            while self._pending and (len(self._pending) > DEPTH or self._random.random() < self._haste):
                self._run(self._choose(self._pending))
            return operation

    def wait(self, operations: Iterable[Operation]) -> None:
        """Run until these are done; others may be run before, between and after."""
        with self.lock:
            self.touch()
            self._reclaim()
            wanted = self._pending.keys() & set(operations)
            needed = set[Operation]()
            reached = set(wanted)
            while reached:
                needed |= reached
                reached = {before for operation in reached for before in operation.after} - needed
            others = 0.0 if self._lazy else self._random.choice((0.0, 0.5, 1.0))
            while not wanted.isdisjoint(self._pending):
                ahead = [op for op in self._pending if op not in needed and not op.after] if not self._lazy else []
                late = not ahead or self._random.random() >= others
                self._run(self._choose(needed if late else ahead))

    def synchronize(self, queue: Queue) -> None:
        """Wait for one stream."""
        self.wait(op for op in list(self._pending) if op.queue is queue)

    def synchronize_device(self, device: int) -> None:
        """Wait for all streams of one device."""
        self.wait(op for op in list(self._pending) if op.queue.device == device)

    def done(self, operations: Iterable[Operation]) -> bool:
        """Say whether all are done. Asking again and again gets there."""
        with self.lock:
            asked = set(operations)
            if asked & self._pending.keys():
                self._run(self._choose(self._pending))
            return not asked & self._pending.keys()

    def of(self, queue: Queue) -> list[Operation]:
        """What a stream still has to do."""
        with self.lock:
            return [op for op in self._pending if op.queue is queue]

    def drain(self) -> None:
        """Run all there is."""
        self.wait(list(self._pending))

    def _before(self, queue: Queue) -> set[Operation]:
        """What a stream waits for: its last operation and those of others; each of them waits for earlier ones."""

        def implied(other: Queue) -> bool:
            return other.device == queue.device and ((queue.null and other.blocking) or (other.null and queue.blocking))

        return {op for other, op in self._last.items() if op in self._pending and (other is queue or implied(other))}

    def _choose(self, among: Collection[Operation]) -> Operation:
        ready = (op for op in self._pending if op in among and not op.after)  # in the order of calls: a set has none
        return next(ready) if self._lazy else self._random.choice([*ready])

    def _run(self, operation: Operation) -> None:
        try:
            with np.errstate(all="ignore"):  # the device does not warn
                operation.action()
        finally:
            operation.action, operation.finished_s = _nothing, time.perf_counter()
            del self._pending[operation]
            for other in operation.followers:
                other.after.discard(operation)
                if not other.after and other not in self._pending:  # memory to be handed back
                    other.action()
            operation.followers.clear()
            self._reclaim()

    # Memory.

    def allocate(self, nbytes: int, queue: Queue | None = None) -> Block:
        """Allocate on a stream's device; the pool will hand the memory out again on that stream."""
        with self.lock:
            queue = queue or self.queue
            self._reclaim()
            memory = self.memory[queue.device]
            size = -(-nbytes // ALIGNMENT) * ALIGNMENT
            if size:
                self.allocations += 1
                if self.allocations in self._failing or memory.used + size > memory.limit:
                    raise OutOfMemoryError(size, memory.used, memory.limit)
                memory.used += size
                memory.held = max(memory.held, memory.used)
                memory.peak = max(memory.peak, memory.used)
            return Block(self, queue, nbytes)

    def free_all_blocks(self) -> None:
        """Return what the current device's pool holds and no array uses."""
        with self.lock:
            self._reclaim()
            memory = self.memory[self.device]
            memory.held = memory.used

    def counted(self) -> Memory:
        """The current device's memory, all frees counted."""
        with self.lock:
            self._reclaim()
            return self.memory[self.device]

    def allocate_pinned(self, nbytes: int) -> Pinned:
        with self.lock:
            self.touch()
            self.pinned_allocations += 1
            if self.pinned_allocations in self._failing_pinned:
                raise CUDARuntimeError(2)
            pinned = Pinned(nbytes)
            self._pinned.add(pinned)
            return pinned

    def pinned_view(self, array: np.ndarray) -> np.ndarray | None:
        """The same pinned memory under a view that does not keep it from being freed; None for pageable memory."""
        with self.lock:
            for pinned in self._pinned:
                offset = array.ctypes.data - pinned.room.ctypes.data
                if 0 <= offset < pinned.room.nbytes:
                    return np.ndarray(array.shape, array.dtype, pinned.room, offset, array.strides)
        return None

    def _reclaim(self) -> None:
        """Hand freed blocks back, each once its own stream has done what it had to when the block was freed.

        From then on CuPy may give it to another array on that stream, so it is poisoned. Another stream that still
        uses it reads poison, unless an event made the block's own stream wait for that use.
        """
        while self.freed:
            queue, room = self.freed.popleft()
            self.memory[queue.device].used -= room.nbytes
            if before := self._before(queue):
                Operation(queue, lambda room=room: poison(room), before)
            else:
                poison(room)


_active: list[Machine] = []


def machine() -> Machine:
    """The one that is installed."""
    if not _active:
        raise RuntimeError("no stand-in is installed: an array or a stream has outlived its own")
    return _active[-1]


def activate(fresh: Machine) -> None:
    if _active:
        raise RuntimeError("a stand-in is installed already")
    _active.append(fresh)


def deactivate() -> None:
    _active.clear()
