"""The benchmarks for asv run, each once; how long they take is no test's business."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.any_isa

BENCH = Path(__file__).parent.parent / "bench"
MODULES = sorted(p.stem for p in (BENCH / "suite").glob("*.py") if p.stem != "__init__")


def benchmarks(name: str) -> Iterator[type]:
    """Classes of a module of the suite that time something."""
    spec = importlib.util.spec_from_file_location(f"suite_{name}", BENCH / "suite" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for value in vars(module).values():
        if isinstance(value, type) and any(method.startswith("time_") for method in vars(value)):
            yield value


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_runs_at_every_level(name: str) -> None:
    ran = 0
    for kind in benchmarks(name):
        first, levels = getattr(kind, "params", ([()], [()]))
        for arguments in [(first[0], level) for level in levels] if first[0] else [()]:
            one: Any = kind()
            one.setup(*arguments)
            for method in [m for m in vars(kind) if m.startswith("time_")]:
                getattr(one, method)(*arguments)
                ran += 1
            getattr(one, "teardown", lambda *_: None)(*arguments)
    assert ran >= 3


def test_the_configuration_of_asv_finds_the_suite() -> None:
    conf = json.loads((BENCH / "asv.conf.json").read_text(encoding="utf-8"))
    assert (BENCH / conf["benchmark_dir"] / "__init__.py").is_file()
    assert (BENCH / conf["repo"] / "pyproject.toml").is_file()
    assert MODULES == ["bags", "gemm", "model"]
