"""What is struck: an operator with its operands, and the result that it must give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sedq._config as _config
from sedq import _validation
from sedq._core import _dispatch, _ptrace
from sedq.embedding import EmbeddingBag
from sedq.linear import pack_weights, qlinear
from sedq.models._stages import quantize
from sedq.quantization import QParams

__all__ = ["OPERATORS", "SHAPES", "Target", "build", "check_shape", "damage"]

Array = NDArray[Any]

# tails in every dimension: of tiles of rows, of panels and of their steps, of groups and vectors of k; of blocks of columns
# and their vectors, of chunks of bags; of vectors of floats and of codes
SHAPES: dict[str, tuple[int, ...]] = {
    "qlinear": (13, 211, 517),
    "bag": (21, 600, 83),
    "interaction": (9, 7, 45),
    "probe": (1,),
}
OPERATORS = tuple(SHAPES)
POOLING = 33
SMALLEST, LARGEST = 1e-300, 1e300
PROBE_LOOPS = 100_000


@dataclass
class Target:
    """An operator ready to run.

    Attributes
    ----------
    call : callable
        Runs the operator once, into `out`.
    out, want : ndarray
        Where the result goes, and what it must be.
    operands : dict of str to ndarray
        Memory that the operator reads, and that must not change.
    limits : ndarray of float64
        For each row of the output, the largest change that the check may overlook: the threshold in force.
    """

    call: Callable[[], object]
    out: Array
    want: Array
    operands: dict[str, Array]
    limits: Array


def check_shape(operator: str, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of an operator's operands; its own if None."""
    if operator not in OPERATORS:
        raise ValueError(f"operator: got {operator!r}, expected one of {', '.join(map(repr, OPERATORS))}")
    if shape is None:
        return SHAPES[operator]
    if not isinstance(shape, (tuple, list)) or len(shape) != len(SHAPES[operator]):
        raise ValueError(f"shape: got {shape!r}, expected {len(SHAPES[operator])} numbers for {operator}")
    return tuple(_validation.integer("shape", size, 1, 2**20) for size in shape)


def build(operator: str, check: str, shape: tuple[int, ...], seed: int) -> Target:
    """Make an operator's target; RuntimeError if it doesn't compute what the reference kernels do."""
    makers = {"qlinear": _qlinear, "bag": _bag, "interaction": _interaction, "probe": _probe}
    target = makers[operator](check, shape, np.random.default_rng(seed))
    with _config.config_context(num_threads=1, on_error="raise"):
        target.call()
        target.want = target.out.copy()
        if operator != "probe":
            with _config.use_kernels(_dispatch.get("reference")):
                target.call()
            if target.out.tobytes() != target.want.tobytes():
                raise RuntimeError(f"{operator}: the reference kernels give another result")
    return target


def _qlinear(check: str, shape: tuple[int, ...], rng: np.random.Generator) -> Target:
    m, n, k = shape
    x = rng.integers(256, size=(m, k)).astype(np.uint8)
    weights = rng.integers(-128, 128, size=(n, k)).astype(np.int8)
    scale = rng.uniform(0.5, 2, n).astype(np.float32)
    zero_point = rng.integers(-20, 21, size=n)  # so that the epilogue needs the sums of rows of x
    packed = pack_weights(weights, scale, zero_point, rng.normal(0, 2000, n).astype(np.float32))
    key: tuple[float, int, float, int] = (0.02, 117, 0.02 * 74 * 128 * k**0.5 / 48, 128)  # outputs over all of 0 to 255
    out = np.empty((m, n), np.uint8)

    def call() -> object:
        return qlinear(
            x,
            packed,
            x_scale=key[0],
            x_zero_point=key[1],
            y_scale=key[2],
            y_zero_point=key[3],
            check=check,
            out=out,
        )

    call()
    (epilogue,) = packed._epilogues.values()
    operands = {"x": x, "panels": packed._core.panels, "digits": packed._core.digits}
    operands |= {name: getattr(epilogue, name) for name in ("col_term", "w_zp", "bias", "mult", "digest")}
    return Target(call, out, out, operands, np.zeros(m))


def _bag(check: str, shape: tuple[int, ...], rng: np.random.Generator) -> Target:
    bags, rows, dim = shape
    bag = EmbeddingBag.from_float(rng.normal(size=(rows, dim)).astype(np.float32))
    lengths = rng.integers(POOLING, size=bags)  # an empty one now and then
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    indices = rng.integers(rows, size=offsets[-1])
    weights = rng.uniform(0.5, 1.5, len(indices)).astype(np.float32)
    out = np.empty((bags, dim), np.float32)

    def call() -> object:
        return bag(indices, offsets, weights, True, check=check, out=out)

    operands = {"rows": bag.table.rows, "indices": indices, "offsets": offsets, "per_sample_weights": weights}
    return Target(call, out, out, operands, _rounding_bounds(bag, indices, offsets, weights))


def _rounding_bounds(bag: EmbeddingBag, indices: Array, offsets: Array, weights: Array) -> Array:
    """Return the bound on the residual of each bag, as the operator's documentation defines it."""
    fused, dim = bag.to_fused(), bag.shape[1]
    scale, bias = fused[:, dim:].copy().view(np.float32).astype(np.float64).T
    size = abs(scale) * fused[:, :dim].sum(axis=1) + dim * abs(bias)
    bounds = []
    for begin, end in itertools.pairwise(offsets):
        steps = (end - begin + 5) * 2.0**-24
        magnitude = (abs(weights[begin:end]) * size[indices[begin:end]]).sum()
        bounds.append(steps / (1 - steps) * magnitude + dim * (257 * (end - begin) + 4) * 2.0**-126)
    return np.array(bounds)


def _interaction(check: str, shape: tuple[int, ...], rng: np.random.Generator) -> Target:
    vectors = rng.normal(size=shape).astype(np.float32)
    params = QParams(0.1, 117, "uint8")
    out = quantize(vectors, params, _config.resolve("off", None, None), "interaction", None)[0]

    def call() -> None:
        quantize(vectors, params, _config.resolve(check, None, None), "interaction", None, out)

    return Target(call, out, out, {"vectors": vectors}, np.zeros(len(out)))


def _probe(check: str, shape: tuple[int, ...], rng: np.random.Generator) -> Target:
    """Load registers, hold them for a while and store them: what is flipped must show, and nothing else."""
    held = rng.integers(256, size=_ptrace.PROBE_BYTES).astype(np.uint8)
    out = np.empty_like(held)

    def call() -> None:
        out[:] = held
        _ptrace.probe(out, PROBE_LOOPS * shape[0])

    return Target(call, out, out, {"held": held}, np.zeros(1))


def damage(got: Array, want: Array, limits: Array) -> tuple[float, bool]:
    """Return the largest change of an output, relative to the largest |output|, and whether one exceeds its row's limit.

    The change is 0 only if no bit differs, and at most LARGEST, which stands for what isn't finite.
    """
    if got.tobytes() == want.tobytes():
        return 0.0, False
    with np.errstate(all="ignore"):
        changes = np.abs(got.astype(np.float64) - want.astype(np.float64)).reshape(len(limits), -1).max(axis=1)
        largest = changes.max() / np.abs(want.astype(np.float64)).max()
    beyond = bool((~(changes <= limits)).any())
    return (min(max(float(largest), SMALLEST), LARGEST) if np.isfinite(largest) else LARGEST), beyond
