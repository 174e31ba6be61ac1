"""Threads and processes that share or copy packed weights, tables and models."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import demo, faults
from sedq._core import _dispatch
from sedq.datasets import load_msweb

Array = NDArray[Any]
RNG = np.random.default_rng(0)
X = RNG.integers(256, size=(300, 200)).astype(np.uint8)
W = RNG.integers(-128, 128, size=(400, 200)).astype(np.int8)
PRODUCT = X.astype(np.int32) @ W.T.astype(np.int32)
REQUESTS = load_msweb().heldout.batch(0, 600)

methods = pytest.mark.parametrize(
    "method", [m for m in ("fork", "spawn", "forkserver") if m in multiprocessing.get_all_start_methods()]
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
# Python 3.12 warns of a fork beside threads, which is what is tested here
pytestmark = pytest.mark.filterwarnings(
    r"ignore:This process .* is multi-threaded, use of fork\(\) may lead to deadlocks in the child:DeprecationWarning"
)


def forked(*calls: Callable[[], Any]) -> list[Any]:
    """Results of calls in one forked child, which inherits their objects as they are in memory."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send([call() for call in calls]))
    child.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child hangs"
        return receiver.recv()
    finally:
        child.join(5)
        child.kill()
        child.join()


def elsewhere(method: str, *calls: Callable[[], Any]) -> list[Any]:
    """Results of calls in one child process, which is killed if it hangs."""
    if method == "fork":
        return forked(*calls)
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method))
    try:
        return [future.result(timeout=60) for future in [pool.submit(call) for call in calls]]
    except TimeoutError:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def scores(model: sedq.DLRM, **settings: Any) -> Callable[[], Array]:
    return partial(model, REQUESTS.dense, REQUESTS.indices, REQUESTS.offsets, True, **settings)


@methods
def test_a_child_computes_after_the_parent_used_threads(method: str) -> None:
    packed, model = sedq.pack_weights(W), demo.build(load_msweb())
    big = np.tile(REQUESTS.indices[0], 40)
    calls = [
        partial(sedq.matmul_integer, X, packed, num_threads=2),
        partial(model.bags[0], big, np.arange(0, big.size, 50), num_threads=2),
        scores(model, num_threads=2),
        scores(model, check="full"),
    ]
    want = [call() for call in calls]
    np.testing.assert_array_equal(want[0], PRODUCT)
    *got, threads, child = elsewhere(method, *calls, _dispatch.max_threads, os.getpid)
    for mine, its in zip(want, got, strict=True):
        np.testing.assert_array_equal(its, mine)
    assert child != os.getpid()
    assert threads == (1 if method == "fork" else _dispatch.max_threads())
    np.testing.assert_array_equal(calls[0](), PRODUCT)  # and the parent goes on


@needs_fork
def test_a_child_of_a_child_computes() -> None:
    product = partial(sedq.matmul_integer, X, sedq.pack_weights(W), num_threads=2)
    product()
    (((got, threads),),) = forked(lambda: forked(lambda: (product(), _dispatch.max_threads())))
    np.testing.assert_array_equal(got, PRODUCT)
    assert threads == 1


@needs_fork
def test_a_fault_is_corrected_in_the_child_that_meets_it() -> None:
    packed = sedq.pack_weights(W)
    product = partial(sedq.matmul_integer, X, packed)
    faults.flip_weight_bit(packed, 5, 6, 6)

    def work() -> tuple[Array, Array, list[sedq.Event], bool]:
        silent = product(check="off")
        with sedq.monitor() as m:
            return silent, product(), list(m.events), packed.verify().ok

    ((silent, got, events, healed),) = forked(work)
    assert not np.array_equal(silent, PRODUCT)
    np.testing.assert_array_equal(got, PRODUCT)
    assert {(e.rung, e.verdict) for e in events} == {("heal", "memory")}
    assert healed
    assert not packed.verify().ok  # the parent's memory is its own


def test_a_pack_is_healed_on_its_way_to_another_process() -> None:
    packed = sedq.pack_weights(W)
    faults.flip_weight_bit(packed, 5, 6, 6)
    (got,) = elsewhere("spawn", partial(sedq.matmul_integer, X, packed, check="off"))
    np.testing.assert_array_equal(got, PRODUCT)


def test_an_error_comes_back_from_another_process_with_its_events() -> None:
    with pytest.raises(ValueError, match="dense: got NaN"):
        elsewhere("spawn", partial(demo.build(load_msweb()), np.full((1, 8), np.nan), [np.zeros((1, 1), int)] * 6))
    settings = sedq.get_config()._replace(on_error="raise")
    struck = partial(sedq.recovery.handle, SimpleNamespace(operator="op"), [(0, 1, 2.0, 0.0)], settings)
    with pytest.raises(sedq.SoftErrorDetected, match="op: accumulator") as raised:
        elsewhere("spawn", struck)
    assert raised.value.events[0].residual == 2.0


@needs_fork
def test_children_forked_amid_updates_inherit_whole_rows_and_groups() -> None:
    """A fork waits for the locks, so that no child has a row without the parity that belongs to it."""
    rows, rng = 256, np.random.default_rng(0)
    tables = [rng.normal(size=(rows, 16)).astype(np.float32) for _ in range(2)]
    bag = sedq.EmbeddingBag.from_float(tables[0], parity=8, locate=True)
    stop, children = threading.Event(), list[int]()

    def update() -> None:
        turn = 0
        while not stop.is_set():
            turn ^= 1
            bag.update_rows(np.arange(rows), tables[turn])

    def wrong() -> int:
        with sedq.monitor(all_threads=True) as m:  # takes the locks of monitors too
            sedq.set_config(check="exact")
            report = bag.scrub(repair=False, redundancy=True)
            bag.update_rows([3], tables[0][:1])
            return int(bool(report) or m.detections > 0 or bag.version % 2 > 0)

    thread = threading.Thread(target=update)
    thread.start()
    try:
        for _ in range(60):
            child = os.fork()
            if not child:
                try:
                    signal.alarm(60)  # kills a child that hangs
                    os._exit(wrong())
                finally:
                    os._exit(99)
            children.append(child)
    finally:
        stop.set()
        thread.join()
        results = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert results == [0] * 60


# ---- threads of Python


@pytest.fixture
def eager() -> Iterator[None]:
    """Threads that interrupt one another as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(call: Callable[[int], Any], threads: int = 4) -> list[Any]:
    """Run a call in several threads at once, started together."""
    barrier = threading.Barrier(threads)

    def work(number: int) -> Any:
        barrier.wait(30)
        return call(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(threads)))


@pytest.mark.usefixtures("eager")
def test_threads_share_packs_and_tables() -> None:
    packed, model = sedq.pack_weights(W), demo.build(load_msweb())
    layer = partial(sedq.qlinear, packed=packed, x_scale=0.1, x_zero_point=7, y_scale=50.0, y_zero_point=99)
    i, o = REQUESTS.indices[1], REQUESTS.offsets[1]
    bag = partial(model.bags[1], i, o, include_last_offset=True)
    want_y, want_bag, want_scores = layer(X), bag(), scores(model)()

    def work(number: int) -> int:
        with sedq.monitor() as m:
            for repeat in range(6):
                threads = 1 + (number + repeat) % 2
                part = slice(10 * number, 300 - 20 * repeat)
                np.testing.assert_array_equal(layer(X[part], num_threads=threads), want_y[part])
                np.testing.assert_array_equal(bag(num_threads=threads), want_bag)
                np.testing.assert_array_equal(scores(model, num_threads=threads)(), want_scores)
        return m.detections

    assert together(work) == [0, 0, 0, 0]


@pytest.mark.usefixtures("eager")
def test_threads_share_the_cache_of_parameters() -> None:
    packed = sedq.pack_weights(np.ones((1, 1), np.int8))

    def work(number: int) -> int:
        with sedq.monitor() as m:
            order = np.random.default_rng(number).permutation(256).tolist()  # far more than the cache holds
            for zero_point in order * 5:
                assert sedq.matmul_integer(X[:1, :1], packed, zero_point)[0, 0] == int(X[0, 0]) - zero_point
        return m.detections

    assert together(work, 16) == [0] * 16


@pytest.mark.usefixtures("eager")
def test_threads_may_heal_while_others_compute() -> None:
    packed = sedq.pack_weights(W[:8])
    want = PRODUCT[:1, :8] - W[:8].sum(axis=1, dtype=np.int32) * np.arange(256, dtype=np.int32)[:, None]

    def work(number: int) -> int:
        with sedq.monitor() as m:
            for zero_point in range(256):
                if number:
                    np.testing.assert_array_equal(sedq.matmul_integer(X[:1], packed, zero_point)[0], want[zero_point])
                else:
                    assert packed.heal().ok
        return m.detections

    assert together(work) == [0] * 4


@pytest.mark.usefixtures("eager")
def test_threads_meet_one_corrupted_pack() -> None:
    packed = sedq.pack_weights(W)

    def work(number: int) -> int:
        with sedq.monitor() as m:
            np.testing.assert_array_equal(sedq.matmul_integer(X[:40], packed, num_threads=1), PRODUCT[:40])
        return m.detections

    for k in range(20):
        faults.flip_weight_bit(packed, k, 3 * k, 6)
        assert sum(together(work)) > 0
        assert packed.verify().ok


@pytest.mark.usefixtures("eager")
def test_threads_meet_one_corrupted_row() -> None:
    table = RNG.normal(size=(50, 64)).astype(np.float32)
    bag = sedq.EmbeddingBag.from_float(table, keep_source=True)
    index, starts = np.arange(50).repeat(20), np.arange(0, 1000, 20)
    want = bag(index, starts)

    def work(number: int) -> int:
        with sedq.monitor() as m:
            np.testing.assert_array_equal(bag(index, starts, num_threads=1), want)
        return m.detections

    for row in range(20):
        faults.flip_row_bit(bag, row, 6)
        assert sum(together(work)) > 0
        assert bag.bad_rows() == []
