"""Evidence of campaigns: what a goal needs, what counts as missed, and where nothing can be shown."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.campaigns import layer, product
from sedq import faults
from sedq.faults import _summary


def record_of(outcome: str, **values: Any) -> dict[str, Any]:
    noticed = outcome in ("detected_consequential", "miscorrected", "false_alarm")
    wrong = 2e-3 if outcome in ("sdc", "miscorrected") else 0.0
    made = {"trial": 0, "site": "weights", "model": "BitFlip", "persistent": True, "outcome": outcome, "error": wrong}
    return made | {"changed": True, "damage": 0.5, "rung": "heal" if noticed else "", "bit": 1} | values


@pytest.mark.parametrize(
    ("right", "missed", "rate", "state"),
    [
        (0, 0, None, "unknown"),
        (28, 0, None, "unknown"),  # the bound is 0.101
        (29, 0, None, "holds"),
        (2, 1, None, "fails"),
        (1000, 1, None, "fails"),
        (0, 0, 0.1, "unknown"),
        (28, 0, 0.1, "unknown"),
        (29, 0, 0.1, "holds"),
        (29, 1, 0.1, "fails"),
        (0, 9, 0.1, "fails"),  # few, and yet enough to tell
        (9, 1, 0.01, "unknown"),
        (1000, 1, 0.01, "holds"),
    ],
)
def test_a_goal_needs_evidence(right: int, missed: int, rate: float | None, state: str) -> None:
    for outcome in ("sdc", "miscorrected"):
        records = [record_of("detected_consequential")] * right + [record_of(outcome)] * missed
        goal = _summary.goal([*records, record_of("masked")], "exact", rate, 0.95)
        assert (goal["state"], goal["holds"], goal["missed"]) == (state, state == "holds", missed)


def test_wrong_answers_are_counted_as_misses_everywhere() -> None:
    records = [record_of("detected_consequential")] * 60 + [record_of("miscorrected")] * 13
    row = _summary.row(records, "exact", 0.95)
    assert (row["consequential"], row["missed"], row["promised"]["missed"]) == (73, 13, 13)
    assert row["detection"]["rate"] == 60 / 73
    assert row["largest_missed"] == 2e-3
    assert _summary.rate_text(row).startswith("82.19% (")
    # each bar by its own size: 0.5 without protection, 0.002 of what was returned with it
    assert _summary.sizes(records, "exact") == [
        {"site": "weights", "decade": -3, "unprotected": 0, "returned": 13, "promised": 13},
        {"site": "weights", "decade": -1, "unprotected": 73, "returned": 0, "promised": 0},
    ]
    none = record_of("detected_consequential", rung="raise", error=3.4e38, damage=3.4e38)
    endless = record_of("sdc", error=3.4e38)
    assert _summary.unsized([none, endless], "exact") == {"unprotected": 1, "returned": 1, "promised": 1}


def test_at_some_sites_nothing_can_be_shown() -> None:
    campaign = layer(sites=["weights", "scale", "zero_point", "bias", "col_sums", "digits"], models=[faults.BitFlip()])
    plan = campaign.plan(180)
    assert set(plan.silent) == {"scale", "bias", "zero_point", "col_sums", "digits"} & set(campaign.spec.sites)
    assert "Nothing can be shown at " in str(plan)
    result = campaign.run(180)
    for row in result.document()["sites"]:
        assert (row["consequential"] == 0) == (row["site"] in plan.silent)
    assert result.table().count("none can be consequential") == len(plan.silent)
    assert product(sites=["weights"]).plan(5).silent == ()
