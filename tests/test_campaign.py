"""Campaigns: what becomes of faults, checked and not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import sedq
from helpers.campaigns import TRIALS, Make, everywhere, layer, product, table
from sedq import _statistics, faults
from sedq.faults import _targets


def without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have protected calls made with the checks off."""
    for kind in (_targets.ProductTarget, _targets.LayerTarget, _targets.BagTarget, _targets.ModelTarget):
        call = kind.call
        monkeypatch.setattr(
            kind, "call", lambda self, batch, check, threshold, call=call: call(self, batch, "off", threshold)
        )


@everywhere
@pytest.mark.parametrize("check", ["exact", "full"])
def test_nothing_that_is_promised_is_missed(make: Make, check: str) -> None:
    campaign = make(check=check)
    result = campaign.run(2 * len(campaign.spec.sites) * len(campaign.spec.models))
    goal = result.goal
    assert goal["holds"]
    assert goal["consequential"] > 40
    assert (goal["missed"], goal["false_alarms"]) == (0, 0)
    assert sum(result.outcomes.values()) == len(result.records)
    rungs = Counter(r["rung"] for r in result.records)
    assert rungs["recompute"] > 0
    assert rungs["heal"] > 0


@pytest.mark.parametrize("bits", [4, 2, 16, 32])
def test_tables_of_other_bits(bits: int) -> None:
    rng = np.random.default_rng(bits)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 19)).astype(np.float32), bits=bits, keep_source=True)
    batches = [(rng.integers(0, 50, 9), np.array([0, 4, 9])) for _ in range(8)]
    for check in ("exact", "full"):
        campaign = faults.Campaign(bag, batches, check=check)
        result = campaign.run(4 * len(campaign.spec.sites) * len(campaign.spec.models))
        assert result.goal["holds"]
        assert result.goal["consequential"] > 28
    assert "table.sums" in campaign.spec.sites
    found = campaign.residuals(200)
    assert found is not None
    assert found.sound.max() <= 1


@everywhere
def test_without_the_checks_faults_are_missed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checks(monkeypatch)
    result = make().run(TRIALS)
    assert not result.goal["holds"]
    assert result.goal["missed"] > 10
    assert result.outcomes["detected_consequential"] < result.outcomes["sdc"]  # weights at rest are verified in any case
    assert result.outcomes["false_alarm"] == 0
    for r in result.records:
        if r["outcome"] == "sdc" and r["site"] not in ("weights", "table.codes"):
            assert r["error"] == r["damage"] or r["persistent"]


@everywhere
def test_a_dummy_is_never_detected(make: Make) -> None:
    result = make(models=[faults.Dummy()]).run(TRIALS)
    assert result.outcomes["masked"] == TRIALS
    assert {(r["changed"], r["damage"], r["error"], r["kind"], r["rung"]) for r in result.records} == {
        (False, 0.0, 0.0, "", "")
    }
    goal, free = result.goal, TRIALS + len(result.campaign.spec.inputs)
    assert (goal["state"], goal["false_alarms"], goal["fault_free"]) == ("unknown", 0, free)
    assert goal["false_alarm_bound"] == _statistics.upper_bound(0, free)


def test_an_alarm_without_a_fault_is_one() -> None:
    campaign = product(models=[faults.Dummy()], sites=["accumulator"])
    campaign._worker.target.parts["matmul_integer"]._core.digits[0, 0] ^= 1
    record = campaign.replay(0)
    assert record["outcome"] == "false_alarm"
    assert record["kind"] == "accumulator"
    result = faults.CampaignResult(campaign, [record])
    assert (result.goal["false_alarms"], result.goal["state"], result.goal_of(0.5)["state"]) == (1, "fails", "fails")
    assert (result.goal["fault_free"], result.goal["false_alarm_bound"]) == (5, _statistics.upper_bound(1, 5))


def test_the_harder_faults_are_missed_and_not_promised() -> None:
    campaign = product(sites=["accumulator"], models=[faults.PairedError()], persistence=[False])
    result = campaign.run(60)
    assert result.outcomes["sdc"] > 20  # + e and - e in one row; the others strike padding of a tile
    assert result.goal["state"] == "unknown"
    assert result.goal_of(0.1)["state"] == "fails"
    assert not campaign.promises()
    assert product().promises()


def test_requantisation_is_seen_by_full_alone() -> None:
    options: dict[str, Any] = {"sites": ["requantised"], "models": [faults.BitFlip()], "persistence": [False]}
    exact, full = (layer(check=check, **options).run(100) for check in ("exact", "full"))
    assert exact.outcomes["sdc"] > 50  # some lanes have no column
    assert exact.outcomes["detected_consequential"] == 0
    assert exact.goal["trials"] == 0
    assert full.outcomes["sdc"] == 0
    assert full.goal["consequential"] == exact.outcomes["sdc"]


def test_small_changes_of_floats_are_tolerated_and_told_apart() -> None:
    options: dict[str, Any] = {"sites": ["bag.accumulator"], "models": [faults.BitFlip()]}
    result = table(**options).run(400)
    small = [r for r in result.records if r["outcome"] == "tolerated"]
    assert len(small) > 20
    assert all(0 < r["error"] <= 1e-4 for r in small)
    assert result.outcomes["sdc"] == 0
    strict = table(tolerance=0.0, **options).run(400)
    assert strict.outcomes["tolerated"] == 0
    assert strict.outcomes["sdc"] == len(small)
    document = strict.document()
    sizes, left = document["sizes"], document["unsized"]
    assert sum(s["unprotected"] for s in sizes) == sum(1 for r in strict.records if 0 < r["damage"] < 1e38)
    assert left["unprotected"] == sum(1 for r in strict.records if r["damage"] >= 1e38)
    assert sum(s["returned"] for s in sizes) == len(small) + strict.outcomes["miscorrected"]
    assert max(s["decade"] for s in sizes if s["returned"]) < max(s["decade"] for s in sizes if s["unprotected"])


def test_every_flip_of_an_accumulator_beyond_the_bound_is_seen() -> None:
    found = table(check="exact").residuals(1500)
    assert found is not None
    assert found.sound.max() <= 1
    assert (found.struck > 1).sum() > 200
    assert found.consequential[found.struck > 1].mean() > 0.9
    assert found.struck[found.consequential].min() > 0.1  # the bound is near what counts


def test_input_faults_are_refused_or_silent() -> None:
    result = table(sites=["indices", "offsets"], models=[faults.BitFlip()]).run(400)
    rungs = Counter(r["rung"] for r in result.records)
    assert rungs["refuse"] > 300
    assert result.outcomes["sdc"] > 5  # an index in range is as good as any
    assert result.goal["trials"] == 0
