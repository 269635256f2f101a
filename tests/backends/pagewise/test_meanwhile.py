"""Compiling in a process beside this one: it never fails, and never begins needlessly."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from gpucal.backends.pagewise import inflate, intrinsics, meanwhile
from gpucal.backends.pagewise.meanwhile import compiled_meanwhile


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Collect the processes that are begun."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
        processes.append(POPEN(command, **streams))
        return processes[-1]

    monkeypatch.setattr(meanwhile.subprocess, "Popen", begin)
    monkeypatch.setattr(meanwhile.os, "sched_getaffinity", lambda _: {0, 1})
    return processes


POPEN = subprocess.Popen


def test_what_is_in_the_cache_is_not_compiled_again(begun: list[subprocess.Popen[bytes]]) -> None:
    assert sum(inflate.inflate_pages.stats.cache_hits.values()) or intrinsics.is_in_cache("inflate")
    with compiled_meanwhile("inflate"):
        pass
    assert not begun


def test_a_process_that_fails_costs_nothing(begun: list[subprocess.Popen[bytes]]) -> None:
    done = False
    with compiled_meanwhile("no_such_module"):
        done = True
    (process,) = begun
    assert (done, process.returncode) == (True, 1)


def test_an_error_in_the_block_ends_the_process(begun: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(ZeroDivisionError), compiled_meanwhile("no_such_module"):
        _ = 1 / 0
    (process,) = begun
    assert process.returncode in (1, -9)


@pytest.mark.parametrize("why", ["one core", "no more processes", "no interpreter"])
def test_where_no_process_can_be_begun(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        assert why == "no more processes"
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(meanwhile.subprocess, "Popen", refuse)
    monkeypatch.setattr(meanwhile.os, "sched_getaffinity", lambda _: {0} if why == "one core" else {0, 1})
    if why == "no interpreter":
        monkeypatch.setattr(meanwhile.sys, "executable", None)
    done = False
    with compiled_meanwhile("no_such_module"):
        done = True
    assert done
