"""What a campaign tells its workers, and what they answer: single bytes."""

from __future__ import annotations

from sedq.detection import Kind

__all__ = ["CHILD", "DETECTED", "FAILED", "NUMBER_OF", "ONCE", "REPEAT", "RETURNED"]

CHILD = "sedq.faults.live._child"  # module that a template runs

ONCE, REPEAT = b"1", b"r"

# the operator returned, it raised something else than a detection, or DETECTED + the kind of check
RETURNED, FAILED, DETECTED = 0, 1, 16
NUMBER_OF = {kind.label: int(kind) for kind in Kind}
