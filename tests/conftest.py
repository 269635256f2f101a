"""Competition folders of full-width hostile frames, a few dozen reads long, made once for the tests that read them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
from emulator import cpp, standin
from hostile import ADCS, AIRS, FGS1, Observation, observe, write
from launch import require_compiler

import gpucal
from gpucal import Calibration, Summary
from gpucal.results.records import records


def pytest_configure(config: pytest.Config) -> None:
    """Take interrupts, also where a shell's & has them ignored: processes that tests send some to inherit this.

    What the emulator builds is built once for all processes of a session: pytest's own and those that tests start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if cpp.KEPT not in os.environ:
        os.environ[cpp.KEPT] = tempfile.mkdtemp(prefix="gpucal-builds-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(cpp.KEPT)))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run folders of tests in two processes, where no -n says another number; starting them costs a single file more.

    One process takes over half of what the other has left, so that neither waits long and few fixtures are made twice.
    The threads of OpenBLAS sleep between its calls: they would keep a core busy that the other process could have.
    """
    single = all(Path(name.partition("::")[0]).is_file() for name in config.args)
    alone = single or config.option.usepdb or hasattr(config, "workerinput") or len(os.sched_getaffinity(0)) < 2
    if not alone and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses, config.option.dist = 2, "worksteal"
        os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


SLOW: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "emulator/test_emulator.py": frozenset({"test_lanes_exchange", "test_atomics_add_up", "test_sectors_by_hand"}),
        "runs/test_dask.py": frozenset(
            {
                "test_a_local_cluster_fits",
                "test_clients_that_cannot_be_used",
                "test_dask_is_an_extra",
                "test_no_scheduler_is_one_line",
                "test_the_numbers_are_those_of_a_local_run",
            }
        ),
        "runs/test_gpus.py": frozenset(
            {
                "test_else_the_driver_lists_them",
                "test_one_item_fails_and_no_other",
                "test_the_variable_decides",
                "test_who_gets_a_process",
            }
        ),
        "science/test_noise.py": frozenset(
            {
                "test_noise_excess_on_a_device",
                "test_noise_excess_sees_neither_drift_nor_edges_nor_hits",
                "test_noise_excess_without_an_answer",
                "test_read_noise_is_the_variance_without_photons",
                "test_variance_is_the_formula_pixel_by_pixel",
            }
        ),
        "system/test_checkout.py": frozenset({"test_the_package_is_a_program"}),
        "system/test_closure.py": frozenset(
            {
                "test_depths_are_recovered_within_their_errors",
                "test_fit_is_exact_without_noise",
                "test_fit_is_least_squares_and_its_error_the_covariance",
                "test_fit_leaves_out_what_it_cannot_use",
            }
        ),
        "system/test_end_to_end.py": frozenset({"test_calibrates_to_the_reference"}),
        "system/test_faults.py": frozenset(),
        "system/test_flat.py": frozenset(),
        "system/test_fuzz.py": frozenset({"test_signals", "test_mutants_differ_and_can_be_made_again"}),
        "system/test_kaggle.py": frozenset(
            {
                "test_committed_without_outputs",
                "test_the_wheel_says_what_it_needs",
                "test_works_with_the_core_dependencies_alone",
            }
        ),
        "system/test_kills.py": frozenset(),
        "system/test_signals.py": frozenset({"test_a_signal_waits_for_imports"}),
        "system/test_space.py": frozenset({"test_a_read_only_folder_is_refused"}),
        "system/test_together.py": frozenset({"test_of_runs_of_other_settings_one_is_refused"}),
    }
)
"""Files of which all tests are slow but these: many processes, a compiler, a scheduler or a Monte Carlo each."""


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m leaves out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW`."""
    here = Path(__file__).parent
    for item in items:
        kept = SLOW.get(item.path.relative_to(here).as_posix()) if item.path.is_relative_to(here) else None
        if kept is not None and getattr(item, "originalname", item.name) not in kept:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Spell out what is no UTF-8 in captured output, such as names of files: it would end pytest's processes."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


BINS = {"AIRS-CH0": 7, "FGS1": 16}
"""Four bins of AIRS-CH0 and of FGS1 in these folders, with pairs left over."""

PLANETS = range(100, 120)
"""Those of `many`."""

CONFIG = Calibration(bins=BINS, integration="notebook")

Made = tuple[Path, dict[tuple[int, int], dict[str, Observation]]]


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work in a folder of no interest: processes would import from a checkout before what is installed."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


def _make(folder: Path, layout: str, keys: list[tuple[int, int]]) -> Made:
    made = {}
    for seed, (planet, visit) in enumerate(keys):
        pair = [observe(AIRS, 60, ADCS[layout], seed), observe(FGS1, 140, ADCS[layout], seed + 50)]
        write(pair, folder, planet, layout, visit)
        made[planet, visit] = {obs.detector.name: obs for obs in pair}
    return folder, made


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """2024 layout: planets 17 and 23. Not to be written to."""
    return _make(tmp_path_factory.mktemp("competition") / "y2024", "2024", [(17, 0), (23, 0)])


@pytest.fixture(scope="session")
def new(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """2025 layout: planet 5 with visits 0 and 1. Not to be written to."""
    return _make(tmp_path_factory.mktemp("competition") / "y2025", "2025", [(5, 0), (5, 1)])


@pytest.fixture(scope="session")
def many(old: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty planets, all of them planet 17 of the 2024 layout by another id. Not to be written to."""
    folder = tmp_path_factory.mktemp("many") / "raw"
    (folder / "train").mkdir(parents=True)
    header, row, *_ = (old[0] / "train_adc_info.csv").read_text().splitlines()
    rows = [f"{planet},{row.partition(',')[2]}" for planet in PLANETS]
    (folder / "train_adc_info.csv").write_text("\n".join([header, *rows]) + "\n")
    shutil.copy(old[0] / "axis_info.parquet", folder)
    for planet in PLANETS:
        (folder / "train" / str(planet)).symlink_to(old[0] / "train" / "17")
    return folder


@pytest.fixture(scope="session")
def planets(old: Made) -> gpucal.Dataset:
    """`old`, opened."""
    return gpucal.open_dataset(old[0])


@pytest.fixture(scope="session")
def visits(new: Made) -> gpucal.Dataset:
    """`new`, opened."""
    return gpucal.open_dataset(new[0])


@pytest.fixture
def device() -> Iterator[standin.Machine]:
    """A stand-in for CuPy with one device; see tests/emulator/standin."""
    require_compiler()
    with standin.installed() as controller:
        yield controller


def again(source: Path, out: Path, config: Calibration = CONFIG, **options: object) -> Summary:
    """Calibrate into a folder, with variances."""
    return gpucal.run(gpucal.open_dataset(source), out, config, **({"variance": True} | options))


def until(happens: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def items_done(out: Path) -> int:
    """How many items a results folder holds."""
    return sum(record["status"] == "done" for record in records(out))


@contextmanager
def broken(path: Path) -> Iterator[None]:
    """Have a file be no Parquet for a while."""
    content = path.read_bytes()
    path.write_bytes(b"PAR1")
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def source(old: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the 2024 folder that tests may damage, if they mend it again."""
    return shutil.copytree(old[0], tmp_path_factory.mktemp("source") / "y2024")


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its results. Not to be written to."""
    out = tmp_path_factory.mktemp("finished") / "deep" / "out"
    summary = gpucal.run(gpucal.open_dataset(source), out, CONFIG, variance=True)
    assert (summary.done, summary.skipped, summary.failed) == (4, 0, {})
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the results that a test may change."""
    return shutil.copytree(finished, tmp_path / "out")
