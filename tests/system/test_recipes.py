"""CONTRIBUTING.md is true: each recipe, applied to a copy of the package as it stands there, does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import as_file, files
from pathlib import Path

import pytest
from conftest import Made
from recipes import RECIPES

import gpucal

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = Path(gpucal.__file__).parent
WAYS = {part.partition("\n")[0]: part for part in re.findall(r"^### (.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, with the page of settings."""
    place = tmp_path / "checkout"
    shutil.copytree(PACKAGE, place / "gpucal", ignore=shutil.ignore_patterns("kernels"))
    with as_file(files("gpucal.kernels")) as kernels:
        shutil.copytree(kernels, place / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "settings.md", place / "examples")
    return place


def apply(recipe: str, place: Path) -> int:
    """Do what a recipe says: each block goes where the paragraph before it tells; return how many there were."""
    parts = re.split(r"^```", recipe, flags=re.MULTILINE)
    for before, fenced in zip(parts[0:-1:2], parts[1::2], strict=True):
        paragraph = " ".join(before.strip().split("\n\n")[-1].split())
        block = fenced.partition("\n")[2]
        where = re.search(r"(A new file|In) `([\w./]+)`(?:, after (`{1,2})(.+?)\3)?", paragraph)
        assert where, f"no place for the block after: {paragraph}"
        path, anchor = place / where[2], where[4]
        if anchor is None:
            assert where[1] == "A new file"
            assert not path.exists()
            path.write_text(block, encoding="utf-8")
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [at for at, line in enumerate(lines) if line.strip().startswith(anchor.strip())]
        assert len(found) == 1, f"{where[2]}: {len(found)} lines begin with {anchor}"
        lines.insert(found[0] + 1, block)
        path.write_text("".join(lines), encoding="utf-8")
    return len(parts) // 2


@pytest.mark.parametrize("name", WAYS)
def test_a_recipe_works(name: str, copy: Path, old: Made, tmp_path: Path) -> None:
    assert apply(WAYS[name], copy) >= 1
    paths = [copy, ROOT / "tests", ROOT / "tests" / "support"]
    environment = {name: value for name, value in os.environ.items() if name != "GPUCAL_BACKEND"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    script = ROOT / "tests" / "support" / "recipes.py"
    command = [sys.executable, script, name, tmp_path, old[0]]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_recipe_is_on_the_page() -> None:
    assert [*WAYS] == [*RECIPES]


@pytest.mark.parametrize("wrong", ["after `# A new detector goes somewhere`", "after `photometer=`", "before all"])
def test_a_place_that_is_gone_is_found(wrong: str, copy: Path) -> None:
    changed = WAYS["A detector"].replace("after `# A new detector goes here`", wrong)
    assert changed != WAYS["A detector"]
    with pytest.raises(AssertionError):
        apply(changed, copy)


def test_the_page_is_short() -> None:
    assert len(PAGE.encode()) <= 8192


def test_the_page_has_the_rooms_in_their_order() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        (layers,) = [c["layers"] for c in tomllib.load(file)["tool"]["importlinter"]["contracts"] if "layers" in c]
    rooms = [room for layer in layers for room in layer.split(" | ") if (PACKAGE / room).is_dir()]
    assert re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE) == rooms


def test_the_files_that_the_page_names_are_there() -> None:
    made = set(re.findall(r"A new file `([\w./]+)`", PAGE))
    named = {name.rstrip("/") for name in re.findall(r"`((?:gpucal|tests|benchmarks|examples)/[\w./]*)`", PAGE)} - made
    assert len(named) >= 10
    places = {name: (PACKAGE.parent if name.split("/")[0] == PACKAGE.name else ROOT) / name for name in named}
    assert {name for name, place in places.items() if not place.exists()} == set()
