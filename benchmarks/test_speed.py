"""Short benchmarks of fixed seed, for every change: ``pytest benchmarks``, with ``--benchmark-compare`` if you like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from arithmetic import Case, available
from pytest_benchmark.fixture import BenchmarkFixture

import gpucal
from gpucal.backends import load
from gpucal.inputs.signal_file import open_signal
from gpucal.pipeline.memory import COUNT_BLOCK, PAGE_BLOCK
from gpucal.pipeline.stream import pixel_blocks
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import synthesize


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> gpucal.Dataset:
    """A planet of a tenth of the frames."""
    folder = tmp_path_factory.mktemp("data") / "raw"
    synthesize(folder, frames=1124, seed=1)
    return gpucal.open_dataset(folder)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("detector", DETECTORS)
def test_arithmetic(benchmark: BenchmarkFixture, detector: str, backend: str) -> None:
    case = Case(DETECTORS[detector], part=10)
    result = benchmark(case.blocks, available()[backend], 1)
    assert result.shape == (case.plan.n_bins, case.plan.n_pixels)


@pytest.mark.parametrize("way", ["pages", "counts"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_decoding(benchmark: BenchmarkFixture, dataset: gpucal.Dataset, detector: str, way: str) -> None:
    facts = DETECTORS[detector]
    obs = dataset[dataset.planets[0]]
    signal = open_signal(obs.signal_path(facts), facts)
    plan = gpucal.calibrate(obs, detector).plan
    loaded, bin_pages = signal.load(), load("numba").bin_pages
    sizes = loaded.table.sizes if way == "pages" else np.full(plan.n_pixels, 2 * signal.n_frames)
    blocks = list(pixel_blocks(sizes, PAGE_BLOCK if way == "pages" else COUNT_BLOCK))
    assert bin_pages is not None
    out = np.empty((plan.n_pixels, plan.n_bins))

    def decode() -> int:
        if way == "counts":
            return sum(len(counts) for _, counts in loaded.counts(blocks))
        return sum(len(bin_pages(plan, pixels, loaded, out[pixels])[0]) for pixels in blocks)

    assert benchmark(decode) == plan.n_pixels


def test_run(benchmark: BenchmarkFixture, dataset: gpucal.Dataset, tmp_path: Path) -> None:
    summary = benchmark(gpucal.run, dataset, tmp_path / "out", overwrite=True)
    assert (summary.done, summary.failed) == (2, {})
