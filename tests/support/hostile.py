"""Observations made to break a calibration, in memory or as a folder, and what the reference makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import reference

from gpucal.inputs.calibration_files import Adc, Axis, CalibrationFrames
from gpucal.science.plan import Plan, make_plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector

AIRS, FGS1 = DETECTORS["AIRS-CH0"], DETECTORS["FGS1"]

# The two detectors with frames small enough for every combination of switches; 20 and 15 pixels inside the crop.
SMALL = {
    "AIRS-CH0": replace(AIRS, shape=(4, 9), crop=(2, 7)),
    "FGS1": replace(FGS1, shape=(3, 5), crop=(0, 5)),
}

# One row of each competition: a faint star of 2024, and 2025. Both offsets make small counts negative electrons.
ADCS = {"2024": Adc(gain=1.512345678, offset=-812.345678), "2025": Adc(gain=0.4369, offset=-1000.0)}

BINS = {"AIRS-CH0": 7, "FGS1": 11}
SWITCHES = ("mask", "linearity", "dark", "flat", "binning", "clip_negatives")


def linearity_limits(config: Calibration) -> tuple[float, float, float]:
    """What the reference takes for bad polynomials."""
    return config.linearity_tolerance, config.linearity_range, config.linearity_max_offset


def every_config(**fixed: Any) -> Iterator[Calibration]:
    """Every combination of switches, reduction and integration times."""
    for values in product((True, False), repeat=len(SWITCHES)):
        for reduce, integration in product(("sum", "mean"), ("notebook", "updated")):
            settings = dict(zip(SWITCHES, values, strict=True)) | {"reduce": reduce, "integration": integration}
            yield Calibration(bins=BINS, **(settings | fixed))


@dataclass(frozen=True)
class Observation:
    """Raw counts (frame, rows, width) and calibration frames (rows, width) of one detector, not cropped."""

    detector: Detector
    raw: np.ndarray
    dark: np.ndarray
    dead: np.ndarray
    flat: np.ndarray
    linear_corr: np.ndarray
    read: np.ndarray
    adc: Adc

    @property
    def maps(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("dark", "dead", "flat", "linear_corr", "read")}

    def integration_s(self, config: Calibration) -> np.ndarray:
        """The notebook's integration times, and its update's."""
        seconds = np.resize([0.1, 4.5] if self.detector.integration_column else [0.1, 0.1], len(self.raw))
        seconds[1::2] += 0.1 if config.integration == "updated" else 0.0
        return seconds

    def reference(self, config: Calibration, bin_pairs: int | None = None) -> reference.Reference:
        """What the literal loops make of it; bins in seconds have to be told in pairs."""
        return reference.calibrate(
            self.raw,
            dark=self.dark,
            dead=self.dead,
            flat=self.flat,
            linear_corr=self.linear_corr,
            gain=self.adc.gain,
            offset=self.adc.offset,
            dt=self.integration_s(config),
            bin_pairs=bin_pairs or config.bins[self.detector.name],
            crop=self.detector.crop,
            mask=config.mask,
            linearity=config.linearity,
            dark_on=config.dark,
            flat_on=config.flat,
            binning=config.binning,
            reduce=config.reduce,
            clip_negatives=config.clip_negatives,
            hot_sigma=config.hot_sigma,
            hot_iterations=config.hot_iterations,
            multiply=config.gain == "multiply",
            hot_clip=config.hot_clip,
            flat_first=config.flat_order == "before-cds",
            benign=(config.flat_minimum, *linearity_limits(config)) if config.bad_coefficients == "benign" else None,
            drop_odd=config.odd_frames == "drop",
            drop_last_pairs=config.drop_last_pairs,
            cosmic_rays=config.cosmic_rays,
        )

    def plan(self, config: Calibration) -> Plan:
        """The package's plan for it; what is not named is as in 2024, as in `integration_s`."""
        cut = (..., slice(*self.detector.crop))
        maps = {name: values[cut] for name, values in self.maps.items()}
        frames = CalibrationFrames(**maps, whole_dark=self.dark, digest="")
        seconds = self.integration_s(Calibration()) if self.detector.integration_column else None
        axis = Axis(np.arange(len(self.raw)) / 1000.0, None, seconds)
        return make_plan(self.detector, config.filled("ariel2024"), frames, self.adc, axis, len(self.raw))

    def counts(self) -> np.ndarray:
        """Raw counts of the pixels inside the crop, (pixel, frame), as the reader gives them."""
        first, last = self.detector.crop
        cut = self.raw[:, :, first:last]
        return np.ascontiguousarray(cut.reshape(len(cut), -1).T)

    def cube(self, pixels: np.ndarray) -> np.ndarray:
        """(pixel, bin) as (bin, wavelength, spatial)."""
        return pixels.reshape(self.detector.shape[0], self.detector.width, -1).transpose(2, 1, 0)


def observe(detector: Detector, n_frames: int, adc: Adc, seed: int = 0) -> Observation:
    """Draw an observation with something wrong in most of its pixels.

    Dead, hot and cold pixels; flats of zero, below zero, NaN and infinite; linearity constants of ±1e3, terms that turn
    the polynomial over, and coefficients of NaN and infinity; counts that are all 0, all 65535 and anything else.
    """
    rng = np.random.default_rng(seed)
    rows, width = detector.shape
    shape, n = (rows, width), rows * width
    dark = rng.normal(0.007, 0.0014, n)
    dead = rng.random(n) < 0.15
    flat = rng.normal(1.0, 0.02, n)
    linear_corr = np.stack(
        [
            rng.normal(centre, scatter, n)
            for centre, scatter in (
                (0.1, 0.1),
                (1, 5e-3),
                (0, 5e-8),
                (1.2e-11, 1e-12),
                (-6e-17, 8e-18),
                (1.3e-22, 2e-23),
            )
        ]
    )
    raw = rng.integers(400, 30_000, (n_frames, n)).astype(np.uint16)
    inside = iter(rng.permutation(detector.columns()))
    for wrong in (0.0, -0.02, -1.0, np.nan, np.inf, 1e-300):
        flat[next(inside, 0)] = wrong
    for wrong in (8.9, -0.9, 900.0):
        dark[next(inside, 0)] = wrong
    outliers = ((0, 1086.0), (0, -1181.0), (0, np.nan), (0, -np.inf), (1, 0.2), (2, 1e-4), (3, np.nan), (5, np.inf))
    for power, wrong in (*outliers, (4, 1e-9)):
        linear_corr[power, next(inside, 0)] = wrong
    raw[:, rng.integers(n)] = 0
    raw[:, rng.integers(n)] = 65_535
    raw[0, rng.integers(n)] = raw[-1, rng.integers(n)] = 65_535
    raw[:, rng.random(n) < 0.2] //= 40
    read = rng.gamma(4.0, 4.0, n)
    maps = [values.reshape(shape) for values in (dark, dead, flat)]
    return Observation(
        detector, raw.reshape(-1, *shape), *maps, linear_corr.reshape(6, *shape), read.reshape(shape), adc
    )


def write(observations: list[Observation], folder: Path, planet: int, layout: str = "2024", visit: int = 0) -> None:
    """Write one visit of a planet into a competition folder, beside the planets that are there already."""
    suffix = "" if layout == "2024" else f"_{visit}"
    home = folder / "train" / str(planet)
    home.mkdir(parents=True, exist_ok=True)
    adc = {}
    for obs in observations:
        name = obs.detector.name
        write_table(home / f"{name}_signal{suffix}.parquet", obs.raw.reshape(len(obs.raw), -1))
        calibration = home / f"{name}_calibration{suffix}"
        calibration.mkdir()
        for kind, values in obs.maps.items():
            write_table(calibration / f"{kind}.parquet", values.reshape(-1, values.shape[-1]))
        adc |= {f"{name}_adc_offset": obs.adc.offset, f"{name}_adc_gain": obs.adc.gain}
    if layout == "2024":
        adc = {"planet_id": planet} | adc
    table = folder / ("train_adc_info.csv" if layout == "2024" else "adc_info.csv")
    lines = table.read_text().splitlines() if table.exists() and layout == "2024" else [",".join(adc)]
    table.write_text("\n".join([*lines, ",".join(map(repr, adc.values()))]) + "\n")
    if not (folder / "axis_info.parquet").exists():
        write_axes(folder / "axis_info.parquet")


def write_axes(path: Path) -> None:
    """Write axis_info.parquet at its full length, the shorter columns padded with NaN."""
    axes = {
        "AIRS-CH0-axis0-h": np.cumsum(np.resize([0.1, 4.7], AIRS.frames)) / 3600,
        "AIRS-CH0-axis2-um": np.linspace(4.08, 1.63, AIRS.shape[1]),
        "AIRS-CH0-integration_time": np.resize([0.1, 4.5], AIRS.frames),
        "FGS1-axis0-h": np.cumsum(np.resize([0.1, 0.3], FGS1.frames)) / 3600,
    }
    padded = {name: np.pad(a, (0, FGS1.frames - a.size), constant_values=np.nan) for name, a in axes.items()}
    pq.write_table(pa.table(padded), path)


def write_table(path: Path, values: np.ndarray, **options: Any) -> None:
    """Write (row, column) as the publishers do: zstd, columns column_0…"""
    columns = {f"column_{k}": column for k, column in enumerate(np.ascontiguousarray(values.T))}
    pq.write_table(pa.table(columns), path, **({"compression": "zstd", "write_statistics": False} | options))
