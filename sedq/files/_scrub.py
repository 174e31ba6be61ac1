"""Tables and models at rest in files: protect, look over, mend.

::

    table.npy            fused rows of any layout, as another library wrote them: mapped, never copied
    table.npy.sedq       its companion, made by `protect_file`: digests, locating sums, parity

A model file (`sedq.DLRM.save`) has a SHA-256 for each of its arrays; it is looked over, but holds nothing to be mended from.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq._core import _rows
from sedq._progress import Progress
from sedq.embedding import EmbeddingBag, StoredTable, _formats, _protected
from sedq.exceptions import ModelFileError
from sedq.files import _model_file
from sedq.files._archive import Archive, shorten
from sedq.files._replacing import replacing

__all__ = ["FileReport", "open_table", "protect_file", "scrub_file"]

Array = NDArray[Any]
SUFFIX = ".sedq"
FORMAT, VERSION = "sedq-table", 2
PARTS = ("sidecar", "syndromes", "parity", "parity_crc")
CHUNK = 2**18  # rows between two reports of progress


@dataclass
class FileReport:
    """What `scrub_file` found.

    Attributes
    ----------
    path : str
    kind : {"model", "table"}
    checked : int
        Arrays of a model, rows of a table.
    found, repaired, left : list of str
        What was corrupted or in doubt, what of it was mended, and what was not.
    notes : list of str
        Why rows were left although their digests fit, and why redundancy was not made anew.
    """

    path: str
    kind: str
    checked: int = 0
    found: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.path}: {self.checked} {'rows' if self.kind == 'table' else 'arrays'} compared"
        if not self.found:
            return f"{what}, all intact"
        lines = [f"{what}, {len(self.found)} corrupted"]
        for how, names in (("repaired", self.repaired), ("left corrupted", self.left)):
            if names:
                more = f" and {len(names) - 10} more" if len(names) > 10 else ""
                lines.append(f"  {how}: {', '.join(names[:10])}{more}")
        return "\n".join(lines + [f"  {note}" for note in self.notes[:10]])


def protect_file(
    path: str | os.PathLike[str],
    *,
    bits: int = 8,
    layout: str = "torch",
    dim: int | None = None,
    parity: int = 64,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make the companion of a table file: digests, locating sums and parity rows, in one pass over it.

    Parameters
    ----------
    path : path-like
        A file that ``numpy.save`` wrote: fused rows, uint8 (rows, bytes), or float16 or float32 rows. It may be larger than
        memory.
    bits, layout, dim
        As for `EmbeddingBag.view_fused`.
    parity : int, default 64
        Rows of a parity group.
    force : bool, default False
        Replace a companion that doesn't agree with the table: what was in the table before can't be restored then.
    progress : callable, optional
        Called as ``progress(done, rows)``.

    Returns
    -------
    Path
        The companion, ``path`` with ``.sedq`` appended. One that exists is replaced if it puts no row in doubt.

    Raises
    ------
    ValueError
        For a file that holds no such rows, or does not agree with the companion that it has.
    OSError
        If a file can't be read or written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import sedq
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "table.npy")
    ...     np.save(path, sedq.EmbeddingBag.from_float(np.ones((100, 8), dtype=np.float32)).to_fused())
    ...     sedq.files.protect_file(path, parity=10).name
    'table.npy.sedq'
    """
    target = Path(os.fspath(path) + SUFFIX)
    rows = _mapped(path)
    if not _validation.boolean("force", force) and target.exists():
        _require_agreement(path)
    bag = EmbeddingBag.view_fused(rows, bits=bits, layout=layout, dim=dim, locate=True, parity=parity, progress=progress)
    header = {"format": FORMAT, "version": VERSION, "bits": bits, "layout": layout, "dim": bag.shape[1], "parity": parity}
    header["shape"], header["dtype"] = list(rows.shape), rows.dtype.str
    _write(target, header, _parts(bag))
    return target


def _require_agreement(path: str | os.PathLike[str]) -> None:
    """ValueError unless a table is what its companion was made of, which may be all that it can be mended from."""
    name = os.fspath(path)
    try:
        bad = open_table(path).scrub(repair=False, redundancy=True).found
    except ModelFileError as error:
        raise ModelFileError(f"{error}; expected force to replace it") from None
    if bad:
        raise ValueError(
            f"{name}{SUFFIX}: got a companion with which {len(bad)} rows of the table do not agree, row {bad[0]} first; "
            "expected them to be repaired, or force to take the table as it is"
        )


def _mapped(path: str | os.PathLike[str], mode: Any = "r") -> Array:
    """Map the rows of a table file."""
    try:
        rows = np.load(path, mmap_mode=mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header makes numpy raise nearly anything
        raise ValueError(f"{os.fspath(path)}: not a table, or a truncated one ({error})") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2:
        raise ValueError(f"{os.fspath(path)}: got {_validation.describe(rows)}, expected rows, a two-dimensional array")
    return rows


def _write(target: Path, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    with replacing(target) as stream:
        np.savez(stream, header=text, **arrays)


def _companion(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read the companion of a table file; the archive has a CRC-32 for each part of it."""
    with Archive(os.fspath(path) + SUFFIX, "the companion of a table") as file:
        header = file.json_object("header", file.text("header"))
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            got = f"got {shorten(header.get('format'))} version {shorten(header.get('version'))}"
            raise ModelFileError(f"{file.path}: {got}, expected {FORMAT!r} version {VERSION}")
        return header, {part: file.raw(part) for part in PARTS}


def open_table(path: str | os.PathLike[str], *, mode: Literal["sum", "mean"] = "sum") -> EmbeddingBag:
    """Map a table file that `protect_file` made a companion for; nothing is read but the companion.

    Parameters
    ----------
    path : path-like
        The table, not its companion.
    mode : {"sum", "mean"}, default "sum"
        How a bag is pooled.

    Returns
    -------
    EmbeddingBag
        Corrupted rows are restored in memory; the file stays as it is.

    Raises
    ------
    ModelFileError
        For a companion that is damaged or made for another table.
    ValueError
        For a file that is no table, or an unknown mode.
    OSError
        If a file can't be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import sedq
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "table.npy")
    ...     np.save(path, sedq.EmbeddingBag.from_float(np.ones((100, 8), dtype=np.float32)).to_fused())
    ...     _ = sedq.files.protect_file(path)
    ...     sedq.files.open_table(path)([[3, 4]])
    array([[2., 2., 2., 2., 2., 2., 2., 2.]], dtype=float32)
    """
    if mode not in ("sum", "mean"):
        raise ValueError(f"mode: got {mode!r}, expected 'sum' or 'mean'")
    rows = _mapped(path)
    header, arrays = _companion(path)
    if header.get("shape") != list(rows.shape) or header.get("dtype") != rows.dtype.str:
        raise ModelFileError(f"{os.fspath(path)}{SUFFIX}: made for rows of shape {header.get('shape')}, not {rows.shape}")
    try:
        return _assembled(rows, header, arrays, mode)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{os.fspath(path)}{SUFFIX}: not the companion of this table ({error})") from None


def _assembled(rows: Array, header: dict[str, Any], arrays: dict[str, Array], mode: Literal["sum", "mean"]) -> EmbeddingBag:
    """Put a bag together from mapped rows and the companion's parts."""
    raw, at = _formats.table_geometry(rows, header["bits"], header["layout"], header["dim"])
    data = _rows.Table(
        raw,
        at.dim,
        at.bits,
        sidecar=arrays["sidecar"],
        codes_at=at.codes_at,
        params_at=at.params_at,
        half=bool(at.half),
    )
    locator, groups = _protected.new_redundancy(raw, True, _validation.integer("parity", header["parity"], 1, 2**31))
    assert locator is not None
    assert groups is not None
    locator.syndromes = _like("syndromes", arrays["syndromes"], locator.syndromes)
    groups.rows = _like("parity", arrays["parity"], groups.rows)
    groups.crc = _like("parity_crc", arrays["parity_crc"], groups.crc)
    return EmbeddingBag.from_table(
        StoredTable(_protected.ProtectedRows(data, locator, groups), layout=header["layout"]), mode=mode
    )


def _like(name: str, got: Array, expected: Array) -> Array:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ValueError(f"{name}: got {_validation.describe(got)}, expected {_validation.describe(expected)}")
    return np.ascontiguousarray(got)


def scrub_file(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    rebuild: ArrayLike = (),
    progress: Progress | None = None,
) -> FileReport:
    """Compare everything in a model or table file with its digests.

    Parameters
    ----------
    path : path-like
        A model, or a table with a companion.
    repair : bool, default False
        Write restored rows into the table file, and restored digests into its companion. Rows are written in place, as a
        table may be too large to copy: keep other writers away. A row is restored if most witnesses (digest, locating sums,
        parity) agree on it; otherwise it is left as it is. Locating sums and parity are never replaced by a repair.
    rebuild : array_like of int, optional
        Rows whose locating sums and parity are to be made anew in the companion, where two witnesses confirm the rows; see
        `EmbeddingBag.rebuild_redundancy`.
    progress : callable, optional
        Called as ``progress(done, total)``.

    Returns
    -------
    FileReport

    Raises
    ------
    ModelFileError
        For a file whose own header or companion is damaged, so that nothing can be compared.
    ValueError
        For a file that is neither.
    OSError
        If a file can't be read or written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import sedq
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "table.npy")
    ...     np.save(path, sedq.EmbeddingBag.from_float(np.ones((100, 8), dtype=np.float32)).to_fused())
    ...     _ = sedq.files.protect_file(path)
    ...     rows = np.load(path, mmap_mode="r+")
    ...     rows[7] ^= 255
    ...     rows.flush()
    ...     print(sedq.files.scrub_file(path, repair=True).repaired, sedq.files.scrub_file(path).found)
    ['row 7'] []
    """
    name = os.fspath(path)
    if not os.path.exists(name + SUFFIX):
        if np.size(rebuild):
            raise ValueError(f"{name}: got rows to rebuild the redundancy of, but the file has no companion {name}{SUFFIX}")
        with open(name, "rb") as stream:
            magic = stream.read(6)
        if magic == b"\x93NUMPY":
            raise ValueError(f"{name}: got a table without a companion, expected {name}{SUFFIX} as protect_file makes it")
        return _scrub_model(name, repair, progress)
    return _scrub_table(name, repair, rebuild, progress)


def _scrub_model(name: str, repair: bool, progress: Progress | None) -> FileReport:
    report = FileReport(name, "model")
    if repair:
        raise ValueError(f"{name}: got repair for a model file, which holds nothing to be mended from; expected a table")
    for done, (part, intact, total) in enumerate(_model_file.compare(name), 1):
        report.checked += 1
        if not intact:
            report.found.append(part)
            report.left.append(part)
        if progress is not None:
            progress(done, total)
    return report


def _scrub_table(name: str, repair: bool, rebuild: ArrayLike, progress: Progress | None) -> FileReport:
    bag = open_table(name)
    report = FileReport(name, "table", checked=bag.shape[0])
    before = _digests(bag)
    at, more = 0, True
    while more:
        part = bag.scrub(at, CHUNK, repair=repair, redundancy=True)
        report.found += [*(f"row {row}" for row in part.found), *part.stale]
        report.left += [*(f"row {row}" for row in part.left), *part.stale]
        report.repaired += [f"row {row}" for row in (*part.corrected, *part.rebuilt)]
        report.notes += [f"row {row} {said}" for row, said in part.evidence.items() if said.startswith("fits")]
        at, more = part.next, part.next > 0
        if progress is not None:
            progress(part.stop, bag.shape[0])
    if np.size(rebuild):
        made = bag.rebuild_redundancy(rebuild)
        report.repaired += made.rebuilt
        report.found += [what for what in made.rebuilt if what not in report.found]
        report.left = [what for what in report.left if what not in made.rebuilt]
        report.notes += [f"not made anew: {reason}" for reason in made.refused]
    if repair:
        _write_rows(name, bag)
    if (repair or np.size(rebuild)) and _digests(bag) != before:
        header, _ = _companion(name)
        _write(Path(name + SUFFIX), header, _parts(bag))
    return report


def _write_rows(name: str, bag: EmbeddingBag) -> None:
    """Write the overlay of a table into its file."""
    overlay = bag.table.overlay
    if not overlay:
        return
    rows = _mapped(name, "r+")
    assert isinstance(rows, np.memmap)
    for number, row in overlay.items():
        rows[number] = row.view(rows.dtype)
    rows.flush()


def _digests(bag: EmbeddingBag) -> list[bytes]:
    return [hashlib.sha256(part.data).digest() for part in _parts(bag).values()]


def _parts(bag: EmbeddingBag) -> dict[str, Array]:
    """Return what a companion keeps of a table."""
    table = bag.table
    assert table.locator is not None
    assert table.parity is not None
    assert table.sidecar is not None
    made = (table.sidecar, table.locator.syndromes, table.parity.rows, table.parity.crc)
    return dict(zip(PARTS, made, strict=True))
