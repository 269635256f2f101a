"""Tables of a data set, as pandas DataFrames in the competition's names: observations, stars, labels."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gpucal.errors import DatasetError, InputError
from gpucal.inputs.calibration_files import FRAMES
from gpucal.inputs.files import AGAIN, is_file, read_whole, shortened
from gpucal.inputs.signal_file import frames_in
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.settings.ids import as_id

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["label_table", "observation_table", "star_table"]

log = logging.getLogger(__name__)

# Limit on the bytes of a table. The labels of 1,100 planets take 6 MB.
_MOST_BYTES = 2**28

_ID = "planet_id"

# What the labels and stars are called in each layout; ``{split}`` is train or test. Test planets have no labels.
_LABELS: Mapping[str, str] = MappingProxyType({"2024": "train_labels.csv", "2025": "train.csv"})
_STARS: Mapping[str, str] = MappingProxyType({"2024": "{split}_adc_info.csv", "2025": "{split}_star_info.csv"})

_WAVELENGTHS = "wavelengths.csv"


class _Observation(Protocol):
    """The attributes of `Observation` that these functions read; its data set imports them."""

    @property
    def planet(self) -> int: ...

    @property
    def visit(self) -> int: ...

    @property
    def split(self) -> str: ...

    def signal_path(self, detector: Detector) -> Path: ...

    def calibration_path(self, detector: Detector) -> Path: ...


def observation_table(observations: Sequence[_Observation]) -> pd.DataFrame:
    """Make a row for each observation: planet_id, visit, split, files, frames, frames_FGS1.

    ``files`` counts the signal and calibration files that are there, of 12. Frames are those of the signal files, as
    their footers say: ``frames`` are those of AIRS-CH0. They are missing where a file is missing or is damaged;
    ``gpucal check`` says why.
    """
    import pandas as pd

    with ThreadPoolExecutor(8) as pool:  # it waits for the disk, mostly
        found = [*pool.map(_look_at, observations)]
    columns: dict[str, Any] = {
        _ID: pd.array([obs.planet for obs in observations], dtype="int64"),
        "visit": pd.array([obs.visit for obs in observations], dtype="int64"),
        "split": [obs.split for obs in observations],
        "files": pd.array([count for count, _ in found], dtype="int64"),
    }
    for at, name in enumerate(DETECTORS):
        of = f"frames_{name}" if at else "frames"
        columns[of] = pd.array([frames[at] for _, frames in found], dtype="Int64")
    return pd.DataFrame(columns)


def star_table(folder: Path, layout: str, planets: Mapping[int, str]) -> pd.DataFrame:
    """Make a row for each planet: planet_id and what is known of its star; in 2024 only the star's number.

    ``planets`` has the split of each planet, whose table counts.
    """
    of_split: dict[str, list[int]] = {}
    for planet, split in planets.items():
        of_split.setdefault(split, []).append(planet)
    wanted = {folder / _STARS[layout].format(split=split): ids for split, ids in of_split.items()}
    table = _joined(folder, wanted)
    return table.drop(columns=[name for name in table.columns if "_adc_" in name])


def label_table(folder: Path, layout: str, planets: Sequence[int]) -> pd.DataFrame:
    """Make a row for each planet that has labels: planet_id, then the spectrum, wl_1 and so on.

    ``attrs`` has the wavelengths of the columns, µm, where ``wavelengths.csv`` is there.
    """
    table = _joined(folder, {folder / _LABELS[layout]: planets})
    path = folder / _WAVELENGTHS
    if path.is_file():
        header, *lines = _rows_of(path)
        if len(lines) != 1 or len(lines[0][1]) != len(header[1]):
            raise InputError(f"has {len(lines)} lines below its header, expected one as long as it", AGAIN, path)
        values = {
            name: _number(text, path, lines[0][0], name) for name, text in zip(header[1], lines[0][1], strict=True)
        }
        table.attrs["units"] = {"wavelengths": "um"}
        table.attrs["wavelengths"] = {name: value for name, value in values.items() if name in table}
    return table


def _look_at(obs: _Observation) -> tuple[int, list[int | None]]:
    """Count the files of an observation, and the frames of each detector, None where they are not known."""
    signals = [obs.signal_path(detector) for detector in DETECTORS.values()]
    frames: list[int | None] = []
    for path in signals:
        try:
            frames.append(frames_in(path))
        except InputError:
            frames.append(None)
    folders = [obs.calibration_path(detector) for detector in DETECTORS.values()]
    others = [folder / f"{kind}.parquet" for folder, kind in product(folders, FRAMES)]
    return sum(is_file(path) for path in (*signals, *others)), frames


def _joined(folder: Path, wanted: Mapping[Path, Sequence[int]]) -> pd.DataFrame:
    """Read tables, and keep from each the lines of its planets, in their order."""
    import pandas as pd

    there = [path for path in wanted if path.is_file()]
    lost = [path.name for path in wanted if path not in there]
    if not there:
        raise DatasetError(f"{folder}: no {' and no '.join(lost)}; copy it from the competition data")
    for name in lost:
        log.warning("%s: no %s, so its planets are not in the table; copy it from the competition data", folder, name)
    tables = []
    for path in there:
        table = _read(path)
        order = {planet: at for at, planet in enumerate(wanted[path])}
        table = table[table[_ID].isin(order)]
        tables.append(table.sort_values(_ID, key=lambda ids, order=order: ids.map(order)))  # type: ignore[misc]
    return pd.concat(tables, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    """Read a table by planet; equal lines of one planet count once."""
    import pandas as pd

    header, *lines = _rows_of(path)
    names = header[1]
    if _ID not in names or len({*names}) < len(names):
        raise InputError(f"has {'two columns of one name' if _ID in names else f'no column {_ID}'}", AGAIN, path)
    of = names.index(_ID)
    rows: dict[int, list[float]] = {}
    for at, line in lines:
        planet = as_id(line[of])
        if planet is None:
            problem = f"line {at} has {_ID} {shortened(repr(line[of]))}, which is not a planet id"
            raise InputError(problem, f"correct the line in {path.name}", path)
        if len(line) != len(names):
            problem = f"line {at} has {len(line)} values, and the header has {len(names)}"
            raise InputError(problem, f"correct the line in {path.name}", path)
        numbers = [_number(text, path, at, name) for name, text in zip(names, line, strict=True) if name != _ID]
        if rows.setdefault(planet, numbers) != numbers:
            problem = f"line {at} gives planet {planet} other values than a line before"
            raise InputError(problem, f"remove the wrong line from {path.name}", path)
    columns = [name for name in names if name != _ID]
    values = pd.DataFrame(np.array([*rows.values()], np.float64).reshape(-1, len(columns)), columns=columns)
    return pd.concat([pd.Series([*rows], name=_ID, dtype="int64"), values], axis=1)


def _rows_of(path: Path) -> list[tuple[int, list[str]]]:
    """Read a CSV file: the lines that hold anything, with their numbers; the first one is the header."""
    content = read_whole(path, _MOST_BYTES, "table")
    try:
        reader = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""))
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"table cannot be read ({shortened(error)})", AGAIN, path) from error
    rows = [(at, row) for at, row in rows if any(row)]
    if not rows:
        raise InputError("table is empty", AGAIN, path)
    return rows


def _number(text: str, path: Path, at: int, name: str) -> float:
    """Parse a number; nothing is NaN, always the same one, so that equal lines are equal."""
    try:
        return math.nan if math.isnan(number := float(text or "nan")) else number
    except ValueError as error:
        problem = f"line {at} has {name} {shortened(repr(text))}, which is not a number"
        raise InputError(problem, f"correct the line in {path.name}", path) from error
