"""The site of the documents builds without a warning, its links lead somewhere, and it needs no network."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.any_isa

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of the build is an error."""
    for needed in ("sphinx", "pydata_sphinx_theme", "numpydoc", "myst_parser"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    # -P: else the source tree would hide what is built
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", str(out / "doctrees")]
    ran = subprocess.run([*command, str(DOCS), str(out / "html")], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return out / "html"


class Page(HTMLParser):
    """Links of a built page, what can be linked to in it, and how much text its article has."""

    VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.words = 0
        self.depth = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value for name, value in attrs if value}
        self.links += [named[a] for a in ("href", "src") if a in named]
        self.ids |= {named[a] for a in ("id", "name") if a in named}
        if tag not in self.VOID:
            self.depth += tag == "article" or self.depth > 0

    def handle_endtag(self, tag: str) -> None:
        self.depth -= self.depth > 0

    def handle_data(self, data: str) -> None:
        self.words += len(data.split()) if self.depth else 0


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts}


def test_every_page_is_built(built: dict[Path, Page], site: Path) -> None:
    names = {path.relative_to(site).with_suffix("").as_posix() for path in built}
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} <= names
    assert {"reference/generated/sedq.linear.checksums.locate", "source/sedq/_core/_gemm.pyx"} <= names


def test_every_link_of_the_site_leads_somewhere(built: dict[Path, Page], site: Path) -> None:
    broken = []
    internal = 0
    for path, page in built.items():
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            internal += 1
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path.resolve()
            there = target.is_relative_to(site.resolve()) and target.is_file()
            if not there or (anchor and target in built and unquote(anchor) not in built[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []
    assert internal > 1000


def test_no_page_is_empty(built: dict[Path, Page], site: Path) -> None:
    generated = {"search", "genindex", "py-modindex"}
    few = {p.relative_to(site).as_posix(): page.words for p, page in built.items() if p.stem not in generated}
    assert {name: words for name, words in few.items() if words < 20} == {}


def test_pages_ask_the_network_for_nothing(built: dict[Path, Page]) -> None:
    loaded = r"<(?:script|img|link)[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]+)"
    asked = {url for path in built for url in re.findall(loaded, path.read_text(encoding="utf-8"))}
    assert asked == set()
