"""Logs of campaigns: gone on with after a kill; refused if damaged, tampered with, in use or of another campaign."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from helpers.campaigns import layer, product
from sedq import faults
from sedq.faults import _log

pytestmark = pytest.mark.any_isa

KILLED = """
import sys, time
sys.path.insert(0, {folder!r})
from helpers import campaigns
campaigns.product().run(10**6, resume={log!r}, chunk=10)
"""


def test_a_killed_run_goes_on_to_an_identical_result(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    script = KILLED.format(folder=str(Path(__file__).parent), log=str(log))
    run = subprocess.Popen([sys.executable, "-P", "-c", script], cwd=tmp_path)
    try:
        until = time.monotonic() + 60
        while (not log.exists() or log.read_bytes().count(b"\n") < 50) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        run.kill()
        run.wait()
    with log.open("ab") as stream:
        stream.write(b'{"trial":999,"site":"wei')  # as if it had been killed while writing
    done = log.read_bytes().count(b"\n") - 1
    assert done >= 49
    trials = done + 25
    fresh = product().run(trials)
    counted: list[tuple[int, int]] = []
    result = product().run(trials, resume=log, progress=lambda d, n: counted.append((d, n)))
    assert result.records == fresh.records
    assert counted[-1] == (trials, trials)
    lines = [json.loads(line) for line in log.read_bytes().splitlines()[1:]]
    assert sorted(r["trial"] for r in lines) == list(range(trials))
    before = log.read_bytes()
    assert product().run(trials, resume=log).records == fresh.records
    assert product().run(10, resume=log).records == fresh.records[:10]
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    "other", [{"rng": 1}, {"check": "full"}, {"models": [faults.BitFlip()]}, {"persistence": [True]}, {"tolerance": 0.5}]
)
def test_the_log_of_another_campaign_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    log = tmp_path / "run.jsonl"
    product().run(20, resume=log)
    before = log.read_bytes()
    with pytest.raises(faults.InvalidRun, match="is of another campaign"):
        product(**other).run(20, resume=log)
    with pytest.raises(faults.InvalidRun, match=r"is of another campaign \(target differs: got .*, expected .*\)"):
        layer().run(20, resume=log)
    assert log.read_bytes() == before


def line(record: dict[str, Any]) -> bytes:
    """A line of a log whose checksum fits it."""
    return _log._line({k: v for k, v in record.items() if k != "crc"})


def test_a_log_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    product().run(20, resume=log)
    lines = log.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[5])
    forged = record | {"outcome": "hang"}
    log.write_bytes(b"".join([*lines, line(forged)]))
    with pytest.raises(faults.InvalidRun, match=f"two different records of trial {record['trial']}"):
        product().run(20, resume=log)
    # a changed byte doesn't fit the checksum; with one that fits, the trial gives another record when it is run again
    log.write_bytes(b"".join([*lines[:5], lines[5].replace(b"masked", b"sdc").replace(b"detected", b"Detected")]))
    before = log.read_bytes()
    with pytest.raises(faults.InvalidRun, match=f"line 6 of {log} is damaged: its checksum doesn't fit"):
        product().run(20, resume=log)
    log.write_bytes(b"".join([*lines[:5], line(forged)]))
    with pytest.raises(faults.InvalidRun, match=f"trial {record['trial']} gives another record than the log has"):
        product().run(20, resume=log)
    log.write_bytes(lines[0].replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(faults.InvalidRun, match=f"line 1 of {log} is damaged"):
        product().run(20, resume=log)
    for content in (b"text\n", b"[]\n", b'{"format": "other"}\n', b"no line"):
        log.write_bytes(content)
        with pytest.raises(ValueError, match="which is no log of a campaign"):
            product().run(20, resume=log)
        assert log.read_bytes() == content
    assert len(before.splitlines()) == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: b"{}\n", "is damaged"),
        (lambda r: b"3\n", "is damaged: it is no JSON object"),
        (lambda r: b"garbage\n", "is damaged: it is no JSON object"),
        (lambda r: line({"trial": 0}), "is no record of a trial: site, model"),
        (lambda r: line(r | {"trial": -5}), "is no record of a trial: trial"),
        (lambda r: line(r | {"trial": True}), "is no record of a trial: trial"),
        (lambda r: line(r | {"outcome": "fine"}), "is no record of a trial: outcome"),
        (lambda r: line(r | {"damage": -1.0}), "is no record of a trial: damage"),
        (lambda r: line(r | {"weather": 1, "scores": 2}), "is no record of a trial: scores, weather"),
    ],
)
def test_a_line_that_is_no_record_is_refused(tmp_path: Path, spoil: Callable[..., bytes], message: str) -> None:
    log, campaign = tmp_path / "run.jsonl", product()
    campaign.run(3, resume=log)
    lines = log.read_bytes().splitlines(keepends=True)
    content = lines[0] + spoil(json.loads(lines[1])) + lines[2]
    log.write_bytes(content)
    with pytest.raises(faults.InvalidRun, match=f"line 2 of .*{message}"):
        campaign.run(3, resume=log)
    assert log.read_bytes() == content


def test_a_log_that_ends_in_its_first_line_is_begun_again(tmp_path: Path) -> None:
    log, campaign = tmp_path / "run.jsonl", product()
    fresh = campaign.run(10, resume=log)
    whole = log.read_bytes()
    for size in (0, 5, 40, len(whole.splitlines()[0])):
        log.write_bytes(whole[:size])
        assert campaign.run(10, resume=log).records == fresh.records
        assert log.read_bytes() == whole


def test_a_log_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    log, campaign = tmp_path / "run.jsonl", product()
    refused: list[str] = []

    def meddle(done: int, trials: int) -> None:
        before = log.read_bytes()
        with pytest.raises(faults.InvalidRun, match="is in use by another run") as error:
            campaign.run(20, resume=log)
        refused.append(str(error.value))
        assert log.read_bytes() == before

    campaign.run(20, resume=log, chunk=10, progress=meddle)
    assert len(refused) == 2
    assert len(campaign.run(30, resume=log).records) == 30  # and free when it has ended


FORKED = """
import os, sys, time
from sedq.faults._log import Log

log = Log(sys.argv[1], {})
pid = os.fork()
if pid:
    print(pid, flush=True)
    os._exit(0)
os.close(1)
os.close(2)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_worker_that_outlives_its_run_does_not_keep_the_log(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", FORKED, log], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    try:
        _log.Log(log, {}).close()
    finally:
        os.kill(int(ran.stdout), signal.SIGKILL)


def test_the_log_of_other_memory_or_other_results_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, campaign = tmp_path / "run.jsonl", product()
    campaign.run(20, resume=log)
    rng = np.random.default_rng(0)
    other = rng.integers(-128, 128, (18, 33), dtype=np.int8)
    inputs = [rng.integers(1, 256, (3, 33), dtype=np.uint8) for _ in range(4)]
    other[3, 4] ^= 1
    with pytest.raises(faults.InvalidRun, match=r"\(arrays differ: matmul_integer/.*panels.*\)"):
        faults.Campaign(sedq.pack_weights(other, 0.1, 3), inputs).run(20, resume=log)
    again = product()
    again.reference = "0" * 64
    with pytest.raises(faults.InvalidRun, match="reference differs"):
        again.run(20, resume=log)
    # the fingerprint alone tells too
    monkeypatch.setattr(faults.Campaign, "_fingerprint", lambda self: "0" * 64)
    with pytest.raises(faults.InvalidRun, match="fingerprint differs"):
        product().run(20, resume=log)


THREADS = """
from sedq import faults
from sedq.commands import _campaign

model, inputs = _campaign._packaged(2)
print(faults.Campaign(model, inputs[:3])._fingerprint())
"""


def test_the_packaged_model_is_the_same_with_any_number_of_threads(tmp_path: Path) -> None:
    found = set()
    for threads in ("1", "2"):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-P", "-c", THREADS], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        found.add(ran.stdout)
    assert len(found) == 1
