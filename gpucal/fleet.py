"""Several GPUs: planets spread over them, a process of its own for each, and no CUDA in this one.

CUDA does not survive a fork, and a process that has chosen a device holds memory on it. So this process only counts
devices, starts ``gpucal calibrate`` once for each with ``CUDA_VISIBLE_DEVICES`` set, and hands on what they say. They
share the results folder, which loses nothing to runs side by side.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucal.budget import DEFAULT_MEMORY
from gpucal.errors import DeviceError
from gpucal.limits import visible_gpus

__all__ = ["Fleet", "gpus_for"]

log = logging.getLogger(__name__)

# What is started for each device, before the arguments of ``gpucal``.
COMMAND = (sys.executable, "-P", "-m", "gpucal.cli")


def gpus_for(backend: str | None, planets: int, memory: int | None = None) -> list[str]:
    """Choose the GPUs to spread planets over.

    Parameters
    ----------
    backend : str, optional
        As asked for.
    planets : int
        How many there are to calibrate.
    memory : int, optional
        Bytes that all processes may have together; each needs `gpucal.budget.DEFAULT_MEMORY`.

    Returns
    -------
    list of str
        Values for CUDA_VISIBLE_DEVICES; empty where one process is to do it all.
    """
    wanted = backend or os.environ.get("GPUCAL_BACKEND") or "auto"
    most = min(planets, memory // DEFAULT_MEMORY if memory else planets)
    gpus = visible_gpus()[:most] if wanted in ("auto", "cupy") else []
    # Settings reach the processes as TOML, which Python reads from 3.11 on.
    able = len(gpus) > 1 and sys.version_info >= (3, 11) and importlib.util.find_spec("cupy") is not None
    return gpus if able else []


@dataclass(frozen=True)
class Fleet:
    """What the processes have in common.

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

    def run(self, gpus: Sequence[str], planets: Sequence[int], tick: Callable[[], None]) -> list[dict[str, Any]]:
        """Calibrate planets, every n-th on the same GPU.

        Parameters
        ----------
        gpus : sequence of str
            From `gpus_for`.
        planets : sequence of int
            Which.
        tick : callable
            Called about twice a second, for a progress bar.

        Returns
        -------
        list of dict
            What each process printed of its `gpucal.report.Summary`.

        Raises
        ------
        DeviceError
            If a process ends without one. The others are waited for; what all of them finished is kept.
        """
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(gpus)) as pool:
            toml = Path(folder) / "config.toml"
            toml.write_text(self.settings, encoding="utf-8")
            shared = ["calibrate", str(self.dataset), str(self.out), "--config", str(toml), "--json"]
            for option, value in self.options.items():
                values = value if isinstance(value, list) else [value]
                shared += [option] if value is True else [option, *map(str, values)] if value else []
            log.info("%d planets over GPUs %s, a process each", len(planets), ", ".join(gpus))
            processes = [
                _start(gpu, [*shared, "--planet", *map(str, planets[n :: len(gpus)])]) for n, gpu in enumerate(gpus)
            ]
            said = [pool.submit(process.communicate) for process in processes]
            try:
                while wait(said, timeout=0.5).not_done:
                    tick()
            except BaseException:  # an interrupt: the pool would wait for all they have to do
                for process in processes:
                    process.terminate()
                raise
            tick()
        return [_summary(*facts) for facts in zip(gpus, processes, (one.result() for one in said), strict=True)]


def _start(gpu: str, arguments: list[str]) -> subprocess.Popen[str]:
    # It finds modules where this process does, folders added in a notebook included.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


def _summary(gpu: str, process: subprocess.Popen[str], said: tuple[str, str]) -> dict[str, Any]:
    """Read what a process printed last, and hand on what it logged."""
    printed, logged = (text.strip().splitlines() for text in said)
    try:
        summary: dict[str, Any] = json.loads(printed[-1])
    except (ValueError, IndexError) as error:
        reason = logged[-1].removeprefix("gpucal: ") if logged else f"exit code {process.returncode}"
        raise DeviceError(f"GPU {gpu}: the process for it ended: {reason}") from error
    for line in logged:
        if not any(failed in line for failed in summary["failed"].values()):  # those the caller logs
            log.warning("GPU %s: %s", gpu, line)
    return summary
