"""Lines that say the same of other planets or files: the first is shown at once, the others are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from logging import LogRecord
from threading import Lock

from gpucal.settings.detectors import DETECTORS

__all__ = ["Kinds", "kind_of"]

# What tells a line from others of its kind, in this order.
_PARTICULARS = (
    re.compile(r"\b(?:GPU|worker) \S+: "),
    re.compile(r"\bplanet \d+ visit \d+\b"),
    re.compile("|".join(DETECTORS)),
    re.compile(r"^[ :]*[^:;]*/[^;]*?: "),  # the path in front, which may have spaces
    re.compile(r"\S*/\S*"),
    re.compile(r"^[ :]*[\w.-]+: "),  # a file's name by itself
    re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?"),
)


def kind_of(line: str) -> str:
    """Say what a line says, whatever it says it of.

    Parameters
    ----------
    line : str
        Of a failure or a warning.

    Returns
    -------
    str
        The line without planet, visit, detector, device, paths and numbers: equal for lines of one kind.
    """
    for particular in _PARTICULARS:
        line = particular.sub("", line)
    return " ".join(line.split())


# As many lines of a kind are shown one by one.
_FEW = 5


@dataclass
class _Kind:
    count: int = 0
    lines: list[str] = field(default_factory=list)  # the first few


@dataclass
class Kinds:
    """The kinds of the lines that have come; any thread may bring some."""

    _kinds: dict[str, _Kind] = field(default_factory=dict)
    _turn: Lock = field(default_factory=Lock)

    def is_first(self, line: str) -> bool:
        """Count a line.

        Parameters
        ----------
        line : str
            The line.

        Returns
        -------
        bool
            Whether it is the first of its kind, to be shown.
        """
        name = kind_of(line)
        with self._turn:
            kind = self._kinds.setdefault(name, _Kind())
            kind.count += 1
            if kind.count <= _FEW:
                kind.lines.append(line)
            return kind.count == 1

    def admits(self, record: LogRecord) -> bool:
        """Count a logged line; a filter for a handler of `logging`.

        Parameters
        ----------
        record : LogRecord
            Of the line.

        Returns
        -------
        bool
            As of `is_first`.
        """
        return self.is_first(record.getMessage())

    def rest(self, where: str, *, shown: bool = True) -> Iterator[str]:
        """Account for the lines that were not the first of their kind.

        Parameters
        ----------
        where : str
            Where all of them are, such as ``all of them in OUT/gpucal.log``.
        shown : bool
            Whether the first ones have been shown.

        Yields
        ------
        str
            A line a kind; a few lines of a kind one by one.
        """
        for kind in self._kinds.values():
            if kind.count > _FEW:
                yield f"{kind.count:,} lines of this kind, {where}; the first: {kind.lines[0]}"
            else:
                yield from kind.lines[1 if shown else 0 :]
