"""Opens a results folder; arrays are read only when they are asked for."""

from __future__ import annotations

import logging
import tokenize
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import OutputError, Unstackable
from gpucal.hints import did_you_mean, joined, near_planets
from gpucal.pipeline.calibrated import Calibrated
from gpucal.results.other_folders import gather, missing
from gpucal.results.records import record_path
from gpucal.results.stacking import stacked
from gpucal.science.light_curves import Choices, LightCurve
from gpucal.science.rejected import NONE, Rejected
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, ORDER
from gpucal.settings.ids import as_id

__all__ = ["ORDER", "ResultArray", "Results", "complete", "open_results"]

log = logging.getLogger(__name__)

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
        if detector not in DETECTORS:
            raise KeyError(f"no detector {detector!r}; there are {', '.join(DETECTORS)}")
        self._results = results
        self._detector = detector
        self._kind = kind

    def __len__(self) -> int:
        return len(self._results)

    def __getitem__(self, index: int | slice | tuple[Any, ...]) -> NDArray[Any]:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if not isinstance(first, slice):
            array = self._results._read(self._results.ids[first], self._detector, self._kind, mapped=bool(rest))
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
    """An open results folder, see `open_results`; ``results["AIRS-CH0"]`` is a `ResultArray`.

    An observation is complete, and in ``ids``, if both detectors are finished and neither failed later. A failed item
    is in ``failed`` with its message, even if the folder still holds an older result of it. If the folder was resumed
    from others, the items that count there are read from them. If such a folder is gone, its items are in ``elsewhere``
    with the folder's path.

    Parameters
    ----------
    path : Path
        The results folder.
    *more : Path
        Further folders. The first one that has an item decides, whether the item is finished or failed there. They
        precede folders that are only noted.
    settings : str, optional
        Read only items whose settings have this hash.

    Raises
    ------
    OutputError
        If no folder holds results, or one of the further ones holds none.
    """

    def __init__(self, path: Path, *more: Path, settings: str | None = None) -> None:
        self.path = path
        found = gather(path, more, settings)
        self.elsewhere = found.elsewhere
        if not found.first and self.elsewhere:
            raise OutputError(missing(path, self.elsewhere))
        if not found.first:
            raise OutputError(f"{path}: holds no results; make some with `gpucal calibrate DATASET {path}`")
        done = {item: record for item, (_, record) in found.done.items()}
        keys = sorted({item[:2] for item in found.first})
        self.ids = [key for key in keys if all((*key, name) in done for name in DETECTORS)]
        self.failed = {item: str(r.get("error", "failed")) for item, r in found.first.items() if item not in done}
        self._records = done
        self._homes = {item: home for item, (home, _) in found.done.items()}
        if (different := len({str(r.get("settings")) for r in done.values()})) > 1:
            log.warning(
                "%s: holds %d items of %d different settings; for one, run `gpucal calibrate DATASET %s --overwrite`",
                *(path, len(done), different, path),
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, key: object) -> bool:
        """Tell whether an observation is complete, by (planet, visit), or any observation of a planet, by its id."""
        if isinstance(key, tuple):
            return _key(key) in self.ids
        wanted = as_id(key)
        return any(planet == wanted for planet, _ in self.ids)

    def __getitem__(self, detector: str) -> ResultArray:
        return ResultArray(self, detector)

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
        """
        return ResultArray(self, detector, "dq").load()

    def calibrated(self, key: tuple[int, int], detector: str) -> Calibrated:
        """Read one item of a complete observation as a `Calibrated`, as `gpucal.calibrate` returns it.

        Parameters
        ----------
        key : tuple of int
            Planet and visit.
        detector : str
            The detector's name.

        Returns
        -------
        Calibrated
            Without a plan; with its variance if that was stored.

        Raises
        ------
        KeyError
            If the detector is unknown.
        OutputError
            If the observation is not complete, holds light curves only, or a file is missing or damaged.
        """
        key, record = _key(key), self._record(key, detector)
        history, files, axes = record["provenance"], record["files"], self.axes(key, detector)
        return Calibrated(
            planet=key[0],
            visit=key[1],
            detector=Calibration.from_dict(history["settings"]).cropped(DETECTORS[detector]),
            signal=self._read(key, detector, "signal"),
            dq=self._read(key, detector, "dq"),
            time=axes["time"],
            wavelength=axes.get("wavelength"),
            provenance=history,
            stored_variance=partial(self._read, key, detector, "variance") if "variance" in files else None,
            rejections=self._rejections(key, detector),
        )

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
        """
        return stacked(self.path, (self.light_curves_of(key, **choices) for key in complete(self)), len(self))

    def light_curves_with_errors(self, **choices: Unpack[Choices]) -> LightCurve:
        """Sum every complete observation as `light_curves` does, with errors.

        Parameters
        ----------
        **choices
            As for `light_curves`.

        Returns
        -------
        LightCurve
            ``flux`` and ``error``, each (observation, time, 283), electrons.

        Raises
        ------
        ConfigError, OutputError
            As for `light_curves`; cubes need their stored variances.
        """
        curves = (np.stack(self.light_curves_with_errors_of(key, **choices)) for key in complete(self))
        both = stacked(self.path, curves, len(self))
        return LightCurve(both[:, 0], both[:, 1])

    def light_curves_of(self, key: tuple[int, int], **choices: Unpack[Choices]) -> NDArray[np.float64]:
        """Sum one complete observation over its usable spatial pixels, or read its light curves if they were stored.

        Parameters
        ----------
        key : tuple of int
            Planet and visit.
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
        """
        return self._joined(self.light_curve(key, name, **choices) for name in ORDER)

    def light_curves_with_errors_of(self, key: tuple[int, int], **choices: Unpack[Choices]) -> LightCurve:
        """Sum one complete observation as `light_curves_of` does, with errors.

        Parameters
        ----------
        key : tuple of int
            Planet and visit.
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
        """
        curves = [self.light_curve_with_errors(key, name, **choices) for name in ORDER]
        return LightCurve(self._joined(c.flux for c in curves), self._joined(c.error for c in curves))

    def light_curve(self, key: tuple[int, int], detector: str, **choices: Unpack[Choices]) -> NDArray[np.float64]:
        """Sum one item over its usable pixels, or read its light curve if it was stored.

        Parameters
        ----------
        key : tuple of int
            Planet and visit.
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
        """
        if "flux" in self._record(key, detector)["files"]:
            return self._stored_curve(key, detector, "flux", choices)
        return self.calibrated(key, detector).light_curve(**choices)

    def light_curve_with_errors(self, key: tuple[int, int], detector: str, **choices: Unpack[Choices]) -> LightCurve:
        """Sum one item as `light_curve` does, with errors.

        Parameters
        ----------
        key : tuple of int
            Planet and visit.
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
            As for `light_curve`; cubes need their stored variances.
        """
        if "flux" in self._record(key, detector)["files"]:
            return LightCurve(*(self._stored_curve(key, detector, kind, choices) for kind in ("flux", "error")))
        return self.calibrated(key, detector).light_curve_with_errors(**choices)

    def axes(self, key: tuple[int, int], detector: str) -> dict[str, NDArray[np.float64]]:
        """Read one item's axes.

        Parameters
        ----------
        key : tuple of int
            Planet and visit.
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
        """
        files = self._record(key, detector)["files"]
        return {name: self._read(key, detector, name) for name in ("time", "wavelength") if name in files}

    def _rejections(self, key: tuple[int, int], detector: str) -> Rejected:
        """Read which pairs were rejected; none where no cosmic rays were looked for."""
        record = self._record(key, detector)
        if "rejected" not in record["files"]:
            return NONE
        width = Calibration.from_dict(record["provenance"]["settings"]).cropped(DETECTORS[detector]).width
        return Rejected.of_table(self._read(key, detector, "rejected"), width)

    def _stored_curve(self, key: tuple[int, int], detector: str, kind: str, choices: Choices) -> NDArray[np.float64]:
        if choices:
            which = ", ".join(choices)
            raise OutputError(f"{self.path}: holds light curves as they were made; calibrate again to choose {which}")
        return self._read(key, detector, kind).astype(np.float64)

    def _joined(self, curves: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Put the light curves of the detectors side by side."""
        parts = list(curves)
        if len({len(part) for part in parts}) > 1:
            bins = [len(part) for part in parts]
            raise Unstackable(f"{self.path}: {' and '.join(ORDER)} have {bins} bins; give them equal ones")
        return np.concatenate(parts, axis=1)

    def _record(self, key: tuple[int, int], detector: str) -> dict[str, Any]:
        if detector not in DETECTORS:
            raise KeyError(f"no detector {detector!r}; there are {', '.join(DETECTORS)}")
        if (found := _key(key)) not in self.ids:
            what = f"planet {key[0]} visit {key[1]}" if isinstance(key, tuple) and len(key) == 2 else f"{key!r}"
            raise OutputError(f"{self.path}: no complete {what} in it{self._meant(key)}")
        return self._records[(*found, detector)]

    def _meant(self, key: tuple[int, int]) -> str:
        """Suggest a key in place of one that is not complete."""
        planet = key[0] if isinstance(key, tuple) and key else key
        if visits := [str(visit) for known, visit in self.ids if known == as_id(planet)]:
            return f"; it has visit {joined(visits, 'and')}"
        near = near_planets(planet, (known for known, _ in self.ids))
        return did_you_mean(near, "calibrate it first, or give one of its ids")

    def _read(self, key: tuple[int, int], detector: str, kind: str, *, mapped: bool = False) -> NDArray[Any]:
        """Read one array of a complete observation, or map its file into memory."""
        key = _key(key)
        files = self._record(key, detector)["files"]
        if kind not in files:
            raise OutputError(f"{self.path}: holds no {kind} of planet {key[0]} visit {key[1]}, but {', '.join(files)}")
        file = files[kind]
        path = record_path(self._homes[(*key, detector)], *key, detector).with_name(file["file"])
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
    """
    results = Results(Path(path), *map(Path, more))
    if results.elsewhere:
        log.warning("%s", missing(results.path, results.elsewhere))
    return results


def complete(results: Results) -> list[tuple[int, int]]:
    """Return planet and visit of the complete observations; raises OutputError if there is none."""
    if not results.ids:
        problem = f"no observation is complete, {len(results.failed)} items failed"
        raise OutputError(f"{results.path}: {problem}; run `gpucal calibrate DATASET {results.path}` again")
    return results.ids
