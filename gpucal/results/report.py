"""The quality report of a results folder: gathers numbers, curves and images, and writes them as one HTML page."""

from __future__ import annotations

import logging
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.display.page import Card, Failure, Look, Page, Scaled, packed, render
from gpucal.display.shown import Shown
from gpucal.errors import DatasetError, GpucalError, OutputError
from gpucal.inputs.dataset import Dataset, open_dataset
from gpucal.results.atomic import write_atomically, writing
from gpucal.results.causes import by_cause, without_paths
from gpucal.results.tables import flat
from gpucal.science.bad_pixels import unusable
from gpucal.science.light_curves import LightCurve, white_light
from gpucal.science.plan import DQ
from gpucal.science.quality import middles, positions, scatter
from gpucal.science.unusual import FAR, FEWEST, Reason, far_above, unusual
from gpucal.settings.arguments import GivenPath, path_of, require_switches
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, ORDER, Detector
from gpucal.settings.ids import ItemId

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REPORT", "Report", "text_table", "write_report"]

log = logging.getLogger(__name__)

REPORT = "report.html"
"""The report's name in a results folder."""

# Limits: bytes of a page, and bytes of cubes that are read for it. The page must stay below 10 MB.
_MOST_BYTES, _MOST_READ = 9_400_000, 300_000_000

# Bytes of a page beside its observations: the page itself, and for each observation its numbers and its row.
_PAGE_BYTES, _ROW_BYTES = 80_000, 1_000

# Of observations that need a look, this many are listed, with so many reasons each.
_MOST_LOOKS, _MOST_REASONS = 8, 4

# Items of a cause that are listed.
_MOST_ITEMS = 200

# Bins of the small curves in the table.
_SMALL = 64

# The fewest bins of a cube that are read; more if `_MOST_READ` allows it.
_FEWEST_BINS = 3

Key = tuple[int, int]


class _Results(Protocol):
    """The attributes of `Results` that are read here; its module imports this one."""

    ids: list[Key]
    failed: dict[ItemId, str]
    elsewhere: dict[ItemId, str]
    _records: dict[ItemId, dict[str, Any]]
    _homes: dict[ItemId, GivenPath]

    @property
    def path(self) -> Path: ...

    def axes(self, key: Key, detector: str) -> dict[str, NDArray[np.float64]]: ...

    def light_curve_with_errors(self, key: Key, detector: str) -> LightCurve: ...

    def _qualities(self) -> dict[ItemId, Mapping[str, Any]]: ...

    def _read(self, key: Key, detector: str, kind: str, *, mapped: bool = False) -> NDArray[Any]: ...

    def _with_parts(self) -> _Results: ...


@dataclass(frozen=True)
class _Level:
    """How finely an observation is drawn: the most points of curves, and sizes of the map and of images."""

    points: int
    map: tuple[int, int]
    image: tuple[int, int]


# From fine to coarse; the finest whose page stays below `_MOST_BYTES` is chosen.
_LEVELS = (
    _Level(400, (200, 300), (300, 32)),
    _Level(400, (128, 192), (150, 32)),
    _Level(256, (96, 144), (100, 32)),
    _Level(200, (64, 96), (72, 32)),
    _Level(200, (48, 72), (72, 16)),
    _Level(200, (36, 48), (48, 16)),
    _Level(190, (32, 40), (36, 16)),
    _Level(190, (24, 36), (36, 16)),
    _Level(100, (16, 24), (18, 16)),
    _Level(50, (8, 12), (9, 8)),
)


@dataclass(frozen=True)
class _Column:
    """A column that the page shows of each detector: the number, its heading, its form, and what it is.

    ``photometer`` tells of which kind of detector alone it is shown; None of both.
    """

    number: str
    head: str
    form: str
    about: str
    photometer: bool | None = None


_COLUMNS = (
    _Column("white_flux", "e⁻", ".2e", "median of the white light, electrons in a bin"),
    _Column("scatter_ppm", "ppm", ",.0f", "scatter of the white light from bin to bin"),
    _Column("excess", "excess", ".2f", "scatter over the expected noise"),
    _Column("depth_ppm", "depth", ",.0f", "quick look: middle third below the outer thirds, ppm", photometer=False),
    _Column("drift_ppm", "drift", ",.0f", "last third minus first third, ppm", photometer=False),
    _Column("trace_flags", "flags", ",.0f", "flags that are set in the trace", photometer=False),
)

# Columns of a star table that are shown, with their units; all are in the CSV.
_STARS = {"star": "", "Ts": "K", "Rs": "R☉", "P": "d"}


@dataclass(frozen=True)
class Report:
    """A quality report that was written; a notebook shows it.

    Parameters
    ----------
    path : Path
        The page.
    complete, expected : int
        Observations that are complete, and that there should be.
    looks : int
        Observations that need a look.
    """

    path: Path
    complete: int
    expected: int
    looks: int

    def __repr__(self) -> str:
        facts = {
            "size": f"{self.path.stat().st_size / 1000:,.0f} kB" if self.path.exists() else "removed",
            "observations": f"{self.complete:,} of {self.expected:,} complete",
            "needs a look": f"{self.looks:,}",
        }
        return Shown(f"Report {self.path}", facts).text()

    def _repr_html_(self) -> str:
        try:
            page = self.path.read_text(encoding="utf-8")
        except OSError as error:
            return Shown(f"Report {self.path}", {"page": f"cannot be read ({error.strerror or error})"}).html()
        return (
            f'<iframe srcdoc="{escape(page)}" sandbox="allow-scripts allow-downloads" title="quality report" '
            'style="width:100%;height:85vh;min-height:500px;border:1px solid #8884"></iframe>'
        )


def write_report(
    results: _Results,
    to: str | Path | None,
    *,
    paths: bool = False,
    show: Callable[[int, int], object] = lambda ended, total: None,
) -> Report:
    """Write the report of a results folder; see `gpucal.Results.report`.

    ``show`` is called with the number of observations that were read, and of all.
    """
    require_switches(paths=paths)
    target = results.path / REPORT if to is None else path_of("to", to)
    with writing(target):
        if target.is_dir():
            raise OutputError(f"{target}: is a folder; give the name of a file, such as {target / REPORT}")
    found = _Found(results._with_parts(), results.ids, paths)
    page = found.page(show)

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(render(page))

    write_atomically(target, write)
    return Report(target, len(results.ids), found.expected, len(found.looks))


def text_table(results: _Results) -> Iterator[str]:
    """Yield the numbers on quality as lines of text: two of headings, and one for each observation that has any."""
    found = _Found(results._with_parts(), results.ids, paths=True)
    names = ["" if part is None else part for part, _, _ in found.shown]
    heads = [head for _, head, _ in found.shown]
    rows = [
        [*cells, found.short_reason(key)]
        for key, cells in zip(found.keys, found.cells, strict=True)
        if any(ItemId(*key, name) in results._records for name in ORDER)
    ]
    if not rows:
        return
    groups = [name if name != before else "" for name, before in zip(names, ["", *names], strict=False)]
    table = [[*groups, ""], [*heads, "needs a look"], *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(heads))]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


@dataclass
class _Drawn:
    """The data that the page draws for one detector of an observation, at full resolution."""

    detector: Detector
    time: NDArray[np.float64]
    wavelength: NDArray[np.float64] | None
    flux: NDArray[np.float32]
    white: NDArray[np.float64]
    error: NDArray[np.float64]
    levels: NDArray[np.float32]
    scatter_ppm: NDArray[np.float32]
    expected_ppm: NDArray[np.float32]
    dq: NDArray[np.uint8] | None
    image: NDArray[np.float64] | None = None
    bins: tuple[int, int] = (0, 0)
    tracks: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @cached_property
    def level(self) -> float:
        """The median of the white light; NaN if there is none, or it is 0."""
        finite = np.sort(self.white[np.isfinite(self.white)])
        return (
            float(finite[(len(finite) - 1) // 2] + finite[len(finite) // 2]) / 2.0 or math.nan
            if len(finite)
            else math.nan
        )

    @property
    def relative(self) -> NDArray[np.float64]:
        """The white light over its median."""
        return self.white / self.level

    @property
    def across(self) -> NDArray[np.float64]:
        """Wavelength of each light curve, or the detector's column where it is not known."""
        return np.arange(*self.detector.crop, dtype=np.float64) if self.wavelength is None else self.wavelength


@dataclass
class _Found:
    """The facts and tables of a folder that the page shows, and how they are found."""

    results: _Results
    complete: Sequence[Key]
    paths: bool

    def __post_init__(self) -> None:
        results = self.results
        items = {*results._records, *results.failed, *results.elsewhere}
        self.keys: list[Key] = sorted({item[:2] for item in items})
        self.place = {key: at for at, key in enumerate(self.keys)}
        self.numbers = {item: _numbers(of) for item, of in results._qualities().items()}
        self.damaged: dict[ItemId, str] = {}
        self._known_axes: dict[tuple[str, ...], dict[str, NDArray[np.float64]]] = {}
        self._detectors: dict[tuple[str, str], Detector] = {}
        self.homes = sorted({str(of["dataset"]) for of in results._records.values() if of.get("dataset")})
        homes = {results.path, *(home.now for home in results._homes.values())}
        folders = [str(one) for home in homes for one in (home, home.absolute())]
        self.folder_names = {folder: Path(folder).name for folder in (*folders, *self.homes)} | {str(Path.home()): "~"}

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data set that the results were made from, if there is one and it is where it was."""
        try:
            return open_dataset(*self.homes) if len(self.homes) == 1 else None
        except GpucalError:  # it has been moved, or another machine made the results: the page says so
            return None

    @cached_property
    def expected(self) -> int:
        """The number of observations that there should be, as far as is known."""
        return max(len(self.keys), len(self.dataset) if self.dataset else 0)

    @cached_property
    def stars(self) -> pd.DataFrame | None:
        """The table of stars, by planet; None if the data set has none or was moved."""
        if self.dataset is None:
            return None
        try:
            return self.dataset.stars().set_index("planet_id")
        except DatasetError:  # there is no such table
            return None
        except GpucalError as error:
            log.warning("the report has no stars: %s", error)
            return None

    @cached_property
    def reasons(self) -> dict[Key, list[tuple[Reason, str]]]:
        """Why observations need a look, with the detector, the gravest observation first and of each the gravest."""
        found: dict[Key, list[tuple[Reason, str]]] = {}
        for name in ORDER:
            items = {item: of for item, of in self.numbers.items() if item.detector == name}
            for item, reasons in unusual(items).items():
                found.setdefault(item[:2], []).extend((reason, name) for reason in reasons)
        for key in self.keys:
            there = [name for name in ORDER if self._is_done(key, name)]
            if there and len(there) < len(ORDER):
                for name in (name for name in ORDER if name not in there):
                    found.setdefault(key, []).append((self._missing(ItemId(*key, name)), name))
        for reasons_ in found.values():
            reasons_.sort(key=lambda of: -of[0].score)
        return dict(sorted(found.items(), key=lambda of: -of[1][0][0].score))

    @property
    def looks(self) -> list[Key]:
        """The observations that need a look."""
        return [*self.reasons]

    def _is_done(self, key: Key, detector: str) -> bool:
        return ItemId(*key, detector) in self.results._records

    def _missing(self, item: ItemId) -> Reason:
        if item in self.results.elsewhere:
            home = self.without_paths(self.results.elsewhere[item])
            return Reason(1.0, "status", f"is in {home}, which is not there", "attach that folder again")
        says = "is missing, as it failed" if item in self.results.failed else "is missing"
        return Reason(1.0, "status", says, "see what failed, below; mend it, and run the same command again")

    def without_paths(self, text: str) -> str:
        """Return a text with names in place of whole paths, unless these are asked for."""
        return text if self.paths else without_paths(text, self.folder_names)

    def short_reason(self, key: Key) -> str:
        """Say in a few words why an observation needs a look, and what failed of it."""
        lacking = [name for name in ORDER if not self._is_done(key, name)]
        failed = [f"{name} {self._status(ItemId(*key, name))}" for name in lacking]
        of = [f"{name} {reason.number}" for reason, name in self.reasons.get(key, []) if reason.number != "status"]
        return ", ".join([*failed, *of])

    def _status(self, item: ItemId) -> str:
        if item in self.results._records:
            return "damaged" if item in self.damaged else "done"
        if item in self.results.failed:
            return "failed"
        return "elsewhere" if item in self.results.elsewhere else "missing"

    def status(self, key: Key) -> str:
        """Say how an observation is: ``complete``, or what its detectors are."""
        of = [self._status(ItemId(*key, name)) for name in ORDER]
        if set(of) == {"done"}:
            return "complete"
        if len(set(of)) == 1:
            return of[0]
        return ", ".join(f"{name} {one}" for name, one in zip(ORDER, of, strict=True) if one != "done")

    @cached_property
    def shown(self) -> list[tuple[str | None, str, str]]:
        """The columns that are shown: detector, heading, and the name of the number, as in `columns`."""
        columns: list[tuple[str | None, str, str]] = [(None, "planet", "planet_id"), (None, "visit", "visit")]
        for name in ORDER:
            photometer = DETECTORS[name].photometer
            of = [column for column in _COLUMNS if column.photometer in (None, photometer)]
            columns += [(name, column.head, f"{name}_{column.number}") for column in of]
        return columns

    @cached_property
    def cells(self) -> list[list[str]]:
        """The texts of the columns that are shown, for each observation."""
        forms = {column.number: column.form for column in _COLUMNS}
        rows = []
        for key in self.keys:
            cells = [str(part) for part in key]
            for name, _, number in self.shown[2:]:
                short = number.removeprefix(f"{name}_")
                value = self.numbers.get(ItemId(*key, str(name)), {}).get(short, math.nan)
                cells.append(format(value, forms[short]) if math.isfinite(value) else "–")
            rows.append(cells)
        return rows

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Everything that is known of each observation in numbers and words: the columns of the CSV."""
        columns: dict[str, list[Any]] = {
            "planet_id": [key[0] for key in self.keys],
            "visit": [key[1] for key in self.keys],
            "status": [self.status(key) for key in self.keys],
            "needs_a_look": [
                "; ".join(f"{name}: {reason.says}" for reason, name in self.reasons.get(key, [])) for key in self.keys
            ],
        }
        for name in ORDER:
            of = [self.numbers.get(ItemId(*key, name), {}) for key in self.keys]
            for number in dict.fromkeys(number for one in of for number in one):
                columns[f"{name}_{number}"] = [_whole(one.get(number, math.nan)) for one in of]
        if self.stars is not None:
            known = self.stars.reindex([key[0] for key in self.keys])
            columns |= {str(name): [_whole(value) for value in known[name].tolist()] for name in known.columns}
        return columns

    def page(self, show: Callable[[int, int], object]) -> Page:
        """Gather everything, and choose the resolution."""
        observations, sums = self._observations(show)
        return Page(
            name=self.results.path.absolute().name,
            about=self._about(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            cards=self._cards(),
            looks=self._looks(),
            looks_note=self._looks_note(),
            failures=self._failures(),
            made=self._made(),
            command=self._command(),
            settings=self._settings_text(),
            head=[f"{name} {head}" if name else head for name, head, _ in self.shown] + ["needs a look"],
            rows=[[*cells, self.short_reason(key)] for key, cells in zip(self.keys, self.cells, strict=True)],
            data=self._set(sums),
            observations=observations,
        )

    # The page's words.

    @cached_property
    def _settings(self) -> list[tuple[Calibration, int]]:
        """The settings of the results, with the number of items, the most frequent first."""
        records = self.results._records.values()
        counts = Counter(str(record.get("settings")) for record in records)
        of = {str(record.get("settings")): record["provenance"]["settings"] for record in records}
        return [(Calibration.from_dict(of[name]), n) for name, n in counts.most_common()]

    def _about(self) -> str:
        versions = sorted({str(record.get("version")) for record in self.results._records.values()})
        parts = [f"calibrated by gpucal {', '.join(versions)}"] if versions else []
        parts += [f"data set {', '.join(map(self._home, self.homes))}"] if self.homes else []
        parts += [f"settings {settings.summary}" for settings, _ in self._settings[:1]]
        parts += [f"and {len(self._settings) - 1} other settings"] if len(self._settings) > 1 else []
        return "; ".join(parts) or "nothing in it is complete"

    def _home(self, home: str) -> str:
        return home if self.paths else Path(home).name

    def _cards(self) -> list[Card]:
        done, failed, looks = len(self.complete), len(self.results.failed), len(self.looks)
        cards = [Card(f"{done:,} of {self.expected:,}", "observations complete", "good" if done else "bad")]
        cards.append(Card(f"{failed:,}", f"item{'s' * (failed != 1)} failed", "bad" if failed else "good"))
        if gone := len(self.results.elsewhere):
            cards.append(Card(f"{gone:,}", "items in folders that are not there", "bad"))
        cards.append(Card(f"{looks:,}", f"need{'s' * (looks == 1)} a look", "bad" if looks else "good"))
        for name in ORDER:
            excess = _median(of.get("excess", math.nan) for item, of in self.numbers.items() if item.detector == name)
            known = "" if excess is None else f"{excess:.2f} ×"
            cards.append(Card(known, f"{name} noise over expected, median"))
        main = ORDER[-1]
        flags = [of.get("flags", math.nan) for item, of in self.numbers.items() if item.detector == main]
        if (flagged := _median(flags)) is not None:
            cards.append(Card(f"{flagged:,.0f}", f"flags set in {main}, median"))
        records = self.results._records.values()
        size = sum(file.get("bytes", 0) for record in records for file in record["files"].values())
        cards.append(Card(_size(size), "on disk"))
        cards.append(Card(_duration(sum(float(record.get("seconds") or 0.0) for record in records)), "of computing"))
        return [card for card in cards if card.value]

    def _looks(self) -> list[Look]:
        listed = []
        for key in self.looks[:_MOST_LOOKS]:
            said: dict[str, str] = {}  # what to do is said once
            for reason, name in self.reasons[key][:_MOST_REASONS]:
                said[f"{name}: {reason.says}"] = "" if reason.look in said.values() else reason.look
            listed.append(Look(self.place[key], f"planet {key[0]} visit {key[1]}", [*said.items()]))
        return listed

    def _looks_note(self) -> str:
        notes = []
        if (more := len(self.looks) - _MOST_LOOKS) > 0:
            notes.append(f"{more:,} more: tick “only those that need a look” above the table.")
        most = max((sum(item.detector == name for item in self.numbers) for name in ORDER), default=0)
        if most < FEWEST:
            notes.append(f"With fewer than {FEWEST} observations there is no set to compare with.")
        else:
            notes.append(
                f"Compared with the set: more than {FAR:.0f} scaled median absolute deviations from the median."
            )
        return " ".join(notes)

    def _failures(self) -> list[Failure]:
        found = []
        for cause, items in by_cause(self.results.failed | self.damaged):
            names = [str(item) for item in items[:_MOST_ITEMS]]
            if (more := len(items) - _MOST_ITEMS) > 0:
                names.append(f"and {more:,} more; `gpucal report {self.results.path.name} --all` lists them")
            problem = f"{cause.path}: {cause.problem}" if cause.path and len(items) == 1 else cause.problem
            if cause.path and len(items) > 1:
                problem = f"{cause.path.name}: {cause.problem}"
            found.append(Failure(self.without_paths(problem), self.without_paths(cause.mend), names))
        gone: dict[str, list[str]] = {}
        for item, home in sorted(self.results.elsewhere.items()):
            gone.setdefault(home, []).append(str(item))
        for home, names in gone.items():
            mend = "attach that folder again, or give its new place with --resume-from"
            found.append(Failure(f"{self.without_paths(home)} is not there", mend, names[:_MOST_ITEMS]))
        return found

    def _made(self) -> dict[str, str]:
        records = [*self.results._records.values()]
        created = sorted(str(record["provenance"].get("created", "")) for record in records)
        backends = Counter(f"{record.get('backend')} ({record.get('device')})" for record in records)
        steps = Counter(
            _steps(of) for record in records if isinstance(of := record["provenance"].get("steps"), Mapping)
        )
        homes = sorted({str(home.now) for home in self.results._homes.values()})
        facts = {
            "version": f"page by gpucal {__version__}",
            "data set": ", ".join(map(self._home, self.homes)),
            "folders": ", ".join(self._home(home) for home in homes) if len(homes) > 1 else "",
            "calibrated": " to ".join(dict.fromkeys((created[0], created[-1]))) if created else "",
            "backend": ", ".join(f"{name}: {n:,} items" for name, n in backends.most_common(4)),
            "settings": "; ".join(f"{settings.summary} ({n:,} items)" for settings, n in self._settings[:4]),
            "steps": " / ".join(name for name, _ in steps.most_common(2)),
            "stars": "" if self.stars is not None else "not shown: the data set has no table of them, or was moved",
        }
        return {name: value for name, value in facts.items() if value}

    def _command(self) -> str:
        home = self._home(self.homes[0]) if len(self.homes) == 1 else "DATASET"
        out = str(self.results.path) if self.paths else self.results.path.absolute().name
        return shlex.join(["gpucal", "calibrate", home, f"{out}-again", "--config", "settings.toml"])

    def _settings_text(self) -> str:
        if not self._settings:
            return ""
        records = [record["files"] for record in self.results._records.values()]
        product = "cubes" if any("signal" in files for files in records) else "light-curves"
        kinds = {str(files["signal" if "signal" in files else "flux"]["dtype"]) for files in records}
        variance = "true" if any("variance" in files for files in records) else "false"
        output = f'dtype = "{sorted(kinds)[0]}"\nproduct = "{product}"\nvariance = {variance}\n'
        return f"{self._settings[0][0].to_toml()}\n[output]\n{output}"

    # The page's figures.

    def _observations(self, show: Callable[[int, int], object]) -> tuple[list[str], _Sums]:
        there = [key for key in self.keys if any(self._is_done(key, name) for name in ORDER)]
        level = self._level(there)
        sums = _Sums(len(self.keys))
        made = []
        for at, key in enumerate(self.keys):
            drawn = self._read(key)
            sums.add(at, drawn)
            made.append(_observation(drawn, level, sums.axes) if drawn else "")
            show(at + 1, len(self.keys))
        return made, sums

    def _level(self, keys: Sequence[Key]) -> _Level:
        """Choose how finely observations are drawn, so that the page stays below its limit: a few of them tell."""
        step = -(-len(keys) // 6) or 1
        few = [drawn for drawn in map(self._read, keys[::step]) if drawn]
        left = _MOST_BYTES - _PAGE_BYTES - _ROW_BYTES * len(self.keys)
        for level in _LEVELS:
            size = sum(len(_observation(drawn, level, {})) for drawn in few) / max(len(few), 1)
            if size * len(keys) <= left:
                break
        return level

    def _read(self, key: Key) -> list[_Drawn]:
        """Read what is drawn of an observation; a file that cannot be read costs its detector alone."""
        found = []
        for name in ORDER:
            item = ItemId(*key, name)
            if item in self.results._records and item not in self.damaged:
                try:
                    found.append(self._drawn(item))
                except OutputError as error:
                    self.damaged[item] = str(error)
        return found

    def _drawn(self, item: ItemId) -> _Drawn:
        results, key, name = self.results, item[:2], item.detector
        record = results._records[item]
        files, axes = record["files"], self._axes(item)
        if "flux" in files:
            flux, error = (results._read(key, name, kind) for kind in ("flux", "error"))
        else:
            flux, error = results.light_curve_with_errors(key, name)
        with np.errstate(all="ignore"):
            flux, error = flux.astype(np.float32, copy=False), error.astype(np.float32, copy=False)
            white, white_error = _white(flux, error)
            levels = _single(middles(flux))
            parts = np.abs(levels) * np.float32(1e-6)
            drawn = _Drawn(
                detector=self._detector(record, name),
                time=axes["time"],
                wavelength=axes.get("wavelength"),
                flux=flux,
                white=white,
                error=white_error,
                levels=levels,
                scatter_ppm=_single(scatter(flux)) / parts,
                expected_ppm=np.sqrt(np.einsum("ij,ij->j", error, error) / len(error)) / parts,
                dq=results._read(key, name, "dq") if "dq" in files else None,
            )
            if "signal" in files and drawn.dq is not None:
                self._look_at_cube(item, drawn)
        return drawn

    def _axes(self, item: ItemId) -> dict[str, NDArray[np.float64]]:
        """Read an item's times and wavelengths; a thousand items have the same ones, as their checksums tell."""
        files = self.results._records[item]["files"]
        there = [files[kind] for kind in ("time", "wavelength") if kind in files]
        sums = tuple(str(file.get("sha256", item)) for file in there)
        if sums not in self._known_axes:
            self._known_axes[sums] = self.results.axes(item[:2], item.detector)
        return self._known_axes[sums]

    def _detector(self, record: Mapping[str, Any], name: str) -> Detector:
        """Return a detector as it was cropped; a thousand items mostly have the same settings."""
        known = (str(record.get("settings")), name)
        if known not in self._detectors:
            settings = Calibration.from_dict(record["provenance"]["settings"])
            self._detectors[known] = settings.cropped(DETECTORS[name])
        return self._detectors[known]

    def _look_at_cube(self, item: ItemId, drawn: _Drawn) -> None:
        """Read some bins of a cube, all where that is little: their mean, and the position of the light in each."""
        cube = np.asarray(self.results._read(item[:2], item.detector, "signal", mapped=True))
        if not len(cube):
            return
        wanted = _MOST_READ / max(len(self.results._records), 1) / max(cube[0].nbytes, 1)
        chosen = _some(len(cube), int(min(max(wanted, _FEWEST_BINS), len(cube))))
        assert drawn.dq is not None
        some = np.array(cube[chosen], np.float32)
        good = ~unusable(drawn.dq) & np.isfinite(some).all(axis=0)
        drawn.image, drawn.bins = np.where(good, some.mean(axis=0), np.nan), (len(chosen), len(cube))
        drawn.tracks["hours"] = drawn.time[chosen]
        for name, axis in (("row", 1), ("column", 0))[: 1 + drawn.detector.photometer]:
            drawn.tracks[name] = positions(some, good, axis)

    def _set(self, sums: _Sums) -> str:
        """Pack what is drawn of the whole set."""
        limits = {}
        for name in ORDER:
            of = {item: of for item, of in self.numbers.items() if item.detector == name}
            if (limit := far_above(of, "excess")) is not None:
                limits[name] = limit
        shown = [*self.shown]
        cells = [[*row] for row in self.cells]
        if self.stars is not None:
            for name, unit in _STARS.items():
                if name in self.columns:
                    shown.append((None, f"{name} {unit}".strip(), name))
                    for row, value in zip(cells, self.columns[name], strict=True):
                        row.append("–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value))
        abouts = {f"{name}_{column.number}": f"{name}: {column.about}" for column in _COLUMNS for name in ORDER}
        facts = {
            "detectors": [{"name": name, "photometer": DETECTORS[name].photometer} for name in ORDER],
            "flags": {str(flag.name): int(flag) for flag in DQ},
            "columns": self.columns,
            "shown": [{"group": group, "head": head, "name": name} for group, head, name in shown],
            "abouts": abouts,
            "cells": cells,
            "looks": {
                self.place[key]: [[f"{name}: {one.says}", one.look] for one, name in self.reasons[key]]
                for key in self.looks
            },
            "limits": limits,
            "stars": [] if self.stars is None else [str(name) for name in self.stars.columns],
            "file": f"{self.results.path.absolute().name}-quality.csv",
            "folder": str(self.results.path) if self.paths else self.results.path.absolute().name,
            **sums.facts(),
        }
        return packed(facts, sums.arrays())


_Axes = dict[bytes, tuple[int, NDArray[np.float32]]]
"""Axes of observations by their bytes, each with its number."""


def _shared(axis: NDArray[np.float64], axes: _Axes) -> int:
    """Return the number of an axis, which is added if it is new."""
    values = _single(axis)
    return axes.setdefault(values.tobytes(), (len(axes), values))[0]


class _Sums:
    """The data that the page draws for the whole set, gathered from its observations."""

    def __init__(self, n: int) -> None:
        self.small = {name: np.full((n, _SMALL), np.nan, np.float32) for name in ORDER}
        self.axes: _Axes = {}
        # Of spectrometers, by the wavelengths that observations have in common.
        self._wavelengths: dict[str, Counter[bytes]] = {}
        self._curves: dict[tuple[str, bytes], list[tuple[NDArray[np.float32], ...]]] = {}

    def add(self, at: int, drawn: Iterable[_Drawn]) -> None:
        """Add an observation, by its place in the table."""
        for of in drawn:
            name = of.detector.name
            curve = _coarse(of.relative, 0, _SMALL)
            self.small[name][at, : len(curve)] = curve
            if not of.detector.photometer:
                axis = of.across.tobytes()
                self._wavelengths.setdefault(name, Counter())[axis] += 1
                self._curves.setdefault((name, axis), []).append((of.scatter_ppm, of.expected_ppm, of.levels))

    def _common(self) -> Iterator[tuple[str, NDArray[np.float64], int, list[tuple[NDArray[np.float32], ...]]]]:
        for name, axes in self._wavelengths.items():
            axis, n = axes.most_common(1)[0]
            yield name, np.frombuffer(axis), axes.total() - n, self._curves[name, axis]

    def facts(self) -> dict[str, Any]:
        """Return how many observations have other wavelengths than most."""
        return {"others": {name: others for name, _, others, _ in self._common()}}

    def arrays(self) -> dict[str, NDArray[Any] | Scaled]:
        """Return the small curves, the axes, and medians and percentiles over the observations by wavelength."""
        arrays: dict[str, NDArray[Any] | Scaled] = {
            f"{name}.small": Scaled(curves) for name, curves in self.small.items()
        }
        arrays |= {f"axis.{at}": axis for at, axis in self.axes.values()}
        with np.errstate(all="ignore"):
            for name, axis, _, curves in self._common():
                scatters, expected, levels = (np.stack(of) for of in zip(*curves, strict=True))
                arrays[f"{name}.across"] = axis
                arrays[f"{name}.scatter"] = _spread(scatters)
                arrays[f"{name}.expected"] = _spread(expected)[1]
                arrays[f"{name}.spectrum"] = _spread(levels)
        return arrays


def _observation(drawn: Sequence[_Drawn], level: _Level, axes: _Axes) -> str:
    """Pack what is drawn of one observation; times and wavelengths are added to ``axes``, as most have the same."""
    facts: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any] | Scaled] = {}
    for of in drawn:
        name = of.detector.name
        relative, error = of.relative, of.error / abs(of.level)
        n = len(relative)
        facts[name] = {
            "bins": n,
            "sampled": of.bins,
            "flagged": None if of.dq is None else int(np.count_nonzero(of.dq)),
            "pixels": None if of.dq is None else of.dq.shape,
            "hours": _shared(_coarse(of.time, 0, level.points), axes),
            "across": _shared(of.across, axes),
        }
        arrays[f"{name}.white"] = Scaled(_coarse(relative, 0, level.points))
        shrunk = _coarse(error, 0, level.points) / math.sqrt(_group(n, level.points))
        finite = shrunk[np.isfinite(shrunk)]
        if finite.size:
            arrays[f"{name}.error"] = Scaled(shrunk, 8, span=(0.0, 2.0 * float(np.median(finite)) or 1.0))
        if not of.detector.photometer:
            arrays[f"{name}.scatter"] = Scaled(of.scatter_ppm, log=True)
            arrays[f"{name}.spectrum"] = Scaled(of.levels)
            with np.errstate(all="ignore"):
                map_ = of.flux / np.where(of.levels == 0.0, np.nan, of.levels)
            map_ = _coarse(_coarse(map_, 0, level.map[0]), 1, level.map[1])
            arrays[f"{name}.map"] = Scaled(map_, 8, span=_span(map_, 0.01, 0.99))
        if of.image is not None:
            across, rows = level.image
            image = _coarse(_coarse(of.image, 0, across), 1, rows)
            arrays[f"{name}.image"] = Scaled(image, 8, span=_span(image, 0.005, 0.995))
        if of.dq is not None:
            at = np.flatnonzero(of.dq)
            arrays[f"{name}.flagged"] = at.astype(np.uint16 if of.dq.size <= 2**16 else np.uint32)
            arrays[f"{name}.flags"] = of.dq.ravel()[at]
        arrays |= {f"{name}.track.{axis}": values.astype(np.float32) for axis, values in of.tracks.items()}
    return packed(facts, arrays)


def _numbers(quality: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers on quality of an item by name, with the sums over flags; NaN where one is not known."""
    found = {
        name: float(value) if isinstance(value, (int, float)) else math.nan for name, value in flat(quality).items()
    }
    for name in ("flags", "trace_flags"):
        counts = [value for of, value in found.items() if of.startswith(f"{name}_")]
        if counts and name not in found:
            found[name] = sum(counts)
    return found


def _whole(value: object) -> object:
    """Return a whole number as int, NaN as None, and anything else as it is."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _white(flux: NDArray[np.float32], error: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the white light and its error, as `gpucal.science.light_curves.white_light` does, without copies."""
    if not np.isfinite(flux).all():
        white, of = white_light(flux.astype(np.float64), error.astype(np.float64))
        return white, np.asarray(of)
    squared = np.einsum("ij,ij->i", error, error, dtype=np.float64)
    return flux.sum(axis=1, dtype=np.float64), np.sqrt(squared)


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32, copy=False)


@lru_cache(maxsize=64)
def _some(of: int, n: int) -> NDArray[np.intp]:
    """Choose evenly."""
    return np.unique(np.linspace(0, of - 1, n).round().astype(np.intp))


def _group(n: int, most: int) -> int:
    return -(-n // most) or 1


def _coarse(values: NDArray[Any], axis: int, most: int) -> NDArray[Any]:
    """Take means of neighbours along an axis, at most so many; values that are not finite do not count."""
    n = values.shape[axis]
    size = _group(n, most)
    if size == 1:
        return values
    starts = np.arange(0, n, size)
    there = np.isfinite(values)
    if there.all():
        counts = np.diff([*starts, n]).reshape(-1, *[1] * (values.ndim - 1 - axis))
        result: NDArray[Any] = np.add.reduceat(values, starts, axis=axis) / counts.astype(values.dtype)
        return result
    total = np.add.reduceat(np.where(there, values, 0.0), starts, axis=axis)
    numbers = np.add.reduceat(there, starts, axis=axis, dtype=np.intp)
    return total / np.where(numbers, numbers, np.nan)


def _span(values: NDArray[Any], low: float, high: float) -> tuple[float, float] | None:
    """Return two quantiles of the finite values, to the nearest value."""
    ordered = np.sort(values[np.isfinite(values)])
    if not ordered.size:
        return None
    first, last = (round(part * (ordered.size - 1)) for part in (low, high))
    return float(ordered[first]), float(ordered[last])


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the 16th, 50th and 84th percentile over observations, (3, wavelength), of those that are known."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=0)  # NaN last
    n = np.count_nonzero(np.isfinite(ordered), axis=0)
    found = []
    for part in (0.16, 0.5, 0.84):
        place = np.maximum(n - 1, 0) * part
        low, high = np.floor(place).astype(int), np.ceil(place).astype(int)
        first, last = (np.take_along_axis(ordered, at[None], axis=0)[0] for at in (low, high))
        found.append(first + (last - first) * (place - low))
    result: NDArray[np.float32] = np.stack(found).astype(np.float32)
    return result


def _median(values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else None


def _steps(steps: Mapping[str, str]) -> str:
    """Name the steps that were done, and those that were left out."""
    done = ", ".join(step for step, how in steps.items() if how == "COMPLETE")
    left = ", ".join(step for step, how in steps.items() if how != "COMPLETE")
    return f"{done}; left out: {left}" if left else done


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB" if size else ""


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
