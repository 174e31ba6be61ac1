"""What happens when a check disagrees: record it, and climb the ladder.

::

    findings of a kernel
        -> on_error "warn":    record, warn, return the result as it is
        -> on_error "raise":   record, raise SoftErrorDetected
        -> on_error "recover": recompute by the reference path and verify
                               heal the operands; if the recomputation disagreed, recompute and verify again
                                   agrees: verdict "memory" if an operand was healed, "rounding" if it is what was
                                           there before and only a threshold was exceeded, else "transient"
                               raise SoftErrorDetected: verdict "memory" if one can't be healed, else "persistent"

Operators hand in how to recompute and how to heal; nothing here knows them.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from sedq import _config
from sedq._core import _dispatch
from sedq.exceptions import SoftErrorDetected, SoftErrorWarning
from sedq.monitoring import Event, Monitor, count_checks, count_repairs, monitor, record, summary

__all__ = [
    "Event",
    "Finding",
    "Monitor",
    "UpstreamCorrupted",
    "conclude",
    "count_checks",
    "count_repairs",
    "handle",
    "monitor",
    "summary",
]

Result = TypeVar("Result")

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


class UpstreamCorrupted(Exception):
    """The input of an operator is not what its writer stored: only the writer can make it again."""

    def __init__(self, operator: str, findings: Sequence[Finding], cpu: int) -> None:
        super().__init__(f"{operator}: input corrupted")
        self.operator, self.findings, self.cpu = operator, list(findings), cpu


def conclude(operator: str, findings: Sequence[Finding], cpu: int, rung: str, verdict: str, detail: str = "") -> list[Event]:
    """Record one event per finding, all with the same outcome."""
    now, thread, cpu_after = time.time(), threading.get_ident(), _dispatch.current_cpu()
    events = [
        Event(operator, KINDS[kind], row, residual, limit, rung, verdict, detail, thread, cpu, cpu_after, now)
        for row, kind, residual, limit in findings
    ]
    record(events)
    return events


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
    rounding: Callable[[], bool] = lambda: False,
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
        Verifies the operands and restores them where it can; says what was restored since the call began, by it or by
        another thread, and what is still corrupted.
    has_writer : bool, default False
        Findings of kind INPUT are raised as `UpstreamCorrupted`, unrecorded, for a caller that can write the input
        again.
    rounding : callable, optional
        Says, once the recomputation agreed, whether it explains the findings without a fault.

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
        verdict = "memory" if detail else "rounding" if rounding() else "transient"
        conclude(operator, findings, cpu, "heal" if healed else "recompute", verdict, detail)
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
