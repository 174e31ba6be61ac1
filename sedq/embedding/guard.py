"""Readers and writers of one table.

Readers take no lock. A writer holds the lock and makes the version odd while it writes; a reader whose run overlapped a
write (the version changed, or was odd) reads again, so that no row half old and half new is ever returned or taken for an
error.
After some such runs it takes the lock itself, so that a stream of updates can't hold it up for ever. A fork waits until no
writer writes, so that a child inherits whole rows, with the parity that belongs to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from sedq import _fork

__all__ = ["Guard"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
ATTEMPTS = 3


class Guard:
    """A sequence counter (as in a seqlock) with a lock for its writers; repairs count as writes.

    Attributes
    ----------
    version : int
        Odd while a writer writes.
    """

    __slots__ = ("_lock", "version")

    def __init__(self) -> None:
        self.version = 0
        self._lock = _fork.new_lock()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other writers out, without writing: what is read inside does not change."""
        with self._lock:
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write inside; what readers read meanwhile they read again."""
        with self._lock:
            outermost = self.version % 2 == 0
            self.version += outermost
            try:
                yield
            finally:
                self.version += outermost

    def read(self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Return what a function returns that reads the table and may be called again."""
        for _ in range(ATTEMPTS):
            before = self.version
            if before % 2:
                break
            result = function(*args, **kwargs)
            if self.version == before:
                return result
        with self._lock:
            return function(*args, **kwargs)
