"""What checks find: the kinds of findings, which the C enumeration fixes, and the findings of one call."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from sedq._core import _dispatch

__all__ = ["Finding", "Findings", "Kind"]


class Kind(IntEnum):
    """Which check disagreed; findings.h has the numbers, and says what each compares."""

    ACCUMULATOR = _dispatch.KINDS["accumulator"]
    INPUT = _dispatch.KINDS["input"]
    OUTPUT = _dispatch.KINDS["output"]
    PARAMETERS = _dispatch.KINDS["parameters"]
    EPILOGUE = _dispatch.KINDS["epilogue"]
    COUNT = _dispatch.KINDS["count"]
    DIGEST = _dispatch.KINDS["digest"]
    SUM = _dispatch.KINDS["sum"]
    REPEAT = _dispatch.KINDS["repeat"]
    OVERFLOW = _dispatch.KINDS["overflow"]

    @property
    def label(self) -> str:
        """Name in events."""
        return self.name.lower()


class Finding(NamedTuple):
    """One disagreement of a check.

    Attributes
    ----------
    row : int
        Row or bag; -1 for the whole call.
    kind : Kind
        Which check disagreed.
    residual, limit : float
        By how much the two sides differed, and by how much they may.
    """

    row: int
    kind: Kind
    residual: float = 0.0
    limit: float = 0.0


class Findings(list[Finding]):
    """The findings of one call, at most `MOST` of them.

    Attributes
    ----------
    cut_off : bool
        Whether the checks found more than this holds.
    """

    MOST = _dispatch.MAX_FINDINGS

    def __init__(self, findings: Iterable[Finding] = (), *, cut_off: bool = False) -> None:
        super().__init__(findings)
        self.cut_off = cut_off

    @property
    def rows(self) -> set[int]:
        """Rows or bags that findings name."""
        return {finding.row for finding in self}

    @property
    def kinds(self) -> set[Kind]:
        """The checks that disagreed."""
        return {finding.kind for finding in self}
