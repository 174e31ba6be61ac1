from typing import Any

from numpy.typing import DTypeLike, NDArray

PANEL_COLUMNS: int
PANEL_STEP: int
SCALARS_AT: int

class PackedB:
    panels: NDArray[Any]
    digits: NDArray[Any]
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def encoded(self) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __init__(self, n: int, k: int, panels: NDArray[Any], digits: NDArray[Any], encoded: bool = False) -> None: ...

class Epilogue:
    dtype: Any
    col_term: NDArray[Any]
    w_zp: NDArray[Any] | None
    bias: NDArray[Any] | None
    mult: NDArray[Any] | None
    digest: NDArray[Any]
    def __init__(
        self,
        dtype: DTypeLike,
        n: int,
        col_term: NDArray[Any],
        w_zp: NDArray[Any] | None,
        bias: NDArray[Any] | None,
        mult: NDArray[Any] | None,
        digest: NDArray[Any],
        low: float = 0,
        high: float = 0,
        y_zero_point: int = 0,
    ) -> None: ...
    def has_sound_scalars(self) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def packed_size(n: int, k: int) -> int: ...
def panel_index(n: int, k: int, j: int, i: int) -> int: ...
def pack(w: NDArray[Any], panels: NDArray[Any]) -> None: ...
def unpack(panels: NDArray[Any], w: NDArray[Any]) -> None: ...
