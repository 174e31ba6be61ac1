"""Sites of faults inside kernels: what each does without checks, and which check sees it and has it computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import _config, faults, linear
from sedq._core import _dense, _dispatch, _faultkernels
from sedq.faults import inject
from sedq.faults.models import Change

Array = NDArray[Any]
QPARAMS = {"x_scale": 0.02, "x_zero_point": 5, "y_scale": 3.0, "y_zero_point": 128}
OUTPUTS = ("int32", "uint8", "float32")
# columns in whole vectors, in strips, alone, and over panels
WIDTHS = (1, 7, 32, 41, 70)


@dataclass
class Outcome:
    """What a plan did: visits struck, visits left, words changed."""

    fired: int = 0
    left: int = 0
    changed: int = 0


@contextmanager
def planned(site: str, visit: int = 0, element: int = 0, change: Change | None = None, repeat: int = 1) -> Iterator[Outcome]:
    """Strike a site during a block; without a change every bit of the word flips."""
    c = Change(0xFFFFFFFF, flip=0xFFFFFFFF) if change is None else change
    outcome = Outcome()
    plan = (visit, element, c.flip, repeat, c.keep, c.put, c.add, c.pair)
    with inject.hooked_call(site, plan) as ended:
        yield outcome
        outcome.fired, outcome.left, outcome.changed = ended()


def visits(site: str, call: Callable[[], object]) -> int:
    with planned(site, inject.UNREACHED) as outcome:
        call()
    assert outcome.fired == outcome.changed == 0
    return inject.UNREACHED - outcome.left


def product(output: str, m: int, n: int, k: int = 40) -> Callable[..., Array]:
    """A product m x n x k with one of the outputs; its options are those of the call."""
    rng = np.random.default_rng([m, n, k])
    packed = sedq.pack_weights(rng.integers(-128, 128, (n, k), dtype=np.int8), 0.01, 3, rng.normal(size=n))
    x = rng.integers(0, 256, (m, k), dtype=np.uint8)

    def call(**options: Any) -> Array:
        if output == "int32":
            return sedq.matmul_integer(x, packed, **options)
        y = {} if output == "uint8" else {"y_scale": None, "y_zero_point": None}
        return sedq.qlinear(x, packed, **(QPARAMS | y), **options)

    return call


def watched(call: Callable[..., Array], check: str) -> tuple[Array, list[sedq.Event]]:
    with sedq.monitor() as m:
        y = call(check=check, num_threads=1)
    return y, list(m.events)


def words(y: Array) -> Array:
    return y.reshape(-1).view(np.uint8 if y.itemsize == 1 else np.uint32)


# ---- plans


@pytest.mark.parametrize("model", faults.default_models(), ids=lambda m: m.name)
def test_kernels_and_memory_change_words_alike(kernels: _dispatch.Context, model: faults.FaultModel) -> None:
    call = product("int32", 2, 5)
    sound = words(call(check="off")).copy()
    rng = np.random.default_rng(0)
    for _ in range(40):
        change, at = model.draw(rng, 32), int(rng.integers(10))
        with planned("store", element=at, change=change) as outcome:
            y = words(call(check="off"))
        want = sound.copy()
        want[at] = change.apply(int(sound[at]), 32)
        if change.pair:
            second = at // 5 * 5 + (at + 1) % 5
            want[second] = change.apply(int(sound[second]), 32, second=True)
        np.testing.assert_array_equal(y, want)
        assert outcome.fired == 1
        assert outcome.changed == (want != sound).sum()


def test_a_plan_strikes_as_many_visits_in_a_row_as_it_is_told_to() -> None:
    call = product("int32", 1, 200)  # four panels
    sound = call(check="off")
    assert visits("store", lambda: call(check="off")) == 4
    for visit, repeat, struck in ((0, 1, [0]), (1, 2, [1, 2]), (2, 9, [2, 3]), (4, 1, [])):
        with planned("store", visit, 3, repeat=repeat) as outcome:
            y = call(check="off")
        assert np.flatnonzero(y != sound).tolist() == [64 * p + 3 for p in struck]
        assert outcome.fired == len(struck)
        assert outcome.left == (-1 if len(struck) == repeat else 0 if visit == 4 else outcome.left)


def test_a_plan_belongs_to_its_thread() -> None:
    call = product("int32", 3, 5)
    sound = call(check="off")
    hooked = _faultkernels.hooked(_config.get_config().kernels.name)
    seen: list[Array] = []

    def other() -> None:
        with _config.use_kernels(hooked):
            seen.append(call(check="off"))

    with planned("tile") as outcome:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert outcome.fired == 0
        mine = call(check="off")
    np.testing.assert_array_equal(seen[0], sound)
    assert outcome.fired == 1
    assert (mine != sound).any()


def test_one_plan_for_a_site_at_a_time() -> None:
    with planned("store"), pytest.raises(RuntimeError, match="for which a fault is armed"), planned("store"):
        pass
    with pytest.raises(ValueError, match="kernel: got 'floor'"):
        _faultkernels.arm("floor", 0, 0, 1)
    for bad in ((-1, 0, 1), (0, -1, 1), (0, 0, 0)):
        with pytest.raises(ValueError, match="expected at least"):
            _faultkernels.arm("tile", *bad[:2], 1, bad[2])


# ---- products


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("n", WIDTHS)
def test_requantised_outputs_are_seen_by_full_alone(kernels: _dispatch.Context, output: str, n: int) -> None:
    m = 3
    call = product(output, m, n)
    sound = call(check="off")
    count = visits("epilogue", lambda: call(check="off"))
    assert count >= m * n / 32
    struck = set()
    for visit in range(count):
        for element in (0, 5):
            change = Change(0xFFFFFFFF, flip=1 << 6)
            with planned("epilogue", visit, element, change) as hit:
                y, events = watched(call, "off")
            assert (hit.fired, hit.changed) == (1, 1)
            differ = np.flatnonzero(words(y) != words(sound))
            assert events == []
            assert len(differ) <= 1  # a lane without a column changes nothing
            struck |= set(differ.tolist())
            for check in ("exact", "full"):
                with planned("epilogue", visit, element, change) as hit:
                    y, events = watched(call, check)
                assert hit.fired == 1
                # a lane without a column may be compared too
                assert {e.kind for e in events} <= ({"epilogue", "output"} if check == "full" else set())
                if check == "full" and len(differ):
                    assert ("epilogue", "recompute", "transient") in {(e.kind, e.rung, e.verdict) for e in events}
                changed = np.flatnonzero(words(y) != words(sound))
                assert changed.tolist() == ([] if check == "full" else differ.tolist())
    assert len(struck) >= min(m * n, count)


@pytest.mark.parametrize("check", ["exact", "full"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_wrong_store_is_read_back(kernels: _dispatch.Context, output: str, check: str) -> None:
    m, n = 9, 70
    call = product(output, m, n)
    sound = call(check="off")
    for visit in range(visits("store", lambda: call(check="off"))):
        for element in (0, 3, 11):
            with planned("store", visit, element):
                y, events = watched(call, "off")
            (at,) = np.flatnonzero(words(y) != words(sound))
            assert events == []
            with planned("store", visit, element):
                y, events = watched(call, check)
            assert [(e.kind, e.row, e.verdict) for e in events] == [("output", at // n, "transient")]
            assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_store_that_went_astray_has_the_whole_call_computed_again(
    kernels: _dispatch.Context, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    m, n = 250, 9  # three tasks: row 0 has been verified when the last tile is stored over it
    call = product(output, m, n)
    sound = call(check="off")
    last = visits("store", lambda: call(check="off")) - 1
    first = last * kernels.mr
    back = Change(0xFFFFFFFF, add=2**32 - first * n * sound.itemsize)
    whole = linear.WHOLE_CALL

    def struck(check: str) -> tuple[Array, list[sedq.Event]]:
        out = np.zeros_like(sound)
        with planned("address", last, change=back) as hit:
            y, events = watched(lambda **options: call(**options, out=out), check)
        assert hit.fired == 1
        return y, events

    y, events = struck("off")
    assert events == []
    wrong = set(np.flatnonzero((y != sound).any(axis=1)).tolist())
    assert wrong >= {0, first, m - 1}
    y, events = struck("exact")
    assert {(e.kind, e.verdict) for e in events} == {("output", "transient")}
    assert 0 not in {e.row for e in events}
    assert y.tobytes() == sound.tobytes()
    # to compute only the rows again in which the check disagreed is not enough
    monkeypatch.setattr(linear, "WHOLE_CALL", ())
    y, events = struck("exact")
    assert len(events) > 0
    assert np.flatnonzero((y != sound).any(axis=1)).tolist() == sorted(r for r in wrong if r < first)
    assert len(whole) > 0


@pytest.mark.parametrize("check", ["exact", "full"])
def test_a_fault_of_the_checks_own_sums_changes_nothing(kernels: _dispatch.Context, check: str) -> None:
    call = product("uint8", 9, 70)
    sound = call(check="off")
    for bit in range(32):
        with planned("checks", 0, bit % 9, Change(0xFFFFFFFF, flip=1 << bit)) as hit:
            y, events = watched(call, check)
        assert hit.fired == 1
        assert [(e.kind, e.row, e.verdict) for e in events] == [("accumulator", bit % 9, "transient")]
        assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("check", ["exact", "full"])
def test_codes_are_quantised_twice(kernels: _dispatch.Context, check: str) -> None:
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (20, 40), dtype=np.int8), 0.01)
    x = rng.normal(size=(3, 40)).astype(np.float32)

    def call(**options: Any) -> Array:
        return sedq.qlinear_dynamic(x, packed, **options)

    sound = call(check="off")
    for visit in range(visits("codes", lambda: call(check="off"))):
        for element in (0, 17, 39):
            change = Change(0xFFFFFFFF, flip=1 << 5)
            with planned("codes", visit, element, change):
                y, events = watched(call, "off")
            assert events == []
            assert (y != sound).any()
            with planned("codes", 2 * visit, element, change) as hit:
                y, events = watched(call, check)
            assert hit.fired == 1
            assert {e.verdict for e in events} == {"transient"}
            assert y.tobytes() == sound.tobytes()


# ---- tables and the interaction


def pooling(weighted: bool) -> Callable[..., Array]:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 83)).astype(np.float32), keep_source=True)
    indices, offsets = rng.integers(0, 50, 40), np.array([0, 7, 7, 20])
    weights = rng.uniform(0.5, 1.5, 40).astype(np.float32) if weighted else None

    def call(**options: Any) -> Array:
        return bag(indices, offsets, weights, **options)

    return call


@pytest.mark.parametrize("check", ["digest", "exact", "full"])
@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_vectors_are_read_back(kernels: _dispatch.Context, check: str, weighted: bool) -> None:
    call = pooling(weighted)
    sound = call(check="off")
    assert visits("pooled", lambda: call(check="off")) == len(sound)
    for visit in range(len(sound)):
        for bit in (0, 22, 23, 31):
            change = Change(0xFFFFFFFF, flip=1 << bit)
            with planned("pooled", visit, 70, change):
                y, events = watched(call, "off")
            assert events == []
            assert np.argwhere(words(y) != words(sound)).tolist() == [[visit * 83 + 70]]
            # with "full" a bag is pooled twice
            at = visit * visits("pooled", lambda: call(check=check)) // len(sound)
            with planned("pooled", at, 70, change) as hit:
                y, events = watched(call, check)
            assert hit.fired == 1
            assert y.tobytes() == sound.tobytes()
            assert {(e.row, e.verdict) for e in events} == {(visit, "transient")}
            assert "output" in {e.kind for e in events} or check == "full"


@pytest.mark.parametrize("check", ["digest", "exact"])
def test_a_fault_of_a_bags_own_sums_changes_nothing(kernels: _dispatch.Context, check: str) -> None:
    call = pooling(False)
    sound = call(check="off")
    for element in range(2):
        with planned("sums", 2, element, Change(0xFFFFFFFF, flip=1)) as hit:
            y, events = watched(call, check)
        assert hit.fired == 1
        assert [(e.kind, e.row, e.verdict) for e in events] == [("digest", 2, "transient")]
        assert y.tobytes() == sound.tobytes()


def test_indices_struck_after_their_range_was_checked_read_another_row(kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(64, 8)).astype(np.float32))
    indices, offsets = rng.integers(0, 64, 12), np.array([0, 5])
    sound = bag(indices, offsets, check="off")
    given = indices.copy()
    with planned("index", 0, 7, Change(0xFFFFFFFF, flip=4)) as hit:
        y = bag(given, offsets, check="off")
    assert hit.fired == 1
    assert given[7] == indices[7] ^ 4
    assert (y[1] != sound[1]).any()
    assert (y[0] == sound[0]).all()
    with planned("index", 0, 7, Change(0xFFFFFFFF, flip=4)):  # not seen: the row that is read is that of the index
        again, events = watched(lambda **options: bag(indices.copy(), offsets, **options), "full")
    assert events == []
    assert again.tobytes() == y.tobytes()


ROWS_OF_PART = 4096
OFF_BY = {
    "begin": (0, 1),
    "begin before": (0, -1),
    "end": (1, 1),
    "end before": (1, -1),
    "indices": (2, 1),
    "weights": (3, 1),
}


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("what", OFF_BY)
@pytest.mark.parametrize("check", ["digest", "threshold", "exact", "full"])
def test_a_bag_that_pools_others_rows_than_it_was_asked_for(
    kernels: _dispatch.Context, check: str, what: str, long: bool
) -> None:
    """Its own sums agree with what it read: those of the request, taken apart, do not."""
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 9)).astype(np.float32))
    size = 2 * ROWS_OF_PART + 100 if long else 7
    indices = rng.integers(0, 50, 20 + size)
    starts = [0, 9, 9 + size]
    weights = rng.uniform(0.5, 1.5, len(indices)).astype(np.float32)
    element, add = OFF_BY[what]
    change = Change(0xFFFFFFFF, add=add % 2**32)

    def call(**options: Any) -> Array:
        return bag(indices, starts, weights, **options)

    # the long bag's parts come first, and are done twice with "full"
    visit = {"full": 2}.get(check, 1)
    sound = call(check="off")
    with planned("request", 1, element, change) as hit:
        wrong, events = watched(call, "off")
    assert (hit.fired, hit.changed, events) == (1, 1, [])
    assert np.flatnonzero((wrong != sound).any(axis=1)).tolist() == [1]
    with planned("request", 1 if long else visit, element, change) as hit:
        y, events = watched(call, check)
    assert hit.fired == 1
    assert {(e.kind, e.row, e.verdict) for e in events if e.kind != "repeat"} == {("count", -1, "transient")}
    assert y.tobytes() == sound.tobytes()


def test_two_requests_that_are_off_do_not_make_up_for_one_another(kernels: _dispatch.Context) -> None:
    """A bag that begins with the last row of the one before it, whose end is right: what both visit is too much."""
    bag = sedq.EmbeddingBag.from_float(np.eye(8, 5, dtype=np.float32))
    sound = bag([1, 2, 3, 4], [0, 2])
    with planned("request", 1, 0, Change(0xFFFFFFFF, add=2**32 - 1)):
        y, events = watched(lambda **options: bag([1, 2, 3, 4], [0, 2], **options), "exact")
    assert {e.kind for e in events} == {"count"}
    assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("tables", [1, 3])
@pytest.mark.parametrize("check", ["digest", "threshold", "exact", "full"])
def test_chunks_of_bags_that_were_left_out_are_missed(kernels: _dispatch.Context, check: str, tables: int) -> None:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 9)).astype(np.float32))
    collection = sedq.EmbeddingBagCollection([bag] * tables)
    offsets = np.arange(0, 2 * 200 * tables + 1, 2)
    indices = rng.integers(0, 50, 2 * 200 * tables)

    def call(**options: Any) -> Array:
        if tables > 1:
            return collection(indices, offsets, out=np.full((200, 9 * tables), 7, np.float32), **options)
        return bag(indices, offsets, None, True, out=np.full((200, 9), 7, np.float32), **options)

    sound = call(check="off")
    for visit in range(0, visits("chunk", lambda: call(check="off")), 3):
        with planned("chunk", visit) as hit:
            wrong, events = watched(call, "off")
        assert (hit.fired, hit.changed, events) == (1, 1, [])
        assert 9 <= (wrong == 7).sum() <= 64 * 9
        with planned("chunk", visit) as hit:
            y, events = watched(call, check)
        assert [(e.kind, e.row, e.verdict) for e in events] == [("count", -1, "transient")]
        assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("overlaid", [False, True])
@pytest.mark.parametrize("check", ["digest", "threshold", "exact", "full"])
def test_a_pooled_vector_that_went_astray_has_all_bags_computed_again(
    kernels: _dispatch.Context, monkeypatch: pytest.MonkeyPatch, check: str, overlaid: bool
) -> None:
    """It lands on a bag that was read back before; also if its own bag is computed again for another reason."""
    rng = np.random.default_rng(0)
    rows = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 9)).astype(np.float32)).to_fused()
    bag = sedq.EmbeddingBag.view_fused(rows, parity=8)
    index = np.arange(9).reshape(3, 3)  # chunks of one bag
    if overlaid:
        rows[7, 2] ^= 64
        assert bag.scrub().rebuilt == [7]

    def call(**options: Any) -> Array:
        return bag(index, out=np.full((3, 9), 7, np.float32), **options)

    sound = call(check="off")
    back = Change(0xFFFFFFFF, add=2**32 - 2 * 9 * 4)
    visit = 2 * visits("address", lambda: call(check=check)) // 3
    with planned("address", visit, change=back) as hit:
        y, events = watched(call, check)
    assert hit.fired == 1
    assert ("output", 2, "transient") in {(e.kind, e.row, e.verdict) for e in events}
    assert y.tobytes() == sound.tobytes()
    if not overlaid:  # to compute only the bag again in which the check disagreed is not enough
        monkeypatch.setattr("sedq.embedding.pooling._bags_in_doubt", lambda found, count: np.array([2]))
        with planned("address", visit, change=back):
            y, _ = watched(call, check)
        assert np.flatnonzero((y != sound).any(axis=1)).tolist() == [0]


def long_bags() -> Callable[..., Array]:
    """Three bags, of 3, 2 and 1 parts."""
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 9)).astype(np.float32))
    offsets = np.cumsum([0, 2 * ROWS_OF_PART + 5, ROWS_OF_PART + 5, 3])
    indices = rng.integers(0, 50, offsets[-1])

    def call(**options: Any) -> Array:
        return bag(indices, offsets, None, True, **options)

    return call


@pytest.mark.parametrize("check", ["digest", "threshold", "exact", "full"])
def test_outputs_of_long_bags_are_read_back(kernels: _dispatch.Context, check: str) -> None:
    call = long_bags()
    sound = call(check="off")
    assert visits("read", lambda: call(check="off")) == 0
    for row, element in ((0, 0), (0, 8), (1, 0), (1, 5), (2, 8)):  # chunks of one bag
        with planned("read", row, element, Change(0xFFFFFFFF, flip=1)) as hit:
            y, events = watched(call, check)
        assert (hit.fired, hit.changed) == (1, 1)
        assert {(e.kind, e.row, e.verdict) for e in events} == {("output", row, "transient")}
        assert y.tobytes() == sound.tobytes()


def test_full_pools_long_bags_twice(kernels: _dispatch.Context) -> None:
    call = long_bags()
    sound = call(check="off")
    for visit, row in enumerate([0, 0, 0, 0, 0, 0, 1, 1, 1, 1]):
        change = Change(0xFFFFFFFF, flip=1 << 14)
        with planned("pooled", visit, 5, change) as hit:
            y, events = watched(call, "full")
        assert hit.fired == 1
        assert {(e.kind, e.row, e.verdict) for e in events} == {("repeat", row, "transient")}
        assert y.tobytes() == sound.tobytes()
        first = {0: 0, 1: 1, 2: 2, 6: 3, 7: 4}.get(visit)
        if first is not None:  # too little for the threshold, and no other check sees it
            with planned("pooled", first, 5, change):
                y, events = watched(call, "exact")
            assert events == []
            assert (y != sound).any()


def test_dot_products_are_computed_twice(kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 16)).astype(np.float32)

    def call(check: bool) -> tuple[Array, object]:
        codes = np.zeros((4, 16 + 3), np.uint8)
        context = _config.get_config().kernels
        return codes, _dense.interact_quantize(context, x, 0.1, 128, codes, check, 1)

    sound, found = call(False)
    assert found is None
    for visit in range(4):
        for element in range(3):
            change = Change(0xFFFFFFFF, flip=1 << 30)
            with planned("dots", visit, element, change) as hit:
                y, found = call(False)
            assert hit.fired == 1
            assert found is None
            assert np.argwhere(y != sound).tolist() == [[visit, 16 + element]]
            with planned("dots", 2 * visit, element, change) as hit:
                y, found = call(True)
            assert hit.fired == 1
            assert found
