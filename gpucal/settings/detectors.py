"""The two detectors of the Ariel Data Challenge as a table of facts; a new detector is one entry.

Frames are (spatial, wavelength) = (rows, columns); pixel (row, column) is Parquet column ``row * columns + column``.
The figures come from the organisers' data description and their calibration notebook of 14 August 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpucal.errors import ConfigError, UnknownDetector
from gpucal.hints import did_you_mean, near

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DETECTORS", "ORDER", "Detector", "curve_name", "detector_of"]


@dataclass(frozen=True)
class Detector:
    """The facts in which one detector differs from another.

    Parameters
    ----------
    name : str
        Its name in file names and in the ADC table's columns.
    shape : tuple of int
        Frame shape (spatial, wavelength) as stored.
    crop : tuple of int
        First and one-past-last wavelength column that are calibrated.
    bin_pairs : int
        CDS pairs summed in a time bin by default.
    frames : int
        Frames of a full-size observation.
    time_column : str
        Column of ``axis_info.parquet`` with the time of each frame, hours.
    wavelength_column : str or None
        Column of ``axis_info.parquet`` with the wavelength of each stored column, µm.
    integration_column : str or None
        Column of ``axis_info.parquet`` with the integration time of each frame, s.
    integration_s : float
        Integration time of every frame where there is no such column, s (the notebook's constant).
    true_integration_s : tuple of float
        Integration times of start and end reads as the raw frames show them, s. The end/start ratio of bright pixels is
        46.05 for AIRS-CH0 and 2.001 for FGS1.
    photometer : bool
        Sum the whole frame to one light curve; False for a spectrum.
    """

    name: str
    shape: tuple[int, int]
    crop: tuple[int, int]
    bin_pairs: int
    frames: int
    time_column: str
    wavelength_column: str | None
    integration_column: str | None
    integration_s: float
    true_integration_s: tuple[float, float]
    photometer: bool

    @property
    def width(self) -> int:
        """Wavelength columns inside the crop."""
        return self.crop[1] - self.crop[0]

    @property
    def n_pixels(self) -> int:
        """Pixels inside the crop."""
        return self.shape[0] * self.width

    @property
    def n_columns(self) -> int:
        """Parquet columns of a signal file: one for each stored pixel."""
        return self.shape[0] * self.shape[1]

    def columns(self) -> NDArray[np.intp]:
        """Return the Parquet column positions of the pixels inside the crop, ascending, row by row of the frame."""
        import numpy as np

        rows = np.arange(self.shape[0], dtype=np.intp)[:, None] * self.shape[1]
        return (rows + np.arange(*self.crop, dtype=np.intp)).ravel()


DETECTORS: Mapping[str, Detector] = MappingProxyType(
    {
        detector.name: detector
        for detector in (
            Detector(
                name="AIRS-CH0",
                shape=(32, 356),
                crop=(39, 321),
                bin_pairs=30,
                frames=11_250,
                time_column="AIRS-CH0-axis0-h",
                wavelength_column="AIRS-CH0-axis2-um",
                integration_column="AIRS-CH0-integration_time",
                integration_s=0.1,
                true_integration_s=(0.1, 4.6),
                photometer=False,
            ),
            Detector(
                name="FGS1",
                shape=(32, 32),
                crop=(0, 32),
                bin_pairs=360,
                frames=135_000,
                time_column="FGS1-axis0-h",
                wavelength_column=None,
                integration_column=None,
                integration_s=0.1,
                true_integration_s=(0.1, 0.2),
                photometer=True,
            ),
            # A new detector goes here, the last.
        )
    }
)

ORDER = tuple(sorted(DETECTORS, key=lambda name: not DETECTORS[name].photometer))
"""Detectors in the order of the 283 light curves, side by side: photometers first. A run calibrates them so, too."""


def curve_name(detector: str, column: int | None) -> str:
    """Return the competition's name of a light curve: ``wl_1`` is FGS1, ``wl_2`` the first column of AIRS-CH0.

    Parameters
    ----------
    detector : str
        The detector's name.
    column : int or None
        The stored column; None for a photometer.

    Returns
    -------
    str
        Of a column that the competition leaves out, detector and column, such as ``AIRS-CH0_038``.
    """
    first, one = 1, detector_of(detector)
    if column is not None and (isinstance(column, bool) or not isinstance(column, Integral)):
        raise ConfigError(f"column = {column!r}: must be an integer, or None for a photometer")
    for other in map(DETECTORS.__getitem__, ORDER[: ORDER.index(one.name)]):
        first += 1 if other.photometer else other.width
    if column is None:
        return f"wl_{first}"
    return f"wl_{first + column - one.crop[0]}" if column in range(*one.crop) else f"{one.name}_{column:03d}"


def detector_of(detector: object) -> Detector:
    """Return a detector, which may be given by its name; raises UnknownDetector for anything else."""
    if isinstance(detector, Detector):
        return detector
    if not isinstance(detector, str) or detector not in DETECTORS:
        hint = did_you_mean(near(detector, DETECTORS)) if isinstance(detector, str) else ""
        raise UnknownDetector(f"no detector {detector!r}; there are {', '.join(DETECTORS)}{hint}")
    return DETECTORS[detector]
