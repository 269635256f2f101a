"""Checks the arguments of public functions. A text means what it means on the command line; the rest is refused."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TypeVar

from gpucal.errors import ConfigError
from gpucal.settings.values import location

__all__ = ["GivenPath", "from_text", "kind_of", "path_of", "require_kind", "require_switches"]

T = TypeVar("T")


def kind_of(value: object) -> str:
    """Name the type of a value for a message, such as ``a list`` or ``an int``."""
    name = type(value).__name__
    return "None" if value is None else f"a{'n' if name[0] in 'aeiouAEIO' else ''} {name}"


def path_of(name: str, value: object) -> Path:
    """Return a path; raises ConfigError, naming the argument, for another type and for an empty text."""
    if not isinstance(value, (str, PathLike)) or not isinstance(text := os.fspath(value), str):
        raise ConfigError(f"{name}: is {kind_of(value)}, must be the path of a file or folder")
    return from_text(name, text, location)


def _current_folder() -> str | None:
    """Return the folder that relative paths begin in; None if it was removed."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class GivenPath:
    """A path that an object keeps. It stays the same place, though os.chdir() be called, or a process begin elsewhere.

    Parameters
    ----------
    path : Path
        The path as it was given.
    home : str, optional
        The folder that it begins in if it is relative; by default the current one.
    """

    path: Path
    home: str | None = field(default_factory=_current_folder)

    @property
    def now(self) -> Path:
        """The path as it was given, where that leads there; otherwise the whole one."""
        if self.home is None or self.path.is_absolute() or self.home == _current_folder():
            return self.path
        return self.home / self.path


def from_text(name: str, value: str, parse: Callable[[str], T]) -> T:
    """Parse a text as the command line does; raises ConfigError, naming the argument."""
    try:
        return parse(value)
    except ArgumentTypeError as error:
        raise ConfigError(f"{name}: {error}") from error


def require_kind(name: str, value: object, kind: type, such_as: str) -> None:
    """Raise ConfigError for an argument of another type; ``such_as`` shows one of the right type."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ConfigError(f"{name}: is {kind_of(value)}, must be {article} {kind.__name__}, such as {such_as}")


def require_switches(**given: object) -> None:
    """Raise ConfigError for an argument that is not True or False, or None for False: a text would count as True."""
    import numpy as np

    for name, value in given.items():
        if value is not None and (not isinstance(value, (int, np.bool_)) or value not in (0, 1)):
            raise ConfigError(f"{name} = {value!r}: must be True or False")
