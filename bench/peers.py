"""Unprotected peers, each as a callable, so that one process can time them in turn with ours.

Each is optional: what is not installed is left out. They need ``pip install torch onnx onnxruntime fbgemm-gpu-cpu``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["X_SCALE", "X_ZERO", "Y_SCALE", "Y_ZERO", "bag_peers", "linear_peers", "tables_peer"]

Array = NDArray[Any]
Call = Callable[[], Any]

# calls with (indices, offsets, weights or None), offsets with the last one
BagCall = Callable[[Array, Array, Array | None], Any]

# Activation parameters of every comparison; weight scales are per channel, bias is 0.
X_SCALE, X_ZERO, Y_SCALE, Y_ZERO = 0.02, 128, 0.5, 128


def linear_peers(x: Array, w: Array, scale: Array, threads: int) -> dict[str, tuple[Call, Callable[[Any], Array]]]:
    """Return by name a call and how to read its result as uint8, for each peer that is installed."""
    made = {}
    for name, make in (("FBGEMM", _fbgemm), ("oneDNN", _onednn), ("ONNX Runtime", _onnxruntime)):
        try:
            made[name] = make(x, w, scale, threads)
        except ImportError:
            continue
    return made


def _torch(threads: int) -> Any:
    # it warns that its quantised tensors will go, which is what we compare with
    warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
    import torch

    torch.set_num_threads(threads)
    return torch


def _fbgemm(x: Array, w: Array, scale: Array, threads: int) -> tuple[Call, Callable[[Any], Array]]:
    torch = _torch(threads)
    torch.backends.quantized.engine = "fbgemm"
    qx = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), X_SCALE, X_ZERO)
    zeros = torch.zeros(len(w), dtype=torch.long)
    scales = torch.from_numpy(scale.astype(np.float64))
    qw = torch._make_per_channel_quantized_tensor(torch.from_numpy(w), scales, zeros, 0)
    packed = torch.ops.quantized.linear_prepack(qw, torch.zeros(len(w)))
    linear = torch.ops.quantized.linear
    return lambda: linear(qx, packed, Y_SCALE, Y_ZERO), lambda y: y.int_repr().numpy()


def _onednn(x: Array, w: Array, scale: Array, threads: int) -> tuple[Call, Callable[[Any], Array]]:
    torch = _torch(threads)
    packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(w), None)
    tx, scales = torch.from_numpy(x), torch.from_numpy(scale)
    zeros, bias = torch.zeros(len(w), dtype=torch.int32), torch.zeros(len(w))
    linear = torch.ops.onednn.qlinear_pointwise

    def call() -> Any:
        return linear(tx, X_SCALE, X_ZERO, packed, scales, zeros, bias, Y_SCALE, Y_ZERO, torch.uint8, "none", [], "")

    return call, lambda y: y.numpy()


def _onnxruntime(x: Array, w: Array, scale: Array, threads: int) -> tuple[Call, Callable[[Any], Array]]:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    n, k = w.shape
    constants = {
        "x_scale": np.float32(X_SCALE),
        "x_zero": np.uint8(X_ZERO),
        "w": np.ascontiguousarray(w.T),
        "w_scale": scale,
        "w_zero": np.zeros(n, np.int8),
        "bias": np.zeros(n, np.int32),
        "y_scale": np.float32(Y_SCALE),
        "y_zero": np.uint8(Y_ZERO),
    }
    node = helper.make_node("QGemm", ["x", *constants], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "qgemm",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, k])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [None, n])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")

    def read(_: Any) -> Array:
        return np.asarray(binding.copy_outputs_to_cpu()[0])

    return lambda: session.run_with_iobinding(binding), read


def bag_peers(codes: Array, params: Array, bits: int, threads: int) -> dict[str, tuple[BagCall, Callable[[Any], Array]]]:
    """Return by name a call of each peer that is installed, over one table, and how to read its result as float32.

    `codes` are uint8 (rows, bytes), packed if `bits` is 4; `params` float16 (rows, 2), scale and bias. Tables are copied.
    """
    made = {}
    for name, make in (("PyTorch", _torch_bag), ("TBE", _tbe_bag)):
        try:
            made[name] = make(codes, params, bits, threads)
        except ImportError:
            continue
    return made


def _torch_bag(codes: Array, params: Array, bits: int, threads: int) -> tuple[BagCall, Callable[[Any], Array]]:
    torch = _torch(threads)
    stored = params.astype("<f4") if bits == 8 else params  # 8 bit has float32 parameters, 4 bit float16
    rows = np.empty((len(codes), codes.shape[1] + stored.shape[1] * stored.itemsize), np.uint8)
    rows[:, : codes.shape[1]] = codes
    rows[:, codes.shape[1] :] = stored.view(np.uint8)
    table = torch.from_numpy(rows)
    ops = torch.ops.quantized
    pool = ops.embedding_bag_byte_rowwise_offsets if bits == 8 else ops.embedding_bag_4bit_rowwise_offsets

    def call(indices: Array, offsets: Array, weights: Array | None) -> Any:
        factors = None if weights is None else torch.from_numpy(weights)
        return pool(table, torch.from_numpy(indices), torch.from_numpy(offsets), False, 0, False, factors, None, True)

    return call, lambda y: y.numpy()


def _tbe_bag(codes: Array, params: Array, bits: int, threads: int) -> tuple[BagCall, Callable[[Any], Array]]:
    return tables_peer([(codes, params)], bits, threads)


def tables_peer(tables: Sequence[tuple[Array, Array]], bits: int, threads: int) -> tuple[BagCall, Callable[[Any], Array]]:
    """Return a call of FBGEMM's table-batched bags over several tables, as `bag_peers` takes one; ImportError without it."""
    torch = _torch(threads)
    import fbgemm_gpu  # noqa: F401 - registers the operators
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    kind = SparseType.INT8 if bits == 8 else SparseType.INT4
    bags = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("table", len(codes), codes.shape[1] * 8 // bits, kind, EmbeddingLocation.HOST) for codes, _ in tables],
        device="cpu",
        pooling_mode=PoolingMode.SUM,
        output_dtype=SparseType.FP32,
    )
    bags.initialize_weights()
    for (codes, params), (rows, _) in zip(tables, bags.split_embedding_weights(split_scale_shifts=False), strict=True):
        rows[:, :4] = torch.from_numpy(params.view(np.uint8))
        rows[:, 4 : 4 + codes.shape[1]] = torch.from_numpy(codes)

    def call(indices: Array, offsets: Array, weights: Array | None) -> Any:
        factors = None if weights is None else torch.from_numpy(weights)
        return bags(torch.from_numpy(indices), torch.from_numpy(offsets), per_sample_weights=factors)

    return call, lambda y: y.numpy()
