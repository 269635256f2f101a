"""How far mended pixels are off at the peak of the trace, and how honest their errors are, on synthetic truth.

python benchmarks/bad_pixels.py [--frames 2400] [--seed 0] [--jitter]

After calibration the brightest pixel of every twelfth wavelength, and the four brightest of FGS1, are declared dead,
one at a time, and mended.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

import gpucal
from gpucal import DQ
from gpucal.science.bad_pixels import MENDING, find_mends, mean_profile, plan_repair
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import Truth, synthesize

PAIRS = {"AIRS-CH0": 10, "FGS1": 120}


class Figures(NamedTuple):
    """Medians over peaks: error of the mean over time, as a part of it, and scatter in time over the error given."""

    off: float
    honest: float


def figures(
    frames: int, pairs: Mapping[str, int] = PAIRS, seed: int = 0, *, jitter: bool = False
) -> dict[str, dict[str, Figures]]:
    """Mend the peaks of a synthetic planet, by detector and way."""
    found: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        (planet,) = synthesize(raw, layout="2025", frames=frames, seed=seed, jitter=jitter)
        obs = gpucal.open_dataset(raw)[planet]
        for name, detector in DETECTORS.items():
            cal = gpucal.calibrate(obs, name, gpucal.Calibration(bins=dict(pairs)))
            expected, _ = Truth.load(raw / "truth" / str(planet) / "0" / f"{name}.npz").expected(detector, pairs[name])
            light = np.where(cal.mask, 0.0, expected.mean(axis=0))
            if detector.photometer:
                peaks = [np.unravel_index(place, light.shape) for place in np.argsort(light, axis=None)[-4:]]
            else:
                peaks = [(x, np.argmax(light[x])) for x in range(6, detector.width, 12)]
            found[name] = {}
            for how in MENDING:
                results = [_mended(cal, expected, (int(x), int(y)), how) for x, y in peaks]
                found[name][how] = Figures(*(float(np.median(values)) for values in zip(*results, strict=True)))
    return found


def _mended(cal: gpucal.Calibrated, expected: np.ndarray, peak: tuple[int, int], how: str) -> tuple[float, float]:
    near = slice(max(0, peak[0] - 8), peak[0] + 9)  # all wavelengths that count, and some more
    pixel = peak[0] - near.start, peak[1]
    signal, variance, dq = cal.signal[:, near].copy(), cal.variance[:, near], cal.dq[near].copy()
    dq[pixel] |= np.uint8(DQ.DEAD)
    signal[:, *pixel] = np.nan
    mended, change = plan_repair(dq, how)
    assert change is not None
    change(signal)
    mends = find_mends(mended, mean_profile(signal) if how == "profile" else None)
    (mend,) = (one for one in mends if one.pixel == pixel)
    truth = expected[:, *peak]
    ratio = signal[:, *pixel] / truth  # of its mean only the scatter is left: what a transit does cancels
    error = np.sqrt(np.mean(mend.value(variance, power=2) / truth**2))
    return float(ratio.mean()) - 1.0, float(ratio.std(ddof=1) / error)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jitter", action="store_true", help="move the image as real frames show it")
    arguments = parser.parse_args()
    for name, ways in figures(arguments.frames, seed=arguments.seed, jitter=arguments.jitter).items():
        for how, found in ways.items():
            print(f"{name}, {how}: {found.off:+.2%} at the peak, scatter {found.honest:.2f} times its error")


if __name__ == "__main__":
    main()
