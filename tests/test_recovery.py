"""The monitor, the ladder of recovery, events, warnings and the log."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import detection, faults
from sedq._core import _dispatch
from sedq.commands import _demo
from sedq.datasets import load_msweb
from sedq.faults import _inject

Array = NDArray[Any]
X = np.ones((5, 4), np.uint8)
PACKED = sedq.pack_weights(np.ones((3, 4), np.int8))


def multiply(**settings: Any) -> Array:
    return sedq.matmul_integer(X, PACKED, **settings)


def struck(**settings: Any) -> Array:
    """A product with one wrong accumulator."""
    with faults.accumulator_fault(flip=1 << 20):
        return multiply(**settings)


# ---- the monitor


def test_checks_are_counted_by_operator() -> None:
    bag = sedq.EmbeddingBag.from_float(np.ones((3, 4)))
    with sedq.monitor() as m:
        assert (m.total_checks, m.detections) == (0, 0)
        multiply()
        multiply(check="full")
        multiply(check="off")
        sedq.qlinear(X[:2], PACKED, x_scale=1, x_zero_point=0)
        sedq.qlinear_dynamic(np.ones((6, 4), np.float32), PACKED)
        bag([0, 1, 2], [0, 2])
        bag([0, 1, 2], [0, 2], check="off")
    multiply()
    assert m.checks == {"matmul_integer": 10, "qlinear": 2, "qlinear_dynamic": 6, "EmbeddingBag": 2}
    assert m.total_checks == 20
    assert (m.detections, list(m.events), m.verdicts) == (0, [], Counter())


def test_an_outer_monitor_sees_what_an_inner_one_sees() -> None:
    with sedq.monitor() as outer:
        multiply()
        with sedq.monitor() as inner:
            struck()
        multiply()
    assert (inner.total_checks, outer.total_checks) == (5, 15)
    assert inner.detections == outer.detections == 1
    assert list(inner.events) == list(outer.events)


@pytest.mark.parametrize("kept", [1, 3, np.int64(3), 1000])
def test_events_are_bounded_and_counts_go_on(kept: int) -> None:
    with sedq.monitor(max_events=kept) as m:
        for _ in range(5):
            struck()
    assert (m.detections, m.verdicts) == (5, Counter(transient=5))
    assert len(m.events) == min(5, kept)
    times = [e.time for e in m.events]
    assert times == sorted(times)  # the latest ones


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None])
def test_max_events_must_be_positive(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="max_events"), sedq.monitor(value):
        pass


def test_a_monitor_belongs_to_its_thread() -> None:
    barrier = threading.Barrier(3)

    def work(calls: int) -> tuple[int, int]:
        with sedq.monitor() as m:
            barrier.wait(30)
            for _ in range(calls):
                multiply()
            barrier.wait(30)
        return m.total_checks, m.detections

    with sedq.monitor() as mine, ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, (1, 2, 3))) == [(5, 0), (10, 0), (15, 0)]
    assert mine.total_checks == 0


def test_a_monitor_belongs_to_its_task() -> None:
    async def work(calls: int) -> int:
        with sedq.monitor() as m:
            for _ in range(calls):
                multiply()
                await asyncio.sleep(0)
        return m.total_checks

    async def main() -> tuple[list[int], int]:
        with sedq.monitor() as m:
            counts = await asyncio.gather(*map(work, (1, 2, 3)))
        return counts, m.total_checks

    assert asyncio.run(main()) == ([5, 10, 15], 30)


def test_a_monitor_ends_with_an_exception() -> None:
    with pytest.raises(ValueError, match="check"), sedq.monitor() as m:
        multiply(check=multiply() is None)
    multiply()
    assert m.total_checks == 5


def test_threads_of_a_call_report_to_its_monitor() -> None:
    x = np.random.default_rng(0).integers(256, size=(400, 64)).astype(np.uint8)
    packed = sedq.pack_weights(np.ones((300, 64), np.int8))
    packed._core.panels[7] ^= 64
    with sedq.monitor() as m:
        y = sedq.matmul_integer(x, packed, num_threads=2)
    np.testing.assert_array_equal(y, np.repeat(x.sum(axis=1, dtype=np.int32)[:, None], 300, axis=1))
    assert m.checks == {"matmul_integer": 400}
    assert {(e.rung, e.verdict, e.thread) for e in m.events} == {("heal", "memory", threading.get_ident())}


# ---- events


def test_an_event_says_what_where_and_when() -> None:
    before = time.time()
    with sedq.monitor() as m:
        struck()
    (e,) = m.events
    assert (e.operator, e.kind, e.row, e.residual, e.limit) == ("matmul_integer", "accumulator", 0, 2.0**20, 0)
    assert (e.rung, e.verdict, e.detail, e.thread) == ("recompute", "transient", "", threading.get_ident())
    assert before <= e.time <= time.time()
    assert min(e.cpu, e.cpu_after) >= (-1 if _dispatch.current_cpu() < 0 else 0)
    assert str(e) == "matmul_integer: accumulator check, row 0, residual 1.04858e+06; recompute: transient"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            sedq.Event("table.1", "sum", 7, 0.5, 0.25, "heal", "memory", "rows [3]"),
            "table.1: sum check, row 7, residual 0.5 (limit 0.25); heal: memory, rows [3]",
        ),
        (
            sedq.Event("qlinear", "count", -1, -4.0, 0.0, "raise", "persistent"),
            "qlinear: count check, whole call, residual -4; raise: persistent",
        ),
    ],
)
def test_events_read_well(event: sedq.Event, text: str) -> None:
    assert str(event) == text


def test_an_error_keeps_its_events_through_pickle() -> None:
    with pytest.raises(sedq.SoftErrorDetected) as raised:
        struck(on_error="raise")
    error = raised.value
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is sedq.SoftErrorDetected
    assert (str(twin), twin.events) == (str(error), error.events)
    assert len(error.events) == 1
    assert isinstance(error, RuntimeError)
    assert sedq.SoftErrorDetected("alone").events == ()


# ---- the ladder

FINDINGS = [(4, detection.Kind.ACCUMULATOR, 8.0, 0.0), (-1, detection.Kind.COUNT, 1.0, 0.0)]
INPUT = [(4, detection.Kind.INPUT, 8.0, 0.0)]


class Steps:
    """A call that notes what recovery asks of it. Recomputations give the letters of a word, with findings for capitals."""

    operator = "op"

    def __init__(self, word: str, *repair: str) -> None:
        self.word, self.repaired, self.log, self.answer = list(word), detection.Repair(*repair), "", ""

    def repair(self) -> detection.Repair:
        self.log += "r"
        return self.repaired

    def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
        self.log += "c"
        letter = self.word.pop(0)
        return detection.Attempt((np.array([letter.lower()]),), FINDINGS if letter.isupper() else [])

    def is_rounding(self, finding: detection.Finding, answer: detection.Attempt) -> bool:
        return finding[1] == detection.Kind.SUM

    def accept(self, answer: detection.Attempt) -> None:
        self.answer = str(answer.outputs[0][0])


def climb(steps: Steps, on_error: str, findings: list[detection.Finding] = FINDINGS, **how: Any) -> sedq.Monitor:
    with sedq.monitor() as m, sedq.config_context(on_error=on_error):
        detection.handle(steps, findings, sedq.get_config(), **how)
    return m


@pytest.mark.parametrize(
    ("steps", "log", "rung", "verdict", "detail"),
    [
        (Steps("aa"), "rcc", "recompute", "transient", ""),
        (Steps("aa", "a row"), "rcc", "heal", "memory", "a row"),
        (Steps("aa", "", "", "row sums"), "rcc", "recompute", "memory", "still corrupted: row sums"),
        (Steps("aa", "a row", "", "row sums"), "rcc", "heal", "memory", "a row; still corrupted: row sums"),
        (Steps("Aaa"), "rccc", "recompute", "persistent", ""),
        (Steps("aAa"), "rccc", "recompute", "persistent", ""),
        (Steps("bab"), "rccc", "recompute", "persistent", ""),
        (Steps("baa", "a row"), "rccc", "heal", "memory", "a row"),
        (Steps("AAa"), "rccc", "raise", "persistent", ""),
        (Steps("abc"), "rccc", "raise", "persistent", ""),
        (Steps("Aab"), "rccc", "raise", "persistent", ""),
        (Steps("aAb"), "rccc", "raise", "persistent", ""),
        (Steps("AAA"), "rccc", "raise", "persistent", ""),
        (Steps("abc", "a row"), "rccc", "raise", "memory", "a row"),
        (Steps("aaa", "", "panels"), "r", "raise", "memory", "still corrupted: panels"),
        (Steps("aaa", "a row", "panels"), "r", "raise", "memory", "a row; still corrupted: panels"),
    ],
)
def test_an_answer_is_what_two_recomputations_agree_on(steps: Steps, log: str, rung: str, verdict: str, detail: str) -> None:
    right = max(steps.word, key=steps.word.count)
    with sedq.monitor() as m:
        if rung == "raise":
            with pytest.raises(sedq.SoftErrorDetected, match=f"op: accumulator .*{verdict}.*and 1 more") as raised:
                climb(steps, "recover")
            assert raised.value.events == tuple(m.events)
        else:
            climb(steps, "recover")
    assert steps.log == log
    assert steps.answer == ("" if rung == "raise" else right)
    assert [(e.rung, e.verdict, e.detail) for e in m.events] == [(rung, verdict, detail)] * 2
    assert [(e.operator, e.kind, e.row) for e in m.events] == [("op", "accumulator", 4), ("op", "count", -1)]
    assert m.verdicts == {verdict: 2}
    assert {len(e.recomputed_on) for e in m.events} == {log.count("c")}


@pytest.mark.parametrize("repair", ["", "a row"])
def test_rounding_beside_a_fault_is_rounding(repair: str) -> None:
    m = climb(Steps("aa", repair), "recover", [(0, detection.Kind.SUM, 1.0, 0.5), *FINDINGS])
    fault = "memory" if repair else "transient"
    assert [(e.verdict, e.detail) for e in m.events] == [(fault, repair), (fault, repair), ("rounding", "")]


def test_recomputations_take_different_paths_and_cores() -> None:
    class Places(Steps):
        def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
            names.append(kernels.name)
            return super().compute(kernels)

    names: list[str] = []
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected):
        climb(Places("abc"), "recover")
    assert len(set(names)) == 3
    first, second, _ = m.events[0].recomputed_on
    assert m.events[0].as_dict()["recomputed_on"] == list(m.events[0].recomputed_on)
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
        assert first != second


@pytest.mark.parametrize("name", [*_dispatch.available(), "scalar"])
def test_paths_differ(name: str) -> None:
    own = _dispatch.scalar() if name == "scalar" else _dispatch.get(name)
    names = [path.name for path in _dispatch.paths(own)]
    assert len(set(names)) == len(names) == min(3, len(_dispatch.available()) + 1)
    assert name in names[:2] or len(names) == 3
    assert pickle.loads(pickle.dumps(_dispatch.scalar())).name == "scalar"


def test_an_error_of_another_core_reaches_the_caller() -> None:
    class Failing(Steps):
        def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
            if self.log.endswith("c"):
                raise ValueError("overflow")
            return super().compute(kernels)

    with pytest.raises(ValueError, match="overflow"):
        climb(Failing("aa"), "recover")


def test_recovery_goes_on_where_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(detection._recovery, "_other_cores", lambda cpu: {0})
    monkeypatch.setattr(threading.Thread, "start", start)
    packed = sedq.pack_weights(np.ones((3, 4), np.int8))
    faults.flip_weight_bit(packed, 1, 2, 6)
    with sedq.monitor() as m:
        got = sedq.matmul_integer(np.ones((2, 4), np.uint8), packed)
    np.testing.assert_array_equal(got, 4)
    assert {(e.rung, e.verdict) for e in m.events} == {("heal", "memory")}


def test_affinity_of_the_caller_stays() -> None:
    if not hasattr(os, "sched_getaffinity"):
        return
    before = os.sched_getaffinity(0)
    climb(Steps("aa"), "recover")
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("operator", ["matmul_integer", "qlinear"])
def test_an_error_that_the_recomputation_repeats_is_not_believed(
    operator: str, kernels: _dispatch.Context, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """A stuck pair of errors, +e and -e in one row, passes the row check; here it strikes the first recomputation too."""
    x = rng.integers(256, size=(5, 40)).astype(np.uint8)
    packed = sedq.pack_weights(rng.integers(-128, 128, (128, 40)).astype(np.int8))

    def call() -> Array:
        if operator == "qlinear":
            return sedq.qlinear(x, packed, x_scale=0.1, x_zero_point=3)
        return sedq.matmul_integer(x, packed)

    expected, paths = call(), _dispatch.paths(kernels)
    with _inject.hooked_call("tile", (0, 5, 0, 2**40, 0xFFFFFFFF, 0, 1000, True)) as outcome:
        struck_path = sedq.get_config().kernels
        monkeypatch.setattr(_dispatch, "paths", lambda _: [struck_path, *paths[1:]])
        with _inject.hooked_call("store", (0, 0, 1)), sedq.monitor() as m:  # what is detected
            got = call()
        fired = outcome()[0]
    assert fired > 1  # in the call, and again
    np.testing.assert_array_equal(got, expected)
    assert (m.verdicts, {e.kind for e in m.events}) == ({"persistent": m.detections}, {"output"})


def test_raise_tries_nothing() -> None:
    steps = Steps("aa", "a row")
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match="unresolved"):
        climb(steps, "raise")
    assert (steps.log, m.detections, m.verdicts) == ("", 2, {"unresolved": 2})


def test_warn_tries_nothing() -> None:
    steps = Steps("aa", "a row")
    with pytest.warns(sedq.SoftErrorWarning, match="op: accumulator check, row 4") as warned:
        m = climb(steps, "warn")
    assert len(warned) == 1
    assert issubclass(sedq.SoftErrorWarning, RuntimeWarning)
    assert (steps.log, m.detections, m.verdicts) == ("", 2, {"unresolved": 2})


def test_a_bad_input_goes_to_its_writer_unrecorded() -> None:
    steps = Steps("aa")
    with sedq.monitor() as m, pytest.raises(detection.UpstreamCorrupted) as raised:
        climb(steps, "recover", INPUT, has_writer=True)
    assert (steps.log, m.detections) == ("", 0)
    assert (raised.value.operator, raised.value.findings) == ("op", INPUT)


def test_a_bad_input_that_only_recomputations_find_goes_to_its_writer_too() -> None:
    class Reading(Steps):
        def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
            return detection.Attempt(super().compute(kernels).outputs, INPUT)

    with sedq.monitor() as m, pytest.raises(detection.UpstreamCorrupted):
        climb(Reading("aaa"), "recover", has_writer=True)
    assert m.detections == 0
    with pytest.raises(sedq.SoftErrorDetected, match="persistent"):
        climb(Reading("aaa"), "recover", has_writer=False)


@pytest.mark.parametrize(
    ("word", "answer", "verdict"), [("?aa", "a", "transient"), ("?abb", "b", "persistent"), ("?a?a", "a", "persistent")]
)
def test_a_replay_is_what_two_recomputations_agree_on(word: str, answer: str, verdict: str) -> None:
    letters = list(word)

    def compute(kernels: _dispatch.Context) -> Array:
        if (letter := letters.pop(0)) == "?":
            raise detection.UpstreamCorrupted("op", INPUT, 0)
        return np.array([letter])

    with sedq.monitor() as m:
        assert detection.replayed(compute, sedq.get_config()) == answer
    assert [(e.kind, e.row, e.rung, e.verdict) for e in m.events] == [("input", 4, "replay", verdict)]


@pytest.mark.parametrize("written", [True, False])
def test_a_replay_of_what_is_written_meanwhile_is_made_again(written: bool) -> None:
    """A step meets a fault and recovers; then the first three recomputations differ."""
    runs = 0

    def compute(kernels: _dispatch.Context) -> Array:
        nonlocal runs
        runs += 1
        if runs == 1:
            climb(Steps("aa"), "recover")
        return np.array([min(runs, 5)])

    settings = sedq.get_config()
    if written:
        assert detection.replayed(compute, settings, lambda: runs) == 5
    else:
        with pytest.raises(sedq.SoftErrorDetected) as error:
            detection.replayed(compute, settings)
        assert [(e.operator, e.rung, e.verdict) for e in error.value.events] == [("op", "raise", "persistent")]
    assert runs == (6 if written else 4)


@pytest.mark.parametrize(("check", "rows", "counted"), [("exact", 3, {"stage": 3}), ("exact", 0, {}), ("off", 3, {})])
def test_the_rows_of_a_stage_are_counted_if_it_checks_them(check: str, rows: int, counted: dict[str, int]) -> None:
    with sedq.monitor() as m, sedq.config_context(check=check):
        detection.checked_stage(lambda *_: None, (X,), sedq.get_config(), "stage", rows, has_writer=False)
    assert m.checks == counted


@pytest.mark.parametrize("has_writer", [True, False])
def test_only_recovery_sends_an_input_back(has_writer: bool) -> None:
    with pytest.raises(sedq.SoftErrorDetected):
        climb(Steps("aa"), "raise", INPUT, has_writer=has_writer)
    with pytest.warns(sedq.SoftErrorWarning):
        climb(Steps("aa"), "warn", INPUT, has_writer=has_writer)
    assert climb(Steps("aa"), "recover", INPUT if not has_writer else FINDINGS, has_writer=has_writer).detections


@pytest.mark.parametrize("kind", [kind for kind in detection.Kind if kind != detection.Kind.OVERFLOW])
def test_every_kind_has_a_name(kind: int) -> None:
    m = climb(Steps("aa"), "recover", [(0, kind, 1.0, 0.0)])
    assert m.events[0].kind == kind.label
    assert kind.label in (sedq.Event.__doc__ or "")


# ---- warnings and the log


def warn_qlinear() -> int:
    with faults.accumulator_fault(flip=1 << 20):
        sedq.qlinear(X, PACKED, x_scale=1, x_zero_point=0, on_error="warn"); return line()  # fmt: skip # noqa: E702


def warn_matmul() -> int:
    with faults.accumulator_fault(flip=1 << 20):
        multiply_here = sedq.matmul_integer; multiply_here(X, PACKED, on_error="warn"); return line()  # fmt: skip # noqa: E702


def warn_layer() -> int:
    layer = sedq.QuantizedLinear(PACKED, sedq.QParams(1.0))
    with faults.accumulator_fault(flip=1 << 20):
        layer(X.astype(np.float32), on_error="warn"); return line()  # fmt: skip # noqa: E702


def warn_bag() -> int:
    bag = sedq.EmbeddingBag.from_float(np.ones((3, 4)))
    faults.flip_row_bit(bag, 0, 7)
    bag([0], [0], on_error="warn"); return line()  # fmt: skip # noqa: E702


def warn_model() -> int:
    model, r = _demo.build(load_msweb()), load_msweb().heldout.batch(0, 2)
    with faults.accumulator_fault(flip=1 << 20):
        model(r.dense, r.indices, r.offsets, True, on_error="warn"); return line()  # fmt: skip # noqa: E702


def line() -> int:
    return sys._getframe(1).f_lineno


@pytest.mark.parametrize("call", [warn_qlinear, warn_matmul, warn_layer, warn_bag, warn_model])
def test_a_warning_points_at_the_call(call: Callable[[], int]) -> None:
    with pytest.warns(sedq.SoftErrorWarning) as warned:
        where = call()
    assert (warned[0].filename, warned[0].lineno) == (__file__, where)


def test_a_detection_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "sedq"):
        multiply()
        assert caplog.records == []
        struck()
        climb(Steps("aa", "a row"), "recover")
    assert [(r.name, r.levelname) for r in caplog.records] == [("sedq", "WARNING")] * 2
    said = r"matmul_integer: accumulator check, row 0, residual 1\.04858e\+06; recompute: transient"
    assert re.fullmatch(rf"soft error detected: {said}(, CPU \d+)?", caplog.messages[0])
    assert re.search(r"heal: memory, a row \(and 1 more\)(, CPU \d+)?$", caplog.messages[1])


def test_nothing_is_printed() -> None:
    script = """
import numpy as np, sedq
packed = sedq.pack_weights(np.ones((3, 4), np.int8))
with sedq.monitor() as m, sedq.faults.accumulator_fault(flip=1 << 20):
    sedq.matmul_integer(np.ones((5, 4), np.uint8), packed)
assert m.detections == 1
"""
    ran = subprocess.run([sys.executable, "-P", "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
