"""Plans of campaigns, their settings, and what they say of themselves."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.campaigns import layer, model, product, table
from sedq import _statistics, faults

pytestmark = pytest.mark.any_isa


def test_a_plan_says_what_a_run_can_show() -> None:
    campaign = product(sites=["weights", "accumulator"], models=[faults.BitFlip(), faults.Carry()])
    plan = campaign.plan(4000, confidence=0.99)
    assert (plan.trials, plan.strata, plan.per_stratum, plan.confidence) == (4000, 4, 1000, 0.99)
    assert plan.smallest_rate == _statistics.upper_bound(0, 1000, 0.99)
    assert plan.smallest_rate_overall == _statistics.upper_bound(0, 4000, 0.99)
    low, high = _statistics.interval(500, 1000, 0.99)
    assert plan.width == high - low
    assert "at least 1000 each" in str(plan)
    result = campaign.run(400)
    assert len({(r["site"], r["model"]) for r in result.records}) == plan.strata
    assert result.document()["strata"][0]["trials"] == 50  # with and without persistence
    wanted = campaign.trials_for(0.05)
    assert campaign.plan(wanted).width == pytest.approx(0.05, rel=2e-3)
    assert campaign.trials_for(0.05, rate=0.99) < wanted
    with pytest.raises(ValueError, match="trials: got 0"):
        campaign.plan(0)
    with pytest.raises(ValueError, match="width: got int 0"):
        campaign.trials_for(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": "off"}, "check: got 'off'"),
        ({"models": []}, "models: got"),
        ({"models": ["BitFlip"]}, "models: got"),
        ({"sites": ["floor"]}, r"sites: got \['floor'\], expected some of weights, "),
        ({"sites": "weights"}, "sites: got 'weights'"),
        ({"sites": []}, "sites: got"),
        ({"rng": -1}, "rng: got -1"),
        ({"persistence": []}, "persistence: got none"),
        ({"persistence": [1]}, "persistence: got"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
        ({"tolerance": float("nan")}, "tolerance: got nan"),
        ({"timeout": 0}, "timeout: got 0"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        product(**options)


def test_wrong_runs_are_refused(tmp_path: Path) -> None:
    campaign = product()
    for call, message in (
        (lambda: campaign.run(0), "trials: got 0"),
        (lambda: campaign.run(5, chunk=0), "chunk: got 0"),
        (lambda: campaign.fault(-1), "trial: got -1"),
        (lambda: campaign.replay(-1), "trial: got -1"),
        (lambda: campaign.residuals(0), "trials: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(OSError, match=str(tmp_path)):
        campaign.run(5, resume=tmp_path)


def test_progress_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    product().run(25, chunk=10, progress=lambda done, trials: told.append((done, trials)))
    assert told == [(10, 25), (20, 25), (25, 25)]
    product().run(25, chunk=20, progress=True)
    assert capsys.readouterr().err.splitlines() == [f"{n} of 25 trials" for n in (20, 25)]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    product().run(25, chunk=20, progress=True)
    bars = [f"[{'#' * (40 * n // 25):<40}] {n} of 25 trials" for n in (20, 25)]
    assert capsys.readouterr().err == "".join(f"\r{bar}" for bar in bars) + "\n"


def test_a_campaign_describes_itself() -> None:
    assert repr(product()).startswith("<Campaign on <PackedWeights 18 x 33 int8")
    result = layer().run(30)
    assert repr(result).startswith("<CampaignResult of 30 trials, ")
    table_ = result.table().splitlines()
    assert table_[0].split()[:3] == ["site", "trials", "masked"]
    assert any(line.startswith("all ") for line in table_)
    assert re.search(
        r"promises to see: 0 of \d+ consequential missed or wrong, rate below .* in \d+ calls without a fault", table_[-1]
    )


@pytest.mark.parametrize("make", [table, model])
def test_offsets_without_the_last_one_are_refused_with_a_hint(make: Any) -> None:
    campaign = make()
    batch = campaign.spec.inputs[0]
    given = (batch.dense, batch.indices, batch.offsets) if make is model else batch
    cut = [o[:-1] for o in given[-1]] if make is model else given[-1][:-1]
    with pytest.raises(ValueError, match=r"inputs: got \d+ as the last of the offsets, .*include_last_offset=True"):
        faults.Campaign(campaign.spec.target, [(*given[:-1], cut)])
    if make is table:
        with pytest.raises(ValueError, match="inputs: got none as the last"):
            faults.Campaign(campaign.spec.target, [(batch[0], batch[1][:0])])
