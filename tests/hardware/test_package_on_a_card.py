"""The package with the cupy backend on a GPU, on hostile data: the bits of the numba backend, whoever asks for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from backends import test_cupy
from card import STAND_IN, connected
from conftest import BINS, CONFIG, Made, again
from hostile import ADCS, SMALL, every_config, observe
from paged import same_bits
from reference import assert_close
from science import test_steps
from system.test_variants import VARIANTS

import gpucal
from gpucal import Calibration
from gpucal.backends import load
from gpucal.cli.main import main

pytestmark = pytest.mark.gpu

ON_A_GPU_ONLY = pytest.mark.skipif(STAND_IN, reason="the stand-in is in one process")
NAMES = ("AIRS-CH0", "FGS1")

test_calibrate_on_the_device_and_off_it = test_cupy.test_calibrate_on_the_device_and_off_it


@pytest.fixture(scope="module", autouse=True)
def card() -> Iterator[ModuleType]:
    with connected() as cupy:
        yield cupy


@pytest.fixture
def device(card: ModuleType) -> ModuleType:
    """What tests written for the stand-in ask for."""
    return card


@pytest.fixture(params=["auto", "host"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GPUCAL_PAGES", request.param)
    return request.param


def test_the_self_test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest"]) == 0
    assert "cupy: agrees with NumPy" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", [name for name, one in VARIANTS.items() if "cosmic" not in name])
def test_every_variant_has_the_bits_of_the_cpu(name: str, variant: str, pages: str, old: Made) -> None:
    config = Calibration(**{"bins": BINS, "integration": "notebook"} | dict(VARIANTS[variant].settings))
    obs = gpucal.open_dataset(old[0])[17]
    here, there = (gpucal.calibrate(obs, name, config, backend=backend) for backend in ("numba", "cupy"))
    assert same_bits(there.signal, here.signal)
    np.testing.assert_array_equal(there.dq, here.dq)
    assert same_bits(there.variance, here.variance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings", [{"bad_pixels": "interpolate"}, {"bad_pixels": "nan"}, {"cosmic_rays": 3.0}], ids=str
)
def test_what_follows_the_cube_is_the_same_there(name: str, settings: dict[str, object], new: Made) -> None:
    obs = next(iter(gpucal.open_dataset(new[0])))
    config = Calibration(**{"bins": BINS, "integration": "notebook"} | settings)
    here = gpucal.calibrate(obs, name, config, backend="numba")
    there = gpucal.calibrate(obs, name, config, backend="cupy")
    stays = gpucal.calibrate(obs, name, config, device=True)
    np.testing.assert_array_equal(there.signal, here.signal)
    np.testing.assert_array_equal(stays.signal.get(), here.signal)
    for one in (there, stays):
        np.testing.assert_array_equal(one.dq, here.dq)


def test_a_run_writes_the_files_of_the_cpu(old: Made, pages: str, tmp_path: Path) -> None:
    written = {}
    for backend in ("numba", "cupy"):
        assert again(old[0], tmp_path / backend, backend=backend).done == 4
        arrays = sorted((tmp_path / backend).rglob("*.npy"))
        written[backend] = {path.relative_to(tmp_path / backend): path.read_bytes() for path in arrays}
    assert written["cupy"] == written["numba"]
    assert len(written["cupy"]) > 8


def test_a_stream_stays_there_in_order(card: ModuleType, many: Path) -> None:
    dataset = gpucal.open_dataset(many)
    expected = gpucal.calibrate(dataset[100], "AIRS-CH0", CONFIG, backend="numba").signal
    found = []
    for cal in gpucal.stream(dataset, "AIRS-CH0", CONFIG, device=True):
        assert isinstance(cal.signal, card.ndarray)
        assert same_bits(cal.signal.get(), expected)
        found.append(cal.planet)
    assert found == dataset.planets


def test_streams_together_have_the_same_bits(old: Made, pages: str) -> None:
    dataset = gpucal.open_dataset(old[0])
    expected = {name: gpucal.calibrate(dataset[17], name, CONFIG, backend="numba").signal for name in NAMES}

    def once(n: int) -> bool:
        name = NAMES[n % 2]
        cal = gpucal.calibrate(dataset[17], name, CONFIG, backend="cupy", workers=1 + n % 3, device=n % 4 > 1)
        return same_bits(cal.signal.get() if n % 4 > 1 else cal.signal, expected[name])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(once, range(8 if STAND_IN else 80)))


@ON_A_GPU_ONLY
@pytest.mark.parametrize("kilobytes", [256, 4096])
def test_little_memory_halves_blocks(
    card: ModuleType, pages: str, kilobytes: int, old: Made, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, pool = gpucal.open_dataset(old[0]), card.get_default_memory_pool()
    expected = {name: gpucal.calibrate(dataset[17], name, CONFIG, backend="numba").signal for name in NAMES}
    load("cupy")
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + kilobytes * 2**10)
    try:
        for name in NAMES:
            found = gpucal.calibrate(dataset[17], name, CONFIG, backend="cupy", workers=1).signal
            assert same_bits(found, expected[name])
    finally:
        pool.set_limit(size=0)
    assert kilobytes > 256 or "is short of memory: a block of" in caplog.text


@ON_A_GPU_ONLY
def test_processes_together_have_the_same_bits(old: Made, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "gpucal", "calibrate", str(old[0])]
    settings = ["--bin", "AIRS-CH0=7", "--bin", "FGS1=16", "--dtype", "float64"]
    outs = [tmp_path / name for name in ("cpu", "1", "2", "3")]
    running = [
        subprocess.Popen([*program, str(out), *settings, "--backend", "numba" if out.name == "cpu" else "cupy"])
        for out in outs
    ]
    assert [process.wait(120) for process in running] == [0] * 4
    files = [{path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.npy"))} for out in outs]
    assert len(files[0]) > 8
    assert all(one == files[0] for one in files)


@ON_A_GPU_ONLY
@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_libraries_take_it_where_it_is(library: str, old: Made) -> None:
    module = pytest.importorskip(library)
    obs = gpucal.open_dataset(old[0])[17]
    here = gpucal.calibrate(obs, "AIRS-CH0", CONFIG, backend="numba", dtype="float32")
    stays = gpucal.calibrate(obs, "AIRS-CH0", CONFIG, device=True, dtype="float32").signal
    taken = module.from_dlpack(stays) if library == "torch" else module.dlpack.from_dlpack(stays)
    if library == "torch":
        assert taken.is_cuda
        assert taken.data_ptr() == stays.data.ptr
        back = taken.cpu().numpy()
    else:
        assert "cuda" in str(next(iter(taken.devices()))).lower()
        back = np.asarray(taken)
    assert same_bits(back, here.signal)


@pytest.mark.parametrize("adc", ADCS)
@pytest.mark.parametrize("detector", SMALL)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
def test_the_steps_of_a_notebook_on_the_device(card: ModuleType, detector: str, adc: str) -> None:
    obs = observe(SMALL[detector], 2 * (2 * test_steps.BINS[detector] + 3), ADCS[adc], seed=2)
    for config in every_config(mask=True):
        result = test_steps.chain(obs, config, card.asarray)
        assert isinstance(result, card.ndarray)
        assert_close(result.get().transpose(0, 2, 1), obs.reference(config))
