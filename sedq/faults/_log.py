"""The log of a campaign: JSON lines, appended to, from which a run that was killed goes on."""

from __future__ import annotations

import errno
import json
import os
import stat
import weakref
import zlib
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

from sedq.faults._summary import OUTCOMES
from sedq.faults._worker import InvalidRun, Record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment, unused-ignore]

__all__ = ["FORMAT", "Log", "Results", "collect"]

Results = Generator[list[Record], None, None]  # thrown an interrupt, gives again what may not have been taken

FORMAT = "sedq-campaign-log"
FIELDS = {
    **dict.fromkeys(("site", "model", "part", "outcome", "kind", "rung", "verdict"), str),
    **dict.fromkeys(("trial", "batch", "visit", "element", "bit"), int),
    **dict.fromkeys(("persistent", "changed"), bool),
    **dict.fromkeys(("damage", "error"), float),
}
SCORES: dict[str, type] = {"scores": list, "answers": list}  # of models, where they aren't those without a fault
_logs: weakref.WeakSet[Log] = weakref.WeakSet()


class Log:
    """One line that says which campaign this is, then a line per trial, in whatever order they end.

    A subclass says what is another in the log of other records, in the attributes that are in capitals here.

    Each line ends in the CRC-32 of the rest of it. The file is locked until `close`, which leaving a ``with`` block calls.

    Parameters
    ----------
    path : path-like
        Made if it doesn't exist.
    header : dict
        What must agree for its records to be of this campaign.

    Raises
    ------
    InvalidRun
        If the file is the log of another campaign, in use by another run, has a line that is damaged, or holds two records
        of one trial that differ.
    ValueError
        If it is no such log.
    """

    FORMAT, VERSION = FORMAT, 2
    ARGUMENT = "resume"  # by which messages call it
    FIELDS: ClassVar[dict[str, type]] = FIELDS
    OPTIONAL: ClassVar[dict[str, type]] = SCORES
    NOT_NEGATIVE: tuple[str, ...] = ("trial", "batch", "damage", "error")
    OUTCOMES: tuple[str, ...] = OUTCOMES

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any]) -> None:
        self._path = Path(path)
        self._header = json.loads(_text({"format": self.FORMAT, "version": self.VERSION, **header}))
        self.records: dict[int, Record] = {}
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        _logs.add(self)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise ValueError(f"{self.ARGUMENT}: got {path}, expected an ordinary file or none")
            self._lock()
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which another run may then use."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InvalidRun(f"{self.ARGUMENT}: {self._path} is in use by another run") from None
            # a file system without locks: nothing can be said of other runs

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1  # what follows was being written when the run was killed
        lines = data[:whole].split(b"\n")[:-1]
        start = _text({"format": self.FORMAT})[:-1].encode()
        if not (start.startswith(data) or data.startswith(start)):
            raise ValueError(f"{self.ARGUMENT}: got {self._path}, which is no log of a campaign ({self.FORMAT!r})")
        if lines:
            self._agree(self._row(1, lines[0]))
            for number, line in enumerate(lines[1:], 2):
                record = self._record(number, line)
                if self.records.setdefault(record["trial"], record) != record:
                    raise InvalidRun(f"{self.ARGUMENT}: {self._path} has two different records of trial {record['trial']}")
        if whole < len(data):
            os.ftruncate(self._file, whole)
        if not lines:
            self._append([self._header])

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        """Return what a line holds, if it is what was written."""
        try:
            row = json.loads(line)
            text = "" if not isinstance(row, dict) else _text({name: row[name] for name in row if name != "crc"})
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InvalidRun(f"{self.ARGUMENT}: line {number} of {self._path} is damaged: it is no JSON object")
        if number == 1 and row.get("version") != self.VERSION:
            got = _short(row.get("version"))
            raise InvalidRun(f"{self.ARGUMENT}: {self._path} is a log of version {got}, expected {self.VERSION}")
        if row.pop("crc", None) != _crc(text):
            raise InvalidRun(
                f"{self.ARGUMENT}: line {number} of {self._path} is damaged: its checksum doesn't fit what it says"
            )
        return row

    def _record(self, number: int, line: bytes) -> Record:
        record = self._row(number, line)
        wrong = [name for name, kind in self.FIELDS.items() if type(record.get(name)) is not kind]
        others = sorted(record.keys() - self.FIELDS.keys())
        wrong += [name for name in others if type(record[name]) is not self.OPTIONAL.get(name)]
        if not wrong:
            wrong = [name for name in self.NOT_NEGATIVE if record[name] < 0]
            wrong += ["outcome"] if record["outcome"] not in self.OUTCOMES else []
        if wrong:
            raise InvalidRun(f"{self.ARGUMENT}: line {number} of {self._path} is no record of a trial: {', '.join(wrong)}")
        return record

    def _agree(self, found: dict[str, Any]) -> None:
        for name, wanted in self._header.items():
            got = found.get(name)
            if got == wanted:
                continue
            if isinstance(got, dict) and isinstance(wanted, dict):
                differ = sorted(k for k in got.keys() | wanted.keys() if got.get(k) != wanted.get(k))
                what = f"{name} differ: {', '.join(differ[:5])}{f' and {len(differ) - 5} more' * (len(differ) > 5)}"
            else:
                what = f"{name} differs: got {_short(got)}, expected {_short(wanted)}"
            raise InvalidRun(f"{self.ARGUMENT}: {self._path} is of another campaign ({what})")

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        data = b"".join(_line(row) for row in rows)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def add(self, records: list[Record]) -> None:
        """Append the records of some trials, those that are there already left out."""
        new = [r for r in records if r["trial"] not in self.records]
        self._append(new)
        self.records |= {r["trial"]: r for r in new}


def collect(results: Results, done: dict[int, Record], log: Log | None, report: Callable[[int], object]) -> None:
    """Take results as they come: into the log, then `done`, whose length is reported. An interrupt loses none."""

    def take(records: list[Record]) -> None:
        if log is not None:
            log.add(records)
        done.update((record["trial"], record) for record in records)
        report(len(done))

    try:
        for records in results:
            take(records)
    except KeyboardInterrupt as interrupt:  # of `take`, or theirs, which they raise again
        take(results.throw(interrupt))
        for records in results:
            take(records)


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"))


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _line(row: dict[str, Any]) -> bytes:
    text = _text(row)
    return f'{text[:-1]},"crc":"{_crc(text)}"}}\n'.encode()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _close_copies() -> None:
    """Close, in a fork, the files of the process it was made from: it would keep them locked when that one is killed."""
    for log in list(_logs):
        log.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
