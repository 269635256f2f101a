"""From raw reads with an injected transit to its depth at every wavelength: the fits are as good as the errors say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import chi2

import gpucal
from gpucal.science.transit import fit_depth
from gpucal.synthetic.competition import Truth, synthesize


@pytest.fixture
def closure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/closure.py"""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("closure")


@pytest.mark.parametrize(
    ("seeds", "within"),
    [(range(2), 0.1), pytest.param(range(20), 0.03, marks=pytest.mark.slow)],
    ids=["two planets", "twenty planets"],
)
def test_depths_are_recovered_within_their_errors(closure: ModuleType, seeds: range, within: float) -> None:
    """Reduced χ² over the seeds: of 283 depths each, and of the residuals in time that the fits leave.

    Of 20 the means' own sampling errors are √(2 / (20 · 283)) = 0.019 and √(2 / (20 · 283 · 8)) = 0.007; of 2 they are
    three times as large. Over 80 planets they were measured once: 1.003 ± 0.009 and 1.001 ± 0.003.
    """
    found = closure.recovered(seeds)
    assert [dof for _, dof in found.values()] == [283, 283 * 8]
    for reduced, dof in found.values():
        assert len(reduced) == len(seeds)
        assert 1 - within <= reduced.mean() <= 1 + within
        assert chi2.sf(reduced * dof, dof).min() >= 1e-4
        assert chi2.cdf(reduced * dof, dof).min() >= 1e-4  # errors too large would show here


def test_depths_are_wrong_without_linearity(tmp_path: Path, closure: ModuleType) -> None:
    """So the fit above can fail: in FGS1 the skipped step is worth several σ."""
    (planet,) = synthesize(tmp_path / "raw", layout="2025", frames=4800, seed=0)
    obs = gpucal.open_dataset(tmp_path / "raw")[planet]
    truth = Truth.load(tmp_path / "raw" / "truth" / str(planet) / "0" / "FGS1.npz")
    sigmas = []
    for linearity in (True, False):
        cal = gpucal.calibrate(obs, "FGS1", closure.ALL.replace(linearity=linearity))
        fit, _ = closure.fitted(cal, truth)
        sigmas.append(float(((fit.depth - closure.injected(cal, truth)[0]) / fit.error)[0]))
    assert abs(sigmas[0]) < 4.0
    assert sigmas[1] < sigmas[0] - 3.0


def test_optimal_weights_are_biased_where_there_is_little_light(closure: ModuleType) -> None:
    """As the documentation says: they are of a profile that is measured itself, and what is below 0 has none."""
    for weights, light, flux, depth in (
        ("plain", 300, 1.0, 1.0), ("variance", 300, 1.26, 0.94), ("variance", 3000, 1.008, 1.0),
        ("variance", 10_000, 1.0, 1.0),
    ):  # fmt: skip
        found, deep = closure.weighted(light, weights, range(2))
        assert found.mean() == pytest.approx(flux, abs=5 * found.std() / found.size**0.5)
        assert deep == pytest.approx(depth, abs=15 / light)


def test_fit_is_exact_without_noise() -> None:
    shape = np.array([0.0, 0.0, 0.4, 1.0, 0.9, 0.0])
    depth, level = np.array([0.01, 0.5, 0.0, -0.2]), np.array([1e6, 3.0, 7.0, 1.0])
    flux = level * (1 - depth * shape[:, None])
    fit = fit_depth(flux, np.random.default_rng(0).uniform(0.5, 2.0, flux.shape), shape)
    np.testing.assert_allclose(fit.depth, depth, atol=1e-14)
    np.testing.assert_allclose(fit.level, level, rtol=1e-14)
    np.testing.assert_allclose(fit.chi2, 0.0, atol=1e-15)
    np.testing.assert_array_equal(fit.dof, 4)


def test_fit_is_least_squares_and_its_error_the_covariance() -> None:
    """Against the normal equations in (F₀, F₀ · depth) and the propagation to their ratio."""
    rng = np.random.default_rng(1)
    shape = np.clip(rng.random(30) * 3 - 1, 0.0, 1.0)
    flux, error = 100 * (1 - 0.3 * shape) + rng.normal(0.0, 4.0, 30), rng.uniform(1.0, 8.0, 30)
    fit = fit_depth(flux, error, shape)
    design = np.stack([np.ones(30), -shape], axis=1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    level, lost = covariance @ design.T @ (flux / error)
    gradient = np.array([-lost / level**2, 1 / level])
    assert fit.depth == pytest.approx(lost / level, rel=1e-12)
    assert fit.level == pytest.approx(level, rel=1e-12)
    assert fit.error == pytest.approx((gradient @ covariance @ gradient) ** 0.5, rel=1e-12)
    assert fit.chi2 == pytest.approx(((flux / error - design @ [level, lost]) ** 2).sum(), rel=1e-12)


def test_fit_leaves_out_what_it_cannot_use() -> None:
    rng = np.random.default_rng(2)
    shape = np.array([0.0, 0.0, 0.5, 1.0, 1.0, 0.0])
    flux, error = rng.normal(50.0, 1.0, (6, 5)), np.ones((6, 5))
    expected = fit_depth(flux[1:, 0], error[1:, 0], shape[1:])
    flux[0, :2] = np.nan, np.inf
    error[0, 2:4] = np.nan, 0.0
    flux[:, 4] = np.nan
    fit = fit_depth(flux, error, shape)
    for field in ("depth", "error", "level", "chi2", "dof"):
        np.testing.assert_allclose(getattr(fit, field)[0], getattr(expected, field), rtol=1e-13)
    np.testing.assert_array_equal(fit.dof, [4 - 1, 3, 3, 3, -2])
    np.testing.assert_array_equal(np.isnan(fit.depth), [False, False, False, False, True])
    np.testing.assert_array_equal(np.isnan(fit.error), [False, False, False, False, True])
    flat = fit_depth(flux[:2, 0], error[:2, 0], shape[:2])  # no bin in transit
    assert np.isnan(flat.depth)
    assert np.isnan(flat.error)


def test_picture_and_table(
    tmp_path: Path, closure: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "closure.png"
    command = ["closure.py", "--picture", picture, "--frames", "600", "--json", tmp_path / "closure.json"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    closure.main()
    assert 10_000 < picture.stat().st_size < 60_000
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:7]] == [
        "nothing", "linearity", "dark", "flat", "(1 σ of the noise)",
    ]  # fmt: skip
