"""Writes pictures of light curves with matplotlib, which the ``plot`` extra installs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import MissingExtra
from gpucal.pipeline.plots import white_panel
from gpucal.results.atomic import unwritable
from gpucal.results.reader import ORDER, Results, complete
from gpucal.science.light_curves import white_light
from gpucal.science.noise import scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_light_curves", "save_observation", "save_overview"]

# Observations whose ids stand beside their rows, at most.
_NAMED = 60


def plot_light_curves(
    path: Path,
    title: str,
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    model: Mapping[str, NDArray[np.float64]] | None = None,
) -> None:
    """Draw the white light curve of each detector, relative to its median.

    Parameters
    ----------
    path : Path
        The PNG to write.
    title : str
        The figure's title.
    curves : mapping of str to (ndarray of float64, ndarray of float64)
        For each detector the times, (time,), hours, and the light curves, (time, wavelength), electrons.
    model : mapping of str to ndarray of float64, shape (time,), optional
        The expected white light curves, electrons.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    figure = _bare_figure(9.0, 6.0)
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, (time_h, flux)) in zip(panels, curves.items(), strict=True):
        white, _ = white_light(flux)
        white_panel(axes, time_h, white, None, name, None if model is None else model[name])
    panels[-1].set_xlabel("time (h)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def save_observation(results: Results, key: tuple[int, int], path: Path) -> None:
    """Write the picture of `gpucal.Results.plot` as PNG; raises MissingExtra, and OutputError."""
    figure = _bare_figure(11.0, 12.0)
    results.plot(key, figure)
    _save(figure, path)


def save_overview(results: Results, path: Path, show: Callable[[int], object] = lambda ended: None) -> None:
    """Write a picture of all complete observations as PNG; raises MissingExtra, and OutputError.

    For each detector an image has a row for each observation, with its white light relative to its median. Below, a dot
    for each observation shows the scatter of its white light over its brightness, with the line of photon noise alone.
    ``show`` is called with the number of observations that were read.
    """
    whites = {}
    for ended, key in enumerate(complete(results), 1):
        whites[key] = results.white_light(key)
        show(ended)
    height = min(max(0.12 * len(whites), 2.0), 20.0)
    figure = _bare_figure(11.0, 4.5 + height)
    panels = figure.subplots(2, len(ORDER), height_ratios=[height, 3.5], squeeze=False)
    labels = [f"{planet}/{visit}" for planet, visit in whites]
    for name, (image, dots) in zip(ORDER, panels.T, strict=True):
        _overview_image(image, name, [white[name] for white in whites.values()], labels)
        _overview_dots(dots, np.array([[_level(white[name][1]), scatter(white[name][1])] for white in whites.values()]))
    figure.suptitle(f"{results.path.name}: white light of each observation")
    _save(figure, path)


def _overview_image(
    axes: Axes, name: str, curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], labels: Sequence[str]
) -> None:
    bins = max(len(flux) for _, flux in curves)
    relative = np.full((len(curves), bins), np.nan)
    for row, (_, flux) in zip(relative, curves, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            row[: len(flux)] = flux / _level(flux)
    finite = relative[np.isfinite(relative)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    drawn = axes.imshow(
        relative, vmin=low, vmax=high, cmap="viridis", aspect="auto", interpolation="nearest", rasterized=True
    )
    axes.set_facecolor("#bbbbbb")  # of what is not known
    axes.set(title=name, xlabel="bin")
    if len(labels) <= _NAMED:
        axes.set_yticks(range(len(labels)), labels, fontsize="x-small")
    else:
        axes.set_ylabel("observation")
    axes.figure.colorbar(drawn, ax=axes, label="flux / median", pad=0.01)


def _overview_dots(axes: Axes, found: NDArray[np.float64]) -> None:
    level, noise = found[(np.isfinite(found) & (found > 0.0)).all(axis=1)].T
    axes.set(xlabel="white light (e⁻ a bin)", ylabel="scatter (ppm)")
    if not level.size:
        return
    axes.plot(level, noise / level * 1e6, ".", color="#0072b2", label="observations")
    across = np.linspace(level.min() * 0.9, level.max() * 1.1, 100)
    axes.plot(across, 1e6 / np.sqrt(across), color="#d55e00", lw=1, label="photon noise")
    axes.set_ylim(bottom=0.0)
    axes.legend(fontsize="small")


def _level(flux: NDArray[np.float64]) -> float:
    finite = flux[np.isfinite(flux)]
    return float(np.median(finite)) if finite.size else float("nan")


def _bare_figure(width: float, height: float) -> Figure:
    """Make a figure that no window shows, and pyplot does not keep."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra('matplotlib is not installed; pip install "gpucal[plot]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise unwritable(path, error) from error
