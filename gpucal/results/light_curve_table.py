"""Reads tables of light curves, of exports and of 0.1, and judges the files of all items that a run of 0.1 wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpucal.errors import OutputError
from gpucal.results.history import history
from gpucal.results.reader import ORDER, Results
from gpucal.results.tables import attributes
from gpucal.settings.arguments import path_of
from gpucal.settings.detectors import DETECTORS, curve_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LIGHT_CURVES", "light_curves_are_current", "new_names", "read_light_curves"]

LIGHT_CURVES = ("light-curves.npy", "light-curves.errors.npy", "light-curves.ids.npy", "light-curves.parquet")
"""The files of all items that a run of 0.1 wrote; the items hold the same numbers."""

# Columns before the light curves, and what two of them were called in 0.1.
_KEYS = ("planet_id", "visit", "bin", "time")
_RENAMED = MappingProxyType({"planet": "planet_id", "time_h": "time"})


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
        If the file is missing, cannot be read, or holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path_of("path", path)
    try:
        with path.open("rb") as stream:
            found = pq.read_table(stream)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(
            f"{path}: cannot be read ({reason}); give a light-curves.parquet that gpucal wrote"
        ) from error
    found = found.rename_columns(new_names(found.column_names))
    if found.column_names[: len(_KEYS)] != [*_KEYS]:
        raise OutputError(f"{path}: is no table of light curves; give a light-curves.parquet that gpucal wrote")
    names = [name for name in found.column_names[len(_KEYS) :] if not name.endswith("_error")]
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
    """Tell whether all of `LIGHT_CURVES` are there and were made from exactly these results."""
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
