"""The documents: links lead somewhere, what they call exists, their code runs, and the coverage table holds."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import logging
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sedq

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES, *sorted((ROOT / "sedq" / "datasets").glob("*.md"))]
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))


def test_there_are_documents() -> None:
    expected = {"README.md", "CHANGELOG.md", "checks.md", "performance.md", "tutorial.md", "exact-check.md"}
    assert expected <= {d.name for d in DOCUMENTS}


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert missing == []


@every_document
def test_names_exist(document: Path) -> None:
    for dotted in re.findall(r"`sedq\.([A-Za-z_][\w.]*)", document.read_text(encoding="utf-8")):
        value: object = sedq
        for name in dotted.split("."):
            if inspect.ismodule(value) and not hasattr(value, name):  # a module that is imported where it is wanted
                importlib.import_module(f"{value.__name__}.{name}")
            assert hasattr(value, name), f"sedq.{dotted}"
            value = getattr(value, name)


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "heal: memory, panels: W[3, 7]" in printed


def test_the_readme_has_both_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "pip install . && sedq demo" in lines
    assert 'pip install ".[test]" && pytest' in lines


# ---- the code of the pages


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """(language, source, first line) of the code of a page that runs."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(python|pycon)\n(.*?)^```$", text, re.M | re.S)
    return [(block[1], block[2], text.count("\n", 0, block.start(2))) for block in found]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(DOCS)))
def test_the_code_of_a_page_runs(page: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, failures = doctest.DocTestRunner(verbose=False, optionflags=flags), list[str]()
    for language, source, line in blocks(page):
        if language == "python":
            exec(compile("\n" * line + source, str(page), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), line)
        runner.run(test, out=failures.append, clear_globs=False)
        names |= test.globs
    assert "".join(failures) == ""


def test_the_tutorial_and_the_guides_have_code() -> None:
    guides = [p for p in (DOCS / "howto").glob("*.md") if p.name != "index.md"]
    assert len(guides) >= 7
    assert [p.name for p in [DOCS / "tutorial.md", *guides] if not blocks(p)] == []


def test_the_reference_names_everything_public() -> None:
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    listed = set[str]()
    for part in re.split(r"^\.\. currentmodule:: ", text, flags=re.M)[1:]:
        module = part.split(maxsplit=1)[0]
        listed |= {f"{module}.{name}" for name in re.findall(r"^   (\w+)$", part, re.M)}
    modules = [sedq, sedq.linear.checksums, sedq.datasets, sedq.faults, sedq.faults.live, sedq.files]
    public = {f"{m.__name__}.{name}" for m in modules for name in m.__all__}
    public -= {m.__name__ for m in modules} | {"sedq.__version__"}
    assert public - listed == set(), "add them to docs/reference/index.md"
    assert listed - public == set()


def test_the_map_of_the_source_names_what_is_there() -> None:
    text = (DOCS / "development.md").read_text(encoding="utf-8")
    source, core = ROOT / "sedq", ROOT / "sedq" / "_core"
    folders = {f"{p.parent.relative_to(source)}/" for p in source.rglob("__init__.py") if p.parent != source}
    files = [*source.glob("*.py"), *core.glob("_*.py"), *core.glob("*.pyx"), *(ROOT / "bench").glob("*.*")]
    there = folders | {p.name for p in files} - {"asv.conf.json"}
    assert [name for name in there if name not in text] == []
    named = re.findall(r"`((?:\w+/)+\w+\.\w+)`", text.replace("<isa>", "avx2"))
    assert len(named) > 10
    assert [name for name in named if not any((at / name).exists() for at in (source, core, ROOT, DOCS))] == []
    ways = text[text.index("## Three ways") : text.index("## Builds for tests")]
    code = "\n".join(p.read_text(encoding="utf-8") for p in source.rglob("*") if p.suffix in (".py", ".pyx", ".h"))
    names = set(re.findall(r"`(?:\w+\.)*(\w+)`", ways))
    assert {"multiply", "verify_bag", "sedq_report", "accept"} <= names
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


# ---- what checks detect


def bench(name: str) -> ModuleType:
    """Import a script of bench/."""
    spec = importlib.util.spec_from_file_location(f"bench_{name.replace('/', '_')}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_coverage_table_says_what_injection_shows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "sedq")  # thousands of warnings are what it expects
    coverage = bench("coverage")
    told = coverage.kinds_of((DOCS / "coverage.md").read_text(encoding="utf-8"))
    shown = coverage.kinds(coverage.measure(300))
    assert told == shown
    assert {kind for row in told.values() for kind in row} == {"all", "some", "none", "no such level"}
    assert coverage.false_alarms(20)[0] == 0


def test_the_coverage_table_is_read_cell_by_cell() -> None:
    coverage = bench("coverage")
    cells = {"a fault": [coverage.Cell(5, 0), None, coverage.Cell(5, 5), coverage.Cell(5, 3)]}
    page = f"text\n{coverage.BEGIN}\n{coverage.table(cells)}\n{coverage.END}\ntext"
    assert coverage.kinds_of(page) == coverage.kinds(cells) == {"a fault": ["none", "no such level", "all", "some"]}
