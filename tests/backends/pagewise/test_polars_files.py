"""Files of the versions of Polars that wrote the published ones are read: by pyarrow, and page by page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars_files
import pytest
from hostile import ADCS, SMALL, observe
from mutants import Anatomy, unpacked
from numpy.typing import NDArray

from gpucal.backends.pagewise import decode
from gpucal.inputs.signal_file import open_signal
from gpucal.science.plan import Plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import Detector

pytestmark = [
    pytest.mark.parametrize("kind", ["long", "short"]),
    pytest.mark.parametrize("version", polars_files.VERSIONS),
]


def detector_of(columns: NDArray[np.uint16]) -> Detector:
    """A detector with a pixel for each column."""
    return replace(SMALL["AIRS-CH0"], shape=(1, len(columns)), crop=(0, len(columns)))


def plan_of(columns: NDArray[np.uint16], pairs: int) -> Plan:
    detector = detector_of(columns)
    observation = observe(detector, columns.shape[1], ADCS["2024"])
    return observation.plan(Calibration(bins={detector.name: pairs}, odd_frames="drop"))


def test_read_by_pyarrow(version: str, kind: str) -> None:
    columns = polars_files.columns(kind)
    signal = open_signal(polars_files.path_of(version, kind), detector_of(columns))
    ((_, counts),) = signal.load().counts([slice(0, len(columns))])
    np.testing.assert_array_equal(counts, columns)


def test_made_by_that_polars(version: str, kind: str) -> None:
    path = polars_files.path_of(version, kind)
    assert path.stat().st_size < 10_000
    anatomy = Anatomy.of(path.read_bytes())
    assert anatomy.footer[6].value == b"Polars"
    for chunk in anatomy.chunks:
        assert [page.number(1) for page in chunk.pages] in ([2, 0], [0])
        assert 11 not in chunk.metadata  # offset of the dictionary
    noise = anatomy.chunks[{"long": 0, "short": 1}[kind]]
    words = np.frombuffer(unpacked(noise, noise.pages[0]), "<i4")
    assert (words.tolist() == sorted(words)) == (polars_files.VERSIONS[version] == "2025")


@pytest.mark.parametrize("pairs", [7, 30])
def test_read_page_by_page(version: str, kind: str, pairs: int) -> None:
    path, columns = polars_files.path_of(version, kind), polars_files.columns(kind)
    plan = plan_of(columns, pairs)
    loaded, every = open_signal(path, plan.detector).load(), slice(0, plan.n_pixels)
    assert loaded.table.unfit == ""
    found, expected = np.full((2, plan.n_pixels, plan.n_bins), -1.0)
    saturated, pages = decode.bin_pages(plan, every, loaded, found, decode.Scratch())
    assert pages.own + pages.codec == len(loaded.table.pages)
    expected_saturated = decode.bin_counts(plan, every, columns, expected)
    assert found.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(saturated, expected_saturated)
