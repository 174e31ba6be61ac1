"""Run trials: answer a batch under a fault, unprotected and protected, and say what became of it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _config, detection
from sedq.exceptions import SoftErrorDetected
from sedq.faults import _strike, _targets
from sedq.faults._child import Child
from sedq.faults._models import FaultModel

__all__ = ["Answer", "InvalidRun", "Record", "Spec", "Worker", "run_chunk"]

Array = NDArray[Any]
Record = dict[str, Any]
RUNGS = ("none", "recompute", "heal", "replay", "raise")
LARGEST = 3.4e38  # stands for changes that are no number: JSON has no infinity
SMALL_PART = 2**20  # bytes; smaller parts are compared with what they were after every trial, larger ones after every chunk
FLOAT_SITES = ("bag.accumulator",)
FLOAT_TOLERANCE = 1e-4


class InvalidRun(RuntimeError):
    """A campaign whose figures can't be trusted: a result without a fault changed, or a log is another campaign's."""


@dataclass(frozen=True)
class Spec:
    """All that the records of a campaign depend on."""

    target: Any
    inputs: list[Any]
    sites: tuple[str, ...]
    models: tuple[FaultModel, ...]
    persistence: tuple[bool, ...]
    seed: int
    check: str
    threshold: Any
    tolerance: float | None
    timeout: float


@dataclass
class Answer:
    """What a call under a fault gave."""

    output: Array | None = None
    refused: str = ""
    fired: int = 0
    changed: int = 0
    events: list[tuple[str, str, str]] = field(default_factory=list)  # kind, rung, verdict
    died: str = ""  # how the process ended, if it did: "crash" or "hang"

    @property
    def detected(self) -> bool:
        """Whether anything was noticed."""
        return bool(self.events or self.refused)


def difference(output: Array, reference: Array, *, relative: bool) -> float:
    """Return the largest change of an output, 0 only if no bit changed."""
    if output.tobytes() == reference.tobytes():
        return 0.0
    with np.errstate(all="ignore"):
        size = np.abs(output.astype(np.float64) - reference.astype(np.float64)).max()
        if relative:
            size /= np.abs(reference.astype(np.float64)).max() or 1.0
    if not np.isfinite(size):
        return LARGEST
    return float(min(max(size, 1e-300), LARGEST))  # the sign of a zero is a change too


class Worker:
    """Has a target of its own, and runs the trials it is told to."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.target = _targets.target_of(spec.target, spec.inputs)
        with _config.config_context(num_threads=1, on_error="recover"):
            self.outputs = [self._sound(i) for i in range(len(self.target.batches))]
        self.drawer = _strike.Drawer(
            self.target, spec.sites, spec.models, spec.persistence, spec.seed, spec.check, spec.threshold
        )
        self._saved = {part: self._bytes(part) for part in self.target.parts}
        self._small = {part for part, saved in self._saved.items() if sum(map(len, saved.values())) < SMALL_PART}
        self._child: Child | None = None

    def _sound(self, batch: int) -> Array:
        given = self.target.batches[batch]
        with detection.monitor() as watch, contextlib.suppress(SoftErrorDetected):  # its events say so
            plain, output = (self.target.call(given, check, self.spec.threshold) for check in ("off", self.spec.check))
        if watch.detections:
            raise InvalidRun(f"batch {batch}: an error was detected before any fault was injected: {watch.events[0]}")
        if output.tobytes() != plain.tobytes():
            raise InvalidRun(f"batch {batch}: the protected result differs from the unprotected one without a fault")
        return output

    def reference(self) -> str:
        """Return the hash of all results without a fault."""
        total = hashlib.sha256()
        for output in self.outputs:
            total.update(output.tobytes())
        return total.hexdigest()

    # ---- memory as it was

    def _bytes(self, part: str) -> dict[str, bytes]:
        return {name: a.tobytes() for name, a in _targets.arrays_of(self.target.parts[part]).items()}

    def _intact(self, part: str) -> bool:
        """Put a part back to what it was, derived parameters included; False if that fails."""
        given, saved = self.target.parts[part], self._saved[part]
        for name, a in _targets.arrays_of(given).items():
            if name in saved and a.tobytes() != saved[name]:
                a[...] = np.frombuffer(saved[name], a.dtype).reshape(a.shape)
        if saved.keys() - _targets.arrays_of(given).keys():  # healing drops what was derived
            self.target.call(self.target.batches[0], self.spec.check, self.spec.threshold)
        return self._bytes(part) == saved

    def require_intact(self) -> None:
        """Raise InvalidRun unless every part is, and every stage gives, what it was and gave."""
        with _config.config_context(num_threads=1, on_error="raise"):
            for part in self.target.parts:
                if not self._intact(part):
                    raise InvalidRun(f"{part}: not what it was before the faults, which were all taken back")
            if self._sound(0).tobytes() != self.outputs[0].tobytes():
                raise InvalidRun("the result without a fault is not what it was")

    # ---- trials

    def answer(self, trial: int, check: str) -> Answer:
        """Answer the batch of a trial under its fault."""
        fault = self.drawer.draw(trial)
        result, seen = Answer(), _strike.Struck()
        with detection.monitor() as watch:
            try:
                with _strike.struck(self.drawer, fault, check) as (batch, seen):
                    result.output = self.target.call(batch, check, self.spec.threshold)
            except SoftErrorDetected:
                pass  # its events say so
            except (ValueError, IndexError, OverflowError) as error:
                result.refused = type(error).__name__
        result.fired, result.changed = seen.fired, seen.changed
        result.events = [(e.kind, e.rung, e.verdict) for e in watch.events]
        return result

    def trial(self, number: int) -> Record:
        """Run a trial and return its record."""
        fault = self.drawer.draw(number)
        if fault.site in _strike.MAY_CRASH:
            plain, guarded = (self._in_child(number, check) for check in ("off", self.spec.check))
        else:
            plain, guarded = (self.answer(number, check) for check in ("off", self.spec.check))
            part = fault.part
            if part in self._small:
                with _config.config_context(num_threads=1):
                    if not self._intact(part):
                        raise InvalidRun(f"trial {number}: {part} could not be put back")
        return self._record(fault, plain, guarded)

    def _in_child(self, number: int, check: str) -> Answer:
        if self._child is None:
            self._child = Child(self.spec, self.spec.timeout)
        died, answer = self._child.ask(number, check)
        return Answer(died=died) if answer is None else answer

    def close(self) -> None:
        """End the child process, if there is one."""
        if self._child is not None:
            self._child.close()

    def _size(self, answer: Answer, batch: int) -> float:
        if answer.output is None or answer.output.shape != self.outputs[batch].shape:
            return LARGEST  # no result at all
        return difference(answer.output, self.outputs[batch], relative=self.target.relative)

    def tolerance(self, site: str) -> float:
        """Return the largest change of a result that doesn't count as consequential."""
        if self.spec.tolerance is not None:
            return self.spec.tolerance
        return FLOAT_TOLERANCE if site in FLOAT_SITES else 0.0

    def _record(self, fault: _strike.Fault, plain: Answer, guarded: Answer) -> Record:
        detector = fault.site in _strike.DETECTOR_SITES
        damage = 0.0 if detector else self._size(plain, fault.batch)
        error = self._size(guarded, fault.batch)
        kinds = {kind for kind, _, _ in guarded.events}
        rung = max((rung for _, rung, _ in guarded.events), key=RUNGS.index, default="refuse" if guarded.refused else "")
        record: Record = {
            "trial": fault.trial,
            "site": fault.site,
            "model": fault.model,
            "part": fault.part,
            "batch": fault.batch,
            "visit": fault.visit,
            "element": fault.element,
            "bit": fault.change.bit,
            "persistent": fault.persistent,
            "changed": bool(plain.changed or guarded.changed or guarded.died),
            "outcome": self._outcome(fault, plain, guarded, damage, error),
            "damage": damage,
            "error": error,
            "kind": "+".join(sorted(kinds)),
            "rung": rung,
            "verdict": guarded.events[-1][2] if guarded.events else "",
        }
        if isinstance(self.target, _targets.ModelTarget) and damage and plain.output is not None:
            record["scores"] = [_plain(v) for v in plain.output.tolist()]
            if error and guarded.output is not None:
                record["answers"] = [_plain(v) for v in guarded.output.tolist()]
        return record

    def _outcome(self, fault: _strike.Fault, plain: Answer, guarded: Answer, damage: float, error: float) -> str:
        tolerance = self.tolerance(fault.site)
        if guarded.died:
            return guarded.died
        if not (plain.changed or guarded.changed or plain.died):
            if damage or error:
                raise InvalidRun(f"trial {fault.trial}: nothing was struck, and yet the result changed")
            return "false_alarm" if guarded.detected else "masked"
        if not guarded.detected:
            return "masked" if error == 0 else "tolerated" if error <= tolerance else "sdc"
        if guarded.output is not None and error > tolerance:
            return "miscorrected"
        return "detected_consequential" if damage > tolerance else "detected_benign"


def _plain(value: float) -> float:
    return value if -LARGEST <= value <= LARGEST else LARGEST


_workers = threading.local()


def run_chunk(key: str, payload: bytes, reference: str, start: int, stop: int, skip: frozenset[int]) -> list[Record]:
    """Run trials start .. stop but those to skip, in whichever process and thread this is.

    A worker is made once per thread from the pickled `Spec`, and must give the same results without a fault as the one that
    planned the campaign.
    """
    import pickle

    if getattr(_workers, "key", None) != key:
        if getattr(_workers, "worker", None) is not None:
            _workers.worker.close()
        worker = Worker(pickle.loads(payload))
        if worker.reference() != reference:
            raise InvalidRun("results without a fault differ between the process that planned the campaign and a worker")
        _workers.worker, _workers.key = worker, key
    worker = _workers.worker
    records = [worker.trial(i) for i in range(start, stop) if i not in skip]
    worker.require_intact()
    return records
