"""A live process, stopped where a test wants it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from sedq._core import _ptrace
from sedq.faults.live import protocol, symbols, targets
from sedq.faults.live.session import Session


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
    worker, address = s.worker(), image.base + image.offset_of(function)
    code = s.read(address, 1)
    s.write(address, b"\xcc")
    run()
    assert worker.wait(s._done, s.timeout) == (_ptrace.STOPPED, signal.SIGTRAP)
    s.write(address, code)
    for bit in range(64):
        if (worker.pc() ^ address) >> bit & 1:
            worker.flip("rip", 0, bit)
    return image, address


def kernel(s: Session, name: str) -> str:
    """A function of the instruction set in force, which may have taken it from another one."""
    known = {i.function(start) for i in s.images for start in i._starts}
    places = [f"{part}_{isa}:{name}" for isa in (s.isa, "avx2") for part in ("gemm", "epilogue", "embedding", "dense")]
    return next(place for place in places if place in known)
