"""What is computed twice takes another way the second time, so that a fault that sticks to a lane doesn't repeat itself.

Each second way gives the same results as the first on anything, and sees stuck faults, which strike both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from helpers.campaigns import layer, model, table
from helpers.sites import planned, product, visits
from sedq import QParams, _config, faults, quantize
from sedq._core import _dense, _dispatch
from sedq.faults._models import Change
from sedq.models import _stages

Array = NDArray[Any]
STUCK = 2**40  # visits


def edges(rng: np.random.Generator, size: int) -> Array:
    """Floats of any bits but NaN: halves, denormals, infinities and everything between."""
    x = rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    x[~np.isfinite(x)] = np.inf
    x[::3] = rng.integers(-600, 600, x[::3].size) / 2
    x[1::3] = rng.normal(size=x[1::3].size) * 10.0 ** rng.integers(-3, 9, x[1::3].size)
    x[:4] = 0.0, -0.0, np.inf, -np.inf
    return rng.permutation(x)


@pytest.mark.parametrize("zero_point", [0, 1, 77, 254, 255])
@pytest.mark.parametrize("scale", [1.0, 0.25, 3e-30, 0.037, 1e30])
def test_both_quantisations_agree_on_anything(
    zero_point: int, scale: float, kernels: _dispatch.Context, rng: np.random.Generator
) -> None:
    for width in (1, 7, 8, 15, 16, 17, 300):
        x = edges(rng, 20 * width).reshape(20, width)
        out, sums = np.empty(x.shape, np.uint8), np.empty(20, np.uint32)
        assert _dense.quantize_rows(kernels, x, scale, zero_point, out, True, 1, sums) is None
        np.testing.assert_array_equal(sums, out.sum(axis=1))
        np.testing.assert_array_equal(out, quantize(x, QParams(scale, zero_point)))


@pytest.mark.parametrize("features", [2, 3, 7, 18])
def test_both_interactions_agree_on_anything(features: int, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    for dim in (1, 15, 16, 17, 31, 48, 130):
        x = edges(rng, 4 * features * dim).reshape(4, features, dim)
        x[~np.isfinite(x)] = 0
        x[np.abs(x) > 1e15] = 1e-30
        out = np.empty((4, dim + features * (features - 1) // 2), np.uint8)
        assert _dense.interact_quantize(kernels, x, 0.37, 120, out, True, 1) is None


@pytest.mark.parametrize("output", ["int32", "uint8", "float32"])
@pytest.mark.parametrize("n", [1, 7, 16, 33, 70, 64, 129])
def test_a_stuck_lane_of_requantisation_is_detected(output: str, n: int, kernels: _dispatch.Context) -> None:
    call = product(output, 9, n)
    sound = call(check="off")
    struck = 0
    for element in range(16):
        for bit in (0, 3, 7):
            change = Change(0xFFFFFFFF, flip=1 << bit)
            with planned("epilogue", 0, element, change, STUCK):
                y = call(check="off")
            if y.tobytes() == sound.tobytes():
                continue
            with sedq.monitor() as m, planned("epilogue", 0, element, change, STUCK), pytest.raises(sedq.SoftErrorDetected):
                call(check="full", on_error="raise")
            assert "epilogue" in {e.kind for e in m.events}
            struck += 1
    assert struck >= 3


@pytest.mark.parametrize("bits", [8, 4, 2, 16, 32])
@pytest.mark.parametrize("dim", [1, 2, 7, 16, 33, 255, 256, 257, 300])
def test_both_accumulations_agree(bits: int, dim: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng([bits, dim])
    values = rng.normal(size=(60, dim)).astype(np.float32)
    values[0] = 0
    bag = sedq.EmbeddingBag.from_float(values, bits=bits)
    indices, offsets = rng.integers(0, 60, 200), np.array([0, 0, 1, 30, 200])
    for weights in (None, rng.normal(size=200).astype(np.float32)):
        for index in (indices, indices.astype(np.int32)):
            with sedq.monitor() as m:
                got = bag(index, offsets, weights, check="full", include_last_offset=True)
            assert m.detections == 0
            assert got.tobytes() == bag(index, offsets, weights, check="off", include_last_offset=True).tobytes()


def test_both_accumulations_agree_on_a_long_bag(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(60, 20)).astype(np.float32), mode="mean")
    indices = rng.integers(0, 60, 9000)
    with sedq.monitor() as m:
        bag(indices, np.array([0, 8500]), check="full")
    assert m.detections == 0


@pytest.mark.parametrize("bits", [8, 4, 2, 16, 32])
def test_a_stuck_lane_of_an_accumulation_is_detected(
    bits: int, kernels: _dispatch.Context, rng: np.random.Generator
) -> None:
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(60, 40)).astype(np.float32), bits=bits)
    indices = rng.integers(0, 60, (5, 8))
    sound = bag(indices, check="off")
    for element in range(40):
        change = Change(0xFFFFFFFF, flip=1 << 4)
        with planned("bag", 0, element, change, STUCK):
            assert bag(indices, check="off", num_threads=1).tobytes() != sound.tobytes()
        with planned("bag", 0, element, change, STUCK), pytest.raises(sedq.SoftErrorDetected, match="repeat"):
            bag(indices, check="full", on_error="raise", num_threads=1)


@pytest.mark.parametrize(("site", "features"), [("codes", 1), ("codes", 4), ("dots", 2), ("dots", 3), ("dots", 9)])
def test_a_stuck_lane_of_a_dense_operator_is_detected(site: str, features: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(features)
    x = rng.normal(size=(3, features, 20)).astype(np.float32)
    width = 20 + features * (features - 1) // 2

    def call(check: bool) -> tuple[Array, object]:
        codes = np.zeros((3, width), np.uint8)
        return codes, _dense.interact_quantize(_config.get_config().kernels, x, 0.1, 128, codes, check, 1)

    sound, _ = call(False)
    assert visits(site, lambda: call(True)) == visits(site, lambda: call(False)) == 3
    for element in range(width if site == "codes" else features * (features - 1) // 2):
        change = Change(0xFFFFFFFF, flip=1 << (6 if site == "codes" else 30))
        with planned(site, 0, element, change, STUCK):
            y, _ = call(False)
        assert (y != sound).any()
        with planned(site, 0, element, change, STUCK):
            _, found = call(True)
        assert found


@pytest.mark.parametrize(
    ("make", "site", "check"),
    [
        (layer, "codes", "exact"),
        (model, "codes", "exact"),
        (model, "interaction", "exact"),
        (table, "bag.accumulator", "full"),
        (layer, "requantised", "full"),
    ],
)
def test_no_stuck_fault_is_missed(make: Callable[..., faults.Campaign], site: str, check: str) -> None:
    """Where the same computation twice missed all of them."""
    campaign = make(sites=[site], models=[faults.BitFlip()], persistence=[True], check=check, rng=3, tolerance=0.0)
    outcomes = Counter(r["outcome"] for r in campaign.run(200).records)
    assert outcomes["sdc"] == outcomes["miscorrected"] == 0
    assert outcomes["detected_consequential"] >= 50


def test_both_sigmoids_agree() -> None:
    rng = np.random.default_rng(0)
    logits = np.concatenate([
        rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32),
        rng.normal(0, 8, 200_000).astype(np.float32),
        np.linspace(-110, 110, 100_001, dtype=np.float32),
        np.float32([0, -0.0, np.inf, -np.inf]),
    ])  # fmt: skip
    logits = logits[~np.isnan(logits)]
    probabilities = np.empty_like(logits)
    _stages.expit(logits, out=probabilities)
    assert _stages.agrees(logits, probabilities).all()
    for bit in range(4, 32):
        struck = (probabilities.view(np.uint32) ^ np.uint32(1 << bit)).view(np.float32)
        assert not _stages.agrees(logits, struck)[probabilities > 1e-30].any()


def test_a_stuck_exp_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sigmoid that is always wrong: computed twice alike it would agree with itself."""
    honest = _stages.expit

    def stuck(x: Array, out: Array | None = None) -> Array:
        return np.multiply(honest(x), np.float32(0.75), out=out)

    monkeypatch.setattr(_stages, "expit", stuck)
    logits = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    settings = _config.resolve("exact", "raise", None)
    with pytest.raises(sedq.SoftErrorDetected, match="repeat"):
        _stages.sigmoid(logits, logits[:, 0].view(np.uint32), settings)


@pytest.mark.parametrize("at", [0, 7, 39])
@pytest.mark.parametrize("which", ["min", "max"])
def test_the_range_of_dynamic_activations_is_found_twice(
    which: str, at: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """A struck minimum or maximum would choose another scale for all codes, which everything after it would agree with."""
    packed = sedq.pack_weights(rng.integers(-128, 128, (6, 8)).astype(np.int8), 0.01)
    x = rng.normal(size=(5, 8)).astype(np.float32)
    x.reshape(-1)[at] = -9 if which == "min" else 9
    expected = sedq.qlinear_dynamic(x, packed)
    empty, struck = np.empty, []

    class Struck(np.ndarray):
        """Two limits whose first writing is off."""

        def __setitem__(self, key: object, value: tuple[float, float]) -> None:
            wrong = (value[0] / 2, value[1]) if which == "min" else (value[0], value[1] / 2)
            super().__setitem__(key, value if struck else wrong)  # type: ignore[index]
            struck.append(key)

    def first_limits(shape: Any, *how: Any, **more: Any) -> np.ndarray:
        made = empty(shape, *how, **more)
        return made.view(Struck) if shape == 2 else made

    monkeypatch.setattr(np, "empty", first_limits)
    with sedq.monitor() as m:
        got = sedq.qlinear_dynamic(x, packed)
    np.testing.assert_array_equal(got, expected)
    assert (m.verdicts, m.events[0].kind) == ({"transient": 1}, "repeat")
    struck.clear()
    with sedq.monitor() as m:
        assert not np.array_equal(sedq.qlinear_dynamic(x, packed, check="off"), expected)
    assert m.detections == 0
