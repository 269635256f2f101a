"""Settings as flags of the command line. A flag overrules the file, and the file overrules the preset."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpucal.errors import ConfigError
from gpucal.hints import did_you_mean, joined, near
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.rules import BY_DETECTOR, CHOICES, PRESET_SETTINGS, RANGES
from gpucal.settings.values import location, number, one_of, whole

if TYPE_CHECKING:
    from gpucal.settings.calibration import Calibration

__all__ = ["add_settings", "output_from", "settings_from"]

# The defaults of [output] in a results folder's config.toml.
_OUTPUT: Mapping[str, Any] = MappingProxyType({"dtype": "float32", "product": "cubes", "variance": False})

# Flags without a value, each with a --no-... of its own.
_SWITCHES: Mapping[str, str] = MappingProxyType(
    {
        "mask": "flag dead and hot pixels, as by default, or not",
        "linearity": "linearity correction; on by default",
        "dark": "subtraction of the dark current; on by default",
        "flat": "division by the flat field; on by default",
        "binning": "bins of time, as by default and by --bin, or every CDS pair by itself",
        "clip_negatives": "raise negative electrons to zero after the ADC step; off by default",
    }
)

_HELP: Mapping[str, str] = MappingProxyType(
    {
        "gain": "counts divided by the ADC gain, as in the notebooks, or multiplied",
        "reduce": "a bin holds the sum of its pairs, as in the notebook, or their mean",
        "integration": "integration times as first published, or as updated in 2024",
        "flat_order": "when to divide by the flat; the result is the same",
        "bad_pixels": "leave flagged pixels as computed, make them NaN, or interpolate them along the spatial axis",
        "bad_coefficients": "apply flagged calibration values, or replace them by the identity and by 1",
        "odd_frames": "an odd number of frames is an error, or the last is dropped",
        "hot_clip": "pixels that the clip for hot pixels uses",
        "weights": "light curves: plain sums, or optimal weights of profile over variance",
        "hot_sigma": "threshold of the clip for hot pixels, 5",
        "hot_iterations": "iterations of that clip, 5",
        "saturation": "raw counts that saturate a pixel, 65535",
        "flat_minimum": "flat at or below which a pixel is flagged, 0",
        "linearity_tolerance": "largest correction that is not flagged, 0.1 of the signal,",
        "linearity_range": "up to this many electrons, 30000",
        "linearity_max_offset": "largest constant term that is not flagged, 10 electrons",
    }
)


@dataclass(frozen=True)
class _Form:
    """The written form of a setting by detector: its flag, an example, and its effect."""

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

# The comma between two detectors in one argument; a comma can also be part of a value.
_NEXT = re.compile(r",\s*(?=[A-Za-z][\w-]*\s*=)")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and ``--preset`` and ``--config``, to the parser of ``gpucal calibrate``."""
    group = parser.add_argument_group(
        "settings", "each is a key of --config too, where a flag overrules the file; see examples/settings.md"
    )
    for name, effect in _SWITCHES.items():
        group.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, help=effect)
    for name, form in _FORMS.items():
        group.add_argument(
            form.flag, dest=name, action="append", metavar="DETECTOR=...", help=f"{form.effect}, such as {form.example}"
        )
    for name, choices in CHOICES.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=one_of(choices), choices=choices, help=_HELP[name])
    for name, (low, _, _) in RANGES.items():
        kind = whole if isinstance(low, int) else number
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="NUMBER", help=_HELP[name])
    presets = list(PRESET_SETTINGS)
    group.add_argument("--preset", type=one_of(presets), choices=presets, help="settings of an official notebook")
    group.add_argument(
        "--config", type=location, metavar="FILE.toml", help="settings from a file such as OUT/config.toml"
    )


def settings_from(arguments: argparse.Namespace) -> Calibration:
    """Return the settings that were named. Flags overrule the file, and the file overrules the preset.

    Parameters
    ----------
    arguments : Namespace
        Of a parser that `add_settings` was called on.

    Returns
    -------
    Calibration
        The settings.

    Raises
    ------
    ConfigError
        If a file cannot be read, or a value is not possible.
    """
    from gpucal.settings.calibration import Calibration, read_toml

    settings: dict[str, Any] = read_toml(arguments.config) if arguments.config else {}
    settings.pop("output", None)
    named = settings.pop("preset", None)
    for name in (*CHOICES, *RANGES, *_SWITCHES):
        if (value := getattr(arguments, name)) is not None:
            settings[name] = value
    for name in BY_DETECTOR:
        given: dict[str, object] = {}
        for text in (part for texts in getattr(arguments, name) or [] for part in _NEXT.split(texts)):
            detector, _, value = text.partition("=")
            parsed = _parsed(name, text, value)
            given[_detector(name, detector)] = parsed
        # If the file's value is not a mapping, it stays, and the setting refuses it.
        if given and isinstance(of_file := settings.get(name, {}), Mapping):
            settings[name] = {**of_file, **given}
    if arguments.bins and arguments.binning is False:
        raise ConfigError("--no-binning and --bin: one or the other; a detector without bins is --bin FGS1=none")
    if arguments.bins:
        settings["binning"] = True
    preset = arguments.preset or named
    return (Calibration() if preset is None else Calibration.preset(preset)).replace(**settings)


def output_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return ``dtype``, ``product`` and ``variance`` for `gpucal.run`; flags overrule the file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or its ``[output]`` has an unknown name or a value that is not possible.
    """
    from gpucal.settings.calibration import read_toml

    of_file = read_toml(arguments.config).get("output", {}) if arguments.config else {}
    if not isinstance(of_file, Mapping) or (unknown := of_file.keys() - _OUTPUT.keys()):
        problem = f"output: {', '.join(sorted(unknown))}" if isinstance(of_file, Mapping) else f"output = {of_file!r}"
        raise ConfigError(f"{arguments.config}: {problem}; [output] may have {', '.join(_OUTPUT)}")
    if not isinstance(of_file.get("variance", False), bool):
        raise ConfigError(f"variance = {of_file['variance']!r}: must be true or false")
    given = {name: getattr(arguments, name) for name in _OUTPUT}
    return {**_OUTPUT, **of_file, **{name: value for name, value in given.items() if value is not None}}


def _detector(name: str, text: str) -> str:
    """Find a detector by a short form of its name, such as airs."""
    plain = {detector: re.sub(r"\W|_", "", detector.lower()) for detector in DETECTORS}
    meant = re.sub(r"\W|_", "", text.lower())
    found = [detector for detector, whole_ in plain.items() if meant and whole_.startswith(meant)]
    if len(found) != 1:
        hint = did_you_mean(near(text, DETECTORS, 0.5), f"there are {joined(DETECTORS, 'and')}")
        raise ConfigError(f"{_FORMS[name].flag}: no detector {text!r}{hint}")
    return found[0]


def _parsed(name: str, text: str, value: str) -> object:
    """Parse the text after DETECTOR=; the setting checks the value itself."""
    if name == "bins":
        if re.fullmatch(r"\d{1,6}(\.\d{1,9})? ?s", value, re.ASCII):
            return value
        if value == "none" or re.fullmatch(r"\d{1,12}", value, re.ASCII):
            return value if value == "none" else int(value)
    elif re.fullmatch(r"\d{1,6}:\d{1,6}(,\d{1,6}:\d{1,6})*", value, re.ASCII):
        windows = [[int(end) for end in window.split(":")] for window in value.split(",")]
        if name == "background_rows" or len(windows) == 1:
            return windows if name == "background_rows" else windows[0]
    form = _FORMS[name]
    raise ConfigError(f"{form.flag} {text}: write it as DETECTOR=..., such as {form.example}")
