"""Fixtures shared by the tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings

from sedq import _config
from sedq._core import _dispatch

# asserts of helpers explain themselves as those of tests do
pytest.register_assert_rewrite("helpers")

# Examples are drawn from a fixed seed, and a slow machine is no failure.
settings.register_profile("sedq", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("sedq")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run on each instruction set by themselves, so that a run on one set alone can leave them out."""
    for item in items:
        if "kernels" in getattr(item, "fixturenames", ()):
            item.add_marker("every_isa")


@pytest.fixture(params=_dispatch.available())
def kernels(request: pytest.FixtureRequest) -> Iterator[_dispatch.Context]:
    """Each instruction set that this machine can run, in force for the test."""
    context = _dispatch.get(request.param)
    with _config.use_kernels(context):
        yield context


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)
