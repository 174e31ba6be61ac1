"""Embedding bags over quantised tables whose rows carry their digests.

``layouts`` turns float or fused rows into rows with digests and back; ``bag`` pools them and recovers, ``collection`` pools
many tables at once. ``maintenance`` looks after rows at rest, with ``repair``, ``parity`` and ``guard``; ``index_batch`` has
requests that carry digests.
"""

from sedq.embedding.bag import EmbeddingBag
from sedq.embedding.collection import EmbeddingBagCollection
from sedq.embedding.index_batch import IndexBatch
from sedq.embedding.outcomes import ScrubReport

__all__ = ["EmbeddingBag", "EmbeddingBagCollection", "IndexBatch", "ScrubReport"]
