"""What a campaign strikes: operators and models, the words of their memory, and how a batch of inputs is answered.

A target is a product with packed weights, a layer, an EmbeddingBag or a DLRM. Its *parts* are the packs and tables it
consists of, by the names that events give them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq._core import _packing, _rows
from sedq.datasets import Requests
from sedq.embedding import EmbeddingBag
from sedq.linear import PackedWeights, QuantizedLinear, matmul_integer
from sedq.models import DLRM

__all__ = ["BagTarget", "LayerTarget", "ModelTarget", "ProductTarget", "Target", "Words", "target_of"]

Array = NDArray[Any]
Part = PackedWeights | EmbeddingBag
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Words:
    """Words of memory that a fault may strike.

    Attributes
    ----------
    array : ndarray of unsigned integers
        A view of the memory itself.
    count : int
        How many of its words can be drawn.
    position : callable
        Where the word of a number is in `array`.
    """

    array: Array
    count: int
    position: Callable[[int], Any]

    @property
    def bits(self) -> int:
        """Width of a word."""
        return int(self.array.itemsize) * 8


def _unsigned(a: Array) -> Array:
    return a.reshape(-1).view(UNSIGNED[a.itemsize])


def _vector(a: Array | None, count: int | None = None) -> Words | None:
    """Words of a contiguous array, the first `count` of them: what follows is padding."""
    if a is None or a.size == 0:
        return None
    flat = _unsigned(a)
    return Words(flat, flat.size if count is None else count, int)


def _weights(packed: PackedWeights) -> Words:
    n, k = packed.shape
    columns = n + packed._core.encoded
    flat = _unsigned(packed._core.panels)
    # word n * K + k is W[n, k]: the next one, which a paired error strikes too, is that of the next column of B
    return Words(flat, n * k, lambda e: _packing.panel_index(columns, k, e % n, e // n))


def _encoded(packed: PackedWeights) -> Words | None:
    n, k = packed.shape
    if not packed._core.encoded:
        return None
    return Words(_unsigned(packed._core.panels), k, lambda e: _packing.panel_index(n + 1, k, n, e))


def _digits(packed: PackedWeights) -> Words | None:
    digits, k = packed._core.digits, packed.shape[1]
    if not len(digits):
        return None
    return Words(_unsigned(digits), len(digits) * k, lambda e: e // k * digits.shape[1] + e % k)


def _derived(packed: PackedWeights, name: str) -> Words | None:
    """Words of the parameters derived for the activation parameters last used."""
    epilogue = next(reversed(list(packed._epilogues.values())), None)
    if epilogue is None:
        return None
    a = getattr(epilogue, name)
    return _vector(a, None if name == "digest" else packed.shape[0])


# sites in the memory of packed weights; "at rest" means read only when parameters are derived
PACK_SITES: dict[str, Callable[[PackedWeights], Words | None]] = {
    "weights": _weights,
    "encoded_column": _encoded,
    "digits": _digits,
    "row_sums": lambda p: _vector(p._row_sums),
    "col_sums": lambda p: _vector(p._col_sums),
    "scale": lambda p: _vector(p.scale),
    "zero_point": lambda p: _vector(p.zero_point),
    "bias": lambda p: _vector(p.bias),
    "parameters.col_offsets": lambda p: _derived(p, "col_term"),
    "parameters.multiplier": lambda p: _derived(p, "mult"),
    "parameters.bias": lambda p: _derived(p, "bias"),
    "parameters.zero_point": lambda p: _derived(p, "w_zp"),
    "parameters.digest": lambda p: _derived(p, "digest"),
}
AT_REST = ("scale", "zero_point", "bias", "col_sums")


def _row_field(bag: EmbeddingBag, low: int, high: int, dtype: Any) -> Words:
    """Words of a field of every stored row; numbered row by row."""
    rows = bag.table.rows
    field = rows[:, low:high].view(dtype)
    width = field.shape[1]
    return Words(field, len(rows) * width, lambda e: divmod(e, width))


def _table_words(bag: EmbeddingBag, site: str) -> Words | None:
    """Words of rows of our own layout; rows that are only read are someone else's to strike."""
    table, bits = bag.table.data, bag.bits
    if not table.own:
        return None
    tail, halves = table.code_bytes, bits < 8  # where the two words and the digest follow the padded codes
    code = {16: np.uint16, 32: np.uint32}.get(bits, np.uint8)
    scale, bias = ((tail, tail + 2), (tail + 2, tail + 4)) if halves else ((tail, tail + 4), (tail + 4, tail + 8))
    half_or_word = np.uint16 if halves else np.uint32
    fields: dict[str, tuple[int, int, Any]] = {
        "table.codes": (0, _rows.code_bytes(table.dim, bits), code),
        "table.digest": (tail + 8, tail + 16, np.uint64),
    }
    if bits <= 8:
        fields |= {"table.scale": (*scale, half_or_word), "table.bias": (*bias, half_or_word)}
    if bits != 8:  # sums of codes, or of values and their magnitudes, which the threshold compares with
        fields["table.sums"] = (tail + 4 if halves else tail, tail + 8, np.uint32)
    return _row_field(bag, *fields[site]) if site in fields else None


TABLE_SITES = ("table.codes", "table.scale", "table.bias", "table.sums", "table.digest")


def memory(part: Part, site: str) -> Words | None:
    """Return the words of a site in the memory of a part, or None if it has none."""
    if isinstance(part, PackedWeights):
        return PACK_SITES[site](part) if site in PACK_SITES else None
    return _table_words(part, site) if site in TABLE_SITES else None


def arrays_of(part: Part) -> dict[str, Array]:
    """Return every array of a part that a fault, or a wrong heal, may change."""
    if isinstance(part, EmbeddingBag):
        return {"rows": part.table.rows}
    named = dict(part._arrays())
    for key, e in part._epilogues.items():
        derived = {"col_term": e.col_term, "w_zp": e.w_zp, "bias": e.bias, "mult": e.mult, "digest": e.digest}
        named |= {f"{key}.{name}": a for name, a in derived.items() if a is not None}
    return named


class Target:
    """What all targets have.

    Attributes
    ----------
    parts : dict
        Packed weights and tables, by the names that events give them.
    batches : list
        Inputs, each a dict of arrays or of lists of arrays that a call reads.
    relative : bool
        Whether the size of a change is relative to the largest magnitude of the output.
    """

    kernel_sites: tuple[str, ...] = ()
    relative = False

    def __init__(self, parts: dict[str, Part], batches: Sequence[Any]) -> None:
        if not len(batches):
            raise ValueError("inputs: got none, expected at least one batch")
        self.parts = parts
        self.batches = [self.batch(b) for b in batches]

    def batch(self, given: Any) -> dict[str, Any]:
        """Turn a batch as given into its arrays, contiguous and of the dtypes that calls read."""
        raise NotImplementedError

    def call(self, batch: dict[str, Any], check: str, threshold: Any) -> Array:
        """Answer a batch."""
        raise NotImplementedError

    def rows_read(self, batch: dict[str, Any], part: str) -> Array:
        """Row numbers of a table that a batch reads."""
        raise NotImplementedError

    def flows(self) -> list[str]:
        """Name the places between stages where activations can be struck."""
        return []

    def memory_sites(self) -> list[str]:
        """Name the sites in memory that some part has."""
        names = (*PACK_SITES, *TABLE_SITES)
        return [s for s in names if any(memory(part, s) is not None for part in self.parts.values())]


class ProductTarget(Target):
    """`matmul_integer` with packed weights; batches are uint8 (M, K)."""

    kernel_sites = ("accumulator", "requantised", "output", "checks")

    def __init__(self, packed: PackedWeights, batches: Sequence[Any]) -> None:
        self.packed = packed
        super().__init__({"matmul_integer": packed}, batches)

    def batch(self, given: Any) -> dict[str, Any]:
        """Turn uint8 (M, K) into a batch; given: the array."""
        return {"input": _validation.activations(given, self.packed.shape[1])}

    def call(self, batch: dict[str, Any], check: str, threshold: Any) -> Array:
        """Multiply. Arguments as for `Target.call`: batch, check, threshold (unused)."""
        return matmul_integer(batch["input"], self.packed, check=check)


class LayerTarget(Target):
    """A frozen `QuantizedLinear`; batches are float32 or uint8 (M, K)."""

    kernel_sites = ("accumulator", "requantised", "output", "checks", "codes")

    def __init__(self, layer: QuantizedLinear, batches: Sequence[Any]) -> None:
        if not layer.frozen:
            raise ValueError("target: got a layer without activation parameters, expected a frozen one")
        self.layer = layer
        super().__init__({"qlinear": layer.packed}, batches)

    def batch(self, given: Any) -> dict[str, Any]:
        """Turn floats or codes (M, K) into a batch; given: the array."""
        a, k = np.asarray(given), self.layer.packed.shape[1]
        return {"input": _validation.activations(a, k) if a.dtype == np.uint8 else _validation.float_rows(a, k, "inputs")}

    def call(self, batch: dict[str, Any], check: str, threshold: Any) -> Array:
        """Apply the layer. Arguments as for `Target.call`: batch, check, threshold (unused)."""
        return self.layer(batch["input"], check=check)


def _rows_of(bag: EmbeddingBag, indices: Array) -> Array:
    """Return the rows that indices mean, those left out that contribute nothing."""
    pruning = bag.pruning
    if pruning is None:
        return indices
    kept = indices if pruning.padding_idx is None else indices[indices != pruning.padding_idx]
    if pruning.mapping is None:
        return kept
    rows: Array = pruning.mapping[kept]
    return rows[rows >= 0]


def _require_last(index: Array, starts: Array) -> None:
    if not starts.size or starts.flat[-1] != index.size:
        got = starts.flat[-1] if starts.size else "none"
        raise ValueError(
            f"inputs: got {got} as the last of the offsets, expected the number of indices, {index.size}: offsets as for "
            "include_last_offset=True"
        )


class BagTarget(Target):
    """An EmbeddingBag; batches are (indices, offsets) with the last offset, or (indices, offsets, per_sample_weights)."""

    kernel_sites = ("bag.accumulator", "pooled", "bag.sums", "indices.consumed")
    relative = True

    def __init__(self, bag: EmbeddingBag, batches: Sequence[Any]) -> None:
        self.bag = bag
        super().__init__({"EmbeddingBag": bag}, batches)

    def batch(self, given: Any) -> dict[str, Any]:
        """Turn (indices, offsets[, weights]) into a batch; given: the tuple."""
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise ValueError(f"inputs: got {_validation.describe(given)}, expected (indices, offsets) or with weights")
        index = _validation.integers("indices", given[0], (1,))
        starts = _validation.integers("offsets", given[1], (1,)).astype(np.int64, copy=False)
        _require_last(index, starts)
        weights = None if len(given) == 2 or given[2] is None else given[2]
        factors = None if weights is None else _validation.finite_array("weights", weights, index.shape)
        return {"indices": [index], "offsets": [starts], "per_sample_weights": [] if factors is None else [factors]}

    def call(self, batch: dict[str, Any], check: str, threshold: Any) -> Array:
        """Pool. Arguments as for `Target.call`: batch, check, threshold."""
        weights = batch["per_sample_weights"]
        return self.bag(
            batch["indices"][0],
            batch["offsets"][0],
            weights[0] if weights else None,
            include_last_offset=True,
            check=check,
            threshold=threshold,
        )

    def rows_read(self, batch: dict[str, Any], part: str) -> Array:
        """Row numbers read by a batch; part is the bag's name."""
        return _rows_of(self.bag, batch["indices"][0])


class ModelTarget(Target):
    """A quantised DLRM; batches are `Requests` or (dense, indices, offsets) with the last offsets."""

    kernel_sites = (
        *("accumulator", "requantised", "output", "checks", "codes", "interaction"),
        *("bag.accumulator", "pooled", "bag.sums", "indices.consumed"),
    )

    def __init__(self, model: DLRM, batches: Sequence[Any]) -> None:
        if not model.quantized:
            raise ValueError("target: got a model that is not quantised, expected a call of quantize(samples) first")
        self.model = model
        parts: dict[str, Part] = {f"bottom.{i}": layer.packed for i, layer in enumerate(model.bottom)}
        parts |= {f"table.{t}": bag for t, bag in enumerate(model.bags)}
        super().__init__(parts | {f"top.{i}": layer.packed for i, layer in enumerate(model.top)}, batches)

    def batch(self, given: Any) -> dict[str, Any]:
        """Turn requests into a batch; given: `Requests` or (dense, indices, offsets)."""
        parts = (given.dense, given.indices, given.offsets) if isinstance(given, Requests) else given
        if not isinstance(parts, (tuple, list)) or len(parts) != 3:
            raise ValueError(f"inputs: got {_validation.describe(given)}, expected Requests or (dense, indices, offsets)")
        dense = _validation.float_rows(parts[0], self.model.bottom[0].packed.shape[1], "dense")
        indices = [np.ascontiguousarray(i) for i in parts[1]]
        offsets = [np.ascontiguousarray(o, dtype=np.int64) for o in parts[2]]
        for index, starts in zip(indices, offsets, strict=False):
            _require_last(index, starts)
        return {"dense": dense, "indices": indices, "offsets": offsets}

    def call(self, batch: dict[str, Any], check: str, threshold: Any) -> Array:
        """Answer requests. Arguments as for `Target.call`: batch, check, threshold (unused)."""
        return self.model(batch["dense"], batch["indices"], batch["offsets"], include_last_offset=True, check=check)

    def rows_read(self, batch: dict[str, Any], part: str) -> Array:
        """Row numbers of a table that a batch reads; part names the table."""
        table = int(part.removeprefix("table."))
        return _rows_of(self.model.bags[table], batch["indices"][table])

    def flows(self) -> list[str]:
        """Name the inputs of layers, the pooled vectors, and the logits."""
        layers = [f"bottom.{i}" for i in range(len(self.model.bottom))] + [f"top.{i}" for i in range(len(self.model.top))]
        return [*layers, *(["vectors"] if self.model.bags else []), "logits"]


def target_of(given: Any, batches: Sequence[Any]) -> Target:
    """Return the target that an operator or model is.

    Parameters
    ----------
    given : PackedWeights, QuantizedLinear, EmbeddingBag or DLRM
    batches : sequence
        Its inputs.

    Returns
    -------
    Target
    """
    kinds: dict[type, Any] = {
        PackedWeights: ProductTarget,
        QuantizedLinear: LayerTarget,
        EmbeddingBag: BagTarget,
        DLRM: ModelTarget,
    }
    for kind, made in kinds.items():
        if isinstance(given, kind):
            target: Target = made(given, batches)
            return target
    raise TypeError(
        f"target: got {_validation.describe(given)}, expected PackedWeights, a QuantizedLinear, an EmbeddingBag or a DLRM"
    )
