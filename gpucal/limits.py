"""How many cores this process may use: its affinity, and the quota of its control group (containers, clusters)."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")


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
