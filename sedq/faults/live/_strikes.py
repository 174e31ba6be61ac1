"""The faults of a campaign, drawn before it runs, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["KINDS", "NOTHING", "OUTCOMES", "Strike", "Trial", "draw", "register_name"]

# classes of registers; those that are struck unless others are asked for come first
KINDS = ("general", "vector", "mask", "rip", "flags")
NOTHING = "none"  # a dummy strike
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)))
FLAG_BITS = (0, 2, 4, 6, 7, 10, 11)  # carry, parity, adjust, zero, sign, direction, overflow
MOMENTS = 100

OUTCOMES = ("masked", "detected", "benign", "missed", "latent", "error", "crash", "hang")


class Strike(NamedTuple):
    """One fault: which bit of which register, and when.

    Attributes
    ----------
    trial : int
        Its number.
    kind : str
        Class of the register, or ``"none"``.
    register, bit : int
        Which register of its class, and which bit.
    moments : tuple of float
        When to stop the worker, as parts of the time that sixteen calls take, tried one after another until its program
        counter is in the extension.
    """

    trial: int
    kind: str
    register: int
    bit: int
    moments: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one strike.

    Attributes
    ----------
    trial, kind, register, bit
        As drawn.
    tries : int
        How many moments it took to meet the extension.
    function : str
        Where the program counter was, as ``source:function``.
    module, pc : str, int
        The compiled module, and the offset in it.
    outcome : str
        ``"masked"``: nothing came of it. ``"detected"``: the output was wrong, and a check said so. ``"benign"``: a check
        disagreed though the output was right. ``"missed"``: the output was wrong, and nobody said so. ``"latent"``: the
        output was right, but the next call, without a fault, was not as it must be. ``"error"``: an exception other than
        a detection. ``"crash"``, ``"hang"``: a fatal signal, or no answer in time.
    damage : float
        Largest change of an output, relative to the largest magnitude of one.
    beyond : bool
        Whether a change exceeds the threshold in force: any change of an integer, the rounding bound for a bag.
    check : str
        The first check that disagreed, if any.
    detail : str
        Signal of a crash; what a latent fault did to the next call.
    operands : tuple of str
        Operands found changed in memory afterwards.
    """

    trial: int
    kind: str
    register: int
    bit: int
    tries: int
    function: str
    module: str
    pc: int
    outcome: str
    damage: float = 0.0
    beyond: bool = False
    check: str = ""
    detail: str = ""
    operands: tuple[str, ...] = ()


def draw(seed: int, trial: int, registers: dict[str, tuple[int, int]]) -> Strike:
    """Draw the strike of a trial: a class of registers, one of its bits, and moments, each uniformly.

    Each trial has a generator of its own, so that it is the same whichever trials ran before.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(trial,)))
    moments = tuple(rng.random(MOMENTS).tolist())
    if not registers:
        return Strike(trial, NOTHING, 0, 0, moments)
    kinds = sorted(registers)
    kind = kinds[rng.integers(len(kinds))]
    count, bits = registers[kind]
    bit = FLAG_BITS[rng.integers(len(FLAG_BITS))] if kind == "flags" else int(rng.integers(bits))
    return Strike(trial, kind, int(rng.integers(count)), bit, moments)


def register_name(kind: str, register: int, bits: int) -> str:
    """Return the name of a register whose class has registers of so many bits."""
    if kind == "general":
        return GENERAL[register]
    if kind == "vector":
        return f"{({128: 'xmm', 256: 'ymm'}).get(bits, 'zmm')}{register}"
    return f"k{register}" if kind == "mask" else kind
