"""Checksums of a product that one has: find the elements of C that are wrong, and mend them without recomputing.

For ``C = (x - x_zero_point) @ (W - zero_point).T`` the row sums of C are known from x and the row sums of B, and its column
sums from the column sums of x and W (Huang and Abraham, IEEE Transactions on Computers C-33, 1984). An element that is wrong
lies where a row and a column disagree, and the difference is its error. Operators check rows as they compute; these
functions are for a C that has been kept, moved or computed elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq.linear._healing import crossings
from sedq.linear._weights import PackedWeights

__all__ = ["CheckReport", "column_checksums", "correct", "locate", "row_checksums"]

Array = NDArray[Any]


@dataclass
class CheckReport:
    """What row and column checksums say of a product.

    Attributes
    ----------
    rows, columns : list of int
        Rows and columns whose sums disagree.
    elements : list of tuple of int
        (row, column, error) of the wrong elements, as far as the residuals determine them.
    determined : bool
        Whether `elements` explains every residual; without it nothing can be mended.
    corrected : bool
        Whether `correct` has mended them.
    """

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    elements: list[tuple[int, int, int]] = field(default_factory=list)
    determined: bool = True
    corrected: bool = False

    @property
    def ok(self) -> bool:
        """Whether all sums agree."""
        return not self.rows and not self.columns


def _operands(x: ArrayLike, packed: PackedWeights, x_zero_point: int) -> tuple[Array, Array]:
    """Return x and W less their zero points, as int64."""
    if not isinstance(packed, PackedWeights):
        raise TypeError(f"packed: got {_validation.describe(packed)}, expected the result of sedq.pack_weights")
    rows = _validation.activations(x, packed.shape[1]).astype(np.int64)
    zero = _validation.integer("x_zero_point", x_zero_point, 0, 255)
    return rows - zero, packed.unpack().astype(np.int64) - packed.zero_point[:, None]


def row_checksums(x: ArrayLike, packed: PackedWeights, x_zero_point: int = 0) -> NDArray[np.int64]:
    """Return what the rows of the product must sum to.

    Parameters
    ----------
    x : array_like of uint8, (..., K)
        Activations.
    packed : PackedWeights
        Weights (N, K).
    x_zero_point : int, default 0
        Zero point of x.

    Returns
    -------
    ndarray of int64, (M,)

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.array([[1, 2], [3, -4]], dtype=np.int8))
    >>> sedq.linear.checksums.row_checksums(np.array([[10, 20]], dtype=np.uint8), packed)
    array([0])
    """
    a, w = _operands(x, packed, x_zero_point)
    return np.asarray(a @ w.sum(axis=0), np.int64)


def column_checksums(x: ArrayLike, packed: PackedWeights, x_zero_point: int = 0) -> NDArray[np.int64]:
    """Return what the columns of the product must sum to, ``(1^T A) B``.

    Parameters
    ----------
    x : array_like of uint8, (..., K)
        Activations.
    packed : PackedWeights
        Weights (N, K).
    x_zero_point : int, default 0
        Zero point of x.

    Returns
    -------
    ndarray of int64, (N,)

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.array([[1, 2], [3, -4]], dtype=np.int8))
    >>> sedq.linear.checksums.column_checksums(np.array([[10, 20]], dtype=np.uint8), packed)
    array([ 50, -50])
    """
    a, w = _operands(x, packed, x_zero_point)
    return np.asarray(w @ a.sum(axis=0), np.int64)


def _signed32(values: Array) -> Array:
    """Return residuals modulo 2^32, as the signed number nearest to 0."""
    return (values + 2**31) % 2**32 - 2**31


def locate(C: ArrayLike, x: ArrayLike, packed: PackedWeights, x_zero_point: int = 0) -> CheckReport:
    """Name the elements of a product that its row and column checksums show to be wrong.

    Parameters
    ----------
    C : array_like of int32, (..., N)
        What `matmul_integer` returned for the other arguments.
    x : array_like of uint8, (..., K)
        Activations.
    packed : PackedWeights
        Weights (N, K).
    x_zero_point : int, default 0
        Zero point of x.

    Returns
    -------
    CheckReport
        Wrong elements in one row, in one column, or with distinct errors in distinct rows and columns are determined. Errors
        that cancel in a row and a column at once can't be seen; `determined` is then wrongly True.

    Raises
    ------
    ValueError
        For another shape or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.ones((3, 4), dtype=np.int8))
    >>> x = np.ones((2, 4), dtype=np.uint8)
    >>> C = sedq.matmul_integer(x, packed)
    >>> C[1, 2] ^= 64
    >>> sedq.linear.checksums.locate(C, x, packed).elements
    [(1, 2, 64)]
    """
    a, w = _operands(x, packed, x_zero_point)
    expected = f"int32 of shape (..., {len(w)}), one row per row of x, {len(a)}"
    c = _validation.array("C", C, expected)
    if c.dtype != np.int32 or c.ndim == 0 or c.shape[-1] != len(w) or c.size != len(a) * len(w):
        raise ValueError(f"C: got {_validation.describe(c)}, expected {expected}")
    wide = c.reshape(len(a), len(w)).astype(np.int64)
    row_error = _signed32(wide.sum(axis=1) - a @ w.sum(axis=0))
    column_error = _signed32(wide.sum(axis=0) - w @ a.sum(axis=0))
    rows, columns = np.flatnonzero(row_error).tolist(), np.flatnonzero(column_error).tolist()
    if not rows and not columns:
        return CheckReport()
    elements = [(i, j, error) for j, i, error in crossings(rows, columns, row_error, column_error)] if rows else []
    return CheckReport(rows, columns, sorted(elements), _explains(elements, row_error, column_error))


def _explains(elements: list[tuple[int, int, int]], row_error: Array, column_error: Array) -> bool:
    """Whether errors of elements add up to all residuals."""
    rows, columns = row_error.copy(), column_error.copy()
    for i, j, error in elements:
        rows[i] -= error
        columns[j] -= error
    return not (_signed32(rows).any() or _signed32(columns).any())


def correct(C: Array, x: ArrayLike, packed: PackedWeights, x_zero_point: int = 0) -> CheckReport:
    """Mend the wrong elements of a product in place, without recomputing them.

    Parameters
    ----------
    C : ndarray of int32, (..., N)
        What `matmul_integer` returned for the other arguments. C-contiguous and writeable.
    x : array_like of uint8, (..., K)
        Activations.
    packed : PackedWeights
        Weights (N, K).
    x_zero_point : int, default 0
        Zero point of x.

    Returns
    -------
    CheckReport
        What was found. `corrected` is False, and C unchanged, if nothing is wrong or the residuals don't determine what is.

    Raises
    ------
    ValueError
        For another shape or dtype, or an array that can't be written.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> packed = sedq.pack_weights(np.ones((3, 4), dtype=np.int8))
    >>> x = np.ones((2, 4), dtype=np.uint8)
    >>> C = sedq.matmul_integer(x, packed)
    >>> C[1, 2] ^= 64
    >>> sedq.linear.checksums.correct(C, x, packed).corrected, C[1].tolist()
    (True, [4, 4, 4])
    """
    if not isinstance(C, np.ndarray) or not C.flags.c_contiguous or not C.flags.writeable:
        raise ValueError(f"C: got {_validation.describe(C)}, expected a writeable C-contiguous array of int32")
    report = locate(C, x, packed, x_zero_point)
    if report.ok or not report.determined:
        return report
    flat = C.reshape(-1, packed.shape[0])
    for i, j, error in report.elements:
        flat[i, j] = _signed32(np.asarray(int(flat[i, j]) - error))
    report.corrected = True
    return report
