"""Reports: what was found in a table at rest, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["RebuildReport", "Repairs", "ScrubReport"]

NAMED = 64  # most rows that a message names


@dataclass(frozen=True)
class ScrubReport:
    """What `EmbeddingBag.scrub` found.

    Attributes
    ----------
    start, stop : int
        The rows looked over.
    next : int
        Where to go on: `stop`, or 0 at the end of the table.
    found : list of int
        Rows that were corrupted or in doubt: their digest does not fit, or redundancy contradicts them.
    corrected, rebuilt, reloaded : list of int
        Those restored: one wrong byte located, from parity, from the source.
    left : list of int
        Those that are as they were, because nothing restores them or because the witnesses don't decide.
    stale : list of str
        Parity rows and locating sums that are wrong themselves (`EmbeddingBag.rebuild_redundancy` makes them anew), and
        indices at which an index mapping is corrupted; empty without `redundancy`.
    evidence : dict of int to str
        Of rows that are left: what confirms and what contradicts them.
    """

    start: int
    stop: int
    next: int
    found: list[int]
    corrected: list[int]
    rebuilt: list[int]
    reloaded: list[int]
    left: list[int]
    stale: list[str]
    evidence: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything was found."""
        return bool(self.found or self.stale)


@dataclass
class RebuildReport:
    """What `EmbeddingBag.rebuild_redundancy` did.

    Attributes
    ----------
    rebuilt : list of str
        Locating sums and parity rows that were made anew.
    refused : list of str
        Those that were not, and why.
    """

    rebuilt: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Note that something was made anew, or why it was refused."""
        (self.refused if reason else self.rebuilt).append(f"{name}: {reason}" if reason else name)


@dataclass
class Repairs:
    """Row numbers by what restored them.

    Attributes
    ----------
    corrected : list of int
        One byte was located and corrected, or the digest was what was wrong.
    rebuilt : list of int
        Made again from the parity of their group.
    reloaded : list of int
        Taken from the source.
    left : list of int
        Still corrupted.
    collisions : list of list of int
        Rows left that share a parity group with one another.
    reason : str
        Why rows that are left were not reloaded.
    evidence : dict of int to str
        Of each row that is left: which witnesses confirm and which contradict it.
    """

    corrected: list[int] = field(default_factory=list)
    rebuilt: list[int] = field(default_factory=list)
    reloaded: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    collisions: list[list[int]] = field(default_factory=list)
    reason: str = ""
    evidence: dict[int, str] = field(default_factory=dict)

    def __iadd__(self, other: Repairs) -> Repairs:
        self.reason = other.reason or self.reason
        for name in ("corrected", "rebuilt", "reloaded", "left", "collisions"):
            getattr(self, name).extend(getattr(other, name))
        self.evidence |= other.evidence
        return self

    def restored(self) -> list[int]:
        """Rows that are as they were."""
        return self.corrected + self.rebuilt + self.reloaded

    def counts(self) -> dict[str, int]:
        """How many rows were restored, by what."""
        return {how: len(getattr(self, how)) for how in ("corrected", "rebuilt", "reloaded") if getattr(self, how)}

    def __str__(self) -> str:
        named = (("corrected", self.corrected), ("rebuilt", self.rebuilt), ("reloaded", self.reloaded))
        return "; ".join(f"rows {_listed(sorted(rows))} {how}" for how, rows in named if rows)

    def why_left(self, separator: str = ",") -> str:
        """Say which rows are left, which of them parity could not tell apart, and why they were not reloaded, if any are."""
        if not self.left:
            return ""
        shared = "".join(f", {rows} in one parity group" for rows in self.collisions[:NAMED])
        said = [
            f"row {number} {self.evidence[number]}"
            for number in self.left
            if self.evidence.get(number, "").startswith("fits")
        ]
        why = "; ".join(([self.reason] if self.reason else []) + said[:NAMED])
        return f"rows {_listed(self.left)}{shared}" + (f"{separator} {why}" if why else "")


def _listed(rows: list[int]) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"{rows[:NAMED]}{more}"
