"""Modules of 0.1 are found by the names that they had there."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from gpucal._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_is_found_with_a_warning(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=rf"{old} is {MOVED[old]} since 0\.2; the old name goes with 0\.3"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == module.__spec__.name == MOVED[old]  # which others may have imported by its own name


def test_the_imports_of_the_notebook_of_0_1() -> None:
    script = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from gpucal import steps
    from gpucal.detectors import DETECTORS
    from gpucal.synth import synthesize
assert steps.cds and DETECTORS and synthesize
# gpucal.steps is a public name
assert {w.category for w in caught} == {DeprecationWarning} and len(caught) == 2, caught
assert {w.filename for w in caught} == {"<string>"}, [w.filename for w in caught]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'gpucal\.placing'"):
        importlib.import_module("gpucal.placing")


def test_steps_are_there_after_the_import_of_the_package_alone() -> None:
    script = """
import sys, gpucal
assert "numpy" not in sys.modules and "steps" in dir(gpucal)
import numpy as np
assert gpucal.steps.adc(np.array([[[100]]], np.uint16), 2.0, 1.0).item() == 51.0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
