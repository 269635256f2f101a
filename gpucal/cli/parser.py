"""The command line's verbs and their flags."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import NoReturn

from gpucal._version import __version__
from gpucal.backends import PREFERENCE
from gpucal.hints import did_you_mean, joined, near
from gpucal.results.formats import ALL_FORMATS, FORMATS
from gpucal.settings.options import add_settings
from gpucal.settings.rules import PRODUCTS
from gpucal.settings.values import duration, location, one_of, part, planet, planets, size, whole

__all__ = ["WRONG", "parsed", "verbs"]

WRONG = 2
"""Exit code of a request that is itself wrong."""

_BACKENDS = ("auto", *PREFERENCE)

_TOO = "new path of a folder that OUT was resumed from, if it was moved"

# Messages of argparse, and their rewording.
_REWORDED = (
    (r"argument (\S+): expected .*", r"\1 needs a value"),
    (r"argument (.+?): ignored explicit argument '(.*)'", r"\1 takes no value"),
    (r"argument (.+?): (.*)", r"\1: \2"),
)

# How similar a flag of this verb must be to a flag of another verb to be suggested instead of it.
_SURE = 0.8

# A word that argparse reads as a flag, or that was meant as one, with a typographic dash.
_FLAG = re.compile(r"[-–—]+[A-Za-z][^\s=]*")


class _Parser(argparse.ArgumentParser):
    """A parser that prints errors as one line, without the usage in front, and accepts no abbreviated flags."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        if lacking := re.fullmatch("the following arguments are required: (.*)", line):
            names = lacking[1].split(", ")
            line = (
                f"{joined(names, 'and')} {'are' if len(names) > 1 else 'is'} missing; write `{' '.join(self.synopsis)}`"
            )
        for form, better in _REWORDED:
            line = re.sub(f"^{form}$", better, line)
        more = "" if line.endswith("?") else f"; see `{self.prog} --help`"
        self.exit(WRONG, f"gpucal: {line}{more}\n")

    @property
    def flags(self) -> Mapping[str, argparse.Action]:
        """The words with a leading dash that this parser accepts."""
        return self._option_string_actions

    @property
    def synopsis(self) -> list[str]:
        """The words of a command without flags."""
        names = [(action.metavar, action.nargs) for action in self._actions if not action.option_strings]
        return [self.prog, *(f"[{name}]" if nargs == "?" else str(name) for name, nargs in names)]


class _Planets(argparse.Action):
    """Adds the planets of one word or several to those named before."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: object, option: object = None) -> None:
        assert isinstance(values, list)  # one list per word
        before = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*before, *(planet for some in values for planet in some)])


class _Versions(argparse.Action):
    """Shows versions, backends and variables, and ends the process."""

    def __call__(self, parser: argparse.ArgumentParser, *of_the_word: object) -> None:
        from gpucal.backends.versions import show_versions

        show_versions()
        parser.exit()


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the result has a ``verb``. Help, version and errors (exit code 2) end the process."""
    made, verbs = _parsers()
    words = [*argv]
    if words == ["help", "settings"]:
        if sys.stdout is not None:  # closed
            sys.stdout.write(_explained_settings())
        made.exit()
    if words[:1] == ["help"]:
        words = [*(word for word in words[1:2] if word != "help"), "--help"]
    at = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
    if not words:
        made.print_help()
        made.exit()
    _check_flags(made, words[:at], made, verbs)
    if at == len(words):
        made.parse_args(words)
        made.error("VERB is missing")
    if words[at] not in verbs:
        folder = f"; to calibrate it, write `gpucal calibrate {words[at]} OUT`" if Path(words[at]).is_dir() else ""
        hint = did_you_mean(near(words[at], [*verbs, "help", *made.flags]))
        made.error(f"`gpucal` has no verb {words[at]!r}{hint or folder}")
    verb = verbs[words[at]]
    rest = _with_negatives(words[at + 1 :], verb)
    _check_flags(verb, rest, made, verbs)
    arguments, unknown = made.parse_known_args([*words[: at + 1], *rest])
    if unknown:
        verb.error(f"too many arguments: {' '.join(unknown)}; write `{' '.join(verb.synopsis)}`")
    return arguments


def _explained_settings() -> str:
    from gpucal.settings.calibration import Calibration

    return f"{cleandoc(Calibration.__doc__ or '')}\n"


def _check_flags(parser: _Parser, words: Sequence[str], top: _Parser, verbs: Mapping[str, _Parser]) -> None:
    """Refuse unknown flags first, as they may be the cause of other errors that argparse would report."""
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        if not _FLAG.fullmatch(name) or name in parser.flags:
            continue
        others = [f"`{one.prog}`" for one in (top, *verbs.values()) if name in one.flags]
        # Prefer a flag of another verb, unless a flag of this verb is as similar.
        found = [flag for flag in near(name, parser.flags, _SURE) if flag[:3] == name[:3] or not others]
        found = found or ([] if others else near(name, parser.flags))
        has = f"{joined(others, 'and')} {'has' if len(others) == 1 else 'have'} it" if others else ""
        otherwise = "write it after the verb" if others and parser is top else has
        parser.error(f"`{parser.prog}` has no flag {name}{did_you_mean(found, otherwise)}")


def _with_negatives(words: Sequence[str], parser: _Parser) -> list[str]:
    """Join negative values to their flags, as argparse reads -2GB as a flag."""
    merged: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and merged and merged[-1] in parser.flags:
            merged[-1] += f"={word}"
        else:
            merged.append(word)
    return merged


def _parsers() -> tuple[_Parser, Mapping[str, _Parser]]:
    """Make the parser of the command line, and list the parsers of its verbs."""
    about = "Calibrate Ariel Data Challenge observations."
    made = _Parser(
        prog="gpucal",
        description=about,
        epilog="`gpucal help VERB` explains a verb, `gpucal help settings` every setting.",
    )
    made.add_argument("-V", "--version", action="version", version=f"gpucal {__version__}")
    made.add_argument(
        "--show-versions", action=_Versions, nargs=0, help="show versions, backends and variables, for a report"
    )
    verbs = made.add_subparsers(metavar="VERB", required=True)

    verb = _verb(verbs, "calibrate", "calibrate a competition folder")
    verb.add_argument("dataset", metavar="DATASET", type=location, help="competition folder, of 2024 or 2025")
    verb.add_argument("out", metavar="OUT", type=location, help="results folder; finished items in it are kept")
    _add_run(verb)
    verb.add_argument(
        "--dry-run", action="store_true", help="calibrate nothing: say what would fail and what it would need"
    )
    verb.add_argument(
        "--dask",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on a Dask cluster: a scheduler's address, such as tcp://host:8786, or by default a local one",
    )
    verb.add_argument("--report", action="store_true", help="write the quality report too, as OUT/report.html")
    verb.add_argument("--json", action="store_true", help="print the summary as JSON")

    verb = _verb(verbs, "check", "say what would fail in a run and what it would need; exit 1 if something would fail")
    verb.add_argument("dataset", metavar="DATASET", type=location, help="competition folder, of 2024 or 2025")
    verb.add_argument("out", metavar="OUT", type=location, nargs="?", help="results folder of the run, if there is one")
    _add_run(verb)
    verb.add_argument("--deep", action="store_true", help="open every file, as the run will: slower, and misses less")
    _add_all(verb)
    verb.add_argument("--json", action="store_true", help="print everything found as JSON")

    verb = _verb(verbs, "verify", "compare a results folder with its records; exit 1 if anything differs")
    verb.add_argument("out", metavar="OUT", type=location, help="results folder")
    _add_all(verb)

    verb = _verb(verbs, "report", "show what is in a results folder: its quality, what needs a look, what failed")
    verb.add_argument("out", metavar="OUT", type=location, help="results folder")
    verb.add_argument(
        "--html",
        nargs="?",
        const=True,
        type=location,
        metavar="FILE",
        help="write it as a page with figures, that needs no network; by default OUT/report.html",
    )
    verb.add_argument(
        "--paths", action="store_true", help="show whole paths in the page; by default only names of folders and files"
    )
    _add_all(verb)
    _add_resume_from(verb, _TOO)
    verb.add_argument("--json", action="store_true", help="print a list of objects as JSON, an item each")

    verb = _verb(verbs, "synth", "write synthetic raw data with the truth beside it")
    verb.add_argument("out", metavar="OUT", type=location, help="competition folder to write")
    verb.add_argument(
        "--layout",
        type=one_of(["2024", "2025"]),
        choices=["2024", "2025"],
        default="2024",
        help="year of the layout; 2024 by default",
    )
    verb.add_argument("--planets", type=whole, default=1, metavar="N", help="number of planets; 1 by default")
    verb.add_argument(
        "--frames", type=whole, metavar="N", help="AIRS-CH0 frames, 11250 by default; FGS1 has 12 times as many"
    )
    verb.add_argument("--seed", type=whole, default=0, help="seed of every draw; 0 by default")
    verb.add_argument("--calibration", type=location, metavar="DIR", help="real calibration frames to use")
    verb.add_argument(
        "--jitter", action="store_true", help="move the image as real frames show it; the truth holds the pointing"
    )

    verb = _verb(verbs, "demo", "make a synthetic planet, calibrate it, compare it with its truth, draw it")
    verb.add_argument(
        "out",
        metavar="OUT",
        type=location,
        nargs="?",
        default=Path("gpucal-demo"),
        help="folder; by default gpucal-demo",
    )
    verb.add_argument("--frames", type=whole, metavar="N", help="AIRS-CH0 frames, 11250 by default")

    verb = _verb(verbs, "info", "show versions, backends, and what a folder holds")
    verb.add_argument("dataset", metavar="DATASET", type=location, nargs="?", help="competition folder to list")
    verb.add_argument("--all", action="store_true", help="list every observation, even if there are many")
    verb.add_argument("--json", action="store_true", help="print it as JSON")

    verb = _verb(verbs, "selftest", "check that every backend agrees with NumPy; exit 1 if one does not")
    verb.add_argument("--json", action="store_true", help="print the reports as JSON")

    verb = _verb(verbs, "bench", "predict how long a folder will take on this machine")
    verb.add_argument(
        "dataset", metavar="DATASET", type=location, nargs="?", help="competition folder; by default synthetic data"
    )
    verb.add_argument(
        "--backend", type=one_of(_BACKENDS), choices=_BACKENDS, help="backend that computes; as for calibrate"
    )
    verb.add_argument("--workers", type=whole, metavar="N", help="threads that decode and bin; as for calibrate")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")

    verb = _verb(verbs, "export", "write a results folder's cubes or light curves in another format")
    verb.add_argument("out", metavar="OUT", type=location, help="results folder")
    verb.add_argument("to", metavar="TO", type=location, help="folder to write; for zarr one that does not exist")
    verb.add_argument(
        "--product",
        type=one_of(FORMATS),
        choices=[*FORMATS],
        default="cubes",
        help="what to write; cubes by default",
    )
    verb.add_argument(
        "--format",
        type=one_of(ALL_FORMATS),
        choices=ALL_FORMATS,
        default="npy",
        help="npy by default: NumPy stacks; zarr for cubes alone; parquet, ecsv and csv for light curves alone",
    )
    _add_resume_from(verb, _TOO)

    verb = _verb(verbs, "plot", "draw all calibrated observations in one picture, or one observation in detail")
    verb.add_argument("out", metavar="OUT", type=location, help="results folder")
    verb.add_argument(
        "planet", metavar="PLANET", type=planet, nargs="?", help="draw this planet; without it, all in one picture"
    )
    verb.add_argument("--visit", type=whole, metavar="N", help="number of the planet's observation; 0 by default")
    verb.add_argument("--all", action="store_true", help="draw every observation, a picture each")
    verb.add_argument("--out", dest="to", type=location, metavar="DIR", help="folder of the pictures; by default OUT")
    _add_resume_from(verb, _TOO)
    return made, verbs.choices


def _add_run(verb: _Parser) -> None:
    """Add the flags of a run, which ``gpucal check`` has too."""
    verb.add_argument(
        "--split",
        type=one_of(["train", "test"]),
        choices=["train", "test"],
        help="calibrate only this part of the data set",
    )
    verb.add_argument(
        "--planet",
        nargs="+",
        action=_Planets,
        type=planets,
        metavar="ID",
        help="calibrate only these planets; write it after DATASET and OUT, once or more often",
    )
    verb.add_argument(
        "--backend",
        type=one_of(_BACKENDS),
        choices=_BACKENDS,
        help="backend that computes; by default GPUCAL_BACKEND, else the fastest that can run here",
    )
    verb.add_argument(
        "--dtype",
        type=one_of(["float64", "float32"]),
        choices=["float64", "float32"],
        help="type of the stored signal; float32 by default",
    )
    add_settings(verb)
    verb.add_argument(
        "--product",
        type=one_of(PRODUCTS),
        choices=PRODUCTS,
        help="store cubes (the default), or only light curves with errors",
    )
    verb.add_argument(
        "--variance", action=argparse.BooleanOptionalAction, help="store the variance of cubes too; not by default"
    )
    verb.add_argument(
        "--workers",
        type=whole,
        metavar="N",
        help="threads that decode and bin; by default the usable cores (--dask: of each worker)",
    )
    verb.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="peak memory to stay below, such as 900MB or 2GB (--dask: of each worker)",
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="calibrate finished items again, also if their settings differ"
    )
    verb.add_argument("--add", action="store_true", help="let OUT hold results of more than one data set")
    _add_resume_from(verb, "other results folders, whose items count as done; read only")
    verb.add_argument(
        "--time-limit",
        type=duration,
        metavar="TIME",
        help="time for the whole run, such as 8.5h or 90m; items that would end later are not begun",
    )
    verb.add_argument(
        "--shard", type=part, metavar="I/N", help="calibrate only the I-th of N parts of the planets, from 1/N"
    )
    verb.add_argument(
        "--strict", action="store_true", help="check footers, value counts and page checksums of input files too"
    )


def _verb(verbs: argparse._SubParsersAction[_Parser], name: str, effect: str) -> _Parser:
    verb = verbs.add_parser(name, help=effect, description=f"{effect[0].upper()}{effect[1:]}.")
    verb.set_defaults(verb=name)
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    loud = verb.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print errors alone, and JSON if that is asked for")
    loud.add_argument("--verbose", action="store_true", help="print the lines of the log too, one an item")
    return verb


def _add_all(verb: _Parser) -> None:
    verb.add_argument("--all", action="store_true", help="show every line, even if many are alike")


def _add_resume_from(verb: _Parser, effect: str) -> None:
    verb.add_argument(
        "--resume-from", nargs="+", action="extend", default=[], type=location, metavar="DIR", help=effect
    )


def verbs() -> Mapping[str, _Parser]:
    """Return the parser of each verb."""
    return _parsers()[1]
