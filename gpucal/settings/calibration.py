"""Calibration settings: three presets, TOML in and out, a content hash. `gpucal.settings.table` has the settings.

``examples/settings.md`` says what the notebook does, what others did, and when to choose which.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from inspect import cleandoc
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any

from gpucal.display.shown import MOST_CHARACTERS, Shown, listed, shortened
from gpucal.errors import ConfigError
from gpucal.settings.arguments import path_of, require_kind
from gpucal.settings.detectors import Detector, detector_of
from gpucal.settings.rules import OPEN, PRESET_SETTINGS
from gpucal.settings.table import SETTINGS, Settings

__all__ = ["PRESETS", "Calibration", "settings_of"]


@dataclass(frozen=True, init=False, repr=False, eq=False)  # those of the table serve; made again, they take 2 ms
class Calibration(Settings):
    """Settings of a calibration. The defaults are those of the organisers' notebook of the data set's year.

    The notebooks differ in ``integration``. Unless it is given, it stays None until `filled` sets it from the data
    set's preset; `gpucal.run`, `gpucal.calibrate` and `gpucal.stream` call `filled`.

    Raises
    ------
    ConfigError
        If a value is of the wrong type or out of range, or ``background_rows`` and ``rows`` are the same rows. The line
        names the setting and the values it may have.

    Examples
    --------
    >>> gpucal.Calibration.preset("ariel2025").replace(bins={"FGS1": "24s"}, dark=False)
    Calibration.preset('ariel2025').replace(dark=False, bins={'FGS1': '24 s'})
    """

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __reduce__(self) -> tuple[Any, ...]:
        return Calibration.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        """Return Python that makes equal settings, unless it is too long to read."""
        preset, changes = self._nearest()
        named = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        if not preset:
            return shortened(f"Calibration({named})", MOST_CHARACTERS)
        change = f".replace({named})" if named else ""
        return shortened(f"Calibration.preset({preset!r}){change}", MOST_CHARACTERS)

    def _repr_html_(self) -> str:
        preset, changes = self._nearest()
        base = preset or "defaults; the data set's preset decides the integration times"
        facts = {"preset": base} | {name: repr(value) for name, value in changes.items()}
        return Shown("settings", facts if changes else facts | {"changes": "none"}).html()

    @property
    def summary(self) -> str:
        """The nearest preset in one line, and what differs from it."""
        preset, changes = self._nearest()
        named = [f"{name}={value!r}" for name, value in changes.items()]
        return (preset or "defaults") + (f" with {listed(named, 4)}" if named else "")

    def _nearest(self) -> tuple[str, dict[str, Any]]:
        """Return the preset with the fewest differences, and these; no preset while one has yet to decide."""
        if any(getattr(self, name) is None for name in OPEN):
            return "", _differences(self, Calibration())
        # Of presets that are equal, the last one is today's.
        found = {name: _differences(self, PRESETS[name]) for name in reversed([*PRESETS])}
        name = min(found, key=lambda one: len(found[one]))
        return name, found[name]

    @classmethod
    def preset(cls, name: str) -> Calibration:
        """Return the settings of one of the official notebooks.

        Parameters
        ----------
        name : {'ariel2024', 'ariel2024-update', 'ariel2025'}
            Linearity is on in all of them; the later notebooks switch it off to save time.

        Returns
        -------
        Calibration
            The preset.

        Raises
        ------
        ConfigError
            If there is no preset of that name.

        Examples
        --------
        >>> gpucal.Calibration.preset("ariel2025").integration
        'updated'
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError(f"preset = {name!r}: must be one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def filled(self, preset: str) -> Calibration:
        """Return these settings, with those that are None taken from a preset, such as ``dataset.layout.preset``.

        Examples
        --------
        >>> gpucal.Calibration(dark=False).filled("ariel2025").integration
        'updated'
        """
        decided = Calibration.preset(preset)
        return self.replace(**{name: getattr(decided, name) for name in OPEN if getattr(self, name) is None})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Calibration:
        """Make settings from a plain mapping, such as a TOML table.

        Parameters
        ----------
        settings : mapping
            Setting name to value. ``preset``, where present, supplies what the others leave out.

        Returns
        -------
        Calibration
            The settings.

        Raises
        ------
        ConfigError
            If a name is unknown or a value is not possible.

        Examples
        --------
        >>> gpucal.Calibration.from_dict({"preset": "ariel2024", "hot_sigma": 4})
        Calibration.preset('ariel2024').replace(hot_sigma=4.0)
        """
        if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
            raise ConfigError(f"settings = {settings!r}: must map names to values, such as {{'mask': False}}")
        named = dict(settings)
        base = cls.preset(named.pop("preset")) if "preset" in named else cls()
        return base.replace(**named)

    def replace(self, /, **changes: object) -> Calibration:
        """Return a copy with some settings changed; those by detector, such as ``bins``, are merged.

        Parameters
        ----------
        **changes
            Setting name to new value.

        Returns
        -------
        Calibration
            The new settings.

        Raises
        ------
        ConfigError
            If a name is unknown or a value is not possible.

        Examples
        --------
        >>> gpucal.Calibration.preset("ariel2024").replace(rows={"AIRS-CH0": (8, 24)})
        Calibration.preset('ariel2024').replace(rows={'AIRS-CH0': (8, 24)})
        """
        settings = self.to_dict()
        for name, value in changes.items():
            if name not in settings:
                near = difflib.get_close_matches(name, settings, n=1)
                raise ConfigError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            if isinstance(mine := settings[name], dict) and isinstance(value, Mapping):
                value = {**mine, **value}
            settings[name] = value
        return Calibration(**settings)

    @classmethod
    def from_toml(cls, path: str | Path) -> Calibration:
        """Read settings from a TOML file: top-level ``name = value``, and tables by detector such as ``[bins]``.

        Parameters
        ----------
        path : str or Path
            The file; ``preset = "ariel2025"`` in it supplies what it leaves out.

        Returns
        -------
        Calibration
            The settings.

        Raises
        ------
        ConfigError
            If the file cannot be read or parsed, or a setting in it is unknown or not possible.

        Examples
        --------
        >>> gpucal.Calibration.from_toml("calibrated/config.toml")
        Calibration.preset('ariel2025')
        """
        return cls.from_dict({name: value for name, value in read_toml(path).items() if name != "output"})

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as plain values.

        Returns
        -------
        dict
            Setting name to bool, int, float, str or, for settings by detector, dict. A setting that `filled` has yet
            to set is None.

        Examples
        --------
        >>> gpucal.Calibration().to_dict()["bins"]
        {'AIRS-CH0': 30, 'FGS1': 360}
        """
        values = {row.name: getattr(self, row.name) for row in fields(self)}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    def to_toml(self) -> str:
        """Return every setting that is not None as a TOML document; `from_toml` reads it back to equal settings.

        Returns
        -------
        str
            The document.

        Examples
        --------
        >>> print(gpucal.Calibration(dark=False).to_toml())
        mask = true
        linearity = true
        dark = false
        ...
        """
        # JSON's booleans, numbers, strings and arrays are TOML's for every value a setting can take.
        settings = {name: value for name, value in self._identity().items() if value is not None}
        tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items() if name not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f'"{key}" = {json.dumps(value)}' for key, value in table.items())]
        return "\n".join(lines) + "\n"

    def _identity(self) -> dict[str, Any]:
        """Return the settings that tell results apart: all but added ones at their default."""
        added, settings = [row.name for row in fields(self) if row.metadata["setting"].added], self.to_dict()
        standard = type(self)().to_dict() if added else {}
        return {name: value for name, value in settings.items() if name not in added or value != standard[name]}

    @property
    def content_hash(self) -> str:
        """SHA-256 of the settings; equal settings have equal hashes, however they were made."""
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()

    def pairs_per_bin(self, detector: Detector, pair_s: float) -> int:
        """Return the CDS pairs in a time bin, with ``pair_s`` from one to the next; none in a bin is a ConfigError.

        Examples
        --------
        >>> from gpucal.settings.detectors import DETECTORS
        >>> gpucal.Calibration(bins={"FGS1": "144s"}).pairs_per_bin(DETECTORS["FGS1"], 0.4)
        360
        """
        bin_ = self.bins[detector_of(detector).name] if self.binning else 1
        if isinstance(bin_, int):
            return bin_
        pairs = round(float(bin_.removesuffix("s")) / pair_s) if pair_s > 0 else 0
        if pairs < 1:
            raise ConfigError(f"bins: {detector.name} = {bin_!r}: a pair of reads takes {pair_s:g} s; use longer bins")
        return pairs

    def cropped(self, detector: Detector) -> Detector:
        """Return a detector with the crop that is set for it.

        Examples
        --------
        >>> from gpucal.settings.detectors import DETECTORS
        >>> gpucal.Calibration(crop={"AIRS-CH0": (50, 60)}).cropped(DETECTORS["AIRS-CH0"]).width
        10
        """
        detector = detector_of(detector)
        return replace(detector, crop=self.crop[detector.name])


def _differences(settings: Calibration, base: Calibration) -> dict[str, Any]:
    """Return the settings that differ from others; of settings by detector, only the detectors that differ."""
    mine, others = settings.to_dict(), base.to_dict()
    changes = {name: value for name, value in mine.items() if value != others[name]}
    for name, value in changes.items():
        if isinstance(value, dict):
            changes[name] = {detector: one for detector, one in value.items() if one != others[name][detector]}
    return changes


def _documented(docstring: str) -> str:
    """Put the table of settings into a docstring, as its parameters."""
    lines = ["Parameters", "----------"]
    for name, default in Calibration().to_dict().items():
        row = SETTINGS[name]
        lines.append(f"{name} : {row.rule}, {'optional' if default is None else f'default {default!r}'}")
        lines += wrap(row.effect, 112, initial_indent="    ", subsequent_indent="    ")
    return cleandoc(docstring).replace("\nRaises\n", "\n".join(["", *lines, "", "Raises", ""]))


if Calibration.__doc__:  # not under python -OO
    Calibration.__doc__ = _documented(Calibration.__doc__)


def settings_of(settings: object, config: object, level: int = 3) -> Calibration:
    """Return the settings of a call, which may have them under their old name ``config``, with a warning.

    ``level`` is that of the public function's caller, for the warning. Raises ConfigError for both names, and for
    another type.
    """
    if config is not None:
        if settings is not None:
            raise ConfigError("settings and config: give settings alone; config is its old name")
        warnings.warn("config= is settings= now; the old name goes in 0.3", DeprecationWarning, stacklevel=level)
        settings = config
    if settings is None:
        return Calibration()
    require_kind("settings", settings, Calibration, "ds.settings(bins={'FGS1': '24s'})")
    assert isinstance(settings, Calibration)
    return settings


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file into plain values, those of an ``[output]`` table included."""
    try:
        return tomllib.loads(path_of("path", path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error})") from error


PRESETS: Mapping[str, Calibration] = MappingProxyType(
    {name: Calibration().replace(**decided) for name, decided in PRESET_SETTINGS.items()}
)
