"""Fault models: what a fault makes of the word that it strikes.

A model draws a `Change` for words of a width; the change is the same four operations for every model, so that memory and
the hooked kernels apply it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sedq import _validation

__all__ = [
    "BitFlip",
    "Burst",
    "Carry",
    "Change",
    "Dummy",
    "FaultModel",
    "KBits",
    "PairedError",
    "RandomValue",
    "StuckAt0",
    "StuckAt1",
    "Zero",
    "default_models",
]


@dataclass(frozen=True)
class Change:
    """What becomes of a word w of some number of bits: ``(((w & keep) | put) ^ flip) + add``, modulo 2 to their number.

    Attributes
    ----------
    keep, put, flip, add : int
        Operands, not negative.
    pair : bool
        Whether the next word takes ``-add``.
    bit : int
        The bit by which results are grouped, -1 if there isn't one.
    """

    keep: int
    put: int = 0
    flip: int = 0
    add: int = 0
    pair: bool = False
    bit: int = -1

    def apply(self, word: int, bits: int, *, second: bool = False) -> int:
        """Return what becomes of a word.

        Parameters
        ----------
        word : int
            From 0 to ``2**bits - 1``.
        bits : int
            Its width.
        second : bool, default False
            Whether it is the second word of a pair.

        Returns
        -------
        int
        """
        struck = word - self.add if second else (((word & self.keep) | self.put) ^ self.flip) + self.add
        return int(struck % (1 << bits))


class FaultModel:
    """What all fault models have: `name`, and `draw`.

    Attributes
    ----------
    single : bool
        Whether one word changes at most: what the exact checks promise to see.
    """

    single: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name in tables."""
        return type(self).__name__

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change.

        Parameters
        ----------
        rng : Generator
        bits : int
            Width of the word: 8, 16, 32 or 64.

        Returns
        -------
        Change
        """
        raise NotImplementedError


def _all(bits: int) -> int:
    return (1 << bits) - 1


@dataclass(frozen=True)
class BitFlip(FaultModel):
    """One flipped bit, uniform over the positions.

    Parameters
    ----------
    positions : sequence of int, optional
        Bits to choose from, 0 the least; those that a word doesn't have count modulo its width. All by default.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.BitFlip(positions=(4,)).draw(np.random.default_rng(0), 8).apply(1, 8)
    17
    """

    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.positions is not None:
            if not isinstance(self.positions, (Sequence, range)) or not len(self.positions):
                raise ValueError(
                    f"positions: got {_validation.describe(self.positions)}, expected bit numbers, or None for all"
                )
            chosen = tuple(_validation.integer("positions", p, 0, 63) for p in self.positions)
            object.__setattr__(self, "positions", chosen)

    @property
    def name(self) -> str:
        """Name in tables."""
        return "BitFlip" if self.positions is None else f"BitFlip({','.join(map(str, self.positions))})"

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        bit = int(rng.integers(bits)) if self.positions is None else int(rng.choice(self.positions)) % bits
        return Change(_all(bits), flip=1 << bit, bit=bit)


@dataclass(frozen=True)
class KBits(FaultModel):
    """Several flipped bits of one word, at random positions.

    Parameters
    ----------
    k : int, default 2
        How many; at most the width of the word.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.KBits(2).draw(np.random.default_rng(0), 8).apply(0, 8).bit_count()
    2
    """

    k: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _validation.integer("k", self.k, 1, 64))

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"KBits({self.k})"

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        chosen = rng.choice(bits, size=min(self.k, bits), replace=False)
        return Change(_all(bits), flip=sum(1 << int(b) for b in chosen))


@dataclass(frozen=True)
class Burst(FaultModel):
    """Adjacent flipped bits.

    Parameters
    ----------
    n : int, default 4
        How many; at most the width of the word.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> bin(faults.Burst(4).draw(np.random.default_rng(0), 8).apply(0, 8))
    '0b11110000'
    """

    n: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _validation.integer("n", self.n, 1, 64))

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"Burst({self.n})"

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        n = min(self.n, bits)
        low = int(rng.integers(bits - n + 1))
        return Change(_all(bits), flip=_all(n) << low, bit=low + n - 1)


@dataclass(frozen=True)
class RandomValue(FaultModel):
    """A uniformly random value in place of the word, which may by chance be the old one.

    Attributes
    ----------
    single : bool
        True: whether one word changes at most.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.RandomValue().draw(np.random.default_rng(0), 8).apply(7, 8)
    217
    """

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        return Change(0, put=int(rng.integers(0, _all(bits), dtype=np.uint64, endpoint=True)))


@dataclass(frozen=True)
class Carry(FaultModel):
    """A wrong or missing carry: the word plus or minus a power of 2.

    V-ABFT (arXiv:2602.08043) reports them as half of the errors in a production log.

    Attributes
    ----------
    single : bool
        True: whether one word changes at most.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.Carry().draw(np.random.default_rng(0), 8).apply(7, 8)
    71
    """

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        bit = int(rng.integers(bits))
        up = bool(rng.integers(2))
        return Change(_all(bits), add=(1 << bit) if up else (1 << bits) - (1 << bit), bit=bit)


@dataclass(frozen=True)
class Zero(FaultModel):
    """0 in place of the word.

    Attributes
    ----------
    single : bool
        True: whether one word changes at most.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.Zero().draw(np.random.default_rng(0), 8).apply(7, 8)
    0
    """

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        return Change(0)


@dataclass(frozen=True)
class StuckAt0(FaultModel):
    """One bit that reads as 0, which changes nothing where it is 0.

    Attributes
    ----------
    single : bool
        True: whether one word changes at most.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.StuckAt0().draw(np.random.default_rng(0), 8).apply(255, 8)
    191
    """

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        bit = int(rng.integers(bits))
        return Change(_all(bits) ^ (1 << bit), bit=bit)


@dataclass(frozen=True)
class StuckAt1(FaultModel):
    """One bit that reads as 1, which changes nothing where it is 1.

    Attributes
    ----------
    single : bool
        True: whether one word changes at most.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.StuckAt1().draw(np.random.default_rng(0), 8).apply(0, 8)
    64
    """

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        bit = int(rng.integers(bits))
        return Change(_all(bits), put=1 << bit, bit=bit)


@dataclass(frozen=True)
class PairedError(FaultModel):
    """+e in one word and -e in the next, which cancel in a sum: made to be missed by checksums of rows.

    Attributes
    ----------
    single : bool
        False: whether one word changes at most.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> change = faults.PairedError().draw(np.random.default_rng(0), 8)
    >>> (change.apply(7, 8) + change.apply(7, 8, second=True)) % 256
    14
    """

    single: ClassVar[bool] = False

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        bit = int(rng.integers(bits))
        return Change(_all(bits), add=1 << bit, pair=True, bit=bit)


@dataclass(frozen=True)
class Dummy(FaultModel):
    """No fault at all, through all the machinery of one: it must not be detected.

    Attributes
    ----------
    single : bool
        True: whether one word changes at most.

    Examples
    --------
    >>> import numpy as np
    >>> from sedq import faults
    >>> faults.Dummy().draw(np.random.default_rng(0), 8).apply(7, 8)
    7
    """

    def draw(self, rng: np.random.Generator, bits: int) -> Change:
        """Draw a change. Arguments as for `FaultModel.draw`: rng, bits."""
        return Change(_all(bits))


def default_models() -> tuple[FaultModel, ...]:
    """Return the models that a campaign uses if none are named.

    Returns
    -------
    tuple of FaultModel
    """
    return (BitFlip(), KBits(2), Burst(4), Carry(), RandomValue(), Zero(), StuckAt0(), StuckAt1(), PairedError(), Dummy())
