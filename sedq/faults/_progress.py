"""How far a campaign is, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["progress_of"]


def progress_of(wanted: bool | Callable[[int, int], object], done: int, trials: int) -> Callable[[int, int], object]:
    """Return what is told (trials done, trials): a bar, lines, what the caller gave, or nothing."""
    if callable(wanted):
        return wanted
    if not wanted:
        return lambda done, trials: None
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return lambda done, trials: print(f"{done} of {trials} trials", file=sys.stderr)
    bar = tqdm(total=trials, initial=done, unit=" trials", file=sys.stderr)

    def show(now: int, total: int) -> None:
        bar.update(now - bar.n)
        if now >= total:
            bar.close()

    return show
