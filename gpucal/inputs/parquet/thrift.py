"""Thrift's compact protocol, as Parquet's headers use it: structs that look alike parsed all at once, without a schema.

One struct is parsed byte by byte, and its layout noted. NumPy then follows that layout through all the others. Numbers
that the first and the last struct share are probably the same in all. They are compared with the bytes around them,
which is faster than to read them. The first struct that does not fit gives the next layout. So 9,024 page headers take
2 ms.
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

# The parts of a struct: bytes that are the same in all structs of its layout, a number, and a size with as many bytes.
_FIXED, _NUMBER, _BLOB = range(3)

# Limits on the bytes that a step compares, after which it ends, and on those of a blob that it passes over.
_COMPARED, _PASSED = 32, 16


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
    parts : list of (int, bytes, int)
        What it consists of: a kind of part, its bytes, and how many bytes follow, whatever they are.
    """

    kinds: dict[FieldPath, int] = field(default_factory=dict)
    numbers: dict[FieldPath, int] = field(default_factory=dict)
    parts: list[tuple[int, bytes, int]] = field(default_factory=list)

    def steps(self, other: Layout | None) -> list[_Step]:
        """Return how to follow this layout; numbers that ``other`` has too, if it is alike, are compared, not read."""
        alike = other.parts if other and other.kinds == self.kinds else [None] * len(self.parts)
        steps, mask, value, number = [], bytearray(), bytearray(), 0
        for part, same in zip(self.parts, alike, strict=True):
            kind, content, passed = part
            is_number = kind == _NUMBER
            if kind == _FIXED or (part == same and passed <= _PASSED):
                kind = _FIXED
                mask += b"\xff" * len(content) + bytes(passed)
                value += content
                value += bytes(passed)
            if kind != _FIXED or len(mask) >= _COMPARED:
                steps.append(_Step(kind, number, len(mask), _as_words(mask), _as_words(value)))
                mask, value = bytearray(), bytearray()
            number += is_number
        return [*steps, _Step(_FIXED, number, len(mask), _as_words(mask), _as_words(value))]


@dataclass(frozen=True)
class _Step:
    """Bytes to compare, as words of eight bytes each, and what kind of part follows them: if a number, which."""

    kind: int
    number: int
    size: int
    mask: list[int]
    value: list[int]


def _as_words(content: bytearray) -> list[int]:
    words: list[int] = np.frombuffer(content + bytes(-len(content) % 8), "<i8").tolist()
    return words


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
                layout.parts.append((_FIXED, self.data[before : self.at], 0))
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
        part, passed, before = _FIXED, 0, self.at
        content = b""
        if kind in (I16, I32, I64):
            if layout is not None:
                layout.numbers[path] = len(numbers)
            numbers.append(self.number())
            part, content = _NUMBER, self.data[before : self.at]
        elif kind == STRUCT:
            return self._struct(path, layout, numbers)
        elif kind == LIST:
            return self._list(path, layout, numbers)
        elif kind == BINARY:
            passed = self._raw()
            part, content = _BLOB, self.data[before : self.at]
            self.at += passed
        elif kind in (BYTE, DOUBLE) or (in_list and kind in (TRUE, FALSE)):
            passed = 8 if kind == DOUBLE else 1
            self.at += passed
        elif kind != TRUE:
            raise Unreadable(f"has a field of kind {kind}")
        if self.at > self.stop:
            raise Unreadable("ends too soon")
        if layout is not None and self.at > before:
            layout.parts.append((part, content, passed))
        return None

    def _list(self, path: FieldPath, layout: Layout | None, numbers: list[int]) -> None:
        before = self.at
        kind, count = self.items()
        if count > self.stop - self.at:  # an item has at least one byte, but 30 bytes may declare 2**61 items
            raise Unreadable("has a list of more items than it has bytes")
        if layout is not None:
            if count > _MOST_ITEMS:
                raise Unreadable("has a list that is too long")
            layout.parts.append((_FIXED, self.data[before : self.at], 0))
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
    found, ends = np.full((len(wanted), at.size), ABSENT), np.zeros_like(at)
    layouts: list[Layout] = []
    left = np.arange(at.size)
    while left.size:
        first, left = int(left[0]), left[1:]
        reader = StructReader(data, int(at[first]), stop)
        try:
            layout, numbers = reader.struct()
        except Unreadable as error:
            raise Unreadable(str(error), first) from None
        for path, kind in wanted.items():
            if layout.kinds.get(path, kind) != kind:
                raise Unreadable("has a field of the wrong kind", first)
        rows = [(row, layout.numbers[path]) for row, path in enumerate(wanted) if path in layout.numbers]
        ends[first] = reader.at
        for row, number in rows:
            found[row, first] = numbers[number]
        if is_new := all(layout.kinds != known.kinds for known in layouts):
            layouts.append(layout)
        if left.size and len(layouts) <= _MOST_LAYOUTS:
            other = _layout_at(data, int(at[left[-1]]), stop) if is_new else None
            values, end, fits = _follow(data, at[left], stop, layout, other, [number for _, number in rows])
            those = slice(None) if fits.all() else fits
            like, left = left[those], left[~fits]
            ends[like] = end[those]
            for row, number in rows:
                found[row][like] = values[number][those] if number in values else numbers[number]
    return found, ends, layouts


def _layout_at(data: bytes, at: int, stop: int) -> Layout | None:
    """Return the layout of a struct; None if it cannot be read."""
    try:
        return StructReader(data, at, stop).struct()[0]
    except Unreadable:
        return None


def _follow(
    data: bytes, at: NDArray[np.int64], stop: int, layout: Layout, other: Layout | None, wanted: Sequence[int]
) -> tuple[dict[int, NDArray[np.int64]], NDArray[np.int64], NDArray[np.bool_]]:
    """Follow a layout from many offsets.

    Return three things: the numbers wanted by their index, without those that are the same in all; the ends; and which
    structs fit. These have this layout, and the numbers and sizes that it shares with ``other``.
    """
    fits = np.ones(at.size, bool)
    numbers: dict[int, NDArray[np.int64]] = {}
    for step in layout.steps(other):
        width = 8 * len(step.mask) + 8  # what is compared, and a number behind it
        last = len(data) - width
        if last < 0:
            return {}, at, np.zeros(at.size, bool)
        if (beyond := at > last).any():
            fits &= ~beyond
            at = np.minimum(at, last)
        words = np.ndarray(last + 1, f"V{width}", data, strides=(1,))[at].view("<i8")
        for place, (mask, value) in enumerate(zip(step.mask, step.value, strict=True)):
            fits &= (words[place :: width // 8] & mask) == value
        at = at + step.size
        if step.kind == _FIXED:
            continue
        raw, length = _variable(np.ndarray(at.size, "<i8", words, step.size, (width,)))
        fits &= length > 0
        at += length
        if step.kind == _BLOB:
            at += raw
        elif step.number in wanted:
            numbers[step.number] = (raw >> 1) ^ -(raw & 1)
    return numbers, at, fits & (at <= stop)


def _variable(words: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decode the number of at most seven bytes at the start of each word, and its length; 0 for longer ones."""
    last = ~words & 0x80_8080_8080_8080  # the last byte is the first without its highest bit
    last &= -last
    if (last == last[0]).all():
        last = last[:1]
    bits = words & (2 * last - 1)
    number, most = bits & 0x7F, int(last.max())
    for byte in range(1, most.bit_length() // 8):
        number |= (bits >> byte) & (0x7F << 7 * byte)
    # last >> 7 is 256 to the power of length - 1, which moves the byte that is the length to bit 48
    return number, (last >> 7) * 0x01_0203_0405_0607 >> 48 & 7
