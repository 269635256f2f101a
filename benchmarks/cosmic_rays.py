"""How many hits of cosmic rays are found, how many clean pairs are taken for hits, and what the search costs.

    python benchmarks/cosmic_rays.py [--frames 2400] [--seed 0] [--sigma 20]

Hits are added to the raw counts of a synthetic planet, with and without pointing jitter: one in 5,000 pairs, of 25 to
200 times the scatter of their pixel's pairs out of transit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import gpucal
from gpucal.backends import choose
from gpucal.inputs.signal_file import open_signal
from gpucal.science.cosmic_rays import NUMPY, find_hits
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import Truth, synthesize

SHARE, SIZES = 2e-4, (25.0, 200.0)


def searched(raw: Path, planet: int, name: str, sigma: float) -> tuple[int, int, int, int]:
    """Return hits made and found, and clean pairs in all and rejected."""
    detector = DETECTORS[name]
    truth = Truth.load(raw / "truth" / str(planet) / "0" / f"{name}.npz")
    search, rng = choose().search or NUMPY, np.random.default_rng(0)
    loaded = open_signal(gpucal.open_dataset(raw)[planet].signal_path(detector), detector).load()
    made = found = clean = wrong = 0
    blocks = [slice(first, min(first + 64, detector.n_pixels)) for first in range(0, detector.n_pixels, 64)]
    for _, counts in loaded.counts(blocks):
        reads, n = counts.astype(np.float64), counts.shape[1]
        scatter = (reads[:, 1::2] - reads[:, 0::2])[:, truth.shape == 0].std(axis=1)
        clean += counts.size // 2
        wrong += len(find_hits(counts, n, sigma, search))
        hit = rng.random((len(counts), n // 2)) < SHARE
        reads[:, 1::2] += hit * scatter[:, None] * rng.uniform(*SIZES, hit.shape)
        hits = find_hits(np.minimum(reads.round(), 65_535).astype(np.uint16), n, sigma, search)
        made += int(hit.sum())
        found += int(hit[hits[:, 0], hits[:, 1]].sum())
    return made, found, clean, wrong


def cost(raw: Path, planet: int, sigma: float) -> float:
    """Return the core-seconds that the search adds to calibrating a planet: least of three."""
    obs, seconds = gpucal.open_dataset(raw)[planet], {}
    for cosmic_rays in (0.0, sigma):
        spent = []
        for _ in range(4):  # the first compiles
            start = time.process_time()
            for name in DETECTORS:
                gpucal.calibrate(obs, name, gpucal.Calibration(cosmic_rays=cosmic_rays))
            spent.append(time.process_time() - start)
        seconds[cosmic_rays] = min(spent[1:])
    return seconds[sigma] - seconds[0.0]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sigma", type=float, default=20.0)
    arguments = parser.parse_args()
    for jitter in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw"
            (planet,) = synthesize(raw, layout="2025", frames=arguments.frames, seed=arguments.seed, jitter=jitter)
            for name in DETECTORS:
                made, found, clean, wrong = searched(raw, planet, name, arguments.sigma)
                print(
                    f"{name}, {'with' if jitter else 'without'} jitter: {found} of {made} hits found "
                    f"({found / made:.2%}), {wrong} of {clean:,} clean pairs rejected"
                )
            if not jitter:
                added = cost(raw, planet, arguments.sigma)
                print(f"the search adds {added:.2f} core-seconds to a planet of {arguments.frames} frames")


if __name__ == "__main__":
    main()
