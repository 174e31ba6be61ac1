"""Tables in memory and in files are looked over and mended; `sedq scrub` says so with its exit status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq._core import _dispatch
from sedq.commands import _demo, _main
from sedq.datasets import load_msweb
from sedq.files import _scrub

Array = NDArray[Any]
ROWS, DIM = 200, 16


def fused(bits: int = 8, layout: str = "torch", rows: int = ROWS) -> Array:
    table = np.random.default_rng(0).integers(-3, 4, (rows, DIM)).astype(np.float32)
    if bits > 8:
        return table.astype(np.float16) if bits == 16 else table
    made = sedq.EmbeddingBag.from_float(table, bits=bits)
    if bits == 8 and layout != "torch":  # float16 parameters
        params = made.table.rows[:, -16:-8].view("<f4")
        params[:] = params.astype(np.float16)
        made.table.data.write_digests()
    return made.to_fused(layout)


def saved(folder: Path, rows: Array | None = None, **kwargs: Any) -> Path:
    """Return a table file with its companion."""
    path = folder / "table.npy"
    np.save(path, fused() if rows is None else rows)
    _scrub.protect_file(path, **kwargs)
    return path


def strike(path: Path, *numbers: int, bytes_: int = 1) -> None:
    rows = np.load(path, mmap_mode="r+")
    for number in numbers:
        raw = rows[number : number + 1].view(np.uint8)
        raw[0, :bytes_] ^= np.uint8(255)
    rows.flush()


# ---- in memory


@pytest.mark.parametrize("step", [1, 7, 64, 199, 200, 1000])
def test_a_table_is_gone_through_piece_by_piece(step: int, kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_fused(fused(), locate=True)
    sound, struck = bag.table.rows.copy(), [0, 6, 7, 63, 64, 150, ROWS - 1]
    bag.table.rows[struck, 1] ^= 4
    at, found, reports = 0, list[int](), 0
    while True:
        report = bag.scrub(at, step)
        assert (report.start, report.stop) == (at, min(at + step, ROWS))
        assert report.found == report.corrected == [n for n in struck if report.start <= n < report.stop]
        assert bool(report) == bool(report.found)
        found, at, reports = found + report.found, report.next, reports + 1
        if at == 0:
            break
    assert found == struck
    assert reports == -(-ROWS // step)
    np.testing.assert_array_equal(bag.table.rows, sound)


def test_without_repair_nothing_is_written() -> None:
    bag = sedq.EmbeddingBag.from_fused(fused(), locate=True, parity=8)
    bag.table.rows[3, 0] ^= 1
    kept = bag.table
    assert kept.locator is not None
    assert kept.parity is not None
    kept.locator.syndromes[9, 0] ^= 1
    kept.parity.rows[1, 0] ^= 1
    before = [part.copy() for part in (bag.table.rows, kept.locator.syndromes, kept.parity.rows)]
    for _ in range(2):
        report = bag.scrub(repair=False, redundancy=True)
        assert (report.found, report.left, report.corrected) == ([3], [3], [])
        assert report.stale == ["locating sums of row 9", "parity of group 1"]
    for part, was in zip((bag.table.rows, kept.locator.syndromes, kept.parity.rows), before, strict=True):
        np.testing.assert_array_equal(part, was)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start: got -1"),
        ({"start": ROWS}, f"start: got {ROWS}"),
        ({"rows": 0}, "rows: got 0"),
        ({"rows": 1.5}, "rows: got float 1.5"),
        ({"repair": 1}, "repair: got 1, expected True or False"),
        ({"redundancy": None}, "redundancy: got None, expected True or False"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sedq.EmbeddingBag.from_fused(fused()).scrub(**options)


# ---- files

FILES = [(8, "torch"), (8, "half"), (8, "tbe"), (4, "torch"), (4, "tbe"), (2, "torch"), (16, "torch"), (32, "torch")]


@pytest.mark.parametrize(("bits", "layout"), FILES)
def test_a_file_is_restored_bit_for_bit(bits: int, layout: str, tmp_path: Path) -> None:
    path = saved(tmp_path, fused(bits, layout), bits=bits, layout=layout, dim=DIM, parity=20)
    sound, companion = path.read_bytes(), Path(f"{path}.sedq").read_bytes()
    assert not _scrub.scrub_file(path).found
    strike(path, 3)
    strike(path, 9, 14, bytes_=4)
    struck = path.read_bytes()
    looked = _scrub.scrub_file(path)
    assert (looked.found, looked.left) == (["row 3", "row 9", "row 14"], ["row 3", "row 9", "row 14"])
    assert path.read_bytes() == struck, "looking writes nothing"
    seen: list[tuple[int, int]] = []
    mended = _scrub.scrub_file(path, repair=True, progress=lambda done, total: seen.append((done, total)))
    assert (sorted(mended.repaired), mended.left) == (sorted(looked.found), [])
    assert path.read_bytes() == sound
    assert Path(f"{path}.sedq").read_bytes() == companion
    assert seen == [(ROWS, ROWS)]
    assert not _scrub.scrub_file(path).found


def test_a_mapped_table_serves_while_its_file_is_corrupted(tmp_path: Path) -> None:
    path = saved(tmp_path)
    bag = _scrub.open_table(path)
    clean = bag([[3, 9]])
    strike(path, 9, bytes_=5)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(_scrub.open_table(path)([[3, 9]]), clean)
    assert seen.repairs == {"rebuilt": 1}
    assert _scrub.scrub_file(path).found == ["row 9"]


@pytest.mark.parametrize("chunk", [10, 64, 2**18])
def test_a_companion_whose_parts_were_struck_in_memory_is_reported(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written anew only on request."""
    path = saved(tmp_path, parity=20)
    sound = Path(f"{path}.sedq").read_bytes()
    header, parts = _scrub._companion(path)
    parts["syndromes"][2, 0] ^= 1
    parts["parity"][0, 1] ^= 1
    _scrub._write(Path(f"{path}.sedq"), header, parts)
    monkeypatch.setattr(_scrub, "CHUNK", chunk)
    stale = ["locating sums of row 2", "parity of group 0"]
    assert _scrub.scrub_file(path).left == stale
    struck = Path(f"{path}.sedq").read_bytes()
    report = _scrub.scrub_file(path, repair=True)
    assert (report.found, report.repaired, report.left) == (stale, [], stale)
    assert Path(f"{path}.sedq").read_bytes() == struck, "a repair never replaces redundancy"
    report = _scrub.scrub_file(path, rebuild=[2, 0])
    assert (report.repaired, report.left, report.notes) == (stale, [], [])
    assert Path(f"{path}.sedq").read_bytes() == sound
    assert not _scrub.scrub_file(path).found


def test_every_byte_of_a_companion_matters(tmp_path: Path) -> None:
    path = saved(tmp_path, fused(rows=8), parity=4)
    name = Path(f"{path}.sedq")
    sound, unseen = name.read_bytes(), 0
    expected = _scrub._companion(path)
    for at in range(0, len(sound), 3):
        name.write_bytes(sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :])
        try:
            header, parts = _scrub._companion(path)
        except sedq.ModelFileError:
            continue
        unseen += header != expected[0] or any(not np.array_equal(parts[n], expected[1][n]) for n in _scrub.PARTS)
    assert unseen == 0
    name.write_bytes(sound[:-30])
    with pytest.raises(sedq.ModelFileError, match=r"table.npy.sedq: not the companion of a table, or a damaged one"):
        _scrub.scrub_file(path)


def test_a_companion_of_another_table_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    np.save(path, fused(rows=ROWS + 1))
    with pytest.raises(sedq.ModelFileError, match="made for rows of shape"):
        _scrub.open_table(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parity": 0}, "parity: got 0"),
        ({"parity": 25}, "parity: got"),
        ({"parity": "many"}, "parity: got str"),
        ({"bits": 4}, "not the companion of this table"),
        ({"bits": None}, "not the companion of this table"),
        ({"layout": "mine"}, "layout: got 'mine'"),
        ({"dim": 3}, "dim: got 3"),
        ({"shape": None}, "made for rows of shape None"),
        ({"dtype": "<f4"}, "made for rows"),
        ({"version": 1}, "got 'sedq-table' version 1"),
        ({"syndromes": np.zeros((ROWS, 3), np.uint32)}, "syndromes: got"),
        ({"syndromes": np.zeros((ROWS, 2), np.int32)}, "syndromes: got"),
        ({"sidecar": np.zeros((ROWS, 9), np.uint8)}, "sidecar: got"),
        ({"sidecar": np.zeros(ROWS)}, "not the companion of this table"),
        ({"parity_crc": np.zeros(3, np.uint32)}, "parity_crc: got"),
    ],
)
def test_a_companion_that_says_other_things_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = saved(tmp_path, parity=20)
    header, parts = _scrub._companion(path)
    for name, value in change.items():
        (header if name in header and not isinstance(value, np.ndarray) else parts)[name] = value
    _scrub._write(Path(f"{path}.sedq"), header, parts)
    with pytest.raises(sedq.ModelFileError, match=message):
        _scrub.scrub_file(path)


def test_a_model_is_looked_over_array_by_array(model: Path) -> None:
    report = _scrub.scrub_file(model)
    assert (report.kind, report.found) == ("model", [])
    assert report.checked > 5
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    report = _scrub.scrub_file(model)
    assert len(report.found) == 1
    assert report.left == report.found
    with pytest.raises(ValueError, match="which holds nothing to be mended from"):
        _scrub.scrub_file(model, repair=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.npz"
    _demo.build(load_msweb()).save(path)
    return path


# ---- the command


def run(*arguments: object) -> int:
    return _main.main(["scrub", *map(str, arguments)])


def test_the_command_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.npy"
    np.save(path, fused())
    assert run(path) == 2
    assert "without a companion, expected" in capsys.readouterr().err
    assert run(path, "--protect", "--parity", 20) == 0
    assert capsys.readouterr().out == f"{path}.sedq: {os.path.getsize(f'{path}.sedq')} bytes\n"
    assert run(path) == 0
    assert capsys.readouterr().out == f"{path}: {ROWS} rows compared, all intact\n"
    strike(path, 5, bytes_=3)
    assert run(path) == 1
    assert capsys.readouterr().out == f"{path}: {ROWS} rows compared, 1 corrupted\n  left corrupted: row 5\n"
    assert run(path, "--repair") == 3
    assert capsys.readouterr().out == f"{path}: {ROWS} rows compared, 1 corrupted\n  repaired: row 5\n"
    assert run(path) == 0
    strike(path, 5, 15, 16, bytes_=3)  # 5 and 15 are of one group
    assert run(path, "--repair") == 1
    out, err = capsys.readouterr()
    assert "  repaired: row 16\n  left corrupted: row 5, row 15\n" in out
    assert err == ""


def test_a_corrupted_table_is_not_protected_anew_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its companion is all that it can be mended from."""
    path = saved(tmp_path)
    companion = Path(f"{path}.sedq")
    sound, table = companion.read_bytes(), path.read_bytes()
    assert run(path, "--protect") == 0, "of an intact table it may be made again"
    strike(path, 5, 9)
    assert run(path, "--protect") == 2
    message = "a companion with which 2 rows of the table do not agree, row 5 first; expected them to be repaired, or force"
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="2 rows of the table do not agree"):
        _scrub.protect_file(path, parity=10)
    assert run(path, "--repair") == 3
    assert (companion.read_bytes(), path.read_bytes()) == (sound, table)
    strike(path, 5)
    assert run(path, "--protect", "--force") == 0
    assert run(path) == 0
    np.save(path, fused(rows=ROWS + 1))  # another table
    assert run(path, "--protect") == 2
    assert "made for rows of shape" in capsys.readouterr().err
    companion.write_bytes(b"PK")
    with pytest.raises(sedq.ModelFileError, match=r"or a damaged one .*; expected force to replace it"):
        _scrub.protect_file(path)
    assert _scrub.protect_file(path, force=True) == companion
    assert run(path) == 0


@pytest.mark.parametrize(
    "given",
    [["--bits", "8"], ["--layout", "tbe"], ["--dim", "3"], ["--parity", "64"], ["--force"], ["--bits", "4", "--repair"]],
)
def test_options_of_protect_are_not_ignored_without_it(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path)
    assert run(path, *given) == 2
    assert f"sedq: {given[0]}: got " in capsys.readouterr().err


def test_the_command_shows_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(_scrub, "CHUNK", 100)
    assert run(path) == 0
    assert capsys.readouterr().err == f"\r[{'#' * 20:<40}] 100 of 200\r[{'#' * 40}] 200 of 200\n"
    assert run(path, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_what_is_no_file_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none") == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "text").write_text("text")
    assert run(tmp_path / "text") == 2
    np.save(tmp_path / "flat.npy", np.zeros(5, np.uint8))
    assert run(tmp_path / "flat.npy", "--protect") == 2
    assert "expected rows, a two-dimensional array" in capsys.readouterr().err
    np.save(tmp_path / "table.npy", fused())
    for wrong in (["--bits", "3"], ["--layout", "mine"], ["--parity", "0"], ["--dim", "5000"]):
        assert run(tmp_path / "table.npy", "--protect", *wrong) == 2
    assert sorted(os.listdir(tmp_path)) == ["flat.npy", "table.npy", "text"], "nothing is left behind"
    saved(tmp_path)
    Path(f"{tmp_path / 'table.npy'}.sedq").write_bytes(b"PK")
    assert run(tmp_path / "table.npy") == 2
