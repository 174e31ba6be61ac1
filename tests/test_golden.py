"""Golden outputs: random calls of every public operator give the same bits as they did when the outputs were recorded.

``data/golden.json`` holds one hash for each group of calls. A group has the same hash on every instruction set, at every
level of checking and for any number of threads. Calls use ``on_error="raise"``, so that no recovery hides a difference.
The inputs are made by hand from the raw bits of PCG64, whose stream NumPy never changes.

A few results depend on the versions of NumPy, SciPy or the BLAS library: parameters that a search or a float32 sum chose.
The file holds these as numbers, and they are compared within a tolerance. `calibrate_thresholds` has a test file of its own.

A change of outputs that is meant needs new hashes. Write them with the installed package, and review which groups changed::

    python tests/test_golden.py --write
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import _config
from sedq._core import _dispatch
from sedq.datasets import load_msweb

FILE = Path(__file__).parent / "data" / "golden.json"

Array = NDArray[Any]
Results = Iterator[Any]

PRODUCTS = ("off", "exact", "full", "mod127")
BAGS = ("off", "digest", "threshold", "exact", "full")
MODELS = ("off", "exact", "full")
# what weights are encoded for, by the level of checking; no output depends on it
ENCODINGS = {"off": (), "exact": ("exact",), "full": ("exact", "mod127"), "mod127": ("mod127",)}
BITS = (8, 4, 2, 16, 32)


# --- inputs ---


class Draws:
    """Random numbers of a name, made from the raw 64-bit integers of PCG64 alone."""

    def __init__(self, name: str) -> None:
        self._bits = np.random.PCG64(zlib.crc32(name.encode()))

    def integers(self, low: int, high: int, shape: int | tuple[int, ...] = ()) -> Array:
        """Integers from `low` to `high` - 1."""
        size = int(np.prod(shape))
        raw = np.asarray(self._bits.random_raw(size), np.uint64) % np.uint64(high - low)
        return (raw.astype(np.int64) + low).reshape(shape)

    def integer(self, low: int, high: int) -> int:
        return int(self.integers(low, high))

    def choice(self, values: Sequence[Any]) -> Any:
        return values[self.integer(0, len(values))]

    def bytes(self, shape: tuple[int, ...]) -> Array:
        """Random uint8."""
        size = int(np.prod(shape))
        raw = np.asarray(self._bits.random_raw(-(-size // 8)), np.uint64)
        return raw.astype("<u8").view(np.uint8)[:size].reshape(shape).copy()

    def floats(self, shape: int | tuple[int, ...], exponent: int = -14) -> Array:
        """Bell-shaped float32: sums of four 16-bit integers, times 2**exponent."""
        parts = self.integers(-(2**15), 2**15, (4, int(np.prod(shape))))
        return np.ldexp(parts.sum(axis=0).astype(np.float32), exponent).reshape(shape)

    def scales(self, shape: int | tuple[int, ...] = (), low: int = -10, high: int = -4) -> Array:
        """Positive float32 with full mantissas, from 2**low up to 2**high."""
        mantissas = self.integers(2**23, 2**24, shape).astype(np.float32)
        return np.ldexp(mantissas, self.integers(low - 23, high - 23, shape)).astype(np.float32)

    def offsets(self, bags: int, longest: int) -> Array:
        """Where bags start and the last one ends; about a quarter of the bags is empty."""
        lengths = np.maximum(self.integers(-(longest // 3), longest + 1, bags), 0)
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class Request(NamedTuple):
    """Arguments of a call of a bag or of a collection."""

    indices: Array
    offsets: Array
    weights: Array | None


def request(draws: Draws, rows: int, bags: int, longest: int) -> Request:
    """Bags of random rows, with weights or without; integers of 32 or 64 bits."""
    offsets = draws.offsets(bags, longest)
    indices = draws.integers(0, rows, int(offsets[-1]))
    weights = draws.floats(len(indices)) if draws.integer(0, 2) else None
    return Request(indices.astype(draws.choice((np.int32, np.int64))), offsets, weights)


def fused(draws: Draws, rows: int, dim: int, bits: int, layout: str, align: int = 1) -> Array:
    """Rows of a layout, put together by hand."""
    if bits > 8:
        return draws.floats((rows, dim)).astype(f"<f{bits // 8}").view(np.uint8)
    codes = draws.bytes((rows, -(-dim * bits // 8)))
    codes[:, -1] &= 0xFF >> (-dim * bits % 8)  # bits beyond the last column are 0
    params = draws.floats((rows, 2), -17)
    half = bits < 8 or layout != "torch"
    params = params.astype("<f2" if half else "<f4").view(np.uint8)
    parts = [params, codes] if layout == "tbe" else [codes, params]
    width = codes.shape[1] + params.shape[1]
    return np.hstack([*parts, np.zeros((rows, -width % align), np.uint8)])


# --- groups of calls, each of which yields its results ---


class Group(NamedTuple):
    """Calls that share a hash."""

    results: Callable[[Draws], Results]
    levels: tuple[str, ...]  # of checking; none for what runs without kernels
    threads: tuple[int, ...]


GROUPS: dict[str, Group] = {}


def group(
    *levels: str, threads: tuple[int, ...] = (1,)
) -> Callable[[Callable[[Draws], Results]], Callable[[Draws], Results]]:
    """Register a function as a group of calls, to be run at these levels of checking.

    Groups of large calls are run with two threads as well, which share calls that take one thread some 40 us or more.
    """

    def register(results: Callable[[Draws], Results]) -> Callable[[Draws], Results]:
        GROUPS[results.__name__] = Group(results, levels, threads)
        return results

    return register


def products(draws: Draws, count: int, zero_points: bool = True) -> Iterator[tuple[int, sedq.PackedWeights]]:
    """Rows of x, and weights of every kind: scales and zero points per tensor or per channel, with or without bias."""
    for _ in range(count):
        m, n, k = draws.integer(1, 14), draws.integer(1, 90), draws.integer(1, 200)
        w = draws.bytes((n, k)).view(np.int8)
        if not draws.integer(0, 8):
            w[...] = draws.choice((-128, 127))  # the largest accumulators
        scale = draws.scales(draws.choice(((), (n,))))
        zero = draws.choice((0, 0, draws.integer(-128, 128), draws.integers(-128, 128, n))) if zero_points else 0
        bias = draws.choice((None, draws.floats(n)))
        yield m, sedq.pack_weights(w, scale, zero, bias, ENCODINGS[sedq.get_config().check])


@group(*PRODUCTS)
def matmul_integer(draws: Draws) -> Results:
    for m, packed in products(draws, 200):
        yield sedq.matmul_integer(draws.bytes((m, packed.shape[1])), packed, draws.integer(0, 256))


@group(*PRODUCTS, threads=(1, 2))
def products_large(draws: Draws) -> Results:
    # N beyond 257 needs a third digit of the checksum; the shapes reach several blocks of the kernels, and both ways in
    # which threads share a product
    for m, n, k in ((130, 300, 130), (1, 520, 1100), (129, 33, 65), (3, 260, 4100)):
        scale, bias = draws.scales(draws.choice(((), (n,)))), draws.floats(n)
        w, zero = draws.bytes((n, k)).view(np.int8), draws.choice((0, draws.integers(-5, 5, n)))
        packed = sedq.pack_weights(w, scale, zero, bias, ENCODINGS[sedq.get_config().check])
        x = draws.bytes((2, m, k))
        params: dict[str, Any] = {"x_scale": float(draws.scales()), "x_zero_point": draws.integer(0, 256)}
        yield sedq.matmul_integer(x, packed, params["x_zero_point"])
        yield sedq.qlinear(x, packed, **params)
        yield sedq.qlinear(x, packed, **params, y_scale=float(draws.scales(low=-4, high=3)), y_zero_point=100, relu=True)
        yield sedq.qlinear_dynamic(draws.floats((2, m, k)), packed)


@group(*PRODUCTS)
def qlinear_uint8(draws: Draws) -> Results:
    for m, packed in products(draws, 200):
        yield sedq.qlinear(
            draws.bytes((m, packed.shape[1])),
            packed,
            x_scale=float(draws.scales()),
            x_zero_point=draws.integer(0, 256),
            y_scale=float(draws.scales(low=-6, high=5)),
            y_zero_point=draws.integer(0, 256),
            relu=bool(draws.integer(0, 2)),
        )


@group(*PRODUCTS)
def qlinear_float32(draws: Draws) -> Results:
    for m, packed in products(draws, 200):
        yield sedq.qlinear(
            draws.bytes((m, packed.shape[1])),
            packed,
            x_scale=float(draws.scales()),
            x_zero_point=draws.integer(0, 256),
            relu=bool(draws.integer(0, 2)),
        )


@group(*PRODUCTS)
def qlinear_dynamic(draws: Draws) -> Results:
    for number, (m, packed) in enumerate(products(draws, 200)):
        x = draws.floats((m, packed.shape[1]), draws.integer(-20, -10))
        if number % 10 == 0:
            x = np.abs(x)
        yield sedq.qlinear_dynamic(x, packed, bool(draws.integer(0, 2)), reduce_range=number % 2 == 1)


@group(*PRODUCTS)
def quantized_linear(draws: Draws) -> Results:
    for m, packed in products(draws, 100):
        params = [sedq.QParams(float(draws.scales()), draws.integer(0, 256)) for _ in range(2)]
        layer = sedq.QuantizedLinear(packed, *params, relu=bool(draws.integer(0, 2)))
        k = packed.shape[1]
        yield layer(draws.floats((m, k)))
        yield layer(draws.bytes((m, k)))


@group("off", "exact", "full")
def quantized_linear_observed(draws: Draws) -> Results:
    """Layers made from float weights, with parameters from samples.

    `observe` multiplies floats, whose sum depends on the BLAS library unless it is exact. It is exact here: weights have a
    scale that is a power of two, and samples and biases are small integers times a power of two.
    """
    for number in range(60):
        m, n, k = draws.integer(1, 14), draws.integer(1, 40), draws.integer(1, 60)
        w = np.ldexp(draws.integers(-127, 128, (n, k)).astype(np.float32), -10)
        w[:, 0] = 127 * 2.0**-10
        bias = draws.choice((None, np.ldexp(draws.integers(-999, 1000, n).astype(np.float32), -10)))
        relu, per_channel = bool(draws.integer(0, 2)), bool(draws.integer(0, 2))
        layer = sedq.QuantizedLinear.from_float(w, bias, relu=relu, per_channel=per_channel)
        for _ in range(1 + number % 3):
            layer.observe(np.ldexp(draws.integers(-100, 101, (5, k)).astype(np.float32), -3))
        layer.freeze()
        yield from (layer.packed.unpack(), layer.packed.scale, layer.input_qparams, layer.output_qparams)
        yield layer(draws.floats((m, k)))
        yield layer(draws.bytes((m, k)))


@group()
def from_float_weights(draws: Draws) -> Results:
    """Quantised weights of `QuantizedLinear.from_float`, whatever their scales."""
    for number in range(60):
        w = draws.floats((draws.integer(1, 40), draws.integer(1, 60)), draws.integer(-30, 0))
        packed = sedq.QuantizedLinear.from_float(w, per_channel=number % 2 == 0).packed
        yield from (packed.unpack(), packed.scale, packed.zero_point)


@group()
def pack_weights(draws: Draws) -> Results:
    for number in range(60):
        n, k = draws.integer(1, 300), draws.integer(1, 300)
        encode = tuple(ENCODINGS.values())[number % 4]
        packed = sedq.pack_weights(draws.bytes((n, k)).view(np.int8), draws.scales(n), 0, draws.floats(n), encode)
        yield from (packed.shape, packed.unpack(), packed.scale, packed.zero_point, packed.bias)
        yield from (packed.encode, packed.verify().ok)


@group()
def checks(draws: Draws) -> Results:
    for number in range(100):
        m, n, k = draws.integer(1, 14), draws.integer(1, 40), draws.integer(1, 60)
        zero = draws.choice((0, draws.integers(-128, 128, n)))
        packed = sedq.pack_weights(draws.bytes((n, k)).view(np.int8), zero_point=zero)
        x, x_zero_point = draws.bytes((m, k)), draws.integer(0, 256)
        yield sedq.linear.checksums.row_checksums(x, packed, x_zero_point)
        yield sedq.linear.checksums.column_checksums(x, packed, x_zero_point)
        product = sedq.matmul_integer(x, packed, x_zero_point)
        for _ in range(number % 5):  # none to four flipped bits
            product[draws.integer(0, m), draws.integer(0, n)] ^= np.int32(1 << draws.integer(0, 31))
        for report in (sedq.linear.checksums.locate(product, x, packed, x_zero_point),
                       sedq.linear.checksums.correct(product, x, packed, x_zero_point)):  # fmt: skip
            yield from (report.rows, report.columns, report.elements, report.determined, report.corrected)
        yield product


def pooled(draws: Draws, bag: sedq.EmbeddingBag, rows: int) -> Results:
    """A few calls of a bag: bags of the usual lengths, two-dimensional indices, empty bags, no bags."""
    for bags, longest in ((draws.integer(1, 9), 12), (2, 70)):
        asked = request(draws, rows, bags, longest)
        yield bag(asked.indices, asked.offsets, asked.weights, include_last_offset=True)
        starts = asked.offsets[:-1].astype(draws.choice((np.int32, np.int64)))
        yield bag(asked.indices, starts, asked.weights)
    table = draws.integers(0, rows, (draws.integer(1, 5), draws.integer(0, 9)))
    yield bag(table)
    yield bag(table.astype(np.int32), per_sample_weights=draws.floats(table.shape))
    yield bag(np.zeros(0, np.int64), np.zeros(3, np.int64))
    yield bag(np.zeros(0, np.int32), np.zeros(0, np.int32))


@group(*BAGS)
def embedding_bag_from_float(draws: Draws) -> Results:
    for bits, mode in itertools.product(BITS, ("sum", "mean")):
        for dim in (draws.integer(1, 24), draws.integer(24, 150), draws.choice((32, 64, 128))):
            rows = draws.integer(1, 60)
            yield from pooled(draws, sedq.EmbeddingBag.from_float(draws.floats((rows, dim)), bits=bits, mode=mode), rows)


@group(*BAGS)
def embedding_bag_from_fused(draws: Draws) -> Results:
    yield from of_layouts(draws, sedq.EmbeddingBag.from_fused)


@group(*BAGS)
def embedding_bag_view_fused(draws: Draws) -> Results:
    yield from of_layouts(draws, sedq.EmbeddingBag.view_fused)


def of_layouts(draws: Draws, make: Callable[..., sedq.EmbeddingBag]) -> Results:
    """Bags over rows of every layout that another library may have made."""
    for bits, (layout, align) in itertools.product(BITS, (("torch", 1), ("half", 1), ("tbe", 1), ("tbe", 16))):
        rows, dim = draws.integer(1, 60), draws.choice((draws.integer(1, 24), draws.integer(24, 150), 32, 64, 128))
        kept = fused(draws, rows, dim, bits, layout, align)
        kept.flags.writeable = False
        bag = make(kept, bits=bits, layout=layout, dim=dim, mode=draws.choice(("sum", "mean")))
        yield from pooled(draws, bag, rows)


@group(*BAGS)
def embedding_bag_pruned(draws: Draws) -> Results:
    """Bags with an index that is left out, with a mapping of indices, and with both."""
    for bits, mode, padded, mapped in itertools.product((8, 4, 16), ("sum", "mean"), (False, True), (False, True)):
        rows, dim = draws.integer(2, 40), draws.choice((16, draws.integer(1, 50)))
        asked, mapping = rows, None
        if mapped:
            asked = rows + draws.integer(0, 30)
            mapping = np.full(asked, -1, draws.choice((np.int32, np.int64)))
            mapping[np.argsort(draws.integers(0, 2**62, asked), kind="stable")[:rows]] = np.arange(rows)
        padding = draws.choice((0, -1, asked // 2)) if padded else None
        bag = sedq.EmbeddingBag.from_float(
            draws.floats((rows, dim)), bits=bits, mode=mode, padding_idx=padding, index_mapping=mapping
        )
        yield from pooled(draws, bag, asked)


@group("off", "exact", "full", threads=(1, 2))
def embedding_bag_large(draws: Draws) -> Results:
    """Many bags, and bags that are so long that threads share one."""
    for bits, mode in itertools.product(BITS, ("sum", "mean")):
        bag = sedq.EmbeddingBag.from_float(draws.floats((90, 20)), bits=bits, mode=mode)
        yield bag(*request(draws, 90, 700, 40), include_last_offset=True)
        lengths = np.array([5, 4097 + draws.integer(0, 3000), 0, 4096, 9])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        indices = draws.integers(0, 90, int(offsets[-1]))
        yield bag(indices, offsets, include_last_offset=True)
        yield bag(indices, offsets, draws.floats(len(indices)), include_last_offset=True)


@group(*BAGS)
def update_rows(draws: Draws) -> Results:
    for bits, mode in itertools.product(BITS, ("sum", "mean")):
        rows, dim = draws.integer(5, 60), draws.integer(1, 80)
        kwargs: dict[str, Any] = {"locate": True, "parity": 8} if mode == "mean" else {}
        bag = sedq.EmbeddingBag.from_float(draws.floats((rows, dim)), bits=bits, mode=mode, **kwargs)
        for _ in range(3):
            numbers = np.flatnonzero(draws.integers(0, 3, rows) == 0)
            if draws.integer(0, 2):
                bag.update_rows(numbers, draws.floats((len(numbers), dim)))
            elif len(numbers):
                bag.update_rows(numbers, fused(draws, len(numbers), dim, bits, "torch"))
            yield bag.to_fused()
            yield from pooled(draws, bag, rows)


@group()
def to_fused(draws: Draws) -> Results:
    for bits, layout, align in itertools.product(BITS, ("torch", "half", "tbe"), (1, 16)):
        for dim in (draws.integer(1, 40), 64):
            made = sedq.EmbeddingBag.from_float(draws.floats((7, dim), draws.integer(-18, -12)), bits=bits)
            yield from (made.shape, made.mode, made.bits)
            yield made.to_fused(align=align)
            kwargs: dict[str, Any] = {"bits": bits, "layout": "half", "dim": dim, "mode": "mean"}
            given = fused(draws, 7, dim, bits, "half")
            yield sedq.EmbeddingBag.from_fused(given, **kwargs).to_fused(layout, align=align)
            yield sedq.EmbeddingBag.view_fused(given, **kwargs).to_fused(layout, align=align)


@group("off", "exact", "full", threads=(1, 2))
def embedding_bag_collection(draws: Draws) -> Results:
    for number in range(40):
        bags = []
        for _ in range(draws.integer(1, 6)):
            bits, rows, dim = draws.choice(BITS), draws.integer(1, 50), draws.choice((16, 32, draws.integer(1, 90)))
            mode = draws.choice(("sum", "mean"))
            if draws.integer(0, 2):
                padding = 0 if number % 8 == 0 else None  # each table is pooled by itself then
                made = sedq.EmbeddingBag.from_float(draws.floats((rows, dim)), bits=bits, mode=mode, padding_idx=padding)
            else:
                given = fused(draws, rows, dim, bits, "tbe", 16)
                made = sedq.EmbeddingBag.view_fused(given, bits=bits, layout="tbe", dim=dim, mode=mode)
            bags.append(made)
        collection = sedq.EmbeddingBagCollection(bags)
        batch, longest = (150, 80) if number % 8 == 1 else (draws.integer(1, 7), 12)
        asked = [request(draws, bag.shape[0], batch, longest) for bag in bags]
        indices = np.concatenate([r.indices.astype(np.int64) for r in asked])
        lengths = np.concatenate([np.diff(r.offsets) for r in asked])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        weights = draws.choice((None, draws.floats(len(indices))))
        yield collection(indices, offsets, weights)
        yield collection(indices.astype(np.int32), offsets.astype(np.int32), weights)
        yield collection(sedq.IndexBatch(indices, offsets, weights, include_last_offset=True))


@group(*BAGS)
def index_batch(draws: Draws) -> Results:
    for _ in range(40):
        rows = draws.integer(1, 50)
        bag = sedq.EmbeddingBag.from_float(draws.floats((rows, draws.integer(1, 60))), mode=draws.choice(("sum", "mean")))
        asked = request(draws, rows, draws.integer(1, 9), 12)
        for batch in (
            sedq.IndexBatch(*asked, include_last_offset=True),
            sedq.IndexBatch(asked.indices, asked.offsets[:-1], asked.weights),
            sedq.IndexBatch(draws.integers(0, rows, (3, draws.integer(0, 6))).astype(np.int32)),
        ):
            yield from (len(batch), batch.indices, batch.offsets, batch.per_sample_weights, bag(batch))


@group()
def quantize_dequantize(draws: Draws) -> Results:
    for number in range(100):
        shape = (draws.integer(1, 20), draws.integer(1, 20))
        dtype, axis = draws.choice(("uint8", "int8")), draws.integer(-2, 2)
        low = 0 if dtype == "uint8" else -128
        channels = shape[axis] if number % 2 else ()
        params = sedq.QParams(draws.scales(channels), draws.integers(low, low + 256, channels), dtype)
        yield sedq.quantize(draws.floats(shape), params, axis=axis)
        yield sedq.dequantize(draws.bytes(shape).view(dtype), params, axis=axis)


@group()
def choose_qparams(draws: Draws) -> Results:
    for number in range(200):
        shape: Any = (5,) if number % 3 == 0 else ()
        ends = draws.floats((2, *shape), draws.integer(-40, 20)).astype(np.float64)
        for symmetric, reduce_range in itertools.product((False, True), repeat=2):
            dtype = draws.choice(("uint8", "int8"))
            low, high = ends.min(axis=0), ends.max(axis=0)
            yield sedq.choose_qparams(low, high, dtype, symmetric=symmetric, reduce_range=reduce_range)


@group()
def observers(draws: Draws) -> Results:
    for number in range(60):
        kwargs: dict[str, Any] = {
            "dtype": draws.choice(("uint8", "int8")),
            "symmetric": bool(draws.integer(0, 2)),
            "channel_axis": draws.choice((None, 0, 1, -1)),
        }
        batches = [draws.floats((6, 40), draws.integer(-20, -10)) for _ in range(1 + number % 4)]
        for observer in (
            sedq.MinMaxObserver(**kwargs),
            sedq.MovingAverageObserver(**kwargs, averaging_constant=1 / draws.integer(1, 200)),
            sedq.PercentileObserver(**kwargs, percentile=draws.choice((99.9, 100, 90.5, 51))),
            sedq.HistogramObserver(**kwargs, bins=256),
        ):
            for x in batches:
                observer.observe(x)
            yield from (observer.low, observer.high)
            if not isinstance(observer, sedq.HistogramObserver):  # which searches, see `histogram_parameters`
                yield observer.qparams()


# --- the model ---


def model_of(parameters: Sequence[Sequence[float]]) -> sedq.DLRM:
    """The DLRM of the packaged data, with given parameters of activations: what `quantize` chooses isn't bit-stable."""
    data = load_msweb()
    given = [sedq.QParams(scale, int(zero)) for scale, zero in parameters]
    inputs = given[: len(data.bottom)], given[len(data.bottom) :]
    bottom, top = (
        [
            sedq.QuantizedLinear(
                sedq.QuantizedLinear.from_float(w, b).packed,
                params[i],
                params[i + 1] if i + 1 < len(layers) else None,
                relu=i + 1 < len(layers),
            )
            for i, (w, b) in enumerate(layers)
        ]
        for layers, params in zip((data.bottom, data.top), inputs, strict=True)
    )
    bags = [sedq.EmbeddingBag.from_float(w, mode=m) for w, m in zip(data.tables, data.modes, strict=True)]
    return sedq.DLRM.from_quantized(bottom, bags, top)


def sums_of_last_layer(model: sedq.DLRM, probabilities: Array) -> Array:
    """Turn probabilities back into the integer sums of the last layer; 2**31 for a probability above 0.95.

    The last bit of the sigmoid differs between versions of SciPy. The integers before it do not, and a probability
    determines its integer, unless it is so close to 1 that float32 has too few steps left.
    """
    layer = model.top[-1]
    assert layer.input_qparams is not None
    step = np.float64(layer.input_qparams.scale) * np.float64(layer.packed.scale.item())
    bias = 0 if layer.packed.bias is None else np.float64(layer.packed.bias.item())
    p = probabilities.astype(np.float64)
    sums = np.full(len(p), 2.0**31)
    low = p < 0.95
    sums[low] = (np.log(p[low] / (1 - p[low])) - bias) / step
    assert low.mean() > 0.8
    assert np.abs(sums - np.rint(sums)).max() < 0.2
    return np.rint(sums).astype(np.int64)


def answers(model: sedq.DLRM) -> Results:
    """A few batches of held-out requests, of either form."""
    heldout = load_msweb().heldout
    for start, stop in ((0, 1), (1, 8), (100, 300), (1000, 3500)):
        r = heldout.batch(start, stop)
        yield sums_of_last_layer(model, model(r.dense, r.indices, r.offsets, include_last_offset=True))
        batches = [sedq.IndexBatch(i, o, include_last_offset=True) for i, o in zip(r.indices, r.offsets, strict=True)]
        yield sums_of_last_layer(model, model(r.dense, batches))


def saved(path: Path) -> Results:
    """Names and arrays of a file. Its other bytes are headers that NumPy and zipfile write, which have changed."""
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            yield from (name, file[name])


@group(*MODELS, threads=(1, 2))
def dlrm(draws: Draws) -> Results:
    yield from answers(model_of(golden()["dlrm_parameters"]))


@group(*MODELS)
def dlrm_loaded(draws: Draws) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.npz", Path(folder) / "second.npz"
        model_of(golden()["dlrm_parameters"]).save(first)
        yield from saved(first)
        model = sedq.DLRM.load(first)
        yield from answers(model)
        model.save(second)
        assert first.read_bytes() == second.read_bytes()


# --- results that are compared within a tolerance ---


def dlrm_parameters() -> list[list[float]]:
    """Scale and zero point of the input of each layer that `DLRM.quantize` chooses."""
    data = load_msweb()
    c = data.calibration
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)
    chosen = [layer.input_qparams for layer in (*model.bottom, *model.top)]
    return [[float(f"{q.scale:.6g}"), q.zero_point] for q in chosen if q is not None]


def histogram_parameters() -> list[list[float]]:
    """Scale and zero point that `HistogramObserver` finds by a search."""
    draws, found = Draws("histogram_parameters"), []
    for dtype, symmetric in itertools.product(("uint8", "int8"), (False, True)):
        observer = sedq.HistogramObserver(dtype, symmetric=symmetric)  # type: ignore[arg-type]
        for _ in range(4):
            x = draws.floats(5000)
            observer.observe(x * x * x + np.float32(0.5))
        q = observer.qparams()
        found.append([float(f"{q.scale:.6g}"), q.zero_point])
    return found


# --- comparing ---


def golden() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return made


def flat(result: Any) -> Iterable[bytes]:
    """The bytes of a result, with what tells them from those of another kind."""
    if isinstance(result, sedq.QParams):
        yield result.dtype.encode()
        yield from flat(result.scale)
        yield from flat(result.zero_point)
    elif isinstance(result, (np.ndarray, np.generic)):
        a = np.asarray(result)
        yield f"{a.dtype.str}{a.shape}".encode()
        yield a.tobytes()
    else:
        yield f"{type(result).__name__}{result!r};".encode()


def digest(name: str, level: str = "exact", threads: int = 1) -> str:
    """Run a group and return the hash of its results."""
    state = hashlib.sha256()
    with sedq.config_context(check=level, on_error="raise", num_threads=threads):
        for result in GROUPS[name].results(Draws(name)):
            for part in flat(result):
                state.update(part)
    return state.hexdigest()[:32]


def test_every_group_is_recorded() -> None:
    assert list(golden()["hashes"]) == sorted(GROUPS)


@pytest.mark.parametrize("name", [name for name, g in GROUPS.items() if g.levels])
def test_outputs_of_kernels_are_unchanged(name: str, kernels: object) -> None:
    want = golden()["hashes"][name]
    settings = itertools.product(GROUPS[name].levels, GROUPS[name].threads)
    differing = [f"check={c!r}, num_threads={t}" for c, t in settings if digest(name, c, t) != want]
    assert not differing, f"the outputs of group {name!r} have changed with {'; '.join(differing)}"


@pytest.mark.parametrize("name", [name for name, g in GROUPS.items() if g.levels])
def test_outputs_of_the_path_that_decides_are_unchanged(name: str) -> None:
    """The portable kernels without vector instructions, by which recovery decides when two other paths disagree."""
    want = golden()["hashes"][name]
    with _config.use_kernels(_dispatch.scalar()):
        differing = [f"check={level!r}" for level in GROUPS[name].levels if digest(name, level, 1) != want]
    assert not differing, f"the outputs of group {name!r} have changed with {'; '.join(differing)}"


@pytest.mark.parametrize("name", [name for name, g in GROUPS.items() if not g.levels])
def test_outputs_are_unchanged(name: str) -> None:
    assert digest(name) == golden()["hashes"][name], f"the outputs of group {name!r} have changed"


@pytest.mark.parametrize(("parameters", "tolerance"), [(dlrm_parameters, 1e-4), (histogram_parameters, 1e-2)])
def test_parameters_are_close(parameters: Callable[[], list[list[float]]], tolerance: float) -> None:
    got, want = np.array(parameters()), np.array(golden()[parameters.__name__])
    np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=tolerance)
    np.testing.assert_allclose(got[:, 1], want[:, 1], rtol=0, atol=1 + 255 * tolerance)


def write() -> None:
    """Write the file anew, from what the installed package computes."""
    made: dict[str, Any] = {p.__name__: p() for p in (dlrm_parameters, histogram_parameters)}
    FILE.write_text(json.dumps(made), encoding="utf-8")  # groups of models read the parameters
    made["hashes"] = {name: digest(name) for name in sorted(GROUPS)}
    FILE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    write()
