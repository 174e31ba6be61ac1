"""A live process, stopped where a test wants it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from sedq._core import _ptrace
from sedq.faults.live import protocol, symbols, targets
from sedq.faults.live.session import Session

TRAP_FLAG = 8  # bit of the flags that stops after each instruction
# struct user_regs_struct of <sys/user.h>, in words, and where the general registers are in it
PTRACE_GETREGS, USER_REGS = 12, 27
GENERAL_AT = (10, 5, 11, 12, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0)


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


def session(operator: str = "qlinear", check: str = "exact", timeout: float = 10.0) -> Session:
    return Session({"operator": operator, "check": check, "shape": targets.SHAPES[operator], "seed": 0}, timeout)


def stop_at(s: Session, function: str) -> tuple[symbols.Image, int]:
    """Run one call up to the entry of a function of the extension."""
    s.worker()
    return _run_to(s, function, lambda: os.write(s._go, protocol.ONCE))


def go_on_to(s: Session, function: str) -> tuple[symbols.Image, int]:
    """Let a stopped call go on to the next entry of another function."""
    return _run_to(s, function, s.worker().resume)


def _run_to(s: Session, function: str, run: Callable[[], object]) -> tuple[symbols.Image, int]:
    image = next(i for i in s.images if any(function == i.function(start) for start in i._starts))
    address = image.base + image.offset_of(function)
    run_to_address(s, address, run)
    return image, address


def run_to_address(s: Session, address: int, run: Callable[[], object]) -> None:
    """Let the worker go on, by `run`, to an instruction."""
    worker = s.worker()
    code = s.read(address, 1)
    s.write(address, b"\xcc")
    run()
    assert worker.wait(s._done, s.timeout) == (_ptrace.STOPPED, signal.SIGTRAP)
    s.write(address, code)
    for bit in range(64):
        if (worker.pc() ^ address) >> bit & 1:
            worker.flip("rip", 0, bit)


def step(s: Session) -> None:
    """Let a stopped worker execute one instruction."""
    worker = s.worker()
    worker.flip("flags", 0, TRAP_FLAG)
    worker.resume()
    assert worker.wait(s._done, s.timeout) == (_ptrace.STOPPED, signal.SIGTRAP)
    worker.flip("flags", 0, TRAP_FLAG)


def general_registers(s: Session) -> list[int]:
    """Values of the general registers of a stopped worker, by their numbers."""
    values = (ctypes.c_uint64 * USER_REGS)()
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    ptrace.restype = ctypes.c_long
    if ptrace(PTRACE_GETREGS, s.worker().pid, None, values):
        raise OSError(ctypes.get_errno(), "ptrace: registers")
    return [values[at] for at in GENERAL_AT]


def kernel(s: Session, name: str) -> str:
    """A function of the instruction set in force, which may have taken it from another one."""
    known = {i.function(start) for i in s.images for start in i._starts}
    places = [f"{part}_{isa}:{name}" for isa in (s.isa, "avx2") for part in ("gemm", "epilogue", "embedding", "dense")]
    return next(place for place in places if place in known)
