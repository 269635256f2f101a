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

from gpucal.errors import DeviceError
from gpucal.limits import visible_gpus

__all__ = ["Fleet", "gpus_for"]

log = logging.getLogger(__name__)

# What is started for each device, before the arguments of ``gpucal``.
COMMAND = (sys.executable, "-m", "gpucal.cli")


def gpus_for(backend: str | None, planets: int) -> list[str]:
    """Choose the GPUs to spread planets over.

    Parameters
    ----------
    backend : str, optional
        As asked for.
    planets : int
        How many there are to calibrate.

    Returns
    -------
    list of str
        Values for CUDA_VISIBLE_DEVICES; empty where one process is to do it all.
    """
    wanted = backend or os.environ.get("GPUCAL_BACKEND") or "auto"
    gpus = visible_gpus()[:planets] if wanted in ("auto", "cupy") else []
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
        Further options of ``gpucal calibrate``; True for a flag, None or False for none.
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
            What each process printed of its `gpucal.pipeline.Summary`.

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
                shared += [option] if value is True else [option, str(value)] if value else []
            log.info("%d planets over GPUs %s, a process each", len(planets), ", ".join(gpus))
            work = [
                pool.submit(_one, gpu, [*shared, "--planet", *map(str, planets[n :: len(gpus)])])
                for n, gpu in enumerate(gpus)
            ]
            while wait(work, timeout=0.5).not_done:
                tick()
            tick()
        return [process.result() for process in work]


def _one(gpu: str, arguments: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    done = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False)
    try:
        summary: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DeviceError(f"GPU {gpu}: the process for it ended: {said[-1].removeprefix('gpucal: ')}") from error
    return summary
