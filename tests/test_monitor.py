"""What a process is told, whoever owns its threads: settings and monitors of all threads, snapshots, the log."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import _config, detection, faults
from sedq.detection import _monitor

X = np.ones((5, 4), np.uint8)
PACKED = sedq.pack_weights(np.ones((3, 4), np.int8))


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that were there before anything was set."""
    with ThreadPoolExecutor(2) as pool:
        pool.submit(int).result(30)
        yield pool


@pytest.fixture(autouse=True)
def _settings_of_before() -> Iterator[None]:
    before = _config._process
    yield
    _config._process = before


def current() -> tuple[str, str, int | None]:
    return sedq.get_config()[:3]


def multiply(**settings: Any) -> np.ndarray:
    return sedq.matmul_integer(X, PACKED, **settings)


def struck(**settings: Any) -> np.ndarray:
    with faults.accumulator_fault(flip=1 << 20):
        return multiply(**settings)


def event(residual: float = 1.0, cpu: int = 3) -> sedq.Event:
    return sedq.Event("op", "sum", 0, residual, 0.5, "recompute", "transient", cpu=cpu)


# ---- settings of the process


def test_settings_of_the_process_hold_in_every_thread(workers: ThreadPoolExecutor) -> None:
    sedq.set_config(on_error="raise")
    assert current() == workers.submit(current).result(30) == ("exact", "raise", None)
    with pytest.raises(sedq.SoftErrorDetected):
        workers.submit(struck).result(30)
    sedq.set_config(check="full", num_threads=1)
    assert workers.submit(current).result(30) == ("full", "raise", 1)
    assert struck(on_error="recover")[0, 0] == 4


def test_contexts_nest_in_settings_of_the_process(workers: ThreadPoolExecutor) -> None:
    sedq.set_config(on_error="warn")
    with sedq.config_context(check="off"):
        assert current() == ("off", "warn", None)
        sedq.set_config(check="full")
        assert current() == ("off", "warn", None), "an open context has been given its settings"
        assert workers.submit(current).result(30) == ("full", "warn", None)
    assert current() == ("full", "warn", None)


def test_what_is_refused_sets_nothing() -> None:
    for wrong in ({"check": "on"}, {"on_error": 0}, {"num_threads": [1]}, {"check": "off", "num_threads": 0}):
        with pytest.raises(ValueError, match="got"):
            sedq.set_config(**wrong)  # type: ignore[arg-type]
    assert current() == ("exact", "recover", None)


def test_settings_set_at_once_all_hold() -> None:
    def choose(i: int) -> None:
        sedq.set_config(**({"num_threads": 2} if i % 2 else {"on_error": "warn"}))  # type: ignore[arg-type]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(choose, range(200)))
    assert current() == ("exact", "warn", 2)


# ---- monitors of all threads


def test_a_monitor_of_all_threads(workers: ThreadPoolExecutor) -> None:
    with sedq.monitor() as mine, sedq.monitor(all_threads=True) as m:
        workers.submit(multiply).result(30)
        assert (mine.total_checks, m.total_checks) == (0, 5)
        workers.submit(struck).result(30)
        multiply()
    assert (mine.total_checks, m.total_checks, m.detections, m.verdicts) == (5, 15, 1, {"transient": 1})
    assert m.events[0].thread != threading.get_ident()
    multiply()
    assert m.total_checks == 15, "it ended with the block"


def test_monitors_of_all_threads_end_in_any_order() -> None:
    first, second = sedq.monitor(all_threads=True), sedq.monitor(all_threads=True)
    a, b = first.__enter__(), second.__enter__()
    multiply()
    first.__exit__(None, None, None)
    multiply()
    second.__exit__(None, None, None)
    multiply()
    assert (a.total_checks, b.total_checks) == (5, 10)
    assert _monitor._everywhere == ()


@pytest.mark.parametrize("value", [1, "yes", None])
def test_all_threads_is_a_truth_value(value: Any) -> None:
    with pytest.raises(ValueError, match="all_threads: got"), sedq.monitor(all_threads=value):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_who_counted_in_its_parent() -> None:
    with sedq.monitor(all_threads=True) as m, m._lock, _monitor._lock:  # as another thread might hold them
        child = os.fork()
        if not child:
            with sedq.monitor(all_threads=True):
                detection.count_checks("op", 2)
            os._exit(m.checks["op"])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


# ---- snapshots


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_snapshots_that_reset_lose_nothing_and_count_nothing_twice() -> None:
    m, seen = sedq.Monitor(), []

    def work() -> None:
        for _ in range(2000):
            m._count("op", 1)
            m._add(event())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(m.snapshot(reset=True))
    seen.append(m.snapshot(reset=True))
    for thread in threads:
        thread.join()
    assert sum(s["checks"].get("op", 0) for s in seen) == sum(s["detections"] for s in seen) == 6000
    assert sum(s["verdicts"].get("transient", 0) for s in seen) == 6000
    assert m.snapshot() == {"checks": {}, "detections": 0, "verdicts": {}, "repairs": {}, "events": []}


LOOKS: dict[str, Callable[[sedq.Monitor], int]] = {
    "snapshot": lambda m: m.snapshot()["detections"],
    "reset": lambda m: m.snapshot(reset=True)["detections"],
    "pickle": lambda m: pickle.loads(pickle.dumps(m)).detections,
}


@pytest.mark.parametrize("look", LOOKS)
def test_who_reads_a_monitor_waits_for_who_counts(look: str) -> None:
    m, seen = sedq.Monitor(), list[int]()
    reader = threading.Thread(target=lambda: seen.append(LOOKS[look](m)))
    with m._lock:
        reader.start()
        reader.join(0.05)
        assert seen == []
        m.detections += 1
    reader.join()
    assert seen == [1]


def test_what_was_read_of_a_monitor_stays_as_it_is() -> None:
    m = sedq.Monitor()
    read = (m.snapshot(), m.__getstate__())
    m._count("op", 1)
    m._repaired({"rebuilt": 1})
    m._add(event())
    for state in read:
        assert [bool(state[name]) for name in ("checks", "verdicts", "repairs", "events")] == [False] * 4


def test_a_snapshot_is_json() -> None:
    m = sedq.Monitor()
    m._repaired({"rebuilt": 2})
    for residual in (1.5, float("nan"), float("inf"), -float("inf")):
        m._add(event(residual))
    again = json.loads(json.dumps(m.snapshot(), allow_nan=False))
    assert again["repairs"] == {"rebuilt": 2}
    assert [e["residual"] for e in again["events"]] == [1.5, None, None, None]
    assert again["events"][0] == {**vars(m.events[0]), "recomputed_on": []}


def test_events_of_float_rows_are_json() -> None:
    bag = sedq.EmbeddingBag.from_float(np.ones((4, 8), np.float32), bits=32)
    for bit in range(23, 31):  # exponent: an infinity or NaN
        bag.table.rows[1].view(np.uint32)[0] |= np.uint32(1 << bit)
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected):
        bag([[1, 2]], check="threshold", on_error="raise")
    assert not np.isfinite(m.events[0].residual)
    json.dumps(m.snapshot(), allow_nan=False)


# ---- the log


def test_a_log_record_has_the_cpu_and_the_event(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sedq"), sedq.monitor() as m:
        struck()
    (record,) = caplog.records
    assert record.soft_error == m.events[0].as_dict() | {"more": 0}  # type: ignore[attr-defined]
    cpu = m.events[0].cpu
    assert record.getMessage().endswith(f", CPU {cpu}" if cpu >= 0 else "transient")
    json.dumps(record.soft_error, allow_nan=False)  # type: ignore[attr-defined]


def test_an_unknown_cpu_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sedq"):
        detection.record([event(cpu=-1), event(cpu=-1)])
        detection.record([event(cpu=3), event(cpu=3)])
    assert caplog.messages[0].endswith("transient (and 1 more)")
    assert caplog.messages[1].endswith("transient (and 1 more), CPU 3")
    assert caplog.records[1].soft_error["more"] == 1  # type: ignore[attr-defined]
