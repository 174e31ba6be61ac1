"""Packing of int8 weights, and the parameters that a product with them needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq._core import _packing
from sedq.linear import _encoding
from sedq.linear._healing import Healing, Key

__all__ = ["PackedWeights", "activation_key", "pack_weights"]

Array = NDArray[Any]

# The largest K for which an int32 accumulator can't wrap, whatever the input (255 * 128 * K, and 255 * 255 * K).
MAX_K = 65_793
MAX_K_ASYMMETRIC = 33_025
# what four digits of a row sum hold
MAX_N = 16_843_009
ENCODINGS = ("exact", "mod127")
CACHED_EPILOGUES = 32


class PackedWeights(Healing):
    """int8 weights of a linear layer, packed for the kernels and encoded for the checks. Made by `pack_weights`.

    Attributes
    ----------
    shape : tuple of int
        (N, K).
    scale : ndarray of float32, () or (N,)
        Scale of the weights.
    zero_point : ndarray of int32, (N,)
        Zero point of the weights.
    bias : ndarray of float32, (N,), or None
    encode : tuple of str
        The checks that the pack is encoded for.
    """

    def __init__(self, w: Array, scale: Array, zero_point: Array, bias: Array | None, encode: tuple[str, ...]) -> None:
        self.shape = w.shape
        self.encode = encode
        n, k = w.shape
        self.scale, self.zero_point, self.bias = scale, zero_point, bias
        self._row_sums = w.sum(axis=0, dtype=np.int64)
        self._col_sums = w.sum(axis=1, dtype=np.int64)
        digits = _encoding.encode(self._row_sums, n) if "exact" in encode else np.zeros((0, -(-k // 128) * 128), np.int8)
        panels = _encoding.aligned(_packing.packed_size(n + ("mod127" in encode), k), np.int8)
        self._pack(w, panels)
        self._core = _packing.PackedB(n, k, panels, digits, "mod127" in encode)
        self._spare = {name: a.copy() for name, a in self._parameters().items()}
        self._crcs = {name: _encoding.crc(a) for name, a in self._arrays().items()}
        self._epilogues = {}
        self._healed = ()
        self._source = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy is encoded anew, which would make corrupted weights look right
        self.require_intact(f"{self!r} is corrupted and can't be copied: pack the weights again")
        state = {"_source": self._source}
        return type(self), (self.unpack(), self.scale, self.zero_point, self.bias, self.encode), state

    def __repr__(self) -> str:
        return f"<PackedWeights {self.shape[0]} x {self.shape[1]} int8, encode={self.encode}>"

    # ---- parameters of the epilogue

    def epilogue(
        self, x_scale: float, x_zero_point: int, y_scale: float | None, y_zero_point: int | None, relu: bool, *, cache: bool
    ) -> _packing.Epilogue:
        """Return the column parameters for these activation parameters, derived and digested."""
        self._restore_parameters()
        low, high = (0.0 if relu else -np.inf), 0.0
        bias = np.zeros(self.shape[0], np.float32) if self.bias is None else self.bias
        with np.errstate(all="ignore"):  # what overflows or vanishes is refused below
            aw = np.float32(x_scale) * self.scale
            mult = aw
            if y_scale is not None:
                mult = aw / np.float32(y_scale)
                # one scale: times the reciprocal; a scale per channel: divided. As FBGEMM and PyTorch do.
                bias = bias * (np.float32(1) / aw) if self.scale.ndim == 0 else bias / aw
        y_zp = y_zero_point or 0
        if y_scale is not None:
            low, high = float((y_zp if relu else 0) - y_zp), float(255 - y_zp)
        if not (np.isfinite(mult).all() and np.isfinite(bias).all()) or not np.all(mult):
            raise ValueError(
                f"scales: got x_scale {x_scale}, y_scale {y_scale} and weight scales whose product or quotient leaves "
                "the range of float32, expected scales nearer to 1"
            )
        made = self._make_epilogue(np.float32 if y_scale is None else np.uint8, x_zero_point, bias, mult, low, high, y_zp)
        if cache:
            self._remember((x_scale, x_zero_point, y_scale, y_zero_point, relu), made)
        return made

    def integer_epilogue(self, x_zero_point: int, *, cache: bool) -> _packing.Epilogue:
        """Return the column parameters of an int32 product."""
        self._restore_parameters()
        made = self._make_epilogue(np.int32, x_zero_point, None, None, 0.0, 0.0, 0)
        if cache:
            self._remember(x_zero_point, made)
        return made

    def _make_epilogue(
        self, dtype: type, x_zp: int, bias: Array | None, mult: Array | None, low: float, high: float, y_zp: int
    ) -> _packing.Epilogue:
        n, k = self.shape
        zero_point = self.zero_point.astype(np.int64)
        term = _padded(_wrapped(x_zp * (self._col_sums - k * zero_point)), np.int32)
        w_zp = _padded(self.zero_point, np.int32) if zero_point.any() else None
        b, m = (None if v is None else _padded(np.broadcast_to(v, n), np.float32) for v in (bias, mult))
        digest = np.zeros(-(-n // _packing.PANEL_COLUMNS), np.uint64)
        made = _packing.Epilogue(dtype, n, term, w_zp, b, m, digest, low, high, y_zp)
        digest[...] = _encoding.digest(made)
        return made

    def _remember(self, key: Key, made: _packing.Epilogue) -> None:
        if len(self._epilogues) >= CACHED_EPILOGUES:
            self._epilogues.pop(next(iter(list(self._epilogues)), 0), None)  # other threads may do the same
        self._epilogues[key] = made


def _padded(values: Array, dtype: type) -> Array:
    """Return per-column values padded with zeros to whole panel steps."""
    step = _packing.PANEL_STEP
    out = _encoding.aligned(-(-values.size // step) * step, dtype)
    out[: values.size] = values
    return out


def _wrapped(values: Array) -> Array:
    """Return int64 values as int32, modulo 2^32."""
    return (values & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def pack_weights(
    W: ArrayLike,
    scale: ArrayLike = 1.0,
    zero_point: ArrayLike = 0,
    bias: ArrayLike | None = None,
    encode: tuple[str, ...] = ("exact",),
) -> PackedWeights:
    """Pack the int8 weights of a linear layer for the kernels, and encode them for the checks.

    Parameters
    ----------
    W : array_like of int8, (N, K)
        Weights, one row per output, at most 16,843,009. K is at most 65,793, or 33,025 with a zero point other than 0,
        so that no int32 accumulator can wrap.
    scale : float or array_like of float, () or (N,), default 1.0
        Scale of the weights, per tensor or per channel.
    zero_point : int or array_like of int, () or (N,), default 0
        Zero point of the weights, from -128 to 127.
    bias : array_like of float32, (N,), optional
        Added to the real-valued result.
    encode : tuple of str, default ("exact",)
        Checks to encode for: ``"exact"``, ``"mod127"``. A product can only be checked at a level that its weights are
        encoded for.

    Returns
    -------
    PackedWeights

    Raises
    ------
    ValueError
        For another dtype or shape, a scale that is not positive and finite, or an unknown encoding.

    Notes
    -----
    ``"mod127"`` is the scheme of Li et al. (arXiv:2103.00130): the sums of the rows of B modulo 127 stand as one more
    column of the packed weights, which the same kernel multiplies. The check ``"exact"`` stores ``s_k = sum_n W[n, k]`` in
    balanced base 256: two digits for N <= 257, three for N <= 65,793. Its cost is a dot product of each row of the input
    with each digit.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.eye(3, dtype=np.int8), scale=0.5)
    >>> packed
    <PackedWeights 3 x 3 int8, encode=('exact',)>
    """
    w = _validation.array("W", W, "int8 of shape (N, K)")
    if w.dtype != np.int8 or w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"W: got {_validation.describe(w)}, expected int8 of shape (N, K), neither 0")
    n, k = w.shape
    s = _validation.array("scale", scale, f"float32 of shape () or ({n},)")
    s = _validation.finite_array("scale", s, () if s.ndim == 0 else (n,))
    if (s < _validation.FLOAT32_TINY).any():
        raise ValueError(f"scale: got {np.min(np.asarray(scale))}, expected positive numbers in the range of float32")
    zp = _validation.array("zero_point", zero_point, f"integers of shape () or ({n},)")
    if zp.dtype.kind in "iu" and ((zp < -128) | (zp > 127)).any():
        raise ValueError(f"zero_point: got {zp[(zp < -128) | (zp > 127)].flat[0]}, expected integers from -128 to 127")
    if zp.dtype.kind not in "iu" or zp.shape not in ((), (n,)):
        raise ValueError(
            f"zero_point: got {_validation.describe(zp)}, expected integers from -128 to 127 of shape () or ({n},)"
        )
    if n > MAX_N:
        raise ValueError(f"W: got N = {n}, expected at most {MAX_N}")
    limit = MAX_K_ASYMMETRIC if zp.any() else MAX_K
    if k > limit:
        raise ValueError(
            f"W: got K = {k}, expected at most {limit}{' with a zero point other than 0' if zp.any() else ''}, "
            "beyond which int32 accumulators can wrap"
        )
    if not isinstance(encode, (tuple, list)) or any(not isinstance(e, str) or e not in ENCODINGS for e in encode):
        raise ValueError(f"encode: got {encode!r}, expected a tuple of {', '.join(map(repr, ENCODINGS))}")
    b = None if bias is None else _validation.finite_array("bias", bias, (n,)).copy()
    zero = np.broadcast_to(zp.astype(np.int32), n).copy()
    return PackedWeights(np.ascontiguousarray(w), s.copy(), zero, b, tuple(encode))


def activation_key(
    x_scale: float, x_zero_point: int, y_scale: float | None, y_zero_point: int | None, relu: bool
) -> tuple[float, int, float | None, int | None, bool]:
    """Check the activation parameters of a product and return them normalised."""
    xs = _validation.positive_scalar("x_scale", x_scale)
    xz = _validation.integer("x_zero_point", x_zero_point, 0, 255)
    if (y_scale is None) != (y_zero_point is None):
        raise ValueError(
            f"y_scale, y_zero_point: got {y_scale!r} and {y_zero_point!r}, expected both (uint8 output) or neither"
        )
    relu = _validation.boolean("relu", relu)
    if y_scale is None or y_zero_point is None:
        return xs, xz, None, None, relu
    ys = _validation.positive_scalar("y_scale", y_scale)
    return xs, xz, ys, _validation.integer("y_zero_point", y_zero_point, 0, 255), relu
