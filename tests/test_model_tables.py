"""Tables in model files: their settings come back, and their rows are restored from the file that holds them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import faults
from sedq.files import _model_file
from sedq.files._archive import Writer

Array = NDArray[Any]
DIM, ROWS = 5, 40
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(ROWS, DIM)).astype(np.float32)
DENSE = RNG.normal(size=(16, 3)).astype(np.float32)
INDICES = RNG.integers(ROWS, size=(16, 4))


def model_of(bag: sedq.EmbeddingBag) -> sedq.DLRM:
    """A model of one table."""
    rng = np.random.default_rng(1)
    dim = bag.shape[1]
    bottom = [(rng.normal(size=(dim, 3)).astype(np.float32), None)]
    top = [(rng.normal(size=(1, dim + 1)).astype(np.float32), np.zeros(1, np.float32))]
    made = sedq.DLRM(bottom, [np.ones((ROWS, dim), np.float32)], top).quantize((DENSE, [INDICES], None))
    return sedq.DLRM.from_quantized(made.bottom, [bag], made.top)


def mapping(dtype: Any = np.int64) -> Array:
    made = np.full(60, -1, dtype)
    made[RNG.permutation(60)[:ROWS]] = RNG.permutation(ROWS)
    return made


def loaded(bag: sedq.EmbeddingBag, path: Path) -> sedq.DLRM:
    model_of(bag).save(path)
    return sedq.DLRM.load(path)


# ---- settings

SETTINGS: dict[str, dict[str, Any]] = {
    "padding": {"padding_idx": 3},
    "padding from the end": {"padding_idx": -1, "mode": "mean"},
    "mapping": {"index_mapping": mapping()},
    "mapping of int32 with padding": {"index_mapping": mapping(np.int32), "padding_idx": 7, "mode": "mean"},
    "parity": {"parity": 8},
    "locate": {"locate": True},
    "4 bits": {"bits": 4},
    "2 bits": {"bits": 2},
    "16 bits": {"bits": 16},
    "32 bits": {"bits": 32, "parity": 3, "locate": True, "padding_idx": 0},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_come_back(tmp_path: Path, case: str) -> None:
    bag = sedq.EmbeddingBag.from_float(TABLE, **SETTINGS[case])
    model = model_of(bag)
    model.save(tmp_path / "m")
    twin = sedq.DLRM.load(tmp_path / "m")
    np.testing.assert_array_equal(twin(DENSE, [INDICES]), model(DENSE, [INDICES]))
    made = twin.bags[0]
    assert (made.shape, made.bits, made.mode, made.num_embeddings) == (bag.shape, bag.bits, bag.mode, bag.num_embeddings)
    kept, want = made.table, bag.table
    assert (kept.locator is None, kept.parity is None) == (want.locator is None, want.parity is None)
    if kept.parity is not None and want.parity is not None:
        assert kept.parity.group == want.parity.group
    if made.pruning is not None and made.pruning.mapping is not None:
        assert made.pruning.mapping.dtype == SETTINGS[case]["index_mapping"].dtype
    twin.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    faults.flip_row_bit(made, 9, 1)
    made.table.source = None
    assert made.scrub().left == ([] if "parity" in SETTINGS[case] or "locate" in SETTINGS[case] else [9])


@pytest.mark.parametrize("layout", ["torch", "half", "tbe"])
@pytest.mark.parametrize("bits", [8, 4])
def test_rows_given_to_a_loaded_table_mean_what_they_meant(tmp_path: Path, bits: int, layout: str) -> None:
    fused = sedq.EmbeddingBag.from_float(TABLE[:, :4].astype(np.float16), bits=4).to_fused()
    if bits == 8:
        codes = RNG.integers(0, 256, (ROWS, 4)).astype(np.uint8)
        fused = np.hstack([codes, np.tile(np.array([0.5, 1], np.float16).view(np.uint8), (ROWS, 1))])
    plain = sedq.EmbeddingBag.from_fused(fused, bits=bits, layout="half")
    bag = sedq.EmbeddingBag.from_fused(plain.to_fused(layout), bits=bits, layout=layout)
    bag.update_rows([2], TABLE[:1, :4])  # whose scale need not be a float16 number
    twin = loaded(bag, tmp_path / "m").bags[0]
    faults.flip_row_bit(twin, 2, 3)
    np.testing.assert_array_equal(twin([[1, 2]]), bag([[1, 2]]))
    try:
        twin.update_rows([1], plain.to_fused(layout)[5:6])
    except ValueError:
        assert (bits, layout) in ((8, "half"), (8, "tbe"))
    else:
        np.testing.assert_array_equal(twin([[1]]), plain([[5]]))


def test_a_corrupted_mapping_is_not_saved(tmp_path: Path) -> None:
    bag = sedq.EmbeddingBag.from_float(TABLE, index_mapping=mapping())
    assert bag.pruning is not None
    assert bag.pruning.mapping is not None
    bag.pruning.mapping[0] ^= 1
    with pytest.raises(sedq.SoftErrorDetected, match=r"table\.0: the index mapping is corrupted"):
        model_of(bag).save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


# ---- rows come back from the file that was written last


def test_a_model_saved_over_its_file_is_restored_from_it(tmp_path: Path) -> None:
    bag = loaded(sedq.EmbeddingBag.from_float(TABLE), path := tmp_path / "m").bags[0]
    model = model_of(bag)
    bag.update_rows([7], TABLE[:1])
    want = bag.to_fused()
    faults.flip_row_bit(bag, 7, 3)
    assert bag.bad_rows() == [7]
    assert bag.scrub().left == [7]  # the file has another row 7
    bag.update_rows([7], TABLE[:1])
    faults.flip_row_bit(bag, 9, 3)  # restored while it is saved, which counts as a write
    model.save(path)
    for row in (7, 9):
        faults.flip_row_bit(bag, row, 3)
        bag([[row]])
    np.testing.assert_array_equal(bag.to_fused(), want)
    bag.update_rows([7], TABLE[1:2])
    faults.flip_row_bit(bag, 7, 3)
    assert bag.scrub().left == [7]


def test_a_row_updated_while_the_model_is_saved_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = loaded(sedq.EmbeddingBag.from_float(TABLE), path := tmp_path / "m")
    bag, finish = twin.bags[0], Writer.finish

    def late(self: Writer, header: dict[str, Any]) -> None:
        bag.update_rows([7], TABLE[7:8, ::-1])  # of equal digest
        finish(self, header)

    monkeypatch.setattr(Writer, "finish", late)
    twin.save(path)
    for row in (7, 9):
        faults.flip_row_bit(bag, row, 3)
    report = bag.scrub()
    assert (report.reloaded, report.left) == ([9], [7])


def test_what_was_loaded_is_restored_from_where_it_was_saved_since(tmp_path: Path) -> None:
    twin = loaded(sedq.EmbeddingBag.from_float(TABLE), tmp_path / "m")
    want = twin(DENSE, [INDICES])
    twin.save(tmp_path / "moved")
    (tmp_path / "m").unlink()
    for n in range(3):
        for k in range(2):
            faults.flip_weight_bit(twin.bottom[0].packed, n, k, 6)
    faults.flip_row_bit(twin.bags[0], int(INDICES[0, 0]), 6)
    np.testing.assert_array_equal(twin(DENSE, [INDICES]), want)


def test_a_source_in_memory_is_kept(tmp_path: Path) -> None:
    bag = sedq.EmbeddingBag.from_float(TABLE, keep_source=True)
    model_of(bag).save(tmp_path / "m")
    (tmp_path / "m").unlink()
    faults.flip_row_bit(bag, 9, 3)
    assert bag.scrub().reloaded == [9]


# ---- no more is read or held than is needed


def test_a_row_is_read_from_its_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_model_file, "BLOCK", 100 * 32)
    table = RNG.normal(size=(1030, 24)).astype(np.float32)  # the last block is shorter
    bag = loaded(sedq.EmbeddingBag.from_float(table), path := tmp_path / "m").bags[0]
    rows, before = bag.to_fused(), path.read_bytes()
    altered = bytearray(before)
    altered[before.index(rows[520].tobytes())] ^= 1
    path.write_bytes(altered)
    for row in (0, 499, 500, 599, 600, 1029):
        faults.flip_row_bit(bag, row, 3)
    assert bag.restore([0, 499, 600, 1029]) == [0, 499, 600, 1029]
    assert bag.restore([500]) == bag.restore([599, 0]) == []
    path.write_bytes(before)
    assert bag.restore([599, 500]) == [599, 500]
    np.testing.assert_array_equal(bag.to_fused(), rows)


def test_files_are_read_and_written_in_pieces(tmp_path: Path) -> None:
    rows = 100_000
    fused = np.zeros((rows, 72), np.uint8)
    bag = sedq.EmbeddingBag.from_fused(fused)
    model = model_of(bag)
    path = tmp_path / "m"

    def peak(call: Any, *args: Any) -> tuple[Any, int]:
        tracemalloc.start()
        result = call(*args)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result, most

    own = bag.table.rows.nbytes
    assert peak(model.save, path)[1] < fused.nbytes / 2
    twin, most = peak(sedq.DLRM.load, path)
    assert most < own + fused.nbytes / 2  # the rows themselves count where they are no map
    faults.flip_row_bit(twin.bags[0], 90_000, 3)
    restored, most = peak(twin.bags[0].restore, [90_000])
    assert restored == [90_000]
    assert most < fused.nbytes / 2
