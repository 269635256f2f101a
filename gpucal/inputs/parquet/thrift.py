"""Thrift's compact protocol, as Parquet's headers use it: structs that look alike parsed all at once, without a schema.

One struct is parsed byte by byte, and its layout noted. NumPy then follows that layout through all the others. The
first struct that does not fit gives the next layout. So 9,024 page headers take 2 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ABSENT",
    "BINARY",
    "I32",
    "I64",
    "LIST",
    "STRUCT",
    "TRUE",
    "FieldPath",
    "StructReader",
    "Unreadable",
    "parse_structs",
]

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)

ABSENT = -(2**62)
"""Stands for the value of a field that a struct does not have."""

FieldPath: TypeAlias = "tuple[int, ...]"
"""A field, by the field numbers from the outside in."""

# Limits: structs and lists inside each other; items of a list in a struct whose layout is noted; layouts that NumPy
# follows. Structs that fit no layout are parsed byte by byte, 30 µs each.
_DEEPEST, _MOST_ITEMS, _MOST_LAYOUTS = 16, 1000, 16

# The action of a step after the bytes it compares: nothing, read a number, or skip as many bytes as a number says.
_NOTHING, _NUMBER, _BLOB = range(3)


class Unreadable(ValueError):
    """Bytes that are not a struct; ``which`` is the index of the struct among several."""

    def __init__(self, problem: str, which: int = 0) -> None:
        super().__init__(problem)
        self.which = which


@dataclass
class Layout:
    """The form in which a struct is written.

    Parameters
    ----------
    kinds : dict
        Kind of each field and of each item of a list, at any depth.
    numbers : dict
        Index of each number field among the struct's numbers.
    steps : list of (int, int, int)
        Action, bytes to compare before it, and their value.
    passed : list of int
        Bytes to skip after each step, whatever they are.
    """

    kinds: dict[FieldPath, int] = field(default_factory=dict)
    numbers: dict[FieldPath, int] = field(default_factory=dict)
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    passed: list[int] = field(default_factory=list)

    def add(self, action: int, expected: bytes = b"", passed: int = 0) -> None:
        """Append a step, or join it to the one before; ``passed`` bytes after it are skipped."""
        if self.steps and self.steps[-1][0] == _NOTHING and not self.passed[-1]:
            _, size, value = self.steps[-1]
            # a step reads eight bytes, and six of them hold numbers up to 2**42
            if size + len(expected) <= (7 if action == _NOTHING else 2):
                joined = value | int.from_bytes(expected, "little") << 8 * size
                self.steps[-1], self.passed[-1] = (action, size + len(expected), joined), passed
                return
        self.steps.append((action, len(expected), int.from_bytes(expected, "little")))
        self.passed.append(passed)


class StructReader:
    """Reads ``data`` field by field from ``at``, which moves on, to ``stop``."""

    def __init__(self, data: bytes, at: int, stop: int) -> None:
        self.data, self.at, self.stop = data, at, stop

    def head(self, last: int) -> tuple[int, int]:
        """Read the head of a field: its number, from that of the field before (0 for the first), and its kind.

        Both are 0 at the end of the struct.
        """
        byte = self._byte()
        if 0 < byte < 16:
            raise Unreadable("has fields out of order")
        kind = byte & 15
        return (last + (byte >> 4), TRUE if kind == FALSE else kind) if byte else (0, 0)

    def number(self) -> int:
        """Read a number of at most 62 bits."""
        raw = self._raw()
        return (raw >> 1) ^ -(raw & 1)

    def binary(self) -> bytes:
        """Read a field of bytes."""
        size = self._raw()
        if size > self.stop - self.at:
            raise Unreadable("ends too soon")
        self.at += size
        return self.data[self.at - size : self.at]

    def items(self) -> tuple[int, int]:
        """Read the head of a list: the kind of its items, and their count."""
        byte = self._byte()
        return byte & 15, self._raw() if byte >> 4 == 15 else byte >> 4

    def skip(self, kind: int) -> None:
        """Skip a field whose head has been read."""
        self._value(kind, (), None, [])

    def struct(self) -> tuple[Layout, list[int]]:
        """Read a struct; return its layout and its numbers, in the order of `Layout.numbers`."""
        layout = Layout()
        numbers: list[int] = []
        self._struct((), layout, numbers)
        return layout, numbers

    def _byte(self) -> int:
        if self.at >= self.stop:
            raise Unreadable("ends too soon")
        self.at += 1
        return self.data[self.at - 1]

    def _raw(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127 and shift < 63:
            value |= (byte & 127) << shift
            shift += 7
        value |= byte << shift
        if value >= -ABSENT:
            raise Unreadable("has a number of more than 62 bits")
        return value

    def _struct(self, path: FieldPath, layout: Layout | None, numbers: list[int]) -> None:
        last = 0
        while True:
            before = self.at
            last, kind = self.head(last)
            if layout is not None:
                layout.add(_NOTHING, self.data[before : self.at])
            if not kind:
                return
            if layout is not None:
                layout.kinds[(*path, last)] = kind
            self._value(kind, (*path, last), layout, numbers)

    def _value(
        self, kind: int, path: FieldPath, layout: Layout | None, numbers: list[int], in_list: bool = False
    ) -> None:
        if len(path) > _DEEPEST:
            raise Unreadable("is nested too deeply")
        action = passed = 0
        before = self.at
        if kind in (I16, I32, I64):
            if layout is not None:
                layout.numbers[path] = len(numbers)
            numbers.append(self.number())
            action = _NUMBER
        elif kind == STRUCT:
            return self._struct(path, layout, numbers)
        elif kind == LIST:
            return self._list(path, layout, numbers)
        elif kind == BINARY:
            size = self._raw()
            self.at += size
            action = _BLOB
        elif kind in (BYTE, DOUBLE) or (in_list and kind in (TRUE, FALSE)):
            passed = 8 if kind == DOUBLE else 1
            self.at += passed
        elif kind != TRUE:
            raise Unreadable(f"has a field of kind {kind}")
        if self.at > self.stop:
            raise Unreadable("ends too soon")
        if layout is not None and self.at > before:
            layout.add(action, passed=passed)
        return None

    def _list(self, path: FieldPath, layout: Layout | None, numbers: list[int]) -> None:
        before = self.at
        kind, count = self.items()
        if count > self.stop - self.at:  # an item has at least one byte, but 30 bytes may declare 2**61 items
            raise Unreadable("has a list of more items than it has bytes")
        if layout is not None:
            if count > _MOST_ITEMS:
                raise Unreadable("has a list that is too long")
            layout.add(_NOTHING, self.data[before : self.at])
        for item in range(count):
            if layout is not None:
                layout.kinds[(*path, item)] = kind
            self._value(kind, (*path, item), layout, numbers, in_list=True)


def parse_structs(
    data: bytes, at: NDArray[np.int64], stop: int, wanted: Mapping[FieldPath, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Layout]]:
    """Parse the struct at each of many offsets.

    Parameters
    ----------
    data : bytes
        The bytes that hold them.
    at : ndarray of int64, shape (struct,)
        Offset of each.
    stop : int
        Offset that none may go beyond; at least eight bytes of data follow.
    wanted : mapping of tuple to int
        Number fields, and the kind that each must have.

    Returns
    -------
    numbers : ndarray of int64, shape (field, struct)
        Values of the wanted fields; `ABSENT` where a struct has no such field.
    ends : ndarray of int64, shape (struct,)
        Offset after each.
    layouts : list of Layout
        The layouts met.

    Raises
    ------
    Unreadable
        If an offset holds no struct, or a wanted field has another kind.
    """
    words = np.ndarray(len(data) - 7, "<i8", data, strides=(1,))  # the eight bytes at every offset
    found, ends = np.full((len(wanted), at.size), ABSENT), np.zeros_like(at)
    layouts: list[Layout] = []
    left = np.arange(at.size)
    while left.size:
        first, left = left[0], left[1:]
        reader = StructReader(data, int(at[first]), stop)
        try:
            layout, numbers = reader.struct()
        except Unreadable as error:
            raise Unreadable(str(error), int(first)) from None
        for path, kind in wanted.items():
            if layout.kinds.get(path, kind) != kind:
                raise Unreadable("has a field of the wrong kind", int(first))
        rows = [(row, layout.numbers[path]) for row, path in enumerate(wanted) if path in layout.numbers]
        ends[first] = reader.at
        for row, number in rows:
            found[row, first] = numbers[number]
        layouts.append(layout)
        if left.size and len(layouts) <= _MOST_LAYOUTS:
            values, end, fits = _follow(words, at[left], stop, layout, [number for _, number in rows])
            like = left[fits]
            ends[like] = end[fits]
            for (row, _), value in zip(rows, values, strict=True):
                found[row, like] = value[fits]
            left = left[~fits]
    return found, ends, layouts


def _follow(
    words: NDArray[np.int64], at: NDArray[np.int64], stop: int, layout: Layout, wanted: Sequence[int]
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64], NDArray[np.bool_]]:
    """Follow a layout from many offsets; return the numbers wanted, the ends, and which structs have this layout."""
    fits = np.ones(at.size, bool)
    numbers: dict[int, NDArray[np.int64]] = {}
    met = 0
    for (action, size, expected), passed in zip(layout.steps, layout.passed, strict=True):
        word = words[np.minimum(at, words.size - 1)]
        fits &= (word & ((1 << 8 * size) - 1)) == expected
        at = at + (size + passed)
        if action == _NOTHING:
            continue
        raw, length = _variable(word >> 8 * size, 7 - size if size else 7)
        fits &= length > 0
        at += length
        if action == _BLOB:
            at += raw
        else:
            if met in wanted:
                numbers[met] = (raw >> 1) ^ -(raw & 1)
            met += 1
    return [numbers[number] for number in wanted], at, fits & (at <= stop)


def _variable(bits: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decode the number of at most ``most`` bytes at the start of each word, and its length; 0 for longer ones."""
    last = ~bits & (0x80_8080_8080_8080 & ((1 << 8 * most) - 1))  # the last byte is the first without its highest bit
    last &= -last
    bits = bits & (2 * last - 1)
    number, length = bits & 0x7F, np.where(last == 0x80, 1, 0)
    for byte in range(1, most):
        ends = last == 0x80 << 8 * byte
        if not (last >= 0x80 << 8 * byte).any():
            break
        number |= (bits >> byte) & (0x7F << 7 * byte)
        length[ends] = byte + 1
    return number, length
