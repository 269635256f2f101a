"""Exports cubes as a Zarr v3 store that xarray opens, with the metadata of the CF conventions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.errors import MissingExtra, OutputError
from gpucal.pipeline.conventions import CONVENTIONS, SOURCE, attributes, axes_of, detector_axes, history_line
from gpucal.results.atomic import placing
from gpucal.results.history import history
from gpucal.results.reader import Results
from gpucal.results.stacks import Shape, Show, axes_in_all, same_axes, stacks_of
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS

if TYPE_CHECKING:
    import zarr

__all__ = ["write_zarr"]


def write_zarr(results: Results, to: Path, show: Show) -> list[Path]:
    """Write the stacks of all detectors as one Zarr store; see `export`."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra('zarr is not installed; pip install "gpucal[zarr]"') from error
    if to.exists() or to.is_symlink():
        raise OutputError(f"{to}: exists; remove it or name another")
    stacks = {detector: stacks_of(results, detector) for detector in DETECTORS}
    with placing(to) as stage:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = stage(to)
        root = zarr.open_group(temporary, mode="w-", zarr_format=3, attributes={"creator": f"gpucal {__version__}"})
        for detector, arrays in stacks.items():
            group = root.create_group(detector, attributes=_about(results, detector))
            _fill(group, results, detector, arrays, show)
        with warnings.catch_warnings():
            # zarr warns that the specification has no consolidated metadata yet; xarray warns where they are missing.
            warnings.filterwarnings("ignore", "Consolidated metadata")
            for path in (*stacks, None):  # xarray releases of 2025 look in the group, later ones in the root
                zarr.consolidate_metadata(root.store, path=path)
    return [to]


def _about(results: Results, detector: str) -> dict[str, Any]:
    """Return a group's attributes."""
    made = [results._record(key, detector)["provenance"] for key in results.ids]
    # A line for each version and choice of steps, with the first date, not for each of a thousand observations.
    lines: dict[str, str] = {}
    for of in sorted(made, key=lambda of: str(of["created"])):
        lines.setdefault(json.dumps([of["version"], of["steps"]]), history_line(of))
    coordinates = ["planet", "visit", *detector_axes(DETECTORS[detector])]
    coordinates += ["time_bounds"] if "time_bounds" in axes_in_all(results, detector) else []
    return {
        "Conventions": CONVENTIONS,
        "title": f"{detector}: calibrated signals of {len(results)} observations in time bins",
        "source": SOURCE,
        "history": "\n".join(lines.values()),
        "detector": detector,
        # the only way to tell xarray which arrays are coordinates
        "coordinates": " ".join(coordinates),
        "provenance": history(results, (detector,)),
    }


def _fill(
    group: zarr.Group, results: Results, detector: str, arrays: Mapping[str, tuple[Shape, np.dtype[Any]]], show: Show
) -> None:
    """Write a detector's arrays, with a chunk per observation."""

    def create(name: str, shape: Shape, kind: np.dtype[Any], axes: Sequence[str], chunks: Shape) -> zarr.Array[Any]:
        return group.create_array(
            name, shape=shape, dtype=kind, chunks=chunks, dimension_names=axes, attributes=facts[name]
        )

    ids, first = np.array(results.ids, np.int64), results.ids[0]
    settings = results._record(first, detector)["provenance"]["settings"]
    cropped = Calibration.from_dict(settings).cropped(DETECTORS[detector])
    small: dict[str, tuple[tuple[str, ...], NDArray[Any]]]
    small = {"planet": (("observation",), ids[:, 0]), "visit": (("observation",), ids[:, 1])}
    small |= {name: ((axis,), values) for name, (axis, values) in detector_axes(cropped).items()}
    axes_values = axes_in_all(results, detector)
    for name, values in axes_values.items():
        small[name] = (("time", "bounds") if name == "time_bounds" else (name,)), values
    facts = {name: _plain(attributes(name)) for name in (*small, *arrays)}
    if "time_bounds" in small:
        facts["time"]["bounds"] = "time_bounds"
    for name, (of, values) in small.items():
        create(name, values.shape, values.dtype, of, values.shape)[:] = values
    axes = axes_of(cropped)
    made = {
        name: create(name, shape, kind, ("observation", *axes[-len(shape) + 1 :]), (1, *shape[1:]))
        for name, (shape, kind) in arrays.items()
    }
    for i, cal in enumerate(same_axes(results, detector, show)):
        for name, array in made.items():
            array[i] = getattr(cal, name)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON can hold them."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in facts.items()}
