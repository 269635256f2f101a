"""Settings as flags of the command line. A flag overrules the file, and the file overrules the preset."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpucal.errors import ConfigError
from gpucal.hints import did_you_mean, joined, near
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.rules import PRESET_SETTINGS, ByDetector, Choice, Number, Rule, Switch
from gpucal.settings.table import SETTINGS, Setting
from gpucal.settings.values import location, number, one_of, whole

if TYPE_CHECKING:
    from gpucal.settings.calibration import Calibration

__all__ = ["add_settings", "output_from", "settings_from"]

# The defaults of [output] in a results folder's config.toml.
_OUTPUT: Mapping[str, Any] = MappingProxyType({"dtype": "float32", "product": "cubes", "variance": False})

# The comma between two detectors in one argument; a comma can also be part of a value.
_NEXT = re.compile(r",\s*(?=[A-Za-z][\w-]*\s*=)")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and ``--preset`` and ``--config``, to the parser of ``gpucal calibrate``."""
    group = parser.add_argument_group(
        "settings", "each is a key of --config too, where a flag overrules the file; see `gpucal help settings`"
    )
    for name, row in SETTINGS.items():
        group.add_argument(row.flag, dest=name, help=_help(row), **_form(row.rule))
    presets = list(PRESET_SETTINGS)
    group.add_argument("--preset", type=one_of(presets), choices=presets, help="settings of an official notebook")
    group.add_argument(
        "--config", type=location, metavar="FILE.toml", help="settings from a file such as OUT/config.toml"
    )


def settings_from(arguments: argparse.Namespace) -> Calibration:
    """Return the settings that were named. Flags overrule the file, and the file overrules the preset."""
    from gpucal.settings.calibration import Calibration, read_toml

    settings: dict[str, Any] = read_toml(arguments.config) if arguments.config else {}
    settings.pop("output", None)
    named = settings.pop("preset", None)
    for name, row in SETTINGS.items():
        value = getattr(arguments, name)
        if isinstance(row.rule, ByDetector) and value:
            # If the file's value is not a mapping, it stays, and the setting refuses it.
            of_file, value = settings.get(name, {}), _by_detector(row, row.rule, value)
            value = {**of_file, **value} if isinstance(of_file, Mapping) else of_file
        if value is not None:
            settings[name] = value
    if arguments.bins and arguments.binning is False:
        raise ConfigError("--no-binning and --bin: one or the other; a detector without bins is --bin FGS1=none")
    if arguments.bins:
        settings["binning"] = True
    preset = arguments.preset or named
    return (Calibration() if preset is None else Calibration.preset(preset)).replace(**settings)


def output_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return ``dtype``, ``product`` and ``variance`` for `gpucal.run`; flags overrule the file."""
    from gpucal.settings.calibration import read_toml

    of_file = read_toml(arguments.config).get("output", {}) if arguments.config else {}
    if not isinstance(of_file, Mapping) or (unknown := of_file.keys() - _OUTPUT.keys()):
        problem = f"output: {', '.join(sorted(unknown))}" if isinstance(of_file, Mapping) else f"output = {of_file!r}"
        raise ConfigError(f"{arguments.config}: {problem}; [output] may have {', '.join(_OUTPUT)}")
    if not isinstance(of_file.get("variance", False), bool):
        raise ConfigError(f"variance = {of_file['variance']!r}: must be true or false")
    given = {name: getattr(arguments, name) for name in _OUTPUT}
    return {**_OUTPUT, **of_file, **{name: value for name, value in given.items() if value is not None}}


def _help(row: Setting) -> str:
    """Return the first sentence of a setting's effect, without its full stop, and an example or the default."""
    first = row.effect.partition(". ")[0].removesuffix(".")
    lowered = first if first[1].isupper() else first[0].lower() + first[1:]
    if isinstance(row.rule, ByDetector):
        return f"{lowered}, such as {row.example}"
    if isinstance(default := row.rule.default, bool):
        word = "on" if default else "off"
    else:
        word = "the data set's" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
    return f"{lowered}; {word} by default"


def _form(rule: Rule) -> dict[str, Any]:
    """Return what argparse needs to know of a flag."""
    match rule:
        case Switch():
            return {"action": argparse.BooleanOptionalAction}
        case Choice(words):
            return {"type": one_of(words), "choices": words}
        case Number(default, unit):
            return {"type": whole if isinstance(default, int) else number, "metavar": unit.upper()}
        case _:
            return {"action": "append", "metavar": "DETECTOR=..."}


def _by_detector(row: Setting, rule: ByDetector, texts: Sequence[str]) -> dict[str, object]:
    """Read the values of a flag that may be given several times; the setting checks them itself."""
    given = {}
    for text in (part for several in texts for part in _NEXT.split(several)):
        detector, _, value = text.partition("=")
        if (meant := rule.read(value)) is None:
            raise ConfigError(f"{row.flag} {text}: write it as DETECTOR=..., such as {row.example}")
        given[_detector(row.flag, detector)] = meant
    return given


def _detector(flag: str, text: str) -> str:
    """Find a detector by a short form of its name, such as airs."""
    plain = {detector: re.sub(r"\W|_", "", detector.lower()) for detector in DETECTORS}
    meant = re.sub(r"\W|_", "", text.lower())
    found = [detector for detector, whole_ in plain.items() if meant and whole_.startswith(meant)]
    if len(found) != 1:
        hint = did_you_mean(near(text, DETECTORS, 0.5), f"there are {joined(DETECTORS, 'and')}")
        raise ConfigError(f"{flag}: no detector {text!r}{hint}")
    return found[0]
