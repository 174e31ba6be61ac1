"""A request that changed between its making and its use is corrected or refused; without its digests nobody would know."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq.commands import _demo
from sedq.datasets import load_msweb
from sedq.embedding._index_batch import consume

pytestmark = pytest.mark.any_isa

Array = NDArray[Any]
ROWS, DIM = 1024, 8


@pytest.fixture
def bag() -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32))


def arrays(dtype: Any = np.int64) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(1)
    offsets = np.array([0, 5, 5, 12, 20], np.int64)
    return rng.integers(0, ROWS, 24).astype(dtype), offsets, rng.uniform(0.5, 1, 24).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_gives_what_its_arrays_give(bag: sedq.EmbeddingBag, weighted: bool, dtype: Any) -> None:
    index, offsets, weights = arrays(dtype)
    factors = weights if weighted else None
    expected = bag(index, offsets, factors)
    batch = sedq.IndexBatch(index, offsets, factors)
    with sedq.monitor() as seen:
        for check in ("off", "digest", "threshold", "exact", "full"):
            np.testing.assert_array_equal(bag(batch, check=check), expected)
    assert seen.detections == 0
    matrix = index.reshape(6, 4)
    np.testing.assert_array_equal(bag(sedq.IndexBatch(matrix)), bag(matrix))
    ends = np.append(offsets, index.size)
    np.testing.assert_array_equal(bag(sedq.IndexBatch(index, ends, include_last_offset=True)), bag(index, offsets))
    assert repr(batch) == "<IndexBatch of 5 bags, 24 indices>"


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_flipped_bit_of_every_array_is_corrected(bag: sedq.EmbeddingBag, dtype: Any) -> None:
    index, offsets, weights = arrays(dtype)
    weights[1::2] *= -1
    expected = bag(index, offsets, weights)
    struck = unseen = 0
    for name in ("indices", "offsets", "per_sample_weights"):
        size = {"indices": index, "offsets": np.append(offsets, 24), "per_sample_weights": weights}[name]
        for bit in range(8 * size.nbytes):
            batch = sedq.IndexBatch(index.copy(), offsets.copy(), weights.copy())
            words = getattr(batch, name).view(np.uint8)
            words[bit // 8] ^= np.uint8(1 << bit % 8)
            with contextlib.suppress(ValueError, IndexError):
                unseen += not np.array_equal(bag(batch, check="off"), expected)
            with sedq.monitor() as seen:
                np.testing.assert_array_equal(bag(batch), expected, f"{name} {bit}")
            element = bit // 8 // size.itemsize
            assert {e.detail for e in seen.events} == {f"{name}[{element}]"}
            assert {(e.kind, e.rung, e.verdict) for e in seen.events} == {("input", "heal", "memory")}
            struck += 1
    assert unseen > struck / 5, "with the check off these went unseen"


@pytest.mark.parametrize("at", [0, 150, 299])
def test_a_change_is_found_wherever_it_is_in_a_long_batch(bag: sedq.EmbeddingBag, at: int) -> None:
    request = sedq.IndexBatch(np.arange(300) % 4, np.arange(0, 300, 10))
    expected = bag(request)
    request.indices[at] ^= 1
    with sedq.monitor() as m:
        np.testing.assert_array_equal(bag(request), expected)
    assert [e.detail for e in m.events] == [f"indices[{at}]"]


def test_more_than_one_change_is_an_error(bag: sedq.EmbeddingBag) -> None:
    index, offsets, _ = arrays()
    batch = sedq.IndexBatch(index, offsets)
    batch.indices[[3, 9]] ^= 4
    assert batch.corrupted() == ["indices"]
    with sedq.monitor() as seen, pytest.raises(sedq.SoftErrorDetected, match="indices"):
        bag(batch)
    assert {(e.rung, e.verdict) for e in seen.events} == {("raise", "memory")}


def test_changes_that_cancel_in_the_plain_sum_are_seen(bag: sedq.EmbeddingBag) -> None:
    index = np.array([8, 16, 24, 32])
    batch = sedq.IndexBatch(index, [0])
    index[0], index[1] = 16, 8
    with pytest.raises(sedq.SoftErrorDetected):
        bag(batch)


def test_a_change_while_the_bag_is_pooled_is_seen(bag: sedq.EmbeddingBag, monkeypatch: pytest.MonkeyPatch) -> None:
    index, offsets, _ = arrays()
    expected, batch = bag(index, offsets), sedq.IndexBatch(index, offsets)
    pool, strikes = sedq.EmbeddingBag._pool, [1]

    def struck(self: Any, call: Any, threshold: Any) -> None:
        if strikes:
            call.indices[strikes.pop()] ^= 2
        pool(self, call, threshold)

    monkeypatch.setattr(sedq.EmbeddingBag, "_pool", struck)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(batch), expected)
    assert seen.events[0].detail == "indices[1]"


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_on_error(bag: sedq.EmbeddingBag, on_error: str) -> None:
    index, offsets, _ = arrays()
    batch = sedq.IndexBatch(index, offsets)
    index[0] ^= 1
    wrong = bag(index, offsets)
    if on_error == "raise":
        with pytest.raises(sedq.SoftErrorDetected):
            bag(batch, on_error=on_error)
    else:
        with pytest.warns(sedq.SoftErrorWarning):
            np.testing.assert_array_equal(bag(batch, on_error=on_error), wrong)


def test_an_index_out_of_range_from_the_start_stays_an_error_of_the_input(bag: sedq.EmbeddingBag) -> None:
    with sedq.monitor() as seen, pytest.raises(IndexError, match=f"got {ROWS} at position 1"):
        bag(sedq.IndexBatch([0, ROWS], [0]))
    assert seen.detections == 0


def test_a_collection_takes_a_batch(bag: sedq.EmbeddingBag) -> None:
    tables = sedq.EmbeddingBagCollection([bag, bag])
    index, offsets = np.arange(12) * 70, np.array([0, 2, 5, 8, 12])
    expected = tables(index, offsets)
    batch = sedq.IndexBatch(index, offsets, include_last_offset=True)
    np.testing.assert_array_equal(tables(batch), expected)
    index[7] ^= 64
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(tables(batch), expected)
    assert {(e.operator, e.detail) for e in seen.events} == {("EmbeddingBagCollection", "indices[7]")}


def test_a_batch_stands_alone(bag: sedq.EmbeddingBag) -> None:
    index, offsets, weights = arrays()
    batch = sedq.IndexBatch(index, offsets)
    with pytest.raises(ValueError, match="offsets: got some beside an IndexBatch"):
        bag(batch, offsets)
    with pytest.raises(ValueError, match="per_sample_weights: got some beside an IndexBatch"):
        bag(batch, None, weights)
    with pytest.raises(ValueError, match="offsets: got None"):
        sedq.IndexBatch(index)
    with pytest.raises(ValueError, match="include_last_offset: got 2"):
        sedq.IndexBatch(index, offsets, include_last_offset=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per_sample_weights: got"):
        sedq.IndexBatch(index, offsets, np.full(24, np.inf, np.float32))


def test_a_model_takes_batches() -> None:
    model, requests = _demo.build(load_msweb()), load_msweb().heldout.batch(0, 8)
    expected = model(requests.dense, requests.indices, requests.offsets, include_last_offset=True)
    pairs = zip(requests.indices, requests.offsets, strict=True)
    batches = [sedq.IndexBatch(i.copy(), o, include_last_offset=True) for i, o in pairs]
    np.testing.assert_array_equal(model(requests.dense, batches), expected)
    batches[0].indices[0] ^= 1
    assert not np.array_equal(model(requests.dense, batches, check="off"), expected)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(model(requests.dense, batches), expected)
    assert {(e.operator, e.kind) for e in seen.events} == {("DLRM", "input")}


def test_the_batch_that_changed_is_named() -> None:
    batches = [sedq.IndexBatch(np.arange(4), [0]) for _ in range(2)]
    batches[1].indices[2] ^= 1
    with sedq.monitor() as m:
        got = consume(batches, lambda _: np.stack([b.indices for b in batches]), sedq.get_config(), "op")
    np.testing.assert_array_equal(got, [np.arange(4)] * 2)
    assert [(e.row, e.detail) for e in m.events] == [(1, "batch 1: indices[2]")]


def test_a_batch_that_changes_whenever_it_is_read_is_an_error() -> None:
    batch = sedq.IndexBatch(np.arange(4), [0])

    def compute(settings: object) -> np.ndarray:
        batch.indices[2] ^= 1
        return np.zeros(3)

    with pytest.raises(sedq.SoftErrorDetected, match="op: input"):
        consume([batch], compute, sedq.get_config(), "op")


def test_what_can_not_be_corrected_is_named() -> None:
    batch = sedq.IndexBatch(np.arange(4), [0])
    batch.indices[1:3] ^= 1
    assert batch.mend() == ([], ["indices"])
