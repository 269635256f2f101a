"""Lines that say the same of other planets or files: the first few are shown, the others are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from logging import LogRecord
from threading import Lock

from gpucal.settings.detectors import DETECTORS

__all__ = ["FEW", "Kinds", "kind_of"]

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


FEW = 5
"""How many lines of a kind are shown one by one."""


@dataclass
class _Kind:
    count: int = 0
    lines: list[str] = field(default_factory=list)  # the first few


@dataclass
class Kinds:
    """The kinds of the lines that have come; any thread may bring some."""

    _kinds: dict[str, _Kind] = field(default_factory=dict)
    _turn: Lock = field(default_factory=Lock)

    def is_news(self, line: str) -> bool:
        """Count a line.

        Parameters
        ----------
        line : str
            The line.

        Returns
        -------
        bool
            Whether it is among the first of its kind, to be shown.
        """
        name = kind_of(line)
        with self._turn:
            kind = self._kinds.setdefault(name, _Kind())
            kind.count += 1
            if news := kind.count <= FEW:
                kind.lines.append(line)
            return news

    def admits(self, record: LogRecord) -> bool:
        """Count a logged line; a filter for a handler of `logging`.

        Parameters
        ----------
        record : LogRecord
            Of the line.

        Returns
        -------
        bool
            As of `is_news`.
        """
        return self.is_news(record.getMessage())

    def rest(self, where: str, *, shown: bool = True) -> Iterator[str]:
        """Account for the kinds that had more than a few lines.

        Parameters
        ----------
        where : str
            Where all of them are, such as ``all of them in OUT/gpucal.log``.
        shown : bool
            Whether the first few have been; else those of kinds that had no more come too.

        Yields
        ------
        str
            A line a kind.
        """
        for kind in self._kinds.values():
            if kind.count > FEW:
                yield f"{kind.count:,} lines of this kind, {where}; the first: {kind.lines[0]}"
            elif not shown:
                yield from kind.lines
