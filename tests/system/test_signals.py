"""SIGINT and SIGTERM at any moment: an orderly end that says what is done and how to go on."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import many
import pytest
from conftest import items_done, until
from many import HANG, SETTINGS, Ended, Runs
from times import TIMES

from gpucal.runs.interrupts import Interrupts
from gpucal.synthetic.competition import synthesize

PLANETS = range(1, 13)
ITEMS = 2 * len(PLANETS)

IN_AN_ITEM = 44
"""A system call on the results folder that is made while the first item is written."""

SAID = re.compile(
    r"gpucal: interrupted: (\d+) done, (\d+) finished before, 0 failed(?:, (\d+) left)?; "
    r"finished items are kept, run it again to continue"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Runs(tmp_path_factory.mktemp("runs"), warnings="ignore") as ready:
        yield ready


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.make(tmp_path_factory.mktemp("source") / "many", PLANETS)


def wait_for_handlers(pid: int) -> None:
    """Wait until a run has its signal handlers, or has ended meanwhile."""

    def ready() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
        return "\nState:\tZ" in status or bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    until(ready, 30)


def check(ended: Ended, number: int, out: Path, before: int = 0, *, waited: bool = True) -> str:
    """Look at how an interrupted run has ended; return when it was.

    ``before`` it so many items were finished; it ``waited`` for the one it was writing.
    """
    assert ended.code in (0, 128 + number), ended
    if ended.out or (not ended.lines and items_done(out) == ITEMS):
        return "after"  # all is done: what becomes of a signal while the interpreter goes is its own
    assert not any(word in line for line in ended.lines for word in ("Traceback", "ignored")), ended
    if out.exists():
        # a signal between the making of a lock file and its removal leaves it, empty, or its folder, to the next start
        left = [name for name in many.litter(out) if name != ".gpucal" and not name.endswith(".lock")]
        assert not waited or left == [], ended
        assert many.wrong(out, begun=True) == [], ended
    assert ended.lines[-1] == f"gpucal: ended by {signal.Signals(number).name}", ended
    if len(ended.lines) == 1:
        return "before"
    said = SAID.fullmatch(ended.lines[0])
    assert said is not None, ended
    assert len(ended.lines) == 2, ended
    done, skipped, left = (int(n or 0) for n in said.groups())
    if not done + skipped + left:
        return "starting"  # it has not looked at them yet
    assert done + skipped + left == ITEMS
    assert done == items_done(out) - before
    assert skipped <= before
    return "during" if left else "finishing"


@pytest.mark.parametrize("product", ["cubes", "light-curves"])
def test_a_signal_ends_a_run_in_order(runs: Runs, source: Path, tmp_path: Path, product: str) -> None:
    chance, rounds = random.Random(product), 50 * TIMES
    out, when = tmp_path / "out", Counter[str]()
    command = (source, out, "--product", product)
    life = math.inf
    for folder in ("undisturbed", "again"):
        began = time.monotonic()
        assert runs.calibrate(source, tmp_path / folder, *command[2:]).code == 0
        life = min(life, time.monotonic() - began)
    for number in (signal.SIGINT, signal.SIGTERM) * (rounds // 2):
        before = items_done(out)
        run = runs.start("calibrate", *command, *SETTINGS)
        wait_for_handlers(run.pid)
        time.sleep(chance.uniform(0, life))
        run.send(number)
        moment = check(run.wait(), number, out, before)
        when[moment] += 1
        life *= 0.9 if moment == "after" else 1.03  # as the machine has it by now: one signal in five comes too late
        if moment in ("after", "finishing"):
            ended = runs.calibrate(*command)
            assert (ended.code, ended.lines, many.litter(out)) == (0, [], [])
            assert many.content(out) == many.content(tmp_path / "undisturbed")
            shutil.rmtree(out)
    print(dict(when))  # noqa: T201, with -s
    assert when.keys() >= {"during", "after"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_line_in_order(source: Path, tmp_path: Path, number: int) -> None:
    chance = random.Random(number)
    when = Counter[str]()
    for k in range(10 * TIMES):
        out = tmp_path / f"out-{k}"
        command = many.command_line("calibrate", source, out, *SETTINGS)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            wait_for_handlers(run.pid)
            time.sleep(chance.uniform(0, 1.5))
            run.send_signal(number)
            said, errors = run.communicate()
        code = run.returncode if run.returncode >= 0 else 128 - run.returncode
        when[check(Ended(code, said, errors.splitlines(), {}), number, out)] += 1
    print(dict(when))  # noqa: T201, with -s


def test_a_signal_that_is_ignored_stays_ignored(source: Path, tmp_path: Path) -> None:
    """As a shell's & and nohup want it."""
    out, hangs_s = tmp_path / "out", 3
    with Runs(tmp_path, many.build_faults(tmp_path)) as runs:
        for numbers, code in (((signal.SIGINT, signal.SIGTERM), 128 + signal.SIGTERM), ((signal.SIGINT,), 0)):
            hang = (str(out), IN_AN_ITEM, hangs_s, HANG)  # long enough to be sent them
            run = runs.start("calibrate", source, out, "--overwrite", *SETTINGS, fault=hang, ignore=[signal.SIGINT])
            until(lambda: any(out.glob(".gpucal/*-*-*.tmp")), 30)
            for number in numbers:
                run.send(number)
            ended = run.wait()
            assert ended.code == code, ended
            assert many.litter(out) == []
        assert (ended.lines, many.wrong(out)) == ([], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_imports(number: int) -> None:
    interrupts, imported = Interrupts(), []

    def imports() -> None:
        with interrupts, interrupts.held():
            signal.raise_signal(number)
            imported.append("all")

    with pytest.raises(KeyboardInterrupt):
        imports()
    assert (imported, interrupts.came) == (["all"], number)


def test_an_interrupt_while_pages_are_decoded_ends_a_run_in_order(tmp_path: Path) -> None:
    """With frames enough that a run spends its time there, and a summary to the last."""
    raw, chance, rounds = tmp_path / "raw", random.Random(0), 15 * TIMES
    interrupted, life = 0, 0.5
    (first,) = synthesize(raw, layout="2025", frames=2400)
    for planet in range(first + 1, first + 8):
        (raw / "train" / str(planet)).symlink_to(str(first))
    command = [sys.executable, "-m", "gpucal", "calibrate", str(raw)]
    for k in range(rounds):
        out = tmp_path / f"out-{k}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, str(out), "--json"], cwd=tmp_path, **pipes) as run:
            until(lambda out=out: any(out.glob("*/*/*.json")))
            time.sleep(chance.uniform(0, life))
            run.send_signal(signal.SIGINT)
            said, errors = run.communicate()
        summary = json.loads(said)
        if run.returncode == 0:
            life *= 0.7
            continue
        interrupted += 1
        assert (run.returncode, summary["stopped"], summary["failed"]) == (130, "interrupted", {})
        assert summary["done"] == items_done(out) == 16 - summary["left"]
        assert errors.splitlines()[-1] == "gpucal: ended by SIGINT"
        assert len(errors.splitlines()) == 2
    assert interrupted > rounds / 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_waits_for_nothing(source: Path, tmp_path: Path, number: int) -> None:
    """The first waits for the item that is being written, however long the disk takes."""
    out, hangs_s = tmp_path / "out", 60
    with Runs(tmp_path, many.build_faults(tmp_path)) as runs:
        run = runs.start("calibrate", source, out, *SETTINGS, fault=(str(out), IN_AN_ITEM, hangs_s, HANG))
        until(lambda: any(out.glob(".gpucal/*-*-*.tmp")), 30)
        time.sleep(0.5)
        run.send(number)
        time.sleep(0.5)
        began = time.monotonic()
        run.send(number)
        ended = run.wait()
        assert time.monotonic() - began < hangs_s / 3
        assert ended.code == 128 + number
        assert many.wrong(out, begun=True) == []
        assert runs.calibrate(source, out).code == 0
        assert (many.wrong(out), many.litter(out)) == ([], [])
