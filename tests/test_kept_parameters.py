"""Scales, zero points and flags that layers and models keep in Python objects: every struck bit is found and undone."""

from __future__ import annotations

import copy
import ctypes
import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import QParams

Array = NDArray[Any]
FLOAT_AT = 16  # where the 8 bytes of a float lie in its object
BYTES_AT = bytes.__basicsize__ - 1
INT_AT = int.__basicsize__
RNG = np.random.default_rng(5)
W, BIAS = RNG.normal(size=(5, 7)).astype(np.float32), RNG.normal(size=5).astype(np.float32)
X = RNG.normal(size=(3, 7)).astype(np.float32)
LEVELS = ("exact", "full")
DENSE, INDICES = RNG.normal(size=(4, 3)).astype(np.float32), [RNG.integers(5, size=(4, 2))]


def layer(relu: bool = False) -> sedq.QuantizedLinear:
    return sedq.QuantizedLinear.from_float(W, BIAS, relu=relu).observe(X).freeze()


def model() -> sedq.DLRM:
    rng = np.random.default_rng(6)

    def part(n: int, k: int) -> tuple[Array, Array]:
        return rng.normal(size=(n, k)).astype(np.float32), rng.normal(size=n).astype(np.float32)

    made = sedq.DLRM([part(6, 3), part(4, 6)], [rng.normal(size=(5, 4)).astype(np.float32)], [part(5, 5), part(1, 5)])
    return made.quantize((DENSE, INDICES, None))


def codes(made: sedq.QuantizedLinear) -> Array:
    assert made.input_qparams is not None
    return sedq.quantize(X, made.input_qparams)


def flip_in_place(value: object, at: int, bit: int) -> None:
    """Flip a bit of the memory of a Python object."""
    byte = ctypes.c_ubyte.from_address(id(value) + at + bit // 8)
    byte.value ^= 1 << bit % 8


def flip_scale_in_place(params: QParams, bit: int) -> None:
    flip_in_place(params.scale, FLOAT_AT, bit)


def flip_scale(params: QParams, bit: int) -> None:
    (number,) = struct.unpack("<Q", struct.pack("<d", params.scale))
    object.__setattr__(params, "scale", struct.unpack("<d", struct.pack("<Q", number ^ 1 << bit))[0])


def flip_zero_point(params: QParams, bit: int) -> None:
    object.__setattr__(params, "zero_point", params.zero_point ^ 1 << bit)


STRIKES: dict[str, tuple[Callable[[QParams, int], None], int]] = {
    "scale in place": (flip_scale_in_place, 64),
    "scale": (flip_scale, 64),
    "zero point": (flip_zero_point, 64),
}
strikes = pytest.mark.parametrize("strike", STRIKES)


def assert_healed(m: sedq.Monitor, operator: str, detail: str) -> None:
    assert [(e.operator, e.kind, e.rung, e.verdict, e.detail) for e in m.events] == [
        (operator, "parameters", "heal", "memory", detail)
    ]


@strikes
@pytest.mark.parametrize("check", LEVELS)
@pytest.mark.parametrize("side", ["input_qparams", "output_qparams"])
def test_every_bit_of_a_layer_is_healed(side: str, check: str, strike: str) -> None:
    made = layer()
    x = codes(made)
    want, params = made(x), getattr(made, side)
    flip, bits = STRIKES[strike]
    for bit in range(bits):
        before = copy.deepcopy(params)
        params.__init__(float(repr(params.scale)), params.zero_point)  # an object of its own
        flip(params, bit)
        assert params != before
        with sedq.monitor() as m:
            np.testing.assert_array_equal(made(x, check=check), want)
        assert_healed(m, "qlinear", f"{side}: values")
        assert params == before
        with sedq.monitor() as m:
            np.testing.assert_array_equal(made(x, check=check), want)
        assert m.detections == 0


@strikes
@pytest.mark.parametrize("check", LEVELS)
def test_float_input_is_quantised_with_healed_parameters(check: str, strike: str) -> None:
    made = layer()
    want = made(X)
    flip, bits = STRIKES[strike]
    for bit in range(bits):
        flip(made.input_qparams, bit)
        with sedq.monitor() as m:
            np.testing.assert_array_equal(made(X, check=check), want)
        assert_healed(m, "qlinear", "input_qparams: values")


@strikes
@pytest.mark.parametrize("check", LEVELS)
@pytest.mark.parametrize(("part", "number", "operator"), [
    ("bottom", 0, "quantize"), ("bottom", 1, "bottom.0"), ("top", 0, "interaction"), ("top", 1, "top.0"),
])  # fmt: skip
def test_every_bit_of_a_model_is_healed(part: str, number: int, operator: str, check: str, strike: str) -> None:
    made = model()
    want = made(DENSE, INDICES)
    flip, bits = STRIKES[strike]
    for bit in range(0, bits, 3):
        flip(getattr(made, part)[number].input_qparams, bit)
        with sedq.monitor() as m:
            np.testing.assert_array_equal(made(DENSE, INDICES, check=check), want)
        assert_healed(m, operator, f"{'output' if number else 'input'}_qparams: values")


def test_without_checks_a_struck_scale_changes_the_output() -> None:
    made = layer()
    x = codes(made)
    want = made(x)
    flip_scale_in_place(made.input_qparams, 51)
    with sedq.monitor() as m:
        assert not np.array_equal(made(x, check="off"), want)
    assert m.detections == 0
    np.testing.assert_array_equal(made(x), want)


def test_level_mod127() -> None:
    packed = sedq.pack_weights(np.int8([[1, 2], [3, 4]]), encode=("mod127",))
    made = sedq.QuantizedLinear(packed, QParams(float("0.5"), 10), QParams(float("2.5"), 1))
    x = np.uint8([[10, 14]])
    want = made(x, check="mod127")
    flip_scale_in_place(made.input_qparams, 51)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(made(x, check="mod127"), want)
    assert_healed(m, "qlinear", "input_qparams: values")


@pytest.mark.parametrize("relu", [False, True])
def test_the_switch_of_a_layer(relu: bool) -> None:
    made = layer(relu)
    want = made(X)
    for struck in (not relu, None, 2.0, object()):
        made._relu = struck  # type: ignore[assignment]
        with sedq.monitor() as m:
            np.testing.assert_array_equal(made(X), want)
        assert_healed(m, "qlinear", "relu: values")
        assert made.relu is relu
    made.relu = not relu  # which a user may
    with sedq.monitor() as m:
        assert not np.array_equal(made(X), want)
    assert m.detections == 0


def test_every_bit_of_the_sealed_copy_is_renewed() -> None:
    made = layer()
    x = codes(made)
    want, params = made(x), made.input_qparams
    assert params is not None
    for bit in range(8 * len(params._sealed)):
        right = params._sealed
        object.__setattr__(params, "_sealed", bytes(bytearray(right)))  # bytes of its own
        flip_in_place(params._sealed, BYTES_AT, bit)
        assert params._sealed != right
        with sedq.monitor() as m:
            np.testing.assert_array_equal(made(x), want)
        assert_healed(m, "qlinear", "input_qparams: sealed copy")
        assert params._sealed == right
    for bit in range(32):
        object.__setattr__(params, "_sealed_crc", params._sealed_crc ^ 1 << bit)
        with sedq.monitor() as m:
            np.testing.assert_array_equal(made(x), want)
        assert_healed(m, "qlinear", "input_qparams: sealed copy")
        assert params._is_intact()


def test_a_value_is_never_replaced_by_a_struck_copy() -> None:
    made = layer()
    params = made.input_qparams
    assert params is not None
    flip_scale(params, 3)
    object.__setattr__(params, "_sealed", params._sealed[:-1] + b"9")
    struck = copy.copy(params)
    for _ in range(2):
        with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match="still corrupted: input_qparams") as caught:
            made(X)
        assert [(e.rung, e.verdict, e.kind) for e in m.events] == [("raise", "memory", "parameters")]
        assert caught.value.events == tuple(m.events)
        assert params == struck
    with pytest.raises(sedq.SoftErrorDetected, match="not saved"):
        made.require_intact("not saved")


def test_values_that_stay_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer()
    flip_scale(made.input_qparams, 3)
    monkeypatch.setattr(QParams, "_set_values", lambda self, values: None)
    with pytest.raises(sedq.SoftErrorDetected, match="still corrupted: input_qparams"):
        made(X)


def test_on_request_a_struck_scale_raises_or_warns() -> None:
    made = layer()
    x = codes(made)
    want = made(x)
    flip_scale(made.input_qparams, 51)
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match="input_qparams"):
        made(x, on_error="raise")
    assert [(e.rung, e.verdict) for e in m.events] == [("raise", "unresolved")]
    with sedq.monitor() as m, pytest.warns(sedq.SoftErrorWarning, match="input_qparams") as caught:
        assert not np.array_equal(made(x, on_error="warn"), want)
    assert [(e.rung, e.verdict) for e in m.events] == [("none", "unresolved")]
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(made(x), want)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_of_struck_parameters_is_struck_too(copied: Callable[[Any], Any]) -> None:
    params = QParams(0.5, 3)
    assert copied(params)._is_intact()
    flip_scale(params, 51)
    again = copied(params)
    assert not again._is_intact()
    assert again._restore() == "values"
    assert again == QParams(0.5, 3)


@pytest.mark.parametrize("name", ["scale", "zero_point"])
def test_parameters_per_channel(name: str) -> None:
    right = QParams([0.5, 0.25], [3, -4], "int8")
    params = copy.deepcopy(right)
    getattr(params, name).view(np.uint8)[5] ^= 16
    assert not params._is_intact()
    assert params._restore() == "values"
    assert params == right
    assert getattr(params, name).dtype == getattr(right, name).dtype
    getattr(params, name)[0] = 1  # as before, it is an array that can be written


@pytest.mark.parametrize("value", [None, "1", 10**40, object(), np.float64(0.5), [0.5], 0.5 + 0j])
@pytest.mark.parametrize("name", ["scale", "zero_point", "dtype"])
def test_attributes_that_became_another_type(name: str, value: Any) -> None:
    params = QParams(0.25, 3)
    object.__setattr__(params, name, value)
    assert params._restore() == "values"
    assert params == QParams(0.25, 3)
    assert (type(params.scale), type(params.zero_point)) == (float, int)


def test_a_struck_scale_is_not_saved(tmp_path: Any) -> None:
    made = model()
    want = made(DENSE, INDICES)
    made.save(tmp_path / "sound")
    flip_scale(made.top[1].input_qparams, 51)
    made.bottom[0]._relu = False
    with sedq.monitor() as m:
        made.save(tmp_path / "healed")
    assert {(e.operator, e.kind, e.rung) for e in m.events} == {("weights", "parameters", "heal")}
    assert m.detections == 2
    assert (tmp_path / "healed").read_bytes() == (tmp_path / "sound").read_bytes()
    np.testing.assert_array_equal(sedq.DLRM.load(tmp_path / "healed")(DENSE, INDICES), want)
    params = made.top[1].input_qparams
    flip_scale(params, 51)
    object.__setattr__(params, "_sealed", b"")
    with pytest.raises(sedq.SoftErrorDetected, match=r"top\.0: .*not saved"):
        made.save(tmp_path / "healed")
