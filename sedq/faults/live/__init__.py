"""Bits flipped in the registers of a live processor, while an operator runs.

::

    this process                     template                      worker
    faults drawn from the seed
    start it  ---------------------> builds operands
    seize the worker <-------------- forks  ---------------------> runs the operator again and again
    stop it at a random moment ----------------------------------> stopped
    program counter in the extension? else let it go on, and again
    flip one bit of one register
    let it go on  -----------------------------------------------> ends the call: returns, raises, crashes, hangs
    read its output and operands from its memory, classify, log

Linux on x86-64 alone. Faults strike registers as a debugger sees them; what that leaves out is in the documentation.
"""

from __future__ import annotations

import os
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from sedq import _validation
from sedq._core import _ptrace
from sedq.faults.live._log import Log
from sedq.faults.live._report import LiveResult, Row
from sedq.faults.live._session import LiveError, Session
from sedq.faults.live._strikes import KINDS, Strike, Trial, draw
from sedq.faults.live._targets import check_shape

__all__ = ["LiveError", "LiveResult", "Row", "Strike", "Trial", "run"]

CHECKS = {
    "qlinear": ("off", "exact", "full"),
    "bag": ("off", "digest", "threshold", "exact", "full"),
    "interaction": ("off", "exact"),
    "probe": ("off",),
}
LONGEST = 86400  # seconds that a call may be waited for


def _registers(kinds: tuple[str, ...] | None) -> dict[str, tuple[int, int]]:
    """Return the registers to strike: of this machine, those of some classes."""
    if not _ptrace.SUPPORTED:
        raise OSError(f"live faults: got {sys.platform}, expected Linux on x86-64")
    present = _ptrace.registers()
    if kinds is None:
        return {kind: present[kind] for kind in ("general", "vector", "mask") if kind in present}
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"registers: got {kinds!r}, expected some of {', '.join(map(repr, KINDS))}")
    if not set(kinds) <= set(present):
        raise ValueError(f"registers: got {kinds!r}, expected some of those that this machine has, {', '.join(present)}")
    return {kind: present[kind] for kind in kinds}


def run(
    operator: str = "qlinear",
    check: str = "exact",
    *,
    trials: int = 1000,
    seed: int = 0,
    registers: tuple[str, ...] | None = None,
    shape: tuple[int, ...] | None = None,
    dummy: bool = False,
    log: str | os.PathLike[str] | None = None,
    timeout: float = 1.0,
    progress: TextIO | None = None,
) -> LiveResult:
    """Flip bits of registers while an operator runs in another process, and classify what becomes of each.

    The faults (register, bit, moments) are drawn from `seed` before anything runs. Where the program is at a moment is up to
    the machine: another run strikes the same bits, at other instructions.

    Parameters
    ----------
    operator : {"qlinear", "bag", "interaction", "probe"}, default "qlinear"
        What is struck: a product, a bag, or a model's dot interaction and quantisation. ``"probe"`` holds known values in
        the registers, to test the method itself.
    check : str, default "exact"
        Level of checking of the operator; ``"off"`` gives the rate of silent corruption without checks.
    trials : int, default 1000
        Strikes.
    seed : int, default 0
        Of the strikes.
    registers : tuple of str, optional
        Classes to strike, each as often: ``"general"`` (with the stack pointer, without the instruction pointer),
        ``"vector"`` (all bits that the machine has), ``"mask"``, ``"rip"``, ``"flags"``. The first three, where
        present, by default.
    shape : tuple of int, optional
        (M, N, K) of the product; (bags, rows, d) of the table; (requests, vectors, d) of the interaction; how many times
        longer than usual for the probe.
    dummy : bool, default False
        Do all of it but flip nothing.
    log : path-like, optional
        File of JSON lines, to which each trial is appended. If it exists, its trials are not run again.
    timeout : float, default 1.0
        Seconds after which a call hangs.
    progress : file, optional
        Where to say how far it is.

    Returns
    -------
    LiveResult

    Raises
    ------
    OSError
        On other systems, and where processes may not be traced.
    ValueError
        For wrong arguments, and for a log that is none.
    InvalidRun
        For the log of another campaign, one that another run writes to, and one that is damaged or holds what wasn't drawn.
    LiveError
        If the operator fails without a fault, or something else ends its process.

    Examples
    --------
    >>> import sys
    >>> from sedq.faults import live
    >>> result = live.run("probe", "off", trials=3, dummy=True)  # doctest: +SKIP
    >>> result.passed  # doctest: +SKIP
    True
    """
    sizes = check_shape(operator, shape)
    if check not in CHECKS[operator]:
        raise ValueError(f"check: got {check!r}, expected one of {', '.join(map(repr, CHECKS[operator]))} for {operator}")
    options = {"operator": operator, "check": check, "shape": sizes, "seed": 0}
    trials = _validation.integer("trials", trials, 1, 10**9)
    seed = _validation.integer("seed", seed, 0, 2**64 - 1)
    struck = _registers(registers)
    limit = _validation.positive_scalar("timeout", timeout)
    if limit > LONGEST:
        raise ValueError(f"timeout: got {timeout}, expected at most {LONGEST} seconds")
    if _validation.boolean("dummy", dummy):
        struck = {}
    with Session(options, limit) as session:
        header = {"live": Log.VERSION, **options, "seed": seed, "registers": struck, "isa": session.isa}
        header["code"] = {i.name: zlib.crc32(Path(i.path).read_bytes()) for i in session.images}
        with ExitStack() as stack:
            kept = None if log is None else stack.enter_context(Log(log, header))
            done = {} if kept is None else kept.trials(lambda number: draw(seed, number, struck))
            for number in range(trials):
                if number not in done:
                    done[number] = session.run(draw(seed, number, struck))
                    if kept is not None:
                        kept.add_trial(done[number])
                if progress is not None and (number % 100 == 99 or number == trials - 1):
                    print(f"\r{number + 1} of {trials}", end="", file=progress, flush=True)
            found = tuple(done[number] for number in range(trials))
    if progress is not None:
        print(file=progress)
    return LiveResult(header, found)
