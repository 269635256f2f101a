"""Where the variance formula holds: standardised residuals of synthetic data, by detector, bin and brightness.

    python benchmarks/variance.py [--data DIR] [--planets 8] [--frames 6000] [--clip-negatives] [--json FILE]

(signal − truth) / √variance should have mean 0 and standard deviation 1. A pixel is bright where the photons of a pair
have more variance than its two reads. The formula takes the photons' variance from the measured charge: a high draw
gets a large σ and a low one a small, which biases the ratio by up to −1 / (2σ), σ in electrons; and a charge below 0
counts as 0, which makes the variance of the faintest too large. Both fade as bins grow. Takes some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import table, write_json
from numpy.typing import NDArray

import gpucal
from gpucal import Calibrated, Calibration
from gpucal.synthetic.competition import Truth, synthesize

PAIRS = {"AIRS-CH0": (1, 2, 5, 10, 30), "FGS1": (1, 12, 60, 360)}


def is_bright(truth: Truth, crop: tuple[int, int]) -> NDArray[np.bool_]:
    """Tell where a pair's photons, out of transit, have more variance than its reads: (wavelength, spatial)."""
    light = truth.rate * np.maximum(truth.flat, 0.0) * (truth.exposure_s[1] - truth.exposure_s[0])
    return np.asarray(light > 2 * truth.read**2)[:, slice(*crop)].T


def residuals(cal: Calibrated, truth: Truth, pairs: int) -> dict[str, NDArray[np.float64]]:
    """Standardise what good pixels differ from the truth by."""
    sigma = cal.signal - truth.expected(cal.detector, pairs)[0]
    sigma /= np.sqrt(cal.variance)
    bright, good = is_bright(truth, cal.detector.crop), cal.dq == 0
    return {"bright": sigma[:, bright & good], "faint": sigma[:, ~bright & good]}


def measured(data: Path, planets: int, frames: int, **settings: object) -> list[dict[str, Any]]:
    """Make the data if they are missing; bias and scatter of each group."""
    if not data.exists():
        synthesize(data, layout="2025", planets=planets, frames=frames)
    sums: dict[tuple[str, int, str], NDArray[np.float64]] = {}
    for obs in gpucal.open_dataset(data):
        for name, choices in PAIRS.items():
            truth = Truth.load(data / "truth" / str(obs.planet) / str(obs.visit) / f"{name}.npz")
            for pairs in choices:
                config = Calibration.preset("ariel2025").replace(bins={name: pairs}, **settings)
                for group, sigma in residuals(gpucal.calibrate(obs, name, config), truth, pairs).items():
                    found = np.array([sigma.size, sigma.sum(), (sigma**2).sum()])
                    sums[name, pairs, group] = sums.get((name, pairs, group), 0.0) + found
    rows = []
    for (name, pairs, group), (n, total, squares) in sums.items():
        scatter = (squares / n - (total / n) ** 2) ** 0.5
        rows.append(
            {"detector": name, "pairs": pairs, "group": group, "n": int(n), "bias": total / n, "scatter": scatter}
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format one row a detector and bin, with the statistical errors."""
    header = ["detector, pairs a bin", "bright: bias, σ", "scatter, σ", "faint: bias, σ", "scatter, σ"]
    cells: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        line = cells.setdefault((row["detector"], row["pairs"]), [f"{row['detector']}, {row['pairs']}"])
        line += [f"{row['bias']:+.4f} ± {row['n'] ** -0.5:.4f}", f"{row['scatter']:.4f} ± {(2 * row['n']) ** -0.5:.4f}"]
    return table(header, list(cells.values()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--planets", type=int, default=8)
    parser.add_argument("--frames", type=int, default=6000, help="AIRS-CH0 frames of a planet")
    parser.add_argument("--clip-negatives", action="store_true", help="what that setting does to them")
    parser.add_argument("--json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(
            options.data or Path(scratch) / "data",
            options.planets,
            options.frames,
            clip_negatives=options.clip_negatives,
        )
    write_json(options.json, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
