"""Pages to binned sums, as the pipeline does it, and the sums that any counts have: the same to the bit, or not."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from hostile import ADCS, SMALL, observe
from numpy.typing import NDArray

from gpucal.backends import Pages
from gpucal.backends.pagewise import decode
from gpucal.inputs.parquet.footer import end_of
from gpucal.inputs.parquet.pages import PageTable, page_table, read_footer
from gpucal.inputs.signal_file import Loaded
from gpucal.pipeline.memory import PAGE_BLOCK
from gpucal.pipeline.stream import pixel_blocks
from gpucal.science.plan import Plan
from gpucal.settings.calibration import Calibration

PATH = Path("signal.parquet")
AIRS = SMALL["AIRS-CH0"]

Binned = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Sums, (pixel, bin), and which pixels are saturated."""


def planned(n_pixels: int, n_frames: int, pairs: int = 1, **changes: Any) -> Plan:
    """A plan for so many pixels, all of them sound, whose polynomials are of degree 5."""
    rng = np.random.default_rng(8)
    flat = replace(AIRS, shape=(1, n_pixels), crop=(0, n_pixels))
    obs = observe(flat, n_frames, ADCS["2024"])
    powers = np.arange(6.0)[:, None, None]
    obs = replace(obs, linear_corr=rng.normal(1, 0.1, (6, 1, n_pixels)) * 10 ** (-4 * powers))
    plan = obs.plan(Calibration(bins={flat.name: pairs}, odd_frames="drop"))
    return replace(plan, dark=rng.normal(0.1, 0.1, n_pixels), divisor=rng.normal(1, 0.1, n_pixels), **changes)


@functools.lru_cache(64)
def telling(n_pixels: int, n_frames: int) -> Plan:
    """A plan whose bins tell of every pair of reads whether they are those of other counts.

    Bins are pairs, as long as the file is short: two reads have the sum of two others only if they are the same, or if
    both pairs have no difference.
    """
    pairs = 1 if n_frames <= 10_000 else 1000
    plan = planned(n_pixels, 2 * pairs, pairs)
    n_bins = n_frames // 2 // pairs
    return replace(plan, n_bins=n_bins, tau_s=np.resize(plan.tau_s, n_bins), time_h=np.resize(plan.time_h, n_bins))


def same_bits(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Tell whether arrays are the same to the bit; every NaN is as good as any other."""
    plain = [np.where(np.isnan(values), np.nan, values).view(np.uint64) for values in (one, other)]
    return bool(np.array_equal(*plain))


def by_counts(plan: Plan, counts: NDArray[np.uint16]) -> Binned:
    """Bin counts, (pixel, frame)."""
    out = np.full((plan.n_pixels, plan.n_bins), -1.0)
    return out, decode.bin_counts(plan, slice(0, plan.n_pixels), counts, out)


def bin_loaded(
    plan: Plan, loaded: Loaded, threads: int = 1, block: int = PAGE_BLOCK
) -> tuple[NDArray[np.float64], NDArray[np.bool_], Pages]:
    """Bin a file's pages, block by block; return sums, which pixels are saturated, and the ways pages were decoded."""
    out, saturated = np.empty((plan.n_pixels, plan.n_bins)), np.empty(plan.n_pixels, bool)
    blocks: Iterator[slice] = iter(list(pixel_blocks(loaded.table.sizes, block)))

    def work() -> Pages:
        scratch, total = decode.Scratch(), Pages()
        for pixels in blocks:
            saturated[pixels], pages = decode.bin_pages(plan, pixels, loaded, out[pixels], scratch)
            total += pages
        return total

    with ThreadPoolExecutor(threads) as pool:
        pages = sum((done.result() for done in [pool.submit(work) for _ in range(threads)]), Pages())
    assert pages.own + pages.codec + pages.arrow == len(loaded.table.pages)
    return out, saturated, pages


def table_of(data: bytes, columns: NDArray[np.intp], path: Path = PATH) -> PageTable:
    """The table of some columns of a file."""
    return page_table(data, read_footer(end_of(BytesIO(data), path), len(data), path), columns, path)


def loaded_of(data: bytes, columns: NDArray[np.intp]) -> Loaded:
    """A file in memory, whose pages are such as are decoded here."""
    table = table_of(data, columns)
    assert not table.unfit
    return Loaded(PATH, np.frombuffer(data, np.uint8), table, strict=False)


def by_pages(data: bytes, plan: Plan, threads: int = 1, block: int = PAGE_BLOCK) -> Binned:
    """Bin the pages of a file that has a column a pixel."""
    out, saturated, _ = bin_loaded(plan, loaded_of(data, np.arange(plan.n_pixels)), threads, block)
    return out, saturated
