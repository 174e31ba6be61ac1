"""Sites of faults in bags and the interaction: what each does without checks, and which check sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sedq
from helpers.sites import Array, planned, visits, watched, words
from sedq import _config
from sedq._core import _dense, _dispatch
from sedq.faults._models import Change


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

    sound = call(check="off")
    with planned("request", 1, element, change) as hit:
        wrong, events = watched(call, "off")
    assert (hit.fired, hit.changed, events) == (1, 1, [])
    assert np.flatnonzero((wrong != sound).any(axis=1)).tolist() == [1]
    with planned("request", 1, element, change) as hit:
        y, events = watched(call, check)
    assert hit.fired == 1
    assert {(e.kind, e.row, e.verdict) for e in events if e.kind != "repeat"} == {("count", -1, "transient")}
    assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("what", ["indices", "weights"])
def test_others_rows_whose_numbers_or_weights_differ_in_high_bits_alone(kernels: _dispatch.Context, what: str) -> None:
    bag = sedq.EmbeddingBag.from_float(np.arange(2**16 + 8, dtype=np.float32)[:, None])
    indices, weights = np.full(12, 5), np.ones(12, np.float32)
    if what == "indices":
        indices[8] += 2**16
    else:
        weights[8] = 1.5  # 2^22 more, as bits
    sound = bag(indices, [0, 4, 8], weights)
    with planned("request", 1, OFF_BY[what][0], Change(0xFFFFFFFF, add=1)) as hit:
        y, events = watched(lambda **options: bag(indices, [0, 4, 8], weights, **options), "exact")
    assert hit.fired == 1
    assert {e.kind for e in events} == {"count"}
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
    kernels: _dispatch.Context, check: str, overlaid: bool
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
    if not overlaid:  # to compute only the bag again in which the check disagreed would not be enough
        assert {e.row for e in events} == {2}


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
    for visit, row in enumerate([0, 0, 0, 1, 1]):
        change = Change(0xFFFFFFFF, flip=1 << 14)
        with planned("pooled", visit, 5, change) as hit:
            y, events = watched(call, "full")
        assert hit.fired == 1
        assert {(e.kind, e.row, e.verdict) for e in events} == {("repeat", row, "transient")}
        assert y.tobytes() == sound.tobytes()
        with planned("pooled", visit, 5, change):  # too little for the threshold, and no other check sees it
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
            with planned("dots", visit, element, change) as hit:
                y, found = call(True)
            assert hit.fired == 1
            assert found


@pytest.mark.parametrize(("check", "times"), [("off", 0), ("exact", 3), ("full", 3)])
def test_sums_are_struck_where_there_are_any(check: str, times: int, rng: np.random.Generator) -> None:
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(20, 8)).astype(np.float32))
    assert visits("sums", lambda: bag(np.arange(6).reshape(3, 2), check=check, num_threads=1)) == times
