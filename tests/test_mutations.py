"""The tool that mutates the detectors: it finds places in every language, and a mutation is what it says."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.skipif(not (ROOT / "bench" / "mutants.py").is_file(), reason="the benchmarks are not here"),
]

PYTHON = """
def verify(a, b):
    if a and b < 3:
        record(a)
    return a == b

def add(a, b):
    return a or b
"""
CYTHON = """
cdef void verify(const Job *job, int64_t n) noexcept nogil:
    cdef uint32_t total = 0
    if job.check == 0:
        return
    while n < 3:
        total += 1
        n += 1
    # if total: sedq_report()
    if total != job.sum or total > 2:
        sedq_report(job.found, 0, SEDQ_BAD_SUM, 0, 0)
"""
C = """
static int64_t scan(const uint8_t *p, int64_t n, sums *sums)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        count += p[i]; /* sums->codes += 1; */
        sums->codes += p[i];
        if (p[i] == 3 && count)
            return i;
    }
    sums->rows = (uint64_t)n;
    return -1;
}
"""
FOUND = {
    "a.py": [
        "if True:",
        "if False:",
        "if True and b < 3:",
        "if a and True:",
        "if a and False:",
        "pass",
        "return True",
        "return False",
    ],
    "a.pyx": [
        "if True:",
        "pass",
        "if False:",
        "if False or total > 2:",
        "if ((total) & 0xffff) != ((job.sum) & 0xffff) or total > 2:",
        "if total != job.sum or False:",
    ],
    "a.c": [
        "(void)0;",
        "if (0)",
        "if (1 && count)",
        "if (p[i] == 3 && 1)",
        "sums->rows = 0;",
    ],
}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    before = set(sys.modules)
    yield importlib.import_module("mutations")
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(("path", "text"), [("a.py", PYTHON), ("a.pyx", CYTHON), ("a.c", C)])
def test_places_are_found_in_every_language(tool: ModuleType, path: str, text: str) -> None:
    assert [m.after for m in tool.mutants.find(path, text)] == FOUND[path]


def test_a_mutation_is_what_it_says(tool: ModuleType) -> None:
    found = list(tool.mutants.mutations(ROOT))
    assert {Path(m.path).suffix for m in found} == {".py", ".pyx", ".c", ".h"}
    for m in found:
        text = (ROOT / m.path).read_text("utf-8")
        changed = m.applied(text)
        assert changed != text
        assert m.before in " ".join(" ".join(text.splitlines()[m.line - 1 :]).split())
        assert m.after in " ".join(" ".join(changed.splitlines()[m.line - 1 :]).split())
        if m.path.endswith(".py"):
            ast.parse(changed)


def test_every_mutation_has_tests(tool: ModuleType) -> None:
    paths = {m.path for m in tool.mutants.mutations(ROOT)}
    named = {name for path in paths for name in tool.tests_of(path)}
    assert [path for path in paths if not tool.tests_of(path)] == []
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert all(tool.equivalents().values())
