"""Trials that may crash or hang, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from helpers.campaigns import table
from sedq import faults
from sedq.faults._child import Child


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

calls = (0, 50.0), (1, 50.0), (2, 0.3), (0, 50.0)
print([_child._forked(Worker(), trial, "off", timeout) for trial, timeout in calls])
print(repr(_child._forked(Worker(), 3, "off", 50.0)))
"""


def test_a_fork_answers_crashes_or_hangs(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", FORKS], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "['off', None, 'hang', 'off']\nKeyError(3)\n", ran.stderr
