"""Shared by the benchmarks: the machine, a process timed and weighed from outside, data of full size.

Only the standard library is imported: a child's peak memory starts from its parent's, so the parent stays small.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARIES = (
    "gpucal",
    "numpy",
    "pandas",
    "pyarrow",
    "astropy",
    "polars",
    "numba",
    "cupy-cuda12x",
    "nvidia-cuda-nvrtc-cu12",
)

NOT_A_USER_S = ("PYTHONDONTWRITEBYTECODE", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


@dataclass(frozen=True)
class Measured:
    """A finished process: wall and processor time in seconds, peak resident memory in bytes, what it printed."""

    seconds: float
    cpu_seconds: float
    peak: int
    output: str


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def machine_line(facts: dict[str, Any]) -> str:
    """Name the machine in one line."""
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    return "{processor}, {cores} cores, {memory_gib} GiB; Python {python}, {0}; {date}.".format(libraries, **facts)


def measure(command: list[str], **environment: str) -> Measured:
    """Run a process to its end; one that fails ends the benchmark."""
    # As in a user's shell: compiled modules are kept, and BLAS is as NumPy brings it.
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_A_USER_S}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**inherited, **environment}) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table, with the machine below it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", machine_line(machine())])


def write_json(path: str | None, rows: list[dict[str, Any]]) -> None:
    """Write figures with the machine in the file, if a path is given."""
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def gpucal(*arguments: object) -> list[str]:
    """Give the command line of the package under this interpreter."""
    return [sys.executable, "-m", "gpucal", *map(str, arguments)]


def full_size_planets(folder: Path, planets: int) -> list[int]:
    """Make a 2025-layout folder of full-size planets: two are synthesised, the others have their signals in turn."""
    if not folder.exists():
        measure(gpucal("synth", folder, "--layout", "2025", "--planets", 2))
    train = folder / "train"
    others = [10**9 + i for i in range(2, planets)]
    real = sorted(int(path.name) for path in train.iterdir() if path.name.isdigit() and not is_other(path))
    for i, other in enumerate(others):
        if not (train / str(other)).is_dir() or (train / str(other)).is_symlink():
            (train / str(other)).unlink(missing_ok=True)
            planet_like(train / str(real[i % 2]), train / str(other))
    return [*real, *others][:planets]


def is_other(planet: Path) -> bool:
    """Tell whether a planet has the signals of another."""
    return planet.is_symlink() or all(path.is_symlink() for path in planet.glob("*_signal*"))


def planet_like(planet: Path, other: Path) -> None:
    """Make another planet with the signals of a planet, by links, and calibration frames of its own, as planets have.

    Their values are those of the planet, but not their bytes: frames with known bytes would not be parsed again.
    """
    new = other.with_name(f"{other.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for entry in planet.resolve().iterdir():
        if not entry.is_dir():
            (new / entry.name).symlink_to(entry)
            continue
        (new / entry.name).mkdir()
        for file in entry.iterdir():
            content = file.read_bytes()
            end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # of pages, before the footer
            (new / entry.name / file.name).write_bytes(content[:end] + other.name.encode() + content[end:])
    new.rename(other)
