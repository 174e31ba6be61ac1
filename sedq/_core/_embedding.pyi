from typing import Any

from numpy.typing import NDArray

from sedq._core._dispatch import Context
from sedq._core._findings import Findings
from sedq._core._rows import MAX_CODE_BYTES as MAX_CODE_BYTES
from sedq._core._rows import Table
from sedq._core._rows import bad_in_range as bad_in_range
from sedq._core._rows import bad_rows as bad_rows
from sedq._core._rows import digests_of as digests_of
from sedq._core._rows import row_bytes as row_bytes

CHECK_DIGEST: int
CHECK_SUM: int
CHECK_TWICE: int
LIMIT_BOUND: int
LIMIT_REFERENCE: int
LIMIT_MAGNITUDE: int
LIMIT_GROWTH: int
GROWTH_TERMS: int
MAX_ROWS: int
PART: int

def check_offsets(offsets: NDArray[Any], total: int) -> None: ...
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
    lengths: NDArray[Any] | None = None,
    stats: NDArray[Any] | None = None,
    growth: tuple[float, ...] = (0, 0, 0, 0, 0),
) -> Findings | None: ...
