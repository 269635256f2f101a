"""Exports cubes as NumPy stacks, one for each detector and kind of array."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import OutputError
from gpucal.pipeline.calibrated import Calibrated
from gpucal.pipeline.conventions import UNITS
from gpucal.results.atomic import npy_writer, placing
from gpucal.results.reader import Results
from gpucal.results.stacking import differing, one_by_one
from gpucal.science.plan import DQ
from gpucal.settings.detectors import DETECTORS

__all__ = ["Shape", "Show", "axes_in_all", "counted", "same_axes", "stacks_of", "write_npy"]

Shape: TypeAlias = "tuple[int, ...]"

Show: TypeAlias = Callable[[int, int], object]
"""Shows progress: called with the number of items that were read, and of all that will be."""

# The stored arrays that are stacked, and their names in an export, which are those of `Calibrated`.
_STACKED: Mapping[str, str] = MappingProxyType(
    {"signal": "signal", "variance": "variance", "readvariance": "read_variance", "dq": "dq"}
)
_AXES = ("time", "time_bounds", "wavelength")


def write_npy(results: Results, to: Path, show: Show) -> list[Path]:
    """Write the stacks of each detector as NumPy files; see `export`."""
    if to.resolve().parent.parent == results.path.resolve():
        raise OutputError(f"{to}: is where the results' own files are; choose another folder")
    stacks = {detector: stacks_of(results, detector) for detector in DETECTORS}
    written: list[Path] = []
    with placing(to) as stage:
        to.mkdir(parents=True, exist_ok=True)

        def target(name: str) -> Path:
            written.append(to / name)
            return stage(written[-1])

        for detector, arrays in stacks.items():
            with ExitStack() as opened:
                files = {
                    kind: opened.enter_context(npy_writer(target(f"{detector}.{kind}.npy"), *of))
                    for kind, of in arrays.items()
                }
                for cal in same_axes(results, detector, show):
                    for kind, append in files.items():
                        append(getattr(cal, kind))
            axes = axes_in_all(results, detector)
            for name, values in axes.items():
                with npy_writer(target(f"{detector}.{name}.npy"), values.shape, values.dtype) as append:
                    append(values)
            about = {
                "detector": detector,
                "ids": results.ids,
                "units": {name: UNITS[name] for name in (*arrays, *axes) if name in UNITS},
                "dq": {flag.name: flag.value for flag in DQ},
                "provenance": [results._record(key, detector)["provenance"] for key in results.ids],
            }
            target(f"{detector}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    for name, kind in product(DETECTORS, (*_STACKED.values(), *_AXES)):
        if (other := to / f"{name}.{kind}.npy") not in written:  # left by an earlier export, such as a variance
            other.unlink(missing_ok=True)
    return written


def stacks_of(results: Results, detector: str) -> dict[str, tuple[Shape, np.dtype[Any]]]:
    """Return shape and dtype of a detector's stacks, by name, before anything is written."""
    files = [results._record(key, detector)["files"] for key in results.ids]
    kinds = [kind for kind in _STACKED if all(kind in of for of in files)]
    if any(("variance" in of) != ("variance" in kinds) for of in files):
        raise OutputError(f"{results.path}: only some observations hold a variance; {one_by_one(results.path)}")
    stacks = {}
    for kind in kinds:
        first = files[0][kind]["shape"]
        for of in files:
            if of[kind]["shape"] != first:
                raise differing(results.path, first, of[kind]["shape"])
        stacks[_STACKED[kind]] = ((len(files), *first), np.result_type(*(of[kind]["dtype"] for of in files)))
    return stacks


def same_axes(results: Results, detector: str, show: Show) -> Iterator[Calibrated]:
    """Read a detector's items one by one; all must have the first one's axes."""
    axes = axes_in_all(results, detector)
    for key in counted(results, show, detector):
        cal = results.calibrated(key, detector)
        for name, values in axes.items():
            own = getattr(cal, name)
            if own is None or own.shape != values.shape or not np.allclose(own, values):
                raise OutputError(f"{results.path}: {cal.where} has another {name} axis; {one_by_one(results.path)}")
        yield cal


def axes_in_all(results: Results, detector: str) -> dict[str, NDArray[np.float64]]:
    """Return the first item's axes, and the bounds of its bins if every item holds them."""
    axes = results.axes(results.ids[0], detector)
    if all("bounds" in results._record(key, detector)["files"] for key in results.ids):
        bounds = results.time_bounds(results.ids[0], detector)
        assert bounds is not None
        axes["time_bounds"] = bounds
    return axes


def counted(results: Results, show: Show, detector: str | None = None) -> Iterator[tuple[int, int]]:
    """Give planet and visit of each observation, and show how many items were read: one of each, or that of a detector.

    Detectors are read one after the other.
    """
    names = [*DETECTORS]
    before, each = (0, len(names)) if detector is None else (names.index(detector) * len(results), 1)
    for number, key in enumerate(results.ids, 1):
        yield key
        show(before + number * each, len(names) * len(results))
