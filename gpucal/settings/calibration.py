"""Calibration settings: frozen, validated when made, three presets, TOML in and out, a content hash.

``examples/settings.md`` says what the notebook does, what others did, and when to choose which.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpucal.errors import ConfigError
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.settings.rules import (
    BY_DETECTOR,
    CHOICES,
    OPEN,
    PRESET_SETTINGS,
    RANGES,
    Window,
    check_aperture,
    checked_mapping,
    checked_number,
)

__all__ = ["ADDED", "PRESETS", "Calibration"]

ADDED: Mapping[str, Any] = MappingProxyType({"added": True})
"""Metadata of a setting that 0.1 did not have: at its default it changes no hash, so that older results still count."""


@dataclass(frozen=True)
class Calibration:
    """Settings of a calibration. The defaults are those of the organisers' notebook of the data set's year.

    The notebooks differ in ``integration``. Unless it is given, it stays None until `filled` sets it from the data
    set's preset; `gpucal.run`, `gpucal.calibrate` and `gpucal.stream` call `filled`.

    Parameters
    ----------
    mask : bool
        Flag dead and hot pixels in the data-quality map. The flags change no computed value: as in the notebook, dark
        and flat skip dead pixels even where this is off. The flags decide which pixels ``bad_pixels`` makes NaN or
        interpolates, and which pixels count in light curves.
    linearity, dark, flat : bool
        Do the step.
    binning : bool
        Sum CDS pairs in time bins; off, every pair is a bin of its own.
    bins : mapping of str to int or str
        CDS pairs in a bin, by detector. Seconds, as in ``"144 s"``, become the nearest number of pairs. A detector that
        is left out keeps its default (AIRS-CH0 30, FGS1 360).
    crop : mapping of str to (int, int)
        First and one-past-last wavelength column that are calibrated, by detector. By default AIRS-CH0 has 39 to 321,
        and FGS1 has all its 32.
    gain : {'divide', 'multiply'}
        Electrons are ``counts / gain + offset``, as in every official notebook, or ``counts · gain + offset``, as the
        documentation of 2024 says.
    reduce : {'sum', 'mean'}
        A bin holds the sum over its pairs, as in the notebook, or their mean; electrons in both cases.
    integration : {'notebook', 'updated'}, optional
        Integration times: as first published (AIRS-CH0 0.1/4.5 s, FGS1 0.1/0.1 s), or with 0.1 s more for end reads, as
        in the update of 29 August 2024 and the 2025 notebook. The data set's preset has the default: ``'notebook'``
        for 2024, ``'updated'`` for 2025.
    flat_order : {'after-cds', 'before-cds'}
        When to divide by the flat. Division distributes over differences and sums, so both orders give the same result
        but for rounding; where a flat is 0, neither result is finite. gpucal computes the same formula for both.
    bad_pixels : {'keep', 'nan', 'interpolate'}
        Leave flagged pixels as computed, set them to NaN, or replace them by a straight line between their good
        neighbours along the spatial axis (`gpucal.science.bad_pixels`), flagged INTERPOLATED.
    bad_coefficients : {'keep', 'benign'}
        Apply calibration values flagged BAD_LINEARITY or BAD_FLAT as they are, or replace them by the identity and by
        1; the flags stay.
    odd_frames : {'error', 'drop'}
        Refuse an odd number of frames, as the notebook does, or drop the last frame.
    clip_negatives : bool
        Raise negative electrons to zero straight after the ADC step.
    hot_clip : {'cropped', 'full-frame', 'off'}
        Pixels that the sigma clip for hot pixels uses: the cropped dark, as in the notebook, the whole dark, or none.
    hot_sigma : float
        Threshold of that clip, in standard deviations.
    hot_iterations : int
        Iterations of that clip.
    saturation : int
        Raw counts at or above this in any used frame flag a pixel as saturated.
    flat_minimum : float
        A flat field at or below this, or not finite, is flagged.
    linearity_tolerance : float
        A linearity polynomial that differs from the identity by more than this fraction is flagged...
    linearity_range : float
        ...up to this many electrons...
    linearity_max_offset : float
        ...or with a constant term beyond this many electrons.
    weights : {'plain', 'variance'}
        Light curves: the sum over good pixels, or the optimal sum with weights of profile over variance.
    rows : mapping of str to (int, int)
        Light curves: first and one-past-last spatial row, by detector; by default all.
    background_rows : mapping of str to sequence of (int, int)
        Light curves: rows whose mean is subtracted as background, by detector; by default none. A wavelength without a
        usable pixel in these rows is NaN.

    Raises
    ------
    ConfigError
        If a value is of the wrong type or out of range, or ``background_rows`` and ``rows`` are the same rows. The line
        names the setting and the values it may have.
    """

    mask: bool = True
    linearity: bool = True
    dark: bool = True
    flat: bool = True
    binning: bool = True
    bins: Mapping[str, int | str] = field(default_factory=dict)
    crop: Mapping[str, Window] = field(default_factory=dict)
    gain: str = "divide"
    reduce: str = "sum"
    integration: str | None = None
    flat_order: str = "after-cds"
    bad_pixels: str = "keep"
    bad_coefficients: str = "keep"
    odd_frames: str = "error"
    clip_negatives: bool = False
    hot_clip: str = "cropped"
    hot_sigma: float = 5.0
    hot_iterations: int = 5
    saturation: int = 65_535
    flat_minimum: float = 0.0
    linearity_tolerance: float = 0.10
    linearity_range: float = 30_000.0
    linearity_max_offset: float = 10.0
    weights: str = "plain"
    rows: Mapping[str, Window] = field(default_factory=dict)
    background_rows: Mapping[str, tuple[Window, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is None and setting.name in OPEN:
                continue
            if setting.name in BY_DETECTOR:
                object.__setattr__(self, setting.name, checked_mapping(setting.name, value))
            elif setting.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{setting.name} = {value!r}: must be true or false")
            elif setting.name in CHOICES and value not in CHOICES[setting.name]:
                raise ConfigError(f"{setting.name} = {value!r}: must be one of {', '.join(CHOICES[setting.name])}")
            elif setting.name in RANGES:
                object.__setattr__(self, setting.name, checked_number(setting.name, setting.type == "int", value))
        for name in DETECTORS:
            check_aperture(f"background_rows: {name}", self.rows[name], self.background_rows[name])

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __reduce__(self) -> tuple[Any, ...]:
        return Calibration.from_dict, (self.to_dict(),)

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
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError(f"preset = {name!r}: must be one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def filled(self, preset: str) -> Calibration:
        """Return these settings, with those that are None taken from a preset.

        Parameters
        ----------
        preset : str
            As for `preset`; a data set's own is ``dataset.layout.preset``.

        Returns
        -------
        Calibration
            Settings without None.

        Raises
        ------
        ConfigError
            If there is no preset of that name.
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
        """
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
        """
        known = [setting.name for setting in fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        for name in BY_DETECTOR:
            if isinstance(mapping := changes.get(name), Mapping):
                changes[name] = {**getattr(self, name), **mapping}
        return Calibration(**{**self.to_dict(), **changes})

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
        """
        return cls.from_dict({name: value for name, value in read_toml(path).items() if name != "output"})

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as plain values.

        Returns
        -------
        dict
            Setting name to bool, int, float, str or, for settings by detector, dict. A setting that `filled` has yet
            to set is None.
        """
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        return {name: dict(value) if name in BY_DETECTOR else value for name, value in values.items()}

    def to_toml(self) -> str:
        """Return every setting that is not None as a TOML document; `from_toml` reads it back to equal settings.

        Returns
        -------
        str
            The document.
        """
        # JSON's booleans, numbers, strings and arrays are TOML's for every value a setting can take.
        settings = {name: value for name, value in self._identity().items() if value is not None}
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items() if name not in BY_DETECTOR]
        for name in BY_DETECTOR:
            lines += ["", f"[{name}]", *(f'"{key}" = {json.dumps(value)}' for key, value in settings[name].items())]
        return "\n".join(lines) + "\n"

    def _identity(self) -> dict[str, Any]:
        """Return the settings that tell results apart: all but `ADDED` ones at their default."""
        added = {setting.name: setting.default for setting in fields(self) if "added" in setting.metadata}
        return {name: value for name, value in self.to_dict().items() if name not in added or value != added[name]}

    @property
    def content_hash(self) -> str:
        """SHA-256 of the settings; equal settings have equal hashes, however they were made."""
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()

    def pairs_per_bin(self, detector: Detector, pair_s: float) -> int:
        """Return the CDS pairs in a time bin of a detector.

        Parameters
        ----------
        detector : Detector
            The detector.
        pair_s : float
            Time from one pair of reads to the next, s; only bins given in seconds depend on it.

        Returns
        -------
        int
            At least 1.

        Raises
        ------
        ConfigError
            If a bin in seconds is shorter than half a pair.
        """
        bin_ = self.bins[detector.name] if self.binning else 1
        if isinstance(bin_, int):
            return bin_
        pairs = round(float(bin_.removesuffix("s")) / pair_s) if pair_s > 0 else 0
        if pairs < 1:
            raise ConfigError(f"bins: {detector.name} = {bin_!r}: a pair of reads takes {pair_s:g} s; use longer bins")
        return pairs

    def cropped(self, detector: Detector) -> Detector:
        """Return a detector with the crop that is set for it.

        Parameters
        ----------
        detector : Detector
            One of `gpucal.settings.detectors.DETECTORS`.

        Returns
        -------
        Detector
            The same, or with another crop.
        """
        return replace(detector, crop=self.crop[detector.name])


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file into plain values, those of an ``[output]`` table included."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error})") from error


PRESETS: Mapping[str, Calibration] = MappingProxyType(
    {name: Calibration().replace(**decided) for name, decided in PRESET_SETTINGS.items()}
)
