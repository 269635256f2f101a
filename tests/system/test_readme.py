"""The README's lines of Python run as they stand, on a folder of synthetic data; every setting is explained."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from gpucal.settings.calibration import Calibration
from gpucal.settings.rules import CHOICES
from gpucal.synthetic.competition import synthesize

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(tmp_path / "raw", planets=2, frames=180)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    place = '"/kaggle/input/ariel-data-challenge-2024"'
    assert code.count(place) == 1
    names: dict[str, object] = {}
    exec(code.replace(place, '"raw"'), names)
    assert getattr(names["curves"], "shape", None) == (2, 3, 283)


def test_every_setting_and_choice_is_on_the_page_of_settings() -> None:
    page = (ROOT / "examples" / "settings.md").read_text(encoding="utf-8")
    names = [setting.name for setting in dataclasses.fields(Calibration)]
    words = [*names, *(choice for choices in CHOICES.values() for choice in choices)]
    assert [word for word in words if f"`{word}`" not in page] == []
