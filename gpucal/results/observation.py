"""One observation of a results folder: its detectors by name, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from gpucal.display.shown import Shown
from gpucal.display.svg import white_light
from gpucal.errors import GpucalError
from gpucal.pipeline.calibrated import Calibrated
from gpucal.settings.detectors import DETECTORS

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from numpy.typing import NDArray

__all__ = ["CalibratedObservation"]


class _Results(Protocol):
    """The methods of `Results` that this class calls; its module imports this one."""

    def calibrated(self, key: tuple[int, int], detector: str) -> Calibrated: ...

    def white_light(self, key: tuple[int, int]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]: ...

    def plot(self, key: tuple[int, int], figure: FigureBase | None = None) -> dict[str, dict[str, Axes]]: ...

    def _record(self, key: tuple[int, int], detector: str) -> dict[str, Any]: ...


# Arrays that an observation shows.
_SHOWN = ("signal", "variance", "dq", "flux")


@dataclass(frozen=True, repr=False, eq=False)
class CalibratedObservation(Mapping[str, Calibrated]):
    """One complete observation: a mapping of detector names to `gpucal.Calibrated`.

    Parameters
    ----------
    planet, visit : int
        The observation's planet and visit.
    results : Results
        The folder that it is read from.

    Examples
    --------
    >>> res = gpucal.open_results("calibrated")
    >>> obs = res[20955726]
    >>> obs
    <gpucal CalibratedObservation planet 20955726 visit 0
      AIRS-CH0  signal (2, 282, 32), variance (2, 282, 32), dq (282, 32), flux (2, 282)
      FGS1      signal (2, 32, 32), variance (2, 32, 32), dq (32, 32), flux (2, 1)>
    >>> obs["FGS1"].signal.shape
    (2, 32, 32)
    """

    planet: int
    visit: int
    results: _Results = field(repr=False)

    @property
    def key(self) -> tuple[int, int]:
        """Planet and visit."""
        return self.planet, self.visit

    def __getitem__(self, detector: str) -> Calibrated:
        return self.results.calibrated(self.key, detector)

    def __iter__(self) -> Iterator[str]:
        return iter(DETECTORS)

    def __len__(self) -> int:
        return len(DETECTORS)

    def __contains__(self, detector: object) -> bool:
        return isinstance(detector, str) and detector in DETECTORS

    def plot(self, figure: FigureBase | None = None) -> dict[str, dict[str, Axes]]:
        """Draw the observation, see `gpucal.Results.plot`.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, optional
            An empty one with a constrained layout; by default a new one.

        Returns
        -------
        dict
            For each detector its axes by name.
        """
        return self.results.plot(self.key, figure)

    def _ipython_key_completions_(self) -> list[str]:
        return [*DETECTORS]

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        shown = self._shown()
        try:
            picture = white_light(self.results.white_light(self.key))
        except GpucalError as error:  # a damaged file must not keep the card from being shown
            return Shown(shown.title, {**shown.facts, "white light": str(error)}).html()
        return Shown(shown.title, shown.facts, picture).html()

    def _shown(self) -> Shown:
        facts = {}
        for name in DETECTORS:
            record = self.results._record(self.key, name)
            stored = {kind: tuple(of["shape"]) for kind, of in record["files"].items()}
            facts[name] = ", ".join(f"{kind} {stored[kind]}" for kind in _SHOWN if kind in stored)
        return Shown(f"CalibratedObservation planet {self.planet} visit {self.visit}", facts)
