"""A results folder in other forms: all light curves in one table, cubes as stacks, Zarr or FITS.

Everything is written an observation at a time under temporary names, which are renamed when all of it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import gpucal
from gpucal.config import Calibration
from gpucal.containers import AXES, UNITS, flag_attributes, to_hdus
from gpucal.detectors import DETECTORS
from gpucal.errors import ConfigError, MissingExtra, OutputError
from gpucal.plan import DQ
from gpucal.product import Calibrated
from gpucal.results import ORDER, Results
from gpucal.rules import FORMATS
from gpucal.store import temporary_name, unwritable

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr

__all__ = ["FORMATS", "LIGHT_CURVES", "export", "write_light_curves"]

LIGHT_CURVES = ("light-curves.npy", "light-curves.errors.npy", "light-curves.parquet")
"""What `write_light_curves` writes."""

# Rows in a row group at least. One an observation would be 187 rows: with 570 columns and 1100 observations that is
# 1.1 GB of memory for the file's index alone, 26 s, and 0.9 s to read a column back, instead of 0.1 GB, 4 s and 0.1 s.
_GROUP_ROWS = 4096

_DIMENSIONS = {"signal": AXES, "variance": AXES, "dq": AXES[1:]}

_Shape = tuple[int, ...]


def write_light_curves(results: Results) -> None:
    """Write the light curves of every complete observation together, into the results folder.

    ``light-curves.npy`` and ``light-curves.errors.npy`` have the shape (observation, time, 283), FGS1 first, in the
    order of ``results.ids``, electrons, of the items' dtype. ``light-curves.parquet`` has a row for each observation
    and bin: ``planet``, ``visit``, ``bin``, ``time_h`` (AIRS-CH0's), ``FGS1``, ``AIRS-CH0_039`` and so on by stored
    column, then the same names with ``_error``. Its row groups are whole observations, and its schema's metadata has
    the provenance as JSON under ``gpucal``: ``common`` to all items, and what each of ``items`` has of its own.

    Parameters
    ----------
    results : Results
        The folder.

    Raises
    ------
    OutputError
        If nothing is complete, observations differ in bins or columns, errors need variances that were not stored, or
        a file cannot be read or written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = _complete(results)
    names = _curve_names(results)
    kind = np.result_type(
        *(
            files["flux" if "flux" in files else "signal"]["dtype"]
            for files in (results._record(key, name)["files"] for key, name in product(keys, ORDER))
        )
    )
    shape = results.light_curves_of(keys[0]).shape
    schema = _schema(names, kind, _history(results, ORDER))
    targets = [results.path / name for name in LIGHT_CURVES]
    with _placing(results.path) as stage, ExitStack() as opened:
        flux, error = (opened.enter_context(_npy(stage(t), (len(keys), *shape), kind)) for t in targets[:2])
        # no statistics: they are a third of the index, and nobody looks for a flux by its value
        options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
        table = opened.enter_context(pq.ParquetWriter(stage(targets[2]), schema, **options))
        waiting: list[pa.RecordBatch] = []
        for key in keys:
            curve = results.light_curves_with_errors_of(key)
            if curve.flux.shape != shape:
                raise _differ(results, shape, curve.flux.shape)
            with np.errstate(over="ignore"):  # a pixel of a flat near 0, in float32
                values = np.concatenate(curve, axis=1).astype(kind)
            flux(values[:, : len(names)])
            error(values[:, len(names) :])
            times = results._read(key, "AIRS-CH0", "time")
            waiting.append(_rows(schema, key, times, values))
            if len(waiting) * len(times) >= _GROUP_ROWS or key == keys[-1]:
                group = pa.Table.from_batches(waiting)
                table.write_table(group, row_group_size=len(group))
                waiting = []


def _curve_names(results: Results) -> list[str]:
    """Name the light curves by the stored columns they are of."""

    def of(key: tuple[int, int]) -> list[str]:
        settings = results._record(key, "AIRS-CH0")["provenance"]["settings"]
        first, last = Calibration.from_dict(settings).cropped(DETECTORS["AIRS-CH0"]).crop
        return ["FGS1", *(f"AIRS-CH0_{column:03d}" for column in range(first, last))]

    names = of(results.ids[0])
    if any(of(key) != names for key in results.ids):
        raise OutputError(f"{results.path}: observations differ in their columns; {_one_by_one(results)}")
    return names


def _schema(names: Sequence[str], kind: np.dtype[Any], history: str) -> pa.Schema:
    import pyarrow as pa

    value = pa.from_numpy_dtype(kind)
    keys = [("planet", pa.int64()), ("visit", pa.int64()), ("bin", pa.int32()), ("time_h", pa.float64())]
    curves = [(name, value) for name in (*names, *(f"{name}_error" for name in names))]
    return pa.schema([*keys, *curves], metadata={"gpucal": history})


def _rows(schema: pa.Schema, key: tuple[int, int], times: NDArray[np.float64], values: NDArray[Any]) -> pa.RecordBatch:
    """Make one observation's rows of values (time, column)."""
    import pyarrow as pa

    n = len(values)
    columns = [np.full(n, key[0], np.int64), np.full(n, key[1], np.int64), np.arange(n, dtype=np.int32), times]
    columns.extend(np.ascontiguousarray(values.T))
    # pa.array() imports pandas, 0.3 s
    arrays = [pa.Array.from_buffers(f.type, n, [None, pa.py_buffer(c)]) for f, c in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def export(results: Results, to: Path, format: str) -> list[Path]:
    """Write the cubes of every complete observation in another form.

    In stacks (npy, zarr) all observations have the first one's axes.

    ``npy``: for each detector ``signal.npy`` and perhaps ``variance.npy`` (observation, time, wavelength, spatial),
    ``dq.npy`` (observation, wavelength, spatial), ``time.npy``, ``wavelength.npy``, their names after the detector's
    and a dot, and a JSON file with ids, units and provenance.

    ``zarr``: a Zarr v3 store with a group a detector, arrays as above with named dimensions, a chunk an observation;
    ``planet`` and ``visit`` (observation), units, flag meanings and provenance. Metadata are consolidated too.

    ``fits``: a file an item, named by planet, visit and detector: SCI, ERR (if the variance is stored), DQ, TIME,
    WAVELENGTH, PROVENANCE (JSON), and in the primary header which steps were done.

    Parameters
    ----------
    results : Results
        The folder; it must hold cubes.
    to : Path
        The folder to write into, for npy and fits, where files of the same names are replaced; for zarr the store,
        which must not exist.
    format : {'npy', 'zarr', 'fits'}
        The form.

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
        store exists, or something cannot be read or written.
    MissingExtra
        If zarr is not installed.
    """
    if format not in FORMATS:
        raise ConfigError(f"format = {format!r}: must be one of {', '.join(FORMATS)}")
    for key, detector in product(_complete(results), DETECTORS):
        if "signal" not in results._record(key, detector)["files"]:
            raise OutputError(f"{results.path}: holds light curves and no cubes; calibrate with --product cubes")
    return _WRITERS[format](results, Path(to))


def _write_npy(results: Results, to: Path) -> list[Path]:
    if to.resolve().parent.parent == results.path.resolve():
        raise OutputError(f"{to}: is where the results' own files are; choose another folder")
    stacks = {detector: _stacks(results, detector) for detector in DETECTORS}
    written: list[Path] = []
    with _placing(to) as stage:
        to.mkdir(parents=True, exist_ok=True)

        def target(name: str) -> Path:
            written.append(to / name)
            return stage(written[-1])

        for detector, arrays in stacks.items():
            with ExitStack() as opened:
                files = {
                    kind: opened.enter_context(_npy(target(f"{detector}.{kind}.npy"), *of))
                    for kind, of in arrays.items()
                }
                for cal in _same_axes(results, detector):
                    for kind, append in files.items():
                        append(getattr(cal, kind))
            axes = _axes(results, detector)
            for name, values in axes.items():
                with _npy(target(f"{detector}.{name}.npy"), values.shape, values.dtype) as append:
                    append(values)
            about = {
                "detector": detector,
                "ids": results.ids,
                "units": {name: UNITS[name] for name in (*arrays, *axes) if name in UNITS},
                "dq": {flag.name: flag.value for flag in DQ},
                "provenance": [results._record(key, detector)["provenance"] for key in results.ids],
            }
            target(f"{detector}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return written


def _write_zarr(results: Results, to: Path) -> list[Path]:
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra('zarr is not installed; pip install "gpucal[zarr]"') from error
    if to.exists() or to.is_symlink():
        raise OutputError(f"{to}: exists; remove it or name another")
    stacks = {detector: _stacks(results, detector) for detector in DETECTORS}
    with _placing(to) as stage:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = stage(to)
        root = zarr.open_group(
            temporary, mode="w-", zarr_format=3, attributes={"creator": f"gpucal {gpucal.__version__}"}
        )
        for detector, arrays in stacks.items():
            # xarray takes what "coordinates" names for coordinates, and has no other way to know
            about = {"detector": detector, "coordinates": "planet visit", "provenance": _history(results, (detector,))}
            _fill(root.create_group(detector, attributes=about), results, detector, arrays)
        with warnings.catch_warnings():
            # Consolidated metadata are no part of the specification yet, but xarray warns where there are none.
            warnings.filterwarnings("ignore", "Consolidated metadata")
            for path in (*stacks, None):  # xarray of 2025 looks in the group, later in the root
                zarr.consolidate_metadata(root.store, path=path)
    return [to]


def _fill(
    group: zarr.Group, results: Results, detector: str, arrays: Mapping[str, tuple[_Shape, np.dtype[Any]]]
) -> None:
    """Write a detector's arrays, a chunk an observation."""

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
    vectors |= {name: (name, values) for name, values in _axes(results, detector).items()}
    for name, (axis, values) in vectors.items():
        create(name, values.shape, values.dtype, (axis,), values.shape)[:] = values
    made = {
        name: create(name, shape, kind, ("observation", *_DIMENSIONS[name]), (1, *shape[1:]))
        for name, (shape, kind) in arrays.items()
    }
    for i, cal in enumerate(_same_axes(results, detector)):
        for name, array in made.items():
            array[i] = getattr(cal, name)


def _write_fits(results: Results, to: Path) -> list[Path]:
    written = []
    with _placing(to) as stage:
        to.mkdir(parents=True, exist_ok=True)
        for key, detector in product(results.ids, DETECTORS):
            cal = results.calibrated(key, detector)
            written.append(to / f"{cal.planet}-{cal.visit}-{detector}.fits")
            to_hdus(cal).writeto(stage(written[-1]), checksum=True)
    return written


_WRITERS: Mapping[str, Callable[[Results, Path], list[Path]]] = {
    "npy": _write_npy,
    "zarr": _write_zarr,
    "fits": _write_fits,
}


def _complete(results: Results) -> list[tuple[int, int]]:
    if not results.ids:
        results._stack(())  # raises, in the words of every other reader
    return results.ids


def _one_by_one(results: Results) -> str:
    again = f"run `gpucal calibrate DATASET {results.path}` again with one set of settings"
    return f"read them one by one, or {again}"


def _differ(results: Results, first: Sequence[int], other: Sequence[int]) -> OutputError:
    problem = f"observations differ in shape, such as {tuple(first)} and {tuple(other)}"
    return OutputError(f"{results.path}: {problem}; {_one_by_one(results)}")


def _history(results: Results, detectors: Sequence[str]) -> str:
    """Put the provenance of all items into JSON, what they have in common once."""
    items = [(*key, name) for key, name in product(results.ids, detectors)]
    all_ = [results._record((p, v), name)["provenance"] for p, v, name in items]
    common = {name: value for name, value in all_[0].items() if all(other.get(name) == value for other in all_)}
    own = [
        {"planet": p, "visit": v, "detector": name} | {k: value for k, value in one.items() if k not in common}
        for (p, v, name), one in zip(items, all_, strict=True)
    ]
    return json.dumps({"common": common, "items": own})


def _stacks(results: Results, detector: str) -> dict[str, tuple[_Shape, np.dtype[Any]]]:
    """Return shape and dtype of a detector's stacks, by kind, before anything is written."""
    files = [results._record(key, detector)["files"] for key in results.ids]
    kinds = [kind for kind in _DIMENSIONS if kind in files[0]]
    if any(("variance" in of) != ("variance" in kinds) for of in files):
        raise OutputError(f"{results.path}: only some observations hold a variance; {_one_by_one(results)}")
    stacks = {}
    for kind in kinds:
        first = files[0][kind]["shape"]
        for of in files:
            if of[kind]["shape"] != first:
                raise _differ(results, first, of[kind]["shape"])
        stacks[kind] = ((len(files), *first), np.result_type(*(of[kind]["dtype"] for of in files)))
    return stacks


def _axes(results: Results, detector: str) -> dict[str, NDArray[np.float64]]:
    """Read the first observation's axes."""
    files = results._record(results.ids[0], detector)["files"]
    return {name: results._read(results.ids[0], detector, name) for name in ("time", "wavelength") if name in files}


def _same_axes(results: Results, detector: str) -> Iterator[Calibrated]:
    """Read a detector's items one by one; all must have the axes of the first."""
    axes = _axes(results, detector)
    for key in results.ids:
        cal = results.calibrated(key, detector)
        for name, values in axes.items():
            own = getattr(cal, name)
            if own is None or own.shape != values.shape or not np.allclose(own, values):
                raise OutputError(f"{results.path}: {cal.where} has another {name} axis; {_one_by_one(results)}")
        yield cal


@contextmanager
def _npy(path: Path, shape: _Shape, kind: np.dtype[Any]) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Give a function that appends arrays to a NumPy file of this shape."""
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda array: file.write(np.ascontiguousarray(array, kind).data)


@contextmanager
def _placing(into: Path) -> Iterator[Callable[[Path], Path]]:
    """Give a function that names a temporary path for a target; all are renamed in the end, or none is left."""
    staged: dict[Path, Path] = {}

    def stage(target: Path) -> Path:
        staged[target] = temporary_name(target)
        return staged[target]

    try:
        yield stage
        for temporary in staged.values():
            _sync(temporary)
        for target, temporary in staged.items():
            temporary.replace(target)
    except OutputError:  # an OSError as well, of what was read
        raise
    except OSError as error:
        raise unwritable(into, error) from error
    finally:
        for temporary in staged.values():
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
