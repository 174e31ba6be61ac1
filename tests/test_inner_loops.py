"""The inner loops of the micro-kernels keep everything in registers: a compiler that spills halves their speed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from sedq._core import _dispatch

# what multiplies in the k loop of each instruction set's tiles
MULTIPLY = {"avx2": "vpmaddwd", "avxvnni": "vpdpbusd", "avx512vnni": "vpdpbusd"}
TILES = re.compile(r"^(?:strip|tile)_\d(?:x\d)?$")
Loop = list[str]


def functions() -> dict[str, list[tuple[int, str]]]:
    """Instructions, with their addresses, of the functions of the compiled kernels whose names say that they are tiles."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _dispatch.__file__], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, list[tuple[int, str]]] = {}
    for block in listing.split("\n\n"):
        head = re.match(r"^[0-9a-f]+ <([^>]+)>:", block)
        if head and TILES.match(head[1].partition(".")[0]):
            lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", block, re.M)
            # the same name stands in several files: kept apart by the address
            found[f"{head[1]} at {lines[0][0]}"] = [(int(address, 16), text.strip()) for address, text in lines]
    return found


def innermost_loops(instructions: list[tuple[int, str]]) -> list[Loop]:
    """Bodies of backward jumps that hold no other backward jump."""
    loops = []
    for end, (address, text) in enumerate(instructions):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= address:
            start = next((i for i, (at, _) in enumerate(instructions) if at == int(jump[1], 16)), None)
            if start is not None:
                loops.append((start, end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[text for _, text in instructions[start : end + 1]] for start, end in inner]


def touches_stack(loop: Loop) -> bool:
    return any(re.search(r"\(%r[sb]p\b", text) for text in loop)


def test_a_loop_that_spills_is_recognised() -> None:
    body = [(0, "vmovdqa 0x40(%rsp),%ymm1"), (4, "vpmaddwd %ymm0,%ymm1,%ymm2"), (8, "jne    0 <strip_1>"), (12, "ret")]
    (loop,) = innermost_loops(body)
    assert len(loop) == 3
    assert touches_stack(loop)
    assert not touches_stack(loop[1:])


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.skipif(set(_dispatch.built()) == {"reference"}, reason="no kernels with intrinsics here")
def test_inner_loops_of_the_tiles_keep_off_the_stack() -> None:
    multiplying = [
        (name, loop)
        for name, body in functions().items()
        for loop in innermost_loops(body)
        if any(text.startswith(tuple(MULTIPLY.values())) for text in loop)
    ]
    expected = {MULTIPLY[isa] for isa in _dispatch.built() if isa in MULTIPLY}
    assert {text.split()[0] for _, loop in multiplying for text in loop if text.split()[0] in expected} == expected
    assert len(multiplying) >= 6, "a tile for each number of rows"
    assert {name for name, loop in multiplying if touches_stack(loop)} == set()
