"""What the check of a product sees of its parameters, and of the sizes and pointers that are kept between calls."""

from __future__ import annotations

import numpy as np
import pytest

import sedq
from helpers.products import LEVELS, QPARAMS, bits_of, checked, flipped, operands, watched
from sedq import faults
from sedq._core import _dispatch, _gemm, _packing
from sedq.linear import _encoding


def linear_call(
    kernels: _dispatch.Context, packed: sedq.PackedWeights, epilogue: _packing.Epilogue, x: np.ndarray, level: int
) -> tuple[np.ndarray, set[str]]:
    """Output and kinds of findings of the compiled loop."""
    y = np.empty((len(x), packed.shape[0]), epilogue.dtype)
    found = _gemm.linear(kernels, packed._core, epilogue, x, y, level, 1)
    return y, {finding.kind.label for finding in found or ()}


@checked
@pytest.mark.parametrize("output", ["int32", "uint8", "float32"])
@pytest.mark.parametrize("zero_point", [0, -3])
def test_every_bit_of_the_parameters(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str, output: str, zero_point: int
) -> None:
    n = 18
    x, w = operands(rng, 2, n, 5)
    packed = sedq.pack_weights(w, rng.uniform(0.01, 0.02, n), zero_point, rng.normal(size=n))
    key = (0.02, 5, 0.1 if output == "uint8" else None, 128 if output == "uint8" else 0, False)
    epilogue = packed.integer_epilogue(5, cache=False) if output == "int32" else packed.epilogue(*key, cache=False)
    expected, found = linear_call(kernels, packed, epilogue, x, LEVELS[check])
    assert found == set()
    struck = [epilogue.col_term, epilogue.w_zp, epilogue.bias, epilogue.mult]
    struck = [a for a in struck if a is not None]
    assert len(struck) == (1 if output == "int32" else 3) + bool(zero_point)
    for a in struck:
        changed = 0
        for byte, bit in bits_of(a[:n]):
            with flipped(a, byte, bit):
                y, found = linear_call(kernels, packed, epilogue, x, 0)
                assert found == set()
                changed += not np.array_equal(y, expected, equal_nan=output == "float32")
                _, found = linear_call(kernels, packed, epilogue, x, LEVELS[check])
                assert found == {"parameters"}
        assert changed > n, "the flips matter"
    for byte, bit in bits_of(epilogue.digest):
        with flipped(epilogue.digest, byte, bit):
            assert linear_call(kernels, packed, epilogue, x, LEVELS[check])[1] == {"parameters"}


def state(core: _packing.PackedB | _packing.Epilogue) -> np.ndarray:
    """Bytes of both copies of what the loops keep between calls, (2, bytes), writeable."""
    return np.frombuffer(core, np.uint8).reshape(2, -1)


@checked
@pytest.mark.parametrize("output", ["int32", "uint8", "float32"])
@pytest.mark.parametrize("panels", [1, 2, 3, 4, 16, 17])
def test_every_bit_of_the_parameters_that_columns_share(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str, output: str, panels: int
) -> None:
    """Met once in each panel: modulo 2^32 a flip of bit 31 would cancel in 2 panels, of bit 28 in 16."""
    n = 64 * panels - (panels == 3) * 20
    x, w = operands(rng, 2, n, 5)
    packed = sedq.pack_weights(w, 0.01, 0, rng.normal(size=n))
    key = (0.02, 5, 0.1 if output == "uint8" else None, 128 if output == "uint8" else 0, output == "float32")
    epilogue = packed.integer_epilogue(5, cache=False) if output == "int32" else packed.epilogue(*key, cache=False)
    expected, found = linear_call(kernels, packed, epilogue, x, LEVELS[check])
    assert found == set()
    shared = state(epilogue)[:, _packing.SCALARS_AT : _packing.SCALARS_AT + 12]
    changed = 0
    for byte, bit in bits_of(shared[0]):
        shared[:, byte] ^= np.uint8(1 << bit)  # in both copies, so that only the loop can see it
        y, found = linear_call(kernels, packed, epilogue, x, 0)
        assert found == set()
        changed += not np.array_equal(y, expected, equal_nan=output == "float32")
        _, found = linear_call(kernels, packed, epilogue, x, LEVELS[check])
        assert "parameters" in found
        assert not _encoding.intact(epilogue)
        shared[:, byte] ^= np.uint8(1 << bit)
    assert changed >= {"int32": 0, "uint8": 20, "float32": 5}[output], "the flips matter"
    assert _encoding.intact(epilogue)


@checked
@pytest.mark.parametrize("bit", [30, 31])
def test_shared_parameters_are_derived_again(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str, bit: int
) -> None:
    x, w = operands(rng, 9, 1024, 30)
    packed = sedq.pack_weights(w, 0.01, 7, rng.normal(size=1024))
    clamped = QPARAMS | {"y_scale": 0.02}
    expected = sedq.qlinear(x, packed, **clamped)
    (epilogue,) = packed._epilogues.values()
    state(epilogue)[:, _packing.SCALARS_AT + 4 + bit // 8] ^= np.uint8(1 << bit % 8)  # high
    assert not np.array_equal(sedq.qlinear(x, packed, **clamped, check="off"), expected)
    y, events = watched(lambda: sedq.qlinear(x, packed, **clamped, check=check))
    np.testing.assert_array_equal(y, expected)
    assert "parameters" in {e.kind for e in events}
    assert {(e.verdict, e.detail) for e in events} == {("memory", "parameters derived again")}


@checked
@pytest.mark.parametrize("of", ["weights", "columns"])
def test_every_bit_of_what_is_kept_between_calls(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str, of: str
) -> None:
    """Pointers and sizes: the loops would read elsewhere. A copy restores them before they are used."""
    x, w = operands(rng, 2, 18, 5)
    packed = sedq.pack_weights(w, 0.01, 7, rng.normal(size=18))
    expected = sedq.qlinear(x, packed, **QPARAMS)
    (epilogue,) = packed._epilogues.values()
    kept = state(packed._core if of == "weights" else epilogue)
    sound = kept.copy()
    assert (sound[0] == sound[1]).all()
    for copy in range(2):
        for byte, bit in bits_of(kept[copy]):
            kept[copy, byte] ^= np.uint8(1 << bit)
            y, events = watched(lambda: sedq.qlinear(x, packed, **QPARAMS, check=check))
            np.testing.assert_array_equal(y, expected)
            assert "parameters" in {e.kind for e in events}
            np.testing.assert_array_equal(kept, sound)


@checked
def test_what_no_copy_restores_is_not_used(kernels: _dispatch.Context, rng: np.random.Generator, check: str) -> None:
    x, w = operands(rng, 2, 18, 5)
    packed = sedq.pack_weights(w)
    sedq.matmul_integer(x, packed)
    kept = state(packed._core)
    kept[0, 7] ^= 1  # the pointer to the weights
    kept[1, 6] ^= 1
    with pytest.raises(sedq.SoftErrorDetected, match="parameters"):
        sedq.matmul_integer(x, packed, check=check)


@checked
@pytest.mark.parametrize("name", ["col_term", "w_zp", "bias", "mult", "digest"])
def test_corrupted_parameters_are_derived_again(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str, name: str
) -> None:
    x, w = operands(rng, 9, 100, 30)
    packed = sedq.pack_weights(w, 0.01, 7, rng.normal(size=100))
    expected = sedq.qlinear(x, packed, **QPARAMS)
    (epilogue,) = packed._epilogues.values()
    faults.flip_bit(getattr(epilogue, name), 3, 6)
    silent, events = watched(lambda: sedq.qlinear(x, packed, **QPARAMS, check="off"))
    assert events == []
    assert np.array_equal(silent, expected) == (name == "digest")
    y, events = watched(lambda: sedq.qlinear(x, packed, **QPARAMS, check=check))
    np.testing.assert_array_equal(y, expected)
    assert {(e.kind, e.rung, e.verdict, e.detail) for e in events} == {
        ("parameters", "heal", "memory", "parameters derived again")
    }
    assert watched(lambda: sedq.qlinear(x, packed, **QPARAMS, check=check))[1] == []
