"""A results folder holds one data set's results unless asked otherwise, and lies outside every data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BINS, CONFIG, Made, again, broken
from distributed import Client

import gpucal
from gpucal.cli.main import main
from gpucal.errors import ConfigError
from gpucal.results.records import records
from gpucal.runs import gpus

FLAGS = ["--variance", *(f"--bin={name}={pairs}" for name, pairs in BINS.items())]


def as_by_an_earlier_version(out: Path) -> None:
    """Change a folder's records to those of 0.1, which do not name the data set."""
    for file in out.glob("*/*/*.json"):
        record = json.loads(file.read_text())
        del record["dataset"]
        file.write_text(json.dumps(record))


def renamed(source: Path, to: Path, ids: dict[int, int]) -> Path:
    """Copy a data set's planets under other ids."""
    (to / "train").mkdir(parents=True)
    shutil.copy(source / "axis_info.parquet", to)
    table = (source / "train_adc_info.csv").read_text()
    for old, new in ids.items():
        shutil.copytree(source / "train" / str(old), to / "train" / str(new))
        table = table.replace(f"\n{old},", f"\n{new},")
    (to / "train_adc_info.csv").write_text(table)
    return to


def exchanged(source: Path, to: Path) -> Path:
    """Copy a data set with the files of its two planets exchanged: the same ids, and other data."""
    shutil.copytree(source, to)
    one, two = (to / "train" / name for name in ("17", "23"))
    one.rename(to / "aside")
    two.rename(one)
    (to / "aside").rename(two)
    return to


def content(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


OTHERS: dict[str, Callable[[Path, Path], Path]] = {
    "other ids": lambda source, to: renamed(source, to, {17: 117, 23: 123}),
    "other data of the same ids": exchanged,
}


@pytest.mark.parametrize("early", [False, True], ids=["names it", "by 0.1"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_data_set_is_refused_with_both_named(
    source: Path, out: Path, tmp_path: Path, name: str, early: bool
) -> None:
    other = OTHERS[name](source, tmp_path / "other")
    if early:
        as_by_an_earlier_version(out)
    before = content(out)
    for options in ({}, {"overwrite": True}, {"planets": [next(iter(gpucal.open_dataset(other))).planet]}):
        with pytest.raises(ConfigError) as caught:
            again(other, out, **options)
        assert str(caught.value) == (
            f"{out}: holds 2 observations of {'another data set' if early else source} (planet 17, 23), and none of "
            f"them is in {other} (2024 layout, 2 observations); give another folder, or --add to have both data sets "
            "in one"
        )
        assert content(out) == before


def test_the_command_line_refuses_it_too_and_adds_it_when_asked_to(
    source: Path, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = renamed(source, tmp_path / "other", {17: 117, 23: 123})
    before = content(out)
    assert main(["calibrate", str(other), str(out), *FLAGS]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"gpucal: {out}: holds 2 observations of {source} ")
    assert content(out) == before
    assert main(["calibrate", str(other), str(out), *FLAGS, "--add"]) == 0
    assert gpucal.open_results(out).ids == [(17, 0), (23, 0), (117, 0), (123, 0)]
    for one in (source, other):  # both are its data sets from now on
        assert again(one, out).skipped == 4
    assert capfd.readouterr().err == ""


def test_other_data_of_the_same_ids_replace_the_results_and_a_line_says_so(
    source: Path, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = exchanged(source, tmp_path / "other")
    summary = again(other, out, add=True)
    assert (summary.done, summary.skipped) == (4, 0)
    assert {record["dataset"] for record in records(out)} == {str(other)}
    assert [message for message in caplog.messages if "replaced" in message] == [
        f"{out}: 2 observations of another data set will be replaced; {other} has the same ones, "
        "such as planet 17 visit 0"
    ]


def of_two_layouts(source: Path, out: Path) -> None:
    """A visit that 2024's layout has no name for."""
    shutil.copytree(out / "17" / "0", out / "17" / "1")
    shutil.rmtree(out / "17" / "0")
    shutil.rmtree(out / "23")
    for file in (out / "17" / "1").glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"visit": 1}))


def test_a_visit_that_the_layout_has_not_is_not_in_the_data_set(source: Path, out: Path) -> None:
    of_two_layouts(source, out)
    with pytest.raises(ConfigError, match="holds 1 observation of "):
        again(source, out)


def test_another_data_set_in_the_same_place(source: Path, tmp_path: Path) -> None:
    place, out = renamed(source, tmp_path / "raw", {17: 17}), tmp_path / "out"
    assert again(place, out).done == 2
    shutil.rmtree(place)
    renamed(source, place, {23: 23})
    with pytest.raises(
        ConfigError, match=f"holds 1 observation of {place} \\(planet 17\\), and none of them is in {place} "
    ):
        again(place, out)


def moved(source: Path, to: Path) -> Path:
    return shutil.copytree(source, to)


def linked(source: Path, to: Path) -> Path:
    to.symlink_to(source)
    return to


def shrunk(source: Path, to: Path) -> Path:
    return renamed(source, to, {17: 17})


def grown(source: Path, to: Path) -> Path:
    made = renamed(source, to, {17: 117, 23: 23})
    shutil.copytree(made / "train" / "117", made / "train" / "4")
    return made


def split_up(source: Path, to: Path) -> Path:
    """Planet 17 is in test by now."""
    made = moved(source, to)
    (made / "test").mkdir()
    (made / "train" / "17").rename(made / "test" / "17")
    shutil.copy(made / "train_adc_info.csv", made / "test_adc_info.csv")
    return made


@pytest.mark.parametrize("early", [False, True], ids=["names it", "by 0.1"])
@pytest.mark.parametrize("change", [moved, linked, shrunk, grown, split_up])
def test_the_same_data_set_moved_grown_or_shrunk_is_taken(
    source: Path, out: Path, tmp_path: Path, early: bool, change: Callable[[Path, Path], Path]
) -> None:
    if early:
        as_by_an_earlier_version(out)
    other = change(source, tmp_path / "other")
    kept = [planet for planet in gpucal.open_dataset(other).planets if planet in (17, 23)]
    assert again(other, out, planets=kept).skipped == 2 * len(kept)


PARTS: dict[str, tuple[str | None, dict[str, object]]] = {
    "the other split": ("test", {}),
    "a planet that is not in it yet": (None, {"planets": [17]}),
    "a shard that is not in it yet": (None, {"shard": (2, 2)}),
}


@pytest.mark.parametrize("early", [False, True], ids=["names it", "by 0.1"])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_the_data_set_is_the_same_data_set(source: Path, tmp_path: Path, name: str, early: bool) -> None:
    whole, out = split_up(source, tmp_path / "whole"), tmp_path / "out"
    split, options = PARTS[name]
    assert again(whole, out, planets=[23]).done == 2
    if early:
        as_by_an_earlier_version(out)
    assert gpucal.run(gpucal.open_dataset(whole, split), out, CONFIG, variance=True, **options).done == 2


def test_opens_no_file_where_the_record_names_the_folder(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("gpucal.results.origin.fingerprint_of")
    assert again(source, out).skipped == 4


def test_a_damaged_file_is_no_match_and_no_crash(source: Path, out: Path, tmp_path: Path) -> None:
    other = moved(source, tmp_path / "other")
    for file in other.glob("train/*/*_signal.parquet"):
        if file.parent.name == "23" or file.name.startswith("FGS1"):
            file.write_bytes(b"PAR1" if file.parent.name == "23" else b"")
    assert len(again(other, out).failed) == 3  # by AIRS-CH0 of planet 17
    shutil.rmtree(other / "train" / "17")
    with pytest.raises(ConfigError, match="none of them is in"):
        again(other, out)


def test_what_failed_binds_no_folder(source: Path, tmp_path: Path) -> None:
    other, out = renamed(source, tmp_path / "other", {17: 117}), tmp_path / "out"
    with broken(source / "train" / "17" / "FGS1_signal.parquet"), broken(source / "train/17/AIRS-CH0_signal.parquet"):
        assert len(again(source, out, planets=[17]).failed) == 2
    assert again(other, out).done == 2
    with pytest.raises(ConfigError, match=f"holds 1 observation of {other} \\(planet 117\\)"):
        again(source, out)


def test_a_folder_to_resume_from_is_of_the_data_set_too(source: Path, out: Path, tmp_path: Path) -> None:
    """Its light curves would be among those of all."""
    other, new = renamed(source, tmp_path / "other", {17: 117}), tmp_path / "new"
    with pytest.raises(ConfigError, match="leave it out of --resume-from, or --add"):
        again(other, new, resume_from=[out])
    assert not new.exists()
    assert again(other, new, resume_from=[out], add=True).done == 2


def test_records_alone_name_the_data_set(source: Path, out: Path, tmp_path: Path) -> None:
    """Files that leave the machine hold no path of it."""
    assert {record["dataset"] for record in records(out)} == {str(source)}
    assert main(["export", str(out), str(tmp_path / "npy")]) == 0
    assert main(["export", str(out), str(tmp_path / "fits"), "--format", "fits"]) == 0
    written = [*(tmp_path / "npy").iterdir(), *(tmp_path / "fits").iterdir(), out / "manifest.parquet"]
    assert [file for file in written if bytes(source) in file.read_bytes()] == []


def test_dask_refuses_and_adds(source: Path, out: Path, tmp_path: Path) -> None:
    other = renamed(source, tmp_path / "other", {17: 117})
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        with pytest.raises(ConfigError, match="none of them is in"):
            again(other, out, client=client)
        assert again(other, out, client=client, add=True).done == 2
    assert {record["planet"]: record["dataset"] for record in records(out)}[117] == str(other)


def test_of_several_processes_the_first_refuses_and_the_others_do_not(
    source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = renamed(source, tmp_path / "other", {17: 117, 23: 123})
    monkeypatch.setattr(gpus, "gpus_for", lambda *_: ["0", "1"])
    monkeypatch.setenv("GPUCAL_BACKEND", "numpy")
    with pytest.raises(ConfigError, match="none of them is in"):
        again(other, out)
    assert again(other, out, add=True).done == 4
    assert again(source, out).skipped == 4


INSIDE: dict[str, Callable[[Path, Path], Path]] = {
    "itself": lambda raw, _: raw,
    "one level down": lambda raw, _: raw / "out",
    "several levels down": lambda raw, _: raw / "a" / "b" / "out",
    "among planets": lambda raw, _: raw / "train" / "out",
    "in a planet": lambda raw, _: raw / "train" / "17" / "out",
    "by way of its parent": lambda raw, aside: aside / ".." / raw.name / "out",
    "through a link to it": lambda raw, aside: linked(raw, aside / "link") / "out",
    "through a link that leads nowhere yet": lambda raw, aside: linked(raw / "out", aside / "link"),
    "in a split that is elsewhere": lambda raw, aside: (raw / "test").resolve() / "out",
    "in a planet that is elsewhere": lambda raw, aside: (raw / "train" / "23").resolve() / "out",
}


@pytest.mark.parametrize("name", INSIDE)
def test_results_inside_the_data_set_are_refused(old: Made, tmp_path: Path, name: str) -> None:
    raw, aside = tmp_path / "raw", tmp_path / "aside"
    renamed(old[0], raw, {17: 17})
    for folder in (aside / "test", aside / "23"):
        folder.mkdir(parents=True)
    (raw / "test").symlink_to(aside / "test")
    (raw / "train" / "23").symlink_to(aside / "23")
    (aside / "23" / "notes.txt").touch()  # an empty folder is not an observation
    shutil.copy(raw / "train_adc_info.csv", raw / "test_adc_info.csv")
    out = INSIDE[name](raw, aside)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        again(raw, out)
    assert str(caught.value) == (
        f"{out}: is where the competition's planets are; give another folder for the results, outside {raw}"
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["npy", "zarr", "fits"])
@pytest.mark.parametrize("to", ["out", "train/17/a/b"])
def test_an_export_inside_the_data_set_is_refused(old: Made, tmp_path: Path, form: str, to: str) -> None:
    raw = renamed(old[0], tmp_path / "raw", {17: 17})
    again(raw, tmp_path / "out")
    (tmp_path / "link").symlink_to(raw)
    for target in (raw / to, tmp_path / "link" / to):
        assert main(["export", str(tmp_path / "out"), str(target), "--format", form]) == 2
        assert not target.exists()


BESIDE: dict[str, Callable[[Path], Path]] = {
    "beside it": lambda raw: raw.parent / "out",
    "its parent": lambda raw: raw.parent,
    "a name that begins the same": lambda raw: raw.with_name("raw2"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_results_beside_the_data_set_are_not(old: Made, tmp_path: Path, name: str) -> None:
    raw = tmp_path / "demo" / "raw"
    renamed(old[0], raw, {17: 17})
    assert again(raw, BESIDE[name](raw)).done == 2
