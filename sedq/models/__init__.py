"""A deep learning recommendation model (DLRM) whose every stage is checked.

::

    dense --quantise--> bottom MLP (int8) --float--+
    indices, offsets --> bags, one per table ------+--> dot interaction --quantise--> top MLP (int8) --> sigmoid

    stage                what checks it
    quantise             computed twice, compared
    int8 layers          exact row checksum, output read back, parameters digested
    bags                 row digests, pooled sums, output read back
    interaction          computed twice, compared, codes read back
    sigmoid              computed twice, compared
    between stages       each writer sums what it stores, its reader compares (bytes, or bit patterns of floats)
"""

from sedq.models._dlrm import DLRM

__all__ = ["DLRM"]
