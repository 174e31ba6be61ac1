"""What comes from outside while a live process is struck: signals, kills, time limits, what forbids to trace."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from helpers.tracing import kernel, needs_ptrace, session, stop_at
from sedq._core import _ptrace
from sedq.faults import live
from sedq.faults.live import _protocol
from sedq.faults.live._session import Session
from sedq.faults.live._strikes import NOTHING, Strike, draw


@needs_ptrace
@pytest.mark.parametrize("number", [signal.SIGWINCH, signal.SIGCONT])
def test_a_signal_to_the_worker_changes_nothing(number: int) -> None:
    with session() as s:
        worker, done = s.worker(), threading.Event()

        def send() -> None:
            while not done.wait(0.001):
                os.kill(worker.pid, number)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            trials = [s.run(draw(0, i, {})) for i in range(60)]
        finally:
            done.set()
            sender.join()
        assert {t.outcome for t in trials} == {"masked"}
        assert s.worker() is worker
        # signals to this process and its group aren't for that one
        assert os.getpgid(worker.pid) == os.getpgid(s._template.pid) == s._template.pid != os.getpgrp()


@needs_ptrace
def test_a_template_that_dies_ends_the_campaign() -> None:
    with session() as s:
        s.worker()
        s._template.kill()
        s._template.wait()
        assert s.run(draw(0, 0, {})).outcome == "masked"  # the worker goes on
        s._discard()
        for _ in range(2):
            with pytest.raises(live.LiveError, match="the template process ended"):
                s.run(draw(0, 0, {}))


@needs_ptrace
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_ends_the_campaign(number: int) -> None:
    with session() as s:
        for when in ("meet", "wait"):
            image, pc = stop_at(s, kernel(s, "sum_u8"))
            worker = s.worker()
            if when == "wait":
                os.kill(worker.pid, signal.SIGTERM)  # delivered as soon as it goes on
                with pytest.raises(live.LiveError, match="killed from outside, by SIGTERM"):
                    s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
            else:
                assert s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc).outcome == "masked"
                os.kill(worker.pid, number)
                with pytest.raises(live.LiveError, match="trial 0: the worker was killed from outside"):
                    s.run(draw(0, 0, {}))
            s._discard()
            assert worker.ended


@needs_ptrace
def test_a_process_that_was_reaped_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    tracee = _ptrace.Tracee(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    silent, write = os.pipe()
    try:
        assert tracee.wait(silent, 10**10) == (_ptrace.ENDED, signal.SIGKILL)
    finally:
        os.close(silent)
        os.close(write)
    assert tracee.ended
    child.returncode = 0  # its number is free
    other = _ptrace.Tracee((sleeper := subprocess.Popen(["sleep", "60"])).pid)
    assert not other.ended
    other.kill()
    assert other.ended
    sleeper.returncode = 0


@needs_ptrace
def test_a_pipe_that_nobody_writes_to_is_waited_on_without_work() -> None:
    child = subprocess.Popen(["sleep", "60"])
    tracee = _ptrace.Tracee(child.pid)
    silent, write = os.pipe()
    os.close(write)
    before = time.thread_time()
    try:
        assert tracee.wait(silent, 300_000_000) == (_ptrace.SILENT, 0)
        assert time.thread_time() - before < 0.15
    finally:
        tracee.kill()
        child.returncode = 0
        os.close(silent)


@needs_ptrace
def test_a_timeout_too_short_for_a_call_is_named() -> None:
    with pytest.raises(live.LiveError, match=r"call didn't end within 1e-06 s, expected a longer timeout"):
        live.run(trials=1, timeout=1e-7)


@needs_ptrace
def test_a_timeout_too_short_is_named_though_the_first_call_ended_before_anybody_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell, told = Session._tell, list[bytes]()

    def late(self: Session, pipe: int, what: bytes) -> None:
        tell(self, pipe, what)
        if what == _protocol.ONCE and not told:
            time.sleep(0.3)
            told.append(what)

    monkeypatch.setattr(Session, "_tell", late)
    with pytest.raises(live.LiveError, match="call didn't end within 1e-06 s"):
        live.run(trials=1, timeout=1e-7)


@needs_ptrace
def test_what_forbids_to_trace_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise PermissionError(1, "ptrace: seize")

    monkeypatch.setattr(_ptrace, "Tracee", refuse)
    with pytest.raises(PermissionError, match=r"ptrace_scope.*CAP_SYS_PTRACE.*seccomp"):
        live.run(trials=1)
