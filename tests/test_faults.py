"""Injection of faults: every bit can be hit, a fault strikes when and where it is said to, and never outside its block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import faults
from sedq._core import _dispatch, _embedding

Array = NDArray[Any]
INDICES = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
BAGS = len(INDICES)


@pytest.fixture
def bag(rng: np.random.Generator) -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(rng.normal(size=(8, 5)).astype(np.float32))


@pytest.fixture
def product(rng: np.random.Generator) -> Callable[[], Array]:
    """An unchecked product of two blocks of columns, 3 x 100."""
    packed = sedq.pack_weights(rng.integers(-128, 128, (100, 40), dtype=np.int8))
    x = rng.integers(0, 256, (3, 40), dtype=np.uint8)
    return lambda: sedq.matmul_integer(x, packed, check="off")


def pooled(bag: sedq.EmbeddingBag, **kwargs: Any) -> Array:
    return bag(INDICES, check="off", **kwargs)


def flipped(a: Array, b: Array) -> list[tuple[int, int]]:
    """(byte, bit) of every bit that differs."""
    differ = np.unpackbits(np.frombuffer(a.tobytes(), np.uint8) ^ np.frombuffer(b.tobytes(), np.uint8), bitorder="little")
    return [(int(i) // 8, int(i) % 8) for i in np.flatnonzero(differ)]


# --- bits of stored data ---


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_flip_bit(dtype: type, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    for byte in range(array.nbytes):
        for bit in range(8):
            before = array.copy()
            faults.flip_bit(array, byte, bit)
            assert flipped(before, array) == [(byte, bit)]
            faults.flip_bit(array, byte, bit)
            assert array.tobytes() == before.tobytes()


@pytest.mark.parametrize(("byte", "bit"), [(-1, 0), (6, 0), (0, -1), (0, 8), (2**70, 0)])
def test_flip_bit_out_of_range(byte: int, bit: int) -> None:
    array = np.zeros(6, np.uint8)
    with pytest.raises(ValueError, match=f"got byte {byte}, bit {bit}, expected a byte below 6 and a bit below 8"):
        faults.flip_bit(array, byte, bit)
    assert not array.any()


def test_flip_bit_of_an_array_it_cannot_write(rng: np.random.Generator) -> None:
    frozen = np.zeros(6, np.uint8)
    frozen.flags.writeable = False
    for array in (frozen, np.zeros((4, 4), np.uint8)[:, ::2], np.zeros((4, 4), np.uint8).T[1:]):
        with pytest.raises(ValueError, match="array: got a read-only or non-contiguous array"):
            faults.flip_bit(array, 0, 0)
    with pytest.raises(ValueError, match="expected a byte below 0"):
        faults.flip_bit(np.zeros(0, np.uint8), 0, 0)


@pytest.mark.parametrize("array", [[0, 1], b"abc", None, 3], ids=repr)
def test_flip_bit_of_no_array(array: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"array: got .*expected"):
        faults.flip_bit(array, 0, 0)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 5), (17, 4), (65, 9)])
def test_flip_weight_bit(n: int, k: int, rng: np.random.Generator) -> None:
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    packed = sedq.pack_weights(w)
    for j in range(n):
        faults.flip_weight_bit(packed, j, j % k, j % 8)
        w.view(np.uint8)[j, j % k] ^= np.uint8(1 << j % 8)
        np.testing.assert_array_equal(packed.unpack(), w)
    for wrong in ((n, 0), (-1, 0), (0, k), (0, -1)):
        with pytest.raises(ValueError, match="expected indices within"):
            faults.flip_weight_bit(packed, *wrong, 0)
    for bit in (-1, 8):
        with pytest.raises(ValueError, match="a bit below 8"):
            faults.flip_weight_bit(packed, 0, 0, bit)
    np.testing.assert_array_equal(packed.unpack(), w)


@pytest.mark.parametrize("dim", [1, 5, 8, 33])
def test_flip_row_bit_reaches_all_but_the_padding(dim: int, rng: np.random.Generator) -> None:
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(3, dim)).astype(np.float32))
    before = bag.table.rows.copy()
    width = _embedding.row_bytes(dim)
    for bit in range(8 * (dim + 16)):
        faults.flip_row_bit(bag, 1, bit)
        ((byte, position),) = flipped(before, bag.table.rows)
        at = byte - width
        assert (at, position) == (bit // 8 if bit < 8 * dim else bit // 8 + width - dim - 16, bit % 8)
        assert bag.bad_rows() == [1]
        faults.flip_row_bit(bag, 1, bit)
    np.testing.assert_array_equal(bag.table.rows, before)
    for row, bit in ((-1, 0), (3, 0), (0, -1), (0, 8 * (dim + 16))):
        with pytest.raises(ValueError, match=f"got row {row}, bit {bit}, expected a row below 3 and a bit below"):
            faults.flip_row_bit(bag, row, bit)
    assert bag.bad_rows() == []


def test_flips_of_something_else(bag: sedq.EmbeddingBag) -> None:
    with pytest.raises((TypeError, ValueError), match=r"packed: got .*expected"):
        faults.flip_weight_bit(bag, 0, 0, 0)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match=r"bag: got .*expected"):
        faults.flip_row_bit(np.zeros((3, 24), np.uint8), 0, 0)  # type: ignore[arg-type]


# --- accumulators ---


def test_a_bag_is_struck_at_its_visit(bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    clean = pooled(bag)
    for visit in range(BAGS):
        for element in (0, 3, 4, 5, 13):
            with faults.accumulator_fault("bag", visit=visit, element=element, flip=1 << 30) as strike:
                got = pooled(bag)
                assert strike.fired == 0  # known when the block has ended
            assert strike.fired == 1
            assert np.argwhere(got != clean).tolist() == [[visit, element % 5]]
    np.testing.assert_array_equal(pooled(bag), clean)


@pytest.mark.parametrize("repeat", [1, 2, 3, 100])
@pytest.mark.parametrize("visit", [0, 2, 3])
def test_repeat_strikes_visits_in_a_row(visit: int, repeat: int, bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    clean = pooled(bag)
    with faults.accumulator_fault("bag", visit=visit, flip=1 << 30, repeat=repeat) as strike:
        got = pooled(bag)
    struck = [*range(visit, min(visit + repeat, BAGS))]
    assert strike.fired == len(struck)
    assert np.unique(np.nonzero(got != clean)[0]).tolist() == struck


def test_visits_go_on_over_calls(bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    clean = pooled(bag)
    with faults.accumulator_fault("bag", visit=BAGS + 1, flip=1 << 30) as strike:
        first, second, third = (pooled(bag) for _ in range(3))
    assert strike.fired == 1
    np.testing.assert_array_equal(first, clean)
    assert np.unique(np.nonzero(second != clean)[0]).tolist() == [1]
    np.testing.assert_array_equal(third, clean)


def test_a_visit_that_never_comes(bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    clean = pooled(bag)
    with faults.accumulator_fault("bag", visit=BAGS, flip=1 << 30) as strike:
        np.testing.assert_array_equal(pooled(bag), clean)
    assert strike.fired == 0
    np.testing.assert_array_equal(pooled(bag), clean)
    with faults.accumulator_fault("bag", visit=0, flip=0) as strike:
        np.testing.assert_array_equal(pooled(bag), clean)
    assert strike.fired == 1  # a dummy fault strikes and changes nothing


@pytest.mark.parametrize("bit", range(32))
def test_flip_is_a_mask_of_accumulator_bits(bit: int, kernels: _dispatch.Context) -> None:
    """With bias 0 a bag's accumulator is its output."""
    rows = np.zeros((1, 3 + 8), np.uint8)
    rows[0, :3] = [10, 20, 30]
    rows[0, 3:7] = np.float32(0.1).reshape(1).view(np.uint8)
    bag = sedq.EmbeddingBag.from_fused(rows)
    clean = bag([[0]], check="off")
    with faults.accumulator_fault("bag", element=1, flip=1 << bit):
        got = bag([[0]], check="off")
    assert (got.view(np.uint32) ^ clean.view(np.uint32)).tolist() == [[0, 1 << bit, 0]]
    with faults.accumulator_fault("bag", element=2, flip=1 << bit | 5):
        got = bag([[0]], check="off")
    assert (got.view(np.uint32) ^ clean.view(np.uint32)).tolist() == [[0, 0, 1 << bit | 5]]


def test_a_tile_is_struck_at_its_element(product: Callable[[], Array], kernels: _dispatch.Context) -> None:
    clean = product()
    visits = faults.count_visits(product)
    assert visits >= 2
    seen = set()
    for visit in range(visits):
        for element in (0, 1, 63, 64, 70, 10**9):
            with faults.accumulator_fault("tile", visit=visit, element=element, flip=0x4001) as strike:
                got = product()
            assert strike.fired == 1
            differ = clean.view(np.uint32) ^ got.view(np.uint32)
            assert set(np.unique(differ)) <= {0, 0x4001}
            seen |= {tuple(at) for at in np.argwhere(differ)}
            assert np.count_nonzero(differ) <= 1  # none if the element is padding
    assert {column // 64 for _, column in seen} == {0, 1}
    np.testing.assert_array_equal(product(), clean)


def test_count_visits(bag: sedq.EmbeddingBag, product: Callable[[], Array], kernels: _dispatch.Context) -> None:
    assert faults.count_visits(lambda: pooled(bag), "bag") == BAGS
    assert faults.count_visits(lambda: [pooled(bag), pooled(bag)], "bag") == 2 * BAGS
    assert faults.count_visits(lambda: bag(INDICES, check="full"), "bag") == BAGS  # the second accumulation is no visit
    assert faults.count_visits(lambda: pooled(bag), "tile") == 0
    assert faults.count_visits(product, "bag") == 0
    assert faults.count_visits(lambda: None) == 0
    wide = sedq.EmbeddingBag.from_float(np.ones((8, 300), np.float32))
    blocks, left = divmod(faults.count_visits(lambda: pooled(wide), "bag"), BAGS)  # of columns, as wide as suits a kernel
    assert (blocks >= 1, left) == (True, 0)


def test_other_kernels_and_other_kinds_are_not_struck(
    bag: sedq.EmbeddingBag, product: Callable[[], Array], kernels: _dispatch.Context
) -> None:
    clean = product()
    with faults.accumulator_fault("bag", flip=1 << 30, repeat=99) as strike:
        np.testing.assert_array_equal(product(), clean)
    assert strike.fired == 0
    with faults.accumulator_fault("tile", flip=1 << 30) as tile, faults.accumulator_fault("bag", flip=1 << 30) as other:
        assert (product() != clean).any()
        pooled(bag)
    assert (tile.fired, other.fired) == (1, 1)


def test_a_second_fault_of_one_kernel_is_refused(bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    """There is one plan per kernel: an inner fault would take the place of the outer one, and be counted as it."""
    clean = pooled(bag)
    with faults.accumulator_fault("bag", visit=BAGS - 1, flip=1 << 30) as outer:
        with pytest.raises((RuntimeError, ValueError)), faults.accumulator_fault("bag", visit=0):
            pooled(bag)
        assert np.unique(np.nonzero(pooled(bag) != clean)[0]).tolist() == [BAGS - 1]
    assert outer.fired == 1


def test_a_block_ends_with_its_exception(bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    clean, before = pooled(bag), sedq.get_config()

    def fails() -> None:
        inside = sedq.get_config()
        assert (inside.kernels.hooked, inside.kernels.name, inside.num_threads) == (True, kernels.name, 1)
        raise KeyError

    with pytest.raises(KeyError), faults.accumulator_fault("bag", visit=0, flip=1 << 30) as strike:
        fails()
    assert strike.fired == 0
    assert sedq.get_config() == before
    assert not before.kernels.hooked
    np.testing.assert_array_equal(pooled(bag), clean)
    with faults.accumulator_fault("bag", visit=10**9) as strike:  # nothing is left of the first fault
        np.testing.assert_array_equal(pooled(bag), clean)
    with pytest.raises(KeyError):
        faults.count_visits(fails, "bag")
    assert sedq.get_config() == before
    assert faults.count_visits(lambda: pooled(bag), "bag") == BAGS


@pytest.mark.parametrize(
    "wrong",
    [
        {"visit": -1}, {"visit": 2**64}, {"element": -1}, {"element": 2**64}, {"repeat": 0}, {"repeat": -3},
        {"flip": -1}, {"flip": 2**32}, {"flip": 1.5}, {"kernel": "gemm"}, {"kernel": None}, {"kernel": 3},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_of_a_fault(wrong: dict[str, Any]) -> None:
    before = sedq.get_config()
    with pytest.raises((TypeError, ValueError)), faults.accumulator_fault(**wrong):
        pytest.fail("the block was entered")
    assert sedq.get_config() == before


def test_wrong_arguments_of_count_visits() -> None:
    with pytest.raises(ValueError, match="kernel: got 'gemm', expected 'tile' or 'bag'"):
        faults.count_visits(lambda: None, "gemm")
    with pytest.raises(TypeError, match="not callable"):
        faults.count_visits(3)  # type: ignore[arg-type]


# --- activations ---


@pytest.fixture(scope="module")
def model() -> tuple[sedq.DLRM, tuple[Array, list[Array]]]:
    rng = np.random.default_rng(3)

    def layer(n: int, k: int) -> tuple[Array, Array]:
        return rng.normal(size=(n, k)).astype(np.float32) / k**0.5, rng.normal(size=n).astype(np.float32)

    tables = [rng.normal(size=(10, 4)).astype(np.float32) for _ in range(2)]
    dlrm = sedq.DLRM([layer(8, 5), layer(4, 8)], tables, [layer(6, 7), layer(1, 6)])
    requests = rng.normal(size=(20, 5)).astype(np.float32), [rng.integers(0, 10, (20, 3)) for _ in range(2)]
    return dlrm.quantize((*requests, None)), requests


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("mlp", ["bottom", "top"])
def test_activations_are_struck_once(
    mlp: str, layer: int, model: tuple[sedq.DLRM, tuple[Array, list[Array]]], kernels: _dispatch.Context
) -> None:
    dlrm, requests = model
    clean, layers = dlrm(*requests), list(getattr(dlrm, mlp))
    k = layers[layer].packed.shape[1]
    for byte, bit in ((0, 7), (3 * k + 1, 6), (20 * k + k + 2, 7)):  # the last is taken modulo 20 k
        with faults.activation_fault(dlrm, mlp, layer, byte=byte, bit=bit) as strike:
            silent = dlrm(*requests, check="off")
            assert strike.fired == 1
            np.testing.assert_array_equal(dlrm(*requests, check="off"), clean)  # once only
        assert {int(i) for i in np.flatnonzero(silent != clean)} <= {byte // k % 20}
        fault = faults.activation_fault(dlrm, mlp, layer, byte=byte, bit=bit)
        with sedq.monitor() as seen, fault as strike:
            got = dlrm(*requests)
        assert strike.fired == 1
        assert [(e.operator, e.kind, e.row, e.verdict) for e in seen.events] == [
            (f"{mlp}.{layer}", "input", byte // k % 20, "transient")
        ]
        np.testing.assert_array_equal(got, clean)
    assert getattr(dlrm, mlp) == layers
    np.testing.assert_array_equal(dlrm(*requests), clean)


def test_struck_activations_matter(model: tuple[sedq.DLRM, tuple[Array, list[Array]]]) -> None:
    dlrm, requests = model
    clean, changed = dlrm(*requests), 0
    for byte in range(0, 140, 5):
        with faults.activation_fault(dlrm, "top", 0, byte=byte, bit=7):
            changed += int((dlrm(*requests, check="off") != clean).any())
    assert changed > 20


def test_layers_are_restored_after_an_exception(model: tuple[sedq.DLRM, tuple[Array, list[Array]]]) -> None:
    dlrm, _ = model
    layers = list(dlrm.top)

    def fails() -> None:
        assert dlrm.top != layers
        raise KeyError

    with pytest.raises(KeyError), faults.activation_fault(dlrm, "top", 1) as strike:
        fails()
    assert strike.fired == 0
    assert dlrm.top == layers


def test_activations_of_no_requests(model: tuple[sedq.DLRM, tuple[Array, list[Array]]]) -> None:
    dlrm, (dense, indices) = model
    with faults.activation_fault(dlrm, "top", 0) as strike:
        assert dlrm(dense[:0], [i[:0] for i in indices]).shape == (0,)
    assert strike.fired == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mlp": "middle"}, "mlp: got 'middle', expected 'bottom' or 'top'"),
        ({"layer": 2}, "layer: got 2, expected 0 to 1"),
        ({"layer": -1}, "layer: got -1, expected 0 to 1"),
        ({"bit": 8}, "bit 8, expected .* a bit below 8"),
        ({"bit": -1}, "bit -1, expected .* a bit below 8"),
    ],
)
def test_wrong_arguments_of_an_activation_fault(
    wrong: dict[str, Any], message: str, model: tuple[sedq.DLRM, tuple[Array, list[Array]]]
) -> None:
    dlrm, requests = model
    layers = list(dlrm.top)
    arguments = {"mlp": "top", "layer": 0} | wrong
    with pytest.raises(ValueError, match=message), faults.activation_fault(dlrm, **arguments):
        dlrm(*requests)
    assert dlrm.top == layers


def test_a_model_without_layers_has_no_activations(rng: np.random.Generator) -> None:
    weights = [(np.ones((4, 4), np.float32), np.ones(4, np.float32))]
    top = [(np.ones((1, 5), np.float32), np.ones(1, np.float32))]
    dlrm = sedq.DLRM(weights, [np.ones((3, 4), np.float32)], top)
    with pytest.raises(ValueError, match="quantis"), faults.activation_fault(dlrm, "top", 0):
        pytest.fail("the block was entered")
