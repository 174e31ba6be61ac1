"""The bench that repeats the experiments of Li et al.: what it counts, and the tables that it writes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent.parent / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are not here")


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module("paper")
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_products_are_struck_alike_for_both_schemes(paper: ModuleType) -> None:
    found = paper.product(1, 31, 8, "uniform", 150)
    for site in ("weights", "accumulator"):
        for model in ("BitFlip", "RandomValue"):
            theirs, ours = (found[f"{check} {site} {model}"] for check in ("mod127", "exact"))
            assert theirs["injected"] == ours["injected"] == 150
            assert theirs["consequential"] == ours["consequential"] > 100
            assert ours["detected"] == ours["consequential"]
            assert theirs["detected"] > 0.9 * theirs["consequential"]
    assert found["mod127 accumulator BitFlip"]["detected"] == found["mod127 accumulator BitFlip"]["consequential"]
    zeros = paper.product(1, 31, 8, "relu", 150)
    assert zeros["exact weights BitFlip"]["consequential"] < 110
    table = paper.products_table(
        {"uniform": found, "relu": found | {"m": 2}, "relu 2": zeros, "uniform 2": found | {"m": 3}}
    )
    assert len(table.splitlines()) == 10
    assert "| uniform | bit flip in C | > 95 % | all " in table


def test_thresholds_of_bags_differ_in_what_they_see(paper: ModuleType) -> None:
    found = {f"{values} 64": paper.bag_figures(values, 64, 25) for values in ("uniform", "normal")}
    for values, figures in found.items():
        for half in ("high", "low"):
            ours = figures[f"exact {half}"]
            assert ours["detected"] == ours["consequential"] == 25, values
        assert figures["quiet"]["bound"]["alarming bags"] == figures["quiet"]["exact"]["alarming bags"] == 0
        assert figures["calibrated low"]["detected"] >= figures["bound low"]["detected"]
    assert found["uniform 64"]["paper low"]["detected"] < 10
    assert found["uniform 64"]["quiet"]["paper"]["alarming calls"] == 0
    assert found["normal 64"]["quiet"]["paper"]["alarming calls"] > 40  # their sums cancel, rounding doesn't
    table = paper.bags_table(found)
    assert len(table.splitlines()) == 3 + 8


def test_harder_faults_are_counted_by_site(paper: ModuleType) -> None:
    parts = {f"layer {check}": paper.harder_layer(check, 16) for check in ("mod127", "exact", "full")}
    parts |= {f"bag {check}": paper.harder_bag(check, 16) for check in ("threshold", "exact", "full")}
    assert parts["layer mod127"]["parameters.bias"]["detected"] == 0
    assert parts["layer exact"]["requantised"]["detected"] == 0
    for name, part, site in (
        ("layer", "exact", "parameters.bias"),
        ("layer", "full", "requantised"),
        ("bag", "exact", "table.bias"),
    ):
        counts = parts[f"{name} {part}"][site]
        assert counts["detected"] == counts["consequential"] > 3
    table = paper.harder_table(parts)
    assert "| `parameters.bias` | 0.00%" in table
    assert "| `two words, +e and -e` |" in table


def test_figures_are_kept_and_written_into_a_page(
    paper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def some(trials: int) -> Iterator[tuple[str, object]]:
        for key in ("a", "b"):
            yield key, lambda key=key: calls.append(trials) or {"key": key}

    monkeypatch.setattr(paper, "PARTS", {"cost": (some, lambda parts: f"| {len(parts)} |")})
    page = tmp_path / "page.md"
    page.write_text("x\n<!-- cost: begin -->\nold\n<!-- cost: end -->\ny\n")
    for _ in range(2):
        paper.main([str(tmp_path), "--trials", "7", "--write", str(page)])
    assert calls == [7, 7]
    assert page.read_text() == "x\n<!-- cost: begin -->\n| 2 |\n<!-- cost: end -->\ny\n"
    assert "| 2 |" in capsys.readouterr().out


def test_rates_are_stated_as_the_evidence_allows(paper: ModuleType) -> None:
    assert paper.rate(0, 0) == "no such fault"
    assert paper.rate(300, 300) == "all 300 (missed < 0.01)"
    assert paper.rate(299, 300) == "99.67% (98.16% to 99.99%) of 300"
    assert paper.alarms(0, 300) == "0 of 300 (< 0.01)"
