"""Operations that Numba lacks: unsigned indices, words at any byte, fused multiply-adds, positions of bits.

With NUMBA_BOUNDSCHECK set, every place that is read or written is checked, as an element of an array would be.
"""

# ruff: noqa: ANN401

from __future__ import annotations

import functools
import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.core import config as _config
from numba.extending import intrinsic

__all__ = [
    "apart",
    "bits_before",
    "bits_from",
    "compiled",
    "copy",
    "fill",
    "fma",
    "get",
    "highest",
    "inlined",
    "int64",
    "is_in_cache",
    "load64",
    "put",
    "put64",
    "trailing_zeros",
    "uint64",
]

log = logging.getLogger(__name__)

# What unpickling a damaged cache may raise.
_DAMAGED = (EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, ImportError)

# No fastmath: sums have one order and every rounding is named. The error model only leaves out checks for zero.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    "no_rewrites": True,
    "_nrt": False,
}

cgutils: Any = _cgutils
config: Any = _config
njit: Any = numba.njit

# Compiled, words keep their signs and 64 bits; what compiles them knows these as the types of NumPy.
int64: Any = np.int64
uint64: Any = np.uint64

Function: TypeAlias = "Callable[..., Any]"


def inlined(function: Function) -> Function:
    """Compile a function that only compiled ones call, with them.

    Parameters
    ----------
    function : callable
        The function.

    Returns
    -------
    callable
        To be called by compiled ones.
    """
    made: Function = njit(no_cpython_wrapper=True, **_OPTIONS)(function)
    return made


def _intrinsic(function: Function) -> Function:
    made: Function = intrinsic(function)
    return made


@functools.cache
def _digest() -> str:
    """Digest the sources of this package: Numba itself compares only the one file that a compiled function is in."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    made_of = [b"%d" % bool(config.BOUNDSCHECK), *(path.read_bytes() for path in sources)]
    return hashlib.sha256(b"".join(made_of)).hexdigest()[:16]


def compiled(signature: str) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function, or loads it compiled.

    Parameters
    ----------
    signature : str
        The only types it takes.

    Returns
    -------
    callable
        The decorator.
    """

    def decorate(function: Function) -> Function:
        function.__qualname__ = f"{function.__name__}_{_digest()}"
        try:
            # Numba keeps it beside the function's file or, where that is read-only, in the user's cache folder.
            made: Function = njit(signature, cache=True, **_OPTIONS)(function)
        except (RuntimeError, OSError, *_DAMAGED) as error:
            log.info("compiling without a cache (%s); let NUMBA_CACHE_DIR name a writable folder", error)
            made = njit(signature, **_OPTIONS)(function)
        return made

    return decorate


def is_in_cache(module: str) -> bool:
    """Tell whether Numba's cache has a module of this package; True as well where there is no cache to write to."""
    try:
        folder = Path(njit(cache=True, **_OPTIONS)(lambda: None).stats.cache_path)
        return any(folder.glob(f"{module}.*_{_digest()}-*.nbi"))
    except (RuntimeError, OSError):
        return True


# Fields of an array, in the struct that Numba makes of it. What makes a proxy of that struct compiles much longer.
_DATA, _SHAPE = 4, 5


def _pointer(context: Any, builder: Any, array: Any, at: Any, size: int | Any = 1) -> Any:
    """Point to an element of an array, of several that are used; check the first and the last if that is asked for."""
    if context.enable_boundscheck:
        count = ir.Constant(ir.IntType(64), size) if isinstance(size, int) else size
        with cgutils.if_likely(builder, builder.icmp_signed("!=", count, count.type(0))):
            items = builder.extract_value(array, [_SHAPE, 0])
            cgutils.do_boundscheck(context, builder, at, items)
            cgutils.do_boundscheck(context, builder, builder.sub(builder.add(at, count), count.type(1)), items)
            cgutils.do_boundscheck(context, builder, count, builder.add(items, count.type(1)))
    return builder.gep(builder.extract_value(array, _DATA), [at])


@_intrinsic
def get(typing: Any, array: Any, at: Any) -> Any:
    """Return an element of an array as int64 or float64; the place is not negative."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_pointer(context, builder, args[0], args[1]))
        if isinstance(array.dtype, types.Float) or array.dtype.bitwidth == 64:
            return value
        return (builder.sext if array.dtype.signed else builder.zext)(value, ir.IntType(64))

    return (types.float64 if isinstance(array.dtype, types.Float) else types.int64)(array, types.int64), generate


@_intrinsic
def put(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Set an element of an array to an int64 or float64; the place is not negative."""
    kind = types.float64 if isinstance(array.dtype, types.Float) else types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = isinstance(array.dtype, types.Float) or array.dtype.bitwidth == 64
        held = args[2] if whole else builder.trunc(args[2], ir.IntType(array.dtype.bitwidth))
        builder.store(held, _pointer(context, builder, args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.int64, kind), generate


def _word(context: Any, builder: Any, array: Any, at: Any) -> Any:
    pointer = _pointer(context, builder, array, at, 8)
    word = builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()))
    word.align = 1
    return word


@_intrinsic
def load64(typing: Any, array: Any, at: Any) -> Any:
    """Return the 64 bits from a byte of an array of bytes on, as uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _word(context, builder, args[0], args[1])

    return types.uint64(array, types.int64), generate


@_intrinsic
def bits_from(typing: Any, array: Any, bit: Any, count: Any) -> Any:
    """Return up to 56 bits from a bit of an array of bytes on, as int64; bits are counted from each byte's lowest."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        held, bit, count = args
        one, three, seven = (ir.Constant(bit.type, value) for value in (1, 3, 7))
        word = _word(context, builder, held, builder.ashr(bit, three))
        mask = builder.sub(builder.shl(one, count), one)
        return builder.and_(builder.lshr(word, builder.and_(bit, seven)), mask)

    return types.int64(array, types.int64, types.int64), generate


@_intrinsic
def bits_before(typing: Any, array: Any, bit: Any) -> Any:
    """Return at least 56 bits in front of a bit of an array of bytes, the last ones highest, as uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        held, bit = args
        three, seven, eight = (ir.Constant(bit.type, value) for value in (3, 7, 8))
        word = _word(context, builder, held, builder.sub(builder.ashr(bit, three), seven))
        return builder.shl(word, builder.sub(eight, builder.and_(bit, seven)))

    return types.uint64(array, types.int64), generate


@_intrinsic
def put64(typing: Any, array: Any, at: Any, word: Any) -> Any:
    """Set 64 bits from an element of an array on to a uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, args[0], args[1], 64 // array.dtype.bitwidth)
        builder.store(args[2], builder.bitcast(pointer, ir.IntType(64).as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


@_intrinsic
def copy(typing: Any, target: Any, to: Any, source: Any, at: Any, size: Any) -> Any:
    """Copy bytes from one array to another; the size is not negative."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        there = _pointer(context, builder, args[0], args[1], args[4])
        here = _pointer(context, builder, args[2], args[3], args[4])
        cgutils.raw_memcpy(builder, there, here, args[4], 1)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), generate


@_intrinsic
def fill(typing: Any, target: Any, to: Any, value: Any, size: Any) -> Any:
    """Fill bytes of an array with one; the size is not negative."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, args[0], args[1], args[3])
        cgutils.memset(builder, pointer, args[3], builder.trunc(args[2], ir.IntType(8)))
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, types.int64), generate


@_intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x · y + z, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), generate


@_intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """Return how many zeros are behind the last one bit of a uint64 that is not 0, as int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@_intrinsic
def highest(typing: Any, value: Any) -> Any:
    """Return the place of the highest one bit of an int64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sub(ir.Constant(ir.IntType(64), 63), builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1)))

    return types.int64(types.int64), generate


@_intrinsic
def apart(typing: Any) -> Any:
    """Keep the function that calls this one out of those that call it: it is compiled once, not once a call."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate
