"""What a background adds to the noise of light curves of one CDS pair a bin: its own in each bin, or one for all bins.

python benchmarks/background.py [--frames 1200] [--seed 0]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import gpucal
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import synthesize

SKY = ((0, 8), (24, 32))
WAYS = {
    "bin": {"background_rows": SKY, "background": "bin"},
    "constant": {"background_rows": SKY, "background": "constant"},
    "constant, six faintest rows": {"background_rows": "faintest:6", "background": "constant"},
}


def scatter(flux: np.ndarray) -> np.ndarray:
    """Standard deviation from differences of consecutive bins, which a transit does not change."""
    return np.diff(flux, axis=0).std(axis=0) / np.sqrt(2.0)


def ratios(frames: int, seed: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Scatter over that without background, by detector and way: least, median and largest of the light curves."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        (planet,) = synthesize(raw, layout="2025", frames=frames, seed=seed)
        obs = gpucal.open_dataset(raw)[planet]
        for name in DETECTORS:
            cal = gpucal.calibrate(obs, name, gpucal.Calibration(binning=False))
            without = scatter(cal.light_curve(rows=(8, 24)))
            for way, choices in WAYS.items():
                ratio = scatter(cal.light_curve(rows=(8, 24), **choices)) / without
                found[name, way] = (float(ratio.min()), float(np.median(ratio)), float(ratio.max()))
    return found


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for (name, way), (least, median, most) in ratios(arguments.frames, arguments.seed).items():
        print(f"{name}, {way}: scatter {least:.4f} to {most:.4f} times that without background, median {median:.4f}")


if __name__ == "__main__":
    main()
