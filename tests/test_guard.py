"""The guard of a table: who reads while somebody writes reads again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def held_by_another_thread(guard: Guard) -> Iterator[None]:
    inside, leave = threading.Event(), threading.Event()

    def write() -> None:
        with guard.writing():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(10)
    try:
        yield
    finally:
        leave.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_a_writer_of_its_parent() -> None:
    guard = Guard()
    with held_by_another_thread(guard):
        child = os.fork()
        if not child:
            with guard.writing():
                os._exit(guard.read(lambda: 7))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert guard.version == 2
