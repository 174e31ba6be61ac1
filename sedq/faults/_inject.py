"""Flip bits where a fault would: in arrays, packed weights, table rows, accumulators, activations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _config, _validation
from sedq._core import _faultkernels, _packing, _rows
from sedq.embedding import EmbeddingBag
from sedq.linear import PackedWeights, QuantizedLinear
from sedq.models import DLRM

__all__ = [
    "Strike",
    "accumulator_fault",
    "activation_fault",
    "count_visits",
    "flip_bit",
    "flip_row_bit",
    "flip_weight_bit",
]

Array = NDArray[Any]
UNREACHED = 2**62


@dataclass
class Strike:
    """Whether an armed fault struck.

    Attributes
    ----------
    fired : int
        How often the fault struck; known when the ``with`` block has ended.
    """

    fired: int = 0


def flip_bit(array: Array, byte: int, bit: int) -> None:
    """Flip one bit of an array's memory, in place.

    Parameters
    ----------
    array : ndarray
        C-contiguous and writeable.
    byte : int
        Which byte of its memory.
    bit : int
        Which bit of that byte, 0 to 7.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> a = np.zeros(2, dtype=np.uint8)
    >>> faults.flip_bit(a, 1, 3)
    >>> a
    array([0, 8], dtype=uint8)
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array: got {_validation.describe(array)}, expected an ndarray")
    if not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError("array: got a read-only or non-contiguous array, expected a writeable C-contiguous one")
    if not 0 <= byte < array.nbytes or not 0 <= bit < 8:
        raise ValueError(f"got byte {byte}, bit {bit}, expected a byte below {array.nbytes} and a bit below 8")
    array.reshape(-1).view(np.uint8)[byte] ^= np.uint8(1 << bit)


def flip_weight_bit(packed: PackedWeights, n: int, k: int, bit: int) -> None:
    """Flip one bit of weight W[n, k] as it is stored in the packed panels.

    Parameters
    ----------
    packed : PackedWeights
    n, k : int
        Output and input of the weight.
    bit : int
        Which bit, 0 to 7.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> from sedq import faults
    >>> packed = sedq.pack_weights(np.ones((3, 4), dtype=np.int8))
    >>> faults.flip_weight_bit(packed, 2, 1, 4)
    >>> packed.unpack()[2]
    array([ 1, 17,  1,  1], dtype=int8)
    """
    if not isinstance(packed, PackedWeights):
        raise TypeError(f"packed: got {_validation.describe(packed)}, expected PackedWeights")
    columns, depth = packed.shape
    if not 0 <= n < columns or not 0 <= k < depth:
        raise ValueError(f"got W[{n}, {k}], expected indices within {packed.shape}")
    flip_bit(packed._core.panels, _packing.panel_index(columns + packed._core.encoded, depth, n, k), bit)


def flip_row_bit(bag: EmbeddingBag, row: int, bit: int) -> None:
    """Flip one bit of a stored row: codes, scale, bias or digest.

    Parameters
    ----------
    bag : EmbeddingBag
    row : int
        Row number.
    bit : int
        Counted from the row's first byte, the padding of the codes left out; there are 8 (d + 16) of them with 8-bit codes.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> from sedq import faults
    >>> bag = sedq.EmbeddingBag.from_float(np.ones((3, 4), dtype=np.float32))
    >>> faults.flip_row_bit(bag, 1, 0)
    >>> bag.bad_rows()
    [1]
    """
    if not isinstance(bag, EmbeddingBag):
        raise TypeError(f"bag: got {_validation.describe(bag)}, expected an EmbeddingBag")
    rows, dim = bag.shape
    codes, table = _rows.code_bytes(dim, bag.bits), bag.table.data
    if not table.own:
        raise ValueError(f"bag: got {bag!r} over rows that are only read, expected one with rows of its own")
    if not 0 <= row < rows or not 0 <= bit < 8 * (codes + _rows.TAIL):
        raise ValueError(f"got row {row}, bit {bit}, expected a row below {rows} and a bit below {8 * (codes + _rows.TAIL)}")
    byte = bit // 8
    flip_bit(table.rows, row * table.stride + (byte if byte < codes else byte + table.code_bytes - codes), bit % 8)


@contextmanager
def accumulator_fault(
    kernel: str = "tile", *, visit: int = 0, element: int = 0, flip: int = 1, repeat: int = 1
) -> Iterator[Strike]:
    """Flip bits of one accumulator inside a kernel, during the calls of a ``with`` block.

    Calls in the block run on the hooked build of the kernels, on one thread.

    Parameters
    ----------
    kernel : {"tile", "bag"}, default "tile"
        The micro-kernel of the matrix product, visited once per tile (rows of a tile by 64 columns), or that of the
        EmbeddingBag, visited once per bag (and block of columns: 256 on AVX-512, 64 on AVX2, all on the reference).
    visit : int, default 0
        The visit at which the fault strikes.
    element : int, default 0
        Which accumulator, taken modulo the number there is.
    flip : int, default 1
        Mask of the bits to flip, 32 bits.
    repeat : int, default 1
        How many visits in a row are struck.

    Yields
    ------
    Strike

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> from sedq import faults
    >>> packed = sedq.pack_weights(np.ones((3, 4), dtype=np.int8))
    >>> with sedq.monitor() as m, faults.accumulator_fault(flip=1 << 30) as strike:
    ...     y = sedq.matmul_integer(np.ones((1, 4), dtype=np.uint8), packed)
    >>> strike.fired, m.detections, y
    (1, 1, array([[4, 4, 4]], dtype=int32))
    """
    if kernel not in ("tile", "bag"):
        raise ValueError(f"kernel: got {kernel!r}, expected 'tile' or 'bag'")
    plan = (
        _validation.integer("visit", visit, 0, UNREACHED),
        _validation.integer("element", element, 0, UNREACHED),
        _validation.integer("flip", flip, 0, 2**32 - 1),
        _validation.integer("repeat", repeat, 1, UNREACHED),
    )
    strike = Strike()
    outcome = (0, 0, 0)
    try:
        with hooked_call(kernel, plan) as outcome_of:
            try:
                yield strike
            finally:
                outcome = outcome_of()
    finally:
        strike.fired = outcome[0]


_armed: set[tuple[str, int]] = set()  # by kernel and thread: plans belong to a thread


@contextmanager
def hooked_call(kernel: str, plan: tuple[Any, ...]) -> Iterator[Callable[[], tuple[int, int, int]]]:
    """Run the calls of a block on hooked kernels, with a plan; what is yielded ends the plan and tells its outcome."""
    mark = (kernel, threading.get_ident())
    if mark in _armed:
        raise RuntimeError(f"kernel: got {kernel!r}, for which a fault is armed already, expected one at a time")
    hooked = _faultkernels.hooked(_config.get_config().kernels.name)
    _armed.add(mark)
    _faultkernels.arm(kernel, *plan)
    try:
        with _config.use_kernels(hooked), _config.config_context(num_threads=1):
            yield lambda: _faultkernels.disarm(kernel)
    finally:
        _faultkernels.disarm(kernel)
        _armed.discard(mark)


def count_visits(call: Callable[[], object], kernel: str = "tile") -> int:
    """Count how often a call visits a kernel, so that a fault can be placed at a random visit.

    Parameters
    ----------
    call : callable
        Without arguments.
    kernel : {"tile", "bag"}, default "tile"
        As for `accumulator_fault`.

    Returns
    -------
    int
    """
    if kernel not in ("tile", "bag"):
        raise ValueError(f"kernel: got {kernel!r}, expected 'tile' or 'bag'")
    with hooked_call(kernel, (UNREACHED, 0, 0, 1)) as outcome:
        call()
        _, left, _ = outcome()
    return UNREACHED - left


class StruckLayer(QuantizedLinear):
    """A layer whose input is struck before its first read, or its output after its last."""

    def __init__(
        self,
        layer: QuantizedLinear,
        before: Callable[[Array], object] | None,
        after: Callable[[Array], object] | None = None,
    ) -> None:
        self.__dict__.update(layer.__dict__)
        self._before, self._after = before, after

    def run(
        self, x: Array, settings: _config.Settings, operator: str, x_sums: Array | None, *, to_float: bool
    ) -> tuple[Array, Array | None]:
        if self._before is not None:
            self._before(x)
        y, y_sums = super().run(x, settings, operator, x_sums, to_float=to_float)
        if self._after is not None:
            self._after(y)
        return y, y_sums


@contextmanager
def activation_fault(model: DLRM, mlp: str, layer: int, *, byte: int = 0, bit: int = 0) -> Iterator[Strike]:
    """Flip one bit of the activations that a layer of a model reads, once, after they were written.

    Parameters
    ----------
    model : DLRM
        Quantised.
    mlp : {"bottom", "top"}
        Which MLP.
    layer : int
        Whose input is struck.
    byte : int, default 0
        Which byte of the (B, K) activations, modulo their number.
    bit : int, default 0
        Which bit, 0 to 7.

    Yields
    ------
    Strike
    """
    if mlp not in ("bottom", "top"):
        raise ValueError(f"mlp: got {mlp!r}, expected 'bottom' or 'top'")
    if not isinstance(model, DLRM) or not model.quantized:
        raise ValueError(f"model: got {model!r}, expected a quantised DLRM")
    layers: list[QuantizedLinear] = getattr(model, mlp)
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer: got {layer}, expected 0 to {len(layers) - 1}")
    strike, sound = Strike(), layers[layer]

    def flip(x: Array) -> None:
        if not strike.fired and x.size:
            flip_bit(x, byte % x.size, bit)
            strike.fired += 1

    layers[layer] = StruckLayer(sound, flip)
    try:
        yield strike
    finally:
        layers[layer] = sound
