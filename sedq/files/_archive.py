"""Files of arrays, ``.npz``, with a JSON header that has shape, dtype and SHA-256 of each; never pickle inside.

Arrays are written and read in pieces, so that none need be held twice. Nothing in a file is compressed, so a reader
refuses what could become larger in memory than it is in the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sedq.exceptions import ModelFileError

__all__ = ["Archive", "Reader", "Writer", "digest", "shorten"]

Array = NDArray[Any]
PIECE = 2**20  # bytes read at a time, or one row
MAX_HEADER = 2**24  # bytes
LOCAL_HEADER = 30  # bytes before the name of a member


def digest(a: Array) -> str:
    """Return the SHA-256 of an array with its dtype and shape."""
    state = _begun(a.dtype, a.shape)
    state.update(_bytes_of(a))
    text: str = state.hexdigest()
    return text


def shorten(value: object) -> str:
    """Return the repr of a value from a file, of which a message takes only the beginning."""
    try:
        text = repr(value)
    except RecursionError:
        return "nested values"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _begun(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    return hashlib.sha256(f"{dtype.str}{shape}".encode())


def _bytes_of(a: Array) -> Array:
    """Return the bytes of an array, copied only if they lie apart."""
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8)


class Writer:
    """Writes arrays into a stream, and at last the header that describes them.

    Attributes
    ----------
    described : dict
        Shape, dtype and SHA-256 of what was written, by name.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._file = zipfile.ZipFile(stream, "w")
        self.described: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def array(self, name: str, a: Array) -> None:
        """Write an array."""
        self.pieces(name, a.dtype, a.shape, [a])

    def pieces(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[Array]) -> None:
        """Write an array of which consecutive pieces are given."""
        state = _begun(dtype, shape)
        # as numpy.savez does: without a date, so that the same arrays give the same file
        with self._file.open(f"{name}.npy", "w", force_zip64=True) as member:
            fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, fields)
            for piece in pieces:
                data = _bytes_of(piece)
                state.update(data)
                member.write(data.data)
        self.described[name] = {"shape": list(shape), "dtype": dtype.str, "sha256": state.hexdigest()}

    def finish(self, header: dict[str, Any]) -> None:
        """Write the header."""
        text = json.dumps(header | {"arrays": self.described}, sort_keys=True).encode()
        self.array("header", np.frombuffer(text, np.uint8))
        self.array("header_sha256", np.frombuffer(hashlib.sha256(text).digest(), np.uint8))


class _Member(NamedTuple):
    """An array of a file, opened where its bytes begin."""

    stream: Any
    begins: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Archive:
    """A file of arrays, none of them compressed. `kind` says in messages what the file should be.

    Raises
    ------
    ModelFileError
        For a file that is not one; from every method for an array that is missing or damaged.
    OSError
        If the file can't be read.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str = "a model file") -> None:
        self.path, self._kind = os.fspath(path), kind
        self._stream = open(self.path, "rb")  # noqa: SIM115 - closed by __exit__, and here if the file is not a model
        try:
            self._file = self._open()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def _open(self) -> zipfile.ZipFile:
        try:
            file = zipfile.ZipFile(self._stream)
        except Exception as error:  # a damaged file makes zipfile raise nearly anything
            raise ModelFileError(f"{self.path}: not {self._kind}, or a damaged one ({error})") from None
        total, names = 0, set()
        for info in file.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ModelFileError(f"{self.path}: {info.filename} is compressed, which {self._kind} never is")
            if info.filename in names:
                raise ModelFileError(f"{self.path}: there are two of {info.filename}")
            names.add(info.filename)
            total += info.file_size
        if total > os.fstat(self._stream.fileno()).st_size:
            raise ModelFileError(f"{self.path}: its arrays are {total} bytes, more than the file has")
        return file

    def _damaged(self, name: str, why: object) -> ModelFileError:
        return ModelFileError(f"{self.path}: {name} is missing or damaged ({why})")

    def _member(self, name: str) -> _Member:
        try:
            stream: Any = self._file.open(f"{name}.npy")
            version = np.lib.format.read_magic(stream)
            parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = parse(stream)
            made = _Member(stream, stream.tell(), dtype, shape)
            size = self._file.getinfo(f"{name}.npy").file_size
        except Exception as error:
            raise self._damaged(name, error) from None
        if dtype.hasobject or (fortran and len(shape) > 1):
            raise self._damaged(name, "objects, or columns first")
        if min(shape, default=0) < 0 or size - made.begins != made.nbytes:
            raise self._damaged(name, f"{size - made.begins} bytes for {made.nbytes}")
        return made

    def _read(self, name: str, stream: Any, size: int) -> bytes:
        try:
            data: bytes = stream.read(size)
        except Exception as error:
            raise self._damaged(name, error) from None
        if len(data) < size:
            raise self._damaged(name, "truncated")
        return data

    def raw(self, name: str) -> Array:
        """Read an array that has no digest here; the CRC-32 of the archive covers it."""
        member = self._member(name)
        data = self._read(name, member.stream, member.nbytes)
        try:
            return np.frombuffer(data, member.dtype).reshape(member.shape).copy()
        except ValueError as error:
            raise self._damaged(name, error) from None

    def text(self, name: str) -> bytes:
        """Read a text that is written as an array of bytes."""
        member = self._member(name)
        if member.nbytes > MAX_HEADER:
            raise self._damaged(name, f"{member.nbytes} bytes, expected at most {MAX_HEADER}")
        return self._read(name, member.stream, member.nbytes)

    def json_object(self, name: str, text: bytes) -> dict[str, Any]:
        """Return the JSON object that a text is; `name` says which text it is."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{self.path}: the {name} is no JSON object ({error})") from None
        if not isinstance(value, dict):
            raise ModelFileError(f"{self.path}: the {name} is no JSON object")
        return value


class Reader(Archive):
    """Arrays of a file, each compared with its digest as it is read.

    Raises
    ------
    ModelFileError
        Unless a file has a header of this format, in this version; from every method for what is not as it was
        saved.
    OSError
        If the file can't be read.
    """

    def __init__(self, path: str | os.PathLike[str], form: str, version: int) -> None:
        super().__init__(path)
        try:
            self.header = self._read_header(form, version)
        except BaseException:
            self._stream.close()
            raise

    def _read_header(self, form: str, version: int) -> dict[str, Any]:
        text = self.text("header")
        if hashlib.sha256(text).digest() != self.text("header_sha256"):
            raise ModelFileError(f"{self.path}: the header does not fit its digest")
        header = self.json_object("header", text)
        if not isinstance(header.get("arrays"), dict):
            raise ModelFileError(f"{self.path}: the header is not that of a model")
        if header.get("format") != form or header.get("version") != version:
            raise ModelFileError(
                f"{self.path}: got {shorten(header.get('format'))} version {shorten(header.get('version'))}, "
                f"expected {form!r} version {version}"
            )
        return header

    def has(self, name: str) -> bool:
        """Whether the header describes an array."""
        return isinstance(self.header["arrays"].get(name), dict)

    def sha256(self, name: str) -> str | None:
        """Return the digest that the header has of an array."""
        return self.header["arrays"][name].get("sha256") if self.has(name) else None

    def _described(self, name: str) -> _Member:
        """Open an array whose dtype and shape are as they were saved."""
        if not self.has(name):
            raise ModelFileError(f"{self.path}: the header names no array {name}")
        member, entry = self._member(name), self.header["arrays"][name]
        if (list(member.shape), member.dtype.str) != (entry.get("shape"), entry.get("dtype")):
            raise ModelFileError(f"{self.path}: {name} does not fit its digest")
        return member

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        return self._described(name).shape

    def pieces(self, name: str, row: int = 1) -> Iterator[bytes]:
        """Yield the bytes of an array, whole rows of so many bytes at a time.

        What they are worth is known after the last: ModelFileError if the array is not as it was saved.
        """
        member = self._described(name)
        state = _begun(member.dtype, member.shape)
        step = max(row, PIECE - PIECE % row)
        for at in range(0, member.nbytes, step):
            data = self._read(name, member.stream, min(step, member.nbytes - at))
            state.update(data)
            yield data
        if state.hexdigest() != self.sha256(name):
            raise ModelFileError(f"{self.path}: {name} does not fit its digest")

    def array(self, name: str) -> Array:
        """Read an array."""
        member, at = self._described(name), 0
        a = np.empty(member.shape, member.dtype)
        flat = a.reshape(-1).view(np.uint8)
        for data in self.pieces(name):
            flat[at : at + len(data)] = np.frombuffer(data, np.uint8)
            at += len(data)
        return a

    def block(self, name: str, first: int, stop: int) -> bytes:
        """Read some rows by their position; they are not compared with the digest of the array."""
        member = self._described(name)
        width = math.prod(member.shape[1:]) * member.dtype.itemsize
        stop = min(stop, member.shape[0])
        # not through zipfile, which would read all that comes before
        begins = self._file.getinfo(f"{name}.npy").header_offset
        self._stream.seek(begins)
        lengths = self._read(name, self._stream, LOCAL_HEADER)[-4:]  # of the name, and of the extra field after it
        begins += LOCAL_HEADER + sum(struct.unpack("<HH", lengths)) + member.begins
        self._stream.seek(begins + first * width)
        return self._read(name, self._stream, max(stop - first, 0) * width)
