"""Campaigns that several files of tests run: one on a target of each kind, the same whenever it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import faults
from sedq.commands import _demo
from sedq.datasets import load_msweb

TRIALS = 240


def product(**options: Any) -> faults.Campaign:
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (18, 33), dtype=np.int8), 0.1, 3)
    return faults.Campaign(packed, [rng.integers(1, 256, (3, 33), dtype=np.uint8) for _ in range(4)], **options)


def layer(**options: Any) -> faults.Campaign:
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(18, 33)).astype(np.float32), rng.normal(size=18).astype(np.float32)
    x = rng.normal(size=(40, 33)).astype(np.float32)
    made = sedq.QuantizedLinear.from_float(weight, bias, keep_source=True).observe(x).freeze()
    return faults.Campaign(made, [x[i : i + 4] for i in range(0, 40, 4)], **options)


def table(**options: Any) -> faults.Campaign:
    rng = np.random.default_rng(2)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 19)).astype(np.float32), keep_source=True)
    batches = [(rng.integers(0, 50, 9), np.array([0, 4, 9])) for _ in range(8)]
    return faults.Campaign(bag, batches, **options)


def model(**options: Any) -> faults.Campaign:
    data = load_msweb()
    return faults.Campaign(_demo.build(data), [data.heldout.batch(i, i + 2) for i in range(0, 400, 25)], **options)


CAMPAIGNS = {f.__name__: f for f in (product, layer, table, model)}
everywhere = pytest.mark.parametrize("make", CAMPAIGNS.values(), ids=CAMPAIGNS)
Make = Callable[..., faults.Campaign]
