"""The loss of transit depth where linearity, dark or flat is skipped: one bright star of full size, in ppm.

    python benchmarks/closure.py [--picture FILE.png] [--data DIR] [--frames 11250] [--json FILE]
    python benchmarks/closure.py --jitter       # the same, with pointing jitter as real frames show it
    python benchmarks/closure.py --seeds 20     # whether injected depths come back within their errors
    python benchmarks/closure.py --weights      # what optimal weights do to flux and depth of faint columns

The same raw reads are calibrated with all steps and with each left out in turn, and summed over the same pixels, so
that differences are the step's and not the noise's. Depths are fitted with the injected transit shape. The model has
no spectral drift, and pointing jitter only with --jitter; against those a flat does what cannot show without.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import table, write_json

import gpucal
from gpucal import Calibrated, Calibration
from gpucal.science.light_curves import Aperture, light_curve
from gpucal.science.transit import DepthFit, fit_depth
from gpucal.settings.detectors import DETECTORS as GEOMETRY
from gpucal.synthetic.competition import Truth, synthesize
from gpucal.synthetic.scene import FGS1_WAVELENGTH_UM

ALL = Calibration.preset("ariel2025")
SKIPPED = {step: ALL.replace(**{step: False}) for step in ("linearity", "dark", "flat")}
PPM = 1e6
DETECTORS = ("AIRS-CH0", "FGS1")


def fitted(cal: Calibrated, truth: Truth) -> tuple[DepthFit, DepthFit]:
    """Fit each light curve, and the white one that is their sum."""
    curve = cal.light_curve_with_errors()
    n = cal.detector.bin_pairs
    shape = truth.shape[: len(cal.time) * n].reshape(-1, n).mean(axis=1)
    white = curve.flux.sum(axis=1), np.sqrt((curve.error**2).sum(axis=1))
    return fit_depth(*curve, shape), fit_depth(*white, shape)


def injected(cal: Calibrated, truth: Truth) -> tuple[np.ndarray, float]:
    """Give the depth of each light curve, and that of the white one."""
    cut = slice(*cal.detector.crop)
    light = np.where(cal.mask, 0.0, truth.rate[:, cut].T).sum(axis=1)
    depth = truth.depth[cut]
    white = float((light * depth).sum() / light.sum())
    return (np.array([white]) if cal.detector.photometer else depth), white


def measured(data: Path, frames: int | None = None, jitter: bool = False) -> list[dict[str, Any]]:
    """Make the data if they are missing; depth errors by detector and skipped step, in ppm."""
    if not data.exists():
        synthesize(data, layout="2025", frames=frames, jitter=jitter)
    dataset = gpucal.open_dataset(data)
    obs = dataset[dataset.planets[0]]
    rows = []
    for name in DETECTORS:
        truth = Truth.load(data / "truth" / str(obs.planet) / str(obs.visit) / f"{name}.npz")
        whole = gpucal.calibrate(obs, name, ALL)
        um = [FGS1_WAVELENGTH_UM] if whole.wavelength is None else whole.wavelength.tolist()
        depth, white_depth = injected(whole, truth)
        best, best_white = fitted(whole, truth)
        for skipped, config in {"nothing": ALL, **SKIPPED}.items():
            # without a step its flag is not set; the pixels of the whole calibration keep the comparison to the step
            cal = replace(gpucal.calibrate(obs, name, config), dq=whole.dq)
            fit, white = fitted(cal, truth)
            rows.append(
                {
                    "detector": name,
                    "skipped": skipped,
                    "um": um,
                    "depth_ppm": (depth * PPM).tolist(),
                    "sigma_ppm": (best.error * PPM).tolist(),
                    "shift_ppm": ((fit.depth - best.depth) * PPM).tolist(),
                    "error_ppm": ((fit.depth - depth) * PPM).tolist(),
                    "white_sigma_ppm": float(best_white.error) * PPM,
                    "white_shift_ppm": float(white.depth - best_white.depth) * PPM,
                    "white_error_ppm": float(white.depth - white_depth) * PPM,
                }
            )
    return rows


def recovered(seeds: Iterable[int], frames: int = 600) -> dict[str, tuple[np.ndarray, int]]:
    """Fit short planets of 10 bins: reduced χ² of 283 depths and of the residuals, for each seed, and their dof."""
    found: dict[str, list[float]] = {"depths": [], "residuals": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch) / "data"
            (planet,) = synthesize(data, layout="2025", frames=frames, seed=seed)
            fits = []
            for name in DETECTORS:
                cal = gpucal.calibrate(gpucal.open_dataset(data)[planet], name, ALL)
                truth = Truth.load(data / "truth" / str(planet) / "0" / f"{name}.npz")
                fits.append((fitted(cal, truth)[0], injected(cal, truth)[0]))
        z = np.concatenate([(fit.depth - depth) / fit.error for fit, depth in fits])
        found["depths"].append(float((z**2).sum()) / z.size)
        found["residuals"].append(float(sum(fit.chi2.sum() for fit, _ in fits) / sum(fit.dof.sum() for fit, _ in fits)))
    dof = {"depths": z.size, "residuals": int(sum(fit.dof.sum() for fit, _ in fits))}
    return {name: (np.array(values), dof[name]) for name, values in found.items()}


def weighted(light: float, weights: str, seeds: Iterable[int], n_bins: int = 187) -> tuple[np.ndarray, float]:
    """Draw AIRS-CH0's columns, all of so much light a bin (e⁻) in all rows; flux of each over its truth, and depth."""
    detector = GEOMETRY["AIRS-CH0"]
    height, width = detector.shape[0], detector.width
    at = np.arange(height) - 16.1
    profile = np.exp(-0.5 * (at / 1.1) ** 2) + 0.012 * np.exp(-0.5 * (at / 10) ** 2)  # of gpucal.synthetic.scene
    reads = 2 * detector.bin_pairs * 13.1**2
    shape = np.clip((30 - np.abs(np.arange(n_bins) - n_bins // 2)) / 10, 0.0, 1.0)
    deep = 0.5  # half of the light, so that it can be measured at all
    truth = 1 - deep * shape
    mean = light * truth[:, None, None] * (profile / profile.sum())
    fluxes, curves = [], []
    for seed in seeds:
        noise = np.random.default_rng(seed).standard_normal((n_bins, width, height))
        signal = mean + np.sqrt(mean + reads) * noise
        variance = np.maximum(signal, 0.0) + reads
        flux = light_curve(signal, np.zeros((width, height), np.uint8), Aperture(detector, weights), variance)
        fluxes.append(truth @ flux / (truth @ truth) / light)
        curves.append(flux.mean(axis=1))
    fit = fit_depth(np.mean(curves, axis=0), np.ones(n_bins), shape)
    return np.concatenate(fluxes), float(fit.depth) / deep


def print_weighted(seeds: int = 16) -> None:
    """Print both for some amounts of light."""
    rows = []
    for light in (300, 1000, 3000, 10_000, 100_000):
        cells = [f"{light:,}"]
        for weights in ("plain", "variance"):
            flux, depth = weighted(light, weights, range(seeds))
            cells += [f"{flux.mean():.4f} ± {flux.std() / flux.size**0.5:.4f}", f"{depth:.3f}"]
        rows.append(cells)
    print(table(["e⁻ a bin", "plain: flux / truth", "depth / truth", "variance: flux / truth", "depth / truth"], rows))


def print_recovered(count: int) -> None:
    """Print mean reduced χ² and the least p of a seed."""
    from scipy.stats import chi2

    for name, (reduced, dof) in recovered(range(count)).items():
        least = chi2.sf(reduced * dof, dof).min()
        print(f"{name}: mean reduced χ² {reduced.mean():.3f} over {count} seeds, least p {least:.2g}")


def _largest(values: list[float]) -> float:
    return max(values, key=abs)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format one row a skipped step: the change by skipping it, and what is left to the truth, noise included."""
    header = ["depth, ppm: left out"]
    for what in ("change", "error"):
        header += [f"{what} AIRS-CH0, median", "largest", "white", "FGS1"]
    by_step = {row["skipped"]: {r["detector"]: r for r in rows if r["skipped"] == row["skipped"]} for row in rows}
    cells = []
    for skipped, of in by_step.items():
        airs, fgs1 = of["AIRS-CH0"], of["FGS1"]
        figures = []
        for what in ("shift", "error"):
            along = airs[f"{what}_ppm"]
            figures += [float(np.median(along)), _largest(along), airs[f"white_{what}_ppm"], fgs1[f"white_{what}_ppm"]]
        cells.append([skipped, *(f"{figure:+.2f}" if abs(figure) < 9.95 else f"{figure:+.0f}" for figure in figures)])
    sigma = by_step["nothing"]["AIRS-CH0"]["sigma_ppm"]
    noise = [float(np.median(sigma)), max(sigma), *(by_step["nothing"][d]["white_sigma_ppm"] for d in DETECTORS)]
    cells.append(["(1 σ of the noise)", *[""] * 4, *(f"{figure:.0f}" for figure in noise)])
    return table(header, cells)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the change of depth by each skipped step against wavelength, over the noise of the fit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_yscale("symlog", linthresh=1.0)
    # without flat only the noise is weighted anew, so dots and no line; FGS1's markers may lie on one another
    styles = {
        "linearity": {"color": "tab:red", "ls": "-", "ms": 7},
        "dark": {"color": "tab:blue", "ls": "-", "ms": 9},
        "flat": {"color": "tab:green", "ls": "none", "marker": ".", "ms": 5},
    }
    for row in rows:
        photometer = len(row["um"]) == 1
        if row["skipped"] in styles:
            style = styles[row["skipped"]] | ({"marker": "D"} if photometer else {"label": f"no {row['skipped']}"})
            axes.plot(row["um"], row["shift_ppm"], **style)
        elif photometer:
            axes.errorbar(row["um"], [0.0], row["sigma_ppm"], color="silver", capsize=4, lw=1.5, zorder=0)
        else:
            sigma = np.array(row["sigma_ppm"])
            axes.fill_between(row["um"], -sigma, sigma, color="0.9", lw=0, zorder=0, label="1 σ of the noise")
    axes.plot([], [], "D", color="black", label="FGS1")
    axes.set(xlabel="wavelength, µm", ylabel="change of transit depth, ppm", ylim=(-1500, 1500))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(ncols=5, loc="upper right", fontsize=8)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--frames", type=int, help="AIRS-CH0 frames of data to make, 11250 by default")
    parser.add_argument("--jitter", action="store_true", help="data to make have pointing jitter")
    parser.add_argument("--json")
    parser.add_argument("--seeds", type=int, metavar="N", help="instead: whether N planets' depths are recovered")
    parser.add_argument("--weights", action="store_true", help="instead: what optimal weights do to faint columns")
    options = parser.parse_args()
    if options.weights:
        print_weighted()
        return
    if options.seeds:
        print_recovered(options.seeds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(options.data or Path(scratch) / "data", options.frames, options.jitter)
    write_json(options.json, rows)
    if options.picture:
        draw(rows, options.picture)
    print(markdown(rows))


if __name__ == "__main__":
    main()
