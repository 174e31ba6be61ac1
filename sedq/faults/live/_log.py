"""The log of a live campaign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import ClassVar

from sedq.faults import _log
from sedq.faults._worker import InvalidRun
from sedq.faults.live._strikes import OUTCOMES, Strike, Trial

__all__ = ["Log"]


class Log(_log.Log):
    """A log of `Trial`; arguments and errors as for that of other campaigns, of which it is one."""

    FORMAT, VERSION = "sedq-live-log", 3
    ARGUMENT = "log"
    FIELDS: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("kind", "function", "module", "outcome", "check", "detail"), str),
        **dict.fromkeys(("trial", "register", "bit", "tries", "pc"), int),
        "damage": float,
        "beyond": bool,
        "operands": list,
    }
    OPTIONAL: ClassVar[dict[str, type]] = {}
    NOT_NEGATIVE = ("trial", "register", "bit", "tries", "pc", "damage")
    OUTCOMES = OUTCOMES

    def trials(self, drawn: Callable[[int], Strike]) -> dict[int, Trial]:
        """Return the trials that are logged, by number; InvalidRun if one isn't what is `drawn`."""
        for number, record in self.records.items():
            if (record["kind"], record["register"], record["bit"]) != drawn(number)[1:4]:
                raise InvalidRun(f"log: trial {number} of {self._path} isn't what was drawn: it isn't of this campaign")
        return {n: Trial(**(record | {"operands": tuple(record["operands"])})) for n, record in self.records.items()}

    def add_trial(self, trial: Trial) -> None:
        """Append a trial."""
        self.add([asdict(trial)])
