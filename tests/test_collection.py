"""Many tables in one call give what each gives alone, check what each checks, and recover what each recovers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import faults
from sedq._core import _collection, _dispatch

Array = NDArray[Any]
DIMS = (4, 33, 64, 1, 12)
SIZES = (50, 7, 1000, 3, 200)


def bags(**kwargs: Any) -> list[sedq.EmbeddingBag]:
    rng = np.random.default_rng(0)
    modes = ("sum", "mean", "sum", "sum", "mean")
    bits = (8, 4, 8, 32, 2)
    return [
        sedq.EmbeddingBag.from_float(rng.normal(size=(n, d)).astype(np.float32), bits=b, mode=mode, **kwargs)
        for n, d, b, mode in zip(SIZES, DIMS, bits, modes, strict=True)
    ]


def requests(batch: int, seed: int = 0, dtype: Any = np.int64, longest: int = 9) -> tuple[Array, Array]:
    rng = np.random.default_rng([seed, batch])
    lengths = rng.integers(0, longest, (len(SIZES), batch))
    indices = [rng.integers(0, n, count.sum()) for n, count in zip(SIZES, lengths, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(lengths.reshape(-1))])
    return np.concatenate(indices).astype(dtype), offsets.astype(dtype)


def one_by_one(tables: list[sedq.EmbeddingBag], indices: Array, offsets: Array, weights: Array | None = None) -> Array:
    batch, parts = (len(offsets) - 1) // len(tables), []
    for number, bag in enumerate(tables):
        at = offsets[number * batch : (number + 1) * batch + 1]
        part = slice(at[0], at[-1])
        parts.append(bag(indices[part], at - at[0], None if weights is None else weights[part], True))
    return np.hstack(parts)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2, 63, 64, 65, 300])
def test_as_one_by_one(batch: int, weighted: bool, dtype: Any, threads: int, kernels: _dispatch.Context) -> None:
    tables = bags()
    indices, offsets = requests(batch, dtype=dtype)
    weights = np.random.default_rng(1).normal(size=indices.size).astype(np.float32) if weighted else None
    collection = sedq.EmbeddingBagCollection(tables)
    expected = one_by_one(tables, indices, offsets, weights)
    for check in ("off", "digest", "threshold", "exact", "full"):
        with sedq.monitor() as seen:
            got = collection(indices, offsets, weights, check=check, num_threads=threads)
        np.testing.assert_array_equal(got, expected)
        assert seen.detections == 0
        assert seen.total_checks == (0 if check == "off" else batch * len(tables))
    assert (len(collection), collection.dim) == (5, sum(DIMS))


def test_long_bags_and_tables_that_ask_apart() -> None:
    tables = bags(padding_idx=1)
    collection = sedq.EmbeddingBagCollection(tables)
    indices, offsets = requests(3, longest=9)
    np.testing.assert_array_equal(collection(indices, offsets), one_by_one(tables, indices, offsets))
    tables = bags()
    collection = sedq.EmbeddingBagCollection(tables)
    indices, offsets = requests(2, longest=20_000)
    np.testing.assert_array_equal(collection(indices, offsets), one_by_one(tables, indices, offsets))


@pytest.mark.parametrize("check", ["off", "exact"])
def test_rows_of_an_overlay_are_read_in_the_place_of_stored_ones(check: str) -> None:
    tables = bags()
    rows = tables[0].to_fused()
    tables[0] = sedq.EmbeddingBag.view_fused(rows, parity=8)
    collection = sedq.EmbeddingBagCollection(tables)
    indices, offsets = requests(3, longest=9)
    expected = collection(indices, offsets)
    rows[indices[offsets[0]], 2] ^= 64
    tables[0].scrub()
    np.testing.assert_array_equal(collection(indices, offsets, check=check), expected)


def test_indices_of_a_mapped_table_are_those_of_its_mapping() -> None:
    mapped = sedq.EmbeddingBag.from_float(np.eye(3), index_mapping=np.array([0, -1, 1, 2, -1]))
    collection = sedq.EmbeddingBagCollection([mapped, mapped])
    got = collection([3, 4, 2, 3], [0, 2, 4])
    np.testing.assert_array_equal(got, np.hstack([mapped([3, 4], [0]), mapped([2, 3], [0])]))


def test_the_order_is_that_of_a_keyed_jagged_tensor() -> None:
    """Keys one after another, each with the bags of all requests."""
    tables = [sedq.EmbeddingBag.from_float(np.full((2, 1), v, np.float32)) for v in (1, 10)]
    got = sedq.EmbeddingBagCollection(tables)([0, 1, 1, 0, 0], [0, 2, 3, 3, 5])
    np.testing.assert_array_equal(got, [[2, 0], [1, 20]])


@pytest.mark.parametrize("level", ["digest", "exact", "full"])
def test_corrupted_rows_are_found_and_healed(level: str, kernels: _dispatch.Context) -> None:
    tables = bags(keep_source=True)
    collection = sedq.EmbeddingBagCollection(tables)
    indices, offsets = requests(200)
    clean = collection(indices, offsets)
    for number, row in ((0, 3), (2, int(indices[offsets[2 * 200]])), (4, 7)):
        faults.flip_row_bit(tables[number], row, 2)
    assert not np.array_equal(collection(indices, offsets, check="off"), clean)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(collection(indices, offsets, check=level), clean)
    assert {e.operator for e in seen.events} == {"table.0", "table.2", "table.4"}
    assert seen.repairs == {"reloaded": 3}
    assert all(bag.bad_rows() == [] for bag in tables)


def test_transient_faults(kernels: _dispatch.Context) -> None:
    tables = bags()
    collection = sedq.EmbeddingBagCollection(tables)
    indices, offsets = requests(20)
    clean = collection(indices, offsets)
    with sedq.monitor() as seen, faults.accumulator_fault("bag", visit=30, flip=1 << 29) as strike:
        np.testing.assert_array_equal(collection(indices, offsets), clean)
    assert strike.fired == 1
    assert seen.verdicts == {"transient": 1}
    with faults.accumulator_fault("bag", visit=30, flip=1 << 29):
        assert not np.array_equal(collection(indices, offsets, check="off"), clean)
    with faults.accumulator_fault("bag", visit=30, flip=1 << 29), pytest.raises(sedq.SoftErrorDetected, match=r"table\."):
        collection(indices, offsets, on_error="raise")
    with faults.accumulator_fault("bag", visit=30, flip=1 << 29), pytest.warns(sedq.SoftErrorWarning):
        collection(indices, offsets, on_error="warn")


def test_a_table_that_somebody_writes_to_is_pooled_again() -> None:
    tables = bags()
    collection = sedq.EmbeddingBagCollection(tables)
    indices, offsets = requests(20)
    expected = one_by_one(tables, indices, offsets)
    tables[1].table.guard.version = 3  # a write that goes on
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(collection(indices, offsets), expected)
    assert seen.checks == {f"table.{n}": 20 for n in range(5)}


def test_new_values_that_came_meanwhile_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer came and went between the pooling of the table and the end of the call."""
    tables = bags()
    collection = sedq.EmbeddingBagCollection(tables)
    indices, offsets = requests(20)
    new, pool_many = np.full((SIZES[0], DIMS[0]), 9, np.float32), _collection.pool_many

    def overtaken(*args: Any) -> Any:
        found = pool_many(*args)
        tables[0].update_rows(np.arange(SIZES[0]), new)
        return found

    before = collection(indices, offsets)
    monkeypatch.setattr(_collection, "pool_many", overtaken)
    got = collection(indices, offsets)
    monkeypatch.undo()
    np.testing.assert_array_equal(got, collection(indices, offsets))
    assert not np.array_equal(got[:, : DIMS[0]], before[:, : DIMS[0]])


def test_a_calibration_serves_every_table_of_a_collection() -> None:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(500, 16)).astype(np.float32))
    calls = [(rng.integers(0, 500, 2000), np.arange(0, 2000, 20)) for _ in range(50)]
    calibration = sedq.calibrate_thresholds(bag, calls, target_fpr=1e-3)
    collection = sedq.EmbeddingBagCollection([bag, bag])
    indices, offsets = rng.integers(0, 500, 4000), np.arange(0, 4001, 20)
    clean = collection(indices, offsets)
    np.testing.assert_array_equal(collection(indices, offsets, threshold=calibration), clean)
    seen = dict.fromkeys(("bound", "calibration"), 0)
    for visit in range(0, 200, 5):  # of the second table too
        for name, threshold in (("bound", "bound"), ("calibration", calibration)):
            with sedq.monitor() as m, faults.accumulator_fault("bag", visit=visit, flip=1 << 6):
                collection(indices, offsets, threshold=threshold, num_threads=1)
            seen[name] += m.detections > 0
    assert seen["calibration"] > seen["bound"] + 10
    with pytest.warns(sedq.CalibrationWarning, match="pooling 2000 to 2000"):
        collection(indices, [0, 2000, 4000], threshold=calibration)


def test_out_and_repr() -> None:
    collection = sedq.EmbeddingBagCollection(bags())
    indices, offsets = requests(4)
    out = np.empty((4, collection.dim), np.float32)
    assert collection(indices, offsets, out=out) is out
    np.testing.assert_array_equal(out, collection(indices, offsets))
    assert repr(collection) == "<EmbeddingBagCollection of 5 tables, 114 columns>"


ONE = [0] * 5
BAD: list[tuple[type[Exception], str, Any, Any, dict[str, Any]]] = [
    (ValueError, "offsets: got None, expected where each bag starts", ONE, None, {}),
    (ValueError, "offsets: got 5, expected one more than a multiple of 5 tables", ONE, [0, 1, 2, 3, 4], {}),
    (ValueError, "offsets: got 0, expected one more", [], [], {}),
    (ValueError, "offsets: got 1 first, expected 0", ONE, [1, 1, 2, 3, 4, 5], {}),
    (ValueError, "offsets: got 1 after 2", ONE, [0, 2, 1, 3, 4, 5], {}),
    (ValueError, "offsets: got 4 at the end, expected the number of indices, 5", ONE, [0, 1, 2, 3, 4, 4], {}),
    (IndexError, "indices: got 3 at position 3, expected 0 to 2 for table 3", [0, 0, 0, 3, 0], [0, 1, 2, 3, 4, 5], {}),
    (IndexError, "indices: got -1 at position 4", [0, 0, 0, 0, -1], [0, 1, 2, 3, 4, 5], {}),
    (ValueError, "indices: got", [[0]], [0, 1, 2, 3, 4, 5], {}),
    (ValueError, "per_sample_weights: got", ONE, [0, 1, 2, 3, 4, 5], {"per_sample_weights": [1.0]}),
    (ValueError, "check: got 'mod127'", ONE, [0, 1, 2, 3, 4, 5], {"check": "mod127"}),
    (ValueError, "threshold: got 'none'", ONE, [0, 1, 2, 3, 4, 5], {"threshold": "none"}),
    (ValueError, "out: got", ONE, [0, 1, 2, 3, 4, 5], {"out": np.empty((1, 3), np.float32)}),
]


def apart(how: str) -> list[sedq.EmbeddingBag]:
    """Tables one of which, if any, is not pooled together with the others."""
    tables = bags()
    if how == "pruned":
        tables[0] = sedq.EmbeddingBag.from_float(np.ones((SIZES[0], DIMS[0])), padding_idx=1)
    if how == "overlaid":
        tables[0] = sedq.EmbeddingBag.view_fused(tables[0].to_fused(), parity=8)
        tables[0].table.overlay[2] = tables[0].table.rows[2].copy()
    return tables


@pytest.mark.parametrize("how", ["together", "pruned", "overlaid"])
@pytest.mark.parametrize(("kind", "message", "indices", "offsets", "options"), BAD)
def test_bad_arguments(kind: type[Exception], message: str, indices: Any, offsets: Any, options: Any, how: str) -> None:
    out = np.full((1, sum(DIMS)), 7, np.float32)
    collection = sedq.EmbeddingBagCollection(apart(how))
    with pytest.raises(kind, match=message):
        collection(indices, offsets, **{"out": out} | options)
    assert (out == 7).all(), "nothing is written"


def test_an_index_beyond_a_table_of_long_bags_is_found_before_anything_is_written() -> None:
    collection = sedq.EmbeddingBagCollection(bags())
    indices = np.zeros(5004, np.int64)
    indices[-1] = SIZES[4]
    out = np.full((1, sum(DIMS)), 7, np.float32)
    with pytest.raises(IndexError, match="got 200 at position 5003, expected 0 to 199 for table 4"):
        collection(indices, [0, 5000, 5001, 5002, 5003, 5004], out=out)
    assert (out == 7).all()


def test_bad_collections() -> None:
    with pytest.raises(ValueError, match="bags: got none"):
        sedq.EmbeddingBagCollection([])
    with pytest.raises(TypeError, match=r"bags\[1\]: got int 5, expected an EmbeddingBag"):
        sedq.EmbeddingBagCollection([bags()[0], 5])  # type: ignore[list-item]
