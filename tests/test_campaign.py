"""Campaigns: what becomes of faults, checked and not; the same whoever runs them and whenever they are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import _statistics, demo, faults
from sedq.datasets import load_msweb
from sedq.faults import _worker, targets
from sedq.faults._child import Child

TRIALS = 240


def product(**options: Any) -> faults.Campaign:
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (18, 33), dtype=np.int8), 0.1, 3)
    return faults.Campaign(packed, [rng.integers(1, 256, (3, 33), dtype=np.uint8) for _ in range(4)], **options)


def layer(**options: Any) -> faults.Campaign:
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(18, 33)).astype(np.float32), rng.normal(size=18).astype(np.float32)
    x = rng.normal(size=(40, 33)).astype(np.float32)
    made = sedq.QuantizedLinear.from_float(weight, bias, keep_source=True).observe(x).freeze()
    return faults.Campaign(made, [x[i : i + 4] for i in range(0, 40, 4)], **options)


def table(**options: Any) -> faults.Campaign:
    rng = np.random.default_rng(2)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 19)).astype(np.float32), keep_source=True)
    batches = [(rng.integers(0, 50, 9), np.array([0, 4, 9])) for _ in range(8)]
    return faults.Campaign(bag, batches, **options)


def model(**options: Any) -> faults.Campaign:
    data = load_msweb()
    return faults.Campaign(demo.build(data), [data.heldout.batch(i, i + 2) for i in range(0, 400, 25)], **options)


CAMPAIGNS = {f.__name__: f for f in (product, layer, table, model)}
everywhere = pytest.mark.parametrize("make", CAMPAIGNS.values(), ids=CAMPAIGNS)
Make = Callable[..., faults.Campaign]


def without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have protected calls made with the checks off."""
    for kind in (targets.ProductTarget, targets.LayerTarget, targets.BagTarget, targets.ModelTarget):
        call = kind.call
        monkeypatch.setattr(
            kind, "call", lambda self, batch, check, threshold, call=call: call(self, batch, "off", threshold)
        )


# ---- outcomes


@everywhere
@pytest.mark.parametrize("check", ["exact", "full"])
def test_nothing_that_is_promised_is_missed(make: Make, check: str) -> None:
    campaign = make(check=check)
    result = campaign.run(2 * len(campaign.spec.sites) * len(campaign.spec.models))
    goal = result.goal
    assert goal["holds"]
    assert goal["consequential"] > 40
    assert (goal["missed"], goal["false_alarms"]) == (0, 0)
    assert sum(result.outcomes.values()) == len(result.records)
    rungs = Counter(r["rung"] for r in result.records)
    assert rungs["recompute"] > 0
    assert rungs["heal"] > 0


@pytest.mark.parametrize("bits", [4, 2, 16, 32])
def test_tables_of_other_bits(bits: int) -> None:
    rng = np.random.default_rng(bits)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 19)).astype(np.float32), bits=bits, keep_source=True)
    batches = [(rng.integers(0, 50, 9), np.array([0, 4, 9])) for _ in range(8)]
    for check in ("exact", "full"):
        campaign = faults.Campaign(bag, batches, check=check)
        result = campaign.run(3 * len(campaign.spec.sites) * len(campaign.spec.models))
        assert result.goal["holds"]
        assert result.goal["consequential"] > 20
    assert "table.sums" in campaign.spec.sites
    found = campaign.residuals(200)
    assert found is not None
    assert found.sound.max() <= 1


@everywhere
def test_without_the_checks_faults_are_missed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checks(monkeypatch)
    result = make().run(TRIALS)
    assert not result.goal["holds"]
    assert result.goal["missed"] > 10
    assert result.outcomes["detected_consequential"] < result.outcomes["sdc"]  # weights at rest are verified in any case
    assert result.outcomes["false_alarm"] == 0
    for r in result.records:
        if r["outcome"] == "sdc" and r["site"] not in ("weights", "table.codes"):
            assert r["error"] == r["damage"] or r["persistent"]


@everywhere
def test_a_dummy_is_never_detected(make: Make) -> None:
    result = make(models=[faults.Dummy()]).run(TRIALS)
    assert result.outcomes["masked"] == TRIALS
    assert {(r["changed"], r["damage"], r["error"], r["kind"], r["rung"]) for r in result.records} == {
        (False, 0.0, 0.0, "", "")
    }
    assert result.goal["holds"]


def test_an_alarm_without_a_fault_is_one() -> None:
    campaign = product(models=[faults.Dummy()], sites=["accumulator"])
    campaign._worker.target.parts["matmul_integer"]._core.digits[0, 0] ^= 1
    record = campaign.replay(0)
    assert record["outcome"] == "false_alarm"
    assert record["kind"] == "accumulator"
    result = faults.CampaignResult(campaign, [record])
    assert (result.goal["false_alarms"], result.goal["holds"], result.goal_of(0.5)["holds"]) == (1, False, False)


def test_the_harder_faults_are_missed_and_not_promised() -> None:
    campaign = product(sites=["accumulator"], models=[faults.PairedError()], persistence=[False])
    result = campaign.run(60)
    assert result.outcomes["sdc"] > 20  # + e and - e in one row; the others strike padding of a tile
    assert result.goal["holds"]
    assert not result.goal_of(0.1)["holds"]
    assert not campaign.promises()
    assert product().promises()


def test_requantisation_is_seen_by_full_alone() -> None:
    options: dict[str, Any] = {"sites": ["requantised"], "models": [faults.BitFlip()], "persistence": [False]}
    exact, full = (layer(check=check, **options).run(100) for check in ("exact", "full"))
    assert exact.outcomes["sdc"] > 60
    assert exact.outcomes["detected_consequential"] == 0
    assert exact.goal["trials"] == 0
    assert full.outcomes["sdc"] == 0
    assert full.goal["consequential"] == exact.outcomes["sdc"]


def test_small_changes_of_floats_are_tolerated_and_told_apart() -> None:
    options: dict[str, Any] = {"sites": ["bag.accumulator"], "models": [faults.BitFlip()]}
    result = table(**options).run(400)
    small = [r for r in result.records if r["outcome"] == "tolerated"]
    assert len(small) > 20
    assert all(0 < r["error"] <= 1e-4 for r in small)
    assert result.outcomes["sdc"] == 0
    strict = table(tolerance=0.0, **options).run(400)
    assert strict.outcomes["tolerated"] == 0
    assert strict.outcomes["sdc"] == len(small)
    sizes = strict.document()["sizes"]
    assert sum(s["seen"] + s["missed"] for s in sizes) == sum(1 for r in strict.records if 0 < r["damage"] < 1e38)
    missed = [s["decade"] for s in sizes if s["missed"]]
    assert max(missed) < max(s["decade"] for s in sizes if s["seen"])


def test_every_flip_of_an_accumulator_beyond_the_bound_is_seen() -> None:
    found = table(check="exact").residuals(1500)
    assert found is not None
    assert found.sound.max() <= 1
    assert (found.struck > 1).sum() > 200
    assert found.consequential[found.struck > 1].mean() > 0.9
    assert found.struck[found.consequential].min() > 0.1  # the bound is near what counts


def test_input_faults_are_refused_or_silent() -> None:
    result = table(sites=["indices", "offsets"], models=[faults.BitFlip()]).run(400)
    rungs = Counter(r["rung"] for r in result.records)
    assert rungs["refuse"] > 300
    assert result.outcomes["sdc"] > 5  # an index in range is as good as any
    assert result.goal["trials"] == 0


# ---- reproducible


@everywhere
def test_trials_can_be_run_again_in_any_order(make: Make) -> None:
    campaign = make()
    result = campaign.run(TRIALS)
    assert [r["trial"] for r in result.records] == list(range(TRIALS))
    for i in (TRIALS - 1, 0, 117, 33):
        assert result.replay(i) == campaign.replay(i) == result.records[i]
        assert campaign.fault(i).site == result.records[i]["site"]
    again = make()
    assert again.reference == campaign.reference
    assert again.describe() == campaign.describe()
    assert [again.replay(i) for i in reversed(range(0, TRIALS, 7))] == result.records[::7][::-1]
    other = make(rng=1)
    assert other.reference == campaign.reference
    assert other.run(TRIALS).records != result.records


class Backwards(Executor):
    """Runs what it is given, the last first, when it is waited for."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        threading.Timer(0.01, self._run).start()
        return future

    def _run(self) -> None:
        while self._waiting:
            future, call = self._waiting.pop()
            if future.set_running_or_notify_cancel():
                future.set_result(call())


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), lambda: ThreadPoolExecutor(3), Backwards])
def test_any_executor_gives_the_same_result(make: Callable[[], Executor]) -> None:
    campaign = model()
    alone = campaign.run(TRIALS)
    for chunk in (7, 100):
        with make() as executor:
            result = campaign.run(TRIALS, executor=executor, chunk=chunk)
        assert result.records == alone.records
        assert result.document() == alone.document()


SCRIPT = """
import os, signal, sys
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {folder!r})
import test_campaign


def kill_workers(done, trials):
    for pid in list(executor._processes):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        test_campaign.product().run({trials}, executor, resume={log!r}, chunk=20, progress={progress})
"""


def in_a_process_of_its_own(folder: Path, **values: Any) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), trials=TRIALS, **values))
    return subprocess.run([sys.executable, "-P", script], cwd=folder, capture_output=True, text=True, timeout=120)


def test_processes_give_the_same_result_and_may_be_killed(tmp_path: Path) -> None:
    log, alone = tmp_path / "run.jsonl", product().run(TRIALS)
    ran = in_a_process_of_its_own(tmp_path, log=str(log), progress="kill_workers")
    assert "BrokenProcessPool" in ran.stderr
    done = len(log.read_bytes().splitlines()) - 1
    assert 0 < done < TRIALS
    ran = in_a_process_of_its_own(tmp_path, log=str(log), progress="False")
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = [json.loads(line) for line in log.read_bytes().splitlines()[1:]]
    assert sorted(lines, key=lambda r: r["trial"]) == alone.records
    assert product().run(TRIALS, resume=log).records == alone.records


class Unreliable(Executor):
    """Loses every task as often as it is told to before it runs it."""

    def __init__(self, losses: int) -> None:
        self.losses, self.lost = losses, Counter[int]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        start = args[3]
        if self.lost[start] < self.losses:
            self.lost[start] += 1
            future.set_exception(ConnectionError("the worker is gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_lost_chunks_are_run_again_and_counted_once(tmp_path: Path) -> None:
    campaign, log = product(), tmp_path / "run.jsonl"
    alone = campaign.run(TRIALS)
    result = campaign.run(TRIALS, executor=Unreliable(3), chunk=20, resume=log)
    assert result.records == alone.records
    assert len(log.read_bytes().splitlines()) == 1 + TRIALS
    with pytest.raises(ConnectionError, match="the worker is gone"):
        campaign.run(TRIALS, executor=Unreliable(4), chunk=20)


# ---- logs


KILLED = """
import sys, time
sys.path.insert(0, {folder!r})
import test_campaign
campaign = test_campaign.product()
campaign.run(10**6, resume={log!r}, chunk=10)
"""


def test_a_killed_run_goes_on_to_an_identical_result(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    script = KILLED.format(folder=str(Path(__file__).parent), log=str(log))
    run = subprocess.Popen([sys.executable, "-P", "-c", script], cwd=tmp_path)
    try:
        until = time.monotonic() + 60
        while (not log.exists() or log.read_bytes().count(b"\n") < 50) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        run.kill()
        run.wait()
    with log.open("ab") as stream:
        stream.write(b'{"trial":999,"site":"wei')  # as if it had been killed while writing
    done = log.read_bytes().count(b"\n") - 1
    assert done >= 49
    trials = done + 25
    fresh = product().run(trials)
    counted: list[tuple[int, int]] = []
    result = product().run(trials, resume=log, progress=lambda d, n: counted.append((d, n)))
    assert result.records == fresh.records
    assert counted[-1] == (trials, trials)
    lines = [json.loads(line) for line in log.read_bytes().splitlines()[1:]]
    assert sorted(r["trial"] for r in lines) == list(range(trials))
    before = log.read_bytes()
    assert product().run(trials, resume=log).records == fresh.records
    assert product().run(10, resume=log).records == fresh.records[:10]
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    "other", [{"rng": 1}, {"check": "full"}, {"models": [faults.BitFlip()]}, {"persistence": [True]}, {"tolerance": 0.5}]
)
def test_the_log_of_another_campaign_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    log = tmp_path / "run.jsonl"
    product().run(20, resume=log)
    before = log.read_bytes()
    with pytest.raises(faults.InvalidRun, match="is of another campaign"):
        product(**other).run(20, resume=log)
    with pytest.raises(faults.InvalidRun, match=r"is of another campaign \(target differs\)"):
        layer().run(20, resume=log)
    assert log.read_bytes() == before


def test_a_log_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    product().run(20, resume=log)
    lines = log.read_text().splitlines()
    record = json.loads(lines[5])
    log.write_text("\n".join([*lines, json.dumps(record | {"outcome": "hang"})]) + "\n")
    with pytest.raises(faults.InvalidRun, match=f"two different records of trial {record['trial']}"):
        product().run(20, resume=log)
    # a record that a rerun of its chunk contradicts
    log.write_text("\n".join([*lines[:5], json.dumps(record | {"outcome": "hang"})]) + "\n")
    assert product().run(20, resume=log).records[record["trial"]]["outcome"] == "hang"
    for content in (b"text\n", b"[]\n", b'{"format": "other"}\n', b"no line"):
        log.write_bytes(content)
        with pytest.raises(ValueError, match="which is no log of a campaign"):
            product().run(20, resume=log)
        assert log.read_bytes() == content
    log.write_bytes(b"")
    assert len(product().run(20, resume=log).records) == 20


# ---- invalid runs


def test_a_target_that_is_corrupted_already_is_refused() -> None:
    spec = product().spec
    faults.flip_weight_bit(spec.target, 3, 4, 6)
    with pytest.raises(faults.InvalidRun, match="before any fault was injected"):
        _worker.Worker(spec)


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


# ---- processes that may crash


def test_trials_that_may_crash_run_in_a_process_of_their_own() -> None:
    campaign = table(sites=["indices.consumed"], models=[faults.BitFlip(positions=(1, 28, 31)), faults.Dummy()])
    result = campaign.run(24)
    outcomes = Counter((r["model"].partition("(")[0], r["outcome"]) for r in result.records)
    assert outcomes["Dummy", "masked"] == 12
    assert outcomes["BitFlip", "crash"] > 0  # a row gigabytes away
    campaign._worker.close()
    campaign._worker.close()


def test_a_call_that_hangs_is_ended() -> None:
    child = Child(table().spec, 0.5)
    try:
        died, _ = child.ask(0, "off")
        assert died == ""
        first = child._process
        assert first is not None
        first.send_signal(signal.SIGSTOP)
        child._timeout = -4.5  # a second in all
        assert child.ask(1, "off") == ("hang", None)
        assert first.poll() is not None
        child._timeout = 0.5
        assert child.ask(1, "off")[0] == ""  # in a new one
    finally:
        child.close()


FORKS = """
import os, signal, time
from sedq.faults import _child

class Worker:
    def answer(self, trial, check):
        if trial == 0:
            return check
        if trial == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if trial == 2:
            time.sleep(60)
        raise KeyError(trial)

print([_child._forked(Worker(), trial, "off", 0.3) for trial in (0, 1, 2, 0)], repr(_child._forked(Worker(), 3, "off", 9.0)))
"""


def test_a_fork_answers_crashes_or_hangs(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", FORKS], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "['off', None, 'hang', 'off'] KeyError(3)\n", ran.stderr


# ---- plans and settings


def test_a_plan_says_what_a_run_can_show() -> None:
    campaign = product(sites=["weights", "accumulator"], models=[faults.BitFlip(), faults.Carry()])
    plan = campaign.plan(4000, confidence=0.99)
    assert (plan.trials, plan.strata, plan.per_stratum, plan.confidence) == (4000, 4, 1000, 0.99)
    assert plan.smallest_rate == _statistics.upper_bound(0, 1000, 0.99)
    assert plan.smallest_rate_overall == _statistics.upper_bound(0, 4000, 0.99)
    low, high = _statistics.interval(500, 1000, 0.99)
    assert plan.width == high - low
    assert "at least 1000 each" in str(plan)
    result = campaign.run(400)
    assert len({(r["site"], r["model"]) for r in result.records}) == plan.strata
    assert result.document()["strata"][0]["trials"] == 50  # with and without persistence
    wanted = campaign.trials_for(0.05)
    assert campaign.plan(wanted).width == pytest.approx(0.05, rel=2e-3)
    assert campaign.trials_for(0.05, rate=0.99) < wanted
    with pytest.raises(ValueError, match="trials: got 0"):
        campaign.plan(0)
    with pytest.raises(ValueError, match="width: got int 0"):
        campaign.trials_for(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": "off"}, "check: got 'off'"),
        ({"models": []}, "models: got"),
        ({"models": ["BitFlip"]}, "models: got"),
        ({"sites": ["floor"]}, r"sites: got \['floor'\], expected some of weights, "),
        ({"sites": "weights"}, "sites: got 'weights'"),
        ({"sites": []}, "sites: got"),
        ({"rng": -1}, "rng: got -1"),
        ({"persistence": []}, "persistence: got none"),
        ({"persistence": [1]}, "persistence: got"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
        ({"tolerance": float("nan")}, "tolerance: got nan"),
        ({"timeout": 0}, "timeout: got 0"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        product(**options)


def test_wrong_runs_are_refused(tmp_path: Path) -> None:
    campaign = product()
    for call, message in (
        (lambda: campaign.run(0), "trials: got 0"),
        (lambda: campaign.run(5, chunk=0), "chunk: got 0"),
        (lambda: campaign.fault(-1), "trial: got -1"),
        (lambda: campaign.replay(-1), "trial: got -1"),
        (lambda: campaign.residuals(0), "trials: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(OSError, match=str(tmp_path)):
        campaign.run(5, resume=tmp_path)


def test_progress_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    product().run(25, chunk=10, progress=lambda done, trials: told.append((done, trials)))
    assert told == [(10, 25), (20, 25), (25, 25)]
    monkeypatch.setitem(sys.modules, "tqdm", None)
    product().run(25, chunk=20, progress=True)
    assert capsys.readouterr().err.splitlines() == [f"{n} of 25 trials" for n in (20, 25)]
    monkeypatch.undo()
    pytest.importorskip("tqdm")
    product().run(25, progress=True)
    assert "25/25" in capsys.readouterr().err


def test_a_campaign_describes_itself() -> None:
    assert repr(product()).startswith("<Campaign on <PackedWeights 18 x 33 int8")
    result = layer().run(30)
    assert repr(result).startswith("<CampaignResult of 30 trials, ")
    table_ = result.table().splitlines()
    assert table_[0].split()[:3] == ["site", "trials", "masked"]
    assert any(line.startswith("all ") for line in table_)
    assert "promises to see: 0 missed of" in table_[-1]
