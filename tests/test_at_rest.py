"""What is found at rest leaves a trace too: events, one line of the log, and the reason why it could not be restored."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import faults
from sedq.calibration import calibrate_thresholds

ROWS = 20
QPARAMS: dict[str, Any] = {"x_scale": 0.02, "x_zero_point": 5}


def table(seed: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, 12)).astype(np.float32)


def made(**kwargs: Any) -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(table(), **kwargs)


@pytest.fixture
def packed(rng: np.random.Generator) -> sedq.PackedWeights:
    return sedq.pack_weights(rng.integers(-128, 128, (70, 30), dtype=np.int8), 0.01, bias=rng.normal(size=70))


def model() -> sedq.DLRM:
    rng = np.random.default_rng(0)
    layers = [[(rng.normal(size=(n, k)), np.zeros(n))] for n, k in ((12, 4), (1, 13))]
    built = sedq.DLRM(layers[0], [table()], layers[1])
    return built.quantize((rng.normal(size=(30, 4)), [rng.integers(0, ROWS, (30, 2))], None))


def outcomes(events: Any) -> set[tuple[str, str, str, str]]:
    return {(e.operator, e.kind, e.rung, e.verdict) for e in events}


# ---- tables


def test_a_scrub_says_what_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    bag = made()
    faults.flip_row_bit(bag, 5, 6)
    with caplog.at_level(logging.WARNING, "sedq"), sedq.monitor() as m:
        assert bag.scrub().left == [5]
    (event,) = m.events
    assert outcomes(m.events) == {("scrub", "digest", "none", "memory")}
    assert (event.row, event.detail) == (5, "still corrupted: rows [5], there is no source to reload them from")
    assert m.checks == {"scrub": ROWS}
    assert len(caplog.records) == 1
    assert "scrub: digest check, row 5" in caplog.messages[0]


def test_a_scrub_says_what_it_restores(caplog: pytest.LogCaptureFixture) -> None:
    bag = made(locate=True, parity=5)
    faults.flip_row_bit(bag, 5, 6)
    bag.table.parity.rows[1, 3] ^= 1  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING, "sedq"), sedq.monitor() as m:
        assert bag.scrub(2, 8, redundancy=True).corrected == [5]
        bag.scrub()
    assert outcomes(m.events) == {("scrub", "digest", "none", "memory")}
    assert (m.checks, m.repairs, len(caplog.records)) == ({"scrub": 8 + ROWS}, {"corrected": 1}, 1)
    assert m.events[0].detail == "rows [5] corrected; still corrupted: parity of group 1"


def test_a_scrub_that_only_looks() -> None:
    bag = made(keep_source=True)
    faults.flip_row_bit(bag, 5, 6)
    with sedq.monitor() as m:
        bag.scrub(repair=False)
    assert [(e.rung, e.verdict, e.detail) for e in m.events] == [("none", "memory", "still corrupted: rows [5]")]


def test_a_scrub_adds_at_most_64_events() -> None:
    bag = sedq.EmbeddingBag.from_float(np.ones((200, 4), np.float32))
    bag.table.rows[:, 0] ^= 1
    with sedq.monitor() as m:
        assert len(bag.scrub().left) == 200
    assert m.detections == 64
    assert m.events[0].detail.endswith(", 62, 63] and 136 more, there is no source to reload them from")


@pytest.mark.parametrize("source", [False, True])
def test_rows_restored_by_hand(source: bool) -> None:
    bag = made(keep_source=source)
    faults.flip_row_bit(bag, 5, 6)
    with sedq.monitor() as m:
        assert bag.restore([5, 3, 5]) == ([5, 3, 5] if source else [])
        bag.restore([3])
    assert outcomes(m.events) == {("restore", "digest", "heal" if source else "none", "memory")}
    assert (m.detections, m.repairs) == (1, {"reloaded": 1} if source else {})


USES: dict[str, Callable[[sedq.EmbeddingBag], Any]] = {
    "to_fused": lambda bag: bag.to_fused(),
    "pickle": pickle.dumps,
    "copy": copy.copy,
}


@pytest.mark.parametrize("use", USES)
def test_a_table_that_can_not_be_taken_out(use: str, caplog: pytest.LogCaptureFixture) -> None:
    bag = made()
    faults.flip_row_bit(bag, 5, 6)
    with caplog.at_level(logging.WARNING, "sedq"), sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected) as caught:
        USES[use](bag)
    assert outcomes(caught.value.events) == {("EmbeddingBag", "digest", "raise", "memory")}
    assert (list(m.events), len(caplog.records)) == (list(caught.value.events), 1)


def test_a_table_restored_on_its_way_out() -> None:
    bag = made(keep_source=True)
    faults.flip_row_bit(bag, 5, 6)
    with sedq.monitor() as m:
        bag.to_fused()
    assert [(e.rung, e.verdict, e.detail) for e in m.events] == [("heal", "memory", "rows [5] reloaded")]


# ---- weights


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_a_parameter_lost_with_its_copy(name: str, packed: sedq.PackedWeights, caplog: pytest.LogCaptureFixture) -> None:
    for array in (packed._arrays()[name], packed._spare[name]):
        faults.flip_bit(array, 2, 4)
    x = np.ones((3, 30), np.uint8)
    with caplog.at_level(logging.WARNING, "sedq"), sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected) as caught:
        sedq.qlinear(x, packed, **QPARAMS)
    assert outcomes(caught.value.events) == {("weights", "parameters", "raise", "memory")}
    assert caught.value.events[0].detail == f"still corrupted: {name}"
    assert (list(m.events), len(caplog.records)) == (list(caught.value.events), 1)


def beyond_healing(packed: sedq.PackedWeights) -> None:
    packed._source = None
    for n, k, bit in ((1, 2, 6), (1, 9, 5), (4, 2, 6), (5, 11, 5)):
        faults.flip_weight_bit(packed, n, k, bit)


def test_weights_that_can_not_be_copied(packed: sedq.PackedWeights) -> None:
    beyond_healing(packed)
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match="can't be copied") as caught:
        pickle.dumps(packed)
    assert outcomes(m.events) == {("weights", "parameters", "raise", "memory")}
    assert list(caught.value.events) == list(m.events)


def test_weights_that_are_healed_by_hand(packed: sedq.PackedWeights) -> None:
    faults.flip_weight_bit(packed, 1, 2, 6)
    with sedq.monitor() as m:
        assert packed.heal().ok
    assert outcomes(m.events) == {("weights", "parameters", "heal", "memory")}
    beyond_healing(packed)
    with sedq.monitor() as m:
        assert not packed.heal().ok
        packed.verify()
    assert [(e.rung, e.detail) for e in m.events] == [("none", "still corrupted: panels")]


@pytest.mark.parametrize("part", ["weights", "table"])
def test_a_model_that_can_not_be_saved(part: str, tmp_path: Path) -> None:
    struck = model()
    if part == "table":
        struck.bags[0].table.source = None
        faults.flip_row_bit(struck.bags[0], 5, 6)
    else:
        packed = struck.bottom[0].packed
        for array in (packed.scale, packed._spare["scale"]):
            faults.flip_bit(array, 2, 4)
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match="the model was not saved") as caught:
        struck.save(tmp_path / "model.npz")
    assert len(caught.value.events) == m.detections > 0
    assert list(tmp_path.iterdir()) == []


def test_samples_that_are_corrupted() -> None:
    bag = made()
    faults.flip_row_bit(bag, 5, 6)
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match="nothing was calibrated") as caught:
        calibrate_thresholds(bag, [([5, 6], [0])] * 3)
    assert outcomes(m.events) == {("calibrate_thresholds", "digest", "raise", "unresolved")}
    assert list(caught.value.events) == list(m.events)


# ---- why a row could not be reloaded


def left(bag: sedq.EmbeddingBag, row: int = 5) -> str:
    faults.flip_row_bit(bag, row, 6)
    with pytest.raises(sedq.SoftErrorDetected) as caught:
        bag([[row]])
    with pytest.raises(sedq.SoftErrorDetected) as at_rest:
        bag.to_fused()
    detail = caught.value.events[0].detail
    assert detail.partition("could not")[2] == str(at_rest.value).partition("could not")[2] != ""
    return detail


def loaded(path: Path) -> sedq.EmbeddingBag:
    model().save(path)
    return sedq.DLRM.load(path).bags[0]


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    bag = loaded(path)
    path.unlink()
    assert left(bag).endswith(f"could not be reloaded from {path}: No such file or directory")


def test_a_file_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    bag = loaded(path)
    other = model()
    other.bags[0].update_rows(np.arange(ROWS), table(9))
    other.save(path)
    assert left(bag).endswith("model.npz: holds another model than the one that was loaded")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    bag = loaded(path)
    path.write_bytes(b"something else")
    assert "not a model file" in left(bag)


def test_a_source_that_has_changed() -> None:
    source = table()
    bag = sedq.EmbeddingBag.from_float(source, keep_source=True)
    bag.table.source.weight = source + 1  # type: ignore[union-attr, attr-defined]
    assert left(bag).endswith("from the float table: what it has does not fit their digests")


def test_rows_that_were_updated() -> None:
    bag = made(keep_source=True)
    bag.update_rows([5], table()[:1])
    assert left(bag).endswith("from the float table: they were updated since")


# ---- the index mapping


def pruned() -> sedq.EmbeddingBag:
    mapping = np.full(60, -1)
    mapping[::3] = np.random.default_rng(0).permutation(ROWS)
    return made(index_mapping=mapping)


@pytest.mark.parametrize("value", [-1, 2**30, -7, "other"])
@pytest.mark.parametrize("at", [0, 30, 57])
def test_a_corrupted_mapping_is_found_by_a_scrub(at: int, value: Any) -> None:
    bag = pruned()
    assert not bag.scrub(redundancy=True)
    mapping = bag.pruning.mapping  # type: ignore[union-attr]
    row = int(mapping[at])
    mapping[at] = (row + 1) % ROWS if value == "other" else value
    assert not bag.scrub()
    with sedq.monitor() as m:
        report = bag.scrub(redundancy=True)
    assert f"index mapping of row {row}" in report.stale
    assert (f"index mapping at {at}" in report.stale) == (value != -1)
    assert outcomes(m.events) == {("scrub", "digest", "none", "memory")}
    halves = [*bag.scrub(0, ROWS // 2, redundancy=True).stale, *bag.scrub(ROWS // 2, redundancy=True).stale]
    assert sorted(halves) == sorted(report.stale), "made of its parts"


def test_a_corrupted_inverse_is_found_by_a_scrub() -> None:
    for value in (-1, 59, 2**40):
        bag = pruned()
        bag.pruning.inverse[3] = value  # type: ignore[union-attr, index]
        assert any("index mapping" in part for part in bag.scrub(redundancy=True).stale)


def test_pruned_indices_that_came_to_life() -> None:
    bag = pruned()
    bag.pruning.mapping[1] = 4  # type: ignore[union-attr, index]
    assert bag.scrub(redundancy=True).stale == ["index mapping at 1"]
