"""A small picture of white light curves, as SVG that stands in a page by itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["white_light"]

# Of a panel, in pixels; beside it stand the name, and the highest and lowest value.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _GAP = 420, 64, 84, 56, 10

# Okabe and Ito's colours, which colour-blind people tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73")

# Points of a panel, at most: more than that would stand on the same pixels.
_MOST_POINTS = 400


def white_light(curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> str:
    """Draw a panel for each light curve, relative to its median; a bin that is not finite is left out.

    Parameters
    ----------
    curves : mapping of str to (ndarray, ndarray)
        For each name the times, (time,), hours, and the flux, (time,).

    Returns
    -------
    str
        An ``svg`` element.
    """
    panels = [
        _panel(name, time, flux, at * (_HEIGHT + _GAP), _COLOURS[at % len(_COLOURS)])
        for at, (name, (time, flux)) in enumerate(curves.items())
    ]
    width, height = _LEFT + _WIDTH + _RIGHT, len(panels) * (_HEIGHT + _GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="max-width:100%" font-size="11" font-family="sans-serif">'
        f"<title>white light curves</title>{''.join(panels)}</svg>"
    )


def _panel(name: str, time: NDArray[Any], flux: NDArray[Any], top: float, colour: str) -> str:
    import numpy as np

    words = [f'<text x="0" y="{top + _HEIGHT / 2 + 4:.0f}" fill="currentColor">{escape(name)}</text>']
    frame = f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#8886"/>'
    values = np.asarray(flux, np.float64)
    good = np.isfinite(values) & np.isfinite(time)
    middle = float(np.median(values[good])) if good.any() else 0.0
    if middle == 0.0:
        words.append(f'<text x="{_LEFT + 8}" y="{top + _HEIGHT / 2 + 4:.0f}" fill="currentColor">no light</text>')
        return frame + "".join(words)
    step = -(-int(good.sum()) // _MOST_POINTS)
    hours, relative = np.asarray(time)[good][::step], values[good][::step] / middle
    (first, last), (low, high) = (_span(of) for of in (hours, relative))
    x = _LEFT + 4 + (hours - first) / (last - first) * (_WIDTH - 8)
    y = top + 5 + (high - relative) / (high - low) * (_HEIGHT - 10)
    # A path of lines without length, with round ends, draws all points in one element.
    points = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    right = _LEFT + _WIDTH + 4
    for value, at in ((high, top + 10), (low, top + _HEIGHT - 2)):
        words.append(f'<text x="{right}" y="{at:.0f}" fill="currentColor">{value:.5g}</text>')
    path = f'<path d="{points}" stroke="{colour}" stroke-width="3" stroke-linecap="round" fill="none"/>'
    return frame + path + "".join(words)


def _span(values: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the largest value, which differ."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
