"""Results folders of made-up items, for reports: written as a run writes them, without calibrating anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpucal import DQ, Calibrated, Calibration
from gpucal.pipeline.calibrated import arrays_of
from gpucal.results.records import record_path
from gpucal.results.writer import Store
from gpucal.science.quality import quality
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.ids import ItemId

NAMES = ("AIRS-CH0", "FGS1")
SETTINGS = Calibration.preset("ariel2025").replace(crop={"AIRS-CH0": (100, 124)})


@dataclass(frozen=True)
class Made:
    """How an observation is: times the expected noise, electrons a bin, curves without a value, and what is missing."""

    noise: float = 1.0
    light: float = 1e6
    nan: int = 0
    without: tuple[str, ...] = ()
    error: str = "planet 1 visit 0 FGS1: raw/FGS1_signal.parquet: signal file is missing; copy it again"
    bins: int = 60
    product: str = "cubes"
    settings: Calibration = field(default=SETTINGS)


def item(key: tuple[int, int], name: str, made: Made) -> Calibrated:
    """Draw a product: light in a few rows, or around the middle, a transit, noise, a few flags."""
    rng = np.random.default_rng([*key, NAMES.index(name)])
    detector = made.settings.cropped(DETECTORS[name])
    x, y, t = np.arange(detector.width), np.arange(detector.shape[0]), np.arange(made.bins)
    light = np.exp(-0.5 * ((y - 16.2) / 1.5) ** 2) * (1.0 + 0.5 * np.sin(x / 20.0))[:, None]
    if detector.photometer:
        light = light * np.exp(-0.5 * ((x - 15.5) / 1.5) ** 2)[:, None]
    third = made.bins / 3
    transit = 1.0 - 0.01 * ((t > third) & (t < 2 * third))
    mean = made.light * light * transit[:, None, None]
    variance = mean + 100.0
    signal = mean + made.noise * np.sqrt(variance) * rng.standard_normal(mean.shape)
    dq = np.zeros(light.shape, np.uint8)
    dq[rng.integers(0, len(x), 5), rng.integers(0, 8, 5)] = DQ.HOT
    dq[: made.nan] = DQ.DEAD
    history = {
        "created": "2026-01-02T03:04:05+00:00",
        "version": "0.2.0",
        "backend": "numpy",
        "device": "NumPy",
        "steps": dict.fromkeys(("adc", "dark", "flat"), "COMPLETE"),
        "settings": made.settings.to_dict(),
        "settings_hash": made.settings.content_hash,
    }
    return Calibrated(
        planet=key[0],
        visit=key[1],
        detector=detector,
        signal=signal.astype(np.float32),
        dq=dq,
        time=(t + 0.5) / 8.0,
        wavelength=None if detector.photometer else np.linspace(3.9, 1.9, len(x)),
        provenance=history,
        stored_variance=lambda: variance,
    )


def write(out: Path, observations: Mapping[tuple[int, int], Made], dataset: str = "/home/somebody/raw") -> Path:
    """Write a results folder of them."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out)
    for key, made in observations.items():
        for name in NAMES:
            store.claim(ItemId(*key, name))
            if name in made.without:
                store.fail(ItemId(*key, name), made.error)
                continue
            cal = item(key, name, made)
            with np.errstate(all="ignore"):
                arrays = arrays_of(cal, product=made.product, with_variance=False)
            flux, error = arrays["flux"], arrays["error"]
            numbers = quality(cal.signal, cal.dq, flux, error, photometer=cal.detector.photometer)
            hashed = made.settings.content_hash
            store.commit(cal, arrays, dataset=dataset, settings=hashed, inputs="0", seconds=1.5, quality=numbers)
    store.close()
    (out / "config.toml").write_text(SETTINGS.to_toml())
    return out


def clean(n: int, **how: Any) -> dict[tuple[int, int], Made]:
    """Observations that differ in brightness alone."""
    return {(100 + at, 0): replace(Made(**how), light=1e6 * (1.0 + 0.4 * at % 3.0)) for at in range(n)}


def repeat(out: Path, of: Path, n: int) -> Path:
    """Write a folder of many observations, each a link to one of another folder's, under ids of its own."""
    sources = sorted(path.parent for path in of.glob("*/*/FGS1.json"))
    for at in range(n):
        source, key = sources[at % len(sources)], (4_169_614_766 + at, 0)
        folder = record_path(out, ItemId(*key, "FGS1")).parent
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix == ".json":
                record = json.loads(file.read_text()) | {"planet": key[0], "visit": key[1]}
                (folder / file.name).write_text(json.dumps(record))
            else:
                os.link(file, folder / file.name)
    return out
