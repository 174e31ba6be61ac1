"""Files of quantised models: ``.npz`` of plain arrays and a JSON header with shapes and digests; never pickle inside."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq.embedding import layouts
from sedq.embedding.bag import EmbeddingBag
from sedq.exceptions import ModelFileError, SoftErrorDetected
from sedq.linear import QuantizedLinear
from sedq.qparams import QParams
from sedq.weights import pack_weights

__all__ = ["FileSource", "load", "save"]

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
    if packed.heal().corrupted:
        raise SoftErrorDetected(f"{prefix}: weights are corrupted, the model was not saved")
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
    arrays: dict[str, Array] = {}
    for name, layers in (("bottom", bottom), ("top", top)):
        for i, layer in enumerate(layers):
            arrays |= _layer_arrays(f"{name}.{i}", layer)
    for t, bag in enumerate(bags):
        arrays[f"table.{t}.rows"] = bag.to_fused()
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
    _write(Path(path), arrays)


def _write(path: Path, arrays: dict[str, Array]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; a saved model has the permissions that any new file gets
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class _Reader:
    """Arrays of a model file, each compared with its digest as it is read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._file = np.load(self.path, allow_pickle=False)
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ModelFileError(f"{self.path}: not a model file, or a truncated one ({error})") from None
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise ModelFileError(f"{self.path}: not a model file (an .npy array)")
        self.header = self._read_header()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _member(self, name: str) -> Array:
        try:
            return np.asarray(self._file[name])
        except (KeyError, zipfile.BadZipFile, ValueError, EOFError, OSError, zlib.error) as error:
            raise ModelFileError(f"{self.path}: {name} is missing or damaged ({error})") from None

    def _read_header(self) -> dict[str, Any]:
        try:
            text = self._member("header").tobytes()
            digest = self._member("header_sha256").tobytes()
            if hashlib.sha256(text).digest() != digest:
                raise ModelFileError(f"{self.path}: the header does not fit its digest")
            header: dict[str, Any] = json.loads(text)
        except ModelFileError:
            self._file.close()
            raise
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            self._file.close()
            raise ModelFileError(
                f"{self.path}: got {header.get('format')!r} version {header.get('version')!r}, "
                f"expected {FORMAT!r} version {VERSION}"
            )
        return header

    def has(self, name: str) -> bool:
        """Whether the header names an array."""
        return name in self.header["arrays"]

    def array(self, name: str) -> Array:
        """Read an array; ModelFileError unless it is as it was saved."""
        if not self.has(name):
            raise ModelFileError(f"{self.path}: the header names no array {name}")
        a = self._member(name)
        if _digest(a) != self.header["arrays"][name]["sha256"]:
            raise ModelFileError(f"{self.path}: {name} does not fit its digest")
        return a


class FileSource:
    """Restores rows of a table from the file that it was loaded from, whose digest is compared."""

    verified = True

    def __init__(self, path: str, table: int) -> None:
        self.path, self.table = path, table

    def __call__(self, rows: Array) -> Array:
        """Return the fused rows of the given numbers."""
        with _Reader(self.path) as reader:
            return reader.array(f"table.{self.table}.rows")[rows]


def _load_layer(reader: _Reader, prefix: str, header: dict[str, Any]) -> QuantizedLinear:
    bias = reader.array(f"{prefix}.bias") if reader.has(f"{prefix}.bias") else None
    packed = pack_weights(
        reader.array(f"{prefix}.weight"),
        reader.array(f"{prefix}.scale"),
        reader.array(f"{prefix}.zero_point"),
        bias,
        tuple(header["encode"]),
    )
    params = [None if header[side] is None else QParams(**header[side]) for side in ("input", "output")]
    return QuantizedLinear(packed, *params, relu=header["relu"])


def load(path: str | os.PathLike[str]) -> tuple[list[QuantizedLinear], list[EmbeddingBag], list[QuantizedLinear]]:
    """Read a model: its bottom layers, bags and top layers."""
    with _Reader(path) as reader:
        try:
            bottom, top = (
                [_load_layer(reader, f"{name}.{i}", h) for i, h in enumerate(reader.header[name])]
                for name in ("bottom", "top")
            )
            bags = []
            for t, header in enumerate(reader.header["tables"]):
                fused = reader.array(f"table.{t}.rows")
                dim = layouts.fused_dim(fused, header["layout"], None)
                source = FileSource(os.path.abspath(reader.path), t)
                bags.append(EmbeddingBag(layouts.add_digests(fused, dim), dim, header["mode"], source))
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"{reader.path}: the header lacks {error}") from None
        except ModelFileError:
            raise
        except ValueError as error:
            raise ModelFileError(f"{reader.path}: {error}") from None
    return bottom, bags, top
