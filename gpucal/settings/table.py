"""The table of settings: a field of `Settings` is a row, with the default, rule, flag, example and effect of a setting.

Made from it: the checks, the flags of the command line and their help, TOML, the docstring of `gpucal.Calibration`. A
test compares it with ``examples/settings.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from gpucal.settings.detectors import DETECTORS
from gpucal.settings.rules import (
    APERTURE_COLUMNS,
    BELOW_ZERO,
    BINS,
    COLUMNS,
    NO_ROWS,
    ROWS,
    ByDetector,
    Choice,
    Number,
    Rule,
    Switch,
    Window,
    check_aperture,
    check_overlap,
)

__all__ = ["SETTINGS", "Setting", "Settings", "setting"]

Field: TypeAlias = Any
"""A field of a dataclass, which is written where a default of the field's type is expected."""


class Setting(NamedTuple):
    """A row: what the values can be, the effect (its first sentence is the flag's help), the flag, an example of it.

    A setting that 0.1 did not have is ``added``: at its default it changes no hash, so that older results still count.
    """

    rule: Rule
    effect: str
    flag: str = ""
    example: str = ""
    added: bool = False


def setting(rule: Rule, effect: str, *, flag: str = "", example: str = "", added: bool = False) -> Field:
    """Make a field of `Settings`. Without ``flag`` the flag is the name."""
    row = {"setting": Setting(rule, effect, flag, example, added)}
    if isinstance(rule, ByDetector):
        return field(default_factory=dict, metadata=row)
    return field(default=rule.default, metadata=row)


@dataclass(frozen=True)
class Settings:
    """Every setting, checked when made."""

    mask: bool = setting(
        Switch(True),
        "Flag dead and hot pixels in the data-quality map. The flags change no computed value: as in the notebook, "
        "dark and flat skip dead pixels even where this is off. The flags decide which pixels ``bad_pixels`` makes NaN "
        "or interpolates, and which pixels count in light curves.",
    )
    linearity: bool = setting(Switch(True), "Correct the non-linearity.")
    dark: bool = setting(Switch(True), "Subtract the dark current.")
    flat: bool = setting(Switch(True), "Divide by the flat field.")
    binning: bool = setting(
        Switch(True), "Sum CDS pairs in time bins. Off, every pair is a bin of its own. ``--bin`` switches it on."
    )
    bins: Mapping[str, int | str] = setting(
        BINS,
        "CDS pairs in a bin, or seconds as in FGS1=144s, or none. In Python and in a file, they are ``30``, "
        "``'144 s'`` and ``'none'``. Seconds become the nearest number of pairs.",
        flag="--bin",
        example="AIRS-CH0=30",
    )
    crop: Mapping[str, Window] = setting(
        COLUMNS, "First and one-past-last wavelength column that are calibrated.", example="AIRS-CH0=39:321"
    )
    gain: str = setting(
        Choice(("divide", "multiply")),
        "Divide counts by the ADC gain, as in every official notebook, or multiply them. Electrons are "
        "``counts / gain + offset`` or, as the documentation of 2024 says, ``counts · gain + offset``.",
    )
    reduce: str = setting(
        Choice(("sum", "mean")), "A bin holds the sum of its pairs, as in the notebook, or their mean."
    )
    integration: str | None = setting(
        Choice(("notebook", "updated"), is_open=True),
        "Integration times as first published, or with 0.1 s more for end reads. The first are AIRS-CH0 0.1/4.5 s and "
        "FGS1 0.1/0.1 s; the update is that of 29 August 2024 and of the 2025 notebook. The data set's preset has the "
        "default: ``notebook`` for 2024, ``updated`` for 2025.",
    )
    flat_order: str = setting(
        Choice(("after-cds", "before-cds")),
        "When to divide by the flat; the result is the same. Only rounding would differ, and gpucal computes the same "
        "formula for both. Where a flat is 0, neither result is finite.",
    )
    bad_pixels: str = setting(
        Choice(("keep", "nan", "interpolate", "profile")),
        "Leave flagged pixels as computed, set them to NaN, or make them of good ones along the spatial axis. "
        "``interpolate`` puts a straight line between their good neighbours. ``profile`` gives them the shape that the "
        "nearest wavelengths have (`gpucal.science.bad_pixels`). Both flag them INTERPOLATED.",
    )
    bad_coefficients: str = setting(
        Choice(("keep", "benign")),
        "Apply flagged calibration values, or replace them by the identity and by 1. The flags are BAD_LINEARITY and "
        "BAD_FLAT; they stay.",
    )
    odd_frames: str = setting(
        Choice(("error", "drop")), "Refuse an odd number of frames, as the notebook does, or drop the last frame."
    )
    clip_negatives: bool = setting(Switch(False), "Raise negative electrons to zero straight after the ADC step.")
    hot_clip: str = setting(
        Choice(("cropped", "full-frame", "off")),
        "Pixels that the sigma clip for hot pixels uses. They are those of the cropped dark, as in the notebook, of "
        "the whole dark, or none.",
    )
    hot_sigma: float = setting(Number(5.0, "sigma", "a number above 0"), "Threshold of the clip for hot pixels.")
    hot_iterations: int = setting(Number(5, "passes", "an integer above 0"), "Passes of that clip, at most.")
    saturation: int = setting(
        Number(65_535, "counts", "an integer from 1 to 65536 (65536 never flags)", most=65_536),
        "Flag a pixel as saturated that has this many raw counts, or more, in a used frame.",
    )
    flat_minimum: float = setting(
        Number(0.0, "fraction", "a number, 0 or above", BELOW_ZERO), "Flag a flat at or below this, or not finite."
    )
    linearity_tolerance: float = setting(
        Number(0.10, "fraction", "a fraction above 0"),
        "Flag a linearity polynomial that differs from the identity by more than this.",
    )
    linearity_range: float = setting(
        Number(30_000.0, "electrons", "a number of electrons above 0"),
        "Largest signal for that comparison of a linearity polynomial with the identity.",
    )
    linearity_max_offset: float = setting(
        Number(10.0, "electrons", "a number of electrons above 0"),
        "Flag a linearity polynomial whose constant term is beyond this.",
    )
    weights: str = setting(
        Choice(("plain", "variance")),
        "Light curves: sums over good pixels, or optimal sums, with weights of profile over variance.",
    )
    rows: Mapping[str, Window] = setting(
        ROWS, "Light curves: first and one-past-last spatial row that are summed.", example="AIRS-CH0=8:24"
    )
    background_rows: Mapping[str, tuple[Window, ...] | str] = setting(
        NO_ROWS,
        "Light curves: rows whose mean is subtracted as background. ``'faintest:6'`` takes the six faintest rows that "
        "are not summed. A wavelength without a usable pixel there becomes NaN.",
        example="AIRS-CH0=0:8,24:32",
    )
    drop_last_pairs: int = setting(
        Number(0, "pairs", "an integer, 0 or above", above=-1),
        "CDS pairs at the end that are left out before binning. All other bins stay as they are.",
        added=True,
    )
    background: str = setting(
        Choice(("bin", "constant")),
        "Light curves: background of each time bin, or one number for all bins. The constant one is the mean over "
        "time; it adds next to no noise, but does not follow a background that changes.",
        added=True,
    )
    columns: Mapping[str, Window] = setting(
        APERTURE_COLUMNS,
        "Light curves: first and one-past-last column of FGS1 that are summed. With ``rows`` they make a square. The "
        "columns of AIRS-CH0 are wavelengths, see ``crop``. Background rows keep all their columns.",
        example="FGS1=10:22",
        added=True,
    )
    cosmic_rays: float = setting(
        Number(0.0, "sigma", "0, which is off, or a number above 0", BELOW_ZERO),
        "Leave out CDS pairs farther than this from a quadratic through their ten neighbours, or 0 for none. The unit "
        "is the robust scatter of a pixel's pairs. The rest of a bin is scaled up; pixels are flagged COSMIC.",
        added=True,
    )
    # A new setting goes here, the last.

    def __post_init__(self) -> None:
        for row in fields(self):
            object.__setattr__(self, row.name, row.metadata["setting"].rule(row.name, getattr(self, row.name)))
        for name in DETECTORS:
            columns, crop = self.columns[name], self.crop[name]
            check_overlap(f"columns: {name}", columns, crop)
            whole = columns[0] <= crop[0] and crop[1] <= columns[1]
            sky, height = self.background_rows[name], DETECTORS[name].shape[0]
            check_aperture(f"background_rows: {name}", self.rows[name], sky, height, whole=whole)


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        one.name: (row := one.metadata["setting"])._replace(flag=row.flag or f"--{one.name.replace('_', '-')}")
        for one in fields(Settings)
    }
)
"""The table: name to row."""
