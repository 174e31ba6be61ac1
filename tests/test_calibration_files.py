"""Files of calibrations: what is saved comes back, what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sedq
from helpers import calibrations
from helpers.calibrations import trace
from sedq.calibration import ThresholdCalibration, _result, calibrate_thresholds
from sedq.exceptions import ModelFileError

bag, calibrated = calibrations.bag, calibrations.calibrated  # fixtures


@pytest.mark.parametrize("method", ["bound", "empirical", "gpd", "probabilistic"])
def test_save_and_load(bag: sedq.EmbeddingBag, tmp_path: Path, method: str) -> None:
    cal = calibrate_thresholds(bag, trace(3000), 5e-3, method=method)
    assert cal.method == method
    path = tmp_path / "cal.json"
    cal.save(path)
    loaded = ThresholdCalibration.load(path)
    assert loaded == cal
    assert str(loaded) == str(cal)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    t = trace(5)
    bag(t.indices, t.offsets, include_last_offset=True, threshold=loaded)


def damaged(document: dict[str, Any]) -> list[str]:
    other = {**document, "version": 2}
    altered = json.loads(json.dumps(document))
    altered["calibration"]["threshold"] *= 2
    lacking = json.loads(json.dumps(document))
    del lacking["calibration"]["tables"]
    text = json.dumps(document)
    return ["", "[]", "{}", "null", text[:-20], "[" * 100_000, "\x00", *map(json.dumps, (other, altered, lacking))]


def test_damaged_files_are_refused(calibrated: ThresholdCalibration, tmp_path: Path) -> None:
    path = tmp_path / "cal.json"
    calibrated.save(path)
    for text in damaged(json.loads(path.read_text())):
        path.write_text(text)
        with pytest.raises(ModelFileError, match="not a calibration of version 1"):
            ThresholdCalibration.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFileError):
        ThresholdCalibration.load(path)
    with pytest.raises(FileNotFoundError):
        ThresholdCalibration.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", -1.0), ("threshold", "1"), ("tail", []), ("tables", [1]), ("detectable_bits", [])]
)
def test_wrong_values_with_a_right_digest_are_refused(
    calibrated: ThresholdCalibration, tmp_path: Path, name: str, value: Any
) -> None:
    path = tmp_path / "cal.json"
    calibrated.save(path)
    document = json.loads(path.read_text())
    document["calibration"][name] = value
    document["sha256"] = _result._digest(document["calibration"])
    path.write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="not a calibration of version 1"):
        ThresholdCalibration.load(path)
