from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from sedq._core._dispatch import Context
from sedq._core._findings import Findings
from sedq._core._rows import Table

def pool_many(
    context: Context,
    tables: list[Table],
    indices: NDArray[Any],
    offsets: NDArray[Any],
    weights: NDArray[Any] | None,
    out: NDArray[Any],
    check: int,
    limits: Sequence[tuple[int, float, tuple[float, ...]]],
    means: list[bool],
    num_threads: int,
    stats: NDArray[Any] | None = None,
) -> dict[int, Findings] | None: ...
