"""The README's lines of Python run as they stand, on a folder of synthetic data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpucal.synth import synthesize

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(tmp_path / "raw", planets=2, frames=180)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    place = '"/kaggle/input/ariel-data-challenge-2024"'
    assert code.count(place) == 1
    names: dict[str, object] = {}
    exec(code.replace(place, '"raw"'), names)
    assert getattr(names["curves"], "shape", None) == (2, 3, 283)
