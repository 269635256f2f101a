"""Keeps results and data sets apart: a results folder holds one data set's results, and lies inside no data set."""

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
    """Return a data set's folder as commit records name it: absolute, links followed."""
    return os.path.realpath(dataset.path)


def is_inside(path: Path, folders: Iterable[Path]) -> bool:
    """Tell whether a path is one of the folders or lies in one, with links followed on both sides."""
    known = {_identity(folder) for folder in folders} - {None}
    real = Path(os.path.realpath(path))
    return any(_identity(folder) in known for folder in (real, *real.parents))


def require_outside(dataset: Dataset, out: Path) -> None:
    """Refuse a results folder in the competition folder, at any depth, or in a folder that a link there leads to.

    Raises ConfigError.
    """
    if any(map(os.path.isfile, (out, *out.parents))):
        return  # making the folder will report that
    splits = [dataset.path / split for split in SPLITS]
    planets = {obs.signal_path(detector).parent for obs in dataset for detector in DETECTORS.values()}
    if is_inside(out, [dataset.path, *splits, *planets]):
        raise ConfigError(
            f"{out}: is where the competition's planets are; give another folder for the results, "
            f"outside {home_of(dataset)}"
        )


def require_same_dataset(dataset: Dataset, folders: Sequence[Path], mend: str, *, add: bool = False) -> None:
    """Refuse results folders that hold another data set's results.

    One shared observation is enough to accept a folder, as the data set may have grown, shrunk or moved. Observations
    of the whole competition folder count, not only those of the opened split. An observation is shared if its planet
    and visit are in the data set, and its record names this folder or the fingerprint of its signal file.

    ``folders`` count as one and need not exist. ``mend`` ends the message. With ``add``, a warning lists what will be
    replaced, and nothing is refused. Raises ConfigError if the folders hold finished items but no shared observation,
    and OutputError if a record cannot be read.
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
    """Tell whether a finished item's observation is in the data set."""
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
            continue  # its calibration will report that the file is damaged
    return False


def _observations(dataset: Dataset, planet: int, visit: int) -> Iterator[Observation]:
    """Find an observation in both splits of the competition folder, whichever split was opened."""
    if visit and not dataset.layout.suffix:  # in this layout every visit has the same file names
        return
    for split in SPLITS:
        obs = Observation(dataset, planet, visit, split)
        paths = (path(detector) for path in (obs.signal_path, obs.calibration_path) for detector in DETECTORS.values())
        if any(map(os.path.exists, paths)):
            yield obs


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except (OSError, ValueError):  # ValueError: a damaged record may hold a name that no file can have
        return None
    return found.st_dev, found.st_ino


def _number(observations: int) -> str:
    return f"{observations} observation{'s' * (observations != 1)}"


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
