"""What synthetic pointing jitter does to bright pixels, beside what 50 real frames of 2025 show.

python benchmarks/jitter.py [--frames 2400] [--seed 0]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import Truth, synthesize

# Pairs with at least this share of the brightest pixel's electrons.
BRIGHT = 0.2
REAL = {"AIRS-CH0": "2.7", "FGS1": "tens; correlation 0.96"}


class Figures(NamedTuple):
    """Medians over bright pixels: variance of CDS pairs over the detector's own, correlation of start and end reads."""

    excess: float
    correlation: float


def figures(raw: Path, planet: int) -> dict[str, Figures]:
    """Measure raw reads of the 2025 layout, out of transit."""
    found = {}
    for name in DETECTORS:
        truth = Truth.load(raw / "truth" / str(planet) / "0" / f"{name}.npz")
        light = (truth.rate * np.maximum(truth.flat, 0)).ravel()
        bright = np.flatnonzero(light > BRIGHT * light.max())
        names = [f"column_{pixel}" for pixel in bright]
        table = pq.read_table(raw / "train" / str(planet) / f"{name}_signal_0.parquet", columns=names)
        counts = np.stack([column.to_numpy() for column in table.columns], axis=1).astype(np.float64)
        reads = counts / truth.gain
        still = np.flatnonzero(truth.shape == 0)
        start, end = reads[0::2][still], reads[1::2][still]
        pairs = end - start
        own = pairs.mean(axis=0) + 2 * truth.read.ravel()[bright] ** 2
        correlations = [np.corrcoef(one, other)[0, 1] for one, other in zip(start.T, end.T, strict=True)]
        found[name] = Figures(float(np.median(pairs.var(axis=0) / own)), float(np.median(correlations)))
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        (planet,) = synthesize(raw, layout="2025", frames=arguments.frames, seed=arguments.seed, jitter=True)
        for name, found in figures(raw, planet).items():
            print(
                f"{name}: variance of bright CDS pairs {found.excess:.2f} times the detector's own, "
                f"correlation of start and end reads {found.correlation:.3f} (real frames: {REAL[name]})"
            )


if __name__ == "__main__":
    main()
