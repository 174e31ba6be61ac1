"""Invalid runs of campaigns: what was wrong before the faults, or isn't put back after them, ends the run."""

from __future__ import annotations

import pytest

from helpers.campaigns import product
from sedq import faults
from sedq.faults import _targets, _worker


def test_a_target_that_is_corrupted_already_is_refused() -> None:
    spec = product().spec
    faults.flip_weight_bit(spec.target, 3, 4, 6)
    with pytest.raises(faults.InvalidRun, match="before any fault was injected"):
        _worker.Worker(spec)


def test_a_protected_result_that_differs_without_a_fault_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    call = _targets.ProductTarget.call
    monkeypatch.setattr(
        _targets.ProductTarget,
        "call",
        lambda self, batch, check, limit: call(self, batch, check, limit) + (check == "exact"),
    )
    with pytest.raises(faults.InvalidRun, match="the protected result differs from the unprotected one without a fault"):
        product()


@pytest.mark.parametrize("small", [True, False], ids=["after a trial", "after a chunk"])
def test_memory_that_is_not_put_back_ends_the_run(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = product(sites=["weights"], models=[faults.BitFlip()])
    worker = campaign._worker
    # an array that is there before the faults and gone after them can't be put back
    monkeypatch.setitem(worker._saved["matmul_integer"], "lost", b"lost")
    if not small:
        worker._small.clear()
    message = "trial 0: matmul_integer could not be put back" if small else "not what it was before the faults"
    with pytest.raises(faults.InvalidRun, match=message):
        campaign.run(4)


def test_a_result_without_a_fault_that_changes_ends_the_run() -> None:
    campaign = product(sites=["input"])
    campaign._worker.outputs[0][0, 0] += 1
    with pytest.raises(faults.InvalidRun, match="not what it was"):
        campaign.run(4)
    campaign = product()
    campaign._worker._saved["matmul_integer"]["digits"] = b""
    with pytest.raises((faults.InvalidRun, ValueError)):
        campaign.run(20)


def test_a_change_without_a_strike_ends_the_run() -> None:
    campaign = product(sites=["accumulator"], models=[faults.Dummy()])
    for output in campaign._worker.outputs:
        output += 1
    with pytest.raises(faults.InvalidRun, match="trial 0: nothing was struck, and yet the result changed"):
        campaign.replay(0)


def test_a_worker_with_other_results_is_refused() -> None:
    campaign = product()
    _worker._workers.key = None
    with pytest.raises(faults.InvalidRun, match="differ between the process that planned the campaign and a worker"):
        _worker.run_chunk("key", campaign._payload, "0" * 64, 0, 5, frozenset())
