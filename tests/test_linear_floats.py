"""Float activations on their way into a product: quantised twice, and their codes summed for their reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import faults
from sedq._core import _dispatch
from sedq.commands._demo import build
from sedq.datasets import load_msweb
from sedq.linear import _products


@pytest.fixture
def layer(rng: np.random.Generator) -> sedq.QuantizedLinear:
    w = rng.normal(size=(20, 30)).astype(np.float32)
    made = sedq.QuantizedLinear.from_float(w, np.ones(20, np.float32), keep_source=True)
    return made.observe(rng.normal(size=(50, 30)).astype(np.float32)).freeze()


def strike_codes(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Flip a bit of the codes after they were summed."""
    sound, left = _products.quantize_activations, [times]

    def struck(*arguments: Any) -> Any:
        codes, sums = sound(*arguments)
        if left[0]:
            left[0] -= 1
            codes[2, 3] ^= 64
        return codes, sums

    monkeypatch.setattr(_products, "quantize_activations", struck)


CALLS: dict[str, Callable[[sedq.QuantizedLinear, np.ndarray, str], np.ndarray]] = {
    "layer": lambda layer, x, check: layer(x, check=check),
    "dynamic": lambda layer, x, check: sedq.qlinear_dynamic(x, layer.packed, check=check),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_struck_codes(
    kernels: _dispatch.Context, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, layer: sedq.QuantizedLinear,
    call: Callable[[sedq.QuantizedLinear, np.ndarray, str], np.ndarray],
) -> None:  # fmt: skip
    x = rng.normal(size=(7, 30)).astype(np.float32)
    expected = call(layer, x, "exact")
    for check in ("exact", "full"):
        with monkeypatch.context() as patch, sedq.monitor() as m:
            strike_codes(patch, 1)
            np.testing.assert_array_equal(call(layer, x, check), expected)
        assert [(e.kind, e.row, e.rung, e.verdict) for e in m.events] == [("input", 2, "replay", "transient")]
    with monkeypatch.context() as patch:
        strike_codes(patch, 1)
        assert not np.array_equal(call(layer, x, "off"), expected)
    strike_codes(monkeypatch, 9)
    with pytest.raises(sedq.SoftErrorDetected, match="persistent"):
        call(layer, x, "exact")


def smash(packed: sedq.PackedWeights) -> None:
    """More than the syndromes can tell apart."""
    for n in range(3):
        for k in range(3):
            faults.flip_weight_bit(packed, n, k, 6)


def test_weights_are_restored_from_the_floats(rng: np.random.Generator, layer: sedq.QuantizedLinear) -> None:
    x = rng.normal(size=(7, 30)).astype(np.float32)
    expected = layer(x)
    smash(layer.packed)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(layer(x), expected)
    assert {(e.rung, e.verdict, e.detail) for e in m.events} == {("heal", "memory", "panels: reloaded")}
    assert layer.packed.verify().ok
    assert layer.packed._source is not None
    layer.packed._source.args[0][0, 0] += 1  # the source changed too: nothing is taken from it
    smash(layer.packed)
    with pytest.raises(sedq.SoftErrorDetected, match="still corrupted: panels"):
        layer(x)


def test_weights_are_restored_from_the_file(tmp_path: Path) -> None:
    batch = load_msweb().heldout.batch(0, 32)
    build(load_msweb()).save(tmp_path / "model.npz")
    model = sedq.DLRM.load(tmp_path / "model.npz")
    request = (batch.dense, batch.indices, batch.offsets, True)
    expected = model(*request)
    smash(model.top[0].packed)
    np.testing.assert_array_equal(model(*request), expected)
    assert model.top[0].packed.verify().ok
    smash(model.top[0].packed)
    (tmp_path / "model.npz").unlink()
    with pytest.raises(sedq.SoftErrorDetected, match="still corrupted: panels"):
        model(*request)


def test_a_bag_longer_than_sums_can_hold() -> None:
    bag = sedq.EmbeddingBag.from_float(np.ones((2, 1), np.float32))
    with pytest.raises(ValueError, match="offsets: got a bag of 8388609 rows at position 0, expected at most 8388608"):
        bag(np.zeros(2**23 + 1, np.int32), [0])
