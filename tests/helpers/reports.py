"""Readers of what a campaign hands on: the schema's validator, and a page's sources and text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from sedq import faults


def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(faults.schema())
    return jsonschema.Draft202012Validator(faults.schema())


class Page(HTMLParser):
    """What a page refers to, its text, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.alternatives: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        given = dict(attrs)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.alternatives.append(given.get("alt") or "")
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
