"""Several GPUs: a process for each, nothing of CUDA in the parent; the devices are stand-ins."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import BINS, Made
from launch import require_compiler

import gpucal
from gpucal import fleet
from gpucal.cli import main
from gpucal.config import Calibration
from gpucal.errors import DeviceError
from gpucal.fleet import gpus_for
from gpucal.limits import visible_gpus
from gpucal.records import records

CONFIG = Calibration(bins=BINS)

# Another process on a device of its own, as the variable says which.
CHILD = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from emulator import standin
from gpucal.cli import main
with standin.installed(name="GPU " + os.environ["CUDA_VISIBLE_DEVICES"]) as device:
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find("json" if name == "cupy" else name))
    monkeypatch.setattr(fleet, "COMMAND", (sys.executable, "-c", CHILD))
    monkeypatch.setitem(sys.modules, "cupy", None)  # the parent cannot touch it


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("0,1", ["0", "1"]), ("1", ["1"]), ("", []), ("-1", []), ("0, 2 ,-1,3", ["0", "2"]), ("GPU-8f", ["GPU-8f"])],
)
def test_the_variable_decides(variable: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == expected


def test_else_the_driver_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path / "none") == []
    for bus in ("0000:00:04.0", "0000:00:05.0"):
        (tmp_path / bus).mkdir()
    assert visible_gpus(tmp_path) == ["0", "1"]


def test_who_gets_a_process(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus_for(None, 1100) == gpus_for("cupy", 2) == ["3", "GPU-8f"]
    assert gpus_for(None, 1100, 2 * 10**9) == ["3", "GPU-8f"]
    assert gpus_for(None, 1100, 10**9) == gpus_for("cupy", 1) == gpus_for("numpy", 1100) == []
    monkeypatch.setenv("GPUCAL_BACKEND", "numba")
    assert gpus_for(None, 1100) == []
    assert gpus_for("auto", 1100) == ["3", "GPU-8f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus_for("auto", 1100) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpus_for("auto", 1100) == []


def test_planets_are_spread(two_gpus: None, old: Made, tmp_path: Path) -> None:
    dataset = gpucal.open_dataset(old[0])
    summary = gpucal.run(dataset, tmp_path / "two", CONFIG, variance=True, dtype="float64")
    assert (summary.done, summary.skipped, summary.failed, summary.backend) == (4, 0, {}, "cupy")
    assert summary.stages["bin"] > 0
    alone = gpucal.run(dataset, tmp_path / "one", CONFIG, backend="numpy", variance=True, dtype="float64")
    assert alone.done == 4
    two, one = gpucal.open_results(tmp_path / "two"), gpucal.open_results(tmp_path / "one")
    assert two.ids == one.ids == [(17, 0), (23, 0)]
    for name in BINS:
        known = np.isfinite(one[name].load())
        np.testing.assert_allclose(two[name].load()[known], one[name].load()[known], rtol=1e-6, atol=1e-3)
    devices = {record["device"].partition(" (")[0] for record in records(tmp_path / "two")}
    assert devices == {"GPU 3", "GPU GPU-8f"}
    again = gpucal.run(dataset, tmp_path / "two", CONFIG, variance=True, dtype="float64")
    assert (again.done, again.skipped) == (0, 4)
    assert gpucal.run(dataset, tmp_path / "two", CONFIG, overwrite=True, memory=3 * 10**9).done == 4


def test_one_item_fails_and_no_other(
    two_gpus: None, new: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(new[0], raw)
    shutil.copytree(raw / "train" / "5", raw / "train" / "6")
    (raw / "train" / "6" / "FGS1_signal_1.parquet").write_bytes(b"PAR1")
    bins = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
    assert main(["calibrate", str(raw), str(tmp_path / "out"), *bins]) == 1
    captured = capfd.readouterr()
    assert "7 done, 0 already there, 1 failed" in captured.out
    assert captured.err.count("planet 6 visit 1 FGS1: ") == 1


def test_a_process_that_ends_is_one_line(
    two_gpus: None, old: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = "import os\nif os.environ['CUDA_VISIBLE_DEVICES'] == '3':\n    os.abort()\n" + CHILD
    monkeypatch.setattr(fleet, "COMMAND", (sys.executable, "-c", crash))
    dataset = gpucal.open_dataset(old[0])
    with pytest.raises(DeviceError, match="GPU 3: the process for it ended: exit code -6"):
        gpucal.run(dataset, tmp_path / "out", CONFIG)
    assert gpucal.open_results(tmp_path / "out").ids == [(23, 0)]  # what the other one did is there
    monkeypatch.setattr(fleet, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('gpucal: a line')"))
    with pytest.raises(DeviceError, match="GPU 3: the process for it ended: a line"):
        gpucal.run(dataset, tmp_path / "out", CONFIG)


def test_what_a_process_logs_is_handed_on(
    two_gpus: None, old: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = CHILD.replace(
        "    sys.exit(main",
        "    if os.environ['CUDA_VISIBLE_DEVICES'] == '3':\n        device.spoil('calibrate')\n    sys.exit(main",
    )
    monkeypatch.setattr(fleet, "COMMAND", (sys.executable, "-c", broken))
    summary = gpucal.run(gpucal.open_dataset(old[0]), tmp_path / "out", CONFIG)
    assert (summary.done, summary.backend) == (4, "numba, cupy")
    (line,) = [message for message in caplog.messages if message.startswith("GPU 3: ")]
    assert "gives other numbers than NumPy" in line


def test_an_interrupt_ends_the_processes(two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))

    def interrupted() -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fleet.Fleet(tmp_path, tmp_path, "", {}).run(["0", "1"], [1, 2], interrupted)
    assert time.monotonic() - began < 20
