"""Which function of a compiled module an address lies in, from the symbol table of its ELF file."""

from __future__ import annotations

import bisect
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Image", "images"]

SYMTAB, DYNSYM = 2, 11
FUNCTION, FILE = 2, 4
# what compilers add to the name of a function
CLONE = re.compile(r"\.(?:isra|constprop|part|cold|lto_priv)(?:\.\d+)*")


class Symbol(NamedTuple):
    start: int
    size: int
    name: str


def _sections(data: bytes) -> list[tuple[int, int, int, int]]:
    """Type, offset, size and link of each section of a 64-bit little-endian ELF file."""
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    rows = [struct.unpack_from("<IIQQQQII", data, offset + i * size) for i in range(count)]
    return [(row[1], row[4], row[5], row[6]) for row in rows]


def _symbols(data: bytes) -> Iterator[Symbol]:
    """Functions of the symbol table, or, where that was stripped, those that the module exports."""
    sections = _sections(data)
    wanted = SYMTAB if any(kind == SYMTAB for kind, *_ in sections) else DYNSYM
    for kind, offset, size, link in sections:
        if kind != wanted:
            continue
        names, source = sections[link][1], ""
        for name, info, _, _, value, length in struct.iter_unpack("<IBBHQQ", data[offset : offset + size]):
            text = data[names + name : data.index(b"\0", names + name)].decode()
            if info & 15 == FILE:
                source = Path(text).name.removesuffix(".c")
            elif info & 15 == FUNCTION and length:
                yield Symbol(value, length, f"{source}:{text}" if source and info >> 4 == 0 else text)


def _readable(module: str, name: str) -> str:
    source, _, function = name.rpartition(":")
    function = CLONE.sub("", function)
    if function.startswith("__pyx_"):
        mark = f"{len(module)}{module}_"
        plain = re.sub(r"^\d+", "", function.partition(mark)[2])
        return f"{module}:{plain or function}"
    return f"{source or module}:{function}"


class Image:
    """A compiled module as it is mapped in a process.

    Attributes
    ----------
    path : str
        Its file.
    name : str
        Name of the module.
    low, high : int
        Addresses of its executable code.
    """

    def __init__(self, path: str, base: int, low: int, high: int) -> None:
        self.path, self.base, self.low, self.high = path, base, low, high
        self.name = Path(path).name.partition(".")[0]
        self._symbols = sorted(_symbols(Path(path).read_bytes()))
        self._starts = [s.start for s in self._symbols]

    def function(self, offset: int) -> str:
        """Return the function at an offset from where the module is mapped, as ``source:name``."""
        at = bisect.bisect_right(self._starts, offset) - 1
        if at < 0 or offset >= self._symbols[at].start + self._symbols[at].size:
            return f"{self.name}:?"
        return _readable(self.name, self._symbols[at].name)

    def offset_of(self, function: str) -> int:
        """Return where a function begins, by the name that `function` gives it; KeyError if there is none."""
        for symbol in self._symbols:
            if _readable(self.name, symbol.name) == function:
                return symbol.start
        raise KeyError(function)


def images(pid: int, paths: set[str]) -> list[Image]:
    """Return those of the files that are mapped into a process."""
    spans: dict[str, list[tuple[int, int, bool]]] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and os.path.realpath(parts[5]) in paths:
            low, high = (int(x, 16) for x in parts[0].split("-"))
            spans.setdefault(os.path.realpath(parts[5]), []).append((low, high, "x" in parts[1]))
    found = []
    for path, mapped in spans.items():
        code = [(low, high) for low, high, executable in mapped if executable]
        if code:
            found.append(Image(path, min(m[0] for m in mapped), min(c[0] for c in code), max(c[1] for c in code)))
    return found
