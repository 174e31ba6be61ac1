"""Embedding bags: in the caches, out of them, and short ones."""

import numpy as np

import sedq

# rows, d, bags, rows per bag
SHAPES = {"cached": (2_000, 64, 256, 40), "memory": (400_000, 64, 32, 100), "short": (100_000, 128, 256, 8)}


class Bag:
    """A call of `sedq.EmbeddingBag`."""

    params = (list(SHAPES), ["off", "digest", "threshold", "exact", "full"])
    param_names = ("shape", "check")

    def setup(self, shape: str, check: str) -> None:
        rows, dim, bags, length = SHAPES[shape]
        rng = np.random.default_rng(0)
        params = np.tile(np.array([0.01, -1], "<f4").view(np.uint8), (rows, 1))
        codes = rng.integers(0, 256, (rows, dim), dtype=np.uint8)
        self.bag = sedq.EmbeddingBag.from_fused(np.hstack([codes, params]))
        self.indices = rng.integers(0, rows, (bags, length))

    def time_bag(self, shape: str, check: str) -> None:
        self.bag(self.indices, check=check, num_threads=1)
