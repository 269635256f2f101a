"""Parsers for the values of command-line flags; an error shows a form that can be read."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from pathlib import Path

from gpucal.hints import did_you_mean, joined, near
from gpucal.settings.ids import as_id

__all__ = ["duration", "location", "number", "one_of", "part", "planet", "planets", "size", "whole"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

# A number without a unit is bytes from the first on; below the second, the user probably meant gigabytes.
_BYTES, _GIGABYTES = 10**6, 100


def one_of(choices: Iterable[str]) -> Callable[[str], str]:
    """Make a parser of one of several words, for argparse."""
    known = [*choices]

    def parse(text: str) -> str:
        if text not in known:
            found = near(text, known)
            hint = did_you_mean(found if len(found) < len(known) else ())
            raise ArgumentTypeError(f"{text!r} is not one of {joined(known, 'and')}{hint}")
        return text

    return parse


def location(text: str) -> Path:
    """Parse the name of a file or folder; an empty one, as of an unset variable, would be the current folder."""
    if not text:
        raise ArgumentTypeError("the name is empty; write `.` for the current folder")
    return Path(text)


def whole(text: str) -> int:
    """Parse an integer, which may be negative; the caller checks its range."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise ArgumentTypeError(f"cannot read {text!r} as a whole number")
    return int(text)


def number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"cannot read {text!r} as a number") from error


def planet(text: str) -> int:
    """Parse a planet id; 1103775.0 counts as well, as tables with floating-point ids have it."""
    found = as_id(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is not a planet id (a number such as 100468857)")
    return found


def planets(text: str) -> list[int]:
    """Parse planet ids with commas between them; the message hints at a folder written after --planet."""
    parts = [one.strip() for one in text.split(",") if one.strip()]
    try:
        return [planet(one) for one in parts or [text]]
    except ArgumentTypeError as error:
        is_folder = text.isalpha() or "/" in text or Path(text).exists()
        raise ArgumentTypeError(f"{error}{'; write DATASET and OUT before --planet' * is_folder}") from error


def size(text: str) -> int:
    """Parse a size such as 900MB, 1.5GB or 800MiB; a large number without a unit is bytes."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*(?:([kmgt]i?)?b?)", text.strip(), re.ASCII | re.IGNORECASE)
    if not match:
        raise ArgumentTypeError(f"cannot read {text!r} as a size: 900MB, 1.5GB")
    if match[1] == text.strip() and float(text) < _BYTES:
        raise ArgumentTypeError(f"the unit of {text!r} is missing; did you mean {_with_unit(text)}?")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def _with_unit(text: str) -> str:
    return f"{text}{'GB' if float(text) < _GIGABYTES else 'MB'}"


def duration(text: str) -> float:
    """Parse a time such as 8.5h, 90m, 1h30m or 5400s; a bare number could be hours or seconds, and is refused."""
    decimal = r"(\d{1,9}(?:\.\d{1,9})?)"
    form = rf"(?:{decimal}\s*h)?\s*(?:{decimal}\s*m(?:in)?)?\s*(?:{decimal}\s*s)?"
    match = re.fullmatch(form, text.strip(), re.ASCII | re.IGNORECASE)
    parts = zip(match.groups(), (3600, 60, 1), strict=True) if match else ()
    seconds = sum(float(figure or 0) * unit for figure, unit in parts)
    if not seconds:
        raise ArgumentTypeError(f"cannot read {text!r} as a duration: 8.5h, 90m, 5400s")
    return seconds


def part(text: str) -> tuple[int, int]:
    """Parse a part such as 1/4."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if not match or not int(match[2]):
        raise ArgumentTypeError(f"cannot read {text!r} as a part of the planets: 1/4, 2/4, 3/4, 4/4")
    one, all_ = int(match[1]), int(match[2])
    if not 1 <= one <= all_:
        raise ArgumentTypeError(f"{text!r} is not among the {all_} parts, which are 1/{all_} to {all_}/{all_}")
    return one, all_
