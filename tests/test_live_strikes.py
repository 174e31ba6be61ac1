"""Bits flipped in the registers of a live process: where they land, and what is made of it."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.tracing import go_on_to, kernel, needs_ptrace, session, step, stop_at
from sedq._core import _gemm, _ptrace
from sedq.faults import live
from sedq.faults.live import _protocol, _symbols, _targets
from sedq.faults.live._session import Session
from sedq.faults.live._strikes import FLAG_BITS, NOTHING, Strike, Trial, draw, register_name

# argument registers of the System V ABI, in order, as numbers
RDI, RSI, RDX, RCX, R8, R9, R11 = 5, 4, 3, 2, 8, 9, 11


@pytest.fixture(scope="module")
def session_of() -> Iterator[Callable[[str, str], Session]]:
    """Sessions by operator and check, kept for the tests of this file: starting one takes a second."""
    with ExitStack() as stack:
        yield functools.cache(lambda operator, check: stack.enter_context(session(operator, check)))


def strike_at(s: Session, function: str, kind: str, register: int, bit: int) -> Trial:
    image, pc = stop_at(s, function)
    trial = s.struck(Strike(0, kind, register, bit, ()), 1, image, pc)
    assert trial.function == function
    return trial


def stops(s: Session) -> Iterator[tuple[_symbols.Image, int]]:
    """Stop one new worker after another, each at a random moment."""
    for n in range(1000):
        s._discard()
        yield s._meet(s.worker(), draw(0, n, {}))[1:]


def loop_of(s: Session) -> int:
    """Where the probe is most of the time."""
    return Counter(pc for _, pc in itertools.islice(stops(s), 20)).most_common(1)[0][0]


def stop_in(s: Session, loop: int) -> _symbols.Image:
    """Have a worker that is stopped there, however many that takes."""
    return next(image for image, pc in stops(s) if pc == loop)


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
    s = session_of("probe", "off")
    loop = loop_of(s)
    for register in [r for r in range(count) if r not in free] * 3:
        bit = int(rng.integers(bits))
        stop_in(s, loop)
        worker = s.worker()
        worker.flip(kind, register, bit)
        worker.resume()
        assert worker.wait(s._done, s.timeout) == (_ptrace.WROTE, _protocol.RETURNED)
        got = np.frombuffer(s.read(*s._out), np.uint8) ^ s.want
        want = np.zeros_like(got)
        want[start + width * register + bit // 8] = 1 << bit % 8
        np.testing.assert_array_equal(got, want)


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


@needs_ptrace
def test_functions_are_named_by_their_symbols(tmp_path: Path) -> None:
    path = os.path.realpath(str(_gemm.__file__))
    (image,) = _symbols.images(os.getpid(), {path})
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
    bare = _symbols.Image(str(stripped), 0, 0, 1)
    assert bare.function(image.offset_of("_gemm:run_rows")) == "_gemm:?"
    assert bare.function(bare.offset_of("_gemm:PyInit__gemm")) == "_gemm:PyInit__gemm"


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
        ("exact", "sum_rows", ("general", RSI, 0), "detected", "accumulator"),  # x, as the checksums and row sums read it
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


def stack_of(s: Session) -> tuple[int, NDArray[np.uint64]]:
    """Where the worker's stack begins, and its words."""
    maps = Path(f"/proc/{s.worker().pid}/maps").read_text().splitlines()
    low, high = (int(x, 16) for x in next(m for m in maps if m.endswith("[stack]")).split()[0].split("-"))
    return low, np.frombuffer(s.read(low, high - low), np.uint64)


def mislead(s: Session, place: int, by: int) -> int:
    """Change every copy of an address on the worker's stack, as a flip would that came before they were made."""
    low, words = stack_of(s)
    copies = np.flatnonzero(words == place)
    for i in copies.tolist():
        s.write(low + 8 * i, (place ^ by).to_bytes(8, "little"))
    return len(copies)


def job_of(s: Session) -> tuple[int, int]:
    """Of an interaction that runs: the word that holds its inverse scale and, above, its zero point; where its codes go.

    On the stack they follow the vectors and four sizes.
    """
    requests, vectors, dim = _targets.SHAPES["interaction"]
    sizes = np.array([s._places["vectors"][0], requests, vectors, dim, dim + vectors * (vectors - 1) // 2], np.uint64)
    _, words = stack_of(s)
    found = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(words, len(sizes)) == sizes).all(axis=1))
    (job,) = {(int(words[at + len(sizes)]), int(words[at + len(sizes) + 1])) for at in found}
    return job


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
@pytest.mark.parametrize("operand", ["vectors", "codes", "zero point"])
@pytest.mark.parametrize(
    ("check", "function", "expected"), [("off", "quantize", ("missed", "")), ("exact", "same_codes", ("detected", "count"))]
)
def test_what_both_computations_share_is_detected(
    check: str, function: str, expected: tuple[str, str], operand: str, session_of: Callable[[str, str], Session]
) -> None:
    """Of an interaction, from its second request on: the first one is at its last kernel."""
    s = session_of("interaction", check)
    image, pc = stop_at(s, kernel(s, function))
    # one byte further is within what was allocated for the codes
    numbers, codes = job_of(s)
    place, by = {"vectors": (s._places["vectors"][0], 8), "codes": (codes, 1), "zero point": (numbers, 1 << 32)}[operand]
    assert mislead(s, place, by) > 0
    trial = s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
    assert (trial.outcome, trial.check) == expected
    assert trial.damage > 0


@needs_ptrace
@pytest.mark.parametrize(("check", "expected"), [("off", ("missed", "")), ("exact", ("detected", "output"))])
def test_codes_stored_in_an_earlier_row_are_detected(
    check: str, expected: tuple[str, str], session_of: Callable[[str, str], Session]
) -> None:
    """Of an interaction's third request; its own row holds its codes already, as from a call before."""
    s = session_of("interaction", check)
    image, pc = stop_at(s, kernel(s, "quantize"))
    for _ in range(2):  # of the first two requests
        go_on_to(s, kernel(s, "dots"))
        go_on_to(s, kernel(s, "quantize"))
    want = s.want.reshape(_targets.SHAPES["interaction"][0], -1)
    _, first = job_of(s)
    third = first + 2 * want.shape[1]
    s.write(third, want[2].tobytes())
    away = first ^ third
    for bit in range(64):
        if away >> bit & 1:
            s.worker().flip("general", RCX, bit)  # the fourth argument of no float: where codes go
    trial = s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
    assert (trial.outcome, trial.check) == expected
    assert trial.damage > 0


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
        loop = loop_of(s)
        image = stop_in(s, loop)
        s.timeout = int(0.3e9)
        assert s.struck(Strike(0, "general", RCX, 60, ()), 1, image, loop).outcome == "hang"
        s.timeout = int(10e9)
        assert s._worker is None
        assert s.run(draw(0, 0, {})).outcome == "masked"  # in a new worker


@needs_ptrace
def test_damage_that_shows_in_the_next_call_is_latent_and_the_worker_replaced(
    session_of: Callable[[str, str], Session],
) -> None:
    s = session_of("qlinear", "exact")
    image, pc = stop_at(s, kernel(s, "sum_u8"))
    for _ in range(2):  # first it reads the first row of the output back, then sums that of x
        step(s)
        go_on_to(s, kernel(s, "sum_u8"))
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
    rows = _targets.SHAPES["bag"][1]
    unused = next(row for row in range(rows) if row not in used)
    image, pc = stop_at(s, kernel(s, "bag"))
    s.write(at + unused * (size // rows) + 5, bytes([s.read(at + unused * (size // rows) + 5, 1)[0] ^ 1]))
    trial = s.struck(Strike(0, NOTHING, 0, 0, ()), 1, image, pc)
    assert (trial.outcome, trial.operands) == ("masked", ("rows",))
    assert s._worker is None
    assert not live.LiveResult({}, (trial,)).passed
    assert s.run(draw(0, 0, {})).operands == ()
