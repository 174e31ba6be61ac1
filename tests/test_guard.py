"""The guard of a table: who reads while somebody writes reads again."""

from __future__ import annotations

import os
import threading

import pytest

from sedq.embedding.guard import ATTEMPTS, Guard


def test_a_read_without_writers_runs_once() -> None:
    guard, runs = Guard(), []
    assert guard.read(lambda a, *, b: runs.append(a) or b, 1, b=2) == 2
    assert runs == [1]


def test_a_read_that_a_write_overlapped_runs_again() -> None:
    guard, runs = Guard(), []

    def function() -> int:
        runs.append(guard.version)
        if len(runs) == 1:
            with guard.writing():
                assert guard.version % 2 == 1
        return len(runs)

    assert guard.read(function) == 2
    assert runs == [0, 2]


def test_a_read_that_never_gets_through_takes_the_lock() -> None:
    guard, runs = Guard(), []

    def function() -> bool:
        runs.append(1)
        free: list[bool] = []

        def try_to_write() -> None:
            if guard._lock.acquire(blocking=False):
                guard.version += 2
                guard._lock.release()
                free.append(True)

        writer = threading.Thread(target=try_to_write)
        writer.start()
        writer.join()
        return bool(free)

    assert guard.read(function) is False, "in the end no writer could write"
    assert len(runs) == ATTEMPTS + 1


def test_a_read_waits_for_a_writer_in_the_middle_of_a_write() -> None:
    guard = Guard()
    inside, leave, read = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        with guard.writing():
            inside.set()
            leave.wait(10)

    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(10)
    reader = threading.Thread(target=lambda: guard.read(read.set))
    reader.start()
    assert not read.wait(0.05)
    leave.set()
    assert read.wait(10)
    writer.join()
    reader.join()


def test_writes_nest_and_end_with_an_exception() -> None:
    guard = Guard()
    with guard.exclusive(), guard.writing(), guard.writing():
        assert guard.version == 1
        assert guard.read(lambda: 5) == 5, "who writes may read"
    assert guard.version == 2
    with pytest.raises(KeyError), guard.writing():
        raise KeyError
    assert guard.version == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_the_writers() -> None:
    guard = Guard()
    inside, leave = threading.Event(), threading.Event()
    value = [0, 0]

    def write() -> None:
        with guard.writing():
            value[0] = 7
            inside.set()
            leave.wait(0.2)
            value[1] = 7

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(10)
    child = os.fork()
    if not child:
        with guard.writing():
            os._exit(value[1] if guard.read(lambda: value[0]) == 7 else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert guard.version == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_who_writes_may_fork() -> None:
    guard = Guard()
    with guard.writing():
        child = os.fork()
        odd = guard.version
    if not child:
        with guard.writing():
            os._exit(guard.read(lambda: odd + guard.version))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1 + 3
    with guard.writing():
        assert guard.version == 3
