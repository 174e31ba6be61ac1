"""The documents: links lead somewhere, what they call exists, and the README's code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sedq

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "sedq" / "datasets").glob("*.md")])


def test_there_are_documents() -> None:
    assert {"README.md", "CHANGELOG.md", "checks.md", "performance.md"} <= {d.name for d in DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_names_exist(document: Path) -> None:
    for dotted in re.findall(r"`sedq\.([A-Za-z_][\w.]*)", document.read_text(encoding="utf-8")):
        value: object = sedq
        for name in dotted.split("."):
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
