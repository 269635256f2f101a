"""`benchmarks/hardware.py` without a card: it runs on the stand-in, and writes no figures where those of cards are."""

from __future__ import annotations

import importlib
import json
import os
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


HEAD = '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"'
NCU = """#!/bin/sh
# stands for ncu: it writes a report, or prints what a report holds
while [ $# -gt 0 ]; do
    case $1 in
        --export) touch "$2"; exit ;;
        --print-details) echo "$STALLS"; exit ;;
        --print-source) echo '"Address","Source"'; exit ;;
    esac
    shift
done
echo "$DETAILS"
"""


def row(kernel: str, grid: int, name: str, unit: str, value: str) -> str:
    return f'"0","{kernel}(const char *, int)","(32, 1, 1)","({grid}, 1, 1)","{name}","{unit}","{value}"'


def test_few_pages_are_not_counted_among_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    details = [
        row("inflate", 1024, "Duration", "us", "9,000"),
        row("inflate", 3, "Duration", "us", "10"),
        row("inflate", 1024, "Duration", "us", "9,200"),
        row("inflate", 1024, "Function Cache Configuration", "", "CachePreferNone"),
        row("bins", 8, "Duration", "us", "40"),
    ]
    stalls = [row("bins", 8, "Stall Wait", "inst", "1.5")]
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    hardware = importlib.import_module("hardware")
    tool = tmp_path / "ncu"
    tool.write_text(NCU)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DETAILS", "\n".join(["==PROF== Disconnected", HEAD, *details]))
    monkeypatch.setenv("STALLS", "\n".join([HEAD, *stalls]))
    case = hardware.Case(tmp_path, tmp_path, planets=1, rounds=1, stand_in=False)
    assert hardware.limiter(case)["ncu"] == {
        "inflate (1024, 1, 1)": {"Duration [us]": 9100.0},
        "inflate (3, 1, 1)": {"Duration [us]": 10.0},
        "bins (8, 1, 1)": {"Duration [us]": 40.0, "Stall Wait [inst]": 1.5},
    }
    assert (tmp_path / "ncu-source.csv").read_text() == '"Address","Source"\n'


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
