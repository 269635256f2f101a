"""Thousands of damaged files, each decoded in every way: an error of one line, the right values, or pyarrow's own."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fuzzing import WAYS, elsewhere, outcome, read
from mutants import (
    ON_BYTES,
    ON_PARTS,
    RIGHT,
    SMALL,
    Anatomy,
    axes,
    calibration,
    corpus,
    mutant,
    table,
    written,
)
from times import TIMES

from gpucal.errors import InputError


def rounds(what: str, seeds: list[range], folder: Path) -> Counter[str]:
    """Run rounds in two processes at a time; return how often each thing became of a file."""

    def run(seeds: range) -> dict[str, int]:
        work = folder / f"{what}{seeds.start}"
        work.mkdir()
        return dict(elsewhere(what, seeds, work))

    with ThreadPoolExecutor(2) as pool:
        return sum(map(Counter, pool.map(run, seeds)), Counter[str]())


def check_signals(counts: Counter[str], n: int) -> None:
    for way in WAYS:
        shares = {became: counts.pop(f"{way}: {became}") / n for became in ("error", "right", "as pyarrow")}
        # all three, or the damage is too much or too little to say anything
        assert shares["error"] > 0.3, shares
        assert shares["right"] > 0.2, shares
        assert shares["as pyarrow"] > 0.02, shares
        # what pyarrow refuses has the undamaged values, or it would be an error
        assert counts.pop(f"{way}: right for us alone", 0) < n / 200
    assert counts == {}


@pytest.mark.parametrize("n", [300, pytest.param(1200, marks=pytest.mark.slow)])
def test_signals(tmp_path: Path, n: int) -> None:
    check_signals(rounds("signals", [range(n // 2), range(n // 2, n)], tmp_path), n)


@pytest.mark.slow
def test_many_signals(tmp_path: Path) -> None:
    each = 500 * TIMES  # 10 times that is 20,000
    starts = range(10_000, 10_000 + 4 * each, each)
    check_signals(rounds("signals", [range(start, start + each) for start in starts], tmp_path), 4 * each)


@pytest.mark.parametrize(
    "seeds",
    [
        range(900),
        range(900, 900 + 900 * TIMES),
    ],
    ids=["few", "many"],
)
def test_frames_axes_and_tables(tmp_path: Path, seeds: range) -> None:
    counts = rounds("beside", [seeds], tmp_path)
    for what, became in (("frames", "as pyarrow"), ("axes", "as pyarrow"), ("adc", "values")):
        assert counts.pop(f"{what}: {became}") > len(seeds) / 20
        assert counts.pop(f"{what}: error") > len(seeds) / 20
    assert counts == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "data"), corpus().items(), ids=corpus())
def test_whole_files(tmp_path: Path, name: str, data: bytes, way: str) -> None:
    path = tmp_path / "signal.parquet"
    for content in (data, Anatomy.of(data).data()):  # and put together again
        path.write_bytes(content)
        found = read(path, way)
        assert outcome(path, content, way, RIGHT) == "right"
        # what gpucal decodes; the rest is pyarrow's
        own = not any(word in name for word in ("gzip", "lz4", "DELTA", "BYTE_STREAM", "int64"))
        assert (found.counts is None) == (own and WAYS[way][0])


def test_mutants_differ_and_can_be_made_again() -> None:
    good = corpus() | calibration() | axes()
    seen = set()
    for seed in range(200):
        name, way, data = mutant(good, seed)
        assert mutant(good, seed) == (name, way, data)
        seen.add(way)
    assert seen == {*ON_BYTES, *ON_PARTS}
    assert len({mutant(good, seed)[2] for seed in range(200)}) > 190


CHECKED = {
    f"{compression}-{version}-{'dictionary' if dictionary else 'plain'}": written(
        table(),
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        write_page_checksum=True,
        data_page_size=8,
        write_batch_size=4,
    )
    for compression in ("none", "snappy", "zstd")
    for version in ("1.0", "2.0")
    for dictionary in (True, False)
}


@pytest.mark.parametrize("way", ["strict", "strict by pyarrow"])
@pytest.mark.parametrize("name", CHECKED)
def test_strict_sees_every_change_of_a_page_with_a_checksum(tmp_path: Path, name: str, way: str) -> None:
    path, rng = tmp_path / "signal.parquet", np.random.default_rng(5)
    path.write_bytes(CHECKED[name])
    assert outcome(path, CHECKED[name], way, RIGHT) == "right"
    unseen = 0
    for _ in range(60):
        anatomy = Anatomy.of(CHECKED[name])
        pages = anatomy.chunks[int(rng.choice(SMALL.columns()))].pages
        page = pages[int(rng.integers(len(pages)))]
        body = bytearray(page.body)
        body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
        page.body = bytes(body)
        path.write_bytes(anatomy.data())
        with pytest.raises(InputError) as error:
            read(path, way)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
        assert ("checksum" in str(error.value)) or way != "strict"
        with suppress(InputError):
            unseen += not read(path, "pages").holds(RIGHT)
    assert unseen > (5 if name.startswith("none") else 0)
