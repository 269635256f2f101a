"""Which other folders a results folder counts items of: a note in it, and what reads all of them as one.

The note is `NOTE`, JSON: ``format``, ``settings`` (the hash of what the items were made with), ``folders``. Each has
its ``path``, its path ``relative`` to the folder with the note, and the ``items`` that count (planet, visit, detector).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gpucal.errors import OutputError
from gpucal.results.atomic import place, unwritable
from gpucal.results.records import NOTE, is_finished, read_record, record_path, records, require_records

__all__ = ["NOTE", "Found", "gather", "missing", "noted_folders", "write_note"]

_FORMAT = 1

Item: TypeAlias = "tuple[int, int, str]"
"""Planet, visit and detector."""


@dataclass(frozen=True)
class _Folder:
    """A folder that a note names."""

    path: str
    relative: str
    items: tuple[Item, ...]

    def places(self, home: Path) -> list[Path]:
        """Say where it may be: where it was, or, if both folders were moved together, in the same place beside."""
        beside = os.path.normpath(Path(os.path.realpath(home)) / self.relative)
        return [Path(path) for path in dict.fromkeys((self.path, beside))]


@dataclass(frozen=True)
class _Note:
    settings: str
    folders: tuple[_Folder, ...]


@dataclass(frozen=True)
class Found:
    """What several folders hold, read as one.

    Parameters
    ----------
    first : dict of Item to record
        What the first folder says that says anything of an item.
    done : dict of Item to (Path, record)
        What counts, and the folder that it is in.
    elsewhere : dict of Item to str
        What is noted and was not found, and the folder that it was in.
    """

    first: dict[Item, dict[str, Any]] = field(default_factory=dict)
    done: dict[Item, tuple[Path, dict[str, Any]]] = field(default_factory=dict)
    elsewhere: dict[Item, str] = field(default_factory=dict)

    def take(self, folder: Path, record: dict[str, Any], settings: str | None) -> None:
        """Read one record, of a folder after all those that go before it."""
        item = (record["planet"], record["visit"], record["detector"])
        first = self.first.setdefault(item, record)
        # What failed in a later session has other inputs than an earlier result, or was to have.
        counts = is_finished(record) and (first is record or is_finished(first))
        if counts and item not in self.done and settings in (None, record.get("settings")):
            self.done[item] = folder, record


def gather(path: Path, more: Iterable[Path] = (), settings: str | None = None) -> Found:
    """Read a results folder, further ones, and those that they note, as one.

    Parameters
    ----------
    path : Path
        The folder.
    more : iterable of Path
        Further ones. What they say of an item goes before what a noted folder says.
    settings : str, optional
        Only items of settings of this hash.

    Returns
    -------
    Found
        Of the noted folders the noted items only.

    Raises
    ------
    OutputError
        If one of the further folders holds no results, or a record or a note cannot be read.
    """
    found, folders = Found(), (path, *map(require_records, more))
    record: dict[str, Any] | None
    for folder in folders:
        for record in records(folder):
            found.take(folder, record, settings)
    for folder in folders:
        note = _read_note(folder)
        if note is None or settings not in (None, note.settings):
            continue
        for item, places in _places(folder, note).items():
            if item in found.first:
                continue
            for other in places:
                record = read_record(record_path(other, *item))
                if record and (record["status"] != "done" or record.get("settings") == note.settings):
                    found.take(other, record, settings)
                    found.elsewhere.pop(item, None)
                    break
            else:
                found.elsewhere.setdefault(item, str(places[0]))
    return found


def missing(path: Path, elsewhere: Mapping[Item, str]) -> str:
    """Say of items that are noted and were not found where they were, and what to do.

    Parameters
    ----------
    path : Path
        The results folder.
    elsewhere : mapping of Item to str
        See `Found`.

    Returns
    -------
    str
        One line.
    """
    keys, homes = sorted({item[:2] for item in elsewhere}), [*dict.fromkeys(elsewhere.values())]
    which = ", ".join(f"planet {planet} visit {visit}" for planet, visit in keys[:3]) + ", ..." * (len(keys) > 3)
    return (
        f"{path}: {len(keys)} of its observations {'are' if len(keys) > 1 else 'is'} elsewhere ({which}), in "
        f"{', '.join(homes[:2])}{', ...' * (len(homes) > 2)}; attach that folder again, or give its new place with "
        "--resume-from, or to open_results(OUT, DIR)"
    )


def noted_folders(folders: Sequence[Path], settings: str) -> list[Path]:
    """List the folders that some results folders count items of, and those that these count items of.

    Parameters
    ----------
    folders : sequence of Path
        Results folders, which need not exist.
    settings : str
        Hash of the settings that the items must have.

    Returns
    -------
    list of Path
        Those that are there and are none of the folders themselves.

    Raises
    ------
    OutputError
        If a note cannot be read.
    """
    known = {os.path.realpath(folder) for folder in folders}
    noted = {os.path.realpath(other): other for _, other in _entries(folders, settings)}
    return [other for real, other in noted.items() if real not in known and next(records(other), None)]


def write_note(path: Path, folders: Sequence[Path], settings: str) -> dict[Item, str]:
    """Note what a results folder counts of other folders, beside what it has noted before and still counts.

    Parameters
    ----------
    path : Path
        The results folder.
    folders : sequence of Path
        The others.
    settings : str
        Hash of the settings that the items must have.

    Returns
    -------
    dict of Item to str
        What is noted and not there now, see `Found`.

    Raises
    ------
    OutputError
        If something cannot be read, or the note cannot be written.
    """
    before = _read_note(path)
    if not folders and before is None:
        return {}
    found, home = gather(path, folders, settings), os.path.realpath(path)
    counted: dict[tuple[str, str], set[Item]] = {}
    for item, (folder, _) in found.done.items():
        if (real := os.path.realpath(folder)) != home:
            counted.setdefault((real, os.path.relpath(real, home)), set()).add(item)
    kept = before.folders if before and before.settings == settings else ()
    lost = {item: noted for noted in kept for item in noted.items if item in found.elsewhere}
    for item, noted in lost.items():
        counted.setdefault((noted.path, noted.relative), set()).add(item)
    entries = [{"path": of[0], "relative": of[1], "items": sorted(items)} for of, items in counted.items()]
    _replace(path / NOTE, {"format": _FORMAT, "settings": settings, "folders": entries} if entries else None)
    return {item: noted.path for item, noted in lost.items()}


def _replace(file: Path, content: object) -> None:
    """Write the note, or remove it where there is nothing to note; one that says the same stays as it is."""
    text = json.dumps(content)
    try:
        if content is None:
            file.unlink(missing_ok=True)
        elif not file.exists() or file.read_text(encoding="utf-8") != text:
            place(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OutputError:  # an OSError as well
        raise
    except OSError as error:
        raise unwritable(file, error) from error


def _read_note(folder: Path) -> _Note | None:
    file = folder / NOTE
    try:
        return _parsed(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{file}: cannot be read ({error.strerror or error}); make it readable") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        again = "remove it, and name the folders that this one was resumed from with --resume-from"
        raise OutputError(f"{file}: is damaged, or of a later version of gpucal; {again}") from error


def _parsed(content: dict[str, Any]) -> _Note:
    """Read a note; raises TypeError, KeyError or ValueError if it is none."""
    if content["format"] != _FORMAT:
        raise ValueError(content["format"])
    folders = []
    for entry in content["folders"]:
        items = tuple((planet, visit, detector) for planet, visit, detector in entry["items"])
        texts = [entry["path"], entry["relative"], *(detector for *_, detector in items)]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise TypeError(entry)
        if not all(type(number) is int for *numbers, _ in items for number in numbers):
            raise TypeError(entry)
        folders.append(_Folder(entry["path"], entry["relative"], items))
    return _Note(str(content["settings"]), tuple(folders))


def _places(folder: Path, note: _Note) -> dict[Item, list[Path]]:
    """List where each item may be that a folder notes: as it says, or as the folders say that it names."""
    wanted: dict[Item, list[Path]] = {item: [] for noted in note.folders for item in noted.items}
    for noted, other in _entries([folder], note.settings):
        for item in wanted.keys() & noted.items:
            wanted[item].append(other)
    return wanted


def _entries(folders: Sequence[Path], settings: str) -> Iterator[tuple[_Folder, Path]]:
    """Follow notes of the same settings from folder to folder, nearest first; gives every entry and where it leads."""
    waiting, known = deque(folders), {os.path.realpath(folder) for folder in folders}
    while waiting:
        home = waiting.popleft()
        note = _read_note(home)
        if note is None or note.settings != settings:
            continue
        for noted in note.folders:
            for other in noted.places(home):
                yield noted, other
                if (real := os.path.realpath(other)) not in known:
                    known.add(real)
                    waiting.append(other)
