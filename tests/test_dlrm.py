"""The DLRM without faults: float forward, quantised scores, forms of requests, counts of checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

import sedq
from helpers import oracles
from sedq._core import _dispatch
from sedq.commands import _demo
from sedq.datasets import MSWeb, load_msweb
from sedq.quantization import quantize

Array = NDArray[Any]
Request = tuple[Array, list[Array], list[Array]]
ROWS = (5, 11)
DIM, DENSE = 4, 3


def arrays(
    rng: np.random.Generator, rows: Sequence[int] = ROWS, bottom: Sequence[int] = (6, DIM), top: Sequence[int] = (7, 1)
) -> tuple[list[tuple[Array, Array]], list[Array], list[tuple[Array, Array]]]:
    """Random float arrays of a model over DENSE features."""

    def mlp(inputs: int, widths: Sequence[int]) -> list[tuple[Array, Array]]:
        shapes = zip(widths, [inputs, *widths], strict=False)
        return [(floats(rng, n, k) / np.float32(np.sqrt(k)), floats(rng, n)) for n, k in shapes]

    dim = bottom[-1]
    tables = [floats(rng, r, dim) for r in rows]
    return mlp(DENSE, bottom), tables, mlp(dim + len(rows) * (len(rows) + 1) // 2, top)


def floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def request(rng: np.random.Generator, batch: int, rows: Sequence[int] = ROWS, longest: int = 4) -> Request:
    """Random requests with the last offsets; some bags are empty."""
    offsets = [np.append(0, np.cumsum(rng.integers(longest + 1, size=batch))) for _ in rows]
    return floats(rng, batch, DENSE), [rng.integers(r, size=o[-1]) for r, o in zip(rows, offsets, strict=True)], offsets


def quantized(rng: np.random.Generator, modes: str | Sequence[str] = "sum", **shapes: Any) -> sedq.DLRM:
    return sedq.DLRM(*arrays(rng, **shapes), modes).quantize(request(rng, 200, shapes.get("rows", ROWS)), True)


def naive_mlp(x: Array, layers: Sequence[tuple[Array, Array]]) -> Array:
    for i, (w, b) in enumerate(layers):
        x = np.array([sum(float(w[n, k]) * x[k] for k in range(len(x))) + float(b[n]) for n in range(len(w))])
        if i + 1 < len(layers):
            x = np.where(x > 0, x, 0.0)
    return x


def naive(
    bottom: Sequence[tuple[Array, Array]], tables: Sequence[Array], top: Sequence[tuple[Array, Array]],
    modes: Sequence[str], r: Request,
) -> Array:  # fmt: skip
    """Float forward, request by request in float64."""
    dense, indices, offsets = r
    scores = []
    for i, x in enumerate(dense):
        vectors = [naive_mlp(x.astype(np.float64), bottom)]
        for table, mode, index, starts in zip(tables, modes, indices, offsets, strict=True):
            bag = [table[j].astype(np.float64) for j in index[starts[i] : starts[i + 1]]]
            pooled = sum(bag, np.zeros(table.shape[1]))
            vectors.append(pooled / len(bag) if mode == "mean" and bag else pooled)
        dots = [vectors[a] @ vectors[b] for a in range(len(vectors)) for b in range(a)]
        scores.append(1 / (1 + np.exp(-naive_mlp(np.concatenate([vectors[0], dots]), top)[0])))
    return np.array(scores)


def oracle(model: sedq.DLRM, r: Request) -> Array:
    """Quantised forward by the NumPy oracles, stage by stage."""
    dense, indices, offsets = r

    def mlp(x: Array, layers: Sequence[sedq.QuantizedLinear]) -> Array:
        for i, layer in enumerate(layers):
            p, last = layer.packed, i + 1 == len(layers)
            assert layer.input_qparams is not None
            out = {} if last else {"y_scale": layer.output_qparams.scale, "y_zero_point": layer.output_qparams.zero_point}
            x = oracles.qlinear(
                x, p.unpack(), scale=p.scale, bias=p.bias, x_scale=layer.input_qparams.scale,
                x_zero_point=layer.input_qparams.zero_point, relu=layer.relu, **out,
            )  # fmt: skip
        return x

    bottom = mlp(quantize(dense, model.bottom[0].input_qparams), model.bottom)
    pooled = [
        oracles.bag(bag.to_fused(), i, o, mode=bag.mode) for bag, i, o in zip(model.bags, indices, offsets, strict=True)
    ]
    codes = oracles.interact_quantize(np.stack([bottom, *pooled], axis=1), model.top[0].input_qparams)
    return expit(mlp(codes, model.top)[:, 0])


@pytest.fixture
def model(rng: np.random.Generator) -> sedq.DLRM:
    return quantized(rng)


@pytest.fixture(scope="module")
def msweb() -> MSWeb:
    return load_msweb()


SHAPES: list[dict[str, Any]] = [
    {},
    {"modes": "mean"},
    {"modes": ("mean", "sum")},
    {"rows": ()},
    {"rows": (1,)},
    {"bottom": (DIM,)},
    {"top": (1,)},
    {"rows": (), "bottom": (1,), "top": (1,)},
    {"rows": (2, 300, 7, 9, 3), "bottom": (33, 70, 17), "top": (130, 65, 1), "modes": ("sum", "mean") * 2 + ("sum",)},
]


# ---- scores


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float_forward_is_that_of_a_naive_loop(rng: np.random.Generator, shape: dict[str, Any]) -> None:
    shape = dict(shape)
    modes = shape.pop("modes", "sum")
    parts = arrays(rng, **shape)
    r = request(rng, 20, shape.get("rows", ROWS))
    got = sedq.DLRM(*parts, modes).predict_float(*r, include_last_offset=True)
    assert got.dtype == np.float32
    each = [modes] * len(parts[1]) if isinstance(modes, str) else modes
    np.testing.assert_allclose(got, naive(*parts, each, r), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantised_scores_are_those_of_the_oracles(
    kernels: _dispatch.Context, rng: np.random.Generator, shape: dict[str, Any]
) -> None:
    model = quantized(rng, **shape)
    r = request(rng, 9, shape.get("rows", ROWS))
    want = oracle(model, r)
    for check in ("off", "exact", "full"):
        got = model(*r, include_last_offset=True, check=check)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantised_scores_are_close_to_float(rng: np.random.Generator, shape: dict[str, Any]) -> None:
    model = quantized(rng, **shape)
    r = request(rng, 200, shape.get("rows", ROWS))
    difference = model(*r, include_last_offset=True) - model.predict_float(*r, include_last_offset=True)
    assert abs(difference).mean() < 0.02
    assert abs(difference).max() < 0.15


def test_the_packaged_model_scores_alike_whatever_checks_and_runs_it(kernels: _dispatch.Context, msweb: MSWeb) -> None:
    model = _demo.build(msweb)
    h = msweb.heldout.batch(0, 1500)
    r = (h.dense, h.indices, h.offsets)
    with sedq.config_context(num_threads=1, check="off"):
        want = model(*r, include_last_offset=True)
    assert abs(want - model.predict_float(*r, include_last_offset=True)).mean() < 0.01
    with sedq.monitor() as m:
        for check in ("off", "exact", "full"):
            for threads in (1, 2):
                got = model(*r, include_last_offset=True, check=check, num_threads=threads)
                np.testing.assert_array_equal(got, want)
    assert m.detections == 0
    few = h.batch(0, 40)
    np.testing.assert_array_equal(oracle(model, (few.dense, few.indices, few.offsets)), want[:40])


@pytest.mark.parametrize("check", ["off", "exact", "full"])
@pytest.mark.parametrize("batch", [0, 1])
def test_few_requests(kernels: _dispatch.Context, rng: np.random.Generator, check: str, batch: int) -> None:
    model = quantized(rng)
    dense, indices, offsets = request(rng, 3)
    want = model(dense, indices, offsets, include_last_offset=True)[:batch]
    part = (dense[:batch], [i[: o[batch]] for i, o in zip(indices, offsets, strict=True)], [o[: batch + 1] for o in offsets])
    got = model(*part, include_last_offset=True, check=check)
    assert got.shape == (batch,)
    np.testing.assert_array_equal(got, want)
    assert model.predict_float(*part, include_last_offset=True).shape == (batch,)


def test_empty_bags_are_zero_vectors(rng: np.random.Generator) -> None:
    model = quantized(rng, ("sum", "mean"))
    dense = floats(rng, 4, DENSE)
    got = model(dense, [[], []], [[0] * 4, [0] * 4])
    np.testing.assert_array_equal(got, oracle(model, (dense, [np.zeros(0, np.int64)] * 2, [np.zeros(5, np.int64)] * 2)))


def test_forms_of_requests_are_one(model: sedq.DLRM, rng: np.random.Generator) -> None:
    dense, square = floats(rng, 6, DENSE), [rng.integers(r, size=(6, 3)) for r in ROWS]
    flat, starts = [i.ravel() for i in square], [np.arange(0, 18, 3)] * 2
    want = model(dense, square)
    forms: list[tuple[Any, Any, bool]] = [
        (flat, starts, False),
        (flat, [np.arange(0, 19, 3)] * 2, True),
        ([flat[0], square[1]], [starts[0], None], False),
        ([i.astype(np.int32) for i in flat], [s.astype(np.int32) for s in starts], False),
        ([i.tolist() for i in flat], [s.tolist() for s in starts], False),
        ([i[::-1][::-1] for i in flat], tuple(starts), False),
        ([np.asfortranarray(i) for i in square], None, False),
    ]
    for indices, offsets, last in forms:
        np.testing.assert_array_equal(model(dense, indices, offsets, last), want)
    for same in (dense.astype(np.float64), np.asfortranarray(dense), dense.tolist()):
        np.testing.assert_array_equal(model(same, square), want)
    frozen = dense.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(model(frozen, square), want)


def test_the_monitor_counts_every_stage(model: sedq.DLRM, rng: np.random.Generator) -> None:
    stages = ["quantize", "bottom.0", "bottom.1", "table.0", "table.1", "interaction", "top.0", "top.1", "sigmoid"]
    r = request(rng, 5)
    for check in ("exact", "full"):
        with sedq.monitor() as m:
            model(*r, include_last_offset=True, check=check)
        assert m.checks == dict.fromkeys(stages, 5)
        assert m.total_checks == 5 * len(stages)
    with sedq.monitor() as m:
        model(*r, include_last_offset=True, check="off")
    assert m.total_checks == 0


def test_quantize_returns_the_model_and_can_be_repeated(model: sedq.DLRM, rng: np.random.Generator) -> None:
    r, wide = request(rng, 30), request(rng, 30)
    before = model(*r, include_last_offset=True)
    assert model.quantize((wide[0] * 5, *wide[1:]), include_last_offset=True) is model
    assert not np.array_equal(model(*r, include_last_offset=True), before)


def test_repr_says_state_and_tables(model: sedq.DLRM, rng: np.random.Generator) -> None:
    assert repr(model) == "<DLRM quantized, 2 tables>"
    assert repr(sedq.DLRM(*arrays(rng))) == "<DLRM float, 2 tables>"


def test_repr_without_tables_or_float_model(rng: np.random.Generator) -> None:
    model = quantized(rng, rows=())
    frozen = sedq.DLRM.from_quantized(model.bottom, model.bags, model.top)
    assert repr(frozen) == "<DLRM quantized, 0 tables>"
