"""Every error that gpucal raises on purpose: typed, and one line long.

The line names the planet, the detector, the file, the problem and its mend, as far as they are known.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = [
    "BackendUnavailable",
    "BrokenBackend",
    "BrokenDevice",
    "ClusterError",
    "ConfigError",
    "DatasetError",
    "DeviceError",
    "DeviceMemoryError",
    "GpucalError",
    "InputError",
    "InputUnavailable",
    "IntegrationWarning",
    "MissingExtra",
    "OutputError",
    "OutputLost",
    "RunWarning",
    "UnknownDetector",
    "Unstackable",
]


class GpucalError(Exception):
    """Base of everything gpucal raises on purpose.

    Examples
    --------
    >>> try:
    ...     gpucal.open_dataset("nowhere")
    ... except gpucal.GpucalError as error:
    ...     print(error)
    nowhere: does not exist; give the competition folder, which holds train/ or test/
    """


class ConfigError(GpucalError, ValueError):
    """A setting, or a combination of settings, is not possible."""


class UnknownDetector(ConfigError, KeyError):
    """There is no detector of that name."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show it in quotes


class DatasetError(GpucalError, LookupError):
    """A folder is not a competition folder, or a planet asked for is not in it."""

    def __str__(self) -> str:
        return " ".join(str(part) for part in self.args)


class BackendUnavailable(GpucalError, ImportError):
    """A backend asked for by name cannot run here; the line gives the reason and the mend."""


class BrokenBackend(BackendUnavailable):
    """A backend is installed, but something in it is broken."""


class BrokenDevice(BrokenBackend):
    """A GPU fails at its first kernel, or its results differ from NumPy's; nothing may run on it."""


class DeviceError(GpucalError, RuntimeError):
    """A GPU failed, or the process that used it did; the line names the device."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A GPU has too little free memory for the smallest piece of work."""


class ClusterError(GpucalError, RuntimeError):
    """A Dask cluster cannot be reached, is lost, or its workers see other files or another gpucal than the client."""


class MissingExtra(GpucalError, ImportError):
    """An optional dependency is not installed; the line names the extra that installs it."""


class OutputError(GpucalError, OSError):
    """The results folder cannot be written or read."""


class OutputLost(OutputError):
    """The results folder cannot be written to any more: it is full, over its quota, or has become read-only."""


class Unstackable(OutputError):
    """Observations, or the detectors of one, differ in shape: each can be read alone, but not as one array."""


class RunWarning(UserWarning):
    """A run left something undone; the line gives the number of items and the first cause."""


class IntegrationWarning(UserWarning):
    """Integration times do not fit the data; the line gives both, and what would fit."""


# Planet, visit and detector, then a file, as the lines of an InputError begin.
_WHERE = re.compile(r"(planet \d+ visit \d+ \S+): ")
_FILE = re.compile(r"((?:.*?/)?[^/:]*\.(?:parquet|csv)|/[^:]*): ")


class InputError(GpucalError, ValueError):
    """One observation's input is unusable: the error costs that observation, never the run.

    Parameters
    ----------
    problem : str
        What is wrong.
    mend : str
        What to do about it.
    path : Path, optional
        The file in question.
    where : str, optional
        Planet, visit and detector; the line begins with them.
    """

    def __init__(self, problem: str, mend: str, path: Path | None = None, where: str = "") -> None:
        super().__init__(problem, mend, path, where)
        self.problem = problem
        self.mend = mend
        self.path = path
        self.where = where

    def at(self, where: str) -> InputError:
        """Return the same error with planet, visit and detector in ``where``, unless they are known already."""
        return self if self.where else type(self)(self.problem, self.mend, self.path, where)

    @classmethod
    def parsed(cls, line: str) -> InputError:
        """Take apart a line that such an error printed; what cannot be found in it is empty."""
        where = _WHERE.match(line)
        rest = line[where.end() :] if where else line
        path = _FILE.match(rest)
        problem, _, mend = (rest[path.end() :] if path else rest).rpartition("; ")
        return cls(problem or mend, mend if problem else "", Path(path[1]) if path else None, where[1] if where else "")

    def __str__(self) -> str:
        parts = [self.where, str(self.path) if self.path else "", self.problem]
        line = f"{': '.join(part for part in parts if part)}; {self.mend}"
        return " ".join(line.split())


class InputUnavailable(InputError):
    """An input is not there, cannot be read or needs too much memory, so nothing is known of its content.

    A finished result that was made from it earlier still counts.
    """
