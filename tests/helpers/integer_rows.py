"""Integer rows, format version 1, in NumPy and Python integers: the oracle of docs/theory/integer-pooling.md.

Nothing here is shared with the library, except that `row_errors` asks it for the float-scale row to compare with.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq.embedding import layouts

Array = NDArray[Any]
VERSION = 1
P = 2**32 - 5
SEGMENT = 1024  # most columns of a segment
TAIL = 16  # bytes behind the codes of a segment
MOST_SCALE, MOST_EXPONENT, LEAST_EXPONENT = 32767, 100, -113
MOST_NUMBERS = 3 * 2**30  # segments of a table are numbered below this
WEIGHT_SEED, LEAST_WEIGHT, WEIGHT_LIMIT = 0, 2**9, 2**15
U64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """The finaliser of SplitMix64, a bijection of 64-bit integers."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & U64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & U64
    return z ^ z >> 31


@functools.cache
def weights() -> tuple[int, ...]:
    """One prime for each byte of codes of a segment, in the order drawn."""
    drawn, state = dict[int, None](), WEIGHT_SEED
    while len(drawn) < SEGMENT:
        state = state + GOLDEN & U64
        w = LEAST_WEIGHT + mix(state) % (WEIGHT_LIMIT - LEAST_WEIGHT)
        if all(w % k for k in range(2, math.isqrt(w) + 1)):
            drawn[w] = None
    return tuple(drawn)


def code_weights(slots: int, bits: int) -> Array:
    """The weight of each code: its byte's prime times the power of 2^bits + 1 that its place in the byte has."""
    per_byte = 8 // bits
    places = (2**bits + 1) ** np.arange(per_byte)
    return np.outer(weights()[: slots // per_byte], places).ravel().astype(np.int64)


class Segment(NamedTuple):
    """Where a segment stands in a row: its columns, its codes with padding, the bytes of both parts."""

    first: int
    columns: int
    slots: int
    codes_at: int
    tail_at: int


def segments(dim: int, bits: int) -> list[Segment]:
    made, at = list[Segment](), 0
    for first in range(0, dim, SEGMENT):
        columns = min(SEGMENT, dim - first)
        size = -(-columns * bits // 64) * 8
        made.append(Segment(first, columns, size * 8 // bits, at, at + size))
        at += size + TAIL
    return made


@dataclass(frozen=True)
class Form:
    """What a table's header says of its rows: identity, unit exponent, columns, bits."""

    identity: int
    exponent: int
    dim: int
    bits: int

    @property
    def segments(self) -> list[Segment]:
        return segments(self.dim, self.bits)

    @property
    def row_bytes(self) -> int:
        return self.segments[-1].tail_at + TAIL

    @property
    def constants(self) -> tuple[int, int, int, int, int]:
        """The multipliers a, b, c, d of D, and its salt."""
        state = self.identity
        for value in (VERSION, self.bits, self.dim, self.exponent & U64):
            state = mix(state + GOLDEN & U64) ^ value
        while True:
            drawn = []
            for least in (1, 1, 1, 1, MOST_NUMBERS):
                state = state + GOLDEN & U64
                drawn.append(least + mix(state) % (P - least))
            a, b, c, d, zero = drawn
            flips = {sign * m * 2**i % P for m in (1, a, b, c) for i in range(32) for sign in (1, -1)}
            if len(flips) == 256:
                return a, b, c, d, -d * zero % P

    def digest(self, tail: Array, number: ArrayLike) -> Array:
        """D of tails (n, 4) uint32 of the segments of these numbers."""
        words = [np.asarray(v, np.uint64) for v in (*tail[:, :3].T, number)]
        made = np.full(len(tail), self.constants[4], np.uint64)
        for k, v in zip(self.constants[:4], words, strict=True):
            made = (made + np.uint64(k) * v % np.uint64(P)) % np.uint64(P)
        return made


# --- rows ---


def quantise(x: Array, bits: int, identity: int = 0, first: int = 0) -> tuple[Form, Array]:
    """Return the form and the rows (n, bytes) uint8 of float32 x; the first row has the number `first`."""
    most = 2**bits - 1
    x64 = x.astype(np.float64)
    low, extent = x64.min(axis=1), x64.max(axis=1) - x64.min(axis=1)

    def scale(extent: Array, e: int) -> Array:
        return 2 * np.ceil((np.maximum(np.ldexp(extent, e) / most, 1) - 1) / 2) + 1

    def bias(low: Array, e: int) -> Array:
        return np.rint(np.ldexp(low, e))

    def fits(e: int) -> bool:
        b = bias(low, e)
        return bool((scale(extent, e) <= MOST_SCALE).all() and (b >= -(2**31)).all() and (b < 2**31).all())

    e = next(e for e in range(MOST_EXPONENT, LEAST_EXPONENT - 1, -1) if fits(e))
    s, b = scale(extent, e), bias(low, e)
    codes = np.clip(np.rint((np.ldexp(x64, e) - b[:, None]) / s[:, None]), 0, most).astype(np.uint8)
    form = Form(identity, e, x.shape[1], bits)
    return form, pack(form, s.astype(np.int64), b.astype(np.int64), codes, first)


def pack(form: Form, s: Array, b: Array, codes: Array, first: int = 0) -> Array:
    """Make rows of scales, biases and codes (n, d)."""
    parts = []
    for k, at in enumerate(form.segments):
        slots = np.zeros((len(codes), at.slots), np.uint8)
        slots[:, : at.columns] = codes[:, at.first : at.first + at.columns]
        tail = np.empty((len(codes), 4), "<u4")
        tail[:, 0] = s * 65537
        tail[:, 1] = slots @ code_weights(at.slots, form.bits)
        tail[:, 2] = b + 2**31
        tail[:, 3] = form.digest(tail, (first + np.arange(len(codes))) * len(form.segments) + k)
        parts += [layouts.pack_codes(slots, form.bits), tail.view(np.uint8)]
    return np.hstack(parts)


def unpack(form: Form, rows: Array, at: Segment) -> tuple[Array, Array, Array, Array]:
    """S, B, codes (n, slots) int64 and the words of the tail (n, 4) of a segment of rows; S is its lower copy."""
    tail = np.ascontiguousarray(rows[:, at.tail_at : at.tail_at + TAIL]).view("<u4")
    packed = rows[:, at.codes_at : at.tail_at]
    shifts = np.arange(0, 8, form.bits, dtype=np.uint8)
    codes = (packed[:, :, None] >> shifts & np.uint8(2**form.bits - 1)).reshape(len(rows), at.slots)
    return tail.view("<i2")[:, 0].astype(np.int64), tail[:, 2].astype(np.int64) - 2**31, codes.astype(np.int64), tail


def dequantise(form: Form, rows: Array) -> Array:
    """The values (n, d) as float64, in which they are exact."""
    parts = []
    for at in form.segments:
        s, b, codes, _ = unpack(form, rows, at)
        parts.append((s[:, None] * codes + b[:, None])[:, : at.columns])
    return np.ldexp(np.hstack(parts).astype(np.float64), -form.exponent)


def row_errors(x: Array, bits: int) -> tuple[Array, Array, Array]:
    """The largest error of each integer row, of each float-scale row, and half the step of the latter."""
    form, rows = quantise(x, bits)
    fused, words = layouts.quantize_rows(x, bits), 8 if bits == 8 else 4
    scale, bias = np.ascontiguousarray(fused[:, -words:]).view("<f4" if bits == 8 else "<f2").astype(np.float64).T
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (fused[:, :-words, None] >> shifts & np.uint8(2**bits - 1)).reshape(len(x), -1)[:, : x.shape[1]]
    theirs = np.abs(scale[:, None] * codes + bias[:, None] - x).max(axis=1)
    return np.abs(dequantise(form, rows) - x).max(axis=1), theirs, (x.max(axis=1) - x.min(axis=1)) / (2 * (2.0**bits - 1))


def error_ratios(x: Array, bits: int) -> Array:
    """Errors relative to float-scale rows, whose error counts as half a step and as rounding to float32 at least."""
    ours, theirs, half_step = row_errors(x, bits)
    least = np.maximum(half_step, np.abs(x).max(axis=1).astype(np.float64) * 2.0**-24)
    return np.divide(ours, np.maximum(theirs, least), out=np.zeros(len(x)), where=ours > 0)


# --- bags ---


def round_to_float32(numerator: int, denominator: int, exponent: int) -> np.float32:
    """Round numerator / denominator * 2^-exponent to the nearest float32, by way of 30 bits or more rounded to odd."""
    shift = max(0, 30 - abs(numerator).bit_length() + denominator.bit_length())
    quotient, rest = divmod(abs(numerator) << shift, denominator)
    excess = max(0, quotient.bit_length() - 50)
    odd = quotient >> excess | (rest != 0 or quotient & ((1 << excess) - 1) != 0)
    with np.errstate(over="ignore"):
        return np.float32(math.copysign(math.ldexp(odd, excess - shift - exponent), numerator))


def pool(form: Form, rows: Array, indices: Array, offsets: Array, mode: str = "sum") -> Array:
    """Sums or means (bags, d) float32 of rows, correctly rounded; offsets include the last."""
    out = np.zeros((len(offsets) - 1, form.dim), np.float32)
    for at in form.segments:
        s, b, codes, _ = unpack(form, rows, at)
        for k, (begin, end) in enumerate(itertools.pairwise(offsets)):
            bag = indices[begin:end]
            totals = s[bag] @ codes[bag] + b[bag].sum()
            for j in range(at.columns):
                n = len(bag) if mode == "mean" else 1
                out[k, at.first + j] = round_to_float32(int(totals[j]), max(n, 1), form.exponent)
    return out


class Sides(NamedTuple):
    """Both sides of (1), as integers, and of (2), modulo P, of one bag and segment."""

    pooled: int
    stored: int
    digests: int
    expected: int


def sides(form: Form, rows: Array, indices: Array, offsets: Array, numbers: Array | None = None) -> list[list[Sides]]:
    """Return the sides of the checks of each bag and segment; `numbers` are the rows asked for, where others were read."""
    numbers = indices if numbers is None else numbers
    a, b, c, d, salt = form.constants
    made = []
    for begin, end in itertools.pairwise(offsets):
        bag, made_of_bag = indices[begin:end], list[Sides]()
        for k, at in enumerate(form.segments):
            s, _, codes, tail = unpack(form, rows[bag], at)
            pooled = sum(
                w * v for w, v in zip(code_weights(at.slots, form.bits).tolist(), (s @ codes).tolist(), strict=True)
            )
            stored = sum(x * y for x, y in zip(s.tolist(), tail[:, 1].tolist(), strict=True))
            ss, cc, bb, dd = tail.sum(axis=0, dtype=np.uint64).tolist()
            asked = sum(r * len(form.segments) + k for r in numbers[begin:end].tolist())
            expected = (a * ss + b * cc + c * bb + d * asked + len(bag) * salt) % P
            made_of_bag.append(Sides(pooled, stored, dd % P, expected))
        made.append(made_of_bag)
    return made


# --- rows by themselves ---


def residuals(form: Form, rows: Array, numbers: Array | None = None) -> tuple[Array, Array]:
    """Left less right side of (1) and of (2), (n, segments), of bags of one look-up each.

    `numbers` are the rows that were asked for, by default 0, 1, 2 ... A row read m times has m times these residuals.
    """
    numbers = np.arange(len(rows)) if numbers is None else numbers
    r1, r2 = [], []
    for k, at in enumerate(form.segments):
        s, _, codes, tail = unpack(form, rows, at)
        r1.append(s * (codes @ code_weights(at.slots, form.bits) - tail[:, 1].astype(np.int64)))
        digest = form.digest(tail, numbers * len(form.segments) + k).astype(np.int64)
        r2.append((tail[:, 3].astype(np.int64) - digest) % P)
    return np.stack(r1, 1), np.stack(r2, 1)


def seen(form: Form, rows: Array, numbers: Array | None = None, times: int = 1, modulus: int = 2**32) -> Array:
    """Whether (1), modulo 2^32 or 2^64, or (2) differs in a bag that reads the row `times` times, for each row."""
    r1, r2 = residuals(form, rows, numbers)
    period = modulus // math.gcd(modulus, times)  # m r = 0 modulo M if and only if r = 0 modulo M / gcd(M, m)
    changed = r1 != 0 if period > 2**62 else r1 % period != 0  # the products of 16 and 32 bits are far smaller
    return (changed | (r2 * (times % P) % P != 0)).any(axis=1)


def bad_rows(form: Form, rows: Array, numbers: Array | None = None) -> Array:
    """The row check: which rows are not, word for word, rows of this form and these numbers."""
    numbers = np.arange(len(rows)) if numbers is None else numbers
    bad = np.zeros(len(rows), bool)
    whole = unpack(form, rows, form.segments[0])[3]
    for k, at in enumerate(form.segments):
        s, _, codes, tail = unpack(form, rows, at)
        bad |= (tail[:, 0] != s.astype(np.uint32) * np.uint32(65537)) | (s < 1) | (s % 2 == 0)
        bad |= tail[:, 1] != codes @ code_weights(at.slots, form.bits)
        bad |= tail[:, 3] != form.digest(tail, numbers * len(form.segments) + k)
        bad |= codes[:, at.columns :].any(axis=1) | (tail[:, [0, 2]] != whole[:, [0, 2]]).any(axis=1)
    return bad
