"""The organisers' notebook in our own words: what the benchmarks are measured against.

Same work, same order, same data structures: the whole observation as one float64 cube, masked arrays tiled over the
frames, one ``numpy.poly1d`` call a pixel, bins summed one after another. It reads a 2024- or a 2025-layout folder and
imports nothing of the package::

    python benchmarks/rivals/notebook.py DATASET --planet ID [--visit 0] [--detector AIRS-CH0] [--save DIR]
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.stats import sigma_clip

ROWS = 32
CROP = {"AIRS-CH0": (39, 321), "FGS1": (0, 32)}
BIN_PAIRS = {"AIRS-CH0": 30, "FGS1": 360}


def paths_of(folder: Path, planet: int, detector: str, split: str, visit: int) -> tuple[Path, Path]:
    """Give the signal file and the calibration folder of one visit, in whichever layout is there."""
    planet_folder = folder / split / str(planet)
    signal = planet_folder / f"{detector}_signal_{visit}.parquet"
    if signal.exists():
        return signal, planet_folder / f"{detector}_calibration_{visit}"
    if visit != 0:
        raise FileNotFoundError(f"no visit {visit} of planet {planet}: {signal}")
    return planet_folder / f"{detector}_signal.parquet", planet_folder / f"{detector}_calibration"


def read_map(path: Path, dtype: type) -> np.ndarray:
    """Read one calibration map, (spatial, wavelength)."""
    return pd.read_parquet(path).to_numpy(dtype=dtype).reshape(ROWS, -1)


def adc_of(folder: Path, planet: int, detector: str, split: str) -> tuple[float, float]:
    """Give gain and offset: the planet's row of ``<split>_adc_info.csv``, or the one row of ``adc_info.csv``."""
    per_planet = folder / f"{split}_adc_info.csv"
    if per_planet.exists():
        row = pd.read_csv(per_planet).set_index("planet_id").loc[planet]
    else:
        row = pd.read_csv(folder / "adc_info.csv").iloc[0]
    return float(row[f"{detector}_adc_gain"]), float(row[f"{detector}_adc_offset"])


def integration_times(folder: Path, detector: str, frames: int, integration: str) -> np.ndarray:
    """Give the seconds of each frame: 0.1/4.5 and 0.1/0.1 s, with 0.1 s more in odd frames if ``updated``."""
    if detector == "FGS1":
        dt = np.full(frames, 0.1)
    else:
        axis_info = pd.read_parquet(folder / "axis_info.parquet")
        dt = axis_info["AIRS-CH0-integration_time"].dropna().to_numpy(copy=True)[:frames]
    if integration == "updated":
        dt[1::2] += 0.1
    return dt


def convert_adc(signal: np.ndarray, gain: float, offset: float) -> np.ndarray:
    """Turn counts into electrons."""
    signal = signal.astype(np.float64)
    signal /= gain
    signal += offset
    return signal


def mask_pixels(signal: np.ndarray, dead: np.ndarray, dark: np.ndarray) -> np.ma.MaskedArray:
    """Mask hot and dead pixels in the whole cube."""
    hot = np.ma.getmaskarray(sigma_clip(dark, sigma=5, maxiters=5))
    hot_cube = np.tile(hot, (signal.shape[0], 1, 1))
    dead_cube = np.tile(dead, (signal.shape[0], 1, 1))
    masked = np.ma.masked_where(dead_cube, signal)
    return np.ma.masked_where(hot_cube, masked)


def correct_linearity(signal: np.ndarray, linear_corr: np.ndarray) -> np.ndarray:
    """Evaluate each pixel's polynomial over its time series, in place."""
    descending = np.flip(linear_corr, axis=0)
    for y, x in itertools.product(range(signal.shape[1]), range(signal.shape[2])):
        polynomial = np.poly1d(descending[:, y, x])
        signal[:, y, x] = polynomial(signal[:, y, x])
    return signal


def subtract_dark(signal: np.ndarray, dead: np.ndarray, dark: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Subtract the masked dark times each frame's seconds, in place."""
    masked_dark = np.ma.masked_where(dead, dark)
    dark_cube = np.tile(masked_dark, (signal.shape[0], 1, 1))
    signal -= dark_cube * dt[:, np.newaxis, np.newaxis]
    return signal


def bin_in_time(pairs: np.ndarray, bin_pairs: int) -> np.ndarray:
    """Sum whole bins of pairs, x before y."""
    transposed = pairs.transpose(0, 2, 1)
    bins = transposed.shape[0] // bin_pairs
    binned = np.zeros((bins, *transposed.shape[1:]))
    for i in range(bins):
        binned[i] = np.sum(transposed[i * bin_pairs : (i + 1) * bin_pairs], axis=0)
    return binned


def divide_flat(signal: np.ndarray, flat: np.ndarray, dead: np.ndarray) -> np.ma.MaskedArray:
    """Divide every bin by the masked flat."""
    masked_flat = np.ma.masked_where(dead.T, flat.T)
    return signal / np.tile(masked_flat, (signal.shape[0], 1, 1))


def clean_frames(
    folder: Path, planet: int, detector: str, split: str = "train", visit: int = 0, integration: str = "notebook"
) -> np.ndarray:
    """Read one detector and take it through adc, mask, linearity and dark: (frame, spatial, wavelength) float64."""
    first, last = CROP[detector]
    signal_path, calibration = paths_of(folder, planet, detector, split, visit)
    gain, offset = adc_of(folder, planet, detector, split)
    dark = read_map(calibration / "dark.parquet", np.float64)[:, first:last]
    dead = read_map(calibration / "dead.parquet", bool)[:, first:last]
    linear_corr = pd.read_parquet(calibration / "linear_corr.parquet").to_numpy(dtype=np.float64)
    linear_corr = linear_corr.reshape(6, ROWS, -1)[:, :, first:last]

    raw = pd.read_parquet(signal_path)
    frames = raw.shape[0]
    dt = integration_times(folder, detector, frames, integration)
    clean = np.zeros((frames, *dark.shape))
    signal = raw.to_numpy().astype(np.float64).reshape(frames, ROWS, -1)
    signal = convert_adc(signal, gain, offset)
    signal = mask_pixels(signal[:, :, first:last], dead, dark)
    clean[...] = signal
    clean[...] = correct_linearity(clean, linear_corr)
    clean[...] = subtract_dark(clean, dead, dark, dt)
    return clean


def bin_frames(
    clean: np.ndarray, folder: Path, planet: int, detector: str, split: str = "train", visit: int = 0
) -> np.ndarray:
    """Take clean frames through CDS, binning and flat: (bin, wavelength, spatial) float64 electrons."""
    first, last = CROP[detector]
    calibration = paths_of(folder, planet, detector, split, visit)[1]
    flat = read_map(calibration / "flat.parquet", np.float64)[:, first:last]
    dead = read_map(calibration / "dead.parquet", bool)[:, first:last]
    pairs = clean[1::2] - clean[::2]
    binned = bin_in_time(pairs, BIN_PAIRS[detector])
    corrected = np.zeros(binned.shape)
    corrected[...] = divide_flat(binned, flat, dead)
    return corrected


def calibrate(
    folder: Path,
    planet: int,
    detector: str,
    split: str = "train",
    visit: int = 0,
    integration: str = "notebook",
) -> np.ndarray:
    """Calibrate one detector of one observation.

    Parameters
    ----------
    folder : pathlib.Path
        The competition's folder, 2024 or 2025 layout.
    planet : int
        Which planet.
    detector : {"AIRS-CH0", "FGS1"}
        Which detector.
    split : str
        ``train`` or ``test``.
    visit : int
        Which of the planet's visits; always 0 in the 2024 layout.
    integration : {"notebook", "updated"}
        Exposure times of the first notebook, or with 0.1 s more in odd frames.

    Returns
    -------
    numpy.ndarray
        (bin, wavelength, spatial) float64 electrons.
    """
    clean = clean_frames(folder, planet, detector, split, visit, integration)
    return bin_frames(clean, folder, planet, detector, split, visit)


def main(arguments: list[str] | None = None) -> None:
    """Calibrate one observation and print seconds and peak resident memory as one line of JSON."""
    parser = argparse.ArgumentParser(description="the organisers' notebook, timed on one observation")
    parser.add_argument("dataset", type=Path, help="competition folder")
    parser.add_argument("--planet", type=int, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--visit", type=int, default=0)
    parser.add_argument("--detector", choices=sorted(CROP), action="append", help="default: both; may be repeated")
    parser.add_argument("--integration", choices=("notebook", "updated"), default="notebook")
    parser.add_argument("--save", type=Path, help="folder for <detector>.npy")
    options = parser.parse_args(arguments)
    detectors = list(dict.fromkeys(options.detector or CROP))

    # As in the notebook, the clean frames of both detectors are in memory before either is binned.
    seconds = {}
    cubes = {}
    clean = {}
    observation = (options.split, options.visit)
    for detector in detectors:
        start = time.perf_counter()
        clean[detector] = clean_frames(
            options.dataset, options.planet, detector, *observation, integration=options.integration
        )
        seconds[detector] = time.perf_counter() - start
    for detector in detectors:
        start = time.perf_counter()
        cubes[detector] = bin_frames(clean[detector], options.dataset, options.planet, detector, *observation)
        seconds[detector] += time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        for detector, cube in cubes.items():
            np.save(options.save / f"{detector}.npy", cube)
    record = {
        "rival": "notebook",
        "planet": options.planet,
        "split": options.split,
        "visit": options.visit,
        "integration": options.integration,
        "seconds": round(sum(seconds.values()), 3),
        "seconds_by_detector": {detector: round(value, 3) for detector, value in seconds.items()},
        "peak_rss_bytes": peak,
        "shape": {detector: list(cube.shape) for detector, cube in cubes.items()},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
