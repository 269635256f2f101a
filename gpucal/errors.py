"""Every error gpucal raises on purpose: typed, and one line long.

The line names the planet, the detector, the file, what is wrong and what to do about it, as far as they are known.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BackendUnavailable",
    "BrokenDevice",
    "ClusterError",
    "ConfigError",
    "DatasetError",
    "DeviceError",
    "DeviceMemoryError",
    "GpucalError",
    "InputError",
    "MissingExtra",
    "OutputError",
    "OutputLost",
    "RunWarning",
    "Unstackable",
]


class GpucalError(Exception):
    """Base of everything gpucal raises on purpose."""


class ConfigError(GpucalError, ValueError):
    """A setting, or a combination of settings, is not possible."""


class DatasetError(GpucalError, LookupError):
    """A folder is not a competition folder, or a planet asked for is not in it."""

    def __str__(self) -> str:
        return " ".join(str(part) for part in self.args)


class BackendUnavailable(GpucalError, ImportError):
    """A backend asked for by name cannot run here; the line says why, and the mend."""


class BrokenDevice(BackendUnavailable):
    """A GPU fails at its first kernel, or computes something else than NumPy; nothing may run on it."""


class DeviceError(GpucalError, RuntimeError):
    """A GPU failed, or the process that used it; the line names the device."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A GPU has no room for the least that is needed."""


class ClusterError(GpucalError, RuntimeError):
    """A Dask cluster cannot be reached, is lost, or its workers see other files or another gpucal than the client."""


class MissingExtra(GpucalError, ImportError):
    """An optional dependency is not installed; the line says which extra brings it."""


class OutputError(GpucalError, OSError):
    """The results folder cannot be written or read."""


class OutputLost(OutputError):
    """Nothing more can be written to the results folder: it is full, over its quota, or read-only by now."""


class Unstackable(OutputError):
    """Observations, or the detectors of one, differ in shape: each is there by itself, but not put together."""


class RunWarning(UserWarning):
    """A run left something undone; the line says how much, and the first cause."""


class InputError(GpucalError, ValueError):
    """One observation's input is unusable: it costs that observation, never the run.

    Parameters
    ----------
    problem : str
        What is wrong.
    mend : str
        What to do about it.
    path : Path, optional
        The file in question.
    where : str, optional
        Planet, visit and detector, put in front of the line.
    """

    def __init__(self, problem: str, mend: str, path: Path | None = None, where: str = "") -> None:
        super().__init__(problem, mend, path, where)
        self.problem = problem
        self.mend = mend
        self.path = path
        self.where = where

    def at(self, where: str) -> InputError:
        """Return the same error saying which planet, visit and detector it concerns.

        Parameters
        ----------
        where : str
            Planet, visit and detector.

        Returns
        -------
        InputError
            A new error; one that already says where is returned as it is.
        """
        return self if self.where else InputError(self.problem, self.mend, self.path, where)

    def __str__(self) -> str:
        parts = [self.where, str(self.path) if self.path else "", self.problem]
        line = f"{': '.join(part for part in parts if part)}; {self.mend}"
        return " ".join(line.split())
