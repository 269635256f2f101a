"""The results folder of a run: taken at the beginning, and completed at the end by what is made of all items."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from gpucal.errors import ConfigError, OutputError
from gpucal.results.atomic import unwritable
from gpucal.results.light_curve_table import LIGHT_CURVES, light_curves_are_current
from gpucal.results.other_folders import NOTE, missing, write_note
from gpucal.results.reader import Results
from gpucal.results.records import records
from gpucal.results.writer import CONFIG, Store
from gpucal.runs.job import Job
from gpucal.runs.summary import Summary
from gpucal.settings.calibration import Calibration
from gpucal.settings.ids import ItemId
from gpucal.settings.rules import OPEN

__all__ = ["changes", "claimed", "finish", "note_others", "require_same_settings"]

log = logging.getLogger(__name__)

# Stands for the files made of all items where a failure is not of one item. A key of the JSON summary.
_ALL = "what is made of all items"


def claimed(job: Job, asked: Calibration) -> Store:
    """Begin the run in its folder, which runs of the same settings may share.

    Raises ConfigError if the folder holds results of other settings, or a run with other settings is working there.
    """
    store = Store(job.out)

    def look() -> None:
        if require_same_settings(store, job, asked):
            _remove_light_curves(store)  # if this run is killed, no stack may outlive the old items

    try:
        if not store.begin(job.settings, look):
            differing = changes(store.settings() or "", job)
            raise ConfigError(
                f"{store.path}: a run of other settings ({differing}) is working there; "
                "wait for it to end, or give another folder"
            )
    except BaseException:
        store.close()
        raise
    return store


def require_same_settings(store: Store, job: Job, asked: Calibration) -> bool:
    """Raise ConfigError if the folder holds results of other settings; returns whether its items are made anew."""
    before = store.settings()
    if before == job.settings and not job.overwrite:
        return False
    done = (record for record in records(store.path) if record["status"] == "done")
    if job.overwrite or not any(before or record.get("settings") != job.settings_hash for record in done):
        return True
    how = changes(before, job) if before else f"{CONFIG}, which lists them, is not there or empty"
    naming = _naming(before, job, asked) if before else ""
    raise ConfigError(
        f"{store.path}: holds results of other settings ({how}); "
        f"{naming}give another folder, or --overwrite to make them again"
    )


def changes(before: str, job: Job) -> str:
    """Say in which settings a folder differs from a job; ``before`` is the folder's TOML."""
    found = [f"{name} = {then} there and {now} now" for name, then, now in _differing(before, job)]
    return "; ".join(found) or "in another order"


def _naming(before: str, job: Job, asked: Calibration) -> str:
    """Say how to resume a folder that differs only in settings left open, as a folder of 0.1 from Python may."""
    found = list(_differing(before, job))
    if not found or any(name not in OPEN or getattr(asked, name) is not None for name, _, _ in found):
        return ""
    return f"name {', '.join(f'{name} = {then}' for name, then, _ in found)} to resume it, "


def _differing(before: str, job: Job) -> Iterator[tuple[str, str, str]]:
    """List the settings that differ, with their values there and now."""
    then, now = (dict(_entries(text)) for text in (before, job.settings))
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            yield name, then.get(name, "unset"), now.get(name, "unset")


def _entries(toml: str) -> Iterator[tuple[str, str]]:
    """Split the text of `Job.settings` into names and the text of values."""
    table = ""
    for line in toml.splitlines():
        name, equals, value = line.partition(" = ")
        if line.startswith("["):
            table = line.strip("[]").removeprefix("output") + "." * (line != "[output]")
        elif equals:
            yield table + name.strip('"'), value


def finish(store: Store, job: Job, summary: Summary) -> None:
    """Write the note and the manifest, and remove files of all light curves that are not those of the items."""
    try:
        _write_note(store, job)
        store.write_manifest()
        with store.alone():
            if any((store.path / name).exists() for name in LIGHT_CURVES) and not _are_current(store, job):
                _remove_light_curves(store)
                again = f"`gpucal export {store.path} TO --product light-curves` writes new ones"
                summary.notes.append(f"{', '.join(LIGHT_CURVES)} were of other items and are removed; {again}")
                log.warning("%s: %s", store.path, summary.notes[-1])
    except OutputError as error:
        log.error("%s", error)
        summary.failed[_ALL] = str(error)


def _are_current(store: Store, job: Job) -> bool:
    folders = (store.path, *job.resume_from)
    if job.product != "light-curves" or not any(next(records(folder), None) for folder in folders):
        return False
    return light_curves_are_current(Results(*folders, settings=job.settings_hash))


def note_others(store: Store, job: Job) -> None:
    """Note at once which items of other folders count, as this run may be killed; warn of items that are gone."""
    if elsewhere := _write_note(store, job):
        log.warning("%s; this run calibrates those it needs again", missing(store.path, elsewhere))


def _write_note(store: Store, job: Job) -> Mapping[ItemId, str]:
    """Write the note; where there is nothing to note the folder is left alone, as it may be full."""
    if not job.resume_from and not (store.path / NOTE).exists():
        return {}
    with store.alone():
        return write_note(store.path, job.resume_from, job.settings_hash)


def _remove_light_curves(store: Store) -> None:
    try:
        for name in LIGHT_CURVES:
            (store.path / name).unlink(missing_ok=True)
    except NotADirectoryError:
        pass  # making the folder will report that
    except OSError as error:
        raise unwritable(store.path, error) from error
