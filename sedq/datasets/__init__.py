"""A small real recommendation data set with a trained float model, and traces of look-ups.

`load_msweb` returns the model, held-out requests to measure it on and training requests to calibrate
a quantiser with; `auc` scores probabilities. `load_pydocs_trace` returns a real trace of bags, `synthetic_trace`
draws one shaped like production.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sedq.datasets._metrics import auc
from sedq.datasets._minilm import MiniLM, load_minilm
from sedq.datasets._requests import FloatArray, IntArray, Layer, Requests
from sedq.datasets._traces import Trace, load_pydocs_trace, synthetic_trace

__all__ = [
    "MSWeb",
    "MiniLM",
    "Requests",
    "Trace",
    "auc",
    "load_minilm",
    "load_msweb",
    "load_pydocs_trace",
    "synthetic_trace",
]

_FORMAT_VERSION = 1
_Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class MSWeb:
    """A trained DLRM and requests for it; see `load_msweb`.

    The model: the bottom MLP maps the dense features to a vector of the embedding dimension; each
    table gives one pooled vector.  The dot products of vectors ``i`` and ``j < i``, in the order of
    ``numpy.tril_indices(1 + n_tables, -1)`` with the bottom output as vector 0, follow the bottom
    output in the input of the top MLP, whose one output is the logit.  In both MLPs ReLU comes
    between the layers and not after the last.

    Attributes
    ----------
    bottom, top : list of (weight, bias)
        Layers of the two MLPs, float32; a weight is (outputs, inputs), a bias (outputs,).
    tables : list of (rows, dim) float32 arrays
        Embedding tables.
    modes : list of str
        ``"sum"`` or ``"mean"``: how each table's rows are pooled.
    table_names : list of str
        What the indices of each table stand for.
    heldout : Requests
        Requests of the test users, labels balanced.
    calibration : Requests
        Requests of training users, to calibrate a quantiser with.
    heldout_candidate : int64 array
        Row of the candidate area of each held-out request.
    popularity : (n_areas,) int64 array
        Number of training users who visited each area.
    area_titles, area_urls : (n_areas,) str arrays
        Title and URL of each area.
    dense_names : list of str
        What the dense features are.
    dense_mean, dense_std : (n_dense,) float64 arrays
        The standardisation applied to the dense features.
    """

    bottom: list[Layer]
    tables: list[FloatArray]
    modes: list[str]
    top: list[Layer]
    heldout: Requests
    calibration: Requests
    heldout_candidate: IntArray
    popularity: IntArray
    area_titles: npt.NDArray[np.str_]
    area_urls: npt.NDArray[np.str_]
    table_names: list[str]
    dense_names: list[str]
    dense_mean: npt.NDArray[np.float64]
    dense_std: npt.NDArray[np.float64]


def load_msweb(path: str | os.PathLike[str] | None = None) -> MSWeb:
    """Load the packaged model and requests of the Anonymous Microsoft Web Data.

    Parameters
    ----------
    path : str or path, optional
        A file written by ``bench/train_msweb.py``; the packaged one by default.

    Returns
    -------
    MSWeb

    Raises
    ------
    ValueError
        If the file is of another format version.

    Notes
    -----
    A request asks whether a user who visited the areas of the history in one week of February 1998
    also visited the candidate area.  The held-out requests are made from the 5,000 test users.  Those
    with one visit are dropped, so no held-out history is empty; of each other user two visited areas,
    drawn at random, become candidates in turn (label 1), and each is paired with one area the user
    did not visit (label 0) for the same history.  That area is drawn with probability one half
    uniformly and else in proportion to popularity plus one.  The calibration requests keep the users
    with one visit, and so hold empty bags.  Popularity counts, standardisation and weights come from
    the training users only.

    The data are by J. S. Breese, D. Heckerman and C. M. Kadie, from the UCI Machine Learning
    Repository, under CC BY 4.0, and changed as ``LICENSE-msweb.md`` beside this module says.

    References
    ----------
    J. S. Breese, D. Heckerman, C. Kadie, "Empirical analysis of predictive algorithms for
    collaborative filtering", Proceedings of the Fourteenth Conference on Uncertainty in Artificial
    Intelligence, Madison, WI, 1998.

    Examples
    --------
    >>> from sedq import DLRM
    >>> from sedq.datasets import auc, load_msweb
    >>> data = load_msweb()
    >>> [table.shape for table in data.tables]
    [(294, 32), (337, 32), (287, 32), (294, 32), (337, 32), (287, 32)]
    >>> len(data.heldout), len(data.calibration)
    (13812, 1024)
    >>> model = DLRM(data.bottom, data.tables, data.top, data.modes)
    >>> requests = data.heldout
    >>> probabilities = model.predict_float(
    ...     requests.dense, requests.indices, requests.offsets, include_last_offset=True
    ... )
    >>> baseline = auc(data.heldout.labels, data.popularity[data.heldout_candidate])
    >>> auc(data.heldout.labels, probabilities) > baseline + 0.1
    True
    """
    arrays = _read(path)
    version = int(arrays.get("format_version", np.array(0)))
    if version != _FORMAT_VERSION:
        raise ValueError(f"format version {version} instead of {_FORMAT_VERSION}")
    names = [str(name) for name in arrays["table_names"]]
    tables = range(len(names))
    return MSWeb(
        bottom=_layers(arrays, "bottom"),
        tables=[arrays[f"table_{t}_weight"] for t in tables],
        modes=[str(mode) for mode in arrays["table_modes"]],
        top=_layers(arrays, "top"),
        heldout=_requests(arrays, "heldout", len(names)),
        calibration=_requests(arrays, "calibration", len(names)),
        heldout_candidate=arrays["heldout_candidate"].astype(np.int64),
        popularity=arrays["popularity"].astype(np.int64),
        area_titles=arrays["area_titles"],
        area_urls=arrays["area_urls"],
        table_names=names,
        dense_names=[str(name) for name in arrays["dense_names"]],
        dense_mean=arrays["dense_mean"],
        dense_std=arrays["dense_std"],
    )


def _read(path: str | os.PathLike[str] | None) -> _Arrays:
    source = resources.files(__name__).joinpath("msweb.npz") if path is None else Path(path)
    with source.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _layers(arrays: _Arrays, prefix: str) -> list[Layer]:
    count = sum(name.startswith(f"{prefix}_") and name.endswith("_weight") for name in arrays)
    return [(arrays[f"{prefix}_{i}_weight"], arrays[f"{prefix}_{i}_bias"]) for i in range(count)]


def _requests(arrays: _Arrays, prefix: str, n_tables: int) -> Requests:
    # The file holds narrow integers; kernels take int64.
    return Requests(
        dense=arrays[f"{prefix}_dense"],
        indices=[arrays[f"{prefix}_indices_{t}"].astype(np.int64) for t in range(n_tables)],
        offsets=[arrays[f"{prefix}_offsets_{t}"].astype(np.int64) for t in range(n_tables)],
        labels=arrays[f"{prefix}_labels"],
    )
