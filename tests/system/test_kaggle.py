"""The Kaggle notebooks executed on synthetic data, and the wheel installed where there is no index and little else."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gpucal
from gpucal.synthetic.competition import synthesize

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK, SUBMISSION = ROOT / "examples" / "kaggle_gpu.ipynb", ROOT / "examples" / "kaggle_submission.ipynb"

CORE = ["numpy", "pandas", "pyarrow", "astropy", "tqdm"]
"""What gpucal must have; Kaggle's images hold it."""

# What the tests look at is left behind by one cell more.
PROBE = """
import json
np.savez("probe.npz", raw=raw, before=before, after=after, curves=curves, flux=flux, error=error)
print(json.dumps({"summary": vars(summary), "ids": results.ids, "drawn": key, "dataset": str(ds.path)}))
"""


def inherited() -> dict[str, str]:
    """Return this environment without what would change a notebook or pip."""
    ours = ("GPUCAL_", "KAGGLE", "PIP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


class Run:
    """An executed notebook: what its cells printed, drew and left behind."""

    def __init__(self, folder: Path, notebook: Any) -> None:
        self.cells = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
        if "probe" in self.cells:
            self.state: dict[str, Any] = json.loads(self.text("probe"))
            self.ids = [tuple(key) for key in self.state["ids"]]
            with np.load(folder / "probe.npz") as arrays:
                self.arrays = dict(arrays)

    def text(self, cell: str) -> str:
        return "".join(output.text for output in self.cells[cell] if output.get("name") == "stdout")

    def pictures(self, cell: str) -> list[np.ndarray]:
        data = [output.data["image/png"] for output in self.cells[cell] if "image/png" in output.get("data", {})]
        return [imread(io.BytesIO(base64.b64decode(png))) for png in data]


def execute(
    folder: Path, path: Path = NOTEBOOK, *, until: str = "", edits: dict[str, str] | None = None, **variables: str
) -> Run:
    """Execute a notebook in a kernel of its own: inputs in ``folder/input``, results in ``folder/calibrated``."""
    notebook = nbformat.read(path, as_version=4)
    for old, new in (edits or {}).items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    if until:
        del notebook.cells[[cell.id for cell in notebook.cells].index(until) + 1 :]
    elif path == NOTEBOOK:
        notebook.cells.append(nbformat.v4.new_code_cell(PROBE, id="probe"))
    (folder / "input").mkdir(parents=True, exist_ok=True)
    places = {"GPUCAL_INPUT": str(folder / "input"), "GPUCAL_OUT": str(folder / "calibrated")}
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute(
        env=inherited() | places | variables
    )
    return Run(folder, notebook)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_products(run: Run, raw: Path, layout: str) -> None:
    """Compare what a run looked at, and its light curves, with what they were made from."""
    dataset = gpucal.open_dataset(raw)
    observations = list(dataset)
    assert f"{layout} layout, {len(observations)} observations" in run.text("data")
    assert run.state["dataset"] == str(raw)
    assert run.ids == [obs.key for obs in observations]

    airs = gpucal.settings.detectors.DETECTORS["AIRS-CH0"]
    stored = pq.read_table(observations[0].signal_path(airs)).slice(0, 2).to_pandas().to_numpy()
    np.testing.assert_array_equal(run.arrays["raw"], stored.reshape(2, 32, 356)[:, :, 39:321])
    adc, coefficients = observations[0].adc(airs), observations[0].frames(airs).linear_corr
    before = run.arrays["raw"] / adc.gain + adc.offset
    np.testing.assert_allclose(run.arrays["before"], before, rtol=1e-12)
    powers = before[None] ** np.arange(6)[:, None, None, None]
    np.testing.assert_allclose(run.arrays["after"], (coefficients[:, None] * powers).sum(axis=0), rtol=1e-9, atol=1e-6)

    curves = [
        np.concatenate([gpucal.calibrate(obs, name).light_curve() for name in ("FGS1", "AIRS-CH0")], axis=1)
        for obs in observations
    ]
    np.testing.assert_allclose(run.arrays["curves"], np.stack(curves), rtol=1e-5)
    assert tuple(run.state["drawn"]) == observations[0].key
    drawn = gpucal.calibrate(observations[0], "AIRS-CH0").light_curve_with_errors()
    np.testing.assert_allclose(run.arrays["flux"], drawn.flux, rtol=1e-9)
    np.testing.assert_allclose(run.arrays["error"], drawn.error, rtol=1e-9)
    for cell in ("step", "draw"):
        (picture,) = run.pictures(cell)
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 50


def check_torch(run: Run, shape: tuple[int, ...]) -> None:
    """Look for losses and batches where PyTorch is installed, and for the plain word where it is not."""
    if importlib.util.find_spec("torch") is None:
        assert run.text("stream") == "PyTorch is not installed here: nothing to train\n"
        assert run.text("loader") == "PyTorch is not installed here: nothing to load\n"
    else:
        losses = re.findall(r"planet (\d+), visit (\d+): loss ([\d.e+-]+) on ", run.text("stream"))
        assert [(int(planet), int(visit)) for planet, visit, _ in losses] == run.ids
        assert all(0 < float(loss) < 10 for *_, loss in losses)
        assert run.text("loader") == f"{shape} torch.float32\n"


@pytest.mark.parametrize("path", [NOTEBOOK, SUBMISSION], ids=lambda path: path.stem)
def test_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells) > 15
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


def test_a_session_and_one_that_has_its_output(tmp_path: Path) -> None:
    raw = tmp_path / "first" / "input" / "competitions" / "ariel-data-challenge-2024"
    synthesize(raw, planets=2, frames=300)
    run = execute(tmp_path / "first")
    assert run.text("install") == "gpucal is installed already\n"
    assert re.search(r"^auto: (cupy|numba|numpy)$", run.text("backend"), re.MULTILINE)
    assert run.text("run").startswith("2 observations calibrated in ")
    assert len(run.text("run").splitlines()) == 1
    check_products(run, raw, "2024")
    check_torch(run, (2, 5, 282, 32))

    attached = tmp_path / "second" / "input" / "the-first" / "calibrated"
    shutil.copytree(tmp_path / "first" / "calibrated", attached)
    again = raw.rename(tmp_path / "second" / "input" / raw.name)
    before = content(attached)
    run = execute(tmp_path / "second")
    assert run.text("run").startswith("0 observations calibrated, 2 finished before in ")
    check_products(run, again, "2024")
    assert content(attached) == before
    assert list((tmp_path / "second" / "calibrated").rglob("*.npy")) == []


@pytest.mark.slow
def test_a_session_cut_short_and_the_next(tmp_path: Path) -> None:
    """Two visits; one planet's are in an attached output, and the other's come too late in the first session."""
    raw = tmp_path / "raw"
    first, second = sorted(synthesize(raw, layout="2025", planets=2, visits=2, frames=120))
    attached = tmp_path / "input" / "earlier" / "calibrated"
    config = gpucal.Calibration.preset("ariel2025")
    assert gpucal.run(gpucal.open_dataset(raw), attached, config, planets=[first]).done == 4
    (tmp_path / "input" / "others").mkdir()
    pq.write_table(pq.read_table(attached / "manifest.parquet"), tmp_path / "input" / "others" / "manifest.parquet")

    run = execute(tmp_path, edits={"8.5 * 3600": "1e-3"}, GPUCAL_DATA=str(raw))
    assert run.state["summary"]["left"] == 8
    assert "4 left" in run.text("run")
    assert run.text("run").splitlines()[-1].startswith("to go on: save this version, attach its output")
    assert run.ids == [(first, 0), (first, 1)]

    run = execute(tmp_path, GPUCAL_DATA=str(raw))
    assert run.text("run").startswith("2 observations calibrated, 2 finished before in ")
    assert "to go on" not in run.text("run")
    assert run.ids == [(first, 0), (first, 1), (second, 0), (second, 1)]
    check_products(run, raw, "2025")
    check_torch(run, (4, 2, 282, 32))


@pytest.mark.slow
def test_a_broken_file_costs_one_item_and_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    first, second = sorted(synthesize(raw, planets=2, frames=120))
    (raw / "train" / str(second) / "FGS1_signal.parquet").write_bytes(b"no Parquet")
    run = execute(tmp_path, GPUCAL_DATA=str(raw))
    printed = run.text("run").splitlines()
    assert printed[0].startswith("1 observation calibrated, 1 failed in ")
    assert f"train/{second}/FGS1_signal.parquet: is not a Parquet file" in printed[1]
    assert run.ids == [(first, 0)]
    assert "1 items failed" in run.text("curves")


@pytest.mark.slow
def test_nothing_attached_and_the_split_of_a_submission(tmp_path: Path) -> None:
    run = execute(tmp_path, until="data")
    assert run.text("data").startswith("no competition among the inputs: these are synthetic data\n")
    assert "2024 layout, 2 observations" in run.text("data")
    train, test = tmp_path / "synthetic" / "train", tmp_path / "synthetic" / "test"
    made = sorted(path.name for path in train.iterdir())
    assert len(made) == 2
    test.mkdir()
    (train / made[0]).rename(test / made[0])
    (train.parent / "train_adc_info.csv").rename(train.parent / "test_adc_info.csv")
    run = execute(tmp_path, until="data", KAGGLE_IS_COMPETITION_RERUN="1")
    assert "2024 layout, 1 observations" in run.text("data")


WAVELENGTHS, SIGMAS = [f"wl_{k}" for k in range(1, 284)], [f"sigma_{k}" for k in range(1, 284)]


def test_from_the_folder_to_a_submission(tmp_path: Path) -> None:
    run = execute(tmp_path, SUBMISSION)
    assert run.text("data").startswith("no competition among the inputs: these are synthetic data\n")
    assert run.text("run").splitlines()[1:] == ["no failures"]
    for cell in ("look", "labels"):
        (picture,) = run.pictures(cell)
        assert min(picture.shape[:2]) > 300
    made = pd.read_csv(tmp_path / "submission.csv")
    assert list(made) == ["planet_id", *WAVELENGTHS, *SIGMAS]
    labels = gpucal.open_dataset(tmp_path / "synthetic").labels()
    assert made["planet_id"].tolist() == labels["planet_id"].tolist()
    depth, sigma, true = (of.to_numpy() for of in (made[WAVELENGTHS], made[SIGMAS], labels[WAVELENGTHS]))
    assert (sigma > 0).all()
    assert np.sqrt((((depth - true) / sigma) ** 2).mean()) < 2
    assert np.sqrt(((depth / true - 1) ** 2).mean()) < 0.03


def test_a_submission_has_the_rows_and_columns_of_the_sample(tmp_path: Path) -> None:
    """As Kaggle runs it: planets of test, without labels; one of them cannot be calibrated."""
    raw = tmp_path / "raw"
    first, second = synthesize(raw, layout="2025", planets=2, frames=900, splits=("test",))
    (raw / "test" / str(first) / "FGS1_signal_0.parquet").write_bytes(b"PAR1")
    columns = ["planet_id", *SIGMAS[::-1], *WAVELENGTHS[::-1]]
    pd.DataFrame(dict.fromkeys(columns, 0.5), index=[0, 1]).assign(planet_id=[second, first]).to_csv(
        raw / "sample_submission.csv", index=False
    )
    run = execute(tmp_path, SUBMISSION, GPUCAL_DATA=str(raw), KAGGLE_IS_COMPETITION_RERUN="1")
    assert "1 failed" in run.text("run").splitlines()[0]
    assert f"test/{first}/FGS1_signal_0.parquet" in run.text("run")
    made = pd.read_csv(tmp_path / "submission.csv")
    assert list(made) == columns
    assert made["planet_id"].tolist() == [second, first]
    assert (made[SIGMAS] > 0).all(axis=None)
    # the mean spectrum is that of the other planet
    np.testing.assert_array_equal(made[WAVELENGTHS].iloc[0], made[WAVELENGTHS].iloc[1])
    assert (made[SIGMAS].iloc[1] == 0.005).all()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel GPUCAL_WHEEL names, or one built from a copy of the tree; nothing is fetched for it."""
    if given := os.environ.get("GPUCAL_WHEEL"):
        return Path(given)
    place = tmp_path_factory.mktemp("wheel")
    source, dist = place / "source", place / "dist"
    for name in ("gpucal", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    dist.mkdir()
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, dist], cwd=source, env=inherited(), check=True, capture_output=True)
    (made,) = dist.iterdir()
    return made


def needed(names: list[str]) -> dict[str, metadata.Distribution]:
    """Return installed distributions and what they in turn must have."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [*names]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        requirements = (Requirement(line) for line in found[name].requires or [])
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds pip and what gpucal must have, linked to what is installed here."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", place], env=inherited(), check=True)
    (packages,) = place.glob("lib/python3*/site-packages")
    for distribution in needed(CORE).values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return place


def inside(venv: Path, *command: object, status: int = 0, cwd: Path | None = None, **variables: str) -> str:
    """Run a command of an environment, out of reach of any index; return what it printed."""
    program, *arguments = map(str, command)
    unreachable = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    run = subprocess.run(
        [str(venv / "bin" / program), *arguments],
        cwd=cwd or venv,
        env=inherited() | unreachable | {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == status, run.stdout
    return run.stdout


def install_cell(venv: Path, inputs: Path, status: int = 0) -> str:
    """Run the notebook's cells up to the one that installs, as plain Python."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = {cell.id: cell.source for cell in cells if cell.cell_type == "code"}
    return inside(venv, "python", "-c", f"{code['places']}\n{code['install']}", status=status, GPUCAL_INPUT=str(inputs))


@pytest.fixture(scope="module")
def user(bare: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That environment with the wheel installed by the notebook, which finds it among the inputs."""
    inputs = tmp_path_factory.mktemp("input")
    for place in ("ariel-data-challenge-2024/train/17", "competitions/ariel-data-challenge-2025/test"):
        (inputs / place).mkdir(parents=True)
        (inputs / place / "gpucal-9.9-py3-none-any.whl").write_text("not looked at")
    said = install_cell(bare, inputs, status=1)
    assert said.splitlines()[-1] == (f"FileNotFoundError: no gpucal-*.whl in {inputs}; attach a data set that holds it")
    (inputs / "datasets" / "me" / "wheels").mkdir(parents=True)
    shutil.copy(wheel, inputs / "datasets" / "me" / "wheels")
    assert f"Successfully installed gpucal-{gpucal.__version__}" in install_cell(bare, inputs)
    assert install_cell(bare, inputs) == "gpucal is installed already\n"
    return bare


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (said,) = [message_from_bytes(archive.read(name)) for name in names if name.endswith(".dist-info/METADATA")]
    assert wheel.name == f"gpucal-{gpucal.__version__}-py3-none-any.whl"
    assert said["Requires-Python"] == ">=3.11"
    requirements = [Requirement(line) for line in said.get_all("Requires-Dist", [])]
    unconditional = [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert sorted(unconditional) == sorted(CORE)
    package = Path(gpucal.__file__).parent
    modules = {str(path.relative_to(package.parent)) for path in package.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} >= modules
    sources = {f"gpucal/kernels/{file.name}" for file in files("gpucal.kernels").iterdir() if file.name.endswith(".cu")}
    assert {"gpucal/py.typed", *sources} <= set(names)
    assert sources


@pytest.mark.slow
def test_installs_without_an_index_beside_the_core_dependencies(user: Path) -> None:
    assert inside(user, "pip", "check") == "No broken requirements found.\n"
    there = {canonicalize_name(entry["name"]) for entry in json.loads(inside(user, "pip", "list", "--format=json"))}
    assert there - {"pip", "setuptools"} == {*needed(CORE), "gpucal"}
    assert not {"numba", "cupy-cuda12x", "dask", "matplotlib", "zarr", "xarray"} & there
    # There is no index to be had: what is not here does not come.
    assert "No matching distribution found for numba" in inside(user, "pip", "install", "numba", status=1)


@pytest.mark.slow
def test_works_with_the_core_dependencies_alone(user: Path, tmp_path: Path) -> None:
    said = inside(user, "gpucal", "info")
    assert re.search(r"^numba: not available: ", said, re.MULTILINE)
    assert re.search(r"^cupy: not available: ", said, re.MULTILINE)
    assert said.endswith("auto: numpy\n")

    said = inside(user, "gpucal", "demo", "demo", "--frames", 600, cwd=tmp_path)
    found = re.findall(r"^(\S+): \((.+?)\) .*bias ([+-][\d.]+) σ, scatter ([\d.]+) σ", said, re.MULTILINE)
    assert [(name, shape) for name, shape, *_ in found] == [("FGS1", "10, 32, 32"), ("AIRS-CH0", "10, 282, 32")]
    for _, _, bias, scatter in found:
        assert abs(float(bias)) < 0.05
        assert float(scatter) == pytest.approx(1, abs=0.05)
    assert "no picture: matplotlib is not installed" in said

    said = inside(user, "gpucal", "calibrate", "demo/raw", "out", "--json", cwd=tmp_path)
    summary = json.loads(said.splitlines()[-1])
    assert (summary["done"], summary["failed"], summary["backend"]) == (2, {}, "numpy")
    results = gpucal.open_results(tmp_path / "out")
    (obs,) = gpucal.open_dataset(tmp_path / "demo" / "raw")
    assert results.ids == [obs.key]
    for name in ("FGS1", "AIRS-CH0"):
        expected = gpucal.calibrate(obs, name, dtype="float32")
        np.testing.assert_allclose(results[name][0], expected.signal, rtol=1e-6, atol=1e-3)
        np.testing.assert_array_equal(results.dq(name)[0], expected.dq)
