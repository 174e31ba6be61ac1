"""Files of quantised models: ``.npz`` of plain arrays and a JSON header with shapes and digests; never pickle inside.

::

    bottom.0.weight, .scale, .zero_point, .bias, ..., top.0.weight, ...     of the layers
    table.0.rows                                                            fused rows
    table.0.blocks                                                          SHA-256 of every so many rows, by which a few
                                                                            are read again without all the others
    table.0.index_mapping                                                   of a pruned table
    header, header_sha256                                                   settings of layers and tables; digests
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq._core import _rows
from sedq.embedding import EmbeddingBag, StoredTable, _formats
from sedq.embedding._table import record_at_rest
from sedq.exceptions import ModelFileError, SoftErrorDetected
from sedq.files._archive import Reader, Writer
from sedq.files._replacing import replacing
from sedq.linear import QuantizedLinear, pack_weights
from sedq.quantization import QParams

__all__ = ["RowSource", "WeightSource", "compare", "load", "save"]

Array = NDArray[Any]
FORMAT = "sedq-dlrm"
VERSION = 2
BLOCK = 2**20  # bytes of rows with a digest of their own


def _opened(path: str | os.PathLike[str]) -> Reader:
    return Reader(path, FORMAT, VERSION)


# --- saving ---


def _qparams(params: QParams | None) -> dict[str, Any] | None:
    return None if params is None else {"scale": params.scale, "zero_point": params.zero_point}


def _save_layer(file: Writer, prefix: str, layer: QuantizedLinear) -> dict[str, Any]:
    """Write the arrays of a layer and return its settings."""
    packed = layer.packed
    layer.require_intact(f"{prefix}: weights or parameters are corrupted, the model was not saved")
    arrays = {"weight": packed.unpack(), "scale": packed.scale, "zero_point": packed.zero_point, "bias": packed.bias}
    for name, a in arrays.items():
        if a is not None:
            file.array(f"{prefix}.{name}", a)
    return {
        "relu": layer.relu,
        "input": _qparams(layer.input_qparams),
        "output": _qparams(layer.output_qparams),
        "encode": list(packed.encode),
    }


def _save_bag(file: Writer, prefix: str, bag: EmbeddingBag) -> dict[str, Any]:
    """Write the arrays of a table and return its settings."""
    # new rows of 8 bits may have a scale that is no float16 number; fewer bits have float16 ones in every layout
    layout = bag.table.layout if bag.bits < 8 else "torch"
    width = _formats.geometry(layout, bag.bits, bag.shape[1]).width
    block, digests = max(1, BLOCK // width), []

    def pieces() -> Iterator[Array]:
        for rows in bag.table.fused_pieces(layout, block):
            digests.append(hashlib.sha256(rows.data.cast("B")).digest())
            yield rows

    file.pieces(f"{prefix}.rows", np.dtype(np.uint8), (bag.shape[0], width), pieces())
    file.array(f"{prefix}.blocks", np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))
    pruning, table = bag.pruning, bag.table
    if pruning is not None and pruning.mapping is not None:
        if not pruning.intact:
            events = record_at_rest(prefix, [], "", "index mapping", "raise")
            raise SoftErrorDetected("the index mapping is corrupted", events)
        file.array(f"{prefix}.index_mapping", pruning.mapping)
    return {
        "mode": bag.mode,
        "bits": bag.bits,
        "layout": layout,
        "dim": bag.shape[1],
        "padding_idx": None if pruning is None else pruning.padding_idx,
        "locate": table.locator is not None,
        "parity": None if table.parity is None else table.parity.group,
        "block": block,
    }


def save(
    path: str | os.PathLike[str],
    bottom: Sequence[QuantizedLinear],
    bags: Sequence[EmbeddingBag],
    top: Sequence[QuantizedLinear],
) -> None:
    """Write a model through a temporary file beside `path`; what was loaded from a file is restored from this one then."""
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "tables": []}
    versions = []
    with replacing(path) as stream, Writer(stream) as file:
        for name, layers in (("bottom", bottom), ("top", top)):
            header[name] = [_save_layer(file, f"{name}.{i}", layer) for i, layer in enumerate(layers)]
        for t, bag in enumerate(bags):
            try:
                bag.table.require_intact()  # now, as repairs make another version
                versions.append(bag.version)
                header["tables"].append(_save_bag(file, f"table.{t}", bag))
            except SoftErrorDetected as error:
                raise SoftErrorDetected(f"table.{t}: {error}, the model was not saved", error.events) from None
        file.finish(header)
    where = os.path.abspath(path)
    for name, layers in (("bottom", bottom), ("top", top)):
        for i, layer in enumerate(layers):
            if isinstance(layer.packed._source, WeightSource):
                part = f"{name}.{i}.weight"
                layer.packed._source = WeightSource(where, part, file.described[part]["sha256"])
    for t, (bag, version) in enumerate(zip(bags, versions, strict=True)):
        if isinstance(bag.table.source, RowSource):
            bag.table.replace_source(RowSource(where, t, file.described[f"table.{t}.rows"]["sha256"]), version)


# --- what is read from a file ---


def compare(path: str | os.PathLike[str]) -> Iterator[tuple[str, bool, int]]:
    """Name each array of a model file, whether it is as it was saved, and how many there are."""
    with _opened(path) as reader:
        names = list(reader.header["arrays"])
        for name in names:
            try:
                for _ in reader.pieces(name):
                    pass
            except ModelFileError:
                yield name, False, len(names)
            else:
                yield name, True, len(names)


def _require_same(reader: Reader, name: str, sha256: str) -> None:
    if reader.sha256(name) != sha256:
        raise ModelFileError(f"{reader.path}: holds another model than the one that was loaded")


class WeightSource:
    """Gives an array of the file that it was loaded from, as long as that is what the file holds."""

    def __init__(self, path: str, name: str, sha256: str) -> None:
        self.path, self.name, self.sha256 = path, name, sha256

    def __repr__(self) -> str:
        return self.path

    def __call__(self) -> Array:
        """Return the whole array."""
        with _opened(self.path) as reader:
            _require_same(reader, self.name, self.sha256)
            return reader.array(self.name)


class RowSource:
    """Restores rows of a table from the file that it was loaded from.

    The SHA-256 of the table is that of the one that was loaded, or the file is refused. Rows are then read in the blocks
    that hold them, each compared with its SHA-256.
    """

    def __init__(self, path: str, table: int, sha256: str) -> None:
        self.path, self.table, self.sha256 = path, table, sha256

    def __repr__(self) -> str:
        return self.path

    def __call__(self, rows: Array) -> Array:
        """Return the fused rows of the given numbers."""
        try:
            return self._read(rows)
        except (IndexError, ModelFileError):
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise ModelFileError(f"{self.path}: its header has nothing to find rows by ({error!r})") from None

    def _read(self, rows: Array) -> Array:
        name = f"table.{self.table}.rows"
        with _opened(self.path) as reader:
            _require_same(reader, name, self.sha256)
            block = reader.header["tables"][self.table]["block"]
            found = np.empty((len(rows), reader.shape(name)[1]), np.uint8)
            for first, piece in _blocks(reader, self.table, block, rows):
                here = (rows >= first) & (rows < first + len(piece))
                found[here] = piece[rows[here] - first]
            return found


def _all_pieces(reader: Reader, name: str) -> Iterator[tuple[int, Array]]:
    """Yield consecutive rows of a table, and the number of the first of each piece."""
    first, width = 0, reader.shape(name)[1]
    for data in reader.pieces(name, width):
        piece = np.frombuffer(data, np.uint8).reshape(-1, width)
        yield first, piece
        first += len(piece)


def _blocks(reader: Reader, table: int, block: int, rows: Array) -> Iterator[tuple[int, Array]]:
    """Yield the blocks of a table that have some rows, and the number of the first of each."""
    name = f"table.{table}.rows"
    width, digests = reader.shape(name)[1], reader.array(f"table.{table}.blocks")
    for number in np.unique(rows // block).tolist():
        first = number * block
        data = reader.block(name, first, first + block)
        if hashlib.sha256(data).digest() != digests[number].tobytes():
            raise ModelFileError(f"{reader.path}: {name} does not fit its digests from row {first} on")
        yield first, np.frombuffer(data, np.uint8).reshape(-1, width)


# --- loading ---


def _load_layer(reader: Reader, prefix: str, header: dict[str, Any]) -> QuantizedLinear:
    bias = reader.array(f"{prefix}.bias") if reader.has(f"{prefix}.bias") else None
    packed = pack_weights(
        reader.array(f"{prefix}.weight"),
        reader.array(f"{prefix}.scale"),
        reader.array(f"{prefix}.zero_point"),
        bias,
        tuple(header["encode"]),
    )
    sha256 = reader.header["arrays"][f"{prefix}.weight"]["sha256"]
    packed._source = WeightSource(os.path.abspath(reader.path), f"{prefix}.weight", sha256)
    params = [None if header[side] is None else QParams(**header[side]) for side in ("input", "output")]
    return QuantizedLinear(packed, *params, relu=header["relu"])


def _load_rows(reader: Reader, name: str, bits: int, layout: str, dim: int | None) -> _rows.Table:
    """Read the rows of a table, some at a time, into rows of ours."""
    shape, dtype = reader.shape(name), reader.header["arrays"][name]["dtype"]
    if dtype != np.dtype(np.uint8).str:
        raise ValueError(f"{name}: got {dtype}, expected uint8")
    _, at = _formats.table_geometry(np.broadcast_to(np.uint8(0), shape), bits, layout, dim)
    rows = _formats.allocate(shape[0], _rows.row_bytes(at.dim, bits))
    for first, piece in _all_pieces(reader, name):
        part = rows[first : first + len(piece)]
        _formats.add_digests(piece, at.dim, first, bits=bits, layout=layout, out=part)
    return _rows.Table(rows, at.dim, bits)


def _load_bag(reader: Reader, number: int, settings: dict[str, Any]) -> EmbeddingBag:
    name = f"table.{number}"
    blocks = -(-reader.shape(f"{name}.rows")[0] // _validation.integer("block", settings["block"], 1, 2**62))
    if reader.array(f"{name}.blocks").shape != (blocks, 32):
        raise ValueError(f"{name}.blocks: expected {blocks} of them")
    table = StoredTable.protect(
        _load_rows(reader, f"{name}.rows", settings["bits"], settings["layout"], settings["dim"]),
        source=RowSource(os.path.abspath(reader.path), number, reader.header["arrays"][f"{name}.rows"]["sha256"]),
        layout=settings["layout"],
        locate=settings["locate"],
        parity=settings["parity"],
    )
    return EmbeddingBag.from_table(
        table,
        mode=settings["mode"],
        padding_idx=settings["padding_idx"],
        index_mapping=reader.array(f"{name}.index_mapping") if reader.has(f"{name}.index_mapping") else None,
    )


def load(path: str | os.PathLike[str]) -> tuple[list[QuantizedLinear], list[EmbeddingBag], list[QuantizedLinear]]:
    """Read a model: its bottom layers, bags and top layers."""
    with _opened(path) as reader:
        try:
            bottom, top = (
                [_load_layer(reader, f"{name}.{i}", h) for i, h in enumerate(reader.header[name])]
                for name in ("bottom", "top")
            )
            bags = [_load_bag(reader, t, settings) for t, settings in enumerate(reader.header["tables"])]
        except ModelFileError:
            raise
        except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ModelFileError(f"{reader.path}: what it holds makes no model ({error})") from None
    return bottom, bags, top
