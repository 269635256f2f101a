"""Exports a results folder's cubes as stacks, Zarr or FITS.

Each observation is written under temporary names, which are renamed when all of them are complete.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.errors import ConfigError, MissingExtra, OutputError
from gpucal.inputs.dataset import SPLITS
from gpucal.pipeline.calibrated import Calibrated
from gpucal.pipeline.convert import UNITS, axes_of, flag_attributes, to_hdus
from gpucal.results.atomic import npy_writer, placing
from gpucal.results.formats import FORMATS
from gpucal.results.history import history
from gpucal.results.origin import is_inside
from gpucal.results.reader import Results, complete
from gpucal.results.stacking import differing, one_by_one
from gpucal.science.plan import DQ
from gpucal.settings.detectors import DETECTORS

if TYPE_CHECKING:
    import zarr

__all__ = ["FORMATS", "export", "write_fits", "write_npy", "write_zarr"]

_KINDS = ("signal", "variance", "dq")

_Shape = tuple[int, ...]


def export(results: Results, to: Path, format: str) -> list[Path]:
    """Write the cubes of every complete observation in another format.

    Stacks (npy, zarr) have one set of axes, those of the first observation, so all observations must share them.

    ``npy``: for each detector ``signal.npy``, ``variance.npy`` where it is stored (observation, time, wavelength,
    spatial), ``dq.npy`` (observation, wavelength, spatial), ``time.npy`` and ``wavelength.npy``. The detector's name
    and a dot stand before each name. A JSON file has ids, units and provenance.

    ``zarr``: a Zarr v3 store with a group per detector and the arrays above, with named dimensions and a chunk per
    observation; ``planet`` and ``visit`` (observation), units, flag meanings and provenance. The store also has
    consolidated metadata.

    ``fits``: a file per item, named by planet, visit and detector: SCI, ERR (if the variance is stored), DQ, TIME,
    WAVELENGTH, PROVENANCE (JSON). The primary header lists the steps that were done.

    Parameters
    ----------
    results : Results
        The results folder; it must hold cubes.
    to : Path
        For npy and fits the folder to write into; files of the same names are replaced. For zarr the store, which must
        not exist.
    format : {'npy', 'zarr', 'fits'}
        The format.

    Returns
    -------
    list of Path
        The files, or the store.

    Raises
    ------
    ConfigError
        If the format is unknown.
    OutputError
        If nothing is complete, the folder holds light curves only, stacked observations differ in shape or axes, the
        store exists, the target is in the data set, or something cannot be read or written.
    MissingExtra
        If zarr is not installed.
    """
    if format not in FORMATS:
        raise ConfigError(f"format = {format!r}: must be one of {', '.join(FORMATS)}")
    for key, detector in product(complete(results), DETECTORS):
        if "signal" not in results._record(key, detector)["files"]:
            raise OutputError(f"{results.path}: holds light curves and no cubes; calibrate with --product cubes")
    for home in {record.get("dataset") for record in results._records.values()}:
        if home and is_inside(Path(to), [Path(home, part) for part in ("", *SPLITS)]):
            raise OutputError(f"{to}: is in the data set {home}; choose another folder")
    write: Callable[[Results, Path], list[Path]] = resolve_name(FORMATS[format])
    return write(results, Path(to))


def write_npy(results: Results, to: Path) -> list[Path]:
    """Write the stacks of each detector as NumPy files; see `export`."""
    if to.resolve().parent.parent == results.path.resolve():
        raise OutputError(f"{to}: is where the results' own files are; choose another folder")
    stacks = {detector: _stacks(results, detector) for detector in DETECTORS}
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
                for cal in _same_axes(results, detector):
                    for kind, append in files.items():
                        append(getattr(cal, kind))
            axes = results.axes(results.ids[0], detector)
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
    for name, kind in product(DETECTORS, (*_KINDS, "time", "wavelength")):
        if (other := to / f"{name}.{kind}.npy") not in written:  # left by an earlier export, such as a variance
            other.unlink(missing_ok=True)
    return written


def write_zarr(results: Results, to: Path) -> list[Path]:
    """Write the stacks of all detectors as one Zarr store; see `export`."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra('zarr is not installed; pip install "gpucal[zarr]"') from error
    if to.exists() or to.is_symlink():
        raise OutputError(f"{to}: exists; remove it or name another")
    stacks = {detector: _stacks(results, detector) for detector in DETECTORS}
    with placing(to) as stage:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = stage(to)
        root = zarr.open_group(temporary, mode="w-", zarr_format=3, attributes={"creator": f"gpucal {__version__}"})
        for detector, arrays in stacks.items():
            # the attribute "coordinates" is the only way to tell xarray which arrays are coordinates
            about = {"detector": detector, "coordinates": "planet visit", "provenance": history(results, (detector,))}
            _fill(root.create_group(detector, attributes=about), results, detector, arrays)
        with warnings.catch_warnings():
            # zarr warns that the specification has no consolidated metadata yet; xarray warns where they are missing.
            warnings.filterwarnings("ignore", "Consolidated metadata")
            for path in (*stacks, None):  # xarray releases of 2025 look in the group, later ones in the root
                zarr.consolidate_metadata(root.store, path=path)
    return [to]


def _fill(
    group: zarr.Group, results: Results, detector: str, arrays: Mapping[str, tuple[_Shape, np.dtype[Any]]]
) -> None:
    """Write a detector's arrays, with a chunk per observation."""

    def create(name: str, shape: _Shape, kind: np.dtype[Any], axes: Sequence[str], chunks: _Shape) -> zarr.Array[Any]:
        attributes: dict[str, Any] = {"units": UNITS[name]} if name in UNITS else {}
        if name == "dq":
            flags = flag_attributes()
            attributes = {**flags, "flag_masks": flags["flag_masks"].tolist()}
        return group.create_array(
            name, shape=shape, dtype=kind, chunks=chunks, dimension_names=axes, attributes=attributes
        )

    ids = np.array(results.ids, np.int64)
    vectors: dict[str, tuple[str, NDArray[Any]]]
    vectors = {"planet": ("observation", ids[:, 0]), "visit": ("observation", ids[:, 1])}
    vectors |= {name: (name, values) for name, values in results.axes(results.ids[0], detector).items()}
    for name, (axis, values) in vectors.items():
        create(name, values.shape, values.dtype, (axis,), values.shape)[:] = values
    axes = axes_of(DETECTORS[detector])
    made = {
        name: create(name, shape, kind, ("observation", *axes[-len(shape) + 1 :]), (1, *shape[1:]))
        for name, (shape, kind) in arrays.items()
    }
    for i, cal in enumerate(_same_axes(results, detector)):
        for name, array in made.items():
            array[i] = getattr(cal, name)


def write_fits(results: Results, to: Path) -> list[Path]:
    """Write a FITS file for each item; see `export`."""
    written = []
    with placing(to) as stage:
        to.mkdir(parents=True, exist_ok=True)
        for key, detector in product(results.ids, DETECTORS):
            cal = results.calibrated(key, detector)
            written.append(to / f"{cal.planet}-{cal.visit}-{detector}.fits")
            to_hdus(cal).writeto(stage(written[-1]), checksum=True)
    return written


def _stacks(results: Results, detector: str) -> dict[str, tuple[_Shape, np.dtype[Any]]]:
    """Return shape and dtype of a detector's stacks, by kind, before anything is written."""
    files = [results._record(key, detector)["files"] for key in results.ids]
    kinds = [kind for kind in _KINDS if kind in files[0]]
    if any(("variance" in of) != ("variance" in kinds) for of in files):
        raise OutputError(f"{results.path}: only some observations hold a variance; {one_by_one(results.path)}")
    stacks = {}
    for kind in kinds:
        first = files[0][kind]["shape"]
        for of in files:
            if of[kind]["shape"] != first:
                raise differing(results.path, first, of[kind]["shape"])
        stacks[kind] = ((len(files), *first), np.result_type(*(of[kind]["dtype"] for of in files)))
    return stacks


def _same_axes(results: Results, detector: str) -> Iterator[Calibrated]:
    """Read a detector's items one by one; all must have the first one's axes."""
    axes = results.axes(results.ids[0], detector)
    for key in results.ids:
        cal = results.calibrated(key, detector)
        for name, values in axes.items():
            own = getattr(cal, name)
            if own is None or own.shape != values.shape or not np.allclose(own, values):
                raise OutputError(f"{results.path}: {cal.where} has another {name} axis; {one_by_one(results.path)}")
        yield cal
