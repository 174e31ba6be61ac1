"""The log of a campaign: JSON lines, appended to, from which a run that was killed goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sedq.faults._worker import InvalidRun, Record

__all__ = ["FORMAT", "Log"]

FORMAT = "sedq-campaign-log"
VERSION = 1


class Log:
    """One line that says which campaign this is, then a line per trial, in whatever order they end.

    Parameters
    ----------
    path : path-like
        Made if it doesn't exist.
    header : dict
        What must agree for its records to be of this campaign.

    Raises
    ------
    InvalidRun
        If the file is the log of another campaign, or holds two records of one trial that differ.
    ValueError
        If it is no such log.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any]) -> None:
        self._path = Path(path)
        self._header = {"format": FORMAT, "version": VERSION, **header}
        self.records: dict[int, Record] = {}
        if self._path.exists():
            self._read()
        else:
            self._append([self._header])

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1  # what follows was being written when the run was killed
        lines = data[:whole].splitlines()
        if not lines:
            if data:
                raise ValueError(f"resume: got {self._path}, which is no log of a campaign")
            self._append([self._header])
            return
        try:
            rows = [json.loads(line) for line in lines]
        except ValueError:
            raise ValueError(f"resume: got {self._path}, which is no log of a campaign") from None
        if not isinstance(rows[0], dict) or rows[0].get("format") != FORMAT:
            raise ValueError(f"resume: got {self._path}, which is no log of a campaign")
        for name, value in self._header.items():
            if rows[0].get(name) != value:
                raise InvalidRun(f"resume: {self._path} is of another campaign ({name} differs)")
        for record in rows[1:]:
            if self.records.setdefault(record["trial"], record) != record:
                raise InvalidRun(f"resume: {self._path} has two different records of trial {record['trial']}")
        if whole < len(data):
            os.truncate(self._path, whole)

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        with self._path.open("ab") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def add(self, records: list[Record]) -> None:
        """Append the records of some trials, those that are there already left out."""
        new = [r for r in records if r["trial"] not in self.records]
        self._append(new)
        self.records |= {r["trial"]: r for r in new}
