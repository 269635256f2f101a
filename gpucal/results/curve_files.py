"""Exports light curves: a FITS or ECSV file for each observation, or one CSV or Parquet table or NumPy stack of all.

The columns of every table are those of `columns_of`: the competition's names, electrons, hours.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.errors import OutputError
from gpucal.pipeline.fits import explained, history_lines, observed_cards, setting_cards, table
from gpucal.results.atomic import npy_writer, placing
from gpucal.results.curves import Curve, common_curves, curves_of
from gpucal.results.history import history
from gpucal.results.reader import ORDER, Results
from gpucal.results.stacking import differing
from gpucal.results.stacks import Show, counted
from gpucal.results.tables import attributes
from gpucal.settings.detectors import DETECTORS

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.io import fits

__all__ = ["columns_of", "write_csv", "write_ecsv", "write_fits", "write_npy", "write_parquet"]

Key: TypeAlias = "tuple[int, int]"
"""Planet and visit."""

# The detector whose times are those of the rows: AIRS-CH0.
_CLOCK = next(iter(DETECTORS))

_KEYS: Mapping[str, tuple[str | None, str]] = {
    "planet_id": (None, "planet id of the competition"),
    "visit": (None, "number of the planet's observation, from 0"),
    "bin": (None, "number of the time bin, from 0"),
    "time": ("h", f"mean time of the reads of the bin, {_CLOCK}"),
}


# The fewest rows in a row group. A group per observation has 187 rows. With 570 columns and 1100 observations the
# file's index alone then takes 1.1 GB of memory, writing 26 s, and reading a column 0.9 s, not 0.1 GB, 4 s and 0.1 s.
_GROUP_ROWS = 4096


def columns_of(curves: Sequence[Curve]) -> dict[str, tuple[str | None, str, Curve | None]]:
    """Return the unit, description and light curve of each column, by name.

    The names are ``planet_id``, ``visit``, ``bin``, ``time``, then ``wl_1`` and so on, then ``wl_1_error`` and so on.
    """
    columns: dict[str, tuple[str | None, str, Curve | None]] = {name: (*of, None) for name, of in _KEYS.items()}
    columns |= {curve.name: ("electron", curve.description, curve) for curve in curves}
    errors = {f"{curve.name}_error": ("electron", f"error of {curve.description}", curve) for curve in curves}
    return columns | errors


def write_fits(results: Results, to: Path, show: Show) -> list[Path]:
    """Write a FITS file for each observation.

    The table LIGHT_CURVES has the columns of `columns_of`, CURVES says what each light curve is, TIME has the bins of
    both detectors, and DETECTORS how each was calibrated, in full as JSON. FITS has no unit for electrons: astropy
    warns that it does not know ``electron`` there, and keeps the name.
    """
    from astropy.io import fits

    written = []
    with placing(to) as stage:
        to.mkdir(parents=True, exist_ok=True)
        for key in counted(results, show):
            curves = curves_of(results, key)
            hdus = fits.HDUList([_primary(results, key), _curve_table(results, key, curves)])
            hdus += [
                explained(_curve_list(curves)),
                explained(_bins(results, key)),
                explained(_detectors(results, key)),
            ]
            written.append(to / f"{key[0]}-{key[1]}-light-curves.fits")
            hdus.writeto(stage(written[-1]), checksum=True)
    return written


def write_ecsv(results: Results, to: Path, show: Show) -> list[Path]:
    """Write an ECSV file for each observation, with the columns of `columns_of`.

    A column's ``meta`` has detector, column and wavelength_um. The table's ``meta`` has provenance as JSON.
    """
    from astropy.table import Column, Table

    written = []
    with placing(to) as stage:
        to.mkdir(parents=True, exist_ok=True)
        for key in counted(results, show):
            columns = columns_of(curves_of(results, key))
            values = _values(results, key, _kind(results, [key]))
            made = [
                Column(of, name, unit=unit, description=text, meta=_facts(curve))
                for of, (name, (unit, text, curve)) in zip(values, columns.items(), strict=True)
            ]
            meta = {"creator": f"gpucal {__version__}", "provenance": _provenance(results, key)}
            written.append(to / f"{key[0]}-{key[1]}-light-curves.ecsv")
            Table(made, meta=meta).write(stage(written[-1]), format="ascii.ecsv")
    return written


def write_csv(results: Results, to: Path, show: Show) -> list[Path]:
    """Write ``light-curves.csv``, a row for each observation and bin, with the columns of `columns_of`.

    ``light-curves.columns.csv`` has the unit, wavelength, detector, detector column and description of each column;
    ``light-curves.json`` the provenance.
    """
    import pyarrow as pa
    from pyarrow.csv import CSVWriter, WriteOptions

    columns = columns_of(common_curves(results))
    targets = [to / f"light-curves.{name}" for name in ("csv", "columns.csv", "json")]
    with placing(to) as stage, ExitStack() as opened:
        to.mkdir(parents=True, exist_ok=True)
        with stage(targets[1]).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["name", "unit", "wavelength_um", "detector", "column", "description"])
            for name, (unit, text, curve) in columns.items():
                facts = _facts(curve)
                rows.writerow(
                    [name, unit, facts.get("wavelength_um"), facts.get("detector"), facts.get("column"), text]
                )
        _write_about(results, stage(targets[2]), {name: unit for name, (unit, _, _) in columns.items() if unit})
        kind = _kind(results, results.ids)
        kinds = [pa.int64(), pa.int64(), pa.int32(), pa.float64(), *[pa.from_numpy_dtype(kind)] * (len(columns) - 4)]
        schema = pa.schema([*zip(columns, kinds, strict=True)])
        stream = opened.enter_context(stage(targets[0]).open("wb"))  # pyarrow takes no path that is not UTF-8
        options = WriteOptions(quoting_style="none")
        rows_of_all = opened.enter_context(CSVWriter(stream, schema, write_options=options))
        for key in counted(results, show):
            values = _values(results, key, kind)
            rows_of_all.write_batch(pa.RecordBatch.from_arrays([pa.array(of) for of in values], schema=schema))
    return targets


def write_parquet(results: Results, to: Path, show: Show) -> list[Path]:
    """Write the light curves of all observations as one Parquet table, ``light-curves.parquet``.

    A column's metadata have its ``wavelength_um``. A row group holds whole observations. The schema's metadata have the
    provenance as JSON under ``gpucal``, see `gpucal.results.history`, and the units and wavelengths, which pandas reads
    as ``attrs``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _require_elsewhere(results, to)
    curves, kind = common_curves(results), _kind(results, results.ids)
    schema = _schema(curves, kind, history(results, ORDER))
    target = to / "light-curves.parquet"
    with placing(to) as stage, ExitStack() as opened:
        to.mkdir(parents=True, exist_ok=True)
        # no statistics: they are a third of the index, and nobody searches for a flux by its value
        options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
        stream = opened.enter_context(stage(target).open("wb"))  # pyarrow takes no path that is not UTF-8
        rows_of_all = opened.enter_context(pq.ParquetWriter(stream, schema, **options))
        waiting: list[pa.RecordBatch] = []
        for key in counted(results, show):
            waiting.append(_batch(schema, _values(results, key, kind)))
            if sum(map(len, waiting)) >= _GROUP_ROWS or key == results.ids[-1]:
                group = pa.Table.from_batches(waiting)
                rows_of_all.write_table(group, row_group_size=len(group))
                waiting = []
    return [target]


def _schema(curves: Sequence[Curve], kind: np.dtype[Any], history: str) -> pa.Schema:
    import pyarrow as pa

    kinds = {"planet_id": pa.int64(), "visit": pa.int64(), "bin": pa.int32(), "time": pa.float64()}
    of_curves = [
        pa.field(
            f"{curve.name}{what}",
            pa.from_numpy_dtype(kind),
            metadata=None if curve.wavelength_um is None else {"wavelength_um": repr(curve.wavelength_um)},
        )
        for what in ("", "_error")
        for curve in curves
    ]
    known = [math.nan if curve.wavelength_um is None else curve.wavelength_um for curve in curves]
    about = json.dumps(attributes([curve.name for curve in curves], known))
    return pa.schema([*kinds.items(), *of_curves], metadata={"gpucal": history, "PANDAS_ATTRS": about})


def _batch(schema: pa.Schema, columns: Sequence[NDArray[Any]]) -> pa.RecordBatch:
    import pyarrow as pa

    n = len(columns[0])
    # pa.array() imports pandas, 0.3 s
    arrays = [pa.Array.from_buffers(f.type, n, [None, pa.py_buffer(c)]) for f, c in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _require_elsewhere(results: Results, to: Path) -> None:
    """Refuse the results folder, where 0.1 wrote files of these names."""
    if to.resolve() == results.path.resolve():
        raise OutputError(f"{to}: is where the results' own files are; choose another folder")


def write_npy(results: Results, to: Path, show: Show) -> list[Path]:
    """Write the light curves of all observations as NumPy files.

    ``light-curves.flux.npy`` and ``light-curves.error.npy`` (observation, time, curve), ``light-curves.time.npy``
    (observation, time), ``light-curves.wavelength.npy`` (curve), NaN where it is not known, and
    ``light-curves.ids.npy``, planet and visit (observation, 2). ``light-curves.json`` has the curves' names, units and
    provenance.
    """
    _require_elsewhere(results, to)
    curves, kind = common_curves(results), _kind(results, results.ids)
    shape = (len(results.axes(results.ids[0], _CLOCK)["time"]), len(curves))
    wavelengths = np.array([np.nan if curve.wavelength_um is None else curve.wavelength_um for curve in curves])
    ids, n = np.array(results.ids, np.int64), len(results)
    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "flux": ((n, *shape), kind),
        "error": ((n, *shape), kind),
        "time": ((n, shape[0]), np.dtype(np.float64)),
        "wavelength": (wavelengths.shape, wavelengths.dtype),
        "ids": (ids.shape, ids.dtype),
    }
    targets = {name: to / f"light-curves.{name}.npy" for name in kinds}
    about = to / "light-curves.json"
    with placing(to) as stage, ExitStack() as opened:
        to.mkdir(parents=True, exist_ok=True)
        append = {name: opened.enter_context(npy_writer(stage(targets[name]), *of)) for name, of in kinds.items()}
        append["wavelength"](wavelengths)
        append["ids"](ids)
        for key in counted(results, show):
            curve = results.light_curves_with_errors_of(key)
            if curve.flux.shape != shape:
                raise differing(results.path, shape, curve.flux.shape)
            with np.errstate(over="ignore"):  # a flat near 0 may exceed float32
                append["flux"](curve.flux.astype(kind))
                append["error"](curve.error.astype(kind))
            append["time"](results.axes(key, _CLOCK)["time"])
        units = {"flux": "electron", "error": "electron", "time": "h", "wavelength": "um"}
        _write_about(results, stage(about), units, curves=[curve.name for curve in curves])
    return [*targets.values(), about]


def _values(results: Results, key: Key, kind: np.dtype[Any]) -> list[NDArray[Any]]:
    """Return the columns of one observation's table."""
    curve = results.light_curves_with_errors_of(key)
    n = len(curve.flux)
    with np.errstate(over="ignore"):  # a flat near 0 may exceed float32
        values = np.concatenate(curve, axis=1).astype(kind)
    keys = [np.full(n, key[0], np.int64), np.full(n, key[1], np.int64), np.arange(n, dtype=np.int32)]
    return [*keys, results.axes(key, _CLOCK)["time"], *np.ascontiguousarray(values.T)]


def _kind(results: Results, keys: Sequence[Key]) -> np.dtype[Any]:
    """Return a type that holds the stored values of these observations."""
    files = [results._record(key, name)["files"] for key, name in product(keys, ORDER)]
    return np.result_type(*(of["flux" if "flux" in of else "signal"]["dtype"] for of in files))


def _facts(curve: Curve | None) -> dict[str, Any]:
    """Return what is known of the light curve of a column."""
    known = {} if curve is None else vars(curve)
    return {name: value for name, value in known.items() if value is not None}


def _provenance(results: Results, key: Key) -> dict[str, str]:
    """Return the provenance of an observation's detectors, each as JSON."""
    return {name: json.dumps(results._record(key, name)["provenance"]) for name in ORDER}


def _write_about(results: Results, path: Path, units: Mapping[str, str], **more: object) -> None:
    about = {**more, "units": units, "provenance": json.loads(history(results, ORDER))}
    path.write_text(json.dumps(about, indent=1), encoding="utf-8")


def _primary(results: Results, key: Key) -> fits.PrimaryHDU:
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    primary.header["EXTEND"] = True, "extensions may follow"
    primary.header.extend(observed_cards(*key, ", ".join(ORDER)))
    first, *others = ({**results._record(key, name)["provenance"]} for name in ORDER)
    # Settings on which the detectors differ, from two runs, are in the table DETECTORS alone.
    same = {
        name: value
        for name, value in first["settings"].items()
        if all(other["settings"].get(name) == value for other in others)
    }
    primary.header.extend(setting_cards(same))
    for name, provenance in zip(ORDER, (first, *others), strict=True):
        for line in history_lines(provenance, f"{name}: "):
            primary.header.add_history(line)
    return primary


def _curve_table(results: Results, key: Key, curves: Sequence[Curve]) -> fits.BinTableHDU:
    forms = {"i8": "K", "i4": "J", "f4": "E", "f8": "D"}
    columns, values = columns_of(curves), _values(results, key, _kind(results, [key]))
    made = table(
        "LIGHT_CURVES",
        {
            name: (forms[of.dtype.str[1:]], of, unit)
            for of, (name, (unit, _, _)) in zip(values, columns.items(), strict=True)
        },
    )
    for number, (_, text, _) in enumerate(columns.values(), 1):
        made.header.comments[f"TTYPE{number}"] = text
    made.header["TIMESYS"] = "LOCAL", "times count from the start of the observation"
    return explained(made)


def _curve_list(curves: Sequence[Curve]) -> fits.BinTableHDU:
    names, detectors = [curve.name for curve in curves], [curve.detector for curve in curves]
    columns = [-1 if curve.column is None else curve.column for curve in curves]
    wavelengths = [np.nan if curve.wavelength_um is None else curve.wavelength_um for curve in curves]
    made = table(
        "CURVES",
        {
            "NAME": (f"{max(map(len, names))}A", names, None),
            "DETECTOR": (f"{max(map(len, detectors))}A", detectors, None),
            "COLUMN": ("J", np.array(columns), None),
            "WAVELENGTH": ("D", np.array(wavelengths), "um"),
        },
    )
    made.header.comments["TTYPE3"] = "detector column, from 0; -1 is the sum of all"
    return made


def _bins(results: Results, key: Key) -> fits.BinTableHDU:
    columns: dict[str, tuple[str, object, str | None]] = {}
    for name in ORDER:
        title = name.replace("-", "_")
        columns[f"{title}_TIME"] = ("D", results.axes(key, name)["time"], "h")
        if (bounds := results.time_bounds(key, name)) is not None:
            columns |= {f"{title}_{end}": ("D", bounds[:, i], "h") for i, end in enumerate(("BEGIN", "END"))}
    return table("TIME", columns)


def _detectors(results: Results, key: Key) -> fits.BinTableHDU:
    provenances = [results._record(key, name)["provenance"] for name in ORDER]
    texts = {
        "DETECTOR": [*ORDER],
        "VERSION": [of["version"] for of in provenances],
        "CREATED": [of["created"] for of in provenances],
        "BACKEND": [of["backend"] for of in provenances],
        "SETTINGS_HASH": [of["settings_hash"] for of in provenances],
        "PROVENANCE": [json.dumps(of) for of in provenances],
    }
    return table("DETECTORS", {name: (f"{max(map(len, of))}A", of, None) for name, of in texts.items()})
