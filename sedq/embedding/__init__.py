"""Embedding bags over quantised tables whose rows carry their digests.

``layouts`` turns float or fused rows into rows with digests and back; ``bag`` pools them and recovers.
"""

from sedq.embedding.bag import EmbeddingBag

__all__ = ["EmbeddingBag"]
