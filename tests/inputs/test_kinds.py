"""Files of another kind named like a Parquet file or a table: each is called by its kind, with its own mend."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from gpucal.errors import InputError
from gpucal.inputs.calibration_files import find_adc, read_adc_table, read_axis, read_frames, read_raw_frames
from gpucal.inputs.files import AGAIN
from gpucal.inputs.signal_file import open_signal
from gpucal.settings.detectors import DETECTORS

TINY = replace(DETECTORS["AIRS-CH0"], shape=(4, 9), crop=(2, 7))
KINDS = ("dark", "dead", "flat", "linear_corr", "read")


def made(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


GOOD = made(lambda stream: pq.write_table(pa.table({f"column_{k}": np.arange(9.0) for k in range(400)}), stream))


def zipped(name: str, content: bytes, how: int = zipfile.ZIP_DEFLATED) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w", how) as archive:
            archive.writestr(name, content)

    return made(write)


def tarred(stream: io.BytesIO) -> None:
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("AIRS-CH0_signal.parquet")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
LFS_MEND = "run `git lfs pull` in its repository"
SIGN_IN = "download it again, signed in: a server sent this in place of the file"
PAGE = b'<!DOCTYPE html>\n<html lang="en">\n<head><title>Kaggle: sign in</title></head><body>' + b"<p>x</p>" * 500
ROW = "planet_id,FGS1_adc_offset,FGS1_adc_gain\n7,-1000,0.4369\n"

# What a file is, how the line calls it, and its mend; {file} is its name, {wanted} what it should be.
OTHERS: Mapping[str, tuple[bytes, str, str]] = {
    "zip": (zipped("AIRS-CH0_signal.parquet", GOOD), "a ZIP archive", "rename it to {file}.zip and unzip it"),
    "zip-stored": (zipped("a.csv", b"x,y\n", zipfile.ZIP_STORED), "a ZIP archive", "rename it to {file}.zip and"),
    "zip-of-nothing": (made(lambda stream: zipfile.ZipFile(stream, "w").close()), "a ZIP archive", "rename it to"),
    "html": (PAGE, "a web page (HTML)", SIGN_IN),
    "html-after-space": (b"\xef\xbb\xbf \r\n<HTML><BODY>403 Forbidden</BODY></HTML>", "a web page (HTML)", SIGN_IN),
    "html-comment": (b"<!-- saved -->\n<html></html>", "a web page (HTML)", SIGN_IN),
    "xml": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "an XML text that begins", SIGN_IN),
    "xml-without-head": (b"<Error><Code>NoSuchKey</Code></Error>", "begins with '<Error><Code>NoSuchKey", SIGN_IN),
    "json": (b'{"code":403,"message":"Permission denied"}', """begins with '{"code":403,""", SIGN_IN),
    "json-lines": (json.dumps({"error": "expired"}, indent=2).encode(), "a JSON text", SIGN_IN),
    "lfs": (LFS, "a Git LFS pointer", LFS_MEND),
    "lfs-other-lines": (LFS.replace(b"\n", b"\r\n"), "a Git LFS pointer", LFS_MEND),
    "annex": (b"/annex/objects/SHA256E-s123--abc.parquet\n", "a git-annex pointer", "run `git annex get`"),
    "gzip": (gzip.compress(GOOD), "a gzip file", "rename it to {file}.gz and gunzip it"),
    "gzip-fast": (gzip.compress(b"x", 1), "a gzip file", "rename it to {file}.gz and gunzip it"),
    "bzip2": (bz2.compress(GOOD), "a bzip2 file", "rename it to {file}.bz2 and bunzip2 it"),
    "xz": (lzma.compress(GOOD), "an xz file", "rename it to {file}.xz and unxz it"),
    "zstd": (pa.compress(GOOD, "zstd", asbytes=True), "a Zstandard file", "rename it to {file}.zst and unzstd it"),
    "tar": (made(tarred), "a tar archive", "rename it to {file}.tar and extract it"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file", "convert it to {wanted}"),
    "npy": (made(lambda stream: np.save(stream, np.zeros(99))), "a NumPy file (.npy)", "convert it to {wanted}"),
    "npz": (made(lambda stream: np.savez(stream, raw=np.zeros(9))), "a NumPy archive (.npz)", "convert it to {wanted}"),
    "npz-packed": (made(lambda stream: np.savez_compressed(stream, np.ones(9))), "(.npz)", "convert it to {wanted}"),
    "xlsx": (zipped("[Content_Types].xml", b"<Types/>"), "an Excel workbook", "convert it to {wanted}"),
    "feather": (made(lambda s: feather.write_feather(pa.table({"a": [1]}), s)), "Arrow or Feather", "convert it to"),
    "fits": (b"SIMPLE  =                    T".ljust(2880), "a FITS file", "convert it to {wanted}"),
    "zeros": (bytes(5000), "zeros, as a download that broke off leaves", AGAIN),
    "few-zeros": (bytes(7), "zeros, as a download that broke off leaves", AGAIN),
}
ONLY_PARQUET: Mapping[str, tuple[bytes, str, str]] = {
    "csv": (ROW.encode(), "a text table (CSV)", "convert it to {wanted}"),
    "csv-wide": (
        ",".join(f"column_{k}" for k in range(11_392)).encode(),
        "a text table (CSV)",
        "convert it to {wanted}",
    ),
    "tab": (b"\xef\xbb\xbfa\tb\r\n1\t2\r\n", "a text table (CSV)", "convert it to {wanted}"),
    "text": (b"Not Found", "a text that begins with 'Not Found'", AGAIN),
    "text-of-others": ("Zugriff verweigert für Gäste\n".encode(), "begins with 'Zugriff verweigert für Gäste'", AGAIN),
    "long-text": ("é".encode() * 5000, "a text that begins with 'é", AGAIN),
    "empty": (b"", "an empty one", AGAIN),
}
NO_PARQUET = {**OTHERS, **ONLY_PARQUET}
UNKNOWN: Mapping[str, tuple[bytes, str]] = {
    "cut-off": (GOOD[:-1000], "is not a complete Parquet file (truncated or overwritten)"),
    "cut-off-early": (GOOD[:20], "is not a complete Parquet file (truncated or overwritten)"),
    "cut-off-at-once": (GOOD[:7], "is not a Parquet file (7 bytes)"),
    "end-of-zeros": (GOOD[:-2000] + bytes(2000), "is not a complete Parquet file (truncated or overwritten)"),
    "noise": (b"\x01\x02\xff\xfe" * 99, "is not a complete Parquet file (truncated or overwritten)"),
    "pickle": (pickle.dumps(np.zeros(99)), "is not a complete Parquet file (truncated or overwritten)"),
}


def calibration(path: Path) -> None:
    raw = dict.fromkeys(KINDS, GOOD) | {path.stem: read_raw(path)}
    read_frames(raw, path.parent, TINY)


def read_raw(path: Path) -> bytes:
    for kind in KINDS:
        if not (path.parent / f"{kind}.parquet").exists():
            (path.parent / f"{kind}.parquet").write_bytes(GOOD)
    return read_raw_frames(path.parent)[path.stem]


READERS: Mapping[str, Callable[[Path], object]] = {
    "AIRS-CH0_signal_0.parquet": lambda path: open_signal(path, TINY),
    "dark.parquet": calibration,
    "axis_info.parquet": lambda path: read_axis(path, TINY),
}


def line_of(path: Path, read: Callable[[Path], object]) -> str:
    """Return what the error says after the file's name."""
    with pytest.raises(InputError) as error:
        read(path)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 400
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("content", "name", "mend"), NO_PARQUET.values(), ids=NO_PARQUET)
@pytest.mark.parametrize("file", READERS)
def test_no_parquet(tmp_path: Path, file: str, content: bytes, name: str, mend: str) -> None:
    (tmp_path / file).write_bytes(content)
    line = line_of(tmp_path / file, READERS[file])
    assert line.startswith("is not a Parquet file but ")
    assert name in line
    assert f"; {mend.format(file=file, wanted='Parquet')}" in line


@pytest.mark.parametrize(("content", "problem"), UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("file", READERS)
def test_parquet_that_is_not_whole(tmp_path: Path, file: str, content: bytes, problem: str) -> None:
    (tmp_path / file).write_bytes(content)
    assert line_of(tmp_path / file, READERS[file]) == f"{problem}; {AGAIN}"


def adc(path: Path) -> object:
    return find_adc(read_adc_table(path), path, 7, DETECTORS["FGS1"])


PARQUET = {"parquet": (GOOD, "a Parquet file", "convert it to {wanted}")}


@pytest.mark.parametrize(("content", "name", "mend"), [*OTHERS.values(), *PARQUET.values()], ids=[*OTHERS, *PARQUET])
def test_no_table(tmp_path: Path, content: bytes, name: str, mend: str) -> None:
    path = tmp_path / "train_adc_info.csv"
    path.write_bytes(content)
    line = line_of(path, adc)
    assert line.startswith("is not a CSV file but ")
    assert name in line
    assert f"; {mend.format(file=path.name, wanted='CSV')}" in line


@pytest.mark.parametrize("text", [ROW, "\ufeff" + ROW, ROW.replace("\n", "\r\n"), ROW.replace(",", ", ")])
def test_a_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train_adc_info.csv"
    path.write_text(text, newline="")
    assert adc(path) is not None


BESIDE = {
    ".zip": "unzip it",
    ".gz": "gunzip it",
    ".bz2": "bunzip2 it",
    ".xz": "unxz it",
    ".zst": "unzstd it",
    ".part": "finish its download",
    ".crdownload": "finish its download",
}
MISSING = {**READERS, "dark.parquet": lambda path: read_raw_frames(path.parent), "train_adc_info.csv": adc}


@pytest.mark.parametrize(("ending", "mend"), BESIDE.items(), ids=BESIDE)
@pytest.mark.parametrize("file", MISSING)
@pytest.mark.parametrize("where", ["name", "stem"])
def test_missing_but_packed_beside(tmp_path: Path, file: str, ending: str, mend: str, where: str) -> None:
    path = tmp_path / file
    packed = path.with_name((path.name if where == "name" else path.stem) + ending)
    packed.write_bytes(b"")
    line = line_of(path, MISSING[file])
    assert line.endswith(f" is missing, but {packed.name} is there; {mend}")


def test_a_folder_that_is_packed(tmp_path: Path) -> None:
    folder = tmp_path / "FGS1_calibration_0"
    (tmp_path / "FGS1_calibration_0.zip").write_bytes(b"")
    line = line_of(folder / "dark.parquet", lambda path: read_raw_frames(path.parent))
    assert line == "calibration file is missing, but FGS1_calibration_0.zip is there; unzip it"
    folder.mkdir()  # it is there, and the file is not in it
    line = line_of(folder / "dark.parquet", lambda path: read_raw_frames(path.parent))
    assert line == f"calibration file is missing; {AGAIN}"


def test_nothing_more_is_read_of_a_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("the kind of a good file was looked for")

    monkeypatch.setattr("gpucal.inputs.parquet.footer.mistaken", never)
    path = tmp_path / "AIRS-CH0_signal.parquet"
    pd.DataFrame(np.zeros((4, 36), np.uint16), columns=[f"column_{k}" for k in range(36)]).to_parquet(path)
    assert open_signal(path, TINY).n_frames == 4
