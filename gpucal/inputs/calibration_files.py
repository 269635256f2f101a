"""Calibration frames, ADC values and axes: read, validated, cropped, and named by their content."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN, may_be_there, read_whole, shortened
from gpucal.inputs.kinds import HEAD, mistaken
from gpucal.inputs.parquet.arrow import values_of
from gpucal.inputs.parquet.tables import pixel_columns, plain_columns, read_columns
from gpucal.settings.detectors import Detector
from gpucal.settings.ids import as_id

__all__ = [
    "BY_NUMBER",
    "DEGREE",
    "FRAMES",
    "Adc",
    "AdcTable",
    "Axis",
    "CalibrationFrames",
    "calibration_paths",
    "digest_of",
    "documented_axis",
    "find_adc",
    "read_adc_table",
    "read_axis",
    "read_frames",
    "read_raw_frames",
    "read_times_s",
]

DEGREE = 5
"""Degree of the linearity polynomials: six frames, ascending powers."""

BY_NUMBER = " by number"
"""Ends the digest of frames whose columns are not stored in the order of their numbers."""

_MOST_BYTES = 2**26
"""Size limit of a calibration file, which has 0.5 MB at most, and of the axis table, 4.3 MB uncompressed."""

# What the update of 29 August 2024 added to the integration time of end reads, s.
_UPDATE_S = 0.1

# Limits of an ADC table, which had 100 bytes a planet and six columns in 2024. The dictionary of a line takes 60 times
# the bytes of the line.
_MOST_TABLE, _MOST_LINES, _MOST_COLUMNS = 2**22, 20_000, 100


@dataclass(frozen=True)
class CalibrationFrames:
    """Calibration frames of one detector; read-only arrays (spatial, wavelength), cropped as the signal is.

    Parameters
    ----------
    dark : ndarray of float64, shape (spatial, wavelength)
        Dark current, electrons a second; NaN where it is not known, which `gpucal.science.plan` flags; not infinite.
    dead : ndarray of bool, shape (spatial, wavelength)
        Pixels that do not respond.
    flat : ndarray of float64, shape (spatial, wavelength)
        Relative response; zero, negative and non-finite values are let through and flagged too.
    linear_corr : ndarray of float64, shape (6, spatial, wavelength)
        Linearity coefficients, ascending powers; non-finite ones are let through and flagged.
    read : ndarray of float64, shape (spatial, wavelength)
        Read noise of one read, electrons; NaN where it is not known; else finite and not negative.
    whole_dark : ndarray of float64, shape (spatial, stored wavelength)
        The dark without the crop.
    digest : str
        SHA-256 of the files' bytes.
    """

    dark: NDArray[np.float64]
    dead: NDArray[np.bool_]
    flat: NDArray[np.float64]
    linear_corr: NDArray[np.float64]
    read: NDArray[np.float64]
    whole_dark: NDArray[np.float64]
    digest: str

    @property
    def has_read(self) -> bool:
        """Whether there is any read noise: a file without a value is refused, but the file may be missing."""
        return not np.isnan(self.read).all()


@dataclass(frozen=True)
class Adc:
    """Analogue-to-digital conversion: electrons = counts / gain + offset.

    Parameters
    ----------
    gain : float
        Counts an electron, above 0.
    offset : float
        Electrons.
    """

    gain: float
    offset: float


@dataclass(frozen=True)
class Axis:
    """The columns of ``axis_info.parquet`` for one detector.

    Parameters
    ----------
    time_h : ndarray of float64, shape (frame,)
        Time of each frame, hours.
    wavelength_um : ndarray of float64, shape (wavelength,), or None
        Wavelength of each cropped column, µm, descending; None for a photometer, and where the file is missing.
    integration_s : ndarray of float64, shape (frame,), or None
        Integration time of each frame, s; None if the file has no such column.
    """

    time_h: NDArray[np.float64]
    wavelength_um: NDArray[np.float64] | None
    integration_s: NDArray[np.float64] | None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the axes."""
        content = hashlib.sha256()
        for values in (self.time_h, self.wavelength_um, self.integration_s):
            content.update(b"-" if values is None else values.tobytes())
        return content.hexdigest()

    @cached_property
    def pair_s(self) -> float:
        """Median time from one CDS pair to the next, s; 0 if there is only one pair."""
        starts_h = self.time_h[::2]
        return float(np.median(np.diff(starts_h))) * 3600.0 if starts_h.size > 1 else 0.0


@dataclass(frozen=True)
class _Frame:
    """The values that a calibration file may hold; inside the crop, those that are not NaN are at least ``least``."""

    planes: int = 1
    is_map: bool = False
    is_required: bool = True
    least: float | None = None
    must_be: str = ""


_FRAMES: Mapping[str, _Frame] = MappingProxyType(
    {
        "dark": _Frame(least=-np.inf, must_be="finite"),
        "dead": _Frame(is_map=True),
        "flat": _Frame(),
        "linear_corr": _Frame(planes=DEGREE + 1),
        "read": _Frame(is_required=False, least=0.0, must_be="finite and not negative"),
    }
)

FRAMES = tuple(_FRAMES)
"""The names of the calibration files of one detector, without their ending."""


def read_raw_frames(folder: Path) -> dict[str, bytes]:
    """Read the calibration files of one observation without parsing them; content by frame name."""
    paths = calibration_paths(folder)
    return {name: read_whole(path, _MOST_BYTES, "calibration file") for name, path in paths.items()}


def calibration_paths(folder: Path) -> dict[str, Path]:
    """List the calibration files of one observation by frame name: those that it needs, and those that are there.

    The read noise may be missing, as some scripts leave it out of a download: only errors need it.
    """
    paths = {name: folder / f"{name}.parquet" for name in _FRAMES}
    return {name: path for name, path in paths.items() if _FRAMES[name].is_required or may_be_there(path)}


def digest_of(raw: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of calibration files, hexadecimal: their name by content."""
    content = hashlib.sha256()
    for name, data in raw.items():
        content.update(f"{name} {len(data)} ".encode())
        content.update(data)
    return content.hexdigest()


def read_frames(raw: Mapping[str, bytes], folder: Path, detector: Detector) -> CalibrationFrames:
    """Parse, validate and crop calibration frames.

    Parameters
    ----------
    raw : mapping of str to bytes
        File content by frame name, from `read_raw_frames`.
    folder : Path
        The calibration folder, for messages.
    detector : Detector
        The detector.

    Returns
    -------
    CalibrationFrames
        The frames.

    Raises
    ------
    InputError
        If a file is not Parquet, or its shape, type or values are not possible.
    """
    cut = slice(*detector.crop)
    parsed = {name: _parse(data, folder / f"{name}.parquet", _FRAMES[name], detector) for name, data in raw.items()}
    whole = {name: values for name, (values, _) in parsed.items()}
    frames = {name: np.ascontiguousarray(values[:, :, cut]) for name, values in whole.items()}
    for name, values in frames.items():
        _check_values(values, _FRAMES[name], folder / f"{name}.parquet")
    frames.setdefault("read", np.full((1, detector.shape[0], detector.width), np.nan))
    dead = frames["dead"][0].astype(bool)
    for values in (dead, *frames.values(), *whole.values()):
        values.flags.writeable = False
    return CalibrationFrames(
        dark=frames["dark"][0],
        dead=dead,
        flat=frames["flat"][0],
        linear_corr=frames["linear_corr"],
        read=frames["read"][0],
        whole_dark=whole["dark"][0],
        # 0.1 took columns by position: what it made of files in another order is not taken for finished.
        digest=digest_of(raw) + BY_NUMBER * any(is_moved for _, is_moved in parsed.values()),
    )


def _check_values(values: NDArray[np.float64], frame: _Frame, path: Path) -> None:
    """Refuse cropped frames, (plane, spatial, wavelength), that cannot be right; some values may be missing."""
    if np.isnan(values).all(axis=(1, 2)).any():
        raise InputError("has a frame without a value: all are null or NaN", AGAIN, path)
    known = values[~np.isnan(values)]
    if frame.least is not None and not (np.isfinite(known) & (known >= frame.least)).all():
        raise InputError(f"has values that are not {frame.must_be}", AGAIN, path)


def _parse(data: bytes, path: Path, frame: _Frame, detector: Detector) -> tuple[NDArray[np.float64], bool]:
    """Return a file's frames, (plane, spatial, wavelength), and whether its columns were in another order."""
    rows, width = detector.shape
    shape = (frame.planes * rows, width)
    plain = plain_columns(data, path)  # as they are published
    if plain is not None and plain[0].shape == shape and (frame.is_map or plain[0].dtype == np.float64):
        values, positions = np.ascontiguousarray(plain[0], dtype=np.float64), plain[1]
    else:
        values, positions = _decoded(data, path, frame, shape)
    if frame.is_map and (odd := values[(values != 0) & (values != 1)]).size:
        raise InputError(f"holds {odd[0]:g}, expected a map of dead pixels: bool, or 0 and 1", AGAIN, path)
    return values.reshape(frame.planes, rows, width), bool((np.diff(positions) < 0).any())


def _decoded(
    data: bytes, path: Path, frame: _Frame, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Decode a file of any kind: its values, (row, column), and the positions of its columns; or say what is wrong."""
    positions = np.empty(0, np.intp)

    def check(schema: pa.Schema, n_rows: int) -> NDArray[np.intp]:
        nonlocal positions
        positions, types = pixel_columns(schema.names, (schema.metadata or {}).get(b"pandas", b"")), schema.types
        if (n_rows, positions.size) != shape:
            raise InputError(f"has shape {(n_rows, positions.size)}, expected {shape}", AGAIN, path)
        for kind in {types[position] for position in positions}:
            is_special = pa.types.is_boolean(kind) if frame.is_map else pa.types.is_null(kind)
            if not (is_special or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                wanted = "bool, or 0 and 1" if frame.is_map else "a number"
                raise InputError(f"holds {shortened(kind)}, expected {wanted}", AGAIN, path)
        return positions

    table = read_columns(data, path, check)
    if frame.is_map and any(column.null_count for column in table.columns):
        raise InputError("holds nulls", AGAIN, path)
    values = np.empty(shape, np.float64)
    for index, column in enumerate(table.columns):
        values[:, index] = _numbers(column)
    return values, positions


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column's values; null becomes NaN, which means the same: pandas turns one into the other."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if column.null_count and pa.types.is_integer(column.type):
        column = column.cast(pa.float64(), safe=False)
    return values_of(column)


@dataclass(frozen=True)
class AdcTable:
    """An ADC table as text.

    Parameters
    ----------
    columns : list of str
        Its header.
    lines : mapping of int or None to list
        Lines of each planet id: line number in the file, and column name to text. Lines without an id stand under None.
    """

    columns: list[str]
    lines: Mapping[int | None, list[tuple[int, Mapping[Any, Any]]]]


def read_adc_table(path: Path) -> AdcTable:
    """Read an ADC table (CSV) as text, without judging its values."""
    content = read_whole(path, _MOST_TABLE, "ADC table")
    if error := mistaken(content[:HEAD], path, "CSV"):
        raise error
    found: dict[int | None, list[tuple[int, Mapping[Any, Any]]]] = {}
    try:
        rows = csv.DictReader(StringIO(content.decode("utf-8-sig"), newline=""))
        columns = [name.strip() for name in rows.fieldnames or ()]
        if len(columns) > _MOST_COLUMNS:
            raise InputError(f"ADC table has more than {_MOST_COLUMNS} columns", AGAIN, path)
        rows.fieldnames = columns
        for count, row in enumerate(rows):
            if count == _MOST_LINES:
                raise InputError(f"ADC table has more than {_MOST_LINES:,} lines", AGAIN, path)
            if not any(text.strip() for text in (*filter(None, map(row.get, columns)), *row.get(None, ()))):
                continue  # a line of commas or spaces
            found.setdefault(as_id(row.get("planet_id")), []).append((rows.line_num, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"ADC table cannot be read ({shortened(error)})", AGAIN, path) from error
    return AdcTable(columns, found)


def find_adc(table: AdcTable, path: Path, planet: int, detector: Detector) -> Adc:
    """Find a planet's gain and offset in an ADC table.

    A table without the column ``planet_id`` holds one line for all planets.

    Parameters
    ----------
    table : AdcTable
        From `read_adc_table`.
    path : Path
        The table's file, for messages.
    planet : int
        Planet id.
    detector : Detector
        The detector.

    Returns
    -------
    Adc
        Gain and offset.

    Raises
    ------
    InputError
        If the planet or a column is missing, the planet has lines that differ, or a value is not usable.
    """
    by_planet = "planet_id" in table.columns
    columns = {name: f"{detector.name}_adc_{name}" for name in ("gain", "offset")}
    for column in ("planet_id", *columns.values()):
        if (count := table.columns.count(column)) > 1:
            raise InputError(f"ADC table has {count} columns {column}", AGAIN, path)
    lines = table.lines.get(planet if by_planet else None)
    if not lines:
        raise InputError("planet is not in the ADC table", f"add it to {path.name}", path)
    for column in columns.values():
        if column not in table.columns:
            raise InputError(f"ADC table has no column {column}", AGAIN, path)
    (first, adc), *others = ((at, _adc_of(row, at, columns, path)) for at, row in lines)
    for at, other in others:
        if other != adc:
            whose = "this planet" if by_planet else "all planets (there is no column planet_id)"
            pairs = [(column, getattr(adc, name), getattr(other, name)) for name, column in columns.items()]
            differ = ", ".join(f"{column} is {one} and {two}" for column, one, two in pairs if one != two)
            problem = f"lines {first} and {at} give {whose} different values: {differ}"
            raise InputError(problem, f"remove the wrong line from {path.name}", path)
    return adc


def _adc_of(row: Mapping[Any, Any], at: int, columns: Mapping[str, str], path: Path) -> Adc:
    """Parse the gain and offset of one line."""
    mend = f"correct its line in {path.name}"
    if any(text.strip() for text in row.get(None, ())):  # then nobody knows which value belongs to which column
        raise InputError(f"line {at} has more values than the header has columns", mend, path)
    values = {}
    for name, column in columns.items():
        text = row[column]
        if text is None:
            raise InputError(f"line {at} ends before {column}", mend, path)
        try:
            values[name] = float(text)
        except ValueError as error:
            raise InputError(f"{column} is {shortened(repr(text))}, not a number", mend, path) from error
    adc = Adc(**values)
    if not (math.isfinite(adc.gain) and adc.gain > 0 and math.isfinite(1 / adc.gain)):
        raise InputError(f"ADC gain is {adc.gain}, must be above 0 and finite, and so must its inverse", mend, path)
    if not math.isfinite(adc.offset):
        raise InputError(f"ADC offset is {adc.offset}, must be finite", mend, path)
    return adc


def read_axis(path: Path, detector: Detector) -> Axis:
    """Read one detector's columns of ``axis_info.parquet``; NaN pads the file's shorter columns at the end."""
    wanted = [detector.time_column, detector.wavelength_column, detector.integration_column]
    present = [name for name in wanted if name is not None]

    def check(schema: pa.Schema, n_rows: int) -> NDArray[np.intp]:
        names = schema.names
        for name in present:
            if (count := names.count(name)) != 1:
                raise InputError(f"has {count or 'no'} column{'s' * (count > 1)} {name!r}", AGAIN, path)
            kind = schema.field(name).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise InputError(f"column {name!r} holds {shortened(kind)}, expected numbers", AGAIN, path)
        return np.array([names.index(name) for name in present], np.intp)

    table = read_columns(read_whole(path, _MOST_BYTES, "axis table"), path, check)
    axes = {name: _axis_column(table, name, path) for name in present}
    wavelength = axes.get(detector.wavelength_column or "")
    if wavelength is not None:
        if wavelength.size != detector.shape[1]:
            problem = f"{detector.wavelength_column} has {wavelength.size} values, expected {detector.shape[1]}"
            raise InputError(problem, AGAIN, path)
        wavelength = wavelength[slice(*detector.crop)]
    return Axis(axes[detector.time_column], wavelength, axes.get(detector.integration_column or ""))


def documented_axis(detector: Detector) -> Axis:
    """Return a detector's axes as documented, where ``axis_info.parquet`` is missing; wavelengths are not."""
    integration = None
    if detector.integration_column is not None:
        start, end = detector.true_integration_s
        integration = np.resize([start, round(end - _UPDATE_S, 9)], detector.frames)  # as first published
        integration.flags.writeable = False
    time_h = read_times_s(detector, detector.frames) / 3600
    time_h.flags.writeable = False
    return Axis(time_h, None, integration)


def read_times_s(detector: Detector, n_frames: int) -> NDArray[np.float64]:
    """Return the time of each read, (frame,), s.

    A pair takes 0.1 s to the start read, the exposure, and 0.1 s of reset.
    """
    start, end = detector.true_integration_s
    pairs = np.arange(-(-n_frames // 2)) * (end + 2 * start)
    return np.asarray((pairs[:, None] + np.array([start, 2 * start])).ravel()[:n_frames], dtype=np.float64)


def _axis_column(table: pa.Table, name: str, path: Path) -> NDArray[np.float64]:
    values = np.array(_numbers(table.column(name)), dtype=np.float64)
    length = int(np.flatnonzero(np.isfinite(values))[-1]) + 1 if np.isfinite(values).any() else 0
    if length == 0 or not np.isfinite(values[:length]).all():
        raise InputError(f"column {name!r} has gaps or no values at all", AGAIN, path)
    values = values[:length]
    values.flags.writeable = False
    return values
