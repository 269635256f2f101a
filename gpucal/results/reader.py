"""Opens a results folder; arrays are read only when they are asked for."""

from __future__ import annotations

import copy
import logging
import operator
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gpucal.display.shown import Shown, listed, shortened
from gpucal.display.svg import white_light as white_light_svg
from gpucal.errors import ConfigError, GpucalError, OutputError, Unstackable
from gpucal.hints import did_you_mean, joined, near_planets
from gpucal.inputs.dataset import open_dataset
from gpucal.pipeline.calibrated import Calibrated
from gpucal.pipeline.plots import Curves, draw, figure_of
from gpucal.results.observation import CalibratedObservation
from gpucal.results.other_folders import gather, missing
from gpucal.results.records import record_path
from gpucal.results.stacking import one_by_one, stacked
from gpucal.results.tables import Rows, curve_table, failure_table, item_table
from gpucal.science.light_curves import Choices, LightCurve, white_light
from gpucal.science.quality import count_flags, curve_quality, quality
from gpucal.science.rejected import NONE, Rejected
from gpucal.settings.arguments import GivenPath, kind_of, path_of
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, ORDER, curve_name, detector_of
from gpucal.settings.ids import ItemId, as_id

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from gpucal.results.report import Report

__all__ = ["ORDER", "ResultArray", "Results", "complete", "open_results"]

log = logging.getLogger(__name__)

# The detector whose times are those of a table's rows: AIRS-CH0.
_CLOCK = next(iter(DETECTORS))

_CALLED = {"signal": "cubes", "flux": "light curves"}

# Observations whose white light the card of a folder shows.
_PICTURED = 2

# Errors that NumPy raises on a damaged file, found by changing every byte of a header.
DAMAGED = (EOFError, MemoryError, OverflowError, SyntaxError, TypeError, ValueError, tokenize.TokenError)


class ResultArray:
    """The signals or flags of one detector: ``len``, ``[i]`` and slices read only what they need; picklable.

    Every access raises `OutputError` where a file is missing or damaged, or where arrays of different shapes would have
    to be stacked.

    Parameters
    ----------
    results : Results
        The results folder.
    detector : str
        The detector's name.
    kind : {'signal', 'dq'}
        The kind of array.
    """

    def __init__(self, results: Results, detector: str, kind: str = "signal") -> None:
        detector_of(detector)
        self._results = results
        self._detector = detector
        self._kind = kind

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        title = f"ResultArray {self._detector} {self._kind}: {len(self)} observations"
        if not len(self):
            return Shown(title).text()
        files = self._results._record(self._results.ids[0], self._detector)["files"]
        of = files.get(self._kind)
        facts = {"each": f"{tuple(of['shape'])}, {of['dtype']}" if of else f"not stored, but {', '.join(files)}"}
        return Shown(title, facts | {"read": "by index or slice, or all with load()"}).text()

    def __getitem__(self, index: int | slice | tuple[Any, ...]) -> NDArray[Any]:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if not isinstance(first, slice):
            try:
                number = operator.index(first)
            except TypeError as error:
                raise ConfigError(f"{self._detector}[{first!r}]: an index must be an integer or a slice") from error
            array = self._results._read(self._results.ids[number], self._detector, self._kind, mapped=bool(rest))
            return np.array(array[rest]) if rest else array
        chosen = range(*first.indices(len(self)))
        read = chosen or range(len(self))[:1]  # an empty slice needs the shape of an observation
        complete(self._results)
        return stacked(self._results.path, (self[(i, *rest)] for i in read), len(read))[: len(chosen)]

    def load(self) -> NDArray[Any]:
        """Read everything.

        Returns
        -------
        ndarray, shape (observation, time, wavelength, spatial)
            In the order of `Results.ids`.

        Raises
        ------
        OutputError
            If nothing is complete, a file is missing or damaged, or the shapes differ.
        """
        return self[:]


class Results:
    """An open results folder, see `open_results`; iterating it gives ``ids``.

    ``results[planet]`` is a planet's first complete visit and ``results[planet, visit]`` any, both as a
    `gpucal.results.observation.CalibratedObservation`. ``results["AIRS-CH0"]`` is a `ResultArray` of all.

    An observation is complete, and in ``ids``, if both detectors are finished and neither failed later. A failed item
    is in ``failed`` with its message, even if the folder still holds an older result of it. If the folder was resumed
    from others, the items that count there are read from them. If such a folder is gone, its items are in ``elsewhere``
    with the folder's path.

    Parameters
    ----------
    path : str or Path
        The results folder.
    *more : str or Path
        Further folders. The first one that has an item decides, whether the item is finished or failed there. They
        precede folders that are only noted.
    settings : str, optional
        Read only items whose settings have this hash.

    Raises
    ------
    OutputError
        If no folder holds results, or one of the further ones holds none.

    Examples
    --------
    >>> res = gpucal.open_results("calibrated")
    >>> res
    <gpucal Results calibrated: 2 observations complete
      ids       (20955726, 0), (2355445450, 0)
      AIRS-CH0  cubes (2, 282, 32), light curves (2, 282)
      FGS1      cubes (2, 32, 32), light curves (2, 1)
      settings  ariel2025>
    >>> list(res) == res.ids
    True
    >>> res[20955726]["AIRS-CH0"].signal.shape, res["AIRS-CH0"][0].shape
    ((2, 282, 32), (2, 282, 32))
    """

    def __init__(self, path: str | Path, *more: str | Path, settings: str | None = None) -> None:
        self._path = GivenPath(path := path_of("path", path))
        if settings is not None and not isinstance(settings, str):
            raise ConfigError(f"settings = {settings!r}: must be the hash of settings, a text")
        found = gather(path, [path_of("more", one) for one in more], settings)
        self.elsewhere = found.elsewhere
        if not found.first and self.elsewhere:
            raise OutputError(missing(path, self.elsewhere))
        if not found.first:
            raise OutputError(f"{path}: holds no results; make some with `gpucal calibrate DATASET {path}`")
        done = {item: record for item, (_, record) in found.done.items()}
        keys = sorted({item[:2] for item in found.first})
        self.ids = [key for key in keys if all(ItemId(*key, name) in done for name in DETECTORS)]
        self.failed = {item: str(r.get("error", "failed")) for item, r in found.first.items() if item not in done}
        self._known = frozenset(self.ids)
        self._records = done
        self._lacks_errors = False  # whether that was said
        self._homes = {item: GivenPath(home, self._path.home) for item, (home, _) in found.done.items()}
        if (different := len({str(r.get("settings")) for r in done.values()})) > 1:
            log.warning(
                "%s: holds %d items of %d different settings; for one, run `gpucal calibrate DATASET %s --overwrite`",
                *(path, len(done), different, path),
            )

    @property
    def path(self) -> Path:
        """The first folder, as it was given; in full after os.chdir()."""
        return self._path.now

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, key: object) -> bool:
        """Tell whether an observation is complete, by (planet, visit), or any observation of a planet, by its id."""
        if isinstance(key, tuple):
            return self._knows(_key(key))
        wanted = as_id(key)
        return any(planet == wanted for planet, _ in self.ids)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.ids)

    @overload
    def __getitem__(self, key: str) -> ResultArray: ...

    @overload
    def __getitem__(self, key: int | tuple[int, int]) -> CalibratedObservation: ...

    def __getitem__(self, key: str | int | tuple[int, int]) -> ResultArray | CalibratedObservation:
        if isinstance(key, str) and as_id(key) is None:
            return ResultArray(self, key)
        return CalibratedObservation(*self._key(key), self)

    def _ipython_key_completions_(self) -> list[str | int | tuple[int, int]]:
        firsts = dict.fromkeys(planet for planet, _ in self.ids)
        return [*DETECTORS, *firsts, *(key for key in self.ids if key[1])]

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        shown = self._shown()
        try:
            curves = {
                f"{key[0]}/{key[1]} {name}" if len(self) > 1 else name: curve
                for key in self.ids[:_PICTURED]
                for name, curve in self.white_light(key).items()
            }
        except GpucalError as error:  # a damaged file must not keep the card from being shown
            return Shown(shown.title, {**shown.facts, "white light": str(error)}).html()
        return Shown(shown.title, shown.facts, white_light_svg(curves) if curves else "").html()

    def _shown(self) -> Shown:
        facts = {"ids": listed([str(key) for key in self.ids])}
        for name in DETECTORS:
            files = [self._records[ItemId(*key, name)]["files"] for key in self.ids]
            what = {f"{_CALLED[kind]} {tuple(of[kind]['shape'])}" for of in files for kind in _CALLED if kind in of}
            facts[name] = listed(sorted(what))
        settings = {str(r.get("settings")): r["provenance"]["settings"] for r in self._records.values()}
        facts["settings"] = listed([Calibration.from_dict(one).summary for one in settings.values()], 1)
        facts["failed"] = f"{len(self.failed)} items: {listed([*self.failed.values()], 1)}" if self.failed else ""
        facts["elsewhere"] = f"{len(self.elsewhere)} items" if self.elsewhere else ""
        complete = f"{len(self)} observation{'s' * (len(self) != 1)} complete"
        return Shown(f"Results {shortened(str(self.path), 60)}: {complete}", facts)

    def table(self) -> pd.DataFrame:
        """List the items: a row for each detector of each observation, with status and quality.

        Returns
        -------
        DataFrame
            ``planet_id``, ``visit``, ``detector``, ``status`` (``done``, ``failed``, or ``elsewhere``: in a folder
            that is not there), ``seconds``, ``backend``, ``version``, and a column for each number on quality, see
            `gpucal.science.quality.quality`. Numbers of items of 0.1 are computed from their arrays; if these cannot
            be read, they are missing, and a line is logged. ``merge(ds.stars())`` and ``merge(ds.labels())`` need no
            key.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> res.table()[["planet_id", "visit", "detector", "status"]]
            planet_id  visit  detector status
        0    20955726      0  AIRS-CH0   done
        1    20955726      0      FGS1   done
        2  2355445450      0  AIRS-CH0   done
        3  2355445450      0      FGS1   done
        >>> stars = gpucal.open_dataset("ariel-data-challenge-2025").stars()
        >>> res.table().merge(stars).shape[0]
        4
        """
        return item_table(self._records, self.failed, self.elsewhere, self._qualities())

    def failures(self) -> pd.DataFrame:
        """List the items that failed.

        Returns
        -------
        DataFrame
            ``planet_id``, ``visit``, ``detector``, ``problem``, ``mend``, ``file``; a part that is not known is empty.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> len(res.failures())
        0
        """
        return failure_table(self.failed)

    def report(self, to: str | Path | None = None, *, paths: bool = False) -> Report:
        """Write the quality report: one HTML page that needs no network, with figures, a table and what failed.

        Parameters
        ----------
        to : str or Path, optional
            The file; by default ``report.html`` in the results folder.
        paths : bool
            Show the whole paths of folders and files. By default, only their names are in the page.

        Returns
        -------
        Report
            Where it is; in a notebook it shows the page.

        Raises
        ------
        OutputError
            If the file cannot be written.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> res.report()
        <gpucal Report calibrated/report.html
          size          ... kB
          observations  2 of 2 complete
          needs a look  0>
        """
        from gpucal.results.report import write_report

        return write_report(self, to, paths=paths)

    def light_curve_table(self, labels: bool | pd.DataFrame = False) -> pd.DataFrame:
        """Put the light curves of all complete observations into one table, in the competition's names.

        Parameters
        ----------
        labels : bool or DataFrame
            Add the true spectra, as columns ``wl_1_label`` and so on. True reads them from the data set that the folder
            was made from; if that has been moved, give ``ds.labels()``.

        Returns
        -------
        DataFrame
            A row for each bin: ``planet_id``, ``visit``, ``bin``, ``time`` (AIRS-CH0's), ``wl_1`` (FGS1), ``wl_2`` and
            so on, then ``wl_1_error`` and so on, NaN where errors are not known. ``attrs["units"]`` has the unit of
            each column, ``attrs["wavelengths"]`` the wavelength, µm.

        Raises
        ------
        DatasetError, InputError
            If labels cannot be read.
        OutputError
            If nothing is complete, observations or detectors differ in their number of bins or columns, or a file
            cannot be read.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> table = res.light_curve_table(labels=True)
        >>> list(table)[:6]
        ['planet_id', 'visit', 'bin', 'time', 'wl_1', 'wl_2']
        >>> table.attrs["units"]["wl_1"], round(table.attrs["wavelengths"]["wl_2"], 3)
        ('electron', 3.895)
        >>> depths = table[[name for name in table if name.endswith("_label")]]
        >>> depths.shape
        (4, 283)
        """
        spectra = self._labels(labels)
        keys = complete(self)
        names = self._curve_names(keys[0])
        um = np.concatenate([self._wavelengths(keys[0], name) for name in ORDER])
        rows = []
        for key in keys:
            if self._curve_names(key) != names:
                raise Unstackable(f"{self.path}: observations differ in their columns; {one_by_one(self.path)}")
            curves = [self._curves_and_errors(key, name) for name in ORDER]
            flux, error = (self._joined(of[at] for of in curves) for at in range(2))
            rows.append(Rows(key, self.axes(key, _CLOCK)["time"], flux, error))
        stored = [self._record(key, name)["files"] for key in keys for name in ORDER]
        kind = np.result_type(*{of["flux" if "flux" in of else "signal"]["dtype"] for of in stored})
        return curve_table(names, um, rows, kind, spectra)

    def plot(self, key: int | tuple[int, int], figure: FigureBase | None = None) -> dict[str, dict[str, Axes]]:
        """Draw a complete observation: white light with errors and scatter, wavelengths over time, spectrum, flags.

        Parameters
        ----------
        key : int or tuple of int
            Planet, for its first visit, or planet and visit.
        figure : matplotlib Figure or SubFigure, optional
            An empty one with a constrained layout; by default a new one of ``matplotlib.pyplot``.

        Returns
        -------
        dict
            For each detector its axes by name: ``white``, ``residuals``, ``flags``, and ``image`` and ``spectrum``, or
            ``mean`` for FGS1.

        Raises
        ------
        MissingExtra
            If matplotlib is not installed.
        OutputError
            If the observation is not complete, or a file is missing or damaged.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> axes = res.plot(20955726)
        >>> sorted(axes["FGS1"])
        ['flags', 'mean', 'residuals', 'white']
        >>> axes["FGS1"]["white"].figure.figure.savefig("20955726.png")
        """
        found = self._key(key)
        curves = [self._curves(found, name) for name in ORDER]
        title = f"planet {found[0]} visit {found[1]}"
        return draw(figure_of(figure, 12.0), title, curves)

    def white_light(self, key: int | tuple[int, int]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Sum the light curves of one complete observation over wavelength.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.

        Returns
        -------
        dict of str to (ndarray, ndarray)
            For each detector, FGS1 first, the times, hours, and the white light curve, electrons; each (time,).

        Raises
        ------
        OutputError
            If the observation is not complete, or a file is missing or damaged.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> time, flux = res.white_light((20955726, 0))["FGS1"]
        >>> time.shape, flux.shape
        ((2,), (2,))
        """
        return {name: (self.axes(key, name)["time"], white_light(self.light_curve(key, name))[0]) for name in ORDER}

    def _with_parts(self) -> Results:
        """Return these results with the observations that are finished in part among ``ids``."""
        ids = sorted({item[:2] for item in self._records})
        if ids == self.ids:
            return self
        parts = copy.copy(self)
        parts.ids = ids
        parts._known = frozenset(parts.ids)
        return parts

    def _qualities(self) -> dict[ItemId, Mapping[str, Any]]:
        """Return the numbers on quality of each finished item, computed where its record has none, as of 0.1."""
        parts = self._with_parts()
        found: dict[ItemId, Mapping[str, Any]] = {}
        for item, record in self._records.items():
            if isinstance(record.get("quality"), Mapping):
                found[item] = record["quality"]
                continue
            try:
                found[item] = parts._computed_quality(item)
            except OutputError as error:
                log.warning("%s: numbers on its quality cannot be computed: %s", item, error)
        return found

    def _computed_quality(self, item: ItemId) -> dict[str, Any]:
        *key, name = item
        photometer = DETECTORS[name].photometer
        files = self._record((key[0], key[1]), name)["files"]
        if "signal" in files:
            cal = self.calibrated((key[0], key[1]), name)
            numbers = quality(cal.signal, cal.dq, *cal.light_curve_with_errors(), photometer=photometer)
            if "variance" in files:
                numbers |= cal._motion()
            return numbers
        numbers = curve_quality(*self._stored_curves((key[0], key[1]), name), photometer=photometer)
        if "dq" in files:
            numbers["flags"] = count_flags(self._read((key[0], key[1]), name, "dq"))
        return numbers

    def _curves(self, key: int | tuple[int, int], detector: str) -> Curves:
        """Read what is drawn of an item."""
        record, axes = self._record(key, detector), self.axes(key, detector)
        if "signal" in record["files"]:
            return self.calibrated(key, detector)._curves()
        flux, error = (self._read(key, detector, kind).astype(np.float64) for kind in ("flux", "error"))
        dq = self._read(key, detector, "dq") if "dq" in record["files"] else None
        cropped = Calibration.from_dict(record["provenance"]["settings"]).cropped(DETECTORS[detector])
        return Curves(cropped, axes["time"], flux, error, axes.get("wavelength"), dq)

    def _curves_and_errors(
        self, key: int | tuple[int, int], detector: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Read an item's light curve with its errors, NaN where they are not stored."""
        if self._record(key, detector)["files"].keys() & {"error", "variance"}:
            curve = self.light_curve_with_errors(key, detector)
            return curve.flux, curve.error
        flux = self.light_curve(key, detector)
        return flux, np.full_like(flux, np.nan)

    def _curve_names(self, key: int | tuple[int, int]) -> list[str]:
        """Name the light curves of an observation as the competition does."""
        names: list[str] = []
        for name in ORDER:
            settings = self._record(key, name)["provenance"]["settings"]
            detector = Calibration.from_dict(settings).cropped(DETECTORS[name])
            columns = [None] if detector.photometer else range(*detector.crop)
            names += [curve_name(name, column) for column in columns]
        return names

    def _wavelengths(self, key: int | tuple[int, int], detector: str) -> NDArray[np.float64]:
        """Read the wavelength of each light curve of an item, NaN where it is not known."""
        um = self.axes(key, detector).get("wavelength")
        return np.full(self.light_curve(key, detector).shape[1], np.nan) if um is None else um

    def _labels(self, given: bool | pd.DataFrame) -> pd.DataFrame | None:
        """Return the labels that are given, or for True those of the data set that the folder was made from."""
        import pandas as pd

        if isinstance(given, pd.DataFrame):
            if "planet_id" not in given:
                raise ConfigError("labels: has no column planet_id; give ds.labels()")
            return given
        if not isinstance(given, bool):
            raise ConfigError(f"labels: is {kind_of(given)}, must be True, False or a DataFrame, such as ds.labels()")
        if not given:
            return None
        homes = {str(record["dataset"]) for record in self._records.values() if record.get("dataset")}
        if len(homes) != 1:
            problem = f"was made from {len(homes)} data sets" if homes else "does not say from which data set it is"
            raise OutputError(f"{self.path}: {problem}; give labels=ds.labels()")
        return open_dataset(*homes).labels()

    def dq(self, detector: str) -> NDArray[np.uint8]:
        """Return the data-quality flags of every complete observation.

        Parameters
        ----------
        detector : str
            The detector's name.

        Returns
        -------
        ndarray of uint8, shape (observation, wavelength, spatial)
            Flags, see `gpucal.DQ`.

        Raises
        ------
        KeyError
            If the detector is unknown.
        OutputError
            If nothing is complete, or a file is missing or damaged.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> res.dq("FGS1").shape
        (2, 32, 32)
        """
        return ResultArray(self, detector, "dq").load()

    def calibrated(self, key: int | tuple[int, int], detector: str) -> Calibrated:
        """Read one item of a complete observation as a `Calibrated`, as `gpucal.calibrate` returns it.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.
        detector : str
            The detector's name.

        Returns
        -------
        Calibrated
            Without a plan; with its variance if that was stored, and with its light curves with errors. An item of 0.1
            without a variance has errors that are NaN, which is logged once.

        Raises
        ------
        KeyError
            If the detector is unknown.
        OutputError
            If the observation is not complete, holds light curves only, or a file is missing or damaged.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> res.calibrated((20955726, 0), "FGS1").signal.dtype
        dtype('float32')
        """
        key, record = self._key(key), self._record(key, detector)
        history, files, axes = record["provenance"], record["files"], self.axes(key, detector)
        stored = {
            kind: partial(self._read, key, detector, kind) for kind in ("variance", "readvariance") if kind in files
        }
        cal = Calibrated(
            planet=key[0],
            visit=key[1],
            detector=Calibration.from_dict(history["settings"]).cropped(DETECTORS[detector]),
            signal=self._read(key, detector, "signal"),
            dq=self._read(key, detector, "dq"),
            time=axes["time"],
            wavelength=axes.get("wavelength"),
            provenance=history,
            stored_variance=stored.get("variance"),
            stored_read_variance=stored.get("readvariance"),
            stored_light_curve=partial(self._stored_curves, key, detector) if "flux" in files else None,
            time_bounds=self.time_bounds(key, detector),
            rejections=self._rejections(key, detector),
        )
        if not files.keys() & {"flux", "variance"}:
            return replace(cal, stored_light_curve=partial(self._without_errors, cal))
        return cal

    def light_curves(self, **choices: Unpack[Choices]) -> NDArray[np.float64]:
        """Sum every complete observation over its usable spatial pixels, or read its light curves if they were stored.

        Parameters
        ----------
        **choices
            ``weights``, ``rows``, ``background_rows``, ``background``, ``columns`` of `gpucal.Calibrated.light_curve`,
            for cubes.

        Returns
        -------
        ndarray of float64, shape (observation, time, 283)
            FGS1 first, then the AIRS-CH0 columns; electrons.

        Raises
        ------
        ConfigError
            If a choice is not possible.
        OutputError
            If nothing is complete, a file is missing or damaged, choices are made for stored light curves, or detectors
            or observations differ in their number of bins.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> res.light_curves().shape
        (2, 2, 283)
        """
        return stacked(self.path, (self.light_curves_of(key, **choices) for key in complete(self)), len(self))

    def light_curves_with_errors(self, **choices: Unpack[Choices]) -> LightCurve:
        """Sum every complete observation as `light_curves` does, with errors, or read what was stored.

        Parameters
        ----------
        **choices
            As for `light_curves`.

        Returns
        -------
        LightCurve
            ``flux`` and ``error``, each (observation, time, 283), electrons, rounded to the type of the stored arrays.
            Errors are NaN without read noise, and, as is logged once, for items of 0.1 without a variance.

        Raises
        ------
        ConfigError, OutputError
            As for `light_curves`; choices need the cubes' stored variances.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> flux, error = res.light_curves_with_errors()
        >>> error.shape
        (2, 2, 283)
        """
        curves = (np.stack(self.light_curves_with_errors_of(key, **choices)) for key in complete(self))
        both = stacked(self.path, curves, len(self))
        return LightCurve(both[:, 0], both[:, 1])

    def light_curves_of(self, key: int | tuple[int, int], **choices: Unpack[Choices]) -> NDArray[np.float64]:
        """Sum one complete observation over its usable spatial pixels, or read its light curves if they were stored.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.
        **choices
            As for `light_curves`.

        Returns
        -------
        ndarray of float64, shape (time, 283)
            FGS1 first, then the AIRS-CH0 columns; electrons.

        Raises
        ------
        ConfigError, OutputError
            As for `light_curves`.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> res.light_curves_of((20955726, 0)).shape
        (2, 283)
        """
        return self._joined(self.light_curve(key, name, **choices) for name in ORDER)

    def light_curves_with_errors_of(self, key: int | tuple[int, int], **choices: Unpack[Choices]) -> LightCurve:
        """Sum one complete observation as `light_curves_of` does, with errors.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.
        **choices
            As for `light_curves`.

        Returns
        -------
        LightCurve
            ``flux`` and ``error``, each (time, 283), electrons.

        Raises
        ------
        ConfigError, OutputError
            As for `light_curves_with_errors`.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> flux, error = res.light_curves_with_errors_of((20955726, 0))
        >>> error.shape
        (2, 283)
        """
        curves = [self.light_curve_with_errors(key, name, **choices) for name in ORDER]
        return LightCurve(self._joined(c.flux for c in curves), self._joined(c.error for c in curves))

    def light_curve(self, key: int | tuple[int, int], detector: str, **choices: Unpack[Choices]) -> NDArray[np.float64]:
        """Sum one item over its usable pixels, or read its light curve if it was stored.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.
        detector : str
            The detector's name.
        **choices
            As for `light_curves`.

        Returns
        -------
        ndarray of float64, shape (time, wavelength) or (time, 1)
            Electrons; `axes` has its times and wavelengths.

        Raises
        ------
        KeyError
            If the detector is unknown.
        ConfigError, OutputError
            As for `light_curves`, but the number of bins may differ.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> res.light_curve((20955726, 0), "AIRS-CH0").shape
        (2, 282)
        """
        if self._is_stored(key, detector, choices) and "signal" not in self._record(key, detector)["files"]:
            return self._read(key, detector, "flux").astype(np.float64)
        return self.calibrated(key, detector).light_curve(**choices)

    def light_curve_with_errors(
        self, key: int | tuple[int, int], detector: str, **choices: Unpack[Choices]
    ) -> LightCurve:
        """Sum one item as `light_curve` does, with errors.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.
        detector : str
            The detector's name.
        **choices
            As for `light_curves`.

        Returns
        -------
        LightCurve
            ``flux`` and ``error``, each (time, wavelength) or (time, 1), electrons.

        Raises
        ------
        KeyError
            If the detector is unknown.
        ConfigError, OutputError
            As for `light_curve`; choices need the cube's stored variance.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> flux, error = res.light_curve_with_errors((20955726, 0), "FGS1")
        >>> error.shape
        (2, 1)
        """
        if self._is_stored(key, detector, choices):
            return self._stored_curves(key, detector)
        return self.calibrated(key, detector).light_curve_with_errors(**choices)

    def axes(self, key: int | tuple[int, int], detector: str) -> dict[str, NDArray[np.float64]]:
        """Read one item's axes.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.
        detector : str
            The detector's name.

        Returns
        -------
        dict of str to ndarray of float64
            ``time`` (time,), hours, the mean of each bin; and ``wavelength`` (wavelength,), µm, which FGS1 does not
            have.

        Raises
        ------
        KeyError
            If the detector is unknown.
        OutputError
            If the observation is not complete, or a file is missing or damaged.

        Examples
        --------
        >>> res = gpucal.open_results("calibrated")
        >>> {name: values.shape for name, values in res.axes((20955726, 0), "AIRS-CH0").items()}
        {'time': (2,), 'wavelength': (282,)}
        """
        files = self._record(key, detector)["files"]
        return {name: self._read(key, detector, name) for name in ("time", "wavelength") if name in files}

    def time_bounds(self, key: int | tuple[int, int], detector: str) -> NDArray[np.float64] | None:
        """Read the times of the first and the last read of each bin of one item.

        Parameters
        ----------
        key : int or tuple of int
            Planet, which is its first complete visit, or planet and visit.
        detector : str
            The detector's name.

        Returns
        -------
        ndarray of float64, shape (time, 2), or None
            Hours; None in a folder that an older version wrote.

        Raises
        ------
        KeyError
            If the detector is unknown.
        OutputError
            If the observation is not complete, or a file is missing or damaged.
        """
        return self._read(key, detector, "bounds") if "bounds" in self._record(key, detector)["files"] else None

    def _rejections(self, key: int | tuple[int, int], detector: str) -> Rejected:
        """Read which pairs were rejected; none where no cosmic rays were looked for."""
        record = self._record(key, detector)
        if "rejected" not in record["files"]:
            return NONE
        width = Calibration.from_dict(record["provenance"]["settings"]).cropped(DETECTORS[detector]).width
        return Rejected.of_table(self._read(key, detector, "rejected"), width)

    def _is_stored(self, key: int | tuple[int, int], detector: str, choices: Choices) -> bool:
        """Tell whether the light curve asked for is stored; raises OutputError for choices where there is no cube."""
        files = self._record(key, detector)["files"]
        if choices and "signal" not in files:
            which = ", ".join(choices)
            raise OutputError(f"{self.path}: holds light curves as they were made; calibrate again to choose {which}")
        return "flux" in files and not choices

    def _stored_curves(self, key: int | tuple[int, int], detector: str) -> LightCurve:
        flux, error = (self._read(key, detector, kind).astype(np.float64) for kind in ("flux", "error"))
        return LightCurve(flux, error)

    def _without_errors(self, cal: Calibrated) -> LightCurve:
        """Return the light curves of an item of 0.1 without a variance; their errors are not known."""
        flux = cal.light_curve()
        if not self._lacks_errors:
            self._lacks_errors = True
            problem = "holds cubes of an older version without errors, which are NaN here"
            mend = f"run `gpucal calibrate DATASET {self.path} --overwrite`"
            log.warning("%s: %s; for errors, %s", self.path, problem, mend)
        return LightCurve(flux, np.full_like(flux, np.nan))

    def _joined(self, curves: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Put the light curves of the detectors side by side."""
        parts = list(curves)
        if len({len(part) for part in parts}) > 1:
            bins = [len(part) for part in parts]
            raise Unstackable(f"{self.path}: {' and '.join(ORDER)} have {bins} bins; give them equal ones")
        return np.concatenate(parts, axis=1)

    def _record(self, key: int | tuple[int, int], detector: str) -> dict[str, Any]:
        detector_of(detector)
        return self._records[ItemId(*self._key(key), detector)]

    def _key(self, key: object) -> tuple[int, int]:
        """Find a complete observation; a planet alone means its first one. Another is refused."""
        planet = None if isinstance(key, tuple) else as_id(key)
        found = _key(key) if isinstance(key, tuple) else next((one for one in self.ids if one[0] == planet), None)
        if found is None or not self._knows(found):
            self._refuse(key)
        return found

    def _knows(self, key: object) -> bool:
        return isinstance(key, tuple) and all(isinstance(part, int) for part in key) and key in self._known

    def _refuse(self, key: object) -> NoReturn:
        """Raise the error for an observation that is not complete."""
        what = f"planet {key[0]} visit {key[1]}" if isinstance(key, tuple) and len(key) == 2 else f"{key!r}"
        raise OutputError(f"{self.path}: no complete {what} in it{self._meant(key)}")

    def _meant(self, key: object) -> str:
        """Suggest a key in place of one that is not complete."""
        planet = key[0] if isinstance(key, tuple) and key else key
        if visits := [str(visit) for known, visit in self.ids if known == as_id(planet)]:
            return f"; it has visit {joined(visits, 'and')}"
        near = near_planets(planet, (known for known, _ in self.ids))
        return did_you_mean(near, "calibrate it first, or give one of its ids")

    def _read(self, key: int | tuple[int, int], detector: str, kind: str, *, mapped: bool = False) -> NDArray[Any]:
        """Read one array of a complete observation, or map its file into memory."""
        key = self._key(key)
        files = self._record(key, detector)["files"]
        if kind not in files:
            raise OutputError(f"{self.path}: holds no {kind} of planet {key[0]} visit {key[1]}, but {', '.join(files)}")
        file = files[kind]
        item = ItemId(*key, detector)
        path = record_path(self._homes[item].now, item).with_name(file["file"])
        again = f"run `gpucal calibrate DATASET {self.path}` again"
        damaged = f"{path}: is damaged; remove it and {again}"
        try:
            # Not np.load(), which may read a damaged file as a pickle or an archive, and leaves the archive open.
            if mapped:
                array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
            else:
                with path.open("rb") as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
        except FileNotFoundError as error:
            raise OutputError(f"{path}: is missing; {again}") from error
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror or error}); remove it and {again}") from error
        except DAMAGED as error:
            raise OutputError(damaged) from error
        if [[*array.shape], str(array.dtype)] != [file["shape"], file["dtype"]]:
            raise OutputError(damaged)
        return array


def _key(key: tuple[int, int]) -> tuple[int, int]:
    """Return planet and visit as integers, whatever type they have; anything else stays as it is."""
    if not isinstance(key, tuple) or len(key) != 2:
        return key
    if type(key[0]) is type(key[1]) is int:  # nearly always: a large folder is read by it thousands of times
        return key
    planet, visit = map(as_id, key)
    return key if planet is None or visit is None else (planet, visit)


def open_results(path: str | Path, *more: str | Path) -> Results:
    """Open a results folder, or several as one.

    Parameters
    ----------
    path : str or Path
        The folder that `gpucal.run` or ``gpucal calibrate`` wrote.
    *more : str or Path
        Folders of earlier sessions. An item that is in several is read from the first. Folders given to ``resume_from``
        are noted in the folder: give them here only if they have been moved.

    Returns
    -------
    Results
        The complete observations and the failures. A warning is logged if folders that it was resumed from are gone.

    Raises
    ------
    OutputError
        If no folder holds results, or one of the further ones holds none.

    Examples
    --------
    >>> res = gpucal.open_results("calibrated")
    >>> res.ids
    [(20955726, 0), (2355445450, 0)]
    """
    results = Results(path, *more)
    if results.elsewhere:
        log.warning("%s", missing(results.path, results.elsewhere))
    return results


def complete(results: Results) -> list[tuple[int, int]]:
    """Return planet and visit of the complete observations; raises OutputError if there is none."""
    if not results.ids:
        problem = f"no observation is complete, {len(results.failed)} items failed"
        raise OutputError(f"{results.path}: {problem}; run `gpucal calibrate DATASET {results.path}` again")
    return results.ids
