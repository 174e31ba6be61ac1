"""What happens when a check disagrees: record it, and climb the ladder.

::

    findings of a kernel
        -> on_error "warn":    record, warn, return the result as it is
        -> on_error "raise":   record, raise SoftErrorDetected
        -> on_error "recover": recompute by the reference path and verify
                               heal the operands; if the recomputation disagreed, recompute and verify again
                                   agrees: verdict "transient", or "memory" if an operand was healed
                               raise SoftErrorDetected: verdict "memory" if one can't be healed, else "persistent"

Operators hand in how to recompute and how to heal; nothing here knows them.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sedq import _config, _validation
from sedq._core import _dispatch
from sedq.exceptions import SoftErrorDetected, SoftErrorWarning

__all__ = ["Event", "Finding", "Monitor", "UpstreamCorrupted", "count_checks", "count_repairs", "handle", "monitor"]

Result = TypeVar("Result")
logger = logging.getLogger("sedq")
logger.addHandler(logging.NullHandler())  # who wants the log configures it; nothing prints by itself

# row or bag (-1: the whole call), kind, residual, limit: as the compiled loops report them
Finding = tuple[int, int, float, float]

KINDS = {
    1: "accumulator",
    2: "input",
    3: "output",
    4: "parameters",
    5: "epilogue",
    6: "count",
    7: "digest",
    8: "sum",
    9: "repeat",
}
ACCUMULATOR, INPUT, OUTPUT, PARAMETERS, EPILOGUE, COUNT, DIGEST, SUM, REPEAT = range(1, 10)


@dataclass(frozen=True)
class Event:
    """One detection.

    Attributes
    ----------
    operator : str
        Name of the operator.
    kind : str
        Which check disagreed: ``"accumulator"``, ``"input"``, ``"output"``, ``"parameters"``, ``"epilogue"``,
        ``"count"``, ``"digest"``, ``"sum"`` or ``"repeat"``.
    row : int
        Row of the output, or bag; -1 for the whole call.
    residual, limit : float
        By how much the two sides of the check differed, and by how much they may.
    rung : str
        How far recovery went: ``"none"``, ``"recompute"``, ``"heal"``, ``"replay"`` (of the model) or ``"raise"``.
    verdict : str
        ``"transient"`` (a recomputation agreed), ``"memory"`` (an operand was bad; healed, unless the rung is
        ``"raise"``), ``"persistent"`` (still wrong with good operands), or ``"unresolved"`` (nothing was tried).
    detail : str
        What was healed, if anything.
    thread, cpu, cpu_after, time
        Thread that made the call, CPU at the detection and after the recovery (-1 where unknown), seconds since the
        epoch.
    """

    operator: str
    kind: str
    row: int
    residual: float
    limit: float
    rung: str
    verdict: str
    detail: str = ""
    thread: int = 0
    cpu: int = -1
    cpu_after: int = -1
    time: float = 0.0

    def __str__(self) -> str:
        where = "whole call" if self.row < 0 else f"row {self.row}"
        tail = f", {self.detail}" if self.detail else ""
        return (
            f"{self.operator}: {self.kind} check, {where}, residual {self.residual:g}"
            f"{f' (limit {self.limit:g})' if self.limit else ''}; {self.rung}: {self.verdict}{tail}"
        )


@dataclass
class Monitor:
    """Counts of checks, and the detections, of the calls inside ``with sedq.monitor()``.

    Attributes
    ----------
    checks : Counter
        Rows, bags or requests verified, by operator.
    detections : int
        Events in all; a call adds at most 64.
    verdicts : Counter
        Events by verdict.
    repairs : Counter
        Table rows restored, by what did it: ``"corrected"`` (the wrong byte was located), ``"rebuilt"`` (from parity) or
        ``"reloaded"`` (from the source).
    events : deque of Event
        The latest events, at most `max_events`.
    """

    max_events: int = 1000
    checks: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    detections: int = 0
    events: deque[Event] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.max_events = _validation.integer("max_events", self.max_events, 1, sys.maxsize)
        self.events = deque(self.events, maxlen=self.max_events)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def total_checks(self) -> int:
        """Rows, bags and requests verified, over all operators."""
        return sum(self.checks.values())

    def _count(self, operator: str, checks: int) -> None:
        with self._lock:
            self.checks[operator] += checks

    def _repaired(self, counts: Mapping[str, int]) -> None:
        with self._lock:
            self.repairs.update(counts)

    def _add(self, event: Event) -> None:
        with self._lock:
            self.detections += 1
            self.verdicts[event.verdict] += 1
            self.events.append(event)


_monitors: ContextVar[tuple[Monitor, ...]] = ContextVar("sedq_monitors", default=())


@contextmanager
def monitor(max_events: int = 1000) -> Iterator[Monitor]:
    """Collect the checks made and the errors detected inside a ``with`` block.

    Monitors nest: an outer one sees what an inner one sees. A monitor belongs to the current thread or asynchronous
    task; threads that a call starts report to it. Memory is bounded by `max_events`; counts go on.

    Parameters
    ----------
    max_events : int, default 1000
        How many of the latest events are kept.

    Yields
    ------
    Monitor

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.ones((3, 4), dtype=np.int8))
    >>> with sedq.monitor() as m:
    ...     y = sedq.matmul_integer(np.ones((2, 4), dtype=np.uint8), packed)
    >>> m.total_checks, m.detections
    (2, 0)
    """
    watcher = Monitor(max_events)
    token = _monitors.set((*_monitors.get(), watcher))
    try:
        yield watcher
    finally:
        _monitors.reset(token)


def count_checks(operator: str, checks: int) -> None:
    """Tell the monitors in force how many rows, bags or requests a call verified."""
    for watcher in _monitors.get():
        watcher._count(operator, checks)


def count_repairs(counts: Mapping[str, int]) -> None:
    """Tell the monitors in force how many table rows were restored, and by what."""
    for watcher in _monitors.get():
        watcher._repaired(counts)


class UpstreamCorrupted(Exception):
    """The input of an operator is not what its writer stored: only the writer can make it again."""

    def __init__(self, operator: str, findings: Sequence[Finding], cpu: int) -> None:
        super().__init__(f"{operator}: input corrupted")
        self.operator, self.findings, self.cpu = operator, list(findings), cpu


def conclude(operator: str, findings: Sequence[Finding], cpu: int, rung: str, verdict: str, detail: str = "") -> list[Event]:
    """Record one event per finding, all with the same outcome, and log the first."""
    now, thread, cpu_after = time.time(), threading.get_ident(), _dispatch.current_cpu()
    events = [
        Event(operator, KINDS[kind], row, residual, limit, rung, verdict, detail, thread, cpu, cpu_after, now)
        for row, kind, residual, limit in findings
    ]
    logger.warning("%s", summary(events))
    for watcher in _monitors.get():
        for event in events:
            watcher._add(event)
    return events


def summary(events: Sequence[Event]) -> str:
    """Say in one line what was detected."""
    more = f" (and {len(events) - 1} more)" if len(events) > 1 else ""
    return f"soft error detected: {events[0]}{more}"


def _caller() -> int:
    """Stack level, as seen from the caller of this function, of the first frame outside sedq."""
    level, frame = 0, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sedq" and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level


def handle(
    operator: str,
    findings: Sequence[Finding],
    on_error: str,
    recompute: Callable[[], list[Finding] | None],
    heal: Callable[[], tuple[str, str]],
    *,
    has_writer: bool = False,
) -> None:
    """Deal with findings as `on_error` says.

    Parameters
    ----------
    operator : str
        Name for events.
    findings : sequence of Finding
        What the checks found; not empty.
    on_error : {"recover", "raise", "warn"}
        Policy.
    recompute : callable
        Computes what is in doubt again by the reference path, and verifies it; returns findings or None.
    heal : callable
        Verifies the operands and restores them where it can; says what it restored and what is still corrupted.
    has_writer : bool, default False
        Findings of kind INPUT are raised as `UpstreamCorrupted`, unrecorded, for a caller that can write the input
        again.

    Raises
    ------
    SoftErrorDetected
        With ``on_error="raise"``, or when nothing helped.
    """
    cpu = _dispatch.current_cpu()
    if on_error == "warn":
        events = conclude(operator, findings, cpu, "none", "unresolved")
        warnings.warn(summary(events), SoftErrorWarning, stacklevel=_caller())
        return
    if on_error == "raise":
        events = conclude(operator, findings, cpu, "raise", "unresolved")
        raise SoftErrorDetected(summary(events), events)
    if has_writer and any(kind == INPUT for _, kind, _, _ in findings):
        raise UpstreamCorrupted(operator, findings, cpu)
    remaining = recompute()
    # operands are looked at even if the recomputation agreed: what it did not read may be bad all the same
    healed, corrupted = heal()
    if remaining:  # even if nothing was healed here: another thread may have done it
        remaining = recompute()
    left = f"still corrupted: {corrupted}" if corrupted else ""
    detail = "; ".join(part for part in (healed, left) if part)
    if not remaining:
        conclude(operator, findings, cpu, "heal" if healed else "recompute", "memory" if detail else "transient", detail)
        return
    verdict = "memory" if corrupted else "persistent"
    events = conclude(operator, findings, cpu, "raise", verdict, detail)
    raise SoftErrorDetected(summary(events), events)


def computed_twice(
    compute: Callable[[_dispatch.Context], list[Finding] | None],
    settings: _config.Settings,
    operator: str,
    count: int,
    *,
    has_writer: bool,
) -> None:
    """Run a stage of `count` rows to be counted that checks itself by computing twice, and recover by computing it anew."""
    found = compute(settings.kernels)
    if settings.check != "off" and count:
        count_checks(operator, count)
    if found:
        again = _dispatch.get("reference")
        handle(operator, found, settings.on_error, lambda: compute(again), lambda: ("", ""), has_writer=has_writer)


def replayed(compute: Callable[[_dispatch.Context], Result], settings: _config.Settings) -> Result:
    """Return what `compute` gives; if data was corrupted between two of its steps, compute it again by the reference."""
    try:
        return compute(settings.kernels)
    except UpstreamCorrupted as found:
        first = found
    try:
        result = compute(_dispatch.get("reference"))
    except UpstreamCorrupted as again:
        events = conclude(again.operator, again.findings, again.cpu, "raise", "persistent")
        raise SoftErrorDetected(summary(events), events) from None
    except SoftErrorDetected:  # something else, met on the way
        conclude(first.operator, first.findings, first.cpu, "raise", "unresolved")
        raise
    conclude(first.operator, first.findings, first.cpu, "replay", "transient")
    return result
