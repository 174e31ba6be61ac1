"""int8 matrix products that check themselves.

The way of a call: validate -> column parameters (cached in the pack) -> `_core._gemm.linear`, which multiplies and
verifies -> the result, or `recovery.handle` with a `_Product`, which heals the weights and computes rows again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, detection
from sedq._core import _dense, _dispatch, _gemm, _packing
from sedq.linear import _encoding
from sedq.linear._healing import Key
from sedq.linear._weights import PackedWeights, activation_key
from sedq.quantization import QParams, choose_qparams

__all__ = ["matmul_integer", "multiply", "multiply_floats", "qlinear", "qlinear_dynamic", "quantize_activations"]

Array = NDArray[Any]
LEVELS = {
    "off": _gemm.CHECK_OFF,
    "exact": _gemm.CHECK_EXACT,
    "full": _gemm.CHECK_FULL,
    "mod127": _gemm.CHECK_MOD127,
}
CHECKSUMS = ("digits", "row_sums")  # what only checks read: no answer depends on it


def level_of(settings: _config.Settings, packed: PackedWeights) -> int:
    level = LEVELS.get(settings.check)
    if level is None:
        raise ValueError(f"check: got {settings.check!r}, expected one of {', '.join(map(repr, LEVELS))} here")
    needed = "mod127" if settings.check == "mod127" else "exact"
    if level and needed not in packed.encode:
        raise ValueError(
            f"check: got {settings.check!r}, expected one that these weights are encoded for, {packed.encode}; "
            f"pack them with encode=({needed!r},)"
        )
    return level


def multiply(
    x: Array,
    packed: PackedWeights,
    key: Key,
    out: Array,
    settings: _config.Settings,
    *,
    operator: str,
    epilogue: _packing.Epilogue | None = None,
    x_sums: Array | None = None,
    y_sums: Array | None = None,
) -> None:
    """Multiply x (M, K) into out (M, N) as the settings say, and recover if a check disagrees.

    `key` is what the epilogue is derived for: activation parameters, or the zero point of an int32 product. An `epilogue`
    given is used as it is; without one the pack's cache is asked. x_sums and y_sums are the chained row sums between the
    layers of a model.
    """
    level, threads = level_of(settings, packed), settings.num_threads or 0
    if epilogue is None:
        epilogue = _epilogue(packed, key)
    heals = packed.heals  # by this thread, too, as it looked for the epilogue: what is healed later may explain a finding
    found = _gemm.linear(settings.kernels, packed._core, epilogue, x, out, level, threads, x_sums, y_sums)
    if level:
        detection.count_checks(operator, len(x))
    if found is not None:
        product = _Product(operator, x, packed, key, epilogue, out, x_sums, y_sums, level, threads, heals, found)
        detection.handle(product, found, settings, has_writer=x_sums is not None)


class _Product:
    """A product whose checks disagreed: its weights are healed, and it is computed again."""

    def __init__(
        self,
        operator: str,
        x: Array,
        packed: PackedWeights,
        key: Key,
        epilogue: _packing.Epilogue,
        out: Array,
        x_sums: Array | None,
        y_sums: Array | None,
        level: int,
        threads: int,
        heals: int,
        found: detection.Findings,
    ) -> None:
        self.operator = operator
        self._x, self._packed, self._key, self._epilogue, self._out = x, packed, key, epilogue, out
        self._x_sums, self._y_sums, self._level, self._threads = x_sums, y_sums, level, threads
        self._heals, self._kinds = heals, found.kinds

    def repair(self) -> detection.Repair:
        report = self._packed.heal_in_call()
        restored = "; ".join(report.healed) or self._packed.healed_since(self._heals, self._kinds)
        if not restored and not _encoding.intact(self._epilogue):  # forgotten before this call began
            restored = "parameters derived again"
        corrupted = [name for name in report.corrupted if name not in CHECKSUMS]
        noted = [name for name in report.corrupted if name in CHECKSUMS]
        return detection.Repair(restored, ", ".join(corrupted), ", ".join(noted))

    def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
        again, sums = np.empty_like(self._out), np.zeros(len(self._x), np.uint32)
        # derived anew each time, so that the paths share nothing that a fault may have made wrong
        epilogue = _derived(self._packed, self._key, cache=False)
        found = _gemm.linear(
            kernels, self._packed._core, epilogue, self._x, again, self._level, self._threads, self._x_sums, sums
        )
        return detection.Attempt((again, sums), found or [])

    def is_rounding(self, finding: detection.Finding, answer: detection.Attempt) -> bool:
        return False

    def accept(self, answer: detection.Attempt) -> None:
        self._out[...], sums = answer.outputs
        if self._y_sums is not None:
            self._y_sums[...] = sums


def _epilogue(packed: PackedWeights, key: Key) -> _packing.Epilogue:
    made = packed._epilogues.get(key)
    return _derived(packed, key, cache=True) if made is None else made


def _derived(packed: PackedWeights, key: Key, *, cache: bool) -> _packing.Epilogue:
    return packed.integer_epilogue(key, cache=cache) if isinstance(key, int) else packed.epilogue(*key, cache=cache)


def packed_weights(packed: PackedWeights) -> PackedWeights:
    if not isinstance(packed, PackedWeights):
        raise TypeError(f"packed: got {_validation.describe(packed)}, expected the result of sedq.pack_weights")
    return packed


def quantize_activations(
    rows: Array, params: QParams, settings: _config.Settings, operator: str
) -> tuple[Array, Array | None]:
    """Quantise float rows (M, K) twice and compare; return codes, and their row sums for whoever reads them."""
    checked = settings.check in ("exact", "full")
    codes, sums = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.uint32)

    def run(kernels: _dispatch.Context, outputs: tuple[Array, ...]) -> list[detection.Finding] | None:
        threads = settings.num_threads or 0
        return _dense.quantize_rows(kernels, rows, params.scale, params.zero_point, outputs[0], checked, threads, outputs[1])

    detection.checked_stage(run, (codes, sums), settings, operator, 0, has_writer=False)
    return codes, sums if checked else None


def _range_of(rows: Array, settings: _config.Settings) -> tuple[Any, Any]:
    """Return the smallest and largest value of rows, found a second time with all values one lane further on."""
    flat, limits = rows.reshape(-1), np.empty(2, np.float32)

    def run(kernels: _dispatch.Context, outputs: tuple[Array, ...]) -> list[detection.Finding] | None:
        outputs[0][:] = flat.min(), flat.max()
        if settings.check == "off":
            return None
        rest = flat[1:] if flat.size > 1 else flat
        again = min(flat[0], rest.min()), max(flat[0], rest.max())
        return [detection.Finding(-1, detection.Kind.REPEAT)] if tuple(outputs[0]) != again else None

    detection.checked_stage(run, (limits,), settings, "quantize", 0, has_writer=False)
    return limits[0], limits[1]


def multiply_floats(
    rows: Array,
    params: QParams,
    packed: PackedWeights,
    key: Key,
    epilogue: _packing.Epilogue | None,
    out: Array,
    settings: _config.Settings,
    operator: str,
) -> None:
    """Quantise float rows and multiply the codes, whose row sums go along; again from the floats if codes were struck."""

    def compute(kernels: _dispatch.Context) -> Array:
        using = settings._replace(kernels=kernels)
        codes, sums = quantize_activations(rows, params, using, "quantize")
        multiply(codes, packed, key, out, using, operator=operator, epilogue=epilogue, x_sums=sums)
        return out

    answer = detection.replayed(compute, settings)
    if answer is not out:
        out[...] = answer


def matmul_integer(
    x: ArrayLike,
    packed: PackedWeights,
    x_zero_point: int = 0,
    *,
    check: str | None = None,
    on_error: str | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> NDArray[np.int32]:
    """Multiply quantised activations with quantised weights into int32.

    ``C = (x - x_zero_point) @ (W - zero_point).T``; scales and bias are ignored.

    Parameters
    ----------
    x : array_like of uint8, (..., K)
        Activations.
    packed : PackedWeights
        Weights (N, K) from `pack_weights`.
    x_zero_point : int, default 0
        Zero point of x, 0 to 255.
    check : {"exact", "full", "mod127", "off"}, optional
        Level of checking; None takes the surrounding one (`config_context`), "exact" by default.
    on_error : {"recover", "raise", "warn"}, optional
        What to do on a detection; None takes the surrounding setting, "recover" by default.
    out : ndarray of int32, (..., N), optional
        Where to write; C-contiguous.
    num_threads : int, optional
        Threads; None takes the surrounding setting.

    Returns
    -------
    ndarray of int32, (..., N)

    Raises
    ------
    ValueError
        For wrong shapes, dtypes or settings, before anything is computed.
    SoftErrorDetected
        When data was corrupted and could not, or was not to, be corrected.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.array([[1, 2], [3, -4]], dtype=np.int8))
    >>> sedq.matmul_integer(np.array([[10, 20]], dtype=np.uint8), packed)
    array([[ 50, -50]], dtype=int32)
    """
    settings = _config.resolve(check, on_error, num_threads)
    n, k = packed_weights(packed).shape
    level_of(settings, packed)
    rows = _validation.activations(x, k)
    key = _validation.integer("x_zero_point", x_zero_point, 0, 255)
    result = _validation.output(out, (*np.shape(x)[:-1], n), np.int32, (rows,))
    multiply(rows, packed, key, result.reshape(len(rows), n), settings, operator="matmul_integer")
    return result


def qlinear(
    x: ArrayLike,
    packed: PackedWeights,
    *,
    x_scale: float,
    x_zero_point: int,
    y_scale: float | None = None,
    y_zero_point: int | None = None,
    relu: bool = False,
    check: str | None = None,
    on_error: str | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Quantised linear layer: uint8 in, uint8 or float32 out.

    ``y = x_scale * scale * ((x - x_zero_point) @ (W - zero_point).T) + bias``, requantised with ``y_scale`` and
    ``y_zero_point`` if they are given, as FBGEMM and PyTorch do (``numerics`` in the documentation gives every rounding).

    Parameters
    ----------
    x : array_like of uint8, (..., K)
        Activations.
    packed : PackedWeights
        Weights (N, K) from `pack_weights`, with their scale, zero point and bias.
    x_scale, x_zero_point : float, int
        Parameters of x.
    y_scale, y_zero_point : float, int, optional
        Parameters of the output. Without them the output is float32.
    relu : bool, default False
        Replace negative results by 0.
    check : {"exact", "full", "mod127", "off"}, optional
        Level of checking; None takes the surrounding one (`config_context`), "exact" by default. ``"full"`` also runs
        the arithmetic of requantisation twice.
    on_error : {"recover", "raise", "warn"}, optional
        What to do on a detection; None takes the surrounding setting, "recover" by default.
    out : ndarray, (..., N), optional
        Where to write; C-contiguous, of the output's dtype.
    num_threads : int, optional
        Threads; None takes the surrounding setting.

    Returns
    -------
    ndarray of uint8 or float32, (..., N)

    Raises
    ------
    ValueError
        For wrong shapes, dtypes, parameters or settings, before anything is computed.
    SoftErrorDetected
        When data was corrupted and could not, or was not to, be corrected.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.array([[1, 2], [3, -4]], dtype=np.int8), scale=0.5)
    >>> x = np.array([[10, 20]], dtype=np.uint8)
    >>> sedq.qlinear(x, packed, x_scale=0.1, x_zero_point=0)
    array([[ 2.5, -2.5]], dtype=float32)
    >>> sedq.qlinear(x, packed, x_scale=0.1, x_zero_point=0, y_scale=0.5, y_zero_point=10)
    array([[15,  5]], dtype=uint8)
    """
    settings = _config.resolve(check, on_error, num_threads)
    n, k = packed_weights(packed).shape
    rows = _validation.activations(x, k)
    key: Any = (x_scale, x_zero_point, y_scale, y_zero_point, relu)
    epilogue = None
    # as they stand in the cache: 0, 0.0 and False would be found as one another
    to_float = y_scale is None and y_zero_point is None
    typed = to_float or (type(y_scale) is float and type(y_zero_point) is int)
    if typed and type(x_scale) is float and type(x_zero_point) is int and type(relu) is bool:
        epilogue = packed._epilogues.get(key)
    if epilogue is None:
        key = activation_key(*key)
        epilogue = _epilogue(packed, key)
    if out is None and rows is x:  # the usual case, thin
        result = flat = np.empty((len(rows), n), epilogue.dtype)
    else:
        result = _validation.output(out, (*np.shape(x)[:-1], n), epilogue.dtype, (rows,))
        flat = result.reshape(len(rows), n)
    multiply(rows, packed, key, flat, settings, operator="qlinear", epilogue=epilogue)
    return result


def qlinear_dynamic(
    x: ArrayLike,
    packed: PackedWeights,
    relu: bool = False,
    *,
    reduce_range: bool = False,
    check: str | None = None,
    on_error: str | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> NDArray[np.float32]:
    """Quantised linear layer on float activations, whose minimum and maximum choose scale and zero point.

    Parameters
    ----------
    x : array_like of float32, (..., K)
        Activations; the whole tensor shares one scale.
    packed : PackedWeights
        Weights (N, K) from `pack_weights`.
    relu : bool, default False
        Replace negative results by 0.
    reduce_range : bool, default False
        Quantise to seven bits, as PyTorch's dynamic modules do.
    check, on_error, out, num_threads
        As for `qlinear`; the output is float32.

    Returns
    -------
    ndarray of float32, (..., N)

    Raises
    ------
    ValueError
        For NaN or infinite activations, wrong shapes, dtypes or settings.
    SoftErrorDetected
        When data was corrupted and could not, or was not to, be corrected.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.array([[1, 2], [3, -4]], dtype=np.int8), scale=0.5)
    >>> sedq.qlinear_dynamic(np.array([[0.0, 2.55]], dtype=np.float32), packed)
    array([[ 2.55, -5.1 ]], dtype=float32)
    """
    settings = _config.resolve(check, on_error, num_threads)
    n, k = packed_weights(packed).shape
    level_of(settings, packed)
    rows = _validation.float_rows(x, k)
    relu, reduce_range = _validation.boolean("relu", relu), _validation.boolean("reduce_range", reduce_range)
    result = _validation.output(out, (*np.shape(x)[:-1], n), np.float32, (rows,))
    if not rows.size:
        return result
    low, high = _range_of(rows, settings)
    params = choose_qparams(low, high, reduce_range=reduce_range)
    key = (params.scale, params.zero_point, None, None, relu)
    epilogue = packed.epilogue(*key, cache=False)
    multiply_floats(rows, params, packed, key, epilogue, result.reshape(len(rows), n), settings, "qlinear_dynamic")
    return result
