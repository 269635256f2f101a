"""Several runs on one results folder at the same time: each item is made once, by one of them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import many
import pytest
from many import SETTINGS, Runs
from times import TIMES

PLANETS = range(1, 13)
ITEMS = 2 * len(PLANETS)
ROUNDS = 9 * TIMES


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Runs(tmp_path_factory.mktemp("runs")) as ready:
        yield ready


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.make(tmp_path_factory.mktemp("source") / "many", PLANETS)


@pytest.mark.parametrize("product", ["cubes", "light-curves"])
def test_runs_at_once_lose_and_double_nothing(runs: Runs, source: Path, tmp_path: Path, product: str) -> None:
    chance = random.Random(product)
    assert runs.calibrate(source, tmp_path / "undisturbed", "--product", product).code == 0
    expected = many.content(tmp_path / "undisturbed")
    for k in range(ROUNDS):
        out = tmp_path / f"out-{k}"
        command = ("calibrate", source, out, "--json", "--product", product, *SETTINGS)
        going = []
        for _ in range(2 + k % 3):
            going.append(runs.start(*command))
            time.sleep(chance.choice([0, 0, 0.05, 0.2]))
        ended = [run.wait() for run in going]
        assert [(one.code, one.lines) for one in ended] == [(0, [])] * len(going)
        assert sum(one.summary["done"] for one in ended) == ITEMS
        assert sum(one.summary["skipped"] for one in ended) == ITEMS * (len(going) - 1)
        assert runs.run("verify", out).out == f"{out}: no mismatches\n"
        assert many.litter(out) == []
        assert many.content(out) == expected


def test_a_run_that_is_killed_hands_its_items_to_the_others(runs: Runs, source: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    assert runs.calibrate(source, tmp_path / "undisturbed").code == 0
    expected = many.content(tmp_path / "undisturbed")
    for k in range(ROUNDS):
        out = tmp_path / f"out-{k}"
        doomed, *others = [runs.start("calibrate", source, out, "--json", *SETTINGS) for _ in range(3)]
        time.sleep(chance.uniform(0.1, 0.6))
        doomed.send(signal.SIGKILL)
        doomed.wait()
        ended = [run.wait() for run in others]
        assert [(one.code, one.lines) for one in ended] == [(0, [])] * 2
        assert all(one.summary["done"] + one.summary["skipped"] == ITEMS for one in ended)
        # what it left is gone with the next start
        assert runs.calibrate(source, out).code == 0
        assert many.litter(out) == []
        assert many.content(out) == expected


def test_of_runs_of_other_settings_one_is_refused(runs: Runs, source: Path, tmp_path: Path) -> None:
    """Also where nothing is finished yet by which it could be told, and with --overwrite while the other is at work."""
    for k in range(3):
        out = tmp_path / f"out-{k}"
        going = []
        for more in (["--reduce", "sum"], ["--reduce", "mean"], ["--reduce", "mean", "--overwrite"]):
            going.append(runs.start("calibrate", source, out, "--json", *SETTINGS, *more))
            time.sleep(0.03 * k)
        ended = [run.wait() for run in going]
        assert min(one.code for one in ended) == 0, ended
        for one in ended:
            assert one.code in (0, 2)
            if one.code == 2:
                (line,) = one.lines
                assert "of other settings (reduce = " in line
        made = {record["provenance"]["settings"]["reduce"] for _, record in many.all_records(out)}
        assert len(made) == 1, (k, ended)
        assert f'reduce = "{made.pop()}"' in (out / "config.toml").read_text()
        assert (many.wrong(out), many.litter(out)) == ([], [])


def test_command_lines_at_once(source: Path, tmp_path: Path) -> None:
    """Without a process they have in common, and in parts that overlap."""
    out = tmp_path / "out"
    parts = [(), ("--planet", "3", "4", "5"), ("--shard", "2/3")]
    commands = [many.command_line("calibrate", source, out, "--json", *SETTINGS, *part) for part in parts]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    going = [subprocess.Popen(command, **pipes) for command in commands]
    ended = [(*run.communicate(), run.returncode) for run in going]
    assert [(errors, code) for _, errors, code in ended] == [("", 0)] * 3
    summaries = [json.loads(said) for said, _, _ in ended]
    assert sum(summary["done"] for summary in summaries) == ITEMS
    assert [summary["done"] + summary["skipped"] for summary in summaries] == [ITEMS, 6, 8]
    assert (many.wrong(out), many.litter(out)) == ([], [])
