"""Arguments of public functions: texts mean what they mean on the command line, and wrong types get one line."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import isfunction
from io import StringIO
from itertools import count, product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import CONFIG, Made
from matplotlib.figure import Figure

import gpucal
import gpucal.backends
from gpucal import Calibration, GpucalError
from gpucal.errors import ConfigError, DatasetError, IntegrationWarning, OutputError, UnknownDetector
from gpucal.results.export import export
from gpucal.results.light_curve_table import read_light_curves
from gpucal.results.verify import verify
from gpucal.science.transit import fit_depth
from gpucal.settings.detectors import curve_name, detector_of
from gpucal.settings.ids import as_id, ids_in, why_no_id
from gpucal.synthetic.competition import synthesize

API = Path(__file__).parents[2] / "docs" / "reference" / "api.md"

WRONG: dict[str, Any] = {
    "a number": 5,
    "a fraction": 2.5,
    "bytes": b"FGS1",
    "a text": "nothing of the kind",
    "an empty text": "",
    "a list": ["x"],
    "a list of nothing": [None],
    "a tuple": ("a", 1, None),
    "a dict": {"a": []},
    "a set": {1.5},
    "an object": object(),
    "a type": int,
    "an array": np.ones(3),
    "nan": float("nan"),
    "None": None,
}
"""Values that most arguments cannot have. Where one is right, nothing is raised."""


FRAMES = np.ones((4, 2, 3))
MAP, BAD = np.ones((2, 3)), np.zeros((2, 3), bool)
STEPS: dict[str, dict[str, Any]] = {
    "adc": {"raw": FRAMES.astype(np.uint16), "gain": 2.0, "offset": 1.0},
    "mask": {"electrons": FRAMES, "bad": BAD},
    "linearity": {"electrons": FRAMES, "coefficients": np.ones((6, 2, 3))},
    "dark": {"electrons": FRAMES, "dark_map": MAP, "integration_s": np.ones(4), "dead": BAD},
    "cds": {"electrons": FRAMES},
    "bin": {"pairs": FRAMES, "pairs_per_bin": 2, "reduce": "sum"},
    "flat": {"bins": FRAMES, "flat_map": MAP, "dead": BAD},
}


def calls(old: Path, folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public function, with arguments that are right; those of one call are made wrong one after the other."""
    dataset, results = gpucal.open_dataset(old), gpucal.open_results(folder)
    obs, cal, settings = dataset[17], results.calibrated((17, 0), "FGS1"), Calibration()

    def checked(**given: Any) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IntegrationWarning)  # counts of these files are drawn at random
            return gpucal.check_integration(**given)

    item = {"key": (17, 0), "detector": "FGS1"}
    how = {"settings": CONFIG, "backend": "numpy", "device": False, "dtype": "float32", "workers": 1}
    choices = {"weights": "plain", "rows": (8, 24), "background_rows": [(0, 4)]}
    choices |= {"background": "constant"}
    sample = old.parent / "sample.csv"
    new = partial(next, (folder.parent / f"new{n}" for n in count()))  # a folder that does not exist yet

    def made(**given: Any) -> None:
        with suppress(OutputError):  # that the folder is in use, which is said after all arguments were judged
            synthesize(**given)

    def exported(to: object = None, **given: Any) -> object:
        return export(to=new() if to is None else to, **given)

    curve, shape = np.ones((3, 2)), np.array([0, 1, 0])
    exports = {"results": results, "to": new(), "format": "csv", "product": "light-curves"}
    parquet = export(results, new(), "parquet", "light-curves")[0]
    synthetic = {"layout": "2025", "planets": 1, "frames": 2, "seed": 0, "calibration": None, "visits": 1}
    return {
        "calibrate": (gpucal.calibrate, {"obs": obs, "detector": "FGS1", "config": None, **how}),
        "stream": (
            lambda **given: list(gpucal.stream(**given)),
            {"observations": [obs], "detector": "FGS1", "memory": None, "config": None, **how},
        ),
        "run": (
            gpucal.run,
            {
                **{"dataset": dataset, "out": folder, "settings": CONFIG, "config": None, "planets": [17]},
                **{"shard": (1, 1), "backend": "numpy", "dtype": "float32", "product": "cubes", "variance": False},
                **{"workers": 1, "memory": 10**9, "overwrite": False, "add": False, "resume_from": []},
                **{"time_limit": 100, "strict": False, "client": None, "stop": lambda: False, "progress": False},
                "raise_on_failure": False,
            },
        ),
        "check_integration": (checked, {"obs": obs, "settings": CONFIG}),
        "show_versions": (gpucal.show_versions, {"file": StringIO()}),
        "open_dataset": (gpucal.open_dataset, {"path": old, "split": "train"}),
        "open_results": (gpucal.open_results, {"path": folder}),
        "open_results with more": (lambda more: gpucal.open_results(folder, more), {"more": folder}),
        "submission": (
            gpucal.submission,
            {"ids": [17], "mean": np.ones((1, 2)), "sigma": 1.0, "sample": sample, "to": None},
        ),
        "Calibration": (Calibration, settings.to_dict()),
        "Calibration.preset": (Calibration.preset, {"name": "ariel2024"}),
        "Calibration.from_dict": (Calibration.from_dict, {"settings": {}}),
        "Calibration.from_toml": (Calibration.from_toml, {"path": folder / "config.toml"}),
        "Calibration.filled": (settings.filled, {"preset": "ariel2024"}),
        "Calibration.replace": (settings.replace, {"bins": {}, "crop": {}, "mask": True}),
        "Calibration.pairs_per_bin": (settings.pairs_per_bin, {"detector": "FGS1", "pair_s": 1.0}),
        "Calibration.cropped": (settings.cropped, {"detector": "FGS1"}),
        "Dataset": (gpucal.Dataset, {"path": old, "split": None}),
        "Dataset[]": (lambda key: dataset[key], {"key": 17}),
        "Dataset[,]": (lambda planet, visit: dataset[planet, visit], {"planet": 17, "visit": 0}),
        "in Dataset": (lambda key: key in dataset, {"key": 17}),
        "Dataset.visits": (dataset.visits, {"planet": 17}),
        "Dataset.settings": (dataset.settings, {"bins": {"FGS1": "24s"}}),
        **{
            f"Observation.{name}": (getattr(obs, name), {"detector": "FGS1"})
            for name in ("where", "item", "signal_path", "calibration_path", "files", "frames", "adc", "axis")
        },
        "Calibrated.light_curve": (cal.light_curve, {**choices, "columns": (10, 22)}),
        "Calibrated.light_curve_with_errors": (cal.light_curve_with_errors, choices),
        "Calibrated.noise_excess": (cal.noise_excess, {"per": "pixel"}),
        "Results": (gpucal.Results, {"path": folder, "settings": None}),
        "Results[]": (lambda detector: results[detector], {"detector": "FGS1"}),
        "Results[][]": (lambda index: results["FGS1"][index], {"index": 0}),
        "in Results": (lambda key: key in results, {"key": 17}),
        "Results.dq": (results.dq, {"detector": "FGS1"}),
        **{
            f"Results.{name}": (getattr(results, name), item)
            for name in ("calibrated", "light_curve", "light_curve_with_errors", "axes", "time_bounds")
        },
        "Calibrated.plot": (cal.plot, {"figure": Figure(layout="constrained")}),
        "Results.plot": (results.plot, {"key": 17, "figure": Figure(layout="constrained")}),
        "CalibratedObservation.plot": (results[17].plot, {"figure": Figure(layout="constrained")}),
        **{f"steps.{name}": (getattr(gpucal.steps, name), given) for name, given in STEPS.items()},
        "Results.report": (results.report, {"to": folder / "report.html", "paths": False}),
        "Results.light_curve, choices": (results.light_curve, {**item, **choices}),
        "Results.light_curve_table": (results.light_curve_table, {"labels": False}),
        "Results.light_curves": (results.light_curves, choices),
        "Results.light_curves_with_errors": (results.light_curves_with_errors, choices),
        "Results.white_light": (results.white_light, {"key": (17, 0)}),
        "Results.light_curves_of": (results.light_curves_of, {"key": (17, 0)}),
        "Results.light_curves_with_errors_of": (results.light_curves_with_errors_of, {"key": (17, 0)}),
        "CalibratedObservation[]": (lambda detector: results[17][detector], {"detector": "FGS1"}),
        "in CalibratedObservation": (lambda detector: detector in results[17], {"detector": "FGS1"}),
        "synthesize": (
            made,
            {"out": folder, **synthetic, "splits": "test", "workers": 1, "progress": None, "jitter": 0},
        ),
        "export": (exported, exports),
        "verify": (lambda path: [*verify(path)], {"path": folder}),
        "read_light_curves": (read_light_curves, {"path": parquet}),
        "fit_depth": (fit_depth, {"flux": curve, "error": curve, "shape": shape}),
        "backends.choose": (gpucal.backends.choose, {"name": "numpy"}),
        "backends.load": (gpucal.backends.load, {"name": "numpy"}),
        "detectors.curve_name": (curve_name, {"detector": "AIRS-CH0", "column": 40}),
        "detectors.detector_of": (detector_of, {"detector": "FGS1"}),
        "ids.as_id": (as_id, {"value": 17}),
        "ids.ids_in": (ids_in, {"values": [17]}),
        "ids.why_no_id": (why_no_id, {"value": 17}),
    }


NAMES = [
    *(
        "calibrate",
        "stream",
        "run",
        "check_integration",
        "show_versions",
        "open_dataset",
        "open_results",
        "open_results with more",
    ),
    "submission",
    *("Calibration", "Calibration.preset", "Calibration.from_dict", "Calibration.from_toml", "Calibration.filled"),
    *("Calibration.replace", "Calibration.pairs_per_bin", "Calibration.cropped", "Dataset", "Dataset[]"),
    *("Dataset[,]", "in Dataset", "Dataset.visits", "Dataset.settings", "Observation.where", "Observation.item"),
    *("Observation.signal_path", "Observation.calibration_path", "Observation.files", "Observation.frames"),
    *("Observation.adc", "Observation.axis", "Calibrated.light_curve", "Calibrated.light_curve_with_errors"),
    *("Calibrated.noise_excess", "Results"),
    *("Results[]", "Results[][]", "in Results", "Results.dq", "Results.calibrated", "Results.light_curve"),
    *("Results.light_curve_with_errors", "Results.axes", "Results.time_bounds"),
    *("Calibrated.plot", "Results.plot", "CalibratedObservation.plot"),
    *(f"steps.{name}" for name in STEPS),
    "Results.report",
    "Results.light_curve, choices",
    *(
        "Results.light_curve_table",
        "Results.light_curves",
        "Results.light_curves_with_errors",
        "Results.white_light",
        "Results.light_curves_of",
    ),
    "Results.light_curves_with_errors_of",
    *("CalibratedObservation[]", "in CalibratedObservation"),
    *("synthesize", "export", "verify", "read_light_curves", "fit_depth", "backends.choose", "backends.load"),
    *("detectors.curve_name", "detectors.detector_of", "ids.as_id", "ids.ids_in", "ids.why_no_id"),
]


@pytest.fixture(scope="module")
def made(old: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with planet 17, with variances."""
    folder = tmp_path_factory.mktemp("made")
    (old[0].parent / "sample.csv").write_text("planet_id,wl_1,wl_2,sigma_1,sigma_2\n17,1,1,1,1\n")
    gpucal.run(old[0], folder, CONFIG, planets=17, variance=True)
    return folder


@pytest.fixture(scope="module")
def known(old: Made, made: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    return calls(old[0], made)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_type_gets_one_line(
    name: str,
    known: dict[str, tuple[Callable[..., Any], dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where a text may be taken for the name of a folder
    call, right = known[name]
    call(**{**right, **({"variance": True} if name == "run" else {})})  # what is right, works
    wrong = []
    for argument, (about, value) in product(right, WRONG.items()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                call(**{**right, argument: value})
        except GpucalError as error:
            if "\n" in str(error) or len(str(error)) < 15:
                wrong.append(f"{argument} = {about}: {error!r}")
        except IndexError:  # ends a loop
            if not isinstance(value, int):
                wrong.append(f"{argument} = {about}")
        except Exception as error:  # noqa: BLE001, any other is a mistake of gpucal's
            wrong.append(f"{argument} = {about}: {type(error).__name__}: {error}")
    plt.close("all")
    assert not wrong


def test_every_call_is_tried(known: dict[str, Any]) -> None:
    assert [*known] == NAMES
    named = [resolve_name(name) for name in re.findall(r"^   (gpucal\.\S+)$", API.read_text(), re.M)]
    functions = {one.__name__ for one in [*named, *map(partial(getattr, gpucal), gpucal.__all__)] if isfunction(one)}
    assert {"calibrate", "synthesize", "export"} <= functions <= {*NAMES}
    assert gpucal.steps.STEPS.keys() == STEPS.keys()
    for cls in (gpucal.Dataset, gpucal.Observation, gpucal.Results, gpucal.Calibrated, gpucal.Calibration):
        for name, method in inspect.getmembers(cls, callable):
            if not name.startswith("_") and len(inspect.signature(method).parameters) > 1:
                assert any(call.startswith(f"{cls.__name__}.{name}") for call in NAMES), (cls, name)


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ({"planets": "17"}, 2),
        ({"planets": "17, 23"}, 4),
        ({"memory": "2GB"}, 4),
        ({"time_limit": "8.5h"}, 4),
        ({"shard": "1/2"}, 2),
        ({"shard": "2/2"}, 2),
    ],
    ids=str,
)
def test_texts_of_the_command_line(given: dict[str, Any], items: int, old: Made, tmp_path: Path) -> None:
    summary = gpucal.run(str(old[0]), str(tmp_path / "out"), CONFIG, **given)
    assert (summary.done, summary.failed) == (items, {})


def test_a_folder_to_resume_from_may_be_a_text(old: Made, made: Path, tmp_path: Path) -> None:
    summary = gpucal.run(old[0], tmp_path / "out", CONFIG, planets="17", variance=True, resume_from=str(made))
    assert (summary.done, summary.skipped) == (0, 2)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"memory": "2"}, r"memory: the unit of '2' is missing; did you mean 2GB\?"),
        ({"memory": "much"}, "memory: cannot read 'much' as a size: 900MB, 1.5GB"),
        ({"time_limit": "9"}, "time_limit: cannot read '9' as a duration: 8.5h, 90m, 5400s"),
        ({"shard": "5/4"}, "shard: '5/4' is not among the 4 parts, which are 1/4 to 4/4"),
        ({"overwrite": "no"}, "overwrite = 'no': must be True or False"),
        ({"progress": "yes"}, "progress = 'yes': must be True, False or 'auto'"),
        ({"settings": {"mask": False}}, "settings: is a dict, must be a Calibration, such as ds.settings"),
        ({"out": ""}, r"out: the name is empty; write `\.` for the current folder"),
        ({"dataset": 5}, r"dataset: is an int, must be a Dataset, such as gpucal.open_dataset\('data'\)"),
        ({"stop": 5}, "stop = 5: must be a function"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing(given: dict[str, Any], line: str, old: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        gpucal.run(**{"dataset": old[0], "out": tmp_path / "out", **given})
    assert not (tmp_path / "out").exists()


def test_planets_of_a_text_are_looked_up_one_by_one(old: Made, tmp_path: Path) -> None:
    for planets in ("17, 230", "x"):
        with pytest.raises(DatasetError, match=r"no planet (230|x) among its 2 observations"):
            gpucal.run(old[0], tmp_path / "out", CONFIG, planets=planets)


def test_settings_of_a_data_set_are_its_preset_with_changes(old: Made, new: Made) -> None:
    for (folder, _), preset in ((old, "ariel2024"), (new, "ariel2025")):
        dataset = gpucal.open_dataset(folder)
        assert dataset.settings() == Calibration.preset(preset)
        changed = dataset.settings(bins={"FGS1": "24s"}, linearity=False)
        assert changed == Calibration.preset(preset).replace(bins={"FGS1": "24 s"}, linearity=False)
        assert changed.bins["AIRS-CH0"] == 30
        with pytest.raises(ConfigError, match="unknown setting 'bin'; did you mean 'bins'"):
            dataset.settings(bin=3)


def test_settings_have_one_name(old: Made, tmp_path: Path) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    right = [gpucal.calibrate(obs, "FGS1", CONFIG), gpucal.calibrate(obs, "FGS1", settings=CONFIG)]
    calls: tuple[Callable[..., Any], ...] = (
        lambda **settings: right.append(gpucal.calibrate(obs, "FGS1", **settings)),
        lambda **settings: right.extend(gpucal.stream([obs], "FGS1", **settings)),
        lambda **settings: gpucal.run(old[0], tmp_path / "out", **settings),
    )
    for call in calls:
        with pytest.warns(DeprecationWarning, match="config= is settings= now") as warned:
            call(config=CONFIG)
        assert [Path(one.filename).name for one in warned] == [Path(__file__).name]
        with pytest.raises(ConfigError, match=r"^settings and config: give settings alone; config is its old name$"):
            call(settings=CONFIG, config=CONFIG)
    assert [cal.provenance["settings_hash"] for cal in right] == [CONFIG.content_hash] * 4
    assert CONFIG.to_toml() in (tmp_path / "out" / "config.toml").read_text()


OLD = {
    "calibrate": ("obs", "detector", "config", "backend", "device", "dtype", "workers"),
    "stream": ("observations", "detector", "config", "backend", "device", "dtype", "workers", "memory"),
    "run": (
        *("dataset", "out", "config", "planets", "shard", "backend", "dtype", "product", "variance", "workers"),
        *("memory", "overwrite", "resume_from", "time_limit", "strict", "client", "stop", "progress"),
    ),
    "open_dataset": ("path", "split"),
    "open_results": ("path", "more"),
}


@pytest.mark.parametrize("name", OLD)
def test_calls_of_the_first_version_are_right(name: str) -> None:
    """Names of arguments, and their places where they have one."""
    parameters = inspect.signature(getattr(gpucal, name)).parameters
    assert {*OLD[name]} <= parameters.keys()
    placed = [one.name for one in parameters.values() if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [one.replace("settings", "config") for one in placed] == [*OLD[name]][: len(placed)]


def test_detectors_by_name(old: Made) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    assert obs.signal_path("FGS1").name == "FGS1_signal.parquet"
    assert obs.frames("FGS1").dark.shape == (32, 32)
    for error in (GpucalError, ConfigError, KeyError):
        with pytest.raises(error, match=r"^no detector 'AIRS-CH1'; there are AIRS-CH0, FGS1; did you mean AIRS-CH0\?$"):
            obs.adc("AIRS-CH1")
    assert str(UnknownDetector("no detector 'x'")) == "no detector 'x'"


def test_a_stream_of_a_folder(new: Made) -> None:
    found = [(cal.planet, cal.visit) for cal in gpucal.stream(str(new[0]), "FGS1", CONFIG)]
    assert found == sorted(new[1])
