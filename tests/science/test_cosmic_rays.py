"""The search for cosmic rays against literal loops, and what becomes of the pairs it rejects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cosmic
import numpy as np
import pytest
from conftest import BINS, Made
from formulas import available
from hostile import ADCS, FGS1, observe
from reference import assert_close

import gpucal
from gpucal import DQ, Calibration
from gpucal.backends import load, numpy_
from gpucal.backends.rejection import repairs
from gpucal.cli.main import main
from gpucal.results.verify import verify
from gpucal.science import cosmic_rays
from gpucal.science.cosmic_rays import CHUNK, NUMPY, Search, find_hits
from gpucal.science.light_curves import Aperture, light_curve_with_errors
from gpucal.science.rejected import NONE, Rejected

CROP = {"AIRS-CH0": (100, 104), "FGS1": (10, 14)}
LOOKED = Calibration(bins=BINS, crop=CROP, integration="notebook", cosmic_rays=1.8)


def searches() -> list[str]:
    return [name for name in available() if load(name).search is not None or name == "numpy"]


def search_of(name: str) -> Search:
    return load(name).search or NUMPY


def series_of(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """End reads over start reads of 5000 counts."""
    noise = rng.normal(2000.0, 30.0, n)
    match kind:
        case "hit":
            noise[n // 2] += 5000
        case "ends":
            noise[[0, n - 1]] += 4000, -1900
        case "next to each other":
            noise[n // 2 : n // 2 + 3] += 9000, 300, 50_000
        case "near an end":
            noise[[1, 3, 4]] += 3000
        case "constant":
            noise[:] = 2000
        case "constant but for one count":
            noise[:] = 2000
            noise[n // 3] += 1
        case "constant but for many":
            noise[:] = 2000
            noise[n // 3] += 23
            noise[n // 4] -= 1000
        case "a transit":
            noise[n // 3 : 2 * n // 3] *= 0.98
        case "a step":
            noise[n // 2 :] += 20_000
        case "extreme":
            noise = rng.choice([-5000.0, 60_535.0], n)
        case "few photons":
            noise = rng.poisson(0.3, n) * 1.0
    return noise


KINDS = (
    *("noise", "hit", "ends", "next to each other", "near an end", "constant", "constant but for one count"),
    *("constant but for many", "a transit", "a step", "extreme", "few photons"),
)


def counts_of(kind: str, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, n])
    counts = np.full(2 * n, 5000.0)
    counts[1::2] += series_of(kind, n, rng)
    return np.clip(counts.round(), 0, 65_535).astype(np.uint16)


@pytest.mark.parametrize("n", [10, 11, 12, 13, 17, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_the_loops_find(kind: str, n: int) -> None:
    counts = np.stack([counts_of(kind, n, seed) for seed in range(2)])
    for sigma in (2.7, 19.9):
        expected = [(pixel, pair) for pixel, row in enumerate(counts) for pair in sorted(cosmic.rejected(row, sigma))]
        for name in searches():
            hits = find_hits(counts, 2 * n, sigma, search_of(name))
            assert [tuple(hit) for hit in hits.tolist()] == expected
    if n == 40 and kind in ("hit", "ends", "next to each other", "constant but for many"):
        assert expected


def test_long_series_and_hits_at_the_ends_of_chunks() -> None:
    n = 2 * CHUNK + 60
    counts = counts_of("noise", n)
    places = [0, 5, CHUNK + 4, CHUNK + 5, CHUNK + 6, 1800, 2 * CHUNK + 4, 2 * CHUNK + 5, n - 6, n - 1]
    counts[2 * np.array(places) + 1] += np.arange(2000, 3000, 100, dtype=np.uint16)
    expected = sorted(cosmic.rejected(counts, 20.0))
    assert expected == places
    for name in searches():
        hits = find_hits(counts[None, :], 2 * n, 20.0, search_of(name))
        assert hits[:, 1].tolist() == expected


def test_a_run_of_hits_longer_than_a_neighbourhood() -> None:
    counts = counts_of("noise", 130)
    counts[2 * np.arange(20, 120, 2) + 1] += 3000
    assert find_hits(counts[None, :], 260, 2.0)[:, 1].tolist() == sorted(cosmic.rejected(counts, 2.0))


LASTING = {
    **{f"{n} hits of {size} in a row": (n, size, False) for n in (2, 3, 4, 5, 8) for size in (40, 100, 600)},
    **{f"a step of {size}": (0, size, True) for size in (33, 50, 67, 600)},
}


@pytest.mark.parametrize("what", LASTING)
def test_what_lasts_costs_no_pairs_far_from_it(what: str) -> None:
    """One pair after the other would be taken out beside it, and what is wrong would be kept."""
    width, size, is_step = LASTING[what]
    for seed in range(6):
        rng, n, at = np.random.default_rng(seed), 400, 180 + seed
        ends = 7000.0 + rng.normal(0.0, 30.0, n)
        ends[at : n if is_step else at + width] += size * 30.0
        counts = np.full(2 * n, 5000)
        counts[1::2] = ends.round()
        counts = counts.astype(np.uint16)
        hits = find_hits(counts[None, :], 2 * n, 20.0)[:, 1].tolist()
        if width == 2:
            assert hits == [at, at + 1]
        assert len(hits) <= 3
        assert all(at - 5 <= pair < at + width + 5 for pair in hits), (what, seed, hits)
        if seed == 0:
            short = slice(2 * (at - 60), 2 * (at + 60))
            expected = sorted(cosmic.rejected(counts[short], 20.0))
            assert find_hits(counts[None, short], 240, 20.0)[:, 1].tolist() == expected


@pytest.mark.parametrize("seed", range(12))
def test_neighbourhoods_are_enough(seed: int) -> None:
    """The same pairs are found as in the whole series at once, whatever runs on beyond a neighbourhood."""
    rng, n = np.random.default_rng(seed), 700
    ends = 30_000.0 + rng.normal(0.0, 30.0, n)
    for _ in range(12):
        at, width = rng.integers(n), rng.integers(1, 30)
        ends[at : at + width] += rng.choice([-1, 1]) * rng.uniform(10, 200) * 30.0
    series = (ends.round() - 5000).astype(np.int32)
    for sigma in (8.0, 20.0):
        limits = sigma * 30.0 * cosmic_rays._OF_HIT
        suspects = cosmic_rays._suspects(series[None, :], limits[None, :], NUMPY)[:, 1]
        assert suspects.size > 20
        assert cosmic_rays._hits_of(series, suspects, limits) == cosmic_rays._removed(series, limits, False, False)[0]


@pytest.mark.parametrize("name", searches())
@pytest.mark.parametrize("n", [12, CHUNK + 9, CHUNK + 10, CHUNK + 11, 2 * CHUNK + 10])
def test_chunks_are_flagged_beyond_their_limit(name: str, n: int) -> None:
    rng = np.random.default_rng(n)
    series = rng.integers(-65_535, 65_536, (3, n)).astype(np.int32)
    weights = [4290 * (k == 0) - (890 - 50 * k * k) for k in range(-5, 6)]
    away = np.abs([np.convolve(row.astype(np.int64), weights, "valid") for row in series])
    chunks = [slice(first, first + CHUNK) for first in range(0, n - 10, CHUNK)]
    for limits in (away.max(axis=1), away.max(axis=1) - 1, away[:, :CHUNK].max(axis=1), np.full(3, 2**31 - 1)):
        expected = [[row[chunk].max() > limit for chunk in chunks] for row, limit in zip(away, limits, strict=True)]
        found = search_of(name).flag_chunks(series, limits.astype(np.int32))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", searches())
@pytest.mark.parametrize("level", [-65_535 + 40, 0, 65_535 - 40])
def test_no_range_is_too_small_for_a_pair_beyond_its_limit(name: str, level: int) -> None:
    """The largest distance that pairs within some range can have, by its limit, just below it, and for less range."""
    weights = np.array([4290 * (k == 0) - (890 - 50 * k * k) for k in range(-5, 6)])
    for reach in (1, 39):
        series = np.full((2, 2 * CHUNK + 40), level, np.int32)
        series[0, CHUNK + 3 : CHUNK + 14] += np.sign(weights) * reach
        series[1, CHUNK + 3 : CHUNK + 14] -= np.sign(weights) * reach
        most = int(np.abs(weights).sum()) * reach
        for limit, beyond in ((most, False), (most - 1, True), (most + 1, False)):
            found = search_of(name).flag_chunks(series, np.full(2, limit, np.int32))
            np.testing.assert_array_equal(found, [[False, beyond, False]] * 2)


@pytest.mark.parametrize("n", [12, 700, 1032, 2100])
def test_every_search_starts_from_the_same(n: int) -> None:
    counts = np.random.default_rng(n).integers(0, 65_536, (3, 2 * n + 5)).astype(np.uint16)
    series, samples = NUMPY.prepare(counts, 2 * n)
    np.testing.assert_array_equal(series, counts[:, 1 : 2 * n : 2].astype(int) - counts[:, 0 : 2 * n : 2])
    for name in searches():
        found = search_of(name).prepare(counts, 2 * n)
        np.testing.assert_array_equal(found[0], series)
        np.testing.assert_array_equal(found[1], samples)


def test_finds_hits_and_no_clean_pair() -> None:
    rng = np.random.default_rng(9)
    counts = np.full((20, 2 * 3000), 5000.0)
    counts[:, 1::2] += rng.normal(2000.0, 40.0, (20, 3000))
    hits = np.stack([rng.permutation(250)[:25] * 12 + rng.integers(12) for _ in range(20)])  # none beside another
    for pixel, pairs in enumerate(hits):
        counts[pixel, 2 * pairs + 1] += rng.choice([-1, 1], 25) * rng.uniform(25.5, 100.0, 25) * 40.0
    found = find_hits(counts.round().astype(np.uint16), 6000, 20.0)
    injected = {(pixel, pair) for pixel, pairs in enumerate(hits) for pair in pairs}
    assert {tuple(hit) for hit in found.tolist()} == injected


@pytest.mark.parametrize("detector", list(BINS))
def test_every_way_finds_the_same(detector: str, old: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    expected = gpucal.calibrate(obs, detector, LOOKED, backend="numpy")
    reference = replace(old[1][17, 0][detector], detector=LOOKED.cropped(old[1][17, 0][detector].detector))
    assert_close(expected.signal, reference.reference(LOOKED))
    assert 20 < np.count_nonzero(expected.rejected) < expected.rejected.size
    ways = [gpucal.calibrate(obs, detector, LOOKED, backend="numba", workers=workers) for workers in (1, 3)]
    monkeypatch.setenv("GPUCAL_READER", "pyarrow")
    ways.append(gpucal.calibrate(obs, detector, LOOKED, backend="numba"))
    for cal in ways:
        np.testing.assert_array_equal(cal.signal, ways[0].signal)
        np.testing.assert_array_equal(cal.rejected, expected.rejected)
        np.testing.assert_array_equal(cal.dq, expected.dq)
        assert_close(cal.signal, reference.reference(LOOKED))
        hit = cal.rejected > 0
        np.testing.assert_array_equal(cal.signal[hit], expected.signal[hit])


@pytest.mark.usefixtures("device")
def test_a_device_has_the_host_find_them(old: Made) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    expected = gpucal.calibrate(obs, "FGS1", LOOKED, backend="numba")
    for on_device in (False, True):
        cal = gpucal.calibrate(obs, "FGS1", LOOKED, backend="cupy", device=on_device)
        assert cal.provenance["cosmic_rays"]["found_on"] == "host"
        np.testing.assert_array_equal(cal.rejected, expected.rejected)
        with np.errstate(all="ignore"):
            variance = cal.variance.get() if on_device else cal.variance
        np.testing.assert_array_equal(cal.to_host().signal, expected.signal)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(variance, expected.variance, rtol=1e-12)


@pytest.mark.parametrize("change", [{}, {"reduce": "mean"}, {"drop_last_pairs": 15}, {"gain": "multiply"}], ids=str)
def test_bins_flags_and_variance(change: dict[str, object], old: Made) -> None:
    config = LOOKED.replace(**change)
    obs = gpucal.open_dataset(old[0])[17]
    cal, plain = (gpucal.calibrate(obs, "FGS1", one) for one in (config, config.replace(cosmic_rays=0.0)))
    made = old[1][17, 0]["FGS1"]
    raw = made.raw[:, :, slice(*CROP["FGS1"])]
    n_bins, n = len(cal.time), BINS["FGS1"]
    counted = np.zeros(cal.signal.shape, int)
    for x, y in np.ndindex(cal.dq.shape):
        for pair in cosmic.rejected(raw[: 2 * n * n_bins, y, x], 1.8):
            counted[pair // n, x, y] += 1
    np.testing.assert_array_equal(cal.rejected, counted)
    np.testing.assert_array_equal(cal.dq & DQ.COSMIC != 0, counted.any(axis=0))
    np.testing.assert_array_equal(cal.dq & ~np.uint8(DQ.COSMIC), plain.dq)
    np.testing.assert_array_equal(cal.mask, plain.mask)
    untouched = counted == 0
    np.testing.assert_array_equal(cal.signal[untouched], plain.signal[untouched])
    assert not np.array_equal(cal.signal[~untouched], plain.signal[~untouched])
    # The variance of n/kept times a sum of kept pairs, from the sum as it would be of all of them.
    assert cal.plan is not None
    with np.errstate(all="ignore"):
        as_if = replace(cal, rejections=NONE).variance
        np.testing.assert_allclose(cal.variance, as_if * n / (n - counted), rtol=1e-12)
        assert np.isfinite(cal.variance[~untouched]).any()


def test_a_bin_without_a_pair_left_is_nan_and_the_scatter_is_honest() -> None:
    """Of sums that are scaled up, and bins of which nothing is left."""
    obs = observe(replace(FGS1, shape=(1, 40), crop=(0, 40)), 120, ADCS["2025"])
    shape = (1, 40)
    linear = np.zeros((6, *shape))
    linear[1] = 1.0
    sane = {"dark": np.zeros(shape), "dead": np.zeros(shape, bool), "flat": np.ones(shape), "linear_corr": linear}
    obs = replace(obs, **sane, read=np.full(shape, 30.0))
    rng = np.random.default_rng(1)
    sums = []
    for _ in range(150):
        raw = np.full((120, *shape), 3000.0)
        raw += rng.normal(0.0, 30.0 * 0.4369, raw.shape)
        raw[1::2] += 500.0
        raw[[7, 35, 57]] += 20_000.0
        one = replace(obs, raw=raw.round().astype(np.uint16))
        out, expected = np.empty((40, 4)), {}
        for pairs in (15, 1):
            plan = one.plan(Calibration(bins={"FGS1": pairs}, cosmic_rays=20.0, integration="notebook"))
            found = repairs(plan, slice(0, 40), one.counts())
            expected[pairs] = found
        assert np.isnan(expected[1].values).all()
        np.testing.assert_array_equal(np.unique(expected[1].rejected.bins), [3, 17, 28])
        np.testing.assert_array_equal(np.unique(expected[15].rejected.bins), [0, 1])
        plan = one.plan(Calibration(bins={"FGS1": 15}, cosmic_rays=20.0, integration="notebook"))
        numpy_.bin_counts(plan, slice(0, 40), one.counts(), out)
        out[expected[15].rejected.pixels, expected[15].rejected.bins] = expected[15].values
        sums.append(out)
    scatter = np.std(sums, axis=(0, 1))
    single = np.sqrt(2.0) * 30.0
    # One of fifteen pairs is left out of the first bin, two of the second, none of the others.
    np.testing.assert_allclose(scatter, single * np.sqrt([15 * 15 / 14, 15 * 15 / 13, 15, 15]), rtol=0.03)
    np.testing.assert_allclose(np.mean(sums, axis=(0, 1)), 15 * 500.0 / 0.4369, rtol=0.002)


def test_results_folders_keep_the_count(old: Made, tmp_path: Path) -> None:
    flags = [f"--bin={name}={n}" for name, n in BINS.items()]
    flags += [f"--crop={name}={first}:{stop}" for name, (first, stop) in CROP.items()]
    flags += ["--integration", "notebook", "--cosmic-rays", "1.8", "--variance", "--dtype", "float64"]
    for product in ("cubes", "light-curves"):
        out = tmp_path / product
        assert main(["calibrate", str(old[0]), str(out), "--planet", "17", "--product", product, *flags]) == 0
        assert not list(verify(out))
    results = gpucal.open_results(tmp_path / "cubes")
    for name in BINS:
        cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], name, LOOKED)
        stored = results.calibrated((17, 0), name)
        np.testing.assert_array_equal(stored.rejected, cal.rejected)
        np.testing.assert_array_equal(stored.dq, cal.dq)
        assert stored.provenance["steps"] == cal.provenance["steps"]
        assert list(cal.provenance["steps"])[5:7] == ["reject", "bin"]
        assert cal.provenance["cosmic_rays"] == {"rejected_pairs": int(cal.rejected.sum()), "found_on": "host"}
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(stored.variance, cal.variance)
            summed, plain = (
                light_curve_with_errors(cal.signal, cal.dq, Aperture(cal.detector), one.variance)
                for one in (cal, replace(cal, rejections=NONE))
            )
        for product in ("cubes", "light-curves"):
            curve = gpucal.open_results(tmp_path / product).light_curve_with_errors((17, 0), name)
            for kept, whole, usual in zip(curve, summed, cal.light_curve_with_errors(), strict=True):
                np.testing.assert_array_equal(kept, usual)
                np.testing.assert_allclose(kept, whole, rtol=1e-9)
        touched = np.isfinite(summed.error) & (summed.error != plain.error)
        assert touched.any()
        assert (summed.error > plain.error)[touched].all()
        table = np.load(tmp_path / "light-curves" / "17" / "0" / f"{name}.rejected.npy")
        bins, x, y, pairs = table.T
        np.testing.assert_array_equal(cal.rejected[bins, x, y], pairs)
        assert pairs.sum() == cal.rejected.sum() > 0


def test_off_it_leaves_no_trace(old: Made, tmp_path: Path) -> None:
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], "FGS1", Calibration(bins=BINS))
    assert not cal.rejected.any()
    assert not (cal.dq & DQ.COSMIC).any()
    assert "cosmic_rays" not in cal.provenance
    assert "reject" not in cal.provenance["steps"]
    assert main(["calibrate", str(old[0]), str(tmp_path), "--planet", "17", "--bin=airs=7,fgs=16"]) == 0
    assert not list(tmp_path.rglob("*.rejected.npy"))
    assert "cosmic" not in (tmp_path / "config.toml").read_text()


def test_lists_of_bins_join_in_order() -> None:
    first = Rejected(*(np.array(values) for values in ([3, 1], [7, 2], [1, 4])))
    both = Rejected.joined([first, Rejected(*(np.array([one]) for one in (1, 0, 2)))])
    assert both.bins.tolist() == [1, 1, 3]
    assert both.pixels.tolist() == [0, 2, 7]
    assert both.pairs.tolist() == [2, 4, 1]
    again = Rejected.of_table(both.table(4), 4)
    for name in ("bins", "pixels", "pairs"):
        np.testing.assert_array_equal(getattr(again, name), getattr(both, name))
    assert both.counts((4, 4, 2))[3, 3, 1] == 1
    assert Rejected.joined([]) is NONE
    assert NONE.table(4).shape == (0, 4)
