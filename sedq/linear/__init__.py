"""int8 linear layers: packed weights, products that check themselves, and layers with parameters from sample data.

A product goes from `_products` through the compiled loops of `sedq._core._gemm`. Its weights come from `_weights`, which
packs them and derives what a product needs; `_healing` looks after stored weights, and `_encoding` makes the checksums that
both compare with. `checksums` locates and corrects wrong elements of a product that was kept, moved or computed elsewhere.
"""

from sedq.linear import checksums
from sedq.linear._healing import WeightsReport
from sedq.linear._layer import QuantizedLinear
from sedq.linear._products import matmul_integer, qlinear, qlinear_dynamic
from sedq.linear._weights import PackedWeights, pack_weights

__all__ = [
    "PackedWeights",
    "QuantizedLinear",
    "WeightsReport",
    "checksums",
    "matmul_integer",
    "pack_weights",
    "qlinear",
    "qlinear_dynamic",
]
