"""What a campaign hands on: JSON of a schema, a report that needs no other file."""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from helpers.reports import Page, validator
from sedq import _statistics, faults
from sedq.commands import _demo
from sedq.datasets import load_msweb
from sedq.faults import _pictures, _report, _residuals, _summary, _targets

pytestmark = pytest.mark.any_isa

Document = dict[str, Any]


@pytest.fixture(scope="module")
def result() -> faults.CampaignResult:
    """A campaign on part of the packaged model's requests."""
    data = load_msweb()
    batches = [data.heldout.batch(i, i + 8) for i in range(0, 2400, 25)]
    return faults.Campaign(_demo.build(data), batches).run(900)


@pytest.fixture(scope="module")
def document(result: faults.CampaignResult) -> Document:
    return result.document()


# ---- JSON


def test_documents_fit_the_schema(result: faults.CampaignResult, tmp_path: Path) -> None:
    valid = validator()
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (9, 8), dtype=np.int8))
    small = faults.Campaign(packed, [rng.integers(0, 256, (2, 8), dtype=np.uint8)], tolerance=0.5).run(3)
    for i, (found, rate) in enumerate(((result, None), (result, 0.25), (small, None))):
        path = tmp_path / f"{i}.json"
        found.to_json(path, rate)
        written = json.loads(path.read_text(encoding="ascii"))
        valid.validate(written)
        assert written == json.loads(json.dumps(found.document(rate)))
        assert written["goal"]["rate"] == rate
    assert written["auc"] == {"all": None, "promised": None}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(extra=1),
        lambda d: d.pop("goal"),
        lambda d: d.update(version=2),
        lambda d: d["total"].update(extra=1),
        lambda d: d["sites"][0].pop("promised"),
        lambda d: d["sites"][0].update(model="BitFlip"),
        lambda d: d["strata"][0].pop("model"),
        lambda d: d["bits"][0].update(bit=64),
        lambda d: d["models"][0]["detection"].update(rate=1.5),
        lambda d: d["models"][0]["outcomes"].update(sdc=-1),
        lambda d: d["listed"][0].update(outcome="lost"),
        lambda d: d["auc"].pop("promised"),
        lambda d: d.update(reference="0"),
    ],
)
def test_the_schema_refuses_what_it_does_not_describe(document: Document, spoil: Any) -> None:
    wrong = copy.deepcopy(document)
    spoil(wrong)
    assert not validator().is_valid(wrong)


def test_figures_add_up(result: faults.CampaignResult, document: Document) -> None:
    records = result.records
    total = document["total"]
    assert total["trials"] == len(records) == 900
    for name in ("sites", "models", "strata"):
        for count in ("trials", "consequential", "missed", "corrected"):
            assert sum(row[count] for row in document[name]) == total[count]
        for outcome, count in total["outcomes"].items():
            assert sum(row["outcomes"][outcome] for row in document[name]) == count
    assert sum(row["trials"] for row in document["bits"]) == sum(
        1 for r in records if r["bit"] >= 0 and r["model"] != "PairedError"
    )
    for row in document["sites"]:
        seen, n = row["consequential"] - row["missed"], row["consequential"]
        assert (row["detection"]["low"], row["detection"]["high"]) == _statistics.interval(seen, n)
        assert row["missed_bound"] == _statistics.upper_bound(row["missed"], n)
        promised = [r for r in records if _summary.stratum(r) == row["site"] and _summary.promised(r, "exact")]
        assert row["promised"]["trials"] == len(promised)
    promised_total = total["promised"]
    free = len(result.campaign.spec.inputs) + sum(1 for r in records if not r["changed"])
    alarms = {"false_alarms": 0, "fault_free": free, "false_alarm_bound": _statistics.upper_bound(0, free)}
    assert document["goal"] == {"rate": None, **promised_total, **alarms, "state": "holds", "holds": True}
    bad = [r for r in records if r["outcome"] in ("sdc", "miscorrected", "crash", "hang", "false_alarm")]
    assert len(document["listed"]) + document["unlisted"] == len(bad)
    assert all("scores" not in r for r in document["listed"])


def test_protection_keeps_the_area_under_the_curve(document: Document) -> None:
    promised, every = document["auc"]["promised"], document["auc"]["all"]
    assert promised["protected"] == promised["without_faults"]
    assert promised["unprotected"] < promised["without_faults"] - 0.002
    assert every["unprotected"] < every["protected"] < every["without_faults"]


def test_a_goal_is_a_bound_and_no_estimate(result: faults.CampaignResult) -> None:
    missed = result.outcomes["sdc"] + result.outcomes["miscorrected"]
    consequential = missed + result.outcomes["detected_consequential"]
    estimate, bound = missed / consequential, _statistics.upper_bound(missed, consequential)
    assert estimate < bound
    assert not result.goal_of((estimate + bound) / 2)["holds"]
    assert result.goal_of(bound)["holds"]


def test_nothing_is_stated_as_certain(result: faults.CampaignResult) -> None:
    text = result.table()
    assert "100.00%" not in text
    assert re.search(r"0 of \d+ missed or wrong: rate < 0\.\d+", text)
    assert "none can be consequential" in text


# ---- HTML


def test_a_report_needs_no_other_file(result: faults.CampaignResult, document: Document, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    result.to_html(path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.sources) == 5
    assert all(page.alternatives)
    for source in page.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        png = base64.b64decode(data, validate=True)
        assert png.startswith(b"\x89PNG")
        assert len(png) > 10_000
    assert "url(" not in text
    assert "@import" not in text
    assert "The goal holds." in page.text
    assert f"0 of {document['goal']['consequential']:,} such consequential faults" in page.text
    assert "900 trials" in page.text
    assert "faults.Campaign(target, inputs, ...).run(trials=900)" in page.text
    left = len(document["listed"]) + document["unlisted"] - 40
    assert f"{left:,} more aren't listed: run it with a log" in page.text
    assert f"{document['unsized']['unprotected']:,} unprotected results (not a number" in page.text
    total = document["total"]
    assert f"{sum(total['rungs'].values())} faults were noticed; {total['corrected']} of these" in page.text
    assert document["reference"] in page.text
    for row in document["sites"]:
        assert row["site"] in page.text


def figures_of(result: faults.CampaignResult, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Write a report and return the figures that are in it."""
    from matplotlib.figure import Figure

    drawn: list[Any] = []

    def figure(**options: Any) -> Any:
        drawn.append(Figure(**options))
        return drawn[-1]

    monkeypatch.setattr(_pictures, "require_matplotlib", lambda: figure)
    result.to_html(path)
    return drawn


def line_of(ax: Any, label: str) -> tuple[Any, Any]:
    (line,) = [line for line in ax.get_lines() if str(line.get_label()).startswith(label)]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_pictures_show_what_was_found(
    result: faults.CampaignResult, document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    found = result.campaign.residuals()
    assert found is not None
    monkeypatch.setattr(result.campaign, "residuals", lambda: found)
    outcomes, bits, roc, residuals, damage = figures_of(result, tmp_path / "report.html", monkeypatch)
    shares = {str(c.get_label()): [bar.get_width() for bar in c] for c in outcomes.axes[0].containers}
    for name, heading in zip(_summary.OUTCOMES, _pictures.HEADINGS, strict=True):
        share = [row["outcomes"][name] / row["trials"] for row in document["sites"]]
        assert shares.get(heading, [0.0] * len(share)) == pytest.approx(share)
    panels = {ax.get_title(): ax for ax in bits.axes if ax.get_visible()}
    sites = {
        row["site"]: [r for r in document["bits"] if r["site"] == row["site"] and r["consequential"]]
        for row in document["bits"]
    }
    sites = {site: rows for site, rows in sites.items() if rows}
    assert panels.keys() == {f"{s} (n = {sum(r['consequential'] for r in rows):,})" for s, rows in sites.items()}
    for site, rows in sites.items():
        (ax,) = [ax for title, ax in panels.items() if title.startswith(f"{site} (n")]
        assert ax.get_lines()[0].get_ydata().tolist() == [r["detection"]["rate"] for r in rows]
        assert ax.get_lines()[0].get_xdata().tolist() == [r["bit"] for r in rows]
    # the right panel: for every threshold the false alarms, none at one in n, and what it detects
    left, right = roc.axes
    struck, n = found.struck[found.consequential], len(found.sound)
    at, seen = line_of(left, "detected")
    for t, share in zip(at[::50], seen[::50], strict=True):
        assert share == pytest.approx((np.clip(struck, *_pictures.SCALE) > t).mean())
    _, alarms = line_of(left, "false alarms")
    x, y = right.get_lines()[0].get_data()
    assert np.array_equal(x[1:], np.maximum(alarms, 1 / n))
    assert np.array_equal(y[1:], seen)
    assert (right.get_xscale(), right.get_xlim()[0]) == ("log", pytest.approx(1 / n / 1.3))
    assert line_of(right, "rounding bound") == ([1 / n], [(struck > 1).mean()])
    lines = {str(line.get_label()).partition(" (")[0]: line for line in residuals.axes[0].get_lines()}
    assert np.array_equal(lines["consequential fault"].get_xdata(), np.sort(np.clip(struck, *_pictures.SCALE)))
    assert np.array_equal(lines["without a fault"].get_xdata(), np.sort(np.clip(found.sound, *_pictures.SCALE)))
    decades = sorted({row["decade"] for row in document["sizes"]})
    for bars, name in zip(damage.axes[0].containers, ("unprotected", "returned", "promised"), strict=True):
        wanted = [sum(row[name] for row in document["sizes"] if row["decade"] == d) for d in decades]
        assert [bar.get_height() for bar in bars] == wanted
        assert f"({sum(wanted):,})" in bars.get_label()
    assert sum(row["returned"] for row in document["sizes"]) > 20


def test_the_threshold_in_force_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    rng = np.random.default_rng(2)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 19)).astype(np.float32))
    batches = [(rng.integers(0, 50, 9), np.array([0, 4, 9])) for _ in range(64)]
    calibrated = sedq.calibrate_thresholds(bag, batches, 0.1, "batch", method="empirical", include_last_offset=True)
    spec = faults.Campaign(bag, batches, sites=["table.codes"]).spec
    for threshold in ("paper", calibrated, 1e-8):
        found = _residuals.residuals(dataclasses.replace(spec, threshold=threshold), 200)
        assert found is not None
        assert found.limits.shape == (128,)
        # a calibration's threshold is the residual of one of these calls: the last bit of a sum decides there
        ties = np.isclose(found.sound[:, None], found.limits.reshape(64, 2), rtol=1e-9, atol=0).any(axis=1)
        assert ties.sum() < 2
        for over, batch, tie in zip(found.sound_over, batches, ties, strict=True):
            with sedq.monitor() as watch, contextlib.suppress(sedq.SoftErrorDetected):
                bag(*batch, include_last_offset=True, check="threshold", threshold=threshold)
            assert tie or over == (watch.detections > 0)
        figure = Figure()
        _pictures.roc(figure, found)
        left, right = figure.axes
        assert line_of(left, "threshold in force")[0].tolist() == [np.median(found.limits)] * 2
        x, y = line_of(right, "threshold in force")
        assert (x, y) == ([max(found.sound_over.mean(), 1 / 64)], [found.struck_over[found.consequential].mean()])
        text = _report._bags(found)
        assert "At the threshold in force, which is" in text
        assert f": {found.sound_over.sum()} false alarms (rate &lt; " in text
        assert 0 < found.struck_over.sum() < 200
    plain = _residuals.residuals(spec, 20)
    assert plain is not None
    assert "threshold in force" not in _report._bags(plain)


def test_a_report_of_little_and_of_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (9, 8), dtype=np.int8))
    batches = [rng.integers(1, 256, (2, 8), dtype=np.uint8)]
    few = faults.Campaign(packed, batches, models=[faults.Dummy()]).run(1)
    few.to_html(tmp_path / "few.html")
    page = Page((tmp_path / "few.html").read_text())
    assert len(page.sources) == 1
    assert "Whether the goal holds can't be told: too few faults were consequential. Goal: " in page.text
    assert (
        "none of these faults is promised to be seen. 0 false alarms in 2 calls without a fault (rate < 0.78)." in page.text
    )
    call = _targets.ProductTarget.call
    monkeypatch.setattr(_targets.ProductTarget, "call", lambda self, batch, check, limit: call(self, batch, "off", limit))
    failed = faults.Campaign(packed, batches, sites=["weights"]).run(50)
    failed.to_html(tmp_path / "failed.html", 0.01)
    page = Page((tmp_path / "failed.html").read_text())
    assert "The goal does not hold." in page.text
    assert "at most 0.01 of all consequential faults are missed" in page.text


def test_what_a_report_quotes_is_escaped(document: Document) -> None:
    pytest.importorskip("matplotlib")
    wrong = copy.deepcopy(document)
    name = "<script>alert(1)</script>"
    wrong["campaign"]["target"] = wrong["sites"][0]["site"] = wrong["listed"][0]["part"] = name
    text = _report.render(wrong, None, {"command": name}, logged=False)
    assert name not in text
    assert text.count(html.escape(name)) >= 3
