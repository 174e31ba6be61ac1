"""Detections and what follows them: findings of the checks, the recovery ladder, events, monitors and the log.

`_recovery` holds the ladder: an operator whose checks disagree hands it a `Recoverable`. `_monitor` counts checks and
records events.
"""

from sedq._core._findings import Finding, Findings, Kind
from sedq.detection._monitor import Event, Monitor, count_checks, count_repairs, monitor, record, summary
from sedq.detection._recovery import (
    Agreement,
    Attempt,
    Recoverable,
    Repair,
    UpstreamCorrupted,
    agree,
    checked_stage,
    conclude,
    handle,
    replayed,
    warn,
)

__all__ = [
    "Agreement",
    "Attempt",
    "Event",
    "Finding",
    "Findings",
    "Kind",
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
    "record",
    "replayed",
    "summary",
    "warn",
]
