"""The light curves of an observation: their names in the competition, detectors, columns and wavelengths."""

from __future__ import annotations

from dataclasses import dataclass

from gpucal.errors import Unstackable
from gpucal.results.reader import ORDER, Results
from gpucal.results.stacking import one_by_one
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, curve_name

__all__ = ["Curve", "common_curves", "curves_of"]


@dataclass(frozen=True)
class Curve:
    """One light curve of an observation.

    Parameters
    ----------
    detector : str
        The detector's name.
    column : int or None
        The detector column; None for a photometer, whose light curve is the sum of its frame.
    wavelength_um : float or None
        None where it is not known, as for a photometer.
    """

    detector: str
    column: int | None
    wavelength_um: float | None

    @property
    def name(self) -> str:
        """The competition's name, see `gpucal.settings.detectors.curve_name`."""
        return curve_name(self.detector, self.column)

    @property
    def description(self) -> str:
        """Detector, column and wavelength in words."""
        where = "" if self.column is None else f" column {self.column}"
        return self.detector + where + ("" if self.wavelength_um is None else f", {self.wavelength_um:.4f} um")


def curves_of(results: Results, key: tuple[int, int]) -> list[Curve]:
    """List the light curves of an observation in the order of their stack; raises OutputError if it cannot be read."""
    columns = _columns(results, key)
    wavelengths: list[float | None] = []
    for name in ORDER:
        um = results.axes(key, name).get("wavelength")
        n = sum(detector == name for detector, _ in columns)
        wavelengths += [None] * n if um is None else um.tolist()
    return [Curve(*column, um) for column, um in zip(columns, wavelengths, strict=True)]


def common_curves(results: Results) -> list[Curve]:
    """List the light curves that every observation has; raises OutputError if observations differ in their columns."""
    first, *others = (_columns(results, key) for key in results.ids)
    if any(other != first for other in others):
        raise Unstackable(f"{results.path}: observations differ in their columns; {one_by_one(results.path)}")
    return curves_of(results, results.ids[0])


def _columns(results: Results, key: tuple[int, int]) -> list[tuple[str, int | None]]:
    """List detector and column of each light curve of an observation."""
    columns: list[tuple[str, int | None]] = []
    for name in ORDER:
        settings = results._record(key, name)["provenance"]["settings"]
        detector = Calibration.from_dict(settings).cropped(DETECTORS[name])
        columns += [(name, None)] if detector.photometer else [(name, column) for column in range(*detector.crop)]
    return columns
