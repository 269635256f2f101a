"""A folder resumed from others notes them: readers read them too, or say where they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import many
import numpy as np
import pytest
from conftest import CONFIG, again, items_done
from distributed import Client
from many import SETTINGS, Runs
from stored import done_in, write_stacks

import gpucal
from gpucal.cli.main import main
from gpucal.errors import OutputError
from gpucal.results.other_folders import NOTE
from gpucal.results.verify import verify
from gpucal.runs import gpus

BOTH = [(17, 0), (23, 0)]
NAMES = ("AIRS-CH0", "FGS1")


@pytest.fixture(scope="module")
def resumed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``one``, with planet 23, and ``two``, with planet 17, resumed from it. Not to be written to."""
    home = tmp_path_factory.mktemp("resumed") / "home"
    again(source, home / "one", planets=[23])
    summary = again(source, home / "two", resume_from=[home / "one"])
    assert (summary.done, summary.skipped, summary.failed) == (2, 2, {})
    return home


@pytest.fixture
def home(resumed: Path, tmp_path: Path) -> Path:
    """A copy of both, and the originals out of reach: the note's paths lead nowhere but beside."""
    copy = shutil.copytree(resumed, tmp_path / "home")
    note = copy / "two" / NOTE
    note.write_text(note.read_text().replace(str(resumed), str(tmp_path / "gone")))
    return copy


def noted(out: Path) -> dict[str, list[list[object]]]:
    """Return a folder's note, by the name of each noted folder."""
    note = out / NOTE
    entries = json.loads(note.read_text())["folders"] if note.exists() else []
    return {Path(entry["path"]).name: entry["items"] for entry in entries}


def items(*planets: int) -> list[list[object]]:
    return [[planet, 0, name] for planet in planets for name in NAMES]


def test_the_note(resumed: Path) -> None:
    content = json.loads((resumed / "two" / NOTE).read_text())
    settings = json.loads((resumed / "two" / "17" / "0" / "FGS1.json").read_text())["settings"]
    one = {"path": str(resumed / "one"), "relative": "../one", "items": items(23)}
    assert content == {"format": 1, "settings": settings, "folders": [one]}
    assert not (resumed / "one" / NOTE).exists()


@pytest.mark.parametrize("place", ["where it was", "moved together", "through a link"])
def test_what_reads_the_folder_reads_the_other(
    resumed: Path, home: Path, tmp_path: Path, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if place == "through a link":
        (tmp_path / "deep" / "er").mkdir(parents=True)
        (tmp_path / "deep" / "er" / "link").symlink_to(home / "two")
    out = {
        "where it was": resumed / "two",
        "moved together": home / "two",
        "through a link": tmp_path / "deep" / "er" / "link",
    }[place]
    results = gpucal.open_results(out)
    assert (results.ids, results.failed, results.elsewhere) == (BOTH, {}, {})
    assert results["FGS1"].load().shape[0] == 2
    assert main(["report", str(out), "--json"]) == 0
    assert done_in(capfd.readouterr().out) == [(*key, name) for key in BOTH for name in NAMES]
    for argv in (["export", str(out), str(tmp_path / "npy")], ["verify", str(out)]):
        assert main(argv) == 0
    assert np.load(tmp_path / "npy" / "FGS1.signal.npy").shape[0] == 2
    if place != "where it was":  # the picture goes there
        assert main(["plot", str(out), "23"]) == 0
    captured = capfd.readouterr()
    assert f"{out}: no mismatches" in captured.out
    assert captured.err == ""


def test_an_explicit_folder_decides_first_and_doubles_nothing(
    home: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    third = shutil.copytree(home / "one", tmp_path / "third")
    record = third / "23" / "0" / "FGS1.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"error": "vanished"}))
    assert main(["report", str(home / "two"), "--resume-from", str(home / "one")]) == 0
    assert main(["report", str(home / "two"), "--resume-from", str(third)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith((str(home), "vanished"))] == [
        f"{home / 'two'}: 2 observations complete, 0 items failed",
        f"{home / 'two'}: 1 observations complete, 1 items failed",
        "vanished",
    ]
    assert [line.split()[0] for line in lines if line.strip()[:2] in ("17", "23")] == ["17", "23", "17", "23"]


def test_where_it_is_gone_one_line_says_so(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    out, line = home / "two", "1 of its observations is elsewhere (planet 23 visit 0), in "
    (home / "one").rename(tmp_path / "new")
    results = gpucal.open_results(out)
    assert results.ids == [(17, 0)]
    assert sorted(results.elsewhere) == [(23, 0, name) for name in NAMES]
    (message,) = caplog.messages
    assert message == (
        f"{out}: {line}{tmp_path / 'gone' / 'one'}; attach that folder again, or give its new place: "
        "`gpucal report OUT --resume-from DIR`, or open_results(OUT, DIR)"
    )
    capfd.readouterr()
    for argv in (["report"], ["export"], ["verify"], ["plot"]):
        more = {"export": [str(tmp_path / "npy")], "plot": ["17"]}.get(argv[0], [])
        assert main([*argv, str(out), *more]) == 0
        captured = capfd.readouterr()
        assert captured.err == f"gpucal: {message}\n"
        told = f"{out}: 1 observations complete, 0 items failed, 2 items elsewhere\n"
        assert argv != ["report"] or captured.out.startswith(told)
    caplog.clear()
    named = gpucal.open_results(out, tmp_path / "new")
    assert (named.ids, named.elsewhere, caplog.messages) == (BOTH, {}, [])
    assert main(["report", str(out), "--resume-from", str(tmp_path / "new")]) == 0
    assert capfd.readouterr().err == ""


def test_a_folder_that_holds_nothing_itself(
    source: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, out, third = shutil.copytree(finished, tmp_path / "other"), tmp_path / "out", tmp_path / "third"
    again(source, out, resume_from=[other])
    assert noted(out) == {"other": items(17, 23)}
    assert gpucal.open_results(out).ids == BOTH
    assert gpucal.open_results(tmp_path / "nothing", out).ids == BOTH
    assert again(source, third, resume_from=[out]).skipped == 4  # a folder to resume from may be such a one
    assert noted(third) == {"other": items(17, 23)}
    other.rename(tmp_path / "gone")
    for folder in (out, third):
        with pytest.raises(OutputError, match=r"2 of its observations are elsewhere \(planet 17 visit 0, planet 23 "):
            gpucal.open_results(folder)
    assert list(verify(out)) == []
    assert len([message for message in caplog.messages if "elsewhere" in message]) == 1


def test_what_the_other_folder_no_longer_holds_is_elsewhere(source: Path, home: Path) -> None:
    shutil.rmtree(home / "one" / "23" / "0")
    assert list(gpucal.open_results(home / "two").elsewhere) == [(23, 0, name) for name in NAMES]
    again(source, home / "one", CONFIG.replace(dark=False), planets=[23])
    results = gpucal.open_results(home / "two")  # of other settings
    assert (results.ids, len(results.elsewhere)) == ([(17, 0)], 2)


def test_what_the_other_folder_says_failed_has_failed(home: Path) -> None:
    record = home / "one" / "23" / "0" / "FGS1.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"error": "vanished"}))
    results = gpucal.open_results(home / "two")
    assert (results.ids, results.failed, results.elsewhere) == ([(17, 0)], {(23, 0, "FGS1"): "vanished"}, {})


def test_chains_are_followed_and_may_be_circles(
    source: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = home / "three"
    summary = again(source, three, resume_from=[home / "two"])
    assert (summary.done, summary.skipped) == (0, 4)
    assert noted(three) == {"one": items(23), "two": items(17)}
    moved = (home / "one").rename(tmp_path / "moved")
    assert gpucal.open_results(three).ids == [(17, 0)]
    # A folder that was told the new path passes it on.
    assert again(source, home / "two", resume_from=[moved]).skipped == 4
    assert gpucal.open_results(three).ids == BOTH
    caplog.clear()
    assert again(source, moved, resume_from=[three]).skipped == 4
    for folder in (moved, home / "two", three):
        assert gpucal.open_results(folder).ids == BOTH
        assert again(source, folder).done == 0
    assert noted(moved) == {"two": items(17)}
    assert caplog.messages == []


def test_a_later_run_counts_it_and_keeps_the_note(source: Path, home: Path) -> None:
    two = home / "two"
    for options in ({}, {"planets": [17]}, {"shard": (2, 2)}):
        summary = again(source, two, **options)
        assert (summary.done, summary.failed) == (0, {})
        assert (noted(two), items_done(two)) == ({"one": items(23)}, 2)
    assert json.loads((two / NOTE).read_text())["folders"][0]["path"] == str(home / "one")


def test_a_later_run_without_it_makes_what_is_asked_for_and_keeps_the_rest(
    source: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = home / "two"
    (home / "one").rename(tmp_path / "aside")
    assert again(source, two, planets=[17]).skipped == 2
    (message,) = caplog.messages
    assert message.startswith(f"{two}: 1 of its observations is elsewhere (planet 23 visit 0), in ")
    assert message.endswith("; this run calibrates those it needs again")
    assert noted(two) == {"one": items(23)}
    (tmp_path / "aside").rename(home / "one")
    assert gpucal.open_results(two).ids == BOTH
    (home / "one").rename(tmp_path / "aside")
    assert again(source, two).done == 2
    assert not (two / NOTE).exists()
    caplog.clear()
    assert gpucal.open_results(two).ids == BOTH
    assert caplog.messages == []


def test_overwriting_makes_everything_there_and_the_note_shrinks(source: Path, finished: Path, tmp_path: Path) -> None:
    other, out = shutil.copytree(finished, tmp_path / "other"), tmp_path / "out"
    again(source, out, resume_from=[other])
    assert again(source, out, overwrite=True, planets=[17]).done == 2
    assert noted(out) == {"other": items(23)}
    assert again(source, out, overwrite=True).done == 4
    assert not (out / NOTE).exists()


def test_other_settings_do_not_count_what_was_noted(source: Path, home: Path) -> None:
    two = home / "two"
    assert again(source, two, CONFIG.replace(dark=False), overwrite=True, planets=[17]).done == 2
    assert not (two / NOTE).exists()
    assert gpucal.open_results(two).ids == [(17, 0)]


def test_an_interrupted_run_notes_it(source: Path, finished: Path, tmp_path: Path) -> None:
    other, out = shutil.copytree(finished, tmp_path / "other"), tmp_path / "out"
    shutil.rmtree(other / "23")
    asked = iter([False, False])
    summary = again(source, out, resume_from=[other], stop=lambda: next(asked, True))
    assert summary.stopped == "interrupted"
    assert noted(out) == {"other": items(17)}


def test_a_killed_run_has_noted_it(source: Path, finished: Path, tmp_path: Path) -> None:
    """It is noted before the first item."""
    other, out = shutil.copytree(finished, tmp_path / "other"), tmp_path / "out"
    seen = []

    def stop() -> bool:
        seen.append(gpucal.open_results(out).ids)
        return True

    again(source, out, resume_from=[other], stop=stop)
    assert seen[0] == BOTH


def test_verify_compares_what_is_noted(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    array = home / "one" / "23" / "0" / "FGS1.signal.npy"
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    (home / "one" / "notes.txt").write_text("of no interest")
    assert list(verify(home / "two")) == [f"{array}: holds other values than its record says (SHA-256)"]
    assert main(["verify", str(home / "two")]) == 1
    array.unlink()
    assert list(verify(home / "two")) == [f"{array}: cannot be read (No such file or directory)"]


DAMAGES = {
    "no JSON": "{",
    "no note": "[1]",
    "of a later version": '{"format": 2, "settings": "", "folders": []}',
    "a path that is none": '{"format": 1, "settings": "", "folders": [{"path": 1, "relative": "", "items": []}]}',
    "an item that is none": '{"format": 1, "settings": "", "folders": [{"path": "", "relative": "", "items": [[1]]}]}',
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_note_is_one_line(source: Path, home: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    two = home / "two"
    (two / NOTE).write_text(DAMAGES[name])
    line = (
        f"{two / NOTE}: is damaged, or of a later version of gpucal; remove it, and name the folders that this one was "
        "resumed from with --resume-from"
    )
    assert main(["report", str(two)]) == 2
    assert capfd.readouterr().err == f"gpucal: {line}\n"
    assert list(verify(two)) == [line]
    with pytest.raises(OutputError, match="is damaged, or of a later version"):
        again(source, two)
    (two / NOTE).unlink()
    assert again(source, two, resume_from=[home / "one"]).skipped == 4
    assert noted(two) == {"one": items(23)}


def test_light_curves_keep_what_is_noted(source: Path, tmp_path: Path) -> None:
    options = {"variance": False, "product": "light-curves"}
    one, two = tmp_path / "one", tmp_path / "two"
    again(source, one, planets=[23], **options)
    again(source, two, resume_from=[one], **options)
    write_stacks(two)
    before = (two / "light-curves.parquet").stat().st_mtime_ns
    np.testing.assert_array_equal(np.load(two / "light-curves.ids.npy"), BOTH)
    assert again(source, two, **options).done == 0
    assert (two / "light-curves.parquet").stat().st_mtime_ns == before
    assert list(verify(two)) == []
    assert again(source, two, overwrite=True, planets=[17], **options).done == 2
    assert not (two / "light-curves.parquet").exists()
    assert list(verify(two)) == []
    assert gpucal.open_results(two).ids == [tuple(key) for key in BOTH]


def test_dask_notes_and_counts_it(source: Path, home: Path, tmp_path: Path) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        summary = again(source, tmp_path / "three", resume_from=[home / "one"], client=client)
        assert (summary.done, summary.skipped) == (2, 2)
        assert noted(tmp_path / "three") == {"one": items(23)}
        summary = again(source, home / "two", client=client)
        assert (summary.done, summary.skipped) == (0, 4)


def test_processes_for_gpus_count_it(source: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpus_for", lambda *_: ["0", "1"])
    monkeypatch.setenv("GPUCAL_BACKEND", "numpy")
    summary = again(source, home / "two")
    assert (summary.done, summary.skipped) == (0, 4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Runs(tmp_path_factory.mktemp("runs")) as ready:
        yield ready


@pytest.mark.parametrize("product", ["cubes", "light-curves"])
def test_runs_at_once_note_what_each_counts(runs: Runs, tmp_path: Path, product: str) -> None:
    source = many.make(tmp_path / "raw", range(1, 9))
    how = ("--product", product)
    for name, planets in (("one", (1, 2)), ("two", (3, 4))):
        assert runs.calibrate(source, tmp_path / name, *how, "--planet", *planets).code == 0
    out = tmp_path / "out"
    going = [
        runs.start("calibrate", source, out, *SETTINGS, *how, "--json", *shard)
        for shard in (
            ("--shard", "1/2", "--resume-from", tmp_path / "one"),
            ("--shard", "2/2", "--resume-from", tmp_path / "two"),
        )
    ]
    assert [(run.code, run.lines) for run in (one.wait() for one in going)] == [(0, [])] * 2
    again_ = runs.calibrate(source, out, *how, "--json")
    assert (again_.code, again_.lines, again_.summary["failed"]) == (0, [], {})
    assert done_in(runs.run("report", out, "--json").out) == [
        (planet, 0, name) for planet in range(1, 9) for name in NAMES
    ]
    assert runs.run("verify", out).out == f"{out}: no mismatches\n"
    assert many.litter(out) == []
