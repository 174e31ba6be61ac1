"""Plain values that an object keeps for a long time, sealed so that a flipped bit in one is found and undone.

::

    attributes   scale, zero_point, dtype      what calls use
    seal         the same values as bytes      any two of the three that agree
    CRC-32       of these bytes                determine the third

Python objects can be struck too: a float is 8 bytes of data that one attribute points to.
"""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["Sealed"]


class Sealed:
    """An object whose plain values are compared with a sealed copy when they are used.

    A subclass says which attributes these are, and calls `_seal` after it has set them.
    """

    # gives the values of an object: numbers, strings, arrays
    _values: ClassVar[Callable[[Any], Any]]
    _sealed: bytes
    _sealed_crc: int

    def _set_values(self, values: Any) -> None:
        """Set the attributes to values that were read from the seal; an array is the bytes of its elements there."""
        raise NotImplementedError

    def _encode(self) -> bytes:
        try:
            return marshal.dumps(type(self)._values(self), 2)  # of version 2 the bytes depend on the values alone
        except ValueError:  # a value of a type that no right value has
            return b""

    def _seal(self) -> None:
        """Take the present values for the right ones."""
        seal = self._encode()
        object.__setattr__(self, "_sealed", seal)
        object.__setattr__(self, "_sealed_crc", zlib.crc32(seal))

    def _is_intact(self) -> bool:
        """Whether values, seal and CRC agree."""
        seal = self._sealed
        return self._encode() == seal and zlib.crc32(seal) == self._sealed_crc

    def _restore(self) -> str:
        """Restore that one of values, seal and CRC which the other two contradict; say which, or "" if no two agree."""
        values, seal, crc = self._encode(), self._sealed, self._sealed_crc
        if zlib.crc32(seal) == crc:
            self._set_values(marshal.loads(seal))
            restored = "values"
        elif values == seal or zlib.crc32(values) == crc:
            self._seal()
            restored = "sealed copy"
        else:
            return ""
        return restored if self._is_intact() else ""
