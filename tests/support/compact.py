"""Thrift's compact protocol, as Parquet uses it, read and written without a schema: to damage files from inside.

A struct is a dict of field number to `Value`, a list a `Value` of kind `LIST` with an element kind and items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)

Struct = dict[int, "Value"]


@dataclass
class Value:
    """A field or list item: its kind, and an int, bytes, Struct, or list of Value."""

    kind: int
    value: Any
    items: int = 0  # the kind of a list's items


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> bytes:
    return varint(2 * value if value >= 0 else -2 * value - 1)


def read_struct(data: bytes, at: int) -> tuple[Struct, int]:
    fields: Struct = {}
    last = 0
    while head := data[at]:
        kind, delta, at = head & 15, head >> 4, at + 1
        if not delta:
            raw, at = read_varint(data, at)
            last = 0
            delta = (raw >> 1) ^ -(raw & 1)
        last += delta
        fields[last], at = read_value(data, at, kind, in_list=False)
    return fields, at + 1


def read_value(data: bytes, at: int, kind: int, in_list: bool) -> tuple[Value, int]:
    if kind in (TRUE, FALSE):
        return (Value(kind, data[at]), at + 1) if in_list else (Value(kind, kind), at)
    if kind == BYTE:
        return Value(kind, data[at]), at + 1
    if kind in (I16, I32, I64):
        raw, at = read_varint(data, at)
        return Value(kind, (raw >> 1) ^ -(raw & 1)), at
    if kind == DOUBLE:
        return Value(kind, data[at : at + 8]), at + 8
    if kind == BINARY:
        size, at = read_varint(data, at)
        return Value(kind, data[at : at + size]), at + size
    if kind == STRUCT:
        fields, at = read_struct(data, at)
        return Value(kind, fields), at
    assert kind == LIST, kind
    count, items, at = data[at] >> 4, data[at] & 15, at + 1
    if count == 15:
        count, at = read_varint(data, at)
    found = []
    for _ in range(count):
        item, at = read_value(data, at, items, in_list=True)
        found.append(item)
    return Value(LIST, found, items), at


def write_struct(fields: Struct) -> bytes:
    out, last = bytearray(), 0
    for number, value in sorted(fields.items()):
        delta = number - last
        out += bytes([delta << 4 | value.kind]) if delta < 16 else bytes([value.kind]) + zigzag(number)
        out += write_value(value, in_list=False)
        last = number
    return bytes(out) + b"\0"


def write_value(value: Value, in_list: bool) -> bytes:
    kind, held = value.kind, value.value
    if kind in (TRUE, FALSE):
        return bytes([held]) if in_list else b""
    if kind == BYTE:
        return bytes([held])
    if kind in (I16, I32, I64):
        return zigzag(held)
    if kind == DOUBLE:
        return bytes(held)
    if kind == BINARY:
        return varint(len(held)) + held
    if kind == STRUCT:
        return write_struct(held)
    head = bytes([min(len(held), 15) << 4 | value.items]) + (varint(len(held)) if len(held) > 14 else b"")
    return head + b"".join(write_value(item, in_list=True) for item in held)


def numbers(value: Value | Struct) -> list[Value]:
    """Every number in it, at any depth."""
    if isinstance(value, dict):
        return [leaf for field in value.values() for leaf in numbers(field)]
    if value.kind == STRUCT:
        return numbers(value.value)
    if value.kind == LIST:
        return [leaf for item in value.value for leaf in numbers(item)]
    return [value] if value.kind in (I16, I32, I64) else []
