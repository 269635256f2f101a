"""The command line: exit codes, one-line errors, and bad inputs that cost one item each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BINS, CONFIG, Made

import gpucal
from gpucal import Calibration
from gpucal.backends.versions import LIBRARIES
from gpucal.cli.main import main
from gpucal.settings.detectors import ORDER
from gpucal.settings.table import SETTINGS
from gpucal.synthetic.competition import synthesize

ROOT = Path(__file__).resolve().parents[2]

FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]


@pytest.fixture(scope="module")
def partly_done(old: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with planet 23 finished and planet 17 not begun. Not to be written to."""
    out = tmp_path_factory.mktemp("partly") / "out"
    assert main(["calibrate", str(old[0]), str(out), "--planet", "23", *FLAGS]) == 0
    return out


def lines_of(text: str) -> list[str]:
    assert "Traceback" not in text
    return text.splitlines()


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path, compression="zstd")


def with_column(path: Path, index: int, values: Callable[[np.ndarray], object], kind: pa.DataType) -> None:
    def change(table: pa.Table) -> pa.Table:
        column = pa.array(values(table.column(index).to_numpy()), kind)
        return table.set_column(index, table.column_names[index], column)

    rewrite(path, change)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def overwrite(path: Path, start: float, size: int) -> None:
    data = bytearray(path.read_bytes())
    first = int(start * len(data))
    data[first : first + size] = bytes(size)
    path.write_bytes(data)


def replaced(values: np.ndarray, wrong: object) -> list[object]:
    changed: list[object] = values.tolist()
    changed[3] = wrong
    return changed


AIRS, FGS1 = "train/17/AIRS-CH0_signal.parquet", "train/17/FGS1_signal.parquet"
DARK, DEAD, FLAT = (f"train/17/AIRS-CH0_calibration/{kind}.parquet" for kind in ("dark", "dead", "flat"))
ADC = "train_adc_info.csv"
GAIN = "17,-812.345678,1.512345678"

# The damage to a file, and words of the line that must follow.
BAD_INPUTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing signal": (FGS1, Path.unlink, "signal file is missing"),
    "missing calibration file": (DARK, Path.unlink, "calibration file is missing"),
    "missing calibration folder": (DARK, lambda p: shutil.rmtree(p.parent), "calibration file is missing"),
    "one column fewer": (FGS1, lambda p: rewrite(p, lambda t: t.remove_column(5)), "has 1023 columns, expected 1024"),
    "one column more": (
        FGS1,
        lambda p: rewrite(p, lambda t: t.append_column("more", t.column(0))),
        "has 1025 columns, expected 1024",
    ),
    "the other detector's signal": (AIRS, lambda p: shutil.copy(p.parent / FGS1[9:], p), "has 1024 columns"),
    "truncated": (AIRS, lambda p: p.write_bytes(p.read_bytes()[:-1000]), "truncated or overwritten"),
    "cut at the start": (AIRS, lambda p: p.write_bytes(p.read_bytes()[1000:]), "has a page header that cannot be read"),
    "empty": (AIRS, lambda p: p.write_bytes(b""), "is not a Parquet file but an empty one"),
    # More than a row of pixels, as those outside the crop are not read, and versions of pyarrow differ in file sizes.
    "overwritten pages": (AIRS, lambda p: overwrite(p, 0.1, 150_000), "has a page of an unknown type"),
    "overwritten footer": (AIRS, lambda p: overwrite(p, 0.75, 5000), "is not a readable Parquet file: its footer"),
    "text instead": (AIRS, lambda p: p.write_text("404: not found\n" * 9), "a text that begins with '404: not found'"),
    "nulls": (FGS1, lambda p: with_column(p, 9, lambda v: replaced(v, None), pa.uint16()), "column 9 holds 1 nulls"),
    "negative counts": (
        FGS1,
        lambda p: with_column(p, 9, lambda v: replaced(v, -3), pa.int32()),
        "column 9 holds counts from -3",
    ),
    "too large counts": (
        FGS1,
        lambda p: with_column(p, 9, lambda v: replaced(v, 65_536), pa.int64()),
        "to 65536, outside 0 to 65535",
    ),
    "float signals": (FGS1, lambda p: with_column(p, 9, lambda v: v + 0.5, pa.float32()), "holds float"),
    "odd number of frames": (
        FGS1,
        lambda p: rewrite(p, lambda t: t.slice(0, 139)),
        'has 139 frames, an odd number; set odd_frames = "drop" (--odd-frames drop)',
    ),
    "fewer frames than a bin": (FGS1, lambda p: rewrite(p, lambda t: t.slice(0, 30)), "fewer than the 32 of one bin"),
    "no frames": (
        FGS1,
        lambda p: rewrite(p, lambda t: t.slice(0, 0)),
        "has 0 frames, fewer than the 32 of one bin; copy it again",
    ),
    "wrong shape of dark": (DARK, lambda p: rewrite(p, lambda t: t.slice(0, 31)), "expected (32, 356)"),
    "infinite dark": (
        DARK,
        lambda p: with_column(p, 99, lambda v: replaced(v, float("inf")), pa.float64()),
        "not finite",
    ),
    "numbers in dead": (DEAD, lambda p: shutil.copy(p.with_name("flat.parquet"), p), "expected a map of"),
    "truncated flat": (
        FLAT,
        lambda p: p.write_bytes(p.read_bytes()[:-9]),
        "is not a complete Parquet file (truncated or overwritten)",
    ),
    "zero gain": (ADC, lambda p: edit(p, GAIN, "17,-812.345678,0"), "gain is 0.0"),
    "NaN gain": (ADC, lambda p: edit(p, GAIN, "17,-812.345678,nan"), "gain is nan"),
    "text for a gain": (ADC, lambda p: edit(p, GAIN, "17,-812.345678,much"), "'much', not a number"),
    "infinite offset": (ADC, lambda p: edit(p, GAIN, "17,inf,1.5"), "offset is inf"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_costs_its_item_and_says_why_in_one_line(
    case: str, old: Made, partly_done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, damage, words = BAD_INPUTS[case]
    raw = shutil.copytree(old[0], tmp_path / "raw")
    out = shutil.copytree(partly_done, tmp_path / "out")
    damage(raw / file)
    assert main(["calibrate", str(raw), str(out), *FLAGS]) == 1
    captured = capfd.readouterr()
    (line,) = lines_of(captured.err)
    detector = "FGS1" if "FGS1" in file else "AIRS-CH0"
    assert line.startswith(f"gpucal: planet 17 visit 0 {detector}: {raw / file}: ")
    assert words in line
    assert re.search(r"; \w[^;]+$", line)
    assert captured.out.startswith("0 observations calibrated, 1 finished before, 1 failed in ")
    assert captured.out.endswith(f". Results: {out}. Next: gpucal report {out} --html\n")
    results = gpucal.open_results(out)
    assert results.ids == [(23, 0)]
    assert results.failed == {(17, 0, detector): line.removeprefix("gpucal: ")}
    other = {"FGS1": "AIRS-CH0", "AIRS-CH0": "FGS1"}[detector]
    assert np.load(out / "17" / "0" / f"{other}.signal.npy").shape[0] == 4


def test_a_planet_absent_from_the_adc_table_costs_both_detectors(
    old: Made, partly_done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = shutil.copytree(old[0], tmp_path / "raw")
    out = shutil.copytree(partly_done, tmp_path / "out")
    edit(raw / ADC, "\n17,", "\n18,")
    assert main(["calibrate", str(raw), str(out), *FLAGS]) == 1
    lines = lines_of(capfd.readouterr().err)
    assert [line.split(":")[1] for line in lines] == [f" planet 17 visit 0 {name}" for name in ORDER]
    assert all(line.endswith("planet is not in the ADC table; add it to train_adc_info.csv") for line in lines)
    assert gpucal.open_results(out).ids == [(23, 0)]


@pytest.mark.parametrize("column", ["AIRS-CH0-axis0-h", "AIRS-CH0-axis2-um", "AIRS-CH0-integration_time"])
def test_axis_info_without_a_column_costs_that_detector(
    column: str, old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = shutil.copytree(old[0], tmp_path / "raw")
    rewrite(raw / "axis_info.parquet", lambda table: table.drop_columns([column]))
    assert main(["calibrate", str(raw), str(tmp_path / "out"), *FLAGS]) == 1
    captured = capfd.readouterr()
    lines = lines_of(captured.err)
    assert len(lines) == 2
    assert all(f"axis_info.parquet: has no column '{column}'; " in line for line in lines)
    assert captured.out.startswith("0 observations calibrated, 2 failed in ")
    assert captured.out.endswith(f" s. Results: {tmp_path / 'out'}. Next: gpucal report {tmp_path / 'out'} --html\n")


# Arguments after `calibrate`, with RAW and OUT to be filled in, and words of the line.
WRONG_REQUESTS: dict[str, tuple[list[str], str]] = {
    "unknown planet": (["RAW", "OUT", "--planet", "99"], "no planet 99 among its 2 observations; see `gpucal info"),
    "results in the dataset": (["RAW", "RAW"], "is where the competition's planets are; give another folder"),
    "results among planets": (["RAW", "RAW/train/17/out"], "is where the competition's planets are"),
    "nothing to resume from": (["RAW", "OUT", "--resume-from", "OUT2"], "holds no results to resume from"),
    "no dataset": (["RAW/nothing", "OUT"], "does not exist; give the competition folder, which holds train/ or test/"),
    "a planet's folder": (["RAW/train/17", "OUT"], "no train/ or test/ folder"),
    "no such split": (["RAW", "OUT", "--split", "test"], "no test/ folder"),
    "OUT is a file": (["RAW", "RAW/axis_info.parquet"], "axis_info.parquet: is a file; OUT must be a folder"),
    "OUT below a file": (["RAW", "RAW/axis_info.parquet/out"], "axis_info.parquet: is a file; OUT must be"),
    "OUT where nobody may write": (["RAW", "/proc/gpucal"], "cannot be written"),
    "backend not there": (["RAW", "OUT", "--backend", "cupy"], 'pip install "gpucal[cuda12]" or "gpucal[cuda13]"'),
    "bin without a number": (["RAW", "OUT", "--bin", "FGS1"], "--bin FGS1: write it as DETECTOR=..., such as AIRS-CH0"),
    "bin of an endless number": (["RAW", "OUT", "--bin", f"FGS1={'9' * 5000}"], "write it as DETECTOR=..."),
    "crop of nothing": (["RAW", "OUT", "--crop", "FGS1=8:8"], "crop: FGS1 = [8, 8]: must be [first, stop]"),
    "two windows of rows": (["RAW", "OUT", "--rows", "FGS1=0:8,9:12"], "--rows FGS1=0:8,9:12: write it as"),
    "rows in words": (["RAW", "OUT", "--background-rows", "FGS1=top"], "such as AIRS-CH0=0:8,24:32"),
    "no faintest rows": (
        ["RAW", "OUT", "--background-rows", "FGS1=faintest:0"],
        "FGS1 = 'faintest:0': must be [first, stop]",
    ),
    "faintest rows in words": (["RAW", "OUT", "--background-rows", "FGS1=Faintest:six"], 'or "faintest:6"'),
    "a clip that is none": (["RAW", "OUT", "--hot-sigma", "nan"], "hot_sigma = nan: must be a number above 0"),
    "bin of nothing": (["RAW", "OUT", "--bin", "FGS1=0"], "bins: FGS1 = 0: must be an integer above 0"),
    "bin of an unknown detector": (
        ["RAW", "OUT", "--bin", "AIRS-CH1=3"],
        "no detector 'AIRS-CH1'; did you mean AIRS-CH0?",
    ),
    "no config": (["RAW", "OUT", "--config", "RAW/none.toml"], "give the path of a TOML file"),
    "config that is no TOML": (["RAW", "OUT", "--config", "RAW/axis_info.parquet"], "not a TOML file"),
    "no workers": (["RAW", "OUT", "--workers", "0"], "workers = 0"),
}


def test_bins_shorter_than_a_pair_are_a_wrong_request(
    old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), *FLAGS, "--bin", "FGS1=0.1s"]) == 2
    (line,) = lines_of(capfd.readouterr().err)
    assert line == "gpucal: bins: FGS1 = '0.1 s': a pair of reads takes 0.4 s; use longer bins"


@pytest.mark.parametrize("case", WRONG_REQUESTS)
def test_a_wrong_request_is_one_line_and_exit_2(
    case: str, old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as where it is not installed
    arguments, words = WRONG_REQUESTS[case]
    places = {"RAW": str(old[0]), "OUT": str(tmp_path / "out")}
    filled = [re.sub("^(RAW|OUT)", lambda match: places[match[1]], argument) for argument in arguments]
    assert main(["calibrate", *filled]) == 2
    captured = capfd.readouterr()
    (line,) = lines_of(captured.err)
    assert line.startswith("gpucal: ")
    assert words in line
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


# Arguments, words of the line, and the verb whose help it names.
UNPARSED: dict[str, tuple[list[str], str, str]] = {
    "no folders": (["calibrate"], "DATASET and OUT are missing; write `gpucal calibrate DATASET OUT`", " calibrate"),
    "unknown option": (
        ["calibrate", "a", "b", "--no-such", "--x=1"],
        "`gpucal calibrate` has no flag --no-such",
        " calibrate",
    ),
    "one folder too many": (["info", "a", "b"], "too many arguments: b; write `gpucal info [DATASET]`", " info"),
    "no such choice": (["calibrate", "a", "b", "--reduce", "max"], "'max' is not one of sum and mean", " calibrate"),
    "planets before the folders": (
        ["calibrate", "--planet", "17", "a", "b"],
        "'a' is not a planet id (a number such as 100468857); write DATASET and OUT before --planet",
        " calibrate",
    ),
    "no integer": (["plot", "a", "x\ny"], "is not a planet id", " plot"),
    "no size": (["calibrate", "a", "b", "--memory", "much"], "cannot read 'much' as a size", " calibrate"),
}


@pytest.mark.parametrize("case", UNPARSED)
def test_what_cannot_be_parsed_is_one_line_and_exit_2(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, words, verb = UNPARSED[case]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = lines_of(capfd.readouterr().err)
    assert line.startswith("gpucal: ")
    assert words in line
    assert line.endswith(f"; see `gpucal{verb} --help`")


def buffered(variable: str = "") -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": variable}


@pytest.mark.parametrize("words", ["info {folder}", "--show-versions", "help settings", "--help"])
def test_nobody_reads_what_it_prints(words: str, old: Made) -> None:
    """The pipe is closed before the last line, as `| head` does."""
    command = [sys.executable, "-m", "gpucal", *words.format(folder=old[0]).split()]
    read, write = os.pipe()
    os.close(read)
    try:
        run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered())
    finally:
        os.close(write)
    assert (run.returncode, run.stderr) == (141, "")


def test_debug_shows_the_traceback(old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(old[0]), str(tmp_path), "--planet", "99", "--debug"]) == 2
    shown = capfd.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n")
    assert "no planet 99" in shown.splitlines()[-1]


@pytest.mark.parametrize("verb", ["calibrate", "synth", "demo", "info", "bench", "plot"])
def test_every_argument_has_a_help_text(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    arguments = re.findall(r"^  (-.*|[A-Z]\w*.*)$(\n {20,}\S)?", capfd.readouterr().out, re.MULTILINE)
    assert len(arguments) >= 3
    assert [name for name, below in arguments if not below and not re.search(r"\S {2,}\S", name)] == []


def test_flags_beat_toml_beats_preset(new: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text('preset = "ariel2024"\nreduce = "mean"\ndark = false\n[bins]\nFGS1 = 16\n"AIRS-CH0" = 3\n')
    flags = ["--no-flat", "--reduce", "sum", "--bin", "AIRS-CH0=7", "--bad-pixels", "nan", "--dtype", "float64"]
    arguments = ["calibrate", str(new[0]), str(tmp_path / "out"), "--config", str(toml), *flags, "--json"]
    assert main(arguments) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["done"], summary["skipped"], summary["failed"]) == (4, 0, {})
    changed = {"dark": False, "flat": False, "bins": {"FGS1": 16, "AIRS-CH0": 7}, "bad_pixels": "nan"}
    expected = Calibration.preset("ariel2024").replace(**changed)
    assert Calibration.from_toml(tmp_path / "out" / "config.toml") == expected
    assert np.load(tmp_path / "out" / "5" / "1" / "AIRS-CH0.signal.npy").dtype == np.float64
    assert main([*arguments, "--preset", "ariel2024-update", "--overwrite"]) == 0
    assert Calibration.from_toml(tmp_path / "out" / "config.toml") == expected.replace(integration="updated")
    capfd.readouterr()


@pytest.mark.parametrize("step", ["mask", "linearity", "dark", "flat", "binning"])
def test_every_step_has_a_switch(step: str, old: Made, tmp_path: Path) -> None:
    out, flags = tmp_path / "out", [] if step == "binning" else FLAGS
    assert main(["calibrate", str(old[0]), str(out), "--planet", "17", f"--no-{step}", *flags]) == 0
    settings = Calibration(bins=BINS if flags else {}, integration="notebook").replace(**{step: False})
    assert Calibration.from_toml(out / "config.toml") == settings
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], "FGS1", settings, dtype="float32")
    np.testing.assert_array_equal(np.load(out / "17" / "0" / "FGS1.signal.npy"), cal.signal)


def test_the_settings_of_another_folder_are_what_it_stores_too(
    old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stored(*argv: str) -> set[str]:
        out = tmp_path / f"out-{len([*tmp_path.iterdir()])}"
        assert main(["calibrate", str(old[0]), str(out), "--planet", "17", *argv]) == 0
        return {*(out / "config.toml").read_text().partition("[output]\n")[2].splitlines()}

    first = stored(*FLAGS, "--product", "light-curves", "--dtype", "float64")
    assert first == {'dtype = "float64"', 'product = "light-curves"', "variance = false"}
    config = f"--config={tmp_path / 'out-0' / 'config.toml'}"
    assert stored(config) == first
    assert stored(config, "--product=cubes", "--dtype=float32", "--variance") == {
        *('dtype = "float32"', 'product = "cubes"', "variance = true")
    }
    assert stored(f"--config={tmp_path / 'out-2' / 'config.toml'}", "--no-variance") >= {"variance = false"}
    for text, words in (
        ("output = 3", "output = 3; [output] may have"),
        ("[output]\nkind = 1", "output: kind; [output]"),
        ("[output]\nvariance = 1", "variance = 1: must be"),
        ("[output]\nproduct = 'x'", "product = 'x'"),
    ):
        (tmp_path / "wrong.toml").write_text(text)
        assert main(["calibrate", str(old[0]), str(tmp_path / "no"), f"--config={tmp_path / 'wrong.toml'}"]) == 2
        (line,) = lines_of(capfd.readouterr().err)
        assert words in line


def test_layouts_choose_their_preset(new: Made, tmp_path: Path) -> None:
    assert main(["calibrate", str(new[0]), str(tmp_path / "out"), *FLAGS]) == 0
    expected = Calibration.preset("ariel2025").replace(bins=BINS)
    assert Calibration.from_toml(tmp_path / "out" / "config.toml") == expected


def test_info(new: Made, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(new[0])]) == 0
    text = capfd.readouterr().out
    for words in (f"gpucal {gpucal.__version__}", "numpy: available, NumPy ", "cupy: not available: ", "2025 layout"):
        assert words in text
    assert "  train 5 visit 1\n" in text


def test_info_of_many_is_short(many: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucal.cli.main._LISTED", 19)
    assert main(["info", str(many)]) == 0
    text = capfd.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith("  train ")] == [
        *["100", "101", "102", "103", "104"]
    ]
    assert f"  and 15 more in train; `gpucal info {many} --all` lists all of them\n" in text
    assert main(["info", str(many), "--all"]) == 0
    text = capfd.readouterr().out
    assert text.count("\n  train ") == 20
    assert " more in " not in text


def test_info_for_programs(new: Made, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(new[0]), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["versions"]["gpucal"] == gpucal.__version__
    assert facts["backends"]["numpy"].startswith("available, NumPy ")
    assert facts["auto"] in facts["backends"]
    assert facts["dataset"]["observations"] == [{"planet": 5, "visit": visit, "split": "train"} for visit in (0, 1)]
    assert (facts["dataset"]["layout"], facts["dataset"]["preset"]) == ("2025", "ariel2025")
    assert len(facts["dataset"]["pages"]) == 2
    assert main(["info", "--json"]) == 0
    assert "dataset" not in json.loads(capfd.readouterr().out)


def test_versions(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCAL_READER", "pyarrow")
    with pytest.raises(SystemExit) as caught:
        main(["--show-versions"])
    assert caught.value.code == 0
    said = capfd.readouterr().out
    gpucal.show_versions()
    assert capfd.readouterr().out == said
    facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in said.splitlines())
    assert facts["gpucal"] == gpucal.__version__
    assert facts["numpy"] == np.__version__
    assert facts["GPUCAL_READER"] == "pyarrow"
    assert re.fullmatch(r"\d+ of \d+", facts["cores"])
    gpucal.show_versions(into := StringIO())
    assert into.getvalue() == said


def test_versions_are_of_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [
        *project["dependencies"],
        *(one for name, of in extras.items() if name not in ("test", "test-browser", "dev", "docs") for one in of),
    ]
    assert {re.split("[>=<]", one)[0] for one in needed} <= {*LIBRARIES}


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    stated = dict(re.findall(r"^([\w-]+): *(.+)$", text, re.MULTILINE))
    assert stated["version"] == gpucal.__version__
    assert stated["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert {"cff-version", "message", "title"} <= stated.keys()
    assert re.search(r"^authors:\n  - name: \S", text, re.MULTILINE)


@pytest.mark.parametrize("verb", ["calibrate", "verify", "info"])
def test_quiet(verb: str, old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    places = {"calibrate": [old[0], out], "verify": [out], "info": [old[0]]}
    if verb != "calibrate":
        gpucal.run(old[0], out, CONFIG)
    flags = FLAGS if verb == "calibrate" else []
    assert main([verb, *map(str, places[verb]), *flags, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_quiet_keeps_errors_and_json(old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = shutil.copytree(old[0], tmp_path / "raw")
    (raw / "train" / "17" / "FGS1_signal.parquet").unlink()
    assert main(["calibrate", str(raw), str(tmp_path / "out"), *FLAGS, "--quiet", "--json"]) == 1
    told = capfd.readouterr()
    assert json.loads(told.out)["done"] == 3
    assert re.fullmatch(r"gpucal: planet 17 visit 0 FGS1: .* signal file is missing; .*\n", told.err)
    assert main(["calibrate", str(raw / "gone"), str(tmp_path / "out"), "--quiet"]) == 2
    assert "does not exist" in capfd.readouterr().err


def test_verbose(old: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), *FLAGS, "--verbose"]) == 0
    told = capfd.readouterr()
    assert told.out.startswith("2 observations calibrated in ")
    said = [line.removeprefix("gpucal: ") for line in told.err.splitlines()]
    assert said[0].startswith(f"gpucal {gpucal.__version__}, Python ")
    items = [
        re.fullmatch(r"(planet \d+ visit 0 \S+): calibrated in [\d.]+ s, \d+ pixels flagged", line) for line in said
    ]
    expected = {f"planet {planet} visit 0 {name}" for planet in (17, 23) for name in BINS}
    assert {found[1] for found in items if found} == expected
    logged = [line.split(" INFO ")[-1] for line in (tmp_path / "out" / "gpucal.log").read_text().splitlines()]
    assert [line for line in said if line in logged] == said
    assert main(["calibrate", str(old[0]), str(tmp_path / "out"), *FLAGS]) == 0
    assert capfd.readouterr().err == ""


def test_quiet_and_verbose_are_one_or_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["info", "--quiet", "--verbose"])
    assert caught.value.code == 2
    assert "--verbose: not allowed with argument --quiet" in capfd.readouterr().err


def test_help_on_settings_is_installed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["help", "settings"])
    assert caught.value.code == 0
    said = capfd.readouterr().out
    assert all(f"\n{name} : " in said for name in SETTINGS)
    with pytest.raises(SystemExit):
        main(["calibrate", "--help"])
    assert "`gpucal help settings`" in " ".join(capfd.readouterr().out.split())


def test_demo_closes_with_the_truth_and_draws(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tmp_path / "demo"), "--frames", "600"]) == 0
    text = capfd.readouterr().out
    closures = re.findall(r"bias ([+-]\d\.\d+) σ, scatter (\d\.\d+) σ over (\d+) good pixels", text)
    assert len(closures) == 2
    for bias, scatter, pixels in closures:
        values = 10 * int(pixels)
        assert abs(float(bias)) < 5 / values**0.5
        assert abs(float(scatter) - 1) < 6 / (2 * values) ** 0.5
    assert (tmp_path / "demo" / "light-curve.png").read_bytes().startswith(b"\x89PNG")


def test_demo_again_uses_what_is_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    (planet,) = synthesize(out / "raw", layout="2025", frames=120)
    assert main(["demo", str(out)]) == 0
    text = capfd.readouterr().out
    assert text.startswith(f"planet {planet} is in {out / 'raw'} already and is used again\n")
    assert text.count("bias ") == 2
    assert main(["demo", str(out), "--frames", "120"]) == 2
    assert "is not an empty folder" in lines_of(capfd.readouterr().err)[0]
    (out / "raw" / "truth" / str(planet) / "0" / "FGS1.npz").unlink()
    assert main(["demo", str(out)]) == 2
    (line,) = lines_of(capfd.readouterr().err)
    assert line.endswith("raw: is not complete; remove it and run `gpucal demo` again")


def test_bench(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    synthesize(raw, layout="2025", frames=120, planets=2)
    assert main(["bench", str(raw), "--json", "--backend", "numpy"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert (figures["observations"], figures["backend"]) == (1, "numpy")
    assert main(["bench", str(raw)]) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith(f"{raw}: 2 observations in about 0 minutes")


def test_plot_of_a_lost_array_is_one_line(partly_done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = shutil.copytree(partly_done, tmp_path / "out")
    (out / "23" / "0" / "AIRS-CH0.dq.npy").unlink()
    assert main(["plot", str(out), "23"]) == 2
    (line,) = lines_of(capfd.readouterr().err)
    assert line.endswith(f"AIRS-CH0.dq.npy: is missing; run `gpucal calibrate DATASET {out}` again")


def test_synth_calibrate_plot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw, out = str(tmp_path / "raw"), str(tmp_path / "out")
    assert main(["synth", raw, "--layout", "2025", "--frames", "120", "--seed", "7"]) == 0
    (planet,) = gpucal.open_dataset(raw).planets
    assert f"planets {planet} in {raw}" in capfd.readouterr().out
    assert main(["synth", raw]) == 2
    assert "is not an empty folder" in capfd.readouterr().err
    assert main(["plot", out, str(planet)]) == 2
    assert "holds no results" in capfd.readouterr().err
    assert main(["calibrate", raw, out]) == 0
    assert main(["plot", out, str(planet)]) == 0
    assert (tmp_path / "out" / f"{planet}-0.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", out, "1"]) == 2
    assert "no complete planet 1 visit 0" in capfd.readouterr().err


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    """In seconds of the processor, as others may have it at the same time."""
    heavy = "{'astropy', 'pandas', 'pyarrow', 'numba', 'cupy', 'dask', 'tqdm', 'matplotlib'}"
    loaded = python(f"import sys, gpucal; dir(gpucal); print(sorted({heavy} & set(sys.modules)))")
    assert loaded == "[]"
    clock = "import time; start = time.process_time(); import gpucal; print(time.process_time() - start)"
    assert min(float(python(clock)) for _ in range(5)) < 0.15


def test_the_tables_behind_flags_are_light() -> None:
    heavy = "{'numpy', 'pyarrow', 'gpucal.backends.numpy_', 'gpucal.results.export', 'gpucal.settings.calibration'}"
    loaded = python(f"import sys, gpucal.cli.parser; print(sorted({heavy} & set(sys.modules)))")
    assert loaded == "[]"


def test_help_is_quick() -> None:
    """In seconds of the processor, as another test may have the other one: 0.1 where this was written."""
    code = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-m', 'gpucal', '--help'], check=True, "
        "stdout=subprocess.DEVNULL); spent = os.times(); print(spent.children_user + spent.children_system)"
    )
    assert min(float(python(code)) for _ in range(5)) < 0.4


def test_public_names_resolve() -> None:
    assert all(getattr(gpucal, name) is not None for name in gpucal.__all__)
    with pytest.raises(AttributeError, match="no attribute 'calibrat'"):
        _ = gpucal.calibrat


@pytest.mark.parametrize(("command", "code"), [(["info"], 0), (["check", "/nowhere"], 2)], ids=["info", "error"])
def test_without_an_output_to_write_to(command: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(command) == code


@pytest.mark.parametrize("words", [["help", "settings"], ["--show-versions"]], ids=" ".join)
def test_help_without_an_output(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0


@pytest.mark.parametrize(
    "words", ["calibrate /nowhere {out} --json", "report {out} --json --html", "plot {out} --visit 1"]
)
def test_errors_are_not_printed_on_the_output(
    words: str, partly_done: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a standard error output they go nowhere: what reads JSON must not get them."""
    monkeypatch.setattr(sys, "stderr", None)
    assert main(words.format(out=partly_done).split()) == 2
    assert capfd.readouterr().out == ""


FULL = Path("/dev/full")


@pytest.mark.parametrize("variable", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", ["calibrate {raw} {out}", "report {done} --json", "help settings", "--show-versions"])
def test_an_output_that_is_full_is_one_line(
    words: str, variable: str, old: Made, partly_done: Path, tmp_path: Path
) -> None:
    flags = FLAGS if words.startswith("calibrate") else []
    command = [*words.format(raw=old[0], out=tmp_path / "out", done=partly_done).split(), *flags]
    with FULL.open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "gpucal", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=buffered(variable),
        )
    said = "gpucal: the standard output cannot be written (No space left on device); send it elsewhere"
    assert (run.returncode, run.stderr) == (1, f"{said}\n")
    assert not flags or len(gpucal.open_results(tmp_path / "out")) == 2


def test_errors_that_cannot_be_printed_change_no_exit_code() -> None:
    with FULL.open("w") as full:
        run = subprocess.run([sys.executable, "-m", "gpucal", "info", "/nowhere"], stderr=full, env=buffered())
    assert run.returncode == 2


def test_no_file_gets_the_number_of_a_closed_output() -> None:
    """What a library prints would go into it."""
    script = "import os; from gpucal.cli import main; main.main = lambda: os.write(2, b'x') - 1; main.console()"
    run = subprocess.run(["/bin/sh", "-c", 'exec "$0" -c "$1" 0<&- 2>&-', sys.executable, script])
    assert run.returncode == 0
