"""The bench that tries the checks with many faults: it can be stopped and gone on with, and counts what it finds."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sedq import faults
from sedq.faults import _targets

BENCH = Path(__file__).parent.parent / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are not here")


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    module = importlib.import_module("reach")

    def campaigns(scale: float) -> Iterator[tuple[str, faults.Campaign, int]]:
        name, packed, inputs = next(module.packs(np.random.default_rng(0)))
        for check in ("exact", "full"):
            yield f"{name}, {check}", module.campaign(packed, inputs, check), int(40_000 * scale)

    monkeypatch.setattr(module, "campaigns", campaigns)
    yield module
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_faults_are_counted_and_a_run_gone_on_with(
    reach: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path), "--part", "faults", "--scale", "0.03"]
    stops = 0
    while reach.main([*arguments, "--seconds", "0.1"]) == 3:
        stops += 1
        assert stops < 100
    assert stops >= 1
    whole = capsys.readouterr().out
    assert reach.main(arguments) == 0  # nothing is left to do
    again = capsys.readouterr().out
    stated = again[: again.index("\n\n| fault in")], again[again.index('`"full"`') :].partition("\n\n")[0]
    for check, text in zip(("exact", "full"), stated, strict=True):
        assert re.match(rf'`"{check}"`: \d,\d+ faults of one word each and \d+ dummies. Of the ', text)
        assert "**0 were missed**" in text
        assert text in whole
    assert "| packed weights | " in again
    row = next(line for line in again.splitlines() if line.startswith("| requantised"))
    assert "100.00%" in row  # under exact all of them are missed
    written: dict[str, Any] = json.loads(next(tmp_path.glob("*exact.json")).read_text())
    assert written["bad"] == []
    assert written["trials"] == 1200
    for text, named in zip(again.split("| fault in")[1:], stated, strict=True):  # the classes have all faults
        counted = sum(int(row.split("|")[2].replace(",", "")) for row in text.splitlines() if row.startswith("| "))
        assert named.partition(": ")[2].startswith(f"{counted:,} faults")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reach.MARKS[0]}\nold\n{reach.MARKS[1]}\nafter\n")
    assert reach.main([*arguments, "--docs", str(page)]) == 0
    figures = (tmp_path / "figures.md").read_text()
    assert page.read_text() == f"before\n{reach.MARKS[0]}\n\n{figures}\n{reach.MARKS[1]}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="expected the marks"):
        reach.main([*arguments, "--docs", str(page)])


def test_more_than_a_million_faults_are_tried_under_exact_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "reach", raising=False)
    module = importlib.import_module("reach")
    monkeypatch.setattr(module, "campaign", lambda target, inputs, check: None)
    trials = sum(n for name, _, n in module.campaigns(1.0) if name.endswith("exact"))
    assert trials * (len(module.SINGLE) - 1) / len(module.SINGLE) > 1_000_000


def test_what_is_missed_is_listed(
    reach: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = _targets.ProductTarget.call
    monkeypatch.setattr(_targets.ProductTarget, "call", lambda self, batch, check, limit: call(self, batch, "off", limit))
    assert reach.main([str(tmp_path), "--part", "faults", "--scale", "0.01"]) == 0
    assert "**0 were missed**" not in capsys.readouterr().out
    written = json.loads(next(tmp_path.glob("*exact.json")).read_text())
    assert len(written["bad"]) == written["goal"]["missed"] > 20


def test_accumulators_are_missed_within_the_bound_alone(reach: ModuleType, tmp_path: Path) -> None:
    assert reach.main([str(tmp_path), "--part", "accumulators", "--scale", "0.02"]) == 0
    found = [json.loads(path.read_text()) for path in tmp_path.glob("accumulators*.json")]
    assert len(found) == 3
    for document in found:
        (counts,) = document.values()
        for decade, (seen, missed) in counts.items():
            assert (missed if decade == "above" or float(decade) >= 0 else seen) == 0
        assert counts["above"][0] > 50
        assert sum(missed for _, missed in counts.values()) > 20


def test_checks_without_a_fault_are_counted(reach: ModuleType, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--part", "quiet", "--scale", "1e-6"]
    assert reach.main([*arguments, "--seconds", "0"]) == 3
    assert reach.main(arguments) == 0
    counted = json.loads((tmp_path / "quiet.json").read_text())
    assert counted == {"rounds": 1, "rows": 400_000, "bags": 800_000, "alarms": 0}
