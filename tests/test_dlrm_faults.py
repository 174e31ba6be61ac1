"""Faults in every stage of the DLRM: silent without checks, detected and corrected with them, never a wrong score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import faults
from sedq._core import _dense, _dispatch, _faultkernels
from sedq.commands import _demo
from sedq.datasets import Requests, load_msweb
from sedq.faults import _inject
from sedq.models import _dlrm as dlrm
from sedq.models import _stages

Array = NDArray[Any]
BATCH = 16
LAYERS = [("bottom", 0), ("bottom", 1), ("top", 0), ("top", 1), ("top", 2)]
TABLES = range(6)


@pytest.fixture(scope="module")
def batch() -> Requests:
    return load_msweb().heldout.batch(0, BATCH)


@pytest.fixture(scope="module")
def built() -> sedq.DLRM:
    return _demo.build(load_msweb())


@pytest.fixture
def model(built: sedq.DLRM) -> sedq.DLRM:
    return copy.deepcopy(built)


@pytest.fixture
def sound(built: sedq.DLRM, batch: Requests) -> Array:
    return scores(built, batch, check="off")


def scores(model: sedq.DLRM, batch: Requests, **settings: Any) -> Array:
    return model(batch.dense, batch.indices, batch.offsets, include_last_offset=True, **settings)


# ---- faults: each takes the model and the requests, and strikes during the block

Fault = Callable[[sedq.DLRM, Requests], AbstractContextManager[object]]


def weight(mlp: str, layer: int) -> Fault:
    """A high bit of a stored weight."""

    def strike(model: sedq.DLRM, batch: Requests) -> AbstractContextManager[object]:
        faults.flip_weight_bit(getattr(model, mlp)[layer].packed, 0, 2, 6)
        return nullcontext()

    return strike


def table_row(table: int, byte: int | None) -> Fault:
    """A bit of a row that the requests read: of a code, or (None) of the scale."""

    def strike(model: sedq.DLRM, batch: Requests) -> AbstractContextManager[object]:
        bag = model.bags[table]
        faults.flip_row_bit(bag, int(batch.indices[table][0]), 8 * (bag.shape[1] + 2 if byte is None else byte) + 7)
        return nullcontext()

    return strike


def activation(mlp: str, layer: int, bit: int = 7) -> Fault:
    """A bit of the codes that a layer reads, after they were written."""
    return lambda model, batch: faults.activation_fault(model, mlp, layer, byte=5, bit=bit)


def accumulator(kernel: str, visit: int, bit: int) -> Fault:
    return lambda model, batch: faults.accumulator_fault(kernel, visit=visit, element=0, flip=1 << bit)


@contextmanager
def struck_argument(stage: str, at: tuple[int, ...], times: int) -> Iterator[None]:
    """Flip a high bit of the float array that a stage of the model is about to read, the first `times` times."""
    stages: Any = dlrm
    honest = getattr(stages, stage)
    left = times

    def wrapper(*arguments: Any) -> Any:
        nonlocal left
        if left and arguments[3:4] != ("quantize",):  # not the quantisation of the dense features
            left -= 1
            arguments[0].view(np.uint32)[at] ^= 1 << 30
        return honest(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlrm, stage, wrapper)
        yield


def vector(position: int, times: int = 1) -> Fault:
    """The output of the bottom MLP (0), or a pooled vector, before the interaction."""
    return lambda model, batch: struck_argument("quantize", (3, position, 1), times)


def logit(times: int = 1) -> Fault:
    """A logit, before the sigmoid."""
    return lambda model, batch: struck_argument("sigmoid", (3, 0), times)


@contextmanager
def wrong_sigmoid() -> Iterator[None]:
    """The first sigmoid that is computed is wrong for one request."""
    honest, calls = _stages.expit, 0

    def wrapper(x: Array, out: Array | None = None) -> Array:
        nonlocal calls
        calls += 1
        result = honest(x, out=out) if out is not None else honest(x)
        if calls == 1:
            result[2] = 1 - result[2]
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stages, "expit", wrapper)
        yield


@contextmanager
def wrong_codes(stage: int) -> Iterator[None]:
    """A stage of quantisation (0: dense features, 1: interaction) stores a wrong code after it verified itself."""
    honest, calls = _dense.interact_quantize, 0

    def wrapper(*arguments: Any) -> Any:
        nonlocal calls
        found = honest(*arguments)
        if calls == stage:
            arguments[4][1, 0] ^= 128
        calls += 1
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dense, "interact_quantize", wrapper)
        yield


# name -> fault, the operator that names it, the verdict on it
FAULTS: dict[str, tuple[Fault, str, str]] = (
    {f"weight of {m}.{i}": (weight(m, i), f"{m}.{i}", "memory") for m, i in LAYERS}
    | {f"code in table {t}": (table_row(t, 3), f"table.{t}", "memory") for t in TABLES}
    | {f"scale in table {t}": (table_row(t, None), f"table.{t}", "memory") for t in TABLES}
    | {f"input of {m}.{i}": (activation(m, i), f"{m}.{i}", "transient") for m, i in LAYERS}
    | {f"vector {p}": (vector(p), "interaction", "transient") for p in range(1 + len(TABLES))}
    | {
        "logit": (logit(), "sigmoid", "transient"),
        "sigmoid": (lambda m, b: wrong_sigmoid(), "sigmoid", "transient"),
        "codes of dense features": (lambda m, b: wrong_codes(0), "bottom.0", "transient"),
        "codes of the interaction": (lambda m, b: wrong_codes(1), "top.0", "transient"),
        "accumulator of a tile": (accumulator("tile", 0, 30), "bottom.0", "transient"),
        "accumulator of a bag": (accumulator("bag", 0, 30), "table.0", "transient"),
    }
)
every_fault = pytest.mark.parametrize("name", FAULTS)


@every_fault
def test_without_checks_a_fault_changes_scores_silently(model: sedq.DLRM, batch: Requests, sound: Array, name: str) -> None:
    with sedq.monitor() as m, FAULTS[name][0](model, batch):
        assert not np.array_equal(scores(model, batch, check="off"), sound)
    assert m.detections == m.total_checks == 0


@every_fault
@pytest.mark.parametrize("check", ["exact", "full"])
def test_with_checks_a_fault_is_detected_and_corrected(
    model: sedq.DLRM, batch: Requests, sound: Array, name: str, check: str
) -> None:
    fault, operator, verdict = FAULTS[name]
    with sedq.monitor() as m:
        with fault(model, batch):
            np.testing.assert_array_equal(scores(model, batch, check=check), sound)
        assert {(e.operator, e.verdict) for e in m.events} == {(operator, verdict)}
        found = m.detections
        np.testing.assert_array_equal(scores(model, batch, check=check), sound)
    assert m.detections == found  # nothing of it is left


@every_fault
def test_on_request_a_fault_raises(model: sedq.DLRM, batch: Requests, name: str) -> None:
    fault, operator, _ = FAULTS[name]
    told = pytest.raises(sedq.SoftErrorDetected, match=operator.replace(".", r"\."))
    with sedq.monitor() as m, fault(model, batch), told as raised:
        scores(model, batch, on_error="raise")
    assert raised.value.events == tuple(m.events)
    assert {(e.operator, e.rung, e.verdict) for e in m.events} == {(operator, "raise", "unresolved")}


@every_fault
def test_on_request_a_fault_warns_and_stands(model: sedq.DLRM, batch: Requests, sound: Array, name: str) -> None:
    fault, operator, _ = FAULTS[name]
    twin = copy.deepcopy(model)
    with fault(twin, batch):
        corrupted = scores(twin, batch, check="off")
    told = pytest.warns(sedq.SoftErrorWarning, match=operator.replace(".", r"\."))
    with sedq.monitor() as m, fault(model, batch), told:
        got = scores(model, batch, on_error="warn")
    np.testing.assert_array_equal(got, corrupted)
    assert not np.array_equal(got, sound)
    assert {(e.operator, e.rung, e.verdict) for e in m.events} == {(operator, "none", "unresolved")}


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize(("mlp", "layer"), LAYERS)
def test_every_bit_of_an_activation_is_seen(
    kernels: _dispatch.Context, model: sedq.DLRM, batch: Requests, sound: Array, mlp: str, layer: int, bit: int
) -> None:
    with sedq.monitor() as m, activation(mlp, layer, bit)(model, batch):
        np.testing.assert_array_equal(scores(model, batch), sound)
    assert [(e.operator, e.kind, e.rung) for e in m.events] == [(f"{mlp}.{layer}", "input", "replay")]
    assert abs(m.events[0].residual) == 1 << bit


@pytest.mark.parametrize("bit", [0, 15, 31])
def test_every_tile_is_checked(
    kernels: _dispatch.Context, model: sedq.DLRM, batch: Requests, sound: Array, bit: int
) -> None:
    visits = faults.count_visits(lambda: scores(model, batch, check="off"))
    assert visits >= len(LAYERS)
    struck = set()
    for visit in range(visits):
        with sedq.monitor() as m, accumulator("tile", visit, bit)(model, batch):
            np.testing.assert_array_equal(scores(model, batch), sound)
        assert {(e.kind, e.verdict) for e in m.events} == {("accumulator", "transient")}
        struck.add(m.events[0].operator)
    assert struck == {f"{mlp}.{layer}" for mlp, layer in LAYERS}


def test_every_bag_is_checked(kernels: _dispatch.Context, model: sedq.DLRM, batch: Requests, sound: Array) -> None:
    visits = faults.count_visits(lambda: scores(model, batch, check="off"), "bag")
    assert visits == BATCH * len(TABLES)
    struck = []
    for visit in range(visits):
        with sedq.monitor() as m, accumulator("bag", visit, 30)(model, batch):
            np.testing.assert_array_equal(scores(model, batch), sound)
        assert {(e.kind, e.verdict) for e in m.events} == {("sum", "transient")}
        struck.append((m.events[0].operator, m.events[0].row))
    assert struck == [(f"table.{t}", b) for t in TABLES for b in range(BATCH)]


def test_full_sees_low_bits_of_a_bag_that_exact_does_not(model: sedq.DLRM, batch: Requests, sound: Array) -> None:
    below = 0
    for bit in range(24):
        fault = accumulator("bag", 7, bit)
        with fault(model, batch):
            changed = not np.array_equal(scores(model, batch, check="off"), sound)
        with sedq.monitor() as exact, fault(model, batch):
            scores(model, batch, check="exact")
        with sedq.monitor() as full, fault(model, batch):
            np.testing.assert_array_equal(scores(model, batch, check="full"), sound)
        assert full.detections or not changed
        below += bool(full.detections and not exact.detections)
    assert below


def test_a_fault_is_found_in_the_batch_that_reads_it(model: sedq.DLRM, batch: Requests, sound: Array) -> None:
    unread = next(r for r in range(model.bags[0].shape[0]) if r not in batch.indices[0])
    faults.flip_row_bit(model.bags[0], unread, 3)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(scores(model, batch), sound)
    assert m.detections == 0
    assert model.bags[0].bad_rows() == [unread]


def test_several_faults_at_once(model: sedq.DLRM, batch: Requests, sound: Array) -> None:
    names = ["weight of bottom.1", "weight of top.0", "code in table 1", "scale in table 4"]
    for name in names:
        FAULTS[name][0](model, batch)
    with sedq.monitor() as m, vector(2)(model, batch):
        np.testing.assert_array_equal(scores(model, batch), sound)
    assert {e.operator for e in m.events} >= {FAULTS[name][1] for name in names} | {"interaction"}


# ---- what cannot be corrected


@contextmanager
def stuck_accumulators(model: sedq.DLRM, batch: Requests) -> Iterator[None]:
    """A bit of every tile, on the path of recovery too."""
    reference = _faultkernels.hooked("reference")
    with faults.accumulator_fault("tile", flip=1 << 20, repeat=2**40), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "get", lambda name: reference)
        patch.setattr(_dispatch, "scalar", lambda: reference)
        yield


def smashed_weights(model: sedq.DLRM, batch: Requests) -> AbstractContextManager[object]:
    model.top[0].packed._source = None
    for n in range(4):
        for k in range(4):
            faults.flip_weight_bit(model.top[0].packed, n, k, 6)
    return nullcontext()


def rows_without_source(model: sedq.DLRM, batch: Requests) -> AbstractContextManager[object]:
    model.bags[2].table.source = None
    return table_row(2, 0)(model, batch)


UNCORRECTABLE: dict[str, tuple[Fault, str, str, str]] = {
    "every vector": (vector(3, times=99), "interaction", "persistent", ""),
    "every logit": (logit(times=99), "sigmoid", "persistent", ""),
    "every tile": (stuck_accumulators, "bottom.0", "persistent", ""),
    "many weights": (smashed_weights, "top.0", "memory", "panels"),
    "rows without a source": (rows_without_source, "table.2", "memory", "rows"),
}


@pytest.mark.parametrize("name", UNCORRECTABLE)
def test_what_persists_raises_and_gives_no_score(model: sedq.DLRM, batch: Requests, sound: Array, name: str) -> None:
    fault, operator, verdict, detail = UNCORRECTABLE[name]
    twin = copy.deepcopy(model)
    with fault(twin, batch):
        assert not np.array_equal(scores(twin, batch, check="off"), sound)
    with sedq.monitor() as m, fault(model, batch), pytest.raises(sedq.SoftErrorDetected, match=verdict) as raised:
        scores(model, batch)
    assert raised.value.events == tuple(m.events)
    assert {(e.operator, e.rung, e.verdict) for e in m.events} == {(operator, "raise", verdict)}
    assert all(detail in e.detail for e in m.events)


@pytest.mark.parametrize("check", ["exact", "full"])
def test_a_stuck_fault_that_only_one_layer_notices(
    model: sedq.DLRM, batch: Requests, sound: Array, check: str, kernels: _dispatch.Context
) -> None:
    """A stuck pair of errors, +e and -e in one row, cancels in most layers, and not where one is beyond the last column."""
    noticed = 0
    for element in range(0, 256, 5):
        with _inject.hooked_call("tile", (0, element, 0, 2**40, 0xFFFFFFFF, 0, 3000, True)), sedq.monitor() as m:
            got = scores(model, batch, check=check)
        if m.detections:
            noticed += 1
            np.testing.assert_array_equal(got, sound)
    assert noticed


def test_a_detection_stays_recorded_when_its_replay_fails(model: sedq.DLRM, batch: Requests) -> None:
    smashed_weights(model, batch)  # of top.0, met in the replay that the input of bottom.1 asks for
    with sedq.monitor() as m, activation("bottom", 1)(model, batch), pytest.raises(sedq.SoftErrorDetected):
        scores(model, batch)
    assert {e.operator for e in m.events} == {"bottom.1", "top.0"}
