"""The causes of failures: lines that differ only in planet, file or number have the same."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpucal.errors import InputError
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.ids import ItemId

__all__ = ["by_cause", "kind_of", "without_paths"]

# Parts in which lines of one kind may differ, removed in this order.
_PARTICULARS = (
    re.compile(r"\b(?:GPU|worker) \S+: "),
    re.compile(r"\bplanet \d+ visit \d+\b"),
    re.compile("|".join(DETECTORS)),
    re.compile(r"(?<!\w)(?:'[^']*'|\"[^\"]*\")"),  # text of a file
    re.compile(r"^[ :]*[^:;]*/[^;]*?: "),  # the path in front, which may have spaces
    re.compile(r"\S*/\S*"),
    re.compile(r"^[ :]*[\w.-]+: "),  # a file's name by itself
    re.compile(r"\b0x[0-9a-f]+|[-+]?(?:\d[\d.,]*(?:e[-+]?\d+)?|\b(?:nan|inf)\b)"),
)

# An absolute path, without a space in it.
_PATH = re.compile(r"(?<![\w.~/<-])/(?:[^\s/'\"`,;:()]+/)*([^\s/'\"`,;:()]+)/?")


def kind_of(line: str) -> str:
    """Return a line without planet, visit, detector, device, paths and numbers; lines of one kind are then equal."""
    for particular in _PARTICULARS:
        line = particular.sub("", line)
    return " ".join(line.split())


def by_cause(failed: Mapping[ItemId, str]) -> list[tuple[InputError, list[ItemId]]]:
    """Group failures by cause, most items first: the first line of each, taken apart, and the items."""
    found: dict[str, tuple[InputError, list[ItemId]]] = {}
    for item, line in sorted(failed.items()):
        found.setdefault(kind_of(line), (InputError.parsed(line), []))[1].append(item)
    return sorted(found.values(), key=lambda of: -len(of[1]))


def without_paths(text: str, names: Mapping[str, str]) -> str:
    """Shorten absolute paths in a text: those below a known folder to its name and what follows, others to a name."""
    for folder in sorted(names, key=len, reverse=True):
        if folder.strip("/."):
            text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w.-])", names[folder].replace("\\", r"\\"), text)
    return _PATH.sub(r"\1", text)
