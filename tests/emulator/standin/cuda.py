"""``cupy.cuda`` and what belongs to it: devices, streams, events, pools, versions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .errors import CUDARuntimeError, DynamicLibNotFoundError
from .machine import Operation, Queue, machine

VERSION = 12090


class Device:
    """A device; as a context manager it is current for this thread."""

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = machine().device if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        outer = machine().device
        self.use()
        _stack("devices").append(outer)
        return self

    def __exit__(self, *error: object) -> None:
        machine().device = _stack("devices").pop()

    def use(self) -> None:
        machine().device = self.id

    def synchronize(self) -> None:
        machine().synchronize_device(self.id)

    @property
    def compute_capability(self) -> str:
        machine().touch()
        return machine().capability

    @property
    def mem_info(self) -> tuple[int, int]:
        with self:
            memory = machine().counted()
        return memory.limit - memory.held, memory.limit


class Event:
    """A mark in a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        machine().touch()
        self.operation: Operation | None = None

    @property
    def done(self) -> bool:
        return self.operation is None or machine().done([self.operation])

    def record(self, stream: Stream | None = None) -> None:
        self.operation = machine().enqueue((stream or get_current_stream()).queue)

    def synchronize(self) -> None:
        if self.operation:
            machine().wait([self.operation])


class Stream:
    """A stream of the device that is current where it is made; as a context manager it is current for this thread."""

    null: ClassVar[Stream]

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        if ptds:
            raise NotImplementedError("the stand-in has no per-thread default stream")
        self._queue = None if null else Queue(machine().device, blocking=not non_blocking)

    @property
    def queue(self) -> Queue:
        """The null stream is one of each device: that of the current one."""
        return self._queue or machine().nulls[machine().device]

    @property
    def ptr(self) -> int:
        return id(self._queue) if self._queue else 0

    @property
    def device_id(self) -> int:
        return self._queue.device if self._queue else -1

    @property
    def done(self) -> bool:
        return machine().done(machine().of(self.queue))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self._queue is other._queue

    def __hash__(self) -> int:
        return hash(self._queue)

    def __enter__(self) -> Stream:
        device, outer = machine().device, machine().streams.get(machine().device)
        self.use()
        _stack("streams").append((device, outer))
        return self

    def __exit__(self, *error: object) -> None:
        device, outer = _stack("streams").pop()
        machine().streams[device] = outer

    def use(self) -> Stream:
        if self.queue.device != machine().device:
            raise RuntimeError(f"stream of device {self.queue.device} used while device {machine().device} is current")
        machine().streams[machine().device] = self
        return self

    def synchronize(self) -> None:
        machine().synchronize(self.queue)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event.operation:
            machine().enqueue(self.queue, lambda: None, event.operation)


Stream.null = Stream(null=True)


def _stack(name: str) -> list[Any]:
    """What the open ``with`` blocks of this thread will go back to."""
    return machine().local.__dict__.setdefault(f"stack of {name}", [])


def get_current_stream(device_id: int = -1) -> Stream:
    device = machine().device if device_id < 0 else device_id
    return machine().streams.get(device) or Stream.null


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    times = [event.operation and event.operation.finished_s for event in (start_event, end_event)]
    if None in times:
        raise CUDARuntimeError(600)
    return 1e3 * (times[1] - times[0])


def is_available() -> bool:
    return bool(machine().memory)


def device_count() -> int:
    machine().touch()
    return len(machine().memory)


def device_properties(device: int) -> dict[str, Any]:
    machine().touch()
    if not 0 <= device < len(machine().memory):
        raise CUDARuntimeError(101)
    major, minor = int(machine().capability[:-1]), int(machine().capability[-1])
    memory, name = machine().memory[device].limit, machine().name.encode()
    return {"name": name, "major": major, "minor": minor, "totalGlobalMem": memory, "multiProcessorCount": 40}


def get_device() -> int:
    return machine().device


def set_device(device: int) -> None:
    machine().device = device


def device_synchronize() -> None:
    machine().synchronize_device(machine().device)


def driver_version() -> int:
    return VERSION if machine().memory else 0


def runtime_version() -> int:
    return VERSION


def nvrtc_version() -> tuple[int, int]:
    require_nvrtc()
    return VERSION // 1000, VERSION % 1000 // 10


def require_nvrtc() -> None:
    if not machine().nvrtc:
        raise DynamicLibNotFoundError('Failure finding "libnvrtc.so": No such file: libnvrtc.so*')


class MemoryPool:
    """Of the current device."""

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        machine().free_all_blocks()

    def used_bytes(self) -> int:
        return machine().counted().used

    def total_bytes(self) -> int:
        return machine().counted().held

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()


class PinnedMemoryPool:
    def free_all_blocks(self) -> None:
        machine().touch()

    def n_free_blocks(self) -> int:
        return 0


def get_default_memory_pool() -> MemoryPool:
    return MemoryPool()


def get_default_pinned_memory_pool() -> PinnedMemoryPool:
    return PinnedMemoryPool()


def memoize(for_each_device: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        results: dict[Any, Any] = {}

        @functools.wraps(function)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            key = machine().device if for_each_device else -1, args, frozenset(kwargs.items())
            if key not in results:
                results[key] = function(*args, **kwargs)
            return results[key]

        return remembered

    return decorate


class PinnedMemory:
    """So many bytes, not of the pool."""

    def __init__(self, size: int, flags: int = 0) -> None:
        self.size = size
        self.room = machine().allocate_pinned(size)


def pinned_memory_pointer(mem: PinnedMemory, offset: int) -> memoryview:
    """What can be looked into, as the real pointer can."""
    return np.asarray(mem.room)[offset : mem.size].data


def empty_pinned(shape: int | tuple[int, ...], dtype: Any = float, order: str = "C") -> np.ndarray:
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return np.asarray(machine().allocate_pinned(nbytes))[:nbytes].view(dtype).reshape(shape, order=order)


def zeros_pinned(shape: int | tuple[int, ...], dtype: Any = float, order: str = "C") -> np.ndarray:
    made = empty_pinned(shape, dtype, order)
    made.fill(0)
    return made
