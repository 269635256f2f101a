"""The README's lines of Python run as they stand, on a folder of synthetic data; every setting is explained."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gpucal.cli.parser import parsed
from gpucal.pipeline.provenance import EVERY_STEP, card_of
from gpucal.settings.options import settings_from
from gpucal.settings.rules import Choice
from gpucal.settings.table import SETTINGS
from gpucal.synthetic.competition import synthesize

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "examples" / "settings.md").read_text(encoding="utf-8")


def test_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(tmp_path / "raw", planets=2, frames=180)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    place = '"/kaggle/input/ariel-data-challenge-2024"'
    assert code.count(place) == 1
    names: dict[str, object] = {}
    exec(code.replace(place, '"raw"'), names)
    assert getattr(names["curves"], "shape", None) == (2, 3, 283)


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 700


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert len(targets) > 20
    for target in targets:
        assert (ROOT / target).exists(), target


def test_commands_can_be_written() -> None:
    code = "\n".join(re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^gpucal [a-z]+ .*", code, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line, comments=True)
        assert parsed(words[1:]).verb == words[1]


def test_every_setting_has_its_place_on_the_page_of_settings_with_its_choices() -> None:
    cells = re.findall(r"^\| (`\w+`.*?) \|", PAGE, re.MULTILINE)
    found: list[tuple[str, list[str]]] = []
    for word in re.findall(r"`([\w-]+)`", " ".join(cells)):
        if word in SETTINGS:
            found.append((word, []))
        else:
            found[-1][1].append(word)
    rules = {name: row.rule for name, row in SETTINGS.items()}
    choices = {name: list(rule.words) if isinstance(rule, Choice) else [] for name, rule in rules.items()}
    assert sorted(found) == sorted(choices.items())


def test_every_step_is_on_the_page_of_settings_in_its_order() -> None:
    rows = [
        f"| {step} | {card_of(step)} | {f'`{setting}`' if setting else 'always done'} |"
        for step, setting in EVERY_STEP.items()
    ]
    assert "\n".join(["|---|---|---|", *rows, "", ""]) in PAGE
    assert {setting for setting in EVERY_STEP.values() if setting} <= SETTINGS.keys()


def test_every_step_has_a_card_of_its_own() -> None:
    cards = [card_of(step) for step in EVERY_STEP]
    assert len({*cards}) == len(cards)
    assert max(map(len, cards)) <= 8


def test_flags_on_the_page_of_settings_can_be_written() -> None:
    commands = [words for words in map(shlex.split, re.findall(r"`(--[^`]*)`", PAGE)) if len(words) > 1]
    assert len(commands) >= 3
    for words in commands:
        assert settings_from(parsed(["calibrate", "data", "out", *words])) != settings_from(
            parsed(["calibrate", "a", "b"])
        )
