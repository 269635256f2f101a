"""The command line. Exit 0: all done; 1: some observations failed, the rest are done; 2: the request was wrong."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from gpucal import __version__
from gpucal.errors import GpucalError, MissingExtra, OutputError
from gpucal.flags import add_settings, settings_from
from gpucal.rules import FORMATS, PRODUCTS

__all__ = ["console", "main"]

DONE, FAILED, WRONG = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors here are, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"gpucal: {' '.join(message.split())}; see `{self.prog} --help`\n")


def console() -> NoReturn:
    """Run the command line and end the process, without the garbage collector's looks at what libraries import.

    Numba and Polars bring some 500,000 objects. Collecting them while they are imported, and three times at the end of
    the process, took 0.1 s and 0.4 s of the 2.4 s that one planet took.
    """
    gc.set_threshold(200_000)
    code = main()
    gc.freeze()
    sys.exit(code)


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
    # Not parse_args(), which would name the help of `gpucal` and not the verb's that an unknown argument was given to.
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("gpucal: %(message)s"))
    log = logging.getLogger("gpucal")
    log.addHandler(handler)
    try:
        code: int = arguments.verb(arguments)
    except GpucalError as error:
        _say(traceback.format_exc().rstrip() if arguments.debug else f"gpucal: {error}", sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        _say("gpucal: interrupted; what is finished is kept, run it again to go on", sys.stderr)
        return INTERRUPTED
    finally:
        log.removeHandler(handler)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gpucal", description="Calibrate Ariel Data Challenge observations.")
    parser.add_argument("--version", action="version", version=f"gpucal {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _verb(verbs, "calibrate", _calibrate, "calibrate a competition folder")
    verb.add_argument("dataset", metavar="DATASET", type=Path, help="competition folder, of 2024 or 2025")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder; what is finished in it is kept")
    verb.add_argument("--split", choices=["train", "test"], help="only this part of the data set")
    verb.add_argument("--planet", nargs="+", type=int, metavar="ID", help="only these planets; after DATASET and OUT")
    verb.add_argument(
        "--backend",
        choices=["auto", "cupy", "numba", "numpy"],
        help="what computes; by default GPUCAL_BACKEND, else the fastest that can run here",
    )
    verb.add_argument(
        "--dtype", choices=["float64", "float32"], default="float32", help="of the stored signal; float32 by default"
    )
    add_settings(verb)
    verb.add_argument(
        "--product",
        choices=PRODUCTS,
        default="cubes",
        help="store cubes, by default, or light curves with errors and nothing else",
    )
    verb.add_argument("--variance", action="store_true", help="store the variance of cubes too")
    verb.add_argument(
        "--workers", type=int, metavar="N", help="threads that decode and bin; by default the usable cores"
    )
    verb.add_argument("--memory", type=_bytes, metavar="SIZE", help="peak memory to stay below, such as 900MB or 2GB")
    verb.add_argument("--overwrite", action="store_true", help="do finished items again")
    verb.add_argument("--json", action="store_true", help="print the summary as JSON")

    verb = _verb(verbs, "synth", _synth, "write synthetic raw data with the truth beside it")
    verb.add_argument("out", metavar="OUT", type=Path, help="competition folder to write")
    verb.add_argument("--layout", choices=["2024", "2025"], default="2024", help="whose layout; 2024 by default")
    verb.add_argument("--planets", type=int, default=1, metavar="N", help="how many; 1 by default")
    verb.add_argument(
        "--frames", type=int, metavar="N", help="AIRS-CH0 frames, 11250 by default; FGS1 has 12 times as many"
    )
    verb.add_argument("--seed", type=int, default=0, help="of every draw; 0 by default")
    verb.add_argument("--calibration", type=Path, metavar="DIR", help="real calibration frames to use")

    verb = _verb(verbs, "demo", _demo, "synth, calibrate, compare with the truth, draw")
    verb.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", default=Path("gpucal-demo"), help="folder; by default gpucal-demo"
    )
    verb.add_argument("--frames", type=int, metavar="N", help="AIRS-CH0 frames, 11250 by default")

    verb = _verb(verbs, "info", _info, "versions, backends, and what a folder holds")
    verb.add_argument("dataset", metavar="DATASET", type=Path, nargs="?", help="competition folder to list")

    verb = _verb(verbs, "selftest", _selftest, "whether every backend computes what NumPy does; exit 1 if one does not")
    verb.add_argument("--json", action="store_true", help="print the reports as JSON")

    verb = _verb(verbs, "bench", _bench, "how long a folder will take on this machine")
    verb.add_argument(
        "dataset", metavar="DATASET", type=Path, nargs="?", help="competition folder; by default synthetic data"
    )
    verb.add_argument("--backend", choices=["auto", "cupy", "numba", "numpy"], help="what computes; as for calibrate")
    verb.add_argument("--workers", type=int, metavar="N", help="threads that decode and bin; as for calibrate")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")

    verb = _verb(verbs, "export", _export, "write a results folder's cubes as stacks, Zarr or FITS")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder")
    verb.add_argument("to", metavar="TO", type=Path, help="folder to write; for zarr one that does not exist")
    verb.add_argument("--format", choices=FORMATS, default="npy", help="npy by default: one array a detector")

    verb = _verb(verbs, "plot", _plot, "draw a calibrated planet's light curves")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder; the picture goes there too")
    verb.add_argument("planet", metavar="PLANET", type=int, help="its id")
    verb.add_argument("--visit", type=int, default=0, metavar="N", help="which observation of it; 0 by default")
    return parser


def _verb(
    verbs: argparse._SubParsersAction[_Parser], name: str, action: Callable[[argparse.Namespace], int], effect: str
) -> _Parser:
    verb = verbs.add_parser(name, help=effect, description=f"{effect[0].upper()}{effect[1:]}.")
    verb.set_defaults(verb=action, parser=verb)
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return verb


def _bytes(text: str) -> int:
    """Read a size such as 900MB, 1.5GB or 800MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 900MB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _calibrate(arguments: argparse.Namespace) -> int:
    from gpucal.dataset import open_dataset
    from gpucal.pipeline import run

    dataset = open_dataset(arguments.dataset, arguments.split)
    summary = run(
        dataset,
        arguments.out,
        settings_from(arguments, dataset.layout.preset),
        planets=arguments.planet,
        backend=arguments.backend,
        dtype=arguments.dtype,
        product=arguments.product,
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
    truths = raw / "truth"
    if arguments.frames is None and truths.exists():
        obs = next(iter(open_dataset(raw)))
        planet = obs.planet
        needed = [truths / str(planet) / "0" / f"{name}.npz" for name in DETECTORS]
        needed += [obs.signal_path(detector) for detector in DETECTORS.values()]
        if not all(path.exists() for path in needed):
            raise OutputError(f"{raw}: is not complete; remove it and run `gpucal demo` again")
        _say(f"planet {planet} is in {raw} already and is used again")
    else:
        (planet,) = synthesize(raw, layout="2025", frames=arguments.frames)
        obs = open_dataset(raw)[planet]
    curves, models = [], []
    for name in ("FGS1", "AIRS-CH0"):
        start = time.perf_counter()
        cal = calibrate(obs, name)
        seconds = time.perf_counter() - start
        truth = Truth.load(truths / str(planet) / "0" / f"{name}.npz")
        expected, noise = truth.expected(cal.detector, DETECTORS[name].bin_pairs)
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


def _selftest(arguments: argparse.Namespace) -> int:
    from gpucal.selftest import PROVED, selftest

    reports = selftest()
    if arguments.json:
        python = sys.version.split()[0]
        facts = [vars(report) | ({"parity": "inf"} if report.parity == math.inf else {}) for report in reports]
        _say(json.dumps({"gpucal": __version__, "python": python, "backends": facts}))
    else:
        for report in reports:
            if report.parity is None:
                _say(f"{report.backend}: {'WRONG' if report.wrong else 'not available'}: {report.unavailable}")
                continue
            times = ", ".join(f"{part} {milliseconds:.2f} ms" for part, milliseconds in report.milliseconds.items())
            verdict = "WRONG NUMBERS" if report.wrong else "agrees with NumPy"
            worst = f"{report.parity:.2g} of what rounding explains"
            _say(f"{report.backend}: {verdict} ({worst}); {report.runs_on}; {times}")
        _say(PROVED)
    return FAILED if any(report.wrong for report in reports) else DONE


def _bench(arguments: argparse.Namespace) -> int:
    from gpucal.bench import COMPETITIONS, bench, bench_synthetic
    from gpucal.dataset import open_dataset

    dataset = open_dataset(arguments.dataset) if arguments.dataset else None
    how = {"backend": arguments.backend, "workers": arguments.workers}
    figures = bench(dataset, **how) if dataset else bench_synthetic(**how)
    if arguments.json:
        _say(json.dumps(vars(figures)))
        return DONE
    _say(
        f"{figures.seconds:.2f} s an observation ({figures.backend}, {figures.observations} timed), "
        f"{3600 / figures.seconds:,.0f} an hour, {figures.megabytes / figures.seconds:,.0f} MB/s of Parquet"
    )
    split = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in figures.stages.items())
    _say(f"seconds summed over threads, which overlap: {split}")
    folders = {str(dataset.path): len(dataset)} if dataset else COMPETITIONS
    for name, count in folders.items():
        _say(f"{name}: {count} observations in about {figures.predicted_s(count) / 60:.0f} minutes")
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from gpucal.export import export
    from gpucal.results import open_results

    results = open_results(arguments.out)
    written = export(results, arguments.to, arguments.format)
    _say(f"{len(results)} observations in {', '.join(map(str, written[:4]))}{', ...' if len(written) > 4 else ''}")
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
    console()
