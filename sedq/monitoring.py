"""What was checked and what was found: events, the monitors that count them, and the log.

::

    operators -> count_checks, count_repairs, record -> the monitors of the thread or task
                                                     -> the monitors of all threads
                                             record  -> the log "sedq", one line
"""

from __future__ import annotations

import copy
import logging
import math
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from sedq import _fork, _validation

__all__ = ["Event", "Monitor", "count_checks", "count_repairs", "monitor", "record", "summary"]

logger = logging.getLogger("sedq")
logger.addHandler(logging.NullHandler())  # who wants the log configures it; nothing prints by itself


@dataclass(frozen=True)
class Event:
    """One detection.

    Attributes
    ----------
    operator : str
        Name of the operator; ``"scrub"``, ``"restore"`` and ``"weights"`` for what was found at rest.
    kind : str
        Which check disagreed: ``"accumulator"``, ``"input"``, ``"output"``, ``"parameters"``, ``"epilogue"``,
        ``"count"``, ``"digest"``, ``"sum"`` or ``"repeat"``.
    row : int
        Row of the output, or bag, or, at rest, row of the table; -1 for the whole call.
    residual, limit : float
        By how much the two sides of the check differed, and by how much they may.
    rung : str
        How far recovery went: ``"none"``, ``"recompute"``, ``"heal"``, ``"replay"`` (of the model) or ``"raise"``.
    verdict : str
        ``"transient"`` (two recomputations on different code paths agreed), ``"rounding"`` (they gave the same result as
        the call, bit for bit, and rounding explains the finding: a false alarm of a threshold below the bound),
        ``"memory"`` (an operand was bad; restored if the rung is ``"heal"``), ``"persistent"`` (recomputations with good
        operands disagreed; a third decided, or the call raised), or ``"unresolved"`` (nothing was tried).
    detail : str
        What was healed, if anything, and what is still corrupted.
    thread, cpu, cpu_after, time
        Thread that made the call, CPU at the detection and after the recovery (-1 where unknown), seconds since the
        epoch.
    recomputed_on : tuple of int
        The CPUs on which the recomputations ran, in their order; the second ran on another core than the first if the
        system let the thread choose.
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
    recomputed_on: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = "whole call" if self.row < 0 else f"row {self.row}"
        tail = f", {self.detail}" if self.detail else ""
        return (
            f"{self.operator}: {self.kind} check, {where}, residual {self.residual:g}"
            f"{f' (limit {self.limit:g})' if self.limit else ''}; {self.rung}: {self.verdict}{tail}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON has them: a residual or limit that is no finite number is None.

        Examples
        --------
        >>> import sedq
        >>> event = sedq.Event("table.0", "sum", 3, float("nan"), 1e-3, "recompute", "transient")
        >>> event.as_dict()["row"], event.as_dict()["residual"]
        (3, None)
        """
        values = vars(self) | {"recomputed_on": list(self.recomputed_on)}
        return values | {name: None for name in ("residual", "limit") if not math.isfinite(values[name])}


@dataclass
class Monitor:
    """Counts of checks, and the detections, of the calls inside ``with sedq.monitor()``.

    Attributes
    ----------
    checks : Counter
        Rows, bags or requests verified, by operator; table rows compared, by ``"scrub"``.
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
    _lock: threading.RLock = field(default_factory=_fork.new_lock, repr=False)

    def __post_init__(self) -> None:
        self.max_events = _validation.integer("max_events", self.max_events, 1, sys.maxsize)
        self.events = deque(self.events, maxlen=self.max_events)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: copy.copy(value) for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=_fork.new_lock())

    @property
    def total_checks(self) -> int:
        """Rows, bags and requests verified, over all operators."""
        return sum(self.checks.values())

    def snapshot(self, *, reset: bool = False) -> dict[str, Any]:
        """Return what has been counted, as JSON has it, while other threads go on counting.

        Parameters
        ----------
        reset : bool, default False
            Begin again at 0. Nothing is lost or counted twice between two snapshots.

        Returns
        -------
        dict
            ``checks``, ``detections``, ``verdicts``, ``repairs`` as above, and ``events``, each as `Event.as_dict` gives it.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> packed = sedq.pack_weights(np.ones((3, 4), dtype=np.int8))
        >>> with sedq.monitor() as m:
        ...     y = sedq.matmul_integer(np.ones((2, 4), dtype=np.uint8), packed)
        >>> m.snapshot(reset=True)
        {'checks': {'matmul_integer': 2}, 'detections': 0, 'verdicts': {}, 'repairs': {}, 'events': []}
        >>> m.total_checks
        0
        """
        _validation.boolean("reset", reset)
        with self._lock:
            counters = {"checks": self.checks, "verdicts": self.verdicts, "repairs": self.repairs}
            counts = {name: dict(counter) for name, counter in counters.items()}
            detections, events = self.detections, list(self.events)
            if reset:
                self.detections = 0
                self.events.clear()
                for counter in counters.values():
                    counter.clear()
        return {
            "checks": counts["checks"],
            "detections": detections,
            "verdicts": counts["verdicts"],
            "repairs": counts["repairs"],
            "events": [event.as_dict() for event in events],
        }

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
_everywhere: tuple[Monitor, ...] = ()  # the monitors of all threads; replaced, never changed, so that readers need no lock
_lock = _fork.new_lock()


def _in_force() -> tuple[Monitor, ...]:
    return _monitors.get() + _everywhere


@contextmanager
def monitor(max_events: int = 1000, *, all_threads: bool = False) -> Iterator[Monitor]:
    """Collect the checks made and the errors detected inside a ``with`` block.

    Monitors nest: an outer one sees what an inner one sees. A monitor belongs to the current thread or asynchronous
    task; threads that a call starts report to it. Memory is bounded by `max_events`; counts go on.

    Parameters
    ----------
    max_events : int, default 1000
        How many of the latest events are kept.
    all_threads : bool, default False
        See the calls of every thread of the process while the block lasts, whoever started it. Read such a monitor by
        `Monitor.snapshot` as long as others write to it.

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
    global _everywhere
    watcher = Monitor(max_events)
    if _validation.boolean("all_threads", all_threads):
        with _lock:
            _everywhere = (*_everywhere, watcher)
        try:
            yield watcher
        finally:
            with _lock:
                _everywhere = tuple(other for other in _everywhere if other is not watcher)
        return
    token = _monitors.set((*_monitors.get(), watcher))
    try:
        yield watcher
    finally:
        _monitors.reset(token)


def count_checks(operator: str, checks: int) -> None:
    """Tell the monitors in force how many rows, bags or requests a call verified."""
    for watcher in _in_force():
        watcher._count(operator, checks)


def count_repairs(counts: Mapping[str, int]) -> None:
    """Tell the monitors in force how many table rows were restored, and by what."""
    for watcher in _in_force():
        watcher._repaired(counts)


def record(events: Sequence[Event]) -> None:
    """Tell the monitors in force of the events of one call, and log the first."""
    first = events[0]
    cpu = f", CPU {first.cpu}" if first.cpu >= 0 else ""
    logger.warning("%s%s", summary(events), cpu, extra={"soft_error": first.as_dict() | {"more": len(events) - 1}})
    for watcher in _in_force():
        for event in events:
            watcher._add(event)


def summary(events: Sequence[Event]) -> str:
    """Say in one line what was detected."""
    more = f" (and {len(events) - 1} more)" if len(events) > 1 else ""
    return f"soft error detected: {events[0]}{more}"
