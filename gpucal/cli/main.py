"""The command line.

Exit codes: 0, all done; 1, some items failed, files differ from their records, or the output cannot be written; 2, the
request was wrong; 3, the time limit came before the end; 128 and a signal's number, that signal ended it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from gpucal._version import __version__
from gpucal.cli.grouping import Kinds
from gpucal.cli.parser import WRONG, parsed
from gpucal.errors import ConfigError, GpucalError, OutputError, OutputLost
from gpucal.hints import blocking_file, did_you_mean, near_path
from gpucal.inputs.files import may_be_there
from gpucal.runs.interrupts import SIGNALLED, Interrupts
from gpucal.settings.ids import ItemId
from gpucal.settings.options import output_from, settings_from

if TYPE_CHECKING:
    from gpucal.inputs.dataset import Dataset, Observation
    from gpucal.results.reader import Results
    from gpucal.results.report import Report
    from gpucal.runs.progress import Progress
    from gpucal.runs.request import Request
    from gpucal.runs.summary import Summary

__all__ = ["console", "main"]

DONE, FAILED, LATE = 0, 1, 3

# Observations of a split that `gpucal info` lists, at most, and those that it lists of more.
_LISTED, _FIRST = 20, 5


# What to do about the rest where a run is to overwrite: an item that has these settings and inputs counts as done.
_LEFT = "the same command makes all again; without --overwrite, it makes what has other settings or inputs"


class _OutputIsFull(Exception):
    """The standard output cannot be written, for another reason than that its reader has ended."""


def console() -> NoReturn:
    """Run the command line and end the process, with fewer passes of the garbage collector.

    Libraries bring some 500,000 objects. Collecting them during their import took 0.1 s, and collecting them three
    times at the end of the process took 0.4 s, of the 2.4 s that one planet took.
    """
    gc.set_threshold(200_000)
    _open_what_is_closed()
    code = main()
    gc.freeze()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit code.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            arguments = parsed(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # help, which ends the process
    except BrokenPipeError:
        return _reader_has_ended()
    except OSError as error:
        return _output_is_full(error)
    arguments.command = shlex.join(["gpucal", *words])
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("gpucal: %(message)s"))
    log, level = logging.getLogger("gpucal"), logging.getLogger("gpucal").level
    log.addHandler(handler)
    if arguments.verbose:
        log.setLevel(logging.INFO)
    handler.setLevel(logging.ERROR if arguments.quiet else logging.NOTSET)
    arguments.interrupts, arguments.terminal = Interrupts(), handler
    try:
        with arguments.interrupts:
            _check_folders(arguments)
            with _hushed(arguments):
                code = _VERBS[arguments.verb](arguments)
    except GpucalError as error:
        _complain(traceback.format_exc().rstrip() if arguments.debug else f"gpucal: {error}")
        return WRONG
    except BrokenPipeError:
        return _reader_has_ended()
    except _OutputIsFull as error:
        return _output_is_full(error)
    except KeyboardInterrupt:
        number = arguments.interrupts.came or signal.SIGINT
        _complain(f"gpucal: ended by {signal.Signals(number).name}")
        return SIGNALLED + number
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return code


@contextmanager
def _hushed(arguments: argparse.Namespace) -> Iterator[None]:
    """Print nothing on the standard output with ``--quiet``, but JSON."""
    if not arguments.quiet or vars(arguments).get("json"):
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _shown(arguments: argparse.Namespace, total: int, unit: str) -> AbstractContextManager[Progress]:
    """Show a bar, or a line a minute, but not with ``--quiet``."""
    from gpucal.runs.progress import shown

    return shown(total, unit, not arguments.quiet)


def _check_folders(arguments: argparse.Namespace) -> None:
    """Refuse a file in place of a folder, and an input folder that does not exist or holds something else."""
    given = vars(arguments)
    named = [("OUT", given.get("out")), ("TO", given.get("to"))]
    named += [("--resume-from", folder) for folder in given.get("resume_from", [])]
    for name, folder in named:
        if folder and (file := blocking_file(folder)):
            raise OutputError(f"{file}: is a file; {name} must be a folder")
    for folder in given.get("resume_from", []):
        if not may_be_there(folder):
            hint = did_you_mean(near_path(folder), "give a folder that `gpucal calibrate` wrote")
            raise OutputError(f"{folder}: does not exist, so it holds no results to resume from{hint}")
    if arguments.verb in _READ_OUT:
        _check_results(arguments.out)


def _check_results(out: Path) -> None:
    from gpucal.inputs.dataset import SPLITS
    from gpucal.results.records import visit_folders
    from gpucal.results.writer import CONFIG

    if not may_be_there(out):
        hint = did_you_mean(near_path(out), f"make some with `gpucal calibrate DATASET {out}`")
        raise OutputError(f"{out}: does not exist, so it holds no results{hint}")
    if may_be_there(out / CONFIG) or next(visit_folders(out), None):
        return
    if any((out / split).is_dir() for split in SPLITS):
        raise OutputError(f"{out}: is a competition folder; give a results folder, which `gpucal calibrate` wrote")
    around = (*out.parents[:2], *sorted(out.iterdir()))
    if found := [str(folder) for folder in around if (folder / CONFIG).is_file()]:
        raise OutputError(f"{out}: holds no results{did_you_mean(found[:3])}")


def _calibrate(arguments: argparse.Namespace) -> int:
    with arguments.interrupts.held():
        from gpucal.runs.run import carry_out
        from gpucal.runs.watch import Watch, deadline

    if arguments.dry_run:
        return _check(arguments)
    request = _request(arguments)
    with _client(arguments) as client, _grouped(arguments):
        watch = Watch(arguments.interrupts, deadline(arguments.time_limit))
        # The lines a minute are among those of the log.
        progress = False if arguments.quiet else "auto" if arguments.verbose else True
        summary = carry_out(request, watch, client=client, progress=progress, command=arguments.command)
    if summary.stopped == "interrupted":
        if arguments.json:
            _say(json.dumps(summary.to_dict()))
        raise KeyboardInterrupt
    made = _page_of(arguments) if arguments.report else None
    _say(
        json.dumps(summary.to_dict())
        if arguments.json
        else f"{summary}. Results: {arguments.out}. Next: {_next(arguments, summary, made)}"
    )
    if summary.left and summary.stopped == "time limit":
        return LATE  # so that a script may repeat the run while items are left, even if some failed
    lacking = arguments.report and made is None
    return FAILED if summary.failed or lacking else LATE if summary.left else DONE


def _page_of(arguments: argparse.Namespace) -> Path | None:
    """Write the report of a run's folder; a folder that holds nothing, or is full, costs the page and not the run."""
    from gpucal.results.reader import open_results

    try:
        return _written(open_results(arguments.out), None).path
    except OutputError as error:
        _complain(f"gpucal: {error}")
        return None


def _next(arguments: argparse.Namespace, summary: Summary, made: Path | None) -> str:
    """Name the next step after a run: the same command if something is left, else a look at the results."""
    if summary.left:
        return _LEFT if arguments.overwrite else "the same command continues"
    return f"open {made} in a browser" if made else f"gpucal report {arguments.out} --html"


def _request(arguments: argparse.Namespace) -> Request:
    """Return what a run and a check are asked for."""
    from gpucal.inputs.dataset import open_dataset
    from gpucal.runs.request import Request

    names = ("shard", "backend", "workers", "memory", "overwrite", "add", "resume_from", "strict")
    asked = {name: getattr(arguments, name) for name in names}
    dataset = open_dataset(arguments.dataset, arguments.split)
    how = {**output_from(arguments), **asked, "planets": arguments.planet}
    return Request(dataset, arguments.out, settings_from(arguments), **how)


def _check(arguments: argparse.Namespace) -> int:
    with arguments.interrupts.held():
        from gpucal.runs.check import check

    given = vars(arguments)
    request = _request(arguments)
    with _shown(arguments, 0, "look") as show:
        found = check(request, deep=given.get("deep", False), show=show)
    if arguments.json:
        _say(json.dumps(found.to_dict()))
        return FAILED if found.would_fail else DONE
    for line in found.lines():
        _say(line)
    for name, lines in (("would fail", found.failing), ("unlike the rest", found.unlike)):
        kinds = Kinds()
        if lines:
            _say(f"{name}: {len(lines):,} of {found.items:,} items")
        for line in lines.values():
            if given.get("all") or kinds.is_news(line):
                _say(f"  {line}")
        for line in kinds.rest("`gpucal check --all` shows all of them") if not given.get("all") else ():
            _say(f"  {line}")
    limit = arguments.time_limit
    if limit is not None and found.seconds is not None and found.seconds > limit:
        then = f"then {_LEFT}" if arguments.overwrite else "run it again to continue"
        _say(f"the run will reach its --time-limit; {then}")
    return FAILED if found.would_fail else DONE


@contextmanager
def _grouped(arguments: argparse.Namespace) -> Iterator[None]:
    """Show the first few lines of every kind as they come, and in the end how many there were; the log has all."""
    from gpucal.results.writer import LOG

    kinds = Kinds()
    arguments.terminal.addFilter(kinds.admits)
    try:
        yield
    finally:
        arguments.terminal.removeFilter(kinds.admits)
        for line in kinds.rest(f"all of them in {arguments.out / LOG}"):
            _complain(f"gpucal: {line}")


def _client(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    if arguments.dask is None:
        return nullcontext()
    from gpucal.runs.cluster import connected

    how = {"workers": arguments.workers, "memory": arguments.memory, "backend": arguments.backend}
    return connected(arguments.dask or None, **how)


def _verify(arguments: argparse.Namespace) -> int:
    from gpucal.results.verify import verify

    found, kinds = 0, Kinds()
    with _shown(arguments, 0, "item") as show:

        def tell(ended: int, total: int) -> None:
            show(ended, found, total)

        for line in verify(arguments.out, tell):
            found += 1
            if arguments.all or kinds.is_news(line):
                _say(line)
    _say_rest(arguments, kinds, shown=True)
    mend = "; remove the files that do not match and run `gpucal calibrate` again" if found else ""
    _say(f"{arguments.out}: {found or 'no'} mismatch{'es' if found != 1 else ''}{mend}")
    return FAILED if found else DONE


def _report(arguments: argparse.Namespace) -> int:
    if arguments.paths and arguments.html is None:
        raise ConfigError("--paths: is for the page; write `gpucal report OUT --html --paths`")
    if arguments.json and arguments.html is not None:
        raise ConfigError("--json and --html: one or the other")
    results = _results(arguments)
    if arguments.html is not None:
        made = _written(results, None if arguments.html is True else arguments.html, paths=arguments.paths)
        _say(f"{made.complete:,} of {made.expected:,} observations complete, {made.looks:,} need a look: {made.path}")
        return DONE
    if arguments.json:
        _say(_as_json(results))
        return DONE
    from gpucal.results.report import text_table

    failed, elsewhere = [str(line) for line in results.failed.values()], len(results.elsewhere)
    more = f", {elsewhere} items elsewhere" if elsewhere else ""
    _say(f"{arguments.out}: {len(results)} observations complete, {len(failed)} items failed{more}")
    for line in text_table(results):
        _say(line)
    kinds = Kinds()
    for line in failed:
        if arguments.all:
            _say(line)
        else:
            kinds.is_news(line)
    _say_rest(arguments, kinds, shown=False)
    return DONE


def _written(results: Results, to: Path | None, *, paths: bool = False) -> Report:
    from gpucal.results.report import write_report
    from gpucal.runs.progress import shown

    with shown(0, "observation") as show:
        return write_report(results, to, paths=paths, show=lambda ended, total: show(ended, total=total))


def _as_json(results: Results) -> str:
    """Return a list of objects, an item each: what `Results.table` has, and why it failed or where it is."""
    rows = json.loads(results.table().to_json(orient="records", double_precision=15))
    told = {**results.failed, **results.elsewhere}
    for row in rows:
        line = told.get(ItemId(row["planet_id"], row["visit"], row["detector"]))
        if line is not None:
            row["error" if row["status"] == "failed" else "folder"] = line
    return json.dumps(rows)


def _say_rest(arguments: argparse.Namespace, kinds: Kinds, *, shown: bool) -> None:
    for line in kinds.rest(f"`gpucal {arguments.verb} {arguments.out} --all` shows all of them", shown=shown):
        _say(line)


def _results(arguments: argparse.Namespace) -> Results:
    from gpucal.results.reader import open_results

    return open_results(arguments.out, *arguments.resume_from)


def _synth(arguments: argparse.Namespace) -> int:
    from gpucal.settings.detectors import DETECTORS
    from gpucal.synthetic.competition import synthesize

    files = arguments.planets * len(DETECTORS)
    ended = iter(range(1, files + 1))
    with _shown(arguments, files, "file") as show:
        planets = synthesize(
            arguments.out,
            layout=arguments.layout,
            planets=arguments.planets,
            frames=arguments.frames,
            seed=arguments.seed,
            calibration=arguments.calibration,
            progress=lambda _: show(next(ended)),
            jitter=arguments.jitter,
        )
    _say(f"planets {' '.join(map(str, planets))} in {arguments.out}, their truth in {arguments.out / 'truth'}")
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    from gpucal.synthetic.demo import STEPS, demo

    with _shown(arguments, STEPS, "step") as show:
        for line in demo(arguments.out, arguments.frames, show):
            _say(line)
    return DONE


def _info(arguments: argparse.Namespace) -> int:
    from gpucal.backends import choose
    from gpucal.backends.versions import backends, versions
    from gpucal.settings.detectors import DETECTORS

    dataset = None
    if arguments.dataset:
        from gpucal.inputs.dataset import open_dataset

        dataset = open_dataset(arguments.dataset)
    found = backends()
    facts: dict[str, Any] = {"versions": versions(), "backends": found, "auto": choose().name}
    pages = [_pages_of(obs, detector) for obs, detector in product(islice(dataset or (), 1), DETECTORS)]
    if arguments.json:
        if dataset:
            facts["dataset"] = _facts_of(dataset) | {"pages": pages}
        _say(json.dumps(facts))
        return DONE
    _say(f"gpucal {__version__}, Python {sys.version.split()[0]}")
    for line in (*(f"{name}: {what}" for name, what in found.items()), f"auto: {facts['auto']}"):
        _say(line)
    if dataset:
        counts = f"{len(dataset.planets):,} planets, {len(dataset):,} observations"
        _say(f"{dataset.path}: {dataset.layout.name} layout, {counts}")
        _list(dataset, everything=arguments.all)
        for line in pages:
            _say(line)
    return DONE


def _facts_of(dataset: Dataset) -> dict[str, Any]:
    """Return what a data set holds, as plain values."""
    observations = [{"planet": obs.planet, "visit": obs.visit, "split": obs.split} for obs in dataset]
    counts = {"planets": len(dataset.planets), "observations": observations}
    return {"path": str(dataset.path), "layout": dataset.layout.name, "preset": dataset.layout.preset, **counts}


def _list(dataset: Dataset, *, everything: bool) -> None:
    """List the observations; of many, the first few of each split."""
    lines: dict[str, list[str]] = {}
    for obs in dataset:
        lines.setdefault(obs.split, []).append(f"  {obs.split} {obs.planet} visit {obs.visit}")
    for split, of in lines.items():
        first = len(of) if everything or len(of) <= _LISTED else _FIRST
        for line in of[:first]:
            _say(line)
        if more := len(of) - first:
            _say(f"  and {more:,} more in {split}; `gpucal info {dataset.path} --all` lists all of them")


def _pages_of(obs: Observation, detector: str) -> str:
    """Say how the pages of an observation's file are decoded, or why they cannot be."""
    from gpucal.errors import DeviceError, InputError
    from gpucal.pipeline.calibrate import decoded_pages
    from gpucal.settings.detectors import DETECTORS

    try:
        return f"pages of {obs.where(DETECTORS[detector])}: {decoded_pages(obs, detector)}"
    except (InputError, DeviceError) as error:
        return str(error)


def _selftest(arguments: argparse.Namespace) -> int:
    from gpucal.backends.selftest import PROVED, selftest

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
            worst = f"largest difference {report.parity:.2g} of the rounding limit"
            _say(f"{report.backend}: {verdict} ({worst}); {report.runs_on}; {times}")
        _say(PROVED)
    return FAILED if any(report.wrong for report in reports) else DONE


def _bench(arguments: argparse.Namespace) -> int:
    from gpucal.inputs.dataset import open_dataset
    from gpucal.synthetic.bench import COMPETITIONS, bench, bench_synthetic

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
    from gpucal.results.export import export

    results = _results(arguments)
    with _shown(arguments, 0, "item") as show:
        written = export(
            results,
            arguments.to,
            arguments.format,
            arguments.product,
            lambda ended, total: show(ended, total=total),
        )
    count = f"{len(results)} observation{'s' * (len(results) != 1)}"
    _say(f"{count} in {', '.join(map(str, written[:4]))}{', ...' if len(written) > 4 else ''}")
    return DONE


def _plot(arguments: argparse.Namespace) -> int:
    from gpucal.results.plot import save_observation, save_overview
    from gpucal.results.reader import complete

    if arguments.planet is None and arguments.visit is not None:
        raise ConfigError("--visit: of which planet? write `gpucal plot OUT PLANET --visit N`")
    if arguments.planet is not None and arguments.all:
        raise ConfigError("PLANET and --all: one or the other")
    results, to = _results(arguments), arguments.to or arguments.out
    if arguments.planet is None and not arguments.all:
        with _shown(arguments, len(results), "observation") as show:
            save_overview(results, to / "overview.png", show)
        _say(f"white light of every observation in {to / 'overview.png'}")
        return DONE
    if not arguments.all:
        key = (arguments.planet, arguments.visit or 0)
        save_observation(results, key, _picture_of(to, key))
        _say(f"light curve in {_picture_of(to, key)}")
        return DONE
    failed = 0
    with _shown(arguments, len(results), "picture") as show:
        for ended, key in enumerate(complete(results), 1):
            try:
                save_observation(results, key, _picture_of(to, key))
            except OutputLost:
                raise
            except OutputError as error:  # a damaged observation costs its own picture
                failed += 1
                _complain(f"gpucal: {error}")
            show(ended, failed)
    _say(f"{len(results) - failed} pictures in {to}")
    return FAILED if failed else DONE


def _picture_of(to: Path, key: tuple[int, int]) -> Path:
    return to / f"{key[0]}-{key[1]}.png"


_VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "calibrate": _calibrate,
    "check": _check,
    "verify": _verify,
    "report": _report,
    "synth": _synth,
    "demo": _demo,
    "info": _info,
    "selftest": _selftest,
    "bench": _bench,
    "export": _export,
    "plot": _plot,
}


# Verbs that read the results folder OUT.
_READ_OUT = ("verify", "report", "export", "plot")


def _open_what_is_closed() -> None:
    """Open 0, 1 and 2 where they are closed: the next file would get the number, and what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def _reader_has_ended() -> int:
    """Leave the rest of the output unwritten, as its reader has ended, which `head` does."""
    _silence(sys.stdout)
    return SIGNALLED + signal.SIGPIPE


def _output_is_full(error: Exception) -> int:
    _silence(sys.stdout)
    reason = getattr(error, "strerror", None) or error
    _complain(f"gpucal: the standard output cannot be written ({reason}); send it elsewhere")
    return FAILED


def _silence(stream: TextIO) -> None:
    """Leave unwritten what a stream still holds, which the end of the process would try again."""
    with suppress(OSError, ValueError, AttributeError):  # no file is behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(line: str) -> None:
    """Print a line on the standard output."""
    try:
        _print(line, sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputIsFull(error.strerror or error) from error


def _complain(line: str) -> None:
    """Print a line on the standard error output, as far as that can be."""
    try:
        _print(line, sys.stderr)
    except (OSError, ValueError):  # full, or closed
        _silence(sys.stderr)


def _print(line: str, stream: TextIO | None) -> None:
    if stream is None:  # closed, as a service may have it
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    bars = sys.modules.get("tqdm")
    with bars.tqdm.external_write_mode(stream) if bars else nullcontext():  # a bar stays below the line
        # A name of a file that is not UTF-8 is printed as on the standard error output, with backslashes.
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()  # now, while signals and broken pipes are still handled
