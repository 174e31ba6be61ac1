"""What the site needs beyond Sphinx: pages of source files, links to names, and equations that need no network.

- A link to a file outside ``docs/``, as it works in the repository, leads to a page that shows that file.
- Inline code that is a documented name, such as ``sedq.qlinear``, links to its page of the reference.
- Equations become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {".py": "python", ".pyi": "python", ".pyx": "cython", ".pxd": "cython", ".c": "c", ".h": "c", ".json": "json"}
# members for models and kernels, not for users
INTERNAL = {
    "epilogue",
    "heal_in_call",
    "healed_since",
    "heals",
    "integer_epilogue",
    "require_intact",
    "run",
}


def page_of(path: str) -> str:
    """Name of the page that shows a file of the repository."""
    return f"source/{path}"


def is_file_link(node: nodes.Node) -> bool:
    """Whether a node is a link to a file or a page."""
    return isinstance(node, addnodes.download_reference) or (
        isinstance(node, addnodes.pending_xref) and node.get("refdomain") == "doc"
    )


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to files of the repository lead to the pages that show them."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(doctree.findall(is_file_link)):
        # MyST takes a Markdown file for a page, and gives its name without the suffix
        suffix = ".md" if isinstance(link, addnodes.pending_xref) else ""
        target = (here / (link["reftarget"] + suffix)).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT) or target.is_relative_to(app.srcdir):
            continue  # a page, or nothing, of which Sphinx warns
        path = target.relative_to(ROOT).as_posix()
        app.env.sedq_sources.add(path)  # type: ignore[attr-defined]
        uri = app.builder.get_relative_uri(app.env.docname, page_of(path))
        link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Let inline code that names something public link to it."""
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        if name.startswith("sedq.") and name.replace(".", "").isidentifier() and not is_linked(literal):
            reference = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=name, refwarn=False, refdoc=app.env.docname
            )
            literal.replace_self(reference)
            reference += literal


def is_linked(node: nodes.Node) -> bool:
    """Whether a node is part of a link or of a title."""
    return isinstance(node.parent, (nodes.reference, addnodes.pending_xref, addnodes.download_reference, nodes.title))


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Pages of the files that are linked to."""
    bridge = PygmentsBridge("html", app.config.pygments_style or "default")
    for path in sorted(app.env.sedq_sources):  # type: ignore[attr-defined]
        text = (ROOT / path).read_text(encoding="utf-8")
        shown = bridge.highlight_block(text, LANGUAGES.get(Path(path).suffix, "text"), linenos=False)
        yield page_of(path), {"title": path, "body": f"<h1>{escape(path)}</h1>\n{shown}"}, "page.html"


def start(app: Sphinx) -> None:
    """Remember the linked files with the environment, which outlives a build, and forget pages of names that are gone."""
    shutil.rmtree(Path(app.srcdir) / "reference" / "generated", ignore_errors=True)
    if not hasattr(app.env, "sedq_sources"):
        app.env.sedq_sources = set()  # type: ignore[attr-defined]


def skip_internal(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leave out methods that aren't for users."""
    return True if name in INTERNAL else None


def visit_math(self: Any, node: nodes.math) -> None:
    """Write an inline equation."""
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write an equation of its own."""
    self.body.append(f'<div class="sedq-equation">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of this."""
    app.connect("builder-inited", start, priority=100)  # before they are generated
    app.connect("doctree-read", link_sources, priority=100)  # before Sphinx collects files to download
    app.connect("doctree-read", link_names)
    app.connect("html-collect-pages", source_pages)
    app.connect("autodoc-skip-member", skip_internal)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": False, "parallel_write_safe": True}
