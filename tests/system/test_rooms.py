"""The house stays small: few modules at the top, few rooms, few floors, names that hide no public function."""

from __future__ import annotations

import tomllib
from pathlib import Path

import gpucal

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(gpucal.__file__).parent
ROOMS = {str(init.parent.relative_to(PACKAGE)) for init in PACKAGE.rglob("*/__init__.py")} - {"kernels"}
TOP = {path.stem for path in PACKAGE.glob("*.py")}


def test_few_modules_rooms_and_floors() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        (layers,) = [c["layers"] for c in tomllib.load(file)["tool"]["importlinter"]["contracts"] if "layers" in c]
    assert len(TOP) <= 6, TOP
    assert 2 <= len(ROOMS) <= 18, ROOMS
    assert len(layers) <= 11, layers


def test_no_module_hides_a_public_name() -> None:
    assert not {room for room in ROOMS if "/" not in room} & set(gpucal.__all__)
    assert not TOP & set(gpucal.__all__)


def test_every_room_has_its_tests() -> None:
    untested = {room for room in ROOMS if not [*(ROOT / "tests" / room).glob("test_*.py")]}
    assert untested == set()
