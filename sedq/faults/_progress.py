"""How far a campaign is, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_of"]


@contextmanager
def progress_of(
    wanted: bool | Callable[[int, int], object], done: int, trials: int
) -> Iterator[Callable[[int, int], object]]:
    """Give what is told (trials done, trials): a bar, lines, what the caller gave, or nothing."""
    if callable(wanted):
        yield wanted
        return
    if not wanted:
        yield lambda done, trials: None
        return
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        yield lambda done, trials: print(f"{done} of {trials} trials", file=sys.stderr)
        return
    with tqdm(total=trials, initial=done, unit=" trials", file=sys.stderr) as bar:
        yield lambda now, trials: bar.update(now - bar.n)
