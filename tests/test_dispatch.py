"""Which kernels are chosen, what `SEDQ_ISA` and the settings of OpenMP do, and what the compiled modules tell."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import sedq
from sedq._core import _dispatch, _faultkernels

openmp_only = pytest.mark.skipif(not _dispatch.has_openmp(), reason="built without OpenMP")
SCORES = """
import numpy as np, sedq
from sedq.commands import _demo
from sedq.datasets import load_msweb
r = load_msweb().heldout.batch(0, 50)
print(sedq.get_config().kernels.name)
print(_demo.build(load_msweb())(r.dense, r.indices, r.offsets, True, check="full").tobytes().hex())
"""
THREADS = "from sedq._core import _dispatch; print(_dispatch.max_threads())"


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


# ---- instruction sets


def test_the_best_available_kernels_are_chosen() -> None:
    known, available = _dispatch.known(), _dispatch.available()
    assert known[0] == "reference"
    assert set(available) == set(_dispatch.built()) & set(_dispatch.supported())
    for names in (_dispatch.built(), _dispatch.supported(), available):
        assert names[0] == "reference"
        assert names == [name for name in known if name in names]
    if "SEDQ_ISA" not in os.environ:
        assert _dispatch.default.name == [name for name in available if name not in _dispatch.emulated()][-1]


def test_what_the_system_says_of_the_cpu_agrees() -> None:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next(line.split() for line in file if line.startswith("flags"))
    except (OSError, StopIteration):
        pytest.skip("no list of CPU flags here")
    for name, flag in {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx2": "avx2"}.items():
        if name in _dispatch.known() and name not in _dispatch.emulated():
            assert (name in _dispatch.supported()) == (flag in flags), name


@pytest.mark.parametrize("name", _dispatch.available())
def test_contexts(name: str) -> None:
    context = _dispatch.get(name)
    assert (context.name, context.hooked, repr(context)) == (name, False, f"<kernels {name}>")
    assert 1 <= context.mr <= 8
    assert pickle.loads(pickle.dumps(context)).name == name
    hooked = _faultkernels.hooked(name)
    assert (hooked.name, hooked.hooked, repr(hooked)) == (name, True, f"<kernels {name} with fault hook>")
    assert hooked.mr == context.mr


@pytest.mark.parametrize("name", ["", "AVX2", "reference ", "sse2", "\0", None, 1, b"reference"])
def test_other_names_are_refused(name: Any) -> None:
    for get in (_dispatch.get, _faultkernels.hooked):
        with pytest.raises((ValueError, TypeError)) as raised:
            get(name)
        if isinstance(name, str):
            assert repr(name) in str(raised.value)
            assert ", ".join(_dispatch.built()) in str(raised.value)


def test_sedq_isa_chooses_and_scores_are_the_same() -> None:
    said = {}
    for name in _dispatch.available():
        ran = python(SCORES, SEDQ_ISA=name)
        assert ran.returncode == 0, ran.stderr
        chosen, said[name] = ran.stdout.split()
        assert chosen == name
    assert len(set(said.values())) == 1
    assert len(said["reference"]) == 50 * 4 * 2


@pytest.mark.parametrize("name", ["", "AVX512VNNI", "sse2", "reference,avx2", " "])
def test_sedq_isa_that_is_not_there_is_an_error(name: str) -> None:
    ran = python("import sedq", SEDQ_ISA=name)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"ValueError: environment variable SEDQ_ISA: instruction set {name!r} is not available: built ")
    assert ", ".join(_dispatch.available()) in last


# ---- threads


def test_max_threads_is_positive_and_1_without_openmp() -> None:
    assert _dispatch.max_threads() >= 1
    assert _dispatch.has_openmp() or _dispatch.max_threads() == 1
    assert sedq._info.versions()["openmp"] is _dispatch.has_openmp()


@openmp_only
@pytest.mark.parametrize("number", [1, 3])
def test_omp_num_threads_is_honoured(number: int) -> None:
    ran = python(THREADS, OMP_NUM_THREADS=str(number))
    assert (ran.stdout, ran.stderr) == (f"{number}\n", "")


@openmp_only
def test_threadpoolctl_is_honoured() -> None:
    assert any(library["user_api"] == "openmp" for library in threadpool_info())
    before = _dispatch.max_threads()
    for number in (1, 3):
        with threadpool_limits(limits=number, user_api="openmp"):
            assert _dispatch.max_threads() == number
            assert sedq._info.versions()["threads"] == number
    assert _dispatch.max_threads() == before


@pytest.mark.parametrize(("asked", "work", "most"), [(0, 0, 1), (2, 0, 1), (1, 10**9, 1), (3, 10**9, 3), (2, 10**18, 2)])
def test_threads_follow_the_work(asked: int, work: int, most: int) -> None:
    assert _dispatch.threads_for(asked, work) == (most if _dispatch.has_openmp() else 1)


def test_more_threads_than_any_machine_has_are_not_started() -> None:
    # OpenMP ends the process when the system refuses it a thread
    assert _dispatch.threads_for(65_536, 2**62) <= 4096


def test_current_cpu() -> None:
    cpus = {_dispatch.current_cpu() for _ in range(100)}
    if hasattr(os, "sched_getaffinity"):
        assert cpus <= os.sched_getaffinity(0)
    else:
        assert all(cpu >= -1 for cpu in cpus)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads can't be pinned here")
def test_current_cpu_is_that_of_the_thread() -> None:
    def pinned(cpu: int) -> int:
        os.sched_setaffinity(threading.get_native_id(), {cpu})
        return _dispatch.current_cpu()

    cpus = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(1) as pool:
        assert [pool.submit(pinned, cpu).result(30) for cpu in cpus] == cpus
