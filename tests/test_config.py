"""`config_context` and `get_config`: defaults, nesting, threads and tasks, errors."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import _config, faults
from sedq._core import _dispatch, _gemm

X = np.ones((5, 4), np.uint8)
PACKED = sedq.pack_weights(np.ones((3, 4), np.int8))
DEFAULT = ("exact", "recover", None)


def current() -> tuple[str, str, int | None]:
    s = sedq.get_config()
    return s.check, s.on_error, s.num_threads


def test_defaults() -> None:
    assert current() == DEFAULT
    assert isinstance(sedq.get_config(), sedq.Settings)
    assert sedq.get_config().kernels is _dispatch.default


def test_contexts_nest_and_end() -> None:
    with sedq.config_context(check="off"):
        assert current() == ("off", "recover", None)
        with sedq.config_context(on_error="warn", num_threads=2):
            assert current() == ("off", "warn", 2)
            with sedq.config_context():
                assert current() == ("off", "warn", 2)
            with sedq.config_context(check="full", on_error="raise", num_threads=1):
                assert current() == ("full", "raise", 1)
            assert current() == ("off", "warn", 2)
        assert current() == ("off", "recover", None)
    assert current() == DEFAULT


def test_a_context_ends_with_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), sedq.config_context(check="off"):
        raise ZeroDivisionError
    assert current() == DEFAULT


def test_a_context_decorates() -> None:
    assert sedq.config_context(check="off")(current)() == ("off", "recover", None)
    assert current() == DEFAULT


@pytest.mark.parametrize("value", ["off", "exact", "full", "mod127", "digest", "threshold"])
def test_every_level_can_be_set(value: str) -> None:
    with sedq.config_context(check=value):
        assert current()[0] == value


@pytest.mark.parametrize(
    "settings",
    [{"check": c} for c in ("", "Exact", "on", 1, True, ["off"], b"off")]
    + [{"on_error": e} for e in ("", "ignore", 0, ("raise",))]
    + [{"num_threads": n} for n in (0, -1, 1.0, "2", True, False, np.float64(1), [1])],
    ids=str,
)
def test_other_values_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}: got") as raised, sedq.config_context(**settings):
        pass
    assert repr(value) in str(raised.value)
    assert current() == DEFAULT
    with pytest.raises(ValueError, match=f"{name}: got"):
        sedq.matmul_integer(X, PACKED, **settings)


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2)])
def test_integers_of_numpy_are_integers(value: Any) -> None:
    with sedq.config_context(num_threads=value):
        assert current()[2] == 2


@pytest.mark.parametrize("value", [2**31, 2**63, 2**64])
def test_more_threads_than_a_machine_can_count(value: int) -> None:
    with pytest.raises(ValueError, match="num_threads"):
        sedq.matmul_integer(X, PACKED, num_threads=value)
    with pytest.raises(ValueError, match="num_threads"), sedq.config_context(num_threads=value):
        sedq.matmul_integer(X, PACKED)


def test_calls_take_the_settings_and_arguments_outrank_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    honest = _gemm.linear

    def linear(*arguments: Any) -> Any:
        seen.append((arguments[0].name, arguments[5], arguments[6]))
        return honest(*arguments)

    monkeypatch.setattr(_gemm, "linear", linear)
    sedq.matmul_integer(X, PACKED)
    with sedq.config_context(check="off", num_threads=1), _config.use_kernels(_dispatch.get("reference")):
        sedq.matmul_integer(X, PACKED)
        sedq.matmul_integer(X, PACKED, check="full")
        sedq.matmul_integer(X, PACKED, num_threads=2)
    name = _dispatch.default.name
    assert seen == [(name, 1, 0), ("reference", 0, 1), ("reference", 2, 1), ("reference", 0, 2)]


def test_on_error_is_obeyed() -> None:
    def struck(**settings: Any) -> Any:
        with faults.accumulator_fault(flip=1 << 20):
            return sedq.matmul_integer(X, PACKED, **settings)

    with sedq.config_context(on_error="raise"):
        with pytest.raises(sedq.SoftErrorDetected):
            struck()
        np.testing.assert_array_equal(struck(on_error="recover"), np.full((5, 3), 4))
    with sedq.config_context(on_error="warn"), pytest.warns(sedq.SoftErrorWarning):
        assert struck()[0, 0] != 4


@pytest.mark.parametrize("level", ["mod127", "digest", "threshold"])
def test_a_level_that_an_operator_lacks_raises_at_the_call(level: str) -> None:
    bag = sedq.EmbeddingBag.from_float(np.ones((3, 4)))
    with sedq.config_context(check=level):
        with pytest.raises(ValueError, match=f"check: got '{level}'"):
            sedq.matmul_integer(X, PACKED)
        if level == "mod127":
            with pytest.raises(ValueError, match="check: got 'mod127'"):
                bag([0], [0])
        else:
            assert bag([0], [0]).shape == (1, 4)


def test_settings_belong_to_their_thread() -> None:
    barrier = threading.Barrier(2)

    def work(level: str) -> str:
        with sedq.config_context(check=level):
            barrier.wait(30)
            return current()[0]

    with sedq.config_context(check="off"), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, ["full", "digest"])) == ["full", "digest"]
        assert pool.submit(current).result(30) == DEFAULT
        assert current()[0] == "off"


def test_settings_belong_to_their_task() -> None:
    async def work(level: str) -> list[str]:
        with sedq.config_context(check=level):
            seen = [current()[0]]
            await asyncio.sleep(0)
            return [*seen, current()[0]]

    async def main() -> list[list[str]]:
        return await asyncio.gather(work("full"), work("off"))

    assert asyncio.run(main()) == [["full"] * 2, ["off"] * 2]
    assert current() == DEFAULT


def test_kernels_stay_through_a_context() -> None:
    kernels = _dispatch.get("reference")
    with _config.use_kernels(kernels), sedq.config_context(check="off"):
        assert sedq.get_config() == sedq.Settings("off", "recover", None, kernels)
    assert sedq.get_config().kernels is _dispatch.default


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_who_set_something_in_its_parent() -> None:
    with _config._lock:  # as another thread might hold it
        child = os.fork()
        if not child:
            signal.alarm(20)
            sedq.set_config(check="off")
            os._exit(sedq.get_config().check == "off")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
