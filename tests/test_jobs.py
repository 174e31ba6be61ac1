"""What a job was made of is compared once more when it is done: here it is another then than when the job was made."""

from __future__ import annotations

import numpy as np
import pytest

import sedq
from sedq import detection
from sedq._core import _dense, _dispatch, _embedding


class Changing:
    """A number that is another one each time it is read."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __float__(self) -> float:
        return self.values.pop(0)

    def __int__(self) -> int:
        return int(self.values.pop(0))

    def __bool__(self) -> bool:
        return bool(self.values.pop(0))


@pytest.fixture
def table() -> object:
    return sedq.EmbeddingBag.from_float(np.arange(24, dtype=np.float32).reshape(6, 4)).table.data


COUNT = [(-1, detection.Kind.COUNT, 0.0, 0.0)]


@pytest.mark.parametrize(("mean", "found"), [(Changing(1, 1), None), (Changing(1, 0), COUNT), (Changing(0, 1), COUNT)])
def test_whether_bags_are_means(table: object, mean: Changing, found: object) -> None:
    bags = np.array([0, 2, 5, 3]), np.array([0, 2, 4]), None, np.empty((2, 4), np.float32)
    how = _embedding.CHECK_DIGEST, _embedding.LIMIT_BOUND, 0.0, mean, 1
    assert _embedding.pool(_dispatch.get("reference"), table, *bags, *how) == found


@pytest.mark.parametrize(
    ("scale", "zero_point", "found"),
    [
        (Changing(0.5, 0.5), 3, None),
        (Changing(0.5, 0.25), 3, COUNT),
        (0.5, Changing(3, 3), None),
        (0.5, Changing(3, 4), COUNT),
        (0.5, Changing(3, 3 + 2**16), COUNT),
    ],
)
def test_what_rows_are_quantised_by(scale: object, zero_point: object, found: object) -> None:
    x, out = np.ones((2, 5), np.float32), np.empty((2, 5), np.uint8)
    assert _dense.quantize_rows(_dispatch.get("reference"), x, scale, zero_point, out, True, 1) == found
