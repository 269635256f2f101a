"""The command line's verbs and their flags."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn

from gpucal import __version__
from gpucal.flags import add_settings
from gpucal.rules import FORMATS, PRODUCTS

__all__ = ["WRONG", "parser"]

WRONG = 2
"""Exit code of a request that is itself wrong."""

_TOO = "the new place of folders that OUT was resumed from; those that were not moved are read anyway"

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors here are, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"gpucal: {' '.join(message.split())}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; what it parses has a ``verb`` by name, and that verb's ``parser``.

    Returns
    -------
    ArgumentParser
        Its errors end the process with exit code 2.
    """
    made = _Parser(prog="gpucal", description="Calibrate Ariel Data Challenge observations.")
    made.add_argument("--version", action="version", version=f"gpucal {__version__}")
    verbs = made.add_subparsers(metavar="VERB", required=True)

    verb = _verb(verbs, "calibrate", "calibrate a competition folder")
    verb.add_argument("dataset", metavar="DATASET", type=Path, help="competition folder, of 2024 or 2025")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder; what is finished in it is kept")
    verb.add_argument("--split", choices=["train", "test"], help="only this part of the data set")
    verb.add_argument(
        "--planet", nargs="+", type=_planet, metavar="ID", help="only these planets; after DATASET and OUT"
    )
    verb.add_argument(
        "--backend",
        choices=["auto", "cupy", "numba", "numpy"],
        help="what computes; by default GPUCAL_BACKEND, else the fastest that can run here",
    )
    verb.add_argument("--dtype", choices=["float64", "float32"], help="of the stored signal; float32 by default")
    add_settings(verb)
    verb.add_argument(
        "--product",
        choices=PRODUCTS,
        help="store cubes, by default, or light curves with errors and nothing else",
    )
    verb.add_argument(
        "--variance", action=argparse.BooleanOptionalAction, help="store the variance of cubes too; not by default"
    )
    verb.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads that decode and bin; by default the usable cores (--dask: of each worker)",
    )
    verb.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="peak memory to stay below, such as 900MB or 2GB (--dask: of each worker)",
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="make finished items again, also where they have other settings"
    )
    verb.add_argument("--add", action="store_true", help="add to OUT what is of another data set than its results")
    _add_resume_from(verb, "other results folders, whose items count as done; read only")
    verb.add_argument(
        "--time-limit", type=_seconds, metavar="TIME", help="begin nothing that would end later, such as 8.5h or 90m"
    )
    verb.add_argument("--shard", type=_shard, metavar="I/N", help="only the I-th of N parts of the planets, from 1/N")
    verb.add_argument(
        "--strict", action="store_true", help="check footers, value counts and page checksums of input files too"
    )
    verb.add_argument(
        "--dask",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on a Dask cluster: a scheduler's address, such as tcp://host:8786, or by default a local one",
    )
    verb.add_argument("--json", action="store_true", help="print the summary as JSON")

    verb = _verb(verbs, "verify", "read a results folder again; exit 1 if anything is not as recorded")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder")

    verb = _verb(verbs, "report", "what a results folder holds, and what failed")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder")
    _add_resume_from(verb, _TOO)
    verb.add_argument("--json", action="store_true", help="print it as JSON")

    verb = _verb(verbs, "synth", "write synthetic raw data with the truth beside it")
    verb.add_argument("out", metavar="OUT", type=Path, help="competition folder to write")
    verb.add_argument("--layout", choices=["2024", "2025"], default="2024", help="whose layout; 2024 by default")
    verb.add_argument("--planets", type=int, default=1, metavar="N", help="how many; 1 by default")
    verb.add_argument(
        "--frames", type=int, metavar="N", help="AIRS-CH0 frames, 11250 by default; FGS1 has 12 times as many"
    )
    verb.add_argument("--seed", type=int, default=0, help="of every draw; 0 by default")
    verb.add_argument("--calibration", type=Path, metavar="DIR", help="real calibration frames to use")

    verb = _verb(verbs, "demo", "synth, calibrate, compare with the truth, draw")
    verb.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", default=Path("gpucal-demo"), help="folder; by default gpucal-demo"
    )
    verb.add_argument("--frames", type=int, metavar="N", help="AIRS-CH0 frames, 11250 by default")

    verb = _verb(verbs, "info", "versions, backends, and what a folder holds")
    verb.add_argument("dataset", metavar="DATASET", type=Path, nargs="?", help="competition folder to list")

    verb = _verb(verbs, "selftest", "whether every backend computes what NumPy does; exit 1 if one does not")
    verb.add_argument("--json", action="store_true", help="print the reports as JSON")

    verb = _verb(verbs, "bench", "how long a folder will take on this machine")
    verb.add_argument(
        "dataset", metavar="DATASET", type=Path, nargs="?", help="competition folder; by default synthetic data"
    )
    verb.add_argument("--backend", choices=["auto", "cupy", "numba", "numpy"], help="what computes; as for calibrate")
    verb.add_argument("--workers", type=int, metavar="N", help="threads that decode and bin; as for calibrate")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")

    verb = _verb(verbs, "export", "write a results folder's cubes as stacks, Zarr or FITS")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder")
    verb.add_argument("to", metavar="TO", type=Path, help="folder to write; for zarr one that does not exist")
    verb.add_argument("--format", choices=FORMATS, default="npy", help="npy by default: one array a detector")
    _add_resume_from(verb, _TOO)

    verb = _verb(verbs, "plot", "draw a calibrated planet's light curves")
    verb.add_argument("out", metavar="OUT", type=Path, help="results folder; the picture goes there too")
    verb.add_argument("planet", metavar="PLANET", type=int, help="its id")
    verb.add_argument("--visit", type=int, default=0, metavar="N", help="which observation of it; 0 by default")
    _add_resume_from(verb, _TOO)
    return made


def _verb(verbs: argparse._SubParsersAction[_Parser], name: str, effect: str) -> _Parser:
    verb = verbs.add_parser(name, help=effect, description=f"{effect[0].upper()}{effect[1:]}.")
    verb.set_defaults(verb=name, parser=verb)
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return verb


def _add_resume_from(verb: _Parser, effect: str) -> None:
    verb.add_argument("--resume-from", nargs="+", action="extend", default=[], type=Path, metavar="DIR", help=effect)


def _planet(text: str) -> int:
    """Read a planet's id; what is none stands behind --planet by mistake."""
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no planet; put --planet after DATASET and OUT, ids with spaces")
    return int(text)


def _bytes(text: str) -> int:
    """Read a size such as 900MB, 1.5GB or 800MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 900MB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _seconds(text: str) -> float:
    """Read a time such as 8.5h, 90m, 1h30m or 5400s; a bare number could be hours or seconds, and is none."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it as 8.5h, 90m or 5400s")
    return seconds


def _shard(text: str) -> tuple[int, int]:
    """Read a part such as 1/4."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write 1/4, 2/4, 3/4 or 4/4")
    return int(match[1]), int(match[2])
