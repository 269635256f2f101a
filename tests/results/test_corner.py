"""The corner of a results folder: what runs keep there while they work, and what they clear away."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import CONFIG, again

import gpucal
from gpucal.cli.main import main
from gpucal.errors import OutputError
from gpucal.results.verify import verify
from gpucal.results.writer import Store
from gpucal.settings.ids import ItemId

CURVES = {"variance": False, "product": "light-curves"}
ITEM, OTHER = ItemId(17, 0, "FGS1"), ItemId(23, 0, "AIRS-CH0")


def hidden(out: Path) -> set[str]:
    names = {str(path.relative_to(out)) for path in out.rglob("*")}
    return {name for name in names if name.startswith(".") or "/." in name}


def touch(out: Path, *names: str) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")


@pytest.mark.parametrize("options", [{}, CURVES], ids=["cubes", "light-curves"])
def test_everything_is_written_there_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """And of what is written, nothing has a name that is read before it is on the disk."""
    out, plain, written = tmp_path / "out", os.fsync, list[Path]()

    def fsync(file: int) -> None:
        written.append(Path(f"/proc/self/fd/{file}").readlink())
        plain(file)

    monkeypatch.setattr(os, "fsync", fsync)
    assert again(source, out, **options).done == 4
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "gpucal.log"]
    assert len(written) == len(files)
    assert {path.parent for path in written} == {out / ".gpucal"}
    assert hidden(out) == set()


LEFT = (
    ".gpucal/all.lock",
    ".gpucal/all.manifest.parquet.0123.tmp",
    ".gpucal/settings.lock",
    ".gpucal/17-0-FGS1.lock",
    ".gpucal/17-0-FGS1.FGS1.dq.npy.0123.tmp",
    ".gpucal/23-0-AIRS-CH0.AIRS-CH0.json.4567.tmp",
)
LEFT_BY_01 = (
    ".config.toml.lock",
    ".manifest.parquet.lock",
    ".manifest.parquet.0123.tmp",
    "17/0/.FGS1.lock",
    "17/0/.FGS1.dq.npy.0123.tmp",
    "23/0/.AIRS-CH0.json.4567.tmp",
)


@pytest.mark.parametrize("left", [LEFT, LEFT_BY_01, LEFT + LEFT_BY_01], ids=["this", "0.1", "both"])
def test_what_killed_runs_left_is_cleared_away(source: Path, out: Path, left: tuple[str, ...]) -> None:
    touch(out, *left)
    assert again(source, out, planets=[17]).skipped == 2
    assert hidden(out) == set()
    assert [*verify(out)] == []


@pytest.mark.parametrize("item", [ITEM, OTHER], ids=str)
def test_arrays_without_a_record_are_cleared_away(source: Path, out: Path, item: ItemId) -> None:
    (out / f"{item.path}.json").unlink()
    (other,) = {17, 23} - {item.planet}
    assert again(source, out, planets=[other]).skipped == 2
    assert [*out.glob(f"{item.path}.*")] == []
    assert [*verify(out)] == []


@pytest.mark.parametrize("item", [ITEM, OTHER], ids=str)
def test_what_another_run_is_writing_stays(source: Path, out: Path, item: ItemId) -> None:
    name = item.path.replace("/", "-")
    temporary, array = f".gpucal/{name}.{item.detector}.dq.npy.0123.tmp", f"{item.path}.dq.npy"
    with closing(Store(out)) as another:
        assert another.claim(item)
        touch(out, temporary)
        (out / f"{item.path}.json").unlink()  # it is renaming its files at this moment
        (other,) = {17, 23} - {item.planet}
        assert again(source, out, planets=[other]).skipped == 2
        assert hidden(out) == {".gpucal", temporary, f".gpucal/{name}.lock"}
        assert (out / array).is_file()
    assert again(source, out).done == 1
    assert hidden(out) == set()


def test_what_a_run_of_0_1_is_writing_stays(source: Path, out: Path) -> None:
    touch(out, *LEFT_BY_01)
    with (out / "17/0/.FGS1.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert again(source, out).skipped == 4
        assert hidden(out) == {"17/0/.FGS1.lock", "17/0/.FGS1.dq.npy.0123.tmp"}
    assert again(source, out).skipped == 4
    assert hidden(out) == set()


def test_what_is_not_ours_stays(source: Path, out: Path) -> None:
    files = {".gpucal/notes.txt", ".gpucal/folder/x.lock", "17/.FGS1.lock", ".cache"}
    touch(out, *files)
    assert again(source, out).skipped == 4
    assert hidden(out) == {".gpucal", ".gpucal/folder", *files}


def test_readers_do_not_look_there(source: Path, out: Path, tmp_path: Path) -> None:
    touch(out, *LEFT, ".gpucal/17/0/FGS1.json", ".gpucal/config.toml")
    before = hidden(out)
    assert [*verify(out)] == []
    assert main(["export", str(out), str(tmp_path / "npy")]) == 0
    assert gpucal.open_results(out).ids == [(17, 0), (23, 0)]
    flags = [f"--bin={name}={pairs}" for name, pairs in dict(CONFIG.bins).items()]
    assert main(["check", str(source), str(out), "--variance", *flags]) == 0
    assert again(source, tmp_path / "next", resume_from=[out]).skipped == 4
    assert hidden(out) == before


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.mark.parametrize("linked", ["17", "17/0"])
def test_a_link_to_another_disk_is_followed(source: Path, tmp_path: Path, elsewhere: Path, linked: str) -> None:
    """No file can be renamed from one disk to another."""
    out = tmp_path / "out"
    (out / linked).parent.mkdir(parents=True)
    (out / linked).symlink_to(elsewhere)
    assert again(source, out).done == 4
    assert [*verify(out)] == []
    assert hidden(out) == set()
    assert again(source, out, overwrite=True, planets=[17]).done == 2
    touch(out, "17/0/.FGS1.dq.npy.0123.tmp")
    assert again(source, out).skipped == 4
    assert hidden(out) == set()
    assert {path.suffix for path in elsewhere.rglob("*") if path.is_file()} == {".json", ".npy"}


def test_a_folder_may_be_reached_through_a_link(source: Path, finished: Path, tmp_path: Path) -> None:
    real = shutil.copytree(finished, tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with closing(Store(real)) as another:
        assert another.claim(ITEM)
        assert not Store(tmp_path / "link").claim(ITEM)
    assert again(source, tmp_path / "link", overwrite=True).done == 4
    assert hidden(real) == set()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_serves_one_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    out = tmp_path / "out"
    assert again(source, out).done == 4
    assert caplog.messages == [f"{out}: its file system has no locks; start no second run on this folder"]
    touch(out, *LEFT)
    assert again(source, out, overwrite=True).done == 4
    assert hidden(out) == set()


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("nowhere")])
def test_a_corner_that_cannot_be_made_is_reported(source: Path, tmp_path: Path, make: Callable[[Path], object]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out / ".gpucal")
    with pytest.raises(OutputError, match=f"^{out}[^\n]*: cannot be written [^\n]*; [^\n]*$"):
        again(source, out)
    assert not (out / "17").exists()
