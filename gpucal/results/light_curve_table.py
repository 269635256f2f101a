"""All light curves of a results folder as a NumPy stack and as a Parquet table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import OutputError
from gpucal.results.atomic import npy_writer, placing
from gpucal.results.corner import ALL, temporary_name
from gpucal.results.curves import common_curves
from gpucal.results.history import history
from gpucal.results.reader import ORDER, Results, complete
from gpucal.results.stacking import differing
from gpucal.results.tables import attributes
from gpucal.settings.detectors import DETECTORS, curve_name

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["LIGHT_CURVES", "light_curves_are_current", "new_names", "read_light_curves", "write_light_curves"]

LIGHT_CURVES = ("light-curves.npy", "light-curves.errors.npy", "light-curves.ids.npy", "light-curves.parquet")
"""The files that `write_light_curves` writes."""

# The detector whose times are those of the rows: AIRS-CH0.
_CLOCK = next(iter(DETECTORS))

# Columns before the light curves, and what two of them were called in 0.1.
_KEYS, _RENAMED = 4, MappingProxyType({"planet": "planet_id", "time_h": "time"})

# The fewest rows in a row group. A group per observation has 187 rows. With 570 columns and 1100 observations the
# file's index alone then takes 1.1 GB of memory, writing 26 s, and reading a column 0.9 s, not 0.1 GB, 4 s and 0.1 s.
_GROUP_ROWS = 4096


def write_light_curves(results: Results) -> None:
    """Write the light curves of every complete observation together, into the results folder.

    ``light-curves.npy`` and ``light-curves.errors.npy`` have shape (observation, time, 283) and the items' dtype, in
    electrons; FGS1 is first. ``light-curves.ids.npy`` has planet and visit, (observation, 2), integers.
    ``light-curves.parquet`` has a row for each observation and bin. Its columns are ``planet_id``, ``visit``, ``bin``,
    ``time`` (AIRS-CH0's, hours), ``wl_1`` (FGS1), ``wl_2`` and so on, see `gpucal.settings.detectors.curve_name`, then
    the same names with ``_error``. A column's metadata have its ``wavelength_um``. A row group holds whole
    observations. The schema's metadata have the provenance as JSON under ``gpucal``, see `gpucal.results.history`, and
    the units and wavelengths, which pandas reads as ``attrs``. `read_light_curves` reads the files of 0.1 too, which
    have other names.

    Parameters
    ----------
    results : Results
        The results folder.

    Raises
    ------
    OutputError
        If nothing is complete, observations differ in bins or columns, or a file cannot be read or written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = complete(results)
    curves = common_curves(results)
    names = [curve.name for curve in curves]
    kind = np.result_type(
        *(
            files["flux" if "flux" in files else "signal"]["dtype"]
            for files in (results._record(key, name)["files"] for key, name in product(keys, ORDER))
        )
    )
    shape = results.light_curves_of(keys[0]).shape
    schema = _schema(names, kind, [curve.wavelength_um for curve in curves], history(results, ORDER))
    targets = [results.path / name for name in LIGHT_CURVES]
    name = partial(temporary_name, results.path, ALL)
    with placing(results.path, name) as stage, ExitStack() as opened:
        flux, error = (opened.enter_context(npy_writer(stage(t), (len(keys), *shape), kind)) for t in targets[:2])
        ids = np.array(keys, np.int64)
        opened.enter_context(npy_writer(stage(targets[2]), ids.shape, ids.dtype))(ids)
        # no statistics: they are a third of the index, and nobody searches for a flux by its value
        options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
        stream = opened.enter_context(stage(targets[-1]).open("wb"))  # pyarrow takes no path that is not UTF-8
        table = opened.enter_context(pq.ParquetWriter(stream, schema, **options))
        waiting: list[pa.RecordBatch] = []
        for key in keys:
            curve = results.light_curves_with_errors_of(key)
            if curve.flux.shape != shape:
                raise differing(results.path, shape, curve.flux.shape)
            with np.errstate(over="ignore"):  # a flat near 0 may exceed float32
                values = np.concatenate(curve, axis=1).astype(kind)
            flux(values[:, : len(names)])
            error(values[:, len(names) :])
            times = results.axes(key, _CLOCK)["time"]
            waiting.append(_rows(schema, key, times, values))
            if len(waiting) * len(times) >= _GROUP_ROWS or key == keys[-1]:
                group = pa.Table.from_batches(waiting)
                table.write_table(group, row_group_size=len(group))
                waiting = []


def read_light_curves(path: str | Path) -> pd.DataFrame:
    """Read a ``light-curves.parquet``, also one that 0.1 wrote, in the competition's names.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    DataFrame
        As `gpucal.Results.light_curve_table` returns it.

    Raises
    ------
    OutputError
        If the file is missing or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with Path(path).open("rb") as stream:
            found = pq.read_table(stream)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(
            f"{path}: cannot be read ({reason}); give a light-curves.parquet that gpucal wrote"
        ) from error
    found = found.rename_columns(new_names(found.column_names))
    names = [name for name in found.column_names[_KEYS:] if not name.endswith("_error")]
    about = (found.schema.field(name).metadata or {} for name in names)
    um = [float(of.get(b"wavelength_um", "nan")) for of in about]
    table: pd.DataFrame = found.replace_schema_metadata(None).to_pandas()
    table.attrs.update(attributes(names, um))
    return table


def new_names(names: Sequence[str]) -> list[str]:
    """Return the names of a file's columns, which may have the names that they had in 0.1."""
    return [*map(_new_name, names)]


def _new_name(name: str) -> str:
    curve, error = (name.removesuffix("_error"), "_error") if name.endswith("_error") else (name, "")
    detector, _, column = curve.rpartition("_")
    if curve in DETECTORS:
        return curve_name(curve, None) + error
    if detector in DETECTORS and column.isdecimal():
        return curve_name(detector, int(column)) + error
    return _RENAMED.get(name, name)


def light_curves_are_current(results: Results) -> bool:
    """Tell whether all files of `write_light_curves` are there and were made from exactly these results."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [results.path / name for name in LIGHT_CURVES]
    if not results.ids or not all(file.is_file() for file in files):
        return False
    try:  # the Parquet file was renamed into place last
        with files[-1].open("rb") as stream:
            metadata = pq.read_schema(stream).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return bool(metadata.get(b"gpucal") == history(results, ORDER).encode())


def _schema(
    names: Sequence[str], kind: np.dtype[Any], wavelengths_um: Sequence[float | None], history: str
) -> pa.Schema:
    import pyarrow as pa

    kinds = {"planet_id": pa.int64(), "visit": pa.int64(), "bin": pa.int32(), "time": pa.float64()}
    keys = [pa.field(name, of) for name, of in kinds.items()]
    of_columns = [None if um is None else {"wavelength_um": repr(um)} for um in wavelengths_um]
    curves = [
        pa.field(f"{name}{what}", pa.from_numpy_dtype(kind), metadata=about)
        for what in ("", "_error")
        for name, about in zip(names, of_columns, strict=True)
    ]
    about = attributes(names, [math.nan if um is None else um for um in wavelengths_um])
    return pa.schema([*keys, *curves], metadata={"gpucal": history, "PANDAS_ATTRS": json.dumps(about)})


def _rows(schema: pa.Schema, key: tuple[int, int], times: NDArray[np.float64], values: NDArray[Any]) -> pa.RecordBatch:
    """Make one observation's rows from values of shape (time, column)."""
    import pyarrow as pa

    n = len(values)
    columns = [np.full(n, key[0], np.int64), np.full(n, key[1], np.int64), np.arange(n, dtype=np.int32), times]
    columns.extend(np.ascontiguousarray(values.T))
    # pa.array() imports pandas, 0.3 s
    arrays = [pa.Array.from_buffers(f.type, n, [None, pa.py_buffer(c)]) for f, c in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
