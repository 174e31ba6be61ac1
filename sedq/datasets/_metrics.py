"""Area under the ROC curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve.

    The probability that a request labelled 1 scores above one labelled 0, a tie counting one half.

    Parameters
    ----------
    labels : (n,) array_like
        0 or 1; both must occur.
    scores : (n,) array_like
        Higher means more likely 1.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the shapes differ, a label is neither 0 nor 1, only one label occurs, or a score is NaN.

    Examples
    --------
    >>> from sedq.datasets import auc
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    truth = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"labels {truth.shape} and scores {values.shape} must be vectors of one length")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(values).any():
        raise ValueError("scores must not be NaN")
    positive = truth == 1
    n_positive = int(positive.sum())
    n_negative = len(truth) - n_positive
    if n_positive == 0 or n_negative == 0:
        raise ValueError("both labels must occur")
    # Equal scores share the mean of their ranks, which makes this the Mann-Whitney statistic with ties
    # counted one half.
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2
    rank_sum = float(ranks[group][positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
