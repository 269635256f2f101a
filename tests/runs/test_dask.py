"""The same work on Dask, on clusters in this process and on ones that are started from the command line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import conftest
import pytest
from conftest import BINS, PLANETS, Made, items_done
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError
from emulator import standin
from launch import require_compiler

import gpucal
from gpucal.cli.main import main
from gpucal.errors import BackendUnavailable, ClusterError, ConfigError, MissingExtra, OutputLost
from gpucal.results.records import records
from gpucal.results.writer import Store
from gpucal.runs import cluster, dask, local
from gpucal.runs.job import Job
from gpucal.runs.watch import Watch
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, ORDER

CONFIG = Calibration(bins=BINS, integration="notebook")
ITEMS = 2 * len(PLANETS)
FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]

PATIENCE = 120.0
"""Seconds after which something hangs."""

until = partial(conftest.until, seconds=PATIENCE)


@pytest.fixture(scope="module")
def locally(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of them without Dask. Not to be written to."""
    out = tmp_path_factory.mktemp("locally") / "out"
    assert gpucal.run(gpucal.open_dataset(many), out, CONFIG).done == 2 * len(PLANETS)
    return out


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """A cluster in this process: a worker of two threads."""
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0") as client:
        yield client


def arrays(out: Path, planets: Sequence[int] = PLANETS) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes()
        for planet in planets
        for file in sorted((out / str(planet)).rglob("*.npy"))
    }


def hidden(out: Path) -> list[Path]:
    return [*out.rglob(".*")]


# Items that take a while, 40 of them 8 s and more: what interrupts a run does so before it is over.
LEISURELY = """
import time
from gpucal.results.writer import Store

commit = Store.__dict__.get("plain", Store.commit)  # Dask may import this twice

def leisurely(self, *arguments, **options):
    commit(self, *arguments, **options)
    time.sleep(0.2)

Store.plain, Store.commit = commit, leisurely
"""


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes a worker's items `LEISURELY`."""
    path = tmp_path_factory.mktemp("preload") / "leisurely.py"
    path.write_text(LEISURELY)
    return path


@pytest.fixture
def leisurely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process."""
    commit = Store.commit

    def slow(self: Store, *arguments: Any, **options: Any) -> None:
        commit(self, *arguments, **options)
        time.sleep(0.2)

    monkeypatch.setattr(Store, "commit", slow)


# A cluster of processes, started as people do.


class Processes:
    """A scheduler, and workers, each a process of the command line's."""

    def __init__(self, folder: Path, stack: ExitStack, **settings: object) -> None:
        self.folder, self.stack, self.count = folder, stack, 0
        names = {f"DASK_DISTRIBUTED__{name.upper()}": str(value) for name, value in settings.items()}
        self.environment = {**os.environ, "PYTHONWARNINGS": "", **names}
        self.file = folder / "scheduler.json"
        # It ends by itself should this process not live to end it, and the workers with it.
        options = ["--port", "0", "--dashboard-address", ":0", "--idle-timeout", "300s"]
        self.scheduler = self.start("scheduler", *options)
        until(lambda: self.file.exists() and self.file.read_text().endswith("}"))
        self.address: str = json.loads(self.file.read_text())["address"]
        self.client = stack.enter_context(Client(self.address, set_as_default=False))

    def start(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", what, "--host", "127.0.0.1", *options]
        self.count += 1
        log = self.stack.enter_context((self.folder / f"{what}-{self.count}.log").open("wb"))
        process = subprocess.Popen(
            [*command, "--scheduler-file", str(self.file)],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self.stack.callback(ended, process)
        return process

    def worker(self, *options: str) -> subprocess.Popen[bytes]:
        before = len(self.client.nthreads())
        process = self.start(
            "worker", "--nthreads", "1", "--death-timeout", "60", "--dashboard-address", ":0", *options
        )
        until(lambda: len(self.client.nthreads()) == before + 1)
        return process


def ended(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def processes(folder: Path, **settings: object) -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(folder, stack, **settings)


@pytest.fixture(scope="module")
def real(preload: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A scheduler and a worker of leisure."""
    with processes(tmp_path_factory.mktemp("dask")) as started:
        started.worker("--preload", str(preload))
        yield started


@contextmanager
def command(*arguments: object, preload: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """The command line in a session of its own; a local cluster's workers load what is to be loaded first."""
    environment = {**os.environ, "PYTHONWARNINGS": ""}
    if preload:
        environment["DASK_DISTRIBUTED__WORKER__PRELOAD"] = str([str(preload)])
    process = subprocess.Popen(
        [sys.executable, "-m", "gpucal", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            ended(process)


def test_a_worker_is_killed_and_nothing_is_lost(
    real: Processes, preload: Path, many: Path, locally: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    doomed = real.worker("--no-nanny", "--preload", str(preload))
    assert len(real.client.nthreads()) == 2
    with command("calibrate", many, out, *FLAGS, "--dask", real.address, "--json") as process:
        until(lambda: items_done(out) >= 4)
        doomed.kill()
        assert items_done(out) < 2 * len(PLANETS)
        # What one that is killed while it writes leaves, certainly.
        folder = next(out.glob("*/0"))
        (folder / ".AIRS-CH0.signal.npy.0123.tmp").write_bytes(b"half")
        said, logged = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, logged
    summary = json.loads(said)
    # An item that was finished by the one killed, with no account of it, is found there by the one that has it next.
    assert summary["done"] + summary["skipped"] == items_done(out) == 2 * len(PLANETS)
    assert (summary["failed"], summary["left"], summary["stopped"]) == ({}, 0, "")
    assert summary["skipped"] <= 4
    assert arrays(out) == arrays(locally)
    assert hidden(out) == []
    assert len(real.client.nthreads()) == 1
    assert logged == ""


def test_an_interrupt_leaves_the_workers_idle(real: Processes, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command("calibrate", many, out, *FLAGS, "--dask", real.address, "--json") as process:
        until(lambda: items_done(out) >= 3)
        process.send_signal(signal.SIGINT)
        said, logged = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    done = items_done(out)
    assert (json.loads(said)["done"], json.loads(said)["stopped"]) == (done, "interrupted")
    assert 3 <= done < 2 * len(PLANETS)
    left = 2 * len(PLANETS) - done
    assert logged.splitlines() == [
        f"gpucal: interrupted: {done} done, 0 finished before, 0 failed, {left} left; finished items are kept, "
        "run it again to continue",
        "gpucal: ended by SIGINT",
    ]
    until(lambda: not any(real.client.processing().values()))
    time.sleep(0.5)
    assert items_done(out) == done
    assert hidden(out) == []


def test_a_broken_planet_costs_itself(real: Processes, many: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(many, raw, symlinks=True)
    (raw / "train" / "103").unlink()
    shutil.copytree(many / "train" / "103", raw / "train" / "103")
    (raw / "train" / "103" / "FGS1_signal.parquet").write_bytes(b"PAR1")
    with command(
        "calibrate", raw, out, *FLAGS, "--dask", real.address, "--planet", *range(101, 106), "--json"
    ) as process:
        said, logged = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (line,) = logged.splitlines()
    assert line.startswith("gpucal: planet 103 visit 0 FGS1: ")
    summary = json.loads(said)
    assert (summary["done"], [*summary["failed"]]) == (9, ["planet 103 visit 0 FGS1"])
    assert (out / "gpucal.log").read_text().count("planet 103") == 1


DEADLY = """
import os
from gpucal.runs import local

execute = getattr(local, "plain", local.execute)  # Dask may import this twice

def deadly(job, observations, *rest):
    if observations[0].planet == 101:
        os._exit(3)
    execute(job, observations, *rest)

local.plain, local.execute = execute, deadly
"""


def test_an_observation_that_kills_its_workers_costs_itself(many: Path, tmp_path: Path) -> None:
    out, preload = tmp_path / "out", tmp_path / "deadly.py"
    preload.write_text(DEADLY)
    with processes(tmp_path, scheduler__allowed_failures=0) as started:
        started.worker("--preload", str(preload))
        dataset = gpucal.open_dataset(many)
        summary = gpucal.run(dataset, out, CONFIG, planets=range(100, 104), client=started.client)
    where = [f"planet 101 visit 0 {name}" for name in ORDER]
    assert (summary.done + summary.skipped, [*summary.failed], summary.left) == (6, where, 0)
    assert all("every worker that had it died" in line for line in summary.failed.values())
    failed = [record for record in records(out) if record["status"] == "failed"]
    assert [record["planet"] for record in failed] == [101, 101]
    assert hidden(out) == []


# The first process dies in its second observation, when the account of the first has come.
DEADLY_ONCE = """
import os
import time
from pathlib import Path
from gpucal.runs import local

execute = getattr(local, "plain", local.execute)  # Dask may import this twice
had = []

def deadly(job, observations, *rest):
    had.append(observations)
    if len(had) == 2 and not Path("died").exists():
        while not Path("came").exists():
            time.sleep(0.01)
        Path("died").touch()
        os._exit(3)
    execute(job, observations, *rest)

local.plain, local.execute = execute, deadly
"""


def test_an_account_that_went_with_its_worker_is_made_again(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account stays on the worker that made it until it is taken, and what kills that worker takes it along."""
    out, preload = tmp_path / "out", tmp_path / "deadly.py"
    preload.write_text(DEADLY_ONCE)
    states: list[str] = []

    def late(spread: Any, future: Any) -> None:
        if not states:
            (tmp_path / "came").touch()
            until(lambda: future.status != "finished")
        states.append(future.status)
        take(spread, future)

    take = dask._Spread._take
    monkeypatch.setattr(dask._Spread, "_take", late)
    with processes(tmp_path) as started:
        started.worker("--preload", str(preload))
        summary = gpucal.run(gpucal.open_dataset(many), out, CONFIG, planets=[101, 102], client=started.client)
    assert states[0] == "lost"
    assert (summary.done + summary.skipped, summary.failed, summary.left) == (4, {}, 0)
    assert items_done(out) == 4


def test_what_is_not_made_again_has_failed(many: Path, tmp_path: Path) -> None:
    """As a local run has it, where a result of before is there, but was to be made again."""
    out, preload = tmp_path / "out", tmp_path / "deadly.py"
    preload.write_text(DEADLY)
    dataset = gpucal.open_dataset(many)
    assert gpucal.run(dataset, out, CONFIG, planets=[101, 102]).done == 4
    with processes(tmp_path, scheduler__allowed_failures=0) as started:
        started.worker("--preload", str(preload))
        how: dict[str, Any] = {"planets": [101, 102], "client": started.client}
        summary = gpucal.run(dataset, out, CONFIG, overwrite=True, **how)
        assert (summary.skipped, [*summary.failed]) == (0, [f"planet 101 visit 0 {name}" for name in ORDER])
        assert items_done(out) == 4  # what was there is kept


# As if it were not installed there.
WITHOUT = """
import sys

for name in [name for name in sys.modules if name.partition(".")[0] == "gpucal"]:
    del sys.modules[name]
sys.modules["gpucal"] = None
"""


def test_workers_without_gpucal(many: Path, tmp_path: Path) -> None:
    (tmp_path / "without.py").write_text(WITHOUT)
    with processes(tmp_path) as started:
        started.worker("--no-nanny", "--preload", str(tmp_path / "without.py"))
        with pytest.raises(ClusterError, match=r"the worker tcp://\S* has no gpucal \S*; install it"):
            gpucal.run(gpucal.open_dataset(many), tmp_path / "out", CONFIG, client=started.client)


def test_a_scheduler_that_dies_is_one_line(preload: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with processes(tmp_path) as started:
        started.worker("--preload", str(preload))
        with command("calibrate", many, out, *FLAGS, "--dask", started.address) as process:
            until(lambda: items_done(out) >= 1)
            started.scheduler.kill()
            _, logged = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert re.fullmatch(r"gpucal: .*the scheduler is lost.*\n", logged), logged


def test_dask_does_not_log_that_a_message_was_lost(
    real: Processes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a traceback, to a terminal: what a client has to say in the moment in which a scheduler dies."""

    async def closed(*message: object, **how: object) -> None:
        comm.abort()
        raise CommClosedError

    with cluster.connected(real.address, workers=None, memory=None) as client:
        sender = client.scheduler_comm
        comm = sender.comm
        monkeypatch.setattr(logging.getLogger("distributed"), "handlers", [caplog.handler])  # which hands nothing on
        monkeypatch.setattr(comm, "write", closed)
        client.submit(int)
        # closed while it connects again, it would leave a socket open
        until(lambda: client.scheduler_comm is not sender and client.status == "running")
    assert caplog.messages == []


def test_no_scheduler_is_one_line(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    for address in ("tcp://127.0.0.1:9", "127.0.0.1:9", "nonsense", "foo://bar:1"):
        assert main(["calibrate", str(many), str(tmp_path / "out"), "--dask", address]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"gpucal: {address}: no Dask scheduler answers")
    assert not (tmp_path / "out").exists()


def test_a_local_cluster(many: Path, locally: Path, tmp_path: Path) -> None:
    out, planets = tmp_path / "out", range(100, 104)
    with command("calibrate", many, out, *FLAGS, "--planet", *planets, "--json", "--dask") as process:
        said, logged = process.communicate(timeout=PATIENCE)
    assert (process.returncode, logged) == (0, "")
    assert json.loads(said)["done"] == 8
    assert arrays(out, planets) == arrays(locally, planets)


def test_an_interrupt_from_the_terminal_ends_a_local_cluster(preload: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command("calibrate", many, out, *FLAGS, "--dask", preload=preload) as process:
        until(lambda: items_done(out) >= 1)
        os.killpg(process.pid, signal.SIGINT)  # which a terminal sends to every process of the command
        _, logged = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    interrupted, last = logged.splitlines()
    assert interrupted.startswith(f"gpucal: interrupted: {items_done(out)} done")
    assert last == "gpucal: ended by SIGINT"
    assert hidden(out) == []


def session(leader: int) -> list[str]:
    """What is there still of a session, but for zombies."""
    stats = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            stats.append(file.read_text().rpartition(") ")[2].split())
    return [stat[0] for stat in stats if stat[3] == str(leader) and stat[0] != "Z"]


def test_a_second_signal_leaves_no_process_of_a_local_cluster(preload: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command("calibrate", many, out, *FLAGS, "--dask", preload=preload) as process:
        until(lambda: items_done(out) >= 1)
        assert len(session(process.pid)) > 1
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
        process.communicate(timeout=10)
        assert process.returncode == 130
        until(lambda: session(process.pid) == [])


# What a cluster within this process is enough for.


@pytest.mark.usefixtures("leisurely")
def test_stop_is_asked(threads: Client, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = gpucal.run(gpucal.open_dataset(many), out, CONFIG, client=threads, stop=lambda: items_done(out) >= 4)
    assert (summary.done, summary.stopped) == (items_done(out), "interrupted")
    assert 4 <= summary.done == ITEMS - summary.left < ITEMS
    until(lambda: not any(threads.processing().values()))
    none = gpucal.run(gpucal.open_dataset(many), tmp_path / "none", CONFIG, client=threads, stop=lambda: True)
    assert (none.done + none.left, none.stopped) == (ITEMS, "interrupted")
    assert none.done <= 2 * 2 * 2  # what the worker had at once


def test_a_worker_that_waits_for_another_run_can_be_halted(threads: Client, many: Path, tmp_path: Path) -> None:
    dataset, out = gpucal.open_dataset(many), tmp_path / "out"
    with closing(Store(out)) as another:
        another.begin(Job(out, CONFIG, "float32", "cubes", False, "numpy", 1, None).settings)
        assert another.claim(dataset[100].item(DETECTORS["AIRS-CH0"]))
        how: dict[str, Any] = {"planets": [100], "client": threads, "backend": "numpy"}
        began = time.monotonic()
        summary = gpucal.run(dataset, out, CONFIG, stop=lambda: items_done(out) >= 1, **how)
        assert time.monotonic() - began < 15
        assert (summary.done, summary.left, summary.failed, summary.stopped) == (1, 1, {}, "interrupted")
        # The worker is free for others.
        assert gpucal.run(dataset, tmp_path / "other", CONFIG, time_limit=15.0, **how).done == 2


def test_threads_asked_for_are_those_of_every_worker(
    threads: Client, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    execute = local.execute

    def noted(job: Job, *rest: Any) -> None:
        asked.append(job.threads)
        execute(job, *rest)

    monkeypatch.setattr(local, "execute", noted)
    dataset = gpucal.open_dataset(many)
    here = gpucal.pipeline.machine.usable_cores()
    how: dict[str, Any] = {"planets": [100], "backend": "numpy"}
    for n, workers in enumerate((here, here + 1)):
        gpucal.run(dataset, tmp_path / str(n), CONFIG, client=threads, workers=workers, **how)
    # what Dask gives a worker somewhere else
    with Client(
        processes=False, n_workers=1, threads_per_worker=7, dashboard_address=":0", set_as_default=False
    ) as seven:
        gpucal.run(dataset, tmp_path / "seven", CONFIG, client=seven, **how)
    assert asked == [here, here + 1, 7]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_numbers_are_those_of_a_local_run(threads: Client, new: Made, tmp_path: Path, backend: str) -> None:
    dataset = gpucal.open_dataset(new[0])
    options: dict[str, Any] = {"backend": backend, "variance": True, "dtype": "float64"}
    there = gpucal.run(dataset, tmp_path / "there", CONFIG, client=threads, **options)
    here = gpucal.run(dataset, tmp_path / "here", CONFIG, **options)
    assert (there.done, there.backend, there.failed, there.left) == (here.done, backend, {}, 0)
    assert there.stages["bin"] > 0
    assert arrays(tmp_path / "there", [5]) == arrays(tmp_path / "here", [5])
    again = gpucal.run(dataset, tmp_path / "there", CONFIG, client=threads, **options)
    assert (again.done, again.skipped) == (0, 4)


def test_pages_on_a_gpu_are_the_numbers_of_a_cpu(threads: Client, new: Made, tmp_path: Path) -> None:
    require_compiler()
    dataset = gpucal.open_dataset(new[0])
    here = gpucal.run(dataset, tmp_path / "here", CONFIG, backend="numba", dtype="float64")
    with standin.installed():
        there = gpucal.run(dataset, tmp_path / "there", CONFIG, backend="cupy", client=threads, dtype="float64")
    assert (there.done, there.backend, there.failed, there.pages) == (here.done, "cupy", {}, here.pages)
    assert arrays(tmp_path / "there", [5]) == arrays(tmp_path / "here", [5])


def test_what_travels_is_small(threads: Client, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told = [], []
    submit = threads.submit

    def submitted(function: object, *arguments: Any, **options: Any) -> object:
        asked.append(len(pickle.dumps([a for a in arguments if not hasattr(a, "add_done_callback")])))
        future = submit(function, *arguments, **options)
        if function is dask.calibrate_one:
            future.add_done_callback(lambda ended: told.append(len(pickle.dumps(ended.result()))))
        return future

    monkeypatch.setattr(threads, "submit", submitted)
    dataset = gpucal.open_dataset(many)
    assert gpucal.run(dataset, tmp_path / "out", CONFIG, planets=PLANETS[:3], client=threads).done == 6
    assert len(asked) == 4
    until(lambda: len(told) == 3)
    assert max(asked) < 4000
    assert max(told) < 1000
    (obs,) = [obs for obs in dataset if obs.planet == 100]
    gpucal.calibrate(obs, "AIRS-CH0", CONFIG, backend="numpy")
    copy = pickle.loads(listing := pickle.dumps(dataset))
    assert len(listing) < 100 * len(PLANETS)
    assert [o.key for o in copy] == [o.key for o in dataset]
    fgs1 = DETECTORS["FGS1"]
    assert copy[100].frames(fgs1).digest == dataset[100].frames(fgs1).digest


def test_an_error_is_heard_once(threads: Client, old: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(old[0], raw)
    (raw / "train" / "17" / "FGS1_signal.parquet").unlink()
    summary = gpucal.run(gpucal.open_dataset(raw), tmp_path / "out", CONFIG, client=threads)
    assert (summary.done, [*summary.failed]) == (3, ["planet 17 visit 0 FGS1"])
    said = [record.getMessage() for record in caplog.records if record.name.startswith("gpucal")]
    assert said == [*summary.failed.values()]
    assert (tmp_path / "out" / "gpucal.log").read_text().count("FGS1_signal") == 1


def test_the_time_limit(threads: Client, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = gpucal.open_dataset(many)
    execute = local.execute

    def slow(*arguments: Any) -> None:
        execute(*arguments)
        time.sleep(1.0)

    monkeypatch.setattr(local, "execute", slow)
    began = time.monotonic()
    summary = gpucal.run(dataset, tmp_path / "out", CONFIG, client=threads, time_limit=4.0, backend="numpy")
    assert time.monotonic() - began < 5.0
    assert summary.stopped == "time limit"
    assert 1 <= summary.done < 2 * len(PLANETS)
    assert summary.done + summary.left == 2 * len(PLANETS)
    assert items_done(tmp_path / "out") >= summary.done
    over = gpucal.run(dataset, tmp_path / "none", CONFIG, client=threads, time_limit=1e-9)
    assert (over.done, over.left, over.stopped) == (0, 2 * len(PLANETS), "time limit")


def test_what_hangs_does_not_outlive_the_time_limit(
    threads: Client, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "execute", lambda *_: time.sleep(4.0))
    began = time.monotonic()
    summary = gpucal.run(gpucal.open_dataset(many), tmp_path / "out", CONFIG, client=threads, time_limit=1.0)
    assert time.monotonic() - began < 3.5
    assert (summary.done, summary.left, summary.stopped) == (0, 2 * len(PLANETS), "time limit")


@pytest.mark.usefixtures("leisurely")
def test_an_interrupt_counts_what_is_in_hand(threads: Client, many: Path, tmp_path: Path) -> None:
    job = Job(tmp_path / "out", CONFIG, "float32", "cubes", False, "numpy", 1, None)
    assert Store(job.out).begin(job.settings)
    dataset = gpucal.open_dataset(many)

    def interrupted(ended: int, failed: int) -> None:
        if ended >= 2:
            raise KeyboardInterrupt

    watch = Watch(show=interrupted)
    summary = watch.summary
    with closing(Store(job.out)) as store, pytest.raises(KeyboardInterrupt):
        dask.execute(threads, job, [*dataset], watch, store)
    assert 4 <= summary.done == items_done(job.out) < 2 * len(PLANETS)
    assert summary.left == 2 * len(PLANETS) - summary.done
    until(lambda: not any(threads.processing().values()))


def test_a_full_disk_stops_the_run(
    threads: Client, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Store.commit

    def full(self: Store, cal: gpucal.Calibrated, *arguments: Any, **options: Any) -> None:
        if cal.planet >= 103:
            raise OutputLost("disk: cannot be written (No space left on device)")
        commit(self, cal, *arguments, **options)

    monkeypatch.setattr(Store, "commit", full)
    summary = gpucal.run(gpucal.open_dataset(many), tmp_path / "out", CONFIG, client=threads)
    assert summary.done == items_done(tmp_path / "out") <= 6
    assert 1 <= len(summary.failed) <= 2
    said = re.fullmatch(
        r"\S+/out: nothing more can be written; the (\d+) items still to be done need about \d+ MB and .* are free; .*",
        summary.stopped,
    )
    assert said is not None, summary.stopped
    assert summary.left <= int(said[1]) <= summary.left + 4  # those in hand meanwhile
    assert summary.left == 2 * len(PLANETS) - summary.done - len(summary.failed)


def test_what_ends_a_worker_ends_the_run(
    threads: Client, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = gpucal.open_dataset(many)

    def unavailable(*_: object, **__: object) -> None:
        raise BackendUnavailable("no GPU here; take another backend")

    monkeypatch.setattr(local, "execute", unavailable)
    with pytest.raises(BackendUnavailable, match="no GPU here"):
        gpucal.run(dataset, tmp_path / "out", CONFIG, client=threads)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(local, "execute", broken)
    with pytest.raises(
        ClusterError, match=r"planet 10. visit 0: ZeroDivisionError: a bug; the log of the worker inproc:"
    ):
        gpucal.run(dataset, tmp_path / "out", CONFIG, client=threads)


def test_workers_see_what_the_client_sees(
    threads: Client, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out, submit = tmp_path / "raw", tmp_path / "out", threads.submit
    shutil.copytree(many, raw, symlinks=True)
    dataset = gpucal.open_dataset(raw)

    def elsewhere(change: Callable[[], object]) -> None:
        """Change something between the client and the workers."""

        def changed(*arguments: Any, **options: Any) -> object:
            change()
            return submit(*arguments, **options)

        monkeypatch.setattr(threads, "submit", changed)

    elsewhere(lambda: (out / "config.toml").unlink(missing_ok=True))
    with pytest.raises(ClusterError, match=r"config.toml: not there on the worker inproc://.*; give a folder"):
        gpucal.run(dataset, out, CONFIG, client=threads)
    version = dask.__version__
    monkeypatch.setattr(dask, "__version__", "0.0")
    elsewhere(lambda: monkeypatch.setattr(dask, "__version__", version))
    with pytest.raises(ClusterError, match=r"gpucal .* on the worker .* and 0.0 here: install the same"):
        gpucal.run(dataset, out, CONFIG, client=threads)
    elsewhere(lambda: raw.exists() and raw.rename(tmp_path / "moved"))
    with pytest.raises(ClusterError, match=r"raw: not there on the worker inproc://"):
        gpucal.run(dataset, out, CONFIG, client=threads)


def test_a_cluster_without_workers(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "ALONE", 0.5)
    monkeypatch.setattr(dask, "LOOK", 0.2)
    with (
        LocalCluster(processes=False, n_workers=0, dashboard_address=":0") as empty,
        Client(empty, set_as_default=False) as client,
        pytest.raises(ClusterError, match="has no workers; start some"),
    ):
        gpucal.run(gpucal.open_dataset(many), tmp_path / "out", CONFIG, client=client)


def test_clients_that_cannot_be_used(many: Path, tmp_path: Path) -> None:
    dataset = gpucal.open_dataset(many)

    async def asynchronous() -> None:
        async with Client(processes=False, asynchronous=True, n_workers=1, dashboard_address=":0") as client:
            gpucal.run(dataset, tmp_path / "out", CONFIG, client=client)

    with pytest.raises(ConfigError, match="an asynchronous client cannot be used"):
        asyncio.run(asynchronous())
    wrong: Any = "tcp://127.0.0.1:8786"
    with pytest.raises(ConfigError, match="a str cannot be used"):
        gpucal.run(dataset, tmp_path / "out", CONFIG, client=wrong)
    with Client(processes=False, n_workers=1, dashboard_address=":0", set_as_default=False) as closed:
        pass
    with pytest.raises(ClusterError, match="it is closed"):
        gpucal.run(dataset, tmp_path / "out", CONFIG, client=closed)


def test_dask_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"gpucal\[dask\]"), cluster.connected(None, workers=None, memory=None):
        pass


def test_a_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "cupy" or None)
    with cluster.connected(None, workers=None, memory=None) as client:
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == ["3", "GPU-8f"]


def test_gpus_count_only_where_they_may_be_used(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = []

    def local(**options: Any) -> None:
        made.append(options["n_workers"])
        raise ClusterError("seen")

    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    monkeypatch.setattr("distributed.LocalCluster", local)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 10**12)
    monkeypatch.setattr(cluster, "usable_cores", lambda: 16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "cupy" or None)
    for backend in (None, "cupy", "numba", "numpy"):
        flags = [] if backend is None else ["--backend", backend]
        assert main(["calibrate", str(many), str(tmp_path / "out"), "--dask", *flags]) == 2
        assert capfd.readouterr().err == "gpucal: seen\n"
    monkeypatch.setenv("GPUCAL_BACKEND", "numba")
    for backend in ("auto", None):
        with (
            pytest.raises(ClusterError, match="seen"),
            cluster.connected(None, workers=None, memory=None, backend=backend),
        ):
            pass
    assert made == [1, 1, 16, 16, 1, 16]


def test_dask_cuda_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def cuda(**options: object) -> None:
        raise ClusterError(str(options["CUDA_VISIBLE_DEVICES"]))

    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in ("cupy", "dask_cuda") or None)
    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=cuda))
    with pytest.raises(ClusterError, match="3,GPU-8f"), cluster.connected(None, workers=None, memory=None):
        pass


def test_a_local_cluster_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def local(**options: Any) -> None:
        made.append(options["n_workers"])
        raise ClusterError("seen")

    monkeypatch.setattr("distributed.LocalCluster", local)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 10 * 10**9)
    monkeypatch.setattr(cluster, "usable_cores", lambda: 16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for workers, memory in ((None, None), (4, None), (1, 10**9), (None, 2 * 10**9), (32, None)):
        with pytest.raises(ClusterError, match="seen"), cluster.connected(None, workers=workers, memory=memory):
            pass
    assert made == [15, 4, 10, 5, 1]
    with pytest.raises(ConfigError, match="workers = 0"), cluster.connected(None, workers=0, memory=None):
        pass
