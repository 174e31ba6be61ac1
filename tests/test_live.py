"""Bits flipped in the registers of a live process: where they land, and what is made of it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import _statistics, cli
from sedq._core import _gemm, _ptrace
from sedq.faults import live
from sedq.faults.live import protocol, symbols, targets
from sedq.faults.live.log import Log
from sedq.faults.live.session import Session
from sedq.faults.live.strikes import FLAG_BITS, NOTHING, OUTCOMES, Strike, Trial, draw, register_name


def may_trace() -> bool:
    """Whether this process may trace one that it started."""
    if not _ptrace.SUPPORTED:
        return False
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        _ptrace.Tracee(sleeper.pid).kill()
    except OSError:
        return False
    finally:
        sleeper.kill()
        sleeper.wait()
    return True


needs_ptrace = pytest.mark.skipif(not may_trace(), reason="processes may not be traced here")

# argument registers of the System V ABI, in order, as numbers
RDI, RSI, RDX, RCX, R8, R9, R11 = 5, 4, 3, 2, 8, 9, 11


@pytest.fixture(scope="module")
def session_of() -> Iterator[Callable[[str, str], Session]]:
    """Sessions by operator and check, kept for the tests of this file: starting one takes a second."""
    with ExitStack() as stack:
        yield functools.cache(lambda operator, check: stack.enter_context(session(operator, check)))


def session(operator: str = "qlinear", check: str = "exact", timeout: float = 10.0) -> Session:
    return Session({"operator": operator, "check": check, "shape": targets.SHAPES[operator], "seed": 0}, timeout)


def stop_at(s: Session, function: str) -> tuple[symbols.Image, int]:
    """Run one call up to the entry of a function of the extension."""
    image = next(i for i in s.images if any(function == i.function(start) for start in i._starts))
    worker, address = s.worker(), image.base + image.offset_of(function)
    code = s.read(address, 1)
    s.write(address, b"\xcc")
    os.write(s._go, protocol.ONCE)
    assert worker.wait(s._done, s.timeout) == (_ptrace.STOPPED, signal.SIGTRAP)
    s.write(address, code)
    for bit in range(64):
        if (worker.pc() ^ address) >> bit & 1:
            worker.flip("rip", 0, bit)
    return image, address


def strike_at(s: Session, function: str, kind: str, register: int, bit: int) -> Trial:
    image, pc = stop_at(s, function)
    trial = s.struck(Strike(0, kind, register, bit, ()), 1, image, pc)
    assert trial.function == function
    return trial


def kernel(s: Session, name: str) -> str:
    """A function of the instruction set in force, which may have taken it from another one."""
    known = {i.function(start) for i in s.images for start in i._starts}
    places = [f"{part}_{isa}:{name}" for isa in (s.isa, "avx2") for part in ("gemm", "epilogue", "embedding")]
    return next(place for place in places if place in known)


# ---- where a flip lands


@needs_ptrace
@pytest.mark.parametrize("kind", sorted(set(_ptrace.registers()) - {"rip", "flags"}))
def test_a_flip_lands_in_its_register_and_bit_and_nowhere_else(
    kind: str, rng: np.random.Generator, session_of: Callable[[str, str], Session]
) -> None:
    count, bits = _ptrace.registers()[kind]
    start = {"general": 0, "vector": 128, "mask": 2176}[kind]
    width = {"general": 8, "vector": 64, "mask": 8}[kind]
    free = {"general": {RCX, RDI, 7}}.get(kind, set())  # counter, pointer, stack
    seen = set()
    s = session_of("probe", "off")
    loop = Counter(s._meet(s.worker(), draw(0, i, {}))[2] for i in range(20) if not s._discard()).most_common(1)[0][0]
    for register in [r for r in range(count) if r not in free] * 3:
        bit = int(rng.integers(bits))
        s._discard()
        worker = s.worker()
        if s._meet(worker, draw(1, register, {}))[2] != loop:
            continue
        worker.flip(kind, register, bit)
        worker.resume()
        assert worker.wait(s._done, s.timeout) == (_ptrace.WROTE, protocol.RETURNED)
        got = np.frombuffer(s.read(*s._out), np.uint8) ^ s.want
        want = np.zeros_like(got)
        want[start + width * register + bit // 8] = 1 << bit % 8
        np.testing.assert_array_equal(got, want)
        seen.add(register)
    assert len(seen) > count // 2


@needs_ptrace
def test_a_flip_outside_the_machine_is_refused(session_of: Callable[[str, str], Session]) -> None:
    worker = session_of("probe", "off").worker()
    for kind, (count, bits) in _ptrace.registers().items():
        for register, bit in ((count, 0), (0, bits), (-1, 0), (0, -1)):
            with pytest.raises(ValueError, match=f"{kind} register"):
                worker.flip(kind, register, bit)


def test_every_register_and_bit_is_drawn() -> None:
    registers = {"general": (16, 64), "vector": (32, 512), "mask": (8, 64), "flags": (1, 12)}
    strikes = [draw(0, i, registers) for i in range(4000)]
    kinds = Counter(s.kind for s in strikes)
    assert min(kinds.values()) > 800
    for kind, (count, bits) in registers.items():
        mine = [s for s in strikes if s.kind == kind]
        assert {s.register for s in mine} == set(range(count))
        assert {s.bit for s in mine} <= (set(FLAG_BITS) if kind == "flags" else set(range(bits)))
        assert max(s.bit for s in mine) > 0.9 * bits - 1
    assert draw(0, 7, registers) == strikes[7] != draw(1, 7, registers)
    assert register_name("vector", 31, 512) == "zmm31"
    assert register_name("general", 7, 64) == "rsp"


# ---- what is made of it: strikes at the entry of functions, whose arguments are in known registers


@needs_ptrace
@pytest.mark.parametrize(
    ("check", "function", "strike", "outcome", "found"),
    [
        ("off", "tile", ("general", RDX, 0), "missed", ""),  # the pointer to x
        ("exact", "tile", ("general", RDX, 0), "detected", "accumulator"),
        ("full", "tile", ("general", RDX, 0), "detected", "accumulator"),
        ("exact", "tile", ("general", RDX, 46), "crash", ""),
        ("exact", "tile", ("general", R11, 3), "masked", ""),  # holds nothing between functions
        ("exact", "tile", ("vector", 15, 100), "masked", ""),
        ("exact", "sum_rows", ("general", RSI, 0), "benign", "accumulator"),  # the check's own reading of x
        ("exact", "sum_u8", ("general", RDI, 0), "benign", "output"),
    ],
)
def test_strikes_at_known_places_are_classified(
    check: str,
    function: str,
    strike: tuple[str, int, int],
    outcome: str,
    found: str,
    session_of: Callable[[str, str], Session],
) -> None:
    s = session_of("qlinear", check)
    trial = strike_at(s, kernel(s, function), *strike)
    assert (trial.outcome, trial.check) == (outcome, found)
    assert (trial.damage > 0) == trial.beyond == (outcome in ("missed", "detected"))
    assert trial.detail == ("SIGSEGV" if outcome == "crash" else "")


@needs_ptrace
@pytest.mark.parametrize(
    ("check", "outcome", "found"), [("off", "missed", ""), ("exact", "detected", "count"), ("full", "detected", "count")]
)
def test_rows_that_a_loop_left_out_are_counted(
    check: str, outcome: str, found: str, session_of: Callable[[str, str], Session]
) -> None:
    trial = strike_at(session_of("qlinear", check), "_gemm:run_rows", "general", RDX, 0)  # 13 rows become 12
    assert (trial.outcome, trial.check) == (outcome, found)
    assert trial.damage > 0


@needs_ptrace
@pytest.mark.parametrize(
    ("strike", "outcomes"),  # off, exact, full
    [
        (("general", RCX, 3), ("missed ", "detected count", "detected repeat")),  # pointers to weights and indices
        (("general", RSI, 3), ("missed ", "detected count", "detected repeat")),
        (("general", R8, 0), ("missed ", "detected count", "detected repeat")),  # begin
        (("vector", 0, 0), ("missed ", "missed ", "detected repeat")),  # last bit of the divisor: within the bound
    ],
)
def test_a_bag_of_other_rows_is_detected(
    strike: tuple[str, int, int], outcomes: tuple[str, ...], session_of: Callable[[str, str], Session]
) -> None:
    for check, expected in zip(("off", "exact", "full"), outcomes, strict=True):
        s = session_of("bag", check)
        trial = strike_at(s, kernel(s, "bag"), *strike)
        assert f"{trial.outcome} {trial.check}" == expected
        assert trial.beyond == (strike[0] == "general")


def mislead(s: Session, place: int, by: int) -> int:
    """Change every copy of an address on the worker's stack, as a flip would that came before they were made."""
    maps = Path(f"/proc/{s.worker().pid}/maps").read_text().splitlines()
    low, high = (int(x, 16) for x in next(m for m in maps if m.endswith("[stack]")).split()[0].split("-"))
    words = np.frombuffer(s.read(low, high - low), np.uint64)
    copies = np.flatnonzero(words == place)
    for i in copies.tolist():
        s.write(low + 8 * i, (place ^ by).to_bytes(8, "little"))
    return len(copies)


@needs_ptrace
@pytest.mark.parametrize(
    ("operator", "function", "operand"),
    [
        ("bag", "_embedding:run_chunk", "indices"),
        ("bag", "_embedding:run_chunk", "per_sample_weights"),
        ("bag", "_embedding:run_chunk", "out"),
        ("qlinear", "_gemm:run_rows", "x"),
        ("qlinear", "_gemm:run_rows", "out"),
    ],
)
@pytest.mark.parametrize("check", ["off", "exact", "full"])
def test_a_wrong_pointer_that_kernel_and_checks_share_is_detected(
    operator: str, function: str, operand: str, check: str, session_of: Callable[[str, str], Session]
) -> None:
    s = session_of(operator, check)
    image, pc = stop_at(s, function)
    place, size = s._out if operand == "out" else s._places[operand]
    if operand == "indices":  # an even number of words of 8 leaves one behind them unused
        assert size % 16 == place % 16 == 0
        s.write(place + size, bytes(8))
    assert mislead(s, place, 8) > 0
    trial = s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
    assert (trial.outcome, trial.check) == (("missed", "") if check == "off" else ("detected", "count"))


@needs_ptrace
@pytest.mark.parametrize("function", ["_embedding:pool", "_embedding:run_chunk", "bag"])
def test_no_pointer_struck_at_an_entry_goes_unseen(function: str, session_of: Callable[[str, str], Session]) -> None:
    s = session_of("bag", "exact")
    where = kernel(s, function) if function == "bag" else function
    found = [strike_at(s, where, "general", register, 3) for register in range(16) if register != 7]
    assert "missed" not in {t.outcome for t in found}
    assert "count" in {t.check for t in found}


@needs_ptrace
def test_an_error_that_is_no_detection_is_one(session_of: Callable[[str, str], Session]) -> None:
    s = session_of("bag", "exact")
    trial = strike_at(s, kernel(s, "range"), "general", RCX, 9)  # 600 rows become 88
    assert trial.outcome == "error"


@needs_ptrace
def test_a_loop_without_end_hangs() -> None:
    with session("probe", "off") as s:
        met = [s._meet(s.worker(), draw(0, n, {}))[2] for n in range(20) if not s._discard()]
        loop = Counter(met).most_common(1)[0][0]  # most stops are in it
        for n in range(100):
            s._discard()
            _, image, pc = s._meet(s.worker(), draw(0, n, {}))
            if pc == loop:
                break
        s.timeout = int(0.3e9)
        assert s.struck(Strike(0, "general", RCX, 60, ()), 1, image, pc).outcome == "hang"
        s.timeout = int(10e9)
        assert s._worker is None
        assert s.run(draw(0, 0, {})).outcome == "masked"  # in a new worker


@needs_ptrace
def test_damage_that_shows_in_the_next_call_is_latent_and_the_worker_replaced(
    session_of: Callable[[str, str], Session],
) -> None:
    s = session_of("qlinear", "exact")
    image, pc = stop_at(s, kernel(s, "sum_u8"))
    x, _ = s._places["x"]
    s.write(x, bytes([s.read(x, 1)[0] ^ 128]))
    trial = s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
    assert (trial.outcome, trial.operands) == ("latent", ("x",))
    assert trial.damage == 0
    assert s.run(draw(0, 0, {})).outcome == "masked"


@needs_ptrace
def test_a_worker_whose_operands_changed_is_replaced(session_of: Callable[[str, str], Session]) -> None:
    s = session_of("bag", "exact")
    s.worker()
    used = np.frombuffer(s.read(*s._places["indices"]), np.int64)
    at, size = s._places["rows"]
    rows = targets.SHAPES["bag"][1]
    unused = next(row for row in range(rows) if row not in used)
    image, pc = stop_at(s, kernel(s, "bag"))
    s.write(at + unused * (size // rows) + 5, bytes([s.read(at + unused * (size // rows) + 5, 1)[0] ^ 1]))
    trial = s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
    assert (trial.outcome, trial.operands) == ("masked", ("rows",))
    assert s._worker is None
    assert not live.LiveResult({}, (trial,)).passed
    assert s.run(draw(0, 0, {})).operands == ()


# ---- what comes from outside


@needs_ptrace
@pytest.mark.parametrize("number", [signal.SIGWINCH, signal.SIGCONT])
def test_a_signal_to_the_worker_changes_nothing(number: int) -> None:
    with session() as s:
        worker, done = s.worker(), threading.Event()

        def send() -> None:
            while not done.wait(0.001):
                os.kill(worker.pid, number)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            trials = [s.run(draw(0, i, {})) for i in range(60)]
        finally:
            done.set()
            sender.join()
        assert {t.outcome for t in trials} == {"masked"}
        assert s.worker() is worker
        # signals to this process and its group aren't for that one
        assert os.getpgid(worker.pid) == os.getpgid(s._template.pid) == s._template.pid != os.getpgrp()


@needs_ptrace
def test_a_template_that_dies_ends_the_campaign() -> None:
    with session() as s:
        s.worker()
        s._template.kill()
        s._template.wait()
        assert s.run(draw(0, 0, {})).outcome == "masked"  # the worker goes on
        s._discard()
        for _ in range(2):
            with pytest.raises(live.LiveError, match="the template process ended"):
                s.run(draw(0, 0, {}))


@needs_ptrace
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_ends_the_campaign(number: int) -> None:
    with session() as s:
        for when in ("meet", "wait"):
            image, pc = stop_at(s, kernel(s, "sum_u8"))
            worker = s.worker()
            if when == "wait":
                os.kill(worker.pid, signal.SIGTERM)  # delivered as soon as it goes on
                with pytest.raises(live.LiveError, match="killed from outside, by SIGTERM"):
                    s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
            else:
                assert s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc).outcome == "masked"
                os.kill(worker.pid, number)
                with pytest.raises(live.LiveError, match="trial 0: the worker was killed from outside"):
                    s.run(draw(0, 0, {}))
            s._discard()
            assert worker.ended


@needs_ptrace
def test_a_process_that_was_reaped_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    tracee = _ptrace.Tracee(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    silent, write = os.pipe()
    try:
        assert tracee.wait(silent, 10**10) == (_ptrace.ENDED, signal.SIGKILL)
    finally:
        os.close(silent)
        os.close(write)
    assert tracee.ended
    child.returncode = 0  # its number is free
    other = _ptrace.Tracee((sleeper := subprocess.Popen(["sleep", "60"])).pid)
    assert not other.ended
    other.kill()
    assert other.ended
    sleeper.returncode = 0


@needs_ptrace
def test_a_pipe_that_nobody_writes_to_is_waited_on_without_work() -> None:
    child = subprocess.Popen(["sleep", "60"])
    tracee = _ptrace.Tracee(child.pid)
    silent, write = os.pipe()
    os.close(write)
    before = time.process_time()
    try:
        assert tracee.wait(silent, 300_000_000) == (_ptrace.SILENT, 0)
        assert time.process_time() - before < 0.15
    finally:
        tracee.kill()
        child.returncode = 0
        os.close(silent)


@needs_ptrace
def test_a_timeout_too_short_for_a_call_is_named() -> None:
    with pytest.raises(live.LiveError, match=r"call didn't end within 1e-06 s, expected a longer timeout"):
        live.run(trials=1, timeout=1e-7)


@needs_ptrace
def test_what_forbids_to_trace_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise PermissionError(1, "ptrace: seize")

    monkeypatch.setattr(_ptrace, "Tracee", refuse)
    with pytest.raises(PermissionError, match=r"ptrace_scope.*CAP_SYS_PTRACE.*seccomp"):
        live.run(trials=1)


# ---- campaigns


@needs_ptrace
@pytest.mark.parametrize(
    ("operator", "check"), [("qlinear", "exact"), ("qlinear", "full"), ("bag", "exact"), ("bag", "full")]
)
def test_a_dummy_campaign_reports_nothing(operator: str, check: str) -> None:
    result = live.run(operator, check, trials=60, dummy=True, timeout=60)
    assert Counter(t.outcome for t in result.trials) == {"masked": 60}
    assert {t.operands for t in result.trials} == {()}
    assert result.passed


@needs_ptrace
@pytest.mark.parametrize(("operator", "trials"), [("qlinear", 300), ("bag", 100)])
def test_a_campaign_strikes_what_was_drawn(operator: str, trials: int) -> None:
    kinds = ("general", "vector")
    silent = live.run(operator, "off", trials=trials, registers=kinds, timeout=0.3)
    seen = live.run(operator, "full", trials=trials, registers=kinds, timeout=0.3)
    for result in (silent, seen):
        assert [(t.kind, t.register, t.bit) for t in result.trials] == [
            draw(0, i, {k: _ptrace.registers()[k] for k in kinds})[1:4] for i in range(trials)
        ]
        assert {t.module for t in result.trials} <= {"_dispatch", "_gemm", "_embedding"}
        assert all(t.function for t in result.trials)
    counts = Counter(t.outcome for t in silent.trials)
    # a flip of the level itself turns checks on
    assert counts["detected"] + counts["benign"] < 10
    found = Counter(t.outcome for t in seen.trials)
    assert found["missed"] <= 1
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
    with Log(log, json.loads(lines[0])), pytest.raises(ValueError, match="another run is writing to"):
        live.run("qlinear", "exact", trials=15, **options)
    for other in ({"seed": 1}, {"dummy": True}):
        with pytest.raises(ValueError, match="of another campaign"):
            live.run("qlinear", "exact", trials=15, **(options | other))
    assert log.read_bytes() == b"".join(lines)


@needs_ptrace
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"text\n", "line 1 of"),
        (b"text", "line 1 of"),
        (b"[]\n", "of another campaign"),
        (b'{"live": 1}\n{"trial": 0}\n', "line 2 of"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    log = tmp_path / "file"
    log.write_bytes(content)
    with pytest.raises(ValueError, match=f"log: got .*{what}"):
        Log(log, {"live": 2})
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


# ---- parts


def test_damage_is_relative_and_sees_every_bit() -> None:
    want, limits = np.array([[1, -4], [2, 0]], np.float32), np.array([1e-3, 1e-3])
    assert targets.damage(want, want, limits) == (0, False)
    got = want.copy()
    got[1, 1] = -0.0
    assert targets.damage(got, want, limits) == (targets.SMALLEST, False)
    got[1, 1] = 0.5
    assert targets.damage(got, want, limits) == (0.125, True)
    assert targets.damage(got, want, np.array([0, 0.5])) == (0.125, False)
    got[0, 0] = np.nan
    assert targets.damage(got, want, limits) == (targets.LARGEST, True)
    codes = np.array([3, 200], np.uint8)
    assert targets.damage(codes ^ np.array([0, 1], np.uint8), codes, np.zeros(1)) == (0.005, True)


def trial(number: int, outcome: str, **fields: Any) -> Trial:
    return Trial(
        number, fields.pop("kind", "general"), 0, 0, 1, fields.pop("function", "a:f"), "_gemm", 16, outcome, **fields
    )


def test_a_result_counts_and_gives_intervals() -> None:
    big, small = {"damage": 0.5, "beyond": True}, {"damage": 3e-4}
    trials = [trial(i, outcome) for i, outcome in enumerate(OUTCOMES) if outcome not in ("detected", "missed")]
    trials += [trial(10 + i, "detected", **big) for i in range(30)] + [trial(50, "missed", **big, function="b:g")]
    trials += [trial(51, "missed", **small), trial(52, "detected", **small), trial(53, "masked", kind="vector")]
    header = {"operator": "bag", "check": "exact", "shape": [1, 2, 3], "seed": 5, "registers": {}, "isa": "avx2"}
    result = live.LiveResult(header, tuple(trials))
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
    assert live.LiveResult(header, tuple(t for t in trials if t.kind == "general")).holds(1.001 - known.interval[0])
    assert not live.LiveResult(header, tuple(t for t in trials if t.kind == "general")).holds(0.999 - known.interval[0])
    full = live.LiveResult(header | {"check": "full"}, tuple(trials))
    assert full.by_kind()[0].consequential == 33  # which is to see small changes too
    assert len(full.misses()) == 2
    long = live.LiveResult(header, (trial(0, "masked", function="m:" + "f" * 60),)).table().splitlines()
    head, row = (next(line for line in long if line.startswith(start)) for start in ("function", "m:"))
    assert len(head) == len(row)
    assert not live.LiveResult(header, (trial(0, "missed", kind=NOTHING, **big),)).passed


@needs_ptrace
def test_functions_are_named_by_their_symbols(tmp_path: Path) -> None:
    path = os.path.realpath(str(_gemm.__file__))
    (image,) = symbols.images(os.getpid(), {path})
    for name in ("run_rows", "linear"):
        offset = image.offset_of(f"_gemm:{name}")
        assert image.low <= image.base + offset < image.high
        assert image.function(offset) == f"_gemm:{name}"
    assert image.function(0) == "_gemm:?"
    with pytest.raises(KeyError):
        image.offset_of("_gemm:nothing")
    strip = shutil.which("strip")
    assert strip is not None
    stripped = tmp_path / Path(path).name
    subprocess.run([strip, "-o", stripped, path], check=True)
    bare = symbols.Image(str(stripped), 0, 0, 1)
    assert bare.function(image.offset_of("_gemm:run_rows")) == "_gemm:?"
    assert bare.function(bare.offset_of("_gemm:PyInit__gemm")) == "_gemm:PyInit__gemm"


@needs_ptrace
def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise live.LiveError("no result")

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    file, log = tmp_path / "out.json", tmp_path / "run.jsonl"
    options = ["--operator", "bag", "--check", "digest", "--trials", "25", "--resume", str(log)]
    assert cli.main(["campaign", "--live", *options, "--json", str(file)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("bag 21 x 600 x 83, check='digest', ")
    assert "25 of 25" in printed.err
    written = json.loads(file.read_text())
    assert written["trials"] == 25
    assert sum(row["flips"] for row in written["by_kind"]) == sum(row["flips"] for row in written["by_function"]) == 25
    assert len(log.read_text().splitlines()) == 26
    assert cli.main(["campaign", "--live", "--dummy", "--trials", "3"]) == 0
    assert cli.main(["campaign", "--live", "--check", "threshold"]) == 2
    assert "sedq: check: got 'threshold'" in capsys.readouterr().err
    assert cli.main(["campaign", "--live", "--json", str(tmp_path)]) == 2
    assert cli.main(["campaign", "--live", "--operator", "probe", "--trials", "3"]) == 0
    capsys.readouterr()
    for goal, status, said in (("0.999", 0, "goal holds"), ("1e-9", 1, "goal DOES NOT HOLD")):
        options = ["--live", "--registers", "vector", "--check", "exact", "--trials", "25", "--goal", goal]
        assert cli.main(["campaign", *options]) == status
        assert capsys.readouterr().out.endswith(f"{said}\n")
    monkeypatch.setattr(live, "run", fail)
    assert cli.main(["campaign", "--live"]) == 2
    assert "the run is invalid: no result" in capsys.readouterr().err
    for option in (["--sites", "weights"], ["--batch", "0"], ["--workers", "0"], ["--list-sites"], ["--goal", "0"]):
        assert cli.main(["campaign", "--live", *option]) == 2
        assert f"sedq: {option[0]}: got " in capsys.readouterr().err
    assert cli.main(["campaign", "--live", "--dummy", "--goal", "0.1"]) == 2
    monkeypatch.setattr(live, "run", interrupt)
    assert cli.main(["campaign", "--live", "--resume", str(log)]) == 130
    assert f"interrupted; go on with --resume {log}" in capsys.readouterr().err


def test_the_module_is_there_without_an_import_of_its_own() -> None:
    code = "import sys, sedq; assert 'sedq.faults.live' not in sys.modules; print(sedq.faults.live.run.__name__)"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "run\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sedq.faults.nothing
