"""Progress: a bar on a terminal, a line a minute without one; summaries in observations; the beginning of the log."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import BINS, CONFIG, Made

import gpucal
from gpucal.cli.main import main
from gpucal.runs import progress
from gpucal.runs.progress import Progress, shown
from gpucal.runs.summary import Summary
from gpucal.settings.ids import ItemId

FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Have a terminal as the standard error output, where bars appear at once; pytest sets its own before each test."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(progress, "AFTER", 0.0)
    return made


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes that take no time."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "_TICK", 0.001)


class Tee:
    """A script's own standard error output, which keeps what is written, and has nothing else that streams have."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def write(self, text: str) -> int:
        self.kept.append(text)
        return len(text)

    def flush(self) -> None: ...


def gone() -> io.StringIO:
    """Return a standard error output that its script has closed."""
    made = io.StringIO()
    made.close()
    return made


NO_TERMINALS: dict[str, Callable[[], object]] = {"none": lambda: None, "closed": gone, "a script's own": Tee}


def patiently(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_bar_counts_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    with shown(4, "file") as show:
        show(1)
        show(3, 2)
    last = re.split(r"[\r\n]+", terminal.getvalue().strip())[-1]
    assert re.search(r"75%\|.*\| 3/4 \[.* left, [\d.,]+ files/min, 2 failures\]", last)


def test_a_total_may_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    with shown(0, "item") as show:
        show(1, 1, 8)
        show(4, 1, 8)
    assert " 50%|" in terminal.getvalue()
    assert "4/8" in terminal.getvalue()
    assert "1 failure]" in terminal.getvalue()


def test_what_is_short_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    monkeypatch.setattr(progress, "AFTER", 1e6)
    with shown(2, "file") as show:
        show(1)
        show(2)
    assert terminal.getvalue() == ""


def test_a_bar_moves_although_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    monkeypatch.setattr(progress, "AFTER", 0.2)
    monkeypatch.setattr(progress, "_TICK", 0.01)
    with shown(2, "file"):
        patiently(lambda: "0/2" in terminal.getvalue())


def test_a_line_a_minute_without_a_terminal(hurried: None, capfd: pytest.CaptureFixture[str]) -> None:
    noted: list[str] = []
    with shown(45, "planet", note=noted.append) as show:
        show(12, 1)
        patiently(lambda: any("12 of 45" in line for line in noted))
    line = next(line for line in noted if "12 of 45" in line)
    assert re.fullmatch(r"12 of 45 planets in \d+ s, [\d,.]+ planets/min, 1 failure", line)
    assert f"gpucal: {line}\n" in capfd.readouterr().err


@pytest.mark.parametrize("make", NO_TERMINALS.values(), ids=NO_TERMINALS)
@pytest.mark.parametrize("how", [True, "auto"])
def test_a_run_needs_no_standard_error_output(
    how: bool | str,
    make: Callable[[], object],
    old: Made,
    tmp_path: Path,
    hurried: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", make())
    monkeypatch.setattr(threading, "excepthook", lambda args: lost.append(args.exc_value))
    lost: list[object] = []
    assert gpucal.run(old[0], tmp_path / "out", CONFIG, progress=how).done == 4
    assert lost == []
    assert re.search(r"\d of 2 planets in", (tmp_path / "out" / "gpucal.log").read_text())
    if isinstance(sys.stderr, Tee):
        assert bool(sys.stderr.kept) is (how is True)


@pytest.mark.parametrize("how", [False, "auto"])
def test_without_a_terminal_only_the_log_gets_lines(
    how: bool | str, hurried: None, capfd: pytest.CaptureFixture[str]
) -> None:
    noted: list[str] = []
    with shown(2, "planet", how, noted.append):
        patiently(lambda: len(noted) > 1)
    assert capfd.readouterr().err == ""


def test_no_line_before_its_minute(capfd: pytest.CaptureFixture[str]) -> None:
    noted: list[str] = []
    told = Progress(2, "planet", noted.append)
    told.tick()
    assert noted == []
    told.said -= progress.EVERY
    told.tick()
    told.tick()
    assert len(noted) == 1


@pytest.mark.parametrize(("how", "expected"), [("auto", True), (True, True), (False, False)])
def test_a_notebook_has_a_bar(
    how: bool | str, expected: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a notebook without ipywidgets the bar is one of text."""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(progress, "AFTER", 0.0)
    with shown(2, "planet", how) as show:
        show(1)
    assert ("1/2" in capfd.readouterr().err) is expected


_NOTEBOOK = """
import sys
from types import ModuleType
kernel, shell = ModuleType("IPython"), type("ZMQInteractiveShell", (), {"config": {"IPKernelApp": {}}})()
kernel.get_ipython = lambda: shell
sys.modules |= {"IPython": kernel, "ipykernel.zmqshell": kernel, "ipywidgets": None}
from gpucal.runs.progress import shown
with shown(2, "planet", "auto") as show:
    show(2)
"""


def test_a_notebook_without_ipywidgets_is_not_told_to_install_them() -> None:
    """tqdm warns of it when a part of it is imported that gpucal needs for its log."""
    run = subprocess.run([sys.executable, "-W", "always:IProgress", "-c", _NOTEBOOK], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "command",
    [
        ["synth", "made", "--frames", "2"],
        ["verify", "results"],
        ["export", "results", "npy"],
        ["export", "results", "fits", "--format", "fits"],
        ["export", "results", "csv", "--format", "csv", "--product", "light-curves"],
        ["calibrate", "data", "results", *FLAGS, "--variance"],
        ["check", "data", *FLAGS],
        ["check", "data", "results", *FLAGS, "--variance", "--deep"],
        ["calibrate", "data", "results", *FLAGS, "--variance", "--dry-run"],
        ["plot", "results"],
        ["plot", "results", "--all"],
    ],
    ids=" ".join,
)
def test_what_takes_long_has_a_bar(
    command: list[str], old: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(old[0])
    gpucal.run("data", "results", CONFIG, variance=True)
    terminal = at_terminal(monkeypatch)
    assert main(command) == 0
    last = re.split(r"[\r\n]+", terminal.getvalue().strip())[-1]
    ended, total = map(int, re.search(r" (\d+)/(\d+) \[", last).groups())  # type: ignore[union-attr]
    assert total > 0
    assert ended == total


def test_the_demo_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    assert main(["demo", str(tmp_path / "demo"), "--frames", "720"]) == 0
    assert "4/4" in terminal.getvalue()


def test_lines_on_the_output_stand_above_the_bar(old: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both outputs are one terminal: a line is never appended to a bar."""
    both = Terminal()
    monkeypatch.setattr(progress, "AFTER", 0.0)
    out = tmp_path / "out"
    gpucal.run(old[0], out, CONFIG)
    for name in ("FGS1", "AIRS-CH0"):
        (out / "17" / "0" / f"{name}.signal.npy").write_bytes(b"no array")
    monkeypatch.setattr(sys, "stderr", both)
    monkeypatch.setattr(sys, "stdout", both)
    assert main(["verify", str(out)]) == 1
    lines = [line for line in re.split(r"[\r\n]", both.getvalue()) if "its record says" in line]
    assert len(lines) == 2
    assert all(line.startswith(str(out)) for line in lines)


@pytest.mark.parametrize(
    ("ends", "left", "said"),
    [
        ({}, 0, "0 observations calibrated"),
        ({1: "cc"}, 0, "1 observation calibrated"),
        ({1: "cc", 2: "cc", 3: "ff"}, 0, "2 observations calibrated, 1 finished before"),
        ({1: "cf"}, 0, "1 observation calibrated"),
        ({1: "cx", 2: "fx", 3: "xx", 4: "cc"}, 0, "1 observation calibrated, 3 failed"),
        ({1: "c", 2: "f", 3: "x", 4: "cc"}, 5, "1 observation calibrated, 1 failed, 3 left"),
    ],
)
def test_summaries_count_observations(ends: dict[int, str], left: int, said: str) -> None:
    """An observation with a failed item has failed; one of which only a part has ended is left."""
    words = {"c": "calibrated", "f": "finished before", "x": "failed"}
    one, other = Summary(left=left, seconds=1.6), Summary()
    for planet, letters in ends.items():
        for letter, detector in zip(letters, BINS, strict=False):
            (one if planet % 2 else other).end(ItemId(planet, 0, detector), words[letter])
    one.add(other)
    assert str(one) == f"{said} in 1.6 s"


def test_the_last_line_has_the_next_step(old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["calibrate", str(old[0]), str(tmp_path / "out"), *FLAGS]
    assert main([*command, "--time-limit", "0.000001s"]) == 3
    said = capfd.readouterr().out
    assert re.fullmatch(r"0 observations calibrated, 2 left in [\d.]+ s\. .* Next: the same command continues\n", said)
    assert main(command) == 0
    where = f"Results: {tmp_path / 'out'}. Next: gpucal report {tmp_path / 'out'} --html"
    assert re.fullmatch(rf"2 observations calibrated in [\d.]+ s\. {re.escape(where)}\n", capfd.readouterr().out)


def test_the_log_begins_with_version_command_and_data_set(old: Made, tmp_path: Path) -> None:
    out = tmp_path / "out put"
    assert main(["calibrate", str(old[0]), str(out), *FLAGS]) == 0
    gpucal.run(old[0], out, CONFIG, planets=17)
    starts = [line for line in (out / "gpucal.log").read_text().splitlines() if f"gpucal {gpucal.__version__}" in line]
    assert (out / "gpucal.log").read_text().startswith(starts[0])
    assert starts[0].endswith(f": gpucal calibrate {old[0]} '{out}' {' '.join(FLAGS)}")
    assert re.search(rf": gpucal\.run, called in {re.escape(__file__)}, line \d+$", starts[1])
    second = (out / "gpucal.log").read_text().splitlines()[1]
    assert f"data set {old[0]}: 2024 layout, 2 of its 2 observations" in second


def test_a_line_a_minute_is_in_the_log(
    old: Made, tmp_path: Path, hurried: None, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = shutil.copytree(old[0], tmp_path / "raw")
    (raw / "train" / "17" / "FGS1_signal.parquet").unlink()
    assert main(["calibrate", str(raw), str(tmp_path / "out"), *FLAGS]) == 1
    form = r"\d of 2 planets in \d+ s, [\d,.]+ planets/min(, 1 failure)?"
    assert re.search(form, (tmp_path / "out" / "gpucal.log").read_text())
    assert re.search(f"^gpucal: {form}$", capfd.readouterr().err, re.MULTILINE)
