"""Pictures of light curves, with matplotlib where it is installed (the ``plot`` extra)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import MissingExtra

__all__ = ["plot_light_curves"]


def plot_light_curves(
    path: Path, title: str, curves: NDArray[np.float64], model: NDArray[np.float64] | None = None
) -> None:
    """Draw the FGS1 and white AIRS-CH0 light curves, each relative to its median.

    Parameters
    ----------
    path : Path
        The PNG to write.
    title : str
        Title.
    curves : ndarray of float64, shape (time, 283)
        FGS1 first, then the AIRS-CH0 columns, electrons.
    model : ndarray of float64, shape (time, 2), optional
        The expected FGS1 and white AIRS-CH0 light curves, electrons.

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
    for row, (name, flux) in enumerate(
        (("FGS1", curves[:, 0]), ("AIRS-CH0, all wavelengths", np.nansum(curves[:, 1:], axis=1)))
    ):
        axes = figure.add_subplot(2, 1, row + 1)
        scale = np.median(flux)
        axes.plot(flux / scale, ".", color="tab:blue", label=name)
        if model is not None:
            axes.plot(model[:, row] / scale, color="tab:orange", label="truth")
        axes.set_ylabel("relative flux")
        axes.legend(loc="lower left")
    axes.set_xlabel("time bin")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
