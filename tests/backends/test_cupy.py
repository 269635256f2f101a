"""The CuPy backend on a strict stand-in for CuPy, which runs the shipped kernel on the CPU (tests/emulator/standin).

Counts are decoded on the host; test_cupy_pages.py is about pages.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import BINS, Made
from emulator import standin
from hostile import ADCS, AIRS, FGS1, SMALL, observe
from launch import cases, require_compiler
from planted import planted
from reference import assert_close

import gpucal
from gpucal.backends import choose, load
from gpucal.cli.main import main
from gpucal.errors import BackendUnavailable, DeviceError
from gpucal.science import steps
from gpucal.science.plan import Plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import Detector

CASES = cases()
SEEDS = range(20)
CONFIG = Calibration(bins=BINS, integration="notebook")


@pytest.fixture(autouse=True)
def _by_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCAL_PAGES", "host")


def backend() -> ModuleType:
    return importlib.import_module("gpucal.backends.cupy_")


def binned(module: ModuleType, plan: Plan, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bin everything in three blocks; the second use of a lane has another size."""
    out, saturated = np.full((plan.n_pixels, plan.n_bins), np.nan), np.zeros(plan.n_pixels, bool)
    for first, last in ((0, 2), (2, 9), (9, plan.n_pixels)):
        pixels = slice(min(first, plan.n_pixels), min(last, plan.n_pixels))
        if pixels.start < pixels.stop:
            saturated[pixels] = module.connect().bin_counts(plan, pixels, counts[pixels], out[pixels])
    return out, saturated


@pytest.mark.parametrize("case", list(CASES)[::3])
def test_equals_the_reference(device: standin.Machine, case: str) -> None:
    obs, config = CASES[case]
    plan = obs.plan(config)
    out, saturated = binned(backend(), plan, obs.counts())
    even = type(obs)(**vars(obs) | {"raw": obs.raw[: len(obs.raw) // 2 * 2]})
    assert_close(obs.cube(out), even.reference(config), rtol=1e-12)
    used = obs.counts()[:, : plan.used_frames]
    np.testing.assert_array_equal(saturated, (used >= plan.saturation).any(axis=1))


def over_seeds(make: Callable[[], Any], seeds: range = SEEDS) -> set[bytes]:
    """Return the different results over schedules."""
    results = set()
    for seed in seeds:
        with standin.installed(seed):
            results.add(make().tobytes())
    return results


def small() -> tuple[Plan, np.ndarray]:
    obs = observe(SMALL["AIRS-CH0"], 420, ADCS["2024"])
    return obs.plan(Calibration(bins={"AIRS-CH0": 30})), obs.counts()


def test_no_schedule_changes_a_bit() -> None:
    require_compiler()
    plan, counts = small()
    assert len(over_seeds(lambda: binned(backend(), plan, counts)[0])) == 1


# ------------------------------------------------------------------------------------------- what must not go unnoticed

BUGS = {
    "no synchronisation before electrons are read": (
        "            lane.download(electrons=True)\n            lane.stream.synchronize()\n",
        "            lane.download(electrons=True)\n",
    ),
    "a pinned buffer used again too early": (
        "            lane.launch(self._kernel, plan)\n            deliver",
        "            lane._counts._host[:] = 0\n            lane.launch(self._kernel, plan)\n            deliver",
    ),
    "a kernel on another stream": (
        "        with self.stream:\n            kernel(",
        "        if n:\n            kernel(",
    ),
    "an array of another device": (
        "            self._size = size\n",
        "            self._size = size\n            with cupy.cuda.Device(1):\n                "
        "self._device = cupy.empty(size, self._dtype)\n",
    ),
    "an int32 for an int64": ("np.int64(self.pitch)", "np.int32(self.pitch)"),
    "a Python number": ("np.uint32(plan.saturation), self.out, self.", "plan.saturation, self.out, self."),
    "an argument too few": ("self.constants, self.tau_s, *results", "self.constants, *results"),
    "a host array for the kernel": ("self.out, self.saturated\n", "self.electrons, self.saturated\n"),
    "an implicit host copy": ("out[part] = lane.electrons", "out[part] = lane.out"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str) -> None:
    require_compiler()
    plan, counts = small()
    right, wrong = BUGS[bug]

    def attempt() -> np.ndarray:
        with planted(right, wrong) as modules:
            vars(modules["cupy_"])["difference"] = lambda bin_counts: 0.0  # that of the first use would see it too
            return binned(modules["cupy_"], plan, counts)[0]

    caught: set[Any] = set()
    for seed in SEEDS:
        try:
            with standin.installed(seed, devices=2):
                caught.add(attempt().tobytes())
        except (TypeError, ValueError) as error:
            caught.add(type(error))
    with standin.installed():
        good = binned(backend(), plan, counts)[0].tobytes()
    assert caught != {good}


def test_wrong_numbers_are_refused_loudly(device: standin.Machine, caplog: pytest.LogCaptureFixture) -> None:
    device.spoil("calibrate")
    with pytest.raises(BackendUnavailable, match=r"Stand-in T4 .* gives other numbers than NumPy, .*; do not use"):
        load("cupy")
    with caplog.at_level(logging.INFO, "gpucal"):
        assert choose("auto").name != "cupy"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert main(["selftest"]) == 1


def test_a_fault_later_on_is_typed(device: standin.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, counts = small()
    bin_counts = load("cupy").bin_counts

    def fault(*arguments: object) -> None:
        raise standin.errors.CUDADriverError(700)

    monkeypatch.setattr(standin.kernels.Function, "__call__", fault)
    with pytest.raises(DeviceError, match=r"^Stand-in T4 .*: .*; start again"):
        bin_counts(plan, slice(0, plan.n_pixels), counts, np.empty((plan.n_pixels, plan.n_bins)))


# ------------------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["device", "pinned"])
def test_every_allocation_may_fail(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    require_compiler()
    plan, counts = small()
    with standin.installed() as device:
        good = binned(backend(), plan, counts)[0]
        total = device.allocations if kind == "device" else device.pinned_allocations
    assert total >= 5
    for times in (1, 3):
        for n in range(1, total + 1):
            with standin.installed() as device:
                (device.fail_allocation if kind == "device" else device.fail_pinned)(n, times)
                np.testing.assert_array_equal(binned(backend(), plan, counts)[0], good)
    assert "is short of memory: a block of" in caplog.text


def test_a_device_too_small_is_one_line() -> None:
    require_compiler()
    obs = observe(SMALL["AIRS-CH0"], 200_000, ADCS["2024"])
    plan = obs.plan(Calibration(bins={"AIRS-CH0": 30}))
    with standin.installed(memory=1_000_000) as device:
        out, _ = binned(backend(), plan, obs.counts())  # in pieces
        assert np.isfinite(out).any()
        assert device.memory[0].peak <= 1_000_000
    with standin.installed(memory=300_000), pytest.raises(DeviceError) as error:
        binned(backend(), plan, obs.counts())
    assert "no room for 399,960 bytes of counts and 26,664 of result" in str(error.value)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- the whole package


def test_calibrate_on_the_device_and_off_it(device: standin.Machine, new: Made) -> None:
    obs = next(iter(gpucal.open_dataset(new[0])))
    import cupy

    for name in ("AIRS-CH0", "FGS1"):
        expected = gpucal.calibrate(obs, name, CONFIG, backend="numpy")
        host = gpucal.calibrate(obs, name, CONFIG, backend="cupy")
        assert isinstance(host.signal, np.ndarray)
        assert_close(host.signal, new[1][obs.key][name].reference(CONFIG))
        stays = gpucal.calibrate(obs, name, CONFIG, device=True)
        assert isinstance(stays.signal, cupy.ndarray)
        np.testing.assert_array_equal(stays.signal.get(), host.signal)
        np.testing.assert_array_equal(stays.dq, expected.dq)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(stays.variance.get(), host.variance, rtol=1e-12)
            np.testing.assert_allclose(stays.light_curve().get(), host.light_curve(), rtol=1e-12)
            choices = {"rows": (8, 24), "background_rows": "faintest:6", "background": "constant"}
            there, here = (one.light_curve_with_errors(**choices) for one in (stays, host))
            np.testing.assert_allclose(there.flux.get(), here.flux, rtol=1e-12)
            np.testing.assert_allclose(there.error.get(), here.error, rtol=1e-12)
        config = Calibration(bins=BINS, bad_pixels="nan")
        blank = gpucal.calibrate(obs, name, config, device=True, dtype="float32").signal.get()
        other = gpucal.calibrate(obs, name, config, backend="cupy", dtype="float32").signal
        assert blank.dtype == np.float32
        assert np.isnan(blank[:, stays.mask]).all()
        np.testing.assert_array_equal(blank, other)
        with pytest.raises(TypeError, match="Implicit conversion"):
            np.asarray(stays.signal)


@pytest.mark.slow
def test_a_stream_stays_on_the_device_whatever_the_schedule(old: Made) -> None:
    require_compiler()
    dataset = gpucal.open_dataset(old[0])
    expected = [cal.signal for cal in gpucal.stream(dataset, "AIRS-CH0", CONFIG, backend="numpy")]

    def streamed() -> np.ndarray:
        return np.stack([cal.signal.get() for cal in gpucal.stream(dataset, "AIRS-CH0", CONFIG, device=True)])

    (bits,) = over_seeds(streamed, range(8))  # each of many launches
    signals = np.frombuffer(bits).reshape(len(expected), *expected[0].shape)
    for signal, other in zip(signals, expected, strict=True):
        known = np.isfinite(other)
        np.testing.assert_allclose(signal[known], other[known], rtol=1e-9, atol=1e-12 * np.abs(other[known]).max())


@pytest.mark.slow
def test_the_command_line(
    device: standin.Machine, old: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bins = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), "--backend", "cupy", *bins]) == 0
    results = gpucal.open_results(tmp_path / "out")
    assert len(results.ids) == 2
    assert main(["info"]) == 0
    assert "cupy: available, Stand-in T4 (sm_75, device 0)" in capsys.readouterr().out
    assert main(["selftest"]) == 0
    first, *others, proved = capsys.readouterr().out.splitlines()
    assert "measured on an NVIDIA H200" in proved
    assert first.startswith("cupy: agrees with NumPy (")
    for part in ("block", "upload", "kernel", "download"):
        assert f"{part} " in first
    assert [line.partition(":")[0] for line in others] == ["numba", "numpy"]


def test_threads_work_on_the_device_that_was_current() -> None:
    require_compiler()
    plan, counts = small()
    with standin.installed(devices=2) as devices:
        import cupy

        with cupy.cuda.Device(1):
            second = load("cupy")
        assert "device 1" in second.runs_on
        with cupy.cuda.Device(1):
            place = second.destination(device=True)
        signal = place.allocate((2, 3, 4), np.dtype(np.float64))
        place.change(signal, lambda array: array.__setitem__((slice(None), 1, 2), 5.0))  # with another device current
        with cupy.cuda.Device(1):
            assert (signal.get()[:, 1, 2] == 5.0).all()
        sums = place.allocate((6, 4), np.dtype(np.float64))
        for at in np.ndindex(sums.shape):
            place.change(sums, lambda array, at=at: array.__setitem__(at, 10.0 * at[0] + at[1]))
        cube = place.arranged(sums, (2, 3))
        with cupy.cuda.Device(1):
            expected = [[[10.0 * (3 * y + x) + k for y in range(2)] for x in range(3)] for k in range(4)]
            np.testing.assert_array_equal(cube.get(), expected)
        out = np.empty((plan.n_pixels, plan.n_bins))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(second.bin_counts, plan, slice(0, plan.n_pixels), counts, out).result()
        assert devices.memory[0].peak == 0
        assert devices.memory[1].peak > 0
        np.testing.assert_array_equal(out, binned(backend(), plan, counts)[0])  # on the first, and the same


def test_device_results_need_a_device(old: Made) -> None:
    obs = next(iter(gpucal.open_dataset(old[0])))
    with pytest.raises(BackendUnavailable, match="device=True: backend 'numpy' leaves no result on a device"):
        gpucal.calibrate(obs, "FGS1", backend="numpy", device=True)


@pytest.mark.slow
def test_every_allocation_of_a_run_may_fail(old: Made) -> None:
    require_compiler()
    obs = next(iter(gpucal.open_dataset(old[0])))

    def made(n: int, times: int = 1) -> np.ndarray | str:
        with standin.installed() as device:
            device.fail_allocation(n, times)
            try:
                return gpucal.calibrate(obs, "FGS1", CONFIG, device=True, workers=1).signal.get()
            except (DeviceError, BackendUnavailable) as error:
                return str(error)

    good, *results = (made(n) for n in (10**6, *range(1, 12)))
    for result in results:  # idle memory is freed, or a block is halved: there is another way for each
        assert not isinstance(result, str), result
        np.testing.assert_array_equal(result, good)
    again = [made(n, times=2) for n in range(1, 12)]
    refused = [result for result in again if isinstance(result, str)]
    assert 0 < len(refused) < 8  # a result itself, or that of the check, has no third way
    assert all("no room for a result of" in line for line in refused)
    for result in again:
        if not isinstance(result, str):
            np.testing.assert_array_equal(result, good)


@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
def test_steps_of_a_full_observation_fit_a_gpu(device: standin.Machine, detector: Detector) -> None:
    import cupy

    obs = observe(detector, 240, ADCS["2024"])
    cut = (..., slice(*detector.crop))
    raw, dead, flat, dark, linear = (
        cupy.asarray(np.ascontiguousarray(values[cut]))
        for values in (obs.raw, obs.dead, obs.flat, obs.dark, obs.linear_corr)
    )
    electrons = steps.adc(raw, obs.adc.gain, obs.adc.offset)
    electrons = steps.linearity(electrons, linear)
    electrons = steps.dark(electrons, dark, cupy.asarray(obs.integration_s(Calibration())), dead)
    bins = steps.flat(steps.bin(steps.cds(electrons), 30), flat, dead)
    assert_close(bins.get().transpose(0, 2, 1), obs.reference(Calibration(bins={detector.name: 30})))
    assert device.memory[0].peak / 240 * detector.frames < 7.5e9  # half of a T4's or a P100's
