"""What campaigns strike: which words a site has, that one is struck and no other, and that all is as before afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import _config, faults
from sedq.commands import _demo
from sedq.datasets import load_msweb
from sedq.faults import _strike, _targets

Array = NDArray[Any]
Made = tuple[Any, list[Any]]
FLIP = (faults.BitFlip(),)


def a_product() -> Made:
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (18, 7), dtype=np.int8), 0.1, 3, encode=("exact", "mod127"))
    return packed, [rng.integers(0, 256, (3, 7), dtype=np.uint8) for _ in range(3)]


def a_layer() -> Made:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(18, 7)).astype(np.float32), rng.normal(size=18).astype(np.float32)
    x = rng.normal(size=(9, 7)).astype(np.float32)
    return sedq.QuantizedLinear.from_float(weight, bias, keep_source=True).observe(x).freeze(), [x[:4], x[4:]]


def a_table() -> Made:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(40, 5)).astype(np.float32), keep_source=True)
    weights = rng.normal(size=6).astype(np.float32)
    return bag, [(np.array([3, 4, 3, 30]), np.array([0, 1, 1, 4])), (rng.integers(0, 40, 6), np.array([0, 6]), weights)]


def a_model() -> Made:
    data = load_msweb()
    return _demo.build(data), [data.heldout.batch(i, i + 2) for i in (0, 2, 50)]


MAKERS = {f.__name__[2:]: f for f in (a_product, a_layer, a_table, a_model)}


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest) -> Made:
    return MAKERS[request.param]()


def drawer_of(made: Made, sites: list[str], seed: int = 0, check: str = "exact") -> _strike.Drawer:
    target = _targets.target_of(*made)
    with _config.config_context(num_threads=1):
        return _strike.Drawer(target, tuple(sites), FLIP, (True, False), seed, check, "bound")


def everything(target: _targets.Target) -> dict[str, bytes]:
    """All bytes that can be struck."""
    found = {
        f"{name}/{label}": a.tobytes()
        for name, part in target.parts.items()
        for label, a in _targets.arrays_of(part).items()
    }
    for i, batch in enumerate(target.batches):
        for key, value in batch.items():
            arrays = value if isinstance(value, list) else [value]
            found |= {f"batch {i}/{key}/{j}": a.tobytes() for j, a in enumerate(arrays)}
    return found


def differing_bits(a: dict[str, bytes], b: dict[str, bytes]) -> dict[str, int]:
    assert a.keys() == b.keys()
    return {
        k: int(np.bitwise_count(np.frombuffer(a[k], np.uint8) ^ np.frombuffer(b[k], np.uint8)).sum())
        for k in a
        if a[k] != b[k]
    }


# ---- words


def test_words_of_weights_are_the_weights() -> None:
    packed, _ = a_product()
    words = _targets.memory(packed, "weights")
    assert words is not None
    n, k = packed.shape
    assert (words.count, words.bits) == (n * k, 8)
    sound = packed.unpack()
    seen = set()
    for word in range(words.count):
        at = words.position(word)
        words.array[at] ^= 64
        (row,), (column,) = np.nonzero(packed.unpack() != sound)
        seen.add((int(row), int(column)))
        # the next word is that of the next column of B, so that a paired error stays in a row of it
        assert (int(row), int(column)) == (word % n, word // n)
        words.array[at] ^= 64
    assert len(seen) == n * k


@pytest.mark.parametrize("bits", [8, 4, 2, 16, 32])
def test_words_of_tables_are_the_fields_of_rows(bits: int) -> None:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(40, 10)).astype(np.float32), bits=bits)
    every = np.arange(40)[:, None]
    sound = bag(every, check="off")
    per_byte = max(1, 8 // bits)
    fields = {"codes": (-(-10 // per_byte), max(8, bits)), "digest": (1, 64)}
    if bits <= 8:
        fields |= dict.fromkeys(("scale", "bias"), (1, 32 if bits == 8 else 16))
    if bits != 8:
        fields["sums"] = (1 if bits < 8 else 2, 32)
    assert {s for s in _targets.TABLE_SITES if _targets.memory(bag, s)} == {f"table.{name}" for name in fields}
    for site, (count, width) in fields.items():
        words = _targets.memory(bag, f"table.{site}")
        assert words is not None
        assert (words.count, words.bits) == (40 * count, width)
        for word in (0, count - 1, 7 * count, words.count - 1):
            at, (row, column) = words.position(word), divmod(word, count)
            words.array[at] ^= 2
            assert bag.bad_rows() == [row]
            changed = np.argwhere(bag(every, check="off") != sound).tolist()
            if site == "codes":
                assert changed == [[row, column * per_byte]]
            else:  # a code of 0 hides a scale, and digests and sums are for checks
                assert {r for r, _ in changed} <= ({row} if site in ("scale", "bias") else set())
            words.array[at] ^= 2


def test_rows_that_are_only_read_are_not_struck() -> None:
    rng = np.random.default_rng(0)
    fused = sedq.EmbeddingBag.from_float(rng.normal(size=(40, 8)).astype(np.float32)).to_fused()
    bag = sedq.EmbeddingBag.view_fused(fused)
    names = faults.site_names(bag, [(np.array([3, 4]), np.array([0, 2]))])
    assert [s for s in names if s.startswith("table.")] == []


def test_rows_of_a_pruned_table_are_those_that_its_indices_mean() -> None:
    rng = np.random.default_rng(0)
    mapping = np.array([-1, 0, 2, -1, 1, 3])
    bag = sedq.EmbeddingBag.from_float(
        rng.normal(size=(4, 8)).astype(np.float32), padding_idx=5, index_mapping=mapping, keep_source=True
    )
    batch = (np.array([0, 1, 5, 4, 4]), np.array([0, 3, 5]))
    target = _targets.target_of(bag, [batch])
    assert target.rows_read(target.batches[0], "EmbeddingBag").tolist() == [0, 1, 1]
    result = faults.Campaign(bag, [batch], sites=["table.codes", "table.scale", "pooled"]).run(120)
    assert result.goal["holds"]
    assert result.goal["consequential"] > 40
    assert faults.Campaign(bag, [batch]).residuals() is None


def test_every_target_has_the_sites_it_should() -> None:
    names = {kind: set(faults.site_names(*make())) for kind, make in MAKERS.items()}
    memory = {"weights", "digits", "row_sums", "col_sums", "parameters.col_offsets", "parameters.digest"}
    kernel = {"accumulator", "requantised", "output", "checks"}
    assert names["product"] == memory | kernel | {"encoded_column", "scale", "zero_point", "parameters.zero_point", "input"}
    derived = {"scale", "zero_point", "bias", "parameters.multiplier", "parameters.bias"}
    assert names["layer"] == memory | kernel | derived | {"codes", "input"}
    rows = {"table.codes", "table.scale", "table.bias", "table.digest"}
    bags = {"bag.accumulator", "pooled", "bag.sums", "indices.consumed", "indices", "offsets"}
    assert names["table"] == rows | bags
    assert names["model"] == memory | kernel | derived | rows | bags | {"codes", "interaction", "activations", "dense"}


# ---- draws


def test_a_fault_depends_on_the_seed_and_its_number_alone(made: Made) -> None:
    sites = [s for s in faults.site_names(*made) if s not in _strike.MAY_CRASH]
    forwards, backwards = drawer_of(made, sites), drawer_of(made, sites)
    count = 4 * len(sites)
    drawn = [forwards.draw(i) for i in range(count)]
    assert [backwards.draw(i) for i in reversed(range(count))] == drawn[::-1]
    assert [f.trial for f in drawn] == list(range(count))
    assert [f.site for f in drawn] == sites * 4
    other = drawer_of(made, sites, seed=1)
    assert [other.draw(i) for i in range(count)] != drawn


def test_every_word_is_drawn() -> None:
    drawer = drawer_of(a_layer(), ["weights"])
    drawn = [drawer.draw(i).element for i in range(3000)]
    assert set(drawn) == set(range(18 * 7))


def test_rows_are_struck_that_the_batch_reads() -> None:
    made = a_table()
    drawer = drawer_of(made, ["table.codes"])
    for i in range(200):
        fault = drawer.draw(i)
        assert fault.element // 5 in made[1][fault.batch][0]


@pytest.mark.parametrize(
    "site", ["accumulator", "output", "requantised", "bag.accumulator", "pooled", "codes", "interaction"]
)
def test_a_kernel_is_struck_at_every_one_of_its_visits(site: str) -> None:
    drawer = drawer_of(a_model(), [site])
    with _config.config_context(num_threads=1):
        faults_drawn = [drawer.draw(i) for i in range(400)]
        for batch in range(3):
            count = drawer.visits(site, batch, "off")
            drawn = {f.visit for f in faults_drawn if f.batch == batch}
            assert drawn <= set(range(count))
            assert len(drawn) > min(count, 100) // 2
        for fault in faults_drawn[:60]:
            for check in ("off", "exact", "full"):
                with _strike.struck(drawer, fault, check) as (batch_, seen):
                    drawer.target.call(batch_, check, "bound")
                assert seen.fired > 0, (fault, check)


# ---- strikes


def test_one_word_is_struck_and_put_back(made: Made) -> None:
    names = [s for s in faults.site_names(*made) if s not in _strike.MAY_CRASH]
    drawer = drawer_of(made, names)
    target = drawer.target
    with _config.config_context(num_threads=1):
        for batch in target.batches:
            target.call(batch, "exact", "bound")
        sound = everything(target)
        for trial in range(6 * len(names)):
            fault = drawer.draw(trial)
            memory = fault.site not in _strike.KERNEL_SITES and fault.site != _strike.FLOW_SITE
            with _strike.struck(drawer, fault, "exact") as (batch, seen):
                if memory and fault.site in _strike.INPUT_SITES:
                    assert everything(target) == sound  # a copy is struck
                    assert any(_changed(batch[k], target.batches[fault.batch][k]) for k in batch)
                elif memory and fault.site not in _targets.AT_REST:
                    assert list(differing_bits(everything(target), sound).values()) == [1], fault
                if not memory:
                    target.call(batch, "off", "bound")
                assert seen.fired >= memory
            target.call(target.batches[0], "exact", "bound")  # parameters that were dropped are derived again
            assert everything(target) == sound, fault


def _changed(a: Any, b: Any) -> bool:
    return (
        any(x.tobytes() != y.tobytes() for x, y in zip(a, b, strict=True))
        if isinstance(a, list)
        else a.tobytes() != b.tobytes()
    )


def calls_under(drawer: _strike.Drawer, fault: _strike.Fault, count: int) -> Iterator[Array]:
    with _strike.struck(drawer, fault, "off") as (batch, _):
        for _ in range(count):
            yield drawer.target.call(batch, "off", "bound")


@pytest.mark.parametrize(("make", "site"), [(a_product, "weights"), (a_layer, "parameters.bias"), (a_table, "table.codes")])
def test_a_transient_fault_is_gone_after_it_was_read(make: Callable[[], Made], site: str) -> None:
    drawer = drawer_of(make(), [site])
    seen = set()
    for trial in range(40):
        fault = drawer.draw(trial)
        sound = drawer.target.call(drawer.target.batches[fault.batch], "off", "bound")
        # calls without checks count none: the fault goes with the first operator that reports its checks
        with _strike.struck(drawer, fault, "exact") as (batch, _), sedq.monitor() as m:
            y = drawer.target.call(batch, "exact", "bound")
        assert y.tobytes() == sound.tobytes()
        seen |= {(fault.persistent, e.verdict) for e in m.events}
    assert (True, "memory") in seen
    assert (False, "transient") in seen or site == "parameters.bias"  # parameters are derived again in any case


def test_the_callers_target_is_not_struck() -> None:
    packed, inputs = a_product()
    before = copy.deepcopy(packed)
    y = sedq.matmul_integer(inputs[0], packed)
    faults.Campaign(packed, inputs).run(300)
    assert packed._core.panels.tobytes() == before._core.panels.tobytes()
    np.testing.assert_array_equal(sedq.matmul_integer(inputs[0], packed), y)


def test_pairs_are_struck_in_one_row_of_b() -> None:
    # +e and -e in neighbouring weights of a row of B cancel in the sums of C's rows
    campaign = faults.Campaign(*a_product(), sites=["weights"], models=[faults.PairedError()])
    result = campaign.run(100)
    assert result.outcomes["sdc"] > 10
    assert result.goal["trials"] == 0  # nothing of it was promised


# ---- wrong targets


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (np.zeros(3), [1]), "target: got"),
        (lambda: (sedq.QuantizedLinear.from_float(np.ones((2, 3), np.float32)), [np.ones((1, 3), np.float32)]), "frozen"),
        (lambda: (a_product()[0], []), "inputs: got none"),
        (lambda: (a_product()[0], [np.zeros((2, 6), np.uint8)]), "x: got|expected"),
        (lambda: (a_table()[0], [np.zeros(3)]), "inputs: got"),
        (lambda: (a_table()[0], [(np.array([40]), np.array([0, 1]))]), "indices: got|expected"),
        (lambda: (a_model()[0], [np.zeros(3)]), "inputs: got"),
        (lambda: (load_model(), [load_msweb().heldout.batch(0, 2)]), "not quantised"),
    ],
)
def test_wrong_targets_are_refused(make: Callable[[], Made], message: str) -> None:
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        faults.Campaign(*make())


def load_model() -> sedq.DLRM:
    data = load_msweb()
    return sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
