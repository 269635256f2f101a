"""Versions, backends and variables of this machine, for reports of errors."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from gpucal._version import __version__
from gpucal.backends import PREFERENCE, load
from gpucal.errors import BackendUnavailable, ConfigError
from gpucal.settings.arguments import kind_of

__all__ = ["LIBRARIES", "backends", "show_versions", "versions"]

LIBRARIES = (
    *("numpy", "pandas", "pyarrow", "astropy", "tqdm", "numba", "cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"),
    *("dask", "distributed", "xarray", "zarr", "matplotlib", "ipywidgets", "torch"),
)
"""What gpucal needs or may use, as package indexes name it."""

# The beginnings of the names of environment variables that change what gpucal does.
_OURS = ("GPUCAL_", "NUMBA_", "CUPY_", "CUDA_", "OMP_NUM_THREADS")


def backends() -> dict[str, str]:
    """Say of each backend what it runs on, or why it is not available."""
    found = {}
    for name in PREFERENCE:
        try:
            found[name] = f"available, {load(name).runs_on}"
        except BackendUnavailable as error:
            found[name] = f"not available: {error}"
    return found


def versions() -> dict[str, str]:
    """Return the versions of gpucal, Python and the libraries that are installed."""
    found = {"gpucal": __version__, "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def show_versions(file: TextIO | None = None) -> None:
    """Print what a report of an error should say of this machine: versions, backends, variables.

    Parameters
    ----------
    file : text stream, optional
        Where to print it; by default the standard output.

    Raises
    ------
    ConfigError
        If ``file`` is not a stream.

    Examples
    --------
    >>> gpucal.show_versions()
    gpucal  ...
    Python  ...
    """
    stream = sys.stdout if file is None else file
    if stream is None:  # closed
        return
    if not callable(getattr(stream, "writelines", None)):
        raise ConfigError(f"file: is {kind_of(file)}, must be a text stream, such as sys.stderr")
    stream.writelines(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    system = {"system": platform.platform(), "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"}
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_OURS)}
    there = {f"backend {name}": what for name, what in backends().items()}
    facts = {**versions(), **system, **there, **variables}
    width = max(map(len, facts))
    for name, value in facts.items():
        yield f"{name:{width}}  {' '.join(value.split())}"
