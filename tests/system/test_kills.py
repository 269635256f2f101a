"""Runs killed at random moments: what they leave is whole, and the next run goes on as if nothing had been."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import many
import pytest
from conftest import BINS, Made
from many import SETTINGS, Runs
from times import TIMES

PLANETS = range(1, 13)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Runs(tmp_path_factory.mktemp("runs")) as ready:
        yield ready


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many.make(tmp_path_factory.mktemp("source") / "many", PLANETS)


# From nothing, again and again until all is there; and all over again what is there already.
@pytest.mark.parametrize("product", ["cubes", "light-curves"])
@pytest.mark.parametrize("again", [False, True], ids=["missing", "overwrite"])
def test_kills_lose_nothing(runs: Runs, source: Path, tmp_path: Path, product: str, again: bool) -> None:
    kills = 50  # 200 in all
    chance = random.Random(f"{product} {again} {kills}")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    command = (source, out, "--product", product)
    began = time.monotonic()
    assert runs.calibrate(source, undisturbed, *command[2:]).code == 0
    life = time.monotonic() - began
    expected = many.content(undisturbed)
    found: Counter[str] = Counter()
    while found["kills"] < kills:
        if again and not out.exists():
            shutil.copytree(undisturbed, out)
        run = runs.start("calibrate", *command, *SETTINGS, *(["--overwrite"] if again else []))
        # What is there already makes a run shorter; the first moments are the command line's.
        time.sleep(life * chance.uniform(0.1, 1.0 if again else 0.7))
        run.send(signal.SIGKILL)
        ended = run.wait()
        if ended.code == 128 + signal.SIGKILL:
            found["kills"] += 1
            left = many.litter(out) if out.exists() else []
            found["claims"] += any(name.endswith(".lock") for name in left)
            assert many.wrong(out, begun=True) == [], ended
        if ended.code == 0 or found["kills"] in (kills, kills // 2):
            ended = runs.calibrate(*command)
            assert (ended.code, ended.lines) == (0, [])
            assert runs.run("verify", out).out == f"{out}: no mismatches\n"
            assert many.litter(out) == []
            assert many.content(out) == expected
            found["ends"] += 1
            shutil.rmtree(out)
    print(dict(found))  # noqa: T201, with -s
    assert found["claims"] > kills / 10  # what of a file is there when it is killed: test_faults.py


def test_kills_of_the_command_line(old: Made, tmp_path: Path) -> None:
    chance = random.Random(0)
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    command = [sys.executable, "-m", "gpucal", "calibrate", str(old[0])]
    flags = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
    began = time.monotonic()
    subprocess.run([*command, str(undisturbed), *flags], check=True, capture_output=True, cwd=tmp_path)
    life = time.monotonic() - began
    for _ in range(10 * TIMES):
        if out.exists() and len([*out.glob("*/*/*.json")]) == 4:
            shutil.rmtree(out)
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen([*command, str(out), *flags], cwd=tmp_path, **pipes) as run:
            time.sleep(chance.uniform(life / 4, life))
            run.kill()
            _, errors = run.communicate()
        assert errors == b""
        if out.exists():
            assert many.wrong(out, begun=True) == []
    subprocess.run([*command, str(out), *flags], check=True, capture_output=True, cwd=tmp_path)
    assert (many.wrong(out), many.litter(out)) == ([], [])
    assert many.content(out) == many.content(undisturbed)
