"""Pictures: axes that hold the numbers, of sound and of hostile data; the verb that writes them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from stored import folder

import gpucal
from gpucal.cli.main import main
from gpucal.errors import MissingExtra, OutputError
from gpucal.pipeline.plots import Curves, draw
from gpucal.science.light_curves import white_light
from gpucal.science.noise import neighbour_residuals, scatter
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import synthesize

AIRS, FGS1 = DETECTORS.values()
OF = {"AIRS-CH0": {"white", "residuals", "image", "spectrum", "flags"}, "FGS1": {"white", "residuals", "mean", "flags"}}


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    import matplotlib.pyplot as plt

    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def out(visits: gpucal.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cubes without variances of hostile frames. Not to be written to."""
    return folder(visits, tmp_path_factory.mktemp("plots") / "out")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> gpucal.Dataset:
    """A synthetic planet. Not to be written to."""
    raw = tmp_path_factory.mktemp("sound") / "raw"
    synthesize(raw, frames=120)
    return gpucal.open_dataset(raw)


CONFIG = gpucal.Calibration(bins={"AIRS-CH0": 6, "FGS1": 72})


@pytest.mark.parametrize("name", ["AIRS-CH0", "FGS1"])
def test_axes_hold_the_numbers(sound: gpucal.Dataset, name: str) -> None:
    cal = gpucal.calibrate(next(iter(sound)), name, CONFIG)
    axes = cal.plot()
    assert set(axes) == OF[name]
    flux, error = cal.light_curve_with_errors()
    white, of_white = white_light(flux, error)
    points, _, (bars,) = axes["white"].containers[0]
    np.testing.assert_array_equal(points.get_xdata(), cal.time)
    np.testing.assert_allclose(points.get_ydata(), white / np.median(white))
    assert of_white is not None
    heights = [float(np.ptp(segment[:, 1])) for segment in bars.get_segments()]
    np.testing.assert_allclose(heights, np.nan_to_num(2 * of_white / abs(np.median(white))), atol=1e-12)
    said = axes["residuals"].get_title(loc="right")
    assert f"scatter {scatter(white) / abs(np.median(white)) * 1e6:,.0f} ppm" in said
    figure = axes["white"].figure.figure
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    flags = {text.get_text() for text in axes["flags"].get_legend().get_texts()}
    assert f"HOT {np.count_nonzero(cal.dq & gpucal.DQ.HOT)}" in flags


def test_an_own_figure_is_drawn_on(out: Path) -> None:
    figure = Figure(layout="constrained")
    axes = gpucal.open_results(out).plot((5, 1), figure)
    assert {name: set(of) for name, of in axes.items()} == OF
    assert [*axes] == ["FGS1", "AIRS-CH0"]
    assert axes["FGS1"]["white"].figure.figure is figure
    figure.canvas.draw()
    assert "planet 5 visit 1" in [text.get_text() for text in figure.texts]


def test_stored_light_curves_are_drawn(sound: gpucal.Dataset, tmp_path: Path) -> None:
    res = gpucal.open_results(folder(sound, tmp_path / "out", CONFIG, product="light-curves"))
    axes = res[sound.planets[0]].plot()
    assert "expected" in axes["FGS1"]["residuals"].get_title(loc="right")
    assert axes["FGS1"]["mean"].texts[0].get_text() == "only light curves are stored"
    axes["FGS1"]["mean"].figure.figure.canvas.draw()


@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
@pytest.mark.parametrize("bins", [1, 2, 3, 9])
@pytest.mark.parametrize("value", [1.0, 0.0, np.nan, -3.0, np.inf])
def test_whatever_the_values(detector: gpucal.settings.detectors.Detector, bins: int, value: float) -> None:
    width = 1 if detector.photometer else detector.width
    flux = np.full((bins, width), value)
    curves = Curves(detector, np.arange(float(bins)), flux, np.sqrt(np.abs(flux)))
    figure = Figure(layout="constrained")
    axes = draw(figure, "x", [curves])
    assert set(axes[detector.name]) == OF[detector.name]
    figure.canvas.draw()


def test_white_light_leaves_out_what_would_jump() -> None:
    flux = np.array([[1.0, 10.0, np.nan], [2.0, np.inf, 5.0]])
    white, error = white_light(flux, np.array([[3.0, 1.0, 1.0], [4.0, 1.0, 1.0]]))
    assert white.tolist() == [1.0, 2.0]
    assert error is not None
    assert error.tolist() == [3.0, 4.0]
    assert white_light(np.ones((2, 4)), np.full((2, 4), 2.0))[1] == pytest.approx([4.0, 4.0])  # type: ignore[comparison-overlap]
    assert np.isnan(white_light(np.full((2, 1), np.nan))[0]).all()
    assert white_light(flux)[1] is None


def test_residuals_keep_the_noise_and_lose_the_rest() -> None:
    noise = np.random.default_rng(3).normal(0.0, 2.0, 4_000)
    slow = 1e3 + np.linspace(0.0, 50.0, noise.size)
    residuals = neighbour_residuals(slow + noise)
    assert np.isnan(residuals[[0, -1]]).all()
    assert np.std(residuals[1:-1]) == pytest.approx(2.0, rel=0.05)
    assert scatter(slow + noise) == pytest.approx(2.0, rel=0.05)
    np.testing.assert_allclose(neighbour_residuals(np.arange(9.0))[1:-1], 0.0)
    assert np.isnan(scatter(np.ones(1)))
    assert np.isnan(neighbour_residuals(np.ones(2))).all()


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_the_verb(out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = shutil.copytree(out, tmp_path / "out")
    assert main(["plot", str(made)]) == 0
    assert capfd.readouterr().out == f"white light of every observation in {made / 'overview.png'}\n"
    assert is_png(made / "overview.png")
    assert main(["plot", str(made), "5", "--visit", "1", "--out", str(tmp_path / "new" / "pictures")]) == 0
    assert is_png(tmp_path / "new" / "pictures" / "5-1.png")
    assert main(["plot", str(made), "--all", "--out", str(tmp_path / "all")]) == 0
    assert capfd.readouterr().out.endswith(f"2 pictures in {tmp_path / 'all'}\n")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["5-0.png", "5-1.png"]
    assert main(["verify", str(made)]) == 0


def test_a_damaged_observation_costs_its_picture(out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = shutil.copytree(out, tmp_path / "out")
    (made / "5" / "0" / "FGS1.signal.npy").write_bytes(b"x")
    assert main(["plot", str(made), "--all"]) == 1
    captured = capfd.readouterr()
    assert captured.out == f"1 pictures in {made}\n"
    assert captured.err.startswith(f"gpucal: {made / '5' / '0' / 'FGS1.signal.npy'}: is damaged")
    assert len(captured.err.splitlines()) == 1
    assert is_png(made / "5-1.png")
    assert not (made / "5-0.png").exists()
    assert main(["plot", str(made)]) == 2


def test_a_folder_that_cannot_be_written_is_one_line(out: Path, tmp_path: Path) -> None:
    (tmp_path / "5-0.png").mkdir()
    from gpucal.results.plot import save_observation

    with pytest.raises(OutputError, match="cannot be written"):
        save_observation(gpucal.open_results(out), (5, 0), tmp_path / "5-0.png")


def test_matplotlib_is_an_extra(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    res = gpucal.open_results(out)
    for drawn in (lambda: res.plot(5), res[5].plot, res[5]["FGS1"].plot):
        with pytest.raises(MissingExtra, match=r'pip install "gpucal\[plot\]"'):
            drawn()
    assert repr(res)
    assert res._repr_html_()


def test_pandas_and_matplotlib_are_imported_when_needed(out: Path) -> None:
    code = f"""
import sys, gpucal
res = gpucal.open_results({str(out)!r})
res._repr_html_(); repr(res[5]); res[5]["FGS1"]._repr_html_()
assert not {{"pandas", "matplotlib"}} & set(sys.modules)
res.table()
assert "pandas" in sys.modules and "matplotlib" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
