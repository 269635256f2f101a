"""The variance against Monte Carlo of known truth and against literal loops, and the noise beyond it.

A pixel is bright where the photons of a pair, out of transit, have more variance than its two reads. Tolerances on
synthetic data are the project's (2 % of scatter, 0.02 σ of bias), with samples whose statistical error is a fifth of
the tolerance or less, so that a sound formula fails one draw in a million and the seeds need no choosing.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest
from hostile import ADCS, BINS, SMALL, Observation, observe

import gpucal
from gpucal import Calibrated, Calibration
from gpucal.backends import load
from gpucal.errors import ConfigError
from gpucal.pipeline.calibrated import arrays_of
from gpucal.runs.job import Job
from gpucal.science import noise
from gpucal.science.bad_pixels import plan_repair
from gpucal.science.quality import quality
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic import scene
from gpucal.synthetic.competition import Truth, synthesize

CONFIG = Calibration.preset("ariel2025")
SHORT = {"AIRS-CH0": 5, "FGS1": 12}
FGS1 = DETECTORS["FGS1"]


@dataclass(frozen=True)
class Sky:
    """Two planets of 3000 AIRS-CH0 frames (50 default bins), and the truth they were made from."""

    folder: Path

    def truth(self, cal: Calibrated) -> Truth:
        return Truth.load(self.folder / "truth" / str(cal.planet) / str(cal.visit) / f"{cal.detector.name}.npz")

    def calibrated(self, name: str, **changes: Any) -> Iterator[tuple[Calibrated, np.ndarray, np.ndarray]]:
        """Each planet, the expected signal (of sums), and which pixels are bright."""
        config = CONFIG.replace(**changes)
        for obs in gpucal.open_dataset(self.folder):
            cal = gpucal.calibrate(obs, name, config)
            assert cal.plan is not None
            truth = self.truth(cal)
            light = truth.rate * np.maximum(truth.flat, 0.0) * (truth.exposure_s[1] - truth.exposure_s[0])
            bright = (light > 2 * truth.read**2)[:, slice(*cal.detector.crop)].T
            yield cal, truth.expected(cal.detector, cal.plan.pairs_per_bin)[0], bright

    def residuals(self, name: str, **changes: Any) -> dict[str, np.ndarray]:
        """(signal − truth) / √variance of the good pixels of both planets."""
        parts: dict[str, list[np.ndarray]] = {"bright": [], "faint": []}
        for cal, expected, bright in self.calibrated(name, **changes):
            sigma = (cal.signal - expected) / np.sqrt(cal.variance)
            good = cal.dq == 0
            parts["bright"].append(sigma[:, good & bright].ravel())
            parts["faint"].append(sigma[:, good & ~bright].ravel())
        return {group: np.concatenate(part) for group, part in parts.items()}


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Sky:
    folder = tmp_path_factory.mktemp("sky") / "raw"
    synthesize(folder, layout="2025", planets=2, frames=3000)
    return Sky(folder)


def assert_standard(sigma: np.ndarray) -> None:
    assert 5 / sigma.size**0.5 < 0.02  # the bias's statistical error; that of the scatter is smaller by √2
    assert abs(sigma.mean()) <= 0.02
    assert abs(sigma.std() - 1.0) <= 0.02


@pytest.mark.parametrize(("name", "groups"), [("AIRS-CH0", ("bright", "faint")), ("FGS1", ("faint",))])
def test_residuals_are_standard_at_default_bins(sky: Sky, name: str, groups: tuple[str, ...]) -> None:
    residuals = sky.residuals(name)
    for group in groups:
        assert_standard(residuals[group])
    if name == "FGS1":  # a few dozen bright pixels: files hold too few bins of them for more than a rough check
        few = residuals["bright"]
        assert abs(few.mean()) < 5 / few.size**0.5
        assert abs(few.std() - 1.0) < 5 / (2 * few.size) ** 0.5


def draw_bright_fgs1(n_bins: int, seed: int) -> tuple[Observation, np.ndarray]:
    """Draw the bright pixels of FGS1, out of transit: an observation one row high, and a pair's expected signal."""
    rng = np.random.default_rng(seed)
    frames = scene.draw_frames(rng, FGS1, "2025")
    start_s, end_s = FGS1.true_integration_s
    flat = frames.flat * ~frames.dead
    light = scene.star_rate(FGS1, scene.draw_target(rng), flat, 54_500.0) * np.maximum(flat, 0.0)
    bright = light * (end_s - start_s) > 2 * frames.read**2
    light, dark, read = (values[bright] for values in (light, frames.dark, frames.read))
    linear = frames.linear[:, bright]
    most = (light + np.maximum(dark, 0.0)) * end_s
    low, high = np.minimum(dark, 0.0) * end_s - 7 * read, most + 7 * np.sqrt(most + read**2) + 10
    pixels = scene.Pixels(
        light, np.zeros_like(light), dark, read, (low + high) / 2, (high - low) / 2,
        scene.invert_linearity(linear, low, high), np.zeros(n_bins * FGS1.bin_pairs), (start_s, end_s), scene.ADC_2025,
    )  # fmt: skip
    raw = np.empty((light.size, 2 * n_bins * FGS1.bin_pairs), np.uint16)
    for k in range(light.size):
        pixels.draw(rng, slice(k, k + 1), raw[k : k + 1])
    detector = replace(FGS1, shape=(1, light.size), crop=(0, light.size))
    maps = {"dark": dark, "dead": np.zeros(light.size, bool), "flat": frames.flat[bright], "read": read}
    row = {kind: values[None] for kind, values in maps.items()}
    obs = Observation(detector, raw.T[:, None], linear_corr=linear[:, None], adc=ADCS["2025"], **row)
    return obs, light * (end_s - start_s) / maps["flat"]


def test_residuals_are_standard_where_fgs1_is_bright() -> None:
    sigma = []
    for seed in range(2):
        obs, expected = draw_bright_fgs1(1200, seed)
        # a handful of bright pixels says nothing of which are hot
        plan = obs.plan(CONFIG.replace(hot_clip="off"))
        binned = np.empty((plan.n_pixels, plan.n_bins))
        counts = obs.counts()
        for k in range(plan.n_pixels):
            load("numpy").bin_counts(plan, slice(k, k + 1), counts[k : k + 1], binned[k : k + 1])
        signal, dq = obs.cube(binned), plan.dq[:, None]
        residual = (signal - plan.pairs_per_bin * expected[:, None]) / np.sqrt(noise.variance(signal, plan, dq))
        sigma.append(residual[:, dq == 0].ravel())
    assert_standard(np.concatenate(sigma))


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_residuals_are_standard_at_other_bins(sky: Sky, name: str) -> None:
    for pairs in {"AIRS-CH0": (10, 90), "FGS1": (60, 180)}[name]:
        residuals = sky.residuals(name, bins={name: pairs})
        tested = [sigma for sigma in residuals.values() if 5 / sigma.size**0.5 < 0.02]
        assert tested
        for sigma in tested:
            assert_standard(sigma)


@pytest.mark.slow
def test_bins_of_one_are_where_the_formula_stops(sky: Sky) -> None:
    """The variance uses the measured charge, so it is correlated with the signal, and a charge below 0 counts as 0."""
    assert -0.03 < sky.residuals("AIRS-CH0", bins={"AIRS-CH0": 1})["faint"].mean() < -0.02
    faint = sky.residuals("FGS1", bins={"FGS1": 1})["faint"]
    assert 0.97 < faint.std() < 0.99
    assert -0.02 < faint.mean() < -0.01


@pytest.mark.parametrize("name", DETECTORS)
def test_a_mean_has_the_variance_of_the_sum_over_n_squared(sky: Sky, name: str) -> None:
    n = DETECTORS[name].bin_pairs
    for (total, *_), (mean, *_) in zip(sky.calibrated(name), sky.calibrated(name, reduce="mean"), strict=True):
        good = total.dq == 0
        np.testing.assert_allclose(mean.signal[:, good] * n, total.signal[:, good], rtol=1e-11, atol=1e-8)
        np.testing.assert_allclose(mean.variance[:, good] * n**2, total.variance[:, good], rtol=1e-11)


@pytest.mark.parametrize("name", DETECTORS)
def test_bad_pixels_as_nan_have_no_variance_either(sky: Sky, name: str) -> None:
    for (kept, *_), (blank, *_) in zip(sky.calibrated(name), sky.calibrated(name, bad_pixels="nan"), strict=True):
        assert blank.mask.any()
        for values, whole in ((blank.signal, kept.signal), (blank.variance, kept.variance)):
            np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(blank.mask, values.shape))
            np.testing.assert_array_equal(values[:, ~blank.mask], whole[:, ~blank.mask])


def test_interpolated_pixels_have_the_variance_of_the_mean_they_are(sky: Sky) -> None:
    sigma = []
    pairs = zip(sky.calibrated("AIRS-CH0"), sky.calibrated("AIRS-CH0", bad_pixels="interpolate"), strict=True)
    for (kept, expected, _), (mended, _, _) in pairs:
        bad = kept.dq != 0
        np.testing.assert_array_equal(mended.variance[:, ~bad], kept.variance[:, ~bad])
        for x in np.flatnonzero(bad.any(axis=1)):
            good, wanted = np.flatnonzero(~bad[x]), np.flatnonzero(bad[x])
            weights = np.stack([np.interp(wanted, good, one) for one in np.eye(good.size)])
            variance = kept.variance[:, x, good] @ weights**2
            np.testing.assert_allclose(mended.variance[:, x, wanted], variance, rtol=1e-12)
            residual = mended.signal[:, x, wanted] - expected[:, x, good] @ weights
            sigma.append((residual / np.sqrt(mended.variance[:, x, wanted])).ravel())
    together = np.concatenate(sigma)
    assert abs(together.std() - 1.0) < 5 / (2 * together.size) ** 0.5 < 0.05
    assert abs(together.mean()) < 5 / together.size**0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("product", "with_variance"), [("cubes", True), ("cubes", False), ("light-curves", False)])
@pytest.mark.parametrize(("name", "settings"), [
    ("AIRS-CH0", {"bins": {"AIRS-CH0": 8}}), ("AIRS-CH0", {"bins": {"AIRS-CH0": 1}, "crop": {"AIRS-CH0": (150, 160)}}),
    ("FGS1", {"bins": {"FGS1": 96}}), ("FGS1", {"bins": {"FGS1": 12}, "weights": "variance"}),
], ids=str)  # fmt: skip
def test_what_is_stored_takes_the_memory_that_is_reserved(
    sky: Sky, name: str, settings: dict[str, Any], product: str, with_variance: bool, dtype: str
) -> None:
    """With the numbers on quality, which are made from it. Of 187 bins, 1500 and 1500."""
    obs, config = next(iter(gpucal.open_dataset(sky.folder))), CONFIG.replace(**settings)
    cal = gpucal.calibrate(obs, name, config, dtype=dtype, backend="numpy")
    job = Job(sky.folder, config, dtype, product, with_variance, None, None, None)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    arrays = arrays_of(cal, product, with_variance=with_variance)
    quality(cal.signal, cal.dq, arrays["flux"], arrays["error"], photometer=cal.detector.photometer)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    one_bin = cal.dq.size * (8 + cal.signal.itemsize)  # the part of read noise, which is the same in all
    reserved = cal.signal.size * (job.value_bytes - cal.signal.itemsize) + (one_bin if with_variance else 0)
    assert peak <= reserved + 2**16  # and Python's own objects


@pytest.mark.parametrize("gain", ["divide", "multiply"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("adc", ADCS)
@pytest.mark.parametrize("name", SMALL)
def test_variance_is_the_formula_pixel_by_pixel(name: str, adc: str, reduce: str, gain: str) -> None:
    config = Calibration(bins=BINS, reduce=reduce, gain=gain)
    electron = ADCS[adc].gain ** 2 if gain == "multiply" else 1.0
    n, compared = BINS[name], {True: 0, False: 0}
    for seed in range(6):
        obs = observe(SMALL[name], 2 * 3 * n, ADCS[adc], seed)
        plan, first = obs.plan(config), obs.detector.crop[0]
        binned = np.empty((plan.n_pixels, plan.n_bins))
        load("numpy").bin_counts(plan, slice(0, plan.n_pixels), obs.counts(), binned)
        signal = obs.cube(binned)
        with np.errstate(all="ignore"):
            variance = noise.variance(signal, plan, np.zeros(signal.shape[1:], np.uint8))
        # the sum before dark and flat, by the loops of tests/support/reference.py
        before = obs.reference(config.replace(dark=False, flat=False, reduce="sum"))
        for b, x, y in np.ndindex(*signal.shape):
            flat = 1.0 if obs.dead[y, first + x] else obs.flat[y, first + x]
            charge = before.signal[b, x, y]
            if not np.isfinite(charge) or not 1e-100 < abs(flat) < np.inf:
                continue  # flagged, and the charge cannot be had back from the signal
            expected = (electron * max(charge, 0.0) + 2 * n * (electron * obs.read[y, first + x]) ** 2) / flat**2
            expected /= n**2 if reduce == "mean" else 1
            rounding = 1e-12 * electron * before.scale[b, x, y] / flat**2
            assert variance[b, x, y] == pytest.approx(expected, rel=1e-9, abs=rounding)
            compared[bool(charge > 0.0)] += 1
    assert min(compared.values()) > 20


@pytest.mark.parametrize(("name", "reduce"), [("AIRS-CH0", "sum"), ("FGS1", "mean")])
@pytest.mark.parametrize("bad_pixels", ["keep", "interpolate"])
def test_read_noise_is_the_variance_without_photons(name: str, reduce: str, bad_pixels: str) -> None:
    adc, n = next(iter(ADCS.values())), BINS[name]
    plan = observe(SMALL[name], 2 * 3 * n, adc, 1).plan(Calibration(bins=BINS, reduce=reduce))
    width, height = plan.detector.width, plan.detector.shape[0]
    dq, change = plan_repair(np.ascontiguousarray(plan.dq.reshape(height, width).T), bad_pixels)
    assert (change is not None) == (bad_pixels == "interpolate")
    nothing = np.zeros((plan.n_bins, width, height))
    with np.errstate(all="ignore"):
        expected = noise.variance(nothing, replace(plan, dark=np.zeros_like(plan.dark)), dq)
    found, known = noise.read_variance(plan, dq), np.isfinite(expected)
    assert found.shape == dq.shape
    assert known.mean() > 0.5
    for plane, is_known in zip(expected, known, strict=True):
        np.testing.assert_array_equal(found[is_known], plane[is_known])


@pytest.mark.parametrize("gain", ["divide", "multiply"])
@pytest.mark.parametrize("name", DETECTORS)
def test_noise_excess_is_one_without_jitter(sky: Sky, name: str, gain: str) -> None:
    """Bins are short, so the transit's slope between bins is lost in the noise."""
    pixels: dict[bool, list[np.ndarray]] = {True: [], False: []}
    curves = []
    for cal, _, bright in sky.calibrated(name, bins=SHORT, gain=gain):
        excess, of_curves = cal.noise_excess(), cal.noise_excess("wavelength")
        assert excess.shape == cal.dq.shape
        assert of_curves.shape == ((1,) if name == "FGS1" else (282,))
        for which, found in pixels.items():
            found.append(excess[(cal.dq == 0) & (bright == which)])
        curves.append(of_curves)
    n = len(cal.time)
    for found in (*pixels.values(), curves):
        values = np.concatenate(found)
        # 1.27 / √bins for each, measured on normal draws; a median of many has 1.25 times the error of a mean, and
        # in faint pixels short bins make the formula itself up to 1 % too large
        error = 1.25 * 1.27 / (n * values.size) ** 0.5
        assert np.median(values) == pytest.approx(1.0, abs=5 * error + 0.01)


def test_noise_excess_grows_as_noise_is_added(sky: Sky) -> None:
    rng = np.random.default_rng(0)
    cal = next(sky.calibrated("AIRS-CH0", bins=SHORT))[0]
    good, before = cal.dq == 0, cal.noise_excess()
    for size in (0.5, 1.0, 3.0):
        louder = cal.signal + size * np.sqrt(cal.variance) * rng.standard_normal(cal.signal.shape)
        ratio = noise.noise_excess(louder, cal.variance)[good] / before[good]
        assert np.median(ratio) == pytest.approx((1 + size**2) ** 0.5, rel=0.01)


def test_noise_excess_shows_jitter_of_the_whole_frame(sky: Sky) -> None:
    """All light is times 1 + ε: the excess is σ(ε) · flux over the formula's σ, in pixels and in light curves."""
    cal = next(sky.calibrated("AIRS-CH0", bins=SHORT))[0]
    medians: dict[str, list[float]] = {"pixel": [], "wavelength": []}
    for seed in range(16):  # of one draw, the medians are off by 2.4 %, as all light shares it
        jitter = 0.01 * np.random.default_rng(seed).standard_normal(len(cal.time))
        shaken = replace(cal, signal=cal.signal * (1 + jitter[:, None, None]))
        typical = noise.noise_excess(jitter, np.full(jitter.size, 0.01**2))  # of these few draws
        for per, found in medians.items():
            flux, error = (cal.signal, np.sqrt(cal.variance)) if per == "pixel" else cal.light_curve_with_errors()
            # the mean of the squares, as the formula's own are averaged over time
            added = 0.01 * typical * flux.mean(axis=0) / np.sqrt((error**2).mean(axis=0))
            strong = (added > 3.0) & (cal.dq == 0 if per == "pixel" else True)
            assert strong.sum() > 150
            expected = np.hypot(cal.noise_excess(per), added)[strong]
            ratio = shaken.noise_excess(per)[strong] / expected
            found.append(float(np.median(ratio)))
            assert ratio.std() < 0.1
    for found in medians.values():
        assert np.mean(found) == pytest.approx(1.0, abs=0.03)


def test_noise_excess_sees_neither_drift_nor_edges_nor_hits() -> None:
    rng = np.random.default_rng(2)
    n = 400
    white = rng.standard_normal((n, 500))
    ones = np.ones_like(white)
    quiet = noise.noise_excess(white, ones)
    assert np.median(quiet) == pytest.approx(1.0, abs=0.02)
    at = np.arange(n)
    drift, transit = 30.0 * at / n, np.where((at > 120) & (at < 280), -50.0, 0.0)
    hits = np.where(rng.random(n) < 0.01, 1e4, 0.0)
    for what in (drift, transit, hits):
        crooked = white + what[:, None]
        assert crooked.std() > 5.0
        np.testing.assert_allclose(np.median(noise.noise_excess(crooked, ones)), np.median(quiet), rtol=0.04)


def test_noise_excess_without_an_answer() -> None:
    assert np.isnan(noise.noise_excess(np.ones((1, 3)), np.ones((1, 3)))).all()
    values = np.random.default_rng(3).standard_normal((9, 4))
    values[4, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(noise.noise_excess(values, np.ones((9, 4)))), [False, True, False, False])


def test_noise_excess_per_something_else(sky: Sky) -> None:
    cal = next(sky.calibrated("FGS1"))[0]
    with pytest.raises(ConfigError, match="per = 'frame': must be one of pixel, wavelength"):
        cal.noise_excess("frame")


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_noise_excess_on_a_device(n: int) -> None:
    device = strict.Device("device1")
    rng = np.random.default_rng(4)
    values, variance = rng.normal(100.0, 2.0, (n, 4, 3)), rng.uniform(3.0, 5.0, (n, 4, 3))
    values[-1, 0, 0] = np.nan
    result = noise.noise_excess(strict.asarray(values, device=device), strict.asarray(variance, device=device))
    assert result.device == device
    host = np.asarray(strict.asarray(result, device=strict.Device("CPU_DEVICE"))._array)
    np.testing.assert_allclose(host, noise.noise_excess(values, variance), rtol=1e-14)
    assert np.isnan(host[0, 0])
    assert np.isnan(host).all() == (n == 1)
