"""Draws light curves, spectra and flags with matplotlib, which the ``plot`` extra installs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import MissingExtra
from gpucal.science.light_curves import white_light
from gpucal.science.noise import neighbour_residuals, scatter
from gpucal.science.plan import DQ
from gpucal.settings.arguments import require_kind
from gpucal.settings.detectors import Detector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

__all__ = ["Curves", "draw", "figure_of", "white_panel"]

# Okabe and Ito's colours, which colour-blind people tell apart.
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"

# A colour for each flag, by bit; of a pixel with several, the first in this order counts.
_FLAG_COLOURS: Mapping[DQ, str] = MappingProxyType(
    {
        DQ.SATURATED: "#d55e00",
        DQ.DEAD: "#000000",
        DQ.HOT: "#cc79a7",
        DQ.BAD_DARK: "#56b4e9",
        DQ.BAD_FLAT: "#e69f00",
        DQ.BAD_LINEARITY: "#009e73",
        DQ.INTERPOLATED: "#999999",
    }
)

_PPM = 1e6

# Residuals beyond so many times the scatter are drawn as triangles at the edge.
_FARTHEST = 5.0

# Relative heights of the panels: light curve, residuals, image; and relative widths of the two columns, for a
# spectrometer and a photometer.
_HEIGHTS, _WIDTHS, _IMAGE_WIDTHS = (3.0, 1.6, 3.0), (3.0, 2.2), (3.0, 3.6)


@dataclass(frozen=True)
class Curves:
    """What is drawn of one detector of one observation.

    Parameters
    ----------
    detector : Detector
        The detector.
    time : ndarray of float64, shape (time,)
        Hours.
    flux : ndarray of float64, shape (time, wavelength)
        Electrons.
    error : ndarray of float64, shape (time, wavelength), or None
        None where errors are not known.
    wavelength : ndarray of float64, shape (wavelength,), or None
        µm.
    dq : ndarray of uint8, shape (wavelength, spatial), or None
        Flags.
    image : ndarray of float64, shape (wavelength, spatial), or None
        Mean of the cube over time; None where only light curves are stored.
    """

    detector: Detector
    time: NDArray[np.float64]
    flux: NDArray[np.float64]
    error: NDArray[np.float64] | None = None
    wavelength: NDArray[np.float64] | None = None
    dq: NDArray[np.uint8] | None = None
    image: NDArray[np.float64] | None = None


def figure_of(given: FigureBase | None, height: float) -> FigureBase:
    """Return the figure to draw on: the given one, or a new one that a notebook shows and ``pyplot.show`` opens.

    Raises MissingExtra if matplotlib is not installed, and ConfigError if what is given is not a figure.
    """
    try:
        from matplotlib.figure import FigureBase
    except ImportError as error:
        raise MissingExtra('matplotlib is not installed; pip install "gpucal[plot]"') from error
    if given is None:
        import matplotlib.pyplot as plt

        made: FigureBase = plt.figure(figsize=(11.0, height), layout="constrained")
        return made
    require_kind("figure", given, FigureBase, "matplotlib.pyplot.figure(layout='constrained')")
    return given


def draw(figure: FigureBase, title: str, products: Sequence[Curves]) -> dict[str, dict[str, Axes]]:
    """Draw the detectors of an observation, one below the other.

    Parameters
    ----------
    figure : Figure or SubFigure
        An empty figure with a constrained layout.
    title : str
        Its title.
    products : sequence of Curves
        What is drawn.

    Returns
    -------
    dict
        For each detector its axes by name: ``white``, ``residuals``, ``flags``, and ``image`` and ``spectrum`` of a
        spectrometer, or the ``mean`` image of a photometer.
    """
    figure.suptitle(title)
    heights = [_height(one) for one in products]
    parts = figure.subfigures(len(products), 1, height_ratios=heights, squeeze=False)[:, 0]
    return {one.detector.name: _draw_one(part, one) for part, one in zip(parts, products, strict=True)}


def white_panel(
    axes: Axes,
    time: NDArray[np.float64],
    flux: NDArray[np.float64],
    error: NDArray[np.float64] | None,
    name: str,
    model: NDArray[np.float64] | None = None,
) -> None:
    """Draw a white light curve, (time,), relative to its median, with errors and an expected curve if there are any."""
    level = _level(flux)
    with np.errstate(divide="ignore", invalid="ignore"):  # what has no light is not drawn
        relative = flux / level
        bars = None if error is None else error / abs(level)
    if bars is not None and np.isfinite(bars).any():
        axes.errorbar(time, relative, np.nan_to_num(bars), fmt=".", color=_BLUE, ecolor="#0072b266", ms=4, label=name)
    else:
        axes.plot(time, relative, ".", color=_BLUE, ms=4, label=name)
    if model is not None:
        axes.plot(time, model / level, color=_ORANGE, label="truth")
    axes.set_ylabel("white light / median")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(loc="lower left", fontsize="small")


def _height(curves: Curves) -> float:
    return sum(_HEIGHTS[:2]) if curves.detector.photometer else sum(_HEIGHTS)


def _draw_one(figure: FigureBase, curves: Curves) -> dict[str, Axes]:
    rows, widths = (2, _IMAGE_WIDTHS) if curves.detector.photometer else (3, _WIDTHS)
    grid = figure.add_gridspec(rows, 2, height_ratios=_HEIGHTS[:rows], width_ratios=widths)
    axes: dict[str, Axes] = {"white": figure.add_subplot(grid[0, 0])}
    axes["residuals"] = figure.add_subplot(grid[1, 0], sharex=axes["white"])
    white, error = white_light(curves.flux, curves.error)
    white_panel(axes["white"], curves.time, white, error, curves.detector.name)
    _residual_panel(axes["residuals"], curves.time, white, error)
    axes["white"].tick_params(labelbottom=False)
    last = axes["residuals"]
    if curves.detector.photometer:
        beside = grid[:, 1].subgridspec(1, 2)
        axes["mean"], axes["flags"] = (figure.add_subplot(beside[0, at]) for at in range(2))
        _mean_panel(axes["mean"], curves)
    else:
        last.tick_params(labelbottom=False)
        axes["image"] = last = figure.add_subplot(grid[2, 0], sharex=axes["white"])
        axes["spectrum"] = figure.add_subplot(grid[:2, 1])
        axes["flags"] = figure.add_subplot(grid[2, 1])
        _image_panel(axes["image"], curves)
        _spectrum_panel(axes["spectrum"], curves)
    _flag_panel(axes["flags"], curves)
    last.set_xlabel("time (h)")
    return axes


def _residual_panel(
    axes: Axes, time: NDArray[np.float64], white: NDArray[np.float64], error: NDArray[np.float64] | None
) -> None:
    level = _level(white)
    with np.errstate(divide="ignore", invalid="ignore"):
        ppm = neighbour_residuals(white) / level * _PPM
        measured = float(scatter(white) / abs(level) * _PPM)
        expected = None if error is None else float(np.sqrt(np.mean(error**2)) / abs(level) * _PPM)
    words = f"scatter {measured:,.0f} ppm" if np.isfinite(measured) else "scatter not known"
    if expected is not None and np.isfinite(expected):
        axes.axhspan(-expected, expected, color=_ORANGE, alpha=0.18, lw=0)
        words += f", expected {expected:,.0f} ppm"
    axes.axhline(0.0, color=_GREY, lw=0.8)
    limit = _FARTHEST * max(measured, expected or 0.0)
    if np.isfinite(limit) and limit > 0.0:  # a transit's edges would leave the rest a flat line
        axes.set_ylim(-1.1 * limit, 1.1 * limit)
        for side, marker in ((ppm > limit, "^"), (ppm < -limit, "v")):
            axes.plot(time[side], np.clip(ppm[side], -limit, limit), marker, color=_GREY, ms=4)
        ppm = np.where(np.abs(ppm) > limit, np.nan, ppm)
    axes.plot(time, ppm, ".", color=_BLUE, ms=4)
    axes.set_ylabel("bin − neighbours\n(ppm)")
    axes.set_title(words, fontsize="small", loc="right", pad=2)


def _image_panel(axes: Axes, curves: Curves) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = curves.flux / np.nan_to_num(_column_levels(curves.flux))
    finite = relative[np.isfinite(relative)]
    low, high = np.percentile(finite, [2, 98]) if finite.size else (0.0, 1.0)
    down, label = _columns(curves)
    drawn = axes.pcolormesh(
        curves.time, down, np.ma.masked_invalid(relative.T), vmin=low, vmax=high, cmap="viridis", rasterized=True
    )
    axes.set_facecolor("#bbbbbb")  # of what is not known
    axes.set_ylabel(label)
    axes.figure.colorbar(drawn, ax=axes, label="flux / median", pad=0.01)


def _spectrum_panel(axes: Axes, curves: Curves) -> None:
    across, label = _columns(curves)
    axes.plot(across, _column_levels(curves.flux), color=_BLUE, lw=1, drawstyle="steps-mid")
    axes.set_xlabel(label)
    axes.set_ylabel("median (e⁻ a bin)")
    axes.set_title("mean spectrum", fontsize="small", loc="right", pad=2)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))


def _mean_panel(axes: Axes, curves: Curves) -> None:
    axes.set(xlabel="x (pixel)", ylabel="y (pixel)")
    if curves.image is None:
        _say(axes, "only light curves are stored")
        return
    finite = curves.image[np.isfinite(curves.image)]
    low, high = np.percentile(finite, [1, 99.5]) if finite.size else (0.0, 1.0)
    axes.imshow(
        curves.image.T, vmin=low, vmax=high, cmap="viridis", origin="lower", aspect="equal", interpolation="nearest"
    )
    axes.set_facecolor("#bbbbbb")
    if finite.size:
        axes.set_title(f"mean, up to {finite.max():.3g} e⁻", fontsize="small", loc="right", pad=2)
    axes.set_anchor("N")  # beside the flags


def _flag_panel(axes: Axes, curves: Curves) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    axes.set_xlabel("x (pixel)" if curves.detector.photometer else "column inside the crop")
    axes.set_ylabel("y (pixel)" if curves.detector.photometer else "spatial row")
    if curves.dq is None:
        _say(axes, "flags are not stored")
        return
    flags = {**_FLAG_COLOURS} | {flag: _BLUE for flag in DQ if flag not in _FLAG_COLOURS}
    kinds, patches = np.zeros(curves.dq.shape, np.uint8), []
    for number, (flag, colour) in reversed([*enumerate(flags.items(), 1)]):
        has = (curves.dq & np.uint8(flag)) != 0
        kinds[has] = number
        if has.any():
            patches.append(Patch(color=colour, label=f"{flag.name} {int(has.sum()):,}"))
    colours = ListedColormap(["#f4f4f4", *flags.values()])
    axes.imshow(
        kinds.T,
        cmap=colours,
        vmin=-0.5,
        vmax=len(flags) + 0.5,
        origin="lower",
        aspect="equal" if curves.detector.photometer else "auto",
        interpolation="nearest",
    )
    axes.set_anchor("N")
    share = float(np.mean(curves.dq != 0))
    axes.set_title(f"flagged: {share:.1%}", fontsize="small", loc="right", pad=2)
    if patches:
        columns = 2 if curves.detector.photometer else 4
        axes.legend(
            handles=patches[::-1], fontsize="x-small", ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.3)
        )


def _columns(curves: Curves) -> tuple[NDArray[np.float64], str]:
    """Return the wavelength of each light curve, or the detector's column where it is not known, and its label."""
    if curves.wavelength is not None:
        return curves.wavelength, "wavelength (µm)"
    return np.arange(*curves.detector.crop, dtype=np.float64), "column"


def _level(flux: NDArray[np.float64]) -> float:
    finite = flux[np.isfinite(flux)]
    return float(np.median(finite)) if finite.size else float("nan")


def _column_levels(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of each light curve; NaN where a bin is not finite."""
    levels: NDArray[np.float64] = np.median(np.where(np.isfinite(flux), flux, np.nan), axis=0)
    return levels


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=_GREY)
