"""The DLRM's errors: arrays, requests, settings and parts that do not fit, with messages that name what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq

Array = NDArray[Any]
DIM = 4


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


SOUND: dict[str, Any] = {
    "bottom": [(ones(6, 3), ones(6)), (ones(DIM, 6), ones(DIM))],
    "tables": [ones(5, DIM), ones(11, DIM)],
    "top": [(ones(5, 7), ones(5)), (ones(1, 5), ones(1))],
}


@pytest.fixture
def model() -> sedq.DLRM:
    return sedq.DLRM(**SOUND).quantize((ones(2, 3), INDICES, OFFSETS))


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no bottom": ({"bottom": []}, "bottom: got no layers"),
    "no top": ({"top": []}, "top: got no layers"),
    "bottom None": ({"bottom": None}, "bottom"),
    "tables None": ({"tables": None}, "tables"),
    "top a number": ({"top": 3}, "top"),
    "modes None": ({"modes": None}, "modes"),
    "layer alone": ({"bottom": [ones(4, 3)]}, r"bottom\[0\]: got ndarray, expected \(weight, bias\)"),
    "three parts": ({"bottom": [(ones(4, 3), ones(4), 1)]}, r"bottom\[0\]: got tuple"),
    "weight of 1 dimension": ({"bottom": [(ones(4), ones(4))]}, r"bottom\[0\] weight: got float32 array of shape \(4,\)"),
    "weight of words": ({"bottom": [([["a"]], ones(1))]}, r"bottom\[0\] weight"),
    "weight None": ({"bottom": [(None, ones(1))]}, r"bottom\[0\] weight"),
    "weight bool": ({"bottom": [(ones(4, 3) > 0, ones(4))]}, r"bottom\[0\] weight: got bool"),
    "weight complex": ({"bottom": [(ones(4, 3) * 1j, ones(4))]}, r"bottom\[0\] weight: got complex"),
    "weight empty": ({"bottom": [(ones(4, 0), ones(4))]}, r"bottom\[0\] weight: got shape \(4, 0\)"),
    "weight NaN": ({"bottom": [(ones(4, 3) * np.nan, ones(4))]}, r"bottom\[0\] weight: got NaN"),
    "weight beyond float32": ({"bottom": [(np.full((4, 3), 1e39), ones(4))]}, r"bottom\[0\] weight: got NaN or infinite"),
    "bias inf": ({"top": [(ones(1, 7), ones(1) * np.inf)]}, r"top\[0\] bias: got NaN or infinite"),
    "bias length": ({"bottom": [(ones(4, 3), ones(3))]}, r"bottom\[0\] bias: .* expected float32 of shape \(4,?\)"),
    "layers apart": ({"bottom": [(ones(5, 3), ones(5)), (ones(4, 6), ones(4))]}, r"bottom\[1\] weight: .*\(any, 5\)"),
    "bottom not d": ({"bottom": [(ones(5, 3), ones(5))]}, r"tables\[0\]: got float32 array of shape \(5, 4\)"),
    "table width": ({"tables": [ones(5, 4), ones(5, 3)]}, r"tables\[1\]: .* expected float32 of shape \(any, 4\)"),
    "table empty": ({"tables": [ones(5, 4), ones(0, 4)]}, r"tables\[1\]: got no rows"),
    "table NaN": ({"tables": [ones(5, 4), ones(5, 4) * np.nan]}, r"tables\[1\]: got NaN"),
    "table too many": ({"tables": [ones(5, 4)] * 3}, r"top\[0\] weight: .*\(any, 10\)"),
    "top two outputs": ({"top": [(ones(2, 7), ones(2))]}, "top: got a last layer of 2 outputs"),
    "mode": ({"modes": "max"}, "modes: got 'max'"),
    "mode of one": ({"modes": ["sum", "max"]}, "modes: got"),
    "modes too few": ({"modes": ["sum"]}, r"modes: got \['sum'\], .* \(2\)"),
    "mode without tables": ({"tables": [], "top": [(ones(1, 4), ones(1))], "modes": "max"}, "modes: got 'max'"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit(case: str) -> None:
    change, message = BAD_ARRAYS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        sedq.DLRM(**(SOUND | change))


# ---- requests that do not fit

Change = dict[str, Any]
Errors = type[Exception] | tuple[type[Exception], ...]
INDICES = [np.array([0, 1, 4]), np.array([10, 0])]
OFFSETS = [np.array([0, 2]), np.array([0, 1])]
BAD_REQUESTS: dict[str, tuple[Change, Errors, str]] = {
    "dense width": ({"dense": ones(2, 4)}, ValueError, r"dense: .*shape \(2, 4\)"),
    "dense one dimension": ({"dense": ones(3)}, ValueError, r"dense: .*shape \(3,\), expected shape \(B, 3\)"),
    "dense three dimensions": ({"dense": ones(2, 1, 3)}, ValueError, "dense: "),
    "dense int": ({"dense": ones(2, 3).astype(int)}, ValueError, "dense: got int64"),
    "dense object": ({"dense": ones(2, 3).astype(object)}, ValueError, "dense: got object"),
    "dense None": ({"dense": None}, ValueError, "dense: "),
    "dense words": ({"dense": "abc"}, ValueError, "dense: "),
    "dense NaN": ({"dense": ones(2, 3) * np.nan}, ValueError, "dense: got NaN"),
    "dense inf": ({"dense": ones(2, 3) * -np.inf}, ValueError, "dense: got NaN or infinite"),
    "dense beyond float32": ({"dense": np.full((2, 3), 1e39)}, ValueError, "dense: got NaN or infinite"),
    "too few tables": ({"indices": INDICES[:1]}, ValueError, "indices, offsets: got 1 and 2"),
    "too many offsets": ({"offsets": OFFSETS * 2}, ValueError, "indices, offsets: got 2 and 4"),
    "indices None": ({"indices": None}, (ValueError, TypeError), "indices"),
    "indices a number": ({"indices": 3}, (ValueError, TypeError), "indices"),
    "offsets a number": ({"offsets": 3}, (ValueError, TypeError), "offsets"),
    "indices float": ({"indices": [INDICES[0], np.array([1.0])]}, ValueError, "got float64"),
    "indices bool": ({"indices": [INDICES[0], np.array([True, False])]}, ValueError, "got bool"),
    "indices uint64": ({"indices": [INDICES[0], INDICES[1].astype(np.uint64)]}, ValueError, "got uint64"),
    "indices ragged": ({"indices": [INDICES[0], [[0], [1, 2]]]}, ValueError, "indices"),
    "index too large": ({"indices": [INDICES[0], np.array([11, 0])]}, IndexError, r"indices\[1\]: got 0 to 11, .* 0 to 10"),
    "index negative": ({"indices": [np.array([0, -1, 0]), INDICES[1]]}, IndexError, r"indices\[0\]: got -1"),
    "index int64": ({"indices": [INDICES[0], np.array([2**40, 0])]}, IndexError, r"indices\[1\]"),
    "no offsets": ({"offsets": None}, ValueError, "offsets: got None with one-dimensional indices"),
    "offsets of 2-D": ({"indices": [INDICES[0], np.zeros((2, 1), int)]}, ValueError, "two-dimensional indices"),
    "offsets float": ({"offsets": [OFFSETS[0], np.array([0.0, 1.0])]}, ValueError, "offsets: got float64"),
    "offsets 2-D": ({"offsets": [OFFSETS[0], OFFSETS[1][None]]}, ValueError, "offsets: .* 1-dimensional"),
    "offsets not from 0": ({"offsets": [OFFSETS[0], np.array([1, 1])]}, ValueError, r"offsets\[1\]"),
    "offsets negative": ({"offsets": [OFFSETS[0], np.array([0, -1])]}, ValueError, r"offsets\[1\]"),
    "offsets decreasing": ({"offsets": [np.array([2, 0]), OFFSETS[1]]}, ValueError, r"offsets\[0\]"),
    "offsets beyond": ({"offsets": [OFFSETS[0], np.array([0, 3])]}, ValueError, "offsets: got 3 last"),
    "too few bags": ({"offsets": [OFFSETS[0], np.array([0])]}, ValueError, r"offsets\[1\]: got 1 bags, .* request, 2"),
    "last offset missing": ({"include_last_offset": True}, ValueError, r"offsets\[0\]: got 1 bags"),
    "last offset short": (
        {"offsets": [np.array([0, 1, 2]), np.array([0, 1, 2])], "include_last_offset": True}, ValueError, r"offsets\[0\]",
    ),
    "no last offset": ({"offsets": [[], []], "include_last_offset": True}, ValueError, "offsets: got none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_requests_that_do_not_fit(model: sedq.DLRM, case: str) -> None:
    change, error, message = BAD_REQUESTS[case]
    sound = {"dense": ones(2, 3), "indices": INDICES, "offsets": OFFSETS}
    assert model(**sound).shape == (2,)
    for call in (model, model.predict_float):
        with pytest.raises(error, match=message):
            call(**(sound | change))
    last = change.get("include_last_offset", False)
    samples = tuple(({k: v for k, v in (sound | change).items() if k in sound}).values())
    with pytest.raises(error, match=message):
        model.quantize(samples, last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"check": c}, f"check: got '{c}'") for c in ("digest", "threshold", "mod127", "paranoid", "")]
    + [({"check": 1}, "check: got 1"), ({"check": ["off"]}, "check: got"), ({"on_error": "ignore"}, "on_error: got")]
    + [({"num_threads": n}, "num_threads: got") for n in (0, -1, 1.5, "2", True, 2**31, 2**64)],
)  # fmt: skip
def test_settings_that_do_not_exist(model: sedq.DLRM, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(ones(2, 3), INDICES, OFFSETS, **settings)


def test_a_model_that_is_not_quantised_or_has_no_float_arrays(model: sedq.DLRM) -> None:
    plain = sedq.DLRM(**SOUND)
    assert not plain.quantized
    for call in (lambda: plain(ones(2, 3), INDICES, OFFSETS), lambda: plain.save("never-written")):
        with pytest.raises(ValueError, match=r"not quantised, expected a call of quantize\(samples\) first"):
            call()
    frozen = sedq.DLRM.from_quantized(model.bottom, model.bags, model.top)
    assert frozen.quantized
    np.testing.assert_array_equal(frozen(ones(2, 3), INDICES, OFFSETS), model(ones(2, 3), INDICES, OFFSETS))
    for call in (
        lambda: frozen.predict_float(ones(2, 3), INDICES, OFFSETS),
        lambda: frozen.quantize((ones(2, 3), INDICES, OFFSETS)),
    ):
        with pytest.raises(ValueError, match="has no float arrays"):
            call()


@pytest.mark.parametrize(
    "samples", [None, (ones(2, 3),), (ones(2, 3), INDICES), ones(2, 3)], ids=["None", "1", "2", "array"]
)
def test_samples_that_are_not_three_parts(samples: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="samples"):
        sedq.DLRM(**SOUND).quantize(samples)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="samples: got no requests"):
        sedq.DLRM(**SOUND).quantize((ones(0, 3), [[], []], [[], []]))


FROZEN: dict[str, Any] = {
    "no bottom": lambda m: ([], m.bags, m.top),
    "no top": lambda m: (m.bottom, m.bags, []),
    "bottom cut": lambda m: (m.bottom[:1], m.bags, m.top),
    "bottom turned": lambda m: (m.bottom[::-1], m.bags, m.top),
    "too few bags": lambda m: (m.bottom, m.bags[:1], m.top),
    "top cut": lambda m: (m.bottom, m.bags, m.top[:1]),
    "not frozen": lambda m: ([sedq.QuantizedLinear.from_float(ones(DIM, 3))], m.bags, m.top),
    "no outputs": lambda m: (
        [sedq.QuantizedLinear(m.bottom[0].packed, m.bottom[0].input_qparams), m.bottom[1]], m.bags, m.top,
    ),
    "other things": lambda m: ([1], [2], [3]),
}  # fmt: skip


@pytest.mark.parametrize("case", FROZEN)
def test_frozen_parts_that_do_not_fit(model: sedq.DLRM, case: str) -> None:
    with pytest.raises((ValueError, TypeError), match=r"bottom|bags|top"):
        sedq.DLRM.from_quantized(*FROZEN[case](model))


@pytest.mark.parametrize("part", ["bottom", "top"])
def test_layers_without_bias_are_those_of_zeros(part: str) -> None:
    without = SOUND | {part: [(weight, None) for weight, _ in SOUND[part]]}
    zeros = SOUND | {part: [(weight, 0 * bias) for weight, bias in SOUND[part]]}
    dense = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    request = (dense, INDICES, OFFSETS)
    made = [sedq.DLRM(**parts).quantize(request) for parts in (without, zeros)]
    np.testing.assert_array_equal(*(model(*request) for model in made))
    np.testing.assert_array_equal(*(model.predict_float(*request) for model in made))


def test_a_pruned_table_is_asked_for_what_it_maps(model: sedq.DLRM) -> None:
    mapping = np.full(20, -1)
    mapping[::2] = np.arange(10)
    bag = sedq.EmbeddingBag.from_float(ones(10, DIM) * np.arange(10, dtype=np.float32)[:, None], index_mapping=mapping)
    plain = sedq.EmbeddingBag.from_fused(bag.to_fused())
    models = [sedq.DLRM.from_quantized(model.bottom, [b, model.bags[1]], model.top) for b in (bag, plain)]
    got = models[0](ones(2, 3), [np.array([[18, 6], [12, 3]]), np.array([[0], [10]])])
    want = models[1](ones(2, 3), [np.array([9, 3, 6]), np.array([0, 10])], [np.array([0, 2]), np.array([0, 1])])
    np.testing.assert_array_equal(got, want)
    with pytest.raises(IndexError, match=r"indices\[0\]: got 0 to 20, expected 0 to 19"):
        models[0](ones(2, 3), [np.array([[0], [20]]), np.array([[0], [10]])])


@pytest.mark.parametrize("value", [1, "no", None])
def test_include_last_offset_is_a_switch(model: sedq.DLRM, value: Any) -> None:
    with pytest.raises(ValueError, match="include_last_offset: got"):
        model(ones(2, 3), INDICES, OFFSETS, include_last_offset=value)
