"""Observers watch sample data and choose quantisation parameters for it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from sedq import _validation
from sedq.qparams import QParams, choose_qparams, dtype_name

__all__ = ["MinMaxObserver"]


class MinMaxObserver:
    """Smallest and largest value seen: nothing is clipped, and outliers widen the step.

    Parameters
    ----------
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle.

    Examples
    --------
    >>> import sedq
    >>> observer = sedq.MinMaxObserver()
    >>> observer.observe([0.0, 1.0]).observe([127.5])
    MinMaxObserver(low=0.0, high=127.5)
    >>> observer.qparams()
    QParams(scale=0.5, zero_point=0, dtype='uint8')
    """

    def __init__(self, dtype: Literal["uint8", "int8"] = "uint8", *, symmetric: bool = False) -> None:
        self.dtype = dtype_name(dtype)
        self.symmetric = _validation.boolean("symmetric", symmetric)
        self.low = np.inf
        self.high = -np.inf

    def observe(self, x: ArrayLike) -> MinMaxObserver:
        """Take note of data.

        Parameters
        ----------
        x : array_like of float
            Any shape; may be empty.

        Returns
        -------
        MinMaxObserver
            The observer itself.

        Raises
        ------
        ValueError
            For NaN, infinities, or what is not numbers.
        """
        a = _validation.array("x", x, "real numbers")
        if a.dtype.kind not in "fiu" and a.size:
            raise ValueError(f"x: got {_validation.describe(a)}, expected real numbers")
        if not np.isfinite(a).all():
            raise ValueError("x: got NaN or infinite values, expected finite ones")
        if a.size:
            self.low = min(self.low, float(a.min()))
            self.high = max(self.high, float(a.max()))
        return self

    def qparams(self) -> QParams:
        """Return parameters for what was seen; ValueError when nothing was."""
        if self.low > self.high:
            raise ValueError("observer: got no data, expected a call of observe() first")
        return choose_qparams(self.low, self.high, self.dtype, symmetric=self.symmetric)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(low={self.low}, high={self.high})"
