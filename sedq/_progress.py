"""A progress bar on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "progress_bar"]

Progress = Callable[[int, int], object]
"""A function that is called with the number of finished items and the number of all items."""

WIDTH = 40  # characters of a full bar


@contextmanager
def progress_bar(unit: str = "") -> Iterator[Progress]:
    """Yield a function that shows how many items are done: a bar on a terminal, and one line per call elsewhere.

    Parameters
    ----------
    unit : str, optional
        What the items are, in the plural.
    """
    terminal = sys.stderr.isatty()
    shown = False

    def show(done: int, total: int) -> None:
        nonlocal shown
        shown = True
        text = f"{done:,} of {total:,} {unit}".rstrip()
        if terminal:
            print(f"\r[{'#' * (WIDTH * done // max(total, 1)):<{WIDTH}}] {text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr)

    try:
        yield show
    finally:
        if terminal and shown:
            print(file=sys.stderr)  # what is printed next starts on a line of its own
