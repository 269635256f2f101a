"""``cupy.ndarray`` and the functions that make and combine arrays: all queued, none leaving the device unasked."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from .cuda import Device, Stream, empty_pinned, get_current_stream
from .machine import Block, Queue, machine

Scalar = bool | int | float | complex | np.generic
Shape = int | Sequence[int]


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """``cupy.ndarray``: a NumPy view of device memory that only queued operations look into."""

    def __init__(self, shape: Shape, dtype: Any = float, order: str = "C") -> None:
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        self._block = machine().allocate(int(np.prod(shape)) * dtype.itemsize)
        self._view = np.ndarray(shape, dtype, self._block.room, order=order)

    @classmethod
    def _over(cls, block: Block, view: np.ndarray) -> Array:
        made = cls.__new__(cls)
        made._block, made._view = block, view
        return made

    def on_current_device(self) -> np.ndarray:
        """The memory, for an operation on the current device.

        Raises
        ------
        ValueError
            If the array is on another one, as in CuPy where the devices have no access to each other.
        """
        here = machine().device
        if self._block.device != here:
            raise ValueError(
                f"The device where the array resides ({self._block.device}) is different from the current device "
                f"({here}). Peer access is unavailable between these devices."
            )
        return self._view

    # What it is.

    shape = property(lambda self: self._view.shape)
    strides = property(lambda self: self._view.strides)
    dtype = property(lambda self: self._view.dtype)
    ndim = property(lambda self: self._view.ndim)
    size = property(lambda self: self._view.size)
    nbytes = property(lambda self: self._view.nbytes)
    itemsize = property(lambda self: self._view.itemsize)
    flags = property(lambda self: self._view.flags)
    device = property(lambda self: Device(self._block.device))
    T = property(lambda self: self.transpose())

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self._view.ctypes.data, device_id=self._block.device, device=self.device)

    def __len__(self) -> int:
        return len(self._view)

    # To the host and from it.

    def set(self, arr: np.ndarray, stream: Stream | None = None) -> None:
        """Copy from the host. Pinned memory is read when the stream gets there, other memory now."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        if not (arr.flags.c_contiguous if self.flags.c_contiguous else arr.flags.f_contiguous):
            arr = arr.copy()  # CuPy makes it contiguous first, in memory that is not pinned
        pinned = machine().pinned_view(arr)
        source, view = arr.copy() if pinned is None else pinned, self._view
        machine().enqueue(self._copies_on(stream), lambda: np.copyto(view, source))

    def get(
        self, stream: Stream | None = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        """Copy to the host; not blocking, it is there when the stream was waited for."""
        queue = self._copies_on(stream)
        order = ("F" if self.flags.fnc else "C") if order == "A" else order
        if out is None:
            out = np.empty(self.shape, self.dtype, order) if blocking else empty_pinned(self.shape, self.dtype, order)
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
        if self.dtype != out.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if self.shape != out.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        if not (out.flags.c_contiguous or out.flags.f_contiguous):
            raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
        layout = "c_contiguous" if out.flags.c_contiguous else "f_contiguous"
        source = self if getattr(self.flags, layout) else _duplicate(self, layout[0].upper(), queue)
        pinned, view = machine().pinned_view(out), source._view
        target = out if pinned is None else pinned
        machine().enqueue(queue, lambda: np.copyto(target, view))
        if blocking:
            machine().synchronize(queue)
        return out

    def _copies_on(self, stream: Stream | None) -> Queue:
        queue = (stream or get_current_stream()).queue
        if queue.device != self._block.device:
            raise ValueError(f"array of device {self._block.device} copied on a stream of device {queue.device}")
        return queue

    def item(self) -> Any:
        return self.get().item()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return operator.index(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._block.device  # kDLCUDA

    # Views and copies.

    def reshape(self, *shape: Any, order: str = "C") -> Array:
        view = self._view.reshape(*shape, order=order)  # where NumPy has to copy, its shape alone is of use
        if np.may_share_memory(view, self._view) or not self.size:
            return Array._over(self._block, view)
        return _duplicate(self, order).reshape(view.shape, order=order)

    def ravel(self, order: str = "C") -> Array:
        return self.reshape(-1, order=order)

    def transpose(self, *axes: Any) -> Array:
        return Array._over(self._block, self._view.transpose(*axes))

    def view(self, dtype: Any = None) -> Array:
        return Array._over(self._block, self._view.view(dtype or self.dtype))

    def copy(self, order: str = "C") -> Array:
        return _duplicate(self, order)

    def astype(self, dtype: Any, order: str = "K", *, copy: bool = True) -> Array:
        if not copy and self.dtype == dtype:
            return self
        made = empty(self.shape, dtype, "F" if order == "K" and self.flags.fnc else order.replace("K", "C"))
        _assign(made._view, self)
        return made

    # Elements.

    def fill(self, value: Scalar) -> None:
        if isinstance(value, np.ndarray):
            raise ValueError("Non-scalar numpy.ndarray cannot be used for fill")
        _assign(self.on_current_device(), value)

    def __getitem__(self, index: Any) -> Array:
        if not isinstance(index, Array):
            return Array._over(self._block, self._view[_basic(index)])
        mask, view = self._mask(index), self.on_current_device()
        chosen = int(np.count_nonzero(index.get()))  # CuPy too has to wait here, for the shape
        made = empty((chosen, *self.shape[mask.ndim :]), self.dtype)
        target = made._view
        machine().enqueue(machine().queue, lambda: np.copyto(target, view[mask]))
        return made

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(index, Array):
            _assign(self[index].on_current_device(), value)
            return
        mask, view = self._mask(index), self.on_current_device()
        if not isinstance(value, Scalar):
            raise NotImplementedError(f"the stand-in sets masked elements to a scalar, not {type(value).__name__}")
        machine().enqueue(machine().queue, lambda: view.__setitem__(mask, value))

    def _mask(self, index: Array) -> np.ndarray:
        if index.dtype != bool:
            raise NotImplementedError("the stand-in takes masks, and no arrays of indices")
        if index.shape != self.shape[: index.ndim]:
            raise IndexError(f"mask of shape {index.shape} on an array of shape {self.shape}")
        return index.on_current_device()

    def __iter__(self) -> Iterator[Array]:
        return (self[n] for n in range(len(self)))

    # Arithmetic. The mixin turns operators into calls of NumPy's ufuncs, and those come here.

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        if method != "__call__" or ufunc.nout != 1 or ufunc.signature or options:
            return NotImplemented
        return elementwise(ufunc, *inputs, out=out[0] if out else None)

    def sum(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Array:
        return reduction(np.sum, self, axis, keepdims, dtype=dtype)

    def max(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Array:
        return reduction(np.max, self, axis, keepdims)

    def min(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Array:
        return reduction(np.min, self, axis, keepdims)

    def any(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Array:
        return reduction(np.any, self, axis, keepdims)

    def all(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Array:
        return reduction(np.all, self, axis, keepdims)


Array.__name__ = Array.__qualname__ = "ndarray"
Array.__module__ = "cupy"


def _operand(value: Any) -> Any:
    """A device array's memory or a scalar; nothing of the host's moves to the device by itself."""
    if isinstance(value, Array):
        return value.on_current_device()
    if not isinstance(value, Scalar):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _basic(index: Any) -> tuple[Any, ...]:
    """Ints, slices, None and Ellipsis, so that a view comes out, of no dimensions if need be."""
    keys = index if isinstance(index, tuple) else (index,)
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, int | np.integer | slice | type(None) | type(...)):
            raise IndexError(
                f"index of type {type(key).__name__}: int, slice, None, Ellipsis or one mask of the device"
            )
    return keys if any(key is ... for key in keys) else (*keys, ...)


def _assign(target: np.ndarray, value: Any) -> None:
    """Queue ``target[...] = value``."""
    source = _operand(value)
    if np.broadcast_shapes(np.shape(source), target.shape) != target.shape:
        raise ValueError(f"could not broadcast from shape {np.shape(source)} into shape {target.shape}")
    machine().enqueue(machine().queue, lambda: np.copyto(target, source, casting="unsafe"))


def _duplicate(array: Array, order: str, queue: Queue | None = None) -> Array:
    """A copy, made on a stream: by default the current one, where the array has to be on the current device."""
    source = array._view if queue else array.on_current_device()
    order = "F" if order in "KA" and array.flags.fnc else order.replace("K", "C").replace("A", "C")
    block = machine().allocate(array.nbytes, queue)
    made = Array._over(block, np.ndarray(array.shape, array.dtype, block.room, order=order))
    target = made._view
    machine().enqueue(queue or machine().queue, lambda: np.copyto(target, source))
    return made


def elementwise(function: Callable[..., Any], *operands: Any, out: Array | None = None) -> Array:
    """Queue a NumPy function of broadcast operands; its result takes memory of its own, in C order as in CuPy."""
    values = [_operand(value) for value in operands]
    if out is None:
        one = [np.ones(1, v.dtype) if isinstance(v, np.ndarray) else v for v in values]
        with np.errstate(all="ignore"):
            dtype = np.asarray(function(*one)).dtype
        out = empty(np.broadcast_shapes(*(np.shape(v) for v in values)), dtype)
    target = _operand(out)
    machine().enqueue(machine().queue, lambda: np.copyto(target, function(*values), casting="same_kind"))
    return out


def reduction(function: Callable[..., Any], array: Array, axis: Any, keepdims: bool, **options: Any) -> Array:
    source = array.on_current_device()
    axes = range(array.ndim) if axis is None else [a % array.ndim for a in np.atleast_1d(axis)]
    shape = [1 if a in axes else n for a, n in enumerate(array.shape) if keepdims or a not in axes]
    made = empty(shape, function(np.ones(1, array.dtype), **options).dtype)
    target, options = made._view, {**options, "axis": axis, "keepdims": keepdims}
    machine().enqueue(machine().queue, lambda: np.copyto(target, function(source, **options)))
    return made


# Functions of the namespace.


def empty(shape: Shape, dtype: Any = float, order: str = "C") -> Array:
    return Array(shape, dtype, order)


def full(shape: Shape, fill_value: Any, dtype: Any = None, order: str = "C") -> Array:
    made = empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order)
    made.fill(fill_value)
    return made


def zeros(shape: Shape, dtype: Any = float, order: str = "C") -> Array:
    return full(shape, 0, dtype, order)


def ones(shape: Shape, dtype: Any = float, order: str = "C") -> Array:
    return full(shape, 1, dtype, order)


def empty_like(prototype: Array, dtype: Any = None) -> Array:
    _operand(prototype)
    return empty(prototype.shape, dtype or prototype.dtype, "F" if prototype.flags.fnc else "C")


def full_like(a: Array, fill_value: Any, dtype: Any = None) -> Array:
    made = empty_like(a, dtype)
    made.fill(fill_value)
    return made


def zeros_like(a: Array, dtype: Any = None) -> Array:
    return full_like(a, 0, dtype)


def ones_like(a: Array, dtype: Any = None) -> Array:
    return full_like(a, 1, dtype)


def asarray(a: Any, dtype: Any = None, order: str | None = None) -> Array:
    """From the host by way of a buffer of CuPy's own, pinned or not: read now, on the device later."""
    if isinstance(a, Array):
        a.on_current_device()
        return a if dtype is None else a.astype(dtype, copy=False)
    host = np.asarray(a, dtype, order)
    made = empty(host.shape, host.dtype, "F" if host.flags.fnc else "C")
    made.set(host.copy(order="K"))
    return made


def ascontiguousarray(a: Array, dtype: Any = None) -> Array:
    a = a.astype(dtype or a.dtype, order="C", copy=False)
    return a if a.flags.c_contiguous else a.copy()


def asnumpy(
    a: Any, stream: Stream | None = None, order: str = "C", out: np.ndarray | None = None, *, blocking: bool = True
) -> np.ndarray:
    return a.get(stream, order, out, blocking) if isinstance(a, Array) else np.asarray(a, order=order)


def where(condition: Array, x: Any = None, y: Any = None) -> Array:
    if x is None or y is None:
        raise NotImplementedError("the stand-in's where takes three operands")
    return elementwise(np.where, condition, x, y)


def reshape(a: Array, newshape: Any, order: str = "C") -> Array:
    return a.reshape(newshape, order=order)


def sum(a: Array, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Array:
    return a.sum(axis, dtype, out, keepdims)


def any_(a: Array, axis: Any = None, out: None = None, keepdims: bool = False) -> Array:
    return a.any(axis, out, keepdims)
