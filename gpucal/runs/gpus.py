"""Several GPUs: planets spread over them, a process of its own for each, and no CUDA in this one.

CUDA does not survive a fork, and a process that has chosen a device holds memory on it. So this process only counts
devices, starts ``gpucal calibrate`` once for each with ``CUDA_VISIBLE_DEVICES`` set, and hands on what they say. They
share the results folder, which loses nothing to runs side by side. Signals are for this process, which ends the others.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucal.errors import DeviceError
from gpucal.pipeline.machine import visible_gpus
from gpucal.pipeline.memory import DEFAULT_MEMORY
from gpucal.runs.summary import Summary

__all__ = ["Fleet", "gpus_for"]

log = logging.getLogger(__name__)

# What is started for each device, before the arguments of ``gpucal``.
COMMAND = (sys.executable, "-P", "-m", "gpucal")

# Becomes a command that the kernel kills (PR_SET_PDEATHSIG) when the process that started it ends, however that ends.
_BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def gpus_for(backend: str | None, planets: int, memory: int | None = None) -> list[str]:
    """Choose the GPUs to spread planets over.

    Parameters
    ----------
    backend : str, optional
        As asked for.
    planets : int
        How many there are to calibrate.
    memory : int, optional
        Bytes that all processes may have together; each needs `gpucal.pipeline.memory.DEFAULT_MEMORY`.

    Returns
    -------
    list of str
        Values for CUDA_VISIBLE_DEVICES; empty where one process is to do it all.
    """
    wanted = backend or os.environ.get("GPUCAL_BACKEND") or "auto"
    most = min(planets, memory // DEFAULT_MEMORY if memory else planets)
    gpus = visible_gpus()[:most] if wanted in ("auto", "cupy") else []
    able = len(gpus) > 1 and importlib.util.find_spec("cupy") is not None
    return gpus if able else []


@dataclass(frozen=True)
class Fleet:
    """The settings that all processes share.

    Parameters
    ----------
    dataset, out : Path
        The competition folder and the results folder.
    settings : str
        The settings, as TOML.
    options : mapping of str to value
        Further options of ``gpucal calibrate``; True for a flag, None, False or an empty list for none.
    """

    dataset: Path
    out: Path
    settings: str
    options: Mapping[str, object]

    def run(
        self,
        gpus: Sequence[str],
        planets: Sequence[int],
        summary: Summary,
        *,
        stop: Callable[[], bool],
        tick: Callable[[], None],
    ) -> None:
        """Calibrate planets, every n-th on the same GPU.

        Parameters
        ----------
        gpus : sequence of str
            From `gpus_for`.
        planets : sequence of int
            Which.
        summary : Summary
            What the processes have done is added, after an interrupt, too.
        stop : callable
            Asked about twice a second; once it says True the processes are told to end, and waited for.
        tick : callable
            Called as often, for a progress bar.

        Raises
        ------
        DeviceError
            If a process ends without a summary. The others are waited for; what all of them finished is kept.
        """
        processes: list[subprocess.Popen[str]] = []
        said: list[Future[tuple[str, str]]] = []
        ended = False
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(gpus)) as pool:
            arguments = self._arguments(Path(folder) / "config.toml")
            log.info("%d planets over GPUs %s, a process each", len(planets), ", ".join(gpus))
            try:
                for n, gpu in enumerate(gpus):
                    processes.append(_start(gpu, [*arguments, "--planet", *map(str, planets[n :: len(gpus)])]))
                    said.append(pool.submit(processes[-1].communicate))
                while wait(said, timeout=0.5).not_done:
                    tick()
                    if not ended and stop():
                        ended = True
                        _end(processes)
                tick()
            except BaseException:
                ended = True
                try:
                    _end(processes)
                    wait(said)
                except BaseException:  # interrupted again: nothing is waited for
                    for process in processes:
                        process.kill()
                    raise
                raise
            finally:
                _account(summary, zip(gpus, processes, (one.result() for one in said), strict=False), ended=ended)

    def _arguments(self, toml: Path) -> list[str]:
        toml.write_text(self.settings, encoding="utf-8")
        arguments = ["calibrate", str(self.dataset), str(self.out), "--config", str(toml), "--json"]
        for option, value in self.options.items():
            values = value if isinstance(value, list) else [value]
            arguments += [option] if value is True else [option, *map(str, values)] if value else []
        return arguments


def _start(gpu: str, arguments: list[str]) -> subprocess.Popen[str]:
    # It finds modules where this process does, folders added in a notebook included.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    bound = [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid())]
    pipe = subprocess.PIPE
    # In a session of its own: a terminal signals all of one, and a second signal, from here, would end it at once.
    return subprocess.Popen(
        [*bound, *COMMAND, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def _end(processes: Iterable[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()


def _account(
    summary: Summary, facts: Iterable[tuple[str, subprocess.Popen[str], tuple[str, str]]], *, ended: bool
) -> None:
    """Add what processes printed last, and hand on what they logged; some were ``ended`` before they could say much."""
    lost: list[DeviceError] = []
    for gpu, process, said in facts:
        printed, logged = (text.strip().splitlines() for text in said)
        try:
            report: dict[str, Any] = json.loads(printed[-1])
        except (ValueError, IndexError) as error:
            if not ended:
                reason = logged[-1].removeprefix("gpucal: ") if logged else f"exit code {process.returncode}"
                lost.append(DeviceError(f"GPU {gpu}: the process for it ended: {reason}"))
                lost[-1].__cause__ = error
                continue
            report = vars(Summary(stopped="interrupted"))
        summary.add(report)
        # What the caller says itself.
        known = [*report["failed"].values(), f"gpucal: {report['stopped']}: ", f"ended by {signal.SIGTERM.name}"]
        for line in logged:
            if not any(part in line for part in known):
                log.warning("GPU %s: %s", gpu, line)
    if lost:
        raise lost[0]
