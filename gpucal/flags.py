"""Settings as flags of the command line: preset, then file, then flags; the last word wins."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpucal.errors import ConfigError
from gpucal.rules import BY_DETECTOR, CHOICES, RANGES

if TYPE_CHECKING:
    from gpucal.config import Calibration

__all__ = ["add_settings", "settings_from"]

# Flags without a value: setting, what it becomes, effect.
_SWITCHES = (
    ("mask", False, "do not flag dead and hot pixels"),
    ("linearity", False, "leave the linearity correction out"),
    ("dark", False, "do not subtract the dark current"),
    ("flat", False, "do not divide by the flat field"),
    ("binning", False, "make every CDS pair a bin of its own"),
    ("clip_negatives", True, "raise negative electrons to zero after the ADC step"),
)

_HELP: Mapping[str, str] = MappingProxyType(
    {
        "gain": "counts divided by the ADC gain, as in the notebooks, or multiplied",
        "reduce": "what a bin holds; the notebook sums",
        "integration": "whose integration times",
        "flat_order": "where the flat stands among the steps; the result is the same",
        "bad_pixels": "leave flagged pixels as computed, make them NaN, or interpolate them along the spatial axis",
        "bad_coefficients": "apply flagged calibration values, or replace them by the identity and by 1",
        "odd_frames": "an odd number of frames is an error, or the last is dropped",
        "hot_clip": "what the clip for hot pixels looks at",
        "weights": "light curves: plain sums, or optimal weights of profile over variance",
        "hot_sigma": "threshold of the clip for hot pixels, 5",
        "hot_iterations": "iterations of that clip, 5",
        "saturation": "raw counts that saturate a pixel, 65535",
        "linearity_tolerance": "largest correction that is not flagged, 0.1 of the signal,",
        "linearity_range": "up to so many electrons, 30000",
        "linearity_max_offset": "largest constant term that is not flagged, 10 electrons",
    }
)


@dataclass(frozen=True)
class _Form:
    """How a setting by detector is written: its flag, an example, and what it is for."""

    flag: str
    example: str
    effect: str


_FORMS: Mapping[str, _Form] = MappingProxyType(
    {
        "bins": _Form("--bin", "AIRS-CH0=30", "CDS pairs in a bin, or seconds as in FGS1=144s, or none"),
        "crop": _Form("--crop", "AIRS-CH0=39:321", "wavelength columns that are calibrated"),
        "rows": _Form("--rows", "AIRS-CH0=8:24", "light curves: spatial rows that are summed"),
        "background_rows": _Form("--background-rows", "AIRS-CH0=0:8,24:32", "light curves: rows of background"),
    }
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and ``--preset`` and ``--config``.

    Parameters
    ----------
    parser : ArgumentParser
        Of ``gpucal calibrate``.
    """
    group = parser.add_argument_group("settings", "each is a key of --config too; see examples/settings.md")
    for name, value, effect in _SWITCHES:
        flag = f"--{'' if value else 'no-'}{name.replace('_', '-')}"
        group.add_argument(flag, dest=name, action="store_const", const=value, help=effect)
    for name, form in _FORMS.items():
        group.add_argument(
            form.flag, dest=name, action="append", metavar="DETECTOR=...", help=f"{form.effect}, such as {form.example}"
        )
    for name, choices in CHOICES.items():
        group.add_argument(f"--{name.replace('_', '-')}", choices=choices, help=_HELP[name])
    for name, (low, _, _) in RANGES.items():
        kind = int if isinstance(low, int) else float
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="NUMBER", help=_HELP[name])
    presets = ["ariel2024", "ariel2024-update", "ariel2025"]
    group.add_argument("--preset", choices=presets, help="settings of an official notebook")
    group.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file such as OUT/config.toml")


def settings_from(arguments: argparse.Namespace, preset: str) -> Calibration:
    """Put settings together: preset, then file, then flags.

    Parameters
    ----------
    arguments : Namespace
        Of a parser that `add_settings` was called on.
    preset : str
        The data set's, where no other is named.

    Returns
    -------
    Calibration
        The settings.

    Raises
    ------
    ConfigError
        If a file cannot be read, or a value is not possible.
    """
    from gpucal.config import Calibration, read_toml

    toml: dict[str, Any] = read_toml(arguments.config) if arguments.config else {}
    named = toml.pop("preset", None)
    flags: dict[str, Any] = {
        name: value
        for name in (*CHOICES, *RANGES, *(switch for switch, _, _ in _SWITCHES))
        if (value := getattr(arguments, name)) is not None
    }
    for name in BY_DETECTOR:
        for text in getattr(arguments, name) or []:
            detector, _, value = text.partition("=")
            flags.setdefault(name, {})[detector] = _parsed(name, text, value)
    return Calibration.preset(arguments.preset or named or preset).replace(**toml).replace(**flags)


def _parsed(name: str, text: str, value: str) -> object:
    """Read what follows DETECTOR=; whether it is possible is for the setting to say."""
    if name == "bins":
        if re.fullmatch(r"\d{1,6}(\.\d{1,9})? ?s", value, re.ASCII):
            return value
        if value == "none" or re.fullmatch(r"\d{1,12}", value, re.ASCII):
            return 1 if value == "none" else int(value)
    elif re.fullmatch(r"\d{1,6}:\d{1,6}(,\d{1,6}:\d{1,6})*", value, re.ASCII):
        windows = [[int(end) for end in window.split(":")] for window in value.split(",")]
        if name == "background_rows" or len(windows) == 1:
            return windows if name == "background_rows" else windows[0]
    form = _FORMS[name]
    raise ConfigError(f"{form.flag} {text}: write it as DETECTOR=..., such as {form.example}")
