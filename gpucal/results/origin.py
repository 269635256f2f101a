"""Which data set results are of, so that a results folder does not mix two, and lies in none."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpucal.errors import ConfigError, InputError
from gpucal.inputs.dataset import SPLITS, Dataset, Observation
from gpucal.inputs.signal_file import fingerprint_of
from gpucal.results.records import records
from gpucal.settings.detectors import DETECTORS

__all__ = ["home_of", "is_inside", "require_outside", "require_same_dataset"]

log = logging.getLogger(__name__)


def home_of(dataset: Dataset) -> str:
    """Name a data set's folder as commit records do.

    Parameters
    ----------
    dataset : Dataset
        The data set.

    Returns
    -------
    str
        Absolute, links followed.
    """
    return os.path.realpath(dataset.path)


def is_inside(path: Path, folders: Iterable[Path]) -> bool:
    """Tell whether a path lies in one of some folders, or is one.

    Parameters
    ----------
    path : Path
        It need not exist.
    folders : iterable of Path
        Folders; what does not exist holds nothing.

    Returns
    -------
    bool
        Links are followed, on both sides.
    """
    known = {_identity(folder) for folder in folders} - {None}
    real = Path(os.path.realpath(path))
    return any(_identity(place) in known for place in (real, *real.parents))


def require_outside(dataset: Dataset, out: Path) -> None:
    """Refuse a results folder among raw data.

    Parameters
    ----------
    dataset : Dataset
        The data set.
    out : Path
        The results folder, which need not exist.

    Raises
    ------
    ConfigError
        If it lies in the competition folder, at any depth, or in a folder that a link there leads to.
    """
    if any(map(os.path.isfile, (out, *out.parents))):
        return  # that is said when the folder is to be made
    splits = [dataset.path / split for split in SPLITS]
    planets = {obs.signal_path(detector).parent for obs in dataset for detector in DETECTORS.values()}
    if is_inside(out, [dataset.path, *splits, *planets]):
        raise ConfigError(
            f"{out}: is where the competition's planets are; give another folder for the results, "
            f"outside {home_of(dataset)}"
        )


def require_same_dataset(dataset: Dataset, folders: Sequence[Path], mend: str, *, add: bool = False) -> None:
    """Refuse results folders that hold another data set's results.

    One observation that is in the data set is enough: it may have grown, shrunk or moved since. All of the competition
    folder counts, whichever split of it was opened. An observation is in it if its planet and visit are there, and its
    record names this folder or the fingerprint of the signal file that is there.

    Parameters
    ----------
    dataset : Dataset
        The data set.
    folders : sequence of Path
        Results folders that count as one; they need not exist.
    mend : str
        What to do instead, for the message.
    add : bool
        Warn of what will be replaced, instead of refusing.

    Raises
    ------
    ConfigError
        If they hold finished items, and none of an observation of the data set.
    OutputError
        If a record cannot be read.
    """
    home = home_of(dataset)
    held: dict[tuple[int, int], Any] = {}
    for record in (record for folder in folders for record in records(folder) if record["status"] == "done"):
        if _is_in(dataset, home, record):
            return
        held.setdefault((record["planet"], record["visit"]), record.get("dataset"))
    if not held:
        return
    if not add:
        paths = [str(path) for path in dict.fromkeys(held.values()) if path] or ["another data set"]
        planets = [str(planet) for planet in dict.fromkeys(planet for planet, _ in held)]
        raise ConfigError(
            f"{folders[0]}: holds {_number(len(held))} of {_some(paths, 2)} (planet {_some(planets, 3)}), and none of "
            f"them is in {home} ({dataset.layout.name} layout, {_number(len(dataset))}); "
            f"{mend}, or --add to have both data sets in one"
        )
    if taken := [key for key in held if any(_observations(dataset, *key))]:
        log.warning(
            "%s: %s of another data set will be replaced; %s has the same ones, such as planet %d visit %d",
            *(folders[0], _number(len(taken)), home, *taken[0]),
        )


def _is_in(dataset: Dataset, home: str, record: Mapping[str, Any]) -> bool:
    """Tell whether a finished item is of an observation of the data set."""
    observations = list(_observations(dataset, record["planet"], record["visit"]))
    if not observations or record.get("dataset") == home:
        return bool(observations)
    fingerprints, detector = record["provenance"].get("fingerprints"), DETECTORS.get(record["detector"])
    made_from = fingerprints.get("signal") if isinstance(fingerprints, dict) else None
    if made_from is None or detector is None:
        return False
    for obs in observations:
        try:
            if fingerprint_of(obs.signal_path(detector)) == made_from:
                return True
        except InputError:
            continue  # that the file is damaged is said when it is calibrated
    return False


def _observations(dataset: Dataset, planet: int, visit: int) -> Iterator[Observation]:
    """Find an observation in the competition folder, in either split, whichever of them was opened."""
    if visit and not dataset.layout.suffix:  # whose names are the same for every visit
        return
    for split in SPLITS:
        obs = Observation(dataset, planet, visit, split)
        paths = (path(detector) for path in (obs.signal_path, obs.calibration_path) for detector in DETECTORS.values())
        if any(map(os.path.exists, paths)):
            yield obs


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except (OSError, ValueError):  # the latter of a name that no file can have, in a damaged record
        return None
    return found.st_dev, found.st_ino


def _number(observations: int) -> str:
    return f"{observations} observation{'s' * (observations != 1)}"


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
