"""What this process may use: cores, by its affinity and the quota of its control group (containers, clusters); GPUs."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cores", "visible_gpus"]

_CGROUPS = Path("/sys/fs/cgroup")
_GPUS = Path("/proc/driver/nvidia/gpus")


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """Count the cores this process may use.

    Parameters
    ----------
    cgroups : Path
        Where control groups are mounted.

    Returns
    -------
    int
        At least 1: the smaller of the affinity and the group's processor quota, rounded up.
    """
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _own_groups(cgroups) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def visible_gpus(gpus: Path = _GPUS) -> list[str]:
    """List the NVIDIA GPUs this process may use, without CUDA, which a process that starts others must not touch.

    Parameters
    ----------
    gpus : Path
        Where the driver lists them, a folder each.

    Returns
    -------
    list of str
        Values for CUDA_VISIBLE_DEVICES, which decides where it is set: up to its first empty or negative entry.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number, _ in enumerate(gpus.iterdir())] if gpus.is_dir() else []
    entries = [entry.strip() for entry in chosen.split(",")]
    end = next((n for n, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    return entries[:end]


def _own_groups(cgroups: Path) -> list[Path]:
    """Return the folders of this process's group and all above it; version 2, and version 1's processor controller."""
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
    """Return a group's processor quota in cores, or None where it has none."""
    try:
        if (folder / "cpu.max").exists():  # version 2: quota and period in one file
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
