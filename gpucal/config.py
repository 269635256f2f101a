"""Calibration settings: frozen, validated when made, three presets, TOML in and out, a content hash."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpucal.detectors import DETECTORS, Detector
from gpucal.errors import ConfigError

__all__ = ["PRESETS", "Calibration"]

_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "reduce": ("sum", "mean"),
        "integration": ("notebook", "updated"),
        "bad_pixels": ("keep", "nan"),
        "odd_frames": ("error", "drop"),
    }
)

# name -> (must exceed, must not exceed, in words)
_RANGES: Mapping[str, tuple[float, float, str]] = MappingProxyType(
    {
        "hot_sigma": (0.0, sys.float_info.max, "a number above 0"),
        "hot_iterations": (0, sys.float_info.max, "an integer above 0"),
        "saturation": (0, 65_536, "an integer from 1 to 65536 (65536 never flags)"),
        "linearity_tolerance": (0.0, sys.float_info.max, "a fraction above 0"),
        "linearity_range": (0.0, sys.float_info.max, "a number of electrons above 0"),
        "linearity_max_offset": (0.0, sys.float_info.max, "a number of electrons above 0"),
    }
)


@dataclass(frozen=True)
class Calibration:
    """What is done to an observation. The defaults are the organisers' notebook of 14 August 2024.

    Parameters
    ----------
    mask : bool
        Flag dead and hot pixels in the data-quality map. The signal does not depend on it, as in the notebook,
        where the dead map acts on dark and flat whether or not masking is on.
    linearity, dark, flat : bool
        Whether the step is done.
    binning : bool
        Sum CDS pairs in time bins; off, every pair is a bin of its own.
    bins : mapping of str to int
        CDS pairs in a bin, by detector; a detector left out keeps its default (AIRS-CH0 30, FGS1 360).
    reduce : {'sum', 'mean'}
        What a bin holds, electrons either way: the sum over its pairs, as in the notebook, or their mean.
    integration : {'notebook', 'updated'}
        Integration times: as first published (AIRS-CH0 0.1/4.5 s, FGS1 0.1/0.1 s), or with the 0.1 s added to end
        reads by the update of 29 August 2024 and by the 2025 notebook.
    bad_pixels : {'keep', 'nan'}
        Leave flagged pixels as computed, or set them to NaN.
    odd_frames : {'error', 'drop'}
        An odd number of frames is an error, as in the notebook, or the last frame is dropped.
    clip_negatives : bool
        Raise negative electrons to zero straight after the ADC step.
    hot_sigma : float
        Threshold of the iterated sigma clip of the cropped dark that finds hot pixels.
    hot_iterations : int
        Iterations of that clip.
    saturation : int
        Raw counts at or above this in any used frame flag a pixel as saturated.
    linearity_tolerance : float
        A linearity polynomial further from the identity than this fraction is flagged...
    linearity_range : float
        ...up to this many electrons...
    linearity_max_offset : float
        ...or with a constant term beyond this many electrons.

    Raises
    ------
    ConfigError
        If a value is of the wrong type or out of range; the line names the setting and what it may be.
    """

    mask: bool = True
    linearity: bool = True
    dark: bool = True
    flat: bool = True
    binning: bool = True
    bins: Mapping[str, int] = field(default_factory=dict)
    reduce: str = "sum"
    integration: str = "notebook"
    bad_pixels: str = "keep"
    odd_frames: str = "error"
    clip_negatives: bool = False
    hot_sigma: float = 5.0
    hot_iterations: int = 5
    saturation: int = 65_535
    linearity_tolerance: float = 0.10
    linearity_range: float = 30_000.0
    linearity_max_offset: float = 10.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name == "bins":
                object.__setattr__(self, "bins", _checked_bins(value))
            elif setting.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{setting.name} = {value!r}: must be true or false")
            elif setting.name in _CHOICES and value not in _CHOICES[setting.name]:
                raise ConfigError(f"{setting.name} = {value!r}: must be one of {', '.join(_CHOICES[setting.name])}")
            elif setting.name in _RANGES:
                object.__setattr__(self, setting.name, _checked_number(setting.name, setting.type == "int", value))

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
        """Return a copy with some settings changed; ``bins`` are merged, not replaced.

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
        if isinstance(bins := changes.get("bins"), Mapping):
            changes["bins"] = {**self.bins, **bins}
        return Calibration(**{**self.to_dict(), **changes})

    @classmethod
    def from_toml(cls, path: str | Path) -> Calibration:
        """Read settings from a TOML file: top-level ``name = value``, and a ``[bins]`` table.

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
            If the file cannot be read or parsed, or says something impossible.
        """
        return cls.from_dict(read_toml(path))

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as plain values.

        Returns
        -------
        dict
            Setting name to bool, int, float, str or (for ``bins``) dict.
        """
        return {s.name: dict(self.bins) if s.name == "bins" else getattr(self, s.name) for s in fields(self)}

    def to_toml(self) -> str:
        """Return every setting as a TOML document that `from_toml` reads back to equal settings.

        Returns
        -------
        str
            The document.
        """
        # JSON's booleans, numbers and strings are TOML's for every value a setting can take.
        scalars = [f"{name} = {json.dumps(value)}" for name, value in self.to_dict().items() if name != "bins"]
        bins = [f'"{name}" = {pairs}' for name, pairs in self.bins.items()]
        return "\n".join([*scalars, "", "[bins]", *bins]) + "\n"

    @property
    def content_hash(self) -> str:
        """SHA-256 of the settings: equal settings have equal hashes, however they were arrived at."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def pairs_per_bin(self, detector: Detector) -> int:
        """Return the CDS pairs in a time bin of a detector.

        Parameters
        ----------
        detector : Detector
            The detector.

        Returns
        -------
        int
            At least 1.
        """
        return self.bins[detector.name] if self.binning else 1


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file into plain values.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    dict
        Its content.

    Raises
    ------
    ConfigError
        If it cannot be read or parsed, or on Python 3.10, whose standard library has no TOML reader.
    """
    try:
        import tomllib
    except ImportError as error:
        raise ConfigError(f"{path}: Python 3.10 cannot read TOML; use Python 3.11 or later") from error
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error})") from error


def _checked_bins(bins: object) -> Mapping[str, int]:
    if not isinstance(bins, Mapping):
        raise ConfigError(f"bins = {bins!r}: must map a detector to its pairs in a bin")
    for name, pairs in bins.items():
        if name not in DETECTORS:
            raise ConfigError(f"bins: no detector {name!r}; there are {', '.join(DETECTORS)}")
        if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
            raise ConfigError(f"bins: {name} = {pairs!r}: must be an integer above 0")
    return MappingProxyType({name: bins.get(name, detector.bin_pairs) for name, detector in DETECTORS.items()})


def _checked_number(name: str, whole: bool, value: object) -> float | int:
    low, high, wanted = _RANGES[name]
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low < value <= high:
        raise ConfigError(f"{name} = {value!r}: must be {wanted}")
    return value if whole else float(value)


PRESETS: Mapping[str, Calibration] = MappingProxyType(
    {
        "ariel2024": Calibration(),
        "ariel2024-update": Calibration(integration="updated"),
        "ariel2025": Calibration(integration="updated"),
    }
)
