"""What was probably meant: the nearest of what there is to a mistyped name, planet id or path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

__all__ = ["blocking_file", "did_you_mean", "joined", "near", "near_path", "near_planets"]

# How alike two names or two planet ids are at least, from 0 to 1.
_ALIKE, _ALIKE_IDS = 0.6, 0.75

# How many suggestions a line can take.
_MOST = 3

# What people call things that have another name here; of several names, the one that is possible there.
_ALSO: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "average": ("mean",),
        "check": ("verify",),
        "cores": ("--workers",),
        "cpu": ("numba", "--backend"),
        "cuda": ("cupy", "--backend"),
        "double": ("float64",),
        "force": ("--overwrite",),
        "gpu": ("cupy", "--backend"),
        "jobs": ("--workers",),
        "list": ("info",),
        "ls": ("info",),
        "processes": ("--workers",),
        "ram": ("--memory",),
        "run": ("calibrate",),
        "single": ("float32",),
        "threads": ("--workers",),
    }
)


def near(word: str, known: Iterable[str], alike: float = _ALIKE) -> list[str]:
    """Find what a word may have been meant for: another name of it, a part of it, else what looks most like it.

    Parameters
    ----------
    word : str
        What was written.
    known : iterable of str
        What there is.
    alike : float
        How alike they must be, from 0 to 1.

    Returns
    -------
    list of str
        At most three; several only if they are as near as each other.
    """
    import difflib  # of use where something is wrong

    meant, plain = _plain(word), {name: _plain(name) for name in known}
    ratios = {name: difflib.SequenceMatcher(None, text, meant).ratio() for name, text in plain.items()}
    best = max(ratios.values(), default=0.0)
    for found in (
        [name for name in plain if name in _ALSO.get(meant, ())],
        [name for name, text in plain.items() if meant and text.startswith(meant)],
        [name for name, text in plain.items() if len(meant) > 1 and meant in text],
        [name for name, ratio in ratios.items() if ratio == best >= alike],
        [name for name, text in plain.items() if len(text) > 3 and meant.startswith(text)],
    ):
        if found:
            return found[:_MOST]
    return []


def near_planets(planet: object, known: Iterable[int]) -> list[str]:
    """Find the planet ids whose digits are most like those of another.

    Parameters
    ----------
    planet : object
        What was asked for.
    known : iterable of int
        The ids there are.

    Returns
    -------
    list of str
        At most three, the most alike first.
    """
    import difflib

    return difflib.get_close_matches(str(planet), [str(one) for one in dict.fromkeys(known)], _MOST, _ALIKE_IDS)


def near_path(path: Path) -> list[str]:
    """Find what a path that does not exist may have been meant for.

    Parameters
    ----------
    path : Path
        Of which the part that is missing may be mistyped.

    Returns
    -------
    list of str
        Paths that exist; empty if nothing is near.
    """
    missing = [part for part in (path, *path.parents) if not part.exists()]
    if not missing or not missing[-1].parent.is_dir():
        return []
    first = missing[-1]  # the outermost; what follows it may be right
    names = near(first.name, (entry.name for entry in first.parent.iterdir() if entry.is_dir()))
    paths = [first.with_name(name) / path.relative_to(first) for name in names]
    return [str(one) for one in paths if one.exists()]


def blocking_file(path: Path) -> Path | None:
    """Find the file that stands where a folder is wanted.

    Parameters
    ----------
    path : Path
        The folder.

    Returns
    -------
    Path or None
        The path, or the one above it that is a file; None if there is none.
    """
    return next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None)


def did_you_mean(found: Iterable[str], otherwise: str = "") -> str:
    """Put suggestions at the end of a line.

    Parameters
    ----------
    found : iterable of str
        From `near` and the like.
    otherwise : str
        What to do where nothing is near.

    Returns
    -------
    str
        Such as ``; did you mean cupy?``; empty if there is nothing to say.
    """
    meant = joined(found)
    return f"; did you mean {meant}?" if meant else f"; {otherwise}" if otherwise else ""


def joined(names: Iterable[str], word: str = "or") -> str:
    """Put names side by side, as a sentence has them.

    Parameters
    ----------
    names : iterable of str
        The names.
    word : str
        What stands before the last.

    Returns
    -------
    str
        Such as ``a, b or c``.
    """
    *first, last = [*names] or [""]
    return f"{', '.join(first)} {word} {last}" if first else last


def _plain(name: str) -> str:
    return re.sub(r"[_ ]", "-", name.lower()).lstrip("-")
