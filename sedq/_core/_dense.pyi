from typing import Any

from numpy.typing import NDArray

from sedq._core._dispatch import Context
from sedq._core._findings import Findings

def interact_quantize(
    context: Context,
    x: NDArray[Any],
    scale: float,
    zero_point: int,
    out: NDArray[Any],
    check: bool,
    num_threads: int,
    x_sums: NDArray[Any] | None = None,
    y_sums: NDArray[Any] | None = None,
) -> Findings | None: ...
def quantize_rows(
    context: Context,
    x: NDArray[Any],
    scale: float,
    zero_point: int,
    out: NDArray[Any],
    check: bool,
    num_threads: int,
    y_sums: NDArray[Any] | None = None,
) -> Findings | None: ...
