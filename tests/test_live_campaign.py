"""Campaigns of live faults: what was drawn is struck, logs are gone on with, no process is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.tracing import needs_ptrace, session
from sedq._core import _ptrace
from sedq.faults import InvalidRun, live
from sedq.faults._log import _line
from sedq.faults.live import _protocol
from sedq.faults.live._log import Log
from sedq.faults.live._strikes import draw
from sedq.faults.live._targets import check_shape


@needs_ptrace
@pytest.mark.parametrize(
    ("operator", "check"),
    [("qlinear", "exact"), ("qlinear", "full"), ("bag", "exact"), ("bag", "full"), ("interaction", "exact")],
)
def test_a_dummy_campaign_reports_nothing(operator: str, check: str) -> None:
    result = live.run(operator, check, trials=60, dummy=True, timeout=60)
    assert Counter(t.outcome for t in result.trials) == {"masked": 60}
    assert {t.operands for t in result.trials} == {()}
    assert result.passed


@needs_ptrace
@pytest.mark.parametrize(
    ("operator", "check", "trials"), [("qlinear", "full", 300), ("bag", "full", 100), ("interaction", "exact", 100)]
)
def test_a_campaign_strikes_what_was_drawn(operator: str, check: str, trials: int) -> None:
    kinds = ("general", "vector")
    silent = live.run(operator, "off", trials=trials, registers=kinds)
    seen = live.run(operator, check, trials=trials, registers=kinds)
    for result in (silent, seen):
        assert [(t.kind, t.register, t.bit) for t in result.trials] == [
            draw(0, i, {k: _ptrace.registers()[k] for k in kinds})[1:4] for i in range(trials)
        ]
        assert {t.module for t in result.trials} <= {"_dispatch", "_gemm", "_embedding", "_dense"}
        assert all(t.function for t in result.trials)
    counts = Counter(t.outcome for t in silent.trials)
    # a flip of the level itself turns checks on
    assert counts["detected"] + counts["benign"] < 10
    found = Counter(t.outcome for t in seen.trials)
    assert found["missed"] <= 3  # two in ten thousand are known to be
    if operator == "qlinear":  # one in twenty-five at least, on every instruction set: none is out of the question
        assert counts["missed"] > 0 < found["detected"]


@needs_ptrace
def test_a_cut_log_is_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    options: dict[str, Any] = {"registers": ("vector",), "log": log}
    live.run("qlinear", "exact", trials=12, **options)
    whole = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(whole[:9]) + whole[9][:20])  # 8 trials, and a part of one
    result = live.run("qlinear", "exact", trials=15, **options)
    lines = log.read_bytes().splitlines(keepends=True)
    assert lines[:9] == whole[:9]
    assert [json.loads(line)["trial"] for line in lines[1:]] == list(range(15))
    assert [t.trial for t in result.trials] == list(range(15))
    assert live.run("qlinear", "exact", trials=15, **options) == result
    with Log(log, live_header(lines[0])), pytest.raises(InvalidRun, match="in use by another run"):
        live.run("qlinear", "exact", trials=15, **options)
    for other in ({"seed": 1}, {"dummy": True}):
        with pytest.raises(InvalidRun, match="of another campaign"):
            live.run("qlinear", "exact", trials=15, **(options | other))
    assert log.read_bytes() == b"".join(lines)


def live_header(line: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name not in ("format", "version", "crc")}


@needs_ptrace
def test_a_log_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    options: dict[str, Any] = {"registers": ("vector",), "log": log}
    live.run("probe", "off", trials=4, **options)
    lines = log.read_bytes().splitlines(keepends=True)
    outcome = json.loads(lines[2])["outcome"]
    other = "masked" if outcome == "missed" else "missed"
    damaged = lines[2].replace(outcome.encode(), other.encode())
    record = {name: value for name, value in json.loads(lines[2]).items() if name != "crc"}
    for line, what in (
        (damaged, f"log: line 3 of {log} is damaged"),
        (_line(record | {"bit": record["bit"] ^ 1}), "trial 1 of .* isn't what was drawn"),
        (_line(record | {"kind": "general"}), "trial 1 of .* isn't what was drawn"),
        (_line(record | {"outcome": "fine"}), "line 3 of .* is no record of a trial: outcome"),
        (_line(record | {"tries": "1"}), "line 3 of .* is no record of a trial: tries"),
        (_line(record | {"weather": 1}), "line 3 of .* is no record of a trial: weather"),
    ):
        content = b"".join([*lines[:2], line, *lines[3:]])
        log.write_bytes(content)
        with (
            pytest.raises(InvalidRun, match=what),
            Log(log, live_header(lines[0])) as kept,
        ):
            kept.trials(lambda number: draw(0, number, {"vector": _ptrace.registers()["vector"]}))
        assert log.read_bytes() == content
    log.write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
    with pytest.raises(InvalidRun, match=r"line 3 of .* is damaged"):
        live.run("probe", "off", trials=4, **options)


@pytest.mark.parametrize(
    "content", [b"text\n", b"text", b"[]\n", b'{"live": 2}\n{"trial": 0}\n', b'{"format":"sedq-campaign-log"}\n']
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "file"
    log.write_bytes(content)
    with pytest.raises(ValueError, match=r"log: got .*, which is no log of a campaign"):
        Log(log, {"live": 3})
    assert log.read_bytes() == content


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@needs_ptrace
def test_a_killed_campaign_leaves_no_process_and_a_log_to_go_on_with(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    call = f"from sedq.faults import live; live.run(trials=10**6, log={str(log)!r})"
    campaign = subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path)
    try:
        until = time.monotonic() + 60
        while (not log.exists() or log.read_bytes().count(b"\n") < 20) and time.monotonic() < until:
            time.sleep(0.02)
        assert log.exists(), "no log in a minute"
        (template,) = children(campaign.pid)
        started = [template, *children(template)]
    finally:
        campaign.kill()
        campaign.wait()
    until = time.monotonic() + 20
    while not all(map(is_gone, started)) and time.monotonic() < until:
        time.sleep(0.02)
    assert all(map(is_gone, started))
    done = log.read_bytes().count(b"\n") - 1
    assert done >= 19
    assert len(live.run(trials=done + 2, log=log).trials) == done + 2


@needs_ptrace
def test_a_template_that_nobody_waits_for_ends_quietly() -> None:
    control, _control = os.pipe()
    gone, reply = os.pipe()
    os.close(gone)
    options = json.dumps({"operator": "probe", "check": "off", "shape": check_shape("probe", None), "seed": 0})
    command = [sys.executable, "-P", "-m", _protocol.CHILD, options, *map(str, (control, reply, control, reply))]
    try:
        ran = subprocess.run(command, stderr=subprocess.PIPE, pass_fds=(control, reply), timeout=60)
    finally:
        for fd in (control, _control, reply):
            os.close(fd)
    assert (ran.returncode, ran.stderr) == (0, b"")


@needs_ptrace
def test_a_campaign_that_ends_leaves_no_process() -> None:
    before = set(children(os.getpid()))
    live.run("probe", "off", trials=5)
    with session() as s:
        s._expect_sound("first")
        s.write(s._places["panels"][0], b"\x55" * 64)
        with pytest.raises(live.LiveError, match="second ended as"):
            s._expect_sound("second")
    assert set(children(os.getpid())) <= before


def test_arguments_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"operator": "matmul"}, "operator: got 'matmul'"),
        ({"operator": ["bag"]}, "operator: got"),
        ({"check": "mod127"}, "check: got 'mod127', expected one of 'off', 'exact', 'full' for qlinear"),
        ({"trials": 0}, "trials: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"shape": (3, 4)}, "shape: got"),
        ({"timeout": 0}, "timeout: got 0"),
        ({"timeout": 1e30}, "timeout: got 1e\\+30, expected at most"),
        ({"dummy": 1}, "dummy: got 1"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            live.run(**arguments)
    monkeypatch.setattr(_ptrace, "SUPPORTED", False)
    with pytest.raises(OSError, match="expected Linux on x86-64"):
        live.run()


@needs_ptrace
def test_registers_are_those_of_the_machine() -> None:
    for registers in ((), "vector", ("xmm",)):
        with pytest.raises(ValueError, match="registers: got"):
            live.run(registers=registers)  # type: ignore[arg-type]
    if "mask" not in _ptrace.registers():
        with pytest.raises(ValueError, match="that this machine has"):
            live.run(registers=("mask",))
