"""Rules for the values of settings."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypeAlias

from gpucal.errors import ConfigError
from gpucal.hints import did_you_mean, near
from gpucal.settings.detectors import DETECTORS, Detector

__all__ = [
    "APERTURE_COLUMNS",
    "BELOW_ZERO",
    "BINS",
    "COLUMNS",
    "NO_ROWS",
    "OPEN",
    "PRESET_SETTINGS",
    "PRODUCTS",
    "ROWS",
    "ByDetector",
    "Choice",
    "Number",
    "Rule",
    "Switch",
    "Window",
    "check_aperture",
    "check_columns",
    "check_overlap",
    "checked_window",
    "checked_windows",
    "faintest",
]

PRODUCTS = ("cubes", "light-curves")
"""Products that a results folder can hold of an item."""

PRESET_SETTINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "ariel2024": MappingProxyType({"integration": "notebook"}),
        "ariel2024-update": MappingProxyType({"integration": "updated"}),
        "ariel2025": MappingProxyType({"integration": "updated"}),
    }
)
"""The settings that each preset decides; all other settings have one default."""

OPEN = frozenset(name for decided in PRESET_SETTINGS.values() for name in decided)
"""Settings that are None until they are named, or until a data set's preset decides them."""

Window: TypeAlias = "tuple[int, int]"
"""First and one-past-last row or column."""

BELOW_ZERO = -sys.float_info.min
"""The largest normal number below 0: a library may have made this thread flush the subnormal ones to 0."""

_SECONDS = re.compile(r"(\d{1,6}(?:\.\d{1,9})?) ?s", re.ASCII)
_WINDOW = r"\d{1,6}:\d{1,6}"
_FAINTEST = re.compile(r"faintest:([1-9]\d{0,5})", re.ASCII)


@dataclass(frozen=True)
class Switch:
    """On or off. Called with a name and a value, a rule returns the value as the setting holds it, or refuses it."""

    default: bool

    def __str__(self) -> str:
        return "bool"

    def __call__(self, name: str, value: object) -> bool:
        """Check a value."""
        if not isinstance(value, bool):
            raise ConfigError(f"{name} = {value!r}: must be true or false")
        return value


@dataclass(frozen=True)
class Choice:
    """One of several words: the first by default, or None until a preset decides."""

    words: tuple[str, ...]
    is_open: bool = False

    @property
    def default(self) -> str | None:
        """The default."""
        return None if self.is_open else self.words[0]

    def __str__(self) -> str:
        return f"{{{', '.join(map(repr, self.words))}}}"

    def __call__(self, name: str, value: object) -> str | None:
        """Check a value."""
        if value is None and self.is_open:
            return None
        if not isinstance(value, str) or value not in self.words:
            raise ConfigError(f"{name} = {value!r}: must be one of {', '.join(self.words)}")
        return value


@dataclass(frozen=True)
class Number:
    """A number of its default's type, above ``above`` and at most ``most``, as ``wanted`` says in words."""

    default: float
    unit: str
    wanted: str
    above: float = 0.0
    most: float = sys.float_info.max

    def __str__(self) -> str:
        return f"{type(self.default).__name__}, {self.unit}"

    def __call__(self, name: str, value: object) -> float:
        """Check a value."""
        kind, number = type(self.default), math.nan
        if isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool):
            number = int(value) if isinstance(value, Integral) else float(value)  # also one of NumPy
        if not self.above < number <= self.most:
            raise ConfigError(f"{name} = {value!r}: must be {self.wanted}")
        return kind(number)


@dataclass(frozen=True)
class ByDetector:
    """A value for each detector: its type in words, its check, the default, and what the text of a flag means.

    The check gets the size of a frame along ``axis``, and ``also`` the detector. A text that cannot be read means None.
    """

    of: str
    check: Callable[[str, object, int], object]
    standard: Callable[[Detector], object]
    read: Callable[[str], object]
    axis: int = 0
    also: Callable[[str, Any, Detector], None] | None = None

    def __str__(self) -> str:
        return f"mapping of str to {self.of}"

    def __call__(self, name: str, value: object) -> Mapping[str, object]:
        """Check a value."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} = {value!r}: must map a detector to its value, such as AIRS-CH0")
        for key in value:
            if key not in DETECTORS:
                hint = did_you_mean(near(str(key), DETECTORS))
                raise ConfigError(f"{name}: no detector {key!r}; there are {', '.join(DETECTORS)}{hint}")
        found = {
            key: self.check(f"{name}: {key}", value[key], one.shape[self.axis]) if key in value else self.standard(one)
            for key, one in DETECTORS.items()
        }
        if self.also is not None:
            for key, one in DETECTORS.items():
                self.also(f"{name}: {key}", found[key], one)
        return MappingProxyType(found)


Rule: TypeAlias = Switch | Choice | Number | ByDetector
"""What the values of a setting can be."""


def checked_window(name: str, value: object, size: int) -> Window:
    """Check that a value is ``[first, stop]`` inside ``size`` rows or columns; ``name`` is for the message."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_whole, value)):
        first, stop = map(int, value)
        if 0 <= first < stop <= size:
            return first, stop
    raise ConfigError(f"{name} = {value!r}: must be [first, stop] with 0 <= first < stop <= {size}")


def checked_windows(name: str, value: object, size: int) -> tuple[Window, ...] | str:
    """Check a sequence of windows, which may be empty, or ``"faintest:N"``; a single window may stand alone."""
    if isinstance(value, str):
        if not _FAINTEST.fullmatch(value):
            windows = f"must be [first, stop] with 0 <= first < stop <= {size}"
            raise ConfigError(f'{name} = {value!r}: {windows}, several of them, or "faintest:6"')
        return value
    if not isinstance(value, (tuple, list)) or (value and _is_whole(value[0])):
        return (checked_window(name, value, size),)
    return tuple(checked_window(name, window, size) for window in value)


def check_columns(name: str, columns: Window, detector: Detector) -> None:
    """Check that only a photometer's columns are chosen: a spectrum has a light curve for each."""
    if not detector.photometer and columns != (0, detector.shape[1]):
        problem = "its columns are wavelengths, each with a light curve of its own"
        raise ConfigError(f"{name} = {columns!r}: {problem}; use crop, or choose columns of FGS1")


def check_overlap(name: str, columns: Window, crop: Window) -> None:
    """Check that some of the columns are inside the crop."""
    if columns[1] <= crop[0] or crop[1] <= columns[0]:
        raise ConfigError(f"{name} = {columns!r}: none of them is in the crop, {crop!r}; choose others")


def faintest(background: tuple[Window, ...] | str) -> int:
    """Return N of ``"faintest:N"``, or 0 for windows."""
    found = _FAINTEST.fullmatch(background) if isinstance(background, str) else None
    return int(found[1]) if found else 0


def check_aperture(
    name: str, rows: Window, background: tuple[Window, ...] | str, height: int, *, whole: bool = True
) -> None:
    """Check that the background is not the very rows that are summed, which would leave nothing.

    That holds where rows are summed as a ``whole``. The faintest rows are found among those that are not summed, or
    among all if all of ``height`` rows are summed.
    """
    if isinstance(background, str):
        others = height - (rows[1] - rows[0])
        if faintest(background) > (others or height - 1):
            problem = f"{others} rows are not summed" if others else f"there are {height} rows, and all are summed"
            raise ConfigError(f"{name} = {background!r}: {problem}; choose a smaller number")
        return
    if whole and {row for window in background for row in range(*window)} == set(range(*rows)):
        problem = "these are the rows that are summed, so nothing would be left"
        raise ConfigError(f"{name} = {background!r}: {problem}; choose others")


def _checked_bin(name: str, value: object, _: int) -> int | str:
    if isinstance(value, Integral) and _is_whole(value) and int(value) > 0:
        return int(value)
    if isinstance(value, str) and value == "none":
        return 1
    seconds = _SECONDS.fullmatch(value) if isinstance(value, str) else None
    if seconds and Decimal(seconds[1]) > 0:
        return f"{Decimal(seconds[1]).normalize():f} s"
    raise ConfigError(f'{name} = {value!r}: must be an integer above 0, seconds as in "144 s", or "none"')


def _is_whole(value: object) -> bool:
    """Tell whether a value is an integer of Python or NumPy; a bool is not, although Python counts it as one."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _read_bin(text: str) -> int | str | None:
    if re.fullmatch(r"\d*", text, re.ASCII):
        return int(text) if 0 < len(text) <= 12 else None
    return text  # the rule refuses what is no bin, and says what is one


def _read_background(text: str) -> list[list[int]] | str | None:
    return text if text.lower().startswith("faintest") else _read_windows(text)  # the rule refuses other numbers


def _read_windows(text: str) -> list[list[int]] | None:
    if not re.fullmatch(rf"{_WINDOW}(,{_WINDOW})*", text, re.ASCII):
        return None
    return [[int(end) for end in window.split(":")] for window in text.split(",")]


def _read_window(text: str) -> list[int] | None:
    windows = _read_windows(text) or []
    return windows[0] if len(windows) == 1 else None


BINS = ByDetector("int or str", _checked_bin, lambda detector: detector.bin_pairs, _read_bin)
COLUMNS = ByDetector("(int, int)", checked_window, lambda detector: detector.crop, _read_window, axis=1)
APERTURE_COLUMNS = ByDetector(
    "(int, int)", checked_window, lambda detector: (0, detector.shape[1]), _read_window, axis=1, also=check_columns
)
ROWS = ByDetector("(int, int)", checked_window, lambda detector: (0, detector.shape[0]), _read_window)
NO_ROWS = ByDetector("sequence of (int, int) or str", checked_windows, lambda detector: (), _read_background)
