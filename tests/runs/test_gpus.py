"""Several GPUs: a process for each, no CUDA call in the parent; the devices are stand-ins."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BINS, PLANETS, Made, items_done, until
from launch import require_compiler

import gpucal
from gpucal.cli.main import main
from gpucal.errors import DeviceError, RunWarning
from gpucal.pipeline.machine import visible_gpus
from gpucal.results.records import records
from gpucal.runs import gpus
from gpucal.runs.gpus import gpus_for
from gpucal.runs.request import Request, prepare
from gpucal.settings.calibration import Calibration

CONFIG = Calibration(bins=BINS, integration="notebook")
FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
ITEMS = 2 * len(PLANETS)

PATIENCE = 60.0
"""Seconds after which something hangs."""

# Another process on a device of its own, as the variable says which.
CHILD = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
from emulator import standin
from gpucal.runs.gpus import work
with standin.installed(name="GPU " + os.environ["CUDA_VISIBLE_DEVICES"]) as device:
    work()
"""

# One that works at a leisurely pace, and one that will not end.
SLOW = """
import os, time
os.environ["GPUCAL_BACKEND"] = "numpy"
from gpucal.results.writer import Store
from gpucal.runs.gpus import work
commit = Store.commit
Store.commit = lambda *arguments, **options: (commit(*arguments, **options), time.sleep(0.3))
work()
"""
STUBBORN = """
import os, pathlib, pickle, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
share = pickle.load(sys.stdin.buffer)
pathlib.Path(share.job.out, str(os.getpid()) + ".pid").touch()
time.sleep(600)
"""

# The command line in a process of its own, with these for its GPUs.
PARENT = """
import importlib.util, sys
from gpucal.cli import main as cli
from gpucal.runs import gpus
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: find("json" if name == "cupy" else name)
gpus.COMMAND = (sys.executable, "-c", {child!r})
cli.console()
"""


@contextmanager
def command(child: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3,GPU-8f", "PYTHONWARNINGS": ""}
    environment.pop("GPUCAL_BACKEND", None)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(child=child), "calibrate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find("json" if name == "cupy" else name))
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", CHILD))
    monkeypatch.setitem(sys.modules, "cupy", None)  # the parent cannot touch it


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("0,1", ["0", "1"]), ("1", ["1"]), ("", []), ("-1", []), ("0, 2 ,-1,3", ["0", "2"]), ("GPU-8f", ["GPU-8f"])],
)
def test_the_variable_decides(variable: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == expected


def test_else_the_driver_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path / "none") == []
    for bus in ("0000:00:04.0", "0000:00:05.0"):
        (tmp_path / bus).mkdir()
    assert visible_gpus(tmp_path) == ["0", "1"]


def test_who_gets_a_process(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus_for(None, 1100, 4) == gpus_for("cupy", 2, 64) == ["3", "GPU-8f"]
    assert gpus_for(None, 1100, 4, 2 * 10**9) == ["3", "GPU-8f"]
    assert gpus_for(None, 1100, 4, 10**9) == gpus_for("cupy", 1, 4) == gpus_for("numpy", 1100, 4) == []
    monkeypatch.setenv("GPUCAL_BACKEND", "numba")
    assert gpus_for(None, 1100, 4) == []
    assert gpus_for("auto", 1100, 4) == ["3", "GPU-8f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpus_for("auto", 1100, 4) == []


def test_processes_share_a_gpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "machine_memory", lambda: 32 * 10**9)
    assert gpus_for(None, 1100, 8) == 2 * ["3", "GPU-8f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus_for(None, 1100, 4) == gpus_for(None, 32, 64) == ["1", "1"]
    assert gpus_for(None, 1100, 64) == 4 * ["1"]
    assert gpus_for(None, 31, 64) == gpus_for(None, 1100, 3) == gpus_for(None, 1100, 64, 10**9) == []
    assert gpus_for(None, 1100, 64, 7 * 10**9) == 3 * ["1"]
    monkeypatch.setattr(gpus, "machine_memory", lambda: 8 * 10**9)
    assert gpus_for(None, 1100, 64) == 2 * ["1"]


@pytest.mark.parametrize(("mode", "count"), [("Default", 2), ("Exclusive_Process", 0)])
def test_a_gpu_may_take_one_process_alone(
    two_gpus: None, mode: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n[ $1 = --query-gpu=compute_mode ] && echo {mode}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(gpus, "machine_memory", lambda: 32 * 10**9)
    assert len(gpus_for(None, 1100, 4)) == count


def test_planets_are_spread(two_gpus: None, old: Made, tmp_path: Path) -> None:
    dataset = gpucal.open_dataset(old[0])
    summary = gpucal.run(dataset, tmp_path / "two", CONFIG, variance=True, dtype="float64")
    assert (summary.done, summary.skipped, summary.failed, summary.backend) == (4, 0, {}, "cupy")
    assert summary.stages["bin"] > 0
    assert summary.pages["own"] > summary.pages["arrow"] == 0
    alone = gpucal.run(dataset, tmp_path / "one", CONFIG, backend="numpy", variance=True, dtype="float64")
    assert alone.done == 4
    two, one = gpucal.open_results(tmp_path / "two"), gpucal.open_results(tmp_path / "one")
    assert two.ids == one.ids == [(17, 0), (23, 0)]
    for name in BINS:
        known = np.isfinite(one[name].load())
        np.testing.assert_allclose(two[name].load()[known], one[name].load()[known], rtol=1e-6, atol=1e-3)
    devices = {record["device"].partition(" (")[0] for record in records(tmp_path / "two")}
    assert devices == {"GPU 3", "GPU GPU-8f"}
    again = gpucal.run(dataset, tmp_path / "two", CONFIG, variance=True, dtype="float64")
    assert (again.done, again.skipped) == (0, 4)
    assert gpucal.run(dataset, tmp_path / "two", CONFIG, overwrite=True, memory=3 * 10**9).done == 4


def test_one_item_fails_and_no_other(
    two_gpus: None, new: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(new[0], raw)
    shutil.copytree(raw / "train" / "5", raw / "train" / "6")
    (raw / "train" / "6" / "FGS1_signal_1.parquet").write_bytes(b"PAR1")
    bins = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
    assert main(["calibrate", str(raw), str(tmp_path / "out"), *bins]) == 1
    captured = capfd.readouterr()
    assert captured.out.startswith("3 observations calibrated, 1 failed in ")
    assert captured.err.count("planet 6 visit 1 FGS1: ") == 1


def test_equal_failures_of_all_processes_are_one_line(
    two_gpus: None, old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for planet in range(100, 112):
        (raw / "train" / str(planet)).mkdir(parents=True)
        (raw / "train" / str(planet) / "notes.txt").touch()  # an empty folder is not an observation
    for name in ("axis_info.parquet", "train_adc_info.csv"):
        shutil.copy(old[0] / name, raw)
    assert main(["calibrate", str(raw), str(out)]) == 1
    first, *others, rest = capfd.readouterr().err.splitlines()
    assert len(others) == 4
    assert re.match(r"gpucal: planet 10[01] visit 0 FGS1: ", first)  # the first of either process, as it comes
    said = f"24 lines of this kind, all of them in {out}/gpucal.log; the first: {first.removeprefix('gpucal: ')}"
    assert rest == f"gpucal: {said}"
    log = (out / "gpucal.log").read_text()
    assert all(log.count(f"planet {planet} visit 0 ") == 2 for planet in range(100, 112))


def test_a_process_that_ends_is_one_line(
    two_gpus: None, old: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = "import os\nif os.environ['CUDA_VISIBLE_DEVICES'] == '3':\n    os.abort()\n" + CHILD
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", crash))
    dataset = gpucal.open_dataset(old[0])
    with pytest.raises(DeviceError, match="GPU 3: the process for it ended: exit code -6"):
        gpucal.run(dataset, tmp_path / "out", CONFIG)
    assert gpucal.open_results(tmp_path / "out").ids == [(23, 0)]  # what the other one did is there
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('gpucal: a line')"))
    with pytest.raises(DeviceError, match="GPU 3: the process for it ended: a line"):
        gpucal.run(dataset, tmp_path / "out", CONFIG)


def test_what_a_process_logs_is_handed_on(
    two_gpus: None, old: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = CHILD.replace(
        "    work()",
        "    if os.environ['CUDA_VISIBLE_DEVICES'] == '3':\n        device.spoil('calibrate')\n    work()",
    )
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", broken))
    summary = gpucal.run(gpucal.open_dataset(old[0]), tmp_path / "out", CONFIG)
    assert (summary.done, summary.backend) == (4, "numba, cupy")
    (line,) = [message for message in caplog.messages if message.startswith("GPU 3: ")]
    assert "gives other numbers than NumPy" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_the_terminal_ends_every_process_in_order(
    many: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with command(SLOW, many, out, *FLAGS, "--json") as process:
        until(lambda: items_done(out) >= 3)
        os.killpg(process.pid, number)  # which a terminal sends to every process of the command
        said, logged = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    done = items_done(out)
    assert 3 <= done < ITEMS
    assert logged.splitlines() == [
        f"gpucal: interrupted: {done} done, 0 finished before, 0 failed, {ITEMS - done} left; finished items are kept, "
        "run it again to continue",
        f"gpucal: ended by {number.name}",
    ]
    summary = json.loads(said)
    assert (summary["done"], summary["left"], summary["stopped"]) == (done, ITEMS - done, "interrupted")
    assert summary["stages"]["bin"] > 0
    assert [*out.rglob(".*")] == []


def running(out: Path) -> list[str]:
    """Return the processes of `STUBBORN` that still run and are not zombies."""
    there = []
    for file in out.glob("*.pid"):
        with suppress(OSError):  # of one that has ended, at any moment
            if ") Z " not in Path("/proc", file.stem, "stat").read_text():
                there.append(file.stem)
    return there


def test_a_second_signal_takes_the_processes_with_it(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command(STUBBORN, many, out, *FLAGS) as process:
        until(lambda: len(running(out)) == 2)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None
        assert len(running(out)) == 2  # they are waited for
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=10) == 130
        until(lambda: running(out) == [])


def test_no_process_outlives_the_one_it_works_for(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command(STUBBORN, many, out, *FLAGS) as process:
        until(lambda: len(running(out)) == 2)
        process.kill()
        until(lambda: running(out) == [])


def test_stop_ends_it_with_a_summary(
    two_gpus: None, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", SLOW))
    summary = gpucal.run(gpucal.open_dataset(many), out, CONFIG, stop=lambda: items_done(out) >= 3)
    assert (summary.done, summary.stopped) == (items_done(out), "interrupted")
    assert 3 <= summary.done == ITEMS - summary.left < ITEMS
    # Signalled before it listens, a process has nothing to say.
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    summary = gpucal.run(gpucal.open_dataset(many), tmp_path / "none", CONFIG, stop=lambda: True)
    assert (summary.done, summary.left, summary.failed, summary.stopped) == (0, ITEMS, {}, "interrupted")


def interrupt(happened: Callable[[], bool], times: int) -> threading.Thread:
    """Interrupt this process so many times, once something has happened."""

    def send() -> None:
        until(happened)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(("child", "times"), [(SLOW, 1), (STUBBORN, 2)], ids=["once", "twice"])
def test_an_interrupt_ends_the_processes(
    two_gpus: None, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str, times: int
) -> None:
    """In a notebook, whose process goes on. Those that are deaf have to be killed."""
    out = tmp_path / "out"
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", child))
    has_begun = {1: lambda: items_done(out) >= 3, 2: lambda: len(running(out)) == 2}[times]
    thread = interrupt(has_begun, times)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), pytest.warns(RunWarning, match="interrupted"):
        gpucal.run(gpucal.open_dataset(many), out, CONFIG)
    assert time.monotonic() - began < 30
    thread.join()
    assert running(out) == []
    assert items_done(out) < ITEMS
    assert [*out.rglob(".*")] == []


EVERY_OPTION: dict[str, Any] = {
    "backend": "cupy",
    "dtype": "float64",
    "product": "cubes",
    "variance": True,
    "workers": 4,
    "memory": 4 * 10**9,
    "overwrite": True,
    "strict": True,
}

# One that says what it was given.
TOLD = """
import pickle, sys
from pathlib import Path
share = pickle.load(sys.stdin.buffer)
Path(share.job.out, f"{share.observations[0].planet}.share").write_bytes(pickle.dumps(share))
"""


def test_a_process_gets_every_option(
    two_gpus: None, planets: gpucal.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the job itself travels, none can be forgotten."""
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", TOLD))
    config = CONFIG.replace(bad_pixels="nan", reduce="mean")
    job, _ = prepare(Request(planets, tmp_path, config, **EVERY_OPTION))
    began = time.monotonic()
    with pytest.raises(DeviceError, match="GPU 3: the process for it ended: exit code 0"):
        gpucal.run(planets, tmp_path, config, time_limit=3600, **EVERY_OPTION)
    shares = [pickle.loads((tmp_path / f"{planet}.share").read_bytes()) for planet in planets.planets]
    assert [[obs.key for obs in share.observations] for share in shares] == [[(17, 0)], [(23, 0)]]
    for share in shares:
        assert share.job == replace(job, workers=2, memory=2 * 10**9)
        assert 3600 <= share.until - began < 3660
