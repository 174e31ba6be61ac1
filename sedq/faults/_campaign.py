"""Campaigns: inject many faults, count what became of them, and say what the counts can and can't show."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

import numpy as np

from sedq import _config, _statistics, _validation
from sedq._progress import progress_bar
from sedq.datasets import Requests
from sedq.faults import _strike, _summary, _targets
from sedq.faults._log import Log, Results, collect
from sedq.faults._models import FaultModel, default_models
from sedq.faults._plan import CampaignPlan
from sedq.faults._residuals import Residuals, residuals
from sedq.faults._result import CampaignResult
from sedq.faults._sites import chosen, site_names
from sedq.faults._strike import Fault
from sedq.faults._worker import InvalidRun, Record, Spec, Worker, run_chunk

__all__ = ["Campaign", "CampaignPlan"]

CHUNK = 500
PAUSE = 1.0  # seconds between records that are handed on, at least
IN_FLIGHT = 64  # chunks given to an executor at a time: each carries the pickled target
ATTEMPTS = 4
GRACE = 60  # seconds for which an interrupt waits for chunks that are being run
REPLAYED = 5  # trials of a log that are run again before it is believed
CHECKS = ("exact", "full", "digest", "threshold", "mod127")


class Campaign:
    """Faults of chosen models at chosen sites of an operator or model, and what becomes of them.

    Each trial answers one batch of inputs twice under the same fault, unprotected and protected, on one thread. The fault is
    drawn from the seed and the number of the trial alone, so that a run is the same in any order, on any number of workers,
    and any trial can be run again.

    Parameters
    ----------
    target : PackedWeights, QuantizedLinear, EmbeddingBag or DLRM
        What is struck: a copy of it.
    inputs : sequence
        Batches; small ones make fast trials. uint8 (M, K) for packed weights, that or float32 for a layer, (indices,
        offsets) or (indices, offsets, per_sample_weights) with the last offset for a table, `datasets.Requests` or
        (dense, indices, offsets) for a model.
    models : sequence of FaultModel, optional
        `default_models` if None.
    sites : sequence of str, optional
        Where faults strike; all that the target has if None (`site_names`), but ``"indices.consumed"``: indices struck
        after they were found to be in range make a call read whatever lies beside the table. Such trials run in a child
        process, may crash, and may end otherwise when they are run again.
    rng : int, default 0
        Seed.
    check : {"exact", "full", "digest", "threshold", "mod127"}, default "exact"
        Level of checking of the protected call.
    threshold : optional
        Of a table's pooled sums, as for `EmbeddingBag`.
    tolerance : float, optional
        The largest change of a result that doesn't count as consequential: of a score, of an output, or, for a table,
        relative to the largest magnitude of the output. None: no change at all, and 1e-4 for faults in the float
        accumulators of bags.
    persistence : sequence of bool, default (True, False)
        Whether faults stay (in memory until repaired, in a kernel at every later visit) or are gone after the first read;
        with both, every other trial.
    timeout : float, default 10.0
        Seconds after which a trial in a child process counts as hung.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> from sedq import faults
    >>> rng = np.random.default_rng(0)
    >>> packed = sedq.pack_weights(rng.integers(-128, 128, (16, 32), dtype=np.int8))
    >>> inputs = [rng.integers(0, 256, (2, 32), dtype=np.uint8) for _ in range(4)]
    >>> campaign = faults.Campaign(packed, inputs, sites=["weights", "accumulator"], models=[faults.BitFlip()])
    >>> result = campaign.run(trials=200)
    >>> result.goal["holds"], result.outcomes["sdc"]
    (True, 0)
    >>> result.replay(7) == result.records[7]
    True
    """

    def __init__(
        self,
        target: Any,
        inputs: Sequence[Any],
        *,
        models: Sequence[FaultModel] | None = None,
        sites: Sequence[str] | None = None,
        rng: int = 0,
        check: str = "exact",
        threshold: Any = "bound",
        tolerance: float | None = None,
        persistence: Sequence[bool] = (True, False),
        timeout: float = 10.0,
    ) -> None:
        if check not in CHECKS:
            raise ValueError(f"check: got {check!r}, expected one of {', '.join(map(repr, CHECKS))}")
        used = tuple(default_models() if models is None else models)
        if not used or not all(isinstance(m, FaultModel) for m in used):
            raise ValueError(f"models: got {_validation.describe(models)}, expected fault models, at least one")
        lasting = tuple(_validation.boolean("persistence", p) for p in persistence)
        if not lasting:
            raise ValueError("persistence: got none, expected True, False or both")
        if tolerance is not None and not 0 <= tolerance < np.inf:
            raise ValueError(f"tolerance: got {tolerance!r}, expected a number from 0 on, or None")
        spec = Spec(
            target,
            list(inputs),
            (),
            used,
            lasting,
            _validation.integer("rng", rng, 0, 2**63 - 1),
            check,
            threshold,
            None if tolerance is None else float(tolerance),
            float(_validation.positive_scalar("timeout", timeout)),
        )
        spec = pickle.loads(pickle.dumps(spec))  # the caller's target is never struck
        known = site_names(spec.target, spec.inputs, check=check)
        self.spec = dataclasses.replace(spec, sites=chosen(sites, known))
        self._payload = pickle.dumps(self.spec)
        self._worker = Worker(self.spec)
        self.reference = self._worker.reference()
        self.labels = [b.labels for b in inputs if isinstance(b, Requests)]

    def __repr__(self) -> str:
        return (
            f"<Campaign on {self.spec.target!r}, {len(self.spec.inputs)} batches, {len(self.spec.sites)} sites, "
            f"{len(self.spec.models)} models, check={self.spec.check!r}, rng={self.spec.seed}>"
        )

    def describe(self) -> dict[str, Any]:
        """Return what the records depend on, as JSON can hold it."""
        return {
            "target": repr(self.spec.target),
            "batches": len(self.spec.inputs),
            "sites": list(self.spec.sites),
            "models": [m.name for m in self.spec.models],
            "persistence": list(self.spec.persistence),
            "seed": self.spec.seed,
            "check": self.spec.check,
            "threshold": str(self.spec.threshold),
            "tolerance": self.spec.tolerance,
            "kernels": _config.get_config().kernels.name,
            "fingerprint": self._fingerprint(),
        }

    def _hashes(self) -> dict[str, str]:
        """Return hashes of all arrays that faults may strike, and of the inputs."""
        hashes = {
            f"{name}/{label}": hashlib.sha256(a.tobytes()).hexdigest()
            for name, part in self._worker.target.parts.items()
            for label, a in _targets.arrays_of(part).items()
        }
        total = hashlib.sha256()
        for batch in self._worker.target.batches:
            for value in batch.values():
                for a in value if isinstance(value, list) else [value]:
                    total.update(a.tobytes())
        return hashes | {"inputs": total.hexdigest()}

    def _fingerprint(self) -> str:
        """Return a hash of all bytes that faults may strike, and of the inputs."""
        return hashlib.sha256(json.dumps(self._hashes()).encode()).hexdigest()

    def _header(self) -> dict[str, Any]:
        """Return what a log must agree with: that which says most where it doesn't comes first."""
        said = self.describe()
        fingerprint = said.pop("fingerprint")
        arrays = {name: digest[:16] for name, digest in self._hashes().items()}
        return {**said, "arrays": arrays, "fingerprint": fingerprint, "reference": self.reference}

    def plan(self, trials: int, confidence: float = 0.95) -> CampaignPlan:
        """Say what a run can and can't show, before it is made.

        Parameters
        ----------
        trials : int
            How many.
        confidence : float, default 0.95
            Of bounds and intervals.

        Returns
        -------
        CampaignPlan
        """
        trials = _validation.integer("trials", trials, 1, sys.maxsize)
        strata = len(self.spec.sites) * len(self.spec.models)
        least = trials // strata
        low, high = _statistics.interval(least // 2, least, confidence)
        stratum, overall = (_statistics.upper_bound(0, n, confidence) for n in (least, trials))
        silent = tuple(site for site in self.spec.sites if site in _summary.NEVER)
        return CampaignPlan(trials, strata, least, stratum, overall, high - low, confidence, silent)

    def trials_for(self, width: float, rate: float = 0.5, confidence: float = 0.95) -> int:
        """Return how many trials make the interval of a rate no wider than wanted in every stratum.

        Parameters
        ----------
        width : float
            Of the interval, between 0 and 1.
        rate : float, default 0.5
            What the rate is expected to be; 0.5 needs the most trials.
        confidence : float, default 0.95
            Of the interval.

        Returns
        -------
        int
            If every fault is consequential: those that are masked say nothing of the rate.
        """
        strata = len(self.spec.sites) * len(self.spec.models)
        return strata * _statistics.sample_size(width, rate, confidence)

    def promises(self) -> bool:
        """Whether the check promises to see any of the faults; without one a goal without a rate says nothing.

        Returns
        -------
        bool
        """
        spec = self.spec
        kinds = itertools.product(spec.sites, spec.models, spec.persistence)
        return any(
            _summary.promised({"site": site, "model": model.name, "persistent": stays}, spec.check)
            for site, model, stays in kinds
        )

    def fault(self, trial: int) -> Fault:
        """Return the fault of a trial.

        Parameters
        ----------
        trial : int
            Its number, from 0.

        Returns
        -------
        Fault
        """
        return self._worker.drawer.draw(_validation.integer("trial", trial, 0, sys.maxsize))

    def replay(self, trial: int) -> Record:
        """Run one trial.

        Parameters
        ----------
        trial : int
            Its number, from 0.

        Returns
        -------
        dict
            Its record.
        """
        return self._worker.trial(_validation.integer("trial", trial, 0, sys.maxsize))

    def residuals(self, trials: int = 1000) -> Residuals | None:
        """Measure residuals of pooled sums, without faults and with them, for the choice of a threshold.

        Parameters
        ----------
        trials : int, default 1000
            How many faults in accumulators and codes of tables.

        Returns
        -------
        Residuals or None
            None for a target without tables.
        """
        return residuals(self.spec, _validation.integer("trials", trials, 1, sys.maxsize))

    def run(
        self,
        trials: int,
        executor: Executor | None = None,
        resume: str | os.PathLike[str] | None = None,
        progress: bool | Callable[[int, int], object] = False,
        chunk: int = CHUNK,
    ) -> CampaignResult:
        """Run trials 0 to `trials` - 1.

        Parameters
        ----------
        trials : int
            How many.
        executor : concurrent.futures.Executor, optional
            Threads, processes, or those of a cluster (``dask.distributed.Client.get_executor()``). This thread if None.
        resume : path-like, optional
            Log of the trials that have been run, in JSON lines. It is appended to as chunks end, without an executor every
            second as well; if it exists, what it holds isn't run again.
        progress : bool or callable, default False
            True shows a bar on standard error; a callable is given (trials done, trials).
        chunk : int, default 500
            Trials that a worker runs at a time.

        Returns
        -------
        CampaignResult

        Raises
        ------
        InvalidRun
            If a result without a fault changed, memory could not be put back, or the log is another campaign's, in use by
            another run, damaged, or says otherwise than a few of its trials that are run again.
        """
        trials = _validation.integer("trials", trials, 1, sys.maxsize)
        chunk = _validation.integer("chunk", chunk, 1, sys.maxsize)
        parts = [(a, min(a + chunk, trials)) for a in range(0, trials, chunk)]
        with contextlib.ExitStack() as stack:
            log = None if resume is None else stack.enter_context(Log(resume, self._header()))
            done = {} if log is None else self._replayed(log.records, trials)
            parts = [(a, b) for a, b in parts if any(i not in done for i in range(a, b))]
            if callable(progress):
                report = progress
            else:
                report = stack.enter_context(progress_bar("trials")) if progress else lambda done, trials: None
            results = self._here(parts, done) if executor is None else self._on(executor, parts, done)
            collect(results, done, log, lambda count: report(count, trials))
        self._worker.require_intact()
        return CampaignResult(self, [done[i] for i in range(trials)], log=None if resume is None else os.fspath(resume))

    def _replayed(self, logged: dict[int, Record], trials: int) -> dict[int, Record]:
        """Return those records of a log that belong to this run, after a few of them, drawn at random, were run again."""
        firm = sorted(i for i, record in logged.items() if record["site"] not in _strike.MAY_CRASH)
        drawn = np.random.default_rng([self.spec.seed, len(logged)]).permutation(len(firm))[:REPLAYED]
        for trial in sorted(firm[i] for i in drawn):
            if self.replay(trial) != logged[trial]:
                raise InvalidRun(f"resume: trial {trial} gives another record than the log has: it isn't of this campaign")
        return {i: record for i, record in logged.items() if i < trials}

    def _here(self, parts: list[tuple[int, int]], done: dict[int, Record]) -> Results:
        """Run chunks in this thread; what ends it loses a second's trials at most, an interrupt only the one it meets."""
        pause = PAUSE
        records: list[Record] = []
        try:
            for a, b in parts:
                left = [i for i in reversed(range(a, b)) if i not in done]
                while left:
                    records, began = [], time.monotonic()
                    while left and time.monotonic() - began < pause:
                        records.append(self._worker.trial(left[-1]))
                        left.pop()
                    ended = time.monotonic()
                    self._worker.require_intact()
                    pause = max(PAUSE, 9 * (time.monotonic() - ended))  # large memory takes long to compare
                    yield records
        except KeyboardInterrupt:
            self._worker.require_intact()
            yield records
            raise

    def _on(self, executor: Executor, parts: list[tuple[int, int]], done: dict[int, Record]) -> Results:
        """Run chunks on an executor, again those whose worker was lost; a chunk is counted when its records arrive."""
        key = hashlib.sha256(self._payload).hexdigest()
        waiting = [(a, b, 0) for a, b in reversed(parts)]
        running: dict[Future[list[Record]], tuple[int, int, int]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < IN_FLIGHT:
                    a, b, attempt = waiting.pop()
                    skip = frozenset(i for i in range(a, b) if i in done)
                    running[executor.submit(run_chunk, key, self._payload, self.reference, a, b, skip)] = (a, b, attempt)
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    a, b, attempt = running[future]
                    error = future.exception()
                    if error is None:
                        yield future.result()
                    elif isinstance(error, (InvalidRun, ValueError, TypeError)) or attempt + 1 >= ATTEMPTS:
                        raise error
                    else:  # its worker was lost, and it with it
                        waiting.append((a, b, attempt + 1))
                    del running[future]  # not before its records were taken, which an interrupt may prevent
        except KeyboardInterrupt:
            for future in wait([f for f in running if not f.cancel()], GRACE).done:
                if not future.exception():
                    yield future.result()
            raise
        finally:
            for future in running:
                future.cancel()
