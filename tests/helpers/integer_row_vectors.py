"""Test vectors of integer rows: how tests/data/integer_rows_v1.json was made, and how it is read.

``python tests/helpers/integer_row_vectors.py`` writes the file. It is frozen: a change of it is a new version of the format.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import integer_rows as ir

Array = NDArray[Any]
FILE = Path(__file__).parent.parent / "data" / "integer_rows_v1.json"
IDENTITY, FIRST = 0x243F6A8885A308D3, 1000
DRAWN_AGAIN = ir.Form(1_282_639, 22, 64, 8)  # whose first constants are refused
DIMS = (1, 3, 31, 32, 33, 64, 100, 1025)


def of_floats(bits: int, dim: int) -> tuple[ir.Form, Array, Array]:
    """Rows that differ in sign and size, one of them constant, quantised; two where they are long."""
    rng = np.random.default_rng([bits, dim])
    x = rng.normal(size=(4, dim)) * np.array([[1.0], [30.0], [0.0], [0.01]]) + np.array([[0.0], [7.0], [-0.3], [-0.5]])
    x = x[: 2 if dim > ir.SEGMENT else 4].astype(np.float32)
    return *ir.quantise(x, bits, IDENTITY ^ dim, first=FIRST), x


def bags(rows: int) -> tuple[Array, Array]:
    """Indices and offsets: no row, one, repeated ones, 40 and so many that sums exceed int32; of two rows one bag."""
    if rows == 2:
        return np.array([1, 1, 0, 1, 0]), np.array([0, 5])
    indices = np.concatenate([[0], [1, 1, 3, 0, 2], np.arange(40) % 4, np.tile([1, 2, 3], 100)])
    return indices, np.array([0, 0, 1, 6, 46, 346])


def at_limits(bits: int) -> tuple[ir.Form, Array]:
    """Rows at the limits of S and B, with every code 0 or the greatest, or alternating."""
    form = ir.Form(IDENTITY, {8: 100, 4: 0, 2: -113}[bits], 33, bits)
    codes = np.zeros((4, 33), np.uint8)
    codes[1], codes[2, ::2] = 2**bits - 1, 2**bits - 1
    codes[3] = np.arange(33) % 2**bits
    scale, bias = np.array([1, 32767, 32767, 1]), np.array([-(2**31), 2**31 - 1, -(2**31), 2**31 - 1])
    return form, ir.pack(form, scale, bias, codes, first=FIRST)


def header(form: ir.Form) -> dict[str, Any]:
    return {
        "identity": f"{form.identity:016x}",
        "exponent": form.exponent,
        "dim": form.dim,
        "bits": form.bits,
        "constants": [f"{k:08x}" for k in form.constants],
    }


def described(form: ir.Form, rows: Array, x: Array | None = None) -> dict[str, Any]:
    """A table, what its bags are, and their check values."""
    indices, offsets = bags(len(rows))
    checks = ir.sides(form, rows, indices, offsets, indices + FIRST)
    made = {
        **header(form),
        "rows": [row.tobytes().hex() for row in rows],
        "sum": [hexed(row) for row in ir.pool(form, rows, indices, offsets)],
        "mean": [hexed(row) for row in ir.pool(form, rows, indices, offsets, "mean")],
        "check_1": [[f"{s.pooled % 2**64:016x}" for s in bag] for bag in checks],
        "check_2": [[f"{s.digests:08x}" for s in bag] for bag in checks],
    }
    return made if x is None else {"float32": [hexed(row) for row in x]} | made


def hexed(values: Array) -> str:
    """Bit patterns of float32 numbers, 8 hexadecimal digits each."""
    return "".join(f"{v:08x}" for v in np.asarray(values, np.float32).view(np.uint32).tolist())


def unhexed(text: str) -> Array:
    return np.array([int(text[k : k + 8], 16) for k in range(0, len(text), 8)], np.uint32).view(np.float32)


def made() -> dict[str, Any]:
    """What the file holds; rows are numbered from `first_number`, and bags name them from 0."""
    tables = [described(*of_floats(bits, dim)) for bits in (8, 4, 2) for dim in DIMS]
    tables += [described(*at_limits(bits)) for bits in (8, 4, 2)]
    named = {f"bags_of_{rows}_rows": [part.tolist() for part in bags(rows)] for rows in (2, 4)}
    general = {"version": ir.VERSION, "weights": list(ir.weights()), "first_number": FIRST}
    return general | {"drawn_again": header(DRAWN_AGAIN)} | named | {"tables": tables}


def load() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return read


if __name__ == "__main__":
    FILE.write_text(json.dumps(made()).replace(', "', ',\n"') + "\n", encoding="utf-8")
