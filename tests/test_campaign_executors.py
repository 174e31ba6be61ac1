"""Campaigns: trials are the same in any order, whoever runs them and whoever is killed or lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.campaigns import TRIALS, Make, everywhere, model, product

pytestmark = pytest.mark.any_isa


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
from helpers import campaigns


def kill_workers(done, trials):
    # that is before the last chunks were given to it, however late this is called: it has 64 at a time
    for pid in list(executor._processes):
        with contextlib.suppress(ProcessLookupError):  # the pool ends the others when it misses one
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        campaigns.product().run({trials}, executor, resume={log!r}, chunk=2, progress={progress})
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
