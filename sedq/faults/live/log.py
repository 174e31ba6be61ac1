"""The log of a campaign: one line of JSON that says what it is, then one for each trial, appended as they end."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from sedq.faults.live.strikes import OUTCOMES, Trial

__all__ = ["Log"]


class Log:
    """An append-only file of trials, which goes on where an earlier run was cut off; a context manager.

    Parameters
    ----------
    path : path-like or None
        None keeps trials in memory alone.
    header : dict
        What the campaign is: a log of another one is refused.

    Attributes
    ----------
    trials : dict of int to Trial
        By number.
    """

    def __init__(self, path: str | os.PathLike[str] | None, header: dict[str, Any]) -> None:
        self.trials: dict[int, Trial] = {}
        self._file = None
        if path is None:
            return
        target, written = Path(path), b""
        if target.exists():
            if not target.is_file():
                raise ValueError(f"log: got {target}, expected an ordinary file or none")
            written = target.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]  # a line cut off by a kill is run again
        self._read(target, whole, header)
        self._file = target.open("r+b" if target.exists() else "xb")
        self._file.truncate(len(whole))
        self._file.seek(0, os.SEEK_END)
        if not whole:
            self._write(header)

    def _read(self, path: Path, data: bytes, header: dict[str, Any]) -> None:
        lines = data.splitlines()
        if not lines:
            return
        try:
            found = json.loads(lines[0])
            self.trials = {t.trial: t for t in map(_trial, lines[1:])}
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"log: got {path}, expected the log of a live campaign") from None
        wanted = json.loads(json.dumps(header))
        if found != wanted:
            other = {k: (found.get(k), v) for k, v in wanted.items() if found.get(k) != v} if isinstance(found, dict) else {}
            differs = ", ".join(f"{k} {got!r} (here {here!r})" for k, (got, here) in other.items())
            raise ValueError(f"log: got {path} of another campaign: {differs}; expected a log of this one, or a new file")

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def add(self, trial: Trial) -> None:
        """Append a trial."""
        self.trials[trial.trial] = trial
        self._write(asdict(trial))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _trial(line: bytes) -> Trial:
    fields = json.loads(line)
    trial = Trial(**(fields | {"operands": tuple(fields["operands"])}))
    if trial.outcome not in OUTCOMES:
        raise ValueError(trial.outcome)
    return trial
