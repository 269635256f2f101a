"""Resuming a run: changed settings, other folders, time limits, shards, and writes that fail."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import CONFIG, Made, again, broken
from stored import write_stacks

import gpucal
from gpucal.cli.main import main
from gpucal.cli.parser import parsed
from gpucal.errors import ConfigError, OutputError
from gpucal.inputs.signal_file import open_signal
from gpucal.results.export import export
from gpucal.results.verify import verify


def test_what_is_not_ours_stays(source: Path, tmp_path: Path) -> None:
    """A results folder may hold other files too."""
    files = (
        "models/fold0/net.weights.npy",
        "models/fold0/.cache.x.tmp",
        "17/0/net.weights.npy",
        "17/0/.a.lock",
        "notes.json",
    )
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert again(source, tmp_path).done == 4
    assert [name for name in files if not (tmp_path / name).is_file()] == []
    assert len(gpucal.open_results(tmp_path)) == 2


CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "step": ({"config": CONFIG.replace(dark=False)}, "dark = true there and false now"),
    "bins": ({"config": CONFIG.replace(bins={"FGS1": 17})}, "bins.FGS1 = 16 there and 17 now"),
    "dtype": ({"dtype": "float64"}, 'dtype = "float32" there and "float64" now'),
    "variance": ({"variance": False}, "variance = true there and false now"),
    "product": ({"product": "light-curves"}, 'product = "cubes" there and "light-curves" now'),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_and_done_again_when_asked_to(source: Path, out: Path, name: str) -> None:
    change, difference = CHANGES[name]
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(ConfigError) as caught:
        again(source, out, **change)
    line = str(caught.value)
    assert line.startswith(f"{out}: holds results of other settings ({difference}")
    assert line.endswith("; give another folder, or --overwrite to make them again")
    assert "\n" not in line
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert again(source, out, overwrite=True, **change).done == 4
    assert again(source, out, **change).skipped == 4


@pytest.mark.parametrize("left", [None, ""], ids=["gone", "emptied"])
def test_the_records_settings_count_where_those_of_the_folder_are_lost(
    source: Path, out: Path, left: str | None
) -> None:
    (out / "config.toml").unlink() if left is None else (out / "config.toml").write_text(left)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(ConfigError, match=r"holds results of other settings \(config.toml, which lists them, is not"):
        again(source, out, CONFIG.replace(dark=False))
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert again(source, out).skipped == 4
    assert "dark = true" in (out / "config.toml").read_text()


def test_overwriting_makes_everything_again(source: Path, out: Path) -> None:
    assert again(source, out, overwrite=True).done == 4
    assert again(source, out).skipped == 4


def test_overwriting_with_other_settings_is_gone_on_with(source: Path, out: Path) -> None:
    """After an interrupt, items made with the new settings are not made again."""
    other = CONFIG.replace(dark=False)
    assert again(source, out, other, overwrite=True, planets=[17]).done == 2
    summary = again(source, out, other)
    assert (summary.done, summary.skipped) == (2, 2)


def test_settings_may_change_where_nothing_is_finished(source: Path, tmp_path: Path) -> None:
    planet = source / "train" / "17"
    with broken(planet / "AIRS-CH0_signal.parquet"), broken(planet / "FGS1_signal.parquet"):
        assert len(again(source, tmp_path / "out", CONFIG.replace(flat=False), planets=[17]).failed) == 2
    assert again(source, tmp_path / "out").done == 4


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_write_that_fails_costs_its_item(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    lost = number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    before = {path: path.read_bytes() for path in out.glob("*/*/*.npy")}
    plain, calls = os.fsync, []

    def fsync(file: int) -> None:
        if str(Path(f"/proc/self/fd/{file}").readlink().name).startswith("17-0-FGS1.FGS1.dq.npy."):
            calls.append(file)
            if len(calls) == 1 or lost:
                raise OSError(number, os.strerror(number))
        plain(file)

    monkeypatch.setattr(os, "fsync", fsync)
    summary = again(source, out, overwrite=True)
    assert list(summary.failed) == ["planet 17 visit 0 FGS1"]
    (line,) = summary.failed.values()
    assert line.startswith("planet 17 visit 0 FGS1: ")
    assert os.strerror(number) in line
    assert ("free space or choose another folder" in line) is (number not in (errno.EFBIG, errno.EACCES))
    assert ("; raise the limit of a file's size (`ulimit -f`), or " in line) is (number == errno.EFBIG)
    assert "\n" not in line
    if lost:
        assert (summary.done, summary.left) == (0, 3)
        assert f"{out}: nothing more can be written; the 4 items still to be done need about " in summary.stopped
        assert any(message.startswith(summary.stopped) for message in caplog.messages)
    else:
        assert (summary.done, summary.left, summary.stopped) == (3, 0, "")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in out.glob("*/*/*.npy")} == before
    assert not [*out.rglob(".*")]
    assert again(source, out).done == 0  # of these settings and inputs all are there, the failed one from before
    assert gpucal.open_results(out).failed == {}


def test_a_manifest_that_cannot_be_written_costs_no_item(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(table: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "write_table", full)
    summary = again(source, tmp_path / "out")
    assert summary.done == 4
    (line,) = summary.failed.values()
    assert line.startswith(f"{tmp_path / 'out' / 'manifest.parquet'}: cannot be written (No space left on device)")
    assert len(gpucal.open_results(tmp_path / "out")) == 2


def test_items_of_another_folder_count_as_done(source: Path, finished: Path, tmp_path: Path) -> None:
    earlier = shutil.copytree(finished, tmp_path / "earlier")
    shutil.rmtree(earlier / "23")
    before = {path: path.read_bytes() for path in earlier.rglob("*.*")}
    for path in [earlier, *earlier.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    out = tmp_path / "out"
    summary = again(source, out, resume_from=[tmp_path / "earlier"])
    assert (summary.done, summary.skipped, summary.failed) == (2, 2, {})
    assert {path: path.read_bytes() for path in earlier.rglob("*.*")} == before
    assert gpucal.open_results(out).ids == [(17, 0), (23, 0)]
    both = gpucal.open_results(out, earlier)
    assert both.ids == [(17, 0), (23, 0)]
    np.testing.assert_array_equal(both["FGS1"].load(), gpucal.open_results(finished)["FGS1"].load())
    third = tmp_path / "third"
    summary = again(source, third, resume_from=[earlier, out])
    assert (summary.done, summary.skipped) == (0, 4)
    other = again(source, tmp_path / "fourth", CONFIG.replace(dark=False), resume_from=[earlier, out])
    assert (other.done, other.skipped) == (4, 0)


def test_light_curves_of_all_are_those_of_other_folders_too(source: Path, tmp_path: Path) -> None:
    options = {"variance": False, "product": "light-curves"}
    again(source, tmp_path / "one", planets=[23], **options)
    summary = again(source, tmp_path / "two", resume_from=[tmp_path / "one"], **options)
    assert (summary.done, summary.skipped, summary.failed) == (2, 2, {})
    results = gpucal.open_results(tmp_path / "two", tmp_path / "one")
    assert results.ids == [(17, 0), (23, 0)]
    export(gpucal.open_results(tmp_path / "two"), tmp_path / "to", "npy", "light-curves")
    whole = results.light_curves().astype("float32")
    np.testing.assert_array_equal(np.load(tmp_path / "to" / "light-curves.flux.npy"), whole)


def test_what_reads_a_folder_reads_those_it_was_gone_on_from(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    again(source, one, planets=[23])
    again(source, two, resume_from=[one])
    too = ["--resume-from", str(one)]
    for argv in (["plot", str(two), "23"], ["export", str(two), str(tmp_path / "npy")], ["report", str(two)]):
        alone, both = main(argv), main([*argv, *too])
        assert (alone, both) == (0, 0)
        assert main([*argv, "--resume-from", str(tmp_path / "on")]) == 2  # mistyped: nothing is left out unseen
    assert np.load(tmp_path / "npy" / "FGS1.signal.npy").shape[0] == 2
    assert capfd.readouterr().out.count("2 observations complete") == 2


def test_an_item_with_an_error_noted_in_another_folder_is_not_done(
    source: Path, finished: Path, tmp_path: Path
) -> None:
    """The other folder is not written to, so `open_results` would count the item as failed for ever."""
    earlier, out = shutil.copytree(finished, tmp_path / "earlier"), tmp_path / "out"
    record = earlier / "17" / "0" / "FGS1.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"error": "vanished"}))
    summary = again(source, out, resume_from=[earlier])
    assert (summary.done, summary.skipped) == (1, 3)
    assert gpucal.open_results(out, earlier).ids == [(17, 0), (23, 0)]


def test_an_error_in_the_later_folder_counts_until_the_item_is_found_done(
    source: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with broken(source / "train" / "17" / "FGS1_signal.parquet"):
        assert len(again(source, out, resume_from=[finished]).failed) == 1
    assert gpucal.open_results(out, finished).ids == [(23, 0)]
    assert list(gpucal.open_results(out, finished).failed) == [(17, 0, "FGS1")]
    summary = again(source, out, resume_from=[finished])
    assert (summary.done, summary.skipped) == (0, 4)
    assert gpucal.open_results(out, finished).ids == [(17, 0), (23, 0)]
    assert not (out / "17" / "0" / "FGS1.json").exists()


def test_of_several_folders_the_first_that_knows_an_item_decides(
    source: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The order is the one of `open_results`."""
    middle, out = tmp_path / "middle", tmp_path / "out"
    with broken(source / "train" / "17" / "FGS1_signal.parquet"):
        assert len(again(source, middle, resume_from=[finished]).failed) == 1
    caplog.clear()
    summary = again(source, out, resume_from=[middle, finished])
    assert (summary.done, summary.skipped, caplog.messages) == (1, 3, [])
    assert gpucal.open_results(out, middle, finished).ids == [(17, 0), (23, 0)]


def test_light_curves_of_other_folders_alone_are_sound(source: Path, tmp_path: Path) -> None:
    options = {"variance": False, "product": "light-curves"}
    again(source, tmp_path / "one", **options)
    assert again(source, tmp_path / "two", resume_from=[tmp_path / "one"], **options).skipped == 4
    write_stacks(tmp_path / "two")
    assert list(verify(tmp_path / "two")) == []
    np.save(tmp_path / "two" / "light-curves.ids.npy", [[17, 0], [17, 0]])
    assert len(list(verify(tmp_path / "two"))) == 1


def test_another_folder_of_other_settings_is_told(
    source: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again(source, tmp_path / "out", CONFIG.replace(dark=False), resume_from=[finished], planets=[17])
    (line,) = caplog.messages
    assert line == f"{finished}: nothing in it counts as done: it has other settings (dark = true there and false now)"


def test_what_is_done_elsewhere_leaves_nothing_here(source: Path, finished: Path, tmp_path: Path) -> None:
    assert again(source, tmp_path / "out", resume_from=[finished]).skipped == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.toml", "gpucal.log", "manifest.parquet", "resumed-from.json")
    }
    assert main(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("where", ["gpucal.pipeline.stream.make_plan", "gpucal.runs.local.arrays_of"])
def test_an_item_that_memory_does_not_do_for_costs_itself(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    module, _, name = where.rpartition(".")
    plain, calls = getattr(sys.modules[module], name), []

    def full(*args: object, **how: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return plain(*args, **how)

    monkeypatch.setattr(where, full)
    summary = again(source, tmp_path)
    assert summary.done == 3
    (line,) = summary.failed.values()
    assert line.startswith("planet 17 visit 0 AIRS-CH0: ran out of memory; lower --workers")


def test_names_that_are_no_text_break_nothing(source: Path, tmp_path: Path) -> None:
    theirs = tmp_path / os.fsdecode(b"ra\xff")
    shutil.copytree(source, theirs)
    (theirs / "train" / "17" / "FGS1_signal.parquet").unlink()
    summary = again(theirs, tmp_path / "out")
    assert (summary.done, len(summary.failed)) == (3, 1)
    assert list(verify(tmp_path / "out")) == []


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_nothing_to_resume_from_is_said_before_anything_is_written(source: Path, tmp_path: Path, make: object) -> None:
    make(tmp_path / "earlier")
    with pytest.raises(OutputError, match="holds no results to resume from; "):
        again(source, tmp_path / "out", resume_from=[tmp_path / "earlier"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("product", ["cubes", "light-curves"])
def test_finished_items_are_not_parsed_again(product: str, source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert again(source, first, product=product).done == 4

    def parse(*inputs: object, **how: object) -> None:
        raise AssertionError(inputs)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("gpucal.pipeline.stream.open_signal", "gpucal.inputs.dataset.read_frames"):
            patch.setattr(name, parse)
        assert again(source, first, product=product).skipped == 4
        assert again(source, second, product=product, resume_from=[first]).skipped == 4
    with pytest.MonkeyPatch.context() as patch:
        opened = []
        patch.setattr(
            "gpucal.pipeline.stream.open_signal",
            lambda path, *_, **how: opened.append(path) or open_signal(path, *_, **how),
        )
        assert again(source, first, product=product, strict=True).skipped == 4
        assert len(opened) == 4


INPUTS = [
    "train/17/FGS1_signal.parquet",
    "train/17/FGS1_calibration/dark.parquet",
    "train_adc_info.csv",
    "axis_info.parquet",
]


@pytest.mark.parametrize("name", INPUTS)
def test_what_has_another_input_is_not_finished(name: str, old: Made, tmp_path: Path) -> None:
    raw = shutil.copytree(old[0], tmp_path / "raw")
    assert again(raw, tmp_path / "out", planets=[17]).done == 2
    path = raw / name
    if name.endswith(".csv"):
        path.write_text(re.sub(r"(?m)^17,.*$", lambda row: f"{row[0].rpartition(',')[0]},1.25", path.read_text()))
    elif "axis" in name:
        table = pq.read_table(path).to_pandas()
        table["FGS1-axis0-h"] += 1.0
        table.to_parquet(path)
    else:
        pq.write_table(pq.read_table(path), path, compression="snappy")
    summary = again(raw, tmp_path / "out", planets=[17])
    assert (summary.done, summary.failed) == (1, {})


@pytest.mark.parametrize("product", ["cubes", "light-curves"])
def test_a_finished_result_outlives_its_input(product: str, old: Made, tmp_path: Path) -> None:
    """Data that were deleted, or a disk that is not mounted, cost the run that needs them, and no result."""
    source, out, later = tmp_path / "raw", tmp_path / "out", tmp_path / "later"
    shutil.copytree(old[0], source)
    how: dict[str, object] = {"product": product}
    assert again(source, out, **how).done == 4
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.parent.name == "0"}
    kept = {path: path.rename(tmp_path / str(n)) for n, path in enumerate((source / "train").rglob("*.parquet"))}
    summary = again(source, out, **how)
    assert len(summary.failed) == 4
    assert all("missing" in line for line in summary.failed.values())
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.parent.name == "0"} == before
    assert len(gpucal.open_results(out)) == 2
    assert len(again(source, later, resume_from=out, **how).failed) == 4  # nor of another folder
    assert len(gpucal.open_results(later, out)) == len(gpucal.open_results(later)) == 2

    for path, moved in kept.items():
        moved.rename(path)
    assert len(again(source, out, overwrite=True, memory=294_500_000, workers=1, **how).failed) == 4
    assert len(gpucal.open_results(out)) == 2
    assert again(source, out, **how).skipped == 4
    signal, other = (source / "train" / planet / "FGS1_signal.parquet" for planet in ("17", "23"))
    content = signal.read_bytes()
    shutil.copy(other, signal)  # of other content, as the run sees before it refuses for want of memory
    assert len(again(source, out, memory=294_500_000, workers=1, **how).failed) == 1
    assert gpucal.open_results(out).ids == [(23, 0)]
    signal.write_bytes(content)
    assert again(source, out, **how).skipped == 4
    assert len(gpucal.open_results(out)) == 2
    signal.write_bytes(signal.read_bytes()[:-100])  # other content: what was made before is no result of it
    assert len(again(source, out, **how).failed) == 1
    assert gpucal.open_results(out).ids == [(23, 0)]


def test_what_is_passed_over_does_not_count_as_slow(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three items take a second each to be skipped; the last takes no time, and is made before the limit."""
    clock, plain = [0.0], gpucal.runs.local._Work._record
    shutil.rmtree(out / "23" / "0")

    def take(work: object, outcome: object) -> None:
        clock[0] += outcome.result is None
        plain(work, outcome)

    monkeypatch.setattr(gpucal.runs.local._Work, "_record", take)
    monkeypatch.setattr(gpucal.runs.local.time, "monotonic", lambda: clock[0])
    summary = again(source, out, time_limit=2.5)
    assert (summary.done, summary.skipped, summary.left) == (2, 2, 0)


def test_time_limit_before_failures_on_the_command_line(source: Path, tmp_path: Path) -> None:
    """The exit code stays 3 while items are left, even if one fails, so that a loop continues."""
    late = ["calibrate", str(source), str(tmp_path), "--bin=AIRS-CH0=7", "--bin=FGS1=16"]
    with broken(source / "train" / "17" / "AIRS-CH0_signal.parquet"):
        assert main(late) == 1
        assert main([*late, "--time-limit", "0.000001s"]) == 3


def test_a_time_limit_leaves_the_rest(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    summary = again(source, out, time_limit=1e-6)
    assert (summary.done, summary.left, summary.stopped) == (0, 4, "time limit")
    (line,) = caplog.messages
    assert line.startswith("time limit: 0 done, 0 finished before, 0 failed, 4 left; ")
    assert line.endswith("run it again to continue")
    summary = again(source, out, time_limit=3600)
    assert (summary.done, summary.left, summary.stopped) == (4, 0, "")


def test_nothing_is_begun_that_would_end_too_late(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items take a second each, the limit is five: the run waits for items in progress and keeps the limit."""
    clock, plain = [0.0], gpucal.runs.local._Work._record

    def take(work: object, outcome: object) -> None:
        clock[0] += 1.0
        plain(work, outcome)

    many = tmp_path / "many"
    shutil.copytree(source, many)
    for planet in range(30, 40):
        shutil.copytree(many / "train" / "17", many / "train" / str(planet))
    table = (many / "train_adc_info.csv").read_text().splitlines()
    rows = [line for line in table if line.startswith("17,")]
    (many / "train_adc_info.csv").write_text(
        "\n".join(table + [line.replace("17,", f"{planet},", 1) for line in rows for planet in range(30, 40)]) + "\n"
    )
    monkeypatch.setattr(gpucal.runs.local._Work, "_record", take)
    monkeypatch.setattr(gpucal.runs.local.time, "monotonic", lambda: clock[0])
    summary = again(many, tmp_path / "out", time_limit=9.5)
    assert summary.stopped == "time limit"
    assert summary.done == clock[0] <= 9.5
    assert summary.done >= 5  # the limit less an item, and what is in flight
    assert summary.done + summary.left == 24


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan"), ["8.5h"], True])
def test_impossible_time_limits(source: Path, tmp_path: Path, limit: object) -> None:
    with pytest.raises(ConfigError, match="time_limit = "):
        again(source, tmp_path / "out", time_limit=limit)


@pytest.mark.parametrize(
    ("text", "seconds"), [("8.5h", 30600), ("90m", 5400), ("1h30m", 5400), ("20s", 20), ("1m5.5s", 65.5)]
)
def test_time_limits_on_the_command_line(text: str, seconds: float) -> None:
    arguments = parsed(["calibrate", "DATASET", "OUT", "--time-limit", text])
    assert arguments.time_limit == seconds


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--time-limit", value) for value in ("", "h", "8.5", "1d", "-3h", "0h", "5m1h")]
    + [("--shard", value) for value in ("0/2", "3/2", "1", "1/0", "a/b", "-1/2")],
)
def test_impossible_values_are_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", str(source), str(tmp_path / "out"), f"{flag}={value}"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_shards_are_everything_once(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ids = []
    for part in (1, 2, 3):
        summary = again(source, tmp_path / str(part), shard=(part, 3))
        ids += gpucal.open_results(tmp_path / str(part)).ids if summary.done else []
        assert again(source, out, shard=(part, 3)).skipped == 0
    assert sorted(ids) == gpucal.open_results(out).ids == [(17, 0), (23, 0)]
    for shard in ((0, 2), (3, 2), (1.0, 2), "0/2", (1,), 3):
        with pytest.raises(ConfigError, match=r"^shard( = |: '0/2' )"):
            again(source, out, shard=shard)


def test_the_command_line_says_how_to_go_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bins = ["--bin=AIRS-CH0=7", "--bin=FGS1=16"]
    late = ["calibrate", str(source), str(tmp_path / "out"), *bins, "--time-limit", "0.000001s", "--json"]
    assert main(late) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("gpucal: time limit: 0 done, 0 finished before, 0 failed, 4 left; finished items")
    figures = json.loads(captured.out)
    assert (figures["left"], figures["stopped"], figures["planets_per_hour"]) == (4, "time limit", 0)
    assert main(["calibrate", str(source), str(tmp_path / "out"), *bins, "--shard", "1/2"]) == 0
    assert capsys.readouterr().out.startswith("1 observation calibrated in ")
    again_from = ["--resume-from", str(tmp_path / "out")]
    assert main(["calibrate", str(source), str(tmp_path / "more"), *bins, *again_from]) == 0
    assert capsys.readouterr().out.startswith("1 observation calibrated, 1 finished before in ")
    log = (tmp_path / "out" / "gpucal.log").read_text()
    assert "time limit: 0 done" in log
    assert "INFO 2 done, 0 finished before, 0 failed" in log
    assert "planets an hour, slowest stage " in log
