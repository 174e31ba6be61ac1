"""What is installed, and which kernels it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sedq._core import _dispatch

__all__ = ["cpu_name", "show_versions", "versions"]


def cpu_name() -> str:
    """Name of the CPU, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


def _named(isas: list[str]) -> str:
    """Join names of instruction sets, saying which are emulated."""
    emulated = _dispatch.emulated()
    return ", ".join(f"{name} (emulated)" if name in emulated else name for name in isas)


def versions() -> dict[str, Any]:
    """Return versions, instruction sets, threads and CPU.

    Returns
    -------
    dict
        What `show_versions` prints.

    Examples
    --------
    >>> import sedq
    >>> sedq.versions()["instruction sets built"].startswith("reference")
    True
    """
    import platform
    from importlib import metadata  # both are slow to import, and few programs need them

    return {
        "sedq": metadata.version("sedq"),
        "python": sys.version.split()[0],
        "numpy": metadata.version("numpy"),
        "scipy": metadata.version("scipy"),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "instruction sets built": _named(_dispatch.built()),
        "instruction sets supported": _named(_dispatch.supported()),
        "instruction set chosen": _named([_dispatch.default.name]),
        "openmp": _dispatch.has_openmp(),
        "threads": _dispatch.max_threads(),
    }


def show_versions() -> None:
    """Print what is installed, which kernels it runs and on what: to be pasted into a report.

    Examples
    --------
    >>> import sedq
    >>> sedq.show_versions()  # doctest: +ELLIPSIS
    sedq: ...
    """
    for name, value in versions().items():
        print(f"{name}: {value}")
