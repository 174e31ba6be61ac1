"""Rows are restored as most of their witnesses say; what is undecided stays as it is, and so does redundancy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq.commands import _main
from sedq.files import _scrub

Array = NDArray[Any]
ROWS, DIM, GROUP = 24, 16, 4
GROUPS = ROWS // GROUP
EVERY = pytest.mark.parametrize("bits", [8, 4, 2, 16, 32])


def values(rows: int = ROWS) -> Array:
    return np.random.default_rng(4).normal(size=(rows, DIM)).astype(np.float32)


def made(bits: int = 8, kind: str = "own", **kwargs: Any) -> sedq.EmbeddingBag:
    bag = sedq.EmbeddingBag.from_float(values(), bits=bits, **(kwargs if kind == "own" else {}))
    return bag if kind == "own" else sedq.EmbeddingBag.view_fused(bag.to_fused(), bits=bits, dim=DIM, **kwargs)


def redundancy(bag: sedq.EmbeddingBag) -> dict[str, Array]:
    kept = bag.table
    parts = {} if kept.locator is None else {"syndromes": kept.locator.syndromes.view(np.uint8)}
    if kept.parity is not None:
        parts |= {"parity": kept.parity.rows, "crc": kept.parity.crc[:, None].view(np.uint8)}
    return parts


def same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def swap(row: Array) -> None:
    """Let two different bytes change places, which changes no sum of bytes."""
    other = int(np.flatnonzero(row[:DIM] != row[0])[0])
    row[[0, other]] = row[[other, 0]]


# ---- rows of zeros


@EVERY
@pytest.mark.parametrize("row", [0, 1, ROWS - 1])
@pytest.mark.parametrize("kept", [{"keep_source": True}, {"parity": GROUP}, {"parity": GROUP, "locate": True}])
def test_a_zeroed_row_comes_back(kept: dict[str, Any], row: int, bits: int) -> None:
    bag = made(bits, **kept)
    sound, index = bag.table.rows.copy(), np.arange(ROWS)[:, None]
    clean = bag(index)
    bag.table.rows[row] = 0
    assert bag.bad_rows() == [row]
    assert bag.scrub().left == []
    np.testing.assert_array_equal(bag.table.rows, sound)
    bag.table.rows[row] = 0
    np.testing.assert_array_equal(bag(index), clean)
    np.testing.assert_array_equal(bag.table.rows, sound)


@EVERY
@pytest.mark.parametrize("row", [0, 5])
def test_a_zeroed_row_beside_a_zeroed_sidecar_comes_back_from_parity(row: int, bits: int) -> None:
    bag = made(bits, "view", parity=GROUP)
    clean = bag(np.arange(ROWS)[:, None])
    bag.table.rows.setflags(write=True)
    bag.table.rows[row] = 0
    bag.table.sidecar[row] = 0
    assert bag.scrub().rebuilt == [row]
    np.testing.assert_array_equal(bag(np.arange(ROWS)[:, None]), clean)


def test_a_table_of_zeros_has_no_row_of_zeros() -> None:
    bag = sedq.EmbeddingBag.from_fused(np.zeros((3, DIM + 8), np.uint8))
    assert bag.bad_rows() == []
    bag.table.rows[:] = 0
    assert bag.bad_rows() == [0, 1, 2]


def test_a_zeroed_page_comes_back_from_the_file_of_a_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [[(rng.normal(size=(n, k)), np.zeros(n))] for n, k in ((DIM, 4), (1, DIM + 1))]
    model = sedq.DLRM(layers[0], [values()], layers[1])
    model.quantize((rng.normal(size=(30, 4)), [rng.integers(0, ROWS, (30, 2))], None)).save(tmp_path / "model.npz")
    bag = sedq.DLRM.load(tmp_path / "model.npz").bags[0]
    sound = bag.table.rows.copy()
    bag.table.rows[:10] = 0
    assert bag.scrub().reloaded == list(range(10))
    np.testing.assert_array_equal(bag.table.rows, sound)


def test_a_source_that_a_possible_digest_contradicts_is_not_believed() -> None:
    bag = made(keep_source=True)
    bag.table.source.weight = values() + 1  # type: ignore[union-attr, attr-defined]
    bag.table.rows[3, 0] ^= 1
    assert bag.scrub().left == [3]
    assert bag.restore([3]) == []


# ---- bytes that changed places


@EVERY
@pytest.mark.parametrize("kind", ["own", "view"])
def test_swapped_bytes_are_restored_if_parity_and_locating_sums_agree(kind: str, bits: int) -> None:
    bag = made(bits, kind, locate=True, parity=GROUP)
    before, sound = redundancy(bag), bag.table.rows.copy()
    kept = {name: part.copy() for name, part in before.items()}
    bag.table.rows.setflags(write=True)
    swap(bag.table.rows[7])
    seen = bag.scrub(repair=False, redundancy=True)
    assert (seen.found, seen.left, seen.stale) == ([7], [7], [])
    report = bag.scrub(redundancy=True)
    assert (report.found, report.rebuilt, report.left, report.stale) == ([7], [7], [], [])
    np.testing.assert_array_equal(bag.table.row(7), sound[7])
    assert same(redundancy(bag), kept)
    assert not bag.scrub(redundancy=True)


def test_swapped_bytes_are_restored_by_parity_if_only_one_row_can_be_the_wrong_one() -> None:
    bag = made(parity=GROUP)
    sound = bag.table.rows.copy()
    swap(bag.table.rows[7])
    assert not bag.scrub(), "a digest is blind to order"
    assert bag.scrub(redundancy=True).rebuilt == [7]
    np.testing.assert_array_equal(bag.table.rows, sound)


@pytest.mark.parametrize("kind", ["own", "view"])
def test_swapped_bytes_with_locating_sums_alone_are_reported(kind: str) -> None:
    bag = made(8, kind, locate=True)
    bag.table.rows.setflags(write=True)
    kept = bag.table.locator.syndromes.copy()  # type: ignore[union-attr]
    swap(bag.table.rows[7])
    struck = bag.table.rows.copy()
    report = bag.scrub(redundancy=True)
    assert (report.found, report.left, report.stale) == ([7], [7], [])
    assert report.evidence == {7: "fits its digest, but does not fit its locating sums"}
    refused = bag.rebuild_redundancy([7])
    assert refused.rebuilt == []
    assert refused.refused == ["locating sums of row 7: only its digest confirms row 7, expected a source or two witnesses"]
    np.testing.assert_array_equal(bag.table.rows, struck)
    np.testing.assert_array_equal(bag.table.locator.syndromes, kept)  # type: ignore[union-attr]


def test_swapped_bytes_are_reloaded_where_a_source_and_locating_sums_agree() -> None:
    bag = made(locate=True, keep_source=True)
    sound = bag.table.rows.copy()
    swap(bag.table.rows[7])
    assert bag.scrub(redundancy=True).reloaded == [7]
    np.testing.assert_array_equal(bag.table.rows, sound)


def equal_rows(**kwargs: Any) -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(np.tile(values(1), (ROWS, 1)), parity=GROUP, **kwargs)


def test_a_group_whose_rows_could_all_be_the_wrong_one_is_reported() -> None:
    bag = equal_rows()
    swap(bag.table.rows[7])
    struck = bag.table.rows.copy()
    report = bag.scrub(redundancy=True)
    assert 7 in report.left
    assert report.found == report.left == [n for n in range(1, ROWS, GROUPS) if n in report.left]
    assert len(report.left) > 1
    assert "says that one of rows" in report.evidence[7]
    np.testing.assert_array_equal(bag.table.rows, struck)


def test_a_source_says_which_row_of_a_group_is_the_wrong_one() -> None:
    bag = equal_rows(keep_source=True)
    sound = bag.table.rows.copy()
    swap(bag.table.rows[7])
    report = bag.scrub(redundancy=True)
    assert (report.found, report.left) == ([7], [])
    np.testing.assert_array_equal(bag.table.rows, sound)


def test_parity_that_missed_an_update_does_not_bring_old_rows_back() -> None:
    for kwargs in ({}, {"locate": True}):
        bag = made(parity=GROUP, **kwargs)
        parity = bag.table.parity
        assert parity is not None
        old = parity.rows.copy(), parity.crc.copy()
        bag.update_rows([7], values()[:1])
        parity.rows[:], parity.crc[:] = old
        rows = bag.table.rows.copy()
        report = bag.scrub(redundancy=True)
        assert (report.found, report.stale) == ([], ["parity of group 1"])
        np.testing.assert_array_equal(bag.table.rows, rows)
        assert bag.rebuild_redundancy([7]).rebuilt == (["parity of group 1"] if kwargs else [])


# ---- damage of every kind


def damage(rng: np.random.Generator, bag: sedq.EmbeddingBag, groups: list[int], *, many: bool) -> None:
    """Flip 1 to 8 bits in one place of each of some groups, or in several."""
    bag.table.rows.setflags(write=True)
    parts = {"rows": bag.table.rows, **redundancy(bag)}
    if bag.table.sidecar is not None:
        parts["sidecar"] = bag.table.sidecar
    for group in groups:
        for _ in range(int(rng.integers(1, 4)) if many else 1):
            name = str(rng.choice(list(parts)))
            at = group if name in ("parity", "crc") else group + GROUPS * int(rng.integers(GROUP))
            bits = rng.choice(8 * parts[name].shape[1], int(rng.integers(1, 9)), replace=False)
            for bit in bits.tolist():
                parts[name][at, bit // 8] ^= np.uint8(1 << bit % 8)


CONFIGURATIONS = [
    ("own", {"locate": True}),
    ("own", {"parity": GROUP}),
    ("own", {"locate": True, "parity": GROUP}),
    ("own", {"locate": True, "keep_source": True}),
    ("own", {"locate": True, "parity": GROUP, "keep_source": True}),
    ("view", {"locate": True}),
    ("view", {"parity": GROUP}),
    ("view", {"locate": True, "parity": GROUP}),
]


@EVERY
@pytest.mark.parametrize(("kind", "kept"), CONFIGURATIONS)
def test_a_row_is_right_or_reported_whatever_was_struck(kind: str, kept: dict[str, Any], bits: int) -> None:
    bag = made(bits, kind, **kept)
    rng, sound, pure = np.random.default_rng([bits, len(kept)]), bag.table.rows.copy(), redundancy(bag)
    pure = {name: part.copy() for name, part in pure.items()}
    beside = None if bag.table.sidecar is None else bag.table.sidecar.copy()
    restored = reported = 0
    for _ in range(60):
        # without locating sums, two faults in one group may look like one in a third row
        damage(rng, bag, rng.choice(GROUPS, 2, replace=False).tolist(), many="locate" in kept)
        struck, before = bag.table.rows.copy(), {name: part.copy() for name, part in redundancy(bag).items()}
        report = bag.scrub(redundancy=True)
        for number in range(ROWS):
            if number in report.left:
                np.testing.assert_array_equal(bag.table.rows[number], struck[number])
                assert number not in bag.table.overlay
            else:
                np.testing.assert_array_equal(bag.table.row(number), sound[number])
        assert same(redundancy(bag), before), "a scrub writes no redundancy"
        restored += len(report.corrected + report.rebuilt + report.reloaded)
        reported += len(report.left)
        rows = np.arange(ROWS)
        bag.rebuild_redundancy(rows)  # makes nothing from a wrong row
        for name, part in redundancy(bag).items():
            wrong = (part != pure[name]).any(axis=1)
            assert (part == before[name]).all(axis=1)[wrong].all(), f"{name} were made from a wrong row"
        for name, part in redundancy(bag).items():
            part[:] = pure[name]
        bag.table.rows[:] = sound
        bag.table.overlay.clear()
        if beside is not None:
            bag.table.sidecar[:] = beside
    assert restored > 3
    assert reported > 0 or "parity" in kept or "keep_source" in kept


# ---- files


def saved(folder: Path) -> Path:
    path = folder / "table.npy"
    np.save(path, made().to_fused())
    _scrub.protect_file(path, parity=GROUP)
    return path


def change(path: Path, *numbers: int) -> None:
    rows = np.load(path, mmap_mode="r+")
    for number in numbers:
        swap(rows[number])
    rows.flush()


def test_swapped_bytes_in_a_file_are_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path)
    sound, companion = path.read_bytes(), Path(f"{path}.sedq").read_bytes()
    change(path, 7)
    assert _scrub.scrub_file(path).left == ["row 7"]
    with pytest.raises(ValueError, match="1 rows of the table do not agree, row 7 first"):
        _scrub.protect_file(path, parity=GROUP)
    assert _main.main(["scrub", str(path), "--repair"]) == 3
    assert "repaired: row 7" in capsys.readouterr().out
    assert (path.read_bytes(), Path(f"{path}.sedq").read_bytes()) == (sound, companion)


def test_swapped_bytes_in_two_rows_of_a_group_in_a_file_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path)
    change(path, 7, 7 + GROUPS)
    struck, companion = path.read_bytes(), Path(f"{path}.sedq").read_bytes()
    assert _main.main(["scrub", str(path), "--repair", "--rebuild", "7", "13"]) == 1
    out = capsys.readouterr().out
    assert "left corrupted: row 7, row 13\n" in out
    assert "row 7 fits its digest, but does not fit its locating sums" in out
    assert "not made anew: locating sums of row 7: only its digest confirms row 7" in out
    assert (path.read_bytes(), Path(f"{path}.sedq").read_bytes()) == (struck, companion)


def test_a_companion_is_made_anew_by_row_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path)
    companion = Path(f"{path}.sedq").read_bytes()
    header, parts = _scrub._companion(path)
    parts["syndromes"][7, 1] ^= 1
    _scrub._write(Path(f"{path}.sedq"), header, parts)
    assert _main.main(["scrub", str(path), "--repair"]) == 1
    assert "left corrupted: locating sums of row 7" in capsys.readouterr().out
    assert _main.main(["scrub", str(path), "--rebuild", "7"]) == 3
    assert Path(f"{path}.sedq").read_bytes() == companion
    assert _main.main(["scrub", str(path), "--rebuild", "99"]) == 2
    assert _main.main(["scrub", str(path), "--protect", "--rebuild", "7"]) == 2
    with pytest.raises(ValueError, match="got rows to rebuild the redundancy of, but the file has no companion"):
        _scrub.scrub_file(tmp_path / "other.npy", rebuild=[1])
