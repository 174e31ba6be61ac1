"""Requests, packaged file, float model and AUC of `sedq.datasets`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sedq import DLRM
from sedq.datasets import MSWeb, Requests, auc, load_msweb
from sedq.datasets._msweb import DENSE_NAMES, TABLE_NAMES, FeatureSpace, feature_space, features, known_space, requests
from sedq.datasets._requests import Bags

pytestmark = pytest.mark.any_isa

# As LICENSE-msweb.md documents.
FLOAT_AUC = 0.9108
BASELINE_AUC = 0.7620


@pytest.fixture(scope="module")
def msweb() -> MSWeb:
    return load_msweb()


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return feature_space(*catalogue(), synthetic_users(400))


def catalogue() -> tuple[np.ndarray, np.ndarray]:
    titles = np.array([f"area {n % 5} of part{n % 3}" for n in range(30)])
    return titles, np.array([f"/part{n}" for n in range(30)])


def synthetic_users(count: int) -> list[np.ndarray]:
    """Users of 0 to 8 visits, the low rows more often; rows 27 to 29 are never visited."""
    rng = np.random.default_rng(7)
    weights = 1 / np.arange(1, 28)
    return [np.sort(rng.choice(27, size=rng.integers(0, 9), replace=False, p=weights / weights.sum())) for _ in range(count)]


# ---------------------------------------------------------------------------------------- features


def test_popularity_and_standardisation(space: FeatureSpace) -> None:
    users = synthetic_users(400)
    counts = np.zeros(30, dtype=int)
    for user in users:
        counts[user] += 1
    np.testing.assert_array_equal(space.popularity, counts)
    dense = requests(users, space, np.random.default_rng(1)).dense
    np.testing.assert_allclose(dense.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(dense[:, 0].std(), 1, atol=0.1)


# ---------------------------------------------------------------------------------------- requests


def check_csr(data: Requests, rows: list[int]) -> None:
    assert data.dense.dtype == np.float32
    assert np.isfinite(data.dense).all()
    assert data.dense.shape == (len(data), len(DENSE_NAMES))
    assert data.labels.dtype == np.uint8
    assert len(data.indices) == len(data.offsets) == len(rows) == len(TABLE_NAMES)
    for indices, offsets, size in zip(data.indices, data.offsets, rows, strict=True):
        assert indices.dtype == offsets.dtype == np.int64
        assert offsets.shape == (len(data) + 1,)
        assert offsets[0] == 0
        assert offsets[-1] == len(indices)
        assert (np.diff(offsets) >= 0).all()
        assert ((indices >= 0) & (indices < size)).all()
    assert (np.diff(data.offsets[3]) == 1).all()


def histories(data: Requests) -> list[list[int]]:
    return [part.tolist() for part in np.split(data.indices[0], data.offsets[0][1:-1])]


@pytest.mark.parametrize("popular_share", [0.0, 0.5, 1.0])
def test_requests_take_the_candidate_out_of_the_history(space: FeatureSpace, popular_share: float) -> None:
    users = synthetic_users(400)
    data = requests(users, space, np.random.default_rng(2), negatives=2, popular_share=popular_share)
    check_csr(data, space.table_rows())
    candidates = data.indices[3]
    position = 0
    for user in users:
        for visited in user.tolist():
            rest = [area for area in user.tolist() if area != visited]
            rows = slice(position, position + 3)
            assert data.labels[rows].tolist() == [1, 0, 0]
            assert histories(data.batch(position, position + 3)) == [rest] * 3
            assert candidates[position] == visited
            assert not set(candidates[rows][1:].tolist()) & set(user.tolist())
            position += 3
    assert position == len(data)


def test_requests_options(space: FeatureSpace) -> None:
    users = synthetic_users(400)
    data = requests(users, space, np.random.default_rng(3), min_visits=2, max_positives=2)
    eligible = [user for user in users if len(user) >= 2]
    assert len(data) == 4 * len(eligible)
    assert data.labels.mean() == 0.5
    assert min(map(len, histories(data))) >= 1
    firsts, seconds = data.indices[3][0::4], data.indices[3][2::4]
    assert (firsts != seconds).all()
    with_singles = requests(users, space, np.random.default_rng(3), max_positives=1)
    assert len(with_singles) == 2 * sum(len(user) >= 1 for user in users)
    assert min(map(len, histories(with_singles))) == 0


def test_requests_are_reproducible_and_seeded(space: FeatureSpace) -> None:
    users = synthetic_users(100)
    first, again, other = (requests(users, space, np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.dense, again.dense)
    for left, right in zip(first.indices, again.indices, strict=True):
        np.testing.assert_array_equal(left, right)
    assert (first.indices[3] != other.indices[3]).any()


def test_popular_negatives_are_more_popular(space: FeatureSpace) -> None:
    users = synthetic_users(400)
    means = []
    for share in (0.0, 1.0):
        data = requests(users, space, np.random.default_rng(6), popular_share=share)
        means.append(space.popularity[data.indices[3][data.labels == 0]].mean())
    assert means[1] > 1.5 * means[0]


def test_requests_need_an_area_left(space: FeatureSpace) -> None:
    with pytest.raises(ValueError, match="visited every area"):
        requests([np.arange(30)], space, np.random.default_rng(0))
    # One area left, which no training user visited: found all the same.
    data = requests([np.arange(29)], space, np.random.default_rng(0), popular_share=1.0)
    assert set(data.indices[3][data.labels == 0].tolist()) == {29}


def test_requests_of_nobody(space: FeatureSpace) -> None:
    data = requests([], space, np.random.default_rng(0))
    check_csr(data, space.table_rows())
    assert len(data) == 0


@pytest.mark.parametrize("bounds", [(0, 5), (3, 9), (7, 7), (9, 3), (-4, 10**9), (0, 10**9)])
def test_batch_is_a_slice_with_rebased_offsets(space: FeatureSpace, bounds: tuple[int, int]) -> None:
    whole = requests(synthetic_users(50), space, np.random.default_rng(8))
    part = whole.batch(*bounds)
    check_csr(part, space.table_rows())
    rows = range(len(whole))[slice(*bounds)]
    assert len(part) == len(rows)
    np.testing.assert_array_equal(part.labels, whole.labels[slice(*bounds)])
    for table in range(len(TABLE_NAMES)):
        for here, row in enumerate(rows):
            mine = part.indices[table][slice(*part.offsets[table][here : here + 2])]
            theirs = whole.indices[table][slice(*whole.offsets[table][row : row + 2])]
            np.testing.assert_array_equal(mine, theirs)


# ----------------------------------------------------------------------------------- packaged file


def test_packaged_file(msweb: MSWeb) -> None:
    rows = [table.shape[0] for table in msweb.tables]
    assert len(msweb.area_titles) == len(msweb.area_urls) == len(msweb.popularity) == rows[0] == 294
    assert msweb.table_names == list(TABLE_NAMES)
    assert msweb.dense_names == list(DENSE_NAMES)
    assert msweb.modes == ["sum"] * 6
    assert {table.shape[1] for table in msweb.tables} == {32}
    assert [w.shape for w, _ in msweb.bottom] == [(64, len(DENSE_NAMES)), (32, 64)]
    assert [w.shape for w, _ in msweb.top] == [(128, 32 + 21), (64, 128), (1, 64)]
    for weight, bias in msweb.bottom + msweb.top:
        assert weight.dtype == bias.dtype == np.float32
        assert bias.shape == weight.shape[:1]
    for table in msweb.tables:
        assert table.dtype == np.float32
        assert np.isfinite(table).all()
    for data, count in ((msweb.heldout, 13812), (msweb.calibration, 1024)):
        check_csr(data, rows)
        assert len(data) == count
        assert data.labels.mean() == 0.5
    np.testing.assert_array_equal(msweb.heldout_candidate, msweb.heldout.indices[3])
    assert (np.diff(msweb.heldout.offsets[0]) > 0).all()
    assert (np.diff(msweb.calibration.offsets[0]) == 0).any()


def test_packaged_candidates_are_not_in_the_history(msweb: MSWeb) -> None:
    for data in (msweb.heldout, msweb.calibration):
        owners = Bags(data.indices[0], data.offsets[0]).owners()
        assert (data.indices[0] != data.indices[3][owners]).all()


def test_packaged_requests_follow_from_history_and_candidate(msweb: MSWeb) -> None:
    known = known_space(msweb.area_titles, msweb.area_urls, msweb.popularity, msweb.dense_mean, msweb.dense_std)
    for data in (msweb.heldout, msweb.calibration):
        dense, indices, offsets = features(known, Bags(data.indices[0], data.offsets[0]), data.indices[3])
        np.testing.assert_allclose(dense, data.dense, rtol=1e-5, atol=1e-6)
        for table in range(len(TABLE_NAMES)):
            np.testing.assert_array_equal(indices[table], data.indices[table])
            np.testing.assert_array_equal(offsets[table], data.offsets[table])


def test_float_model_beats_popularity(msweb: MSWeb) -> None:
    labels = msweb.heldout.labels
    score = auc(labels, float_predict(msweb, msweb.heldout))
    baseline = auc(labels, msweb.popularity[msweb.heldout_candidate])
    assert score == pytest.approx(FLOAT_AUC, abs=1e-3)
    assert baseline == pytest.approx(BASELINE_AUC, abs=1e-3)
    assert score > baseline + 0.1


def test_format_version_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez_compressed(path, format_version=np.array(99))
    with pytest.raises(ValueError, match="format version 99 instead of 1"):
        load_msweb(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "object.npz"
    np.savez_compressed(path, format_version=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_msweb(path)


# ------------------------------------------------------------------------------------- float model


def float_predict(data: MSWeb, requests: Requests) -> np.ndarray:
    model = DLRM(data.bottom, data.tables, data.top, data.modes)
    return model.predict_float(requests.dense, requests.indices, requests.offsets, include_last_offset=True)


def naive_logit(data: MSWeb, one: Requests) -> float:
    """Forward pass of one request in float64, written with loops."""

    def mlp(x: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        for number, (weight, bias) in enumerate(layers):
            x = weight.astype(float) @ x + bias
            if number < len(layers) - 1:
                x = np.maximum(x, 0)
        return x

    vectors = [mlp(one.dense[0].astype(float), data.bottom)]
    for table, mode, indices in zip(data.tables, data.modes, one.indices, strict=True):
        pooled = np.zeros(table.shape[1])
        for index in indices:
            pooled += table[index]
        vectors.append(pooled / max(len(indices), 1) if mode == "mean" else pooled)
    dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
    return float(mlp(np.concatenate([vectors[0], dots]), data.top)[0])


@pytest.mark.parametrize("modes", [["sum"] * 6, ["mean"] * 3 + ["sum"] * 3])
def test_float_predict_matches_loops(msweb: MSWeb, modes: list[str]) -> None:
    data = dataclasses.replace(msweb, modes=modes)
    few = data.calibration.batch(0, 60)
    assert (np.diff(few.offsets[0]) == 0).any()  # empty bags are among them
    expected = [1 / (1 + np.exp(-naive_logit(data, few.batch(i, i + 1)))) for i in range(60)]
    got = float_predict(data, few)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


def test_float_predict_does_not_depend_on_the_batch(msweb: MSWeb) -> None:
    whole = float_predict(msweb, msweb.calibration)
    parts = [float_predict(msweb, msweb.calibration.batch(s, s + 100)) for s in range(0, 1024, 100)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-6)
    assert float_predict(msweb, msweb.calibration.batch(0, 0)).shape == (0,)


def test_float_predict_of_extreme_logits_does_not_warn(msweb: MSWeb) -> None:
    (weight, bias) = msweb.top[-1]
    for shift, expected in ((1e4, 1.0), (-1e4, 0.0)):
        data = dataclasses.replace(msweb, top=[*msweb.top[:-1], (weight, bias + np.float32(shift))])
        with np.errstate(over="raise", invalid="raise"):
            assert (float_predict(data, data.calibration.batch(0, 9)) == expected).all()


def test_unknown_mode_is_refused(msweb: MSWeb) -> None:
    data = dataclasses.replace(msweb, modes=["max"] * 6)
    with pytest.raises(ValueError, match=r"modes: got .*'max'"):
        float_predict(data, data.calibration)


# ---------------------------------------------------------------------------------------------- auc


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_auc_against_all_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    labels = rng.integers(0, 2, size=200)
    scores = rng.integers(0, levels, size=200) / levels
    above, below = scores[labels == 1][:, None], scores[labels == 0][None, :]
    expected = ((above > below) + 0.5 * (above == below)).mean()
    assert auc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_auc_extremes() -> None:
    labels = [0, 0, 1, 1]
    assert auc(labels, [1, 2, 3, 4]) == 1.0
    assert auc(labels, [4, 3, 2, 1]) == 0.0
    assert auc(labels, [7, 7, 7, 7]) == 0.5
    assert auc(np.array(labels, dtype=np.uint8), [-np.inf, 0, 0, np.inf]) == 0.875


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], "both labels"),
        ([], [], "both labels"),
        ([0, 2], [0.1, 0.2], "0 or 1"),
        ([0, 1], [0.1, 0.2, 0.3], "one length"),
        ([[0, 1]], [[0.1, 0.2]], "one length"),
        ([0, 1], [0.1, np.nan], "NaN"),
    ],
)
def test_auc_rejects_bad_input(labels: list[int], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc(labels, scores)
