"""Embedding bags over quantised tables whose rows carry their digests.

::

    EmbeddingBag            pools rows of its table, verifies and recovers          `_bag`, requests in `_requests`
      StoredTable           verifies, restores, scrubs, updates and copies rows     `_table`
        ProtectedRows       rows with digests, locating sums, parity, overlay       `_protected`, `_locator`, `_parity`
                            how a corrupted row is restored                         `_repair`, `_witnesses`, `_sources`
    EmbeddingBagCollection  pools many tables in one call                           `_collection`
    IndexBatch              requests that carry digests of their indices            `_index_batch`

`_formats` turns float or fused rows into rows with digests and back.
"""

from sedq.embedding._bag import EmbeddingBag, measure_sums, pool_into
from sedq.embedding._collection import EmbeddingBagCollection
from sedq.embedding._index_batch import IndexBatch
from sedq.embedding._reports import ScrubReport
from sedq.embedding._table import StoredTable

__all__ = [
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "IndexBatch",
    "ScrubReport",
    "StoredTable",
    "measure_sums",
    "pool_into",
]
