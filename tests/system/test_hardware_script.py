"""`benchmarks/hardware.py` without a card: it runs on the stand-in, and writes no figures where those of cards are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launch import require_compiler

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hardware.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_it_is_tried_on_the_stand_in(tmp_path: Path) -> None:
    require_compiler()
    done = run(tmp_path, "--stand-in", "--parts", "parity,sanitizers,steps,ncu,notebook", "--commit", "abc")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("stand-in-*.json")
    found = json.loads(path.read_text())
    assert found["commit"] == "abc"
    assert found["device"]["name"] == "Stand-in T4"
    assert found["device"]["compute_capability"] == "7.5"
    assert found["parity"]["ok"] is True
    assert set(found["sanitizers"].values()) == {"missing"}
    assert found["steps"]["largest difference"] < 1e-12
    assert all(said.startswith("done, ") for said in found["parts"].values()), found["parts"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--stand-in"], "has figures of cards alone: name another folder"),
        (["--parts", "facts,speed"], "speed is none of facts, parity, "),
    ],
)
def test_a_wrong_call_writes_nothing(arguments: list[str], line: str) -> None:
    folder = SCRIPT.parent / "hardware"
    before = sorted(folder.iterdir())
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert sorted(folder.iterdir()) == before
