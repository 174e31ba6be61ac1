"""What happens when a check disagrees: record it, and climb the ladder.

::

    findings of a kernel
        -> on_error "warn":    record, warn, return the result as it is
        -> on_error "raise":   record, raise SoftErrorDetected
        -> on_error "recover": repair the operands
                               compute the whole call again on two code paths, the second on another core;
                               if their results differ, on a third path
                                   two agree bit for bit: that is the answer
                                   no two agree, or an operand stays bad: raise SoftErrorDetected

It is the whole call, not what the findings name: errors of a bad operand, or of a stuck fault, may have cancelled elsewhere.

The verdict is "memory" if an operand was bad. Else it is "transient" if the first two recomputations agreed, and
"persistent" if they did not: the fault struck again. "rounding" is a finding that was no fault: a threshold below the
bound was exceeded by rounding.

An operator hands in a `Recoverable`: an object that repairs its operands, computes again, and accepts an answer.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sedq import _config
from sedq._core import _dispatch
from sedq._core._findings import Finding, Kind
from sedq.detection._monitor import Event, Monitor, count_checks, count_repairs, monitor, record, summary
from sedq.exceptions import SoftErrorDetected, SoftErrorWarning

__all__ = [
    "Agreement",
    "Attempt",
    "Event",
    "Finding",
    "Monitor",
    "Recoverable",
    "Repair",
    "UpstreamCorrupted",
    "agree",
    "checked_stage",
    "conclude",
    "count_checks",
    "count_repairs",
    "handle",
    "monitor",
    "replayed",
    "summary",
    "warn",
]

Array = NDArray[Any]
Result = TypeVar("Result")
REPLAYS = 20  # most replays of a call whose tables are written to meanwhile
# operators of the call in progress that met a fault and went on with what recovery gave
_recovered: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("sedq_recovered", default=None)


class UpstreamCorrupted(Exception):
    """The input of an operator is not what its writer stored: only the writer can make it again."""

    def __init__(self, operator: str, findings: Sequence[Finding], cpu: int) -> None:
        super().__init__(f"{operator}: input corrupted")
        self.operator, self.findings, self.cpu = operator, list(findings), cpu


class Repair(NamedTuple):
    """What became of the operands of a call.

    Attributes
    ----------
    restored : str
        What was bad and is restored, by this call or by another thread while it ran.
    corrupted : str
        What the answer depends on and is still bad.
    noted : str
        What is still bad, but no answer depends on it.
    """

    restored: str = ""
    corrupted: str = ""
    noted: str = ""

    def __str__(self) -> str:
        left = ", ".join(part for part in (self.corrupted, self.noted) if part)
        return "; ".join(part for part in (self.restored, f"still corrupted: {left}" if left else "") if part)


@dataclass(frozen=True)
class Attempt:
    """One computation of a call.

    Attributes
    ----------
    outputs : tuple of ndarray
        Its results, in arrays of their own.
    findings : list of Finding
        What its own checks found.
    """

    outputs: tuple[Array, ...] = ()
    findings: list[Finding] = field(default_factory=list)

    def agrees_with(self, other: Attempt) -> bool:
        """Whether neither found anything, and both have the same bits."""
        return not (self.findings or other.findings) and all(
            a.tobytes() == b.tobytes() for a, b in zip(self.outputs, other.outputs, strict=True)
        )


class Recoverable(Protocol):
    """A call whose checks disagreed: what recovery asks of it.

    Attributes
    ----------
    operator : str
        Its name in events.
    """

    operator: str

    def repair(self) -> Repair:
        """Look at the operands, and restore bad ones."""
        ...

    def compute(self, kernels: _dispatch.Context) -> Attempt:
        """Compute the call again, all of it, and check it."""
        ...

    def is_rounding(self, finding: Finding, answer: Attempt) -> bool:
        """Whether a finding was no fault: the answer is what was there, and rounding explains the finding."""
        ...

    def accept(self, answer: Attempt) -> None:
        """Put the answer where the result of the call is."""
        ...


class Agreement(NamedTuple):
    """What two of up to three recomputations agreed on.

    Attributes
    ----------
    answer : Attempt or None
        None if no two agreed.
    disputed : bool
        Whether the first two differed.
    cpus : tuple of int
        The CPUs of the recomputations, in their order.
    findings : list of Finding
        What the checks of the recomputations found.
    """

    answer: Attempt | None
    disputed: bool
    cpus: tuple[int, ...]
    findings: list[Finding]


def agree(compute: Callable[[_dispatch.Context], Attempt], kernels: _dispatch.Context) -> Agreement:
    """Compute on two code paths, the second on another core, and on a third if their results differ.

    Results of all paths are the same bits without a fault, those of floating point included.
    """
    attempts: list[Attempt] = []
    cpus: list[int] = []
    for number, path in enumerate(_dispatch.paths(kernels)):
        attempt, cpu = _on_another_core(compute, path) if number == 1 else (compute(path), _dispatch.current_cpu())
        cpus.append(cpu)
        if any(attempt.agrees_with(earlier) for earlier in attempts):
            return Agreement(attempt, number > 1, tuple(cpus), _findings_of(attempts))
        attempts.append(attempt)
    return Agreement(None, True, tuple(cpus), _findings_of(attempts))


def _findings_of(attempts: list[Attempt]) -> list[Finding]:
    return [finding for attempt in attempts for finding in attempt.findings]


def _on_another_core(compute: Callable[[_dispatch.Context], Result], path: _dispatch.Context) -> tuple[Result, int]:
    """Return what `compute` gives, run on another core where the system allows that, and the CPU that it ran on."""
    others = _other_cores(_dispatch.current_cpu())
    if not others:
        return compute(path), _dispatch.current_cpu()
    results: list[tuple[Result, int]] = []
    errors: list[BaseException] = []

    def run() -> None:
        with contextlib.suppress(OSError):  # the system may have taken these cores away meanwhile
            os.sched_setaffinity(0, others)
        try:
            results.append((compute(path), _dispatch.current_cpu()))
        except BaseException as error:  # handed on to the caller
            errors.append(error)

    # the thread sees the monitors and settings of this one
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads: the system's limit is reached, or the interpreter is shutting down
        return compute(path), _dispatch.current_cpu()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _other_cores(cpu: int) -> set[int]:
    """Return the CPUs that this thread may run on and that are not of the same core as `cpu`, or else not `cpu`."""
    try:
        allowed = os.sched_getaffinity(0) - {cpu}
    except (AttributeError, OSError):  # no Linux
        return set()
    return allowed - _siblings(cpu) or allowed


def _siblings(cpu: int) -> set[int]:
    """Return the hardware threads of the core of a CPU; none where the system doesn't tell."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        ranges = [part.split("-") for part in text.strip().split(",")]
        return {number for part in ranges for number in range(int(part[0]), int(part[-1]) + 1)}
    except (OSError, ValueError):
        return set()


def conclude(
    operator: str,
    findings: Sequence[Finding],
    cpu: int,
    rung: str,
    verdict: str,
    detail: str = "",
    recomputed_on: tuple[int, ...] = (),
) -> list[Event]:
    """Record one event per finding, all with the same outcome."""
    events = _events(operator, findings, cpu, rung, verdict, detail, recomputed_on)
    record(events)
    return events


def _events(
    operator: str,
    findings: Sequence[Finding],
    cpu: int,
    rung: str,
    verdict: str,
    detail: str,
    recomputed_on: tuple[int, ...],
) -> list[Event]:
    now, thread, cpu_after = time.time(), threading.get_ident(), _dispatch.current_cpu()
    return [
        Event(
            operator,
            Kind(kind).label,
            row,
            residual,
            limit,
            rung,
            verdict,
            detail,
            thread,
            cpu,
            cpu_after,
            now,
            recomputed_on,
        )
        for row, kind, residual, limit in findings
    ]


def _caller() -> int:
    """Stack level, as seen from the caller of this function, of the first frame outside sedq."""
    level, frame = 0, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sedq" and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level


def warn(operator: str, findings: Sequence[Finding], detail: str = "") -> None:
    """Record findings that nothing is done about, and warn the caller of sedq."""
    events = conclude(operator, findings, _dispatch.current_cpu(), "none", "unresolved", detail)
    warnings.warn(summary(events), SoftErrorWarning, stacklevel=_caller())


def handle(call: Recoverable, findings: Sequence[Finding], settings: _config.Settings, *, has_writer: bool = False) -> None:
    """Deal with findings as the settings say.

    Parameters
    ----------
    call : Recoverable
        The call that they were found in.
    findings : sequence of Finding
        What the checks found; not empty.
    settings : Settings
        Of the call: `on_error` and the kernels.
    has_writer : bool, default False
        Findings of kind INPUT are raised as `UpstreamCorrupted`, unrecorded, for a caller that can write the input
        again.

    Raises
    ------
    SoftErrorDetected
        With ``on_error="raise"``, or when nothing helped.
    """
    operator, cpu = call.operator, _dispatch.current_cpu()
    if settings.on_error == "warn":
        warn(operator, findings)
        return
    if settings.on_error == "raise":
        events = conclude(operator, findings, cpu, "raise", "unresolved")
        raise SoftErrorDetected(summary(events), events)
    _raise_upstream(operator, findings, cpu, has_writer)
    repair = call.repair()
    again = Agreement(None, False, (), []) if repair.corrupted else agree(call.compute, settings.kernels)
    _raise_upstream(operator, again.findings, cpu, has_writer)
    verdict = "memory" if str(repair) else "persistent" if again.disputed else "transient"
    if again.answer is None:
        events = conclude(operator, findings, cpu, "raise", verdict, str(repair), again.cpus)
        raise SoftErrorDetected(summary(events), events)
    rounding = [finding for finding in findings if call.is_rounding(finding, again.answer)]
    faults = [finding for finding in findings if finding not in rounding]
    call.accept(again.answer)
    recovered = _recovered.get()
    if faults and recovered is not None:
        recovered.append(operator)
    rung = "heal" if repair.restored else "recompute"
    events = _events(operator, faults, cpu, rung, verdict, str(repair), again.cpus)
    record(events + _events(operator, rounding, cpu, "recompute", "rounding", "", again.cpus))


def _raise_upstream(operator: str, findings: Sequence[Finding], cpu: int, has_writer: bool) -> None:
    if has_writer and any(kind == Kind.INPUT for _, kind, _, _ in findings):
        raise UpstreamCorrupted(operator, findings, cpu)


@dataclass
class _Stage:
    """A stage without operands of its own, which checks what it computes into `outputs`."""

    operator: str
    outputs: tuple[Array, ...]
    run: Callable[[_dispatch.Context, tuple[Array, ...]], list[Finding] | None]

    def repair(self) -> Repair:
        return Repair()

    def compute(self, kernels: _dispatch.Context) -> Attempt:
        again = tuple(np.empty_like(a) for a in self.outputs)
        return Attempt(again, self.run(kernels, again) or [])

    def is_rounding(self, finding: Finding, answer: Attempt) -> bool:
        return False

    def accept(self, answer: Attempt) -> None:
        for a, right in zip(self.outputs, answer.outputs, strict=True):
            a[...] = right


def checked_stage(
    run: Callable[[_dispatch.Context, tuple[Array, ...]], list[Finding] | None],
    outputs: tuple[Array, ...],
    settings: _config.Settings,
    operator: str,
    count: int,
    *,
    has_writer: bool,
) -> None:
    """Run a stage of `count` rows to be counted that computes into `outputs` and checks itself; recover if it must."""
    found = run(settings.kernels, outputs)
    if settings.check != "off" and count:
        count_checks(operator, count)
    if found:
        handle(_Stage(operator, outputs, run), found, settings, has_writer=has_writer)


def replayed(
    compute: Callable[[_dispatch.Context], Array], settings: _config.Settings, versions: Callable[[], object] = tuple
) -> Array:
    """Return the array that `compute` gives; all of it is computed again if one of its steps met a fault.

    A step that met one recovers by itself, unless its input was corrupted since the step before. But a fault that sticks
    may have struck other steps too, where its errors cancelled or were below what is checked. `versions` tell whether what
    is read has changed: then recomputations may differ without a fault, and are made once more.
    """
    first: UpstreamCorrupted | None = None
    recovered: list[str] = []
    token = _recovered.set(recovered)
    try:
        result = compute(settings.kernels)
        if not recovered:
            return result
    except UpstreamCorrupted as found:
        first = found
    finally:
        _recovered.reset(token)

    def attempt(kernels: _dispatch.Context) -> Attempt:
        try:
            return Attempt((compute(kernels).copy(),))
        except UpstreamCorrupted as again:
            return Attempt((), again.findings)

    operator, findings, cpu = recovered[-1] if recovered else "", [Finding(-1, Kind.OUTPUT)], _dispatch.current_cpu()
    if first is not None:
        operator, findings, cpu = first.operator, first.findings, first.cpu
    try:
        for _ in range(REPLAYS):
            before = versions()
            answer, disputed, cpus, _ = agree(attempt, settings.kernels)
            if answer is not None or versions() == before:
                break
    except SoftErrorDetected:  # something else, met on the way
        if first is not None:
            conclude(operator, findings, cpu, "raise", "unresolved")
        raise
    if answer is None:
        events = conclude(operator, findings, cpu, "raise", "persistent", "", cpus)
        raise SoftErrorDetected(summary(events), events)
    if first is not None:
        conclude(operator, findings, cpu, "replay", "persistent" if disputed else "transient", "", cpus)
    return answer.outputs[0]
