"""What pointing jitter does to bright pixels and light curves, and what is left of it by each way of making them.

    python benchmarks/jitter.py [--frames 2400] [--seed 0]   # pixels, beside what 50 real frames of 2025 show
    python benchmarks/jitter.py --seeds 20                   # light curves and pointing, where the truth is known

Light curves are of bins of the default length, 187 of FGS1 and of 24 wavelengths of AIRS-CH0. The star moves as
synthetic ones do, but its whole image does, not the image's first derivative. Pixels have an error of the flat of 1 %.
Two pixels of FGS1's core are dead, and in AIRS-CH0 one of the five brightest of each wavelength. The same noise is
drawn with and without jitter.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from measure import table

from gpucal.science.light_curves import Aperture, light_curve_with_errors
from gpucal.science.noise import noise_excess
from gpucal.science.pointing import Pointing, pointing
from gpucal.science.transit import DepthFit, fit_depth
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import Truth, synthesize
from gpucal.synthetic.scene import draw_pointing

# Pairs with at least this share of the brightest pixel's electrons.
BRIGHT = 0.2
REAL = {"AIRS-CH0": "2.7", "FGS1": "tens; correlation 0.96"}

WEIGHTS = ("plain", "variance", "profile")
DEPTH = 0.01
WAVELENGTHS = 24
READ = 13.2


class Figures(NamedTuple):
    """Medians over bright pixels: variance of CDS pairs over the detector's own, correlation of start and end reads."""

    excess: float
    correlation: float


class Star(NamedTuple):
    """A star in one detector: σ of the image and scatter of its jitter in pixels, e⁻ a pair of the brightest pixel."""

    sigma: float
    jitter: float
    brightest: float


STARS = {"AIRS-CH0": Star(1.1, 0.03, 61_000.0), "FGS1": Star(1.14, 0.055, 27_000.0)}


class Curves(NamedTuple):
    """Fits and relative scatter of light curves by weights, and the pointing beside its truth, (2, time)."""

    fits: dict[str, DepthFit]
    scatter: dict[str, np.ndarray]
    excess: dict[str, np.ndarray]
    pointing: Pointing
    truth: np.ndarray


def figures(raw: Path, planet: int) -> dict[str, Figures]:
    """Measure raw reads of the 2025 layout, out of transit."""
    found = {}
    for name in DETECTORS:
        truth = Truth.load(raw / "truth" / str(planet) / "0" / f"{name}.npz")
        light = (truth.rate * np.maximum(truth.flat, 0)).ravel()
        bright = np.flatnonzero(light > BRIGHT * light.max())
        names = [f"column_{pixel}" for pixel in bright]
        stored = pq.read_table(raw / "train" / str(planet) / f"{name}_signal_0.parquet", columns=names)
        counts = np.stack([column.to_numpy() for column in stored.columns], axis=1).astype(np.float64)
        reads = counts / truth.gain
        still = np.flatnonzero(truth.shape == 0)
        start, end = reads[0::2][still], reads[1::2][still]
        pairs = end - start
        own = pairs.mean(axis=0) + 2 * truth.read.ravel()[bright] ** 2
        correlations = [np.corrcoef(one, other)[0, 1] for one, other in zip(start.T, end.T, strict=True)]
        found[name] = Figures(float(np.median(pairs.var(axis=0) / own)), float(np.median(correlations)))
    return found


def curves(name: str, seed: int, jitter: bool, n_bins: int = 187) -> Curves:
    """Draw one visit, measure its pointing, and make light curves in each way."""
    star, detector = STARS[name], DETECTORS[name]
    draws = [np.random.default_rng([seed, k]) for k in range(3)]  # motion, detector, noise
    start, end = (round(10 * seconds) for seconds in detector.true_integration_s)
    steps = detector.bin_pairs * (end + 2 * start)
    walk = star.jitter * jitter * draw_pointing(draws[0], n_bins * steps / 10)
    # Between the two reads; a long exposure is sampled every 0.3 s.
    moved = walk.reshape(2, n_bins, detector.bin_pairs, -1)[..., start : end : 1 if detector.photometer else 3]
    moved = moved.reshape(2, n_bins, -1)
    x, y = (_profile(center + shifts, star.sigma) for center, shifts in zip((16.2, 15.9), moved, strict=True))
    if detector.photometer:
        image = x.transpose(0, 2, 1) @ y / moved.shape[2]
    else:
        detector = replace(detector, shape=(32, WAVELENGTHS), crop=(0, WAVELENGTHS))
        image = y.mean(axis=1)[:, None] * np.linspace(0.3, 1.0, WAVELENGTHS)[:, None]
    shape = np.clip((n_bins / 5 - np.abs(np.arange(n_bins) - n_bins // 2)) / (n_bins / 20), 0, 1)
    light = image * star.brightest * detector.bin_pairs * (1 - DEPTH * shape)[:, None, None]
    light *= 1 + 0.01 * draws[1].standard_normal(light.shape[1:])
    dq = np.zeros(light.shape[1:], np.uint8)
    if detector.photometer:
        dq[[15, 17], [16, 15]] = 1
    else:
        dq[np.arange(WAVELENGTHS), draws[1].integers(14, 19, WAVELENGTHS)] = 1
    reads = 2 * detector.bin_pairs * READ**2
    signal = light + np.sqrt(light + reads) * draws[2].standard_normal(light.shape)
    variance = np.maximum(signal, 0) + reads
    found = Curves(
        {}, {}, {}, pointing(signal, dq, variance.mean(axis=0), photometer=detector.photometer), moved.mean(axis=2)
    )
    for weights in WEIGHTS:
        flux, error = light_curve_with_errors(signal, dq, Aperture(detector, weights), variance)
        found.fits[weights] = fit = fit_depth(flux, error, shape)
        model = fit.level * (1 - fit.depth * shape[:, None])
        found.scatter[weights] = (flux / model).std(axis=0)
        found.excess[weights] = noise_excess(flux / model, (error / model) ** 2)
    return found


def _profile(center: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian that peaks at 1, along 32 pixels, for each center: (..., 32)."""
    return np.exp(-0.5 * ((np.arange(32) - center[..., None]) / sigma) ** 2)


def compared(name: str, seeds: int) -> tuple[list[list[str]], list[str]]:
    """Rows of the tables: light curves by weights, and the pointing of one detector."""
    from scipy.stats import chi2

    still, moving = ([curves(name, seed, jitter) for seed in range(seeds)] for jitter in (False, True))
    rows = []
    for weights in WEIGHTS:
        growth = np.mean([of.scatter[weights] for of in moving], axis=0)
        alone = np.mean([of.scatter[weights] for of in still], axis=0)
        growth /= alone
        z, calm = (
            np.array([(of.fits[weights].depth - DEPTH) / of.fits[weights].error for of in visits])
            for visits in (moving, still)
        )
        fits = [of.fits[weights] for of in moving]
        dof = int(fits[0].dof.sum())
        total = np.array([fit.chi2.sum() for fit in fits])
        without = np.mean([of.fits[weights].chi2.sum() for of in still]) / dof
        least = min(chi2.sf(total, dof).min(), chi2.sf((z**2).sum(axis=1), z.shape[1]).min())
        rows.append(
            [
                f"{name}, {weights}",
                f"{np.median(alone) * 1e6:.0f}",
                f"{np.median(growth):.2f}" + ("" if growth.size == 1 else f"; {growth.max():.2f}"),
                f"{np.median([of.excess[weights] for of in moving]):.2f}",
                f"{z.mean():+.2f} ± {z.std() / z.size**0.5:.2f}",
                f"{(z - calm).mean():+.2f} ± {(z - calm).std() / z.size**0.5:.2f}",
                f"{total.mean() / dof:.3f} ({without:.3f})",
                f"{least:.1g}",
            ]
        )
    slopes, ratios, excess = [], [], []
    for of in moving:
        for axis in (0, 1) if DETECTORS[name].photometer else (1,):
            shift, error = of.pointing[axis], of.pointing[axis + 2]
            slope, offset = np.polyfit(of.truth[axis], shift, 1)
            slopes.append(slope)
            ratios.append((shift - slope * of.truth[axis] - offset).std() / error.mean())
            excess.append(shift.std() / error.mean())
    of_pointing = [
        name,
        f"{np.mean(slopes):.4f}; {min(slopes):.4f} to {max(slopes):.4f}",
        f"{np.mean(ratios):.3f}; {min(ratios):.3f} to {max(ratios):.3f}",
        f"{np.mean([one[one.size // 2] for one in (of.pointing.dy_error for of in moving)]):.2g}",
        f"{np.mean(excess):.0f}",
    ]
    return rows, of_pointing


def print_compared(seeds: int) -> None:
    """Print both tables."""
    found = [compared(name, seeds) for name in DETECTORS]
    header = ["light curves", "scatter without jitter, ppm", "with jitter, over that", "noise excess"]
    header += ["depth, σ from the truth", "moved by jitter, σ", "reduced χ² (without jitter)", "least p of a seed"]
    print(table(header, [row for rows, _ in found for row in rows]))
    print()
    header = ["pointing", "slope", "residuals / error", "error, pixels", "scatter / error"]
    print(table(header, [row for _, row in found]))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, metavar="N", help="instead: light curves and pointing of N visits")
    arguments = parser.parse_args()
    if arguments.seeds:
        print_compared(arguments.seeds)
        return
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
