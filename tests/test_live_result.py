"""Results of live faults: damage, counts and intervals; the command that prints and writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from helpers.tracing import needs_ptrace
from sedq import _statistics
from sedq.commands import _main
from sedq.faults import live
from sedq.faults.live import _targets
from sedq.faults.live._strikes import NOTHING, OUTCOMES, Trial

pytestmark = pytest.mark.any_isa


def test_damage_is_relative_and_sees_every_bit() -> None:
    want, limits = np.array([[1, -4], [2, 0]], np.float32), np.array([1e-3, 1e-3])
    assert _targets.damage(want, want, limits) == (0, False)
    got = want.copy()
    got[1, 1] = -0.0
    assert _targets.damage(got, want, limits) == (_targets.SMALLEST, False)
    got[1, 1] = 0.5
    assert _targets.damage(got, want, limits) == (0.125, True)
    assert _targets.damage(got, want, np.array([0, 0.5])) == (0.125, False)
    got[0, 0] = np.nan
    assert _targets.damage(got, want, limits) == (_targets.LARGEST, True)
    codes = np.array([3, 200], np.uint8)
    assert _targets.damage(codes ^ np.array([0, 1], np.uint8), codes, np.zeros(1)) == (0.005, True)


def trial(number: int, outcome: str, **fields: Any) -> Trial:
    return Trial(
        number, fields.pop("kind", "general"), 0, 0, 1, fields.pop("function", "a:f"), "_gemm", 16, outcome, **fields
    )


HEADER = {"operator": "bag", "check": "exact", "shape": [1, 2, 3], "seed": 5, "registers": {}, "isa": "avx2"}


def test_a_result_counts_and_gives_intervals() -> None:
    big, small = {"damage": 0.5, "beyond": True}, {"damage": 3e-4}
    trials = [trial(i, outcome) for i, outcome in enumerate(OUTCOMES) if outcome not in ("detected", "missed")]
    trials += [trial(10 + i, "detected", **big) for i in range(30)] + [trial(50, "missed", **big, function="b:g")]
    trials += [trial(51, "missed", **small), trial(52, "detected", **small), trial(53, "masked", kind="vector")]
    result = live.LiveResult(HEADER, tuple(trials))
    general, vector = result.by_kind()
    assert general.counts == dict.fromkeys(("masked", "benign", "latent", "error", "crash", "hang"), 1) | {
        "detected": 30,
        "missed": 1,
        "small_missed": 1,
        "small_detected": 1,
    }
    assert (general.consequential, general.rate) == (31, 30 / 31)
    assert general.interval == _statistics.interval(30, 31)
    assert vector.to_json()["rate"] is None
    assert result.by_function()[0].name == "b:g"
    assert [t.trial for t in result.misses()] == [50]
    text = result.table()
    assert "general: 96.77 % (83.30 % to 99.92 % at 95 %), 1 of 31 missed" in text
    assert "vector: no such flip" in text
    assert "general: 1 detected, 1 missed, 1 of them above 0.0001 of the largest output" in text
    assert "trial 50: bit 0 of rax at b:g (_gemm+0x10), damage 0.5" in text
    json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert not result.holds(0.01)
    assert not result.holds(0.5)  # of vector registers nothing is known
    (known, _) = result.by_kind()
    assert live.LiveResult(HEADER, tuple(t for t in trials if t.kind == "general")).holds(1.001 - known.interval[0])
    assert not live.LiveResult(HEADER, tuple(t for t in trials if t.kind == "general")).holds(0.999 - known.interval[0])
    full = live.LiveResult(HEADER | {"check": "full"}, tuple(trials))
    assert full.by_kind()[0].consequential == 33  # which is to see small changes too
    assert len(full.misses()) == 2
    long = live.LiveResult(HEADER, (trial(0, "masked", function="m:" + "f" * 60),)).table().splitlines()
    head, row = (next(line for line in long if line.startswith(start)) for start in ("function", "m:"))
    assert len(head) == len(row)
    assert not live.LiveResult(HEADER, (trial(0, "missed", kind=NOTHING, **big),)).passed


@needs_ptrace
def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def detected(operator: str, check: str, **options: Any) -> live.LiveResult:
        assert (operator, check, options["registers"]) == ("qlinear", "exact", ("vector",))
        return live.LiveResult(HEADER, (trial(0, "detected", kind="vector", damage=0.5, beyond=True),))

    def fail(*args: object, **options: object) -> None:
        raise live.LiveError("no result")

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    file, log = tmp_path / "out.json", tmp_path / "run.jsonl"
    options = ["--operator", "bag", "--check", "digest", "--trials", "25", "--resume", str(log)]
    assert _main.main(["campaign", "--live", *options, "--json", str(file)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("bag 21 x 600 x 83, check='digest', ")
    assert "25 of 25" in printed.err
    written = json.loads(file.read_text())
    assert written["trials"] == 25
    assert sum(row["flips"] for row in written["by_kind"]) == sum(row["flips"] for row in written["by_function"]) == 25
    assert len(log.read_text().splitlines()) == 26
    assert _main.main(["campaign", "--live", "--dummy", "--trials", "3"]) == 0
    assert _main.main(["campaign", "--live", "--check", "threshold"]) == 2
    assert "sedq: check: got 'threshold'" in capsys.readouterr().err
    assert _main.main(["campaign", "--live", "--json", str(tmp_path)]) == 2
    assert _main.main(["campaign", "--live", "--operator", "probe", "--trials", "3"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(live, "run", detected)  # of flips that are drawn, none may have been consequential
    for goal, status, said in (("0.999", 0, "goal holds"), ("1e-9", 1, "goal DOES NOT HOLD")):
        options = ["--live", "--registers", "vector", "--check", "exact", "--goal", goal]
        assert _main.main(["campaign", *options]) == status
        assert capsys.readouterr().out.endswith(f"{said}\n")
    monkeypatch.setattr(live, "run", fail)
    assert _main.main(["campaign", "--live"]) == 2
    assert "the run is invalid: no result" in capsys.readouterr().err
    for option in (["--sites", "weights"], ["--batch", "0"], ["--workers", "0"], ["--list-sites"], ["--goal", "0"]):
        assert _main.main(["campaign", "--live", *option]) == 2
        assert f"sedq: {option[0]}: got " in capsys.readouterr().err
    assert _main.main(["campaign", "--live", "--dummy", "--goal", "0.1"]) == 2
    monkeypatch.setattr(live, "run", interrupt)
    assert _main.main(["campaign", "--live", "--resume", str(log)]) == 130
    assert f"interrupted; go on with --resume {log}" in capsys.readouterr().err


def test_the_module_is_there_without_an_import_of_its_own() -> None:
    code = "import sys, sedq; assert 'sedq.faults.live' not in sys.modules; print(sedq.faults.live.run.__name__)"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "run\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sedq.faults.nothing
