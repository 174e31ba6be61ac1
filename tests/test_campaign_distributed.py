"""A campaign on a cluster: worker processes of dask.distributed on this machine, one of them killed in mid-run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sedq
from sedq import faults

pytestmark = pytest.mark.any_isa

TRIALS = 400


def campaign() -> faults.Campaign:
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (18, 33), dtype=np.int8), 0.1, 3)
    return faults.Campaign(packed, [rng.integers(1, 256, (3, 33), dtype=np.uint8) for _ in range(4)])


# A program of its own, so that workers can import its main module, and whatever hangs is killed with it.
PROGRAM = """
import json, os, signal, sys, time

import dask
from distributed import Client, LocalCluster

sys.path.insert(0, {folder!r})
from test_campaign_distributed import TRIALS, campaign

LOG = {log!r}


def main():
    killed, lost = [], []

    def kill_one(done, trials):  # not gently, after the first chunks
        if done >= 30 and not killed:
            killed.append(before[0])
            lost.append(trials - done)
            os.kill(before[0], signal.SIGKILL)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        before = sorted(client.run(os.getpid).values())
        hosts = [w["host"] for w in client.scheduler_info()["workers"].values()]
        result = campaign().run(TRIALS, client.get_executor(), resume=LOG, chunk=8, progress=kill_one)
        lines = open(LOG).read().count("\\n")
        until = time.monotonic() + 60
        while len(after := sorted(client.run(os.getpid).values())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        again = campaign().run(TRIALS, client.get_executor(), resume=LOG)
    print(json.dumps(dict(
        before=before, killed=killed, left=lost, after=after, hosts=hosts, lines=lines, records=result.records,
        same=again.records == result.records, lines_again=open(LOG).read().count("\\n"),
    )))


if __name__ == "__main__":
    main()
"""


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_worker_of_a_cluster_is_killed_and_nothing_lost_or_counted_twice(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    log, program = tmp_path / "run.jsonl", tmp_path / "program.py"
    program.write_text(PROGRAM.format(folder=str(Path(__file__).parent), log=str(log)))
    with (tmp_path / "err").open("w") as err:
        ran = subprocess.Popen(
            [sys.executable, "-P", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, start_new_session=True
        )
        try:
            out, _ = ran.communicate(timeout=150)
        finally:
            if ran.poll() is None:
                os.killpg(ran.pid, signal.SIGKILL)
                ran.wait()
    assert ran.returncode == 0, (tmp_path / "err").read_text()
    found = json.loads(out)
    assert len({*found["before"], os.getpid(), ran.pid}) == 4
    assert set(found["hosts"]) == {"127.0.0.1"}
    assert found["killed"] == found["before"][:1]
    assert found["left"][0] > TRIALS // 2, "the worker was killed in mid-run"
    assert found["before"][0] not in found["after"]
    assert len(found["after"]) == 2  # the cluster has started another
    assert found["records"] == campaign().run(TRIALS).records
    lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    assert sorted(r["trial"] for r in lines) == list(range(TRIALS))
    assert found["lines"] == found["lines_again"] == 1 + TRIALS
    assert found["same"]
    assert all(map(is_gone, found["before"] + found["after"]))
