"""Suggestions for mistyped names, planet ids and paths: the nearest that exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

__all__ = ["blocking_file", "did_you_mean", "joined", "near", "near_path", "near_planets"]

# The least similarity of two names, and of two planet ids, from 0 to 1.
_ALIKE, _ALIKE_IDS = 0.6, 0.75

# Suggestions in one line, at most.
_MOST = 3

# Common words, and the names that gpucal has for them; where there are several, `near` keeps those that are known.
_ALSO: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "average": ("mean",),
        "dry-run": ("check", "--dry-run"),
        "validate": ("check",),
        "cores": ("--workers",),
        "cpu": ("numba", "--backend"),
        "cuda": ("cupy", "--backend"),
        "device": ("--backend",),
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
        "timeout": ("--time-limit",),
    }
)


def near(word: str, known: Iterable[str], alike: float = _ALIKE) -> list[str]:
    """Find the known names that a mistyped word may stand for.

    A name that `_ALSO` lists for the word comes first, then a name that contains the word, then the name most like it.

    Parameters
    ----------
    word : str
        The word as written.
    known : iterable of str
        The names that exist.
    alike : float
        Least similarity, from 0 to 1.

    Returns
    -------
    list of str
        At most three; several only if they are equally near.
    """
    import difflib  # only needed once something is wrong

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
    """Find the planet ids whose digits are most like those of another: at most three, the most alike first."""
    import difflib

    return difflib.get_close_matches(str(planet), [str(one) for one in dict.fromkeys(known)], _MOST, _ALIKE_IDS)


def near_path(path: Path) -> list[str]:
    """Find existing paths that a path with a mistyped part may stand for; none in folders that cannot be read."""
    with suppress(OSError):
        missing = [part for part in (path, *path.parents) if not part.exists()]
        if not missing or not missing[-1].parent.is_dir():
            return []
        first = missing[-1]  # the outermost; the parts after it may be right
        names = near(first.name, (entry.name for entry in first.parent.iterdir() if entry.is_dir()))
        paths = [first.with_name(name) / path.relative_to(first) for name in names]
        return [str(one) for one in paths if one.exists()]
    return []


def blocking_file(path: Path) -> Path | None:
    """Find the file that stands where a folder is wanted: the path itself, or one of its parents."""
    with suppress(OSError):  # of a folder that cannot be read: who opens it says so
        return next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None)
    return None


def did_you_mean(found: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a line, such as ``; did you mean cupy?``; where nothing was found, ``otherwise``."""
    meant = joined(found)
    return f"; did you mean {meant}?" if meant else f"; {otherwise}" if otherwise else ""


def joined(names: Iterable[str], conjunction: str = "or") -> str:
    """Join names as a sentence does, such as ``a, b or c``."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def _plain(name: str) -> str:
    return re.sub(r"[_ ]", "-", name.lower()).lstrip("-")
