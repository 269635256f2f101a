"""Right numbers, or one line: settings that were not named, runs that leave something undone, impossible settings."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from competition_01 import PLANETS, RESULTS, SETTINGS, write_competition
from conftest import BINS, Made, broken

import gpucal
from gpucal import Calibration
from gpucal.cli.main import main
from gpucal.errors import ConfigError, RunWarning, Unstackable
from gpucal.inputs.signal_file import Signal, open_signal
from gpucal.results.export import export
from gpucal.results.records import records
from gpucal.runs.request import Request, prepare
from gpucal.runs.summary import RunFailed
from gpucal.settings.detectors import Detector

WISHES: dict[str, dict[str, object]] = {
    "nothing but bins": {},
    "no flat": {"flat": False},
    "means": {"reduce": "mean", "hot_sigma": 4},
    "2024's times": {"integration": "notebook"},
}


def as_flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{'' if value else 'no-'}{name}"
    return f"--{name.replace('_', '-')}={value}"


@pytest.mark.parametrize(
    "wish",
    [pytest.param(WISHES[name], id=name, marks=[pytest.mark.slow] * (n % 2)) for n, name in enumerate(WISHES)],
)
@pytest.mark.parametrize("layout", ["old", "new"])
def test_equal_wishes_are_equal_results(
    layout: str, wish: dict[str, object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """On the command line, in a file and in Python: the same bytes, and the same config.toml."""
    source, _ = request.getfixturevalue(layout)
    bins = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
    assert (
        main(["calibrate", str(source), str(tmp_path / "flags"), *bins, *(as_flag(*one) for one in wish.items())]) == 0
    )
    asked = Calibration(bins=BINS, **wish)
    (tmp_path / "wish.toml").write_text(asked.to_toml())
    assert main(["calibrate", str(source), str(tmp_path / "file"), f"--config={tmp_path / 'wish.toml'}"]) == 0
    dataset = gpucal.open_dataset(source)
    gpucal.run(dataset, tmp_path / "python", asked)
    gpucal.run(dataset, tmp_path / "toml", Calibration.from_toml(tmp_path / "wish.toml"))
    arrays = {path.relative_to(tmp_path / "flags") for path in (tmp_path / "flags").rglob("*.npy")}
    assert len(arrays) == 26
    for other in ("file", "python", "toml"):
        for path in [*arrays, Path("config.toml")]:
            assert (tmp_path / other / path).read_bytes() == (tmp_path / "flags" / path).read_bytes(), (other, path)


@pytest.mark.parametrize(("layout", "integration"), [("old", "notebook"), ("new", "updated")])
def test_what_is_not_named_is_the_data_set_s(layout: str, integration: str, request: pytest.FixtureRequest) -> None:
    dataset = gpucal.open_dataset(request.getfixturevalue(layout)[0])
    named = Calibration(bins=BINS, integration=integration)
    for name in ("AIRS-CH0", "FGS1"):
        obs = next(iter(dataset))
        cal = gpucal.calibrate(obs, name, Calibration(bins=BINS))
        assert cal.provenance["settings"] == named.to_dict()
        assert cal.provenance["settings_hash"] == named.content_hash
        np.testing.assert_array_equal(cal.signal, gpucal.calibrate(obs, name, named).signal)
        (streamed,) = gpucal.stream([obs], name, Calibration(bins=BINS))
        np.testing.assert_array_equal(streamed.signal, cal.signal)


def test_a_folder_of_0_1_with_the_notebook_s_times_names_what_resumes_it(tmp_path: Path) -> None:
    """0.1 took 2024's times for 2025's data where Python named other settings."""
    dataset = gpucal.open_dataset(write_competition(tmp_path / "raw"))
    out = shutil.copytree(RESULTS / "notebook", tmp_path / "out")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    asked = Calibration(odd_frames="drop", **SETTINGS)
    with pytest.raises(ConfigError) as caught:
        gpucal.run(dataset, out, asked, product="light-curves", planets=PLANETS)
    assert str(caught.value) == (
        f'{out}: holds results of other settings (integration = "notebook" there and "updated" now); '
        'name integration = "notebook" to resume it, give another folder, or --overwrite to make them again'
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert len(gpucal.open_results(out)) == 2
    named = asked.replace(integration="notebook")
    assert gpucal.run(dataset, out, named, product="light-curves", planets=PLANETS).skipped == 4
    with pytest.raises(ConfigError) as caught:
        gpucal.run(dataset, out, named.replace(integration="updated"), product="light-curves")
    assert "name integration" not in str(caught.value)


def said(caught: pytest.WarningsRecorder) -> list[str]:
    return [str(warning.message) for warning in caught if warning.category is RunWarning]


def test_a_run_warns_once_of_what_failed(source: Path, tmp_path: Path) -> None:
    dataset, config = gpucal.open_dataset(source), Calibration(bins=BINS)
    signal = source / "train" / "17" / "FGS1_signal.parquet"
    for _ in range(2):  # each run, not once a process
        with broken(signal), pytest.warns(RunWarning) as caught:
            summary = gpucal.run(dataset, tmp_path / "out", config)
        (line,) = said(caught)
        assert caught[0].filename == __file__
        assert line.startswith(f"{tmp_path / 'out'}: {summary.counts}; the first failure is planet 17 visit 0 FGS1: ")
        assert f"all are in summary.failed and {tmp_path / 'out' / 'gpucal.log'}" in line
        assert "\n" not in line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpucal.run(dataset, tmp_path / "out", config).failed == {}


def test_a_run_raises_on_failure_if_told_to(source: Path, tmp_path: Path) -> None:
    dataset, config = gpucal.open_dataset(source), Calibration(bins=BINS)
    with broken(source / "train" / "23" / "AIRS-CH0_signal.parquet"), pytest.raises(RunFailed) as caught:
        gpucal.run(dataset, tmp_path / "out", config, raise_on_failure=True)
    assert (caught.value.summary.done, len(caught.value.summary.failed)) == (3, 1)
    assert "planet 23 visit 0 AIRS-CH0: " in str(caught.value)
    assert gpucal.run(dataset, tmp_path / "out", config, raise_on_failure=True).done == 1


@pytest.mark.parametrize(
    ("how", "why"),
    [({"stop": lambda: True}, "interrupted"), ({"time_limit": 1e-9}, "time limit")],
    ids=["stop", "time_limit"],
)
def test_a_run_that_is_stopped_says_so(source: Path, tmp_path: Path, how: dict[str, object], why: str) -> None:
    dataset, out = gpucal.open_dataset(source), tmp_path / "out"
    with pytest.warns(RunWarning) as caught:
        gpucal.run(dataset, out, Calibration(bins=BINS), **how)
    (line,) = said(caught)
    assert line.startswith(f"{out}: {why}; 0 done, 0 finished before, 0 failed, 4 left; ")
    with pytest.raises(RunFailed, match=why):
        gpucal.run(dataset, out, Calibration(bins=BINS), raise_on_failure=True, **how)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_overwrites_is_not_to_be_repeated(
    overwrite: bool, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would start over, and never get further; without the flag, what was finished before counts as done."""
    how = {"overwrite": overwrite, "time_limit": 1e-9}
    with pytest.warns(RunWarning) as caught:
        gpucal.run(source, tmp_path / "out", Calibration(bins=BINS), **how)
    (line,) = said(caught)
    rest = "makes what has other settings or inputs"
    how_on = f"overwrite=True makes all again; without it, a run {rest}" if overwrite else "run it again to continue"
    assert line.endswith(f"; {how_on}")
    flags = [*(f"--bin={name}={pairs}" for name, pairs in BINS.items()), "--time-limit=0.000001s"]
    flags += ["--overwrite"] * overwrite
    assert main(["calibrate", str(source), str(tmp_path / "out"), *flags]) == 3
    how_on = f"makes all again; without --overwrite, it {rest}" if overwrite else "continues"
    assert capsys.readouterr().out.endswith(f"Next: the same command {how_on}\n")
    assert main(["check", str(source), str(tmp_path / "out"), *flags]) == 0
    then = f"then the same command {how_on}" if overwrite else "run it again to continue"
    assert f"the run will reach its --time-limit; {then}\n" in capsys.readouterr().out


def test_an_interrupt_stays_one_whatever_warnings_are(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpucal.runs.local.execute", interrupted)
    with pytest.warns(RunWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        gpucal.run(gpucal.open_dataset(source), tmp_path / "out")
    warnings.simplefilter("error")  # pytest puts filters back after a test
    with pytest.raises(KeyboardInterrupt):
        gpucal.run(gpucal.open_dataset(source), tmp_path / "out")


def test_light_curves_that_cannot_be_stacked_are_stored(source: Path, tmp_path: Path) -> None:
    """Every item has its own; only a file of all cannot be made, and that is told where one is asked for."""
    dataset, config = gpucal.open_dataset(source), Calibration(bins={"AIRS-CH0": 7, "FGS1": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = gpucal.run(dataset, tmp_path / "out", config, product="light-curves", raise_on_failure=True)
    assert (summary.done, summary.failed, summary.notes) == (4, {}, [])
    assert gpucal.open_results(tmp_path / "out").light_curve((17, 0), "FGS1").shape == (23, 1)
    with pytest.raises(Unstackable, match=r"FGS1 and AIRS-CH0 have .* bins; give them equal ones"):
        export(gpucal.open_results(tmp_path / "out"), tmp_path / "to", "npy", "light-curves")


@pytest.mark.parametrize("file", ["FGS1_signal.parquet", "FGS1_calibration/dark.parquet"])
def test_results_of_0_1_of_columns_in_another_order_are_made_again(source: Path, tmp_path: Path, file: str) -> None:
    """0.1 took columns by position, and gave wrong cubes: those are not finished."""
    raw = shutil.copytree(source, tmp_path / "raw")
    path = raw / "train" / "17" / file
    table = pq.read_table(path)
    pq.write_table(table.select(sorted(table.column_names)), path)
    inputs = "gpucal.pipeline.stream.np.diff" if "signal" in file else "gpucal.inputs.calibration_files.np.diff"
    dataset, config = gpucal.open_dataset(raw), Calibration(bins=BINS)
    with pytest.MonkeyPatch.context() as patch:
        plain = np.diff
        moved = lambda values, **axis: plain(values, **axis) if axis else np.zeros(1)  # noqa: E731
        patch.setattr(inputs, moved)  # the fingerprint that 0.1 gave; numbers on quality name their axis
        assert gpucal.run(dataset, tmp_path / "out", config).done == 4
    for record in (tmp_path / "out").glob("*/*/*.json"):  # those of 0.1 name no format
        record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "format"}))
    dataset = gpucal.open_dataset(raw)
    summary = gpucal.run(dataset, tmp_path / "out", config)
    assert (summary.done, summary.skipped) == (1, 3)
    assert gpucal.run(dataset, tmp_path / "out", config).skipped == 4


def test_the_command_line_warns_by_its_log_alone(source: Path, tmp_path: Path) -> None:
    with broken(source / "train" / "17" / "FGS1_signal.parquet"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["calibrate", str(source), str(tmp_path / "out"), "--bin=FGS1=16", "--bin=AIRS-CH0=7"]) == 1


IMPOSSIBLE = {
    "longer than the data": (
        ["--bin=AIRS-CH0=100000"],
        "bins: AIRS-CH0 = 100000: no observation has more than 30 pairs",
    ),
    "by one": (["--bin=FGS1=71"], "bins: FGS1 = 71: no observation has more than 70 pairs"),
    "seconds": (["--bin=AIRS-CH0=100000s"], "bins: AIRS-CH0 = '100000 s': no observation has more than 30 pairs"),
    "shorter than a pair": (["--bin=AIRS-CH0=0.1s"], "bins: AIRS-CH0 = '0.1 s': a pair of reads takes 4.8 s"),
    "no pair left": (
        ["--bin=AIRS-CH0=7", "--bin=FGS1=16", "--drop-last-pairs=1000"],
        "drop_last_pairs = 1000: no observation has more than 30 pairs of reads of AIRS-CH0, and a bin has 7; "
        "drop at most 23",
    ),
    "no bin left, by one": (
        ["--no-binning", "--drop-last-pairs=30"],
        "drop_last_pairs = 30: no observation has more than 30 pairs of reads of AIRS-CH0, and a bin has 1; "
        "drop at most 29",
    ),
    "too long without the last": (
        ["--bin=AIRS-CH0=7", "--bin=FGS1=80", "--drop-last-pairs=3"],
        "bins: FGS1 = 80: no observation has more than 70 pairs of reads, and the last 3 are left out; "
        "use smaller bins, as in --bin FGS1=67",
    ),
    "neither bins nor pairs": (
        ["--bin=AIRS-CH0=31", "--drop-last-pairs=30"],
        "pairs of reads, and the last 30 are left out; use smaller bins, and leave out fewer",
    ),
    "a crop outside": (["--crop=AIRS-CH0=39:400"], "crop: AIRS-CH0 = [39, 400]: must be"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_setting_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, line = IMPOSSIBLE[name]
    assert main(["calibrate", str(source), str(tmp_path / "out"), *flags]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["calibrate", str(source), str(tmp_path / "out"), "--bin=AIRS-CH0=30", "--bin=FGS1=70"]) == 0


def test_usual_settings_open_no_file_before_the_run(
    planets: gpucal.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs to be left out open one of each detector, if that is long enough."""
    opened: list[Path] = []

    def counted(path: Path, detector: Detector) -> Signal:
        opened.append(path)
        return open_signal(path, detector)

    monkeypatch.setattr("gpucal.runs.request.open_signal", counted)
    for config, files in ((Calibration(), 0), (Calibration(binning=False), 0), (Calibration(bins=BINS), 2)):
        prepare(Request(planets, tmp_path / "out", config))
        assert len(opened) == files
    opened.clear()
    prepare(Request(planets, tmp_path / "out", Calibration(bins=BINS, drop_last_pairs=23)))
    assert len(opened) == 2


def test_a_short_observation_costs_itself_alone(old: Made, tmp_path: Path) -> None:
    """Bins that fit one observation are possible; damaged and missing files have no say."""
    source = shutil.copytree(old[0], tmp_path / "raw")
    (source / "train" / "17" / "AIRS-CH0_signal.parquet").unlink()
    summary = gpucal.run(gpucal.open_dataset(source), tmp_path / "out", Calibration(bins={"AIRS-CH0": 29, "FGS1": 70}))
    assert (summary.done, [*summary.failed]) == (3, ["planet 17 visit 0 AIRS-CH0"])
    assert {record["status"] for record in records(tmp_path / "out")} == {"done", "failed"}


def test_relative_paths_stay_the_same_places(old: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the folder that is current then has other data under the same names."""
    source, _ = old
    for home in ("one", "two"):
        shutil.copytree(source, tmp_path / home / "raw")
    monkeypatch.chdir(tmp_path / "one")
    dataset = gpucal.open_dataset("raw")
    gpucal.run(dataset, "out", Calibration(bins=BINS))
    results = gpucal.open_results("out")
    assert (dataset.path, results.path) == (Path("raw"), Path("out"))
    right = results["FGS1"][0]

    monkeypatch.chdir(tmp_path / "two")
    for file in (tmp_path / "two" / "raw").rglob("*signal.parquet"):
        file.unlink()
    shutil.copytree(tmp_path / "one" / "out", "out")
    for file in Path("out").rglob("*.npy"):
        np.save(file, np.zeros_like(np.load(file)))
    assert (dataset.path, results.path) == (tmp_path / "one" / "raw", tmp_path / "one" / "out")
    np.testing.assert_array_equal(results["FGS1"][0], right)
    assert results.report().path == tmp_path / "one" / "out" / "report.html"
    assert gpucal.run(dataset, "again", Calibration(bins=BINS)).failed == {}
    np.testing.assert_array_equal(gpucal.open_results("again")["FGS1"][0], right)
    assert (tmp_path / "two" / "again").is_dir()

    copy = pickle.loads(pickle.dumps(dataset))  # as for another process, which may begin in another folder
    assert copy.path == tmp_path / "one" / "raw"
    monkeypatch.chdir(tmp_path / "one")
    assert (dataset.path, results.path) == (Path("raw"), Path("out"))
