"""Finds observations that need a look, as their numbers on quality are far from those of their set.

Nothing is compared with an absolute limit: pointing jitter dominates real data, and each set has its own. A number is
far if it is more than `FAR` scaled median absolute deviations from the set's median. It must be more than a least
distance away too, so that outliers of a quiet set do not count. Fewer than `FEWEST` observations are no set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["CHECKS", "FAR", "FEWEST", "Check", "Limits", "Reason", "far_above", "limits_of", "unusual"]

FAR = 5.0
"""Scaled median absolute deviations from the median, beyond which a number is far."""

FEWEST = 5
"""The fewest observations that make a set."""

# Standard deviations of a normal distribution in a median absolute deviation.
_NORMAL = 1.4826

# Of an observation without any light curve: it comes first.
_WORST = 1000.0

Numbers = Mapping[str, float]
"""Numbers on quality of one item, by name; NaN where they are not known."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Check:
    """A number that is compared with the set's.

    Parameters
    ----------
    number : str
        Its name, as `gpucal.Results.table` has it.
    least : callable
        Called with the numbers of an item and the set's median; returns the least distance that counts.
    says : str
        What an item far from the set has, with ``{value}`` and ``{median}``.
    look : str
        What to look at, or to do.
    low : bool
        Whether a number far below the set's counts too.
    without : str
        The name of a better number: items that have it are not checked.
    """

    number: str
    least: Callable[[Numbers, float], float]
    says: str
    look: str
    low: bool = False
    without: str = ""


@dataclass(frozen=True)
class Limits:
    """The median of a set, and the distance from it beyond which a number is far, but for the least distances."""

    median: float
    distance: float


@dataclass(frozen=True)
class Reason:
    """Why an item needs a look.

    Parameters
    ----------
    score : float
        How far it is from the set, in units of the limit: 1 or more.
    number : str
        The name of the number.
    says, look : str
        What it has, and what to look at.
    """

    score: float
    number: str
    says: str
    look: str


def _share(part: float) -> Callable[[Numbers, float], float]:
    return lambda numbers, median: part * abs(median)


def _fixed(distance: float) -> Callable[[Numbers, float], float]:
    return lambda numbers, median: distance


def _counted(least: float) -> Callable[[Numbers, float], float]:
    """Five standard deviations of counts with this median, at least so many."""
    return lambda numbers, median: max(least, 5.0 * math.sqrt(max(median, 0.0)))


def _of_noise(numbers: Numbers, median: float) -> float:
    """Five standard deviations of the drift that noise alone makes: a median of a third of a few dozen bins or more."""
    scatter = numbers.get("scatter_ppm", math.nan)
    return 5.0 * scatter if math.isfinite(scatter) else math.inf


def _of_photons(numbers: Numbers, median: float) -> float:
    """Twice the item's own photon noise, so that faint stars do not count, or the set's median."""
    light = numbers.get("white_flux", math.nan)
    return max(median, 2e6 / math.sqrt(light)) if light > 0.0 else math.inf


_NOISY = (
    "look at its white light curve: single bins far off are hits of cosmic rays. If all scatter, look at the position "
    "of the light: if it moves too, that is pointing jitter. If it is still, the detector changes; leave the "
    "observation out"
)

CHECKS: tuple[Check, ...] = (
    Check(
        "excess",
        _share(0.5),
        "white light has {value:.3g} times the expected noise, and the set has {median:.3g}",
        _NOISY,
    ),
    Check(
        "scatter_ppm",
        _of_photons,
        "white light scatters by {value:,.0f} ppm, and the set by {median:,.0f}; the expected noise is not known",
        _NOISY,
        without="excess",
    ),
    Check(
        "excess_by_wavelength_p50",
        _share(0.5),
        "its light curves have {value:.3g} times the expected noise, and the set has {median:.3g}",
        "look at its scatter over wavelength: if all wavelengths are high, check its dark, flat and read noise files",
    ),
    Check(
        "excess_by_wavelength_p95",
        _share(0.75),
        "its noisiest wavelengths have {value:.3g} times the expected noise, and the set has {median:.3g}",
        "look at its scatter over wavelength for peaks: bad pixels without a flag, which no setting mends; leave these "
        "wavelengths out of fits",
    ),
    Check(
        "drift_ppm",
        _of_noise,
        "white light drifts by {value:,.0f} ppm from the first third to the last, and the set by {median:,.0f}",
        "look at its white light curve: a transit that is cut off, or the detector settling; a straight line in the "
        "fit takes a slow drift away",
        low=True,
    ),
    Check(
        "trace_flags_SATURATED",
        _counted(5.0),
        "{value:.0f} pixels in the trace are saturated, and {median:.0f} in the set",
        "look at its mean image: saturated counts are too low, so that its transit is too shallow; leave them out",
    ),
    Check(
        "trace_flags",
        _counted(10.0),
        "{value:.0f} flags are set in the trace, and {median:.0f} in the set",
        "look at its mean image with flags: check its dead, dark and flat files",
    ),
    Check(
        "nan_columns",
        _counted(1.0),
        "{value:.0f} light curves have bins without a value, and {median:.0f} in the set",
        "look at its light curves over time: grey ones have no usable pixel; leave them out of fits",
    ),
    Check(
        "negative_share",
        _fixed(0.05),
        "{value:.0%} of its values are below 0, and {median:.0%} in the set",
        "check its dark file: too much is subtracted",
    ),
    Check(
        "trace_row",
        _fixed(0.5),
        "light falls on row {value:.2f}, and on row {median:.2f} in the set",
        "look at its mean image: if rows are chosen in the settings, the trace may lie outside them",
        low=True,
    ),
    Check(
        "trace_column",
        _fixed(0.5),
        "light falls on column {value:.2f}, and on column {median:.2f} in the set",
        "look at its mean image: the star may be partly outside it",
        low=True,
    ),
    Check(
        "trace_row_drift",
        _fixed(0.1),
        "the trace moves by {value:.2f} rows, and by {median:.2f} in the set",
        "look at its trace position over time: a step is a lost guide star; fit both sides by themselves",
        low=True,
    ),
    Check(
        "trace_column_drift",
        _fixed(0.1),
        "the star moves by {value:.2f} columns, and by {median:.2f} in the set",
        "look at its trace position over time: a step is a lost guide star; fit both sides by themselves",
        low=True,
    ),
)
"""What is compared, for each detector by itself."""

_DARK = Reason(
    _WORST,
    "white_flux",
    "none of its light curves has a value in every bin",
    "look at its mean image; check its signal, dark and flat files, and calibrate it again",
)


def limits_of(items: Mapping[Key, Numbers]) -> dict[str, Limits]:
    """Find the median of each checked number, and how far from it is far.

    Parameters
    ----------
    items : mapping of key to (mapping of str to float)
        Numbers of the items of one detector.

    Returns
    -------
    dict of str to Limits
        By name; numbers that fewer than `FEWEST` items have are left out.
    """
    found = {}
    for check in CHECKS:
        values = np.array([of.get(check.number, math.nan) for of in items.values()], np.float64)
        values = values[np.isfinite(values)]
        if len(values) >= FEWEST:
            median = float(np.median(values))
            found[check.number] = Limits(median, FAR * _NORMAL * float(np.median(np.abs(values - median))))
    return found


def far_above(items: Mapping[Key, Numbers], number: str) -> float | None:
    """Return the value above which a number is far from the set's; None where there is no set."""
    limits = limits_of(items).get(number)
    if limits is None:
        return None
    (least,) = (check.least({}, limits.median) for check in CHECKS if check.number == number)
    return limits.median + max(limits.distance, least)


def unusual(items: Mapping[Key, Numbers]) -> dict[Key, list[Reason]]:
    """Find the items of one detector that need a look.

    Parameters
    ----------
    items : mapping of key to (mapping of str to float)
        Numbers of each item, as `gpucal.Results.table` has them, and ``trace_flags``, the sum over flags.

    Returns
    -------
    dict of key to list of Reason
        The items that have a reason, in their order; of each the gravest first.
    """
    limits = limits_of(items)
    found = {}
    for key, numbers in items.items():
        reasons = [] if math.isfinite(numbers.get("white_flux", math.nan)) else [_DARK]
        for check in CHECKS:
            value = numbers.get(check.number, math.nan)
            better = math.isfinite(numbers.get(check.without, math.nan))
            if check.number not in limits or not math.isfinite(value) or better:
                continue
            median = limits[check.number].median
            distance = max(limits[check.number].distance, check.least(numbers, median))
            away = abs(value - median) if check.low else value - median
            if away > distance:
                score = min(away / distance, _WORST) if distance else _WORST
                reasons.append(Reason(score, check.number, check.says.format(value=value, median=median), check.look))
        if reasons:
            found[key] = sorted(reasons, key=lambda reason: -reason.score)
    return found
