"""The command line. Exit 0: all done; 1: some observations failed, the rest are done; 2: the request was wrong."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gpucal import __version__
from gpucal.errors import ConfigError, GpucalError, MissingExtra

if TYPE_CHECKING:
    from gpucal.config import Calibration
    from gpucal.dataset import Dataset

__all__ = ["main"]

DONE, FAILED, WRONG = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default the process's own.

    Returns
    -------
    int
        Exit code.
    """
    arguments = _parser().parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("gpucal: %(message)s"))
    log = logging.getLogger("gpucal")
    log.addHandler(handler)
    try:
        code: int = arguments.verb(arguments)
    except GpucalError as error:
        if arguments.debug:
            raise
        _say(f"gpucal: {error}", sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        _say("gpucal: interrupted; what is finished is kept, run it again to go on", sys.stderr)
        return INTERRUPTED
    finally:
        log.removeHandler(handler)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpucal", description="Calibrate Ariel Data Challenge observations.")
    parser.add_argument("--version", action="version", version=f"gpucal {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = verbs.add_parser("calibrate", parents=[common], help="calibrate a competition folder")
    verb.set_defaults(verb=_calibrate)
    verb.add_argument("dataset", metavar="DATASET", type=Path)
    verb.add_argument("out", metavar="OUT", type=Path)
    verb.add_argument("--split", choices=["train", "test"])
    verb.add_argument("--planet", nargs="+", type=int, metavar="ID")
    verb.add_argument("--backend", choices=["auto", "cupy", "numba", "numpy"])
    verb.add_argument("--dtype", choices=["float64", "float32"], default="float32")
    for step in ("mask", "linearity", "dark", "flat", "binning"):
        verb.add_argument(f"--no-{step}", dest=step, action="store_false", default=None)
    verb.add_argument("--bin", action="append", metavar="DETECTOR=PAIRS", help="such as AIRS-CH0=30 or FGS1=360")
    verb.add_argument("--reduce", choices=["sum", "mean"])
    verb.add_argument("--integration", choices=["notebook", "updated"])
    verb.add_argument("--bad-pixels", choices=["keep", "nan"])
    verb.add_argument("--preset", choices=["ariel2024", "ariel2024-update", "ariel2025"])
    verb.add_argument("--config", type=Path, metavar="FILE.toml")
    verb.add_argument("--variance", action="store_true")
    verb.add_argument(
        "--workers", type=int, metavar="N", help="threads that decode and bin; by default the usable cores"
    )
    verb.add_argument("--memory", type=_bytes, metavar="SIZE", help="peak memory to stay below, such as 900MB or 2GB")
    verb.add_argument("--overwrite", action="store_true")
    verb.add_argument("--json", action="store_true", help="print the summary as JSON")

    verb = verbs.add_parser("synth", parents=[common], help="write synthetic raw data with the truth beside it")
    verb.set_defaults(verb=_synth)
    verb.add_argument("out", metavar="OUT", type=Path)
    verb.add_argument("--layout", choices=["2024", "2025"], default="2024")
    verb.add_argument("--planets", type=int, default=1, metavar="N")
    verb.add_argument(
        "--frames", type=int, metavar="N", help="AIRS-CH0 frames, 11250 by default; FGS1 has 12 times as many"
    )
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--calibration", type=Path, metavar="DIR", help="real calibration frames to use")

    verb = verbs.add_parser("demo", parents=[common], help="synth, calibrate, compare with the truth, draw")
    verb.set_defaults(verb=_demo)
    verb.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path("gpucal-demo"))
    verb.add_argument("--frames", type=int, metavar="N")

    verb = verbs.add_parser("info", parents=[common], help="versions, backends, and what a folder holds")
    verb.set_defaults(verb=_info)
    verb.add_argument("dataset", metavar="DATASET", type=Path, nargs="?")

    verb = verbs.add_parser("plot", parents=[common], help="draw a calibrated planet's light curves")
    verb.set_defaults(verb=_plot)
    verb.add_argument("out", metavar="OUT", type=Path)
    verb.add_argument("planet", metavar="PLANET", type=int)
    verb.add_argument("--visit", type=int, default=0)
    return parser


def _bytes(text: str) -> int:
    """Read a size such as 900MB, 1.5GB or 800MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 900MB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _settings(arguments: argparse.Namespace, dataset: Dataset) -> Calibration:
    """Preset, then TOML, then flags; the last word wins."""
    from gpucal.config import Calibration, read_toml

    toml: dict[str, Any] = read_toml(arguments.config) if arguments.config else {}
    preset = arguments.preset or toml.pop("preset", None) or dataset.layout.preset
    toml.pop("preset", None)
    names = ("mask", "linearity", "dark", "flat", "binning", "reduce", "integration", "bad_pixels")
    flags = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    for text in arguments.bin or []:
        name, _, pairs = text.partition("=")
        if not pairs.isdecimal():
            raise ConfigError(f"--bin {text}: write it as DETECTOR=PAIRS, such as AIRS-CH0=30")
        flags.setdefault("bins", {})[name] = int(pairs)
    return Calibration.preset(preset).replace(**toml).replace(**flags)


def _calibrate(arguments: argparse.Namespace) -> int:
    from gpucal.dataset import open_dataset
    from gpucal.pipeline import run

    dataset = open_dataset(arguments.dataset, arguments.split)
    summary = run(
        dataset,
        arguments.out,
        _settings(arguments, dataset),
        planets=arguments.planet,
        backend=arguments.backend,
        dtype=arguments.dtype,
        variance=arguments.variance,
        workers=arguments.workers,
        memory=arguments.memory,
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty(),
    )
    if arguments.json:
        _say(json.dumps(vars(summary)))
    else:
        counts = f"{summary.done} done, {summary.skipped} already there, {len(summary.failed)} failed"
        _say(f"{counts} in {summary.seconds:.1f} s ({summary.backend}); results in {arguments.out}")
    return FAILED if summary.failed else DONE


def _synth(arguments: argparse.Namespace) -> int:
    from gpucal.synth import synthesize

    planets = synthesize(
        arguments.out,
        layout=arguments.layout,
        planets=arguments.planets,
        frames=arguments.frames,
        seed=arguments.seed,
        calibration=arguments.calibration,
    )
    _say(f"planets {' '.join(map(str, planets))} in {arguments.out}, their truth in {arguments.out / 'truth'}")
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    import time

    import numpy as np

    from gpucal.dataset import open_dataset
    from gpucal.detectors import DETECTORS
    from gpucal.pipeline import calibrate
    from gpucal.plotting import plot_light_curves
    from gpucal.synth import Truth, synthesize

    raw = arguments.out / "raw"
    (planet,) = synthesize(raw, layout="2025", frames=arguments.frames)
    obs = open_dataset(raw)[planet]
    curves, models = [], []
    for name in ("FGS1", "AIRS-CH0"):
        start = time.perf_counter()
        cal = calibrate(obs, name)
        seconds = time.perf_counter() - start
        truth = Truth.load(raw / "truth" / str(planet) / "0" / f"{name}.npz")
        expected, noise = truth.expected(DETECTORS[name], cal.plan.pairs_per_bin)
        sigma = ((cal.signal - expected) / np.sqrt(noise))[:, ~cal.mask]
        _say(
            f"{name}: {cal.signal.shape} in {seconds:.2f} s ({cal.provenance['backend']}), bias {sigma.mean():+.4f} σ, "
            f"scatter {sigma.std():.4f} σ over {sigma.shape[1]} good pixels (expected 0 and 1)"
        )
        curves.append(cal.light_curve())
        models.append(np.where(cal.mask, 0.0, expected).sum(axis=(1, 2)))
    picture = arguments.out / "light-curve.png"
    try:
        plot_light_curves(picture, f"planet {planet}", np.concatenate(curves, axis=1), np.stack(models, axis=1))
    except MissingExtra as error:
        _say(f"no picture: {error}")
    else:
        _say(f"light curve in {picture}")
    return DONE


def _info(arguments: argparse.Namespace) -> int:
    from gpucal.backends import PREFERENCE, choose, load
    from gpucal.errors import BackendUnavailable

    _say(f"gpucal {__version__}, Python {sys.version.split()[0]}")
    for name in PREFERENCE:
        try:
            _say(f"{name}: available, {load(name).runs_on}")
        except BackendUnavailable as error:
            _say(f"{name}: not available: {error}")
    _say(f"auto: {choose().name}")
    if arguments.dataset:
        from gpucal.dataset import open_dataset

        dataset = open_dataset(arguments.dataset)
        _say(
            f"{dataset.path}: {dataset.layout.name} layout, {len(dataset.planets)} planets, {len(dataset)} observations"
        )
        for obs in dataset:
            _say(f"  {obs.split} {obs.planet} visit {obs.visit}")
    return DONE


def _plot(arguments: argparse.Namespace) -> int:
    from gpucal.plotting import plot_light_curves
    from gpucal.results import open_results

    curves = open_results(arguments.out).light_curves_of((arguments.planet, arguments.visit))
    picture = arguments.out / f"{arguments.planet}-{arguments.visit}.png"
    plot_light_curves(picture, f"planet {arguments.planet} visit {arguments.visit}", curves)
    _say(f"light curve in {picture}")
    return DONE


def _say(line: str, stream: TextIO | None = None) -> None:
    (stream or sys.stdout).write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
