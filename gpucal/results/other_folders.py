"""The note in which a results folder names other folders whose items count in it; reads all of them as one.

The note is `NOTE`, JSON: ``format``, ``settings`` (the items' settings hash), ``folders``. Each folder has its
``path``, its path ``relative`` to the folder with the note, and the ``items`` that count (planet, visit, detector).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gpucal.errors import OutputError
from gpucal.results.atomic import write_atomically, writing
from gpucal.results.corner import ALL, temporary_name
from gpucal.results.records import NOTE, is_finished, item_of, read_record, record_path, records, require_records
from gpucal.settings.ids import ItemId

__all__ = ["NOTE", "Found", "gather", "missing", "noted_folders", "write_note"]

_FORMAT = 1


@dataclass(frozen=True)
class _Folder:
    """An entry of a note."""

    path: str
    relative: str
    items: tuple[ItemId, ...]

    def candidates(self, home: Path) -> list[Path]:
        """Return the noted path, and the path that applies if both folders were moved together."""
        beside = os.path.normpath(Path(os.path.realpath(home)) / self.relative)
        return [Path(path) for path in dict.fromkeys((self.path, beside))]


@dataclass(frozen=True)
class _Note:
    settings: str
    folders: tuple[_Folder, ...]


@dataclass(frozen=True)
class Found:
    """The items of several folders, read as one.

    Parameters
    ----------
    first : dict of ItemId to record
        The record in the first folder that has one for the item.
    done : dict of ItemId to (Path, record)
        The finished result that counts, and its folder.
    elsewhere : dict of ItemId to str
        Items that are noted but were not found, and the folder that held them.
    """

    first: dict[ItemId, dict[str, Any]] = field(default_factory=dict)
    done: dict[ItemId, tuple[Path, dict[str, Any]]] = field(default_factory=dict)
    elsewhere: dict[ItemId, str] = field(default_factory=dict)

    def add(self, folder: Path, record: dict[str, Any], settings: str | None) -> None:
        """Read one record; folders must be read in the order of their precedence."""
        item = item_of(record)
        first = self.first.setdefault(item, record)
        # An item that failed in a later session had other inputs than an earlier result, or was to be made again.
        counts = is_finished(record) and (first is record or is_finished(first))
        if counts and item not in self.done and settings in (None, record.get("settings")):
            self.done[item] = folder, record


def gather(path: Path, more: Iterable[Path] = (), settings: str | None = None) -> Found:
    """Read a results folder, further ones, and the folders that they note, as one.

    Records of the further folders precede those of noted folders, of which only the noted items are read. With
    ``settings``, only items with this settings hash count. Raises OutputError if a further folder holds no results, or
    if a record or note cannot be read.
    """
    found, folders = Found(), (path, *map(require_records, more))
    record: dict[str, Any] | None
    for folder in folders:
        for record in records(folder):
            found.add(folder, record, settings)
    for folder in folders:
        note = _read_note(folder)
        if note is None or settings not in (None, note.settings):
            continue
        for item, candidates in _candidates(folder, note).items():
            if item in found.first:
                continue
            for other in candidates:
                record = read_record(record_path(other, item))
                if record and (record["status"] != "done" or record.get("settings") == note.settings):
                    found.add(other, record, settings)
                    found.elsewhere.pop(item, None)
                    break
            else:
                found.elsewhere.setdefault(item, str(candidates[0]))
    return found


def missing(path: Path, elsewhere: Mapping[ItemId, str]) -> str:
    """Return one line on the noted items that were not found, and what to do."""
    keys, homes = sorted({item[:2] for item in elsewhere}), [*dict.fromkeys(elsewhere.values())]
    which = ", ".join(f"planet {planet} visit {visit}" for planet, visit in keys[:3]) + ", ..." * (len(keys) > 3)
    return (
        f"{path}: {len(keys)} of its observations {'are' if len(keys) > 1 else 'is'} elsewhere ({which}), in "
        f"{', '.join(homes[:2])}{', ...' * (len(homes) > 2)}; attach that folder again, or give its new place: "
        "`gpucal report OUT --resume-from DIR`, or open_results(OUT, DIR)"
    )


def noted_folders(folders: Sequence[Path], settings: str) -> list[Path]:
    """List the existing folders that these folders note, directly or through other notes, for a settings hash.

    The folders themselves are left out. Raises OutputError if a note cannot be read.
    """
    known = {os.path.realpath(folder) for folder in folders}
    noted = {os.path.realpath(other): other for _, other in _entries(folders, settings)}
    return [other for real, other in noted.items() if real not in known and next(records(other), None)]


def write_note(path: Path, folders: Sequence[Path], settings: str) -> dict[ItemId, str]:
    """Note the items of other folders that count in a results folder, beside earlier notes that still count.

    The caller holds the lock of `ALL`. Returns the noted items that were not found, see `Found`. Raises OutputError if
    something cannot be read, or the note cannot be written.
    """
    before = _read_note(path)
    if not folders and before is None:
        return {}
    found, home = gather(path, folders, settings), os.path.realpath(path)
    counted: dict[tuple[str, str], set[ItemId]] = {}
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
    """Write the note, or remove it if it is empty; an unchanged note is not written again."""
    text = json.dumps(content)
    with writing(file):
        if content is None:
            file.unlink(missing_ok=True)
        elif not file.exists() or file.read_text(encoding="utf-8") != text:
            name = partial(temporary_name, file.parent, ALL)
            write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"), name)


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
    """Read a note's content; raises TypeError, KeyError or ValueError if it is malformed."""
    if content["format"] != _FORMAT:
        raise ValueError(content["format"])
    folders = []
    for entry in content["folders"]:
        items = tuple(ItemId(planet, visit, detector) for planet, visit, detector in entry["items"])
        texts = [entry["path"], entry["relative"], *(detector for *_, detector in items)]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise TypeError(entry)
        if not all(type(number) is int for *numbers, _ in items for number in numbers):
            raise TypeError(entry)
        folders.append(_Folder(entry["path"], entry["relative"], items))
    return _Note(str(content["settings"]), tuple(folders))


def _candidates(folder: Path, note: _Note) -> dict[ItemId, list[Path]]:
    """List where each noted item may be, by this folder's note and by the notes of the folders it leads to."""
    wanted: dict[ItemId, list[Path]] = {item: [] for noted in note.folders for item in noted.items}
    for noted, other in _entries([folder], note.settings):
        for item in wanted.keys() & noted.items:
            wanted[item].append(other)
    return wanted


def _entries(folders: Sequence[Path], settings: str) -> Iterator[tuple[_Folder, Path]]:
    """Follow notes with these settings from folder to folder, nearest first; yields every entry and where it leads."""
    waiting, known = deque(folders), {os.path.realpath(folder) for folder in folders}
    while waiting:
        home = waiting.popleft()
        note = _read_note(home)
        if note is None or note.settings != settings:
            continue
        for noted in note.folders:
            for other in noted.candidates(home):
                yield noted, other
                if (real := os.path.realpath(other)) not in known:
                    known.add(real)
                    waiting.append(other)
