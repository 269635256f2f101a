"""Draws light curves with matplotlib, which the ``plot`` extra installs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import MissingExtra

__all__ = ["plot_light_curves"]


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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra('matplotlib is not installed; pip install "gpucal[plot]"') from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, (time_h, flux)) in zip(panels, curves.items(), strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):  # what has no light is not drawn
            white = np.nansum(flux, axis=1)
            scale = np.median(white)
            relative = white / scale
        axes.plot(time_h, relative, ".", color="tab:blue", label=name)
        if model is not None:
            axes.plot(time_h, model[name] / scale, color="tab:orange", label="truth")
        axes.set_ylabel("relative flux")
        axes.legend(loc="lower left")
    axes.set_xlabel("time (h)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
