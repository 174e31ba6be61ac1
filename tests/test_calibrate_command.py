"""`sedq calibrate`: exit statuses, what is printed, and the files."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from sedq.calibration import ThresholdCalibration
from sedq.commands import _calibrate, _main
from sedq.datasets import load_msweb


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = load_msweb()
    c = data.calibration
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    path = tmp_path_factory.mktemp("model") / "model.npz"
    model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True).save(path)
    return path


def test_the_default_is_the_bound_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main.main(["calibrate"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "threshold       bound, the rounding bound" in out
    assert "do not support a rate of 1e-06" in out
    assert out.endswith("the rate counted lies within the stated interval\n")
    assert max(map(len, out.splitlines())) <= 200


def test_files_hold_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, saved = tmp_path / "r.json", tmp_path / "c.json"
    report.write_text("what was here")
    arguments = ["--target-fpr", "0.01", "--unit", "bag", "--json", str(report), "--save", str(saved)]
    assert _main.main(["calibrate", *arguments]) == 0
    result, cal = json.loads(report.read_text()), ThresholdCalibration.load(saved)
    assert result["version"] == 1
    assert result["calibration"] == json.loads(json.dumps(cal.to_dict()))
    held = result["held_out"]
    assert held["agrees"]
    assert held["alarms"] > 0
    assert held["rate"] == held["alarms"] / held["units"]
    low, high = cal.fpr_interval
    assert held["position"] == ("above" if held["rate"] > high else "below" if held["rate"] < low else "within")
    assert 0.025 <= held["p_value"] <= 1
    out = capsys.readouterr().out
    assert f"held out        {held['alarms']} of {held['units']}" in out
    assert f"{cal.threshold:.3f}" in out
    assert sorted(os.listdir(tmp_path)) == ["c.json", "r.json"]


def write_requests(path: Path, dense: Any, indices: Any, offsets: Any) -> None:
    arrays = {f"indices_{t}": i for t, i in enumerate(indices)} | {f"offsets_{t}": o for t, o in enumerate(offsets)}
    np.savez(path, dense=dense, **arrays)


def test_a_tail_is_described(
    model_file: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of bags drawn evenly, hardly any of which occurs again."""
    r, tables = load_msweb().heldout.batch(0, 4000), load_msweb().tables
    indices = [rng.integers(0, len(table), 40_000) for table in tables]
    write_requests(tmp_path / "r.npz", r.dense, indices, [np.arange(0, 40_001, 10)] * len(tables))
    arguments = ["--model", str(model_file), "--requests", str(tmp_path / "r.npz"), "--method", "gpd", "--extrapolate"]
    assert _main.main(["calibrate", *arguments, "--target-fpr", "1e-5", "--unit", "request"]) == 0
    out = capsys.readouterr().out
    assert "Anderson-Darling" in out
    assert "times beyond one in" in out


def test_no_tail_of_bags_that_occur_again_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main.main(["calibrate", "--target-fpr", "1e-3", "--unit", "bag", "--method", "gpd"]) == 0
    assert "expected at least 50 for a tail; the bound stays" in capsys.readouterr().out


def test_a_saved_model_gives_the_same(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", "--target-fpr", "0.01"]
    assert _main.main(arguments) == 0
    packaged = capsys.readouterr().out
    assert _main.main([*arguments, "--model", str(model_file)]) == 0
    assert capsys.readouterr().out == packaged.replace("MSWeb:", f"{model_file}:")


def test_requests_of_a_file(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = load_msweb().heldout.batch(0, 2000)
    path = tmp_path / "requests.npz"
    write_requests(path, r.dense, r.indices, r.offsets)
    arguments = ["calibrate", "--model", str(model_file), "--requests", str(path), "--target-fpr", "0.02"]
    assert _main.main(arguments) == 0
    assert "1000 requests to calibrate" in capsys.readouterr().out
    write_requests(path, r.dense, r.indices, [o[::-1] if t == 2 else o for t, o in enumerate(r.offsets)])
    assert _main.main(arguments) == 2
    assert "--requests: got" in capsys.readouterr().err


def test_a_contradiction_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    honest = _calibrate.calibrate_thresholds

    def boasting(*args: Any, **options: Any) -> ThresholdCalibration:
        return dataclasses.replace(honest(*args, **options), threshold=1.5)

    monkeypatch.setattr(_calibrate, "calibrate_thresholds", boasting)
    assert _main.main(["calibrate", "--target-fpr", "0.01"]) == 1
    assert "THE COUNT CONTRADICTS THE STATED RATE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stated", "status", "message"),
    [
        (
            lambda low, high: (0, low / 2),
            1,
            "THE COUNT CONTRADICTS THE STATED RATE: it lies above the interval, and at its upper",
        ),
        (lambda low, high: (0, 1.2 * low), 0, "above the stated interval, which chance can explain: at its upper end"),
        (lambda low, high: (2 * high, 3 * high), 0, "below the stated interval: fewer false alarms than stated"),
    ],
    ids=["above", "by chance", "below"],
)
def test_where_the_rate_lies(
    stated: Any, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Per bag, with an interval that is not what the threshold has."""
    honest = _calibrate.calibrate_thresholds

    def misstating(*args: Any, **options: Any) -> ThresholdCalibration:
        cal = honest(*args, **options)
        return dataclasses.replace(cal, fpr_interval=stated(*cal.fpr_interval))

    monkeypatch.setattr(_calibrate, "calibrate_thresholds", misstating)
    assert _main.main(["calibrate", "--target-fpr", "0.01", "--unit", "bag"]) == status
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-fpr", "2"], "--target-fpr: got 2.0"),
        (["--target-fpr", "nan"], "--target-fpr: got nan"),
        (["--batch", "0"], "--batch: got 0"),
        (["--seed", "-1"], "--seed: got -1"),
        (["--model", "no-such-file"], "no-such-file"),
        (["--requests", "no-such-file"], "no-such-file"),
        (["--json", "no/such/folder/x"], "--json: got"),
        (["--save", "no/such/folder/x"], "--save: got"),
    ],
)
def test_invalid_runs_end_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main.main(["calibrate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sedq: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_no_request_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"no archive"):
        path.write_bytes(content)
        assert _main.main(["calibrate", "--requests", str(path)]) == 2
        assert "expected an .npz of requests" in capsys.readouterr().err


def test_packaged_requests_do_not_fit_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_msweb()
    c = data.calibration
    rows = [np.vstack([table, table[:1]]) for table in data.tables]
    model = sedq.DLRM(data.bottom, rows, data.top, data.modes)
    path = tmp_path / "m.npz"
    model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True).save(path)
    assert _main.main(["calibrate", "--model", str(path)]) == 2
    assert "give --requests" in capsys.readouterr().err


def test_a_corrupted_table_is_no_sample(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    honest = _calibrate._load

    def struck(options: Any) -> Any:
        model, requests, name = honest(options)
        sedq.faults.flip_row_bit(model.bags[3], int(requests.indices[3][0]), 3)
        return model, requests, name

    monkeypatch.setattr(_calibrate, "_load", struck)
    assert _main.main(["calibrate"]) == 2
    assert "the samples must be free of faults" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", ["index", "negative", "tables", "dense", "last offset", "floats", "width"])
def test_requests_that_do_not_fit_the_model_end_with_2(
    spoil: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 would say that the count contradicts the rate."""
    r = load_msweb().heldout.batch(0, 64)
    dense, indices, offsets = r.dense, [i.copy() for i in r.indices], [o.copy() for o in r.offsets]
    if spoil == "index":
        indices[2][5] = 10**6
    elif spoil == "negative":
        indices[2][5] = -1
    elif spoil == "tables":
        indices, offsets = indices[:-1], offsets[:-1]
    elif spoil == "dense":
        dense = np.float32(1)
    elif spoil == "width":
        dense = dense[:, :-1]
    elif spoil == "floats":
        indices[0] = indices[0] + 0.5
    else:
        offsets[1][-1] += 1
    path = tmp_path / "requests.npz"
    write_requests(path, dense, indices, offsets)
    for arguments in (["calibrate"], ["campaign", "--trials", "10"]):
        if spoil == "width" and arguments == ["calibrate"]:  # which reads no dense features
            continue
        assert _main.main([*arguments, "--requests", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("sedq: ")
        assert err.count("\n") == 1
