"""One object for interrupts: signals raise, wait or are noted, and no interrupt splits a call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gpucal.runs.interrupts import SIGNALLED, Interrupts

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_until_it_is_deferred(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert interrupts.came == number
    with Interrupts() as interrupts:
        interrupts.defer()
        assert not interrupts.requested()
        signal.raise_signal(number)
        assert interrupts.requested()
        assert interrupts.came == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(number)
            interrupts.defer()
            signal.raise_signal(number)
            assert not interrupts.requested()
    finally:
        signal.signal(number, before)


SECOND = """
import signal, time
from gpucal.runs.interrupts import Interrupts
with Interrupts() as interrupts:
    interrupts.defer()
    signal.raise_signal({number})
    print("noted", flush=True)
    signal.raise_signal({number})
    print("never")
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process(number: signal.Signals) -> None:
    command = [sys.executable, "-c", SECOND.format(number=int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (SIGNALLED + number, "noted\n")
    assert ended.stderr == f"gpucal: ended by {number.name}\n"


@pytest.mark.parametrize("stream", ["None", "type('Tee', (), {'write': print, 'flush': print})()"], ids=["none", "own"])
def test_a_second_signal_needs_no_standard_error_output(stream: str) -> None:
    script = f"import sys\nsys.stderr = {stream}\n{SECOND.format(number=int(signal.SIGTERM))}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (SIGNALLED + signal.SIGTERM, "noted\n", "")


def test_a_caller_asks_for_the_end() -> None:
    asked: list[bool] = []
    interrupts = Interrupts(lambda: len(asked) > 1)
    assert not interrupts.requested()
    asked += [True, True]
    assert interrupts.requested()
    assert interrupts.came == 0


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_no_interrupt_splits_a_call(delay_s: float) -> None:
    """Whether it comes while the call is handed over or later: the call ends first."""
    interrupts = Interrupts()
    for _ in range(20 if not delay_s else 2):
        ended = []

        def call(ended: list[str] = ended) -> None:
            time.sleep(delay_s)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
            ended.append("whole")

        with pytest.raises(KeyboardInterrupt):
            interrupts.shield(call)
        assert ended == ["whole"]


def test_a_call_that_is_shielded_is_as_any_other() -> None:
    assert Interrupts().shield(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        Interrupts().shield(divmod, 7, 0)


def test_another_thread_leaves_the_handlers_alone() -> None:
    before, seen = [signal.getsignal(number) for number in SIGNALS], []

    def elsewhere() -> None:
        with Interrupts() as interrupts:
            interrupts.defer()
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == before
