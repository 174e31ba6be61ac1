"""The demonstration on part of its requests: figures that add up, repeat, and tell when the checks are sabotaged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sedq
from sedq._core import _dense, _embedding, _gemm
from sedq.commands import _demo
from sedq.datasets import MSWeb, auc, load_msweb

REQUESTS = 800
Result = dict[str, Any]


@pytest.fixture(scope="module")
def part() -> MSWeb:
    data = load_msweb()
    return dataclasses.replace(
        data, heldout=data.heldout.batch(0, REQUESTS), heldout_candidate=data.heldout_candidate[:REQUESTS]
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, part: MSWeb) -> None:
    monkeypatch.setattr(_demo, "load_msweb", lambda: part)
    monkeypatch.setattr(_demo, "TIMED_REPEATS", 2)


COUNTS = {"injected", "masked", "detected", "corrected", "raised", "missed"}
DAMAGE = {"auc", "largest_score_change", "requests_changed", "requests_changed_by_more_than_0.01", "batches_refused"}


def assert_adds_up(result: Result) -> None:
    sites = result["faults"]
    assert list(sites) == [*_demo.SITES, "all"]
    for counts in sites.values():
        assert set(counts) == COUNTS
        assert counts["injected"] == counts["masked"] + counts["corrected"] + counts["raised"] + counts["missed"]
        # a fault that was detected may still have been answered wrongly, and is missed then
        assert 0 <= counts["detected"] - counts["corrected"] - counts["raised"] <= counts["missed"]
    for name in COUNTS:
        assert sites["all"][name] == sum(sites[s][name] for s in _demo.SITES)
    assert sites["all"]["injected"] == -(-result["requests"] // result["requests_per_batch"])
    assert all(sites[s]["injected"] in (12, 13) for s in _demo.SITES)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_missed(seed: int) -> None:
    result = _demo.run(seed=seed)
    assert_adds_up(result)
    assert _demo.passed(result)
    assert result["seed"] == seed
    assert result["faults"]["all"]["raised"] == 0
    assert result["fault_free"] == {"checks": REQUESTS * 14, "false_alarms": 0}
    assert result["checks_under_faults"] > REQUESTS * 14
    transient = result["faults"]
    assert transient["activation"]["detected"] == transient["activation"]["injected"]
    # some strike columns that pad a tile, which is of no consequence
    assert transient["accumulator"]["detected"] + transient["accumulator"]["masked"] == transient["accumulator"]["injected"]
    assert transient["accumulator"]["detected"] > 0
    assert result["under_faults"]["protected"] == {
        "auc": result["auc"]["int8_protected"], "largest_score_change": 0.0, "requests_changed": 0,
        "requests_changed_by_more_than_0.01": 0, "batches_refused": 0,
    }  # fmt: skip
    struck = result["under_faults"]["unprotected"]
    assert struck["requests_changed"] > REQUESTS / 2
    assert struck["requests_changed"] >= struck["requests_changed_by_more_than_0.01"] > 0
    assert 0.01 < struck["largest_score_change"] <= 1
    assert struck["batches_refused"] == 0


def test_the_document_is_complete_and_plain() -> None:
    result = _demo.run()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result) == {
        "format", "version", "environment", "seed", "requests", "requests_per_batch", "auc", "time_per_batch",
        "fault_free", "faults_per_1000_requests", "faults", "checks_under_faults", "under_faults",
    }  # fmt: skip
    assert (result["format"], result["version"]) == ("sedq-demo", 1)
    assert result["environment"]["sedq"] == sedq.__version__
    assert result["faults_per_1000_requests"] * result["requests_per_batch"] == 1000
    assert set(result["under_faults"]) == {"unprotected", "protected"}
    assert all(set(damage) == DAMAGE for damage in result["under_faults"].values())
    for timed in result["time_per_batch"]:
        assert timed["ratio"] == timed["protected_us"] / timed["unprotected_us"] > 0
    assert [timed["batch"] for timed in result["time_per_batch"]] == [64, 512]


def test_auc_is_that_of_the_scores(part: MSWeb) -> None:
    result = _demo.run()
    model, h = _demo.build(part), part.heldout
    r = (h.dense, h.indices, h.offsets, True)
    quantised = auc(h.labels, model(*r))
    assert result["auc"] == {
        "float": auc(h.labels, model.predict_float(*r)), "int8_unprotected": quantised, "int8_protected": quantised,
    }  # fmt: skip
    assert abs(quantised - result["auc"]["float"]) < 0.002


def test_one_seed_gives_one_run() -> None:
    first, again, other = _demo.run(seed=7), _demo.run(seed=7), _demo.run(seed=8)
    for result in (first, again, other):
        del result["time_per_batch"], result["seed"]
    assert first == again
    assert first != other


def test_faults_are_drawn_from_the_seed_alone(part: MSWeb) -> None:
    model, batches = _demo.build(part), _demo._batches(part.heldout)

    def plan(seed: int) -> list[_demo.Fault]:
        return _demo.plan(model, batches, np.random.default_rng(seed))

    assert plan(3) == plan(3)
    assert plan(3) != plan(4)
    assert [fault.site for fault in plan(3)] == [_demo.SITES[i % 4] for i in range(len(batches))]
    assert len({(f.target, f.bit) for f in plan(3)}) > len(batches) // 2


def test_the_table_says_what_the_document_says() -> None:
    result = _demo.run()
    text = _demo.table(result)
    assert f"MSWeb: {REQUESTS} held-out requests, 6 tables, int8" in text
    assert f"{result['auc']['float']:.4f}" in text
    for site, f in result["faults"].items():
        row = [site, *(str(f[k]) for k in ("injected", "masked", "detected", "corrected", "raised", "missed"))]
        assert row in [line.split() for line in text.splitlines()]
    assert text.endswith("no consequential fault missed, no false alarm")


# ---- sabotage: the demonstration must notice


def blind(module: Any, function: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A compiled entry point whose findings are thrown away."""

    def sabotage(patch: pytest.MonkeyPatch) -> None:
        honest = getattr(module, function)

        def call(*arguments: Any) -> None:
            honest(*arguments)

        patch.setattr(module, function, call)

    return sabotage


def unchecked(patch: pytest.MonkeyPatch) -> None:
    honest = _demo._call
    patch.setattr(_demo, "_call", lambda model, r, check, **_: honest(model, r, "off"))


def careless(patch: pytest.MonkeyPatch) -> None:
    """Findings are recorded, and nothing is done about them."""
    recovery: Any = sedq.detection

    def handle(call: Any, found: Any, *_: Any, **__: Any) -> None:
        recovery.conclude(call.operator, found, 0, "recompute", "transient")

    patch.setattr(recovery, "handle", handle)


@pytest.mark.parametrize(
    ("sabotage", "site"),
    [
        (unchecked, "all"),
        (careless, "all"),
        (blind(_gemm, "linear"), "weights"),
        (blind(_gemm, "linear"), "accumulator"),
        (blind(_gemm, "linear"), "activation"),
        (blind(_embedding, "pool"), "table"),
    ],
)
def test_missed_faults_are_reported(
    monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None], site: str
) -> None:
    sabotage(monkeypatch)
    result = _demo.run()
    assert_adds_up(result)
    assert result["faults"][site]["missed"] > 0
    assert not _demo.passed(result)
    assert result["under_faults"]["protected"]["requests_changed"] > 0
    assert _demo.table(result).endswith("CONSEQUENTIAL FAULTS MISSED, no false alarm")


def test_a_false_alarm_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = _dense.interact_quantize, 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += bool(arguments[5])  # checked
        return [(0, 9, 0.0, 0.0)] if calls == 3 and arguments[5] else honest(*arguments)

    monkeypatch.setattr(_dense, "interact_quantize", call)
    result = _demo.run()
    assert result["fault_free"]["false_alarms"] == 1
    assert result["faults"]["all"]["missed"] == 0
    assert not _demo.passed(result)
    assert _demo.table(result).endswith("no consequential fault missed, FALSE ALARMS RAISED")


def test_a_refused_batch_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    build = _demo.build

    def without_sources(data: MSWeb) -> sedq.DLRM:
        model = build(data)
        for bag in model.bags:
            bag.table.source = None
        return model

    monkeypatch.setattr(_demo, "build", without_sources)
    # a model whose rows are corrupted for good can't be copied; each arm has one of its own
    monkeypatch.setattr(_demo.copy, "deepcopy", lambda model: without_sources(_demo.load_msweb()))
    result = _demo.run()
    assert_adds_up(result)
    assert result["faults"]["table"]["raised"] > 0
    assert result["under_faults"]["protected"]["batches_refused"] >= result["faults"]["table"]["raised"]
    assert result["faults"]["all"]["missed"] == 0
