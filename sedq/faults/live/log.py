"""The log of a campaign: one line of JSON that says what it is, then one for each trial, appended as they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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
        target = Path(path)
        if target.exists() and not target.is_file():
            raise ValueError(f"log: got {target}, expected an ordinary file or none")
        self._file = target.open("a+b")
        try:
            self._begin(target, header)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, path: Path, header: dict[str, Any]) -> None:
        """Lock the file, read what it has, and cut off what a kill left of a line: that trial is run again."""
        import fcntl  # other systems have none, and import this module all the same

        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"log: got {path}, which another run is writing to; expected one of its own") from None
        self._file.seek(0)
        written = self._file.read()
        whole = written[: written.rfind(b"\n") + 1]
        self._read(path, whole or written, header)
        self._file.truncate(len(whole))
        if not whole:
            self._write(header)

    def _read(self, path: Path, data: bytes, header: dict[str, Any]) -> None:
        lines = data.splitlines()
        if not lines:
            return
        found = _parsed(path, 1, lines[0], json.loads)
        for number, line in enumerate(lines[1:], 2):
            trial = _parsed(path, number, line, _trial)
            self.trials[trial.trial] = trial
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


def _parsed(path: Path, number: int, line: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(line)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"log: got {path}, line {number} of which isn't of the log of a live campaign") from None


def _trial(line: bytes) -> Trial:
    fields = json.loads(line)
    trial = Trial(**(fields | {"operands": tuple(fields["operands"])}))
    if trial.outcome not in OUTCOMES:
        raise ValueError(trial.outcome)
    return trial
