"""A linear layer quantised with parameters from sample data."""

from __future__ import annotations

import functools
import operator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, detection
from sedq._core import _dispatch
from sedq._sealed import Sealed
from sedq.exceptions import SoftErrorDetected
from sedq.linear._products import level_of, multiply, multiply_floats, packed_weights
from sedq.linear._weights import PackedWeights, activation_key, pack_weights
from sedq.quantization import MinMaxObserver, QParams, choose_qparams, quantize

__all__ = ["QuantizedLinear"]

Array = NDArray[Any]


def _activation_qparams(name: str, qparams: QParams | None) -> QParams | None:
    """Check parameters of uint8 activations, which share one scale."""
    if qparams is None:
        return None
    if not isinstance(qparams, QParams):
        raise TypeError(f"{name}: got {_validation.describe(qparams)}, expected a QParams")
    if qparams.dtype != "uint8" or np.ndim(qparams.scale):
        raise ValueError(f"{name}: got {qparams}, expected uint8 with one scale")
    return qparams


def _require_intact(kept: Sealed, name: str, settings: _config.Settings, operator: str) -> None:
    """Compare values that a layer keeps with their seal; if they differ, restore them, raise or warn as the settings say."""
    if settings.check == "off" or kept._is_intact():
        return
    findings = [detection.Finding(-1, detection.Kind.PARAMETERS)]
    if settings.on_error == "warn":
        detection.warn(operator, findings, name)
        return
    rung, verdict, detail = "raise", "unresolved", name
    if settings.on_error == "recover":
        restored = kept._restore()
        rung, verdict = ("heal" if restored else "raise"), "memory"
        detail = f"{name}: {restored}" if restored else f"still corrupted: {name}"
    events = detection.conclude(operator, findings, _dispatch.current_cpu(), rung, verdict, detail)
    if rung == "raise":
        raise SoftErrorDetected(detection.summary(events), events)


class QuantizedLinear(Sealed):
    """A linear layer quantised with parameters from sample data.

    Made by `from_float`; then `observe` sample inputs, `freeze`, and call.

    Parameters
    ----------
    packed : PackedWeights
        Weights, scales and bias.
    input_qparams, output_qparams : QParams, optional
        Parameters of the activations (uint8). Without them the layer must observe samples.
    relu : bool, default False
        Replace negative results by 0.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> rng = np.random.default_rng(0)
    >>> w = rng.normal(size=(4, 8)).astype(np.float32)
    >>> x = rng.normal(size=(100, 8)).astype(np.float32)
    >>> layer = sedq.QuantizedLinear.from_float(w, np.zeros(4, dtype=np.float32))
    >>> y = layer.observe(x).freeze()(x)
    >>> bool(abs(y - x @ w.T).max() < 0.1)
    True
    """

    _values: ClassVar[Any] = operator.attrgetter("_relu")

    def __init__(
        self,
        packed: PackedWeights,
        input_qparams: QParams | None = None,
        output_qparams: QParams | None = None,
        *,
        relu: bool = False,
    ) -> None:
        self.packed = packed_weights(packed)
        self.input_qparams = _activation_qparams("input_qparams", input_qparams)
        self.output_qparams = _activation_qparams("output_qparams", output_qparams)
        self.relu = relu
        self._observers = (MinMaxObserver(), MinMaxObserver())

    def __repr__(self) -> str:
        n, k = self.packed.shape
        return f"<QuantizedLinear {n} x {k}{', relu' if self.relu else ''}{'' if self.frozen else ', not frozen'}>"

    @classmethod
    def from_float(
        cls,
        W: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        relu: bool = False,
        per_channel: bool = True,
        keep_source: bool = False,
    ) -> QuantizedLinear:
        """Quantise float weights, symmetrically.

        Parameters
        ----------
        W : array_like of float32, (N, K)
            Weights, finite.
        bias : array_like of float32, (N,), optional
        relu : bool, default False
            Replace negative results by 0.
        per_channel : bool, default True
            One scale per output, else one for the tensor.
        keep_source : bool, default False
            Keep a reference to `W`, from which corrupted weights are restored. It must not change.

        Returns
        -------
        QuantizedLinear
        """
        per_channel = _validation.boolean("per_channel", per_channel)
        w = _validation.finite_array("W", W, (None, None))
        if not w.size:
            raise ValueError(f"W: got shape {w.shape}, expected neither dimension 0")
        largest = np.abs(w).max(axis=1) if per_channel else np.abs(w).max()
        params = choose_qparams(-largest, largest, "int8", symmetric=True)
        layer = cls(pack_weights(quantize(w, params), params.scale, bias=bias), relu=relu)
        if _validation.boolean("keep_source", keep_source):
            layer.packed._source = functools.partial(quantize, w, params)
        return layer

    @property
    def relu(self) -> bool:
        """Whether negative results are replaced by 0."""
        return self._relu

    @relu.setter
    def relu(self, value: bool) -> None:
        self._set_values(_validation.boolean("relu", value))
        self._seal()

    def _set_values(self, values: bool) -> None:
        self._relu = values

    @property
    def frozen(self) -> bool:
        """Whether the activation parameters are chosen."""
        return self.input_qparams is not None

    def observe(self, x: ArrayLike) -> QuantizedLinear:
        """Take note of sample inputs and of the outputs they give.

        Parameters
        ----------
        x : array_like of float32, (..., K)
            Inputs.

        Returns
        -------
        QuantizedLinear
            The layer itself.

        Raises
        ------
        ValueError
            For NaN or infinite values, outputs that overflow float32, another shape or dtype, or a frozen layer.
        """
        if self.frozen:
            raise ValueError(
                "The layer is frozen: samples would no longer change its activation parameters. "
                "Observe all samples before freeze(), or make a new layer with from_float() to calibrate again."
            )
        rows = _validation.float_rows(x, self.packed.shape[1])
        w = self.packed.unpack() - self.packed.zero_point[:, None]
        scale = np.broadcast_to(self.packed.scale, self.packed.shape[0])[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            y = rows @ (w * scale).T
            y = np.asarray(y if self.packed.bias is None else y + self.packed.bias, np.float32)
        if not np.isfinite(y).all():
            raise ValueError("x: got samples whose outputs overflow float32, expected smaller ones")
        self._observers[0].observe(rows)
        self._observers[1].observe(np.maximum(y, 0) if self.relu else y)
        return self

    def freeze(self) -> QuantizedLinear:
        """Choose the activation parameters from what was observed. Returns the layer; ValueError if nothing was."""
        self.input_qparams, self.output_qparams = (observer.qparams() for observer in self._observers)
        return self

    def _input_parameters(self, settings: _config.Settings, operator: str) -> QParams:
        """Return the parameters of the input, for an operator that uses them now; corrupted ones are restored first."""
        if self.input_qparams is None:
            raise ValueError("layer: got no activation parameters, expected observe() and freeze() before a call")
        _require_intact(self.input_qparams, "input_qparams", settings, operator)
        return self.input_qparams

    def _key(
        self, settings: _config.Settings, operator: str, *, to_float: bool
    ) -> tuple[float, int, float | None, int | None, bool]:
        """Return what the epilogue of a call is derived for; corrupted parameters are restored first."""
        qx, qy = self._input_parameters(settings, operator), None if to_float else self.output_qparams
        _require_intact(self, "relu", settings, operator)
        if qy is None:
            return activation_key(qx.scale, qx.zero_point, None, None, self._relu)
        _require_intact(qy, "output_qparams", settings, operator)
        return activation_key(qx.scale, qx.zero_point, qy.scale, qy.zero_point, self._relu)

    def require_intact(self, otherwise: str) -> None:
        """Restore corrupted weights and parameters, or raise SoftErrorDetected, saying what can't be done otherwise."""
        try:
            self._key(_config.resolve("exact", "recover", None), "weights", to_float=False)
        except SoftErrorDetected as error:
            raise SoftErrorDetected(otherwise, error.events) from None
        self.packed.require_intact(otherwise)

    def __call__(
        self, x: ArrayLike, *, check: str | None = None, on_error: str | None = None, num_threads: int | None = None
    ) -> Array:
        """Apply the layer.

        Parameters
        ----------
        x : array_like, (..., K)
            float32, which gives float32; or uint8 in `input_qparams`, which gives uint8 in `output_qparams`.
        check, on_error, num_threads
            As for `qlinear`.

        Returns
        -------
        ndarray of the dtype of x, (..., N)
        """
        settings = _config.resolve(check, on_error, num_threads)
        a = _validation.array("x", x, f"float32 or uint8 of shape (..., {self.packed.shape[1]})")
        if a.dtype == np.uint8:
            return self._on_codes(a, settings)
        level_of(settings, self.packed)
        rows = _validation.float_rows(a, self.packed.shape[1])
        out = np.empty((*a.shape[:-1], self.packed.shape[0]), np.float32)
        qx, key = self._input_parameters(settings, "qlinear"), self._key(settings, "qlinear", to_float=True)
        multiply_floats(rows, qx, self.packed, key, None, out.reshape(len(rows), out.shape[-1]), settings, "qlinear")
        return out

    def _on_codes(self, x: Array, settings: _config.Settings) -> Array:
        """Apply the layer to codes, which gives codes."""
        if self.frozen and self.output_qparams is None:
            raise ValueError("layer: got uint8 input without output_qparams, expected observe() and freeze() first")
        level_of(settings, self.packed)
        rows, n = _validation.activations(x, self.packed.shape[1]), self.packed.shape[0]
        y = np.empty((len(rows), n), np.uint8)
        multiply(rows, self.packed, self._key(settings, "qlinear", to_float=False), y, settings, operator="qlinear")
        return y.reshape(*x.shape[:-1], n)

    def run(
        self, x: Array, settings: _config.Settings, operator: str, x_sums: Array | None, *, to_float: bool
    ) -> tuple[Array, Array | None]:
        """Apply the layer inside a model: codes (M, K) in, codes or float32 out, with the row sums chained."""
        key = self._key(settings, operator, to_float=to_float)
        checked = settings.check != "off"
        y = np.empty((len(x), self.packed.shape[0]), np.float32 if key[2] is None else np.uint8)
        y_sums = np.empty(len(x), np.uint32) if checked else None
        multiply(x, self.packed, key, y, settings, operator=operator, x_sums=x_sums if checked else None, y_sums=y_sums)
        return y, y_sums
