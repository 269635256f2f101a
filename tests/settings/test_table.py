"""The table of settings: what is made of a row, and that a new row is enough for a new setting."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from gpucal.errors import ConfigError
from gpucal.settings import options
from gpucal.settings.calibration import Calibration
from gpucal.settings.rules import BINS, COLUMNS, ROWS, ByDetector, Choice, Number, Switch
from gpucal.settings.table import SETTINGS, Setting, setting


@dataclass(frozen=True)
class More(Calibration):
    """Settings as a later version may have them."""

    stripes: bool = setting(Switch(False), "Remove stripes. They are rare.", added=True)
    background: str = setting(Choice(("bin", "constant")), "How the background is taken.", added=True)
    last_pairs: int = setting(Number(0, "pairs", "an integer, 0 or above", above=-1), "Pairs to drop.", added=True)
    columns: Mapping[str, tuple[int, int]] = setting(COLUMNS, "Columns.", example="FGS1=10:22", added=True)


NEW = {"stripes": True, "background": "constant", "last_pairs": 1, "columns": {"FGS1": (10, 22)}}


def flags_of(table: Mapping[str, Setting], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    monkeypatch.setattr(options, "SETTINGS", table)
    parser = argparse.ArgumentParser()
    options.add_settings(parser)
    return parser


@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_is_whole(name: str) -> None:
    row, standard = SETTINGS[name], Calibration()
    assert row.effect.endswith(".")
    assert row.flag.startswith("--")
    assert (row.example != "") == isinstance(row.rule, ByDetector)
    assert row.rule(name, getattr(standard, name)) == getattr(standard, name)


def test_flags_are_the_names_but_for_one() -> None:
    other = {name for name, row in SETTINGS.items() if row.flag != "--" + name.replace("_", "-")}
    assert other == {"bins"}


@pytest.mark.parametrize("name", [name for name, row in SETTINGS.items() if row.example])
def test_examples_can_be_written(name: str) -> None:
    parser = argparse.ArgumentParser()
    options.add_settings(parser)
    row = SETTINGS[name]
    chosen = options.settings_from(parser.parse_args([row.flag, row.example]))
    assert set(chosen.to_dict()) == set(SETTINGS)
    with pytest.raises(ConfigError, match=re.escape(f"such as {row.example}")):
        options.settings_from(parser.parse_args([row.flag, "FGS1="]))


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--dark, --no-dark", "subtract the dark current; on by default"),
        (
            "--clip-negatives, --no-clip-negatives",
            "raise negative electrons to zero straight after the ADC step; off by",
        ),
        ("--gain {divide,multiply}", "divide counts by the ADC gain, as in every official notebook, or multiply them;"),
        ("--integration {notebook,updated}", "for end reads; the data set's by default"),
        ("--hot-sigma SIGMA", "threshold of the clip for hot pixels; 5 by default"),
        ("--saturation COUNTS", "in a used frame; 65535 by default"),
        ("--flat-minimum FRACTION", "flag a flat at or below this, or not finite; 0 by default"),
        ("--bin DETECTOR=...", "CDS pairs in a bin, or seconds as in FGS1=144s, or none, such as AIRS-CH0=30"),
    ],
)
def test_help_is_the_first_sentence(flag: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    parser = argparse.ArgumentParser()
    options.add_settings(parser)
    assert re.search(rf"^  {re.escape(flag)}\s+.*{re.escape(says)}", parser.format_help(), re.MULTILINE)


def test_the_docstring_has_every_setting() -> None:
    doc = Calibration.__doc__
    assert doc is not None
    sections = [doc.index(section) for section in ("\nParameters\n---", "\nRaises\n---")]
    assert sections == sorted(sections)
    parameters = doc[slice(*sections)]
    assert re.findall(r"^(\w+) : ", parameters, re.MULTILINE) == list(SETTINGS)
    assert "\nreduce : {'sum', 'mean'}, default 'sum'\n    A bin holds" in parameters
    assert "\nintegration : {'notebook', 'updated'}, optional\n" in parameters
    assert "\nlinearity_range : float, electrons, default 30000.0\n" in parameters
    assert "\nbins : mapping of str to int or str, default {'AIRS-CH0': 30, 'FGS1': 360}\n" in parameters
    assert max(map(len, doc.splitlines())) <= 120


def test_added_settings_at_their_default_change_nothing_that_is_stored() -> None:
    assert More().content_hash == Calibration().content_hash
    assert More().to_toml() == Calibration().to_toml()
    assert set(More().to_dict()) == {*SETTINGS, *NEW}
    assert More(columns={"FGS1": (0, 32)}).content_hash == Calibration().content_hash


@pytest.mark.parametrize("name", NEW)
def test_added_settings_are_stored_where_they_differ(name: str) -> None:
    changed = More(**{name: NEW[name]})
    assert changed.content_hash not in {
        Calibration().content_hash,
        *(More(**{k: NEW[k]}).content_hash for k in NEW if k != name),
    }
    head = f"[{name}]" if name == "columns" else f"{name} = "
    assert [one for one in NEW if re.search(rf"^(\[{one}\]|{one} = )", changed.to_toml(), re.MULTILINE)] == [name]
    assert head in changed.to_toml()


@pytest.mark.parametrize(
    ("name", "wrong"), [("stripes", 1), ("background", "none"), ("last_pairs", -1), ("columns", 3)]
)
def test_a_new_row_is_checked(name: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} = {wrong!r}: must "):
        More(**{name: wrong})


def test_a_new_row_has_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        **SETTINGS,
        "last_pairs": Setting(Number(0, "pairs", "an integer, 0 or above", above=-1), "Pairs. Text.", "--last-pairs"),
        "slit": Setting(ROWS, "Rows.", "--slit", "FGS1=8:24"),
    }
    monkeypatch.setenv("COLUMNS", "200")
    parser = flags_of(table, monkeypatch)
    given = parser.parse_args(["--last-pairs", "3", "--slit", "FGS1=1:2"])
    assert (given.last_pairs, given.slit) == (3, ["FGS1=1:2"])
    assert re.search(r"--last-pairs PAIRS +pairs; 0 by default\n", parser.format_help())
    with pytest.raises(ConfigError, match="unknown setting 'last_pairs'"):
        options.settings_from(given)


def test_a_rule_says_what_its_values_are() -> None:
    assert [str(rule) for rule in (Switch(True), Number(5, "passes", ""), Choice(("a", "b")), BINS)] == [
        "bool",
        "int, passes",
        "{'a', 'b'}",
        "mapping of str to int or str",
    ]
