from typing import Any

from numpy.typing import NDArray

from sedq._core._dispatch import Context
from sedq._core._findings import Findings
from sedq._core._packing import Epilogue, PackedB

CHECK_OFF: int
CHECK_EXACT: int
CHECK_FULL: int
CHECK_MOD127: int

def linear(
    context: Context,
    packed: PackedB,
    epilogue: Epilogue,
    x: NDArray[Any],
    out: NDArray[Any],
    check: int,
    num_threads: int,
    x_sums: NDArray[Any] | None = None,
    y_sums: NDArray[Any] | None = None,
) -> Findings | None: ...
