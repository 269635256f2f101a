"""Many planets with frames of a few pixels, and the command line on them, hundreds of times a minute.

`Runs` keeps a process that has imported everything and has one thread; each run of the command line is a fork of it, so
it costs what the run does and not the imports. The files of a results folder are made, and can fail, as at full size.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from gpucal.settings import detectors

TINY = {"AIRS-CH0": {"shape": (4, 9), "crop": (2, 7)}, "FGS1": {"shape": (3, 5), "crop": (0, 5)}}
WIDE = {"AIRS-CH0": {"shape": (16, 40), "crop": (4, 36)}, "FGS1": {"shape": (16, 8), "crop": (0, 8)}}
"""Frames of a few pixels, for runs that are about files; and large enough for what is kept of a planet to show."""

SETTINGS = ("--backend", "numpy", "--bin", "AIRS-CH0=3", "--bin", "FGS1=4")
"""Two bins a planet, by what starts no threads."""

ONCE, READ, FULL, LOCKED, SHORT, HANG, KILL = range(7)
"""How system calls are made to fail, see faults.cpp."""

# One thread before each fork: OpenBLAS and Arrow's allocator would start their own when they are imported.
_ENVIRONMENT = {
    **{"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "GPUCAL_READER": "pyarrow"}
}

_SPEAKS_OF_ALL = ("manifest.parquet", "light-curves.")


def make(folder: Path, planets: Iterable[int], frames: Mapping[str, Any] = TINY) -> Path:
    """Write a competition folder, each planet with counts, calibration frames and ADC of its own."""
    from hostile import ADCS, observe, write

    adc = ADCS["2024"]
    for planet in planets:
        own = replace(adc, offset=adc.offset + planet)
        small = [replace(detectors.DETECTORS[name], **facts) for name, facts in frames.items()]
        observed = [observe(detector, 14 + 4 * k, own, seed=2 * planet + k) for k, detector in enumerate(small)]
        if not folder.exists():
            folder.mkdir(parents=True)
            _write_axes(folder / "axis_info.parquet", *small)
        write(observed, folder, planet)
    return folder


def _write_axes(path: Path, airs: detectors.Detector, fgs1: detectors.Detector) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    axes = {
        airs.time_column: np.arange(100) / 100,
        airs.wavelength_column: np.pad(
            np.linspace(4, 2, airs.shape[1]), (0, 100 - airs.shape[1]), constant_values=np.nan
        ),
        airs.integration_column: np.resize([0.1, 4.5], 100),
        fgs1.time_column: np.arange(100) / 1000,
    }
    pq.write_table(pa.table(axes), path)


@dataclass(frozen=True)
class Ended:
    """What became of a run: its exit code, as a shell has it, what it wrote, and, of a faulty one, what failed."""

    code: int
    out: str
    lines: list[str]
    fault: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


class Run:
    """A run of the command line on its way."""

    def __init__(self, runs: Runs, pid: int, stem: Path) -> None:
        self._runs, self.pid, self._stem = runs, pid, stem

    def send(self, number: int) -> None:
        os.kill(self.pid, number)  # it is nobody else's before it has been waited for

    def wait(self) -> Ended:
        status = self._runs.ask(wait=self.pid)
        code = status if status >= 0 else 128 - status
        out, errors, fault = (self._stem.with_suffix(end) for end in (".out", ".err", ".fault"))
        found = json.loads(fault.read_text()) if fault.exists() else {}
        return Ended(code, out.read_text(), errors.read_text().splitlines(), found)


class Runs:
    """Runs the command line in forks of a process that is ready to.

    Parameters
    ----------
    folder : Path
        For what runs write to their standard streams.
    preload : Path, optional
        The library of faults.cpp, for runs with faults.
    launcher : sequence of str
        Put in front of the process's command.
    warnings : str
        What becomes of them; an interrupt between two steps of opening a file makes one.
    """

    def __init__(
        self, folder: Path, preload: Path | None = None, launcher: Iterable[str] = (), warnings: str = "error"
    ) -> None:
        self._folder, self._numbers = folder, count()
        environment = os.environ | _ENVIRONMENT | ({"LD_PRELOAD": str(preload)} if preload else {})
        command = [*launcher, sys.executable, "-W", warnings, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes)
        try:
            self.pid: int = self.ask(pid=True)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)  # the end of its input is the end of it

    def ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        answer = self._process.stdout.readline()
        assert answer, "it has ended: its standard error says why"
        return json.loads(answer)

    def start(self, *argv: object, fault: Iterable[Any] = (), ignore: Iterable[int] = ()) -> Run:
        """Begin a run; ``fault`` is for fault_arm in faults.cpp, ``ignore`` are signals ignored as by a shell's &."""
        stem = self._folder / f"run-{next(self._numbers)}"
        return Run(self, self.ask(argv=[*map(str, argv)], stem=str(stem), fault=[*fault], ignore=[*ignore]), stem)

    def run(self, *argv: object, fault: Iterable[Any] = ()) -> Ended:
        return self.start(*argv, fault=fault).wait()

    def calibrate(self, *argv: object, fault: Iterable[Any] = ()) -> Ended:
        return self.run("calibrate", *argv, *SETTINGS, fault=fault)

    def shell(self, *command: object) -> int:
        """Have another command run where the runs do."""
        return int(self.ask(command=[*map(str, command)]))


def build_faults(folder: Path) -> Path:
    """Compile faults.cpp, or skip the test."""
    from emulator import cpp
    from launch import require_compiler

    require_compiler()
    built = folder / "faults.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = Path(__file__).with_name("faults.cpp")
    subprocess.run([str(cpp.compiler()), *flags, "-o", built, source, "-ldl"], check=True)
    return built


def command_line(*argv: object) -> list[str]:
    """The same command line as a process of its own."""
    return [sys.executable, __file__, *map(str, argv)]


def litter(out: Path) -> list[str]:
    """What a run must not leave: hidden files, its corner and what is in it, and arrays of no record."""
    names = [str(file.relative_to(out)) for file in out.rglob("*") if file.is_file() or not any(file.iterdir())]
    hidden = [name for name in names if name.startswith(".") or "/." in name]
    known = {file.with_name(stored["file"]) for file, record in all_records(out) for stored in _files(record)}
    return hidden + [str(file.relative_to(out)) for file in {*out.glob("*/*/*.npy")} - known]


def _files(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    return record.get("files", {}).values()


def all_records(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(out.glob("*/*/*.json")):
        yield file, json.loads(file.read_text())


def wrong(out: Path, *, begun: bool = False) -> list[str]:
    """What `gpucal.results.verify` finds; of a folder that a run had ``begun`` with, what must not be even there."""
    from gpucal.results.verify import verify

    if not any(out.glob("*/*/*.json")):
        return []
    lines = list(verify(out))
    if not begun:
        return lines
    # what is of all items is made last
    expected = tuple(str(out / name) for name in _SPEAKS_OF_ALL)
    return [line for line in lines if not line.endswith("belongs to no record") and not line.startswith(expected)]


def content(out: Path) -> dict[str, Any]:
    """What a results folder holds: every file, and of records what does not depend on the time and place of the run."""
    import pyarrow.parquet as pq

    held: dict[str, Any] = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file() and path.name != "gpucal.log"):
        name = str(file.relative_to(out))
        if file.suffix == ".json":
            held[name] = _timeless(json.loads(file.read_text()))
        elif file.suffix == ".parquet":
            table = pq.read_table(file)
            history = json.loads((table.schema.metadata or {}).get(b"gpucal", b"null"))
            columns = [column for column in table.column_names if column != "seconds"]
            held[name] = (_timeless(history), table.select(columns).to_pydict().__repr__())  # a NaN is itself
        else:
            held[name] = file.read_bytes()
    return held


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name not in ("seconds", "created", "dataset")}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def use(frames: Mapping[str, Any]) -> None:
    """Have detectors of other frames in this process; before any other room is imported."""
    small = {name: replace(detectors.DETECTORS[name], **facts) for name, facts in frames.items()}
    detectors.DETECTORS = MappingProxyType(small)


def _serve(arguments: list[str]) -> None:
    """Be the process that forks, or the command line."""
    if not arguments:
        atexit.register(_end)  # the first one registered is the last one called, when all threads have ended
    use(TINY)
    from gpucal.cli import main as cli

    if arguments:
        cli.console()
    _import_everything()
    gc.freeze()  # else a fork that ends looks at all of them, and copies them to do so
    assert len([*Path("/proc/self/task").iterdir()]) == 1  # another thread would be lost in a fork
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        answer = os.getpid()
        if "argv" in asked:
            answer = os.fork()
            if not answer:
                _forked(cli.console, **asked)
        elif "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif "command" in asked:
            answer = subprocess.run(asked["command"], stdin=subprocess.DEVNULL, check=False).returncode
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_everything() -> None:
    # what is imported late as well, which would be done by each fork: half of what a small run takes
    late = (
        "multiprocessing.synchronize",
        "numpy.polynomial",
        "pyarrow.compute",
        "pyarrow.json",
        "tqdm.contrib.logging",
    )
    rooms = ("backends.numpy_", "results.light_curve_table", "runs.run", "results.verify")
    for name in ("astropy.stats", *late, *(f"gpucal.{room}" for room in rooms)):
        importlib.import_module(name)


_codes: list[int] = []
"""A fork's exit code, once it has one."""


def _counted(console: Callable[[], NoReturn]) -> NoReturn:
    try:
        console()
    except SystemExit as ended:
        _codes.append(int(ended.code or 0))
        raise


def _end() -> None:
    """End a fork that has an exit code: to take all modules apart would copy their memory, half of what a run costs."""
    if _codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_codes[0])


def _forked(
    console: Callable[[], NoReturn], argv: list[str], stem: str, fault: list[Any], ignore: list[int]
) -> NoReturn:
    import ctypes

    sys.argv[1:] = argv
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(stem + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    signal.alarm(300)  # one that hangs is a failure, and not for ever
    for number in ignore:
        signal.signal(number, signal.SIG_IGN)
    if not fault:
        _counted(console)
    shim = ctypes.CDLL(None)
    shim.fault_what.restype = ctypes.c_char_p
    shim.fault_arm(*(part.encode() if isinstance(part, str) else ctypes.c_long(part) for part in fault))
    try:
        _counted(console)
    finally:
        shim.fault_disarm()
        found = {"calls": shim.fault_calls(), "failed": shim.fault_failed(), "what": shim.fault_what().decode()}
        Path(f"{stem}.fault").write_text(json.dumps(found))


if __name__ == "__main__":
    _serve(sys.argv[1:])
