"""Observers of the smallest and the largest value: of all that was seen, or of a typical batch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sedq.quantization._observer import Observer, extremes, number

__all__ = ["MinMaxObserver", "MovingAverageObserver"]

Array = NDArray[Any]


class MinMaxObserver(Observer):
    """Smallest and largest value seen: nothing is clipped, and outliers widen the step.

    Parameters
    ----------
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle.
    channel_axis : int, optional
        Axis of the channels, each of which gets parameters of its own; None for one set of parameters.

    Raises
    ------
    ValueError
        For an unknown dtype, or an argument of another type.

    Examples
    --------
    >>> import sedq
    >>> observer = sedq.MinMaxObserver()
    >>> observer.observe([0.0, 1.0]).observe([127.5])
    MinMaxObserver(low=0.0, high=127.5)
    >>> observer.qparams()
    QParams(scale=0.5, zero_point=0, dtype='uint8')
    >>> rows = sedq.MinMaxObserver("int8", symmetric=True, channel_axis=0)
    >>> rows.observe([[1.0, -127.0], [63.5, 0.0]]).qparams().scale
    array([1. , 0.5], dtype=float32)
    """


class MovingAverageObserver(Observer):
    """Smallest and largest value of a batch, averaged over batches with exponentially falling weights.

    Each call of `observe` is one batch, so that, unlike with other observers, how data is divided matters.

    Parameters
    ----------
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle.
    channel_axis : int, optional
        Axis of the channels, each of which gets parameters of its own; None for one set of parameters.
    averaging_constant : float, default 0.01
        Weight c of the newest batch: ``low += c * (min(x) - low)``. The first batch is taken as it is.

    Raises
    ------
    ValueError
        For an unknown dtype, an argument of another type, or a constant not above 0 and at most 1.

    References
    ----------
    B. Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    CVPR 2018. The arithmetic is that of PyTorch's MovingAverageMinMaxObserver, in float64.

    Examples
    --------
    >>> import sedq
    >>> observer = sedq.MovingAverageObserver(averaging_constant=0.25)
    >>> observer.observe([0.0, 100.0]).observe([-4.0, 200.0])
    MovingAverageObserver(low=-1.0, high=125.0)
    """

    def __init__(
        self,
        dtype: Literal["uint8", "int8"] = "uint8",
        *,
        symmetric: bool = False,
        channel_axis: int | None = None,
        averaging_constant: float = 0.01,
    ) -> None:
        super().__init__(dtype, symmetric=symmetric, channel_axis=channel_axis)
        self.averaging_constant = number("averaging_constant", averaging_constant, 0, 1)

    def _update(self, rows: Array) -> None:
        low, high = extremes(rows)
        if np.isfinite(self.low).all():
            c = self.averaging_constant
            # not low + c * (new - low), whose difference may overflow
            low, high = (1 - c) * self.low + c * low, (1 - c) * self.high + c * high
        self._set(low, high)
