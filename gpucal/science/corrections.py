"""The steps after the cube, which may mix pixels: one list, in the order in which they are done.

The pipeline does them from this list, and provenance, FITS cards and ``examples/settings.md`` name them from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpucal.science import bad_pixels
from gpucal.science.steps import Array
from gpucal.settings.calibration import Calibration

__all__ = ["CORRECTIONS", "Correction"]

Flags: TypeAlias = "NDArray[np.uint8]"
"""Data-quality flags (wavelength, spatial)."""


@dataclass(frozen=True)
class Correction:
    """One step after the cube.

    Parameters
    ----------
    step : str
        Its name in the provenance.
    setting : str
        The setting that decides whether it is done.
    plan : callable
        From settings and flags: the flags afterwards, and what to do in place to the signal (time, wavelength,
        spatial), on its device; None where nothing is to be done.
    is_done : callable
        From settings and the final flags: whether it was done.
    """

    step: str
    setting: str
    plan: Callable[[Calibration, Flags], tuple[Flags, Callable[[Array], None] | None]]
    is_done: Callable[[Calibration, Flags], bool]


CORRECTIONS = (
    Correction(
        "interpolate",
        "bad_pixels",
        plan=lambda config, dq: bad_pixels.plan_repair(dq, config.bad_pixels),
        # Where bad pixels are left, there was nothing to interpolate from.
        is_done=lambda config, dq: config.bad_pixels in bad_pixels.MENDING and not bad_pixels.unusable(dq).any(),
    ),
)
