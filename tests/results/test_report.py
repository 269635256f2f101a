"""The quality report of results folders: what is in it, that it is small, the same each time, and in nobody's way."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from competition_01 import RESULTS
from conftest import CONFIG
from pages import NAMES, Made, block, clean, write

import gpucal
from gpucal.cli.main import main
from gpucal.errors import ConfigError, OutputError
from gpucal.results.causes import without_paths
from gpucal.results.verify import verify

FLAGS = ("--bin=AIRS-CH0=7", "--bin=FGS1=16")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clean observations and four odd ones. Not to be written to."""
    failed = f"planet 503 visit 0 FGS1: /home/somebody/raw/train/503/FGS1_signal.parquet: {HOSTILE}; copy it again"
    observations = clean(12) | {
        (500, 0): Made(noise=6.0),
        (501, 0): Made(without=("AIRS-CH0",)),
        (502, 1): Made(nan=6),
        (503, 0): Made(without=NAMES, error=failed),
    }
    return write(tmp_path_factory.mktemp("odd") / "out", observations)


HOSTILE = "is </script><script>alert(1)</script> & </noscript>"


def page_of(out: Path, to: Path, *more: Path) -> str:
    return gpucal.open_results(out, *more).report(to).path.read_text()


def undated(page: str) -> str:
    return re.sub(r'<time id="date">[^<]*</time>', "", page)


def test_planted_noise_comes_first_and_no_clean_one_is_listed(odd: Path, tmp_path: Path) -> None:
    report = gpucal.open_results(odd).report(tmp_path / "page.html")
    assert (report.complete, report.expected, report.looks) == (14, 16, 3)
    page = report.path.read_text()
    assert re.findall(r"data-at=\"\d+\">(planet \d+ visit \d+)<", page) == [
        "planet 500 visit 0",
        "planet 502 visit 1",
        "planet 501 visit 0",
    ]
    assert "light curves have bins without a value" in page
    assert "AIRS-CH0: is missing, as it failed" in page


@pytest.mark.parametrize("noise", [2.5, 30.0])
def test_planted_noise_is_seen_whatever_its_size(noise: float, tmp_path: Path) -> None:
    out = write(tmp_path / "out", clean(12) | {(7, 3): Made(noise=noise)})
    page = page_of(out, tmp_path / "page.html")
    assert re.findall(r"data-at=\"\d+\">([^<]*)<", page) == ["planet 7 visit 3"]


def test_numbers_are_those_of_the_table(odd: Path, tmp_path: Path) -> None:
    results = gpucal.open_results(odd)
    facts, _ = block(page_of(odd, tmp_path / "page.html"), "set")
    columns, table = facts["columns"], results.table()
    place = {key: at for at, key in enumerate(zip(columns["planet_id"], columns["visit"], strict=True))}
    assert len(place) == 16
    numbers = [name for name in table.columns[7:] if name in ("excess", "white_flux", "flags_HOT") or "_" in name]
    assert len(numbers) > 20
    for _, row in table.iterrows():
        at = place[row["planet_id"], row["visit"]]
        for name in numbers:
            told = columns.get(f"{row['detector']}_{name}", [None] * 16)[at]
            assert (told is None and np.isnan(row[name])) or told == row[name], name


def test_the_same_results_are_the_same_page(odd: Path, tmp_path: Path) -> None:
    first = page_of(odd, tmp_path / "one.html")
    again = page_of(shutil.copytree(odd, tmp_path / "elsewhere" / "out"), tmp_path / "two.html")
    assert undated(first) == undated(again)
    assert len(first) < 400_000


def test_paths_are_shown_only_when_asked_for(odd: Path, tmp_path: Path) -> None:
    out = shutil.copytree(odd, tmp_path / "secret" / "out")
    results = gpucal.open_results(out)
    hidden = results.report(tmp_path / "a.html").path.read_text()
    shown = results.report(tmp_path / "b.html", paths=True).path.read_text()
    for path in ("/home/somebody", "secret"):
        assert path not in hidden
        assert path in shown
    assert "raw/train/1/FGS1_signal.parquet" in hidden


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("/a/raw/train/5/x.parquet: is bad", "raw/train/5/x.parquet: is bad"),
        ("in /a/raw; give another", "in raw; give another"),
        ("/a/rawer/x is bad", "x is bad"),
        ("/home/me/b c/x is bad", "~/b c/x is bad"),
        ("'/etc/passwd' (/tmp/y/)", "'passwd' (y)"),
        ("raw/train/5/x.parquet or a/b", "raw/train/5/x.parquet or a/b"),
        ("~/x and </b> and 1/2", "~/x and </b> and 1/2"),
        (r"C:\x \1", r"C:\x \1"),
    ],
)
def test_paths_are_shortened(text: str, short: str) -> None:
    assert without_paths(text, {"/a/raw": "raw", "/home/me": "~", "/": "", ".": "."}) == short


def test_failures_are_grouped_by_cause_with_their_mend(odd: Path, tmp_path: Path) -> None:
    page = page_of(odd, tmp_path / "page.html")
    causes = re.findall(r'<span class="count">(\d+)</span> (.*?)</h3><p class="do">→ (.*?)</p>', page)
    escaped = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert causes == [
        ("2", f"FGS1_signal.parquet: {escaped}", "copy it again"),
        ("1", "raw/train/1/FGS1_signal.parquet: is missing", "copy it again"),
    ]
    assert "<li>planet 503 visit 0 AIRS-CH0</li><li>planet 503 visit 0 FGS1</li>" in page


@pytest.mark.parametrize("product", ["cubes", "light-curves"])
def test_figures_hold_what_the_folder_holds(product: str, tmp_path: Path) -> None:
    out = write(tmp_path / "out", clean(2, product=product, bins=30) | {(9, 0): Made(product=product, nan=24, bins=30)})
    results, page = gpucal.open_results(out), page_of(out, tmp_path / "page.html")
    facts, arrays = block(page, "o1")
    assert results.ids[1] == (100, 0)
    for name in NAMES:
        flux, error = results.light_curve_with_errors((100, 0), name)
        white = flux.sum(axis=1)
        np.testing.assert_allclose(arrays[f"{name}.white"], white / np.median(white), atol=1e-5)
        of_error = np.sqrt((error**2).sum(axis=1)) / np.median(white)
        np.testing.assert_allclose(arrays[f"{name}.error"], of_error, rtol=0.01)
        assert facts[name]["bins"] == 30
        assert facts[name]["flagged"] == len(arrays[f"{name}.flagged"]) > 0
        assert (f"{name}.image" in arrays) == (f"{name}.track.row" in arrays) == (product == "cubes")
    flux = results.light_curve((100, 0), "AIRS-CH0")
    np.testing.assert_allclose(arrays["AIRS-CH0.spectrum"], np.median(flux, axis=0), rtol=1e-3)
    shown = arrays["AIRS-CH0.map"]
    assert shown.shape == (30, 24)
    relative = flux / np.median(flux, axis=0)
    inside = (relative > np.percentile(relative, 2)) & (relative < np.percentile(relative, 98))
    np.testing.assert_allclose(shown[inside], relative[inside], atol=1e-3)
    if product == "cubes":
        np.testing.assert_allclose(arrays["AIRS-CH0.track.row"], 16.2, atol=0.2)
        np.testing.assert_allclose(arrays["FGS1.track.column"], 15.5, atol=0.2)
    _, dark = block(page, "o0")  # without a value in any curve
    assert np.isnan(dark["AIRS-CH0.white"]).all()
    assert np.isnan(dark["AIRS-CH0.map"]).all()


def test_a_damaged_file_costs_its_own_figures(odd: Path, tmp_path: Path) -> None:
    out = shutil.copytree(odd, tmp_path / "out")
    (out / "100" / "0" / "FGS1.flux.npy").write_bytes(b"x")
    page = page_of(out, tmp_path / "page.html")
    assert "FGS1.flux.npy: is damaged" in page
    at = next(at for at, key in enumerate(sorted({100, *range(101, 112), 500, 501, 502, 503})) if key == 100)
    facts, _ = block(page, f"o{at}")
    assert [*facts] == ["AIRS-CH0"]
    assert block(page, "set")[0]["columns"]["status"][at] == "FGS1 damaged"


@pytest.mark.parametrize(
    ("product", "pointing"),
    [
        ("cubes", ["FGS1_pointing_row_excess", "FGS1_pointing_column_excess", "AIRS-CH0_pointing_row_excess"]),
        ("notebook", []),  # pointing needs variances, which are not there
    ],
)
def test_folders_of_0_1_have_a_report(product: str, pointing: list[str], tmp_path: Path) -> None:
    out = shutil.copytree(RESULTS / product, tmp_path / "out")
    results = gpucal.open_results(out)
    report = results.report()
    assert report.path == out / "report.html"
    columns = block(report.path.read_text(), "set")[0]["columns"]
    assert all(value > 0 for value in columns["AIRS-CH0_white_flux"][:1])
    excesses = [key for key in columns if key.endswith("_excess")]
    assert [key for key in excesses if "_pointing_" not in key] == ["FGS1_excess", "AIRS-CH0_excess"]
    assert [key for key in excesses if "_pointing_" in key] == pointing
    table = results.table()
    done = table[(table["detector"] == "FGS1") & (table["status"] == "done")]
    told = [value for value in columns["FGS1_white_flux"] if value is not None]
    assert told == done["white_flux"].tolist()


def without_errors(out: Path) -> Path:
    """Change a folder as if 0.1 had written it: no quality in its records, no variance and no light curves."""
    for path in out.glob("*/*/*.json"):
        record = json.loads(path.read_text())
        if record["status"] == "done":
            del record["quality"]
            record["files"] = {kind: of for kind, of in record["files"].items() if kind not in ("flux", "error")}
        path.write_text(json.dumps(record))
    return out


@pytest.mark.parametrize("noise", [4.0, 30.0])
def test_planted_noise_is_listed_where_errors_are_not_known(noise: float, tmp_path: Path) -> None:
    out = without_errors(write(tmp_path / "out", clean(12) | {(7, 3): Made(noise=noise)}))
    page = page_of(out, tmp_path / "page.html")
    assert re.findall(r"data-at=\"\d+\">([^<]*)<", page) == ["planet 7 visit 3"]
    assert "white light scatters by" in page


def test_a_folder_without_errors_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = without_errors(write(tmp_path / "out", clean(2) | {(7, 3): Made(without=("FGS1",))}))
    caplog.clear()
    page_of(out, tmp_path / "page.html")
    assert ["older version without errors" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({"adc": "COMPLETE", "flat": "COMPLETE"}, "adc, flat"),
        ({"adc": "COMPLETE", "flat": "SKIPPED", "interpolate": "SKIPPED"}, "adc; left out: flat, interpolate"),
    ],
)
def test_steps_that_were_left_out_are_named_by_themselves(steps: dict[str, str], told: str, tmp_path: Path) -> None:
    out = write(tmp_path / "out", clean(1))
    for path in out.glob("*/*/*.json"):
        record = json.loads(path.read_text())
        record["provenance"]["steps"] = steps
        path.write_text(json.dumps(record))
    assert f"<dt>steps</dt><dd>{told}</dd>" in page_of(out, tmp_path / "page.html")


def test_folders_that_were_continued_have_one_report_of_all(finished: Path, source: Path, tmp_path: Path) -> None:
    one = shutil.copytree(finished, tmp_path / "one")
    shutil.rmtree(one / "17")
    out = tmp_path / "out"
    assert main(["calibrate", str(source), str(out), *FLAGS, "--variance", f"--resume-from={one}", "--report"]) == 0
    page = (out / "report.html").read_text()
    assert block(page, "set")[0]["columns"]["status"] == ["complete", "complete"]
    assert block(page, "o1")[0].keys() == {*NAMES}
    shutil.rmtree(one)
    page = page_of(out, tmp_path / "page.html")
    assert block(page, "set")[0]["columns"]["status"] == ["complete", "elsewhere"]
    assert "one is not there" in page


def test_verify_and_resume_ignore_the_file(out: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpucal.open_results(out).report()
    before = (out / "report.html").read_bytes()
    assert [*verify(out)] == []
    summary = gpucal.run(source, out, CONFIG, variance=True)
    assert (summary.done, summary.skipped, summary.failed) == (0, 4, {})
    assert (out / "report.html").read_bytes() == before
    assert main(["report", str(out), "--html"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"2 of 2 observations complete, \d need a look: {out / 'report.html'}\n", said)


def test_stars_are_joined_if_the_data_set_is_there(visits: gpucal.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gpucal.run(visits, out, CONFIG)
    star = visits.path / "train_star_info.csv"
    star.write_text("planet_id,Rs,Ts,P\n5,1.5,5000,2.25\n")
    try:
        facts, _ = block(page_of(out, tmp_path / "a.html"), "set")
        assert facts["columns"]["P"] == [2.25, 2.25]
        assert facts["columns"]["Ts"] == [5000, 5000]
        assert [one["head"] for one in facts["shown"]][-3:] == ["Ts K", "Rs R☉", "P d"]
        star.write_text("planet_id,Rs\n5,nothing\n")
        assert "P" not in block(page_of(out, tmp_path / "b.html"), "set")[0]["columns"]
    finally:
        star.unlink()
    assert "not shown: the data set has no table of them" in page_of(out, tmp_path / "c.html")


def test_where_it_goes(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = gpucal.open_results(out)
    made = results.report(tmp_path / "deep" / "page.html")
    assert made.path == tmp_path / "deep" / "page.html"
    assert re.fullmatch(
        rf"<gpucal Report {made.path}\n  size          \d+ kB\n  observations  2 of 2 complete\n  needs a look  \d>",
        repr(made),
    )
    assert 'sandbox="allow-scripts allow-downloads"' in made._repr_html_()
    assert "&lt;!doctype html&gt;" in made._repr_html_()
    made.path.unlink()
    assert "removed" in repr(made)
    assert "cannot be read" in made._repr_html_()
    with pytest.raises(OutputError, match="is a folder; give the name of a file, such as"):
        results.report(out)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: cannot be written, as it is a file"):
        results.report(tmp_path / "file" / "page.html")
    with pytest.raises(ConfigError, match="paths = 'yes': must be True or False"):
        results.report(paths="yes")  # type: ignore[arg-type]
    for words, line in (
        (["--paths"], "gpucal: --paths: is for the page; write `gpucal report OUT --html --paths`\n"),
        (["--json", "--html"], "gpucal: --json and --html: one or the other\n"),
    ):
        assert main(["report", str(out), *words]) == 2
        assert capsys.readouterr().err == line


def test_the_text_has_a_line_an_observation(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(odd)]) == 0
    head, groups, heads, *rows = capsys.readouterr().out.splitlines()
    assert head == f"{odd}: 14 observations complete, 3 items failed"
    assert groups.split() == ["FGS1", "AIRS-CH0"]
    names = "planet visit e⁻ ppm excess e⁻ ppm excess depth drift flags needs a look"
    assert " ".join(heads.split()) == names
    numbers = {int(row.split()[0]): row.split() for row in rows if row.startswith("   ")}
    assert [*numbers] == [*range(100, 112), 500, 501, 502]
    table = gpucal.open_results(odd).table().set_index(["planet_id", "detector"])
    for planet in (100, 500):
        assert float(numbers[planet][4]) == pytest.approx(table.loc[(planet, "FGS1"), "excess"], abs=0.006)
        assert float(numbers[planet][7]) == pytest.approx(table.loc[(planet, "AIRS-CH0"), "excess"], abs=0.006)
    assert "excess" in " ".join(numbers[500][11:])
    assert numbers[100][11:] == []
    assert numbers[501][-2:] == ["AIRS-CH0", "failed"]
    assert main(["report", str(odd), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told) == 32
    assert {one["status"] for one in told} == {"done", "failed"}
    failed = [one for one in told if one["status"] == "failed"]
    assert all(one["error"] and one["white_flux"] is None for one in failed)
    assert told[0].keys() == {*gpucal.open_results(odd).table()}


def test_a_run_writes_it_if_asked(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["calibrate", str(source), str(out), *FLAGS, "--report"]) == 0
    assert capsys.readouterr().out.endswith(f" s. Results: {out}. Next: open {out / 'report.html'} in a browser\n")
    assert "2 of 2" in (out / "report.html").read_text()
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    assert main(["calibrate", str(source), str(out), *FLAGS, "--report"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        f"gpucal: {out / 'report.html'}: is a folder; give the name of a file, such as "
        f"{out / 'report.html' / 'report.html'}\n"
    )
    assert captured.out.endswith(f"Next: gpucal report {out} --html\n")
