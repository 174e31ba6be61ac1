"""Packed int8 weights: what the kernels read, what the checks compare with, and how corrupted ones heal.

A pack holds several independent views of the same weights:

- ``panels``: the weights as the micro-kernel reads them;
- ``digits``: the row sums of B in base 256, for the check of every product;
- ``row_sums`` (over n, one per k) and ``col_sums`` (over k, one per n): two syndromes whose crossing locates a corrupted
  byte of the panels, and whose differences give its old value;
- a CRC-32 of each array, which confirms a heal and finds corruption at rest.

``packing`` makes a pack, and derives from it what a product needs; ``healing`` looks after it at rest; ``encoding`` has what
both compare with.
"""

from sedq.weights.healing import WeightsReport, crossings
from sedq.weights.packing import PackedWeights, activation_key, pack_weights

__all__ = ["PackedWeights", "WeightsReport", "activation_key", "crossings", "pack_weights"]
