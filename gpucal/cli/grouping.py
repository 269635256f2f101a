"""Groups lines that differ only in their planet or file: the first few are shown, the others are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from logging import LogRecord
from threading import Lock

from gpucal.results.causes import kind_of

__all__ = ["FEW", "Kinds"]

FEW = 5
"""The most lines of a kind that are shown one by one."""


@dataclass
class _Kind:
    count: int = 0
    lines: list[str] = field(default_factory=list)  # the first few


@dataclass
class Kinds:
    """The kinds of the lines so far, and their counts; safe to use from any thread."""

    _kinds: dict[str, _Kind] = field(default_factory=dict)
    _turn: Lock = field(default_factory=Lock)

    def is_news(self, line: str) -> bool:
        """Count a line; returns True if it is among the first of its kind, which are shown."""
        name = kind_of(line)
        with self._turn:
            kind = self._kinds.setdefault(name, _Kind())
            kind.count += 1
            if news := kind.count <= FEW:
                kind.lines.append(line)
            return news

    def admits(self, record: LogRecord) -> bool:
        """Count a logged line, as a filter of a `logging` handler: only the first few of each kind pass."""
        return self.is_news(record.getMessage())

    def rest(self, where: str, *, shown: bool = True) -> Iterator[str]:
        """Give a line with the number for each kind that has more than a few lines.

        ``where`` says where all of them are, such as ``all of them in OUT/gpucal.log``. ``shown`` tells whether the
        first few were shown; if not, kinds with only a few lines are listed too.
        """
        for kind in self._kinds.values():
            if kind.count > FEW:
                yield f"{kind.count:,} lines of this kind, {where}; the first: {kind.lines[0]}"
            elif not shown:
                yield from kind.lines
