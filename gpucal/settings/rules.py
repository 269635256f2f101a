"""Rules for settings: choices, ranges, and settings by detector."""

from __future__ import annotations

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
    "BY_DETECTOR",
    "CHOICES",
    "OPEN",
    "PRESET_SETTINGS",
    "PRODUCTS",
    "RANGES",
    "ByDetector",
    "Window",
    "check_aperture",
    "checked_mapping",
    "checked_number",
    "checked_window",
    "checked_windows",
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

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gain": ("divide", "multiply"),
        "reduce": ("sum", "mean"),
        "integration": ("notebook", "updated"),
        "flat_order": ("after-cds", "before-cds"),
        "bad_pixels": ("keep", "nan", "interpolate"),
        "bad_coefficients": ("keep", "benign"),
        "odd_frames": ("error", "drop"),
        "hot_clip": ("cropped", "full-frame", "off"),
        "weights": ("plain", "variance"),
    }
)

# The largest normal number below zero. A library may have made this thread flush the subnormal ones to 0.
_BELOW_ZERO = -sys.float_info.min

# name -> (must exceed, must not exceed, in words)
RANGES: Mapping[str, tuple[float, float, str]] = MappingProxyType(
    {
        "hot_sigma": (0.0, sys.float_info.max, "a number above 0"),
        "hot_iterations": (0, sys.float_info.max, "an integer above 0"),
        "saturation": (0, 65_536, "an integer from 1 to 65536 (65536 never flags)"),
        "flat_minimum": (_BELOW_ZERO, sys.float_info.max, "a number, 0 or above"),
        "linearity_tolerance": (0.0, sys.float_info.max, "a fraction above 0"),
        "linearity_range": (0.0, sys.float_info.max, "a number of electrons above 0"),
        "linearity_max_offset": (0.0, sys.float_info.max, "a number of electrons above 0"),
    }
)


def checked_window(name: str, value: object, size: int) -> Window:
    """Check that a value is ``[first, stop]`` inside ``size`` rows or columns; ``name`` is for the message."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_whole, value)):
        first, stop = map(int, value)
        if 0 <= first < stop <= size:
            return first, stop
    raise ConfigError(f"{name} = {value!r}: must be [first, stop] with 0 <= first < stop <= {size}")


def checked_windows(name: str, value: object, size: int) -> tuple[Window, ...]:
    """Check a sequence of windows, which may be empty; a single window may stand alone. ``name`` is for the message."""
    if not isinstance(value, (tuple, list)) or (value and _is_whole(value[0])):
        return (checked_window(name, value, size),)
    return tuple(checked_window(name, window, size) for window in value)


def check_aperture(name: str, rows: Window, background: tuple[Window, ...]) -> None:
    """Check that the background is not the very rows that are summed, which would leave nothing."""
    if {row for window in background for row in range(*window)} == set(range(*rows)):
        problem = "these are the rows that are summed, so nothing would be left"
        raise ConfigError(f"{name} = {background!r}: {problem}; choose others")


def _checked_bin(name: str, value: object, detector: Detector) -> int | str:
    if isinstance(value, Integral) and _is_whole(value) and int(value) > 0:
        return int(value)
    if isinstance(value, str) and value == "none":
        return 1
    seconds = re.fullmatch(r"(\d{1,6}(?:\.\d{1,9})?) ?s", value, re.ASCII) if isinstance(value, str) else None
    if seconds and Decimal(seconds[1]) > 0:
        return f"{Decimal(seconds[1]).normalize():f} s"
    raise ConfigError(f'{name} = {value!r}: must be an integer above 0, seconds as in "144 s", or "none"')


def _is_whole(value: object) -> bool:
    """Tell whether a value is an integer of Python or NumPy; a bool is not, although Python counts it as one."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class ByDetector:
    """The check of a setting by detector, and the default for a detector that is left out."""

    check: Callable[[str, object, Detector], Any]
    default: Callable[[Detector], Any]


BY_DETECTOR: Mapping[str, ByDetector] = MappingProxyType(
    {
        "bins": ByDetector(_checked_bin, lambda detector: detector.bin_pairs),
        "crop": ByDetector(
            lambda name, value, detector: checked_window(name, value, detector.shape[1]), lambda detector: detector.crop
        ),
        "rows": ByDetector(
            lambda name, value, detector: checked_window(name, value, detector.shape[0]),
            lambda detector: (0, detector.shape[0]),
        ),
        "background_rows": ByDetector(
            lambda name, value, detector: checked_windows(name, value, detector.shape[0]), lambda detector: ()
        ),
    }
)


def checked_mapping(setting: str, values: object) -> Mapping[str, Any]:
    """Check a setting by detector, one of `BY_DETECTOR`, and return it with a value for every detector, read-only."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{setting} = {values!r}: must map a detector to its value, such as AIRS-CH0")
    for name in values:
        if name not in DETECTORS:
            hint = did_you_mean(near(str(name), DETECTORS))
            raise ConfigError(f"{setting}: no detector {name!r}; there are {', '.join(DETECTORS)}{hint}")
    rule = BY_DETECTOR[setting]
    return MappingProxyType(
        {
            name: rule.check(f"{setting}: {name}", values[name], detector) if name in values else rule.default(detector)
            for name, detector in DETECTORS.items()
        }
    )


def checked_number(name: str, whole: bool, value: object) -> float | int:
    """Check the value of a setting in `RANGES`, and return it as a Python number; ``whole`` asks for an integer."""
    low, high, wanted = RANGES[name]
    number: Any = value
    if isinstance(value, Integral if whole else Real) and not isinstance(value, (int, float)):
        number = int(value) if isinstance(value, Integral) else float(value)  # a number of NumPy
    kinds = int if whole else (int, float)
    if isinstance(number, bool) or not isinstance(number, kinds) or not low < number <= high:
        raise ConfigError(f"{name} = {value!r}: must be {wanted}")
    return number if whole else float(number)
