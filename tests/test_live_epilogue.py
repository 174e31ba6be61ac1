"""Bits flipped in the general registers of the uint8 epilogue, at each of its instructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from helpers.tracing import general_registers, kernel, needs_ptrace, run_to_address, session, step, stop_at
from sedq._core import _dispatch
from sedq.faults.live._session import Session
from sedq.faults.live._strikes import Strike

pytestmark = pytest.mark.any_isa

# argument registers of the System V ABI, and the stack pointer, as numbers
RDI, RDX, RCX, RSP = 5, 3, 2, 7


def uses(s: Session, function: str, sought: Callable[[int], bool]) -> dict[tuple[int, int], int]:
    """Instructions of a stopped function's call at which a register holds a value that is sought.

    Keys are address and register. Values tell how often the call had met the address before, the last of those times.
    """
    met: Counter[int] = Counter()
    found: dict[tuple[int, int], int] = {}
    bottom = general_registers(s)[RSP]
    while (registers := general_registers(s))[RSP] <= bottom:
        pc = s.worker().pc()
        for register in range(16):
            if register != RSP and sought(registers[register]):
                found[pc, register] = met[pc]
        met[pc] += 1
        step(s)
    s._discard()
    image = next(i for i in s.images if any(function == i.function(start) for start in i._starts))
    return {
        (pc, register): times
        for (pc, register), times in found.items()
        if image.low <= pc < image.high and image.function(pc - image.base) == function
    }


@needs_ptrace
@pytest.mark.parametrize("struck", ["pointer to accumulators", "pointer to row sums", "row sum"])
@pytest.mark.parametrize("isa", [isa for isa in _dispatch.available() if isa != "reference"])
def test_no_register_of_the_epilogue_that_leads_to_other_rows_goes_unseen(
    isa: str, struck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulators or row sums are those of a neighbouring row from any one instruction on.

    It is an instruction of the last row of a tile: there is no later row whose sum would tell.
    """
    monkeypatch.setenv("SEDQ_ISA", isa)
    with session("qlinear", "exact") as s:
        function = kernel(s, "store_u8")
        stop_at(s, function)
        arguments = general_registers(s)
        if struck == "pointer to accumulators":
            first, size = arguments[RDX], 4 * 64
        else:
            first, size = arguments[RCX], 4
        rows = arguments[RDI]
        pointers = range(first, first + rows * size)
        sums = np.frombuffer(s.read(arguments[RCX], rows * 4), np.uint32).tolist()
        places = uses(s, function, sums.__contains__ if struck == "row sum" else pointers.__contains__)
        bit = 9 if struck == "row sum" else size.bit_length() - 1
        outcomes: Counter[str] = Counter()
        for (pc, register), times in places.items():
            image, entry = stop_at(s, function)
            if pc != entry:
                run_to_address(s, pc, s.worker().resume)
            for _ in range(times):
                step(s)
                run_to_address(s, pc, s.worker().resume)
            trial = s.struck(Strike(0, "general", register, bit, ()), 1, image, pc)
            assert trial.outcome != "missed", (hex(trial.pc), register)
            outcomes[trial.outcome] += 1
    assert outcomes["detected"] > 0
