"""Files that would take much memory or are nested too deeply are refused before they are read, with the documented error."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from helpers import calibrations
from sedq.calibration import ThresholdCalibration
from sedq.faults._log import Log
from sedq.faults._worker import InvalidRun
from sedq.faults.live._log import Log as LiveLog
from sedq.files import _archive, _scrub

pytestmark = pytest.mark.any_isa

bag, calibrated = calibrations.bag, calibrations.calibrated  # fixtures
LIMIT = 50 * 2**20  # bytes that a small file may take
BOMB = 200 * 2**20
DEPTHS = (200, 900, 960, 990, 100_000)  # below, about and beyond what Python can nest
W = np.ones((2, 3), np.float32)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = sedq.DLRM(
        [(W, None), (np.ones((4, 2), np.float32), None)], [np.ones((5, 4), np.float32)], [(np.ones((1, 5)), None)]
    )
    made.quantize((np.ones((2, 3), np.float32), [np.zeros((2, 1), int)], None)).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    np.save(tmp_path / "table.npy", sedq.EmbeddingBag.from_float(np.ones((100, 8), np.float32)).to_fused())
    _scrub.protect_file(tmp_path / "table.npy")
    return tmp_path / "table.npy"


def contents(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def write(path: Path, arrays: dict[str, Any], header: str, **options: Any) -> None:
    """Write arrays under a header, as numpy.savez does, or with other options of the archive."""
    text = header.encode()
    arrays = arrays | {"header": np.frombuffer(text, np.uint8)}
    if "header_sha256" in arrays:
        arrays["header_sha256"] = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, a in arrays.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(a))


def refused(call: Callable[[], object], match: str) -> None:
    """Check that a call refuses its file, and takes little memory for it."""
    tracemalloc.start()
    try:
        with pytest.raises(sedq.ModelFileError, match=match):
            call()
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def companion(table: Path) -> Path:
    return table.with_name("table.npy.sedq")


@pytest.mark.parametrize("name", ["header", "header_sha256", "table.0.rows", "bottom.0.weight", "unknown"])
def test_compressed_members_of_a_model(model: Path, name: str) -> None:
    with (
        zipfile.ZipFile(model, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open(f"{name}2.npy", "w") as member,
    ):
        for _ in range(BOMB // 2**20):
            member.write(bytes(2**20))
    raw = model.read_bytes()
    assert len(raw) < 2**21
    model.write_bytes(
        raw.replace(f"{name}.npy".encode(), f"{name}1npy".encode()).replace(f"{name}2".encode(), f"{name}.".encode())
    )
    refused(lambda: sedq.DLRM.load(model), f"^{model}: .* is compressed")


def test_a_compressed_companion(table: Path) -> None:
    arrays = contents(companion(table))
    write(companion(table), arrays | {"parity": np.zeros(BOMB, np.uint8)}, arrays["header"].tobytes().decode(),
          compression=zipfile.ZIP_DEFLATED)  # fmt: skip
    refused(lambda: _scrub.open_table(table), f"^{companion(table)}: .* is compressed")


def test_an_array_that_says_it_is_large(table: Path) -> None:
    arrays = contents(companion(table))
    arrays["parity_crc"] = np.zeros(3, np.uint32)
    write(companion(table), arrays, arrays["header"].tobytes().decode())
    raw = companion(table).read_bytes()
    companion(table).write_bytes(raw.replace(b"'shape': (3,), }          ", b"'shape': (300000000,), }  "))
    refused(lambda: _scrub.open_table(table), f"^{companion(table)}: parity_crc is missing or damaged")


def test_a_header_beyond_its_limit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _archive.MAX_HEADER == 2**24
    monkeypatch.setattr(_archive, "MAX_HEADER", 1000)
    refused(lambda: sedq.DLRM.load(model), f"^{model}: header is missing or damaged .*at most 1000")


def test_members_that_overlap(model: Path) -> None:
    raw = bytearray(model.read_bytes())
    with zipfile.ZipFile(model) as file:
        weight = file.getinfo("bottom.0.weight.npy")
    at = raw.rindex(b"bottom.0.weight.npy") - 46  # its entry in the directory
    for offset in (20, 24):  # its size, compressed and not
        raw[at + offset : at + offset + 4] = len(raw).to_bytes(4, "little")
    assert weight.file_size < len(raw)
    model.write_bytes(raw)
    refused(lambda: sedq.DLRM.load(model), f"^{model}: .* more than the file has")


def test_two_members_of_one_name(model: Path) -> None:
    with zipfile.ZipFile(model, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("bottom.0.weight.npy", b"")
    refused(lambda: sedq.DLRM.load(model), f"^{model}: there are two of bottom.0.weight.npy")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("field", ["", "format", "version", "arrays", "bottom", "tables"])
def test_nested_headers_of_a_model(model: Path, field: str, depth: int) -> None:
    arrays = contents(model)
    header = json.loads(arrays["header"].tobytes())
    text = json.dumps(header | {field: "?"}).replace('"?"', nested(depth)) if field else nested(depth)
    write(model, arrays, text)
    refused(lambda: sedq.DLRM.load(model), f"^{model}: ")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("field", ["", "format", "version", "shape", "bits", "parity"])
def test_nested_headers_of_a_companion(table: Path, field: str, depth: int) -> None:
    arrays = contents(companion(table))
    header = json.loads(arrays["header"].tobytes())
    write(
        companion(table), arrays, json.dumps(header | {field: "?"}).replace('"?"', nested(depth)) if field else nested(depth)
    )
    for call in (_scrub.open_table, _scrub.scrub_file):
        refused(lambda call=call: call(table), f"^{companion(table)}: ")  # type: ignore[misc]


@pytest.mark.parametrize("text", ["[]", "3", "null", '"sedq-table"', "{", "", "\0"])
def test_headers_of_a_companion_that_are_no_object(table: Path, text: str) -> None:
    write(companion(table), contents(companion(table)), text)
    refused(lambda: _scrub.open_table(table), f"^{companion(table)}: the header is no JSON object")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("log", [Log, LiveLog])
def test_nested_lines_of_a_log(tmp_path: Path, log: type[Log], first: bool, depth: int) -> None:
    path = tmp_path / "log"
    with log(path, {}):
        line = path.read_bytes()
    text = nested(depth)
    if first:
        path.write_bytes(line.replace(b'"crc"', f'"other":{text},"crc"'.encode()))
    else:
        path.write_bytes(line + f'{{"trial":{text},"crc":"0"}}\n'.encode())
    with pytest.raises(InvalidRun, match=rf"^{log.ARGUMENT}: line {1 if first else 2} of {path} is damaged"):
        log(path, {})


@pytest.mark.parametrize("depth", DEPTHS)
def test_nested_calibrations(tmp_path: Path, depth: int) -> None:
    (tmp_path / "c").write_text('{"calibration": ' + nested(depth) + "}")
    refused(lambda: ThresholdCalibration.load(tmp_path / "c"), f"^{tmp_path / 'c'}: not a calibration")


@pytest.mark.parametrize(
    ("name", "value"),
    [("bags_per_unit", 0.5), ("fpr_interval", [0.5]), ("fpr_interval", 3), ("method", None), ("samples", 2**63),
     ("confidence", "x"), ("detectable_bits", {"output": 3}), ("pooling", [1]), ("magnitude", [10**400, 1]), ("rows", True)],
)  # fmt: skip
def test_calibrations_of_other_types(calibrated: ThresholdCalibration, tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "c"
    calibrated.save(path)
    assert ThresholdCalibration.load(path) == calibrated
    document = json.loads(path.read_text())
    body = document["calibration"]
    (body["tables"][0] if name in body["tables"][0] else body)[name] = value
    document["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document))
    refused(lambda: ThresholdCalibration.load(path), f"^{path}: not a calibration .*type.*")
