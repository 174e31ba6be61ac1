"""The specification of integer rows: its test vectors, its rounding, and the damage that its comparisons see."""

from __future__ import annotations

import itertools
import math
import zlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers import integer_row_vectors as vectors
from helpers import integer_rows as ir
from sedq import datasets

pytestmark = pytest.mark.any_isa

Array = NDArray[Any]
FROZEN = vectors.load()
BITS = (8, 4, 2)
WEIGHTS_CRC = 0xFF0A89E3
TABLES = {f"{t['bits']}-{t['dim']}" + ("" if "float32" in t else "-limits"): t for t in FROZEN["tables"]}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def table_of(bits: int, dim: int, rows: int = 20, first: int = 0) -> tuple[ir.Form, Array]:
    x = np.random.default_rng([bits, dim]).normal(size=(rows, dim)).astype(np.float32)
    return ir.quantise(x, bits, identity=bits * dim, first=first)


# --- the vectors ---


def form_of(table: dict[str, Any]) -> ir.Form:
    return ir.Form(int(table["identity"], 16), table["exponent"], table["dim"], table["bits"])


def rows_of(table: dict[str, Any]) -> Array:
    return np.array([list(bytes.fromhex(row)) for row in table["rows"]], np.uint8)


def test_the_weights_are_frozen() -> None:
    weights = ir.weights()
    assert list(weights) == FROZEN["weights"]
    assert weights[:4] == (15227, 14639, 5717, 29399)
    assert zlib.crc32(np.array(weights, "<u2").tobytes()) == WEIGHTS_CRC
    assert sum(weights) == 16_562_242


def test_the_file_is_what_the_script_writes() -> None:
    assert FROZEN["version"] == ir.VERSION
    assert vectors.made() == FROZEN


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if "float32" in table])
def test_rows_of_floats(name: str) -> None:
    table = TABLES[name]
    x = np.array([vectors.unhexed(row) for row in table["float32"]])
    form, rows = ir.quantise(x, table["bits"], int(table["identity"], 16), FROZEN["first_number"])
    assert form == form_of(table)
    np.testing.assert_array_equal(rows, rows_of(table))


@every_table
def test_rows_hold_what_the_page_says(table: dict[str, Any]) -> None:
    """Byte by byte, in Python alone."""
    bits, dim, count = table["bits"], table["dim"], -(-table["dim"] // 1024)
    a, b, c, d, salt = (int(k, 16) for k in table["constants"])
    for i, text in enumerate(table["rows"], FROZEN["first_number"]):
        row, at, seen = bytes.fromhex(text), 0, 0
        for k in range(count):
            columns = min(1024, dim - seen)
            size = (columns * bits + 63) // 64 * 8
            codes = [row[at + j * bits // 8] >> j * bits % 8 & 2**bits - 1 for j in range(size * 8 // bits)]
            assert not any(codes[columns:])
            per_byte = 8 // bits
            check = sum(
                FROZEN["weights"][j // per_byte] * (2**bits + 1) ** (j % per_byte) * code for j, code in enumerate(codes)
            )
            ss, cc, bb, dd = (int.from_bytes(row[p : p + 4], "little") for p in range(at + size, at + size + 16, 4))
            assert ss % 65537 == 0
            assert ss // 65537 % 2 == 1
            assert cc == check < 2**32
            assert dd == (a * ss + b * cc + c * bb + d * (i * count + k) + salt) % (2**32 - 5)
            at, seen = at + size + 16, seen + columns
        assert at == len(row)
        assert at % 8 == 0


@every_table
def test_bags(table: dict[str, Any]) -> None:
    form, rows = form_of(table), rows_of(table)
    indices, offsets = map(np.array, FROZEN[f"bags_of_{len(rows)}_rows"])
    for mode in ("sum", "mean"):
        assert [vectors.hexed(row) for row in ir.pool(form, rows, indices, offsets, mode)] == table[mode]
    for bag, one, two in zip(
        ir.sides(form, rows, indices, offsets, indices + FROZEN["first_number"]),
        table["check_1"],
        table["check_2"],
        strict=True,
    ):
        for s, first, second in zip(bag, one, two, strict=True):
            assert s.pooled == s.stored
            assert s.digests == s.expected
            assert (f"{s.pooled % 2**64:016x}", f"{s.digests:08x}") == (first, second)


# --- arithmetic ---


@given(st.integers(-(2**55), 2**55) | st.integers(-(2**26), 2**26), st.integers(1, 2**23), st.integers(-113, 100))
def test_rounding_is_correct(numerator: int, denominator: int, exponent: int) -> None:
    got = ir.round_to_float32(numerator, denominator, exponent)
    exact = Fraction(numerator, denominator) * Fraction(2) ** -exponent
    nearest = min(
        (np.nextafter(got, np.float32(-np.inf)), got, np.nextafter(got, np.float32(np.inf))),
        key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1),
    )
    assert nearest == got


@given(st.integers(2**23, 2**24 - 1), st.integers(1, 2**23), st.integers(-1, 1))
def test_ties_go_to_even(half: int, n: int, beside: int) -> None:
    """Halfway between two floats, and next to it: no other rounding comes between."""
    low = 2 * half
    up = beside > 0 or (beside == 0 and half % 2 == 1)
    assert ir.round_to_float32((low + 1) * n + beside, n, 0) == low + 2 * up


@given(st.integers(-(2**53) + 1, 2**53 - 1), st.integers(1, 2**23))
def test_one_double_division_rounds_a_mean_correctly(total: int, n: int) -> None:
    assert np.float32(total / n) == ir.round_to_float32(total, n, 0)


@given(st.integers(2**53, 2**55) | st.integers(-(2**55), -(2**53)), st.integers(2**21, 2**23))
def test_a_mean_of_sums_beyond_double(total: int, n: int) -> None:
    quotient, rest = divmod(total, n)
    assert np.float32(quotient + 0.5 * (rest != 0)) == ir.round_to_float32(total, n, 0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 3, 33])
def test_a_bag_is_its_rows_summed_exactly_and_rounded_once(bits: int, dim: int) -> None:
    form, rows = table_of(bits, dim)
    values = ir.dequantise(form, rows)
    indices = np.random.default_rng(dim).integers(0, 20, 30)
    sums = ir.pool(form, rows, indices, np.array([0, 30]))[0]
    for j in range(dim):
        exact = sum((Fraction(v) for v in values[indices, j].tolist()), Fraction())
        assert sums[j] == ir.round_to_float32(exact.numerator, exact.denominator, 0)


def test_the_unit_is_the_smallest_that_fits() -> None:
    x = np.array([[0, 1], [5, 5.25]], np.float32)
    form, rows = ir.quantise(x, 8)
    assert form.exponent == 22  # 2^22 / 255 = 16448.2 and 2^23 / 255 exceeds 32767
    assert [int(v) for v in ir.unpack(form, rows, form.segments[0])[0]] == [16449, 4113]
    assert ir.quantise(np.zeros((2, 3), np.float32), 8)[0].exponent == 100
    assert ir.quantise(np.full((2, 3), -1, np.float32), 8)[0].exponent == 31
    assert ir.quantise(np.full((2, 3), 1, np.float32), 8)[0].exponent == 30
    largest = np.float32(np.finfo(np.float32).max)
    for bits, least in ((8, -107), (4, -111), (2, ir.LEAST_EXPONENT)):
        assert ir.quantise(np.array([[-largest, largest]]), bits)[0].exponent == least


@pytest.mark.parametrize("bits", BITS)
def test_scale_and_bias_are_exact_in_float32(bits: int) -> None:
    rng = np.random.default_rng(bits)
    x = rng.lognormal(0, 3, (500, 1)) * rng.normal(size=(500, 8)) + rng.lognormal(0, 6, (500, 1))
    form, rows = ir.quantise(x.astype(np.float32), bits)
    s, b, _, _ = ir.unpack(form, rows, form.segments[0])
    assert np.abs(b).max() > 2**24  # where not every integer is a float32
    for v in (s, b):
        np.testing.assert_array_equal(v.astype(np.float32), v)


def accuracy_tables() -> dict[str, Array]:
    model = datasets.load_msweb()
    return dict(zip(model.table_names, model.tables, strict=True)) | {"minilm": datasets.load_minilm().weight()}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", accuracy_tables())
def test_packaged_tables_are_as_accurate_as_with_float_scales(name: str, bits: int) -> None:
    x = accuracy_tables()[name].astype(np.float32)
    ours, theirs, _ = ir.row_errors(x, bits)
    assert ir.error_ratios(x, bits).max() <= 1.001
    assert (ours / theirs).max() <= 1.1


@pytest.mark.parametrize(("sigma", "least", "most"), [(1, 1.0, 1.25), (2, 1.25, np.inf)])
def test_accuracy_of_rows_of_very_different_sizes(sigma: int, least: float, most: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.lognormal(0, sigma, (2000, 1)) * rng.normal(size=(2000, 64))).astype(np.float32)
    assert least < ir.error_ratios(x, 8).max() < most


# --- what the proofs rest on ---


def test_weights_are_what_the_proofs_need() -> None:
    weights = ir.weights()
    assert len(set(weights)) == ir.SEGMENT
    assert all(2**9 <= w < 2**15 and all(w % k for k in range(2, 182)) for w in weights)
    for bits in BITS:
        slots = ir.SEGMENT
        assert (2**bits - 1) * int(ir.code_weights(slots, bits).sum()) < 2**32
        digits = {
            sum(q * (2**bits + 1) ** k for k, q in enumerate(codes))
            for codes in itertools.product(range(2**bits), repeat=8 // bits)
        }
        assert len(digits) == 256
        assert max(digits) - min(digits) < min(weights)  # so that no weight divides the change of a byte's digits
        assert (max(digits) * 2 * 2**15).bit_length() - 1 + (255).bit_length() - 1 < 32
    assert math.isqrt(ir.P) ** 2 < ir.P
    assert all(ir.P % k for k in range(2, math.isqrt(ir.P) + 1))


@pytest.mark.parametrize("bits", BITS)
def test_constants(bits: int) -> None:
    seen = set[int]()
    for identity, e, dim in itertools.product((0, 1, 2**64 - 1), (-113, 0, 1, 22, 23, 100), (1, 64, 65)):
        a, b, c, d, salt = ir.Form(identity, e, dim, bits).constants
        assert min(a, b, c, d) > 0
        assert max(a, b, c, d, salt) < ir.P
        assert -salt * pow(d, -1, ir.P) % ir.P >= ir.MOST_NUMBERS  # the only number of which a row of zeros would be valid
        seen |= {a, b, c, d, salt}
    assert len(seen) == 3 * 6 * 3 * 5


def test_constants_are_drawn_again_where_two_flips_would_cancel() -> None:
    """The first a, b, c of this identity, 2135171936, 3521520457, 3489660924: two bits of different words would cancel."""
    table = FROZEN["drawn_again"]
    form = form_of(table)
    assert form == vectors.DRAWN_AGAIN
    assert [f"{k:08x}" for k in form.constants] == table["constants"]
    powers = [sign * 2**i for i in range(32) for sign in (1, -1)]

    def cancel(*factors: int) -> bool:
        return any(
            (x * f - y * g) % ir.P == 0 for f, g in itertools.combinations(factors, 2) for x in powers for y in powers
        )

    assert cancel(1, 2135171936, 3521520457, 3489660924)
    assert not cancel(1, *form.constants[:3])


# --- damage ---


def all_flips(row: Array) -> Array:
    bits = np.arange(len(row) * 8)
    rows = np.repeat(row[None], len(bits), axis=0)
    rows[bits, bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    return rows


def assert_seen(form: ir.Form, rows: Array, number: int, times: tuple[int, ...] = (1, 2, 255)) -> None:
    numbers = np.full(len(rows), number)
    assert ir.bad_rows(form, rows, numbers).all()
    assert all(ir.seen(form, rows, numbers, m, 2**32).all() for m in times)
    assert all(ir.seen(form, rows, numbers, m, 2**64).all() for m in (1, 2, 256, 257, 2**11, 2**16, 2**17))


@every_table
def test_sound_rows_are_sound(table: dict[str, Any]) -> None:
    form, rows = form_of(table), rows_of(table)
    numbers = np.arange(len(rows)) + FROZEN["first_number"]
    assert not ir.bad_rows(form, rows, numbers).any()
    assert not ir.seen(form, rows, numbers).any()


@every_table
def test_every_flipped_bit_is_seen(table: dict[str, Any]) -> None:
    """Padding included; a single bit of codes modulo 2^32 in longer bags as well."""
    form, rows = form_of(table), rows_of(table)
    for row in rows[: 1 if form.dim > 100 else 4]:
        k = int(np.flatnonzero((rows == row).all(axis=1))[0])
        for part in np.array_split(all_flips(row), 8 if form.dim > 100 else 1):
            assert_seen(form, part, FROZEN["first_number"] + k, (1, 2, 255, 256, 2**16, 2**17, 2**22))


@pytest.mark.parametrize("bits", BITS)
def test_every_pair_of_flipped_bits_is_seen(bits: int) -> None:
    form, rows = table_of(bits, 13)
    flips = all_flips(rows[3])
    for k, one in enumerate(flips):
        assert_seen(form, one ^ flips[k + 1 :] ^ rows[3], 3)


@pytest.mark.parametrize("bits", BITS)
def test_every_pair_of_swapped_bytes_is_seen(bits: int) -> None:
    form, rows = table_of(bits, 100)
    made = []
    for one, two in itertools.combinations(range(form.row_bytes), 2):
        if rows[5, one] != rows[5, two]:
            row = rows[5].copy()
            row[[one, two]] = row[[two, one]]
            made.append(row)
    assert_seen(form, np.array(made), 5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_overwritten_bytes_are_seen(size: int, bits: int) -> None:
    """Certain for one or two bytes of codes and for a word of the tail; of more bytes one change in about 10^7 is missed."""
    form, rows = table_of(bits, 64)
    rng = np.random.default_rng([size, bits])
    made = np.repeat(rows[:1], 20_000, axis=0)
    at = rng.integers(0, form.row_bytes // size, len(made)) * size
    made[np.arange(len(made))[:, None], at[:, None] + np.arange(size)] = rng.integers(
        0, 256, (len(made), size), dtype=np.uint8
    )
    made = made[(made != rows[0]).any(axis=1)]
    assert_seen(form, made, 0, times=(1,))


@pytest.mark.parametrize("bits", BITS)
def test_stuck_bytes_of_codes_are_seen(bits: int) -> None:
    """All zeros and all ones, from any byte to any other."""
    form, rows = table_of(bits, 64)
    end = form.segments[0].tail_at
    made = []
    for value, (begin, stop) in itertools.product((0, 255), itertools.combinations(range(end + 1), 2)):
        row = rows[2].copy()
        row[begin:stop] = value
        made.append(row)
    changed = [row for row in made if (row != rows[2]).any()]
    assert_seen(form, np.array(changed), 2, times=(1,))


@pytest.mark.parametrize("bits", BITS)
def test_rows_in_a_wrong_place_are_seen(bits: int) -> None:
    form, rows = table_of(bits, 64)
    assert ir.seen(form, np.zeros_like(rows)).all()
    assert ir.seen(form, rows, np.arange(20)[::-1]).all()
    for other in (
        ir.Form(form.identity + 1, form.exponent, 64, bits),
        ir.Form(form.identity, form.exponent ^ 1, 64, bits),
        ir.Form(form.identity, form.exponent, 63, bits),
    ):
        assert ir.seen(other, rows).all()
        assert ir.bad_rows(other, rows).all()


def test_segments_have_numbers_of_their_own() -> None:
    form, rows = table_of(8, 2048)
    rows[4, :1040], rows[4, 1040:] = rows[4, 1040:].copy(), rows[4, :1040].copy()
    assert np.flatnonzero(ir.seen(form, rows)).tolist() == [4]
    assert np.flatnonzero(ir.bad_rows(form, rows)).tolist() == [4]


# --- bags: what is seen, and what is not ---


def differ(form: ir.Form, rows: Array, read: list[int], asked: list[int]) -> bool:
    """Whether (1) or (2) of a bag differs; n counts what was asked for."""
    got = ir.sides(form, rows, np.array(read), np.array([0, len(read)]), np.array(asked))[0]
    _, _, _, _, salt = form.constants
    return any(s.pooled != s.stored or (s.digests - s.expected - (len(asked) - len(read)) * salt) % ir.P for s in got)


def test_look_ups_that_are_left_out_repeated_or_wrong_are_seen() -> None:
    form, rows = table_of(8, 16)
    asked = [3, 7, 7, 0, 19]
    assert not differ(form, rows, asked, asked)
    assert not differ(form, rows, asked[::-1], asked)
    for k in range(5):
        assert differ(form, rows, asked[:k] + asked[k + 1 :], asked)
        assert differ(form, rows, asked + asked[k : k + 1], asked)
        for wrong in set(range(20)) - {asked[k]}:
            assert differ(form, rows, asked[:k] + [wrong] + asked[k + 1 :], asked)


def test_not_covered() -> None:
    """The lines of the fault table that say so."""
    form, rows = table_of(8, 16)
    assert not differ(form, rows, [4, 6], [3, 7])  # other rows, of the same sum of numbers

    stale = rows.copy()
    stale[2] = table_of(8, 16, first=1)[1][1]  # what row 2 could have been: valid for its number
    assert (stale[2] != rows[2]).any()
    assert not differ(form, stale, [2], [2])

    s, b, codes, _ = ir.unpack(form, rows, form.segments[0])
    codes[0, 0], s[0] = 7, s[1]
    codes[1, 0] = 9
    rows[:2] = ir.pack(form, s, b, codes.astype(np.uint8))[:2]
    rows[0, 0], rows[1, 0] = 8, 8  # opposite changes in one column of rows of equal scale: no sum of both is wrong
    assert not differ(form, rows, [0, 1], [0, 1])
    assert differ(form, rows, [0, 1, 1], [0, 1, 1])
    assert np.flatnonzero(ir.bad_rows(form, rows)).tolist() == [0, 1]


def test_accumulators() -> None:
    """A change of one is seen; two of bit 31 cancel modulo 2^32 and not modulo 2^64."""
    w = ir.code_weights(64, 4)
    changes = np.array([sign << k for k in range(32) for sign in (1, -1)])
    assert (np.outer(w, changes) % 2**32 != 0).all()
    assert (w[:, None] * 2**31 + w * 2**31).min() > 0
    assert not ((w[:, None] * 2**31 + w * 2**31) % 2**32).any()
