"""Files of quantised models: ``.npz`` of plain arrays and a JSON header with shapes and digests; never pickle inside."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._files import replacing
from sedq.embedding.bag import EmbeddingBag
from sedq.exceptions import ModelFileError, SoftErrorDetected
from sedq.qparams import QParams
from sedq.quantized_linear import QuantizedLinear
from sedq.weights import pack_weights

__all__ = ["RowSource", "WeightSource", "load", "save"]

Array = NDArray[Any]
FORMAT = "sedq-dlrm"
VERSION = 1


def _digest(a: Array) -> str:
    described = f"{a.dtype.str}{a.shape}".encode()
    return hashlib.sha256(described + np.ascontiguousarray(a).tobytes()).hexdigest()


def _qparams(params: QParams | None) -> dict[str, Any] | None:
    return None if params is None else {"scale": params.scale, "zero_point": params.zero_point}


def _layer_arrays(prefix: str, layer: QuantizedLinear) -> dict[str, Array]:
    packed = layer.packed
    packed.require_intact(f"{prefix}: weights are corrupted, the model was not saved")
    arrays = {"weight": packed.unpack(), "scale": packed.scale, "zero_point": packed.zero_point}
    if packed.bias is not None:
        arrays["bias"] = packed.bias
    return {f"{prefix}.{name}": a for name, a in arrays.items()}


def _layer_header(layer: QuantizedLinear) -> dict[str, Any]:
    return {
        "relu": layer.relu,
        "input": _qparams(layer.input_qparams),
        "output": _qparams(layer.output_qparams),
        "encode": list(layer.packed.encode),
    }


def save(
    path: str | os.PathLike[str],
    bottom: Sequence[QuantizedLinear],
    bags: Sequence[EmbeddingBag],
    top: Sequence[QuantizedLinear],
) -> None:
    """Write a model through a temporary file beside `path`."""
    arrays: dict[str, Any] = {}
    for name, layers in (("bottom", bottom), ("top", top)):
        for i, layer in enumerate(layers):
            arrays |= _layer_arrays(f"{name}.{i}", layer)
    for t, bag in enumerate(bags):
        try:
            arrays[f"table.{t}.rows"] = bag.to_fused()
        except SoftErrorDetected as error:
            raise SoftErrorDetected(f"table.{t}: {error}, the model was not saved", error.events) from None
    header = {
        "format": FORMAT,
        "version": VERSION,
        "bottom": [_layer_header(layer) for layer in bottom],
        "tables": [{"mode": bag.mode, "bits": bag.bits, "layout": "torch"} for bag in bags],
        "top": [_layer_header(layer) for layer in top],
        "arrays": {name: {"shape": list(a.shape), "dtype": a.dtype.str, "sha256": _digest(a)} for name, a in arrays.items()},
    }
    text = json.dumps(header, sort_keys=True)
    arrays["header"] = np.frombuffer(text.encode(), np.uint8)
    arrays["header_sha256"] = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    with replacing(path) as stream:
        np.savez(stream, **arrays)


class _Reader:
    """Arrays of a model file, each compared with its digest as it is read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._stream = open(self.path, "rb")  # noqa: SIM115 - closed by __exit__, and here if the file is not a model
        try:
            self._file = self._open()
            self.header = self._read_header()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def _open(self) -> Any:
        try:
            opened = np.load(self._stream, allow_pickle=False)
        except Exception as error:  # a damaged file makes zipfile raise nearly anything
            raise ModelFileError(f"{self.path}: not a model file, or a truncated one ({error})") from None
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ModelFileError(f"{self.path}: not a model file (an .npy array)")
        return opened

    def _member(self, name: str) -> Array:
        try:
            return np.asarray(self._file[name])
        except Exception as error:
            raise ModelFileError(f"{self.path}: {name} is missing or damaged ({error})") from None

    def _read_header(self) -> dict[str, Any]:
        text, digest = self._member("header").tobytes(), self._member("header_sha256").tobytes()
        if hashlib.sha256(text).digest() != digest:
            raise ModelFileError(f"{self.path}: the header does not fit its digest")
        try:
            header = json.loads(text)
        except ValueError:
            header = None
        if not isinstance(header, dict) or not isinstance(header.get("arrays"), dict):
            raise ModelFileError(f"{self.path}: the header is not that of a model")
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise ModelFileError(
                f"{self.path}: got {header.get('format')!r} version {header.get('version')!r}, "
                f"expected {FORMAT!r} version {VERSION}"
            )
        return header

    def has(self, name: str) -> bool:
        """Whether the header describes an array."""
        return isinstance(self.header["arrays"].get(name), dict)

    def array(self, name: str) -> Array:
        """Read an array; ModelFileError unless it is as it was saved."""
        if not self.has(name):
            raise ModelFileError(f"{self.path}: the header names no array {name}")
        a = self._member(name)
        described = {"shape": list(a.shape), "dtype": a.dtype.str, "sha256": _digest(a)}
        if described != self.header["arrays"][name]:
            raise ModelFileError(f"{self.path}: {name} does not fit its digest")
        return a


def compare(path: str | os.PathLike[str]) -> Iterator[tuple[str, bool, int]]:
    """Name each array of a model file, whether it is as it was saved, and how many there are."""
    with _Reader(path) as reader:
        names = list(reader.header["arrays"])
        for name in names:
            try:
                reader.array(name)
            except ModelFileError:
                yield name, False, len(names)
            else:
                yield name, True, len(names)


class WeightSource:
    """Gives an array of the file that it was loaded from, as long as that is what the file holds."""

    def __init__(self, path: str, name: str, sha256: str) -> None:
        self.path, self.name, self.sha256 = path, name, sha256

    def __repr__(self) -> str:
        return self.path

    def __call__(self) -> Array:
        """Return the whole array."""
        with _Reader(self.path) as reader:
            if not reader.has(self.name) or reader.header["arrays"][self.name]["sha256"] != self.sha256:
                raise ModelFileError(f"{self.path}: holds another model than the one that was loaded")
            return reader.array(self.name)


class RowSource:
    """Restores rows of a table from the file that it was loaded from."""

    def __init__(self, path: str, table: int, sha256: str) -> None:
        self.table = WeightSource(path, f"table.{table}.rows", sha256)

    def __repr__(self) -> str:
        return repr(self.table)

    def __call__(self, rows: Array) -> Array:
        """Return the fused rows of the given numbers."""
        return self.table()[rows]


def _load_layer(reader: _Reader, prefix: str, header: dict[str, Any]) -> QuantizedLinear:
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


def _load_bag(reader: _Reader, table: int, header: dict[str, Any]) -> EmbeddingBag:
    name = f"table.{table}.rows"
    rows = reader.array(name)
    made = EmbeddingBag.from_fused(rows, bits=header["bits"], layout=header["layout"], mode=header["mode"])
    made._source = RowSource(os.path.abspath(reader.path), table, reader.header["arrays"][name]["sha256"])
    return made


def load(path: str | os.PathLike[str]) -> tuple[list[QuantizedLinear], list[EmbeddingBag], list[QuantizedLinear]]:
    """Read a model: its bottom layers, bags and top layers."""
    with _Reader(path) as reader:
        try:
            bottom, top = (
                [_load_layer(reader, f"{name}.{i}", h) for i, h in enumerate(reader.header[name])]
                for name in ("bottom", "top")
            )
            bags = [_load_bag(reader, t, header) for t, header in enumerate(reader.header["tables"])]
        except ModelFileError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{reader.path}: what it holds makes no model ({error})") from None
    return bottom, bags, top
