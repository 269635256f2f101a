"""The examples in docstrings of public names run as they stand, on a folder of synthetic data."""

from __future__ import annotations

import doctest
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import gpucal
from gpucal.results.observation import CalibratedObservation
from gpucal.synthetic.competition import synthesize

OWN_WORDS = {"Summary.add", "Summary.decoded", "Summary.end", "Summary.spent", "Summary.trouble"}
"""Methods that the package itself calls."""

PATHS = {"Observation.adc", "Observation.axis", "Observation.calibration_path", "Observation.files"} | {
    "Observation.frames",
    "Observation.signal_path",
    "Observation.where",
    "CalibratedObservation.plot",
    "Results.time_bounds",
}
"""Methods whose example would say no more than their signature."""

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> Iterator[tuple[str, object]]:
    """Every public name, and the methods of public classes."""
    for name in gpucal.__all__:
        thing = getattr(gpucal, name)
        yield name, thing
        if inspect.isclass(thing):
            yield from methods(thing)
    yield "CalibratedObservation", CalibratedObservation
    yield from methods(CalibratedObservation)
    yield from ((f"steps.{name}", getattr(gpucal.steps, name)) for name in gpucal.steps.STEPS)


def methods(owner: type) -> Iterator[tuple[str, object]]:
    for name, method in vars(owner).items():
        of = method.__func__ if isinstance(method, (classmethod, staticmethod)) else method
        if not name.startswith("_") and inspect.isfunction(of):
            yield f"{owner.__name__}.{name}", of


EXAMPLES = {name: thing for name, thing in public() if name not in OWN_WORDS | PATHS}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a competition folder of two planets and its results."""
    folder = tmp_path_factory.mktemp("home")
    raw = folder / "ariel-data-challenge-2025"
    synthesize(raw, layout="2025", planets=2, frames=120)
    summary = gpucal.run(gpucal.open_dataset(raw), folder / "calibrated", variance=True)
    assert not summary.failed
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(home)
    thing = EXAMPLES[name]
    names = {"gpucal": gpucal, "np": np}
    document = inspect.getdoc(thing) or ""
    (test,) = [doctest.DocTestParser().get_doctest(document, names, name, None, 0)]
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    with mpl.rc_context({"backend": "agg"}), warnings.catch_warnings():
        failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    plt.close("all")
    assert not failed, "".join(said)


def test_the_exceptions_exist() -> None:
    known = {name for name, _ in public()} | {"Observation.files", "Results.time_bounds"}
    assert known >= OWN_WORDS | PATHS
