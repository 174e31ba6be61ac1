"""Traces of embedding look-ups: a real one, and a synthetic one shaped like production."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import pdtr

from sedq import _validation
from sedq.datasets._requests import IntArray, offsets_of

__all__ = ["Trace", "load_pydocs_trace", "synthetic_trace"]

DoubleArray = npt.NDArray[np.float64]
# Rates that the rows of the mixture may have, look-ups in the batch that the histogram was taken of.
RATES = 2.0 ** np.arange(-4, 17.25, 0.25)
VOCABULARY = 32_000
MOST_LOOKUPS = 2**31


@dataclass(frozen=True, eq=False)
class Trace:
    """Bags of row numbers; see `load_pydocs_trace` and `synthetic_trace`.

    Attributes
    ----------
    indices : (L,) int64 array
        Row numbers of all bags, one bag after another.
    offsets : (B + 1,) int64 array
        Where each bag starts; the last one is L.
    rows : int
        Rows of the table that the indices are for.
    """

    indices: IntArray
    offsets: IntArray
    rows: int

    def __len__(self) -> int:
        """Return the number of bags."""
        return len(self.offsets) - 1

    def batch(self, start: int, stop: int) -> Trace:
        """Return bags `start` to `stop`, with offsets that start at 0 again.

        Parameters
        ----------
        start, stop : int
            As in a slice: negative values count from the end, values past the end are clipped.

        Returns
        -------
        Trace
            The indices are a view.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        part = self.offsets[start : max(start, stop) + 1]
        return Trace(self.indices[part[0] : part[-1]], part - part[0], self.rows)


def load_pydocs_trace() -> Trace:
    """Load the packaged trace: token numbers of CPython's documentation topics, a bag for each paragraph.

    Returns
    -------
    Trace
        117,420 look-ups in 2,608 bags of a table of 32,000 rows, int64.

    Notes
    -----
    Real text: bags of 1 to 1,395 look-ups, 45 on average, and rows whose popularity falls as a power of their rank.

    The text is the Python Software Foundation's, the vocabulary that of WordLlama; ``LICENSE-pydocs.md`` beside this module
    has both licences.

    Examples
    --------
    >>> from sedq.datasets import load_pydocs_trace
    >>> trace = load_pydocs_trace()
    >>> len(trace), len(trace.indices), trace.rows
    (2608, 117420, 32000)
    """
    path = resources.files("sedq.datasets").joinpath("pydocs.npz")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        # the file holds narrow integers; kernels take int64
        return Trace(file["indices"].astype(np.int64), file["offsets"].astype(np.int64), VOCABULARY)


def synthetic_trace(
    bags: int = 4096,
    *,
    rows: int | None = None,
    pooling: float | None = None,
    rng: int | np.random.Generator = 0,
) -> Trace:
    """Draw a synthetic trace whose rows are reused as those of production tables are.

    Parameters
    ----------
    bags : int, default 4096
        Number of bags.
    rows : int, optional
        Rows of the table, at least 64. By default as many as give the published reuse factors; with another number rows
        are reused more or less often, in the same proportions to one another.
    pooling : float, optional
        Look-ups of a bag on average. By default that of the published batch, 15.8.
    rng : int or numpy.random.Generator, default 0
        Seed, or the generator to draw from. The same seed gives the same trace; another one makes other rows popular, so
        that samples of one population are parts of one trace.

    Returns
    -------
    Trace
        About ``bags * pooling`` look-ups, int64. Some bags are empty.

    Raises
    ------
    ValueError
        For sizes out of range.

    Notes
    -----
    Meta published how often each row was looked up in a batch of 65,536 requests for 856 tables (887,017,990 look-ups of
    128,435,723 rows), as a histogram over powers of two. A mixture of Poisson rates is fitted to both of its columns, the
    share of rows and the share of look-ups, by non-negative least squares; it gives them back within 0.0005, which is how
    they were rounded. A look-up draws a rate in proportion to its share, then one of the rows that have it. What a row of so
    small a trace can't reach (a rate of which there would be less than one row) is the rate of a single row.

    The histogram doesn't say how long bags are: their lengths are Poisson about a log-normal mean with sigma 1, which is an
    assumption. So is that look-ups are independent.

    The histogram is under the MIT licence, see ``LICENSE-reuse.md`` beside this module; it was itself taken of synthetic
    data that resemble production.

    References
    ----------
    Meta, "Embedding lookup synthetic dataset", https://github.com/facebookresearch/dlrm_datasets, 2021.

    Examples
    --------
    >>> from sedq.datasets import synthetic_trace
    >>> trace = synthetic_trace(bags=1000, rows=5000, rng=1)
    >>> len(trace), trace.rows, int(trace.indices.max()) < 5000
    (1000, 5000, True)
    """
    count = _validation.integer("bags", bags, 0, MOST_LOOKUPS)
    published = reuse_histogram()
    mean = published["lookups"] / (published["tables"] * published["batch"])
    if pooling is not None:
        mean = _validation.positive_scalar("pooling", pooling)
    if count * mean > MOST_LOOKUPS:
        raise ValueError(f"bags, pooling: got {count} bags of {mean:g} look-ups, expected at most {MOST_LOOKUPS} in all")
    generator = np.random.default_rng(rng)
    lengths = generator.poisson(generator.lognormal(np.log(mean) - 0.5, 1.0, count))
    shares = rate_shares()
    held = shares / RATES  # rows of each rate, for each look-up
    wanted = max(64, round(lengths.sum() * held.sum())) if rows is None else _validation.integer("rows", rows, 64, 2**31)
    counts = _rows_of_rates(held, wanted)
    rate = generator.choice(len(RATES), size=lengths.sum(), p=shares)
    place = (np.cumsum(counts) - counts)[rate] + generator.integers(counts[rate])
    return Trace(generator.permutation(wanted)[place], offsets_of(lengths), wanted)


def _rows_of_rates(held: DoubleArray, rows: int) -> IntArray:
    """Divide the rows among the rates: one at least to each that is in use, and what is left over to the lowest."""
    counts = np.where(held > 0, np.maximum(1, np.floor(held / held.sum() * rows)), 0).astype(np.int64)
    counts[np.argmax(held)] += rows - counts.sum()
    return counts


def reuse_histogram() -> dict[str, Any]:
    """Return the published histogram as it is packaged."""
    text = resources.files("sedq.datasets").joinpath("reuse.json").read_text(encoding="utf-8")
    published: dict[str, Any] = json.loads(text)
    return published


@cache
def rate_shares() -> DoubleArray:
    """Return the share of the look-ups that go to rows of each of `RATES`, fitted to the published histogram.

    A row of rate r is looked up k times with probability Poisson(k; r). Of the look-ups that go to such rows, those
    in a bin (a, b] have the share P(a < 1 + Poisson(r) <= b); of rows seen in the bin there are P(a < Poisson(r) <= b) / r
    for each look-up. Both columns of the histogram are linear in the shares.
    """
    from scipy.optimize import nnls  # slow to import, and nothing else here needs it

    published = reuse_histogram()
    above = np.array(published["reuse_above"], dtype=np.float64)
    upto = np.append(above[1:], np.inf)
    lookups, seen = (np.array(published[key]) for key in ("share_of_lookups", "share_of_rows"))
    of_lookups = [_poisson(b - 1) - _poisson(a - 1) for a, b in zip(above, upto, strict=True)]
    of_rows = [_poisson(b) - _poisson(a) for a, b in zip(above, upto, strict=True)]
    per_row = published["lookups"] / published["rows_used"]
    system = np.vstack([np.array(of_lookups), np.array(of_rows) / RATES * per_row])
    shares, _ = nnls(system, np.concatenate([lookups / lookups.sum(), seen / seen.sum()]))
    return np.asarray(shares / shares.sum())


def _poisson(upto: float) -> DoubleArray:
    """Return P(Poisson(r) <= upto) for each of `RATES`."""
    return np.zeros(len(RATES)) if upto < 0 else np.asarray(pdtr(upto, RATES))
