from sedq._core._dispatch import Context

SITES: tuple[str, ...]

def hooked(name: str) -> Context: ...
def arm(
    kernel: str,
    visit: int,
    element: int,
    flip: int,
    repeat: int = 1,
    keep: int = 0xFFFFFFFF,
    put: int = 0,
    add: int = 0,
    pair: bool = False,
) -> None: ...
def disarm(kernel: str) -> tuple[int, int, int]: ...
