from typing import Any

from numpy.typing import NDArray

from sedq._core._dispatch import Context

CHECK_DIGEST: int
CHECK_SUM: int
CHECK_TWICE: int
LIMIT_BOUND: int
LIMIT_REFERENCE: int
LIMIT_MAGNITUDE: int
LIMIT_GROWTH: int
GROWTH_TERMS: int
FOUND_OVERFLOW: int
MAX_DIM: int
MAX_ROWS: int

class Table:
    rows: NDArray[Any]
    dim: int
    def __init__(self, rows: NDArray[Any], dim: int) -> None: ...

def row_bytes(dim: int) -> int: ...
def write_digests(rows: NDArray[Any], dim: int, first: int = 0) -> None: ...
def bad_rows(table: Table, numbers: NDArray[Any]) -> list[int]: ...
def pool(
    context: Context,
    table: Table,
    indices: NDArray[Any],
    offsets: NDArray[Any],
    weights: NDArray[Any] | None,
    out: NDArray[Any],
    check: int,
    limit: int,
    limit_value: float,
    mean: bool,
    num_threads: int,
    y_sums: NDArray[Any] | None = None,
    stats: NDArray[Any] | None = None,
    growth: tuple[float, ...] = (0, 0, 0, 0, 0),
) -> list[tuple[int, int, float, float]] | None: ...
