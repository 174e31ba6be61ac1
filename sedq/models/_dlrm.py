"""The model: made from float arrays, from layers or from a file; its stages, and what each hands to the next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, detection
from sedq.embedding import EmbeddingBag, IndexBatch, pool_into
from sedq.embedding._index_batch import consume
from sedq.exceptions import ModelFileError
from sedq.files import _model_file
from sedq.linear import QuantizedLinear
from sedq.models._arguments import check_parts, requests_of
from sedq.models._float import FloatDLRM, float_dlrm, mlp
from sedq.models._mlp import quantize_mlp, run_mlp
from sedq.models._stages import quantize, sigmoid

__all__ = ["DLRM"]

Array = NDArray[Any]
CHECKS = ("off", "exact", "full")


class DLRM:
    """A DLRM built from float arrays, quantised to int8, and protected.

    Parameters
    ----------
    bottom : sequence of (weight, bias)
        Layers of the bottom MLP over the dense features, weight (N, K) and bias (N,) float32, or None. ReLU between
        layers, none after the last, whose N is the dimension d of the embeddings.
    tables : sequence of ndarray of float32, (rows, d)
        Embedding tables.
    top : sequence of (weight, bias)
        Layers of the top MLP, ReLU between them. Its input is the bottom output followed by the dot products of
        vectors i and j < i in the order (1, 0), (2, 0), (2, 1), ..., the bottom output being vector 0 and the tables
        1, 2, ...; its one output is the logit.
    modes : str or sequence of str, default "sum"
        ``"sum"`` or ``"mean"``, for all tables or one per table.

    Raises
    ------
    ValueError
        For arrays that do not fit one another or hold NaN or infinities.

    References
    ----------
    M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
    arXiv:1906.00091, 2019.

    Examples
    --------
    >>> import sedq
    >>> from sedq.datasets import load_msweb
    >>> data = load_msweb()
    >>> model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    >>> c = data.calibration
    >>> model = model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)
    >>> r = data.heldout.batch(0, 4)
    >>> model(r.dense, r.indices, r.offsets, include_last_offset=True).shape
    (4,)
    """

    def __init__(
        self,
        bottom: Sequence[tuple[ArrayLike, ArrayLike | None]],
        tables: Sequence[ArrayLike],
        top: Sequence[tuple[ArrayLike, ArrayLike | None]],
        modes: str | Sequence[str] = "sum",
    ) -> None:
        self.float_model: FloatDLRM | None = float_dlrm(bottom, tables, top, modes)
        self.bottom: list[QuantizedLinear] = []
        self.bags: list[EmbeddingBag] = []
        self.top: list[QuantizedLinear] = []

    @classmethod
    def from_quantized(
        cls, bottom: Sequence[QuantizedLinear], bags: Sequence[EmbeddingBag], top: Sequence[QuantizedLinear]
    ) -> DLRM:
        """Build a model from frozen layers and bags. It has no float model.

        Parameters
        ----------
        bottom, top : sequence of QuantizedLinear
            Frozen layers; the output parameters of each are the input parameters of the next.
        bags : sequence of EmbeddingBag

        Returns
        -------
        DLRM
        """
        check_parts(bottom, bags, top)
        model = cls.__new__(cls)
        model.float_model = None
        model.bottom, model.bags, model.top = list(bottom), list(bags), list(top)
        return model

    @property
    def quantized(self) -> bool:
        """Whether the model can be called."""
        return bool(self.top)

    def __repr__(self) -> str:
        state = "quantized" if self.quantized else "float"
        tables = len(self.bags) if self.quantized or self.float_model is None else len(self.float_model.tables)
        return f"<DLRM {state}, {tables} tables>"

    def _float(self) -> FloatDLRM:
        if self.float_model is None:
            raise ValueError("model: got one loaded from a file, which has no float arrays")
        return self.float_model

    def predict_float(
        self,
        dense: ArrayLike,
        indices: Sequence[ArrayLike | IndexBatch],
        offsets: Sequence[ArrayLike | None] | None = None,
        include_last_offset: bool = False,
    ) -> NDArray[np.float32]:
        """Return the probabilities (B,) of the float model, unprotected. Arguments as for a call."""
        model = self._float()
        x, index, starts = requests_of(
            dense, indices, offsets, include_last_offset, model.bottom[0][0].shape[1], [len(t) for t in model.tables]
        )
        return model.predict(x, index, starts)

    def quantize(
        self,
        samples: tuple[ArrayLike, Sequence[ArrayLike], Sequence[ArrayLike | None] | None],
        include_last_offset: bool = False,
    ) -> DLRM:
        """Quantise the model, with parameters of the activations chosen on sample requests.

        Parameters
        ----------
        samples : (dense, indices, offsets)
            Requests as for a call; a few hundred that look like those to come.
        include_last_offset : bool, default False
            As for a call.

        Returns
        -------
        DLRM
            The model itself.

        Raises
        ------
        ValueError
            For samples that do not fit the model, or none.
        """
        model = self._float()
        if not isinstance(samples, (tuple, list)) or len(samples) != 3:
            raise ValueError(f"samples: got {_validation.describe(samples)}, expected (dense, indices, offsets)")
        x, index, starts = requests_of(
            *samples, include_last_offset, model.bottom[0][0].shape[1], [len(t) for t in model.tables]
        )
        if not len(x):
            raise ValueError("samples: got no requests, expected some")
        wide = x.astype(np.float64)
        bottom = quantize_mlp(model.bottom, wide)
        top = quantize_mlp(model.top, model.features(mlp(wide, model.bottom), index, starts))
        self.bags = [
            EmbeddingBag.from_float(w, mode=m, keep_source=True)  # type: ignore[arg-type]
            for w, m in zip(model.tables, model.modes, strict=True)
        ]
        self.bottom, self.top = bottom, top
        return self

    def __call__(
        self,
        dense: ArrayLike,
        indices: Sequence[ArrayLike | IndexBatch],
        offsets: Sequence[ArrayLike | None] | None = None,
        include_last_offset: bool = False,
        *,
        check: str | None = None,
        on_error: str | None = None,
        num_threads: int | None = None,
        threshold: Any = "bound",
    ) -> NDArray[np.float32]:
        """Return probabilities for a batch of requests.

        Parameters
        ----------
        dense : array_like of float32, (B, n_dense)
            Dense features.
        indices : sequence of array_like of int32 or int64, or of IndexBatch
            Row numbers of each table's bags, one-dimensional with `offsets`, or (B, L); an IndexBatch has its offsets.
        offsets : sequence of array_like of int32 or int64, optional
            Where each bag starts, (B,) or (B + 1,), for each table.
        include_last_offset : bool, default False
            Whether offsets have the end of the last bag as one more element.
        check : {"exact", "full", "off"}, optional
            Level of checking; None takes the surrounding one (`config_context`), "exact" by default.
        on_error : {"recover", "raise", "warn"}, optional
            What to do on a detection; None takes the surrounding setting, "recover" by default: activations that
            were corrupted between stages are computed again from the request.
        num_threads : int, optional
            Threads; None takes the surrounding setting.
        threshold : {"bound", "paper"}, float or ThresholdCalibration, default "bound"
            For the sums of the tables' bags, as for `EmbeddingBag`.

        Returns
        -------
        ndarray of float32, (B,)

        Raises
        ------
        ValueError
            For a model that is not quantised, wrong shapes, dtypes or settings, or NaN.
        IndexError
            For an index out of range.
        SoftErrorDetected
            When data was corrupted and could not, or was not to, be corrected.
        """
        settings = _config.resolve(check, on_error, num_threads)
        if settings.check not in CHECKS:
            raise ValueError(f"check: got {settings.check!r}, expected one of {', '.join(map(repr, CHECKS))} here")
        if not self.quantized:
            raise ValueError("model: got one that is not quantised, expected a call of quantize(samples) first")
        inputs, rows = self.bottom[0].packed.shape[1], [bag.num_embeddings for bag in self.bags]

        def compute(using: _config.Settings) -> Array:
            requests = requests_of(dense, indices, offsets, include_last_offset, inputs, rows)
            return detection.replayed(
                lambda kernels: self._forward(*requests, using._replace(kernels=kernels), threshold),
                using,
                lambda: [bag.version for bag in self.bags],
            )

        batches = [i for i in indices if isinstance(i, IndexBatch)] if isinstance(indices, Sequence) else []
        return consume(batches, compute, settings, "DLRM") if batches else compute(settings)

    def _forward(
        self, dense: Array, indices: list[Array], offsets: list[Array], settings: _config.Settings, threshold: Any
    ) -> NDArray[np.float32]:
        features = 1 + len(self.bags)
        vectors = np.empty((len(dense), features, self.bags[0].shape[1] if self.bags else self._dim()), np.float32)
        sums = np.empty((features, len(dense)), np.uint32)
        params = self.bottom[0]._input_parameters(settings, "quantize")
        x, x_sums = quantize(dense[:, None, :], params, settings, "quantize", None)
        vectors[:, 0], bottom_sums = run_mlp(self.bottom, x, x_sums, settings, "bottom")
        sums[0] = 0 if bottom_sums is None else bottom_sums
        for t, bag in enumerate(self.bags):
            out, name = vectors[:, t + 1], f"table.{t}"
            arrays = indices[t], offsets[t], None, out
            pool_into(bag, *arrays, settings, operator=name, threshold=threshold, y_sums=sums[t + 1])
        params = self.top[0]._input_parameters(settings, "interaction")
        x, x_sums = quantize(vectors, params, settings, "interaction", sums)
        logits, logit_sums = run_mlp(self.top, x, x_sums, settings, "top")
        return sigmoid(logits, logit_sums, settings)

    def _dim(self) -> int:
        return self.bottom[-1].packed.shape[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the quantised model to a file (``.npz``), through a temporary one.

        Rows that would have been restored from a file that the model was loaded from are restored from this one from now
        on, updated ones too.

        Parameters
        ----------
        path : path-like
            Replaced if it exists; a link is followed, and permissions are kept.

        Raises
        ------
        ValueError
            If the model is not quantised.
        SoftErrorDetected
            If its weights or tables are corrupted.
        """
        if not self.quantized:
            raise ValueError("model: got one that is not quantised, expected a call of quantize(samples) first")
        _model_file.save(path, self.bottom, self.bags, self.top)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DLRM:
        """Read a model that `save` wrote. Corrupted table rows are later restored from this file.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        DLRM
            Quantised, without a float model.

        Raises
        ------
        ModelFileError
            For a file that is truncated, altered, of a version to come, or not such a model.
        OSError
            If the file can't be read.
        """
        parts = _model_file.load(path)
        try:
            return cls.from_quantized(*parts)
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"{os.fspath(path)}: what it holds makes no model ({error})") from None
