"""The choice between backends, the messages of those that cannot run here, and the folder of Numba's compiled code."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hostile import ADCS, SMALL, observe

import gpucal
from gpucal import Calibration
from gpucal.backends import PREFERENCE, choose, load, numpy_
from gpucal.errors import BackendUnavailable, ConfigError

PACKAGE = Path(gpucal.__file__).parent


def answer(script: str, cwd: Path | None = None, **environment: str) -> list[str]:
    """Run a script by itself, with the modules in its folder and only the given GPUCAL_ and NUMBA_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GPUCAL_", "NUMBA_"))}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=inherited | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_auto_prefers_numba(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    assert PREFERENCE.index("numba") < PREFERENCE.index("numpy")
    unavailable = BackendUnavailable("no device here")
    monkeypatch.setattr("gpucal.backends.load", lambda name: _raise(unavailable) if name == "cupy" else load(name))
    with caplog.at_level(logging.INFO, "gpucal"):
        assert choose().name == choose("auto").name == "numba"
    assert caplog.messages == ["backend numba: no device here"] * 2


def _raise(error: Exception) -> None:
    raise error


def test_a_name_or_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCAL_BACKEND", "numpy")
    assert choose().name == "numpy"
    assert choose("numba").name == "numba"
    assert choose("auto").name != "numpy"
    monkeypatch.setenv("GPUCAL_BACKEND", "numpi")
    with pytest.raises(ConfigError, match=r"backend = 'numpi': must be one of auto, cupy, numba, numpy"):
        choose()
    monkeypatch.setenv("GPUCAL_BACKEND", "")
    assert choose("numpy").runs_on == f"NumPy {np.__version__}"


HIDDEN = {
    "not installed": "import sys; sys.modules['numba'] = None",
    "other NumPy": """
import sys
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.0 or less. Got NumPy 9.9.\\nsecond line")
sys.meta_path.insert(0, Refuses())
""",
}
REASON = {"not installed": "import of numba halted", "other NumPy": "Numba needs NumPy 2.0 or less. Got NumPy 9.9."}
STEP_DOWN = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
from gpucal.backends import choose
print(choose("auto").name)
try:
    choose("numba")
except ImportError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("case", HIDDEN)
def test_without_numba(case: str) -> None:
    logged, chosen, refused = answer(HIDDEN[case] + STEP_DOWN)
    assert logged.startswith("gpucal.backends: backend numpy: ")
    assert chosen == "numpy"
    assert refused.startswith("BackendUnavailable backend 'numba' cannot be imported (")
    for line in (logged, refused):
        assert REASON[case] in line
        assert 'pip install "gpucal[fast]"' in line


BROKEN = """
import sys
class Breaks:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise {error}
sys.meta_path.insert(0, Breaks())
"""
EVERYTHING = """
from gpucal.cli.main import main
print(main(["selftest"]))
main(["--show-versions"])
"""


@pytest.mark.parametrize(
    ("module", "error", "reason"),
    [
        (
            "numba",
            "AttributeError('module \\'coverage.types\\' has no Tracer')",
            "module 'coverage.types' has no Tracer",
        ),
        ("llvmlite", "OSError('cannot map libllvmlite.so')", "cannot map libllvmlite.so"),
        ("numba.extending", "MemoryError()", "MemoryError"),
        ("numba.core", "SystemError('_internal failed\\nat line 2')", "_internal failed"),
    ],
)
def test_a_numba_that_is_broken(module: str, error: str, reason: str) -> None:
    logged, chosen, refused, *said = answer(BROKEN.format(module=module, error=error) + STEP_DOWN + EVERYTHING)
    line = f"backend 'numba' cannot be used ({reason}); mend it if `import numba` fails, or choose numpy"
    assert logged.startswith("gpucal.backends: backend numpy: ")
    assert logged.endswith(line)
    assert (chosen, refused) == ("numpy", f"BrokenBackend {line}")
    assert f"numba: not available: {line}" in said
    assert any(one.startswith("numpy: agrees with NumPy") for one in said)
    assert f"backend numba not available: {line}" in [" ".join(one.split()) for one in said]


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("detector", SMALL)
def test_equal_reads_of_a_pair_give_exactly_nothing(detector: str, backend: str) -> None:
    obs = observe(SMALL[detector], 140, ADCS["2024"], seed=3)
    raw = obs.raw.copy()
    raw[1::2] = raw[0::2]
    plan = replace(obs, raw=raw).plan(Calibration(bins={detector: 5}, dark=False, flat=False))
    assert plan.coefficients.shape[0] == 6
    out = np.full((plan.n_pixels, plan.n_bins), np.nan)
    counts = replace(obs, raw=raw).counts()
    load(backend).bin_counts(plan, slice(0, plan.n_pixels), counts, out)
    sane = np.isfinite(plan.coefficients[1:]).all(axis=0)
    assert 10 < np.count_nonzero(sane) < plan.n_pixels
    assert np.count_nonzero(out[sane]) == 0
    assert np.unique(counts).size > 100


def test_numba_takes_blocks_that_start_anywhere() -> None:
    obs = observe(SMALL["AIRS-CH0"], 140, ADCS["2024"])
    plan, counts = obs.plan(Calibration(bins={"AIRS-CH0": 7})), obs.counts()
    whole, part = np.empty((20, plan.n_bins)), np.empty((6, plan.n_bins))
    numba = load("numba")
    numba.bin_counts(plan, slice(0, 20), counts, whole)
    saturated = numba.bin_counts(plan, slice(7, 13), counts[7:13], part)
    np.testing.assert_array_equal(part, whole[7:13])
    theirs = numpy_.bin_counts(plan, slice(7, 13), counts[7:13], part)
    np.testing.assert_array_equal(saturated, theirs)


# From a package in a folder of its own.
COMPILE = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("numba").setLevel(logging.WARNING)
from gpucal.backends import numba_
assert numba_.connect().runs_on.startswith("Numba ")
from gpucal.backends.pagewise.bins import bin_pages
from gpucal.backends.pagewise.inflate import inflate_pages
hits = [sum(function.stats.cache_hits.values()) for function in (bin_pages, inflate_pages)]
print(numba_.__file__, *hits)
"""


def compiled(copy: Path, home: Path) -> tuple[list[str], list[int]]:
    """Compile or load in a process by itself; return its log lines, and how often it loaded each function."""
    *lines, last = answer(COMPILE, copy, HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    path, *loaded = last.rsplit(" ", 2)
    assert Path(path).is_relative_to(copy)
    return lines, [int(hits) for hits in loaded]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the package to where Numba cannot write beside it: a file stands in the place of its folder."""
    folder = tmp_path_factory.mktemp("package") / "copy"
    shutil.copytree(PACKAGE, folder / "gpucal", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "gpucal" / "backends" / "pagewise" / "__pycache__").write_text("")
    return folder


@pytest.fixture(scope="module")
def first(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[int]]:
    """Return a user's folder after the first run there, the lines that it logged, and how often it loaded."""
    home = tmp_path_factory.mktemp("home")
    return home, *compiled(copy, home)


@pytest.mark.slow
def test_compiled_once_into_the_user_s_cache(copy: Path, first: tuple[Path, list[str], list[int]]) -> None:
    home, logged, loaded = first
    assert (logged, loaded) == ([], [int(len(os.sched_getaffinity(0)) > 1), 0])  # another process compiled bin_pages
    assert {".nbi", ".nbc"} <= {path.suffix for path in home.rglob("*") if path.is_file()}
    assert compiled(copy, home) == ([], [1, 1])


@pytest.mark.parametrize("damaged", [".nbi empty", ".nbi cut", ".nbi text", ".nbc cut", ".nbc text"])
@pytest.mark.slow
def test_a_damaged_cache_is_not_used(
    copy: Path, first: tuple[Path, list[str], list[int]], tmp_path: Path, damaged: str
) -> None:
    home = Path(shutil.copytree(first[0], tmp_path / "home"))
    suffix, damage = damaged.split()
    one, other = home.rglob(f"*{suffix}")
    kept = one if "inflate" in one.name else other
    content = BytesIO(kept.read_bytes())
    if suffix == ".nbi":
        pickle.load(content)  # Numba's version, which it compares before it reads on
    whole = content.tell()
    text = content.getvalue()[:whole] + b"\x80\x04X\x02\x00\x00\x00\xff\xfe."  # a string that is no UTF-8
    kept.write_bytes({"empty": b"", "cut": content.getvalue()[: whole + 50], "text": text}[damage])
    logged, loaded = compiled(copy, home)
    assert len(logged) == 1
    assert "compiling without a cache" in logged[0]
    assert loaded == [1, 0]


@pytest.mark.slow
def test_without_any_cache(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    logged, _ = compiled(copy, tmp_path / "home")
    assert len(logged) == 2
    for line in logged:
        assert "compiling without a cache" in line
        assert "NUMBA_CACHE_DIR" in line
