"""Campaigns: what becomes of faults, checked and not; the same whoever runs them and whenever they are killed."""

from __future__ import annotations

import json
import os
import re
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
from sedq.faults import _log, _summary, _worker, targets
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
        result = campaign.run(4 * len(campaign.spec.sites) * len(campaign.spec.models))
        assert result.goal["holds"]
        assert result.goal["consequential"] > 28
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
    goal, free = result.goal, TRIALS + len(result.campaign.spec.inputs)
    assert (goal["state"], goal["false_alarms"], goal["fault_free"]) == ("unknown", 0, free)
    assert goal["false_alarm_bound"] == _statistics.upper_bound(0, free)


def test_an_alarm_without_a_fault_is_one() -> None:
    campaign = product(models=[faults.Dummy()], sites=["accumulator"])
    campaign._worker.target.parts["matmul_integer"]._core.digits[0, 0] ^= 1
    record = campaign.replay(0)
    assert record["outcome"] == "false_alarm"
    assert record["kind"] == "accumulator"
    result = faults.CampaignResult(campaign, [record])
    assert (result.goal["false_alarms"], result.goal["state"], result.goal_of(0.5)["state"]) == (1, "fails", "fails")
    assert (result.goal["fault_free"], result.goal["false_alarm_bound"]) == (5, _statistics.upper_bound(1, 5))


def test_the_harder_faults_are_missed_and_not_promised() -> None:
    campaign = product(sites=["accumulator"], models=[faults.PairedError()], persistence=[False])
    result = campaign.run(60)
    assert result.outcomes["sdc"] > 20  # + e and - e in one row; the others strike padding of a tile
    assert result.goal["state"] == "unknown"
    assert result.goal_of(0.1)["state"] == "fails"
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
    document = strict.document()
    sizes, left = document["sizes"], document["unsized"]
    assert sum(s["unprotected"] for s in sizes) == sum(1 for r in strict.records if 0 < r["damage"] < 1e38)
    assert left["unprotected"] == sum(1 for r in strict.records if r["damage"] >= 1e38)
    assert sum(s["returned"] for s in sizes) == len(small) + strict.outcomes["miscorrected"]
    assert max(s["decade"] for s in sizes if s["returned"]) < max(s["decade"] for s in sizes if s["unprotected"])


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
import contextlib, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {folder!r})
import test_campaign


def kill_workers(done, trials):
    for pid in list(executor._processes):
        with contextlib.suppress(ProcessLookupError):  # the pool ends the others when it misses one
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
    assert all(len(r.pop("crc")) == 8 for r in lines)
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
    with pytest.raises(faults.InvalidRun, match=r"is of another campaign \(target differs: got .*, expected .*\)"):
        layer().run(20, resume=log)
    assert log.read_bytes() == before


def line(record: dict[str, Any]) -> bytes:
    """A line of a log whose checksum fits it."""
    return _log._line({k: v for k, v in record.items() if k != "crc"})


def test_a_log_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    product().run(20, resume=log)
    lines = log.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[5])
    forged = record | {"outcome": "hang"}
    log.write_bytes(b"".join([*lines, line(forged)]))
    with pytest.raises(faults.InvalidRun, match=f"two different records of trial {record['trial']}"):
        product().run(20, resume=log)
    # a changed byte doesn't fit the checksum; with one that fits, the trial gives another record when it is run again
    log.write_bytes(b"".join([*lines[:5], lines[5].replace(b"masked", b"sdc").replace(b"detected", b"Detected")]))
    before = log.read_bytes()
    with pytest.raises(faults.InvalidRun, match=f"line 6 of {log} is damaged: its checksum doesn't fit"):
        product().run(20, resume=log)
    log.write_bytes(b"".join([*lines[:5], line(forged)]))
    with pytest.raises(faults.InvalidRun, match=f"trial {record['trial']} gives another record than the log has"):
        product().run(20, resume=log)
    log.write_bytes(lines[0].replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(faults.InvalidRun, match=f"line 1 of {log} is damaged"):
        product().run(20, resume=log)
    for content in (b"text\n", b"[]\n", b'{"format": "other"}\n', b"no line"):
        log.write_bytes(content)
        with pytest.raises(ValueError, match="which is no log of a campaign"):
            product().run(20, resume=log)
        assert log.read_bytes() == content
    assert len(before.splitlines()) == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: b"{}\n", "is damaged"),
        (lambda r: b"3\n", "is damaged: it is no JSON object"),
        (lambda r: b"garbage\n", "is damaged: it is no JSON object"),
        (lambda r: line({"trial": 0}), "is no record of a trial: site, model"),
        (lambda r: line(r | {"trial": -5}), "is no record of a trial: trial"),
        (lambda r: line(r | {"trial": True}), "is no record of a trial: trial"),
        (lambda r: line(r | {"outcome": "fine"}), "is no record of a trial: outcome"),
        (lambda r: line(r | {"damage": -1.0}), "is no record of a trial: damage"),
    ],
)
def test_a_line_that_is_no_record_is_refused(tmp_path: Path, spoil: Callable[..., bytes], message: str) -> None:
    log, campaign = tmp_path / "run.jsonl", product()
    campaign.run(3, resume=log)
    lines = log.read_bytes().splitlines(keepends=True)
    content = lines[0] + spoil(json.loads(lines[1])) + lines[2]
    log.write_bytes(content)
    with pytest.raises(faults.InvalidRun, match=f"line 2 of .*{message}"):
        campaign.run(3, resume=log)
    assert log.read_bytes() == content


def test_a_log_that_ends_in_its_first_line_is_begun_again(tmp_path: Path) -> None:
    log, campaign = tmp_path / "run.jsonl", product()
    fresh = campaign.run(10, resume=log)
    whole = log.read_bytes()
    for size in (0, 5, 40, len(whole.splitlines()[0])):
        log.write_bytes(whole[:size])
        assert campaign.run(10, resume=log).records == fresh.records
        assert log.read_bytes() == whole


def test_a_log_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    log, campaign = tmp_path / "run.jsonl", product()
    refused: list[str] = []

    def meddle(done: int, trials: int) -> None:
        before = log.read_bytes()
        with pytest.raises(faults.InvalidRun, match="is in use by another run") as error:
            campaign.run(20, resume=log)
        refused.append(str(error.value))
        assert log.read_bytes() == before

    campaign.run(20, resume=log, chunk=10, progress=meddle)
    assert len(refused) == 2
    assert len(campaign.run(30, resume=log).records) == 30  # and free when it has ended


FORKED = """
import os, sys, time
from sedq.faults._log import Log

log = Log(sys.argv[1], {})
pid = os.fork()
if pid:
    print(pid, flush=True)
    os._exit(0)
os.close(1)
os.close(2)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_worker_that_outlives_its_run_does_not_keep_the_log(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", FORKED, log], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    try:
        _log.Log(log, {}).close()
    finally:
        os.kill(int(ran.stdout), signal.SIGKILL)


def test_the_log_of_other_memory_or_other_results_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, campaign = tmp_path / "run.jsonl", product()
    campaign.run(20, resume=log)
    rng = np.random.default_rng(0)
    other = rng.integers(-128, 128, (18, 33), dtype=np.int8)
    inputs = [rng.integers(1, 256, (3, 33), dtype=np.uint8) for _ in range(4)]
    other[3, 4] ^= 1
    with pytest.raises(faults.InvalidRun, match=r"\(arrays differ: matmul_integer/.*panels.*\)"):
        faults.Campaign(sedq.pack_weights(other, 0.1, 3), inputs).run(20, resume=log)
    again = product()
    again.reference = "0" * 64
    with pytest.raises(faults.InvalidRun, match="reference differs"):
        again.run(20, resume=log)
    # the fingerprint alone tells too
    monkeypatch.setattr(faults.Campaign, "_fingerprint", lambda self: "0" * 64)
    with pytest.raises(faults.InvalidRun, match="fingerprint differs"):
        product().run(20, resume=log)


THREADS = """
from sedq import faults
from sedq.faults import command

model, inputs = command._packaged(2)
print(faults.Campaign(model, inputs[:3])._fingerprint())
"""


def test_the_packaged_model_is_the_same_with_any_number_of_threads(tmp_path: Path) -> None:
    found = set()
    for threads in ("1", "2"):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-P", "-c", THREADS], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        found.add(ran.stdout)
    assert len(found) == 1


# ---- evidence


def record_of(outcome: str, **values: Any) -> dict[str, Any]:
    noticed = outcome in ("detected_consequential", "miscorrected", "false_alarm")
    wrong = 2e-3 if outcome in ("sdc", "miscorrected") else 0.0
    made = {"trial": 0, "site": "weights", "model": "BitFlip", "persistent": True, "outcome": outcome, "error": wrong}
    return made | {"changed": True, "damage": 0.5, "rung": "heal" if noticed else "", "bit": 1} | values


@pytest.mark.parametrize(
    ("right", "missed", "rate", "state"),
    [
        (0, 0, None, "unknown"),
        (28, 0, None, "unknown"),  # the bound is 0.101
        (29, 0, None, "holds"),
        (2, 1, None, "fails"),
        (1000, 1, None, "fails"),
        (0, 0, 0.1, "unknown"),
        (28, 0, 0.1, "unknown"),
        (29, 0, 0.1, "holds"),
        (29, 1, 0.1, "fails"),
        (0, 9, 0.1, "fails"),  # few, and yet enough to tell
        (9, 1, 0.01, "unknown"),
        (1000, 1, 0.01, "holds"),
    ],
)
def test_a_goal_needs_evidence(right: int, missed: int, rate: float | None, state: str) -> None:
    for outcome in ("sdc", "miscorrected"):
        records = [record_of("detected_consequential")] * right + [record_of(outcome)] * missed
        goal = _summary.goal([*records, record_of("masked")], "exact", rate, 0.95)
        assert (goal["state"], goal["holds"], goal["missed"]) == (state, state == "holds", missed)


def test_wrong_answers_are_counted_as_misses_everywhere() -> None:
    records = [record_of("detected_consequential")] * 60 + [record_of("miscorrected")] * 13
    row = _summary.row(records, "exact", 0.95)
    assert (row["consequential"], row["missed"], row["promised"]["missed"]) == (73, 13, 13)
    assert row["detection"]["rate"] == 60 / 73
    assert row["largest_missed"] == 2e-3
    assert _summary.rate_text(row).startswith("82.19% (")
    # each bar by its own size: 0.5 without protection, 0.002 of what was returned with it
    assert _summary.sizes(records, "exact") == [
        {"site": "weights", "decade": -3, "unprotected": 0, "returned": 13, "promised": 13},
        {"site": "weights", "decade": -1, "unprotected": 73, "returned": 0, "promised": 0},
    ]
    none = record_of("detected_consequential", rung="raise", error=3.4e38, damage=3.4e38)
    endless = record_of("sdc", error=3.4e38)
    assert _summary.unsized([none, endless], "exact") == {"unprotected": 1, "returned": 1, "promised": 1}


def test_at_some_sites_nothing_can_be_shown() -> None:
    campaign = layer(sites=["weights", "scale", "zero_point", "bias", "col_sums", "digits"], models=[faults.BitFlip()])
    plan = campaign.plan(180)
    assert set(plan.silent) == {"scale", "bias", "zero_point", "col_sums", "digits"} & set(campaign.spec.sites)
    assert "Nothing can be shown at " in str(plan)
    result = campaign.run(180)
    for row in result.document()["sites"]:
        assert (row["consequential"] == 0) == (row["site"] in plan.silent)
    assert result.table().count("none can be consequential") == len(plan.silent)
    assert product(sites=["weights"]).plan(5).silent == ()


# ---- invalid runs


def test_a_target_that_is_corrupted_already_is_refused() -> None:
    spec = product().spec
    faults.flip_weight_bit(spec.target, 3, 4, 6)
    with pytest.raises(faults.InvalidRun, match="before any fault was injected"):
        _worker.Worker(spec)


def test_a_protected_result_that_differs_without_a_fault_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    call = targets.ProductTarget.call
    monkeypatch.setattr(
        targets.ProductTarget, "call", lambda self, batch, check, limit: call(self, batch, check, limit) + (check == "exact")
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
    assert re.search(
        r"promises to see: 0 of \d+ consequential missed or wrong, rate below .* in \d+ calls without a fault", table_[-1]
    )
