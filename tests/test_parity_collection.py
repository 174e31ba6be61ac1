"""EmbeddingBagCollection beside FBGEMM's table-batched bags and PyTorch's: the same order, and sums within rounding."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

Array = NDArray[Any]
TABLES = ((50, 8), (7, 64), (1000, 36), (3, 128))  # rows, columns


def requests(batch: int, dtype: Any) -> tuple[Array, Array]:
    """Return indices and offsets as a KeyedJaggedTensor has them: the first table's bags first."""
    rng = np.random.default_rng(batch)
    lengths = rng.integers(0, 12, (len(TABLES), batch))
    indices = [rng.integers(0, rows, count.sum()) for (rows, _), count in zip(TABLES, lengths, strict=True)]
    return np.concatenate(indices).astype(dtype), np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def table_batched(bits: int, mode: str) -> tuple[Any, list[Array]]:
    """FBGEMM's bags of random tables, and their rows, which share memory with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fbgemm_gpu")
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
    kind = {8: SparseType.INT8, 4: SparseType.INT4, 2: SparseType.INT2, 16: SparseType.FP16}[bits]
    bags = IntNBitTableBatchedEmbeddingBagsCodegen(
        [(f"table {t}", rows, dim, kind, EmbeddingLocation.HOST) for t, (rows, dim) in enumerate(TABLES)],
        device="cpu",
        pooling_mode=PoolingMode.SUM if mode == "sum" else PoolingMode.MEAN,
        output_dtype=SparseType.FP32,
    )
    bags.initialize_weights()
    tables = [part[0].numpy() for part in bags.split_embedding_weights(split_scale_shifts=False)]
    rng = np.random.default_rng(bits)
    for table, (rows, dim) in zip(tables, TABLES, strict=True):
        table[:] = 0
        if bits == 16:
            table[:, : 2 * dim] = rng.normal(size=(rows, dim)).astype(np.float16).view(np.uint8)
            continue
        params = np.stack([rng.uniform(0.01, 0.1, rows), rng.normal(size=rows)], axis=1)
        table[:, :4] = params.astype(np.float16).view(np.uint8)
        table[:, 4 : 4 + dim * bits // 8] = rng.integers(0, 256, (rows, dim * bits // 8))
    return bags, tables


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("bits", [8, 4, 2, 16])
def test_as_table_batched_bags(bits: int, mode: Any, weighted: bool, dtype: Any) -> None:
    theirs, tables = table_batched(bits, mode)
    if bits == 16:
        ours = [
            sedq.EmbeddingBag.view_fused(table[:, : 2 * dim].view(np.float16), bits=16, mode=mode)
            for table, (_, dim) in zip(tables, TABLES, strict=True)
        ]
    else:
        ours = [
            sedq.EmbeddingBag.from_fused(table, bits=bits, layout="tbe", dim=dim, mode=mode)
            for table, (_, dim) in zip(tables, TABLES, strict=True)
        ]
    collection = sedq.EmbeddingBagCollection(ours)
    for batch in (1, 5, 40):
        indices, offsets = requests(batch, dtype)
        weights = np.random.default_rng(1).uniform(0.5, 2, indices.size).astype(np.float32) if weighted else None
        factors = None if weights is None else torch.from_numpy(weights)
        want = theirs(torch.from_numpy(indices), torch.from_numpy(offsets), per_sample_weights=factors).numpy()
        got = collection(indices, offsets, weights, on_error="raise")
        assert got.shape == want.shape == (batch, sum(dim for _, dim in TABLES))
        # sums of at most 12 values below 2 (0.1 * 255 + 5), in a different order
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * 2.0**-24 * 12 * 2 * 31)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_as_bags_of_float_rows_one_beside_the_other(mode: Any) -> None:
    rng = np.random.default_rng(0)
    floats = [rng.normal(size=shape).astype(np.float32) for shape in TABLES]
    collection = sedq.EmbeddingBagCollection([sedq.EmbeddingBag.from_float(t, bits=32, mode=mode) for t in floats])
    indices, offsets = requests(30, np.int64)
    got, want = collection(indices, offsets), []
    for number, table in enumerate(floats):
        at = offsets[30 * number : 30 * number + 31]
        part, starts = torch.from_numpy(indices[at[0] : at[-1]]), torch.from_numpy(at[:-1] - at[0])
        want.append(torch.nn.functional.embedding_bag(part, torch.from_numpy(table), starts, mode=mode).numpy())
    np.testing.assert_allclose(got, np.hstack(want), rtol=0, atol=64 * 2.0**-24 * 12 * 5)
