"""Wrong commands and their error lines, listed in `data/mistakes.txt`; and values with several spellings."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import BINS, Made

import gpucal
from gpucal import Calibration
from gpucal.cli.grouping import FEW, Kinds
from gpucal.cli.main import main
from gpucal.cli.parser import parsed
from gpucal.errors import ConfigError, DatasetError, OutputError
from gpucal.hints import near, near_path, near_planets
from gpucal.results.causes import kind_of
from gpucal.runs import progress
from gpucal.settings.options import settings_from

FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]

# A command after a dollar sign; below it its exit code and its one line.
CASES = dict(
    re.findall(
        r"^\$ gpucal ?(.*)\n(.*)$",
        (Path(__file__).parents[1] / "data" / "mistakes.txt").read_text("utf-8"),
        re.MULTILINE,
    )
)


@pytest.fixture(scope="module")
def desk(old: Made, new: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data, results and other files. Not to be written to."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "data").symlink_to(old[0])
    (desk / "gpucal-demo").mkdir()
    (desk / "gpucal-demo" / "raw").symlink_to(new[0])
    (desk / "empty").mkdir()
    (desk / "notes.txt").write_text("to do\n")
    (desk / "ariel.zip").write_bytes(b"PK")
    assert main(["calibrate", str(old[0]), str(desk / "results"), *FLAGS]) == 0
    return desk


def told(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process; return its exit code and its error line."""
    try:
        code: object = main(shlex.split(command))
    except SystemExit as end:
        code = end.code
    return f"{code} {capfd.readouterr().err.removesuffix(chr(10))}"


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40
    verbs = ("calibrate", "verify", "report", "synth", "demo", "info", "selftest", "bench", "export", "plot")
    for verb in verbs:
        assert any(command.split()[:1] == [verb] for command in CASES), verb


@pytest.mark.parametrize("command", CASES)
def test_a_mistake_gets_its_line(
    command: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setitem(sys.modules, "cupy", None)  # as where it is not installed
    there = sorted(desk.iterdir())
    said = told(command, capfd)
    for name in ("data", "gpucal-demo/raw"):  # links, which are followed where a data set is named
        said = said.replace(str((desk / name).resolve()), f"/desk/{name}")
    assert said == CASES[command]
    assert sorted(desk.iterdir()) == there


@pytest.mark.parametrize("argv", [[], ["-h"], ["help"], ["--help"]], ids=str)
def test_help(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    captured = capfd.readouterr()
    assert (end.value.code, captured.err) == (0, "")
    assert captured.out.startswith("usage: gpucal ")
    assert "calibrate a competition folder" in captured.out


@pytest.mark.parametrize("verb", ["calibrate", "plot"])
def test_help_of_a_verb(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = []
    for argv in (["help", verb], [verb, "--help"]):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 0
        said.append(capfd.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith(f"usage: gpucal {verb} ")


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([flag])
    assert end.value.code == 0
    assert capfd.readouterr().out == f"gpucal {gpucal.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--planet 17 --planet 23", [17, 23]),
        ("--planet 17,23", [17, 23]),
        ("--planet 17,23 --planet 5 7", [17, 23, 5, 7]),
        ("--planet 17, 23", [17, 23]),
        ("--planet=17 --planet=1103775.0", [17, 1103775]),
        ("", None),
    ],
)
def test_planets_add_up(words: str, expected: list[int] | None) -> None:
    assert parsed(["calibrate", "data", "out", *words.split()]).planet == expected


@pytest.mark.parametrize("words", [["--planet", "17", "--planet", "23"], ["--planet", "17,23"]], ids=str)
def test_all_planets_that_are_named_are_calibrated(words: list[str], old: Made, tmp_path: Path) -> None:
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), *FLAGS, *words]) == 0
    assert gpucal.open_results(tmp_path / "out").ids == [(17, 0), (23, 0)]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("2GB", 2 * 10**9), ("2gb", 2 * 10**9), ("2g", 2 * 10**9), ("900mb", 9 * 10**8), ("900 MB", 9 * 10**8)),
        *(("1.5G", 15 * 10**8), ("800MiB", 800 * 2**20), ("1gib", 2**30), ("900000000", 9 * 10**8), ("1tb", 10**12)),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parsed(["calibrate", "data", "out", "--memory", text]).memory == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8.5h", 30600), ("90m", 5400), ("90min", 5400), ("1h30m", 5400), ("1h 30m", 5400), ("5400s", 5400), ("1H", 3600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parsed(["calibrate", "data", "out", "--time-limit", text]).time_limit == seconds


def settings_of(*flags: str) -> Calibration:
    return settings_from(parsed(["calibrate", "data", "out", *flags]))


@pytest.mark.parametrize("name", ["AIRS-CH0", "AIRS", "airs", "airs-ch0", "airs_ch0", "Airs-Ch0", "AIRSCH0"])
def test_detectors_in_short(name: str) -> None:
    assert settings_of("--bin", f"{name}=5") == Calibration(bins={"AIRS-CH0": 5})
    assert settings_of("--crop", f"{name}=50:60") == Calibration(crop={"AIRS-CH0": (50, 60)})


def test_several_detectors_in_one_word() -> None:
    assert settings_of("--bin", "AIRS-CH0=5,FGS1=60") == Calibration(bins={"AIRS-CH0": 5, "FGS1": 60})
    assert settings_of("--bin", "airs=5, fgs=24s") == Calibration(bins={"AIRS-CH0": 5, "FGS1": "24 s"})
    rows = {"AIRS-CH0": [(0, 8), (24, 32)]}
    assert settings_of("--background-rows", "AIRS-CH0=0:8,24:32") == Calibration(background_rows=rows)
    both = settings_of("--background-rows", "AIRS-CH0=0:8,24:32,FGS1=0:4")
    assert both == Calibration(background_rows={**rows, "FGS1": [(0, 4)]})


def test_settings_from_python_get_the_nearest_detector() -> None:
    for name in ("airs-ch0", "AIRS-CH1"):
        with pytest.raises(ConfigError, match=r"did you mean AIRS-CH0\?"):
            Calibration(bins={name: 5})


def test_planets_in_python_get_the_nearest(desk: Path) -> None:
    dataset = gpucal.open_dataset(desk / "gpucal-demo" / "raw")
    with pytest.raises(DatasetError, match=r"no planet 5 visit 7 .*; it has visit 0 and 1$"):
        _ = dataset[5, 7]
    results = gpucal.open_results(desk / "results")
    with pytest.raises(OutputError, match=r"no complete planet 17 visit 3 in it; it has visit 0$"):
        results.light_curve((17, 3), "FGS1")


@pytest.mark.parametrize(
    ("planet", "found"),
    [(104389135, ["104389136"]), (14389136, ["104389136"]), (243035750, ["243035705"]), (7, []), ("x", [])],
)
def test_near_planets(planet: object, found: list[str]) -> None:
    assert near_planets(planet, [104389136, 243035705, 612015401]) == found


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("--planets", ["--planet", "--split"], ["--planet"]),
        ("calibrat", ["calibrate", "verify"], ["calibrate"]),
        ("gpu", ["auto", "cupy", "numba", "numpy"], ["cupy"]),
        ("CPU", ["auto", "cupy", "numba", "numpy"], ["numba"]),
        ("ariel2023", ["ariel2024", "ariel2024-update", "ariel2025"], ["ariel2024", "ariel2025"]),
        ("2025", ["ariel2024", "ariel2025"], ["ariel2025"]),
        ("--bad", ["--bad-pixels", "--bad-coefficients", "--bin"], ["--bad-pixels", "--bad-coefficients"]),
        ("synthesize", ["synth", "demo"], ["synth"]),
        ("something", ["cubes", "light-curves"], []),
        ("", ["cubes"], []),
        ("--", ["--planet"], []),
    ],
)
def test_near(word: str, known: list[str], found: list[str]) -> None:
    assert near(word, known) == found


def test_near_path(desk: Path) -> None:
    assert near_path(desk / "resluts") == [str(desk / "results")]
    assert near_path(desk / "gpucal-dmo" / "raw") == [str(desk / "gpucal-demo" / "raw")]
    assert near_path(desk / "something" / "else") == near_path(desk / "notes.txt") == []


def test_a_file_for_a_folder_in_python(old: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"file: cannot be written, as it is a file; OUT must be a folder$"):
            gpucal.run(gpucal.open_dataset(old[0]), out)


ONE = "planet 17 visit 0 FGS1: /a/17/FGS1_signal.parquet: is not a Parquet file (0 bytes); copy it again"


@pytest.mark.parametrize(
    "same",
    [
        "planet 23 visit 1 AIRS-CH0: /a b/23/AIRS-CH0_signal.parquet: is not a Parquet file (12 bytes); copy it again",
        "planet 23 visit 1 FGS1: a/23/FGS1_signal_1.parquet: is not a Parquet file (1,234 bytes); copy it again",
        "GPU 3: planet 23 visit 1 FGS1: a/23/FGS1_signal_1.parquet: is not a Parquet file (-3 bytes); copy it again",
    ],
)
def test_lines_of_one_kind(same: str) -> None:
    assert kind_of(same) == kind_of(ONE)


@pytest.mark.parametrize(
    "other",
    [
        "planet 17 visit 0 FGS1: /a/17/FGS1_signal.parquet: signal file is missing; copy it again",
        "planet 17 visit 0 FGS1: /a/17/FGS1_signal.parquet: is not a Parquet file (0 bytes); remove it",
        "planet 17 visit 0 FGS1: is not a Parquet file (0 bytes), or is it; copy it again",
        "planet 17 visit 0 FGS1: every worker that had it died; see their logs, or give them more memory",
    ],
)
def test_lines_of_other_kinds(other: str) -> None:
    assert kind_of(other) != kind_of(ONE)


def test_thousands_of_one_kind_are_a_line() -> None:
    kinds = Kinds()
    lines = [f"planet {n} visit 0 FGS1: o/{n}/x: cannot be written (No space left on device)" for n in range(2600)]
    shown = [line for line in lines if kinds.admits(logging.makeLogRecord({"msg": "%s", "args": (line,)}))]
    assert shown == lines[:FEW]
    assert [*kinds.rest("all in the log")] == [f"2,600 lines of this kind, all in the log; the first: {lines[0]}"]


@pytest.mark.parametrize("count", [2, FEW])
def test_a_few_of_one_kind_are_all_shown(count: int) -> None:
    kinds = Kinds()
    lines = [*(ONE.replace("17", str(planet)) for planet in range(count)), "something else"]
    assert [line for line in lines if kinds.is_news(line)] == lines
    assert [*kinds.rest("there")] == []
    assert [*kinds.rest("there", shown=False)] == lines


@pytest.fixture(scope="module")
def broken(old: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty planets: one detector's signal is missing, the other's is not Parquet. Not to be written to."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "axis_info.parquet").symlink_to(old[0] / "axis_info.parquet")
    (folder / "train_adc_info.csv").symlink_to(old[0] / "train_adc_info.csv")
    for planet in range(100, 130):
        (folder / "train" / str(planet)).mkdir(parents=True)
        (folder / "train" / str(planet) / "FGS1_signal.parquet").write_bytes(b"PAR1")
    return folder


def test_equal_failures_are_a_line_and_the_log_has_all(
    broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["calibrate", str(broken), str(out)]) == 1
    captured = capfd.readouterr()
    *shown, one, other = captured.err.splitlines()
    assert len(shown) == 2 * FEW
    firsts = [next(line for line in shown if f"planet 100 visit 0 {name}" in line) for name in BINS]
    said = f"gpucal: 30 lines of this kind, all of them in {out}/gpucal.log; the first: "
    assert {one, other} == {said + first.removeprefix("gpucal: ") for first in firsts}
    assert captured.out.startswith("0 observations calibrated, 30 failed in ")
    log = (out / "gpucal.log").read_text()
    assert all(log.count(f"planet {planet} visit 0 ") == 2 for planet in range(100, 130))

    assert main(["report", str(out)]) == 0
    head, *kinds = capfd.readouterr().out.splitlines()
    assert head == f"{out}: 0 observations complete, 60 items failed"
    where = f"30 lines of this kind, `gpucal report {out} --all` shows all of them; the first: planet 100 visit 0 "
    assert [line[: len(where)] for line in kinds] == [where] * 2
    assert main(["report", str(out), "--all"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 61


def test_a_bar_on_the_terminal_does_not_undo_that(
    broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "AFTER", 0.0)
    assert main(["calibrate", str(broken), str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err
    assert said.count("signal file is missing") == said.count("FGS1_signal.parquet: ") == FEW + 1
    assert "planets/min" in said
    assert "60 failures" in said


def test_equal_mismatches_are_a_line(desk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out = desk / "results", tmp_path / "out"
    for file in source.rglob("*"):
        if file.is_file() and file.suffix != ".npy":
            copy = out / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    assert main(["verify", str(out)]) == 1
    first, *_, group, last = shown = capfd.readouterr().out.splitlines()
    assert len(shown) == FEW + 2
    assert first.endswith(".npy: cannot be read (No such file or directory)")
    assert group.endswith(f"lines of this kind, `gpucal verify {out} --all` shows all of them; the first: {first}")
    assert main(["verify", str(out), "--all"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert group.startswith(f"{len(lines) - 1} lines of this kind")
    assert lines[-1] == last
