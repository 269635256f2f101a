"""A checkout works as it lies there and installed editable: `gpucal.kernels` is found, and the command line begins."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.resources import as_file, files
from pathlib import Path

import pytest

import gpucal

ROOT = Path(__file__).resolve().parents[2]

WHERE = "import gpucal.kernels as found; from gpucal.kernels import source; source('calibrate'); print(found.__file__)"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folders of a checkout, made of what is installed."""
    place = tmp_path_factory.mktemp("checkout") / "gpucal"
    ignored = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(Path(gpucal.__file__).parent, place / "gpucal", ignore=ignored)
    with as_file(files("gpucal.kernels")) as kernels:
        shutil.copytree(kernels, place / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    return place


def python(*arguments: object, cwd: Path) -> str:
    run = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_python_in_a_checkout_uses_it(checkout: Path) -> None:
    assert python("-c", WHERE, cwd=checkout).strip() == str(checkout / "kernels" / "__init__.py")
    assert python("-S", "-c", WHERE, cwd=checkout).strip() == str(checkout / "kernels" / "__init__.py")


def test_the_package_is_a_program(checkout: Path, tmp_path: Path) -> None:
    for cwd in (checkout, tmp_path):
        assert python("-m", "gpucal", "--version", cwd=cwd) == f"gpucal {gpucal.__version__}\n"
        assert python("-m", "gpucal", "calibrate", "--help", cwd=cwd).startswith("usage: gpucal calibrate ")


@pytest.mark.parametrize("way", ["script", "module"])
def test_pytest_finds_the_kernels(checkout: Path, way: str) -> None:
    (checkout / "tests").mkdir(exist_ok=True)
    (checkout / "tests" / "test_it.py").write_text(f"def test_it():\n    {WHERE}\n")
    quietly = ["-q", "-p", "no:cacheprovider"]
    if way == "module":
        assert "1 passed" in python("-m", "pytest", *quietly, cwd=checkout)
    else:
        assert "1 passed" in python(Path(sys.executable).with_name("pytest"), *quietly, cwd=checkout)


def test_an_editable_install_is_the_checkout(checkout: Path, tmp_path: Path) -> None:
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    python("-c", build, tmp_path / "dist", cwd=checkout)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "packages")
    script = f"import sys, site; site.addsitedir({str(tmp_path / 'packages')!r}); {WHERE}; print(sys.modules['gpucal'])"
    kernels, package = python("-I", "-S", "-c", script, cwd=tmp_path).splitlines()
    assert kernels == str(checkout / "kernels" / "__init__.py")
    assert str(checkout / "gpucal" / "__init__.py") in package
