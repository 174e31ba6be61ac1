"""What a campaign on a live processor showed: counts and rates by class of register and by function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sedq._statistics import interval
from sedq.faults.live._strikes import NOTHING, Trial, register_name

__all__ = ["LiveResult", "Row"]

VISIBLE = 1e-4  # of the largest |output|: what counts as a change of a bag that someone would notice
WIDTH = 36  # of the column of names, at least
COLUMNS = ("flips", "masked", "detected", "benign", "missed", "small", "latent", "error", "crash", "hang")


@dataclass(frozen=True)
class Row:
    """Counts of some trials.

    Attributes
    ----------
    name : str
        What they have in common.
    counts : dict of str to int
        Trials by outcome; ``"small_detected"`` and ``"small_missed"`` changed a bag within the threshold
        in force (not told apart under ``"full"``, which is to see any).
    """

    name: str
    counts: dict[str, int]

    @property
    def consequential(self) -> int:
        """Flips that corrupted the output, and neither crashed, hung nor raised another error."""
        return self.counts.get("detected", 0) + self.counts.get("missed", 0)

    @property
    def rate(self) -> float:
        """Part of the consequential flips that was detected; NaN if there was none."""
        return self.counts.get("detected", 0) / self.consequential if self.consequential else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the rate at 95 %."""
        return interval(self.counts.get("detected", 0), self.consequential)

    def to_json(self) -> dict[str, Any]:
        """Return counts, rate and interval as JSON has them."""
        known = bool(self.consequential)
        return {
            "name": self.name,
            "flips": sum(self.counts.values()),
            "counts": self.counts,
            "consequential": self.consequential,
            "rate": self.rate if known else None,
            "interval": list(self.interval) if known else None,
        }


@dataclass(frozen=True)
class LiveResult:
    """Trials of a campaign on a live processor, and what they show.

    Attributes
    ----------
    header : dict
        What was run: operator, check, shape, seed, registers, instruction set.
    trials : tuple of Trial
        In order.
    """

    header: dict[str, Any]
    trials: tuple[Trial, ...]

    def outcome(self, trial: Trial) -> str:
        """Return a trial's outcome, or ``"small_..."`` for a change within the threshold, unless all are to be seen."""
        return f"small_{trial.outcome}" if _is_small(trial) and self.header["check"] != "full" else trial.outcome

    def _row(self, name: str, trials: Iterable[Trial]) -> Row:
        return Row(name, dict(Counter(map(self.outcome, trials))))

    def by_kind(self) -> list[Row]:
        """Return counts by class of register."""
        return [
            self._row(kind, (t for t in self.trials if t.kind == kind))
            for kind in dict.fromkeys(t.kind for t in self.trials)
        ]

    def by_function(self) -> list[Row]:
        """Return counts by function that was struck, those with misses first, then those struck most."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.function, []).append(trial)
        rows = [self._row(name, trials) for name, trials in groups.items()]
        return sorted(rows, key=lambda row: (-row.counts.get("missed", 0), -sum(row.counts.values()), row.name))

    def misses(self) -> list[Trial]:
        """Return the trials in which a consequential fault went unseen."""
        return [t for t in self.trials if self.outcome(t) == "missed"]

    def small_missed(self) -> list[float]:
        """Return the sizes of the changes that went unseen within the threshold in force, in order."""
        return sorted(t.damage for t in self.trials if _is_small(t) and t.outcome == "missed")

    @property
    def passed(self) -> bool:
        """Whether the campaign is sound: of dummy strikes, none had any effect."""
        return all(t.outcome == "masked" and not t.operands for t in self.trials if t.kind == NOTHING)

    def holds(self, goal: float) -> bool:
        """Whether the part that is missed is at most `goal`, at 95 % confidence: the intervals of all classes say so."""
        return all(row.interval[0] >= 1 - goal for row in self.by_kind())

    def to_json(self) -> dict[str, Any]:
        """Return the figures, and every miss, as JSON has them."""
        return {
            "campaign": self.header,
            "trials": len(self.trials),
            "by_kind": [row.to_json() for row in self.by_kind()],
            "by_function": [row.to_json() for row in self.by_function()],
            "small_missed": self.small_missed(),
            "missed": [asdict(t) for t in self.misses()],
        }

    def table(self) -> str:
        """Return the figures as text."""
        head = self.header
        shape = " x ".join(map(str, head["shape"]))
        lines = [
            f"{head['operator']} {shape}, check={head['check']!r}, {head['isa']}, one thread; {len(self.trials)} trials, "
            f"seed {head['seed']}",
            "",
            _line("register", COLUMNS),
            *(_figures(row) for row in self.by_kind()),
            "",
            "Detected, of the flips that changed an output"
            + (" beyond its rounding bound" if head["operator"] == "bag" and head["check"] != "full" else ""),
        ]
        lines += [f"  {_rate(row)}" for row in self.by_kind()]
        if head["operator"] == "bag":
            lines += ["Changes of a bag within its rounding bound", *(f"  {line}" for line in self._small())]
        rows = self.by_function()
        width = max([WIDTH, *(len(row.name) + 1 for row in rows[:25])])
        lines += ["", _line("function", COLUMNS, width), *(_figures(row, width) for row in rows[:25])]
        if len(rows) > 25:
            lines.append(f"and {len(rows) - 25} functions more, without a miss")
        if self.misses():
            lines += ["", "Missed", *(f"  {self._describe(t)}" for t in self.misses()[:25])]
            lines += [f"  and {len(self.misses()) - 25} more"] if len(self.misses()) > 25 else []
        return "\n".join(lines)

    def _small(self) -> Iterable[str]:
        for row in self.by_kind():
            small = [t for t in self.trials if t.kind == row.name and _is_small(t)]
            missed = [t.damage for t in small if t.outcome == "missed"]
            visible = sum(size > VISIBLE for size in missed)
            yield (
                f"{row.name}: {len(small) - len(missed)} detected, {len(missed)} missed, {visible} of them above "
                f"{VISIBLE:g} of the largest output"
            )

    def _describe(self, trial: Trial) -> str:
        register = register_name(trial.kind, trial.register, self.header["registers"].get(trial.kind, (0, 0))[1])
        return (
            f"trial {trial.trial}: bit {trial.bit} of {register} at {trial.function} ({trial.module}+{trial.pc:#x}), "
            f"damage {trial.damage:.2g}"
        )


def _is_small(trial: Trial) -> bool:
    """Whether a bag changed by no more than its rounding bound."""
    return trial.outcome in ("detected", "missed") and not trial.beyond


def _line(name: str, cells: Iterable[object], width: int = WIDTH) -> str:
    return f"{name:<{width}}" + "".join(f"{cell!s:>9}" for cell in cells)


def _figures(row: Row, width: int = WIDTH) -> str:
    counts = row.counts | {
        "flips": sum(row.counts.values()),
        "small": row.counts.get("small_detected", 0) + row.counts.get("small_missed", 0),
    }
    return _line(row.name, (counts.get(column, 0) for column in COLUMNS), width)


def _rate(row: Row) -> str:
    if not row.consequential:
        return f"{row.name}: no such flip"
    rate, low, high = (f"{100 * value:.2f} %" for value in (row.rate, *row.interval))
    missed = row.counts.get("missed", 0)
    return f"{row.name}: {rate} ({low} to {high} at 95 %), {missed} of {row.consequential} missed"
