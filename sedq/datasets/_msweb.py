"""Turn visits of the Anonymous Microsoft Web Data, which `_msweb_files` reads, into requests.

A request asks: given the other areas a user visited in the week (the history), did the user also
visit this one (the candidate)?  Its features are named in `DENSE_NAMES` and `TABLE_NAMES`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sedq.datasets._requests import Bags, FloatArray, IntArray, Requests, offsets_of

DoubleArray = npt.NDArray[np.float64]
StrArray = npt.NDArray[np.str_]

TABLE_NAMES = (
    "history_areas",
    "history_title_words",
    "history_url_words",
    "candidate_area",
    "candidate_title_words",
    "candidate_url_words",
)
DENSE_NAMES = (
    "log1p_history_areas",
    "log1p_history_title_words",
    "log1p_history_url_words",
    "candidate_title_words",
    "candidate_url_words",
    "log1p_candidate_popularity",
    "mean_log1p_history_popularity",
    "mean_title_words_shared",
)

_WORD = re.compile(r"[a-z]+|[0-9]+")


def words(text: str) -> list[str]:
    """Split text into lower-case runs of letters and runs of digits."""
    return _WORD.findall(text.lower())


def url_words(url: str, vocabulary: frozenset[str]) -> list[str]:
    """Split a URL into words, cutting runs such as ``msexcelsupport`` at words of `vocabulary`.

    A run which is not a concatenation of these words, of two letters or more each, stays whole.
    """
    return [piece for run in words(url) for piece in _segment(run, vocabulary)]


def _segment(run: str, vocabulary: frozenset[str]) -> list[str]:
    """Cut `run` into the fewest words of `vocabulary`, or leave it whole."""
    best: list[list[str] | None] = [[]] + [None] * len(run)
    for stop in range(1, len(run) + 1):
        for start in range(stop - 1):  # pieces of two letters at least
            head, piece, known = best[start], run[start:stop], best[stop]
            if head is not None and piece in vocabulary and (known is None or len(head) + 1 < len(known)):
                best[stop] = [*head, piece]
    return best[-1] or [run]


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """What is needed to turn a history and a candidate into features.

    Attributes
    ----------
    title_words, url_words : Bags
        For every area, the word numbers of its title and of its URL.
    n_title_words, n_url_words : int
        Sizes of the two vocabularies.
    popularity : (n_areas,) int64 array
        Number of training users who visited each area.
    shared_words : (n_areas, n_areas) int64 array
        Number of distinct title words two areas have in common.
    dense_mean, dense_std : (n_dense,) float64 arrays
        The dense features are standardised with these.
    """

    title_words: Bags
    url_words: Bags
    n_title_words: int
    n_url_words: int
    popularity: IntArray
    shared_words: IntArray
    dense_mean: DoubleArray
    dense_std: DoubleArray

    def table_rows(self) -> list[int]:
        """Return the number of rows each of the six tables needs."""
        return 2 * [len(self.popularity), self.n_title_words, self.n_url_words]


def feature_space(titles: StrArray, urls: StrArray, train_users: list[IntArray]) -> FeatureSpace:
    """Count popularity over the training users and standardise the dense features on them.

    No other user is looked at, so nothing of the held-out users can leak into a feature.

    Parameters
    ----------
    titles, urls : (n_areas,) str arrays
    train_users : list of int64 arrays
        Rows of the areas each training user visited.

    Returns
    -------
    FeatureSpace
    """
    popularity = np.bincount(np.concatenate(train_users), minlength=len(titles)).astype(np.int64)
    n_dense = len(DENSE_NAMES)
    unit = known_space(titles, urls, popularity, np.zeros(n_dense), np.ones(n_dense))
    # The candidate's features need negatives for their scale; a generator of its own keeps the
    # standardisation a function of the training users alone.
    sample = requests(train_users, unit, np.random.default_rng(0)).dense.astype(np.float64)
    std = sample.std(axis=0)
    return replace(unit, dense_mean=sample.mean(axis=0), dense_std=np.where(std > 0, std, 1.0))


def known_space(titles: StrArray, urls: StrArray, popularity: IntArray, mean: DoubleArray, std: DoubleArray) -> FeatureSpace:
    """Build the feature space from popularity counts and a standardisation already at hand."""
    title_lists = [words(str(title)) for title in titles]
    vocabulary = frozenset(word for row in title_lists for word in row)
    title_bags, n_title = _number(title_lists)
    url_bags, n_url = _number([url_words(str(url), vocabulary) for url in urls])
    present = np.zeros((len(titles), n_title), dtype=np.int64)
    present[title_bags.owners(), title_bags.indices] = 1
    return FeatureSpace(title_bags, url_bags, n_title, n_url, popularity, present @ present.T, mean, std)


def _number(rows: list[list[str]]) -> tuple[Bags, int]:
    """Replace words by their places in alphabetical order."""
    numbers = {word: n for n, word in enumerate(sorted({word for row in rows for word in row}))}
    return Bags.of([[numbers[word] for word in row] for row in rows]), len(numbers)


def features(
    space: FeatureSpace, histories: Bags, candidates: IntArray
) -> tuple[FloatArray, list[IntArray], list[IntArray]]:
    """Return dense features, indices and offsets of requests.

    Parameters
    ----------
    space : FeatureSpace
    histories : Bags
        For each request the rows of the other areas visited; may be empty.
    candidates : (B,) int64 array
        Rows of the areas asked about.

    Returns
    -------
    dense : (B, n_dense) float32 array
    indices, offsets : list of six int64 arrays
        One per table, in the order of `TABLE_NAMES`.
    """
    single = Bags(candidates, np.arange(len(candidates) + 1, dtype=np.int64))
    bags = [
        part
        for areas in (histories, single)
        for part in (areas, areas.expand(space.title_words), areas.expand(space.url_words))
    ]
    log_popularity = np.log1p(space.popularity)
    shared = space.shared_words[histories.indices, candidates[histories.owners()]]
    columns = [
        *(np.log1p(bag.lengths()) for bag in bags[:3]),
        *(bag.lengths() for bag in bags[4:]),
        log_popularity[candidates],
        _bag_means(histories, log_popularity[histories.indices]),
        _bag_means(histories, shared.astype(np.float64)),
    ]
    dense = (np.stack(columns, axis=1) - space.dense_mean) / space.dense_std
    return dense.astype(np.float32), [b.indices for b in bags], [b.offsets for b in bags]


def _bag_means(bags: Bags, values: DoubleArray) -> DoubleArray:
    """Mean of the values of each bag, 0 for an empty bag."""
    lengths = bags.lengths()
    totals = np.bincount(bags.owners(), weights=values, minlength=len(lengths))
    return np.asarray(totals / np.maximum(lengths, 1), dtype=np.float64)


def requests(
    users: list[IntArray],
    space: FeatureSpace,
    rng: np.random.Generator,
    *,
    min_visits: int = 1,
    max_positives: int | None = None,
    negatives: int = 1,
    popular_share: float = 0.5,
) -> Requests:
    """Make labelled requests from the visits of users.

    A positive request takes one visited area out as the candidate; the user's other areas are the
    history.  After it come negative requests with the same history, so that the history alone tells
    nothing about the label, and a candidate the user did not visit.

    Parameters
    ----------
    users : list of int64 arrays
        Rows of the areas each user visited.
    space : FeatureSpace
    rng : numpy.random.Generator
    min_visits : int
        Users with fewer visits are left out, those without any always.  The history of a user with
        one visit is empty.
    max_positives : int, optional
        At most this many visited areas of a user, drawn without replacement, become candidates; all
        of them by default.
    negatives : int
        Negative requests after each positive one.
    popular_share : float
        Probability that a negative candidate is drawn in proportion to popularity plus one instead
        of uniformly.  Either way it is drawn anew until it is an area the user did not visit.

    Returns
    -------
    Requests
        User after user.  The candidate areas are ``indices[3]``.

    Raises
    ------
    ValueError
        If a user visited every area, so that no negative candidate is left.
    """
    visits = Bags.of([user for user in users if len(user) >= max(min_visits, 1)])
    picks = _pick(visits, max_positives, rng)
    owners, positives = visits.owners()[picks], visits.indices[picks]
    drawn = _draw_negatives(visits, np.repeat(owners, negatives), space.popularity, popular_share, rng)
    candidates = np.concatenate([positives[:, None], drawn.reshape(len(picks), negatives)], axis=1)
    labels = np.zeros(candidates.shape, dtype=np.uint8)
    labels[:, 0] = 1
    histories = _without(visits.take(owners), positives)
    rows = np.repeat(np.arange(len(picks)), negatives + 1)
    dense, indices, offsets = features(space, histories.take(rows), candidates.ravel())
    return Requests(dense, indices, offsets, labels.ravel())


def _pick(visits: Bags, most: int | None, rng: np.random.Generator) -> IntArray:
    """Choose up to `most` positions of each bag, uniformly and without replacement."""
    owners = visits.owners()
    if most is None:
        return np.arange(len(owners))
    shuffled = np.lexsort((rng.random(len(owners)), owners))
    rank = np.arange(len(owners)) - visits.offsets[:-1][owners]
    return shuffled[rank < most]


def _without(bags: Bags, removed: IntArray) -> Bags:
    """Take one index, which occurs once, out of each bag."""
    keep = bags.indices != removed[bags.owners()]
    return Bags(bags.indices[keep], offsets_of(bags.lengths() - 1))


def _draw_negatives(
    visits: Bags, owners: IntArray, popularity: IntArray, popular_share: float, rng: np.random.Generator
) -> IntArray:
    """Draw, for each entry of `owners`, an area that is not in the owner's bag."""
    visited = np.zeros((len(visits.offsets) - 1, len(popularity)), dtype=np.bool_)
    visited[visits.owners(), visits.indices] = True
    if visited.all(axis=1).any():
        raise ValueError("a user visited every area: no negative candidate is left")
    # Plus one: areas no training user visited must be drawable too, or a user who visited all the
    # others would never get a negative.
    weights = (popularity + 1) / np.sum(popularity + 1)
    popular = rng.random(len(owners)) < popular_share
    drawn = np.zeros(len(owners), dtype=np.int64)
    todo = np.arange(len(owners))
    while len(todo):
        by_weight = rng.choice(len(popularity), size=len(todo), p=weights)
        drawn[todo] = np.where(popular[todo], by_weight, rng.integers(len(popularity), size=len(todo)))
        todo = todo[visited[owners[todo], drawn[todo]]]
    return drawn
