"""The reference pages of the site agree with the code, and what they show is what the program prints."""

from __future__ import annotations

import argparse
import doctest
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from astropy.io import fits

import gpucal
from gpucal import errors
from gpucal.cli.main import DONE, FAILED, LATE, main
from gpucal.cli.parser import WRONG, parsed, verbs
from gpucal.results.export import export
from gpucal.results.formats import FORMATS
from gpucal.results.light_curve_table import LIGHT_CURVES
from gpucal.runs.interrupts import SIGNALLED
from gpucal.science.plan import DQ
from gpucal.settings.calibration import Calibration
from gpucal.settings.options import settings_from
from gpucal.settings.rules import PRESET_SETTINGS
from gpucal.settings.table import SETTINGS
from gpucal.synthetic.competition import synthesize

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

import reference_pages as made  # noqa: E402

PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}


def first_cells(page: str, head: str) -> list[str]:
    """Return the first column of the table that begins with a head, without backticks."""
    rows = PAGES[page].split(f"| {head} |", 1)[1].splitlines()[2:]
    end = next((n for n, row in enumerate(rows) if not row.startswith("|")), len(rows))
    return [word for row in rows[:end] for word in re.sub("`", "", row.split("|")[1]).strip().split(", ")]


def test_every_flag_of_every_verb_is_in_the_reference() -> None:
    page = made.verbs()
    for name, verb in verbs().items():
        section = page.split(f"## gpucal {name}\n", 1)[1].split("\n(verb-")[0]
        for action in verb._actions:
            if not isinstance(action, argparse._HelpAction):
                shown = action.option_strings[0] if action.option_strings else str(action.metavar)
                assert re.search(rf"`{re.escape(shown)}[` ]", section), f"{name} {shown}"
                assert action.dest in SETTINGS or str(action.help).replace("|", "\\|") in section


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_shown_in_three_ways_that_mean_the_same(name: str) -> None:
    value = made.example(name)
    section = made.settings().split(f"### {name}\n", 1)[1].split("\n### ")[0]
    flag, toml = made.flag(SETTINGS[name], value), made.toml(name, value)
    assert f"`{flag}`" in section
    assert f"`{toml}`" in section
    changed = Calibration().replace(**{name: value})
    assert changed != Calibration()
    assert Calibration.from_dict(tomllib.loads(toml)) == changed
    assert settings_from(parsed(["calibrate", "data", "out", *shlex.split(flag)])) == changed


def test_exit_codes() -> None:
    known = {DONE, FAILED, WRONG, LATE, *(SIGNALLED + number for number in (2, 13, 15))}
    assert sorted(map(int, first_cells("reference/exit-codes.md", "code"))) == sorted(known)


def test_presets() -> None:
    named = [text.split(" ")[0] for text in first_cells("reference/settings.md", "preset")]
    assert named == [*PRESET_SETTINGS]


def kinds_of(error: type[Exception]) -> set[type[Exception]]:
    return {error}.union(*map(kinds_of, error.__subclasses__()))


def test_every_exception_is_listed() -> None:
    kinds = kinds_of(errors.GpucalError) | {
        kind for kind in kinds_of(UserWarning) if kind.__module__ == errors.__name__
    }
    assert len(kinds) > 10
    listed = set(re.findall(r"`(gpucal\.[\w.]+)`", made.exceptions()))
    assert {f"{kind.__module__}.{kind.__name__}" for kind in kinds if kind.__module__.startswith("gpucal")} == listed


def test_every_flag_of_pixels_is_explained() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGES["explanation/masks.md"], re.MULTILINE)
    assert rows == [(str(int(flag)), flag.name) for flag in DQ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition folder of two planets. Not to be written to."""
    folder = tmp_path_factory.mktemp("home") / "data"
    synthesize(folder, layout="2025", planets=2, frames=60)
    return folder


@pytest.fixture(scope="module")
def folders(data: Path) -> list[Path]:
    """Results of both products, with all that can be stored."""
    found = [data.with_name("cubes"), data.with_name("curves")]
    gpucal.run(data, found[0], gpucal.Calibration(cosmic_rays=20.0), planets=20955726, variance=True)
    gpucal.run(data, found[1], planets=20955726, product="light-curves")
    return found


def test_every_file_of_a_results_folder_is_described(folders: list[Path]) -> None:
    """And every kind of array that is described is written, with as many axes as the page says."""
    page = PAGES["reference/data-products.md"]
    records = [json.loads(path.read_bytes()) for out in folders for path in out.glob("*/*/*.json")]
    assert len(records) == 4
    written = {kind: len(of["shape"]) for record in records for kind, of in record["files"].items()}
    kinds = page.split("| kind |", 1)[1].split("\n\n")[0]
    axes = {
        kind: text.count(",") + 1 for kind, text in re.findall(r"^\| `(\w+)` \| \(([^)]*[^),])", kinds, re.MULTILINE)
    }
    assert axes == written
    assert {key for record in records for key in record} <= set(
        first_cells("reference/data-products.md", "key of the record")
    )
    for path in (path for out in folders for path in out.iterdir() if path.is_file()):
        assert f"`{path.name}`" in page
    assert not [*folders[1].glob("light-curves*")]
    assert all(f"`{name}`" in page for name in LIGHT_CURVES)


def test_every_file_of_exported_light_curves_is_described(folders: list[Path], tmp_path: Path) -> None:
    written = set()
    for name in FORMATS["light-curves"]:
        for path in export(gpucal.open_results(folders[1]), tmp_path, name, "light-curves"):
            assert path.is_file()
            written.add(path.name.replace("20955726-0", "PLANET-VISIT"))
    assert {*first_cells("reference/data-products.md", "file")} == written


def test_every_part_of_a_fits_file_is_described(folders: list[Path], tmp_path: Path) -> None:
    parts: list[str] = []
    for path in export(gpucal.open_results(folders[0]), tmp_path, "fits"):
        with fits.open(path) as hdus:
            parts += [hdu.name for hdu in hdus]
    assert {*first_cells("reference/data-products.md", "HDU")} == {*parts}


def test_every_number_on_quality_is_described(folders: list[Path]) -> None:
    told = first_cells("howto/report.md", "column")
    about = {"planet_id", "visit", "detector", "status", "seconds", "backend", "version"}
    columns = {*gpucal.open_results(folders[0]).table()} - about
    assert len(columns) > 20
    for column in columns:
        assert re.sub(r"_by_wavelength_p\d+$", "", re.sub(r"flags_[A-Z_]+$", "flags_DEAD", column)) in told, column


EXIT_CODES = {
    "The request is wrong": WRONG,
    "An observation fails": FAILED,
    "A run warns": DONE,
    "Results differ from their records": FAILED,
}
"""What the commands of each section of the page of errors end with."""


def shown(section: str) -> list[tuple[str, str]]:
    """Return the commands of a section's console blocks, each with the text that it prints."""
    lines = [line for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    starts = [n for n, line in enumerate(lines) if line.startswith("$ ")] + [len(lines)]
    return [(lines[a].removeprefix("$ "), "\n".join(lines[a + 1 : b])) for a, b in pairwise(starts)]


def test_errors_are_those_that_are_printed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands of the page of errors run in their order, as they build on each other."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "data")
    shutil.copytree(data, "other", ignore=shutil.ignore_patterns("2355445450"))
    Path("other/train/20955726").rename("other/train/17")
    assert main(["calibrate", "data", "results"]) == DONE
    capsys.readouterr()
    sections = dict(part.split("\n", 1) for part in PAGES["reference/errors.md"].split("\n## ")[1:])
    assert {title for title, text in sections.items() if "```console" in text} == EXIT_CODES.keys()
    for title, expected_code in EXIT_CODES.items():
        for command, expected in shown(sections[title]):
            if not command.startswith("gpucal "):
                subprocess.run(command, shell=True, check=True)
                continue
            try:
                code = main(shlex.split(command)[1:])
            except SystemExit as ended:
                code = int(str(ended.code))
            printed = capsys.readouterr()
            got = f"{(printed.err + printed.out).strip()}\n"
            assert doctest.OutputChecker().check_output(f"{expected}\n", got, doctest.ELLIPSIS), f"{command}\n{got}"
            assert code == expected_code


def test_commands_on_pages_can_be_written() -> None:
    seen = 0
    for page, text in PAGES.items():
        code = "\n".join(
            re.findall(r"^ *```[^\n]*\n(.*?)^ *```", re.sub(r"\\\n +", "", text), re.DOTALL | re.MULTILINE)
        )
        for line in re.findall(r"(?:^|&& )(gpucal [^\n&|]*)", code, re.MULTILINE):
            words = shlex.split(line.replace("PLANET", "17").replace("$SLURM_ARRAY_TASK_ID", "1"), comments=True)
            try:
                assert parsed(words[1:]).verb == words[1]
            except SystemExit:
                pytest.fail(f"{page}: {line}")
            seen += 1
    assert seen > 40


def test_every_page_is_in_a_list_of_pages() -> None:
    listed = {"index.md"}
    for page, text in PAGES.items():
        for names in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            folder = Path(page).parent
            listed |= {
                f"{folder / name}.md" for name in names.split() if not name.startswith(":") and not name.isdigit()
            }
    assert {page for page in PAGES if not page.startswith("reference/generated")} <= listed


@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_text(page: str) -> None:
    """A browser would fetch MathJax for others, and show their source where there is no network."""
    assert not re.search(r"\$\$|\\frac|\{math\}|`math`", PAGES[page])
    assert "dollarmath" not in (DOCS / "conf.py").read_text(encoding="utf-8")
