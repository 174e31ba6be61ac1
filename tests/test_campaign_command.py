"""`sedq campaign`: what it writes, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.reports import Page, validator
from sedq import faults
from sedq.commands import _campaign, _demo, _main
from sedq.datasets import load_msweb
from sedq.faults import _targets

pytestmark = pytest.mark.any_isa


def run(*arguments: object) -> int:
    return _main.main(["campaign", *map(str, arguments)])


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    log, page, figures = (tmp_path / name for name in ("run.jsonl", "out.html", "out.json"))
    options = ["--trials", 90, "--sites", "weights", "table.codes", "--seed", 3, "--batch", 1]
    assert run(*options, "--resume", log, "--report", page, "--json", figures) == 0
    printed = capsys.readouterr()
    assert "90 trials in 20 strata" in printed.err
    assert printed.out.splitlines()[-1] == "goal holds"
    written = json.loads(figures.read_text())
    validator().validate(written)
    assert written["campaign"]["seed"] == 3
    assert {row["site"] for row in written["sites"]} == {"weights", "table.codes"}
    text = Page(page.read_text()).text
    assert "The goal holds." in text
    again = "sedq campaign --trials 90 --sites weights table.codes --check exact --seed 3 --batch 1  # the packaged model"
    assert again in text
    assert str(log) in text
    assert len(log.read_text().splitlines()) == 91
    assert run(*options, "--resume", log) == 0
    assert printed.out in capsys.readouterr().out


def test_exit_status_1_if_the_goal_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--trials", 60, "--sites", "requantised", "--batch", 1]
    assert run(*options) == 2  # it isn't promised
    assert "--goal: got none" in capsys.readouterr().err
    assert run(*options, "--goal", 0.1) == 1
    assert run("--trials", 60, "--sites", "table.scale", "--goal", 0.2) == 0
    call = _targets.ModelTarget.call
    monkeypatch.setattr(_targets.ModelTarget, "call", lambda self, batch, check, limit: call(self, batch, "off", limit))
    figures = tmp_path / "out.json"
    assert run("--trials", 60, "--sites", "table.scale", "--json", figures) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "goal DOES NOT HOLD"
    assert not json.loads(figures.read_text())["goal"]["holds"]


def test_exit_status_2_if_the_run_is_invalid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "run.jsonl"
    assert run("--trials", 20, "--batch", 1, "--resume", log) == 2  # too few to tell
    assert capsys.readouterr().out.splitlines()[-1].startswith("goal: CAN'T TELL")
    assert run("--batch", 64, "--trials", 40, "--sites", "bias", "scale", "zero_point") == 2
    printed = capsys.readouterr()
    assert "Nothing can be shown at bias, scale, zero_point" in printed.err
    assert printed.out.splitlines()[-1].startswith("goal: CAN'T TELL")
    wrong: list[tuple[list[object], str]] = [
        (["--batch", 1, "--resume", log, "--seed", 1], "is of another campaign"),
        (["--trials", 0], "--trials: got 0"),
        (["--batch", 0], "--batch: got 0"),
        (["--workers", 0], "--workers: got 0"),
        (["--seed", -1], "--seed: got -1"),
        (["--goal", 1.5], "--goal: got 1.5"),
        (["--check", "digest"], "--check: got 'digest', expected 'exact' or 'full'"),
        (["--registers", "vector"], "--registers: got ['vector'], expected it with --live"),
        (["--dummy"], "--dummy: got True"),
        (["--sites", "floor"], "sites: got ['floor']"),
        (["--json", tmp_path], "--json"),
        (["--report", tmp_path / "no" / "out.html"], "--report"),
        (["--model", tmp_path / "no.sedq"], "no.sedq"),
    ]
    for options, message in wrong:
        assert run("--trials", 20, *options) == 2
        assert message in capsys.readouterr().err
    for error in (KeyError("trial"), RuntimeError("a process for trials that may crash could not be started")):
        monkeypatch.setattr(faults.Campaign, "run", _raising(error))
        assert run("--batch", 64, "--trials", 20) == 2
        assert f"the run is invalid: {type(error).__name__}: {error}" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("sedq.faults._pictures.require_matplotlib", _missing)
    assert run("--trials", 20, "--report", tmp_path / "out.html") == 2
    assert "pip install sedq[report]" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()


def _raising(error: Exception) -> Any:
    def run(*_: Any, **__: Any) -> None:
        raise error

    return run


def _missing() -> None:
    raise ValueError("report: needs matplotlib, which isn't installed: pip install sedq[report]")


def test_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_msweb()
    _demo.build(data).save(tmp_path / "model.sedq")
    options = ["--model", tmp_path / "model.sedq", "--batch", 2, "--trials", 160]
    assert run(*options) == 0
    printed = capsys.readouterr().out
    assert run(*options, "--workers", 2) == 0
    assert capsys.readouterr().out == printed
    assert run(*options, "--list-sites") == 0
    names = capsys.readouterr().out.split()
    model, inputs = _campaign._packaged(2)
    assert names == faults.site_names(model, inputs)


def test_requests_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = load_msweb().heldout.batch(8, 30)
    arrays = {f"{key}_{t}": a for key in ("indices", "offsets") for t, a in enumerate(getattr(r, key))}
    path, figures = tmp_path / "requests.npz", tmp_path / "out.json"
    np.savez(path, dense=r.dense, **arrays)
    options = ["--requests", path, "--batch", 4, "--trials", 60, "--sites", "weights", "--json", figures]
    assert run(*options, "--goal", 0.5) == 0
    described = json.loads(figures.read_text())["campaign"]
    assert described["batches"] == 6
    parts = [r.batch(i, i + 4) for i in range(0, 22, 4)]
    model, _ = _campaign._packaged(4)
    same = faults.Campaign(model, [(p.dense, p.indices, p.offsets) for p in parts], sites=["weights"])
    assert same.describe()["fingerprint"] == described["fingerprint"]
    np.savez(path, dense=r.dense[:0], **{k: a[:1] if "off" in k else a[:0] for k, a in arrays.items()})
    assert run(*options) == 2
    assert "expected one request at least" in capsys.readouterr().err
    spoilt = dict(arrays, indices_0=arrays["indices_0"] + 10**6)
    np.savez(path, dense=r.dense, **spoilt)
    for more in ([], ["--list-sites"]):
        assert run(*options, *more) == 2
        assert f"sedq: --requests: got {path}, which the model refuses: indices[0]" in capsys.readouterr().err
    np.savez(path, dense=r.dense, **arrays)
    for wrong in (["--live", "--requests", path], ["--requests", path, "--json", path]):
        assert run(*wrong) == 2
        err = capsys.readouterr().err
        assert str(path) in err
        assert "expected" in err


def test_of_many_batches_as_many_as_were_said_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r = load_msweb().heldout.batch(0, 22)
    arrays = {f"{key}_{t}": a for key in ("indices", "offsets") for t, a in enumerate(getattr(r, key))}
    np.savez(tmp_path / "requests.npz", dense=np.arange(22 * r.dense.shape[1], dtype=np.float32).reshape(22, -1), **arrays)
    for most, first in ((22, range(22)), (30, range(22)), (21, range(21)), (8, (0, 2, 5, 8, 11, 13, 16, 19))):
        monkeypatch.setattr(_campaign, "BATCHES", most)
        given = _campaign._given(tmp_path / "requests.npz", 1)
        assert [dense[0, 0] / r.dense.shape[1] for dense, _, _ in given] == list(first)
