"""Planets spread over GPUs: a process of its own for each GPU, or several, and no CUDA in this one.

CUDA does not survive a fork, and a process that has chosen a device holds memory on it. So this process only counts
devices, and starts new processes with ``CUDA_VISIBLE_DEVICES`` set. Several share a GPU: its work for a planet takes
some milliseconds. The host's takes far more, of which Python's lock lets one thread of a process do most.

A process gets a pickled `Share` on its standard input. It answers with pickles on its standard output: what it logs,
how many observations have ended, and last its summary. The processes share the results folder, as runs side by side do.
Signals are for this process, which ends the others.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import IO

from gpucal.errors import BackendUnavailable, DeviceError, GpucalError
from gpucal.inputs.dataset import Observation
from gpucal.pipeline.machine import are_exclusive, machine_memory, visible_gpus
from gpucal.pipeline.memory import DEFAULT_MEMORY, DEVICE_MEMORY
from gpucal.pipeline.process import last_words, speak, start
from gpucal.results.writer import Store
from gpucal.runs import local
from gpucal.runs.interrupts import Interrupts
from gpucal.runs.job import Job
from gpucal.runs.summary import Summary
from gpucal.runs.watch import Watch
from gpucal.settings.detectors import DETECTORS

__all__ = ["Share", "execute", "gpus_for", "job_of_each", "usable_gpus", "work"]

log = logging.getLogger(__name__)

# Threads and planets that each of several processes on a GPU has at least, and how many there are at most. To start
# takes some seconds. With four cores and an NVIDIA H200, a planet took one process 0.13 s, and two together 0.09 s.
_THREADS, _PLANETS, _PROCESSES = 2, 16, 4

COMMAND = (sys.executable, "-P", "-c", "from gpucal.runs.gpus import work; work()")
"""What is started for each device."""


def usable_gpus(backend: str | None) -> list[str]:
    """List the GPUs that a backend, as asked for, may use; the entries are values for CUDA_VISIBLE_DEVICES."""
    wanted = backend or os.environ.get("GPUCAL_BACKEND") or "auto"
    able = wanted in ("auto", "cupy") and importlib.util.find_spec("cupy") is not None
    return visible_gpus() if able else []


def gpus_for(backend: str | None, planets: int, threads: int, memory: int | None = None) -> list[str]:
    """Choose the GPU of each process to spread so many planets over; none where this process is to do it all.

    A process of a GPU alone needs `gpucal.pipeline.memory.DEFAULT_MEMORY` of the bytes that all may have together.
    Those that share one need DEVICE_MEMORY each, and have half of the machine's where no limit is given.
    """
    gpus = usable_gpus(backend)
    if not gpus:
        return []
    bounds = threads // _THREADS, planets // _PLANETS, (memory or machine_memory() // 2) // DEVICE_MEMORY
    each = max(1, min(_PROCESSES, *(bound // len(gpus) for bound in bounds)))
    if each > 1 and are_exclusive():
        each = 1
    most = min(planets, memory // DEFAULT_MEMORY if memory else planets)
    chosen = (gpus * each)[:most]
    return chosen if len(chosen) > 1 else []


def job_of_each(job: Job, processes: int) -> Job:
    """Return the job of each of so many processes, which share its threads and its memory."""
    memory = job.memory and job.memory // processes
    return replace(job, workers=max(1, job.threads // processes), memory=memory)


@dataclass(frozen=True)
class Share:
    """The part of a run that one process does."""

    job: Job
    observations: list[Observation]
    until: float | None


def execute(devices: Sequence[str], job: Job, observations: list[Observation], watch: Watch, _: Store) -> None:
    """Calibrate the missing items in a process for each entry of ``devices``, every n-th planet in the same one.

    Raises DeviceError if a process ends without a summary. The others are waited for, and what they finished is kept.
    """
    watch.expect(len(observations))
    own = job_of_each(job, len(devices))
    planets = [*dict.fromkeys(obs.planet for obs in observations)]
    log.info("%d planets over processes on GPUs %s", len(planets), ", ".join(devices))
    processes: list[_Process] = []
    heard: list[Future[None]] = []
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(devices)))
        try:
            for n, device in enumerate(devices):
                mine = {*planets[n :: len(devices)]}
                share = Share(own, [obs for obs in observations if obs.planet in mine], watch.until)
                errors = stack.enter_context(tempfile.TemporaryFile())
                processes.append(_Process(device, share, errors))
                heard.append(pool.submit(processes[-1].hear))
            while wait(heard, timeout=0.5).not_done:
                watch.show(sum(one.ended for one in processes), sum(one.failed for one in processes))
                if watch.interrupts.requested():
                    _end(processes)
            for one in heard:
                one.result()
        finally:
            try:
                _end(processes)
                wait(heard)
            except BaseException:  # interrupted again: nothing is waited for
                for process in processes:
                    process.popen.kill()
                raise
            finally:
                _account(watch, processes)


class _Process:
    """A process for a device, and what it has said."""

    def __init__(self, device: str, share: Share, errors: IO[bytes]) -> None:
        self.device = device
        self.ended = self.failed = 0
        self.is_told = False
        self.summary: Summary | None = None
        self.error: GpucalError | None = None
        self.errors = errors
        with tempfile.TemporaryFile() as task:
            pickle.dump(share, task)
            task.seek(0)
            self.popen = start(COMMAND, task, errors, {"CUDA_VISIBLE_DEVICES": device})

    def hear(self) -> None:
        """Take what the process says until it ends, and log what it logs."""
        with self.popen as popen, suppress(EOFError, pickle.UnpicklingError):  # of one that is killed
            assert popen.stdout is not None
            while True:
                said: logging.LogRecord | tuple[int, int] | Summary | GpucalError = pickle.load(popen.stdout)
                if isinstance(said, Summary):
                    self.summary = said
                elif isinstance(said, GpucalError):
                    self.error = said
                elif isinstance(said, tuple):
                    self.ended, self.failed = said
                else:
                    local.relay(said, f"GPU {self.device}")


def _end(processes: Iterable[_Process]) -> None:
    for process in processes:
        if not process.is_told and process.popen.poll() is None:
            process.is_told = True  # once, as a second signal would end it at once
            process.popen.terminate()


def _account(watch: Watch, processes: Sequence[_Process]) -> None:
    """Add the summaries. A process that was told to end may have none."""
    summary = watch.summary
    lost = [process for process in processes if process.summary is None]
    for process in processes:
        if process.summary:
            summary.add(process.summary)
    # A process that was killed has not told what is left.
    summary.left = watch.observations * len(DETECTORS) - summary.done - summary.skipped - len(summary.failed)
    watch.update()
    if any(process.is_told for process in processes):
        summary.stopped = summary.stopped or ("interrupted" if summary.left else "")
    elif lost:
        first = lost[0]
        if isinstance(first.error, BackendUnavailable):
            raise first.error
        why = last_words(first.errors) or f"exit code {first.popen.returncode}"
        raise DeviceError(f"GPU {first.device}: the process for it ended: {why}")


def work() -> None:
    """Be the process for a device: calibrate a `Share`, and tell of it."""
    share: Share = pickle.load(sys.stdin.buffer)
    say = speak()
    with Interrupts() as interrupts:
        interrupts.defer()
        watch = Watch(interrupts, share.until, show=lambda ended, failed: say((ended, failed)))
        try:
            with closing(Store(share.job.out)) as store:
                local.execute(share.job, share.observations, watch, store)
        except GpucalError as error:
            say(error)
            sys.exit(f"gpucal: {error}")
        say(watch.summary)
