"""Observers: what all of them share; independence of how data is divided, channels, ranges against NumPy."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from helpers.observers import KINDS, error, every, message, samples, signs
from sedq import QParams, choose_qparams
from sedq.quantization import HistogramObserver, MovingAverageObserver, PercentileObserver

pytestmark = pytest.mark.any_isa

# those to which it makes no difference how data is divided
undivided = pytest.mark.parametrize("kind", [v for k, v in KINDS.items() if k != "MovingAverageObserver"])


# ---- what all of them share


@every
@signs
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_channels_are_observed_one_by_one(rng: np.random.Generator, kind: Any, symmetric: bool, dtype: Any) -> None:
    x = rng.standard_t(3, size=(6, 5, 40)) * np.arange(5)[:, None]  # a channel of zeros too
    for axis in (1, -2):
        o = kind(dtype, symmetric=symmetric, channel_axis=axis)
        each = [kind(dtype, symmetric=symmetric) for _ in range(5)]
        for part in (x[:4], x[4:]):
            assert o.observe(part) is o
            for c, single in enumerate(each):
                single.observe(part[:, c])
        together, apart = o.qparams(), [single.qparams() for single in each]
        assert together == QParams([p.scale for p in apart], [p.zero_point for p in apart], dtype)
        np.testing.assert_array_equal(o.low, [single.low for single in each])
        np.testing.assert_array_equal(o.high, [single.high for single in each])
        assert repr(o) == f"{kind.__name__}(channel_axis={axis}, channels=5)"
    # one channel has parameters in an array still
    assert kind(channel_axis=0).observe(np.ones((1, 3))).qparams().scale.shape == (1,)


@undivided
@signs
@samples
def test_division_and_order_of_data_do_not_matter(kind: Any, symmetric: bool, x: np.ndarray) -> None:
    whole = kind(symmetric=symmetric).observe(x)
    for parts in (np.array_split(x, 7), np.array_split(np.sort(np.abs(x)) * np.sign(x[np.argsort(np.abs(x))]), 11)):
        o = kind(symmetric=symmetric)
        for part in (*parts[:3], [], *parts[3:]):
            o.observe(part)
        assert (o.low, o.high) == (whole.low, whole.high)
        assert o.qparams() == whole.qparams()


@every
def test_nothing_seen(kind: Any) -> None:
    for axis in (None, 1):
        for empty in ([], np.empty((0, 3)), np.empty((3, 0), np.float32), np.array([], object)):
            with pytest.raises(ValueError, match=r"^observer: got no data, expected a call of observe\(\) first$"):
                kind(channel_axis=axis).observe(empty).qparams()
    assert repr(kind()) == f"{kind.__name__}(low=inf, high=-inf)"
    assert repr(kind(channel_axis=1)) == f"{kind.__name__}(channel_axis=1, channels=0)"


@every
@signs
@pytest.mark.parametrize("x", [0.0, -0.0, [0, 0, 0], 5.0, [-3], [2.5] * 9, np.int8([-128, 127]), np.uint64([2**63])])
def test_few_values(kind: Any, symmetric: bool, x: Any) -> None:
    expected = choose_qparams(np.min(x), np.max(x), symmetric=symmetric)
    p = kind(symmetric=symmetric).observe(x).qparams()
    assert p.zero_point == expected.zero_point
    # where in a bin its values lie is not known; there are at least 1,024 bins
    assert error(np.array(x), p) <= error(np.array(x), expected) + np.ptp(np.float64(x)) / 1024 + 1e-6 * np.abs(np.max(x))
    assert p.scale == pytest.approx(expected.scale, rel=0.01 if kind is not HistogramObserver else 0.9)


@every
@pytest.mark.parametrize(
    "x",
    [
        [1.0, np.nan],
        np.inf,
        -np.inf,
        None,
        "a",
        1j,
        [True, False],
        object(),
        [[1], [1, 2]],
        [10**400],
        np.datetime64(1, "s"),
        np.longdouble("1e400"),
    ],
)
def test_refused_data_leaves_no_trace(kind: Any, x: Any) -> None:
    o = kind().observe([-1.0, 2.0])
    before = pickle.dumps(o)
    with pytest.raises(ValueError, match=message("x")):
        o.observe(x)
    assert pickle.dumps(o) == before


@every
def test_refused_shapes(kind: Any) -> None:
    o = kind(channel_axis=1).observe(np.ones((2, 3)))
    before = pickle.dumps(o)
    for shape in ((2, 4), (3, 2), (3, 2, 3), (2, 1)):
        with pytest.raises(ValueError, match=r"^x: got shape .*, expected 3 channels along axis 1, as before$"):
            o.observe(np.ones(shape))
    for x in (1.0, [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=r"^x: got shape .*, expected channels along axis 1$"):
            o.observe(x)
    assert pickle.dumps(o) == before
    assert o.observe(np.ones((7, 3, 2))) is o


@every
def test_refused_arguments(kind: Any) -> None:
    for dtype in ("float32", None, "int16", 8, np.int64):
        with pytest.raises(ValueError, match=message("dtype", repr(dtype))):
            kind(dtype)
    for symmetric in ("no", None, 1.5, [True]):
        with pytest.raises(ValueError, match=message("symmetric")):
            kind(symmetric=symmetric)
    for axis in (1.0, "0", True, [0], 64, -65, 10**30):
        with pytest.raises(ValueError, match=message("channel_axis")):
            kind(channel_axis=axis)
    with pytest.raises(TypeError):
        kind("int8", True)
    assert kind(np.int8, symmetric=np.True_, channel_axis=np.int64(0)).channel_axis == 0


@every
def test_ranges_that_float32_can_not_hold(kind: Any) -> None:
    expected = r"^low, high: got -?[\de+-]+ and [\de+-]+, expected a range that float32 can hold$"
    for x in ([-1e308, 1e308], [1e-300, 1e300], np.longdouble([1e308])):
        with pytest.raises(ValueError, match=expected):
            kind().observe(x).qparams()
    assert kind().observe([1e-300, -1e-310]).qparams().scale == 1


@every
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_their_own_way(
    rng: np.random.Generator, kind: Any, axis: int | None, twin_of: Callable[[Any], Any]
) -> None:
    x = rng.normal(size=(50, 3))
    o = kind("int8", symmetric=True, channel_axis=axis).observe(x)
    twin = twin_of(o)
    assert (repr(twin), twin.qparams()) == (repr(o), o.qparams())
    before = o.qparams()
    assert twin.observe(x * 1000).qparams() != before
    assert o.qparams() == before
    assert o.observe(x * 1000).qparams() == twin.qparams()


@every
def test_dtypes_and_layouts_of_data(rng: np.random.Generator, kind: Any) -> None:
    x = rng.integers(-100, 100, size=(30, 4))
    expected = kind(channel_axis=1).observe(x).qparams()
    for same in (
        x.tolist(),
        x.astype(np.int8),
        np.asfortranarray(x.astype(np.float16)),
        x.astype(np.longdouble),
        x.astype(">f4"),
    ):
        assert kind(channel_axis=1).observe(same).qparams() == expected
    assert kind(channel_axis=0).observe(x.T[:, ::-1]).qparams() == expected


# ---- each of them


def test_moving_average(rng: np.random.Generator) -> None:
    for constant in (0.01, 0.3, 1, np.float32(0.5)):
        o, low, high = MovingAverageObserver(averaging_constant=constant), None, None
        for _ in range(20):
            x = rng.normal(size=100)
            low = x.min() if low is None else low + float(constant) * (x.min() - low)
            high = x.max() if high is None else high + float(constant) * (x.max() - high)
            o.observe(x).observe([])
        assert (o.low, o.high) == pytest.approx((low, high), rel=1e-12)
        assert o.qparams() == choose_qparams(o.low, o.high)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("axis", [None, 0])
def test_moving_average_of_pytorch(rng: np.random.Generator, axis: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
    o = MovingAverageObserver(channel_axis=axis, averaging_constant=0.1)
    theirs: Any
    if axis is None:
        theirs = torch.ao.quantization.MovingAverageMinMaxObserver(averaging_constant=0.1)
    else:
        theirs = torch.ao.quantization.MovingAveragePerChannelMinMaxObserver(averaging_constant=0.1, ch_axis=axis)
    for _ in range(10):
        x = rng.normal(size=(4, 50)).astype(np.float32)
        o.observe(x)
        theirs(torch.from_numpy(x))
    np.testing.assert_allclose(o.low, theirs.min_val.numpy(), rtol=1e-5)
    np.testing.assert_allclose(o.high, theirs.max_val.numpy(), rtol=1e-5)


@samples
@pytest.mark.parametrize("percentile", [60, 90.5, 99, 99.9, 99.99, 100])
def test_percentiles_of_numpy(x: np.ndarray, percentile: float) -> None:
    rank = math.ceil(Fraction(str(percentile)) * len(x) / 100)  # np.percentile takes 99.9 % of 20,000 for more than 19,980
    low, high = -np.sort(-x)[rank - 1], np.sort(x)[rank - 1]
    assert high == np.percentile(x, percentile - 1e-9, method="inverted_cdf")
    observed = PercentileObserver(percentile=percentile).observe(x)._range()
    np.testing.assert_allclose(observed, (low, high), rtol=2**-9)
    limit = np.sort(np.abs(x))[rank - 1]
    observed = PercentileObserver(percentile=percentile, symmetric=True).observe(x)._range()
    np.testing.assert_allclose(observed, (-limit, limit), rtol=2**-9)
    if percentile == 100:
        assert observed == (-np.abs(x).max(), np.abs(x).max())


def test_percentiles_count_values_right() -> None:
    for n in (1, 2, 3, 10, 999, 1000, 1001, 10_000):
        x = np.arange(1, n + 1) + 1000.0  # bins are at most 4 wide up to 2,048, then 8, 16, 32
        left_out = int(n * 0.001 + 1e-9)  # at each end
        low, high = PercentileObserver().observe(x)._range()
        assert (low, high) == pytest.approx((x[left_out], x[n - 1 - left_out]), rel=2**-9)
        mirrored = PercentileObserver().observe(-x)._range()
        assert mirrored == (-high, -low)


def test_percentiles_are_as_precise_beside_an_outlier(rng: np.random.Generator) -> None:
    x = np.append(rng.normal(size=10_000), 1e30)
    assert PercentileObserver(percentile=99).observe(x)._range()[1] == pytest.approx(2.326, rel=0.05)


def test_memory_of_percentiles_is_bounded(rng: np.random.Generator) -> None:
    o = PercentileObserver()
    for _ in range(20):
        o.observe(rng.normal(size=50_000))
    assert len(pickle.dumps(o)) < 120_000


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (PercentileObserver, "percentile", [50, 0, -1, 100.001, np.nan, np.inf, "99", None, True, [99.9], 99j, 10**400]),
        (MovingAverageObserver, "averaging_constant", [0, 0.0, -0.5, 1.01, np.nan, np.inf, "0.1", None, True, [0.1], 1j]),
        (HistogramObserver, "bins", [0, 255, 65_537, -2048, 2048.0, "2048", None, True, [2048], 10**30]),
    ],
)
def test_refused_settings(kind: Any, name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message(name)):
            kind(**{name: value})
