"""Names, units and meanings of the exported arrays: the same in Zarr, xarray and FITS."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.pipeline.product import Product
from gpucal.science.plan import DQ
from gpucal.settings.detectors import Detector

__all__ = [
    "CONVENTIONS",
    "SOURCE",
    "UNITS",
    "about",
    "attributes",
    "axes_of",
    "detector_axes",
    "flag_attributes",
    "history_line",
]

CONVENTIONS = "CF-1.11"
"""The metadata conventions that names and attributes follow."""

SOURCE = "Ariel Data Challenge, simulated raw detector reads"
"""Where the data come from."""

# "hour", not "hours": xarray reads a coordinate in "hours" as time differences.
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "signal": "electron",
        "variance": "electron2",
        "read_variance": "electron2",
        "time": "hour",
        "time_bounds": "hour",
        "wavelength": "um",
    }
)
"""The unit of each array, as exported attributes name it."""

_LONG_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "signal": "calibrated signal of a time bin",
        "variance": "variance of the signal: photon noise and read noise",
        "read_variance": "part of the variance that is read noise, the same in every bin",
        "dq": "data quality flags of a pixel, 0 is good",
        "time": "mean time of the reads of a bin",
        "time_bounds": "times of the first and the last read of a bin",
        "wavelength": "wavelength of a detector column",
        "column": "detector column, counted from 0 in the stored frame",
        "row": "detector row, counted from 0 in the stored frame",
        "planet": "planet id of the competition",
        "visit": "number of the observation of a planet, from 0",
    }
)


def attributes(name: str) -> dict[str, Any]:
    """Return the CF attributes of an array: ``long_name``, and what else is known of it."""
    more: dict[str, Any] = {"units": UNITS[name]} if name in UNITS else {}
    if name == "dq":
        more = flag_attributes()
    if name == "time":
        more["axis"] = "T"
    return {"long_name": _LONG_NAMES[name], **more}


def axes_of(detector: Detector) -> tuple[str, str, str]:
    """Return the names of a cube's axes; a photometer has no wavelengths, so its axes are ``time``, ``x`` and ``y``."""
    return ("time", "x", "y") if detector.photometer else ("time", "wavelength", "spatial")


def detector_axes(detector: Detector) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Return ``column`` and ``row``, each with the axis it belongs to: where a pixel of the cube is in the frame."""
    _, along, across = axes_of(detector)
    return {
        "column": (along, np.arange(*detector.crop, dtype=np.int64)),
        "row": (across, np.arange(detector.shape[0], dtype=np.int64)),
    }


def flag_attributes(*, cosmic: bool = True) -> dict[str, Any]:
    """Return the CF attributes that explain a data-quality array: ``flag_masks`` and ``flag_meanings``.

    CF requires the masks to have the array's type, uint8. The meanings are words in the order of the masks. Without
    ``cosmic`` COSMIC is not among them: NetCDF-3 files, which have no unsigned numbers, cannot hold its 128.
    """
    flags = [flag for flag in DQ if cosmic or flag != DQ.COSMIC]
    masks = np.array([flag.value for flag in flags], np.uint8)
    return {"flag_masks": masks, "flag_meanings": " ".join(str(flag.name).lower() for flag in flags)}


def about(cal: Product) -> dict[str, Any]:
    """Return the global CF attributes of one product."""
    return {
        "Conventions": CONVENTIONS,
        "title": f"Planet {cal.planet}, visit {cal.visit}, {cal.detector.name}: calibrated signal in time bins",
        "source": SOURCE,
        "history": history_line(cal.provenance),
    }


def history_line(provenance: Mapping[str, Any]) -> str:
    """Tell in one line when an item was calibrated, by which version, with which steps."""
    steps = " ".join(f"{step}={done}" for step, done in provenance["steps"].items())
    return f"{provenance['created']} gpucal {provenance['version']}: {steps} (exported by gpucal {__version__})"
