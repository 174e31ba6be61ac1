"""Strike sites inside kernels, and see what the checks make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sedq
from sedq.faults import _inject
from sedq.faults._models import Change

Array = NDArray[Any]
QPARAMS = {"x_scale": 0.02, "x_zero_point": 5, "y_scale": 3.0, "y_zero_point": 128}


@dataclass
class Outcome:
    """What a plan did: visits struck, visits left, words changed."""

    fired: int = 0
    left: int = 0
    changed: int = 0


@contextmanager
def planned(site: str, visit: int = 0, element: int = 0, change: Change | None = None, repeat: int = 1) -> Iterator[Outcome]:
    """Strike a site during a block; without a change every bit of the word flips."""
    c = Change(0xFFFFFFFF, flip=0xFFFFFFFF) if change is None else change
    outcome = Outcome()
    plan = (visit, element, c.flip, repeat, c.keep, c.put, c.add, c.pair)
    with _inject.hooked_call(site, plan) as ended:
        yield outcome
        outcome.fired, outcome.left, outcome.changed = ended()


def visits(site: str, call: Callable[[], object]) -> int:
    with planned(site, _inject.UNREACHED) as outcome:
        call()
    assert outcome.fired == outcome.changed == 0
    return _inject.UNREACHED - outcome.left


def product(output: str, m: int, n: int, k: int = 40) -> Callable[..., Array]:
    """A product m x n x k with one of the outputs; its options are those of the call."""
    rng = np.random.default_rng([m, n, k])
    packed = sedq.pack_weights(rng.integers(-128, 128, (n, k), dtype=np.int8), 0.01, 3, rng.normal(size=n))
    x = rng.integers(0, 256, (m, k), dtype=np.uint8)

    def call(**options: Any) -> Array:
        if output == "int32":
            return sedq.matmul_integer(x, packed, **options)
        y = {} if output == "uint8" else {"y_scale": None, "y_zero_point": None}
        return sedq.qlinear(x, packed, **(QPARAMS | y), **options)

    return call


def watched(call: Callable[..., Array], check: str) -> tuple[Array, list[sedq.Event]]:
    with sedq.monitor() as m:
        y = call(check=check, num_threads=1)
    return y, list(m.events)


def words(y: Array) -> Array:
    return y.reshape(-1).view(np.uint8 if y.itemsize == 1 else np.uint32)
