"""Finds the observations of a competition folder, 2024 or 2025 layout, and opens their calibration files.

Finding observations reads folder listings and no files. Calibration frames are validated when opened and kept by
content: in the 2024 train set all planets share byte-identical ones.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from gpucal.display.shown import Shown, listed, shortened
from gpucal.errors import ConfigError, DatasetError
from gpucal.hints import did_you_mean, joined, near_path, near_planets
from gpucal.inputs.calibration_files import (
    Adc,
    AdcTable,
    Axis,
    CalibrationFrames,
    digest_of,
    documented_axis,
    find_adc,
    read_adc_table,
    read_axis,
    read_frames,
    read_raw_frames,
)
from gpucal.inputs.files import is_file, leads_nowhere, may_be_folder, may_be_there, missing, packed_beside
from gpucal.inputs.tables import label_table, observation_table, star_table
from gpucal.settings.arguments import GivenPath, path_of
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector, detector_of
from gpucal.settings.ids import ItemId, as_id, why_no_id

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SPLITS", "Dataset", "Observation", "is_competition", "open_dataset"]

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
"""Folders of planets in a competition folder."""

Key: TypeAlias = "tuple[int, int]"
"""Planet and visit."""


@dataclass(frozen=True)
class Layout:
    """File names and preset of one year's competition.

    Parameters
    ----------
    name : str
        The year.
    preset : str
        Settings of that year's official notebook.
    suffix : str
        The part of file and folder names that tells visits apart; ``{visit}`` is the number.
    adc : str
        The ADC table's file name; ``{split}`` is train or test.
    """

    name: str
    preset: str
    suffix: str
    adc: str


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout("2024", "ariel2024", "", "{split}_adc_info.csv"),
            Layout("2025", "ariel2025", "_{visit}", "adc_info.csv"),
        )
    }
)

_FRAMES_KEPT = 8

_AXES = "axis_info.parquet"

# Said once, as the same is true of many observations.
_NO_AXES = (
    f"no {_AXES}, so times are the documented ones, from the first read, and wavelengths are not known; "
    "copy it from the competition data"
)
_NO_READ = (
    "until then errors and variances are NaN, here and wherever else it is missing; signals are as they should be"
)

# Folders whose names a warning gives, at most.
_NAMED = 3

# Limit on the folders of one level that `_below` looks at.
_LOOKED_AT = 500

_ITEM = re.compile(
    rf"(?:{'|'.join(DETECTORS)})_(?:signal|calibration)(?:_(\d+))?(?:\.parquet)?(?:\.zip|\.gz)?", re.ASCII
)


@dataclass(frozen=True, repr=False)
class Observation:
    """One visit of one planet, with the paths of its files. Making one reads nothing.

    Parameters
    ----------
    dataset : Dataset
        The folder it belongs to.
    planet : int
        Planet id.
    visit : int
        Visit number, from 0.
    split : str
        ``'train'`` or ``'test'``.

    Examples
    --------
    >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
    >>> ds[20955726]
    <gpucal Observation planet 20955726 visit 0
      data set  ariel-data-challenge-2025, train
      AIRS-CH0  ... MB of raw reads
      FGS1      ... MB of raw reads>
    """

    dataset: Dataset = field(repr=False)
    planet: int
    visit: int
    split: str

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _shown(self) -> Shown:
        facts = {"data set": f"{shortened(str(self.dataset.path), 60)}, {self.split}"}
        for detector in DETECTORS.values():
            signal, calibration = self.signal_path(detector), self.calibration_path(detector)
            size = f"{signal.stat().st_size / 1e6:,.1f} MB of raw reads" if is_file(signal) else "no raw reads"
            facts[detector.name] = size + ("" if may_be_there(calibration) else ", no calibration frames")
        return Shown(f"Observation planet {self.planet} visit {self.visit}", facts)

    @property
    def key(self) -> Key:
        """Planet and visit."""
        return self.planet, self.visit

    @property
    def _folder(self) -> Path:
        return self.dataset.path / self.split / str(self.planet)

    def _suffix(self) -> str:
        return self.dataset.layout.suffix.format(visit=self.visit)

    def where(self, detector: Detector | str) -> str:
        """Return planet, visit and detector, for messages.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        str
            Such as ``planet 612015401 visit 0 AIRS-CH0``.
        """
        return str(self.item(detector))

    def item(self, detector: Detector | str) -> ItemId:
        """Return the id of what is made of the reads of one detector.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        ItemId
            Its text is `where`.

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> obs.item("FGS1")
        ItemId(planet=20955726, visit=0, detector='FGS1')
        """
        return ItemId(self.planet, self.visit, detector_of(detector).name)

    def signal_path(self, detector: Detector | str) -> Path:
        """Return the path of the raw reads.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        Path
            A Parquet file, which may be missing.
        """
        return self._folder / f"{detector_of(detector).name}_signal{self._suffix()}.parquet"

    def calibration_path(self, detector: Detector | str) -> Path:
        """Return the path of the calibration frames.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        Path
            A folder, which may be missing.
        """
        return self._folder / f"{detector_of(detector).name}_calibration{self._suffix()}"

    def files(self, detector: Detector | str) -> dict[str, str]:
        """Name the inputs of one detector, as paths inside the data set.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        dict of str to str
            ``signal``, ``calibration`` (a folder), ``adc`` and ``axes``, which may be missing.
        """
        paths = {"signal": self.signal_path(detector), "calibration": self.calibration_path(detector)}
        names = {name: path.relative_to(self.dataset.path).as_posix() for name, path in paths.items()}
        return {**names, "adc": self.dataset.layout.adc.format(split=self.split), "axes": _AXES}

    def frames(self, detector: Detector | str) -> CalibrationFrames:
        """Return the calibration frames, read and validated; files with the same content are parsed once.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        CalibrationFrames
            Shared between observations whose files are byte-identical.

        Raises
        ------
        InputError
            If a file is missing, unreadable, or of the wrong shape or type.
        """
        return self.dataset._calibration_frames(self.calibration_path(detector), detector_of(detector))

    def adc(self, detector: Detector | str) -> Adc:
        """Look up gain and offset.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        Adc
            Gain (counts an electron) and offset (electrons).

        Raises
        ------
        InputError
            If the planet is not in the ADC table, or its gain or offset is not usable.
        """
        return self.dataset._adc_of(self.planet, self.split, detector_of(detector))

    def axis(self, detector: Detector | str) -> Axis:
        """Return the time, wavelength and integration time axes of ``axis_info.parquet``.

        Parameters
        ----------
        detector : Detector or str
            The detector, or its name.

        Returns
        -------
        Axis
            The axes.

        Raises
        ------
        InputError
            If a column is missing or unusable.
        """
        return self.dataset._axis_of(detector_of(detector))


class Dataset:
    """A competition folder, iterable: ``ds[planet]`` is a planet's first visit, ``ds[planet, visit]`` any.

    Parameters
    ----------
    path : str or Path
        The folder that holds ``train/`` or ``test/``, the ADC table and ``axis_info.parquet``.
    split : {'train', 'test'}, optional
        Only this split; by default all splits in the folder.

    Raises
    ------
    DatasetError
        If the folder is not a competition folder.

    Examples
    --------
    >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
    >>> ds
    <gpucal Dataset ariel-data-challenge-2025: 2025 layout, 2 observations>
    >>> [obs.key for obs in ds]
    [(20955726, 0), (2355445450, 0)]
    >>> ds[20955726].visit, 20955726 in ds, len(ds)
    (0, True, 2)
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self._path = GivenPath(path := path_of("path", path))
        if split is not None and not isinstance(split, str):
            raise ConfigError(f"split = {split!r}: must be {joined(SPLITS)}")
        splits = [name for name in ([split] if split else SPLITS) if (path / name).is_dir()]
        if not splits:
            raise DatasetError(f"{path}: {_why_no_competition(path, split)}")
        listing = {name: _scan(path / name) for name in splits}
        self.layout = _layout(path, [visits for found in listing.values() for visits in found.values()])
        self._observations: dict[Key, Observation] = {}
        twice = set.intersection(*map(set, listing.values())) if len(listing) > 1 else set()
        if twice:
            raise DatasetError(f"{path}: planet {min(twice)} is in train and in test; choose one with split")
        for name, found in listing.items():
            for planet, visits in sorted(found.items()):
                for visit in sorted({visit or 0 for visit in visits if self.layout.suffix} or {0}):
                    self._observations[planet, visit] = Observation(self, planet, visit, name)
        if not self._observations:
            raise DatasetError(f"{path}: no planet folders in {', '.join(splits)}; give the competition folder itself")
        for beside in (_AXES, *(self.layout.adc.format(split=name) for name in splits)):
            if not (path / beside).is_file():
                if packed := packed_beside(path / beside):
                    raise DatasetError(f"{path}: no {beside}, but {packed[0].name} is there; {packed[1]}")
                link = leads_nowhere(path / beside)
                if beside == _AXES and not link:
                    log.warning("%s: %s", path, _NO_AXES)
                    continue
                raise DatasetError(
                    f"{path}: no {beside}{link and f', which {link}'}; copy it from the competition data"
                )
        # Values derived from files, kept by content or name; filling them twice from two threads is harmless. Only the
        # last frames are kept, as each planet may have its own: one or two megabytes an item.
        self._frames: dict[tuple[Detector, str], CalibrationFrames] = {}
        self._axes: dict[Detector, Axis] = {}
        self._adc: dict[str, AdcTable] = {}
        self._is_told = False

    def __getitem__(self, key: int | Key) -> Observation:
        found = self._find(key)
        if found is None:
            if isinstance(key, tuple) and len(key) != 2:
                raise DatasetError(f"{self.path}: no observation {key!r}; write ds[planet] or ds[planet, visit]")
            planet, visit = key if isinstance(key, tuple) else (key, 0)
            what = f"planet {planet}" + (f" visit {visit}" if isinstance(key, tuple) else "")
            kind = why_no_id(planet)
            meant = did_you_mean(near_planets(planet, self.planets), f"see `gpucal info {self.path}`")
            if visits := self.visits(planet):
                meant = f"; it has visit {joined(map(str, visits), 'and')}"
            raise DatasetError(f"{self.path}: no {what} among its {len(self)} observations{kind}{meant}")
        return found

    def __contains__(self, key: object) -> bool:
        if isinstance(key, Observation):
            return key in self._observations.values()
        return self._find(key) is not None

    def _find(self, key: object) -> Observation | None:
        if isinstance(key, tuple):
            planet, visit = map(as_id, key) if len(key) == 2 else (None, None)
        else:
            planet = as_id(key)
            visit = None if planet is None else min(self.visits(planet), default=0)
        return None if planet is None or visit is None else self._observations.get((planet, visit))

    def __len__(self) -> int:
        return len(self._observations)

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._observations.values())

    def __getstate__(self) -> dict[str, Any]:
        # The caches are not copied: another process reads the files when it needs them.
        return {**vars(self), "_frames": {}, "_axes": {}, "_adc": {}}

    @property
    def path(self) -> Path:
        """The folder, as it was given; in full after os.chdir()."""
        return self._path.now

    def __repr__(self) -> str:
        return Shown(self._title).text()

    def _repr_html_(self) -> str:
        splits = Counter(obs.split for obs in self)
        facts = {split: f"{count:,} observations" for split, count in splits.items()}
        facts |= {"planets": listed([*map(str, self.planets)], 5), "preset": self.layout.preset}
        facts["tables"] = ", ".join(name for name in ("table()", "stars()", "labels()"))
        return Shown(self._title, facts).html()

    @property
    def _title(self) -> str:
        return f"Dataset {shortened(str(self.path), 400)}: {self.layout.name} layout, {len(self)} observations"

    def _ipython_key_completions_(self) -> list[int | Key]:
        return [*self.planets, *(key for key in self._observations if key[1])]

    def table(self) -> pd.DataFrame:
        """List the observations, with what their files hold.

        Returns
        -------
        DataFrame
            A row for each observation: ``planet_id``, ``visit``, ``split``, ``files`` (of signal and calibration that
            are there), ``frames`` (of AIRS-CH0, as its file says) and ``frames_FGS1``. Frames are missing values where
            a file is missing or damaged; ``gpucal check`` says why.

        Examples
        --------
        >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
        >>> ds.table()
            planet_id  visit  split  files  frames  frames_FGS1
        0    20955726      0  train     12     120         1440
        1  2355445450      0  train     12     120         1440
        """
        return observation_table([*self])

    def stars(self) -> pd.DataFrame:
        """Read what is known of the stars and orbits.

        Returns
        -------
        DataFrame
            A row for each planet: ``planet_id`` and the columns of ``train_star_info.csv``; in 2024 ``star``, the
            number of the star, of ``train_adc_info.csv``.

        Raises
        ------
        DatasetError
            If there is no such table.
        InputError
            If a table cannot be read, or a line in it is not usable.

        Examples
        --------
        >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
        >>> list(ds.stars())
        ['planet_id', 'Rs', 'Ms', 'Ts', 'Mp', 'e', 'P', 'sma', 'i']
        >>> len(ds.table().merge(ds.stars()))
        2
        """
        return star_table(self.path, self.layout.name, {obs.planet: obs.split for obs in self})

    def labels(self) -> pd.DataFrame:
        """Read the true spectra of the train planets.

        Returns
        -------
        DataFrame
            A row for each planet that has one: ``planet_id``, then ``wl_1`` (FGS1) and so on, transit depths.
            ``attrs["wavelengths"]`` has the wavelength of each column, µm, if ``wavelengths.csv`` is there.

        Raises
        ------
        DatasetError
            If there are no labels, as for the test planets.
        InputError
            If a table cannot be read, or a line in it is not usable.

        Examples
        --------
        >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
        >>> labels = ds.labels()
        >>> labels.shape
        (2, 284)
        >>> round(labels.attrs["wavelengths"]["wl_2"], 3)
        3.895
        """
        return label_table(self.path, self.layout.name, self.planets)

    @property
    def planets(self) -> list[int]:
        """Planet ids, in order."""
        return list(dict.fromkeys(planet for planet, _ in self._observations))

    def visits(self, planet: int) -> list[int]:
        """Return the visit numbers of a planet.

        Parameters
        ----------
        planet : int
            Planet id.

        Returns
        -------
        list of int
            Empty if the planet is not in the folder.

        Examples
        --------
        >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
        >>> ds.visits(20955726)
        [0]
        """
        wanted = as_id(planet)
        return [visit for found, visit in self._observations if found == wanted]

    def settings(self, **changes: object) -> Calibration:
        """Return the settings of the data set's preset, with changes.

        Parameters
        ----------
        **changes
            Setting name to new value, see `gpucal.Calibration`. Of settings by detector, such as ``bins``, the
            detectors that are not named keep theirs.

        Returns
        -------
        Calibration
            The settings, for `gpucal.run`, `gpucal.calibrate` and `gpucal.stream`.

        Raises
        ------
        ConfigError
            If a name is unknown or a value is not possible.

        Examples
        --------
        >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
        >>> ds.settings(bins={"FGS1": "24s"}, linearity=False)
        Calibration.preset('ariel2025').replace(linearity=False, bins={'FGS1': '24 s'})
        """
        return Calibration.preset(self.layout.preset).replace(**changes)

    def _calibration_frames(self, folder: Path, detector: Detector) -> CalibrationFrames:
        raw = read_raw_frames(folder)
        key = (detector, digest_of(raw))
        frames = self._frames.get(key)
        if frames is None:
            frames = self._frames[key] = read_frames(raw, folder, detector)
            for old in [*self._frames][:-_FRAMES_KEPT]:
                self._frames.pop(old, None)
        if not frames.has_read and not self._is_told:
            self._is_told = True
            log.warning("%s; %s", missing(folder / "read.parquet", "read noise"), _NO_READ)
        return frames

    def _adc_of(self, planet: int, split: str, detector: Detector) -> Adc:
        path = self.path / self.layout.adc.format(split=split)
        if split not in self._adc:
            self._adc[split] = read_adc_table(path)
        return find_adc(self._adc[split], path, planet, detector)

    def _axis_of(self, detector: Detector) -> Axis:
        if detector not in self._axes:
            path = self.path / _AXES
            self._axes[detector] = read_axis(path, detector) if path.is_file() else documented_axis(detector)
        return self._axes[detector]


def open_dataset(path: str | Path, split: str | None = None) -> Dataset:
    """Open a competition folder; the layout (2024 or 2025) is detected, and no signal is read.

    Parameters
    ----------
    path : str or Path
        The folder that holds ``train/`` or ``test/``, the ADC table and ``axis_info.parquet``.
    split : {'train', 'test'}, optional
        Only this split; by default all splits in the folder.

    Returns
    -------
    Dataset
        Its observations.

    Raises
    ------
    DatasetError
        If the folder is not a competition folder, or a planet is in both splits and none was chosen.

    Examples
    --------
    >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
    >>> ds.planets
    [20955726, 2355445450]
    >>> gpucal.open_dataset("ariel-data-challenge-2025", split="train")
    <gpucal Dataset ariel-data-challenge-2025: 2025 layout, 2 observations>
    """
    try:
        return Dataset(path_of("path", path), split)
    except OSError as error:
        reason = error.strerror or error
        where = error.filename or path
        raise DatasetError(f"{where}: cannot be read ({reason}); make it readable, or give another folder") from error


def _layout(path: Path, listing: Sequence[set[int | None]]) -> Layout:
    """Decide the layout by the planets' files, and by the names of tables only where there are none."""
    numbered = Counter(visit is not None for visits in listing for visit in visits)
    is_new = numbered[True] >= numbered[False] if numbered else (path / LAYOUTS["2025"].adc).is_file()
    return LAYOUTS["2025" if is_new else "2024"]


def _scan(folder: Path) -> dict[int, set[int | None]]:
    """Return the visits of each planet folder; None is a file name without a visit number.

    Empty folders, folders of other names, and links that lead nowhere are left out, and a warning names them.
    """
    found: dict[int, set[int | None]] = {}
    names: list[str] = []
    empty: list[str] = []
    for entry in sorted(folder.iterdir()):
        if not may_be_folder(entry):
            if not entry.name.startswith(".") and (link := leads_nowhere(entry)):
                log.warning("%s: is left out: %s; mend the link, or remove it", entry, link)
        elif _is_planet(entry.name):
            try:
                inside = [item.name for item in entry.iterdir()]
            except OSError as error:  # its items fail when they are opened, and say so
                reason = error.strerror or error
                log.warning(
                    "%s: cannot be read (%s), so that its visits are not known; make it readable", entry, reason
                )
                found[int(entry.name)] = set()
                continue
            if not inside:
                empty.append(entry.name)
                continue
            matches = map(_ITEM.fullmatch, inside)
            found[int(entry.name)] = {int(match[1]) if match[1] else None for match in matches if match}
        elif not entry.name.startswith("."):
            meant = as_id(entry.name)
            names.append(entry.name + (f" (rename it to {meant})" if meant is not None else ""))
    for those, one, many in (
        (names, "is left out, as its name is not a planet id", "are left out, as their names are not a planet id"),
        (empty, "is left out, as it is empty", "are left out, as they are empty"),
    ):
        if those:
            more = f" and {len(those) - _NAMED} more" * (len(those) > _NAMED)
            log.warning("%s: %s%s %s", folder, ", ".join(those[:_NAMED]), more, one if len(those) == 1 else many)
    return found


def _is_planet(name: str) -> bool:
    """Tell whether a folder's name is a planet id as the competition writes it."""
    return name.isascii() and name.isdecimal() and name == str(as_id(name))


def _why_no_competition(path: Path, split: str | None) -> str:
    """Return the reason why a folder cannot be opened, and the folder that was probably meant."""
    form = "give the competition folder, which holds train/ or test/"
    if not path.exists():
        return f"does not exist{did_you_mean(_meant(path), form)}"
    if not path.is_dir():
        mend = "unpack it and give the folder that comes of it" if path.suffix == ".zip" else form
        return f"is a file{did_you_mean(_meant(path), mend)}"
    for name in [split] if split else SPLITS:
        if link := leads_nowhere(path / name):
            return f"{name} {link}; mend the link"
    if there := [name for name in SPLITS if (path / name).is_dir()]:
        return f"has only {there[0]}/ and no {split}/ folder; choose {there[0]}, or do not choose a split"
    meant = _meant(path)
    if not meant and (path / "config.toml").is_file():
        return "is a results folder; give the competition folder, which comes before OUT"
    wanted = f"{split}/" if split else "train/ or test/"
    return f"has no {wanted} folder{did_you_mean(meant, 'give the competition folder itself')}"


def _meant(path: Path) -> list[str]:
    """Find competition folders above, beside or below a path."""
    with suppress(OSError):  # a folder that cannot be listed is not suggested
        if not path.exists():
            near = [*map(Path, near_path(path))]
            return [found for folder in near for found in ([str(folder)] if is_competition(folder) else _below(folder))]
        above = [str(folder) for folder in (*path.parents, *path.resolve().parents) if is_competition(folder)]
        return above[:1] or _below(path)
    return []


def _below(path: Path) -> list[str]:
    """Find at most three competition folders, one level down or else two."""
    level = [path]
    for _ in range(2):
        entries = (entry for folder in level for entry in sorted(folder.iterdir()))
        level = [*islice((entry for entry in entries if entry.is_dir()), _LOOKED_AT)]
        if found := [str(folder) for folder in level if is_competition(folder)]:
            return found[:3]
    return []


def is_competition(path: Path) -> bool:
    """Tell whether a folder has planets in train/ or test/; many projects have a test/ folder without any.

    A folder that cannot be read has none that are known.
    """
    with suppress(OSError):
        return any(
            _is_planet(entry.name) and entry.is_dir()
            for split in SPLITS
            if (path / split).is_dir()
            for entry in (path / split).iterdir()
        )
    return False
