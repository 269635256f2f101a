"""The whole pipeline on a synthetic planet: make it, calibrate it, compare it with its truth, and draw it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np

from gpucal.errors import MissingExtra, OutputError
from gpucal.inputs.dataset import is_competition, open_dataset
from gpucal.pipeline.calibrate import calibrate
from gpucal.results.plot import plot_light_curves
from gpucal.results.reader import ORDER
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import Truth, synthesize

__all__ = ["STEPS", "demo"]

STEPS = 2 * len(DETECTORS)
"""Steps of the demo that take a while: a signal file is made, and calibrated, for each detector."""


def demo(out: Path, frames: int | None, show: Callable[[int], object] = lambda ended: None) -> Iterator[str]:
    """Make a synthetic planet, calibrate it, compare it with its truth and draw it, saying line by line what was done.

    Raw data that are there already are used again. ``frames`` are AIRS-CH0 frames, 11250 by default. ``show`` is
    called with the number of `STEPS` that have ended. Raises OutputError if the folder cannot be written, or holds only
    part of the raw data.
    """
    for folder in (real := out.resolve(), *real.parents):
        if is_competition(folder):
            raise OutputError(f"{out}: is inside the competition folder {folder}; give another folder for the demo")
    raw, made = out / "raw", count(1)
    truths = raw / "truth"
    if frames is None and truths.exists():
        obs = next(iter(open_dataset(raw)))
        planet = obs.planet
        needed = [truths / str(planet) / "0" / f"{name}.npz" for name in DETECTORS]
        needed += [obs.signal_path(detector) for detector in DETECTORS.values()]
        if not all(path.exists() for path in needed):
            raise OutputError(f"{raw}: is not complete; remove it and run `gpucal demo` again")
        yield (f"planet {planet} is in {raw} already and is used again")
    else:
        (planet,) = synthesize(raw, layout="2025", frames=frames, progress=lambda _: show(next(made)))
        obs = open_dataset(raw)[planet]
    curves, models = {}, {}
    for ended, name in enumerate(ORDER, STEPS - len(ORDER) + 1):
        start = time.perf_counter()
        cal = calibrate(obs, name)
        seconds = time.perf_counter() - start
        show(ended)
        truth = Truth.load(truths / str(planet) / "0" / f"{name}.npz")
        expected, noise = truth.expected(cal.detector, DETECTORS[name].bin_pairs)
        sigma = ((cal.signal - expected) / np.sqrt(noise))[:, ~cal.mask]
        yield (
            f"{name}: {cal.signal.shape} in {seconds:.2f} s ({cal.provenance['backend']}), bias {sigma.mean():+.4f} σ, "
            f"scatter {sigma.std():.4f} σ over {sigma.shape[1]} good pixels (expected 0 and 1)"
        )
        curves[name] = (cal.time, cal.light_curve())
        models[name] = np.where(cal.mask, 0.0, expected).sum(axis=(1, 2))
    picture = out / "light-curve.png"
    try:
        plot_light_curves(picture, f"planet {planet}", curves, models)
    except MissingExtra as error:
        yield (f"no picture: {error}")
    else:
        yield (f"light curve in {picture}")
