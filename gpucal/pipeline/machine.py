"""The CPU cores, memory and GPUs that this process may use."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["are_exclusive", "machine_memory", "usable_cores", "visible_gpus"]

_CGROUPS = Path("/sys/fs/cgroup")
_GPUS = Path("/proc/driver/nvidia/gpus")


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """Count the cores this process may use: the smaller of its affinity and its group's quota, rounded up, at least 1.

    Containers and clusters set the quota through control groups, which are mounted at ``cgroups``.
    """
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _own_groups(cgroups) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def visible_gpus(gpus: Path = _GPUS) -> list[str]:
    """List the NVIDIA GPUs this process may use, as values for CUDA_VISIBLE_DEVICES.

    CUDA is not called, as a process that starts others must not touch it. The driver lists a folder per GPU at
    ``gpus``. CUDA_VISIBLE_DEVICES decides where it is set: its entries count up to the first empty or negative one.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number, _ in enumerate(gpus.iterdir())] if gpus.is_dir() else []
    entries = [entry.strip() for entry in chosen.split(",")]
    end = next((n for n, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    return entries[:end]


def are_exclusive() -> bool:
    """Tell whether a GPU of this machine takes one process alone, as some clusters set it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    command = [tool, "--query-gpu=compute_mode", "--format=csv,noheader"]
    return "Exclusive" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def machine_memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _own_groups(cgroups: Path) -> list[Path]:
    """Return the folders of this process's group and all groups above it.

    Covers control groups of version 2, and the processor controller of version 1.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [cgroups]
    folders = [cgroups, cgroups / "cpu"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            top = cgroups / "cpu" if controllers else cgroups
            inside = top / path.lstrip("/")
            folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(top)]
    return folders


def _quota(folder: Path) -> float | None:
    """Return a group's processor quota in cores, or None if it has none."""
    try:
        if (folder / "cpu.max").exists():  # version 2: quota and period in one file
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
