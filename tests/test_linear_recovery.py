"""What a product does once a check disagreed: events, warnings, exceptions, and each rung of the ladder."""

from __future__ import annotations

import ctypes
import logging
import pickle
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from helpers import oracles
from sedq import faults
from sedq._core import _dispatch

QPARAMS = {"x_scale": 0.02, "x_zero_point": 5, "y_scale": 0.5, "y_zero_point": 128}
M, N, K = 13, 70, 30


def make(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, sedq.PackedWeights]:
    x = rng.integers(1, 256, (M, K), dtype=np.uint8)
    w = rng.integers(-128, 128, (N, K), dtype=np.int8)
    return x, w, sedq.pack_weights(w, 0.01, zero_point=3, bias=rng.normal(size=N))


OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "matmul_integer": lambda x, packed, **o: sedq.matmul_integer(x, packed, 5, **o),
    "qlinear": lambda x, packed, **o: sedq.qlinear(x, packed, **QPARAMS, **o),
    "qlinear_dynamic": lambda x, packed, **o: sedq.qlinear_dynamic(x.astype(np.float32) - 20, packed, **o),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS)
checked = pytest.mark.parametrize("check", ["exact", "full"])


def outcomes(events: Any) -> set[tuple[str, str, str, str]]:
    return {(e.kind, e.rung, e.verdict, e.detail) for e in events}


@every_operator
@checked
def test_transient_fault(kernels: _dispatch.Context, rng: np.random.Generator, operator: str, check: str) -> None:
    x, _, packed = make(rng)
    call = OPERATORS[operator]
    expected = call(x, packed)
    out = np.zeros_like(expected)
    with faults.accumulator_fault(flip=1 << 30, element=64):
        assert not np.array_equal(call(x, packed, check="off"), expected)
    with sedq.monitor() as outer, sedq.monitor() as m, faults.accumulator_fault(flip=1 << 30, element=64):
        assert call(x, packed, check=check, out=out) is out
    np.testing.assert_array_equal(out, expected)
    (event,) = m.events
    assert (event.operator, event.row, abs(event.residual), event.limit) == (operator, 1, 2**30, 0)
    assert outcomes([event]) == {("accumulator", "recompute", "transient", "")}
    assert event.thread == threading.get_ident()
    assert event.time > 0
    assert event.cpu >= -1
    assert event.cpu_after >= -1
    assert str(event).startswith(f"{operator}: accumulator check, row 1, residual")
    assert str(event).endswith("; recompute: transient")
    assert m.verdicts == {"transient": 1}
    checks = 3 * M if operator == "qlinear_dynamic" else M  # quantisation and product are computed again together
    assert (m.checks[operator], m.total_checks, m.detections) == (checks, checks, 1)
    assert outer.events == m.events


@every_operator
def test_persistently_struck_kernels(kernels: _dispatch.Context, rng: np.random.Generator, operator: str) -> None:
    # every tile of every call: only the reference path is right. One panel: flips in two could cancel
    x, w, _ = make(rng)
    packed = sedq.pack_weights(w[:60], 0.01)
    call = OPERATORS[operator]
    expected = call(x, packed)
    with sedq.monitor() as m, faults.accumulator_fault(flip=1 << 29, element=1, repeat=10**6) as strike:
        wrong = call(x, packed, check="off")
        for _ in range(2):
            np.testing.assert_array_equal(call(x, packed), expected)
    tiles = -(-M // kernels.mr)
    assert strike.fired == 3 * tiles
    rows = list(range(0, M, kernels.mr))
    assert np.flatnonzero((wrong != expected).any(axis=1)).tolist() == rows
    assert [e.row for e in m.events] == rows * 2
    assert outcomes(m.events) == {("accumulator", "recompute", "transient", "")}


def test_the_limit_of_a_persistent_fault(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    # the top bit of the same lane in both panels: 2^31 twice is 0 modulo 2^32
    x, w, packed = make(rng)
    with sedq.monitor() as m, faults.accumulator_fault(flip=1 << 31, element=1, repeat=10**6):
        y = sedq.matmul_integer(x, packed)
    assert m.detections == 0
    wrong = np.argwhere(y != oracles.matmul_integer(x, w, 3))
    assert wrong.tolist() == [[row, column] for row in range(0, M, kernels.mr) for column in (1, 65)]


@every_operator
@checked
def test_corrupted_weights_heal(kernels: _dispatch.Context, rng: np.random.Generator, operator: str, check: str) -> None:
    x, w, packed = make(rng)
    call = OPERATORS[operator]
    expected = call(x, packed)
    faults.flip_weight_bit(packed, 66, 7, 6)
    assert not np.array_equal(call(x, packed, check="off"), expected)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(call(x, packed, check=check), expected)
    old, new = int(w[66, 7]) ^ 64, int(w[66, 7])
    assert outcomes(m.events) == {("accumulator", "heal", "memory", f"panels: W[66, 7] from {old} to {new}")}
    assert [(e.operator, e.row) for e in m.events] == [(operator, row) for row in range(M)]
    np.testing.assert_array_equal(packed.unpack(), w)
    with sedq.monitor() as m:
        call(x, packed, check=check)
    assert m.detections == 0


@every_operator
@checked
def test_weights_that_can_not_heal(kernels: _dispatch.Context, rng: np.random.Generator, operator: str, check: str) -> None:
    x, _, packed = make(rng)
    call = OPERATORS[operator]
    expected = call(x, packed)
    for n, k, bit in ((1, 2, 6), (1, 9, 5), (4, 2, 6), (5, 11, 5)):
        faults.flip_weight_bit(packed, n, k, bit)
    stored = packed.unpack()
    assert not np.array_equal(call(x, packed, check="off"), expected)
    for _ in range(2):
        with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match=f"soft error detected: {operator}") as caught:
            call(x, packed, check=check)
        assert list(caught.value.events) == list(m.events)
        assert outcomes(m.events) == {("accumulator", "raise", "memory", "still corrupted: panels")}
        np.testing.assert_array_equal(packed.unpack(), stored)


@every_operator
def test_raise(kernels: _dispatch.Context, rng: np.random.Generator, operator: str) -> None:
    x, _, packed = make(rng)
    faults.flip_weight_bit(packed, 3, 7, 6)
    stored = packed.unpack()
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match=r"raise: unresolved \(and 12 more\)$") as caught:
        OPERATORS[operator](x, packed, on_error="raise")
    assert list(caught.value.events) == list(m.events)
    assert outcomes(m.events) == {("accumulator", "raise", "unresolved", "")}
    np.testing.assert_array_equal(packed.unpack(), stored)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.events) == (str(caught.value), caught.value.events)


@every_operator
def test_warn(kernels: _dispatch.Context, rng: np.random.Generator, operator: str) -> None:
    x, _, packed = make(rng)
    call = OPERATORS[operator]
    faults.flip_weight_bit(packed, 3, 7, 6)
    wrong = call(x, packed, check="off")
    with sedq.monitor() as m, pytest.warns(sedq.SoftErrorWarning, match=f"soft error detected: {operator}") as caught:
        y = call(x, packed, on_error="warn")
    np.testing.assert_array_equal(y, wrong)
    assert len(m.events) == M
    assert outcomes(m.events) == {("accumulator", "none", "unresolved", "")}
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__), "points at the caller"
    assert not packed.verify().ok


def test_settings_of_the_context_and_of_the_call(rng: np.random.Generator) -> None:
    x, w, packed = make(rng)
    faults.flip_weight_bit(packed, 3, 7, 6)
    with sedq.config_context(on_error="raise"):
        with pytest.raises(sedq.SoftErrorDetected):
            sedq.matmul_integer(x, packed)
        with sedq.config_context(check="off"):
            sedq.matmul_integer(x, packed)
            with pytest.raises(sedq.SoftErrorDetected):
                sedq.matmul_integer(x, packed, check="exact")
        y = sedq.matmul_integer(x, packed, on_error="recover")
    np.testing.assert_array_equal(y, oracles.matmul_integer(x, w, 3))


def test_detections_are_logged(rng: np.random.Generator, caplog: pytest.LogCaptureFixture) -> None:
    x, _, packed = make(rng)
    faults.flip_weight_bit(packed, 3, 7, 6)
    with caplog.at_level(logging.WARNING, logger="sedq"):
        sedq.matmul_integer(x, packed)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("sedq", "WARNING")
    assert record.getMessage().startswith("soft error detected: matmul_integer: accumulator check, row 0")
    assert "heal: memory, panels: W[3, 7]" in record.getMessage()
    assert "(and 12 more)" in record.getMessage()


@pytest.mark.parametrize("name", ["digits", "row_sums", "col_sums", "scale", "zero_point", "bias"])
@pytest.mark.parametrize("fresh", [False, True], ids=["parameters cached", "parameters derived after the fault"])
def test_corruption_of_what_the_pack_keeps(
    kernels: _dispatch.Context, rng: np.random.Generator, name: str, fresh: bool
) -> None:
    x, _, packed = make(rng)
    expected = sedq.qlinear(x, packed, **QPARAMS)
    if fresh:
        packed._epilogues.clear()
    array = packed._arrays()[name]
    faults.flip_bit(array, array.itemsize - 1 if name == "scale" else 2, 4)
    assert packed.verify().corrupted == [name]
    with sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.qlinear(x, packed, **QPARAMS), expected)
    if name == "digits":
        assert outcomes(m.events) == {("accumulator", "heal", "memory", "digits")}
    assert sorted(packed.heal().healed + [e.detail for e in m.events][:1]) in ([name], []), "healed, once"
    assert packed.verify().ok
    packed._epilogues.clear()
    np.testing.assert_array_equal(sedq.qlinear(x, packed, **QPARAMS), expected)


@pytest.mark.parametrize("name", ["scale", "zero_point", "bias"])
def test_parameter_corrupted_with_its_copy(kernels: _dispatch.Context, rng: np.random.Generator, name: str) -> None:
    x, _, packed = make(rng)
    for array in (packed._arrays()[name], packed._spare[name]):
        faults.flip_bit(array, 2, 4)
    message = f"^{name} of <PackedWeights 70 x 30 .* is corrupted, and so is its copy: pack the weights again$"
    for check in ("off", "exact"):
        with pytest.raises(sedq.SoftErrorDetected, match=message):
            sedq.qlinear(x, packed, **QPARAMS, check=check)
    assert packed.heal().corrupted == [name]


@pytest.mark.parametrize("operator", OPERATORS)
def test_column_sums_that_can_not_be_trusted(kernels: _dispatch.Context, rng: np.random.Generator, operator: str) -> None:
    # a weight that x does not meet, and the sum of another column: what is derived from it would be wrong in silence
    x, _, packed = make(rng)
    x[:, 7] = 0
    expected = OPERATORS[operator](x, packed)
    packed._epilogues.clear()
    faults.flip_weight_bit(packed, 3, 7, 6)
    faults.flip_bit(packed._col_sums, 8 * 20 + 1, 6)
    try:
        y = OPERATORS[operator](x, packed)
    except sedq.SoftErrorDetected:
        return
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("what", ["low", "high", "y_zero_point"])
def test_scalars_of_the_epilogue(kernels: _dispatch.Context, rng: np.random.Generator, what: str) -> None:
    # the cached clamp and zero point lie in memory for as long as the parameters of the columns
    x, _, packed = make(rng)
    expected = sedq.qlinear(x, packed, **QPARAMS, relu=True)
    (epilogue,) = packed._epilogues.values()
    size = type(epilogue).__basicsize__
    wanted = struct.pack("<ffi", 0.0, 127.0, 128)
    held = ctypes.string_at(id(epilogue), size)
    assert held.count(wanted) == 2  # the first is used, the second restores it
    place = held.index(wanted) + 4 * ["low", "high", "y_zero_point"].index(what)
    word = ctypes.c_uint32.from_address(id(epilogue) + place)
    word.value ^= {"low": 0x42000000, "high": 1 << 23, "y_zero_point": 1 << 3}[what]
    try:
        assert not np.array_equal(sedq.qlinear(x, packed, **QPARAMS, relu=True, check="off"), expected)
        with sedq.monitor() as m:
            np.testing.assert_array_equal(sedq.qlinear(x, packed, **QPARAMS, relu=True), expected)
        assert m.detections
    finally:
        packed._epilogues.clear()


def test_checksums_that_can_not_be_restored_are_noted(rng: np.random.Generator) -> None:
    x, _, packed = make(rng)
    expected = sedq.matmul_integer(x, packed)
    packed._crcs["digits"] ^= 1
    with faults.accumulator_fault(flip=1 << 20), sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.matmul_integer(x, packed), expected)
    assert [(e.verdict, e.detail) for e in m.events] == [("memory", "digits; still corrupted: digits")]


def test_events_are_bounded(rng: np.random.Generator) -> None:
    x, _, packed = make(rng)
    with sedq.monitor(max_events=5) as m:
        for n in range(4):
            faults.flip_weight_bit(packed, n, 7, 6)
            sedq.matmul_integer(x, packed)
    assert (len(m.events), m.detections, m.verdicts["memory"]) == (5, 4 * M, 4 * M)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("heals", [False, True])
def test_threads_that_share_a_pack(rng: np.random.Generator, heals: bool) -> None:
    # more activation parameters than the pack remembers, from several threads at once, while another heals
    x, w, packed = make(rng)
    expected = [oracles.matmul_integer(x[:1], w, 3, zero) for zero in range(256)]
    failures: list[object] = []
    barrier = threading.Barrier(4)

    def work(thread: int) -> None:
        barrier.wait()
        for i in range(600):
            zero = (37 * thread + 5 * i) % 256
            try:
                if heals and not thread:
                    assert packed.heal().ok
                elif not np.array_equal(sedq.matmul_integer(x[:1], packed, zero), expected[zero]):
                    failures.append(zero)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
