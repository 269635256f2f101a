"""Groups lines that differ only in their planet or file: the first is shown at once, the others are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from logging import LogRecord
from threading import Lock

from gpucal.settings.detectors import DETECTORS

__all__ = ["Kinds", "kind_of"]

# Parts in which lines of one kind may differ, removed in this order.
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
    """Return a line without planet, visit, detector, device, paths and numbers; lines of one kind are then equal."""
    for particular in _PARTICULARS:
        line = particular.sub("", line)
    return " ".join(line.split())


# The most lines of a kind that are shown one by one.
_FEW = 5


@dataclass
class _Kind:
    count: int = 0
    lines: list[str] = field(default_factory=list)  # the first few


@dataclass
class Kinds:
    """The kinds of the lines so far, and their counts; safe to use from any thread."""

    _kinds: dict[str, _Kind] = field(default_factory=dict)
    _turn: Lock = field(default_factory=Lock)

    def is_first(self, line: str) -> bool:
        """Count a line; returns True if it is the first of its kind, which is to be shown."""
        name = kind_of(line)
        with self._turn:
            kind = self._kinds.setdefault(name, _Kind())
            kind.count += 1
            if kind.count <= _FEW:
                kind.lines.append(line)
            return kind.count == 1

    def admits(self, record: LogRecord) -> bool:
        """Count a logged line, as a filter of a `logging` handler: only the first of each kind passes."""
        return self.is_first(record.getMessage())

    def rest(self, where: str, *, shown: bool = True) -> Iterator[str]:
        """List the lines that were not shown: a few of a kind one by one, more as one line with their number.

        ``where`` says where all of them are, such as ``all of them in OUT/gpucal.log``. ``shown`` tells whether the
        first line of each kind was shown.
        """
        for kind in self._kinds.values():
            if kind.count > _FEW:
                yield f"{kind.count:,} lines of this kind, {where}; the first: {kind.lines[0]}"
            else:
                yield from kind.lines[1 if shown else 0 :]
